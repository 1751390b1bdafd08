"""Figures: panels, pictures and saliency maps as several exercises draw them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from explain.errors import UserError
from explain.networks import Classifier
from explain.pictures import read_image, to_pixels


def panel_grid(items: int, columns: int, per_line: int, size: float = 2.1) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes (items, columns), `per_line` items side by side, each panel `size` inches wide."""
    per_line = min(per_line, items)
    lines = -(-items // per_line)
    figure = Figure(figsize=(per_line * columns * size, lines * size * 1.18 + 0.4), layout="constrained")
    axes = figure.subplots(lines, per_line * columns, squeeze=False).reshape(lines * per_line, columns)
    for unused in axes[items:].flat:
        unused.remove()
    return figure, axes[:items]


def draw_image(axes: Axes, image: Tensor | np.ndarray, title: str = "", **settings: Any) -> None:
    """Draw a tensor (3, H, W) in [0, 1], or an array as matplotlib takes it, with its settings, without ticks."""
    axes.imshow(to_pixels(image) if isinstance(image, Tensor) else image, **settings)
    axes.set_title(title, fontsize=7.5, parse_math=False)
    axes.axis("off")


def draw_picture(axes: Axes, model: Classifier, path: Path, title: str, upright: bool = True) -> Tensor:
    """Draw a picture as the network sees it, and return it (3, S, S); one that is gone by now is a note on white."""
    try:
        picture, note = model.preprocess(read_image(path, upright)), ""
    except UserError:
        picture, note = torch.ones(3, model.input_size, model.input_size), "the picture is\nno longer there"
    draw_image(axes, picture, title)
    axes.text(0.5, 0.5, note, ha="center", va="center", fontsize=7.5, transform=axes.transAxes)
    return picture


MAP_PERCENTILE = 99.5  # drawn brightest: a few pixels stand out so far that the rest would be black beside them


def map_name(index: int) -> str:
    """Return the name of the file that holds an image's maps, in the exercise's folder."""
    return f"maps/{index:05d}.npy"


def brightest(maps: Sequence[np.ndarray]) -> float:
    """Return the value drawn brightest on the one scale of these maps; the largest where their percentile is 0."""
    return float(max((np.percentile(m, MAP_PERCENTILE) or m.max() for m in maps), default=1.0))


def draw_map(axes: Axes, saliency: np.ndarray, white: float, title: str, status: str = "ok") -> None:
    """Draw a saliency map (H, W): linear from 0 (black) to `white`; a map that says nothing is named, not drawn."""
    if status == "ok":
        draw_image(axes, saliency, title, cmap="inferno", vmin=0, vmax=white)
    else:
        draw_image(axes, np.zeros_like(saliency), title, cmap="gray")
        axes.text(0.5, 0.5, status, color="white", ha="center", transform=axes.transAxes)


def draw_title(figure: Figure, *lines: str) -> None:
    """Draw a title of one or more lines, broken where the figure is too narrow for them."""
    characters = int(figure.get_figwidth() * 14)  # of the size below fit into an inch
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, characters))
    figure.set_figheight(figure.get_figheight() + 0.16 * text.count("\n"))
    figure.suptitle(text, fontsize=9, parse_math=False)


def short(text: str, length: int = 24) -> str:
    """Return a name cut to `length` characters, for a title."""
    return text if len(text) <= length else text[: length - 1] + "…"
