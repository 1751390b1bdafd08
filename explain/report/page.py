"""The page: one report of an output folder, which opens from disk and loads nothing from elsewhere.

It is a function of the folder: metrics.json, tables, the first rows and the files that they name. Nothing is computed
for it but small pictures of the maps, in <output>/report/. Its words are in the template.
`python -m explain.report.page output` writes it as a single file.
"""

from __future__ import annotations

import base64
import csv
import functools
import io
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
from explain.basics.files import is_inside, remove_file, write_file
from explain.methods import selective
from explain.report import numbers
from explain.report.figures import label, map_pixels
from explain.run.output import OutputFolder, map_name

TEMPLATE = Path(__file__).with_name("report.html.j2")
EXERCISES = (
    "process_data", "2b_evaluate", "2c_class_visualization", "2d_predict", "2e_saliency", "2f_guided_saliency",
    "2g_faithfulness", "2h_mc_dropout",
)  # fmt: skip
OF_A_PICTURE = ("2d_predict", "2e_saliency", "2f_guided_saliency", "2h_mc_dropout")  # the exercises of a card
NETWORK = "{name}, {classes} classes, input {input_size} × {input_size} pixels; weights: {weights}, SHA-256 {sha256}"
# options that the command of a missing exercise takes over from the others, and their defaults
SHARED = {"dataset": "dataset", "output": "output", "model": "efficientnet_lite0", "weights": None, "names": None}
SINGLE_BYTES = 5_000_000  # of the page as a single file, as many mail servers take
SINGLE_WIDTHS = (1260, 900, 640, 420, 280)  # of its widest pictures, in pixels: the first that fits
# raised where a file is missing, broken, or of another version
UNREADABLE = (
    OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, SyntaxError, RecursionError,
    jinja2.UndefinedError,
)  # fmt: skip


def attempt(function: Any, *arguments: Any) -> Any:
    """Return what a function makes of the folder; None where a file is missing, broken, or of another version."""
    with suppress(*UNREADABLE):
        return function(*arguments)
    return None


# ------------------------------------------------------------------------------------------------
# The page


def finish(output: OutputFolder, *results: Any, **more: Any) -> None:
    """End a script: write tables and metrics as `OutputFolder.finish` does, and bring the page up to date."""
    output.finish(*results, **more)
    print(write_page(Path(output.options.output)))


def write_page(output: Path, single: bool = False) -> Path:
    """Write the page of an output folder, report.html, and return its path; `single`: as report-single.html.

    It is written again for as long as other runs end meanwhile. Raises UserError if it is too large for a single file.
    """
    path = output / ("report-single.html" if single else "report.html")
    while True:
        before = times_of_metrics(output)
        page = render(output)
        write_file(path, with_pictures_inside(page, output) if single else page)
        if times_of_metrics(output) == before:
            return path


def times_of_metrics(output: Path) -> list[tuple[Path, int]]:
    """Return what changes when a run ends."""
    return [(file, file.stat().st_mtime_ns) for file in sorted(output.glob("*/metrics.json"))]


def render(output: Path) -> str:
    """Return the page as text, after drawing its maps."""
    runs = {script: run for script in EXERCISES if (run := attempt(read_run, output, script))}
    settings = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment = jinja2.Environment(**settings)
    environment.filters |= {"number": numbers.number, "words": numbers.words, "quantity": quantity}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        cards=attempt(image_cards, runs) or [],
        commands={script: command_of_others(script, runs) for script in EXERCISES},
        unreadable=[script for script in EXERCISES if (output / script / "metrics.json").is_file()],
        attempt=attempt,
        label=label,
        numbers=numbers,
        selective=selective,
    )
    for path in (output / "report").glob("2*_*.webp"):
        if path.name not in page:  # a map that an earlier page had
            remove_file(path)
    return page.encode("utf-8", "backslashreplace").decode()  # a path need not be text


def with_pictures_inside(page: str, output: Path) -> str:
    """Return the page as a single file: with its pictures inside, as large as fits, and without links to other files.

    Raises UserError if even the smallest pictures do not fit.
    """
    page = re.sub(r' href="(?!#|data:)[^"]*"', "", page)
    for width in SINGLE_WIDTHS:
        single = re.sub(r'(?<= src=")[^"]+', functools.partial(picture_inside, output, width), page)
        if len(single.encode()) <= SINGLE_BYTES:
            return single
    raise UserError(f"the page of {output} is above {SINGLE_BYTES:,} bytes: draw fewer pictures with --show")


def picture_inside(output: Path, widest: int, source: re.Match) -> str:
    """Return an address that contains a picture, as much smaller as makes the widest of a page `widest` pixels wide."""
    buffer = io.BytesIO()
    with Image.open(output / os.fsdecode(unquote_to_bytes(source[0]))) as image:
        scale = min(1, widest / SINGLE_WIDTHS[0], widest / image.width)
        size = [max(1, round(side * scale)) for side in image.size]
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------------------------------------
# The runs


class Run(NamedTuple):
    """A finished run: its metrics, and as many of its first rows as may be shown."""

    output: Path
    script: str
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    network: str  # in words; "" where there is none

    @property
    def dataset(self) -> str | None:
        """The digest of the data that it ran on; None where pictures were given as arguments."""
        return self.metrics.get("dataset")

    def picture(self, name: str) -> dict[str, Any] | None:
        return picture(self.output, f"{self.script}/{name}")

    def files(self) -> dict[str, str]:
        """Return the links to the tables, the rows, the metrics and the folders of pictures and arrays, by name."""
        names = dict.fromkeys(name.partition("/")[0] for name in [*self.metrics["files"], "metrics.json"])
        links = {name: f"{self.script}/{name}" for name in names if not name.endswith(".png")}
        return {name: address(link) for name, link in links.items() if (self.output / link).exists()}

    def table(self, name: str) -> list[dict[str, str]]:
        """Read the first lines of a table, of which there may be several for a row."""
        with (self.output / self.script / name).open(encoding="utf-8", newline="") as file:
            return list(itertools.islice(csv.DictReader(file), 20 * len(self.rows)))


def read_run(output: Path, script: str) -> Run:
    """Read a finished run; raises one of UNREADABLE where there is none."""
    metrics = json.loads((output / script / "metrics.json").read_bytes())
    metrics["images"] = {key: metrics["images"][key] for key in ("found", "used", "skipped", "notes", "no_picture")}
    # a row of 2c is an archetype, and a class has one for each method
    count = int(metrics["settings"]["show"]) * len(metrics["settings"].get("methods") or [None])
    with (output / script / "rows.jsonl").open("rb") as file:
        rows = (row for row in map(json.loads, file) if not {"skipped", "reason"} & row.keys())
        first_rows = list(itertools.islice(rows, count))
    return Run(output, script, metrics, first_rows, NETWORK.format_map(metrics["model"]) if "model" in metrics else "")


def picture(output: Path, name: str) -> dict[str, Any] | None:
    """Return the address of a picture in the folder and its size in pixels; None where there is none."""
    if is_inside(output / name, output):
        with suppress(*UNREADABLE), Image.open(output / name) as image:
            return {"source": address(name), "width": image.width, "height": image.height}
    return None


def address(name: str) -> str:
    """Return the address of a file or folder, as a link has it."""
    return quote(os.fsencode(name))


def command_of_others(script: str, runs: dict[str, Run]) -> str:
    """Return the command that runs an exercise as the others were: on the same network, pictures and folder."""
    settings = next((run.metrics["settings"] for run in reversed(runs.values())), {})
    images = settings.get("images") if script[:2] in ("2d", "2e", "2f", "2g", "2h") else None
    defaults = SHARED | ({"output": "output/pictures"} if images else {})
    keys = ("dataset", "output") if script == "process_data" else SHARED
    given = [(f"--{key}", str(settings[key])) for key in keys if settings.get(key, defaults[key]) != defaults[key]]
    return shlex.join(["python", f"{script}.py", *(images or []), *itertools.chain(*given)])


# ------------------------------------------------------------------------------------------------
# One picture, everything about it


def image_cards(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Return a card for each test image that is shown: picture, most likely classes, spread over passes, maps."""
    of_a_picture = [runs[script] for script in OF_A_PICTURE if script in runs]
    show = max((int(run.metrics["settings"]["show"]) for run in of_a_picture), default=0)
    names: dict[int, str] = {}
    rows: dict[str, list[tuple[Run, dict]]] = {}
    for run in of_a_picture:
        for table in sorted((run.output / run.script).glob("*.csv")):
            names |= attempt(class_names, run, table.name) or {}
        # the images that only judge 2h's measures come after those that it explains
        for row in itertools.takewhile(lambda row: "leading" in row or "label" not in row, run.rows):
            rows.setdefault(row["path"], []).append((run, row))
    return [image_card(path, own, names) for path, own in itertools.islice(rows.items(), show)]


def class_names(run: Run, table: str) -> dict[int, str]:
    """Return the names of classes by id, from a table that has both."""
    return {int(line["class"]): line["name"] for line in run.table(table)}


def image_card(path: str, own: list[tuple[Run, dict]], names: dict[int, str]) -> dict[str, Any]:
    """Return the card of an image, from its rows in each exercise."""
    name = path.rpartition("/")[2]
    first = {run.script: row for run, row in reversed(own)}  # an exercise may have a row for each of several classes
    dropout, predicted = first.get("2h_mc_dropout"), first.get("2d_predict")
    passes = {of["class"]: of for of in dropout["leading"]} if dropout else {}
    likely = {c: of["deterministic"] for c, of in passes.items()}
    if predicted:
        likely = dict(zip(predicted["classes"], predicted["probabilities"], strict=True))
    explained: dict[int, dict[str, Any]] = {}
    for run, row in own:
        if "maps" in row:
            of = names.get(row["class"], f"class {row['class']}")
            found = explained.setdefault(row["class"], {"name": of, "row": {}, "maps": {}})
            found["row"] |= row
            for kind, saliency in read_maps(run, row).items():
                if kind not in found["maps"]:  # the plain map is 2e's and 2f's
                    found["maps"][kind] = draw_map(run, row, kind, saliency)
    return {
        "name": name,
        "picture": next(filter(None, (run.picture(f"pictures/{row['index']:05d}.jpg") for run, row in own)), None),
        "likely": [(names.get(c, f"class {c}"), p, passes.get(c)) for c, p in likely.items()],
        "dropout": dropout,
        "explained": explained.values(),
    }


def read_maps(run: Run, row: dict) -> dict[str, np.ndarray]:
    """Read the maps (H, W) in a row's files by their kinds; those of a file that is not there are left out."""
    folder = run.output / run.script
    files = {kind: map_name(row["index"], kind) for kind in row["maps"]}
    known = {kind: folder / file for kind, file in files.items() if file in row["files"]}
    arrays = {kind: attempt(np.load, path) for kind, path in known.items() if is_inside(path, folder)}
    return {kind: array.astype(np.float64) for kind, array in arrays.items() if array is not None}


def draw_map(run: Run, row: dict, kind: str, saliency: np.ndarray) -> dict[str, Any]:
    """Draw a map (H, W) as figures do, in <output>/report/, and return it with what was measured of it."""
    area, status = row.get(f"{kind}_half_mass_area"), row.get(f"{kind}_status")
    score = row.get(f"{kind}_insertion_minus_deletion")
    said = [] if score is None else [f"score {numbers.number(score)}"]
    said += [] if area is None else [f"half in {numbers.number(area)} of its pixels"]
    file = f"report/{run.script}_{row['index']:05d}_{kind}.webp"
    if status == "ok":
        buffer = io.BytesIO()
        Image.fromarray(map_pixels(saliency)).save(buffer, "WEBP", quality=85)
        write_file(run.output / file, buffer.getvalue())
    drawn = picture(run.output, file) if status == "ok" else None
    return {"label": label(kind), "said": said, "status": status, "picture": drawn}


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["output"]:
        write_page(Path(argument))
        print(write_page(Path(argument), single=True))
