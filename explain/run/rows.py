"""The rows of a run on disk: appended as they are computed, so that an interrupted run can be resumed or split.

A row depends on nothing but its image and the settings. So it does not matter which process computes it,
in which order, or how often, and a run is complete as soon as every index has a row somewhere.
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
from pathlib import Path
from typing import Any

import joblib
import torch

from explain.basics.errors import OthersAtWork, UserError, one_line, quantity
from explain.basics.files import remove_file, remove_leftovers, write_file
from explain.basics.options import shard
from explain.networks.classifier import Classifier
from explain.networks.own_code import own_file
from explain.run import shell
from explain.run.command_line import DRAWING_OPTIONS, EXECUTION_OPTIONS
from explain.run.output import OutputFolder, json_line, library_versions

REPORT = shell.ROOT / "explain/report"  # figures and texts, on which no row depends
CLEARING = "clearing"  # in run.json, while the rows of another run are being removed


def shard_of(options: argparse.Namespace) -> tuple[int, int]:
    """Return this process's part (i, n): by --shard, else by the environment that torchrun sets, else all."""
    if options.shard or not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        return options.shard or (0, 1)
    try:
        return shard(f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}")
    except argparse.ArgumentTypeError as error:
        raise UserError(f"RANK/WORLD_SIZE in the environment: {error}") from None


def resolve_options(options: argparse.Namespace) -> None:
    """Replace what the options leave to the machine (--threads, --device auto, --prefetch) by its values, once for all.

    Raises UserError for a device that cannot be used.
    """
    # two threads on one core only wait for each other
    options.threads = options.threads or joblib.cpu_count(only_physical_cores=True)
    torch.set_num_threads(options.threads)
    if options.device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        options.device = accelerator.type if accelerator else "cpu"
    if getattr(options, "prefetch", 0) is None:
        options.prefetch = 0 if options.device == "cpu" else 2
    # deterministic matrix products on a GPU; read once, when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        if options.device == "cuda" and os.environ.get("LOCAL_RANK"):  # each of torchrun's processes has its own GPU
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=options.device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"device {options.device!r} cannot be used ({one_line(error)}): try --device cpu") from None


def run_settings(
    options: argparse.Namespace, script: Path, model: Classifier, inputs: Sequence[Sequence]
) -> dict[str, Any]:
    """Return all that a row depends on: options, weights, the list of images, libraries, code.

    `inputs` names each image (index, key) with its size in bytes. Options that change only the drawing
    or the execution are left out.
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
    return json.loads(json.dumps(settings))  # as they come back from run.json


def imported_files(script: Path) -> list[Path]:
    """Return the project's own files that a script runs: itself, and in turn what those import."""
    files, queue = set(), [script.resolve()]
    while queue:
        path = queue.pop()
        if path in files or REPORT in path.parents or not path.is_file():
            continue
        files.add(path)
        queue += [shell.ROOT / f"{name.replace('.', '/')}.py" for name in names_imported(path)]
    return sorted(files)


@functools.cache  # a process goes on with the code that it began with
def names_imported(path: Path) -> list[str]:
    """Return the modules that a Python file may import, by name; `from a import b` may mean a.b."""
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
    """Read a file's rows; a line that is none (torn by a kill, zeros after a power failure) will be computed again."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("index"), int):
            rows.append(row)
    return rows


class Rows:
    """The rows of one run, in the output folder of its script.

    Shard i of n appends to rows.<run>.i-of-n.jsonl, where <run> is a digest of the settings; a run that is not split is
    shard 0 of 1. Whoever completes the set writes rows.jsonl and removes those files. run.json has the settings, with
    which nothing else is mixed. A shard has `unit` rows of every n times `unit` in turn (2c: one for each method).
    `todo` are the indices of this process that have no row at the start.
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
        if self.own:  # a shard without images must not clear away what others may be writing
            self._start(options.fresh)
        remove_leftovers(self.folder)
        rows = self._read()
        files = {k: row.get("files", []) for k, row in rows.items()}
        self.todo = [k for k in self.own if k not in files or not all((self.folder / f).is_file() for f in files[k])]
        if self.todo:
            remove_file(output.metrics)  # it means that all is there
        if done := len(self.own) - len(self.todo):
            shell.progress_is_kept = True
            if self.todo:
                print(f"{done:,} of {len(self.own):,} are done", file=sys.stderr)

    def _start(self, fresh: bool) -> None:
        """Resume the run that is there, or clear it away where it is another one and may go."""
        stored = self._stored_settings()
        if stored == self.settings:
            if fresh:
                self._discard_own()
            return
        if stored and not fresh and CLEARING not in stored and self._is_unfinished():
            raise UserError(
                f"{self.folder} has an unfinished run, which cannot be mixed with {self._difference(stored)}: "
                "give the same settings to resume it, or --fresh to discard it"
            )
        if stored and self.output.metrics.is_file() and not fresh:
            used = {row["path"] for row in read_rows(self.complete_file) if "skipped" not in row}
            print(
                f"replaces the results of {quantity(len(used), 'image')} with {self._stored_difference(stored)}",
                file=sys.stderr,
            )
        # Stopped anywhere here, the next start finds CLEARING and begins again. What belongs to this run stays:
        # another shard may have come this way already, and be at work.
        self._store_settings({**self.settings, CLEARING: True})
        self._discard([path for path in self._files() if f".{self.run}." not in path.name])
        self._store_settings(self.settings)

    def _discard_own(self) -> None:
        """Discard this shard's rows and states, for --fresh with the same settings; keep those of other shards."""
        remove_file(self.output.metrics)
        own = set(self.own)
        for path in self.folder.glob("rows*.jsonl"):
            rows = read_rows(path)
            others = [row for row in rows if row["index"] not in own]
            if len(others) < len(rows):  # else another shard may be appending to it
                write_file(path, "".join(map(json_line, others)))
        for k in self.own:
            self.remove_state(k)

    def _files(self) -> list[Path]:
        """List the files with rows or states of whatever run is there."""
        return [*self.folder.glob("rows*.jsonl"), *self.folder.glob("state.*.pt")]

    def _discard(self, paths: Sequence[Path]) -> None:
        """Remove metrics.json, these files, and what they name."""
        self.output.discard_metrics()
        for path in paths:
            names = [name for row in read_rows(path) for name in row.get("files", [])]
            self.output.discard(path, names)

    def _stored_settings(self) -> dict:
        """Read the settings in run.json; empty where there are none, or damaged ones."""
        try:
            stored = json.loads((self.folder / "run.json").read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _store_settings(self, settings: dict) -> None:
        write_file(self.folder / "run.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")

    def _difference(self, stored: dict) -> str:
        """Name the first setting that differs, with its value here and there."""
        name = next(name for name, value in self.settings.items() if stored.get(name) != value)
        return f"{name} {self.settings[name]!r} (there: {stored.get(name, 'none')!r})"

    def _stored_difference(self, stored: dict) -> str:
        """Name what differs in the results that are there: an option as it was given, or what else it is."""
        name = next(name for name, value in self.settings.items() if stored.get(name) != value)
        if name not in vars(self.output.options):
            return "other images" if name == "list of images" else f"another version of {name}"
        flag, value = f"--{name.replace('_', '-')}", stored.get(name)
        if name == "images":
            return "other images" if value else "the dataset's test images"
        if isinstance(value, list):
            value = " ".join(map(str, value))
        return f"no {flag}" if value is None or value is False else flag if value is True else f"{flag} {value}"

    def _is_unfinished(self) -> bool:
        """Return whether work would be lost: rows of images that could be used, or a state, and no metrics.json."""
        usable = (
            path.suffix == ".pt" or any("skipped" not in row for row in read_rows(path)) for path in self._files()
        )
        return not self.output.metrics.is_file() and any(usable)

    def _read(self) -> dict[int, dict]:
        """Read all rows of this run by index, whoever has computed them."""
        if not self._is_alone():
            return {}
        # rows.jsonl last: whoever completes the set writes it before removing the shards' files
        paths = (*self.folder.glob(f"rows.{self.run}.*.jsonl"), self.complete_file)
        return {row["index"]: row for path in paths for row in read_rows(path)}

    def _is_alone(self) -> bool:
        """Return whether the folder is this run's; raises UserError where another run has taken it over."""
        stored = self._stored_settings()
        if not stored or {**stored, CLEARING: None} == {**self.settings, CLEARING: None}:
            return True
        if self.own:
            raise UserError(
                f"another run with other settings has written to {self.folder} in the meantime: "
                "give one of them its own --output"
            )
        return False

    def append(self, rows: Sequence[dict]) -> None:
        """Add rows to the shard's file, and have them on the disk before going on."""
        self._is_alone()
        shell.progress_is_kept = True
        data = "".join(["\n", *map(json_line, rows)]).encode()  # the end of a line that a kill may have torn
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
        """Return all rows in the order of their index, which are then in rows.jsonl.

        They are read back from the disk, so that a resumed and a split run take the same way as any other. Raises
        OthersAtWork where rows of other shards are missing.
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
            remove_file(path)  # another shard may be here as well
        return [{"index": row.pop("index"), "path": row.pop("path"), **row} for row in ordered]

    # States of work that takes longer than one is willing to lose

    def save_state(self, index: int, state: dict) -> None:
        """Keep tensors and plain values until the row with this index is there."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_file(self._state_file(index), buffer.getvalue())
        shell.progress_is_kept = True

    def load_state(self, index: int) -> dict | None:
        """Return the state that `save_state` kept last, if any."""
        path = self._state_file(index)
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def remove_state(self, index: int) -> None:
        """Remove the state, if any."""
        remove_file(self._state_file(index))

    def _state_file(self, index: int) -> Path:
        return self.folder / f"state.{self.run}.{index}.pt"
