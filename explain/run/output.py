"""The output folder of an exercise: figures, arrays, tables and metrics, with the same bytes for the same run."""

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
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from explain.basics.errors import UserError, quantity
from explain.basics.files import is_inside, write_file
from explain.data.datasets import dataset_digest
from explain.networks.classifier import Classifier
from explain.run.command_line import EXECUTION_OPTIONS, dataset_of

FINDINGS_SHOWN = 10  # lines printed of the results
WRITTEN = (".png", ".jpg", ".pdf", ".txt", ".npy", ".csv")  # suffixes of the files that exercises write


def write_array(path: Path, array: np.ndarray) -> None:
    """Save an array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue())


def map_name(index: int, kind: str) -> str:
    """Return the name, in the output folder, of the file with an image's map of a kind."""
    return f"maps/{index:05d}_{kind}.npy"


def json_line(row: dict) -> str:
    """Return a row as a line of JSON, with floats in full precision."""
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def csv_text(table: Sequence[dict]) -> str:
    """Return a table as CSV: the rows' keys, in the order in which they come, are the header.

    A row without a key has an empty cell. Floats have 6 significant digits; lists and dicts, which do not fit into a
    cell, are left out.
    """
    cells = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in cells for k in row)), lineterminator="\n")
    writer.writeheader()
    for row in cells:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


class OutputFolder:
    """The folder <output>/<name of the script>/: rows and arrays first, then figures and tables, metrics.json last.

    Raises UserError if the folder cannot be written to, so that a run does not find out after its work.
    """

    def __init__(self, options: argparse.Namespace, script: str):
        self.options, self.script, self.source = options, Path(script).stem, Path(script)
        self.path = Path(options.output) / self.script
        self.metrics = self.path / "metrics.json"
        self.files: list[str] = []  # written by this run
        self.captions: dict[str, list[str]] = {}  # title and sentences of each figure
        self.margins: dict[str, list[float]] = {}  # fractions of its height that they take, above and below
        self.other_files = 0  # files without an image extension in the folders of images
        self.classes = 0  # number of classes in the labelled data, some of which --limit may leave out
        self.started = time.perf_counter()
        existing = next(path for path in (self.path, *self.path.parents) if os.path.lexists(path))
        if not os.path.isdir(existing):
            raise UserError(f"{existing} is not a folder: remove it or choose another --output")
        if not is_inside(self.path, Path(options.output)):
            raise UserError(f"{self.path} is a link out of {options.output}: remove it or choose another --output")
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(f"{existing} cannot be written to ({error.strerror}): choose another --output") from None

    def file(self, name: str) -> Path:
        """Return the path of a file to be written, which metrics.json will list."""
        path = self.path / name
        if not is_inside(path.parent, self.path):
            raise UserError(f"{path.parent} is a link out of {self.path}: remove the link")
        self.files.append(name)
        return path

    def write_rows(self, rows: Iterable[dict]) -> None:
        """Write rows.jsonl."""
        write_file(self.file("rows.jsonl"), "".join(map(json_line, rows)))

    def discard(self, record: Path, names: Iterable[str]) -> None:
        """Remove a record of an earlier run (rows or metrics) and the files that it names.

        Files newer than the record stay, since another shard of this run may have written them.
        """
        written = record.stat().st_mtime if record.is_file() else 0
        record.unlink(missing_ok=True)
        for path in (self.path / name for name in names):
            if path.suffix in WRITTEN and os.path.isfile(path) and is_inside(path.parent, self.path):
                with suppress(FileNotFoundError):  # another shard may have removed it meanwhile
                    if path.stat().st_mtime <= written:
                        path.unlink()

    def earlier_files(self) -> list[str]:
        """Return the files listed in the folder's metrics.json; empty if it is missing or damaged."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if self.metrics.is_file():  # reading a pipe would block
                return [name for name in json.loads(self.metrics.read_bytes())["files"] if isinstance(name, str)]
        return []

    def discard_metrics(self, but: Collection[str] = ()) -> None:
        """Remove metrics.json, the sign of a finished run, and the files that it lists, `but` these."""
        self.discard(self.metrics, [name for name in self.earlier_files() if name not in but])

    def describe_run(
        self, rows: Sequence[dict], skipped: Sequence[dict], used: int, model: Classifier | None
    ) -> dict[str, Any]:
        """Return the content of metrics.json, without results and files."""
        notes = Counter(note for row in rows for note in row.get("notes", []))
        nondeterministic = sorted({name for row in rows for name in row.get("nondeterministic", [])})
        metrics = {
            "script": self.script,
            "settings": {key: value for key, value in vars(self.options).items() if key not in EXECUTION_OPTIONS},
            "seed": getattr(self.options, "seed", None),
            "device": getattr(self.options, "device", None),
            "dataset": dataset_digest(dataset) if (dataset := dataset_of(self.options)) else None,
            "deterministic": not nondeterministic,
            "versions": {**library_versions(), "commit": project_commit()},
            "images": {
                "found": used + len(skipped),
                "used": used,
                "skipped": list(skipped),
                "notes": dict(notes),
                "other_files": self.other_files,
            },
            "seconds": round(time.perf_counter() - self.started, 3),
            "figures": list(self.captions),  # in reading order
            "captions": self.captions,
            "margins": self.margins,
            "command": getattr(self.options, "command", f"python {self.script}.py"),
        }
        if nondeterministic:
            metrics["nondeterministic_operations"] = nondeterministic
        if model is not None:
            metrics["model"] = {key: getattr(model, key) for key in ("name", "weights", "sha256", "input_size")}
            metrics["model"] |= {"classes": len(model.categories), "names": model.names_from}
            metrics["model"] |= {"preprocessing": model.preprocessing, "notes": [*model.notes, *model.warnings]}
        return metrics

    def finish(
        self,
        rows: Sequence[dict],
        skipped: Sequence[dict],
        results: dict[str, Any],
        tables: dict[str, Sequence[dict]],
        model: Classifier | None = None,
        images: int | None = None,
        findings: Sequence[str] = (),
    ) -> None:
        """Write the tables, then metrics.json; print the first FINDINGS_SHOWN findings and the files to look at.

        `images` is the number of images used, if rows are not images.
        """
        for name, table in tables.items():
            write_file(self.file(name), csv_text(table))
        files = {*self.files, *(name for row in rows for name in row.get("files", []))}
        used = len(rows) if images is None else images
        metrics = self.describe_run(rows, skipped, used, model) | {"results": results, "files": sorted(files)}
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n"
        if not files.issuperset(self.earlier_files()):  # for example a figure not drawn this time
            self.discard_metrics(but=files)
        write_file(self.metrics, text)
        for line in findings[:FINDINGS_SHOWN]:
            print(line)
        if len(findings) > FINDINGS_SHOWN:
            print(f"and {len(findings) - FINDINGS_SHOWN} more, in {', '.join(tables)}")
        if skipped:
            print(f"skipped {len(skipped)} of {quantity(used + len(skipped), 'image')}; metrics.json says why")
        if self.other_files:
            print(f"files skipped because they have no image extension: {self.other_files:,}")
        for figure in self.captions:
            print(self.path / figure)
        print(self.metrics)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    libraries = {library.__name__: library.__version__ for library in (torch, torchvision, timm)}
    return {"python": platform.python_version(), **libraries}


def project_commit() -> str:
    """Return this project's git commit, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
