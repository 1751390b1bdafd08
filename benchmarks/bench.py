"""Time the scripts against other implementations and against what the machine allows.

Each row times the same work on two sides in turn (A B A B ...), in two processes that wait for each other. This
project's side keeps freed memory, as its scripts do; the other side runs as its documentation shows. Results are
compared first, and a row whose results differ has no ratio. A ratio is the median over the turns, with the minimum and
the maximum.

    python benchmarks/bench.py                        # everything, in forty minutes; or `make bench`
    python benchmarks/bench.py --only 2b --turns 3    # replaces the rows of 2b only
    python benchmarks/bench.py --device cuda          # the rows of the GPU only; without it, they come after the CPU's
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ["efficientnet_lite0", "squeezenet1_0", "resnet18", "resnet50", "vgg16"]
SCRIPTS = ["2b_evaluate", "2c_class_visualization", "2d_predict", "2e_saliency", "2f_guided_saliency"]
SCRIPTS += ["2g_faithfulness", "2h_mc_dropout"]


# The ratio that a row is to reach, by its work, network and other side: at least where that is a peer, at most where it
# is a limit
GOALS = {
    ("2e smoothed maps, 16 copies", "efficientnet_lite0", "captum, NoiseTunnel of Saliency"): 3,
    ("2e smoothed maps, 16 copies", "resnet18", "captum, NoiseTunnel of Saliency"): 3,
    ("2f guided Grad-CAM", "resnet18", "pytorch-grad-cam, both calls"): 4,
    ("2g insertion and deletion, 28 steps", "efficientnet_lite0", "a picture at a time"): 3,
    ("2g insertion and deletion, 21 steps", "efficientnet_lite0", "Quantus, PixelFlipping twice"): 3,
    ("2b, images from files", "efficientnet_lite0", "plain loop (PIL, DataLoader, eager network)"): 3.5,
    ("2h, T = 100", "alexnet", "loop of whole passes"): 20,
    ("2h, T = 100, bfloat16", "alexnet", "loop of whole passes"): 20,
    ("2h, T = 100", "efficientnet_lite0", "one forward pass of the same prepared network"): 1.2,
    ("2h, T = 1000", "efficientnet_lite0", "one forward pass of the same prepared network"): 2.4,
    ("2h, T = 100, bfloat16", "efficientnet_lite0", "one forward pass of the same prepared network"): 1.2,
    ("2h, T = 1000, bfloat16", "efficientnet_lite0", "one forward pass of the same prepared network"): 2.4,
    ("2c gaussian, a step of six classes", "efficientnet_lite0", "the bare forward and backward passes"): 1.15,
    ("2c natural, a step of six classes", "efficientnet_lite0", "the bare forward and backward passes"): 1.25,
    ("2d, first result (whole process)", "efficientnet_lite0", "import torch, torchvision, timm"): 1.15,
    ("reading beside a network that waits, --prefetch 2", "efficientnet_lite0", "the longer of the two"): 1.15,
}
MEAN_GOALS = {"2e gradients": (3.5, 1.6)}  # of the geometric means over networks, without and with memory kept
GUIDED_GOAL = 1.05  # of a guided gradient against a plain one
REPORT_GOAL = 120  # seconds


# ------------------------------------------------------------------------------------------------
# Two sides in turn


def _side(connection: Any, keep_memory: bool, function: str, arguments: tuple) -> None:
    """Run one side's work in a process of its own at each request, and send back the seconds that it took."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import warnings

    import work

    warnings.simplefilter("ignore")
    if keep_memory:
        from explain.run.shell import keep_freed_memory

        keep_freed_memory()
    try:
        run = getattr(work, function)(*arguments)
        connection.send("ready")
        while (asked := connection.recv()) is not None:
            start = time.perf_counter()
            result = run()
            if work.DEVICE != "cpu":  # which has only been told what to do
                torch.accelerator.synchronize()
            seconds = time.perf_counter() - start
            connection.send((seconds, result.detach().double().cpu().numpy() if asked == "result" else None))
    except EOFError:  # the parent process has stopped
        pass
    except Exception as error:
        connection.send(error)


class Side:
    def __init__(self, function: str, *arguments: Any, keep_memory: bool = False):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_side, args=(other, keep_memory, function, arguments))
        self.process.start()
        self._receive()

    def _receive(self) -> Any:
        answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def seconds(self) -> float:
        self.connection.send("time")
        return self._receive()[0]

    def result(self) -> np.ndarray:
        self.connection.send("result")
        return self._receive()[1]


@contextmanager
def sides(*given: tuple) -> Iterator[list[Side]]:
    """Start a side for each (keep_memory, function, *arguments), and stop them all at the end."""
    started: list[Side] = []
    try:
        for keep_memory, function, *arguments in given:
            started.append(Side(function, *arguments, keep_memory=keep_memory))
        yield started
    finally:
        for side in started:
            with suppress(BrokenPipeError):  # it has failed, and its error is on the way
                side.connection.send(None)
            side.process.join(10)
            side.process.kill()


def take_turns(runs: list[Callable[[], float]], turns: int) -> list[list[float]]:
    """Return the seconds of each run in each turn, after one turn of warm-up."""
    times = [[run() for run in runs] for _ in range(turns + 1)][1:]
    return [list(column) for column in zip(*times, strict=True)]


def ratio(of: list[float], to: list[float]) -> dict[str, float]:
    """Return the median, minimum and maximum over the turns of `of` divided by `to`."""
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    return {"ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Return the norm of a - b over the norm of b."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# ------------------------------------------------------------------------------------------------
# The rows


def gradients(turns: int, guided: bool) -> Iterator[dict]:
    """Time 2e or 2f against captum and against two forward passes of the prepared network."""
    for name in NETWORKS:
        row: dict[str, Any] = {"work": "2f gradients" if guided else "2e gradients", "network": name, "peer": "captum"}
        with sides((True, "our_gradient", name, guided, True), (False, "captums_gradient", name, guided, True)) as both:
            row["apart"] = relative(*(side.result() for side in both))  # in float64
        same = row["apart"] < 1e-3
        given = [(True, "our_gradient", name, guided), (True, "bare_forward", name)]
        given += [(False, "captums_gradient", name, guided), (True, "captums_gradient", name, guided)] if same else []
        given += [(True, "our_gradient", name, False)] if guided else []
        with sides(*given) as started:
            if same:
                row["apart_float32"] = relative(started[0].result(), started[2].result())
            ours, bare, *others = take_turns([side.seconds for side in started], turns)
        row |= {"ours_ms": statistics.median(ours) / 16 * 1e3}
        if same:
            row |= ratio(others[0], ours)
            row["memory_kept"] = ratio(others[1], ours)["ratio"]
        row["share_of_limit"] = ratio([2 * b for b in bare], ours)["ratio"]
        if guided:
            row["of_2e"] = ratio(ours, others[-1])["ratio"]
        yield row


def compared(
    turns: int, work: str, name: str, ours: str, theirs: str, peer: str, most: float, images: int = 16, *more: Any
) -> Iterator[dict]:
    """Time two sides of one piece of work whose results are at most so far apart, relative to their norm."""
    row: dict[str, Any] = {"work": work, "network": name, "peer": peer}
    try:
        with sides((True, ours, name, *more), (False, theirs, name, *more)) as started:
            row["apart"] = relative(*(side.result() for side in started))
            if row["apart"] <= most:
                a, b = take_turns([side.seconds for side in started], turns)
                row |= {"ours_ms": statistics.median(a) / images * 1e3, **ratio(b, a)}
    except ImportError as error:
        row["cannot"] = str(error)
    yield row


def maps(turns: int) -> Iterator[dict]:
    """Time the smoothed maps, and guided Grad-CAM, against other implementations."""
    for name in ("efficientnet_lite0", "resnet18"):
        with sides((True, "our_smoothed_maps", name, 0), (True, "our_smoothed_maps", name, 1)) as two_seeds:
            noise = relative(*(side.result() for side in two_seeds))  # theirs is other noise of the same spread
        sides_of = "our_smoothed_maps", "captums_smoothed_maps", "captum, NoiseTunnel of Saliency"
        yield from compared(turns, "2e smoothed maps, 16 copies", name, *sides_of, 1.3 * noise)
    sides_of = "our_guided_cams", "pytorch_grad_cams", "pytorch-grad-cam, both calls"
    yield from compared(turns, "2f guided Grad-CAM", "resnet18", *sides_of, 0.05)


def faithfulness(turns: int) -> Iterator[dict]:
    """Time insertion and deletion of four images against a loop over pictures, and against Quantus."""
    for function, peer, steps, most in (
        ("plain_insertion_deletion", "a picture at a time", 28, 1e-4),
        ("quantus_insertion_deletion", "Quantus, PixelFlipping twice", 21, 0.01),
    ):
        work, sides_of = f"2g insertion and deletion, {steps} steps", ("our_insertion_deletion", function, peer)
        yield from compared(turns, work, NETWORKS[0], *sides_of, most, 4, steps)


def prefetch(turns: int) -> Iterator[dict]:
    """Time reading beside a network that only waits, as long as reading takes, against the longer of the two."""
    batches = 48
    with sides((True, "reading", NETWORKS[0], batches, 0, 0.0)) as started:
        (alone,) = take_turns([started[0].seconds], turns)
    longer = statistics.median(alone)
    given = [(True, "reading", NETWORKS[0], batches, ahead, longer / batches) for ahead in (0, 2)]
    with sides(*given) as started:
        times = take_turns([side.seconds for side in started], turns)
    for ahead, seconds in zip((0, 2), times, strict=True):
        row = {"work": f"reading beside a network that waits, --prefetch {ahead}", "network": NETWORKS[0]}
        row |= {"limit": "the longer of the two", "ours_ms": statistics.median(seconds) / batches / 16 * 1e3}
        yield row | ratio(seconds, [longer] * len(seconds))


PARTS = ["as built", "channels-last", "folded", "rearranged"]


def parts(turns: int) -> Iterator[dict]:
    """Time a gradient after each further step of the preparation."""
    for name in NETWORKS:
        given = [(False, "part_of_preparation", name, part) for part in PARTS]
        with sides(*given, (True, "part_of_preparation", name, PARTS[-1])) as started:
            times = take_turns([side.seconds for side in started], turns)
        medians = [statistics.median(column) / 16 * 1e3 for column in times]
        yield {
            "work": "parts of the preparation (ms)",
            "network": name,
            "parts": dict(zip([*PARTS, "memory kept"], medians, strict=True)),
        }


def evaluation(turns: int) -> Iterator[dict]:
    """Time 2b against a plain loop and against decoding plus forward passes."""
    name = NETWORKS[0]
    given = [(True, "our_evaluation", name), (False, "plain_evaluation", name)]
    with sides(*given, (True, "our_evaluation", name, False), (True, "bare_forward", name)) as started:
        apart = float(np.abs(started[0].result() - started[1].result()).max())
        if apart > 1e-4:
            yield {"work": "2b", "network": name, "apart": apart}
            return
        ours, plain, decoding, bare = take_turns([side.seconds for side in started], turns)
    limit = [d + b * 192 / 16 for d, b in zip(decoding, bare, strict=True)]
    yield {
        "work": "2b, images from files",
        "network": name,
        "peer": "plain loop (PIL, DataLoader, eager network)",
        "apart": apart,
        "ours_ms": statistics.median(ours) / 192 * 1e3,
        **ratio(plain, ours),
        "share_of_limit": ratio(limit, ours)["ratio"],
    }


def passes(turns: int) -> Iterator[dict]:
    """Time 2h against one forward pass and against other implementations of Monte Carlo dropout."""
    lite0, alexnet = "efficientnet_lite0", "alexnet"
    for name, count, *rounded in (
        (lite0, 100),
        (lite0, 100, "bfloat16"),
        (lite0, 1000),
        (lite0, 1000, "bfloat16"),
        ("vgg16", 100),
        (alexnet, 100),
        (alexnet, 100, "bfloat16"),
    ):
        with sides((True, "our_passes", name, count, bool(rounded)), (True, "bare_forward", name)) as started:
            ours, bare = take_turns([side.seconds for side in started], turns)
        row = {"work": ", ".join([f"2h, T = {count}", *rounded]), "network": name}
        row["limit"] = "one forward pass of the same prepared network"
        yield {**row, "ours_ms": statistics.median(ours) / 16 * 1e3, **ratio(ours, bare)}
    for name, function, peer, *rounded in (
        (lite0, "loop_of_passes", "loop of whole passes"),
        (lite0, "baals_passes", "baal"),
        (lite0, "torch_uncertaintys_passes", "torch-uncertainty"),
        (alexnet, "loop_of_passes", "loop of whole passes"),
        (alexnet, "loop_of_passes", "loop of whole passes", "bfloat16"),
        (alexnet, "baals_passes", "baal"),
        (alexnet, "torch_uncertaintys_passes", "torch-uncertainty (on_batch=False)"),
    ):
        row = {"work": ", ".join(["2h, T = 100", *rounded]), "network": name, "peer": peer}
        try:
            with sides((True, "our_passes", name, 100, bool(rounded)), (False, function, name, 100)) as started:
                a, b = (side.result() for side in started)  # (T, N, classes), each side with its own masks
                if float(b.std(0).max()) < 1e-3:
                    yield {**row, "cannot": "no dropout was switched on: all passes are the same"}
                    continue
                error = np.sqrt((a.var(0) + b.var(0)) / 100) + 1e-9
                row["standard_errors_apart"] = float(np.sqrt(np.mean(((a.mean(0) - b.mean(0)) / error) ** 2)))
                ours, theirs = take_turns([side.seconds for side in started], max(1, turns // 3))
        except Exception as error:
            yield {**row, "cannot": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        yield {**row, "ours_ms": statistics.median(ours) / 16 * 1e3, **ratio(theirs, ours)}


def ascent(turns: int) -> Iterator[dict]:
    """Time 2c against bare forward and backward passes and against one class at a time."""
    name = NETWORKS[0]
    methods = ["plain", "gaussian", "natural"]
    given = [(True, "our_ascent", name, method) for method in methods]
    with sides(*given, (True, "bare_steps", name), (False, "one_at_a_time", name)) as started:
        *ours, bare, single = take_turns([side.seconds for side in started], turns)
    for method, seconds in zip(methods, ours, strict=True):
        row = {"work": f"2c {method}, a step of six classes", "network": name}
        row["ours_ms"] = statistics.median(seconds) / 20 / 6 * 1e3
        yield {**row, "limit": "the bare forward and backward passes", **ratio(seconds, bare)}
        yield {**row, "peer": "a class at a time through 8 bits", **ratio(single, seconds)}


def _process(*command: str) -> tuple[float, float]:
    """Return the seconds and the peak resident gigabytes of a whole process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: {message[-500:]}")
    return time.perf_counter() - start, usage.ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 1000


def first_result(turns: int) -> Iterator[dict]:
    """Time 2d on one photo as a whole process, against its imports alone."""
    photo = str(next((ROOT / "dataset" / "DL_data_p").rglob("*.*")))
    ours = ["2d_predict.py", photo, "--output", "output/benchmarks", "--fresh"]
    bare = ["-c", "import torch, torchvision, timm"]
    a, b = take_turns([lambda: _process(*ours)[0], lambda: _process(*bare)[0]], turns)
    yield {
        "work": "2d, first result (whole process)",
        "network": NETWORKS[0],
        "limit": "import torch, torchvision, timm",
        "ours_ms": statistics.median(a) * 1e3,
        **ratio(a, b),
    }


def memory(turns: int) -> Iterator[dict]:
    """Compare each script's peak memory with that of its eager network's forward and backward pass."""
    name = NETWORKS[0]
    bare = _process("benchmarks/work.py", name)[1]
    for script in SCRIPTS:
        extra = ["--steps", "10"] if script.startswith("2c") else []
        ours = _process(f"{script}.py", "--output", "output/benchmarks", "--fresh", *extra)[1]
        yield {
            "work": f"peak memory of {script} (GB)",
            "network": name,
            "limit": "its eager network's forward and backward pass alone",
            "ours_gb": ours,
            "ratio": ours / bare,
        }


def report(turns: int) -> Iterator[dict]:
    """Time all scripts, once and as `make` runs them, with the page that they write."""
    options = ["--output", "output/benchmarks/report"]
    seconds = {script: _process(f"{script}.py", *options, "--fresh")[0] for script in SCRIPTS}
    yield {
        "work": "the whole report: " + ", ".join(f"{script[:2]} {s:.0f} s" for script, s in seconds.items()),
        "network": NETWORKS[0],
        "limit": f"{REPORT_GOAL} s",
        "ours_s": sum(seconds.values()),
    }


WORK: dict[str, Callable[[int], Iterator[dict]]] = {
    "2e": lambda turns: gradients(turns, guided=False),
    "2f": lambda turns: gradients(turns, guided=True),
    "maps": maps,
    "2g": faithfulness,
    "prefetch": prefetch,
    "parts": parts,
    "2b": evaluation,
    "2h": passes,
    "2c": ascent,
    "2d": first_result,
    "memory": memory,
    "report": report,
}
GPU_PARTS = ["2e", "2f", "maps", "2g", "2h", "2c"]  # the others depend on the CPU


# ------------------------------------------------------------------------------------------------
# The report


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    wide = "avx512" in " ".join(lines)
    peers = ["captum", "grad-cam", "quantus", "baal", "torch-uncertainty"]
    names = ["torch", "torchvision", "timm", *peers, "Pillow", "numpy"]
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {"processor": processor, "avx512": wide, "cores": os.cpu_count(), "versions": versions}


def document(found: dict[str, Any], notes: str) -> str:
    """Return the text of docs/benchmarks.md."""
    rows, machine = found["rows"], found["machine"]
    turns = [row["turns"] for row in rows]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(machine["versions"].items()))
    wide = ", AVX-512" if machine["avx512"] else ""
    text = [
        "# Benchmarks",
        "",
        "The time and memory of the scripts, against other implementations and against what cannot be avoided, such as "
        "one forward pass. `make bench` measures them (40 minutes) and writes this page from `benchmarks.json`. Each "
        "row times the same work in two processes that take turns; a ratio is the median over the turns, with the "
        "minimum and the maximum.",
        "",
        f"Machine: {machine['processor']}, {machine['cores']} cores{wide}; {versions}. "
        f"{min(turns)} to {max(turns)} turns, batch 16, 224 px.",
        "",
        "- *ratio*: the peer's time over ours, or our time (or memory) over the limit's; *with memory kept*: where the "
        "peer keeps freed memory too.",
        "- *fraction of the limit*: the limit's time over ours. For gradients the limit is two forward passes of the "
        "same prepared network, for 2b decoding plus forward passes.",
        "- *difference* of the results, compared first: for gradients relative, in norm and float64; for logits the "
        "largest; for 2h, whose masks differ, the root mean square in standard errors; for Grad-CAM mostly the scale, "
        "which pytorch-grad-cam begins at each map's smallest value. Different results get no ratio.",
        "- *goal*: the ratio that we want, at least against others and at most against a limit.",
        "- *a class at a time through 8 bits*: as pytorch-cnn-visualizations, which rounds the image after each step.",
        "",
    ]
    for device in dict.fromkeys(row.get("device", "") for row in rows):
        own = [row for row in rows if row.get("device", "") == device]
        where = f", on one {device}" if device else ""
        text += [f"## Against other implementations{where}", "", *against_peers(own)]
        text += ["", f"## Against the limit{where}", "", *against_limits(own), ""]
    parts = [row for row in rows if "parts" in row]
    names = [*PARTS, "memory kept"]
    text += [
        "## What each step of the preparation is worth",
        "",
        "Milliseconds per image for a gradient. Each column adds one step to those before it.",
        "",
    ]
    text += [f"| network | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in parts:
        text.append(f"| {row['network']} | " + " | ".join(f"{row['parts'][name]:.1f}" for name in names) + " |")
    return "\n".join([*text, "", notes])


def against_peers(rows: list[dict]) -> list[str]:
    """Return the lines of the table of peers, and the geometric means."""
    text = [
        "| work | network | ours, ms per image | peer | ratio | goal | ratio with memory kept | fraction of the limit "
        "| difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if "peer" in row):
        head = f"| {row['work']} | {row['network']} | {_number(row, 'ours_ms')} | {row['peer']} |"
        if "cannot" in row:
            text.append(f"{head} no ratio: {row['cannot']} | | | | |")
        elif "ratio" not in row:
            limit = _number(row, "share_of_limit")
            text.append(f"{head} no ratio: results differ | | | {limit} | {row['apart']:.1g} |")
        else:
            apart = row.get("apart", row.get("standard_errors_apart"))
            text.append(
                f"{head} {_spread(row)} | {_goal(row)} | {_number(row, 'memory_kept')} | "
                f"{_number(row, 'share_of_limit')} | {'' if apart is None else f'{apart:.1g}'} |"
            )
    for work in ("2e gradients", "2f gradients"):
        own = [row for row in rows if row["work"] == work and "ratio" in row]
        if not own:
            continue
        means = [statistics.geometric_mean(row[key] for row in own) for key in ("ratio", "memory_kept")]
        goals = MEAN_GOALS.get(work, (None, None))
        mean, kept = (
            f"{m:.2f}" + (f" (goal {in_words(goal, m >= goal)})" if goal else "")
            for m, goal in zip(means, goals, strict=True)
        )
        text += ["", f"{work}, geometric mean over {len(own)} networks: {mean}; captum with memory kept: {kept}."]
    of_2e = [row["of_2e"] for row in rows if "of_2e" in row]
    if of_2e:
        goal = in_words(GUIDED_GOAL, max(of_2e) <= GUIDED_GOAL)
        share = f"{min(of_2e):.2f} to {max(of_2e):.2f} times as long as a plain one (goal {goal})"
        text += ["", f"A guided gradient takes {share}."]
    return text


def against_limits(rows: list[dict]) -> list[str]:
    """Return the lines of the table of limits."""
    text = ["| work | network | ours | limit | ratio | goal |", "|---|---|---|---|---|---|"]
    for row in (row for row in rows if "limit" in row):
        ours = next(f"{row[key]:.3g} {unit}" for key, unit in UNITS.items() if key in row)
        text.append(f"| {row['work']} | {row['network']} | {ours} | {row['limit']} | {_spread(row)} | {_goal(row)} |")
    return text


UNITS = {"ours_gb": "GB", "ours_s": "s", "ours_ms": "ms"}


def in_words(goal: float | None, reached: bool) -> str:
    """Return what the tables say of a goal; nothing where there is none."""
    return "" if goal is None else f"{goal:g}" if reached else f"{goal:g}: **short**"


def _goal(row: dict) -> str:
    if "ours_s" in row:
        return in_words(REPORT_GOAL, row["ours_s"] <= REPORT_GOAL)
    goal = GOALS.get((row["work"], row["network"], row.get("peer", row.get("limit"))))
    return in_words(goal, goal is None or (row["ratio"] >= goal if "peer" in row else row["ratio"] <= goal))


def _number(row: dict, key: str) -> str:
    return f"{row[key]:.3g}" if key in row else ""


def _spread(row: dict) -> str:
    if "ratio" not in row:
        return ""
    return f"{row['ratio']:.2f}" + (f" ({row['least']:.2f} to {row['greatest']:.2f})" if "least" in row else "")


def measure(device: str, part: str, turns: int) -> list[dict]:
    """Return the rows of a part on a device, whose name is in those of every device but the CPU."""
    os.environ["BENCH_DEVICE"] = device  # every side reads it
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    of_device = {} if device == "cpu" else {"device": name}
    rows = []
    for row in WORK[part](turns):
        rows.append({"part": part, "turns": turns, **of_device, **row})
        print(json.dumps({k: round(v, 7) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK), help="parts to run (default: all)")
    parser.add_argument("--turns", type=int, default=5, help="turns to time, after one turn of warm-up (default: 5)")
    parser.add_argument("--device", nargs="+", default=devices, help="devices to run them on (default: all there are)")
    options = parser.parse_args()
    path = ROOT / "docs" / "benchmarks.json"
    notes = (ROOT / "benchmarks" / "notes.md").read_text()
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    runs = [(d, part) for d in options.device for part in options.only if d == "cpu" or part in GPU_PARTS]
    for device, part in tqdm(runs, unit="part", disable=None):
        measured = measure(device, part, options.turns)
        rows = [row for row in rows if row["part"] != part or ("device" in row) != (device != "cpu")] + measured
        rows.sort(key=lambda row: ("device" in row, list(WORK).index(row["part"])))
        # after each part: one that fails loses no other
        found = {"machine": machine(), "rows": rows}
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        path.with_suffix(".md").write_text(document(found, notes))


if __name__ == "__main__":
    main()
