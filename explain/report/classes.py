"""The report of process_data: the table of the classes, a photo of each, and their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import ImageOps

from explain.basics.errors import quantity
from explain.data.pictures import read_image
from explain.report.figures import WIDTH, draw_figure, draw_heading, draw_image, panel_grid, short
from explain.report.page import finish
from explain.run.output import OutputFolder


def write(rows: list[dict], skipped: list[dict], results: dict[str, Any], output: OutputFolder) -> None:
    """Write figures, table and metrics of the rows."""
    options = output.options
    images = [row for row in rows if row["role"] == "validation"]
    per_class = Counter((row["class"], row["name"]) for row in images)
    table = [{"class": c, "name": name, "images": number} for (c, name), number in per_class.items()]
    photos = {row["class"]: Path(options.dataset, row["path"]) for row in reversed(images)}  # the first of each class
    draw_figure(output, "classes", draw_classes, table, photos, options.show, options.white)
    if len({row["images"] for row in table}) > 1:
        draw_figure(output, "class_sizes", draw_class_sizes, table)
    output.write_rows(rows)
    output.no_picture = results.pop("no_picture")
    finish(output, rows, skipped, results, {"classes.csv": table})


def draw_classes(
    table: Sequence[dict], photos: Mapping[int, Path], show: int, white: int | None = None
) -> tuple[Figure, list[str]]:
    """Draw a photo each of up to `show` classes spread over all, and the numbers of images where they differ."""
    total = min(show, len(table))
    examples = [table[i * len(table) // total] for i in range(total)]
    per_line = -(-total // -(-total // 6))  # 24: four lines of 6; 20: four of 5
    figure, axes = panel_grid(total, [""], per_line, text_lines=2)
    for (panel,), row in zip(axes, examples, strict=True):
        photo = read_image(photos[row["class"]], white=white)
        draw_image(panel, np.asarray(ImageOps.fit(photo, (200, 200))))
        draw_heading([panel], row["name"], str(row["class"]))
    classes = "each class" if total == len(table) else f"{total} of {len(table)} classes"
    return figure, [f"Validation set: the first image of {classes}, with the class id", "Pictures: central crops."]


def draw_class_sizes(table: Sequence[dict]) -> tuple[Figure, list[str]]:
    """Draw the number of images of each class."""
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots()
    few = len(table) <= 40  # names can be read below the bars
    positions = range(len(table)) if few else [row["class"] for row in table]
    axes.bar(positions, [row["images"] for row in table], width=0.8 if few else 1.0)
    if few:
        axes.set_xticks(positions, [short(row["name"]) for row in table], rotation=90)
    axes.set(xlabel="" if few else "class id", ylabel="images")
    axes.margins(x=0.01)
    axes.yaxis.get_major_locator().set_params(integer=True)
    images = quantity(sum(row["images"] for row in table), "image")
    return figure, [f"Validation set: {images} of {quantity(len(table), 'class')}"]
