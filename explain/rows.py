"""The rows of a run on disk: written as they are found, gone on with after a stop, split over machines.

A row depends on nothing but its image and the settings. So it does not matter which process finds it,
in which order, or how often, and a run is complete as soon as every index has a row somewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from explain.errors import UserError
from explain.networks import Classifier
from explain.output import WAYS, Report, json_line, libraries, remove_leftovers, write_file

STARTING_OVER = "starting over"  # in run.json, while the rows of another run are being cleared away
SHARED_CODE = (
    "common.py",
    "explain/pictures.py",
    "explain/networks.py",
    "explain/rows.py",
    "explain/output.py",
    "explain/errors.py",
    "explain/archetypes.py",
    "explain/ascent_state.py",
    "explain/options.py",
    "explain/priors.py",
    "explain/judges.py",
)


def shard(text: str) -> tuple[int, int]:
    """i/n with 0 <= i < n (argparse type)."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: give i/n with i from 0 to n - 1, as in 0/4")
    return int(i), int(n)


def shard_of(options: argparse.Namespace) -> tuple[int, int]:
    """Which part is this process's, (i, n): by --shard, else by the environment that torchrun sets, else all."""
    if options.merge:
        return 0, 1
    if options.shard or not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        return options.shard or (0, 1)
    try:
        return shard(f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}")
    except argparse.ArgumentTypeError as error:
        raise UserError(f"RANK/WORLD_SIZE in the environment: {error}") from None


def run_settings(
    options: argparse.Namespace, script: Path, model: Classifier, inputs: Sequence[Sequence]
) -> dict[str, Any]:
    """All that a row depends on: options, weights, the list of images, libraries, code.

    `inputs` names each image (index, key) with its size in bytes. An option that changes only the
    drawing or the way is left out.
    """
    chosen = {key: value for key, value in vars(options).items() if key not in (*WAYS, "show", "output")}
    code = hashlib.sha256()
    for path in (script, *(Path(__file__).parents[1] / name for name in SHARED_CODE)):
        code.update(path.read_bytes())
    settings = chosen | {
        "weights": f"{model.weights}, SHA-256 {model.sha256}",
        "list of images": hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
        **libraries(),
        "code": code.hexdigest(),
    }
    return json.loads(json.dumps(settings))  # as they come back from run.json


def size_of(path: Path) -> int | None:
    """A file's size in bytes; None where there is none (it will be skipped with its reason)."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def read_rows(path: Path, skip_damaged: bool = False) -> tuple[list[dict], int]:
    """A file's rows, and the bytes that they take: a last line that is torn, or being written, is left out."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # after the last end of line: nothing, or a torn line
    except FileNotFoundError:
        lines = []
    rows, size = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["index"] + 0  # a number
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines):  # a power failure may leave zeros, too
                break
            if skip_damaged:
                continue
            raise UserError(f"line {number} of {path} is no row: start over with --fresh") from None
        rows.append(row)
        size += len(line) + 1
    return rows, size


class Rows:
    """The rows of one run, in the output folder of its script.

    A plain run appends to rows.jsonl. Shard i of n appends to rows.<run>.i-of-n.jsonl, where <run>
    is a digest of the settings; whoever completes the set writes rows.jsonl and removes those files.
    run.json has the settings, with which nothing else is mixed. A shard has `unit` rows of every n
    times `unit` in turn (2c: one for each method). `todo` are the indices of this process that have
    no row at the start.
    """

    def __init__(
        self, report: Report, options: argparse.Namespace, settings: dict[str, Any], total: int, unit: int = 1
    ):
        self.report, self.folder, self.settings, self.total = report, report.folder, settings, total
        self.merge, (self.i, self.n) = options.merge, shard_of(options)
        self.own = [k for k in range(total) if k // unit % self.n == self.i]
        self.run = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.whole = report.path("rows.jsonl")
        self.path = self.whole if self.n == 1 else self.folder / f"rows.{self.run}.{self.i}-of-{self.n}.jsonl"
        self._start(options.fresh)

    def _start(self, fresh: bool) -> None:
        """Go on with the run that is there, or clear it away where it is another one and may go."""
        there = self._settings_there()
        if there == self.settings:
            if fresh:
                self._forget_own()
        elif self.merge:
            raise UserError(f"{self.folder} has no rows to merge of a run with {self._difference(there)}")
        elif self.own:  # a shard without images must not clear away what others may be writing
            if there and not fresh and STARTING_OVER not in there and self._is_unfinished():
                raise UserError(
                    f"{self.folder} has an unfinished run, which cannot be mixed with {self._difference(there)}: "
                    "give the same settings to go on with it, or --fresh to start over"
                )
            # Stopped anywhere here, the next start finds STARTING_OVER and begins again. What belongs to this
            # run stays: another shard may have come this way already, and be at work.
            self._write_settings({**self.settings, STARTING_OVER: True})
            self._set_metrics_aside()
            for path in (self.whole, *self.folder.glob("rows.*.jsonl"), *self.folder.glob("state.*.pt")):
                if f".{self.run}." not in path.name:
                    path.unlink(missing_ok=True)
            self._write_settings(self.settings)
        if not self.merge:
            remove_leftovers(self.folder, alone=self.n == 1)
            if self.path.is_file() and (size := read_rows(self.path)[1]) < self.path.stat().st_size:
                write_file(self.path, self.path.read_bytes()[:size])
        self.todo = self._missing()
        if self.todo:
            self._set_metrics_aside()

    def _settings_there(self) -> dict | None:
        """The settings in run.json; None where there is none, {} where it is damaged."""
        try:
            there = json.loads((self.folder / "run.json").read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return {}
        return there if isinstance(there, dict) else {}

    def _write_settings(self, settings: dict) -> None:
        write_file(self.folder / "run.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")

    def _difference(self, there: dict | None) -> str:
        """The first setting that differs, with its value here and there."""
        there = there or {}
        for name, value in self.settings.items():
            if there.get(name) != value:
                return f"{name} {value!r} (there: {there.get(name, 'none')!r})"
        return "other settings"

    def _is_unfinished(self) -> bool:
        """Whether work would be lost: rows of images that could be used, or a state, and no metrics.json."""
        if self.report.metrics.is_file():
            return False
        rows = (row for path in self.folder.glob("rows*.jsonl") for row in read_rows(path)[0])
        return any(self.folder.glob("state.*.pt")) or any("skipped" not in row for row in rows)

    def _set_metrics_aside(self) -> None:
        """metrics.json means that all is there: it goes before the first row is looked for."""
        rows = (row for path in self.folder.glob("rows*.jsonl") for row in read_rows(path, skip_damaged=True)[0])
        self.report.set_aside(name for row in rows for name in row.get("files", []))

    def _forget_own(self) -> None:
        """--fresh with the settings that are there already: this shard's rows are found anew, others' are kept."""
        self._set_metrics_aside()
        own = set(self.own)
        for path in (self.whole, *self.folder.glob(f"rows.{self.run}.*.jsonl")):
            rows, _ = read_rows(path, skip_damaged=True)
            kept = [row for row in rows if row["index"] not in own]
            if self.n == 1:
                path.unlink(missing_ok=True)
            elif len(kept) < len(rows):
                write_file(path, "".join(map(json_line, kept)))
        for k in self.own:
            self.remove_state(k)

    def read(self) -> dict[int, dict]:
        """All rows of this run by index, whoever has found them."""
        found: dict[int, dict] = {}
        if self._settings_there() != self.settings:
            return found
        # rows.jsonl last: who completes the set writes it before removing the shards' files
        for path in (*self.folder.glob(f"rows.{self.run}.*.jsonl"), self.whole):
            for row in read_rows(path)[0]:
                found[row["index"]] = row
        return found

    def _missing(self) -> list[int]:
        if self.merge:
            return []
        found = self.read()
        return [k for k in self.own if k not in found or not self._has_files(found[k])]

    def _has_files(self, row: dict) -> bool:
        return all((self.folder / name).is_file() for name in row.get("files", []))

    def append(self, rows: Sequence[dict]) -> None:
        """Add rows to the file, and have them on the disk before going on."""
        data = "".join(map(json_line, rows)).encode()
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                while data:
                    data = data[os.write(file, data) :]
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def complete(self) -> list[dict]:
        """All rows in the order of their index, which are then in rows.jsonl; [] where others are still at work.

        Read back from the disk, so that a resumed and a split run take the same way as any other.
        """
        found = self.read()
        missing = [k for k in range(self.total) if k not in found]
        if missing and self.merge:
            raise UserError(
                f"{len(missing)} of {self.total} rows are missing in {self.folder}, with index {ranges(missing)}: "
                "run their shards (index modulo n) again, then merge"
            )
        if missing:
            print(
                f"shard {self.i}/{self.n}: all {len(self.own)} rows are done; {len(missing)} of {self.total} are still "
                "missing from other shards, the last of which writes the summary"
            )
            return []
        rows = [found[k] for k in range(self.total)]
        write_file(self.whole, "".join(map(json_line, rows)))
        for path in (*self.folder.glob(f"rows.{self.run}.*.jsonl"), *self.folder.glob(f"state.{self.run}.*.pt")):
            path.unlink(missing_ok=True)  # another shard may be here as well
        return [{"index": row.pop("index"), "path": row.pop("path"), **row} for row in rows]

    # States of work that takes longer than one is willing to lose

    def save_state(self, index: int, state: dict) -> None:
        """Keep tensors and plain values until the row with this index is there."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_file(self._state(index), buffer.getvalue())

    def load_state(self, index: int) -> dict | None:
        """What `save_state` kept last, if anything."""
        path = self._state(index)
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def remove_state(self, index: int) -> None:
        self._state(index).unlink(missing_ok=True)

    def _state(self, index: int) -> Path:
        return self.folder / f"state.{self.run}.{index}.pt"


def ranges(numbers: Sequence[int], at_most: int = 10) -> str:
    """Rising numbers as "0-4, 7", the first ranges of them and how many more."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found[:at_most])
    return text + (f" and {len(found) - at_most} more ranges" if len(found) > at_most else "")
