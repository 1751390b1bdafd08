"""The settings of a gradient ascent; imports no torch, so that a script can show its help at once."""

from __future__ import annotations

from dataclasses import dataclass

from explain.basics.options import above_0, fraction, setting, whole_number


@dataclass(frozen=True)
class Settings:
    """Settings of an ascent. Each is an option; what has an initial and a final value changes gradually."""

    steps: int = setting(120, "number of steps", whole_number(1))
    rate: float = setting(0.04, "initial root mean square change of a pixel in a step (1: black to white)")
    final_rate: float = setting(0.004, "final root mean square change of a pixel in a step (1: black to white)")
    first_size: float = setting(1.0, "initial side of the image, as a fraction of its final side", fraction)
    l2: float = setting(0.002, "weight of the squared distance from grey, in logits")
    max_grey_distance: float = setting(
        0.5, "maximum root mean square distance from grey for a network without batch norm (0.5: no limit)", above_0
    )
    zoom_from: float = setting(1.0, "smallest random crop, as a fraction of the image's side", above_0)
    zoom_to: float = setting(1.0, "largest random crop; above 1, the image is shrunk inside its reflection", above_0)
    rotation_degrees: float = setting(0.0, "maximum random rotation, in degrees")
    noise: float = setting(0.0, "maximum standard deviation of the random noise added to the image (1: black to white)")
    augment_until: float = setting(1.0, "fraction of the steps after which crops, rotation and noise are off", fraction)
    blur_every: int = setting(0, "blur with the Gaussian kernel every N steps (0: never)", whole_number(0))
    blur_px: float = setting(0.0, "initial standard deviation of the Gaussian blur, in pixels")
    final_blur_px: float = setting(0.0, "final standard deviation of the Gaussian blur, in pixels")
    contrast: float = setting(0.0, "final minimum standard deviation of the blurred image")
    statistics: float = setting(0.0, "weight of the distance to photos' channel statistics, in logits")
    precondition: bool = False  # weight the gradient by the amplitudes of photos; not an option
