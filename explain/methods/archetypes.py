"""Archetypes as the network itself sees them, and as judges do: other networks, which had no part in making them.

The same measures of photos of the classes, if the dataset has any, are the yardstick.
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
    """Load the judges that --judge requests as NAME or NAME=FILE, by name; ["none"] requests no judge.

    By default there is one judge for ImageNet's 1,000 classes, and no judge for others. With `whole`, judges see whole
    photos. Raises UserError for a judge that is given twice, is the network explained, or has other classes.
    """
    if requests == ["none"]:
        return {}
    networks: dict[str, Classifier] = {}
    if not requests and len(model.categories) != 1000:
        model.notes.append("no judge: the default judge knows ImageNet's 1000 classes, not these")
        return {}
    for request in requests or [next(name for name in JUDGES if name != model.name)]:
        name, _, weights = request.partition("=")
        judge = load_model(name, weights or None, device)
        if judge.sha256 == model.sha256 != "unknown":
            raise UserError(f"--judge {request} is the network being explained: give another one")
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
# One image


def measure(model: Classifier, image: Image.Image, c: int) -> dict[str, float]:
    """Return the logit, probability and rank of class c for an 8-bit image, resized to the input size."""
    resized = image.resize((model.input_size, model.input_size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255  # (1, 3, S, S)
    logits = predict_logits(model, pixels.to(device_of(model))).cpu().double()  # (1, classes)
    (standing,) = class_standing(logits, torch.tensor([c]))
    return {key: standing[key] for key in ("logit", "probability", "rank")}


def describe_image(
    model: Classifier, judges: dict[str, Classifier], images: dict[Classifier, Image.Image], c: int
) -> dict[str, Any]:
    """Return the measures of class c by each network, for its own version of an image.

    The result also has the mean and the standard deviation of each channel (1: white).
    """
    pixels = np.asarray(images[model], dtype=np.float64) / 255  # (S, S, 3)
    return {
        **measure(model, images[model], c),
        "judges": {name: measure(judge, images[judge], c) for name, judge in judges.items()},
        "mean": pixels.mean((0, 1)).tolist(),
        "spread": pixels.std((0, 1)).tolist(),
    }


def describe_photos(
    files: Iterable[Any], classes: Sequence[int], model: Classifier, judges: dict[str, Classifier]
) -> tuple[dict[int, dict], list[dict]]:
    """Return the measures of the first readable photo of each class, and the files skipped."""
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
        images = {network: Image.fromarray(to_pixels(network.preprocess(photo))) for network in networks}
        measures = describe_image(model, judges, images, file.label)
        photos[file.label] = {"photo": file.key, "path": file.path} | measures
    return photos, skipped


def save(
    image: Tensor, c: int, method: str, model: Classifier, judge_networks: dict, file: Callable[[str], Path]
) -> dict:
    """Save an archetype (3, S, S) as PNG, and return its row, with the measures of the 8-bit image in the file.

    `file` returns the path for a name in the output folder.
    """
    name = model.categories[c]
    path = f"archetypes/{c}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_{method}.png"
    png = io.BytesIO()
    saved = Image.fromarray(to_pixels(image))
    saved.save(png, format="PNG")
    write_file(file(path), png.getvalue())
    images = dict.fromkeys((model, *judge_networks.values()), saved)
    row = {"class": c, "name": name, "method": method, "path": path, "files": [path]}
    return row | describe_image(model, judge_networks, images, c)
