"""What the tests share: the scripts by their names (which begin with digits), small images, small nets."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module as load_script  # by its name without .py
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

# Each worker of pytest-xdist, and all that it starts, has a core of its own and computes in one thread: the threads of
# several would wait for each other more than they compute.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import common
from explain.basics.errors import OthersAtWork
from explain.report import page
from explain.run import shell

ROOT = Path(__file__).resolve().parent.parent
SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # which Windows lacks
SHARED = ROOT.parent / "shared"  # real photos and a second network; may be absent


def sentences(*caption: str) -> int:
    """Return the number of sentences of a caption."""
    return len(re.findall(r"[.?!](?= |$)", " ".join(caption)))


def run_main(name: str, *arguments: object, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script in the folder `cwd`, in this process: calls main(), lets its errors through."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    try:
        load_script(name).main()
    except OthersAtWork as status:
        print(status)


def draw_nothing(monkeypatch: pytest.MonkeyPatch, page: ModuleType) -> None:
    """Make each figure one pixel and the page of this module empty."""
    pixel = stored(Image.new("L", (1, 1)), "PNG")
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(pixel))
    monkeypatch.setattr(page, "render", lambda *_: "")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, for tests that look at neither figures nor the page."""
    draw_nothing(monkeypatch, page)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """A function that runs a script in `tmp_path`, in this process, and returns what its metrics.json has.

    The options must leave the output folder "output"; where the run writes no metrics, they are {} or a former run's.
    """

    def run(name: str, *arguments: object) -> dict:
        run_main(name, *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
        path = tmp_path / "output" / name / "metrics.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    return run


# Seven scripts on a network of 0.1 million parameters, in fractions of a second: what is looked at here is
# what they leave behind. Eight images in batches of three, one of them broken.
TINY = ["--model", "timm/test_resnet", "--weights", "random", "--input-size", "64", "--batch-size", "3"]
# two threads would wait for each other more than they compute
TINY += ["--dataset", "data", "--output", "output", "--threads", "1", "--show", "2"]
ASCENT = ["--classes", "1", "76", "251", "55", "22", "--steps", "6", "--zoom-from", "0.7"]
ASCENT += ["--judge", "timm/test_efficientnet=random"]
SCRIPTS = {
    "2b_evaluate": TINY,
    "2c_class_visualization": TINY + ASCENT,
    "2d_predict": ["photos", *TINY],
    "2e_saliency": ["photos", *TINY, "--copies", "2", "--scores", "1"],
    "2f_guided_saliency": ["photos", *TINY, "--scores", "1"],
    "2g_faithfulness": ["photos", *TINY, "--copies", "1", "--steps", "2", "--randomise", "1", "--stages", "1"]
    + ["--mosaics", "0"],
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


@pytest.fixture(autouse=True)
def own_threads_and_randomness():
    """Each test begins with the same, whichever ran before: scripts in this process set the threads and TF32."""
    before, cudnn, matmul = torch.get_num_threads(), torch.backends.cudnn, torch.backends.cuda.matmul
    tf32 = cudnn.allow_tf32, matmul.allow_tf32
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
    cudnn.allow_tf32, matmul.allow_tf32 = tf32


def ends_within(seconds: float, is_running: Callable[[], bool]) -> bool:
    """Return True if it ends in time, by a clock of hundredths of a second that this process sleeps.

    A machine that is busy with other things makes both wait alike.
    """
    for _ in range(int(100 * seconds)):
        if not is_running():
            return True
        time.sleep(0.01)
    return False


def save_inputs(folder: Path) -> None:
    """The photos, and the split dataset, that SCRIPTS run on."""
    for i in range(8):
        save_photo(folder / f"photos/{i}.png", seed=i)
        save_photo(folder / f"data/DL_data_p/{10 * i + 6}/{i}.png", seed=i)
    for broken in ("photos/3.png", "data/DL_data_p/36/3.png"):
        (folder / broken).write_bytes(b"no image")


@pytest.fixture(scope="session")  # a worker of pytest-xdist goes to another file and comes back
def undisturbed(tmp_path_factory) -> Callable[..., Path]:
    """A function that returns the folder in which a script of SCRIPTS has run, once and in a process of its own.

    With further options, which other runs do not have, it runs again.
    """
    folders = {}

    def folder(name: str, *more: str) -> Path:
        key = name, more
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(name)
            save_inputs(folders[key])
            finish_script(name, *SCRIPTS[name], *more, cwd=folders[key])
        return folders[key]

    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too; of metrics.json all but the seconds."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in [name for name in found if name.endswith("metrics.json")]:
        metrics = json.loads(found[name])
        del metrics["seconds"]
        found[name] = json.dumps(metrics).encode()
    return found


def fork_server() -> multiprocessing.context.ForkServerContext:
    """Return what starts processes that are forked from one that has imported everything but computed nothing."""
    server = multiprocessing.get_context("forkserver")
    # a process that finds nothing by the tests' own path, and so imports what conftest.py does by name
    server.set_forkserver_preload(["pytest", "scipy.stats", "sklearn.metrics", *SCRIPTS, "process_data"])
    return server


def start_script(
    name: str,
    *arguments: object,
    cwd: Path,
    said: Path | None = None,
    stop_at: int | None = None,
    by: signal.Signals = SIGKILL,
) -> multiprocessing.Process:
    """Start a script in a process of its own, by `fork_server`.

    What it prints goes to said.out and said.err in the folder `said` (default: `cwd`), to said.events how often it was
    about to touch a file of its output, and to said.peak the most memory that it had (kB). It gets the signal `by` at
    the event with the number `stop_at`: between two of them a kill finds the same files, whenever it comes.
    """
    given = (name, [*map(str, arguments)], cwd, said or cwd, stop_at, by)
    process = fork_server().Process(target=_script, args=given, daemon=True)  # ended with this one, should it hang
    process.start()
    return process


def _script(name: str, arguments: list[str], cwd: Path, said: Path, stop_at: int | None, by: signal.Signals) -> None:
    os.chdir(cwd)
    os.environ["COLUMNS"] = "100"
    for number, file in ((1, "said.out"), (2, "said.err")):
        os.dup2(os.open(said / file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    events = 0

    def touches(event: str, given: tuple) -> None:
        nonlocal events
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate") and "output/" in str(given[0]):
            events += 1
            if events == stop_at:
                (said / "said.stop").touch()
                os.kill(os.getpid(), by)

    sys.addaudithook(touches)
    script = str(ROOT / f"{name}.py")
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.stdout.flush()
        (said / "said.events").write_text(str(events))
        if os.path.exists("/proc/self/status"):
            # getrusage's maximum counts what the parent had before
            (said / "said.peak").write_text(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def run_script(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script by `start_script` to its end, whatever that is."""
    with TemporaryDirectory() as folder:
        process = start_script(name, *arguments, cwd=cwd, said=Path(folder))
        process.join(600)
        said = [Path(folder, file).read_text() for file in ("said.out", "said.err")]
    return subprocess.CompletedProcess(name, process.exitcode, *said)


def finish_script(name: str, *arguments: object, cwd: Path) -> str:
    """Run a script by `start_script` to its end, which must be a good one; returns what it printed."""
    process = start_script(name, *arguments, cwd=cwd)
    process.join(900)
    assert process.exitcode == 0, (cwd / "said.err").read_text()
    return (cwd / "said.out").read_text()


def noted_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the index of each row is added that is computed from now on."""
    done: list[int] = []
    append = common.Rows.append
    monkeypatch.setattr(
        common.Rows, "append", lambda self, rows: done.extend(r["index"] for r in rows) or append(self, rows)
    )
    return done


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (96, 80), **settings) -> Path:
    """A small smooth picture, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator).double()  # the same bytes with any number of threads
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


# A user's own file, net.py beside the images: networks of (N, 3, 32, 32) with 4 logits, and what is wrong with some
NETWORKS = """
import os
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn
from torch.nn.utils import parametrizations, prune

class Net(nn.Module):
    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.conv, self.dropout, self.fc = nn.Conv2d(channels, 6, 3), nn.Dropout(0.3), nn.Linear(6, classes)
    def features(self, x): return self.conv(x).relu().mean((2, 3))
    def forward(self, x): return self.fc(self.dropout(self.features(x)))

def three(): return Net()
def grey(): return Net(channels=1)
def one(): return Net(classes=1)
def half(): return Net().half()
def named(make=Net):
    network = make(); network.classes = ["a", "b", "c", "d"]; return network
def sigmoid(): return nn.Sequential(Net(), nn.Sigmoid())
def softmax(): return nn.Sequential(Net(), nn.Softmax(dim=1))
class LogSoftmax(Net):
    def forward(self, x): return F.log_softmax(super().forward(x), dim=1)
class ByHand(Net):
    def forward(self, x): return super().forward(x).softmax(1).log()
class Flat(Net):
    def forward(self, x): return super().forward(x).sigmoid().squeeze(1)
def binary(): return Flat(classes=1)

def sequence(change=lambda conv: conv, channels=3):
    return nn.Sequential(
        change(nn.Conv2d(channels, 6, 3)), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )
def weight_norm(): return sequence(parametrizations.weight_norm)
def old_weight_norm(): return sequence(nn.utils.weight_norm)
def spectral_norm(): return sequence(parametrizations.spectral_norm)
def old_spectral_norm(): return sequence(nn.utils.spectral_norm)
def pruned(): return sequence(lambda conv: prune.l1_unstructured(conv, "weight", 0.5))
def four_channels(): return sequence(channels=4)

class ReadsItsNorm(Net):
    def __init__(self, **settings):
        super().__init__()
        self.norm = nn.BatchNorm2d(6, **settings)
    def forward(self, x):
        return self.fc((self.norm(self.conv(x)).relu() * self.norm.weight.abs().mean()).mean((2, 3)))
def no_statistics(): return ReadsItsNorm(track_running_stats=False)
class BatchStatistics(Net):
    def forward(self, x):
        return self.fc(F.batch_norm(self.conv(x), None, None, training=True).relu().mean((2, 3)))
class View(Net):
    def forward(self, x): return self.fc(self.conv(x).view(-1, 5400).view(-1, 6, 900).mean(2))
class Dropout(Net):
    def forward(self, x): return self.fc(F.dropout(self.features(x), 0.5))
class ShiftedDropout(Net):
    def forward(self, x): return F.dropout(super().forward(x), 0.5) + 1000
class Jitters(Net):
    def forward(self, x): return super().forward(x + 1e-3 * torch.randn_like(x))

class Several(Net):
    def __init__(self, pack):
        super().__init__()
        self.pack = pack
    def forward(self, x): return self.pack(self.features(x), super().forward(x))
pair = partial(Several, lambda features, logits: (features, logits))
logits_first = partial(Several, lambda features, logits: (logits, features))
exits = partial(Several, lambda features, logits: [logits + 1, logits])
by_name = partial(Several, lambda features, logits: {"output": logits, "features": features})
soft_pair = partial(Several, lambda features, logits: (features, logits.log_softmax(1)))
def knows_its_names(): return named(logits_first)

class Squeezes(Net):
    def forward(self, x): return super().forward(x).squeeze()
class TwoArguments(Net):
    def forward(self, x, y): return super().forward(x)
class TakesApart(Net):
    def forward(self, x):
        x, y, z = x  # "too many dimensions", or values
        return super().forward(x)
class Fails(Net):
    def forward(self, x): return {}["no such key"]
class GreyThatFails(nn.Module):
    def forward(self, x):
        if x.shape[1] == 3:
            return F.conv2d(x, torch.ones(4, 1, 3, 3))
        raise KeyError("labels missing")
number = 3
def needs(size): return Net()
def fails(): return 1 / 0
def nothing(): return 5
def leaves(): raise SystemExit(2)
def square():
    from helper import SIDE  # a file beside this one
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4))
def wanders():
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    return Net()

# as tutorials have them, with 3 classes; the first two take images of 28 x 28 grey pixels
class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 3)
    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2)).view(-1, 320)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), training=self.training))
class Mnist(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(2304, 32), nn.Linear(32, 3)
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.fc1(torch.flatten(self.dropout1(x), 1)))
        return F.log_softmax(self.fc2(self.dropout2(x)), dim=1)
def flat():
    pooled = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*pooled, nn.Flatten(), nn.Linear(1800, 3))
class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.Dropout(0.2))
        self.embedding, self.classifier = nn.Linear(8, 16), nn.Linear(16, 3)
    def forward(self, x):
        embedding = self.embedding(self.features(x).mean((2, 3)))
        return embedding, self.classifier(embedding)
"""


def as_written(name: str) -> nn.Module:
    """Return the network that NETWORKS makes under this name, in the state that `common.load_model` gives it."""
    variables: dict = {}
    exec(NETWORKS, variables)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return variables[name]().eval()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with net.py, which is the working directory."""
    (tmp_path / "net.py").write_text(NETWORKS)
    (tmp_path / "helper.py").write_text("SIDE = 32\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_exported(path: Path, network: nn.Module, images: torch.Tensor, **bounds: int) -> str:
    """Save an archive of torch.export that takes batches of any size, or within `bounds` (min, max)."""
    shapes = ({0: torch.export.Dim("batch", **bounds)},)
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), path)
    return str(path)


def saved(path: Path, content: object) -> str:
    """Save a checkpoint; returns its path as an option takes it."""
    torch.save(content, path)
    return str(path)


class Trap:
    """Shows what a pickle can do when it is loaded as code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def stored(image: Image.Image, kind: str, **settings) -> bytes:
    """Return the image as a file of this format."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def rows_of(folder: Path) -> list[dict]:
    """Return the rows of a script's part of the output."""
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def table_of(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file, by its headings."""
    return list(csv.DictReader(path.read_text().splitlines()))


def save_labelled(folder: Path, right: list[bool]) -> nn.Module:
    """Save a photo for each, in a folder of the class that TINY's network takes it for, or of the next; return it."""
    model = common.load_model("timm/test_resnet", "random", input_size=64)
    for i, is_right in enumerate(right):
        photo = save_photo(folder / "one.png", i)
        c = int(common.predict_logits(model, model.preprocess(common.read_image(photo))[None]).argmax())
        path = folder / f"{c if is_right else (c + 1) % 1000}/{i}.png"
        path.parent.mkdir(exist_ok=True)
        photo.rename(path)
    return model
