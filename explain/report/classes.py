"""The report of process_data: the table of the classes, and a photo of each with its number of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from explain.basics.errors import quantity
from explain.data.image_files import read_image
from explain.report import figures
from explain.report.page import finish
from explain.run.output import OutputFolder


def write(rows: list[dict], skipped: list[dict], results: dict[str, Any], output: OutputFolder) -> None:
    """Write figures, table and metrics of the rows."""
    options = output.options
    images = [row for row in rows if row["role"] == "validation"]
    per_class = Counter((row["class"], row["name"]) for row in images)
    table = [{"class": c, "name": name, "images": number} for (c, name), number in per_class.items()]
    photos = {row["class"]: Path(options.dataset, row["path"]) for row in reversed(images)}  # the first of each class
    figures.draw_figure(output, "classes", draw_classes, table, photos, options.show, options.white)
    output.write_rows(rows)
    output.other_files = results.pop("other_files")
    finish(output, rows, skipped, results, {"classes.csv": table})


def draw_classes(
    table: Sequence[dict], photos: Mapping[int, Path], show: int, white: int | None = None
) -> figures.Drawing:
    """Draw an image of each of up to `show` classes spread over all, with their ids and numbers of images."""
    total = min(show, len(table))
    examples = [table[i * len(table) // total] for i in range(total)]
    per_line = -(-total // -(-total // 6))  # 24: four lines of 6; 20: four of 5
    figure, axes = figures.panel_grid(total, [""], per_line, text_lines=2)
    for (panel,), row in zip(axes, examples, strict=True):
        photo = read_image(photos[row["class"]], white=white)
        figures.draw_image(panel, np.asarray(ImageOps.fit(photo, (200, 200))))
        figures.draw_heading([panel], row["name"], f"{row['class']}: {quantity(row['images'], 'image')}")
    classes, images = quantity(len(table), "class"), quantity(sum(row["images"] for row in table), "image")
    return figure, [
        f"Validation set: {images} of {classes}",
        f"The first image of each of {figures.some_of(total, len(table), 'class')}, centre-cropped, below the class's "
        "name, id and number of images.",
    ]
