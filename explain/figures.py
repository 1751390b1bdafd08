"""Figures: one style, panels, pictures and saliency maps as several exercises draw them."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text
from torch import Tensor

from explain.errors import UserError
from explain.networks import Classifier
from explain.pictures import read_image, to_pixels

WIDTH = 16 / 2.54  # inches: the width of a page's text, at which a figure is printed
# Okabe and Ito 2008, Color Universal Design: colours that colour-blind readers can tell apart
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#777777"
CYCLE = [BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, YELLOW]
STYLE = {
    "font.size": 7.5,  # points at the width of a page; no text is below 7
    "axes.titlesize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
    "text.parse_math": False,  # names and file names may have a $ in them
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text
}

KINDS = {  # of maps, and their colours
    "plain": BLUE,
    "smoothed": GREEN,
    "combined": RED,
    "guided": ORANGE,
    "grad_cam": PURPLE,
    "guided_grad_cam": BLACK,
}
BASELINES = {"random": ":", "middle": "-.", "edges": "--", "detail": "-"}  # and their lines


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the project's style inside the block, whatever the user's own matplotlibrc says."""
    with matplotlib.style.context(STYLE, after_reset=True):
        yield


def panel_grid(
    items: int,
    heads: Sequence[str],
    per_line: int = 1,
    text_lines: int = 1,
    widths: Sequence[float] | None = None,
    inside: SubFigure | None = None,
) -> tuple[Figure | SubFigure, np.ndarray]:
    """Return a figure as wide as a page and its axes (items, columns), `per_line` items side by side.

    `heads` are the names of the columns, printed once on top ("" for none); `widths` are the columns' relative widths
    (1: a square panel). There is room for `text_lines` lines of text with each item; a colour bar takes two.
    `inside` is the part of a figure to use in place of a new one.
    """
    widths = [1.0] * len(heads) if widths is None else list(widths)
    per_line = min(per_line, items)
    lines = -(-items // per_line)
    ratios = [*widths, *([0.1, *widths] * (per_line - 1))]  # a narrow gap between items
    # a panel is at most as wide as half of the page: the width that is left stays empty
    side = min(WIDTH / sum(ratios), WIDTH / 2)
    heads = ["\n".join(textwrap.wrap(name, int(side * 15))) for name in heads]
    head = 0.03 + 0.13 * max(name.count("\n") + bool(name) for name in heads)  # inches
    line_height = side + 0.13 * text_lines + 0.06
    figure = inside or Figure(figsize=(WIDTH, head + lines * line_height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    slack = WIDTH / side - sum(ratios)
    # no row or column without an extent: the layout's solver ends the process at some of them
    columns = [*ratios, slack] if slack > 0.01 else ratios
    rows = [*([head] if any(heads) else []), *[line_height] * lines]
    grid = figure.add_gridspec(len(rows), len(columns), width_ratios=columns, height_ratios=rows)
    axes = np.empty((items, len(heads)), dtype=object)
    for item in range(items):
        line, place = divmod(item, per_line)
        for column, name in enumerate(heads):
            x = place * (len(heads) + 1) + column
            axes[item, column] = figure.add_subplot(grid[line + any(heads), x])
            if line == 0 and any(heads):
                panel = figure.add_subplot(grid[0, x])
                panel.axis("off")
                text = panel.text(0.5, 0, name, ha="center", va="bottom", fontweight="bold", linespacing=1.15)
                text.set_in_layout(False)
    return figure, axes


def draw_image(axes: Axes, image: Tensor | np.ndarray, **settings: Any) -> Any:
    """Draw a tensor (3, H, W) in [0, 1], or an array as matplotlib takes it, with its settings, without ticks."""
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    return axes.imshow(to_pixels(image) if isinstance(image, Tensor) else image, **settings)


def draw_picture(axes: Axes, model: Classifier, path: Path, upright: bool = True) -> Tensor:
    """Draw a picture as the network sees it, and return it (3, S, S); one that is gone by now is a note on white."""
    try:
        picture, note = model.preprocess(read_image(path, upright, model.white)), ""
    except UserError:
        picture, note = torch.ones(3, model.input_size, model.input_size), "the picture is\nno longer there"
    draw_image(axes, picture)
    axes.text(0.5, 0.5, note, ha="center", va="center", transform=axes.transAxes)
    return picture


def draw_heading(panels: Sequence[Axes], *lines: str) -> None:
    """Write lines above an item's panels, over their whole width."""
    above = dict(xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", va="bottom", linespacing=1.15)
    text = panels[0].annotate("\n".join(lines), (0, 1), **above, annotation_clip=False)
    text.set_in_layout(False)  # or its width would push the panels apart
    panels[0].set_title("\n".join(" " for _ in lines), linespacing=1.15)  # room for its height


MAP_PERCENTILE = 99.5  # drawn brightest: a few pixels stand out so far that the rest would be black beside them
MAP_SCALE = (
    f"The scale is linear from 0 to the {MAP_PERCENTILE}th percentile of the map (its brightest "
    f"{100 - MAP_PERCENTILE:.1f} % are beyond), in logits per unit of pixel value."
)


def map_name(index: int, kind: str = "") -> str:
    """Return the name of the file that holds an image's maps (of a kind), in the exercise's folder."""
    return f"maps/{index:05d}{kind and '_'}{kind}.npy"


def brightest(maps: Sequence[np.ndarray]) -> float:
    """Return the value drawn brightest on the one scale of these maps; the largest where their percentile is 0."""
    return float(max((np.percentile(m, MAP_PERCENTILE) or m.max() for m in maps), default=1.0))


def draw_map(axes: Axes, saliency: np.ndarray, limit: float, status: str = "ok", signed: bool = False) -> Any:
    """Draw a saliency map (H, W): linear from 0 to `limit`, or from -limit to limit where it is `signed`.

    A map that says nothing is named, not drawn.
    """
    if status == "ok":
        colours = {"cmap": "RdBu_r", "vmin": -limit} if signed else {"cmap": "inferno", "vmin": 0}
        return draw_image(axes, saliency, vmax=limit, **colours)
    text = "\n".join(textwrap.wrap(status, 20))
    axes.text(0.5, 0.5, text, color="white", ha="center", va="center", transform=axes.transAxes)
    return draw_image(axes, np.zeros_like(saliency), cmap="gray")


WORTH = (
    "Worth: area under the class's probability while pixels are put into a blurred copy in the map's order, less that "
    "while they are taken from the picture (insertion less deletion; Petsiuk et al. 2018). A random order's, which "
    "knows nothing, stands under the picture."
)


def write_worth(axes: Axes, row: dict, kind: str) -> None:
    """Write below a map's panel what `faithfulness.worth` said of it, where it was measured."""
    value = row.get(f"{kind}_insertion_minus_deletion")
    if value is not None:
        axes.set_xlabel(f"{'random' if kind == 'random' else 'worth'} {round(value, 2) + 0.0:.2f}", labelpad=2)


def draw_colour_bar(panels: Sequence[Axes], image: Any) -> None:
    """Draw the scale of an image below panels that share it."""
    low, high = image.get_clim()
    bar = panels[0].figure.colorbar(
        image, ax=list(panels), location="bottom", pad=0.01, fraction=0.08, aspect=30 * len(panels), shrink=0.8,
        panchor=False,
        extend="max" if low == 0 else "both", ticks=[low, 0, high] if low else [0, high], format="{x:.2g}",
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, pad=1)


def draw_legend(axes: Axes, entries: Axes, columns: int) -> None:
    """Fill empty axes with the legend of others."""
    axes.axis("off")
    axes.legend(*entries.get_legend_handles_labels(), loc="center", ncols=columns).set_in_layout(False)


def draw_title(figure: Figure, title: str, *caption: str) -> tuple[Text, Text]:
    """Write a title above a figure and a caption below it, broken into lines of the figure's width; return both."""
    above, below = textwrap.wrap(title, 92), textwrap.wrap(" ".join(caption), 112)
    room = 0.125 * len(below) + 0.06  # inches
    height = figure.get_figheight() + 0.17 * len(above) + 0.05 + room
    figure.set_figheight(height)
    figure.get_layout_engine().set(rect=(0, room / height, 1, 1 - room / height))
    title_text = figure.suptitle("\n".join(above), fontsize=9)
    return title_text, figure.text(0.01, 0.03 / height, "\n".join(below), va="bottom", linespacing=1.15)


def margins(figure: Figure, title: Text, caption: Text) -> list[float]:
    """Return the fractions of a drawn figure's height that its title takes above and its caption below."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # of the figure's own resolution, not that of the file
    below, above = (text.get_window_extent(renderer) for text in (caption, title))
    return [round(1 - above.y0 / figure.bbox.height, 4), round(below.y1 / figure.bbox.height, 4)]


def short(text: str, length: int = 24) -> str:
    """Return a name cut to `length` characters, for a title."""
    return text if len(text) <= length else text[: length - 1] + "…"


def label(kind: str) -> str:
    """Return a kind of map as a reader knows it."""
    return kind.replace("grad_cam", "Grad-CAM").replace("_", " ")


def file_name(row: dict) -> str:
    """Return the name of a row's image without its folders."""
    return row["path"].rpartition("/")[2]


def find_fonts(figure: Figure) -> str:
    """Let each text take installed fonts for what matplotlib's own lacks; return the characters that none has."""
    missing: set[str] = set()
    for text in figure.findobj(Text):
        families = text.get_fontfamily()
        lacking = {c for c in text.get_text() if c.isprintable() and ord(c) not in _characters(None)}
        for c in lacking:
            font = next((entry for entry in _installed_fonts() if ord(c) in _characters(entry.fname)), None)
            if font is None:
                missing.add(c)
            elif font.name not in families:
                families = [*families, font.name]
        text.set_fontfamily(families)
    return "".join(sorted(missing))


def _installed_fonts() -> list[font_manager.FontEntry]:
    regular = [f for f in font_manager.fontManager.ttflist if f.style == "normal" and f.weight in (400, "normal")]
    return sorted(regular, key=lambda font: (font.name, font.fname))


@functools.cache
def _characters(path: str | None) -> frozenset[int]:
    """Return the characters of a font file (None: matplotlib's own); none where it is made of pictures."""
    try:
        font = font_manager.get_font(path or font_manager.findfont("DejaVu Sans"))
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
