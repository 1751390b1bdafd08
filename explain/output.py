"""The output folder of an exercise: figures, arrays, tables and metrics; the same bytes for the same run."""

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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from matplotlib.figure import Figure

from explain.errors import UserError
from explain.files import is_inside, write_file
from explain.networks import Classifier

EXECUTION_OPTIONS = ("shard", "fresh")  # they decide who computes, and so are no part of the result


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Save a matplotlib figure as a PNG that is the same bytes for the same content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_file(path, buffer.getvalue())


def write_array(path: Path, array: np.ndarray) -> None:
    """Save an array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue())


def json_line(row: dict) -> str:
    """Return a row as one line of JSON; floats in full, so that what is computed from rows is exact."""
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def csv_text(table: Sequence[dict]) -> str:
    """Return a table as CSV: the first row's keys are the header, numbers have 6 significant digits.

    Lists and dicts, which fit into no cell, are left out.
    """
    cells = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(cells[0]), lineterminator="\n")
    writer.writeheader()
    for row in cells:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


class OutputFolder:
    """The folder <output>/<name of the script>/: rows and arrays first, then figures and tables, metrics.json last.

    Raises UserError at once where it cannot be written to, not after the work.
    """

    def __init__(self, options: argparse.Namespace, script: str):
        self.options, self.script, self.source = options, Path(script).stem, Path(script)
        self.path = Path(options.output) / self.script
        self.metrics = self.path / "metrics.json"
        self.files: list[str] = []  # written by this run
        self.started = time.perf_counter()
        existing = next(path for path in (self.path, *self.path.parents) if os.path.lexists(path))
        if not os.path.isdir(existing):
            raise UserError(f"{existing} is not a folder: remove it or choose another --output")
        if not is_inside(self.path, Path(options.output)):
            raise UserError(f"{self.path} is a link that leaves {options.output}: remove it or choose another --output")
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(f"{existing} cannot be written to ({error.strerror}): choose another --output") from None

    def file(self, name: str) -> Path:
        """Return the path of a file that is about to be written, and have it listed in metrics.json."""
        path = self.path / name
        if not is_inside(path.parent, self.path):
            raise UserError(f"{path.parent} is a link that leaves {self.path}: remove the link")
        self.files.append(name)
        return path

    def write_rows(self, rows: Iterable[dict]) -> None:
        """Write rows.jsonl."""
        write_file(self.file("rows.jsonl"), "".join(map(json_line, rows)))

    def discard(self, record: Path, names: Iterable[str]) -> None:
        """Remove a record of an earlier run and the files that it names, but none that is newer than the record.

        What another shard of this run has written by now is newer; a file of the user's own is named nowhere.
        """
        written = os.path.getmtime(record) if record.is_file() else 0
        record.unlink(missing_ok=True)
        for path in (self.path / name for name in names):
            if path.suffix in (".png", ".npy", ".csv") and os.path.isfile(path) and is_inside(path.parent, self.path):
                with suppress(FileNotFoundError):  # another shard may do the same
                    if os.path.getmtime(path) <= written:
                        path.unlink()

    def discard_metrics(self) -> None:
        """Remove metrics.json, which means complete, and what it lists."""
        try:
            files = json.loads(self.metrics.read_bytes())["files"] if self.metrics.is_file() else []
        except (ValueError, KeyError, TypeError, RecursionError):  # not one of ours
            files = []
        self.discard(self.metrics, [name for name in files if isinstance(name, str)])

    def finish(
        self,
        rows: Sequence[dict],
        skipped: Sequence[dict],
        results: dict[str, Any],
        tables: dict[str, Sequence[dict]],
        model: Classifier | None = None,
        images: int | None = None,
    ) -> None:
        """Write the tables, then metrics.json, and print its path.

        `images` is the number of images used, where rows are not images.
        """
        for name, table in tables.items():
            write_file(self.file(name), csv_text(table))
        files = {*self.files, *(name for row in rows for name in row.get("files", []))}
        used = len(rows) if images is None else images
        notes = Counter(note for row in rows for note in row.get("notes", []))
        nondeterministic = sorted({name for row in rows for name in row.get("nondeterministic", [])})
        metrics = {
            "script": self.script,
            "settings": {key: value for key, value in vars(self.options).items() if key not in EXECUTION_OPTIONS},
            "seed": getattr(self.options, "seed", None),
            "device": getattr(self.options, "device", None),
            "deterministic": not nondeterministic,
            "versions": {**library_versions(), "commit": project_commit()},
            "images": {"found": used + len(skipped), "used": used, "skipped": list(skipped), "notes": dict(notes)},
            "seconds": round(time.perf_counter() - self.started, 3),
            "results": results,
            "files": sorted(files),
        }
        if nondeterministic:
            metrics["nondeterministic_operations"] = nondeterministic
        if model is not None:
            metrics["model"] = {key: getattr(model, key) for key in ("name", "weights", "sha256", "input_size")}
            metrics["model"] |= {"classes": len(model.categories), "names": model.names_from}
            metrics["model"] |= {"preprocessing": model.preprocessing, "notes": [*model.notes, *model.warnings]}
        write_file(self.metrics, json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n")
        if skipped:
            print(f"skipped {len(skipped)} of {used + len(skipped)} images; metrics.json says why")
        print(self.metrics)


def library_versions() -> dict[str, str]:
    """Return the versions of the interpreter and of the libraries that the numbers depend on."""
    libraries = {library.__name__: library.__version__ for library in (torch, torchvision, timm)}
    return {"python": platform.python_version(), **libraries}


def project_commit() -> str:
    """Return this project's git commit, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
