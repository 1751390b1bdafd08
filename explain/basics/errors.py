"""Errors that a user can put right, and helpers for the wording of messages."""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """An error that a user can put right: one sentence with the value and the cure."""


class NoSuchMap(UserError):  # noqa: N818
    """The network cannot have a kind of map; `lacking` names what it lacks, in a few words."""

    def __init__(self, sentence: str, lacking: str):
        super().__init__(sentence)
        self.lacking = lacking


class OthersAtWork(Exception):  # noqa: N818
    """Not an error: other shards have not finished yet, and the last one to finish writes the summary."""


def one_line(error: Exception) -> str:
    """Return the message of another library's error, shortened to fit into a sentence."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return the start of an error about an unknown name, with up to three similar names that exist."""
    near = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5)
    return f"no {kind} is named {name!r}" + (f": did you mean {' or '.join(near)}?" if near else "")


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2 images, 2 classes."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def integer_argument(name: str, value: Any, least: int = 1) -> int:
    """Return a function's argument as an int; raises UserError if it is not a whole number, or is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return number


def printable(path: Path) -> str:
    """Return the path as text that can be printed, drawn and encoded as UTF-8, whatever bytes it contains."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]
