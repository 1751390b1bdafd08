"""Time the scripts against other implementations and against what the machine allows.

Each row is a pair of functions of work.py: ours, and a peer's or a limit's. They run in turn (A B A B ...) in two
processes that wait for each other. Results are compared first: a row whose results differ has no ratio.

    python benchmarks/bench.py                        # everything, in forty minutes; or `make bench`
    python benchmarks/bench.py --only 2b --turns 3    # replaces the rows of 2b only
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import work  # noqa: E402
from explain.run.command_line import EXERCISES  # noqa: E402

LITE0, ALEXNET = "efficientnet_lite0", "alexnet"
NETWORKS = [LITE0, "squeezenet1_0", "resnet18", "resnet50", "vgg16"]
GPU_PARTS = ["2e", "2f", "maps", "2g", "2h", "2c"]  # the others depend on the CPU
KEPT = "captum with memory kept"
PACKAGES = ["torch", "torchvision", "timm", "Pillow", "captum", "grad-cam", "quantus", "baal", "torch-uncertainty"]
LIBRARIES = "import torch, torchvision, timm"
HERE = ("--output", "output/benchmarks", "--fresh")


class Row(NamedTuple):
    part: str
    work: str
    network: str
    ours: Callable[[str], Any]  # of the network's name
    theirs: Callable[[str], Any] | None
    peer: str = ""  # another implementation; without it, `limit`
    limit: str = ""
    goal: float | None = None  # the ratio that we want: at least, of a peer; at most, of a limit
    floor: float | None = None  # the ratio to the limit that arithmetic forbids to go below
    most: float | None = None  # largest relative difference of the results; without it, they are not compared
    per: int = 16  # images of a call
    unit: str = "ms"  # an image; or "s" a call, or "GB" that a call returns
    once: bool = False  # one turn, and none for warm-up


def comparisons() -> Iterator[Row]:
    """Yield all rows, in the order of the tables."""
    for part, guided in (("2e", False), ("2f", True)):
        ours, captums = partial(work.our_gradient, guided=guided), partial(work.captums_gradient, guided=guided)
        for name in NETWORKS:
            row = partial(Row, part, f"{part} gradients", name, ours)
            for peer in ("captum", KEPT):
                yield row(captums, peer, most=0.02)
            yield row(partial(work.forward, times=2), limit="two forward passes of the same prepared network")
            if guided:
                yield row(partial(work.our_gradient, guided=False), limit="a plain gradient", goal=1.05)
    pair = work.our_smoothed_maps, work.captums_smoothed_maps, "captum, NoiseTunnel of Saliency"
    for name in (LITE0, "resnet18"):  # the noise differs: two of our own seeds are as far apart
        yield Row("maps", f"2e smoothed maps, {work.COPIES} copies", name, *pair, most=0.4)
    pair = work.our_guided_cams, work.pytorch_grad_cams, "pytorch-grad-cam, Grad-CAM times guided map"
    yield Row("maps", "2f guided Grad-CAM", "resnet18", *pair, most=0.05, goal=4)

    for steps, theirs, peer, most in (
        (28, work.plain_insertion_deletion, "one image at a time", 1e-4),
        (21, work.quantus_insertion_deletion, "Quantus, PixelFlipping twice", 0.01),
    ):
        pair = partial(work.our_insertion_deletion, steps=steps), partial(theirs, steps=steps)
        yield Row("2g", f"2g insertion and deletion, {steps} steps", LITE0, *pair, peer, goal=3, most=most, per=4)

    for ahead, goal in ((0, None), (2, 1.15)):
        title = f"reading files for a network that takes as long as the reading, --prefetch {ahead}"
        pair = partial(work.read_beside, prefetch=ahead), work.read
        limit = "the longer of the reading and the network's time"
        yield Row("prefetch", title, LITE0, *pair, limit=limit, goal=goal, per=work.READ)
    row = partial(Row, "2b", "2b, images from files", LITE0, work.our_evaluation, per=work.FILES)
    yield row(work.plain_evaluation, "plain loop (PIL, DataLoader, eager network)", most=1e-4)
    yield row(work.bare_evaluation, limit="decoding, then forward passes")

    # notes.md derives the two floors
    for name, count, floor in ((LITE0, 100, 1.19), (LITE0, 1000, 2.8), ("vgg16", 100, None), (ALEXNET, 100, None)):
        pair = partial(work.our_passes, passes=count), work.forward
        limit = "one forward pass of the same prepared network"
        yield Row("2h", f"2h, T = {count}", name, *pair, limit=limit, floor=floor)
    for theirs, *peers in (
        (work.loop_of_passes, "loop of whole passes", "loop of whole passes"),
        (work.baals_passes, "baal", "baal"),
        (work.torch_uncertaintys_passes, "torch-uncertainty", "torch-uncertainty (on_batch=False)"),
    ):
        pair = partial(work.our_passes, passes=100), partial(theirs, passes=100)
        for name, peer in zip((LITE0, ALEXNET), peers, strict=True):
            yield Row("2h", "2h, T = 100", name, *pair, peer, most=0.3, once=True)

    for method, goal in (("plain", None), ("gaussian", 1.15), ("natural", 1.25)):
        ours = partial(work.our_ascent, method=method)
        row = partial(Row, "2c", f"2c {method}, a step of six classes", LITE0, ours, per=work.STEPS * 6)
        yield row(work.bare_steps, limit="the bare forward and backward passes", goal=goal)
        yield row(work.one_at_a_time, "one class at a time, through 8 bits")

    photo = str(next((ROOT / "dataset" / "DL_data_p").glob("*/*.*"), ""))
    pair = partial(work.process, ["2d_predict.py", photo, *HERE]), partial(work.process, ["-c", LIBRARIES])
    yield Row("2d", "2d, first result (whole process)", LITE0, *pair, limit=LIBRARIES, goal=1.15, per=1)
    bare = partial(work.process, ["-c", f"from benchmarks import work; work.bare_passes({LITE0!r})"])
    limit = "the eager network's forward and backward pass alone"
    for script in EXERCISES:
        ours = partial(work.process, [f"{script}.py", *HERE, *("--steps", "10") * script.startswith("2c")])
        yield Row("memory", f"peak memory of {script}", LITE0, ours, bare, limit=limit, unit="GB", once=True)
    for script in EXERCISES:
        yield Row("report", script, LITE0, partial(work.process, [f"{script}.py", *HERE]), None, unit="s", once=True)


def key_of(row: dict) -> tuple[str, str, str]:
    """Return what tells a measured row, or the fields of a Row, from all others."""
    return row["work"], row["network"], row.get("peer") or row.get("limit", "")


ROWS = [*comparisons()]
WANTED = {key_of(row._asdict()): row for row in ROWS}


def timed(function: Callable[[str], Any], network: str) -> tuple[Any, float]:
    """Return the result of the work and the seconds that it took."""
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    result = function(network)
    if work.DEVICE != "cpu":  # a GPU may still be computing when the call returns
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    return result.detach().double().cpu() if isinstance(result, torch.Tensor) else result, seconds


def side(keep_memory: bool) -> ProcessPoolExecutor:
    """Return a process that runs one side's work."""
    start = work.common.keep_freed_memory if keep_memory else None
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start)


def measure(row: Row, turns: int) -> dict[str, Any]:
    """Return the row as docs/benchmarks.json has it. Our side keeps freed memory, as the scripts do, and limits too."""
    found = {"part": row.part, "work": row.work, "network": row.network, "turns": 1 if row.once else turns}
    found |= {"peer": row.peer} if row.peer else {"limit": row.limit} if row.theirs else {}
    with side(True) as ours, side(not row.peer or row.peer == KEPT) as theirs:
        runs = [partial(ours.submit, timed, row.ours, row.network)]
        runs += [partial(theirs.submit, timed, row.theirs, row.network)] if row.theirs else []
        if row.most is not None:
            result, _ = runs[0]().result()
            try:
                other, _ = runs[1]().result()
            except Exception as error:
                return {**found, "cannot": f"{type(error).__name__}: {error}".splitlines()[0]}
            found["apart"] = float((result - other).norm() / result.norm())
            if found["apart"] > row.most:
                return found
        times = [[run().result()[row.unit != "GB"] for run in runs] for _ in range(found["turns"] + (not row.once))]
    mine, *others = zip(*times[-found["turns"] :], strict=True)
    found[f"ours_{row.unit.lower()}"] = statistics.median(mine) * (1e3 / row.per if row.unit == "ms" else 1)
    for other in others:
        ratios = [b / a if row.peer else a / b for a, b in zip(mine, other, strict=True)]
        found["ratio"] = statistics.median(ratios)
        if len(ratios) > 1:
            found |= {"least": min(ratios), "greatest": max(ratios)}
    return found


def machine() -> str:
    """Return the processor and the versions in words."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    processor = found[1] if found else platform.processor()
    installed = {found.name.lower().replace("_", "-"): found.version for found in distributions()}
    versions = [f"{name} {installed[name.lower()]}" for name in PACKAGES if name.lower() in installed]
    cores = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return f"{processor}, {cores}; python {platform.python_version()}, {', '.join(versions)}"


def document(found: dict[str, Any], notes: str) -> str:
    """Return the text of docs/benchmarks.md from the notes, a template with the tables of the measured rows."""
    rows = [row | {"wanted": WANTED.get(key_of(row))} for row in found["rows"]]
    settings = dict(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return jinja2.Template(notes, **settings).render(machine=found["machine"], rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(dict.fromkeys(row.part for row in ROWS))
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to run (default: all)")
    parser.add_argument("--turns", type=int, default=5, help="turns to time, after one turn of warm-up (default: 5)")
    options = parser.parse_args()
    path, notes = ROOT / "docs" / "benchmarks.json", (ROOT / "benchmarks" / "notes.md").read_text()
    rows = {(row.get("device", ""), key_of(row)): row for row in json.loads(path.read_text())["rows"]}
    runs = [("cpu", row) for row in ROWS if row.part in options.only]
    runs += [("cuda", row) for _, row in runs if row.part in GPU_PARTS and torch.cuda.is_available()]
    for device, row in runs:
        os.environ["BENCH_DEVICE"] = device  # every side reads it
        measured = measure(row, options.turns)
        if device == "cuda":
            measured["device"] = torch.cuda.get_device_name()
        print(json.dumps(measured), flush=True)
        rows[measured.get("device", ""), key_of(measured)] = measured
        places = [(name, key) for name in sorted({name for name, _ in rows}) for key in WANTED]
        # after each row: one that fails loses no other
        found = {"machine": machine(), "rows": [rows[place] for place in places if place in rows]}
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        path.with_suffix(".md").write_text(document(found, notes))


if __name__ == "__main__":
    main()
