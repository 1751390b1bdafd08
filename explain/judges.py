"""What networks take a picture for, and how far pictures of many classes are recognised: the measure of 2c.

A judge is a network that had no part in making a picture. Beside what it says of the archetypes stands what it says
of photos of the same classes, in so far as the dataset has them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import common

JUDGES = ("efficientnet_lite2", "efficientnet_lite0")  # the first of them that is not the network explained
MEASURES = ("top1", "top5", "mean_probability", "median_rank")


def measure(model: common.Classifier, picture: Image.Image, c: int) -> dict[str, float]:
    """What a network gives class c for an 8-bit picture, all of which it sees.

    A picture of its own input size is not resampled.
    """
    side = (model.input_size, model.input_size)
    picture = picture if picture.size == side else picture.resize(side, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255  # (1, 3, S, S)
    logits = common.predict_logits(model, pixels.to(common.device_of(model)))[0].double().cpu()  # (classes,)
    rank = 1 + int((logits > logits[c]).sum())  # 1 is the likeliest class
    return {"logit": logits[c].item(), "probability": logits.softmax(0)[c].item(), "rank": rank}


def colours(picture: Image.Image) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, 1 being white."""
    pixels = np.asarray(picture, dtype=np.float64) / 255
    return {"mean": pixels.mean((0, 1)).tolist(), "spread": pixels.std((0, 1)).tolist()}


def load_judges(asked: Sequence[str] | None, model: common.Classifier, device: str) -> dict[str, common.Classifier]:
    """The networks of --judge, by name: NAME or NAME=FILE; none at all for `none`."""
    if asked == ["none"]:
        return {}
    judges: dict[str, common.Classifier] = {}
    for text in asked or [next(name for name in JUDGES if name != model.name)]:
        name, _, weights = text.partition("=")
        judge = common.load_model(name, weights or None, device)
        if judge.sha256 == model.sha256 != "unknown":
            raise common.UserError(f"--judge {text} is the network that is explained: give another one")
        if len(judge.categories) != len(model.categories):
            raise common.UserError(
                f"--judge {text} knows {len(judge.categories)} classes and {model.name} {len(model.categories)}: "
                "give one that knows the same"
            )
        if name in judges:
            raise common.UserError(f"--judge {name} is given twice: give each network once")
        judges[name] = judge
    return judges


def real_photos(
    model: common.Classifier, judges: dict[str, common.Classifier], classes: Sequence[int], dataset: str
) -> tuple[dict[int, dict], list[dict]]:
    """The first readable photo of each class in the split dataset, if any, as all networks see it; what was skipped."""
    photos: dict[int, dict] = {}
    skipped = []
    try:
        files = common.validation_images(dataset)
    except common.UserError:
        files = []  # no dataset: the archetypes do without
    for file in files:
        c = common.class_of(file)
        if c not in classes or c in photos:
            continue
        try:
            photo = common.read_image(file.path)
            crops = {name: network.preprocess(photo) for name, network in {"": model, **judges}.items()}
        except common.UserError as error:
            skipped.append({"path": file.key, "reason": str(error)})
            continue
        crops = {name: Image.fromarray(common.to_pixels(crop)) for name, crop in crops.items()}
        photos[c] = {
            "photo": file.key,
            **measure(model, crops[""], c),
            "judges": {name: measure(judge, crops[name], c) for name, judge in judges.items()},
            **colours(crops[""]),
            "bytes": common.size_of(file.path),
            "path": file.path,
        }
    return photos, skipped


def recognised(found: Sequence[dict], judge: str | None) -> dict[str, float]:
    """How the network itself, or a judge, takes archetypes or photos for their class."""
    views = [row["judges"][judge] if judge else row for row in found]
    return {
        "top1": sum(view["rank"] == 1 for view in views) / len(views),
        "top5": sum(view["rank"] <= 5 for view in views) / len(views),
        "mean_probability": sum(view["probability"] for view in views) / len(views),
        "median_rank": statistics.median(view["rank"] for view in views),
    }


def summary(found: Sequence[dict], judges: Sequence[str], reference: dict[str, list[float]]) -> dict[str, Any]:
    """What is said of the archetypes of one method, or of the photos, over all classes."""
    own = {key: np.mean([row[key] for row in found], 0) for key in ("mean", "spread")}
    apart = np.concatenate([own[key] - reference[key] for key in own])
    return {
        "classes": len(found),
        **recognised(found, None),
        "judges": {judge: recognised(found, judge) for judge in judges},
        "mean_logit": sum(row["logit"] for row in found) / len(found),
        "colours": {key: value.tolist() for key, value in own.items()}
        | {"distance_from_photos": float(np.sqrt(np.mean(apart**2)))},
    }


def least_recognised(rows: Sequence[dict], judges: Sequence[str]) -> list[dict]:
    """A line for each archetype, the one whose class its judges put on the last places first."""

    def places(row: dict) -> float:
        return math.prod(row["judges"][judge]["rank"] for judge in judges) ** (1 / len(judges))

    lines = [
        {
            **{key: row[key] for key in ("class", "name", "method", "probability")},
            "mean_rank": places(row),
            **{f"rank_by_{judge}": row["judges"][judge]["rank"] for judge in judges},
        }
        for row in rows
        if judges
    ]
    return sorted(lines, key=lambda line: (-line["mean_rank"], line["class"]))


def columns(row: dict) -> dict[str, float]:
    """What the judges say, as columns of the table of archetypes."""
    return {f"{key}_by_{judge}": said[key] for judge, said in row["judges"].items() for key in ("probability", "rank")}


def shares(results: dict[str, dict[str, Any] | None], own_name: str) -> list[dict]:
    """A line for each kind of pictures and each network: the one explained, then the judges."""
    lines = []
    for kind, said in results.items():
        networks = {own_name: (False, said), **{j: (True, of) for j, of in said["judges"].items()}} if said else {}
        for name, (is_judge, found) in networks.items():
            line = {"pictures": kind, "network": name, "judge": is_judge, "classes": said["classes"]}
            lines.append(line | {key: found[key] for key in MEASURES})
    return lines
