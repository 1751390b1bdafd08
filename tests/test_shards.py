"""Runs split over processes: whatever their number and order, they leave what one process leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS, TINY, contents, fork_server, load_script, noted_rows, save_inputs

import common
from explain.basics import files
from explain.run import rows
from explain.run.command_line import option_parser


@pytest.fixture
def plain(undisturbed):
    """The files that a script leaves when it is not split: plain(name)."""
    return lambda name: contents(undisturbed(name) / "output" / name)


class KilledError(BaseException):
    """Stands for the end of the process: nothing in the scripts catches it."""


EVERY_SCRIPT = [pytest.param(name, marks=[pytest.mark.long] * (name[:2] not in ("2c", "2h"))) for name in SCRIPTS]


@pytest.mark.parametrize("n", [3, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 7))])
@pytest.mark.parametrize("name", EVERY_SCRIPT)
def test_shards_in_any_order_one_killed(name, n, plain, tmp_path, run, monkeypatch):
    save_inputs(tmp_path)
    generator = random.Random(f"{name} {n}")
    order = generator.sample(range(n), n)
    killed = generator.choice([i for i in order if i < 5])  # 2c has five classes
    fsync = os.fsync

    def dies(file: int) -> None:
        fsync(file)
        os.ftruncate(file, os.fstat(file).st_size - 9)  # in the middle of its last line
        raise KilledError

    for i in order:
        arguments = [*SCRIPTS[name], "--shard", f"{i}/{n}"]
        if i == killed:
            with monkeypatch.context() as patch, pytest.raises(KilledError):
                patch.setattr(rows.os, "fsync", dies)
                run(name, *arguments)
        else:
            run(name, *arguments)
    assert not (tmp_path / "output" / name / "metrics.json").exists()
    run(name, *SCRIPTS[name], "--shard", f"{killed}/{n}")
    assert contents(tmp_path / "output" / name) == plain(name)


def test_any_shard_started_again_writes_the_summary(plain, tmp_path, run, monkeypatch, capsys):
    """The last one was killed after its last row, before the summary; the number of shards may change."""
    name = "2e_saliency"
    save_inputs(tmp_path)

    def dies(*_):
        raise KilledError

    run(name, *SCRIPTS[name], "--shard", "0/3")
    assert "all 3 rows are done; 5 of 8 are still missing" in capsys.readouterr().out
    run(name, *SCRIPTS[name], "--shard", "1/3")
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(common.Rows, "complete", dies)
        run(name, *SCRIPTS[name], "--shard", "2/3")
    assert run(name, *SCRIPTS[name], "--shard", "1/2")
    assert contents(tmp_path / "output" / name) == plain(name)


def test_shards_replace_a_complete_run(plain, tmp_path, run, monkeypatch):
    """Whichever comes first to the old one; of a complete run --fresh computes only the shard's own rows again."""
    name = "2e_saliency"
    save_inputs(tmp_path)
    run(name, *SCRIPTS[name], "--seed", "1")
    for i in (1, 0):
        run(name, *SCRIPTS[name], "--shard", f"{i}/2")
    assert contents(tmp_path / "output" / name) == plain(name)
    done = noted_rows(monkeypatch)
    run(name, *SCRIPTS[name], "--seed", "1", "--shard", "8/9")  # without images it touches nothing
    assert not done and contents(tmp_path / "output" / name) == plain(name)
    run(name, *SCRIPTS[name], "--shard", "1/3", "--fresh")
    assert done == [1, 4, 7] and contents(tmp_path / "output" / name) == plain(name)


def test_two_that_finish_together(plain, tmp_path, run, monkeypatch):
    """The other one completes the set, and removes the shards' files, just when this one has listed them."""
    name = "2d_predict"
    save_inputs(tmp_path)
    run(name, *SCRIPTS[name], "--shard", "0/2")
    read, reads = rows.read_rows, []

    def together(path, *more):
        if ".0-of-2." in path.name and not reads:
            reads.append(path)
            run(name, *SCRIPTS[name], "--shard", "0/2")
            assert not path.exists()
        return read(path, *more)

    complete = common.Rows.complete

    def listed(self):
        if not reads:
            monkeypatch.setattr(rows, "read_rows", together)
        return complete(self)

    monkeypatch.setattr(common.Rows, "complete", listed)
    run(name, *SCRIPTS[name], "--shard", "1/2")
    assert reads and contents(tmp_path / "output" / name) == plain(name)


def test_leftovers_are_removed_and_nothing_else(plain, tmp_path, run, monkeypatch):
    """Whoever is writing when his temporary file is taken for a leftover writes it again."""
    name = "2e_saliency"
    folder = tmp_path / "output" / name
    save_inputs(tmp_path)
    (folder / "maps").mkdir(parents=True)
    leftovers = [folder / ".writing-0123.tmp", folder / "maps/.writing-4567.tmp"]
    for path in (*leftovers, folder / ".notes.tmp"):
        path.write_text("")
    run(name, *SCRIPTS[name])
    assert not any(path.exists() for path in leftovers) and (folder / ".notes.tmp").exists()
    replace, calls = os.replace, []

    def taken(source, target):
        calls.append(source)
        if len(calls) < 3:
            files.remove_leftovers(tmp_path)
        return replace(source, target)

    monkeypatch.setattr(os, "replace", taken)
    files.write_file(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and len(calls) == 3


@pytest.mark.parametrize("text", ["3/2", "2/2", "0/0", "-1/2", "1", "a/b", "1/2/3", "0.5/2", "/"])
def test_what_is_no_shard(text, run):
    with pytest.raises(common.UserError, match="must be I/N, with I from 0 to N - 1"):
        run("2d_predict", f"--shard={text}")


def test_the_environment_of_torchrun(monkeypatch):
    """Its OMP_NUM_THREADS does not change the number of threads, on which the bits of a result depend."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(rows.joblib, "cpu_count", lambda only_physical_cores: 3)
    assert common.resolve_options(option_parser("", "--threads", "--device").parse_args([])).threads == 3
    options = option_parser("", "--shard").parse_args([])
    for rank, world, given, expected in [
        (None, None, None, (0, 1)),
        ("2", None, None, (0, 1)),
        ("2", "4", None, (2, 4)),
        ("2", "4", (1, 3), (1, 3)),
    ]:
        for variable, value in (("RANK", rank), ("WORLD_SIZE", world)):
            monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable, raising=False)
        options.shard = given
        assert rows.shard_of(options) == expected
    options.shard = None
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(common.UserError, match="RANK/WORLD_SIZE in the environment must be I/N"):
        rows.shard_of(options)


def free_port() -> int:
    """A port below those that the system hands out, and no other worker's."""
    for port in range(10_000 + os.getpid() % 20_000, 32_768):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


FOUR_PHOTOS = ["photos", "--limit", "4", "--batch-size", "2", "--show", "2"]  # one of them broken
FOUR_PHOTOS += ["--copies", "2", "--scores", "1"]


def torchrun(arguments: list[str], cwd: Path) -> None:
    """Launch processes that, like this one, are forked from one that has imported everything."""
    os.chdir(cwd)
    for number in (1, 2):
        os.dup2(os.open(f"said.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    load_script("torch.distributed.run").main(["--run-path", "--start-method", "fork", *arguments])


@pytest.mark.parametrize(("nodes", "network"), [(1, TINY[:6]), pytest.param(2, [], marks=pytest.mark.long)])
def test_torchrun(nodes, network, tmp_path, run):
    """Two processes on one machine; two machines (here: launchers that meet on loopback) with a process each."""
    name, options = "2e_saliency", [*FOUR_PHOTOS, *network]
    save_inputs(tmp_path)
    meet = ["--nnodes", str(nodes), "--nproc-per-node", str(2 // nodes)]
    meet += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    launchers = []
    for k in range(nodes):
        arguments = [*meet, "--node-rank", str(k), str(ROOT / f"{name}.py"), *options]
        launchers.append(fork_server().Process(target=torchrun, args=(arguments, tmp_path), daemon=False))
        launchers[-1].start()
    for launcher in launchers:
        launcher.join(300)
        assert launcher.exitcode == 0, [path.read_text() for path in tmp_path.glob("said.*")]
    split = contents(tmp_path / "output" / name)
    shutil.rmtree(tmp_path / "output")
    run(name, *options)
    assert split == contents(tmp_path / "output" / name)


def numbers(value, path: str = "") -> dict[str, float]:
    """All numbers in a row, by where they stand."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in numbers(value[key], f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for n, item in enumerate(value) for k, v in numbers(item, f"{path}/{n}").items()}
    return {path: float(value)} if isinstance(value, (int, float)) else {}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", SCRIPTS)
def test_another_batch_size_differs_by_rounding_only(name, undisturbed, tmp_path, run):
    save_inputs(tmp_path)
    run(name, *SCRIPTS[name], "--batch-size", "7")
    found = [(folder / "output" / name / "rows.jsonl").read_text() for folder in (undisturbed(name), tmp_path)]
    for one, other in zip(*(map(json.loads, text.splitlines()) for text in found), strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-5, abs=1e-5)
