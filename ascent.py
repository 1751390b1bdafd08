"""How an archetype is made: the settings of gradient ascent, and the three methods that are made of them.

Each setting is an option of 2c, with its meaning and unit, for the methods that have it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import common


def not_negative(text: str) -> float:
    """A finite number from 0 (argparse type)."""
    try:
        if 0 <= float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")


def share(text: str) -> float:
    """A number above 0, up to 1 (argparse type)."""
    if (number := above_0(text)) <= 1:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, up to 1")


def above_0(text: str) -> float:
    """A finite number above 0 (argparse type)."""
    if (number := not_negative(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def _setting(default: float, meaning: str, kind: Callable[[str], float] = not_negative, of: str = "all") -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning, "type": kind, "of": of})


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an archetype is made. What moves from a first to a final value moves along a power curve."""

    steps: int = _setting(120, "iterations of gradient ascent", common.positive)
    rate: float = _setting(0.04, "first step: root mean square change of a pixel (1: black to white)")
    final_rate: float = _setting(0.004, "last step, likewise")
    first_size: float = _setting(1.0, "share of the input size at which the ascent begins; it grows to 1", share)
    l2: float = _setting(0.002, "weight of the squared distance to grey, in logits")
    farthest: float = _setting(
        0.5,
        "without batch norm: at most this root mean square distance from grey; 0.5: as far as any picture",
        above_0,
    )
    zoom_from: float = _setting(
        1.0, "the network sees from this share of the image's side, anew in each iteration", above_0
    )
    zoom_to: float = _setting(1.0, "up to this share of it; above 1: with mirrored surroundings", above_0)
    turn_degrees: float = _setting(0.0, "turned by up to so much")
    noise: float = _setting(0.0, "and with noise of up to this standard deviation")
    calm_from: float = _setting(
        1.0, "share of the way from which on the network sees the image as it is, neither moved nor noisy", share
    )
    blur_every: int = _setting(
        0, "apply the Gaussian kernel every so many iterations; 0: never", common.whole, "kernel"
    )
    blur_px: float = _setting(0.0, "the kernel's standard deviation in the first iteration, in pixels", of="kernel")
    final_blur_px: float = _setting(0.0, "the kernel's standard deviation in the last iteration", of="kernel")
    contrast: float = _setting(
        0.0, "after the kernel, an image has at least this standard deviation by the last iteration", of="kernel"
    )
    statistics: float = _setting(
        0.0, "weight of the distance from the channel statistics of photos, in logits", of="statistics"
    )
    as_photos: bool = False  # a step changes colours and waves as much as photos differ in them

    @property
    def moved(self) -> bool:
        """Whether the network sees the image from many sides (then mirrored too, every second time)."""
        return (self.zoom_from, self.zoom_to, self.turn_degrees) != (1, 1, 0)


SETTINGS = [field for field in dataclasses.fields(Settings) if field.metadata]  # those that are options

# Chosen with efficientnet_lite0 on classes that are neither default ones nor among those reported (docs/archetypes.md
# has them), by what efficientnet_lite2 took the pictures for, whole, in part and from far, and by eye. Noise nearly to
# the end leaves the network only what stands out from it, and steps in coarse waves give that a shape, as a small image
# at first makes it large; close views give detail, distant ones a shape. A kernel much wider than a pixel costs what
# lies between outline and grain; after it rests, the picture gets back as much of the finer waves as photos have.
GAUSSIAN = Settings(
    steps=560,
    rate=0.08,
    final_rate=0.008,
    first_size=0.57,
    l2=0.005,
    farthest=0.25,
    zoom_from=0.5,
    zoom_to=2.0,
    turn_degrees=10,
    noise=0.2,
    calm_from=0.95,
    blur_every=4,
    blur_px=1.0,
    final_blur_px=0.5,
    contrast=0.2,
    as_photos=True,
)
METHODS: dict[str, Settings] = {
    "plain": Settings(),
    "gaussian": GAUSSIAN,
    # the statistics smooth by themselves, and give contrast: a weaker kernel leaves more to see in every part
    "natural": dataclasses.replace(GAUSSIAN, statistics=30, blur_every=8, blur_px=0.5, contrast=0),
}


def fields_of(how: Settings) -> list[str]:
    """The names of the settings that a method has."""
    has = {"all": True, "kernel": how.blur_every > 0, "statistics": how.statistics > 0}
    return [field.name for field in SETTINGS if has[field.metadata["of"]]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting; its help has the default of each method that has it."""
    for field in SETTINGS:
        defaults = ", ".join(
            f"{name} {getattr(how, field.name):g}" for name, how in METHODS.items() if field.name in fields_of(how)
        )
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=field.metadata["type"],
            metavar="N",
            help=f"{field.metadata['help']} (default: {defaults})",
        )


def settings_of(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The method's settings with those given as options, of which a method gets only what it has."""
    default = METHODS[method]
    given = {name: getattr(options, name) for name in fields_of(default)}
    return dataclasses.asdict(dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None}))
