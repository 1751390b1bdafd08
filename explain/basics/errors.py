"""Errors that a user can put right, and the wording of what is printed."""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something a user can put right: one sentence with the value and the cure."""


class NoSuchMap(UserError):  # noqa: N818
    """The network has no map of a kind; `lacking` says in a few words what it lacks."""

    def __init__(self, sentence: str, lacking: str):
        super().__init__(sentence)
        self.lacking = lacking


class OthersAtWork(Exception):  # noqa: N818
    """Not an error: rows of other shards are missing, and the last shard to finish writes the summary."""


def one_line(error: Exception) -> str:
    """Return another library's message, short enough to stand inside a sentence."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return the beginning of a sentence about a name that does not exist, with the nearest that do."""
    near = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5)
    return f"no {kind} is named {name!r}" + (f": did you mean {' or '.join(near)}?" if near else "")


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2 images, 2 classes."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def whole_argument(name: str, value: Any, least: int = 1) -> int:
    """Return an argument of a function as a whole number; raises UserError if it is none, or below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return number


def printable(path: Path) -> str:
    """Return the path as it can be printed, drawn and written as UTF-8, whatever bytes it is made of."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]
