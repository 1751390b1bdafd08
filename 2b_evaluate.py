"""2b: how good is the network?

Cross-entropy loss, mean of -log p(y | x), and the fractions of images whose class is the most likely one
(top-1) or among the five most likely (top-5), on the split validation images. Can its confidence
be believed? The expected calibration error, sum over 15 bins of (n_b / n) |accuracy_b -
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
    """Return loss (nats), rank of the true class (1 is the most likely), predicted class and its confidence, each (N,).

    images (N, 3, H, W), true classes (N,). Raises UserError for a class that the network does not have.
    """
    logits = common.predict_logits(model, images)  # (N, classes)
    if classes.max() >= logits.shape[1]:
        raise common.UserError(f"class {int(classes.max())} is unknown to a model of {logits.shape[1]} classes")
    # a tie counts against the network: a constant output has no accuracy above chance
    true_logit = logits.gather(1, classes[:, None])
    confidence, predicted = logits.softmax(1).max(1)
    return {
        "loss": F.cross_entropy(logits, classes, reduction="none"),
        "rank": (logits >= true_logit).sum(1),
        "predicted": predicted,
        "confidence": confidence,
    }


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[float, list[dict]]:
    """Return the expected calibration error, and for each bin its edges, count, mean confidence and accuracy.

    Bins are (k / bins, (k + 1) / bins], as in Guo et al. 2017, section 2; the means are None where one is empty.
    scikit-learn's calibration_curve leaves empty bins out and does not count, so that it cannot give the error.
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


def summary(rows: list[dict], classes: int) -> tuple[dict, list[dict]]:
    """Return the metrics, from sums over rows, and the table of the calibration's bins."""
    n = len(rows)
    top1, top5 = (sum(row["rank"] <= top for row in rows) for top in (1, TOP))
    confidence = np.array([row["confidence"] for row in rows])
    calibration_error, bins = calibration(confidence, np.array([row["rank"] == 1 for row in rows]))
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
        "mean_confidence": float(np.mean(confidence)),
        "expected_calibration_error": calibration_error,
        "classes_present": len({row["class"] for row in rows}),
    }, bins


def class_tables(rows: list[dict], names: list[str]) -> dict[str, list[dict]]:
    """Return the tables of the confusions, and of each class's accuracy and loss."""
    confusion = [
        {"class": a, "name": names[a], "predicted": b, "predicted_name": names[b], "images": n}
        for (a, b), n in sorted(Counter((row["class"], row["predicted"]) for row in rows).items())
    ]
    per_class = [
        {
            "class": c,
            "name": names[c],
            "images": len(own),
            "top1_correct": sum(row["rank"] == 1 for row in own),
            "top5_correct": sum(row["rank"] <= TOP for row in own),
            "loss": sum(row["loss"] for row in own) / len(own),
        }
        for c in sorted({row["class"] for row in rows})
        for own in [[row for row in rows if row["class"] == c]]
    ]
    return {"classes.csv": per_class, "confusion.csv": confusion}


def draw_reliability(bins: list[dict], results: dict, name: str) -> Figure:
    """Draw accuracy over confidence, and the number of images in each bin."""
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
    below.set(xlabel="confidence: probability of the most likely class", ylabel="images")
    return figure


def draw_confusion(rows: list[dict], model: common.Classifier) -> Figure:
    """Draw true classes by predicted ones: all that are present, or the most missed where there are too many."""
    present = sorted({row["class"] for row in rows})
    drawn, predicted = present, present
    if len(present) > CONFUSION_SHOWN:
        missed = Counter(row["class"] for row in rows if row["rank"] > 1)
        drawn = sorted(c for c, _ in missed.most_common(CONFUSION_SHOWN // 2)) or present[:CONFUSION_SHOWN]
        confused = Counter(row["predicted"] for row in rows if row["class"] in missed)
        predicted = sorted({*drawn, *(c for c, _ in confused.most_common(CONFUSION_SHOWN // 2))})
    other = len(model.categories)  # stands for every class without a column
    rows_drawn = [row for row in rows if row["class"] in drawn]
    answers = [row["predicted"] if row["predicted"] in predicted else other for row in rows_drawn]
    columns = [*predicted, other]
    matrix = confusion_matrix([row["class"] for row in rows_drawn], answers, labels=columns)
    matrix = matrix[[columns.index(c) for c in drawn]]
    figure = Figure(figsize=(3.4 + 0.17 * len(columns), 2.6 + 0.17 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix / matrix.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    axes.set_yticks(
        range(len(drawn)), [f"{common.short(model.categories[c], 22)} {c}" for c in drawn], fontsize=6, parse_math=False
    )
    names = [f"{common.short(model.categories[c], 22)} {c}" for c in predicted]
    axes.set_xticks(range(len(columns)), [*names, "any other class"], rotation=90, fontsize=6, parse_math=False)
    axes.set_xticks(np.arange(len(columns)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(drawn)) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="predicted", ylabel="true class")
    cut = "" if drawn == present else f"\nthe {len(drawn)} most missed of {len(present)} classes; confusion.csv has all"
    axes.set_title(f"{model.name}: confusion, {len(rows_drawn)} of {len(rows)} images{cut}", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class's images")
    return figure


def draw_mistakes(
    wrong: list[dict], mistakes: int, images: int, files: list[common.ImageFile], model: common.Classifier
) -> Figure:
    """Draw the pictures whose class the network misses, the highest loss first."""
    figure, axes = common.panel_grid(len(wrong), columns=1, per_line=6, size=1.75)
    for (panel,), row in zip(axes, wrong, strict=True):
        title = (
            f"is {common.short(model.categories[row['class']])}\n"
            f"said {common.short(model.categories[row['predicted']])} {row['confidence']:.2f}\n"
            f"loss {row['loss']:.2f}, rank {row['rank']}"
        )
        common.draw_picture(panel, model, files[row["index"]].path, title, upright=False)
    common.draw_title(figure, f"{model.name}: the {len(wrong)} costliest of {mistakes} mistakes in {images} images")
    return figure


def main() -> None:
    options = common.exercise_parser(__doc__, "--limit", "--strict").parse_args()
    files = common.validation_images(options.dataset)[: options.limit]
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)

    def judge(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes = torch.tensor([common.class_of(file) for file in batch], device=images.device)
        columns = {"class": classes, **evaluate(model, images, classes)}
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in values]

    rows, skipped = common.explain_images(model, files, judge, options, output, upright=False)
    results, bins = summary(rows, len(model.categories))
    print(
        f"{results['images']} images: loss {results['loss']:.4f}, top-1 {results['top1_accuracy']:.4f}, "
        f"top-5 {results['top5_accuracy']:.4f}, calibration error {results['expected_calibration_error']:.4f}"
    )
    common.save_figure(draw_reliability(bins, results, model.name), output.file("reliability.png"))
    common.save_figure(draw_confusion(rows, model), output.file("confusion.png"))
    wrong = sorted((row for row in rows if row["rank"] > 1), key=lambda row: (-row["loss"], row["index"]))
    if wrong:
        figure = draw_mistakes(wrong[: options.show], len(wrong), len(rows), files, model)
        common.save_figure(figure, output.file("mistakes.png"))
    tables = {**class_tables(rows, model.categories), "calibration.csv": bins}
    output.finish(rows, skipped, results, tables, model)


if __name__ == "__main__":
    run(main)
