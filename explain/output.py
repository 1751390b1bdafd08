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

EXECUTION_OPTIONS = ("shard", "merge", "fresh")  # they decide who computes, and so are no part of the result


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
        self.earlier = self.path / ".earlier.json"
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

    def set_aside(self, names: Iterable[str] = ()) -> None:
        """Remove metrics.json, which means complete, and remember the files that it and `names` list.

        `finish` removes those that the new run does not write: after a shorter run, no maps of the longer one before
        it are left among the new ones, and a file of the user's own is never touched.
        """
        names = {*names, *_listed_files(self.metrics), *_listed_files(self.earlier)}
        if names:
            write_file(self.earlier, json.dumps({"files": sorted(names)}) + "\n")
        self.metrics.unlink(missing_ok=True)

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
        for name in {*_listed_files(self.metrics), *_listed_files(self.earlier)} - files:
            path = self.path / name
            if path.suffix in (".png", ".npy", ".csv") and os.path.isfile(path) and is_inside(path.parent, self.path):
                path.unlink(missing_ok=True)
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
        if nondeterministic:
            metrics["nondeterministic_operations"] = nondeterministic
        if model is not None:
            metrics["model"] = {
                "name": model.name,
                "weights": model.weights,
                "sha256": model.sha256,
                "input_size": model.input_size,
                "classes": len(model.categories),
            }
        write_file(self.metrics, json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n")
        self.earlier.unlink(missing_ok=True)
        if skipped:
            print(f"skipped {len(skipped)} of {used + len(skipped)} images; metrics.json says why")
        print(self.metrics)


def _listed_files(path: Path) -> list[str]:
    """Return the names under "files" in metrics.json or its like; none where it is absent or damaged."""
    try:
        metrics = json.loads(path.read_bytes()) if path.is_file() else {"files": []}
        return [name for name in metrics["files"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def library_versions() -> dict[str, str]:
    """Return the versions of the interpreter and of the libraries that the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }


def project_commit() -> str:
    """Return this project's git commit, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
