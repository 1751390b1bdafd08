"""The report of 2g: metrics, findings, table and figures of the rows, every kind of map beside the baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from explain.basics.errors import UserError, quantity
from explain.methods.faithfulness import mean_and_error, tiled
from explain.networks.classifier import Classifier
from explain.report.figures import (
    GREY,
    WIDTH,
    baseline_lines,
    brightest,
    draw_figure,
    draw_image,
    draw_legend,
    draw_map,
    draw_picture,
    kind_colours,
    kinds_of_maps,
    label,
    measured_on,
    short,
)
from explain.report.page import finish
from explain.run.output import OutputFolder


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figures, table and metrics of the rows. Raises UserError where the network gets no image right."""
    results, used = summary(rows), [row for row in rows if row["right"]]
    if not used:
        raise UserError(f"the network gets none of {len(rows)} images right: give it other images or weights")
    results |= measured_on([row["class"] for row in used], output.classes)
    draw_figure(output, "insertion_deletion", draw_curves, used, results, model, output.options.steps)
    draw_figure(output, "faithfulness", draw_measures, results, model)
    if results["randomised"]:
        images = sum("randomised" in row for row in used)
        draw_figure(output, "randomisation", draw_randomised, results["randomised"], images, model)
    for row in [row for row in rows if row.get("mosaic", {}).get("shares")][:1]:
        maps = np.load(output.path / row["files"][0])
        paths = [photos[index] for index in row["mosaic"]["members"]]
        draw_figure(output, "mosaic", draw_mosaic, row["mosaic"], maps, paths, model)
    columns = dict.fromkeys(key for of_kind in results["maps"].values() for key in of_kind)
    table = [{"map": kind, **{key: of_kind.get(key) for key in columns}} for kind, of_kind in results["maps"].items()]
    finish(output, rows, skipped, results, {"faithfulness.csv": table}, model, findings=findings(results))


def summary(rows: list[dict]) -> dict:
    """Return the metrics, from sums over rows."""
    used = [row for row in rows if row["right"]]
    mosaics = [row["mosaic"] for row in rows if "mosaic" in row]
    shares = [mosaic["shares"] for mosaic in mosaics if mosaic["shares"]]
    areas = [with_difference(row["areas"]) for row in used]
    measured = {kind for of_image in areas for kind in of_image}
    own, baselines = ([kind for kind in kinds_of_maps(used, key) if kind in measured] for key in ("maps", "baselines"))
    kinds = [*own, *baselines]
    maps = {kind: measures_of(kind, areas, shares, used) for kind in kinds}
    best = max(baselines, key=lambda kind: maps[kind]["insertion_minus_deletion"], default=None)
    for kind in kinds:
        name, pairs = "insertion_minus_deletion", [of_image for of_image in areas if {kind, best} <= of_image.keys()]
        above = mean_and_error(of_image[kind][name] - of_image[best][name] for of_image in pairs)
        maps[kind] |= {
            "above_best_baseline": above["mean"],
            "above_best_baseline_standard_error": above["standard_error"],
        }
    ends = [next(iter(row["curves"].values()))["insertion"] for row in used]  # the same for every map
    return {
        "images_measured": len(used),
        "images_wrong": len(rows) - len(used),
        "maps": maps,
        "best_baseline": best,
        "kinds": own,
        "baselines": baselines,
        "left_out": {kind: reason for row in used for kind, reason in row["left_out"].items()},
        "probability_of_pictures": mean_and_error(curve[-1] for curve in ends)["mean"],
        "probability_of_blurred_copies": mean_and_error(curve[0] for curve in ends)["mean"],
        "mosaics": len(shares),
        "mosaics_left_out": dict(Counter(mosaic["left_out"] for mosaic in mosaics if not mosaic["shares"])),
        "grid_pointing_chance": 0.25,
        "randomised": survival([row for row in used if "randomised" in row]),
    }


def with_difference(areas: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the areas of each kind of map of an image with insertion less deletion beside them."""
    return {
        kind: both | {"insertion_minus_deletion": both["insertion"] - both["deletion"]} for kind, both in areas.items()
    }


def measures_of(kind: str, areas: list[dict], shares: list[dict], rows: list[dict]) -> dict:
    """Return the measures of a kind of map, each beside its standard error over images (grid pointing: over cells)."""
    own = [of_image[kind] for of_image in areas if kind in of_image]
    names = ("insertion", "deletion", "insertion_minus_deletion")
    values = {name: [of_image[name] for of_image in own] for name in names}
    values["grid_pointing"] = [share for mosaic in shares for share in mosaic.get(kind, [])]
    for name in ("stability", "other_class") if any(kind in row["maps"] for row in rows) else ():
        values[name] = [row[name].get(kind) for row in rows if name in row]
    estimates = {name: mean_and_error(of_images) for name, of_images in values.items()}
    measures = {"images": len(own), "cells": estimates["grid_pointing"]["images"]}
    for name, estimate in estimates.items():
        measures |= {name: estimate["mean"], f"{name}_standard_error": estimate["standard_error"]}
    return measures


def survival(rows: list[dict]) -> list[dict]:
    """Return for each stage of randomisation how many maps could be compared, and their mean rank correlation."""
    stages = []
    for k, name in enumerate(rows[0]["down_to"] if rows else []):
        stage: dict[str, Any] = {"layers": rows[0]["layers"][k], "down_to": name}
        for kind in kinds_of_maps(rows):
            estimate = mean_and_error(row["randomised"][kind][k] for row in rows)
            stage |= {kind: estimate["mean"], f"{kind}_standard_error": estimate["standard_error"]}
            stage[f"{kind}_maps"] = estimate["images"]
        stages.append(stage)
    return stages


def findings(results: dict) -> list[str]:
    """Return what is said of each kind of map."""
    lines = []
    for kind, measures in results["maps"].items():
        error = measures["insertion_minus_deletion_standard_error"]
        pointing = "" if measures["grid_pointing"] is None else f", grid pointing {measures['grid_pointing']:.2f}"
        lines.append(
            f"{label(kind)}: insertion less deletion {measures['insertion_minus_deletion']:.2f}"
            + ("" if error is None else f" ± {error:.2f}")
            + pointing
        )
    return lines


def draw_curves(rows: list[dict], results: dict, model: Classifier, steps: int) -> tuple[Figure, list[str]]:
    """Draw the mean insertion and deletion curves of every kind of map."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.2))
    left = figure.add_subplot(grid[0, 0])
    panels = left, figure.add_subplot(grid[0, 1], sharey=left)
    x, styles = np.linspace(0, 1, steps + 1), {}
    styles |= {kind: dict(color=colour) for kind, colour in kind_colours(results["kinds"]).items()}
    styles |= {kind: dict(color=GREY, linestyle=line) for kind, line in baseline_lines(results["baselines"]).items()}
    for axes, name in zip(panels, ("insertion", "deletion"), strict=True):
        for kind in results["maps"]:
            mean = np.mean([row["curves"][kind][name] for row in rows if kind in row["curves"]], 0)
            axes.plot(x, mean, label=label(kind), **styles[kind])
        axes.set(xlabel=f"share of the pixels {'put into the blurred copy' if name == 'insertion' else 'taken'}")
        axes.set_title(f"{name}: {'higher' if name == 'insertion' else 'lower'} is better")
    panels[0].set_ylabel("probability of the class")
    draw_legend(figure.add_subplot(grid[1, :]), left, columns=5)
    return figure, [
        f"{model.label}: does the class's probability follow the maps?",
        f"Mean over {results['measured_on']}; grey: baselines that know nothing of the network. Pixels "
        "come and go in the map's order, the largest first (Petsiuk et al. 2018).",
    ]


def draw_measures(results: dict, model: Classifier) -> tuple[Figure, list[str]]:
    """Draw the measures of every kind of map as bars with their standard errors, the baselines as lines."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1, 0.1))
    panels = [figure.add_subplot(grid[0, k]) for k in range(3)]
    kinds = results["kinds"]
    colours = kind_colours(kinds)
    heads = {
        "insertion_minus_deletion": "insertion less deletion\n(higher is better)",
        "grid_pointing": "grid pointing\n(higher is better)",
        "other_class": "correlation with the map of\nanother class (lower is better)",
    }
    for axes, (name, head) in zip(panels, heads.items(), strict=True):
        known = [kind for kind in kinds if results["maps"][kind].get(name) is not None]
        values = [results["maps"][kind][name] for kind in known]
        errors = [results["maps"][kind][f"{name}_standard_error"] or 0 for kind in known]
        places = [kinds.index(kind) for kind in known]
        axes.barh(places, values, xerr=errors, color=[colours[kind] for kind in known], error_kw={"linewidth": 0.8})
        lines = baseline_lines(results["baselines"]) if name == "insertion_minus_deletion" else {}
        for kind, line in lines.items():
            axes.axvline(results["maps"][kind][name], color=GREY, linestyle=line, linewidth=1, label=kind)
        if name == "grid_pointing":
            axes.axvline(0.25, color=GREY, linestyle=":", linewidth=1, label="chance")
        axes.set_title(head)
        axes.set_yticks(range(len(kinds)), [label(kind) if axes is panels[0] else "" for kind in kinds])
        axes.set_ylim(len(kinds) - 0.4, -0.6)
    draw_legend(figure.add_subplot(grid[1, :]), panels[0], columns=4)
    best = results["best_baseline"]
    return figure, [
        f"{model.label}: how far can each map be believed?",
        f"{results['measured_on']}, {quantity(results['mosaics'], 'mosaic')}; bars: one standard "
        f"error; lines: baselines, the best of which is {best}. A map that is no better than they are says nothing of "
        "the network; one that does not change with the class explains no class.",
    ]


def draw_randomised(stages: list[dict], images: int, model: Classifier) -> tuple[Figure, list[str]]:
    """Draw the rank correlation with the intact network's maps as its layers are randomised from the top down."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(1, 0.15))
    kinds = [key.removesuffix("_maps") for key in stages[0] if key.endswith("_maps")]
    colours = kind_colours(kinds)
    zero = sum(images - stage[f"{kind}_maps"] for stage in stages for kind in kinds)
    for kind in kinds:
        means = np.array([1.0, *(np.nan if stage[kind] is None else stage[kind] for stage in stages)])
        errors = np.array([0.0, *(stage[f"{kind}_standard_error"] or 0 for stage in stages)])
        axes.plot(means, "o-", color=colours[kind], label=label(kind), markersize=3.5)
        axes.fill_between(
            range(len(means)), means - errors, means + errors, color=colours[kind], alpha=0.15, linewidth=0
        )
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle="--", label="chance")
    places = [f"{stage['layers']}\n{stage_of(stage['down_to'])}" for stage in stages]
    axes.set_xticks(range(len(stages) + 1), ["none", *places], rotation=45 if len(stages) > 8 else 0)
    layers = f"layers randomised of {stages[-1]['layers']}, from the output down, and the stage that they reach"
    axes.set(xlabel=layers, ylabel="rank correlation with intact map")
    draw_legend(below, axes, columns=4)
    return figure, [
        f"{model.label}: what is left of the maps when layers are randomised",
        f"Mean over {quantity(images, 'image')}, band: one standard error. A faithful map falls at once (Adebayo et "
        "al. 2018). metrics.json names the layers.",
        f"Maps left out, since they are zero at every pixel: {zero} of {len(stages) * len(kinds) * images}."
        if zero
        else "",
    ]


def stage_of(layer: str) -> str:
    """Return the part of a network that a layer is in: blocks.5 of blocks.5.1.conv_pwl, layer4 of layer4.2.conv3."""
    parts = layer.removeprefix("network.").split(".")
    numbered = next((n for n, part in enumerate(parts, start=1) if part[-1:].isdigit()), 1)
    return short(" ".join(parts[:numbered]), 14)


def draw_mosaic(mosaic: dict, maps: np.ndarray, paths: Sequence[Path], model: Classifier) -> tuple[Figure, list[str]]:
    """Draw a mosaic of the photos at `paths`, and its maps (kinds, S, S) for the class of the first."""
    kinds = mosaic["maps"]
    lines = -(-(1 + len(kinds)) // 4)  # of four panels
    figure = Figure(figsize=(WIDTH, 0.5 + 1.7 * lines), layout="constrained")
    first, *others = figure.subplots(lines, 4, squeeze=False).flat
    photos = [draw_picture(first, model, path) for path in paths]
    first.clear()
    draw_image(first, tiled(torch.stack(photos)))
    first.set_title("mosaic")
    for axes in others:
        axes.axis("off")
    for axes, kind, saliency in zip(others, kinds, maps, strict=False):
        draw_map(axes, saliency, brightest([saliency]))
        share = mosaic["shares"][kind][0]
        axes.set_title(f"{label(kind)}: {'-' if share is None else f'{share:.2f}'}")
    name = short(model.categories[mosaic["classes"][0]], 30)
    return figure, [
        f"{model.label}: which maps point at the {name}?",
        "Maps of the class of the photo on the upper left, in a mosaic of four photos that the network is sure of; "
        "beside each name the share of the map in that photo (chance: 0.25; Rao et al. 2022). Each map has its own "
        "scale, from 0 to its 99.5th percentile.",
    ]
