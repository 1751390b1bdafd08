"""Figures in one style: the panels, images, maps and texts that several exercises draw."""

from __future__ import annotations

import functools
import io
import itertools
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from PIL import Image
from torch import Tensor

from explain.basics.errors import quantity
from explain.basics.files import write_file
from explain.data.image_files import read_image, to_pixels
from explain.networks.classifier import Classifier
from explain.report.numbers import number
from explain.run.output import OutputFolder

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

MAP_COLOURS = dict(plain=BLUE, smoothed=GREEN, combined=RED, guided=ORANGE, grad_cam=PURPLE, guided_grad_cam=BLACK)
BASELINE_LINES = {"random": ":", "middle": "-.", "edges": "--", "detail": "-"}
# of the other kinds of maps and baselines, in turn
OTHER_COLOURS = [SKY, YELLOW, "#999933", "#882255", "#44AA99", "#661100"]  # the last four: Tol 2021, muted
OTHER_LINES = [(0, (1, 4)), (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 1, 1, 3))]

Drawing = tuple[Figure, Sequence[str]]  # a figure, its title, and the sentences of its caption


# `with figure_style():` draws in the project's style, whatever the user's own matplotlibrc says
figure_style = functools.partial(matplotlib.style.context, STYLE, after_reset=True)


def panel_grid(
    items: int, heads: Sequence[str], per_line: int = 1, text_lines: int = 1, widths: Sequence[float] = ()
) -> tuple[Figure, np.ndarray]:
    """Return a figure as wide as a page and its axes (items, columns), `per_line` items side by side.

    `heads` are the names of the columns, printed once at the top, with their units on a second line ("": no name);
    `widths` are the columns' relative widths (1: a square panel). Each item has room for `text_lines` lines of text; a
    colour bar takes two.
    """
    widths, per_line = [*widths] or [1.0] * len(heads), min(per_line, items)
    lines = -(-items // per_line)
    ratios = [*widths, *([0.1, *widths] * (per_line - 1))]  # a narrow gap between items
    # a panel is at most half as wide as the page: the rest of the width stays empty on both sides
    side = min(WIDTH / sum(ratios), WIDTH / 2)
    wrapped = [  # bold letters are wider
        [
            textwrap.wrap(line, int(side * wide), break_on_hyphens=False)
            for line, wide in zip(f"{name}\n".split("\n"), (14, 15, 15), strict=False)
        ]
        for name in heads
    ]
    unit_lines = max(len(unit) for _, unit, *_ in wrapped)
    head = 0.1 + 0.13 * (max(len(name) for name, *_ in wrapped) + unit_lines)  # inches
    line_height = side + 0.13 * text_lines + 0.06
    figure = Figure(figsize=(WIDTH, head + lines * line_height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    slack = WIDTH / side - sum(ratios)
    # no row or column of size 0: some of them crash the layout's solver
    columns = [slack / 2, *ratios, slack / 2] if slack > 0.01 else ratios
    rows = [*([head] if any(heads) else []), *[side] * lines]  # the layout adds room for the texts
    grid = figure.add_gridspec(len(rows), len(columns), width_ratios=columns, height_ratios=rows)
    axes = np.empty((items, len(heads)), dtype=object)
    for item, column in np.ndindex(axes.shape):
        line, place = divmod(item, per_line)
        x = (slack > 0.01) + place * (len(heads) + 1) + column
        axes[item, column] = figure.add_subplot(grid[line + any(heads), x])
        if line == 0 and any(heads):
            panel = figure.add_subplot(grid[0, x])
            panel.axis("off")
            name, unit, *_ = wrapped[column]
            unit = [*unit, *" " * (unit_lines - len(unit))]  # the names of all columns stand on one line
            for text, weight in (("\n".join([*name, *" " * len(unit)]), "bold"), ("\n".join(unit), "normal")):
                panel.text(0.5, 0.1, text, ha="center", va="bottom", fontweight=weight).set_in_layout(False)
    return figure, axes


def panels_and_legend(
    columns: int, height: float, legend_lines: int, sharey: bool = False
) -> tuple[Figure, list[Axes], Axes]:
    """Return a figure as wide as a page, a row of panels of this height in inches, and the axes of a legend below."""
    room = 0.1 + 0.15 * legend_lines  # inches
    figure = Figure(figsize=(WIDTH, height + room), layout="constrained")
    above, below = figure.add_gridspec(2, 1, height_ratios=(height, room))
    panels = above.subgridspec(1, columns).subplots(squeeze=False, sharey=sharey)[0]
    return figure, list(panels), figure.add_subplot(below)


def images_and_probabilities(
    rows: Sequence[dict], photos: Sequence[Path], model: Classifier, heading: Callable[[dict], str] | None = None
) -> tuple[Figure, Sequence[Axes]]:
    """Draw the image of each row; return the figure, and the axes beside each image for its classes' probabilities.

    `heading` makes a second line of text above them, below the file's name.
    """
    per_line = 1 if len(rows) == 1 else 2
    figure, axes = panel_grid(len(rows), ["", ""], per_line, text_lines=4 if heading else 3, widths=[1, 1.4])
    for (left, right), row, name in zip(axes, rows, file_names(rows), strict=True):
        draw_file(left, model, photos[row["index"]])
        draw_heading((left, right), name, *([heading(row)] if heading else []))
        right.set(xlim=(-0.03, 1.03), yticks=[], xticks=[0, 0.5, 1])
        right.set_xlabel("probability", labelpad=1)
        right.spines["left"].set_visible(False)
    return figure, axes[:, 1]


def draw_image(axes: Axes, image: Tensor | np.ndarray, **settings: Any) -> Any:
    """Draw a tensor (3, H, W) in [0, 1], or an array with matplotlib's `settings`, without ticks."""
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    return axes.imshow(to_pixels(image) if isinstance(image, Tensor) else image, **settings)


def draw_file(axes: Axes, model: Classifier, path: Path, upright: bool = True) -> Tensor:
    """Draw an image file as the network sees it, and return it (3, S, S)."""
    image = model.preprocess(read_image(path, upright, model.white))
    draw_image(axes, image)
    return image


def draw_heading(panels: Sequence[Axes], *lines: str) -> None:
    """Write lines above an item's panels, each cut with an ellipsis to the width of all panels."""
    grid, columns = panels[0].get_gridspec(), [panel.get_subplotspec().colspan[0] for panel in panels]
    ratios = grid.get_width_ratios()
    width = WIDTH * sum(ratios[min(columns) : max(columns) + 1]) / sum(ratios) - 0.06  # without the layout's padding
    lines = tuple(fitted(line, width) for line in lines)
    above = dict(xycoords="axes fraction", xytext=(0, 2), textcoords="offset points", va="bottom", linespacing=1.15)
    text = panels[0].annotate("\n".join(lines), (0, 1), **above, annotation_clip=False)
    text.set_in_layout(False)  # its width would push the panels apart
    panels[0].set_title("\n".join(" " for _ in lines), linespacing=1.15)  # reserves its height


MAP_PERCENTILE = 99.5  # drawn brightest: beside the few pixels above it, the rest of the map would be black


def brightest(maps: Sequence[np.ndarray]) -> float:
    """Return the value drawn brightest on the scale of these maps: the largest percentile, or maximum where it is 0."""
    return float(max((np.percentile(m, MAP_PERCENTILE) or m.max() for m in maps), default=1.0))


def map_colours(saliency: np.ndarray, limit: float) -> dict[str, Any]:
    """Return a map's colours as matplotlib takes them: linear from 0 to `limit`, or from -limit if it has a sign."""
    signed = saliency.min() < 0
    return {"cmap": "RdBu_r" if signed else "inferno", "norm": Normalize(-limit if signed else 0, limit)}


def map_pixels(saliency: np.ndarray, limit: float) -> np.ndarray:
    """Return a saliency map (H, W) in `map_colours` (H, W, 3), 0 to 255."""
    return ScalarMappable(**map_colours(saliency, limit)).to_rgba(saliency, bytes=True)[..., :3]


def draw_map(axes: Axes, saliency: np.ndarray, limit: float, status: str = "ok") -> Any:
    """Draw a saliency map (H, W) in `map_colours`, or its status if that is not "ok"."""
    if status == "ok":
        return draw_image(axes, saliency, **map_colours(saliency, limit))
    text = "\n".join(textwrap.wrap(status, 20))
    axes.text(0.5, 0.5, text, color="white", ha="center", va="center", transform=axes.transAxes)
    return draw_image(axes, np.zeros_like(saliency), cmap="gray")


def write_score(axes: Axes, row: dict, kind: str) -> None:
    """Write below a map's panel its faithfulness score, if it was measured."""
    value = row.get(f"{kind}_insertion_minus_deletion")
    if value is not None:
        axes.set_xlabel(f"{'random' if kind == 'random' else 'score'} {number(value, 2)}", labelpad=2, fontsize=7)


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
    """Write a title above a figure and a caption below it, wrapped to the figure's width, and return both texts."""
    above, below = textwrap.wrap(title, 92), textwrap.wrap(" ".join(caption), 110)
    top, bottom = 0.1 + 0.17 * len(above), 0.06 + 0.125 * len(below)  # inches
    height = top + figure.get_figheight() + bottom
    figure.set_figheight(height)
    figure.get_layout_engine().set(rect=(0, bottom / height, 1, 1 - (top + bottom) / height))
    return (
        figure.text(0.5, 1 - 0.06 / height, "\n".join(above), ha="center", va="top", fontsize=9),
        figure.text(0.01, 0.03 / height, "\n".join(below), va="bottom", linespacing=1.15),
    )


def margins(figure: Figure, title: Text, caption: Text) -> list[float]:
    """Return the fractions of a figure's height that its title and its caption take."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # at the figure's own resolution, not the file's
    below, above = (text.get_window_extent(renderer) for text in (caption, title))
    return [round(1 - above.y0 / figure.bbox.height, 4), round(below.y1 / figure.bbox.height, 4)]


def short(text: str, length: int = 24) -> str:
    """Return a name cut to `length` characters, for a title."""
    return text if len(text) <= length else text[: length - 1] + "…"


def fitted(text: str, inches: float) -> str:
    """Return a text cut with an ellipsis to a width, at the figures' font size."""
    length = len(text)
    while length > 1 and TextPath((0, 0), short(text, length), STYLE["font.size"]).get_extents().width > 72 * inches:
        length -= 1
    return short(text, length)


def measured_on(classes: Sequence[int], in_data: int) -> dict[str, Any]:
    """Return the number of classes of the measured images, and in words: 16 images from 4 of 4 classes.

    `classes` has the class of each image; `in_data` is the number of classes in the data, 0 if there are no labels.
    """
    images, measured = quantity(len(classes), "image"), len({*classes})
    if not in_data:
        return {"measured_on": images}
    text = f"{images} from {measured:,} of {quantity(in_data, 'class')}"
    return {"classes_measured": measured, "classes_in_data": in_data, "measured_on": text}


def some_of(shown: int, total: int, noun: str) -> str:
    """Return how many of all are shown: 12 of 20 images, or 20 images."""
    return f"{shown} of " * (shown < total) + quantity(total, noun)


def kinds_of_maps(rows: Iterable[dict], key: str = "maps") -> list[str]:
    """Return the kinds of maps, or of baselines, of the rows in the order in which they were made."""
    return list(dict.fromkeys(kind for row in rows for kind in row[key]))


def map_styles(kinds: Sequence[str], baselines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the line style of each kind of map and baseline for matplotlib: its own, or the next free one."""
    colours, lines = itertools.cycle(OTHER_COLOURS), itertools.cycle(OTHER_LINES)
    of_kinds = {kind: {"color": MAP_COLOURS.get(kind) or next(colours)} for kind in kinds}
    return of_kinds | {
        kind: {"color": GREY, "linestyle": BASELINE_LINES.get(kind) or next(lines)} for kind in baselines
    }


def file_name(row: dict) -> str:
    """Return the name of a row's image without its folders."""
    return row["path"].rpartition("/")[2]


def file_names(rows: Sequence[dict]) -> list[str]:
    """Return the names of the rows' images, with the folder of those whose name another image has, too."""
    paths = {row["path"] for row in rows}
    images = Counter(path.rpartition("/")[2] for path in paths)
    return ["/".join(row["path"].split("/")[-2 if images[file_name(row)] > 1 else -1 :]) for row in rows]


def find_fonts(figure: Figure) -> str:
    """Give each text fonts for the characters that matplotlib's own font lacks; return those that no font has."""
    texts = figure.findobj(Text)
    lacking = {c for text in texts for c in text.get_text() if c.isprintable() and ord(c) not in _characters(None)}
    if not lacking:
        return ""
    regular = [f for f in font_manager.fontManager.ttflist if f.style == "normal" and f.weight in (400, "normal")]
    regular = [f for f in regular if not f.name.startswith("Last Resort")]  # has a box for every character
    regular.sort(key=lambda font: (font.name, font.fname))
    fonts = {c: next((f.name for f in regular if ord(c) in _characters(f.fname)), "") for c in lacking}
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *sorted({*fonts.values()} - {""})])
    return "".join(sorted(c for c, font in fonts.items() if not font))


@functools.cache
def _characters(path: str | None) -> frozenset[int]:
    """Return the characters of a font file (None: matplotlib's own font); empty if it cannot be scaled."""
    try:
        font = font_manager.get_font(path or font_manager.findfont("DejaVu Sans"))
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


def class_finding(row: dict, categories: Sequence[str]) -> str:
    """Return the line that a script prints for a row: stork.jpg: white stork 0.976."""
    return f"{file_name(row)}: {categories[row['class']]} {row['probability']:.3f}"


# ------------------------------------------------------------------------------------------------
# Files


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as PNG or PDF, by the suffix of the path; the same content gives the same bytes."""
    settings = {
        # level 6, the default, takes twice as long to save one byte in fifty
        ".png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 4}},
        ".pdf": {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}},
    }
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], **settings[path.suffix])
    write_file(path, buffer.getvalue())


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """Return an image as the content of a file of a kind: JPEG, PNG or WEBP."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def save_image(output: OutputFolder, name: str, path: Path, model: Classifier) -> None:
    """Save an image file as the network sees it, as JPEG."""
    image = model.preprocess(read_image(path, white=model.white))  # (3, S, S), or greyscale (1, S, S)
    content = encoded(Image.fromarray(to_pixels(image.expand(3, -1, -1))), "JPEG", quality=90)
    write_file(output.file(name), content)


def draw_figure(output: OutputFolder, name: str, function: Callable[..., Drawing], *arguments: Any) -> None:
    """Draw a figure in the project's style and save it as `name`.png and, with --pdf, as `name`.pdf.

    `function(*arguments)` returns the figure and its text: a title and the sentences of a caption, at most three. With
    --no-title the text is written to `name`.txt instead.
    """
    with figure_style():
        figure, text = function(*arguments)
        if output.options.no_title:
            write_file(output.file(f"{name}.txt"), "\n".join(text) + "\n")
        else:
            texts = draw_title(figure, *text)
        if lacking := find_fonts(figure):
            cure = "install one that has them, such as Noto"
            print(f"no installed font has the characters {lacking} in {name}: {cure}", file=sys.stderr)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            for suffix in (".png", ".pdf") if output.options.pdf else (".png",):
                save_figure(figure, output.file(name + suffix))
            if not output.options.no_title:
                output.margins[f"{name}.png"] = margins(figure, *texts)
    output.captions[f"{name}.png"] = [*text]


def save_images(output: OutputFolder, rows: Sequence[dict], photos: Sequence[Path], model: Classifier) -> None:
    """Save the images of these rows as the network sees them, for the page."""
    for row in rows:
        save_image(output, f"pictures/{row['index']:05d}.jpg", photos[row["index"]], model)
