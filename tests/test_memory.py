"""Peak resident memory does not grow with the number of images: at 2,000 at most 1.05 times that at 200."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import SCRIPTS, finish_script, save_photo

SIZES = ((460, 390), (500, 375), (333, 500), (640, 480))  # of photos, which are decoded to blocks of different sizes
# the default network has activations of hundreds of megabytes, the other one hides less behind them
NETWORKS = {"default": ["--dataset", "data", "--threads", "2"], "tiny": ["--model", "timm/test_resnet"]}
NETWORKS["tiny"] += ["--weights", "random", "--dataset", "data", "--threads", "1"]
MORE = {"2h_mc_dropout": ["--dropout", "0.5"]}
LONG = [
    pytest.param(name, network, 200, 2000, 1.05, marks=pytest.mark.long)
    for name in SCRIPTS
    for network in NETWORKS
    if name != "2c_class_visualization"
]


def peak_mb(name: str, network: str, count: int, folder: Path) -> float:
    """Of a run over so many photos, copies of a few."""
    photos = [save_photo(folder / f"{n}.jpg", n, size) for n, size in enumerate(SIZES)]
    for i in range(count):
        target = f"data/DL_data_p/{i % 1000}/{i:04d}.jpg" if name == "2b_evaluate" else f"photos/{i:04d}.jpg"
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos[i % len(photos)], folder / target)
    given = [] if name == "2b_evaluate" else ["photos"]
    more = MORE.get(name, []) if network == "tiny" else []
    # forked from one process, all have the same addresses: from start to start they would be others, on which depends
    # where blocks come to lie, and so up to a tenth of the memory
    finish_script(name, *given, *NETWORKS[network], *more, cwd=folder)
    return int((folder / "said.peak").read_text()) / 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("name", "network", "few", "many", "bound"), [("2e_saliency", "tiny", 40, 500, 1.03), *LONG])
def test_memory_does_not_grow_with_the_number_of_images(name, network, few, many, bound, tmp_path):
    peaks = [peak_mb(name, network, count, tmp_path / str(count)) for count in (few, many)]
    print(f"{name}, {network} network: {peaks[0]:.0f} MB at {few} images, {peaks[1]:.0f} MB at {many}")
    assert peaks[1] <= bound * peaks[0]
