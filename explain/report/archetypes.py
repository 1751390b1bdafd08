"""The report of 2c: how far archetypes are recognised, in metrics, tables and figures of the rows."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from explain.basics.errors import UserError, quantity
from explain.data.pictures import read_image
from explain.methods.priors import PHOTO_COLOURS, grey_distance_limit
from explain.networks.classifier import Classifier
from explain.report.figures import (
    GREY,
    WIDTH,
    draw_figure,
    draw_heading,
    draw_image,
    draw_legend,
    draw_picture,
    panel_grid,
    short,
    write_picture,
)
from explain.report.page import finish
from explain.run.output import OutputFolder

SURE = 0.9  # probability from which metrics.json counts an archetype as one that its own network is sure of
COLUMNS = ("class", "name", "method", "path", "logit", "probability", "rank", "starts", "zero_gradient_steps")


def recognition(measures: Sequence[dict]) -> dict[str, float]:
    """Return how well a network recognises the classes of pictures, from its measures of each."""
    return {
        "top1": sum(m["rank"] == 1 for m in measures) / len(measures),
        "top5": sum(m["rank"] <= 5 for m in measures) / len(measures),
        "mean_probability": sum(m["probability"] for m in measures) / len(measures),
        "median_rank": statistics.median(m["rank"] for m in measures),
    }


def summarise(rows: Sequence[dict], reference: dict[str, list[float]]) -> dict[str, Any]:
    """Return the recognition of pictures by all networks, and the distance of their mean colours to a reference."""
    own = {key: np.mean([row[key] for row in rows], 0) for key in ("mean", "spread")}
    difference = np.concatenate([own[key] - reference[key] for key in own])
    return {
        "classes": len(rows),
        **recognition(rows),
        "judges": {judge: recognition([row["judges"][judge] for row in rows]) for judge in rows[0]["judges"]},
        "colours": {key: value.tolist() for key, value in own.items()}
        | {"distance_from_photos": float(np.sqrt(np.mean(difference**2)))},
    }


def summarise_ascents(rows: Sequence[dict], model: Classifier) -> dict[str, Any]:
    """Return how the ascents of one method went, and what its own network makes of the archetypes."""
    settings = rows[0]["settings"]
    return {
        "settings": settings,
        "grey_distance_limit": grey_distance_limit(model, settings["max_grey_distance"]),
        "mean_logit": sum(row["logit"] for row in rows) / len(rows),
        "starts_drawn_again": sum(row["starts"] - 1 for row in rows),
        "steps_without_gradient": sum(row["zero_gradient_steps"] for row in rows),
        f"classes_with_probability_from_{SURE}": sum(row["probability"] >= SURE for row in rows),
        "least_probability": min(row["probability"] for row in rows),
    }


def recognition_table(summaries: dict[str, dict], own_name: str) -> list[dict]:
    """Return a line for each kind of pictures and each network: the one explained, then the judges."""
    table = []
    for kind, summary in summaries.items():
        for name, measures in ((own_name, summary), *summary["judges"].items()):
            line = {"pictures": kind, "network": name, "judge": measures is not summary, "classes": summary["classes"]}
            table.append(line | {key: measures[key] for key in ("top1", "top5", "mean_probability", "median_rank")})
    return table


def table_line(row: dict, photo: dict) -> dict:
    """Return an archetype's line in the tables, with the judges' measures and the geometric mean of their ranks."""
    line = {"steps": row["settings"]["steps"], **{key: row[key] for key in COLUMNS}}
    line |= {"photo": photo.get("photo"), "photo_probability": photo.get("probability")}
    for judge, measures in row["judges"].items():
        line[f"photo_probability_by_{judge}"] = photo["judges"][judge]["probability"] if photo else None
        line |= {f"{key}_by_{judge}": measures[key] for key in ("probability", "rank")}
    ranks = [measures["rank"] for measures in row["judges"].values()]
    return line | ({"mean_rank": math.prod(ranks) ** (1 / len(ranks))} if ranks else {})


def write(
    rows: list[dict],
    photos: dict[int, dict],
    skipped: list[dict],
    model: Classifier,
    judge_networks: dict[str, Classifier],
    events: dict[str, list[tuple[float, str]]],
    output: OutputFolder,
) -> None:
    """Write metrics, tables and figures, which are a function of the rows, the archetypes and the photos.

    `events` are the steps of each method at which the ascent changes, and what changes.
    """
    reference = PHOTO_COLOURS
    if photos:
        reference = {key: np.mean([photo[key] for photo in photos.values()], 0) for key in reference}
    for c in [*photos][: output.options.show]:
        with suppress(UserError):  # it is gone by now
            write_picture(
                output.file(f"photos/{c}.jpg"), model.preprocess(read_image(photos[c]["path"], white=model.white))
            )
    results: dict[str, Any] = {"chance_probability": 1 / len(model.categories)}
    results["judges"] = {name: {"weights": j.weights, "sha256": j.sha256} for name, j in judge_networks.items()}
    results["photos"] = summarise(list(photos.values()), reference) if photos else None
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        results[method] = summarise(own, reference) | summarise_ascents(own, model)
    kinds = [*methods, *(["photos"] if photos else [])]
    tables = {
        "archetypes.csv": [table_line(row, photos.get(row["class"], {})) for row in rows],
        "recognised.csv": recognition_table({kind: results[kind] for kind in kinds}, model.name),
    }
    if judge_networks:
        worst_first = sorted(tables["archetypes.csv"], key=lambda line: (-line["mean_rank"], line["class"]))
        tables["least_recognised.csv"] = worst_first
    classes = list(dict.fromkeys(row["class"] for row in rows))
    shown = [row for row in rows if row["class"] in classes[: output.options.show]]
    note = "" if len(classes) <= output.options.show else f", {output.options.show} of {len(classes)} classes"
    if {"plain", "gaussian"} <= set(methods):
        draw_figure(output, "class_images", draw_class_images, shown, photos, model, output, note)
    draw_figure(output, "archetypes", draw_archetypes, shown, model, output, note)
    draw_figure(output, "scores", draw_scores, shown, events, model, note)
    finish(output, rows, skipped, results, tables, model, images=len(photos), findings=findings(results, methods))


def findings(results: dict[str, Any], methods: Sequence[str]) -> list[str]:
    """Return the recognition of each method's archetypes, by the judges and by the network itself."""
    lines = []
    for method in methods:
        networks = {"the network itself": results[method], **results[method]["judges"]}
        shares = [f"{m['top1']:.3f} first, {m['top5']:.3f} among five by {name}" for name, m in networks.items()]
        lines.append(
            f"{method}: {quantity(results[method]['classes'], 'archetype')} recognised: {'; '.join(shares[::-1])}"
        )
    return lines


# ------------------------------------------------------------------------------------------------
# Figures

MEANING = {
    "plain": "gradient ascent alone",
    "gaussian": "with a Gaussian kernel every few steps and random crops, rotations and noise",
    "natural": "the same, with channel statistics pulled towards those of photos",
}


def standing_lines(measures: dict) -> str:
    """Return the lines below a picture: the probability (and rank) that each network gives its class."""
    judges = [*measures["judges"].values()]
    names = ["judge"] if len(judges) == 1 else [f"judge {k}" for k in range(1, len(judges) + 1)]
    lines = zip(["own", *names], [measures, *judges], strict=True)
    return "\n".join(f"{name} {m['probability']:.2f} ({m['rank']})" for name, m in lines)


def standing_caption(row: dict, model: Classifier) -> str:
    """Return what the lines below the pictures mean."""
    judges = ", ".join(row["judges"])
    return f"Below: probability (rank) of the class by the network itself (own: {model.label})" + (
        f", and by networks that had no part in it (judge: {judges})." if judges else "."
    )


def draw_class_images(
    rows: list[dict], photos: dict[int, dict], model: Classifier, output: OutputFolder, note: str
) -> tuple[Figure, list[str]]:
    """Draw the report's table: a photo of the class, its archetype, and its archetype with the Gaussian kernel."""
    by_class: dict[int, dict[str, dict]] = {}
    for row in rows:
        by_class.setdefault(row["class"], {})[row["method"]] = row
    names = ["archetype", "with Gaussian kernel"]
    with_photo = [c for c in by_class if c in photos]
    without = [c for c in by_class if c not in photos]
    lines = 2 + len(rows[0]["judges"])
    single = len(by_class) <= 2
    grids = [(with_photo, ["class image", *names], 1 if single else 2), (without, names, 1 if single else 3)]
    grids = [(classes, heads, per_line) for classes, heads, per_line in grids if classes]
    heights = [panel_grid(len(classes), *layout, lines)[0].get_figheight() for classes, *layout in grids]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(grids), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (classes, *layout) in zip(parts, grids, strict=True):
        _, axes = panel_grid(len(classes), *layout, lines, inside=part)
        for panels, c in zip(axes, classes, strict=True):
            if c in photos:
                draw_picture(panels[0], model, photos[c]["path"])
                panels[0].set_xlabel(standing_lines(photos[c]), linespacing=1.15)
            for panel, method in zip(panels[-2:], ("plain", "gaussian"), strict=True):
                draw_archetype(panel, by_class[c][method], output)
            draw_heading(panels, f"{short(by_class[c]['plain']['name'], 30)} {c}")
    return figure, [
        f"{model.label}: classes and their archetypes{note}",
        f"Archetype: {MEANING['plain']}; with the Gaussian kernel: {MEANING['gaussian'].removeprefix('with a ')}.",
        standing_caption(rows[0], model),
        f"The dataset has no photo of {quantity(len(without), 'class')}." if without and with_photo else "",
    ]


def draw_archetype(panel: Axes, row: dict, output: OutputFolder) -> None:
    """Draw a saved archetype, with what the networks make of it."""
    draw_image(panel, np.asarray(read_image(output.path / row["path"])))
    panel.set_xlabel(standing_lines(row), linespacing=1.15)


def draw_archetypes(rows: list[dict], model: Classifier, output: OutputFolder, note: str) -> tuple[Figure, list[str]]:
    """Draw the archetypes of each class, a column for each method."""
    by_class = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["class"])]
    methods = [row["method"] for row in by_class[0]]
    per_line = 1 if len(by_class) <= 2 and len(methods) > 1 else max(1, 6 // len(methods))
    figure, axes = panel_grid(len(by_class), methods, per_line, text_lines=2 + len(rows[0]["judges"]))
    for panels, group in zip(axes, by_class, strict=True):
        for panel, row in zip(panels, group, strict=True):
            draw_archetype(panel, row, output)
        draw_heading(panels, f"{short(group[0]['name'], 14 * len(methods))} {group[0]['class']}")
    return figure, [
        f"{model.label}: archetypes by {'each method' if len(methods) > 1 else methods[0]}{note}",
        *(f"{method}: {MEANING[method]}." for method in methods),
        standing_caption(rows[0], model),
    ]


def draw_scores(
    rows: list[dict], events: dict[str, list[tuple[float, str]]], model: Classifier, note: str
) -> tuple[Figure, list[str]]:
    """Draw the class's logit over the steps: a panel for each method, a line for each class."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = math.ceil(len(rows) / len(methods) / 3)  # of the legend
    figure = Figure(figsize=(WIDTH, 2.6 + 0.16 * lines + 0.1), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[2.6, 0.16 * lines + 0.1])
    panels = upper.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    for panel, method in zip(panels, methods, strict=True):
        for row in (row for row in rows if row["method"] == method):
            steps, scores = np.array(row["scores"]).T
            (line,) = panel.plot(steps, scores, linewidth=0.4, alpha=0.35)
            label = f"{row['class']} {short(row['name'])}"
            panel.plot(steps, running_mean(scores), color=line.get_color(), label=label)
        before = -math.inf
        for step, name in events[method]:
            panel.axvline(step, color=GREY, linestyle=":", linewidth=0.8, zorder=0)
            # a name stands before its line; behind it where another line is near
            side = "left" if step - before < 0.08 * steps[-1] else "right"
            where = {"transform": panel.get_xaxis_transform(), "rotation": 90, "ha": side, "va": "top"}
            panel.text(step, 0.99, name, color=GREY, fontsize=7, **where)
            before = step
        panel.set_title(method, fontweight="bold")
        panel.set_xlabel("step")
    panels[0].set_ylabel("class logit")
    draw_legend(lower.subplots(), panels[0], columns=3)
    return figure, [
        f"{model.label}: class logit during optimisation{note}",
        "Of the transformed and noisy image, as the network sees it in each step (thin), and its running mean over "
        f"{SMOOTHED} scores. Dotted: where the optimisation changes.",
    ]


SMOOTHED = 9  # neighbouring scores in the running mean


def running_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each value and its neighbours; of fewer at the ends."""
    half = SMOOTHED // 2
    return np.array([values[max(0, k - half) : k + half + 1].mean() for k in range(len(values))])
