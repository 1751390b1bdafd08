"""What a user can put right, and how it is said."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Something a user can put right: one sentence with the value and the cure."""


def one_line(error: Exception) -> str:
    """What another library said, short enough to stand inside a sentence."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The beginning of a sentence about a name that does not exist, with the nearest that do."""
    near = difflib.get_close_matches(given, list(known), n=3, cutoff=0.5)
    return f"no {kind} is named {given!r}" + (f": did you mean {' or '.join(near)}?" if near else "")


def printable(path: Path) -> str:
    """The path as it can be printed, drawn and written as UTF-8, whatever bytes it is made of."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]
