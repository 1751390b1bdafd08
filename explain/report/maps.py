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

from explain.methods.faithfulness import mean_and_error, summarise_scores
from explain.methods.maps import latest
from explain.networks.classifier import Classifier
from explain.report import figures
from explain.report.numbers import label
from explain.report.page import finish
from explain.run.output import OutputFolder, map_name

# of columns; else the kind's label
HEADS = dict(plain="saliency map", smoothed="smoothed map", combined="combined map", guided="guided saliency map")
Table = Mapping[str, Callable]  # the function of each kind of map


class Column(NamedTuple):
    """A column of a figure: a kind of map in its unit, by itself or laid over the greyscale image."""

    kind: str
    head: str
    description: str
    unit: str
    over_image: bool


def write_saliency(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder, table: Table
) -> None:
    """Write the report of 2e: every kind of map, the combined one over the image."""
    columns, lacking = columns_of(rows, table, output)
    has_grad_cam = rows[0]["grad_cam_in_combined"]
    if not any(column.over_image for column in columns):
        again = f"the {columns[0].head} again"
        columns.append(columns[0]._replace(head="over the image", description=again, over_image=True))
    elif not has_grad_cam:
        lacking.append("here without Grad-CAM, which cannot be made for this network")
    figures.draw_figure(output, "saliency", draw, rows, columns, lacking, photos, model, output)
    write_tables("saliency.csv", rows, skipped, {"grad_cam_in_combined": has_grad_cam}, photos, model, output)


def write_guided(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder, table: Table
) -> None:
    """Write the report of 2f: the plain and the guided map on one scale, and a figure of all other kinds."""
    columns, lacking = columns_of(rows, table, output)
    pair = [column for column in columns if column.kind in ("plain", "guided")]
    if pair:
        figures.draw_figure(output, "guided_saliency", draw, rows, pair, lacking, photos, model, output, True)
    if rest := [column for column in columns if column not in pair]:
        figures.draw_figure(output, "guided_grad_cam", draw, rows, rest, lacking, photos, model, output)
    results = {"mean_rank_correlation": mean_and_error(row.get("rank_correlation") for row in rows)["mean"]}
    results |= {key: rows[0][key] for key in ("rectifiers", "left_as_they_are")}
    write_tables("guided_saliency.csv", rows, skipped, results, photos, model, output)


def write_tables(
    table: str,
    rows: list[dict],
    skipped: list[dict],
    results: dict,
    photos: Sequence[Path],
    model: Classifier,
    output: OutputFolder,
) -> None:
    """Write the images that are shown, the table, and the metrics of all kinds of maps beside `results`."""
    figures.save_images(output, rows[: output.options.show], photos, model)
    named = [{"name": model.categories[row["class"]], **row} for row in rows]
    findings = [figures.class_finding(row, model.categories) for row in rows]
    images = len({row["path"] for row in rows})  # an image may have several classes
    finish(output, rows, skipped, summary(rows) | results, {table: named}, model, images, findings)


def summary(rows: list[dict]) -> dict:
    """Return the metrics of every kind of map, from sums over rows."""
    kinds, measures = figures.kinds_of_maps(rows), ("half_mass_area", "roughness")
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
    """Return a column for each kind of map, described by its function, and what a caption says of missing kinds."""
    columns, lacking = [], []
    for kind in figures.kinds_of_maps(rows):
        head = HEADS.get(kind, label(kind))
        if any(map_name(row["index"], kind) in row["files"] for row in rows):
            description, _, unit = describe(table[kind], vars(output.options)).partition(", in ")
            signed = "signed " * (kind == "plain" and getattr(output.options, "signed", False))
            over_image = kind == "combined"
            description += ", drawn over the image" * over_image
            columns.append(Column(kind, signed + head, description, unit or "arbitrary units", over_image))
        else:
            lacking.append(f"no {head}, since the network has {rows[0][f'{kind}_status']}")
    return columns, lacking


def describe(function: Callable, settings: Mapping[str, Any]) -> str:
    """Return the description of a map: the first paragraph of its docstring; "" for a function without a docstring.

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
    lacking: Sequence[str],
    photos: Sequence[Path],
    model: Classifier,
    output: OutputFolder,
    one_scale: bool = False,
) -> figures.Drawing:
    """Draw the first rows: images and maps. All classes of an image share a scale, with `one_scale` all kinds."""
    found, rows = len(rows), rows[: output.options.show]
    heads = ["image", *(f"{column.head}\n{column.unit}" for column in columns)]
    figure, axes = figures.panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=5)
    kinds = {column.kind for column in columns}
    maps = {(r["index"], kind): np.load(output.path / map_name(r["index"], kind)) for r in rows for kind in kinds}
    for (first, *panels), row, file in zip(axes, rows, figures.file_names(rows), strict=True):
        name = f"{figures.short(model.categories[row['class']], 30)} {row['class']}"
        standing = f"p {row['probability']:.3f}, rank {row['rank']}, logit {row['logit']:.1f}"
        figures.draw_heading([first, *panels], file, f"{name}: {standing}")
        image = figures.draw_file(first, model, photos[row["index"]])
        figures.write_score(first, row, "random")
        same_image = [r for r in rows if r["path"] == row["path"]]
        drawn = []
        for panel, column in zip(panels, columns, strict=True):
            array, status = maps[row["index"], column.kind], row[f"{column.kind}_status"]
            together = [(r, k) for r in same_image for k in (kinds if one_scale else [column.kind])]
            limit = figures.brightest([abs(maps[r["index"], k]) for r, k in together if r[f"{k}_status"] == "ok"])
            if column.over_image:  # the larger the value, the more of the colour covers the greyscale image
                figures.draw_image(panel, image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
            mapped = figures.draw_map(panel, array, limit, status)
            if column.over_image and status == "ok":
                mapped.set_alpha(np.clip(abs(array) / limit, 0, 1))
            figures.write_score(panel, row, column.kind)
            if status == "ok":
                drawn.append((panel, mapped))
        for panel, mapped in drawn[-1:] if one_scale else drawn:
            figures.draw_colour_bar(panels if one_scale else [panel], mapped)
    parts = [f"the image ({model.view})"]
    parts += [f"{c.head}{f': {c.description}' if c.description else ''}" for c in columns]
    scale = "Each map has a linear scale of its own."
    if one_scale and len(columns) > 1:
        scale = "All maps of an image share one linear scale."
    elif len({row["path"] for row in rows}) < len(rows):
        scale = "The classes of an image share one linear scale for each kind of map."
    scored = any("random_insertion_minus_deletion" in row for row in rows)
    score = "faithfulness score (insertion minus deletion)"
    return figure, [
        f"{model.label}: {', '.join(column.head for column in columns)}"
        + ("" if len(rows) == found else f", {len(rows)} of {found}"),
        f"Left to right: {'; '.join([*parts, *lacking])}.",
        *([f"Below each map: its {score}; below the image: that of a random order of the pixels."] * scored),
        scale,
    ]
