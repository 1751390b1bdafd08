"""Figures: one style, panels, pictures and saliency maps as several exercises draw them."""

from __future__ import annotations

import functools
import io
import itertools
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
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

from explain.basics.errors import UserError, quantity
from explain.basics.files import write_file
from explain.data.image_files import read_image, to_pixels
from explain.networks.classifier import Classifier
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

MAP_COLOURS = {
    "plain": BLUE,
    "smoothed": GREEN,
    "combined": RED,
    "guided": ORANGE,
    "grad_cam": PURPLE,
    "guided_grad_cam": BLACK,
}
BASELINE_LINES = {"random": ":", "middle": "-.", "edges": "--", "detail": "-"}
# for kinds of maps and baselines that have none of their own
OTHER_COLOURS = [SKY, YELLOW, "#999933", "#882255", "#44AA99", "#661100"]  # the last four: Tol 2021, muted
OTHER_LINES = [(0, (1, 4)), (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 1, 1, 3))]


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
) -> tuple[Figure, np.ndarray]:
    """Return a figure as wide as a page and its axes (items, columns), `per_line` items side by side.

    `heads` are the names of the columns, printed once on top ("" for none), with their units on a second line; `widths`
    are the columns' relative widths (1: a square panel). There is room for `text_lines` lines of text with each item; a
    colour bar takes two.
    """
    widths = [1.0] * len(heads) if widths is None else list(widths)
    per_line = min(per_line, items)
    lines = -(-items // per_line)
    ratios = [*widths, *([0.1, *widths] * (per_line - 1))]  # a narrow gap between items
    # a panel is at most as wide as half of the page: the width that is left stays empty
    side = min(WIDTH / sum(ratios), WIDTH / 2)
    wrapped = [[textwrap.wrap(line, int(side * 15)) for line in f"{name}\n".split("\n")] for name in heads]
    head = 0.06 + 0.13 * max(len(name) + len(unit) for name, unit, *_ in wrapped)  # inches
    line_height = side + 0.13 * text_lines + 0.06
    figure = Figure(figsize=(WIDTH, head + lines * line_height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    slack = WIDTH / side - sum(ratios)
    # no row or column without an extent: the layout's solver ends the process at some of them
    columns = [*ratios, slack] if slack > 0.01 else ratios
    rows = [*([head] if any(heads) else []), *[side] * lines]  # of axes alone: the layout adds the room of texts
    grid = figure.add_gridspec(len(rows), len(columns), width_ratios=columns, height_ratios=rows)
    axes = np.empty((items, len(heads)), dtype=object)
    for item in range(items):
        line, place = divmod(item, per_line)
        for column, (name, unit, *_) in enumerate(wrapped):
            x = place * (len(heads) + 1) + column
            axes[item, column] = figure.add_subplot(grid[line + any(heads), x])
            if line == 0 and any(heads):
                panel = figure.add_subplot(grid[0, x])
                panel.axis("off")
                for text, weight in (("\n".join([*name, *" " * len(unit)]), "bold"), ("\n".join(unit), "normal")):
                    panel.text(0.5, 0, text, ha="center", va="bottom", fontweight=weight).set_in_layout(False)
    return figure, axes


def draw_image(axes: Axes, image: Tensor | np.ndarray, **settings: Any) -> Any:
    """Draw a tensor (3, H, W) in [0, 1], or an array as matplotlib takes it, with its settings, without ticks."""
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    return axes.imshow(to_pixels(image) if isinstance(image, Tensor) else image, **settings)


def draw_file(axes: Axes, model: Classifier, path: Path, upright: bool = True) -> Tensor:
    """Draw a picture as the network sees it, and return it (3, S, S); one that is gone by now is a note on white."""
    try:
        picture, note = model.preprocess(read_image(path, upright, model.white)), ""
    except UserError:
        picture, note = torch.ones(3, model.input_size, model.input_size), "the picture is\nno longer there"
    draw_image(axes, picture)
    axes.text(0.5, 0.5, note, ha="center", va="center", transform=axes.transAxes)
    return picture


def draw_heading(panels: Sequence[Axes], *lines: str) -> None:
    """Write lines above an item's panels, each cut with an ellipsis to their whole width."""
    grid, columns = panels[0].get_gridspec(), [panel.get_subplotspec().colspan[0] for panel in panels]
    ratios = grid.get_width_ratios()
    width = WIDTH * sum(ratios[min(columns) : max(columns) + 1]) / sum(ratios) - 0.06  # without the layout's padding
    lines = tuple(fitted(line, width) for line in lines)
    above = dict(xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", va="bottom", linespacing=1.15)
    text = panels[0].annotate("\n".join(lines), (0, 1), **above, annotation_clip=False)
    text.set_in_layout(False)  # or its width would push the panels apart
    panels[0].set_title("\n".join(" " for _ in lines), linespacing=1.15)  # room for its height


MAP_PERCENTILE = 99.5  # drawn brightest: a few pixels stand out so far that the rest would be black beside them


def brightest(maps: Sequence[np.ndarray]) -> float:
    """Return the value drawn brightest on the one scale of these maps; the largest where their percentile is 0."""
    return float(max((np.percentile(m, MAP_PERCENTILE) or m.max() for m in maps), default=1.0))


def scale_caption(sharing: str = "") -> str:
    """Return the sentence on the scales of maps; `sharing` names those of a picture that share one."""
    scale = f"Each scale is linear up to the {MAP_PERCENTILE}th percentile of its map, or its maximum if that is 0"
    return scale + (f"; a picture's {sharing} share the largest of theirs." if sharing else ".")


def map_colours(saliency: np.ndarray, limit: float) -> dict[str, Any]:
    """Return a map's colours as matplotlib takes them: linear from 0 to `limit`, or from -limit if it has a sign."""
    signed = saliency.min() < 0
    return {"cmap": "RdBu_r" if signed else "inferno", "norm": Normalize(-limit if signed else 0, limit)}


def map_pixels(saliency: np.ndarray, limit: float) -> np.ndarray:
    """Return a saliency map (H, W) in `map_colours` (H, W, 3), 0 to 255."""
    return ScalarMappable(**map_colours(saliency, limit)).to_rgba(saliency, bytes=True)[..., :3]


def draw_map(axes: Axes, saliency: np.ndarray, limit: float, status: str = "ok") -> Any:
    """Draw a saliency map (H, W) in `map_colours`; of a map that says nothing, draw the status."""
    if status == "ok":
        return draw_image(axes, saliency, **map_colours(saliency, limit))
    text = "\n".join(textwrap.wrap(status, 20))
    axes.text(0.5, 0.5, text, color="white", ha="center", va="center", transform=axes.transAxes)
    return draw_image(axes, np.zeros_like(saliency), cmap="gray")


SCORE = "Score: insertion minus deletion (Petsiuk et al. 2018; 2g); under the picture: a random order's score."


def write_score(axes: Axes, row: dict, kind: str) -> None:
    """Write below a map's panel its faithfulness score, where it was measured."""
    value = row.get(f"{kind}_insertion_minus_deletion")
    if value is not None:
        axes.set_xlabel(f"{'random' if kind == 'random' else 'score'} {round(value, 2) + 0.0:.2f}", labelpad=2)


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


def fitted(text: str, inches: float) -> str:
    """Return a text cut with an ellipsis so that it is at most so wide in the figures' size of letters."""
    length = len(text)
    while length > 1 and TextPath((0, 0), short(text, length), STYLE["font.size"]).get_extents().width > 72 * inches:
        length -= 1
    return short(text, length)


def measured_on(classes: Sequence[int], in_data: int) -> dict[str, Any]:
    """Return how many classes the measured images are of, and in words: 16 images from 4 of 4 classes.

    `classes` are those of each image, `in_data` is the number of classes in the data; 0 for images without labels.
    """
    images, measured = quantity(len(classes), "image"), len({*classes})
    if not in_data:
        return {"measured_on": images}
    text = f"{images} from {measured:,} of {quantity(in_data, 'class')}"
    return {"classes_measured": measured, "classes_in_data": in_data, "measured_on": text}


def label(kind: str) -> str:
    """Return a kind of map as a reader knows it."""
    return kind.replace("grad_cam", "Grad-CAM").replace("_", " ")


def kinds_of_maps(rows: Iterable[dict], key: str = "maps") -> list[str]:
    """Return the kinds of maps (or of baselines) that rows have, in the order in which they were made."""
    return list(dict.fromkeys(kind for row in rows for kind in row[key]))


def map_styles(kinds: Sequence[str], baselines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the line of each kind of map and baseline, as matplotlib takes it: its own style, or the next free one."""
    colours, lines = itertools.cycle(OTHER_COLOURS), itertools.cycle(OTHER_LINES)
    of_kinds = {kind: {"color": MAP_COLOURS.get(kind) or next(colours)} for kind in kinds}
    return of_kinds | {
        kind: {"color": GREY, "linestyle": BASELINE_LINES.get(kind) or next(lines)} for kind in baselines
    }


def file_name(row: dict) -> str:
    """Return the name of a row's image without its folders."""
    return row["path"].rpartition("/")[2]


def find_fonts(figure: Figure) -> str:
    """Let each text take installed fonts for what matplotlib's own lacks; return the characters that none has."""
    texts = figure.findobj(Text)
    lacking = {c for text in texts for c in text.get_text() if c.isprintable() and ord(c) not in _characters(None)}
    fonts = {c: next((f.name for f in _installed_fonts() if ord(c) in _characters(f.fname)), "") for c in lacking}
    for text in texts if lacking else ():
        text.set_fontfamily([*text.get_fontfamily(), *sorted({*fonts.values()} - {""})])
    return "".join(sorted(c for c, font in fonts.items() if not font))


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


def class_lines(row: dict, categories: Sequence[str]) -> list[str]:
    """Return the heading of a row's panels: the file, and the class explained with its standing."""
    name = f"{short(categories[row['class']], 30)} {row['class']}"
    standing = f"p {row['probability']:.3f}, rank {row['rank']}, logit {row['logit']:.1f}"
    return [short(file_name(row), 48), f"{name}: {standing}"]


def class_finding(row: dict, categories: Sequence[str]) -> str:
    """Return the line that a script prints about a row's class: stork.jpg: white stork 0.976."""
    return f"{file_name(row)}: {categories[row['class']]} {row['probability']:.3f}"


# ------------------------------------------------------------------------------------------------
# Files


def save_figure(figure: Figure, path: Path) -> None:
    """Save a matplotlib figure, as the suffix says, with the same bytes for the same content."""
    settings = {
        # level 6, the default, takes twice as long to save one byte in fifty
        ".png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 4}},
        ".pdf": {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}},
    }
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format=path.suffix[1:], **settings[path.suffix])
    write_file(path, buffer.getvalue())


def write_image(path: Path, image: Tensor) -> None:
    """Save a picture (3, H, W), or a grey one (1, H, W), in [0, 1] as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(to_pixels(image.expand(3, -1, -1))).save(buffer, format="JPEG", quality=90)
    write_file(path, buffer.getvalue())


def draw_figure(
    output: OutputFolder, name: str, function: Callable[..., tuple[Figure, Sequence[str]]], *arguments: Any
) -> None:
    """Draw a figure in the project's style and save it as `name`.png, with --pdf as `name`.pdf too.

    `function(*arguments)` returns the figure and its text: a title, then the sentences of a caption. With --no-title
    they are written to `name`.txt instead.
    """
    with figure_style():
        figure, text = function(*arguments)
        if output.options.no_title:
            write_file(output.file(f"{name}.txt"), "\n".join(text) + "\n")
        else:
            texts = draw_title(figure, *text)
        if lacking := find_fonts(figure):
            print(f"no installed font has {lacking} of {name}: install one, such as Noto", file=sys.stderr)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            for suffix in (".png", ".pdf") if output.options.pdf else (".png",):
                save_figure(figure, output.file(name + suffix))
            if not output.options.no_title:
                output.margins[f"{name}.png"] = margins(figure, *texts)
    output.figures.append(output.path / f"{name}.png")
    output.captions[f"{name}.png"] = [line for line in text if line]


def save_pictures(output: OutputFolder, rows: Sequence[dict], photos: Sequence[Path], model: Classifier) -> None:
    """Save the pictures of these rows as the network sees them, for the page; one that is gone stays as it was."""
    for row in rows:
        name = f"pictures/{row['index']:05d}.jpg"
        try:
            write_image(output.file(name), model.preprocess(read_image(photos[row["index"]], white=model.white)))
        except UserError:
            if not (output.path / name).is_file():
                output.files.remove(name)
