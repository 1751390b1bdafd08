"""The report of 2g: metrics, findings, table and figures of the rows, every kind of map beside the baselines."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patheffects import withStroke

from explain.basics.errors import UserError
from explain.methods.faithfulness import curve_points, mean_and_error, tiled
from explain.networks.classifier import Classifier
from explain.report import figures
from explain.report.numbers import label, measured, number
from explain.report.page import finish
from explain.report.verdicts import most_faithful_map
from explain.run.output import OutputFolder

SCORE = "insertion_minus_deletion"
ABOVE = "above_best_baseline"  # difference of the scores, over the images that have both
CHECKS = ("stability", "other_class")  # of the first images, and not of baselines


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figures, table and metrics of the rows. Raises UserError where the network gets no image right."""
    results, used = summary(rows), [row for row in rows if row["right"]]
    if not used:
        raise UserError(f"the network gets none of {len(rows)} images right: give it other images or weights")
    results |= figures.measured_on([row["class"] for row in used], output.classes)
    figures.draw_figure(output, "insertion_deletion", draw_curves, used, results, model, output.options)
    figures.draw_figure(output, "faithfulness", draw_measures, results, model, output.options)
    if results["randomised"]:
        figures.draw_figure(output, "randomisation", draw_randomised, results["randomised"], model)
    for row in [row for row in rows if row.get("mosaic", {}).get("shares")][:1]:
        maps = np.load(output.path / row["files"][0])
        paths = [photos[index] for index in row["mosaic"]["members"]]
        figures.draw_figure(output, "mosaic", draw_mosaic, row["mosaic"], maps, paths, model)
    columns = dict.fromkeys(key for of_kind in results["maps"].values() for key in of_kind)
    table = [{"map": kind, **{key: of_kind.get(key) for key in columns}} for kind, of_kind in results["maps"].items()]
    finish(output, rows, skipped, results, {"faithfulness.csv": table}, model, findings=findings(results))


def summary(rows: list[dict]) -> dict:
    """Return the metrics, from sums over rows."""
    used = [row for row in rows if row["right"]]
    mosaics = [row["mosaic"] for row in rows if "mosaic" in row]
    shares = [mosaic["shares"] for mosaic in mosaics if mosaic["shares"]]
    areas = [
        {kind: both | {SCORE: both["insertion"] - both["deletion"]} for kind, both in row["areas"].items()}
        for row in used
    ]
    present = {kind for of_image in areas for kind in of_image}
    own, baselines = (
        [kind for kind in figures.kinds_of_maps(used, key) if kind in present] for key in ("maps", "baselines")
    )
    scores = {kind: [of_image[kind][SCORE] for of_image in areas if kind in of_image] for kind in baselines}
    best_baseline = max(baselines, key=lambda kind: sum(scores[kind]) / len(scores[kind]), default=None)
    for of_image in areas:
        for of_map in of_image.values() if best_baseline in of_image else ():
            of_map[ABOVE] = of_map[SCORE] - of_image[best_baseline][SCORE]
    maps = {kind: measures_of(kind, areas, shares, used) for kind in (*own, *baselines)}
    errors = {kind: maps[kind][f"{ABOVE}_standard_error"] for kind in own}
    better = [kind for kind, error in errors.items() if error is not None and maps[kind][ABOVE] > 2 * error]
    best_map = max(better or own, key=lambda kind: maps[kind][SCORE], default=None)
    ends = [next(iter(row["curves"].values()))["insertion"] for row in used]  # the same for every map
    return {
        "images_measured": len(used),
        "images_wrong": len(rows) - len(used),
        "maps": maps,
        "best_map": best_map,
        "best_baseline": best_baseline,
        "map_is_better": bool(better),
        "difference": maps[best_map][ABOVE] if best_map else None,
        "difference_standard_error": errors.get(best_map),
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


def measures_of(kind: str, areas: list[dict], shares: list[dict], rows: list[dict]) -> dict:
    """Return the measures of a kind of map, each beside its standard error over images (grid pointing: over cells)."""
    own = [of_image[kind] for of_image in areas if kind in of_image]
    values = {name: [of_image.get(name) for of_image in own] for name in ("insertion", "deletion", SCORE, ABOVE)}
    values["grid_pointing"] = [share for mosaic in shares for share in mosaic.get(kind, [])]
    for name in CHECKS if any(kind in row["maps"] for row in rows) else ():
        values[name] = [row[name].get(kind) for row in rows if name in row]
    estimates = {name: mean_and_error(of_images) for name, of_images in values.items()}
    measures = {"images": len(own), "cells": estimates["grid_pointing"]["images"]}
    for name, estimate in estimates.items():
        measures |= {name: estimate["mean"], f"{name}_standard_error": estimate["standard_error"]}
    return measures | {f"{name}_images": estimates[name]["images"] for name in CHECKS if name in estimates}


def survival(rows: list[dict]) -> list[dict]:
    """Return for each stage of randomisation the mean rank correlation and the number of maps compared."""
    stages = []
    for k, name in enumerate(rows[0]["down_to"] if rows else []):
        stage: dict[str, Any] = {"layers": rows[0]["layers"][k], "down_to": name}
        for kind in figures.kinds_of_maps(rows):
            estimate = mean_and_error(row["randomised"][kind][k] for row in rows)
            stage |= {kind: estimate["mean"], f"{kind}_standard_error": estimate["standard_error"]}
            stage[f"{kind}_maps"] = estimate["images"]
        stages.append(stage)
    return stages


def findings(results: dict) -> list[str]:
    """Return the lines that the script prints: the verdict, then the scores of each kind of map."""
    lines = [most_faithful_map(results)]
    for kind, of_kind in results["maps"].items():
        pointing = "" if of_kind["grid_pointing"] is None else f", grid pointing {number(of_kind['grid_pointing'])}"
        lines.append(f"{label(kind)}: insertion minus deletion {measured(of_kind, SCORE)}{pointing}")
    return lines


def span(numbers: Iterable[int]) -> str:
    """Return the range of numbers: 3, or 1 to 3."""
    low, *_, high = sorted([*numbers] * 2)
    return f"{low} to {high}" if low < high else f"{low}"


def draw_curves(rows: list[dict], results: dict, model: Classifier, options: argparse.Namespace) -> figures.Drawing:
    """Draw the mean insertion and deletion curves of every kind of map."""
    maps = results["maps"]
    figure, panels, below = figures.panels_and_legend(2, 3.0, legend_lines=-(-len(maps) // 4), sharey=True)
    (x, _), styles = curve_points(options.steps), figures.map_styles(results["kinds"], results["baselines"])
    for axes, name in zip(panels, ("insertion", "deletion"), strict=True):
        for kind, measures in maps.items():
            mean = np.mean([row["curves"][kind][name] for row in rows if kind in row["curves"]], 0)
            axes.plot(x, mean, marker=".", label=f"{label(kind)} ({measures['images']})", **styles[kind])
        axes.set(xlabel=f"share of the pixels {'put into the blurred copy' if name == 'insertion' else 'removed'}")
        axes.set_title(f"{name}: {'higher' if name == 'insertion' else 'lower'} is better")
    panels[0].set_ylabel("probability of the class")
    figures.draw_legend(below, panels[0], columns=4)
    cells = f", in cells of {options.cells} x {options.cells} pixels" if options.cells > 1 else ""
    smoothed = f"; smoothed map: {options.copies} copies, noise {options.noise:g}" if "smoothed" in maps else ""
    return figure, [
        f"{model.label}: does the class's probability follow the maps?",
        f"Mean probability of the class as pixels are put into a blurred copy of the image (left), or removed from the "
        f"image (right), in the map's order{cells}; dots: measured points.",
        "Grey: baselines that ignore the network; in brackets: number of images, excluding those whose map is zero "
        "everywhere.",
        f"Measured on {results['measured_on']}{smoothed}.",
    ]


# of each panel of measures: its title, which way is better, and the key of the number of values
PANELS = {
    SCORE: ("insertion minus deletion", "higher", "images"),
    "grid_pointing": ("grid pointing", "higher", "cells"),
    "other_class": ("correlation with another class", "lower", "other_class_images"),
}


def draw_measures(results: dict, model: Classifier, options: argparse.Namespace) -> figures.Drawing:
    """Draw the measures of every kind of map as bars with their standard errors, the baselines as lines."""
    kinds, maps, baselines = results["kinds"], results["maps"], results["baselines"]
    known = {name: [kind for kind in kinds if maps[kind].get(name) is not None] for name in PANELS}
    names = [name for name in PANELS if known[name]]
    height = 1.0 + 0.25 * max(len(kinds), 4)  # inches
    figure, panels, below = figures.panels_and_legend(len(names), height, legend_lines=-(-len(baselines) // 4))
    styles = figures.map_styles(kinds, baselines)
    error_bar = {"lw": 0.8, "path_effects": [withStroke(linewidth=2, foreground="white")]}  # seen on a black bar, too
    for axes, name in zip(panels, names, strict=True):
        title, better, count = PANELS[name]
        values = [maps[kind][name] for kind in known[name]]
        errors = [maps[kind][f"{name}_standard_error"] or 0 for kind in known[name]]
        colours = [styles[kind]["color"] for kind in known[name]]
        axes.barh([kinds.index(kind) for kind in known[name]], values, xerr=errors, color=colours, error_kw=error_bar)
        for kind in baselines if name == SCORE else ():
            axes.axvline(maps[kind][name], **styles[kind], linewidth=1, label=label(kind))
        if name == "grid_pointing":
            axes.axvline(0.25, color=figures.GREY, linestyle=":", linewidth=1)
        n = span(maps[kind][count] for kind in known[name])
        axes.set_title(f"{title}\n({better} is better)\n{count.rpartition('_')[2]}: {n}")
        names_of_kinds = dict(enumerate(map(label, kinds))) if axes is panels[0] else {}
        axes.set_yticks([*names_of_kinds], [*names_of_kinds.values()])
        axes.set_ylim(len(kinds) - 0.4, -0.6)
    figures.draw_legend(below, panels[0], columns=4)
    lacking = []
    if not known["grid_pointing"]:
        reasons = "; ".join(results["mosaics_left_out"]) or f"no mosaic was made with --mosaics {options.mosaics}"
        lacking.append(f"no grid pointing: {reasons}")
    if not known["other_class"]:
        lacking.append(f"no map of another class was measured with --randomise {options.randomise}")
    chance = " (in grid pointing: the chance level)" if known["grid_pointing"] else ""
    return figure, [
        f"{model.label}: how far can each map be believed?",
        f"Bars: means with one standard error; lines: baselines that ignore the network{chance}.",
        most_faithful_map(results),
        f"Measured on {'; '.join([results['measured_on'], *lacking])}.",
    ]


def draw_randomised(stages: list[dict], model: Classifier) -> figures.Drawing:
    """Draw the rank correlation with the intact network's maps as its layers are randomised from the top down."""
    counts = {key[:-5]: [stage[key] for stage in stages] for key in stages[0] if key.endswith("_maps")}
    kinds = [kind for kind, of_stages in counts.items() if any(of_stages)]
    styles = figures.map_styles(kinds, [])
    figure, (axes,), below = figures.panels_and_legend(1, 2.7, legend_lines=len(kinds) // 4 + 1)
    for kind in kinds:
        means = np.array([1.0, *(np.nan if stage[kind] is None else stage[kind] for stage in stages)])
        errors = np.array([0.0, *(stage[f"{kind}_standard_error"] or 0 for stage in stages)])
        axes.plot(means, "o-", **styles[kind], label=f"{label(kind)} ({span(counts[kind])})", markersize=3.5)
        axes.fill_between(range(len(means)), means - errors, means + errors, **styles[kind], alpha=0.15, linewidth=0)
    axes.axhline(0, color=figures.GREY, linewidth=0.8, linestyle="--", label="chance level")
    places = [f"{stage['layers']}\n{stage_of(stage['down_to'])}" for stage in stages]
    axes.set_xticks(range(len(stages) + 1), ["none", *places], rotation=45 if len(stages) > 8 else 0)
    layers = f"layers randomised (of {stages[-1]['layers']}), from the output down, and the part of the network reached"
    axes.set(xlabel=layers, ylabel="rank correlation with intact network")
    figures.draw_legend(below, axes, columns=4)
    return figure, [
        f"{model.label}: how much do maps change when layers are randomised?",
        "Mean rank correlation between the maps of the randomised network and those of the intact network, with one "
        "standard error; in brackets: number of images, excluding those whose map is zero everywhere.",
        "A map whose correlation stays high ignores what the layers have learned; a falling correlation alone does not "
        "make a map faithful.",
    ]


def stage_of(layer: str) -> str:
    """Return the part of a network that a layer is in: blocks 5 of blocks.5.1.conv_pwl, layer4 of layer4.2.conv3."""
    parts = re.sub(r"^(network\.)+", "", layer).split(".")  # the names of the wrappers around a network
    numbered = next((n for n, part in enumerate(parts, start=1) if part[-1:].isdigit()), 1)
    return figures.short(" ".join(parts[:numbered]), 14)


def draw_mosaic(mosaic: dict, maps: np.ndarray, paths: Sequence[Path], model: Classifier) -> figures.Drawing:
    """Draw a mosaic of the photos at `paths`, and its maps (kinds, S, S) for the class of the first."""
    kinds = mosaic["maps"]
    figure, axes = figures.panel_grid(1 + len(kinds), [""], per_line=4, text_lines=1)
    first, *others = axes[:, 0]
    photos = [figures.draw_file(first, model, path) for path in paths]
    first.clear()
    figures.draw_image(first, tiled(torch.stack(photos)))
    first.set_title("mosaic")
    for axes, kind, saliency in zip(others, kinds, maps, strict=True):
        figures.draw_map(axes, saliency, figures.brightest([saliency]))
        axes.set_title(f"{label(kind)}: {number(mosaic['shares'][kind][0], 2)}")
    name = figures.short(model.categories[mosaic["classes"][0]], 30)
    return figure, [
        f"{model.label}: which maps point at the {name}?",
        "A mosaic of four photos that the network classifies with confidence, and the maps for the class of the photo "
        "at the upper left, each on a linear scale of its own.",
        "Beside each map's name: the share of the map that lies in that photo (chance level: 0.25).",
    ]
