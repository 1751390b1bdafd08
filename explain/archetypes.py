"""Archetypes in the output folder: the pictures, what networks make of them, tables and figures.

Judges are networks that had no part in making an archetype and say how well they recognise its class. The same measures
on photos of the classes, where the dataset has some, are the yardstick.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from explain.errors import UserError
from explain.evaluation import class_standing, device_of, predict_logits
from explain.figures import draw_image, draw_picture, draw_title, panel_grid, short
from explain.files import write_file
from explain.networks import Classifier, load_model
from explain.output import OutputFolder, save_figure
from explain.pictures import read_image, to_pixels
from explain.priors import PHOTO_COLOURS, grey_distance_limit

JUDGES = ("efficientnet_lite2", "efficientnet_lite0")  # the default is the first that is not the network explained
SURE = 0.9  # probability from which metrics.json counts an archetype as one that its own network is sure of
COLUMNS = ("class", "name", "method", "path", "logit", "probability", "rank", "starts", "zero_gradient_steps")


def load_judges(requests: Sequence[str] | None, model: Classifier, device: str) -> dict[str, Classifier]:
    """Load the networks that --judge requests as NAME or NAME=FILE, by name; none for ["none"].

    Nor is there one by default for a network whose classes are not ImageNet's. Raises UserError for a network that is
    given twice, is the one explained, or has another number of classes.
    """
    if requests == ["none"]:
        return {}
    networks: dict[str, Classifier] = {}
    if not requests and len(model.categories) != 1000:
        model.notes.append("no judge: the default one knows ImageNet's 1000 classes, not these")
        return {}
    for request in requests or [next(name for name in JUDGES if name != model.name)]:
        name, _, weights = request.partition("=")
        judge = load_model(name, weights or None, device)
        if judge.sha256 == model.sha256 != "unknown":
            raise UserError(f"--judge {request} is the network that is explained: give another one")
        if len(judge.categories) != len(model.categories):
            raise UserError(
                f"--judge {request} has {len(judge.categories)} classes and {model.name} has {len(model.categories)}: "
                "give a judge with the same classes"
            )
        if name in networks:
            raise UserError(f"--judge {name} is given twice: give each network once")
        networks[name] = judge
    return networks


# ------------------------------------------------------------------------------------------------
# One picture


def measure(model: Classifier, picture: Image.Image, c: int) -> dict[str, float]:
    """Return the logit, probability and rank of class c for an 8-bit picture, resized as a whole to the input size."""
    side = (model.input_size, model.input_size)
    picture = picture.resize(side, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255  # (1, 3, S, S)
    logits = predict_logits(model, pixels.to(device_of(model))).cpu().double()  # (1, classes)
    (standing,) = class_standing(logits, torch.tensor([c]))
    return {key: standing[key] for key in ("logit", "probability", "rank")}


def describe_picture(
    model: Classifier, judges: dict[str, Classifier], pictures: dict[Classifier, Image.Image], c: int
) -> dict[str, Any]:
    """Return the measures of class c by all networks, each of its own rendering of one picture.

    Beside them stand the mean and the standard deviation of each channel (1: white).
    """
    pixels = np.asarray(pictures[model], dtype=np.float64) / 255  # (S, S, 3)
    return {
        **measure(model, pictures[model], c),
        "judges": {name: measure(judge, pictures[judge], c) for name, judge in judges.items()},
        "mean": pixels.mean((0, 1)).tolist(),
        "spread": pixels.std((0, 1)).tolist(),
    }


def save(image: Tensor, c: int, method: str, model: Classifier, judge_networks: dict, output: OutputFolder) -> dict:
    """Save an image (3, S, S) and return its row, with the measures of the 8-bit picture that was saved."""
    name = model.categories[c]
    path = f"archetypes/{c}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_{method}.png"
    png = io.BytesIO()
    picture = Image.fromarray(to_pixels(image))
    picture.save(png, format="PNG")
    write_file(output.file(path), png.getvalue())
    pictures = dict.fromkeys((model, *judge_networks.values()), picture)
    row = {"class": c, "name": name, "method": method, "path": path, "files": [path]}
    return row | describe_picture(model, judge_networks, pictures, c)


# ------------------------------------------------------------------------------------------------
# The pictures of many classes


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
        line |= {f"{key}_by_{judge}": measures[key] for key in ("probability", "rank")}
    ranks = [measures["rank"] for measures in row["judges"].values()]
    return line | ({"mean_rank": math.prod(ranks) ** (1 / len(ranks))} if ranks else {})


def write_summary(
    rows: list[dict],
    photos: dict[int, dict],
    skipped: list[dict],
    model: Classifier,
    judge_networks: dict[str, Classifier],
    output: OutputFolder,
) -> None:
    """Write metrics, tables and figures, which are a function of the rows, the archetypes and the photos."""
    reference = PHOTO_COLOURS
    if photos:
        reference = {key: np.mean([photo[key] for photo in photos.values()], 0) for key in reference}
    results: dict[str, Any] = {"chance_probability": 1 / len(model.categories)}
    results["judges"] = {name: {"weights": j.weights, "sha256": j.sha256} for name, j in judge_networks.items()}
    results["photos"] = summarise(list(photos.values()), reference) if photos else None
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        settings = own[0]["settings"]
        results[method] = summarise(own, reference) | {
            "settings": settings,
            "grey_distance_limit": grey_distance_limit(model, settings["max_grey_distance"]),
            "mean_logit": sum(row["logit"] for row in own) / len(own),
            "starts_drawn_again": sum(row["starts"] - 1 for row in own),
            "steps_without_gradient": sum(row["zero_gradient_steps"] for row in own),
            f"classes_with_probability_from_{SURE}": sum(row["probability"] >= SURE for row in own),
            "least_probability": min(row["probability"] for row in own),
        }
    kinds = [*methods, *(["photos"] if photos else [])]
    tables = {
        "archetypes.csv": [table_line(row, photos.get(row["class"], {})) for row in rows],
        "recognised.csv": recognition_table({kind: results[kind] for kind in kinds}, model.name),
    }
    if judge_networks:
        worst_first = sorted(tables["archetypes.csv"], key=lambda line: (-line["mean_rank"], line["class"]))
        tables["least_recognised.csv"] = worst_first
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
        if c in photos:
            draw_picture(panels[0], model, photos[c]["path"], f"{name} {c}, photo\n{caption(photos[c], model)}")
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
    legend = figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=6)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
