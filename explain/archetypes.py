"""Archetypes in the output folder: the pictures, what networks make of them, tables and figures."""

from __future__ import annotations

import io
import itertools
import re
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from explain import judges
from explain.figures import draw_image, draw_picture, draw_title, panel_grid, short
from explain.files import write_file
from explain.networks import Classifier
from explain.output import OutputFolder, save_figure
from explain.pictures import read_image, to_pixels
from explain.priors import PHOTO_COLOURS

SURE = 0.9  # probability from which metrics.json counts an archetype as one that its own network is sure of
COLUMNS = ("class", "name", "method", "path", "logit", "probability", "rank", "starts", "zero_gradient_steps")
COLUMNS += ("photo", "photo_probability")


def save(image: Tensor, c: int, method: str, model: Classifier, judge_networks: dict, output: OutputFolder) -> dict:
    """Save an image (3, S, S) and return its row, with the measures of the 8-bit picture that was saved."""
    name = model.categories[c]
    path = f"archetypes/{c}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_{method}.png"
    png = io.BytesIO()
    Image.fromarray(to_pixels(image)).save(png, format="PNG")
    write_file(output.file(path), png.getvalue())
    picture = read_image(output.path / path)
    pictures = dict.fromkeys((model, *judge_networks.values()), picture)
    row = {"class": c, "name": name, "method": method, "path": path, "files": [path]}
    return row | judges.describe_picture(model, judge_networks, pictures, c)


def caption(measures: dict, model: Classifier) -> str:
    """Return the lines above a picture: the probability and rank that each network gives its class."""
    networks = [(model.name, measures), *measures["judges"].items()]
    return "\n".join(f"{name}: p {m['probability']:.2f}, rank {m['rank']}" for name, m in networks)


def draw_archetypes(rows: list[dict], photos: dict[int, dict], output: OutputFolder, model: Classifier) -> Figure:
    """Draw a line of panels per class: a photo, where the dataset has any, and the archetype of each method."""
    by_class = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["class"])]
    figure, axes = panel_grid(len(by_class), columns=bool(photos) + len(by_class[0]), per_line=2)
    for panels, group in zip(axes, by_class, strict=True):
        c, name = group[0]["class"], short(group[0]["name"])
        if photos and c in photos:
            title = f"{name} {c}, photo\n{caption(photos[c], model)}"
            draw_picture(panels[0], model, photos[c]["path"], title)
        elif photos:
            draw_image(panels[0], np.ones((1, 1, 3)), f"{name} {c}\n")
            panels[0].text(0, 0, "no photo of this class\nin the dataset", ha="center", va="center", fontsize=7.5)
        for panel, row in zip(panels[bool(photos) :], group, strict=True):
            archetype = read_image(output.path / row["path"])
            draw_image(panel, archetype, f"{name}, {row['method']}\n{caption(row, model)}")
    return figure


def draw_scores(rows: list[dict]) -> Figure:
    """Draw the class's logit over the steps: a panel per method, a line per class."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(4.5 * len(methods), 3.6), layout="constrained")
    for panel, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        panel.set_prop_cycle(color=colormaps["tab20"].colors)
        for row in rows:
            if row["method"] == method:
                panel.plot(*zip(*row["scores"], strict=True), label=f"{row['class']} {short(row['name'])}", lw=1)
        panel.set_title(method, fontsize=8)
        panel.set_xlabel("step", fontsize=8)
        panel.set_ylabel("class logit", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=6)
    return figure


def write_summary(
    rows: list[dict],
    photos: dict[int, dict],
    skipped: list[dict],
    model: Classifier,
    judge_networks: dict[str, Classifier],
    methods: dict[str, dict[str, Any]],
    output: OutputFolder,
) -> None:
    """Write metrics, tables and figures, which are a function of the rows, the archetypes and the photos.

    `methods` has what metrics.json says of a method beside its results.
    """
    reference = PHOTO_COLOURS
    if photos:
        reference = {key: np.mean([photo[key] for photo in photos.values()], 0) for key in reference}
    results: dict[str, Any] = {"chance_probability": 1 / len(model.categories)}
    results["judges"] = {name: {"weights": j.weights, "sha256": j.sha256} for name, j in judge_networks.items()}
    results["photos"] = judges.summarise(list(photos.values()), judge_networks, reference) if photos else None
    for method, description in methods.items():
        own = [row for row in rows if row["method"] == method]
        results[method] = judges.summarise(own, judge_networks, reference) | description
        results[method] |= {
            "starts_drawn_again": sum(row["starts"] - 1 for row in own),
            "steps_without_gradient": sum(row["zero_gradient_steps"] for row in own),
            f"classes_with_probability_from_{SURE}": sum(row["probability"] >= SURE for row in own),
            "least_probability": min(row["probability"] for row in own),
        }
    tables = {
        "archetypes.csv": [
            {"steps": row["settings"]["steps"], **{key: row[key] for key in COLUMNS}, **judges.judge_columns(row)}
            for row in rows
        ],
        "recognised.csv": judges.recognition_table({kind: results[kind] for kind in (*methods, "photos")}, model.name),
    }
    if judge_networks:
        tables["least_recognised.csv"] = judges.least_recognised(rows, judge_networks)
    classes = list(dict.fromkeys(row["class"] for row in rows))
    figure_rows = [row for row in rows if row["class"] in classes[: output.options.show]]
    note = f"({min(output.options.show, len(classes))} of {len(classes)} classes)"
    figure = draw_archetypes(figure_rows, photos, output, model)
    draw_title(figure, f"{model.name}: archetypes, with the probability p and the rank of their class {note}")
    save_figure(figure, output.file("archetypes.png"))
    figure = draw_scores(figure_rows)
    draw_title(figure, f"{model.name}: class logit during optimisation, of the transformed and noisy image {note}")
    save_figure(figure, output.file("scores.png"))
    output.finish(rows, skipped, results, tables, model, images=len(photos))
