"""Preprocessing: from an image to the square of pixels that a network was trained on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn

from explain.basics.errors import UserError, one_line, printable

OPTIONS = ("input_size", "resize", "mean", "std", "interpolation", "squash")
HUB_FILE = "preprocessor_config.json"  # beside weights from the Hugging Face hub
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers, which HUB_FILE uses
WARPED_FROM = 384  # px; ConvNeXt's processor crops to smaller inputs, and squashes images to larger ones


@dataclasses.dataclass
class Preprocessing:
    """Resize the shorter side to `resize` pixels, centre-crop a square of `input_size`, normalise by `mean` and `std`.

    With `squash`, both sides are resized to `resize` pixels, so an image does not keep its ratio. `mean` and `std` have
    a value for each channel, of pixels in [0, 1]. `transform` is the library's own (PIL image) -> (3, S, S) in [0, 1];
    `source` names the origin of all this, and `notes` tell what is unusual.
    """

    input_size: int
    resize: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str
    source: str
    transform: Callable[[Image.Image], Tensor] | None = None
    squash: bool = False
    notes: tuple[str, ...] = ()

    def replace(self, options: dict[str, Any]) -> Preprocessing:
        """Return a copy with the values of `options`; unless they set it, `resize` is scaled with the input size."""
        if not options:
            return self
        size = options.get("input_size", self.input_size)
        is_squashed_anew = options.get("squash", False) and not self.squash
        scaled = {"resize": size if is_squashed_anew else scaled_resize(self.resize, self.input_size, size)}
        source = f"{self.source}, except for {', '.join(sorted(options))}"
        changed = dataclasses.replace(self, **{**scaled, **options, "source": source})
        if changed.resize < size:
            raise UserError(f"--resize {changed.resize} is less than the input size of {size}: give at least {size}")
        for name in ("mean", "std"):
            if len(getattr(changed, name)) not in (1, 3):
                raise UserError(f"--{name} takes one value for all channels, or three: not {len(options[name])}")
        geometry = ("input_size", "resize", "interpolation", "squash")
        if any(getattr(changed, key) != getattr(self, key) for key in geometry):
            changed.transform = None
        return changed

    def grey(self) -> Preprocessing:
        """Return a copy for a network with one channel: greyscale images, and the channels' mean statistics."""
        mean, std = ([sum(values) / len(values)] for values in (self.mean, self.std))
        own = self.preprocess
        transform = lambda image: own(image.convert("L").convert("RGB"))  # noqa: E731
        return dataclasses.replace(self, mean=mean, std=std, transform=transform)

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """The function that turns a PIL image into (3, S, S) in [0, 1]."""
        if self.transform:
            return self.transform
        resize = T.Resize([self.resize] * 2 if self.squash else self.resize, T.InterpolationMode(self.interpolation))
        return T.Compose([resize, T.CenterCrop(self.input_size), T.ToTensor()])

    def cropped(self, size: tuple[int, int]) -> float:
        """Return the fraction of an image's area that the centre crop removes; `size` is (width, height)."""
        scales = [self.resize / side if self.squash else self.resize / min(size) for side in size]
        seen = [min(1, self.input_size / (side * scale)) for side, scale in zip(size, scales, strict=True)]
        return 1 - seen[0] * seen[1]


# used by torchvision and most others (github.com/pytorch/examples, imagenet/main.py)
IMAGENET = Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "ImageNet's usual")


def torchvision_preprocessing(weights: Any) -> Preprocessing:
    """Return the preprocessing of torchvision's published weights."""
    real, transform = weights.transforms(), weights.transforms(mean=(0, 0, 0), std=(1, 1, 1))
    sizes = real.crop_size[0], real.resize_size[0]
    return Preprocessing(*sizes, real.mean, real.std, real.interpolation.value, f"torchvision's {weights}", transform)


def timm_preprocessing(network: nn.Module, options: Mapping[str, Any], **trained_with: Any) -> Preprocessing:
    """Return the preprocessing of a network's `pretrained_cfg`, overridden by `trained_with` and `options`.

    Published weights are tested as published (`test_input_size`, `test_crop_pct`); for a network with other classes, or
    an input size among the options, it is the preprocessing used in training.
    """
    published = network.pretrained_cfg
    is_published = getattr(network, "num_classes", None) == published.get("num_classes")
    tested = is_published and "input_size" not in options
    training, config = (timm.data.resolve_data_config(model=network, use_test_size=test) for test in (False, tested))
    config |= trained_with
    transform = timm.data.create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    size, squash = config["input_size"][-1], config["crop_mode"] == "squash"
    resize, interpolation = math.floor(size / config["crop_pct"]), config["interpolation"]
    notes, (now, then) = [], ((c["input_size"][-1], c["crop_pct"]) for c in (config, training))
    if now != then:
        trained = f"trained with {then[0]} px, crop {then[1]} (--input-size {then[0]})"
        notes.append(f"evaluated as published by timm, with {now[0]} px, crop {now[1]}; {trained}")
    if squash:
        notes.append("images are squashed to a square, as timm's pretrained_cfg says")
    source = "timm's pretrained_cfg" if now == then else "timm's pretrained_cfg for tests"
    statistics = config["mean"], config["std"]
    own = Preprocessing(size, resize, *statistics, interpolation, source, transform, squash, tuple(notes))
    return own.replace(dict(options))


def scaled_resize(resize: int, size: int, other: int) -> int:
    """Return the `resize` that leaves the crop the same share of the image at another input size."""
    return max(other, round(resize * other / size))


# ------------------------------------------------------------------------------------------------
# The preprocessor_config.json of the Hugging Face hub


def beside_weights(weights: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the options, completed from a HUB_FILE beside a weights file, and a note on the values taken from it.

    Without such a file, return the options and None. Raises UserError if the file is damaged.
    """
    path = weights.with_name(HUB_FILE)
    if not path.is_file():
        return dict(options), None
    try:
        config = json.loads(path.read_bytes())
        taken, ignored = _hub_options(config)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{printable(path)} cannot be read ({one_line(error)}): correct or remove it") from None
    listed = ", ".join(f"{key} {value}" for key, value in taken.items() if key not in options) or "nothing"
    note = f"preprocessing from {HUB_FILE} beside the weights: {listed}"
    if ignored:
        note += f"; not understood: {', '.join(f'{key} {config[key]}' for key in ignored)}"
    if "input_size" in options and "resize" in taken:
        taken["resize"] = scaled_resize(taken["resize"], taken["input_size"], options["input_size"])
    return {**taken, **options}, note


def _hub_options(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that a configuration sets, and its keys that are not understood."""
    taken, ignored = {}, []
    if config.get("do_resize", True) and "size" in config:
        geometry = _hub_geometry(config)
        taken.update(geometry) if geometry else ignored.append("size")
    if "resample" in config:
        kind = RESAMPLING.get(config["resample"])
        taken.update(interpolation=kind) if kind else ignored.append("resample")
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        ignored.append("rescale_factor")
    normalises = config.get("do_normalize", True)
    for key, name, otherwise in (("image_mean", "mean", 0.0), ("image_std", "std", 1.0)):
        if key in config:
            values = [float(value) for value in config[key]] if normalises else [otherwise]
            is_valid = len(values) in (1, 3) and all(map(math.isfinite, values)) and (name == "mean" or min(values) > 0)
            taken.update({name: values}) if is_valid else ignored.append(key)
    return taken, ignored


def _hub_geometry(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the input_size, resize and squash that a configuration sets; None if it has another form."""
    size, crop = config["size"], _side(config.get("crop_size"))
    squash = not (isinstance(size, dict) and "shortest_edge" in size)
    resize = _side(size if squash else size["shortest_edge"])
    if resize is None:
        return None
    if "crop_pct" in config:
        before = resize if resize >= WARPED_FROM else int(resize / config["crop_pct"])
        return {"input_size": resize, "resize": before, "squash": resize >= WARPED_FROM}
    if not config.get("do_center_crop", False):
        return {"input_size": resize, "resize": resize, "squash": True} if squash else None
    if crop and resize >= crop and isinstance(size, dict):
        return {"input_size": crop, "resize": resize, "squash": squash}
    return None


def _side(value: Any) -> int | None:
    """Return the side of a square, given as a number or as its height and width; None for other values."""
    if isinstance(value, dict):
        value = value.get("height") if value.get("height") == value.get("width") else None
    return value if type(value) is int and value > 0 else None
