"""2b: how good is the network?

Cross-entropy loss, mean of -log p(y | x), and the fractions of images whose class is the most likely one (top-1) or
among the five most likely (top-5), on the split validation images. Can its confidence be believed? The expected
calibration error, sum over 15 bins of (n_b / n) |accuracy_b - confidence_b| (Guo et al. 2017, On Calibration of Modern
Neural Networks, section 2), with its reliability diagram. Images are read as they are stored (EXIF ignored), as for
published accuracies.

    python 2b_evaluate.py                 # all validation images, after process_data.py
    python 2b_evaluate.py --limit 16      # the fast one
    python 2b_evaluate.py FOLDER          # a folder of labelled pictures, one subfolder for each class
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from explain.shell import run

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import common
from explain.datasets import class_folders
from explain.errors import printable
from explain.label_order import other_order

TOP = 5  # classes that count for the top-5 accuracy
BINS = 15  # of equal width, for the calibration error: Guo et al. 2017, table 1
CONFUSION_SHOWN = 40  # classes that can be told apart in the confusion matrix; the table has all


def evaluate(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return loss (nats), rank of the true class (1 is the most likely), predicted class and its confidence, each (N,).

    images (N, 3, H, W), true classes (N,). Raises UserError for a class that the network does not have.
    """
    logits = common.predict_logits(model, images)  # (N, classes)
    if classes.max() >= logits.shape[1]:
        raise common.UserError(
            f"class {int(classes.max())} is unknown to a model of {logits.shape[1]} classes: do the ids start at 1?"
        )
    # a tie counts against the network: a constant output has no accuracy above chance
    rank = (logits >= logits.gather(1, classes[:, None])).sum(1)
    confidence, predicted = logits.softmax(1).max(1)
    loss = F.cross_entropy(logits, classes, reduction="none")
    return {"loss": loss, "rank": rank, "predicted": predicted, "confidence": confidence}


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[float, list[dict]]:
    """Return the expected calibration error, and for each bin its edges, count, mean confidence and accuracy.

    Bins are (k / bins, (k + 1) / bins], as in Guo et al. 2017, section 2; the means are None where one is empty.
    scikit-learn's calibration_curve leaves empty bins out and does not count, so that it cannot give the error.
    """
    bin_of = np.ceil(confidence * bins).clip(1, bins) - 1
    error, table = 0.0, []
    for k in range(bins):
        inside = bin_of == k
        count = int(inside.sum())
        row = {"from": k / bins, "to": (k + 1) / bins, "images": count, "confidence": None, "accuracy": None}
        if count:
            row["confidence"] = float(confidence[inside].mean())
            row["accuracy"] = float(correct[inside].mean())
            error += count / len(confidence) * abs(row["accuracy"] - row["confidence"])
        table.append(row)
    return error, table


def totals(rows: list[dict]) -> dict:
    """Return the number of images, the numbers of right answers, and the mean loss."""
    return {
        "images": len(rows),
        "top1_correct": sum(row["rank"] == 1 for row in rows),
        "top5_correct": sum(row["rank"] <= TOP for row in rows),
        "loss": sum(row["loss"] for row in rows) / len(rows),
    }


def summary(rows: list[dict], classes: int) -> tuple[dict, list[dict]]:
    """Return the metrics, from sums over rows, and the table of the calibration's bins."""
    results = totals(rows)
    n, accuracy = len(rows), results["top1_correct"] / len(rows)
    confidence = np.array([row["confidence"] for row in rows])
    calibration_error, bins = calibration(confidence, np.array([row["rank"] == 1 for row in rows]))
    return results | {
        "loss_chance": float(np.log(classes)),
        "top1_accuracy": accuracy,
        "top1_standard_error": float(np.sqrt(accuracy * (1 - accuracy) / n)),
        "top5_accuracy": results["top5_correct"] / n,
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
    by_class: dict[int, list[dict]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    per_class = [{"class": c, "name": names[c], **totals(own)} for c, own in sorted(by_class.items())]
    return {"classes.csv": per_class, "confusion.csv": confusion}


def draw_reliability(bins: list[dict], error: float, images: int, name: str) -> Figure:
    """Draw accuracy over confidence, and the number of images in each bin."""
    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    full = [b for b in bins if b["images"]]
    accuracy = [b["accuracy"] for b in full]
    bars = dict(width=1 / len(bins), align="edge", edgecolor="white")
    above.bar([b["from"] for b in full], accuracy, label="accuracy", **bars)
    above.plot([b["confidence"] for b in full], accuracy, "k.", label="at the bin's mean confidence")
    above.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="perfectly calibrated")
    above.set(ylabel="accuracy in the bin", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(fontsize=7, loc="upper left", framealpha=0.95)
    title = f"{name}: reliability of {images} predictions\nexpected calibration error {error:.3f} ({len(bins)} bins)"
    above.set_title(title, fontsize=9)
    below.bar([b["from"] for b in bins], [b["images"] for b in bins], color="lightsteelblue", **bars)
    below.set(xlabel="confidence: probability of the most likely class", ylabel="images")
    return figure


def draw_confusion(rows: list[dict], model: common.Classifier) -> Figure:
    """Draw true classes by predicted ones: all that are present, or the most missed where there are too many."""
    present = sorted({row["class"] for row in rows})
    classes, predicted = present, present
    if len(present) > CONFUSION_SHOWN:
        missed = Counter(row["class"] for row in rows if row["rank"] > 1)
        classes = sorted(c for c, _ in missed.most_common(CONFUSION_SHOWN // 2)) or present[:CONFUSION_SHOWN]
        confused = Counter(row["predicted"] for row in rows if row["class"] in missed)
        predicted = sorted({*classes, *(c for c, _ in confused.most_common(CONFUSION_SHOWN // 2))})
    other = len(predicted)  # the column of every class without one
    matrix = np.zeros((len(classes), len(predicted) + 1))
    rows_drawn = [row for row in rows if row["class"] in classes]
    for row in rows_drawn:
        column = predicted.index(row["predicted"]) if row["predicted"] in predicted else other
        matrix[classes.index(row["class"]), column] += 1
    figure = Figure(figsize=(3.4 + 0.17 * matrix.shape[1], 2.6 + 0.17 * len(classes)), layout="constrained")
    axes = figure.subplots()
    shares = matrix / matrix.sum(1, keepdims=True)
    mesh = axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="0.85", linewidth=0.5)
    names = {c: f"{common.short(model.categories[c], 22)} {c}" for c in predicted}
    axes.set_yticks(np.arange(len(classes)) + 0.5, [names[c] for c in classes], fontsize=6, parse_math=False)
    labels = [*names.values(), "any other class"]
    axes.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=90, fontsize=6, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true class", aspect="equal")
    axes.invert_yaxis()
    title = f"{model.name}: confusion, {len(rows_drawn)} of {len(rows)} images"
    if classes != present:
        title += f"\nthe {len(classes)} most missed of {len(present)} classes; confusion.csv has all"
    axes.set_title(title, fontsize=9)
    figure.colorbar(mesh, ax=axes, shrink=0.8, label="fraction of the true class's images")
    return figure


def draw_mistakes(rows: list[dict], show: int, files: list[common.ImageFile], model: common.Classifier) -> Figure:
    """Draw up to `show` pictures whose class the network misses, the highest loss first."""
    wrong = sorted((row for row in rows if row["rank"] > 1), key=lambda row: (-row["loss"], row["index"]))
    figure, axes = common.panel_grid(min(show, len(wrong)), columns=1, per_line=6, size=1.75)
    for (panel,), row in zip(axes, wrong, strict=False):
        title = (
            f"is {common.short(model.categories[row['class']])}\n"
            f"said {common.short(model.categories[row['predicted']])} {row['confidence']:.2f}\n"
            f"loss {row['loss']:.2f}, rank {row['rank']}"
        )
        common.draw_picture(panel, model, files[row["index"]].path, title, upright=False)
    common.draw_title(figure, f"{model.name}: the {len(axes)} costliest of {len(wrong)} mistakes in {len(rows)} images")
    return figure


def labelled_images(folder: str, model: common.Classifier) -> tuple[list[common.ImageFile], list[dict], list[str]]:
    """List the images in a folder with a subfolder for each class; return them, those that belong to no class, and
    what is worth knowing about the order.

    A subfolder is named by the class's name, wnid or id. Where the model has only numbers for names, as many subfolders
    as it has classes may have any names, in the order of torchvision's ImageFolder; they are then the model's.
    """
    base = Path(folder)
    names = list(zip(model.wnids or [""] * len(model.categories), model.categories, strict=True))
    try:
        ids, _, notes = class_folders(base, names)
    except common.UserError:
        ids, names, notes = class_folders(base) if model.names_from == "numbers" else ({}, [], [])
        if len(ids) != len(model.categories):
            raise
        model.categories, model.names_from = [name for _, name in names], f"the folders in {printable(base)}, in order"
    in_order = sorted(ids) == sorted(ids, key=ids.get)
    if len(ids) == len(names) and not in_order and all(name.isdecimal() and int(name) == c for name, c in ids.items()):
        notes.append(
            "the folders' names are numbers, taken as class ids; a network trained with torchvision's ImageFolder has "
            "its classes in the order of text (10 before 2): give their names in that order by --names"
        )
    files: list[common.ImageFile] = []
    skipped = []
    for path in common.list_files(base):
        parts = path.relative_to(base).parts
        if len(parts) == 1:
            reason = f"it lies in no class's folder in {printable(base)}"
            skipped.append({"path": printable(path), "reason": reason})
        else:
            files.append(common.ImageFile(len(files), printable(path), path, ids[parts[0]]))
    if not files:
        raise common.UserError(f"the folders in {printable(base)} have no files: put images there")
    return files, skipped, notes


def main() -> None:
    parser = common.exercise_parser(__doc__, "--limit", "--strict")
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="folder with a subfolder for each class, named by the class's name, wnid or id, in place of the dataset",
    )
    options = parser.parse_args()
    files = [] if options.folder else common.validation_images(options.dataset)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    without_class: list[dict] = []
    if options.folder:
        files, without_class, notes = labelled_images(options.folder, model)
        model.notes += notes
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    files = files[: options.limit]

    def judge(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes = torch.tensor([common.class_of(file) for file in batch], device=images.device)
        columns = {"class": classes, **evaluate(model, images, classes)}
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in values]

    rows, skipped = common.explain_images(model, files, judge, options, output, upright=False)
    skipped = without_class + skipped
    results, bins = summary(rows, len(model.categories))
    if other := other_order(rows, model.categories):
        results["labels"] = other
        print(f"warning: {other['says']}", file=sys.stderr)
    error = results["expected_calibration_error"]
    print(
        f"{len(rows)} images: loss {results['loss']:.4f}, top-1 {results['top1_accuracy']:.4f}, "
        f"top-5 {results['top5_accuracy']:.4f}, calibration error {error:.4f}"
    )
    common.save_figure(draw_reliability(bins, error, len(rows), model.name), output.file("reliability.png"))
    common.save_figure(draw_confusion(rows, model), output.file("confusion.png"))
    if results["top1_correct"] < len(rows):
        common.save_figure(draw_mistakes(rows, options.show, files, model), output.file("mistakes.png"))
    tables = {**class_tables(rows, model.categories), "calibration.csv": bins}
    output.finish(rows, skipped, results, tables, model)


if __name__ == "__main__":
    run(main)
