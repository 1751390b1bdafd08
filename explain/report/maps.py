"""The reports of 2e and 2f: metrics, tables and figures of every kind of map that the rows have."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from explain.methods.faithfulness import mean_and_error, summarise_scores
from explain.methods.maps import latest
from explain.networks.classifier import Classifier
from explain.report.figures import (
    SCORE,
    brightest,
    class_finding,
    class_lines,
    draw_colour_bar,
    draw_figure,
    draw_file,
    draw_heading,
    draw_image,
    draw_map,
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
Table = Mapping[str, Callable]  # the function of each kind of map


class Column(NamedTuple):
    """A column of a figure: a kind of map in its unit, by itself or laid over the picture."""

    kind: str
    head: str
    description: str
    unit: str
    over_picture: bool


def write_saliency(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder, table: Table
) -> None:
    """Write the report of 2e: every kind of map, the combined one over the picture."""
    columns, notes = columns_of(rows, table, output)
    if not any(column.over_picture for column in columns):
        columns.append(columns[0]._replace(over_picture=True))
    elif not rows[0]["grad_cam_in_combined"]:
        notes.append("This network has no Grad-CAM.")
    draw_figure(output, "saliency", draw, rows, columns, notes, photos, model, output)
    results = summary(rows) | {"grad_cam_in_combined": rows[0]["grad_cam_in_combined"]}
    write_tables("saliency.csv", rows, skipped, results, photos, model, output)


def write_guided(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder, table: Table
) -> None:
    """Write the report of 2f: the plain and the guided map on one scale, and a figure of all other kinds."""
    columns, notes = columns_of(rows, table, output)
    pair = [column for column in columns if column.kind in ("plain", "guided")]
    found = {key: rows[0][key] for key in ("rectifiers", "left_as_they_are")}
    guided, others = ([f"{n} {name}" for name, n in counts.items()] for counts in found.values())
    of_pair = [f"Guided: {', '.join(guided) or 'none'}{'; left as they are: ' * bool(others)}{', '.join(others)}."]
    if pair:
        draw_figure(output, "guided_saliency", draw, rows, pair, notes + of_pair, photos, model, output, True)
    if rest := [column for column in columns if column not in pair]:
        draw_figure(output, "guided_grad_cam", draw, rows, rest, notes, photos, model, output)
    correlation = {"mean_rank_correlation": mean_and_error(row.get("rank_correlation") for row in rows)["mean"]}
    write_tables("guided_saliency.csv", rows, skipped, summary(rows) | correlation | found, photos, model, output)


def write_tables(
    table: str,
    rows: list[dict],
    skipped: list[dict],
    results: dict,
    photos: Sequence[Path],
    model: Classifier,
    output: OutputFolder,
) -> None:
    """Write the pictures that are shown, the table and the metrics, and print the class of each picture."""
    save_pictures(output, rows[: output.options.show], photos, model)
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
        **{f"mean_{key}": mean_and_error(row.get(key) for row in rows)["mean"] for key in means},
        "half_mass_area_of_an_even_map": 0.5,
        "insertion_minus_deletion": summarise_scores(rows),
    }


def columns_of(rows: list[dict], table: Table, output: OutputFolder) -> tuple[list[Column], list[str]]:
    """Return a column for each kind of map, described by its function, and sentences on those that are lacking."""
    columns, lacking = [], []
    for kind in kinds_of_maps(rows):
        head = HEADS.get(kind, label(kind))
        if any(map_name(row["index"], kind) in row["files"] for row in rows):
            description, _, unit = describe(table[kind], vars(output.options)).partition(", in ")
            signed = "signed " * (kind == "plain" and getattr(output.options, "signed", False))
            columns.append(Column(kind, signed + head, description, unit or "arbitrary units", kind == "combined"))
        else:
            lacking.append(f"No {head}: the network has {rows[0][f'{kind}_status']}.")
    return columns, lacking


def describe(function: Callable, settings: Mapping[str, Any]) -> str:
    """Return the description of a map: the first paragraph of its docstring; "" for a function without one.

    A name in backticks becomes the setting's value, or the description of the function of this name.
    """
    if not inspect.isroutine(function):
        return ""
    function = latest(function)

    def value(match: re.Match) -> str:
        if isinstance(settings.get(match[1]), (int, float)):
            return f"{settings[match[1]]:g}"
        module = sys.modules[function.__module__]
        found = functools.reduce(lambda place, name: getattr(place, name, None), match[1].split("."), module)
        return describe(found, settings) or match[1]

    paragraph = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
    return re.sub("`([^`]+)`", value, paragraph).removeprefix("Return ").rstrip(".")


def draw(
    rows: list[dict],
    columns: Sequence[Column],
    notes: Sequence[str],
    photos: Sequence[Path],
    model: Classifier,
    output: OutputFolder,
    one_scale: bool = False,
) -> tuple[Figure, list[str]]:
    """Draw the first rows: pictures and maps. All classes of a picture share a scale, with `one_scale` all kinds."""
    found, rows = len(rows), rows[: output.options.show]
    heads = ["real image", *(f"{column.head}\n{column.unit}" for column in columns)]
    figure, axes = panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=5)
    kinds = {column.kind for column in columns}
    maps = {(r["index"], kind): np.load(output.path / map_name(r["index"], kind)) for r in rows for kind in kinds}
    for (first, *panels), row in zip(axes, rows, strict=True):
        draw_heading([first, *panels], *class_lines(row, model.categories))
        picture = draw_file(first, model, photos[row["index"]])
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
    several = len({row["path"] for row in rows}) < len(rows)
    return figure, [
        f"{model.label}: {', '.join(dict.fromkeys(column.head for column in columns))}"
        + ("" if len(rows) == found else f", {len(rows)} of {found}"),
        *dict.fromkeys(f"{c.head[0].upper()}{c.head[1:]}: {c.description}." for c in columns if c.description),
        *notes,
        *([SCORE] if any("random_insertion_minus_deletion" in row for row in rows) else []),
        f"Pictures: {model.view}.",
        scale_caption(" and ".join([*["maps"] * (one_scale and len(columns) > 1), *["classes"] * several])),
    ]
