"""The report of 2d: metrics, table and figure of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from explain.basics.errors import quantity
from explain.networks.classifier import Classifier
from explain.report.figures import (
    BLUE,
    SKY,
    class_finding,
    draw_figure,
    draw_file,
    draw_heading,
    file_name,
    panel_grid,
    save_pictures,
    short,
)
from explain.report.page import finish
from explain.run.output import OutputFolder


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figure, table and metrics of the rows."""
    table = [
        {**{key: row[key] for key in ("index", "path")}, "rank": rank, "class": c}
        | {"name": model.categories[c], "probability": p}
        for row in rows
        for rank, (c, p) in enumerate(zip(row["classes"], row["probabilities"], strict=True), start=1)
    ]
    shown = rows[: output.options.show]
    save_pictures(output, shown, photos, model)
    draw_figure(output, "predictions", draw, shown, len(rows), photos, model)
    likeliest = [row | {"class": row["classes"][0], "probability": row["probabilities"][0]} for row in rows]
    findings = [class_finding(row, model.categories) for row in likeliest]
    first = [row["probabilities"][0] for row in rows]
    results = {
        "mean_top1_probability": sum(first) / len(rows),
        "chance_probability": 1 / len(model.categories),
        "images_under_half": sum(p < 0.5 for p in first),
    }
    finish(output, rows, skipped, results, {"predictions.csv": table}, model, findings=findings)


def draw(rows: list[dict], total: int, photos: Sequence[Path], model: Classifier) -> tuple[Figure, list[str]]:
    """Draw each picture beside the bars of its most likely classes."""
    figure, axes = panel_grid(len(rows), ["", ""], 1 if len(rows) == 1 else 2, text_lines=3, widths=[1, 1.3])
    for (left, right), row in zip(axes, rows, strict=True):
        draw_file(left, model, photos[row["index"]])
        draw_heading((left, right), file_name(row))
        places = range(len(row["classes"]))
        right.barh(
            places, row["probabilities"], height=0.35, align="edge", color=[BLUE] + [SKY] * (len(row["classes"]) - 1)
        )
        for place, c, p in zip(places, row["classes"], row["probabilities"], strict=True):
            right.text(0, place - 0.08, f"{short(model.categories[c], 24)}  {p:.3f}", in_layout=False)
        right.set(xlim=(0, 1), ylim=(len(places) - 0.45, -0.6), yticks=[], xticks=[0, 0.5, 1])
        right.set_xlabel("probability", labelpad=1)
        right.spines["left"].set_visible(False)
    shown = f"{len(rows)} of {total} pictures" if len(rows) < total else quantity(total, "picture")
    return figure, [
        f"{model.label}: the most likely classes of {shown}",
        f"Softmax probability of the {len(places)} most likely classes. Pictures: {model.view}.",
    ]
