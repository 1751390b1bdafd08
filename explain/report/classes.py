"""The report of process_data: the table of the classes, and a photo of each with its number of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import ImageOps

from explain.basics.errors import quantity
from explain.data.image_files import read_image
from explain.report.figures import draw_figure, draw_heading, draw_image, panel_grid
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
    output.write_rows(rows)
    output.other_files = results.pop("other_files")
    finish(output, rows, skipped, results, {"classes.csv": table})


def draw_classes(
    table: Sequence[dict], photos: Mapping[int, Path], show: int, white: int | None = None
) -> tuple[Figure, list[str]]:
    """Draw a photo each of up to `show` classes spread over all, with their ids and numbers of images."""
    total = min(show, len(table))
    examples = [table[i * len(table) // total] for i in range(total)]
    per_line = -(-total // -(-total // 6))  # 24: four lines of 6; 20: four of 5
    figure, axes = panel_grid(total, [""], per_line, text_lines=2)
    for (panel,), row in zip(axes, examples, strict=True):
        photo = read_image(photos[row["class"]], white=white)
        draw_image(panel, np.asarray(ImageOps.fit(photo, (200, 200))))
        draw_heading([panel], row["name"], f"{row['class']}: {quantity(row['images'], 'image')}")
    classes, images = quantity(len(table), "class"), quantity(sum(row["images"] for row in table), "image")
    shown = "the first image of each" if total == len(table) else f"the first image of {total} of them"
    return figure, [
        f"Validation set: {images} of {classes}",
        f"Shown: {shown}, with the class id and its number of images. Pictures: central crops.",
    ]
