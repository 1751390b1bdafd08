"""Types of options: numbers in a range, shards, the fields of a dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from explain.basics.errors import UserError, unknown

# Defaults and choices, here because options are parsed before torch is imported
WHITE = 65_535  # the value of white in a 16-bit image
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
COPIES, NOISE = 16, 0.15  # of the smoothed map, chosen on the sample's photos: docs/faithfulness.md
JUDGES = ("efficientnet_lite2", "efficientnet_lite0")  # of archetypes: the first that is not the network explained


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `least` to `most`."""
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {allowed}, not {text!r}")
        return int(text)

    return parse


def number(requirement: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """Return an argparse type for finite numbers that are valid; `requirement` completes its error, "a number ..."."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and is_valid(value)):
            raise argparse.ArgumentTypeError(f"must be a number {requirement}, not {text!r}")
        return value

    return parse


at_least_0 = number("of at least 0", lambda value: value >= 0)
above_0 = number("above 0", lambda value: value > 0)
fraction = number("above 0 and at most 1", lambda value: 0 < value <= 1)


def shard(text: str) -> tuple[int, int]:
    """Parse "i/n" with 0 <= i < n; an argparse type."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"must be I/N, with I from 0 to N - 1, as in 0/4, not {text!r}")
    return int(i), int(n)


def setting(default: Any, meaning: str, kind: Callable[[str], Any] = at_least_0) -> Any:
    """Return a dataclass field that `add_settings` makes an option; `meaning` is its help."""
    return dataclasses.field(default=default, metadata={"help": meaning, "type": kind})


def add_settings(parser: argparse.ArgumentParser, methods: dict[str, Any]) -> None:
    """Add an option for each field made by `setting`; its help lists the default of each method."""
    for field in dataclasses.fields(next(iter(methods.values()))):
        if field.metadata:
            defaults = ", ".join(f"{name} {getattr(settings, field.name):g}" for name, settings in methods.items())
            help_text = f"{field.metadata['help']} (default: {defaults})"
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=field.metadata["type"], metavar="N", help=help_text)


def change_settings(settings: Any, values: dict[str, Any]) -> Any:
    """Return the settings with these values; raises UserError for an unknown name or an invalid value."""
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{unknown('setting', name, fields)}; choose from {', '.join(fields)}")
        try:
            fields[name].metadata.get("type", str)(str(value))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{name} {error}") from None
    return dataclasses.replace(settings, **values)


def replace_settings(settings: Any, options: argparse.Namespace) -> Any:
    """Return the settings with the values of the options that were given."""
    values = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(settings)}
    return dataclasses.replace(settings, **{name: value for name, value in values.items() if value is not None})
