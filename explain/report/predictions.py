"""The report of 2d: metrics, table and figure of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from explain.networks.classifier import Classifier
from explain.report import figures
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
    figures.save_images(output, shown, photos, model)
    figures.draw_figure(output, "predictions", draw, shown, len(rows), photos, model)
    likeliest = [row | {"class": row["classes"][0], "probability": row["probabilities"][0]} for row in rows]
    findings = [figures.class_finding(row, model.categories) for row in likeliest]
    first = [row["probabilities"][0] for row in rows]
    results = {
        "mean_top1_probability": sum(first) / len(rows),
        "chance_probability": 1 / len(model.categories),
        "images_under_half": sum(p < 0.5 for p in first),
    }
    finish(output, rows, skipped, results, {"predictions.csv": table}, model, findings=findings)


def draw(rows: list[dict], total: int, photos: Sequence[Path], model: Classifier) -> figures.Drawing:
    """Draw each image beside the bars of its most likely classes."""
    figure, panels = figures.images_and_probabilities(rows, photos, model)
    for axes, row in zip(panels, rows, strict=True):
        places = range(len(row["classes"]))
        colours = [figures.BLUE, *[figures.SKY] * (len(places) - 1)]
        axes.barh(places, row["probabilities"], height=0.35, align="edge", color=colours)
        for place, c, p in zip(places, row["classes"], row["probabilities"], strict=True):
            axes.text(0, place - 0.08, f"{figures.short(model.categories[c], 24)}  {p:.3f}", in_layout=False)
        axes.set_ylim(len(places) - 0.45, -0.6)
    return figure, [
        f"{model.label}: the most likely classes of {figures.some_of(len(rows), total, 'image')}",
        f"Each image ({model.view}) beside the probabilities of its {len(places)} most likely classes.",
    ]
