"""Judges: networks that had no part in making an archetype and say how well they recognise its class.

The same measures on photos of the classes, where the dataset has some, are the yardstick.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from explain.errors import UserError
from explain.evaluation import class_standing, device_of, predict_logits
from explain.networks import Classifier, load_model

JUDGES = ("efficientnet_lite2", "efficientnet_lite0")  # the default is the first that is not the network explained
RECOGNITION = ("top1", "top5", "mean_probability", "median_rank")


def load_judges(requests: Sequence[str] | None, model: Classifier, device: str) -> dict[str, Classifier]:
    """Load the networks that --judge requests as NAME or NAME=FILE, by name; none for ["none"].

    Raises UserError for a network that is given twice, is the one explained, or has another number of classes.
    """
    if requests == ["none"]:
        return {}
    networks: dict[str, Classifier] = {}
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
    picture = picture if picture.size == side else picture.resize(side, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255  # (1, 3, S, S)
    logits = predict_logits(model, pixels.to(device_of(model))).cpu().double()  # (1, classes)
    (standing,) = class_standing(logits, torch.tensor([c]))
    return {key: standing[key] for key in ("logit", "probability", "rank")}


def colours(picture: Image.Image) -> dict[str, list[float]]:
    """Return the mean and standard deviation of each channel, on a scale where white is 1."""
    pixels = np.asarray(picture, dtype=np.float64) / 255
    return {"mean": pixels.mean((0, 1)).tolist(), "spread": pixels.std((0, 1)).tolist()}


def describe_picture(
    model: Classifier, judges: dict[str, Classifier], pictures: dict[Classifier, Image.Image], c: int
) -> dict[str, Any]:
    """Return the measures of class c by all networks, each of its own rendering of one picture, and the colours."""
    return {
        **measure(model, pictures[model], c),
        "judges": {name: measure(judge, pictures[judge], c) for name, judge in judges.items()},
        **colours(pictures[model]),
    }


# ------------------------------------------------------------------------------------------------
# The pictures of many classes


def recognition(rows: Sequence[dict], judge: str | None) -> dict[str, float]:
    """Return how well a judge, or the network explained (None), recognises the class of each picture."""
    measures = [row["judges"][judge] if judge else row for row in rows]
    return {
        "top1": sum(m["rank"] == 1 for m in measures) / len(measures),
        "top5": sum(m["rank"] <= 5 for m in measures) / len(measures),
        "mean_probability": sum(m["probability"] for m in measures) / len(measures),
        "median_rank": statistics.median(m["rank"] for m in measures),
    }


def summarise(rows: Sequence[dict], judges: Sequence[str], reference: dict[str, list[float]]) -> dict[str, Any]:
    """Return the recognition of pictures by all networks, and the distance of their mean colours to a reference."""
    own = {key: np.mean([row[key] for row in rows], 0) for key in ("mean", "spread")}
    difference = np.concatenate([own[key] - reference[key] for key in own])
    return {
        "classes": len(rows),
        **recognition(rows, None),
        "judges": {judge: recognition(rows, judge) for judge in judges},
        "mean_logit": sum(row["logit"] for row in rows) / len(rows),
        "colours": {key: value.tolist() for key, value in own.items()}
        | {"distance_from_photos": float(np.sqrt(np.mean(difference**2)))},
    }


def recognition_table(results: dict[str, dict[str, Any] | None], own_name: str) -> list[dict]:
    """Return a line for each kind of pictures that has a summary, and each network: the one explained, then judges."""
    table = []
    for kind, summary in results.items():
        if summary is None:
            continue
        for name, measures in ((own_name, summary), *summary["judges"].items()):
            line = {"pictures": kind, "network": name, "judge": measures is not summary, "classes": summary["classes"]}
            table.append(line | {key: measures[key] for key in RECOGNITION})
    return table


def least_recognised(rows: Sequence[dict], judges: Sequence[str]) -> list[dict]:
    """Return a line for each archetype, sorted by the geometric mean of its ranks among judges, the worst first."""
    table = []
    for row in rows if judges else ():
        ranks = [row["judges"][judge]["rank"] for judge in judges]
        line = {key: row[key] for key in ("class", "name", "method", "probability")}
        line["mean_rank"] = math.prod(ranks) ** (1 / len(ranks))
        table.append(line | {f"rank_by_{judge}": rank for judge, rank in zip(judges, ranks, strict=True)})
    return sorted(table, key=lambda line: (-line["mean_rank"], line["class"]))


def judge_columns(row: dict) -> dict[str, float]:
    """Return the judges' measures of one archetype as columns of a table."""
    return {f"{key}_by_{judge}": m[key] for judge, m in row["judges"].items() for key in ("probability", "rank")}
