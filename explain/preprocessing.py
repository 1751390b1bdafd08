"""Preprocessing: how a picture becomes the square of pixels that a network was trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn

from explain.errors import UserError

INTERPOLATIONS = {mode.value: mode for mode in T.InterpolationMode if mode.value in ("nearest", "bilinear", "bicubic")}
OPTIONS = ("input_size", "resize", "mean", "std", "interpolation")


@dataclasses.dataclass
class Preprocessing:
    """The shorter side becomes `resize` pixels, the middle square of `input_size` is cut out and normalised.

    `mean` and `std` are those of the training images' pixel values in [0, 1], one for each channel. `transform` is the
    library's own form, (PIL image) -> (3, S, S) in [0, 1]; `source` says where all this comes from.
    """

    input_size: int
    resize: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str
    source: str
    transform: Callable[[Image.Image], Tensor] | None = None

    def replace(self, options: dict[str, Any]) -> Preprocessing:
        """Return it with the values of `options` in place of its own; the crop keeps its share of the picture."""
        if not options:
            return self
        size = options.get("input_size", self.input_size)
        scaled = {"resize": max(size, round(self.resize * size / self.input_size))}
        changed = dataclasses.replace(
            self, **{**scaled, **options, "source": f"{self.source}; by options: {', '.join(sorted(options))}"}
        )
        if changed.resize < size:
            raise UserError(f"--resize {changed.resize} is less than the input size of {size}: give at least {size}")
        for name in ("mean", "std"):
            if len(getattr(changed, name)) not in (1, 3):
                raise UserError(f"--{name} takes one value for all channels, or three: not {len(options[name])}")
        geometry = changed.input_size, changed.resize, changed.interpolation
        if geometry != (self.input_size, self.resize, self.interpolation):
            changed.transform = None
        return changed

    def grey(self) -> Preprocessing:
        """Return it for a network of one channel: grey pictures, with the means of the channels' statistics."""
        mean, std = ([sum(values) / len(values)] for values in (self.mean, self.std))
        own = self.preprocess
        transform = lambda image: own(image.convert("L").convert("RGB"))  # noqa: E731
        return dataclasses.replace(self, mean=mean, std=std, transform=transform)

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """The function that turns a PIL image into (3, S, S) in [0, 1]."""
        if self.transform:
            return self.transform
        resize = T.Resize(self.resize, INTERPOLATIONS[self.interpolation])
        return T.Compose([resize, T.CenterCrop(self.input_size), T.ToTensor()])

    def describe(self) -> dict[str, Any]:
        """Return what metrics.json says about it."""
        return {key: getattr(self, key) for key in (*OPTIONS, "source")}


# torchvision's and most others' for ImageNet (github.com/pytorch/examples, imagenet/main.py)
IMAGENET = Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "ImageNet's usual")


def torchvision_preprocessing(weights: Any) -> Preprocessing:
    """Return the preprocessing of torchvision's published weights."""
    real = weights.transforms()
    transform = weights.transforms(mean=(0, 0, 0), std=(1, 1, 1))
    source = f"torchvision's {weights}"
    interpolation = real.interpolation.value
    return Preprocessing(real.crop_size[0], real.resize_size[0], real.mean, real.std, interpolation, source, transform)


def timm_preprocessing(network: nn.Module, **trained_with: Any) -> Preprocessing:
    """Return the preprocessing of a network's `pretrained_cfg`, but for what it was `trained_with`."""
    config = timm.data.resolve_data_config(model=network) | trained_with
    transform = timm.data.create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    size = config["input_size"][-1]
    resize, interpolation = math.floor(size / config["crop_pct"]), config["interpolation"]
    return Preprocessing(size, resize, config["mean"], config["std"], interpolation, "timm's pretrained_cfg", transform)
