"""Time the scripts against other implementations and against what the machine allows.

Each row is a pair of functions of work.py: ours, and a peer's or a limit's. They run in turn (A B A B ...) in two
processes that wait for each other. Results are compared first: a row whose results differ has no ratio.

    python benchmarks/bench.py                        # everything, in forty minutes; or `make bench`
    python benchmarks/bench.py --only 2b --turns 3    # replaces the rows of 2b only
    python benchmarks/bench.py --device cuda          # only the rows of the GPU (default: the CPU's, then the GPU's)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from explain.run.shell import keep_freed_memory  # noqa: E402

from benchmarks import work  # noqa: E402

LITE0, ALEXNET = "efficientnet_lite0", "alexnet"
NETWORKS = [LITE0, "squeezenet1_0", "resnet18", "resnet50", "vgg16"]
SCRIPTS = ["2b_evaluate", "2c_class_visualization", "2d_predict", "2e_saliency", "2f_guided_saliency"]
SCRIPTS += ["2g_faithfulness", "2h_mc_dropout"]
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


def gradients(part: str, guided: bool) -> Iterator[Row]:
    ours, captums = partial(work.our_gradient, guided=guided), partial(work.captums_gradient, guided=guided)
    for name in NETWORKS:
        row = partial(Row, part, f"{part} gradients", name, ours)
        for peer in ("captum", KEPT):
            yield row(captums, peer, most=0.02)
        yield row(partial(work.forward, times=2), limit="two forward passes of the same prepared network")
        if guided:
            yield row(partial(work.our_gradient, guided=False), limit="a plain gradient", goal=1.05)


def faithfulness(steps: int, theirs: Callable, peer: str, most: float) -> Row:
    pair = partial(work.our_insertion_deletion, steps=steps), partial(theirs, steps=steps)
    return Row("2g", f"2g insertion and deletion, {steps} steps", LITE0, *pair, peer, goal=3, most=most, per=4)


def reading(ahead: int, goal: float | None) -> Row:
    title = f"reading files for a network that takes as long as the reading, --prefetch {ahead}"
    pair, limit = (
        (partial(work.read_beside, prefetch=ahead), work.read),
        "the longer of the reading and the network's time",
    )
    return Row("prefetch", title, LITE0, *pair, limit=limit, goal=goal, per=work.READ)


def passes(name: str, count: int, floor: float | None = None) -> Row:
    ours, limit = partial(work.our_passes, passes=count), "one forward pass of the same prepared network"
    return Row("2h", f"2h, T = {count}", name, ours, work.forward, limit=limit, floor=floor)


def dropout(name: str, theirs: Callable, peer: str) -> Row:
    pair = partial(work.our_passes, passes=100), partial(theirs, passes=100)
    return Row("2h", "2h, T = 100", name, *pair, peer, most=0.3, once=True)


def ascent(method: str, goal: float | None) -> Iterator[Row]:
    ours = partial(work.our_ascent, method=method)
    row = partial(Row, "2c", f"2c {method}, a step of six classes", LITE0, ours, per=work.STEPS * 6)
    yield row(work.bare_steps, limit="the bare forward and backward passes", goal=goal)
    yield row(work.one_at_a_time, "one class at a time, through 8 bits")


def memory(script: str) -> Row:
    command = (f"{script}.py", *HERE, *(("--steps", "10") if script.startswith("2c") else ()))
    bare = ("-c", f"from benchmarks import work; work.bare_passes({LITE0!r})")
    pair, limit = (process(*command), process(*bare)), "the eager network's forward and backward pass alone"
    return Row("memory", f"peak memory of {script}", LITE0, *pair, limit=limit, unit="GB", once=True)


def process(*command: str) -> Callable[[str], float]:
    return partial(work.process, command=command)


EVALUATION = "2b", "2b, images from files", LITE0, work.our_evaluation
LOOP, TUNNEL = "plain loop (PIL, DataLoader, eager network)", "captum, NoiseTunnel of Saliency"
SMOOTHED = work.our_smoothed_maps, work.captums_smoothed_maps, TUNNEL
CAMS = work.our_guided_cams, work.pytorch_grad_cams, "pytorch-grad-cam, Grad-CAM times guided map"
PHOTO = str(next((ROOT / "dataset" / "DL_data_p").glob("*/*.*"), ""))
START = process("2d_predict.py", PHOTO, *HERE), process("-c", LIBRARIES)
ROWS = [
    *gradients("2e", guided=False),
    *gradients("2f", guided=True),
    # the noise differs: two of our own seeds are as far apart
    *(Row("maps", "2e smoothed maps, 16 copies", name, *SMOOTHED, most=0.4) for name in (LITE0, "resnet18")),
    Row("maps", "2f guided Grad-CAM", "resnet18", *CAMS, most=0.05, goal=4),
    faithfulness(28, work.plain_insertion_deletion, "one image at a time", 1e-4),
    faithfulness(21, work.quantus_insertion_deletion, "Quantus, PixelFlipping twice", 0.01),
    reading(0, None),
    reading(2, 1.15),
    Row(*EVALUATION, work.plain_evaluation, LOOP, most=1e-4, per=work.FILES),
    Row(*EVALUATION, work.bare_evaluation, limit="decoding, then forward passes", per=work.FILES),
    passes(LITE0, 100, floor=1.19),  # notes.md derives these two
    passes(LITE0, 1000, floor=2.8),
    passes("vgg16", 100),
    passes(ALEXNET, 100),
    *(dropout(name, work.loop_of_passes, "loop of whole passes") for name in (LITE0, ALEXNET)),
    *(dropout(name, work.baals_passes, "baal") for name in (LITE0, ALEXNET)),
    dropout(LITE0, work.torch_uncertaintys_passes, "torch-uncertainty"),
    dropout(ALEXNET, work.torch_uncertaintys_passes, "torch-uncertainty (on_batch=False)"),
    *ascent("plain", None),
    *ascent("gaussian", 1.15),
    *ascent("natural", 1.25),
    Row("2d", "2d, first result (whole process)", LITE0, *START, limit=LIBRARIES, goal=1.15, per=1),
    *map(memory, SCRIPTS),
    *(Row("report", f, LITE0, process(f"{f}.py", *HERE), None, unit="s", once=True) for f in SCRIPTS),
]


def key_of(row: dict) -> tuple[str, str, str]:
    """Return what tells a measured row, or the fields of a Row, from all others."""
    return row["work"], row["network"], row.get("peer") or row.get("limit", "")


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
    start = keep_freed_memory if keep_memory else None
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
        which = 0 if row.unit == "GB" else 1
        times = [[run().result()[which] for run in runs] for _ in range(found["turns"] + (not row.once))]
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
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    versions = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return f"{processor}, {os.cpu_count()} cores{', AVX-512' * ('avx512' in ' '.join(lines))}; {', '.join(versions)}"


def document(found: dict[str, Any], notes: str) -> str:
    """Return the text of docs/benchmarks.md: the notes, with the machine and the tables in them."""
    tables = []
    for device in dict.fromkeys(row.get("device") for row in found["rows"]):
        rows = [row for row in found["rows"] if row.get("device") == device]
        for kind, heading in (("peer", "other implementations"), ("limit", "the limit")):
            tables += [f"## Against {heading}{f', on one {device}' if device else ''}", ""]
            tables += [f"| work | network | ours | {kind} | ratio | goal | difference |", "|---" * 7 + "|"]
            tables += [line(row, kind) for row in rows if kind in row]
            tables.append("")
    seconds = {row["work"]: row["ours_s"] for row in found["rows"] if row["part"] == "report"}
    each = ", ".join(f"{script} {s:.0f} s" for script, s in seconds.items())
    tables += [f"The whole report takes {sum(seconds.values()):.0f} s: {each}."]
    return notes.replace("{machine}", found["machine"]).replace("{tables}", "\n".join(tables))


def line(row: dict, kind: str) -> str:
    """Return a row of the table of peers or of limits: whether it falls short of its goal, or how far its floor is."""
    unit = next((unit for unit in ("ms", "s", "GB") if f"ours_{unit.lower()}" in row), None)
    ours = f"{row[f'ours_{unit.lower()}']:.3g} {unit}" if unit else ""
    ratio, goal = f"no ratio: {row.get('cannot', 'results differ')}", ""
    if "ratio" in row:
        wanted, value = WANTED.get(key_of(row)), row["ratio"]
        ratio = f"{value:.2f}" + (f" ({row['least']:.2f} to {row['greatest']:.2f})" if "least" in row else "")
        if wanted and wanted.floor:
            goal = f"floor {wanted.floor:g}: {value / wanted.floor:.2f} times"
        elif wanted and wanted.goal:
            is_short = value < wanted.goal if wanted.peer else value > wanted.goal
            goal = f"{wanted.goal:g}" + ": **short**" * is_short
    apart = f"{row['apart']:.1g}" if "apart" in row else ""
    return f"| {row['work']} | {row['network']} | {ours} | {row[kind]} | {ratio} | {goal} | {apart} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(dict.fromkeys(row.part for row in ROWS))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to run (default: all)")
    parser.add_argument("--turns", type=int, default=5, help="turns to time, after one turn of warm-up (default: 5)")
    parser.add_argument("--device", nargs="+", default=devices, help="devices to run on (default: all available)")
    options = parser.parse_args()
    path, notes = ROOT / "docs" / "benchmarks.json", (ROOT / "benchmarks" / "notes.md").read_text()
    order = {key: n for n, key in enumerate(WANTED)}
    rows = {(row.get("device"), key_of(row)): row for row in json.loads(path.read_text())["rows"]}
    runs = [(d, row) for d in options.device for row in ROWS if row.part in options.only]
    for device, row in tqdm([run for run in runs if run[0] == "cpu" or run[1].part in GPU_PARTS], disable=None):
        os.environ["BENCH_DEVICE"] = device  # every side reads it
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
        measured = measure(row, options.turns) | ({} if device == "cpu" else {"device": name})
        print(json.dumps(measured), flush=True)
        rows[measured.get("device"), key_of(measured)] = measured
        known = sorted((key for key in rows if key[1] in order), key=lambda key: (key[0] or "", order[key[1]]))
        # after each row: one that fails loses no other
        found = {"machine": machine(), "rows": [rows[key] for key in known]}
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        path.with_suffix(".md").write_text(document(found, notes))


if __name__ == "__main__":
    main()
