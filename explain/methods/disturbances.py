"""Disturbed images, on which a measure of uncertainty is needed most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explain.methods.faithfulness import blurred


def disturbed(images: Tensor, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Return images (N, 3, H, W) in [0, 1] under each disturbance; each image's noise comes from its own generator.

    They are noise of a standard deviation in pixel values, clipped to [0, 1] as in a camera; a Gaussian blur of a
    standard deviation in pixels; a quarter turn; and a lower contrast, a factor of the distance from the image's mean.
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
    """Return normal noise of the images' shape and standard deviation `spread`, from one generator for each image."""
    noise = torch.empty(images.shape)
    for sample, generator in zip(noise, generators, strict=True):
        sample.normal_(0, spread, generator=generator)
    return noise.to(images)
