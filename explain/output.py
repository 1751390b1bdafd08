"""What a script leaves behind: its output folder, written all or nothing, the same bytes again."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from matplotlib.figure import Figure

from explain.errors import UserError
from explain.files import is_inside
from explain.networks import Classifier

WAYS = ("shard", "merge", "fresh")  # options that decide who does the work, and so are no part of what came out
EARLIER = ".earlier.json"  # the files of a run that was complete, until the next one is


def write_file(path: Path, data: bytes | str) -> None:
    """Write all or nothing; a file that already holds these bytes is left alone (so is its time)."""
    data = data.encode() if isinstance(data, str) else data
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # not made from the file's name, which may be as long as names can be
    temporary = path.with_name(f".{platform.node()[:60]}-{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, alone: bool) -> None:
    """Remove the temporary files that `write_file` could not, because its process was killed.

    Unless this process is `alone` with the folder, those of other machines stay: theirs may be at work.
    """
    for path in (*folder.glob(".*-*.tmp"), *folder.glob("*/.*-*.tmp")):
        node, _, process = path.name[1:].removesuffix(".tmp").rpartition("-")
        if not process.isdecimal() or not is_inside(path.parent, folder):
            continue
        if alone or (node == platform.node()[:60] and not _is_running(int(process))):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return process != os.getpid()  # with this one's number, it was an earlier one's


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Save a matplotlib figure as a PNG that is the same bytes for the same content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_file(path, buffer.getvalue())


def write_array(path: Path, array: np.ndarray) -> None:
    """Save an array as .npy, all or nothing."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue())


def csv_text(table: Sequence[dict]) -> str:
    """A table as CSV: the first row's keys are the header, numbers have 6 significant digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


class Report:
    """The output folder of one script: figures, files and tables first, metrics.json last."""

    def __init__(self, options: argparse.Namespace, script: str):
        self.options, self.script, self.source = options, Path(script).stem, Path(script)
        self.folder = Path(options.output) / self.script
        self.metrics = self.folder / "metrics.json"
        self.files: list[str] = []
        self.started = time.perf_counter()
        # what cannot be written should be known before the work, not after it
        existing = next(path for path in (self.folder, *self.folder.parents) if os.path.lexists(path))
        if not os.path.isdir(existing):
            raise UserError(f"{existing} is no folder: remove it or choose another --output")
        if not is_inside(self.folder, Path(options.output)):
            raise UserError(
                f"{self.folder} is a link that leaves {options.output}: remove it or choose another --output"
            )
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(f"{existing} cannot be written to ({error.strerror}): choose another --output") from None

    def path(self, name: str) -> Path:
        """Where the file goes; it is named in metrics.json from now on."""
        path = self.folder / name
        if not is_inside(path.parent, self.folder):
            raise UserError(f"{path.parent} is a link that leaves {self.folder}: remove the link")
        self.files.append(name)
        return path

    def set_aside(self, names: Iterable[str] = ()) -> None:
        """Take metrics.json away, which means complete; what it lists, and `names`, `finish` removes where stale."""
        names = {*names, *self._earlier_files()}
        if names:
            write_file(self.folder / EARLIER, json.dumps(sorted(names)) + "\n")
        self.metrics.unlink(missing_ok=True)

    def _earlier_files(self) -> set[str]:
        """The files that an earlier run wrote, by its metrics.json or by what was left when that was set aside."""
        names: set[str] = set()
        for path in (self.metrics, self.folder / EARLIER):
            try:
                found = json.loads(path.read_bytes()) if path.is_file() else []
                found = found["files"] if path == self.metrics and found else found
                names.update(name for name in found if isinstance(name, str))
            except (ValueError, KeyError, TypeError, RecursionError):  # none of ours
                continue
        return names

    def finish(
        self,
        rows: Sequence[dict],
        skipped: Sequence[dict],
        results: dict[str, Any],
        tables: dict[str, Sequence[dict]],
        model: Classifier | None = None,
        images: int | None = None,
    ) -> None:
        """Write the tables and metrics.json; remove what only an earlier run wrote."""
        if "rows.jsonl" not in self.files:  # else they were written as they were found
            write_file(self.path("rows.jsonl"), "".join(json_line(row) for row in rows))
        for name, table in tables.items():
            write_file(self.path(name), csv_text(table))
        files = {*self.files, *(name for row in rows for name in row.get("files", []))}
        stale = [self.folder / name for name in self._earlier_files() - files]
        stale = [path for path in stale if path.suffix in (".png", ".npy", ".csv") and os.path.isfile(path)]
        for path in stale:
            if is_inside(path.parent, self.folder):
                path.unlink(missing_ok=True)
        used = len(rows) if images is None else images  # where rows are not images
        notes = Counter(note for row in rows for note in row.get("notes", []))
        chance = sorted({name for row in rows for name in row.get("nondeterministic", [])})
        metrics = {
            "script": self.script,
            "settings": {key: value for key, value in vars(self.options).items() if key not in WAYS},
            "seed": getattr(self.options, "seed", None),
            "device": getattr(self.options, "device", None),
            "deterministic": not chance,
            "versions": versions(),
            "images": {
                "found": used + len(skipped),
                "used": used,
                "skipped": list(skipped),
                "notes": dict(notes),
            },
            "seconds": round(time.perf_counter() - self.started, 3),
            "results": results,
            "files": sorted(files),
        }
        if chance:
            metrics["nondeterministic_operations"] = chance
        if model is not None:
            metrics["model"] = {
                "name": model.name,
                "weights": model.weights,
                "sha256": model.sha256,
                "input_size": model.input_size,
                "classes": len(model.categories),
            }
        write_file(self.metrics, json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n")
        (self.folder / EARLIER).unlink(missing_ok=True)
        if skipped:
            print(f"skipped {len(skipped)} of {used + len(skipped)} images; metrics.json says why")
        print(self.metrics)


def json_line(row: dict) -> str:
    """A row as one line; floats in full, so that what is computed from rows is exact."""
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def libraries() -> dict[str, str]:
    """The interpreter and the libraries that the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }


def versions() -> dict[str, str]:
    """What the numbers depend on: interpreter, libraries, this project's commit where known."""
    here = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {**libraries(), "commit": commit}
