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
from explain.methods.calibration import calibration, temperature_scaling, wilson_interval
from explain.networks.classifier import Classifier
from explain.report.figures import (
    GREY,
    ORANGE,
    SKY,
    WIDTH,
    draw_figure,
    draw_heading,
    draw_picture,
    file_name,
    panel_grid,
    short,
)
from explain.report.page import finish
from explain.run.output import OutputFolder

TOP = 5  # classes that count for the top-5 accuracy
STYLE_AFTER = dict(color=ORANGE, markersize=3, linewidth=0.8)  # of the line after temperature scaling
CROPPED = 0.25  # of a picture's area: more is worth a sentence if most pictures lose it
CONFUSION_SHOWN = 24  # classes whose names can be read beside the confusion matrix; the table has all


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figures, tables and metrics of the rows."""
    results, bins = summary(rows, len(model.categories))
    results["temperature_scaling"], bins_after = rescale(rows, output.path)
    results |= crops(rows)
    if results["mostly_cropped"] > 0.5:
        print(f"note: {crop_sentence(results, model)}", file=sys.stderr)
    if other := other_order(rows, model.categories):
        results["labels"] = other
        print(f"warning: {other['says']}", file=sys.stderr)
    draw_figure(output, "reliability", draw_reliability, bins, bins_after, results, model)
    if results["top1_correct"] < len(rows):
        draw_figure(output, "confusion", draw_confusion, rows, model)
        draw_figure(output, "mistakes", draw_mistakes, rows, output.options.show, photos, model)
    tables = {**class_tables(rows, model.categories), "calibration.csv": bins}
    finish(output, rows, skipped, results, tables, model, findings=findings(results))


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
        "top1_interval": wilson_interval(results["top1_correct"], n),
        "top5_accuracy": results["top5_correct"] / n,
        "top5_interval": wilson_interval(results["top5_correct"], n),
        "chance_accuracy": 1 / classes,
        "brier_score": sum(row["brier"] for row in rows) / n,
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


def rescale(rows: list[dict], folder: Path) -> tuple[dict | None, list[dict]]:
    """Return what one temperature does to loss and calibration, and the bins after it; see `temperature_scaling`.

    The logits are in the rows' files in the folder.
    """
    logits = np.empty((len(rows), *np.load(folder / rows[0]["files"][0]).shape), np.float32)  # (N, classes)
    for own, row in zip(logits, rows, strict=True):
        own[:] = np.load(folder / row["files"][0])
    classes = torch.tensor([row["class"] for row in rows])
    return temperature_scaling(torch.from_numpy(logits), classes, [row["rank"] == 1 for row in rows]) or (None, [])


def crops(rows: list[dict]) -> dict[str, float]:
    """Return the median fraction of a picture that the crop takes away, and how many lose more than CROPPED."""
    cropped = np.array([row["cropped"] for row in rows])
    return {"median_cropped": float(np.median(cropped)), "mostly_cropped": float((cropped > CROPPED).mean())}


def crop_sentence(results: dict, model: Classifier) -> str:
    """Return a sentence on pictures of which the network does not see much, and its cure."""
    cure = "if the network was trained on squashed pictures, give --squash"
    if model.preprocessing["squash"]:
        cure = f"give --resize {model.input_size} to show it all of them"
    return (
        f"the centre crop takes away more than {CROPPED} of the area of {results['mostly_cropped']:.3f} of the "
        f"pictures, {results['median_cropped']:.3f} of the median picture; {cure}"
    )


def draw_reliability(
    bins: list[dict], bins_after: list[dict], results: dict, model: Classifier
) -> tuple[Figure, list[str]]:
    """Draw accuracy over confidence with its 95% interval, also after one temperature, and the images in each bin."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    full = [b for b in bins if b["images"]]
    accuracy, confidence = ([b[key] for b in full] for key in ("accuracy", "confidence"))
    above.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfectly calibrated")
    intervals = np.array([wilson_interval(b["accuracy"] * b["images"], b["images"]) for b in full]).T  # (2, bins)
    errors = np.abs(intervals - accuracy)
    above.errorbar(confidence, accuracy, errors, fmt="o", markersize=4, linewidth=1, label="accuracy, 95% interval")
    after = [b for b in bins_after if b["images"]]
    if scaled := results["temperature_scaling"]:
        label = f"after temperature {temperature_text(scaled)}"
        above.plot([b["confidence"] for b in after], [b["accuracy"] for b in after], "s-", **STYLE_AFTER, label=label)
    above.set(ylabel="accuracy in the bin", xlim=(0, 1), ylim=(-0.03, 1.03))
    above.legend(loc="lower right")
    below.bar([b["from"] for b in full], [b["images"] for b in full], 1 / len(bins), align="edge", color=SKY)
    below.set(xlabel="confidence: probability of the most likely class", ylabel="images")
    below.yaxis.get_major_locator().set_params(integer=True)
    return figure, [
        f"{model.label}: can its confidence be believed?",
        f"{quantity(results['images'], 'prediction')}, expected calibration error "
        f"{results['expected_calibration_error']:.3f} ({len(bins)} bins); accuracy {results['top1_accuracy']:.3f}, "
        f"mean confidence {results['mean_confidence']:.3f}. Intervals: Wilson 1927; few images say little."
        + (
            f" One temperature, fitted on half of the images and judged on the others, changes the error to "
            f"{scaled['expected_calibration_error']:.3f} and the loss from {results['loss']:.3f} to "
            f"{scaled['loss']:.3f} (Guo et al. 2017)."
            if scaled
            else ""
        ),
    ]


def draw_confusion(rows: list[dict], model: Classifier) -> tuple[Figure, list[str]]:
    """Draw the classes that the network misses, most missed first, by what it takes their images for."""
    wrong = [row for row in rows if row["rank"] > 1]
    missed = Counter(row["class"] for row in wrong)
    classes = [c for c, _ in missed.most_common(CONFUSION_SHOWN)]
    rows_drawn = [row for row in rows if row["class"] in classes]
    others = Counter(row["predicted"] for row in wrong if row["class"] in classes)
    predicted = [c for c in classes if any(c == row["predicted"] for row in rows_drawn)]
    predicted += [c for c, _ in others.most_common() if c not in predicted][: CONFUSION_SHOWN - len(predicted)]
    matrix = np.zeros((len(classes), len(predicted) + 1))  # the last column: every class without one
    for row in rows_drawn:
        column = predicted.index(row["predicted"]) if row["predicted"] in predicted else len(predicted)
        matrix[classes.index(row["class"]), column] += 1
    labels = [f"{short(model.categories[c], 22)} {c}" for c in predicted]
    if matrix[:, -1].any():
        labels.append("any other class")
    else:
        matrix = matrix[:, :-1]
    cell = min(0.3, (WIDTH - 2.5) / len(labels))  # inches
    figure = Figure(figsize=(WIDTH, 1.75 + cell * len(classes)), layout="constrained")
    axes = figure.subplots()
    shares = matrix / matrix.sum(1, keepdims=True)
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="0.85", linewidth=0.5)
    for (y, x), n in np.ndenumerate(matrix):
        if n:
            colour = "white" if shares[y, x] > 0.5 else "black"
            axes.text(x + 0.5, y + 0.5, f"{n:.0f}", ha="center", va="center", color=colour, fontsize=7)
    names = [f"{short(model.categories[c], 22)} {c}" for c in classes]
    axes.set_yticks(np.arange(len(classes)) + 0.5, names)
    axes.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=90)
    axes.set(xlabel="taken for", ylabel="true class", aspect="equal")
    axes.invert_yaxis()
    present = len({row["class"] for row in rows})
    most = f"the {quantity(len(classes), 'class')} missed most, of {len(missed)} missed at all and"
    most = "the only class missed, of" if len(missed) == 1 else most
    return figure, [
        f"{model.label}: what it takes the classes for that it misses",
        f"{quantity(len(rows_drawn), 'image')} of {most} {present} in the data ({quantity(len(rows), 'image')}); "
        "numbers count images, the colour is their share of the class. confusion.csv has all.",
    ]


def draw_mistakes(rows: list[dict], show: int, photos: Sequence[Path], model: Classifier) -> tuple[Figure, list[str]]:
    """Draw up to `show` pictures whose class the network misses, the highest loss first."""
    wrong = sorted((row for row in rows if row["rank"] > 1), key=lambda row: (-row["loss"], row["index"]))
    figure, axes = panel_grid(min(show, len(wrong)), [""], per_line=4, text_lines=4)
    for (panel,), row in zip(axes, wrong, strict=False):
        draw_picture(panel, model, photos[row["index"]], upright=False)
        draw_heading(
            [panel],
            short(file_name(row)),
            f"is {short(model.categories[row['class']])}",
            f"taken for {short(model.categories[row['predicted']], 18)}",
            f"p {row['confidence']:.2f}, loss {row['loss']:.2f}, rank {row['rank']}",
        )
    images = quantity(len(rows), "image")
    title = f"the only mistake in {images}" if len(wrong) == 1 else f"{len(wrong)} mistakes in {images}"
    shown = f", the {len(axes)} with the highest loss" if len(axes) < len(wrong) else ""
    return figure, [
        f"{model.label}: {title}{shown}",
        "Highest loss first. p: probability of what it is taken for; loss and rank: of the true class. "
        f"Pictures: {model.view}.",
    ]


def temperature_text(scaled: dict) -> str:
    """Return the temperature as a text: 2.08, or at an end of the search `at most 0.01`."""
    return " ".join(filter(None, (scaled["temperature_limit"], f"{scaled['temperature']:.2f}")))


def findings(results: dict) -> list[str]:
    """Return a line on accuracy and calibration, and one on what a temperature does to them."""
    lines = [
        f"{quantity(results['images'], 'image')}: loss {results['loss']:.4f}, top-1 "
        f"{results['top1_accuracy']:.4f}, top-5 {results['top5_accuracy']:.4f}, calibration error "
        f"{results['expected_calibration_error']:.4f}"
    ]
    if scaled := results["temperature_scaling"]:
        lines.append(
            f"with one temperature ({temperature_text(scaled)}), fitted on half of them and judged on the others: "
            f"loss {scaled['loss']:.4f}, calibration error {scaled['expected_calibration_error']:.4f}"
        )
    return lines
