"""The reports of 2e and 2f: metrics, tables and figures of every kind of map that the rows have."""

from __future__ import annotations

import inspect
import operator
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from explain.basics.errors import quantity
from explain.methods.faithfulness import summarise_scores
from explain.methods.maps import latest, mean_known
from explain.networks.classifier import Classifier
from explain.report.figures import (
    SCORE,
    brightest,
    class_finding,
    class_lines,
    draw_colour_bar,
    draw_figure,
    draw_heading,
    draw_image,
    draw_map,
    draw_picture,
    kinds_of_maps,
    label,
    panel_grid,
    save_pictures,
    scale_caption,
    write_score,
)
from explain.report.page import finish
from explain.run.output import OutputFolder, map_name

HEADS = {"plain": "saliency map", "guided": "guided saliency map"}  # of columns; else the kind's label
UNKNOWN_UNIT = "arbitrary units"
Table = Mapping[str, Callable]  # the functions of each kind of map


class Column(NamedTuple):
    """A column of a figure: a kind of map in its unit, by itself or laid over the picture."""

    kind: str
    head: str
    description: str
    unit: str
    over_picture: bool = False


def write_saliency(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder, table: Table
) -> None:
    """Write the report of 2e: every kind of map, the combined one over the picture."""
    columns = columns_of(rows, table, output)
    over = next((column for column in columns if column.kind == "combined"), None)
    if over is None:
        columns.append(columns[0]._replace(head="over the picture", description="", over_picture=True))
    else:
        columns[columns.index(over)] = over._replace(over_picture=True)
    draw_maps("saliency", rows, columns, missing(rows), photos, model, output)
    results = summary(rows) | {"grad_cam_in_combined": rows[0]["grad_cam_in_combined"]}
    write_tables("saliency.csv", rows, skipped, results, model, output)


def write_guided(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder, table: Table
) -> None:
    """Write the report of 2f: the plain and the guided map on one scale, and a figure of all other kinds."""
    columns = columns_of(rows, table, output)
    pair = [column for column in columns if column.kind in ("plain", "guided")]
    rectifiers, others = rows[0]["rectifiers"], rows[0]["left_as_they_are"]
    notes = missing(rows)
    if rectifiers:
        notes.append(
            f"{quantity(sum(rectifiers.values()), 'rectifier')} guided. Guided maps depend little on the upper layers "
            "(Adebayo et al. 2018): they show edges, not reasons."
        )
    if others:
        notes.append(f"Other activations, left as they are: {', '.join(f'{n} {name}' for name, n in others.items())}.")
    draw_maps("guided_saliency", rows, pair, notes, photos, model, output, one_scale=True)
    if rest := [column for column in columns if column not in pair]:
        draw_maps("guided_grad_cam", rows, rest, missing(rows), photos, model, output)
    results = summary(rows) | {
        "mean_rank_correlation": mean_known(row.get("rank_correlation") for row in rows),
        "rectifiers": rectifiers,
        "left_as_they_are": others,
    }
    write_tables("guided_saliency.csv", rows, skipped, results, model, output)


def write_tables(
    table: str, rows: list[dict], skipped: list[dict], results: dict, model: Classifier, output: OutputFolder
) -> None:
    """Write table and metrics of the rows, and print the class of each."""
    named = [{"name": model.categories[row["class"]], **row} for row in rows]
    findings = [class_finding(row, model.categories) for row in rows]
    images = len({row["path"] for row in rows})  # one may have several classes
    finish(output, rows, skipped, results, {table: named}, model, images, findings)


def summary(rows: list[dict]) -> dict:
    """Return the metrics of every kind of map, from sums over rows."""
    kinds, measures = kinds_of_maps(rows), ("half_mass_area", "roughness")
    means = [f"{kind}_{measure}" for kind in kinds for measure in measures]
    return {
        "maps": len(rows),
        "kinds": kinds,
        **{f"{kind}_status": dict(Counter(row[f"{kind}_status"] for row in rows)) for kind in kinds},
        **{f"mean_{key}": mean_known(row.get(key) for row in rows) for key in means},
        "half_mass_area_of_an_even_map": 0.5,
        "insertion_minus_deletion": summarise_scores(rows),
    }


# ------------------------------------------------------------------------------------------------
# Captions


def columns_of(rows: list[dict], table: Table, output: OutputFolder) -> list[Column]:
    """Return a column for each kind of map that the network has, described by its function in the table."""
    signed = getattr(output.options, "signed", False)
    columns = []
    for kind in kinds_of_maps(rows):
        if any(map_name(row["index"], kind) in row["files"] for row in rows):
            description, _, unit = describe(table[kind], vars(output.options)).partition(", in ")
            head = f"{'signed ' if signed and kind == 'plain' else ''}{HEADS.get(kind, label(kind))}"
            columns.append(Column(kind, head, description, unit or UNKNOWN_UNIT))
    return columns


def describe(function: Callable, settings: Mapping[str, Any]) -> str:
    """Return the description of a map: the first paragraph of its docstring; "" for a function without one.

    A name in backticks becomes the setting's value, or the description of the function of this name.
    """
    function = latest(function)
    if not inspect.isroutine(function):
        return ""
    names = SimpleNamespace(**{**vars(sys.modules[function.__module__]), **settings})

    def value(match: re.Match) -> str:
        found = operator.attrgetter(match[1])(names)
        return describe(found, settings) if callable(found) else str(found)

    paragraph = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
    return re.sub("`([^`]+)`", value, paragraph).removeprefix("Return ").rstrip(".")


def missing(rows: list[dict]) -> list[str]:
    """Return which kinds of maps the network does not have, and why."""
    reasons: dict[str, list[str]] = {}
    for kind in kinds_of_maps(rows):
        if not any(map_name(row["index"], kind) in row["files"] for row in rows):
            reasons.setdefault(rows[0][f"{kind}_status"], []).append(HEADS.get(kind, label(kind)))
    return [f"No {' and no '.join(heads)}: the network has {reason}." for reason, heads in reasons.items()]


def draw_maps(
    name: str,
    rows: list[dict],
    columns: Sequence[Column],
    notes: Sequence[str],
    photos: Sequence[Path],
    model: Classifier,
    output: OutputFolder,
    one_scale: bool = False,
) -> None:
    """Draw a figure of the first rows' pictures and maps, with a caption made of the columns' descriptions."""
    shown = rows[: output.options.show]
    save_pictures(output, shown, photos, model)
    several = len({row["path"] for row in shown}) < len(shown)
    sharing = " and ".join([*["maps"] * one_scale, *["classes"] * several])
    described = [f"{column.head}: {column.description}." for column in columns if column.description]
    heads = ", ".join(column.head for column in columns)
    text = [
        f"{model.label}: {heads}" + ("" if len(shown) == len(rows) else f", {len(shown)} of {len(rows)}"),
        *(sentence[0].upper() + sentence[1:] for sentence in described),
        "A map shows where the class's logit reacts to the picture, not whether the class is there.",
        *notes,
        *([SCORE] if any("random_insertion_minus_deletion" in row for row in rows) else []),
        f"Pictures: {model.view}.",
        scale_caption(sharing),
    ]
    draw_figure(output, name, draw, shown, columns, photos, model, output, text, one_scale)


def draw(
    rows: list[dict],
    columns: Sequence[Column],
    photos: Sequence[Path],
    model: Classifier,
    output: OutputFolder,
    text: list[str],
    one_scale: bool = False,
) -> tuple[Figure, list[str]]:
    """Draw each row's picture and its maps; all classes of a picture share a scale, and with `one_scale` all kinds."""
    heads = ["picture", *(f"{column.head}\n{column.unit}" for column in columns)]
    figure, axes = panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=5)
    kinds = {column.kind for column in columns}
    maps = {(row["index"], kind): load(row, kind, model, output) for row in rows for kind in kinds}
    for (first, *panels), row in zip(axes, rows, strict=True):
        draw_heading([first, *panels], *class_lines(row, model.categories))
        picture = draw_picture(first, model, photos[row["index"]])
        write_score(first, row, "random")
        same_picture = [r for r in rows if r["path"] == row["path"]]
        drawn = []
        for panel, column in zip(panels, columns, strict=True):
            array, status = maps[row["index"], column.kind], row[f"{column.kind}_status"]
            together = [(r, k) for r in same_picture for k in (kinds if one_scale else [column.kind])]
            limit = brightest([abs(maps[r["index"], k]) for r, k in together if r[f"{k}_status"] == "ok"])
            if column.over_picture:  # the larger the value, the more of the colour covers the grey picture
                draw_image(panel, picture.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
            image = draw_map(panel, array, limit, status)
            if column.over_picture and status == "ok":
                image.set_alpha(np.clip(abs(array) / limit, 0, 1))
            write_score(panel, row, column.kind)
            if status == "ok":
                drawn.append((panel, image))
        for panel, image in drawn[-1:] if one_scale else drawn:
            draw_colour_bar(panels if one_scale else [panel], image)
    return figure, text


def load(row: dict, kind: str, model: Classifier, output: OutputFolder) -> np.ndarray:
    """Read an image's map (H, W) of a kind; zeros for a kind that the network does not have."""
    file = map_name(row["index"], kind)
    return np.load(output.path / file) if file in row["files"] else np.zeros((model.input_size, model.input_size))
