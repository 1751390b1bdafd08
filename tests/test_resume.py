"""Runs that were killed, stopped, or found the disk full: started again, they leave what an undisturbed one leaves."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from conftest import (
    ROOT,
    SCRIPTS,
    contents,
    ends_within,
    finish_script,
    load_script,
    noted_rows,
    save_inputs,
    save_photo,
    start_script,
)

import common
from explain.report import figures
from explain.run import rows, shell

# long enough for a state to be kept
LONGER = {"2c_class_visualization": ["--steps", "60", "--methods", "gaussian"]}
SCRIPTS = {name: [*arguments, *LONGER.get(name, [])] for name, arguments in SCRIPTS.items()}
# the mechanism is the same for all that explain images
SOME_SCRIPTS = ["2c_class_visualization", "2e_saliency"]
EVERY_SCRIPT = [pytest.param(name, marks=[pytest.mark.long] * (name not in SOME_SCRIPTS)) for name in SCRIPTS]
PER_IMAGE = [name for name in SCRIPTS if name != "2c_class_visualization"]


def whole(undisturbed, name: str) -> dict[str, bytes]:
    return contents(undisturbed(name, *LONGER.get(name, [])) / "output" / name)


def events_of(undisturbed, name: str) -> int:
    """Return how often the undisturbed run touched its files."""
    return int((undisturbed(name, *LONGER.get(name, [])) / "said.events").read_text())


def rows_so_far(folder: Path) -> Path:
    """The file of a run that is not split, while it is under way."""
    settings = json.loads((folder / "run.json").read_bytes())
    return folder / f"rows.{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}.0-of-1.jsonl"


def interrupted(undisturbed, name: str, tmp_path: Path, rows_left: int) -> Path:
    """A copy of a run's folder as a kill would leave it after so many rows and a half; the rest is gone."""
    save_inputs(tmp_path)
    folder = tmp_path / "output" / name
    folder.mkdir(parents=True)
    done = undisturbed(name) / "output" / name
    (folder / "run.json").write_bytes((done / "run.json").read_bytes())
    lines = (done / "rows.jsonl").read_bytes().splitlines(keepends=True)
    for row in map(json.loads, lines[:rows_left]):
        for file in row.get("files", []):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes((done / file).read_bytes())
    rows_so_far(folder).write_bytes(b"".join(lines[:rows_left]) + lines[rows_left][:20])  # after its files, as in a run
    return folder


@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", EVERY_SCRIPT)
def test_killed_at_random_moments(name, moments, undisturbed, tmp_path):
    """Each in a folder of its own, and started again."""
    expected, events = whole(undisturbed, name), events_of(undisturbed, name)
    for moment in sorted(random.Random(name).sample(range(1, events + 1), moments)):
        cwd = tmp_path / str(moment)
        save_inputs(cwd)
        process = start_script(name, *SCRIPTS[name], cwd=cwd, stop_at=moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        finish_script(name, *SCRIPTS[name], cwd=cwd)
        assert contents(cwd / "output" / name) == expected, f"killed at {moment} of {events}"


@pytest.mark.parametrize("name", EVERY_SCRIPT)
def test_a_failing_write(name, undisturbed, tmp_path, run, monkeypatch):
    """The disk takes half of the last lot of rows; with room again, the run is completed."""
    save_inputs(tmp_path)
    fsync, sizes = os.fsync, [0]

    def full(file: int) -> None:
        sizes.append(os.fstat(file).st_size)
        if len(sizes) <= (2 if name == "2c_class_visualization" else 3):
            return fsync(file)
        os.ftruncate(file, (sizes[-2] + sizes[-1]) // 2)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as caught:
        patch.setattr(rows.os, "fsync", full)
        run(name, *SCRIPTS[name])
    assert caught.value.filename == f"output/{name}/{rows_so_far(tmp_path / 'output' / name).name}"
    run(name, *SCRIPTS[name])
    assert contents(tmp_path / "output" / name) == whole(undisturbed, name)


@pytest.mark.parametrize("name", PER_IMAGE)
def test_only_what_is_missing_is_done_again(name, undisturbed, tmp_path, run, monkeypatch):
    """And the torn line is, among it."""
    folder = interrupted(undisturbed, name, tmp_path, rows_left=5)
    done = noted_rows(monkeypatch)
    run(name, *SCRIPTS[name], "--show", "1")
    assert done == [5, 6, 7] and contents(folder) != whole(undisturbed, name)
    # once complete, nothing is: with the same settings only the drawing is done again
    run(name, *SCRIPTS[name])
    assert done == [5, 6, 7] and contents(folder) == whole(undisturbed, name)


def test_the_ascent_goes_on_from_its_state(tmp_path, run, monkeypatch):
    """The second method is stopped after its 55th step: the state is that after the 50th, from which 10 are left."""
    name, steps = "2c_class_visualization", []
    script = load_script(name)
    visualize_classes = script.visualize_classes

    def stopped(model, classes, method, generators, size, state, on_step, **settings):
        def observe(state):
            on_step(state)
            if stop and method == "natural" and state.step == 55:
                raise KeyboardInterrupt
            steps.append(state.step)

        return visualize_classes(model, classes, method, generators, size, state, observe, **settings)

    monkeypatch.setattr(script, "visualize_classes", stopped)
    save_inputs(tmp_path)
    arguments = [*SCRIPTS[name], "--batch-size", "5", "--methods", "plain", "natural"]
    stop = True
    with pytest.raises(KeyboardInterrupt):
        run(name, *arguments)
    assert len(list((tmp_path / "output" / name).glob("state.*.pt"))) == 1
    assert steps == [*range(61), *range(55)]
    stop = False
    run(name, *arguments)
    assert steps[61 + 55 :] == list(range(50, 61))
    run(name, *arguments, "--output", "other")
    resumed, other = contents(tmp_path / "output" / name), contents(tmp_path / "other" / name)
    del resumed["metrics.json"], other["metrics.json"]  # they name the output folder
    assert resumed == other


OTHERS = {
    "model": ["--model", "timm/test_byobnet"],
    "weights": ["--model", "timm/test_resnet", "--weights", "other.pth"],
    "seed": ["--seed", "1"],
    "threads": ["--threads", "2"],
    "batch_size": ["--batch-size", "4"],
    "limit": ["--limit", "7"],
    "strict": ["--strict"],
    "passes": ["--passes", "6"],
    "dropout": ["--dropout", "0.25"],
    "with other images: ": [],
    "with another version of the code: ": [],
}


def test_other_settings_images_and_code_refuse_to_mix(undisturbed, tmp_path, run, monkeypatch):
    name = "2h_mc_dropout"
    folder = interrupted(undisturbed, name, tmp_path, rows_left=5)
    before, photo = contents(folder), tmp_path / "photos/7.png"
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    original = photo.read_bytes()
    for setting, options in OTHERS.items():
        with monkeypatch.context() as patch:
            photo.write_bytes(original + b"\0" * ("images" in setting))
            if "code" in setting:
                patch.setattr(rows, "imported_files", lambda script: [script])
            there = f"with (no )?--{setting.replace('_', '-')}[ :]" if options else setting
            with pytest.raises(common.UserError, match=f"has an unfinished run {there}.*--fresh") as caught:
                run(name, *SCRIPTS[name], *options)
        assert "\n" not in str(caught.value) and contents(folder) == before, setting
    photo.write_bytes(original)
    run(name, *SCRIPTS[name])
    assert contents(folder) == whole(undisturbed, name)


def test_fresh_starts_over(undisturbed, tmp_path, run):
    """An interrupted run needs to be told, also with the same settings; what only it had is removed."""
    name = "2e_saliency"
    folder = interrupted(undisturbed, name, tmp_path, rows_left=5)
    path = rows_so_far(folder)
    path.write_text(path.read_text().replace('"index": 1', '"index": 1, "wrong": 1'))
    run(name, *SCRIPTS[name], "--fresh")
    assert contents(folder) == whole(undisturbed, name)
    shutil.rmtree(folder)
    shorter = ["photos", *SCRIPTS[name][1:], "--limit", "2", "--seed", "1"]
    run(name, *shorter)
    expected = contents(folder)
    shutil.rmtree(folder)
    interrupted(undisturbed, name, tmp_path, rows_left=5)
    assert len(list(folder.glob("maps/*.npy"))) > 2
    with pytest.raises(common.UserError, match="--fresh"):
        run(name, *shorter)
    run(name, *shorter, "--fresh")
    assert contents(folder) == expected
    run(name, *SCRIPTS[name])  # a complete run is replaced
    run(name, *shorter)
    assert contents(folder) == expected


def test_a_damaged_row_is_computed_again(undisturbed, tmp_path, run, monkeypatch):
    """In the middle of the file, too, and in that of a complete run."""
    name = "2d_predict"
    folder = interrupted(undisturbed, name, tmp_path, rows_left=5)
    lines = rows_so_far(folder).read_bytes().splitlines(keepends=True)
    rows_so_far(folder).write_bytes(
        b"".join([lines[0], b"damaged\n", b"\0\0\n", b"[1]\n", b'{"index": "2"}\n', *lines[3:]])
    )
    run(name, *SCRIPTS[name])
    assert contents(folder) == whole(undisturbed, name)
    whole_file = folder / "rows.jsonl"
    whole_file.write_bytes(whole_file.read_bytes().replace(b'"index": 4', b'"index": 4,,', 1))
    run(name, *SCRIPTS[name])
    assert contents(folder) == whole(undisturbed, name)


@pytest.mark.parametrize("moment", ["before the first row", "after the last row"])
def test_another_run_takes_the_folder_over(moment, undisturbed, tmp_path, run, monkeypatch):
    """It said that rows were missing from other shards, and ended well, its result gone."""
    name = "2d_predict"
    save_inputs(tmp_path)
    method = "append" if moment == "before the first row" else "complete"
    original = getattr(common.Rows, method)

    def overtaken(self, *given):
        if self.settings["seed"] == 0:
            others = ["--seed", "1"] if method == "append" else ["--seed", "1", "--fresh"]
            run(name, *SCRIPTS[name], *others)
        return original(self, *given)

    monkeypatch.setattr(common.Rows, method, overtaken)
    with pytest.raises(common.UserError, match="another run with other settings .* its own --output") as caught:
        run(name, *SCRIPTS[name])
    assert "\n" not in str(caught.value)
    metrics = json.loads((tmp_path / "output" / name / "metrics.json").read_text())
    assert metrics["seed"] == 1 and metrics["images"]["found"] == 8  # the other run is whole
    lines = (tmp_path / "output" / name / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(8))


def test_two_runs_with_the_same_settings_both_end_right(undisturbed, tmp_path, run, monkeypatch):
    name = "2d_predict"
    save_inputs(tmp_path)
    append, calls = common.Rows.append, []

    def overtaken(self, rows):
        calls.append(rows)
        if len(calls) == 2:
            run(name, *SCRIPTS[name])
        return append(self, rows)

    monkeypatch.setattr(common.Rows, "append", overtaken)
    run(name, *SCRIPTS[name])
    assert len(calls) > 3 and contents(tmp_path / "output" / name) == whole(undisturbed, name)


def test_the_code_that_a_run_depends_on_is_what_its_script_imports():
    def names(script: str) -> set[str]:
        return {path.relative_to(ROOT).as_posix() for path in rows.imported_files(ROOT / f"{script}.py")}

    nouns = ("run/rows", "networks/classifier", "networks/inference", "data/image_files", "basics/errors")
    shared = {"common.py", *(f"explain/{noun}.py" for noun in nouns)}
    assert shared < names("2b_evaluate") and "2b_evaluate.py" in names("2b_evaluate")
    only_of_2c = {"explain/methods/archetypes.py", "explain/methods/priors.py"}
    assert only_of_2c < names("2c_class_visualization") and not only_of_2c & names("2b_evaluate")
    assert not any(name.startswith("explain/report/") for script in SCRIPTS for name in names(script))
    assert "2e_saliency.py" in names("2f_guided_saliency") and "2e_saliency.py" not in names("2h_mc_dropout")


COUNTS = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images):
        open("passes", "a").write("x")
        return self.conv(images).relu().mean((2, 3))
"""


def test_a_caption_is_drawn_anew_and_no_row_is_computed(tmp_path):
    """It repeated all passes: the digest of the code covered what draws and writes."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "explain", tmp_path / "explain", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "net.py").write_text(COUNTS)
    save_photo(tmp_path / "a.png")
    command = [sys.executable, "2e_saliency.py", "a.png", "--model", "net.py:Net", "--input-size", "32"]

    def run() -> tuple[int, str, bytes]:
        """Return the number of passes, the caption, and the rows."""
        (tmp_path / "passes").unlink(missing_ok=True)
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        folder = tmp_path / "output/pictures/2e_saliency"
        captions = json.loads((folder / "metrics.json").read_text())["captions"]
        return len((tmp_path / "passes").read_text()), str(captions), (folder / "rows.jsonl").read_bytes()

    passes, before, rows_before = run()
    of_loading, *_ = run()
    drawing = tmp_path / "explain/report/maps.py"
    drawing.write_text(drawing.read_text().replace("the image ({model.view})", "THE IMAGE ({model.view})"))
    again, caption, rows_after = run()
    assert again == of_loading < passes and rows_after == rows_before
    assert "THE IMAGE" in caption and "THE IMAGE" not in before


def test_metrics_json_means_complete(undisturbed, tmp_path, run, monkeypatch):
    """From before the first row of a new run until after its last figure there is none."""
    name = "2e_saliency"
    save_inputs(tmp_path)
    run(name, *SCRIPTS[name], "--seed", "1")
    metrics, seen = tmp_path / "output" / name / "metrics.json", []
    append, save = common.Rows.append, figures.save_figure
    monkeypatch.setattr(common.Rows, "append", lambda self, rows: seen.append(metrics.exists()) or append(self, rows))
    monkeypatch.setattr(figures, "save_figure", lambda *given: seen.append(metrics.exists()) or save(*given))
    run(name, *SCRIPTS[name])
    assert len(seen) > 1 and not any(seen) and contents(metrics.parent) == whole(undisturbed, name)


def test_images_without_any_use_do_not_stand_in_the_way(tmp_path, run):
    """A run of nothing but skipped files has no metrics.json, and nothing that one would want to keep."""
    save_inputs(tmp_path)
    arguments = SCRIPTS["2d_predict"][1:]
    with pytest.raises(common.UserError, match="none of the 1 images can be used"):
        run("2d_predict", "photos/3.png", *arguments)
    assert run("2d_predict", "photos/2.png", *arguments)["images"]["used"] == 1


def slow() -> None:
    """One operation that takes many seconds, and lets Python's handlers of signals wait."""

    def main() -> None:
        matrix = torch.rand(4000, 4000)
        print("computing", flush=True)
        torch.linalg.svd(matrix)

    os.dup2(os.open("slow.out", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(os.open("slow.err", os.O_WRONLY | os.O_CREAT), 2)
    shell.run(main)


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process) -> None:
    """Wait until it is so, which must not be later than the process's end."""
    while not condition():
        assert process.is_alive() or condition()
        time.sleep(0.001)


def test_ctrl_c_ends_a_long_operation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = multiprocessing.get_context("forkserver").Process(target=slow, daemon=True)
    process.start()
    wait_for(lambda: Path("slow.out").is_file() and Path("slow.out").read_text(), process)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    assert ends_within(2, process.is_alive) and process.exitcode == 130
    assert Path("slow.err").read_text() == shell.STOPPED_EARLY


STOPS = """
import os, sys

def stop(event, given):
    if event == "import" and given[0] == {moment!r}:
        os.write(1, b"now")
        os.kill(os.getpid(), {number:d})

sys.addaudithook(stop)
"""


# a module in C++, and one of Python's; before the libraries, it is Python's own start
@pytest.mark.parametrize(
    ("name", "number", "moment"),
    [("2b_evaluate", signal.SIGINT, "torch._C"), ("process_data", signal.SIGTERM, "numpy")],
)
def test_ctrl_c_while_libraries_are_imported(name, number, moment, tmp_path):
    """It was a traceback."""
    (tmp_path / "sitecustomize.py").write_text(STOPS.format(moment=moment, number=number))
    script, pipe = [sys.executable, ROOT / f"{name}.py"], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(script, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdout.read(3) == "now"
        in_time = ends_within(2, lambda: process.poll() is None)
        process.kill()
        assert in_time and process.returncode == 130
        assert process.stderr.read() == shell.STOPPED_EARLY


def test_ctrl_c_says_how_to_go_on(undisturbed, tmp_path):
    name = "2e_saliency"
    save_inputs(tmp_path)
    half = events_of(undisturbed, name) // 2
    process = start_script(name, *SCRIPTS[name], cwd=tmp_path, stop_at=half, by=signal.SIGINT)
    wait_for((tmp_path / "said.stop").is_file, process)
    assert ends_within(2, process.is_alive) and process.exitcode == 130
    assert (tmp_path / "said.err").read_text() == shell.STOPPED and "run the same command again" in shell.STOPPED
