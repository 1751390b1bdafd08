"""The page: one report of an output folder, which opens from disk and loads nothing from elsewhere.

It is a function of the folder: metrics.json, tables, the first rows and the files that they name. Only its images are
made for it, in <output>/report/: figures without title and caption, and maps. Its words are in the template.
`python -m explain.report.page output` writes it as a single file.
"""

from __future__ import annotations

import base64
import csv
import functools
import itertools
import json
import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import jinja2
import numpy as np
from PIL import Image

from explain.basics.errors import UserError, quantity
from explain.basics.files import is_inside, write_file
from explain.report import numbers, verdicts
from explain.report.figures import brightest, encoded, map_pixels
from explain.run import command_line
from explain.run.output import OutputFolder, map_name

TEMPLATE = Path(__file__).with_name("report.html.j2")
EXERCISES = ("process_data", *command_line.EXERCISES)
ON_A_CARD = ("2d_predict", "2e_saliency", "2f_guided_saliency", "2h_mc_dropout")
NETWORK = "{name}, {classes} classes, input {input_size} × {input_size} pixels; weights: {weights}, SHA-256 {sha256}"
# options that the command of a missing exercise takes over from the others, and their defaults
SHARED = {"dataset": "dataset", "output": "output", "model": "efficientnet_lite0", "weights": None, "names": None}
SINGLE_BYTES = 5_000_000  # maximum size of the single file, as many mail servers have
SINGLE_WIDTHS = (1260, 900, 640, 420, 280)  # of its widest images, in pixels: the first that fits


def attempt(function: Any, *arguments: Any) -> Any:
    """Return the result of a function that reads the folder; None if a file is missing, damaged, or of another version.

    Such a file may raise anything.
    """
    with suppress(Exception):
        return function(*arguments)
    return None


# ------------------------------------------------------------------------------------------------
# The page


def finish(output: OutputFolder, *results: Any, **more: Any) -> None:
    """End a script: write tables and metrics with `OutputFolder.finish`, and bring the page up to date."""
    output.finish(*results, **more)
    print(write_page(Path(output.options.output)))


def write_page(output: Path, single: bool = False) -> Path:
    """Write the page of an output folder, report.html or with `single` report-single.html, and return its path.

    It is written again if another run has ended meanwhile. Raises UserError if it is too large for a single file.
    """
    path = output / ("report-single.html" if single else "report.html")
    while True:
        before = times_of_metrics(output)
        page = render(output)
        write_file(path, with_images_inside(page, output) if single else page)
        if times_of_metrics(output) == before:
            return path


def times_of_metrics(output: Path) -> list[tuple[Path, int]]:
    """Return the paths and times of all metrics, which change when a run ends."""
    return [(file, file.stat().st_mtime_ns) for file in sorted(output.glob("*/metrics.json"))]


@functools.cache  # a process that runs all exercises compiles it once
def template() -> jinja2.Template:
    settings = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment = jinja2.Environment(**settings)
    environment.filters |= {"number": numbers.number, "label": numbers.label, "quantity": quantity}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def render(output: Path) -> str:
    """Return the page as text, after drawing its images."""
    runs = {script: run for script in EXERCISES if (run := attempt(read_run, output, script))}
    page = template().render(
        runs=runs,
        cards=attempt(image_cards, runs) or [],
        commands={script: command_of_others(script, runs) for script in EXERCISES},
        unreadable=[script for script in EXERCISES if (output / script / "metrics.json").is_file()],
        attempt=attempt,
        numbers=numbers,
        verdicts=verdicts,
    )
    for path in (output / "report").glob("*"):
        if path.name.startswith(EXERCISES) and address(path.name) not in page:
            path.unlink(missing_ok=True)  # an image of an earlier page
    return page.encode("utf-8", "backslashreplace").decode()  # a path may not be valid text


def with_images_inside(page: str, output: Path) -> str:
    """Return the page with its images inside, as large as fits, and without links to other files.

    Raises UserError if even the smallest images do not fit.
    """
    page = re.sub(r' href="[^#][^"]*"', "", page)
    for width in SINGLE_WIDTHS:
        single = re.sub(r'(?<= src=")[^"]+', functools.partial(image_inside, output, width), page)
        if len(single.encode()) <= SINGLE_BYTES:
            return single
    raise UserError(f"the page of {output} is larger than {SINGLE_BYTES:,} bytes: draw fewer images with --show")


def image_inside(output: Path, widest: int, source: re.Match) -> str:
    """Return an address that contains an image, scaled so that the widest of the page is `widest` pixels wide."""
    with Image.open(output / os.fsdecode(unquote_to_bytes(source[0]))) as image:
        smaller = image.convert("RGB")
        smaller.thumbnail([max(1, side * widest // SINGLE_WIDTHS[0]) for side in image.size])
    return "data:image/webp;base64," + base64.b64encode(encoded(smaller, "WEBP", quality=80)).decode()


# ------------------------------------------------------------------------------------------------
# The runs


class Run(NamedTuple):
    """A finished run: its metrics, and the first rows, as many as --show allows."""

    folder: Path
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    network: str  # in words; "" if the exercise has none

    def figure(self, name: str) -> dict[str, Any] | None:
        """Draw a figure without its title and caption, which are text on the page; return None if it is missing."""
        output, source = self.folder.parent, self.folder / name
        above, below = self.metrics.get("margins", {}).get(name, (0, 0))
        if is_inside(source, output):
            with suppress(Exception), Image.open(source) as image:
                box = 0, round(above * image.height), image.width, round((1 - below) * image.height)
                return drawn(output, f"{self.folder.name}_{source.stem}", image.convert("RGB").crop(box))
        return None


def read_run(output: Path, script: str) -> Run:
    """Read a finished run; raises any error if it is missing or damaged."""
    metrics = json.loads((output / script / "metrics.json").read_bytes())
    metrics.setdefault("dataset", None)
    metrics["images"] = {key: metrics["images"][key] for key in ("found", "used", "skipped", "notes", "other_files")}
    with (output / script / "rows.jsonl").open("rb") as file:
        rows = (row for row in map(json.loads, file) if not {"skipped", "reason"} & row.keys())
        first_rows = list(itertools.islice(rows, int(metrics["settings"]["show"])))
    return Run(output / script, metrics, first_rows, NETWORK.format_map(metrics["model"]) if "model" in metrics else "")


def existing(output: Path, name: str) -> dict[str, Any] | None:
    """Return the address of an image in the folder and its size in pixels; None if it cannot be read."""
    if is_inside(output / name, output):
        with suppress(Exception), Image.open(output / name) as image:
            return {"source": address(name), "width": image.width, "height": image.height}
    return None


def drawn(output: Path, name: str, image: Image.Image) -> dict[str, Any] | None:
    """Save an image in <output>/report/, as JPEG if that takes less than half the bytes of a PNG, and return it."""
    png, jpeg = encoded(image, "PNG", compress_level=4), encoded(image, "JPEG", quality=85)
    suffix, content = (".jpg", jpeg) if 2 * len(jpeg) < len(png) else (".png", png)
    write_file(output / "report" / (name + suffix), content)
    return existing(output, f"report/{name}{suffix}")


def address(name: str) -> str:
    """Return the address of a file or folder for a link."""
    return quote(os.fsencode(name))


def command_of_others(script: str, runs: dict[str, Run]) -> str:
    """Return the command that runs an exercise as the others were run: on the same network, images and folder."""
    settings = next((run.metrics["settings"] for run in reversed(runs.values())), {})
    images = settings.get("images") if script[:2] in ("2d", "2e", "2f", "2g", "2h") else None
    defaults = SHARED | ({"output": "output/pictures"} if images else {})
    keys = ("dataset", "output") if script == "process_data" else SHARED
    given = [(f"--{key}", str(settings[key])) for key in keys if settings.get(key, defaults[key]) != defaults[key]]
    return shlex.join(["python", f"{script}.py", *(images or []), *itertools.chain(*given)])


# ------------------------------------------------------------------------------------------------
# The cards


def image_cards(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Return a card for each test image that is shown: image, most likely classes, spread over passes, maps."""
    names: dict[int, str] = {}
    rows: dict[str, list[tuple[Run, dict]]] = {}
    for run in (runs[script] for script in ON_A_CARD if script in runs):
        for table in sorted(run.folder.glob("*.csv")):
            names |= attempt(class_names, table, 20 * len(run.rows)) or {}
        # the images that only judge 2h's measures come after those that it explains
        for row in itertools.takewhile(lambda row: "leading" in row or "label" not in row, run.rows):
            rows.setdefault(row["path"], []).append((run, row))
    return list(filter(None, (attempt(image_card, path, own, names) for path, own in rows.items())))


def class_names(table: Path, lines: int) -> dict[int, str]:
    """Return the names of classes by id, from the first lines of a table with both columns."""
    with table.open(encoding="utf-8", newline="") as file:
        return {int(line["class"]): line["name"] for line in itertools.islice(csv.DictReader(file), lines)}


def image_card(path: str, own: list[tuple[Run, dict]], names: dict[int, str]) -> dict[str, Any]:
    """Return the card of an image, from its rows in each exercise."""
    first = {run.folder.name: row for run, row in reversed(own)}  # an exercise may have a row for each class
    dropout, predicted = first.get("2h_mc_dropout"), first.get("2d_predict")
    passes = {of["class"]: of for of in dropout["leading"]} if dropout else {}
    likely = {c: {"probability": of["deterministic"]} for c, of in passes.items()}
    if predicted:
        likely = {c: {"probability": p} for c, p in zip(predicted["classes"], predicted["probabilities"], strict=True)}
    for c in likely.keys() & passes.keys():
        likely[c] |= {"over_passes": passes[c]["mean"], "over_passes_standard_error": passes[c]["standard_deviation"]}
    images = (existing(run.folder.parent, f"{run.folder.name}/pictures/{row['index']:05d}.jpg") for run, row in own)
    return {
        "name": path.rpartition("/")[2],
        "image": next(filter(None, images), None),
        "likely": {f"{names.get(c, 'class')} {c}": of_class for c, of_class in likely.items()},
        "dropout": dropout,
        "explained": explained_classes([(run, row) for run, row in own if "maps" in row], names),
    }


def explained_classes(own: list[tuple[Run, dict]], names: dict[int, str]) -> list[dict[str, Any]]:
    """Return name, row and drawn maps of each explained class (None: no map); maps of a kind share a scale."""
    classes: dict[int, dict[str, Any]] = {}
    arrays: dict[str, dict[int, np.ndarray]] = {}
    for run, row in own:
        c = row["class"]
        found = classes.setdefault(c, {"name": names.get(c, f"class {c}"), "row": {}, "maps": {}})
        found["row"] |= row
        for kind in row["maps"]:  # the plain map is both 2e's and 2f's
            found["maps"][kind] = None
            path = run.folder / map_name(row["index"], kind)
            if row[f"{kind}_status"] == "ok" and is_inside(path, run.folder) and path.is_file():
                arrays.setdefault(kind, {})[c] = np.load(path)
    for kind, of_classes in arrays.items():
        limit = brightest([abs(saliency) for saliency in of_classes.values()])
        for c, saliency in of_classes.items():
            name = f"{own[0][0].folder.name}_{own[0][1]['index']:05d}_{c}_{kind}"
            image = Image.fromarray(map_pixels(saliency, limit))
            classes[c]["maps"][kind] = drawn(own[0][0].folder.parent, name, image)
    return list(classes.values())


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["output"]:
        write_page(Path(argument))
        print(write_page(Path(argument), single=True))
