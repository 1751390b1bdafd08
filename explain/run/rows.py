"""The rows of a run on disk: appended as they are computed, so that an interrupted run can be resumed or split.

A row depends on nothing but its image and the settings. So it does not matter which process computes it, in which
order, or how often, and a run is complete as soon as every index has a row.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import joblib
import torch

from explain.basics.errors import OthersAtWork, UserError, one_line, quantity
from explain.basics.files import remove_leftovers, write_file
from explain.basics.options import shard
from explain.networks.classifier import Classifier
from explain.networks.own_code import own_file
from explain.run import shell
from explain.run.command_line import DRAWING_OPTIONS, EXECUTION_OPTIONS
from explain.run.output import OutputFolder, json_line, library_versions

REPORT = shell.ROOT / "explain/report"  # figures and texts, on which no row depends


def shard_of(options: argparse.Namespace) -> tuple[int, int]:
    """Return the part (i, n) of this process: --shard, else RANK and WORLD_SIZE as torchrun sets them, else (0, 1)."""
    if options.shard or not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        return options.shard or (0, 1)
    try:
        return shard(f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}")
    except argparse.ArgumentTypeError as error:
        raise UserError(f"RANK/WORLD_SIZE in the environment {error}") from None


def resolve_options(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options with --threads, --device and --prefetch chosen for this machine, and set it up for them.

    Raises UserError for a device that cannot be used.
    """
    threads = options.threads or joblib.cpu_count(only_physical_cores=True)  # two on one core only wait for each other
    torch.set_num_threads(threads)
    device = options.device
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    chosen = {"threads": threads, "device": device}
    if getattr(options, "prefetch", 0) is None:
        chosen["prefetch"] = 0 if device == "cpu" else 2
    # for deterministic matrix products; CUDA reads it once, when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        if device == "cuda" and os.environ.get("LOCAL_RANK"):  # each process of torchrun has a GPU of its own
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"device {device!r} cannot be used ({one_line(error)}): try --device cpu") from None
    return argparse.Namespace(**vars(options) | chosen)


def run_settings(
    options: argparse.Namespace, script: Path, model: Classifier, inputs: Sequence[Sequence]
) -> dict[str, Any]:
    """Return everything that a row depends on: options, weights, the list of images, libraries, code.

    `inputs` describes each image: index, key, size in bytes, label. Options on which no row depends are left out.
    """
    choices = {k: value for k, value in vars(options).items() if k not in (*EXECUTION_OPTIONS, *DRAWING_OPTIONS)}
    code = hashlib.sha256()
    for path in (*imported_files(script), *map(own_file, getattr(options, "map", []))):
        code.update(path.read_bytes())
    settings = choices | {
        "weights": f"{model.weights}, SHA-256 {model.sha256}",
        "class names": hashlib.sha256(json.dumps(model.categories).encode()).hexdigest(),
        "list of images": hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
        **library_versions(),
        "the code": code.hexdigest(),
    }
    return json.loads(json.dumps(settings))  # so that they equal those read from run.json


def imported_files(script: Path) -> list[Path]:
    """Return a script and the project's files that it imports, directly or not, without those in `report`."""
    files, queue = set(), [script.resolve()]
    while queue:
        path = queue.pop()
        if path in files or REPORT in path.parents or not path.is_file():
            continue
        files.add(path)
        queue += [shell.ROOT / f"{name.replace('.', '/')}.py" for name in names_imported(path)]
    return sorted(files)


@functools.cache  # a process keeps the code that it has imported
def names_imported(path: Path) -> list[str]:
    """Return the names of the modules that a Python file may import; `from a import b` may mean a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            names += [str(name.value) for name in node.args if isinstance(name, ast.Constant)]  # an exercise
    return names


def read_rows(path: Path) -> list[dict]:
    """Read a file's rows, without damaged lines (torn by a kill, zeros after a power failure)."""
    rows = []
    with suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("index"), int):
                    rows.append(row)
    return rows


class Rows:
    """The rows of one run, in the output folder of its script.

    Shard i of n appends to rows.<run>.i-of-n.jsonl, where <run> is a digest of the settings; a run that is not split is
    shard 0 of 1. The shard that completes the set writes rows.jsonl and removes those files. run.json holds the
    settings; rows of other settings are never mixed in. Rows are dealt to shards `unit` at a time (2c: a class's rows,
    one for each method). `todo` holds the indices of this shard that have no row at the start.
    """

    def __init__(
        self, output: OutputFolder, options: argparse.Namespace, settings: dict[str, Any], total: int, unit: int = 1
    ):
        self.output, self.folder, self.settings, self.total = output, output.path, settings, total
        self.i, self.n = shard_of(options)
        self.own = [k for k in range(total) if k // unit % self.n == self.i]
        self.run = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.complete_file = self.folder / "rows.jsonl"
        self.shard_file = self.folder / f"rows.{self.run}.{self.i}-of-{self.n}.jsonl"
        if self.own:  # a shard without images must not remove what others may be writing
            self._start(options.fresh)
        remove_leftovers(self.folder)
        rows = self._read()
        files = {k: row.get("files", []) for k, row in rows.items()}
        self.todo = [k for k in self.own if k not in files or not all((self.folder / f).is_file() for f in files[k])]
        if self.todo:
            output.metrics.unlink(missing_ok=True)  # it is the sign of a finished run
        if done := len(self.own) - len(self.todo):
            shell.progress_is_kept = True
            if self.todo:
                print(f"{done:,} of {len(self.own):,} are done", file=sys.stderr)

    def _start(self, fresh: bool) -> None:
        """Resume the run in the folder if it has these settings; else remove it, if it is finished or --fresh."""
        stored = self._stored_settings()
        if stored == self.settings:
            if fresh:
                self._discard_own()
            return
        if stored and not fresh:
            if self.output.metrics.is_file():
                used = {row["path"] for row in read_rows(self.complete_file) if "skipped" not in row}
                print(
                    f"replaces the results of {quantity(len(used), 'image')}, made with {self._difference(stored)}",
                    file=sys.stderr,
                )
            elif self._has_work():
                raise UserError(
                    f"{self.folder} has an unfinished run with {self._difference(stored)}: "
                    "change that back to resume it, or add --fresh to discard it"
                )
        # Without run.json, a run that is stopped here is cleared away by the next one. Files of this run stay, since
        # another shard may be at work.
        run_file = self.folder / "run.json"
        run_file.unlink(missing_ok=True)
        self.output.discard_metrics()
        for path in self._files():
            if f".{self.run}." not in path.name:
                self.output.discard(path, [name for row in read_rows(path) for name in row.get("files", [])])
        write_file(run_file, json.dumps(self.settings, indent=2, sort_keys=True) + "\n")

    def _discard_own(self) -> None:
        """Discard this shard's rows and states, for --fresh with the same settings; keep those of other shards."""
        self.output.metrics.unlink(missing_ok=True)
        own = set(self.own)
        for path in self.folder.glob("rows*.jsonl"):
            rows = read_rows(path)
            others = [row for row in rows if row["index"] not in own]
            if len(others) < len(rows):  # else another shard may be appending to it
                write_file(path, "".join(map(json_line, others)))
        for k in self.own:
            self.remove_state(k)

    def _files(self) -> list[Path]:
        """List the files with rows or states, of this run or another one."""
        return [*self.folder.glob("rows*.jsonl"), *self.folder.glob("state.*.pt")]

    def _has_work(self) -> bool:
        """Return whether the folder has a state, or the row of an image that was not skipped."""
        return any(
            path.suffix == ".pt" or any("skipped" not in row for row in read_rows(path)) for path in self._files()
        )

    def _stored_settings(self) -> dict:
        """Read the settings in run.json; empty if it is missing or damaged."""
        try:
            stored = json.loads((self.folder / "run.json").read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _difference(self, stored: dict) -> str:
        """Return the first setting that differs, with its stored value, as words that complete "made with ..."."""
        name = next(name for name, value in self.settings.items() if stored.get(name) != value)
        if name not in vars(self.output.options):
            return "other images" if name == "list of images" else f"another version of {name}"
        flag, value = f"--{name.replace('_', '-')}", stored.get(name)
        if name == "images":
            return "other images" if value else "the dataset's test images"
        if isinstance(value, list):
            value = " ".join(map(str, value))
        return f"no {flag}" if value is None or value is False else flag if value is True else f"{flag} {value}"

    def _read(self) -> dict[int, dict]:
        """Read the rows of this run, of all shards, by index."""
        if not self._is_alone():
            return {}
        # rows.jsonl last: it is written before the shards' files are removed
        paths = (*self.folder.glob(f"rows.{self.run}.*.jsonl"), self.complete_file)
        return {row["index"]: row for path in paths for row in read_rows(path)}

    def _is_alone(self) -> bool:
        """Return whether the folder is this run's; raises UserError if another run has taken it over."""
        if self._stored_settings() in ({}, self.settings):
            return True
        if self.own:
            raise UserError(
                f"another run with other settings has written to {self.folder} meanwhile: "
                "give one of the two runs its own --output"
            )
        return False

    def append(self, rows: Sequence[dict]) -> None:
        """Append rows to the shard's file, and flush them to the disk."""
        self._is_alone()
        shell.progress_is_kept = True
        data = "".join(["\n", *map(json_line, rows)]).encode()  # "\n" ends a line that a kill may have torn
        if self.shard_file.is_symlink():
            raise UserError(f"{self.shard_file} is a link: remove it")
        try:
            with self.shard_file.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.shard_file)) from None

    def complete(self) -> list[dict]:
        """Write rows.jsonl, and return all rows in the order of their index.

        They are read back from the disk, so that a resumed or split run is treated as any other. Raises OthersAtWork if
        rows of other shards are missing.
        """
        rows = self._read()
        missing = sum(k not in rows for k in range(self.total))
        if missing:
            raise OthersAtWork(
                f"shard {self.i}/{self.n}: all {len(self.own)} rows are done; {missing} of {self.total} are still "
                "missing from other shards, the last of which writes the summary"
            )
        ordered = [rows[k] for k in range(self.total)]
        self.output.write_rows(ordered)
        for path in (*self.folder.glob(f"rows.{self.run}.*.jsonl"), *self.folder.glob(f"state.{self.run}.*.pt")):
            path.unlink(missing_ok=True)  # another shard may do the same
        return [{"index": row.pop("index"), "path": row.pop("path"), **row} for row in ordered]

    # States of rows that take long to compute

    def save_state(self, index: int, state: dict) -> None:
        """Save tensors and plain values, from which the row with this index can be resumed."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_file(self._state_file(index), buffer.getvalue())
        shell.progress_is_kept = True

    def load_state(self, index: int) -> dict | None:
        """Return the state that was saved last, if any."""
        path = self._state_file(index)
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def remove_state(self, index: int) -> None:
        """Remove the state, if any."""
        self._state_file(index).unlink(missing_ok=True)

    def _state_file(self, index: int) -> Path:
        return self.folder / f"state.{self.run}.{index}.pt"
