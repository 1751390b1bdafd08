"""2b: how good is the network?

Cross-entropy loss, mean of -log p(y | x), and the shares of images whose class is the likeliest
(top-1) or among the five likeliest (top-5), on the split validation images. Whether its confidence
can be believed: the expected calibration error, sum over 15 bins of (n_b / n) |accuracy_b -
confidence_b| (Guo et al. 2017, On Calibration of Modern Neural Networks, section 2), with its
reliability diagram. Images are read as they are stored (EXIF ignored), as for published accuracies.

    python 2b_evaluate.py                 # all validation images, after process_data.py
    python 2b_evaluate.py --limit 16      # the fast one
"""

from __future__ import annotations

from collections import Counter

from explain.shell import run

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

import common

TOP = 5  # classes that count for the top-5 accuracy
BINS = 15  # of equal width, for the calibration error: Guo et al. 2017, table 1
CONFUSION_SHOWN = 40  # classes that can be told apart in the confusion matrix; the table has all


def evaluate(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """images (N, 3, H, W), true classes (N,) -> per image: loss (nats), rank of
    the true class (0 is first), predicted class, confidence (the predicted class's probability)."""
    logits = common.predict_logits(model, images)  # (N, classes)
    if classes.max() >= logits.shape[1]:
        raise common.UserError(f"class {int(classes.max())} is unknown to a model of {logits.shape[1]} classes")
    # a tie counts against the network: a constant output has no accuracy above chance
    true_logit = logits.gather(1, classes[:, None])
    confidence, predicted = logits.softmax(1).max(1)
    return {
        "loss": F.cross_entropy(logits, classes, reduction="none"),
        "rank": (logits >= true_logit).sum(1) - 1,
        "predicted": predicted,
        "confidence": confidence,
    }


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[float, list[dict]]:
    """Expected calibration error, and per bin: its edges, count, mean confidence, accuracy (None where empty).

    Bins are (k / bins, (k + 1) / bins], as in Guo et al. 2017, section 2; scikit-learn's
    calibration_curve leaves empty bins out and does not count, so that it cannot give the error.
    """
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    error, table = 0.0, []
    for k in range(bins):
        inside = bin_of == k
        count = int(inside.sum())
        mean = float(confidence[inside].mean()) if count else None
        accuracy = float(correct[inside].mean()) if count else None
        error += count / len(confidence) * abs(accuracy - mean) if count else 0.0
        table.append(
            {"from": k / bins, "to": (k + 1) / bins, "images": count, "confidence": mean, "accuracy": accuracy}
        )
    return error, table


def calibration_of(rows: list[dict]) -> tuple[float, list[dict]]:
    """The same from rows."""
    return calibration(np.array([row["confidence"] for row in rows]), np.array([row["rank"] == 0 for row in rows]))


def summary(rows: list[dict], classes: int, calibration_error: float) -> dict:
    """The metrics, from sums over rows."""
    n = len(rows)
    top1 = sum(row["rank"] == 0 for row in rows)
    top5 = sum(row["rank"] < TOP for row in rows)
    return {
        "images": n,
        "loss": sum(row["loss"] for row in rows) / n,
        "loss_chance": float(np.log(classes)),
        "top1_correct": top1,
        "top1_accuracy": top1 / n,
        "top1_standard_error": float(np.sqrt(top1 / n * (1 - top1 / n) / n)),
        "top5_correct": top5,
        "top5_accuracy": top5 / n,
        "chance_accuracy": 1 / classes,
        "mean_confidence": float(np.mean([row["confidence"] for row in rows])),
        "expected_calibration_error": calibration_error,
        "classes_present": len({row["class"] for row in rows}),
    }


def main() -> None:
    options = common.option_parser(
        __doc__,
        *("--dataset", "--output", "--model", "--weights", "--device", "--threads"),
        *("--batch-size", "--seed", "--limit", "--strict", "--show", "--shard", "--merge", "--fresh"),
    ).parse_args()
    files = common.validation_images(options.dataset)[: options.limit]
    report = common.Report(options, __file__)
    model = common.load_from_options(options)

    def rows_of(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes = torch.tensor([common.class_of(file) for file in batch], device=images.device)
        found = {key: value.tolist() for key, value in evaluate(model, images, classes).items()}
        return [
            {"class": c, **dict(zip(found, values, strict=True))}
            for c, *values in zip(classes.tolist(), *found.values(), strict=True)
        ]

    rows, skipped = common.explain_images(model, files, rows_of, options, report, upright=False)
    if not rows:
        return  # other shards are still at work; the last of them goes on from here
    calibration_error, bins = calibration_of(rows)
    results = summary(rows, len(model.categories), calibration_error)
    print(
        f"{results['images']} images: loss {results['loss']:.4f}, top-1 {results['top1_accuracy']:.4f}, "
        f"top-5 {results['top5_accuracy']:.4f}, calibration error {results['expected_calibration_error']:.4f}"
    )
    confusion = [
        {"class": a, "name": model.categories[a], "predicted": b, "predicted_name": model.categories[b], "images": n}
        for (a, b), n in sorted(Counter((row["class"], row["predicted"]) for row in rows).items())
    ]
    per_class = [
        {
            "class": c,
            "name": model.categories[c],
            "images": len(own),
            "top1_correct": sum(row["rank"] == 0 for row in own),
            "top5_correct": sum(row["rank"] < TOP for row in own),
            "loss": sum(row["loss"] for row in own) / len(own),
        }
        for c in sorted({row["class"] for row in rows})
        for own in [[row for row in rows if row["class"] == c]]
    ]
    common.save_figure(reliability_figure(bins, results, model.name), report.path("reliability.png"))
    common.save_figure(confusion_figure(rows, model), report.path("confusion.png"))
    wrong = sorted((row for row in rows if row["rank"] > 0), key=lambda row: (-row["loss"], row["index"]))
    if wrong:
        figure = mistakes_figure(wrong[: options.show], len(wrong), len(rows), files, model)
        common.save_figure(figure, report.path("mistakes.png"))
    tables = {"classes.csv": per_class, "confusion.csv": confusion, "calibration.csv": bins}
    report.finish(rows, skipped, results, tables, model)


def reliability_figure(bins: list[dict], results: dict, name: str) -> Figure:
    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width, full = 1 / len(bins), [b for b in bins if b["images"]]
    above.bar(
        [b["from"] for b in full],
        [b["accuracy"] for b in full],
        width,
        align="edge",
        edgecolor="white",
        label="accuracy",
    )
    above.plot(
        [b["confidence"] for b in full], [b["accuracy"] for b in full], "k.", label="at the bin's mean confidence"
    )
    above.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="perfectly calibrated")
    above.set(ylabel="accuracy in the bin", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(fontsize=7, loc="upper left", framealpha=0.95)
    above.set_title(
        f"{name}: reliability of {results['images']} predictions\n"
        f"expected calibration error {results['expected_calibration_error']:.3f} ({len(bins)} bins)",
        fontsize=9,
    )
    below.bar(
        [b["from"] for b in bins],
        [b["images"] for b in bins],
        width,
        align="edge",
        color="lightsteelblue",
        edgecolor="white",
    )
    below.set(xlabel="confidence: probability of the likeliest class", ylabel="images")
    return figure


def confusion_figure(rows: list[dict], model: common.Classifier) -> Figure:
    """True classes by predicted ones: all that are present, or those with mistakes where they are too many to draw."""
    present = sorted({row["class"] for row in rows})
    shown, predicted = present, present
    if len(present) > CONFUSION_SHOWN:
        missed = Counter(row["class"] for row in rows if row["rank"] > 0)
        shown = sorted(c for c, _ in missed.most_common(CONFUSION_SHOWN // 2)) or present[:CONFUSION_SHOWN]
        said = Counter(row["predicted"] for row in rows if row["class"] in missed)
        predicted = sorted({*shown, *(c for c, _ in said.most_common(CONFUSION_SHOWN // 2))})
    other = len(model.categories)  # stands for every class without a column
    kept = [row for row in rows if row["class"] in shown]
    said = [row["predicted"] if row["predicted"] in predicted else other for row in kept]
    columns = [*predicted, other]
    matrix = confusion_matrix([row["class"] for row in kept], said, labels=columns)
    matrix = matrix[[columns.index(c) for c in shown]]
    figure = Figure(figsize=(3.4 + 0.17 * len(columns), 2.6 + 0.17 * len(shown)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(matrix / matrix.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    axes.set_yticks(
        range(len(shown)), [f"{common.short(model.categories[c], 22)} {c}" for c in shown], fontsize=6, parse_math=False
    )
    names = [f"{common.short(model.categories[c], 22)} {c}" for c in predicted]
    axes.set_xticks(range(len(columns)), [*names, "any other class"], rotation=90, fontsize=6, parse_math=False)
    axes.set_xticks(np.arange(len(columns)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(shown)) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="predicted", ylabel="true class")
    cut = "" if shown == present else f"\nthe {len(shown)} most missed of {len(present)} classes; confusion.csv has all"
    axes.set_title(f"{model.name}: confusion, {len(kept)} of {len(rows)} images{cut}", fontsize=9)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="share of the true class's images")
    return figure


def mistakes_figure(wrong: list[dict], mistakes: int, images: int, files, model: common.Classifier) -> Figure:
    figure, axes = common.panel_grid(len(wrong), columns=1, per_line=6, size=1.75)
    for (panel,), row in zip(axes, wrong, strict=True):
        title = (
            f"is {common.short(model.categories[row['class']])}\n"
            f"said {common.short(model.categories[row['predicted']])} {row['confidence']:.2f}\n"
            f"loss {row['loss']:.2f}, rank {row['rank'] + 1}"
        )
        common.draw_picture(panel, model, files[row["index"]].path, title, upright=False)
    common.draw_title(figure, f"{model.name}: the {len(wrong)} costliest of {mistakes} mistakes in {images} images")
    return figure


if __name__ == "__main__":
    run(main)
