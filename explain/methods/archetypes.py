"""Archetypes as networks see them: the network itself, and judges that had no part in making them.

The same measures on photos of the classes, where the dataset has some, are the yardstick.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from explain.basics.errors import UserError
from explain.basics.files import write_file
from explain.basics.options import JUDGES
from explain.data.image_files import read_image, to_pixels
from explain.networks.classifier import Classifier, load_model
from explain.networks.running import class_standing, device_of, predict_logits


def load_judges(
    requests: Sequence[str] | None, model: Classifier, device: str, whole: bool = False
) -> dict[str, Classifier]:
    """Load the networks that --judge requests as NAME or NAME=FILE, by name; none for ["none"].

    There is no judge by default for a network whose classes are not ImageNet's. With `whole` judges see whole photos.
    Raises UserError for a network that is given twice, is the one explained, or has another number of classes.
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
        if whole:
            judge.use_uncropped_images()
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


def describe_image(
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


def describe_photos(
    files: Iterable[Any], classes: Sequence[int], model: Classifier, judges: dict[str, Classifier]
) -> tuple[dict[int, dict], list[dict]]:
    """Return the measures of the first readable file of each class, of those with a label, and the files skipped."""
    photos: dict[int, dict] = {}
    skipped = []
    for file in files:
        if file.label not in classes or file.label in photos:
            continue
        try:
            photo = read_image(file.path, white=model.white)
        except UserError as error:
            skipped.append({"path": file.key, "reason": str(error)})
            continue
        networks = (model, *judges.values())
        pictures = {network: Image.fromarray(to_pixels(network.preprocess(photo))) for network in networks}
        measures = describe_image(model, judges, pictures, file.label)
        photos[file.label] = {"photo": file.key, "path": file.path} | measures
    return photos, skipped


def save(
    image: Tensor, c: int, method: str, model: Classifier, judge_networks: dict, file: Callable[[str], Path]
) -> dict:
    """Save an image (3, S, S) and return its row, with the measures of the 8-bit picture that was saved.

    `file` returns the path for a name in the output folder.
    """
    name = model.categories[c]
    path = f"archetypes/{c}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_{method}.png"
    png = io.BytesIO()
    picture = Image.fromarray(to_pixels(image))
    picture.save(png, format="PNG")
    write_file(file(path), png.getvalue())
    pictures = dict.fromkeys((model, *judge_networks.values()), picture)
    row = {"class": c, "name": name, "method": method, "path": path, "files": [path]}
    return row | describe_image(model, judge_networks, pictures, c)
