"""The settings of a gradient ascent; imports no torch, so that a script can show its help at once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from dataclasses import dataclass

from explain.basics.errors import UserError
from explain.basics.options import above_0, fraction, integer, setting


@dataclass(frozen=True)
class Settings:
    """Settings of an ascent. Each is an option; a setting with an initial and a final value changes gradually."""

    steps: int = setting(120, "number of steps", integer(1))
    rate: float = setting(0.04, "initial root mean square change of a pixel in a step (1: black to white)")
    final_rate: float = setting(0.004, "final root mean square change of a pixel in a step (1: black to white)")
    first_size: float = setting(1.0, "initial side of the image, as a fraction of its final side", fraction)
    l2: float = setting(0.002, "weight of the squared distance from grey, in logits")
    max_grey_distance: float = setting(
        0.5, "maximum root mean square distance from grey for a network without batch norm (0.5: no limit)", above_0
    )
    zoom_from: float = setting(1.0, "smallest random crop, as a fraction of the image's side", above_0)
    zoom_to: float = setting(1.0, "largest random crop; above 1, the image is padded with its reflection", above_0)
    rotation_degrees: float = setting(0.0, "maximum random rotation, in degrees")
    noise: float = setting(0.0, "maximum standard deviation of the random noise added to the image (1: black to white)")
    augment_until: float = setting(1.0, "fraction of the steps after which crops, rotation and noise are off", fraction)
    blur_every: int = setting(0, "blur with the Gaussian kernel every N steps (0: never)", integer(0))
    blur_until: float = setting(0.8, "fraction of the steps after which the blur is off", fraction)
    blur_px: float = setting(0.0, "standard deviation of the Gaussian kernel in the first blur, in pixels")
    final_blur_px: float = setting(0.0, "standard deviation of the Gaussian kernel in the last blur, in pixels")
    contrast: float = setting(0.0, "minimum standard deviation of pixels after the last blur; lower after earlier ones")
    statistics: float = setting(0.0, "weight of the distance to photos' channel statistics, in logits")
    precondition: bool = False  # weight the gradient by the amplitudes of photos; not an option

    def blurs(self) -> dict[int, tuple[float, float]]:
        """Return the blurs by step: the kernel's standard deviation, in pixels, and the least contrast after it.

        The first and the last blur have the first and the last value, a single one the first. The last step of the
        ascent has no blur.
        """
        if not (self.blur_every and (self.blur_px or self.final_blur_px or self.contrast)):
            return {}
        steps = range(self.blur_every - 1, math.ceil(self.blur_until * (self.steps - 1)), self.blur_every)
        blurs = {}
        for number, step in enumerate(steps, start=1):
            left = 1 - (number - 1) / max(len(steps) - 1, 1)  # 1 in the first blur, 0 in the last of several
            blurs[step] = anneal(self.final_blur_px, self.blur_px, left), self.contrast * number / len(steps)
        return blurs

    def augments(self) -> bool:
        """Return whether the images are changed at random before the network sees them."""
        return (self.zoom_from, self.zoom_to, self.rotation_degrees, self.noise) != (1, 1, 0, 0)


def anneal(first: float, final: float, progress: float) -> float:
    """Return a value between first and final, by equal ratios where both are above 0, else by equal differences."""
    return first * (final / first) ** progress if first > 0 and final > 0 else first + (final - first) * progress


def check_effect(options: argparse.Namespace, methods: Collection[Settings]) -> None:
    """Raise UserError for an option that, as the others are, changes nothing in any of the methods."""
    without: dict[str, str] = {}
    if all(method.steps == 1 for method in methods):
        cure = "there is only one step: give more --steps"
        without |= dict.fromkeys(("final_rate", "first_size", "statistics"), cure)
    if not any(method.augments() for method in methods):
        without["augment_until"] = (
            "there are no crops, rotations or noise: give --zoom-from, --zoom-to, --rotation-degrees or --noise"
        )
    if not any(any(blur) for method in methods for blur in method.blurs().values()):
        cure = "no step has a blur: give --blur-px, and a --blur-every below the product of --steps and --blur-until"
        without |= dict.fromkeys(("blur_every", "blur_until", "blur_px", "final_blur_px", "contrast"), cure)
    for name, why in without.items():
        if value := getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} {value:g} has no effect, since {why}")
