"""Progress of long work: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 60  # between two lines if stderr is not a terminal


class _Lines(tqdm):
    """Prints each report as a line of its own, for log files."""

    printed = 0  # units done in the last line: tqdm reports the end twice

    def display(self, *_: Any, **__: Any) -> None:
        values = self.format_dict
        if values["elapsed"] >= SECONDS and self.n > self.printed:
            self.printed = self.n
            elapsed = tqdm.format_interval(values["elapsed"])
            left = tqdm.format_interval((self.total - self.n) * values["elapsed"] / self.n)
            print(f"{self.n:,} of {self.total:,} {self.unit}, {elapsed} elapsed, {left} left", file=sys.stderr)


def progress(total: int, unit: str, **settings: Any) -> tqdm:
    """Return a tqdm progress bar of `total` units, named in the plural."""
    if sys.stderr.isatty():
        return tqdm(total=total, unit=f" {unit}", **settings)
    line_ends = io.StringIO()  # takes the characters that tqdm writes around a report
    return _Lines(total=total, unit=unit, file=line_ends, mininterval=SECONDS, maxinterval=SECONDS, **settings)
