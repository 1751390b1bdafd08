"""The reports of 2e and 2f: metrics, tables and figures of every kind of map that the rows have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from explain.basics.errors import quantity
from explain.methods.faithfulness import summarise_scores
from explain.methods.maps import mean_known
from explain.networks.classifier import Classifier
from explain.report.figures import (
    MAP_SCALE,
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
    write_score,
)
from explain.report.page import finish
from explain.run.output import OutputFolder, map_name

HEADS = {"plain": "saliency map", "guided": "guided saliency map"}  # of columns; else the kind's label


class Column(NamedTuple):
    """A column of a figure: a kind of map, by itself or laid over the picture."""

    kind: str
    head: str
    over_picture: bool = False


def write_saliency(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write the report of 2e: every kind of map, the combined one over the picture."""
    kinds, signed = kinds_of_maps(rows), output.options.signed
    columns = [
        Column(kind, f"{'signed ' if signed and kind == 'plain' else ''}{head(kind)}", over_picture=kind == "combined")
        for kind in kinds
    ]
    if "combined" not in kinds:
        columns.append(Column(kinds[0], "map over picture", over_picture=True))
    shown = rows[: output.options.show]
    best = "Grad-CAM x smoothed map x detail" if rows[0]["grad_cam_in_combined"] else "smoothed map x detail"
    text = [
        f"{model.label}: class saliency {'map' if len(rows) == 1 else 'maps'}" + part_of(shown, rows),
        f"Where the logit of the class reacts to small changes of a pixel, {'' if signed else 'up or down, '}"
        "not whether the class is there: |gradient| of the channel that reacts most"
        + (", with the gradient's sign (red: more of it raises the logit)." if signed else "."),
        f"Smoothed: mean over {output.options.copies} copies with noise (SmoothGrad). Combined, over the picture: "
        f"{best} (the distance from a blurred copy)."
        if output.options.copies
        else "",
        *score_caption(rows),
        f"Pictures: {model.view}. {MAP_SCALE}",
    ]
    save_pictures(output, shown, photos, model)
    draw_figure(output, "saliency", draw, shown, columns, photos, model, output, text, False, "picture")
    results = summary(rows) | {"grad_cam_in_combined": rows[0]["grad_cam_in_combined"]}
    write_tables("saliency.csv", rows, skipped, results, model, output)


def write_guided(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write the report of 2f: the plain and the guided map on one scale, and a figure of all other kinds."""
    shown = rows[: output.options.show]
    save_pictures(output, shown, photos, model)
    pair = ("plain", "guided")
    left_alone = ", ".join(f"{n} {name}" for name, n in rows[0]["left_as_they_are"].items())
    text = [
        f"{model.label}: saliency {'map' if len(rows) == 1 else 'maps'} by plain and by guided backpropagation"
        + part_of(shown, rows),
        "Where the logit of the class reacts to small changes of a pixel, not whether the class is there. Guided maps "
        "depend little on the upper layers (Adebayo et al. 2018): they show edges, not reasons. "
        f"{quantity(sum(rows[0]['rectifiers'].values()), 'rectifier')} guided"
        + (f"; left as they are: {left_alone}." if left_alone else "."),
        *score_caption(rows),
        f"Pictures: {model.view}. One scale for the maps of a picture. {MAP_SCALE}",
    ]
    kinds = kinds_of_maps(rows)
    columns = [Column(kind, head(kind)) for kind in kinds if kind in pair]
    draw_figure(output, "guided_saliency", draw, shown, columns, photos, model, output, text, True)
    others = [Column(kind, head(kind)) for kind in kinds if kind not in pair]
    text = [
        f"{model.label}: {' and '.join(column.head for column in others)}" + part_of(shown, rows),
        "Grad-CAM: where the last layer that has a height and a width speaks for the class (Selvaraju et al. 2017); "
        "guided Grad-CAM: the same times the guided saliency map.",
        *score_caption(rows),
        f"Pictures: {model.view}. The scale is linear from 0 to the map's 99.5th percentile; Grad-CAM is in logits.",
    ]
    if others:
        draw_figure(output, "guided_grad_cam", draw, shown, others, photos, model, output, text)
    results = summary(rows) | {
        "mean_rank_correlation": mean_known(row.get("rank_correlation") for row in rows),
        "rectifiers": rows[0]["rectifiers"],
        "left_as_they_are": rows[0]["left_as_they_are"],
    }
    write_tables("guided_saliency.csv", rows, skipped, results, model, output)


def write_tables(
    table: str, rows: list[dict], skipped: list[dict], results: dict, model: Classifier, output: OutputFolder
) -> None:
    """Write table and metrics of the rows, and print what was found."""
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


def head(kind: str) -> str:
    """Return the name of a column of maps."""
    return HEADS.get(kind, label(kind))


def part_of(shown: list[dict], rows: list[dict]) -> str:
    """Return the end of a title that shows a part of the rows."""
    return "" if len(shown) == len(rows) else f", {len(shown)} of {len(rows)}"


def score_caption(rows: list[dict]) -> list[str]:
    """Return what a caption says of the numbers under maps, where there are any."""
    return [SCORE] if any("random_insertion_minus_deletion" in row for row in rows) else []


def draw(
    rows: list[dict],
    columns: Sequence[Column],
    photos: Sequence[Path],
    model: Classifier,
    output: OutputFolder,
    text: list[str],
    one_scale: bool = False,
    picture_head: str = "real image",
) -> tuple[Figure, list[str]]:
    """Draw each row's picture and its maps; all classes of a picture share a scale, and with `one_scale` all kinds."""
    heads = [picture_head, *(column.head for column in columns)]
    figure, axes = panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=5)
    kinds = {column.kind for column in columns}
    maps = {(row["index"], kind): load(row, kind, model, output) for row in rows for kind in kinds}
    for (first, *panels), row in zip(axes, rows, strict=True):
        draw_heading([first, *panels], *class_lines(row, model.categories))
        picture = draw_picture(first, model, photos[row["index"]])
        write_score(first, row, "random")
        same_picture = [r for r in rows if r["path"] == row["path"]]
        drawn = []
        for panel, (kind, _, over_picture) in zip(panels, columns, strict=True):
            array, status = maps[row["index"], kind], row[f"{kind}_status"]
            together = [(r, k) for r in same_picture for k in (kinds if one_scale else [kind])]
            limit = brightest([abs(maps[r["index"], k]) for r, k in together if r[f"{k}_status"] == "ok"])
            if over_picture:  # the larger the value, the more of the colour covers the grey picture
                draw_image(panel, picture.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
            image = draw_map(panel, array, limit, status)
            if over_picture and status == "ok":
                image.set_alpha(np.clip(abs(array) / limit, 0, 1))
            write_score(panel, row, kind)
            if status == "ok":
                drawn.append((panel, image))
        for panel, image in drawn[-1:] if one_scale else drawn:
            draw_colour_bar(panels if one_scale else [panel], image)
    return figure, text


def load(row: dict, kind: str, model: Classifier, output: OutputFolder) -> np.ndarray:
    """Read an image's map (H, W) of a kind; zeros for a kind that the network does not have."""
    file = map_name(row["index"], kind)
    return np.load(output.path / file) if file in row["files"] else np.zeros((model.input_size, model.input_size))
