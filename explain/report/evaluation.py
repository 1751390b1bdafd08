"""The report of 2b: metrics, findings, tables and figures of the rows, with intervals and calibration."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from explain.basics.errors import quantity
from explain.data.label_order import other_order
from explain.methods.calibration import COLDEST, FEWEST, HOTTEST, calibration, temperature_scaling, wilson_interval
from explain.networks.classifier import Classifier
from explain.report import figures
from explain.report.page import finish
from explain.run.output import OutputFolder

TOP = 5  # classes that count for the top-5 accuracy
CROPPED = 0.25  # fraction of an image's area: a note is printed if most images lose more
CONFUSION_SHOWN = 24  # classes whose names are readable beside the confusion matrix; the table has all


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figures, tables and metrics of the rows."""
    results, bins = summary(rows, len(model.categories))
    results |= figures.measured_on([row["class"] for row in rows], output.classes)
    results["temperature_scaling"], bins_after = rescale(rows, results, output.path)
    cropped = np.array([row["cropped"] for row in rows])  # fractions of the images' areas
    results |= {"median_cropped": float(np.median(cropped)), "mostly_cropped": float((cropped > CROPPED).mean())}
    if results["mostly_cropped"] > 0.5:
        print(f"note: {crop_sentence(results, model)}", file=sys.stderr)
    if other := other_order(rows, model.categories):
        results["labels"] = other
        print(f"warning: {other['says']}", file=sys.stderr)
    costliest = sorted(rows, key=lambda row: (-row["loss"], row["index"]))
    figures.draw_figure(output, "reliability", draw_reliability, bins, bins_after, results, model)
    if results["top1_correct"] < len(rows):
        figures.draw_figure(output, "confusion", draw_confusion, rows, results, model)
        figures.draw_figure(output, "mistakes", draw_mistakes, costliest, results, output.options.show, photos, model)
    tables = {**tables_of(costliest, model.categories), "calibration.csv": bins}
    finish(output, rows, skipped, results, tables, model, findings=findings(results))


def totals(rows: list[dict], classes: int) -> dict:
    """Return the number of images, the numbers and fractions of right answers, and the mean loss.

    There is no top-5 for five classes or fewer, among which every answer would be right.
    """
    results = {"images": len(rows), "loss": sum(row["loss"] for row in rows) / len(rows)}
    for top in (1, TOP) if classes > TOP else (1,):
        correct = sum(row["rank"] <= top for row in rows)
        results |= {f"top{top}_correct": correct, f"top{top}_accuracy": correct / len(rows)}
    return results


def summary(rows: list[dict], classes: int) -> tuple[dict, list[dict]]:
    """Return the metrics, from sums over rows, and the table of the calibration's bins."""
    results = totals(rows, classes)
    n, accuracy = len(rows), results["top1_accuracy"]
    confidence = np.array([row["confidence"] for row in rows])
    calibration_error, bins = calibration(confidence, np.array([row["rank"] == 1 for row in rows]))
    for top in [key.removesuffix("_correct") for key in results if key.endswith("_correct")]:
        results[f"{top}_interval"] = wilson_interval(results[f"{top}_correct"], n)
    return results | {
        "loss_chance": float(np.log(classes)),
        "top1_standard_error": float(np.sqrt(accuracy * (1 - accuracy) / n)) if n > 1 else None,
        "chance_accuracy": 1 / classes,
        "brier_score": sum(row["brier"] for row in rows) / n,
        "mean_confidence": float(np.mean(confidence)),
        "expected_calibration_error": calibration_error,
    }, bins


def tables_of(rows: list[dict], names: list[str]) -> dict[str, list[dict]]:
    """Return the tables of the images, in the order of the rows, of the confusions, and of each class's accuracy."""
    images = [
        {"path": row["path"], "class": row["class"], "name": names[row["class"]]}
        | {"predicted": row["predicted"], "predicted_name": names[row["predicted"]], "probability": row["confidence"]}
        | {"loss": row["loss"], "rank": row["rank"]}
        for row in rows
    ]
    confusion = [
        {"class": a, "name": names[a], "predicted": b, "predicted_name": names[b], "images": n}
        for (a, b), n in sorted(Counter((row["class"], row["predicted"]) for row in rows).items())
    ]
    by_class: dict[int, list[dict]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    per_class = [{"class": c, "name": names[c], **totals(own, len(names))} for c, own in sorted(by_class.items())]
    return {"classes.csv": per_class, "predictions.csv": images, "confusion.csv": confusion}


def rescale(rows: list[dict], before: dict, folder: Path) -> tuple[dict, list[dict]]:
    """Return loss and calibration after temperature scaling, with a sentence on them, and the table of bins.

    The logits are in the rows' files in the folder. See `temperature_scaling`.
    """
    logits = np.empty((len(rows), *np.load(folder / rows[0]["files"][0]).shape), np.float32)  # (N, classes)
    for own, row in zip(logits, rows, strict=True):
        own[:] = np.load(folder / row["files"][0])
    classes = torch.tensor([row["class"] for row in rows])
    judged = temperature_scaling(torch.from_numpy(logits), classes, [row["rank"] == 1 for row in rows])
    if judged is None:
        images = quantity(len(rows), "image")
        return {"says": f"{images}: too few for temperature scaling, which needs {FEWEST}."}, []
    after, bins = judged
    changes = [
        f"{name} unchanged at {b:.3f}"
        if a == b
        else f"{name} {'better' if a < b else 'worse'}, from {b:.3f} to {a:.3f}"
        for name, key in (("loss", "loss"), ("calibration error", "expected_calibration_error"))
        for b, a in [(round(before[key], 3), round(after[key], 3))]
    ]
    how = f"temperature {temperature_text(after)}, cross-fitted in {len(after['temperatures_of_folds'])} folds"
    return {**after, "says": f"Temperature scaling ({how}): {'; '.join(changes)}."}, bins


def crop_sentence(results: dict, model: Classifier) -> str:
    """Return a sentence on images of which the centre crop removes much, with the cure."""
    cure = "if the network was trained on squashed images, give --squash"
    if model.preprocessing["squash"]:
        cure = f"give --resize {model.input_size} to show the network whole images"
    return (
        f"the centre crop removes a median of {results['median_cropped']:.3f} of an image's area; from a "
        f"fraction of {results['mostly_cropped']:.3f} of the images, it removes more than {CROPPED}; {cure}"
    )


def draw_reliability(bins: list[dict], bins_after: list[dict], results: dict, model: Classifier) -> figures.Drawing:
    """Draw accuracy over confidence with its 95 % interval, also after temperature scaling, and the images per bin."""
    figure = Figure(figsize=(figures.WIDTH, 4.4), layout="constrained")
    legend, above, below = figure.subplots(3, 1, height_ratios=(0.2, 3, 1))
    above.sharex(below)
    above.tick_params(labelbottom=False)
    above.plot([0, 1], [0, 1], "--", color=figures.GREY, linewidth=1, label="perfectly calibrated")
    edges = [*(b["from"] for b in bins), 1]
    curves = {"accuracy, with its 95 % interval": (bins, figures.BLUE, "o")}
    if bins_after:
        temperature = temperature_text(results["temperature_scaling"])
        curves[f"scaled by temperature {temperature}"] = (bins_after, figures.ORANGE, "s")
    for label, (table, colour, marker) in curves.items():
        full = [b for b in table if b["images"]]
        accuracy, confidence = ([b[key] for b in full] for key in ("accuracy", "confidence"))
        intervals = np.array([wilson_interval(b["accuracy"] * b["images"], b["images"]) for b in full]).T  # (2, bins)
        style = dict(fmt=marker, color=colour, markersize=4, linewidth=1.8 if marker == "o" else 0.8, label=label)
        above.errorbar(confidence, accuracy, np.abs(intervals - accuracy), **style)
        below.stairs([b["images"] for b in table], edges, color=colour, fill=marker == "o", alpha=0.6)
    above.set(ylabel="accuracy in the bin", xlim=(-0.015, 1.015), ylim=(-0.03, 1.03))  # room for half a marker
    figures.draw_legend(legend, above, columns=3)
    below.set(xlabel="confidence: probability of the most likely class", ylabel="images")
    below.yaxis.get_major_locator().set_params(integer=True)
    return figure, [
        f"{model.label}: can its confidence be believed?",
        f"Above: accuracy in each of {len(bins)} bins of confidence; below: number of images in each bin.",
        f"{results['measured_on']}: accuracy {results['top1_accuracy']:.3f}, mean confidence "
        f"{results['mean_confidence']:.3f}, expected calibration error {results['expected_calibration_error']:.3f}.",
        results["temperature_scaling"]["says"],
    ]


def draw_confusion(rows: list[dict], results: dict, model: Classifier) -> figures.Drawing:
    """Draw the classes that the network misses, most missed first, by the classes that it predicts for them."""
    missed = Counter(row["class"] for row in rows if row["rank"] > 1)
    classes = [c for c, _ in missed.most_common(CONFUSION_SHOWN)]
    drawn = [row for row in rows if row["class"] in classes]
    predicted = [c for c in classes if any(c == row["predicted"] for row in drawn)]
    others = Counter(row["predicted"] for row in drawn if row["predicted"] not in predicted)
    predicted += sorted(c for c, _ in others.most_common(CONFUSION_SHOWN - len(predicted)))
    matrix = np.zeros((len(classes), len(predicted) + 1))  # the last column: all other classes
    places = {c: place for place, c in enumerate(predicted)}
    for row in drawn:
        matrix[classes.index(row["class"]), places.get(row["predicted"], -1)] += 1
    labels = [f"{figures.short(model.categories[c], 22)} {c}" for c in predicted]
    if matrix[:, -1].any():
        labels.append("any other class")
    matrix = matrix[:, : len(labels)]
    right = np.array(classes)[:, None] == [*predicted, -1][: len(labels)]
    shares = matrix / matrix.sum(1, keepdims=True) * np.where(right, 1, -1)
    cell = min(0.3, (figures.WIDTH - 2.5) / len(labels))  # inches
    room = 0.7 + 0.06 * max(map(len, labels))  # for the colour bar and the labels below
    height = max(0.6, cell * len(classes))
    figure = Figure(figsize=(figures.WIDTH, room + height), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(shares, cmap="RdBu", vmin=-1, vmax=1, edgecolors="0.85", linewidth=0.5)
    bar = figure.colorbar(mesh, ax=axes, location="top", aspect=40, shrink=0.4, pad=0.06 / height, ticks=[-1, 0, 1])
    bar.ax.set_xticklabels(["1: all wrong", "0", "1: all right"])
    bar.outline.set_visible(False)
    for (y, x), n in np.ndenumerate(matrix):
        if n:
            colour = "white" if abs(shares[y, x]) > 0.6 else "black"
            axes.text(x + 0.5, y + 0.5, f"{n:.0f}", ha="center", va="center", color=colour, fontsize=7)
    names = [f"{figures.short(model.categories[c], 22)} {c}" for c in classes]
    axes.set_yticks(np.arange(len(classes)) + 0.5, names)
    axes.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=90)
    axes.set(xlabel="predicted class", ylabel="true class", aspect="equal")
    axes.invert_yaxis()
    cut = f", {len(classes)} of {len(missed)}" if len(classes) < len(missed) else ""
    return figure, [
        f"{model.label}: what the missed classes are mistaken for",
        f"Number of images by true class (only those with mistakes, most often missed first{cut}) and predicted class.",
        "The colour shows each cell's share of its row: blue where the prediction is right, red where it is wrong.",
        f"Measured on {results['measured_on']}; confusion.csv has all classes.",
    ]


def draw_mistakes(
    rows: list[dict], results: dict, show: int, photos: Sequence[Path], model: Classifier
) -> figures.Drawing:
    """Draw up to `show` images whose class the network misses, the highest loss first."""
    wrong = [row for row in rows if row["rank"] > 1]
    figure, axes = figures.panel_grid(min(show, len(wrong)), [""], per_line=4, text_lines=4)
    for (panel,), row in zip(axes, wrong, strict=False):
        figures.draw_file(panel, model, photos[row["index"]], upright=False)
        figures.draw_heading(
            [panel],
            figures.file_name(row),
            f"is {model.categories[row['class']]}",
            f"taken for {model.categories[row['predicted']]}",
            f"p {row['confidence']:.2f}, loss {row['loss']:.2f}, rank {row['rank']}",
        )
    return figure, [
        f"{model.label}: {quantity(len(wrong), 'mistake')} in {quantity(len(rows), 'image')}",
        f"Images ({model.view}) that the network gets wrong, the highest loss first"
        + (f", {len(axes)} of {len(wrong)}." if len(axes) < len(wrong) else "."),
        "p: probability of the predicted class; loss and rank: those of the true class.",
        f"Measured on {results['measured_on']}.",
    ]


def temperature_text(scaled: dict) -> str:
    """Return the range of the folds' temperatures: 0.74 to 0.79, or "at most 0.01" at an end of the search."""
    texts = [
        f"{'at most ' if t == COLDEST else 'at least ' if t == HOTTEST else ''}{t:.2f}"
        for t in (min(scaled["temperatures_of_folds"]), max(scaled["temperatures_of_folds"]))
    ]
    return " to ".join(dict.fromkeys(texts))


def findings(results: dict) -> list[str]:
    """Return a line on accuracy and calibration, and a line on temperature scaling."""
    among_five = f"top-5 {results['top5_accuracy']:.4f}, " if "top5_accuracy" in results else ""
    return [
        f"{results['measured_on']}: loss {results['loss']:.4f}, top-1 {results['top1_accuracy']:.4f}, {among_five}"
        f"calibration error {results['expected_calibration_error']:.4f}",
        results["temperature_scaling"]["says"],
    ]
