"""Disturbed pictures, on which an uncertainty is needed most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explain.methods.faithfulness import blurred


def disturbed(images: Tensor, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Return images (N, 3, H, W) in [0, 1] under each disturbance; noise is each image's by its own generator.

    Noise with its standard deviation in pixel values, kept within black and white as a camera does; a Gaussian blur
    with its own in pixels; a quarter turn; the contrast as a factor of the distance from the image's mean.
    """
    noise = noise_of(images, generators)
    mean = images.mean((1, 2, 3), keepdim=True)
    return {
        "noise_0.1": (images + 0.1 * noise).clamp(0, 1),
        "noise_0.25": (images + 0.25 * noise).clamp(0, 1),
        "blur_2_px": blurred(images, 2.0),
        "blur_4_px": blurred(images, 4.0),
        "quarter_turn": images.rot90(1, (2, 3)),
        "contrast_0.3": mean + 0.3 * (images - mean),
    }


def noise_of(images: Tensor, generators: Sequence[torch.Generator], spread: float = 1.0) -> Tensor:
    """Return normal noise of standard deviation `spread` and the images' shape, each image's by its own generator."""
    noise = torch.empty(images.shape)
    for sample, generator in zip(noise, generators, strict=True):
        sample.normal_(0, spread, generator=generator)
    return noise.to(images)
