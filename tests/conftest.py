"""What the tests share: the scripts by their names (which begin with digits), small images, small nets."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from explain import shell
from explain.errors import OthersAtWork

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"  # real photos and a second network; may be absent


def load_script(name: str):
    """The module of a script, by its name without .py."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def run_script(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script as a user would, in the folder `cwd`."""
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=600)


def run_main(name: str, *arguments: object, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same inside this process (no four seconds of imports): calls main(), lets its errors through."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    try:
        load_script(name).main()
    except OthersAtWork as status:
        print(status)


# Six scripts on a network of 0.1 million parameters, in fractions of a second: what is looked at here is
# what they leave behind. Eight images in batches of three, one of them broken.
TINY = ["--model", "timm/test_resnet", "--weights", "random", "--batch-size", "3", "--dataset", "data"]
TINY += ["--threads", "1"]  # two would wait for each other more than they compute
ASCENT = ["--classes", "1", "76", "251", "55", "22", "--steps", "6", "--zoom-from", "0.7"]
ASCENT += ["--judge", "timm/test_efficientnet=random"]
SCRIPTS = {
    "2b_evaluate": TINY,
    "2c_class_visualization": TINY + ASCENT,
    "2d_predict": ["photos", *TINY],
    "2e_saliency": ["photos", *TINY],
    "2f_guided_saliency": ["photos", *TINY, "--randomise", "5", "--stages", "2"],
    "2h_mc_dropout": ["photos", *TINY, "--passes", "5", "--dropout", "0.5"],
}


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Works here, and in all that is started from here, in a background job too, where it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_signals():
    """What `shell.run` lets signals do is undone."""
    before = [(number, signal.getsignal(number)) for number in shell.STOP_SIGNALS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def own_threads():
    """Scripts that run in this process set the number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def save_inputs(folder: Path) -> None:
    """The photos, and the split dataset, that SCRIPTS run on."""
    for i in range(8):
        save_photo(folder / f"photos/{i}.png", seed=i)
        save_photo(folder / f"data/DL_data_p/{10 * i + 6}/{i}.png", seed=i)
    for broken in ("photos/3.png", "data/DL_data_p/36/3.png"):
        (folder / broken).write_bytes(b"no image")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too; of metrics.json all but the seconds."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in [name for name in found if name.endswith("metrics.json")]:
        metrics = json.loads(found[name])
        del metrics["seconds"]
        found[name] = json.dumps(metrics).encode()
    return found


def start_script(name: str, *arguments: object, cwd: Path, killed_at: int | None = None) -> multiprocessing.Process:
    """Start a script in a process of its own, forked from one that has imported everything but computed nothing.

    What it prints goes to said.out and said.err in `cwd`, to said.events how often it was about to touch a file of its
    output, and to said.peak the most memory that it had (kB). It gets SIGKILL at the event with the number `killed_at`:
    between two of them a kill finds the same files, whenever it comes.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["conftest", "common", "scipy.stats", "sklearn.metrics"])
    process = server.Process(target=_script, args=(name, [*map(str, arguments)], cwd, killed_at))
    process.start()
    return process


def _script(name: str, arguments: list[str], cwd: Path, killed_at: int | None) -> None:
    os.chdir(cwd)
    for number, file in ((1, "said.out"), (2, "said.err")):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    events = 0

    def touches(event: str, given: tuple) -> None:
        nonlocal events
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate") and "output/" in str(given[0]):
            events += 1
            if events == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touches)
    sys.argv = [f"{name}.py", *arguments]
    try:
        shell.run(load_script(name).main)
    finally:
        sys.stdout.flush()
        Path("said.events").write_text(str(events))
        if os.path.exists("/proc/self/status"):
            # getrusage's maximum counts what the parent had before
            Path("said.peak").write_text(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def finish_script(name: str, *arguments: object, cwd: Path) -> str:
    """Run a script by `start_script` to its end, which must be a good one; returns what it printed."""
    process = start_script(name, *arguments, cwd=cwd)
    process.join(300)
    assert process.exitcode == 0, (cwd / "said.err").read_text()
    return (cwd / "said.out").read_text()


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (96, 80), **settings) -> Path:
    """A small smooth picture, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    pixels = nn.functional.interpolate(coarse, size=size[::-1], mode="bilinear")[0]
    Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).save(path, **settings)
    return path


def state_of(model: nn.Module) -> list:
    """All that a method must leave as it was: values, flags, hooks, `.grad`, and the objects themselves."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(name, id(t), t._version, t.clone(), t.requires_grad, t.grad) for name, t in tensors],
        [
            (name, id(m), m.training, type(m), len(m._forward_hooks), len(m._forward_pre_hooks))
            + (len(m._backward_hooks), len(m._backward_pre_hooks), sorted(m.__dict__))
            for name, m in model.named_modules()
        ],
    ]


def assert_same_state(before: list, after: list) -> None:
    for (name, ident, version, value, requires, grad), now in zip(before[0], after[0], strict=True):
        assert (name, ident, version, requires, grad) == (now[0], now[1], now[2], now[4], now[5])
        assert torch.equal(value, now[3])
    assert before[1] == after[1]


class Raises(nn.Module):
    """A module that fails on the way forward or on the way back."""

    def __init__(self, where: str):
        super().__init__()
        self.where = where

    def forward(self, x):
        if self.where == "forward":
            raise RuntimeError("broken forward")
        if x.requires_grad:
            x = x.clone()
            x.register_hook(self._backward)
        return x

    def _backward(self, gradient):
        raise RuntimeError("broken backward")


@pytest.fixture
def images() -> torch.Tensor:
    """Five images (5, 3, 8, 8) in [0, 1]."""
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def toy() -> nn.Module:
    """Convolution, batch norm, rectifiers of both forms, dropout, 4 classes; left in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32, 4),
    )
    model[1].running_mean.uniform_(-0.1, 0.1)
    return model.train()
