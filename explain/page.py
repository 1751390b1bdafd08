"""The page: one report of all that is in an output folder, which opens from disk and loads nothing from elsewhere.

A function of the folder: metrics.json, tables, the first rows and the files that they name. Nothing is computed for it
but small pictures of the maps, in <output>/report/. `python -m explain.page output` writes it as a single file.
"""

from __future__ import annotations

import base64
import csv
import functools
import io
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
import matplotlib
import numpy as np
from PIL import Image

from explain.errors import UserError, printable, quantity
from explain.figures import brightest, label
from explain.files import is_inside, remove_file, write_file
from explain.sections import SECTIONS, Section, accuracy, measure_table, number, with_error
from explain.selective import verdict, worth_of_measures

TEMPLATE = Path(__file__).with_name("report.html.j2")
LISTED = 12  # skipped images whose reasons are on the page; metrics.json has all
SINGLE_BYTES = 5_000_000  # of the page as a single file, as many mail servers take
SINGLE_WIDTHS = (1260, 900, 640, 420, 280)  # of its widest pictures, in pixels: the first that fits
SHARED = {"dataset": "dataset", "output": "output", "model": "efficientnet_lite0", "weights": None, "names": None}
# maps of a picture in the order of their columns: script, suffix of the file, kinds in it
MAPS = (
    ("2e_saliency", "", ("plain",)),
    ("2e_saliency", "_smoothed", ("smoothed", "combined")),
    ("2f_guided_saliency", "", ("plain", "guided")),
    ("2f_guided_saliency", "_grad_cam", ("grad_cam", "guided_grad_cam")),
)


class Run(NamedTuple):
    """A finished run: its folder, its metrics, and as many of its first rows as may be shown."""

    folder: Path
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]

    def names(self, table: str) -> dict[int, str]:
        """Return the names of classes by id, from the first lines of a table."""
        lines = itertools.islice(read_csv(self.folder / table), 20 * max(len(self.rows), 1))
        return {int(line["class"]): line["name"] for line in lines}


class Picture(NamedTuple):
    """A picture on the page: its address, its text in words, its size in pixels."""

    source: str
    alt: str
    width: int
    height: int
    link: str = ""


def write_page(output: Path, single: bool = False) -> Path:
    """Write the page of an output folder, report.html, and return its path; `single`: as report-single.html.

    A run that ends at the same time may have read the folder before this one's metrics were there: as long as there is
    something new after the page was written, it is written again.
    """
    path = output / ("report-single.html" if single else "report.html")
    while True:
        before = folder_state(output)
        write_file(path, single_file(output) if single else render(output, Pictures(output)))
        if folder_state(output) == before:
            return path


def folder_state(output: Path) -> list[tuple[str, int, int]]:
    """Return what changes when a run ends: the metrics files with their sizes and times."""
    files = [output / section.script / "metrics.json" for section in SECTIONS]
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]


def single_file(output: Path) -> str:
    """Return the page with its pictures inside, as large as fits; raises UserError where none does."""
    for width in SINGLE_WIDTHS:
        page = render(output, Pictures(output, width))
        if len(page.encode()) <= SINGLE_BYTES:
            return page
    raise UserError(f"the page of {output} is above {SINGLE_BYTES:,} bytes: draw fewer pictures with --show")


# ------------------------------------------------------------------------------------------------
# What is in the folder


def read_run(output: Path, section: Section) -> Run | str | None:
    """Return a finished run, None where there is none, or why it cannot be read."""
    folder = output / section.script
    if not (folder / "metrics.json").is_file():
        return None
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
        show = int(metrics["settings"]["show"])
        # of 2c a row is an archetype, and a class has one for each method
        methods = metrics["settings"].get("methods") or [None]
        return Run(folder, metrics, first_rows(folder / "rows.jsonl", show * len(methods)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{printable(folder / 'metrics.json')} cannot be read: run the exercise again"


def first_rows(path: Path, count: int) -> list[dict]:
    """Read the first rows of images that were not skipped."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        rows = (json.loads(line) for line in file)
        return list(itertools.islice((row for row in rows if not {"skipped", "reason"} & row.keys()), count))


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Read the lines of a table, none where there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


# ------------------------------------------------------------------------------------------------
# Pictures


class Pictures:
    """The pictures of a page: files beside it, or inside it where the `width` of the widest is given."""

    def __init__(self, output: Path, width: int | None = None):
        self.output, self.width = output, width
        self.drawn: set[str] = set()  # maps, in <output>/report/

    def picture(self, file: Path, alt: str) -> Picture | None:
        """Return a picture of a file in the folder; None where it is no picture or not there."""
        try:
            if not is_inside(file, self.output):
                return None
            with Image.open(file) as image:
                size, source = image.size, self.inside(image) if self.width else self.link(file)
        except (OSError, ValueError, SyntaxError):
            return None
        return Picture(source, alt, *size, link="" if self.width else self.link(file))

    def link(self, path: Path) -> str:
        """Return the address of a file or folder, relative to the page; "" in a single file."""
        return "" if self.width else quote(os.fsencode(path.relative_to(self.output).as_posix()))

    def inside(self, image: Image.Image) -> str:
        """Return a picture as an address that contains it."""
        image = image.convert("RGB")
        scale = min(1, self.width / SINGLE_WIDTHS[0], self.width / image.width)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

    def map(self, name: str, saliency: np.ndarray, alt: str, signed: bool) -> Picture | None:
        """Draw a map (H, W) as figures do, and return the picture."""
        limit = brightest([abs(saliency)]) or 1.0
        scaled = saliency / limit / 2 + 0.5 if signed else saliency / limit
        colours = matplotlib.colormaps["RdBu_r" if signed else "inferno"](np.clip(scaled, 0, 1), bytes=True)
        buffer = io.BytesIO()
        Image.fromarray(colours[..., :3]).save(buffer, "WEBP", quality=85)
        self.drawn.add(name)
        write_file(self.output / "report" / name, buffer.getvalue())
        return self.picture(self.output / "report" / name, alt)

    def remove_others(self) -> None:
        """Remove the maps that an earlier page had."""
        for path in (self.output / "report").glob("2*_*.webp"):
            if path.name not in self.drawn:
                remove_file(path)


# ------------------------------------------------------------------------------------------------
# The page


def render(output: Path, pictures: Pictures) -> str:
    """Return the page."""
    results = {section.script: read_run(output, section) for section in SECTIONS}
    runs = {script: run for script, run in results.items() if isinstance(run, Run)}
    sections = [describe(section, results[section.script], runs, pictures) for section in SECTIONS]
    cards = attempt(image_cards, runs, pictures) or []
    pictures.remove_others()
    page = template().render(
        sections=sections,
        networks=networks(runs),
        accuracy=attempt(lambda: accuracy_of(runs["2b_evaluate"].metrics["results"])),
        data=data(runs),
        cards=cards,
        maps_scale="Each map has a scale of its own, linear from 0 to its 99.5th percentile.",
        classes=attempt(class_table, runs, pictures),
        single=pictures.width is not None,
    )
    return page.encode("utf-8", "backslashreplace").decode()  # a path need not be text


@functools.cache
def template() -> jinja2.Template:
    """Return the template, in which all text is escaped and a name that is missing is an error."""
    settings = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return jinja2.Environment(**settings).from_string(TEMPLATE.read_text(encoding="utf-8"))


def attempt(function: Any, *arguments: Any) -> Any:
    """Return what a function makes of the folder; None where a file of another version lacks what it needs."""
    try:
        return function(*arguments)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError, StopIteration):
        return None


def describe(section: Section, run: Run | str | None, runs: dict[str, Run], pictures: Pictures) -> dict[str, Any]:
    """Return what the template says of an exercise."""
    page: dict[str, Any] = {
        "id": f"s{section.script}",
        "head": section.question if section.script == "process_data" else f"{section.script[:2]}: {section.question}",
        "about": section,
        "state": "finished",
        "sentence": "",
        "command": command_of_others(section, runs),
    }
    sentence = attempt(section.sentence, run.metrics["results"]) if isinstance(run, Run) else None
    if sentence is None:
        reason = "" if run is None else run if isinstance(run, str) else "it was written by another version"
        return page | {"state": "missing", "reason": reason}
    results, captions = run.metrics["results"], run.metrics.get("captions", {})
    drawn = [(name, captions[name]) for name in run.metrics.get("figures", captions)]
    tables = [measure_table(section, results), *(attempt(lambda: [*section.tables(results)]) or [])]
    model = run.metrics.get("model")
    return page | {
        "sentence": sentence,
        "command": run.metrics.get("command", f"python {section.script}.py"),
        "figures": [f for name, lines in drawn if (f := figure(run, name, lines, sentence, pictures))],
        "tables": [table for table in tables if table.rows],
        "limits": [*section.limits, *judgement(section, runs)],
        "files": files(run, pictures),
        "network": model and model["name"],
        "notes": (model or {}).get("notes", []),
        "deterministic": run.metrics.get("deterministic", True),
    }


def command_of_others(section: Section, runs: dict[str, Run]) -> str:
    """Return the command that runs an exercise as the others were: on the same network, data and folder."""
    settings = next((run.metrics["settings"] for run in reversed(runs.values())), {})
    keys = ("dataset", "output") if section.script == "process_data" else SHARED
    words = [] if section.script in ("process_data", "2b_evaluate") else list(settings.get("images") or [])
    for key in keys:
        value = settings.get(key, SHARED[key])
        # the folder of pictures given as arguments is the default there
        if value != SHARED[key] and not (key == "output" and settings.get("images") and value == "output/pictures"):
            words += [f"--{key}", str(value)]
    return shlex.join(["python", f"{section.script}.py", *words])


def figure(run: Run, name: str, lines: list[str], sentence: str, pictures: Pictures) -> dict[str, Any] | None:
    """Return a figure without the title and the caption that are drawn into it, since the page has them as text."""
    title, *caption = lines
    picture = pictures.picture(run.folder / name, f"{title}. {sentence}")
    if picture is None:
        return None
    above, below = run.metrics.get("margins", {}).get(name, (0, 0))
    height = picture.height * (1 - above - below)
    return {
        "picture": picture,
        "title": title if title.endswith(("?", ".", "!")) else f"{title}.",
        "caption": " ".join(caption),
        "ratio": f"{picture.width / height:.4f}",
        "above": f"{100 * above * picture.height / picture.width:.3f}",
    }


def judgement(section: Section, runs: dict[str, Run]) -> list[str]:
    """Return what 2g found about the maps of 2e and 2f, and 2h about its measures."""
    if section.script == "2h_mc_dropout":
        results = runs["2h_mc_dropout"].metrics["results"]
        best = attempt(lambda: f"Of the measures, {verdict(results['mistakes'])}.")
        return [text for text in (attempt(worth_of_measures, results), best) if text]
    if section.script not in ("2e_saliency", "2f_guided_saliency") or "2g_faithfulness" not in runs:
        return []
    sentence = next(s for s in SECTIONS if s.script == "2g_faithfulness").sentence
    text = attempt(sentence, runs["2g_faithfulness"].metrics["results"])
    return [f"Measured in 2g: {text}"] if text else []


def files(run: Run, pictures: Pictures) -> list[dict[str, str]]:
    """Return the links to the tables, the rows, the metrics, and the folders of single pictures and arrays."""
    names = [name for name in run.metrics["files"] if isinstance(name, str)]
    folders: dict[str, int] = {}
    for name in names:
        if "/" in name:
            folders[name.partition("/")[0]] = folders.get(name.partition("/")[0], 0) + 1
    links = [name for name in names if "/" not in name and not name.endswith(".png")] + ["metrics.json"]
    entries = [
        {"name": name, "link": pictures.link(run.folder / name)} for name in links if (run.folder / name).is_file()
    ]
    return entries + [
        {"name": f"{name}/ ({quantity(count, 'file')})", "link": pictures.link(run.folder / name)}
        for name, count in folders.items()
        if (run.folder / name).is_dir()
    ]


def networks(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Return the networks of the runs, each with the exercises that ran on it: one, unless they were mixed."""
    by_identity: dict[str, dict[str, Any]] = {}
    for script, run in runs.items():
        if model := run.metrics.get("model"):
            key = json.dumps([model.get(k) for k in ("name", "weights", "sha256", "input_size")])
            by_identity.setdefault(key, {**model, "scripts": []})["scripts"].append(script[:2])
    return [*by_identity.values()]


def accuracy_of(results: dict[str, Any]) -> str:
    """Return what the first screen says of 2b's results."""
    images = quantity(results["images"], "labelled image")
    return f"top-1 {accuracy(results)}, top-5 {number(results['top5_accuracy'])}, on {images}"


def data(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Return for each run how many images it found, used and skipped, with the first reasons."""
    lines = []
    for script, run in runs.items():
        images = run.metrics.get("images", {})
        skipped = images.get("skipped", [])
        lines.append(
            {"script": script, "found": number(images.get("found")), "used": number(images.get("used"))}
            | {"skipped": skipped[:LISTED], "count": len(skipped), "more": max(0, len(skipped) - LISTED)}
            | {"notes": images.get("notes", {}), "no_picture": images.get("no_picture", 0)}
        )
    return lines


# ------------------------------------------------------------------------------------------------
# One picture, everything about it


def image_cards(runs: dict[str, Run], pictures: Pictures) -> list[dict[str, Any]]:
    """Return a card for each test image that is shown: picture, likeliest classes, spread over passes, maps."""
    of_images = {script: runs[script] for script in ("2d_predict", "2e_saliency", "2f_guided_saliency", "2h_mc_dropout")
                 if script in runs}  # fmt: skip
    show = max((int(run.metrics["settings"]["show"]) for run in of_images.values()), default=0)
    tables = ("predictions.csv", "saliency.csv", "guided_saliency.csv", "uncertainty.csv", "leading_classes.csv")
    names: dict[int, str] = {}
    for run in of_images.values():
        for table in tables:
            names |= attempt(run.names, table) or {}
    rows: dict[str, dict[str, list[dict]]] = {}
    for script, run in of_images.items():
        for row in run.rows:
            if "label" in row:  # 2h's labelled images, by which it is judged, come after the test images
                break
            rows.setdefault(row["path"], {}).setdefault(script, []).append(row)
    return [image_card(path, own, of_images, names, pictures) for path, own in itertools.islice(rows.items(), show)]


def image_card(
    path: str, own: dict[str, list[dict]], runs: dict[str, Run], names: dict[int, str], pictures: Pictures
) -> dict[str, Any]:
    """Return the card of an image, from its rows in each exercise."""
    name = path.rpartition("/")[2]
    candidates = (runs[script].folder / f"pictures/{rows[0]['index']:05d}.jpg" for script, rows in own.items())
    picture = next((p for file in candidates if (p := pictures.picture(file, f"The picture {name}"))), None)
    dropout = own.get("2h_mc_dropout", [None])[0]
    passes = {c["class"]: c for c in dropout["leading"]} if dropout else {}
    if "2d_predict" in own:
        row = own["2d_predict"][0]
        likely = dict(zip(row["classes"], row["probabilities"], strict=True))
    else:
        likely = {c: found["deterministic"] for c, found in passes.items()}
    bars = [
        {"name": names.get(c, f"class {c}"), "p": number(p), "percent": f"{100 * p:.1f}"}
        | {"passes": with_error(passes[c]["mean"], passes[c]["standard_deviation"]) if c in passes else ""}
        for c, p in likely.items()
    ]
    measures = dropout and {
        "mutual information": with_error(dropout["mutual_information"], dropout["mutual_information_standard_error"]),
        "predictive entropy": with_error(dropout["predictive_entropy"], dropout["predictive_entropy_standard_error"]),
        "agreement": with_error(dropout["agreement"], dropout["agreement_standard_error"]),
    }
    explained: dict[int, dict[str, Any]] = {}
    for script, suffix, kinds in MAPS:
        for row in own.get(script, []):
            of_class = explained.setdefault(row["class"], {"name": names.get(row["class"], f"class {row['class']}")})
            of_class.setdefault("p", f"p {row['probability']:.3f}, rank {row['rank']}")
            of_class.setdefault("maps", {})
            new = [kind not in of_class["maps"] for kind in kinds]  # the plain map is 2e's and 2f's
            maps = [*itertools.compress(zip(kinds, read_maps(runs[script], row, suffix), strict=False), new)]
            for kind, array in maps:
                of_class["maps"][kind] = describe_map(
                    runs[script], script, row, kind, array, f"{name} for {of_class['name']}", pictures
                )
            if (chance := row.get("random_insertion_minus_deletion")) is not None:
                of_class["random"] = number(chance)
    return {"name": name, "path": path, "picture": picture, "bars": bars, "measures": measures} | {
        "explained": [{"random": "", **of_class} for of_class in explained.values()]
    }


def read_maps(run: Run, row: dict, suffix: str) -> Sequence[np.ndarray]:
    """Read the maps (H, W) in one of a row's files; none where it is not there."""
    file = f"maps/{row['index']:05d}{suffix}.npy"
    if file not in row.get("files", []) or not is_inside(run.folder / file, run.folder):
        return []
    try:
        arrays = np.load(run.folder / file, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, EOFError):
        return []
    return arrays[None] if arrays.ndim == 2 else arrays


def describe_map(
    run: Run, script: str, row: dict, kind: str, saliency: np.ndarray, of: str, pictures: Pictures
) -> dict[str, Any]:
    """Draw a map (H, W) and return what its caption says."""
    prefix = "" if script == "2e_saliency" and kind == "plain" else f"{kind}_"
    status = row.get(f"{prefix}status", "ok")
    measures = {
        "worth": row.get(f"{kind}_insertion_minus_deletion"),
        "half in": row.get(f"{prefix}half_mass_area"),
    }
    parts = [f"{name} {number(value)}" for name, value in measures.items() if value is not None]
    picture = None
    if status == "ok":
        alt = f"{label(kind)} map of {of}" + (f": {', '.join(parts)} of its pixels" if parts else "")
        signed = kind == "plain" and bool(run.metrics["settings"].get("signed"))
        picture = pictures.map(f"{script}_{row['index']:05d}_{kind}.webp", saliency, alt, signed)
    return {"label": label(kind), "said": parts, "status": status, "picture": picture}


# ------------------------------------------------------------------------------------------------
# Classes and their archetypes


def class_table(runs: dict[str, Run], pictures: Pictures) -> dict[str, Any] | None:
    """Return the report's table: for each class shown its photo, and its archetypes with what networks say of them."""
    run = runs.get("2c_class_visualization")
    if run is None or not run.rows:
        return None
    photos = {line["class"]: line for line in itertools.islice(read_csv(run.folder / "archetypes.csv"), len(run.rows))}
    methods = list(dict.fromkeys(row["method"] for row in run.rows))
    lines: dict[int, dict[str, Any]] = {}
    for row in run.rows:
        c, networks = row["class"], {"own": row, **row["judges"]}
        parts = [f"{network}: {m['probability']:.3f} (rank {m['rank']})" for network, m in networks.items()]
        line = lines.setdefault(c, {"name": f"{row['name']} ({c})", "cells": {}})
        alt = f"Archetype of {row['name']}, {row['method']}; probability by {'; '.join(parts)}"
        line["cells"][row["method"]] = {"picture": pictures.picture(run.folder / row["path"], alt), "said": parts}
    for c, line in lines.items():
        photo = photos.get(str(c), {})
        parts = [f"own: {float(photo['photo_probability']):.3f}"] if photo.get("photo_probability") else []
        for judge in run.rows[0]["judges"]:
            if p := photo.get(f"photo_probability_by_{judge}"):
                parts.append(f"{judge}: {float(p):.3f}")
        alt = f"A photo of {line['name']}" + (f"; probability by {'; '.join(parts)}" if parts else "")
        line["cells"]["photo"] = {"picture": pictures.picture(run.folder / f"photos/{c}.jpg", alt), "said": parts}
    total = next((kind["classes"] for m in methods if (kind := run.metrics["results"].get(m))), len(lines))
    return {"columns": ["photo", *methods], "lines": [*lines.values()], "total": total}


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["output"]:
        folder = Path(argument)
        write_page(folder)
        print(write_page(folder, single=True))
