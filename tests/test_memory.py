"""Nothing stays of an image once its row is written, and so the memory does not grow with their number."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from functools import reduce
from operator import and_
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, finish_script, load_script, run_main, save_photo

import common

SIZES = ((460, 390), (500, 375), (333, 500), (640, 480))  # of photos, which are decoded to blocks of different sizes
NINE = 9  # images, of which a batch has three
PER_IMAGE = [name for name in SCRIPTS if name != "2c_class_visualization"]


def save_photos(name: str, count: int, folder: Path, part: int = 1) -> None:
    """The images that a script of SCRIPTS runs on: so many copies of a few, their sides divided by `part`."""
    photos = [save_photo(folder / f"{n}.jpg", n, (w // part, h // part)) for n, (w, h) in enumerate(SIZES)]
    for i in range(count):
        target = f"data/DL_data_p/{i % 1000}/{i:04d}.jpg" if name == "2b_evaluate" else f"photos/{i:04d}.jpg"
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos[i % len(photos)], folder / target)


# ------------------------------------------------------------------------------------------------
# What is alive after the first images of a run, and after more

libc = ctypes.CDLL(None)
COUNTS_ALL = hasattr(libc, "mallinfo2") and os.path.isdir("/proc/self/fd")


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2, since 2.33: `uordblks` and `hblkhd` are the bytes in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    ] + [("keepcost", ctypes.c_size_t)]


def census(old: list) -> Counter:
    """Count what is alive: references to Python objects by type, memory of the C library, open files, threads.

    No peak, no page and no address is in it: the same work leaves the same, whatever else the machine does. `old` are
    the objects that the garbage collector passes over. The C library has the numbers of tensors and arrays, and tensors
    that only other tensors know; what is freed it keeps for a while, and so a few kB more say nothing.
    """
    gc.collect()
    alive = Counter(thread=threading.active_count())
    for kind, n in Counter(map(type, gc.get_referents(*old, *gc.get_objects()))).items():
        alive[kind.__qualname__] += n
    del alive["str"]  # the names of files written, which metrics.json lists
    if COUNTS_ALL:
        alive["open file"] = len(os.listdir("/proc/self/fd"))
        libc.mallinfo2.restype = Mallinfo
        used = libc.mallinfo2()
        alive["10 kB"] = (used.uordblks + used.hblkhd) // 10_000
    return alive


def growth(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Return what is more by at least half of their number after every nine images; what is new once is left out."""
    append, done, growths = common.Rows.append, 0, []
    save_photos(name, 4 * NINE, tmp_path, part=3)
    gc.collect()
    old = gc.get_objects()
    gc.freeze()
    latest = census(old)  # so that there is one to be counted each time

    def counted(self, rows: list[dict]) -> None:
        nonlocal done, latest
        append(self, rows)
        done += len(rows)
        if done % NINE == 0:
            before, latest = latest, census(old)
            growths.append(latest - before)

    monkeypatch.setattr(common.Rows, "append", counted)
    try:
        run_main(name, *SCRIPTS[name], "--show", "1", "--limit", str(4 * NINE), cwd=tmp_path, monkeypatch=monkeypatch)
    finally:
        gc.unfreeze()
    _, *growths = growths  # in the first are the network and all that is loaded when it is used
    assert len(growths) == 3
    return Counter({kind: n for kind, n in reduce(and_, growths).items() if n >= NINE / 2})


@pytest.mark.parametrize("name", PER_IMAGE)
def test_nothing_stays_of_an_image(name, tmp_path, monkeypatch):
    assert not growth(name, tmp_path, monkeypatch)


class Planted:
    """Nothing but an object."""


LEAKS = {
    "10 kB": lambda: libc.malloc(10_000),
    "Planted": Planted,
    "Tensor": lambda: torch.zeros(1),
    "ndarray": lambda: np.zeros(1),
    "list": list,
    "float": lambda: 0.5,
    "open file": lambda: os.dup(0),
    "thread": lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(),
}


@pytest.mark.skipif(not COUNTS_ALL, reason="needs Linux's /proc and glibc 2.33")
def test_the_census_finds_whatever_stays_of_an_image(tmp_path, monkeypatch):
    script, leaked = load_script("2d_predict"), []
    top_classes = script.top_classes

    def leaks(model, images):
        leaked.extend(leak() for leak in LEAKS.values() for _ in images)
        return top_classes(model, images)

    monkeypatch.setattr(script, "top_classes", leaks)
    found = growth("2d_predict", tmp_path, monkeypatch)
    assert all(found[kind] >= NINE for kind in LEAKS)


# ------------------------------------------------------------------------------------------------
# The most memory that a run has

GAP = """
import ctypes, re
from explain.run.shell import keep_freed_memory, return_freed_memory

def mb():
    return int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
keep_freed_memory()
block, after = (ctypes.c_void_p(libc.malloc(n)) for n in (64 << 20, 1 << 20))
libc.memset(block, 1, 64 << 20)
libc.free(block)
kept = mb()
return_freed_memory()
print(kept - mb())
"""


@pytest.mark.skipif(not COUNTS_ALL, reason="needs Linux's /proc and glibc 2.33")
def test_freed_memory_between_blocks_in_use_is_returned():
    done = subprocess.run([sys.executable, "-c", GAP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 60


# the default network has activations of hundreds of megabytes, the other one hides less behind them
NETWORKS = {"default": ["--dataset", "data", "--threads", "2"], "tiny": ["--model", "timm/test_resnet"]}
NETWORKS["tiny"] += ["--weights", "random", "--dataset", "data", "--threads", "1"]
MORE = {
    "2e_saliency": ["--copies", "0", "--scores", "0"],
    "2f_guided_saliency": ["--scores", "1"],
    "2g_faithfulness": ["--copies", "0", "--steps", "1", "--randomise", "1", "--stages", "1", "--mosaics", "0"],
    "2h_mc_dropout": ["--dropout", "0.5"],
}


def peak_mb(name: str, network: str, count: int, folder: Path) -> float:
    """Of a run over so many photos."""
    save_photos(name, count, folder)
    given = [] if name == "2b_evaluate" else ["photos"]
    # forked from one process, all have the same addresses: from start to start they would be others, on which depends
    # where blocks come to lie, and so up to a tenth of the memory
    finish_script(name, *given, *NETWORKS[network], *MORE.get(name, []), cwd=folder)
    return int((folder / "said.peak").read_text()) / 1024


@pytest.mark.long  # and beside the test above, as what lies where, and so the peak, depends on the machine
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", PER_IMAGE)
def test_memory_does_not_grow_with_the_number_of_images(name, network, tmp_path):
    """At 2,000 images the median peak of three runs is at most 1.05 times that at 200.

    Between runs of the same command the peak differs by up to a twentieth, with the order in which threads allocate.
    """
    runs = [(count, tmp_path / f"{count} images, run {n}") for count in (200, 2000) for n in range(3)]
    of_each = [peak_mb(name, network, *run) for run in runs]
    peaks = median(of_each[:3]), median(of_each[3:])
    print(f"{name}, {network} network: {peaks[0]:.0f} MB at 200 images, {peaks[1]:.0f} MB at 2000")
    assert peaks[1] <= 1.05 * peaks[0]
