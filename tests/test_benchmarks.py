"""The benchmarks: ratios, comparison before timing, and the document."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ROOT, load_script

bench = load_script("benchmarks.bench")
archetypes = load_script("benchmarks.archetypes")


class FakeSide:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def seconds(self):
        return 3.0 if self.function.startswith("captums") else 1.0

    def result(self):
        wrong = self.function.startswith("captums") and self.arguments[0] == "vgg16"
        return np.array([1.0, 2.0 + 0.01 * wrong])


@pytest.fixture
def fake_sides(monkeypatch):
    @contextmanager
    def sides(*given):
        yield [FakeSide(function, *arguments) for _, function, *arguments in given]

    monkeypatch.setattr(bench, "sides", sides)


def test_a_side_with_another_result_gets_no_ratio(fake_sides):
    rows = {row["network"]: row for row in bench.gradients(3, guided=True)}
    assert rows["resnet18"]["ratio"] == rows["resnet18"]["memory_kept"] == 3 and rows["resnet18"]["of_2e"] == 1
    assert "ratio" not in rows["vgg16"] and rows["vgg16"]["apart"] == pytest.approx(0.01 / 5**0.5, rel=0.02)


def test_turns_alternate_and_the_first_one_does_not_count():
    order, seconds = [], iter([9, 9, 1, 2, 3, 8])
    runs = [lambda name=name: order.append(name) or next(seconds) for name in "ab"]
    a, b = bench.take_turns(runs, 2)
    assert order == list("ababab") and (a, b) == ([1, 3], [2, 8])
    found = bench.ratio(b, a)
    assert (found["least"], found["greatest"]) == (2, pytest.approx(8 / 3))


def test_the_document_is_what_the_committed_figures_say():
    found = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    notes = (ROOT / "benchmarks" / "notes.md").read_text()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == bench.document(found, notes)


def test_a_row_short_of_its_goal_says_so():
    lite0, passes = "efficientnet_lite0", "one forward pass of the same prepared network"
    row = {"work": "2h, T = 100", "network": lite0, "limit": passes}
    assert [bench._goal({**row, "ratio": r}) for r in (1.2, 1.21)] == ["1.2", "1.2: **short**"]
    assert bench._goal({**row, "network": "vgg16", "ratio": 9}) == ""
    row = {"work": "2h, T = 100", "network": "alexnet", "peer": "loop of whole passes"}
    assert [bench._goal({**row, "ratio": r}) for r in (20.5, 19)] == ["20", "20: **short**"]
    assert [bench._goal({"ours_s": s}) for s in (120, 121)] == ["120", "120: **short**"]
    # a goal whose row nothing measures would never be missed
    rows = json.loads((ROOT / "docs" / "benchmarks.json").read_text())["rows"]
    measured = {(row["work"], row["network"], row.get("peer", row.get("limit"))) for row in rows}
    assert {*bench.GOALS} <= measured


@pytest.mark.long
def test_two_real_sides_take_turns():
    command = [sys.executable, "benchmarks/bench.py", "--only", "2c", "--turns", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == 6 and all(row["ratio"] > 0.5 for row in rows)


def test_archetypes_of_several_seeds_are_one_line():
    def run(seed, top1, own):
        natural = {"judges": {"judge": {"top1": top1, "top5": 1.0}}, "colours": {"distance_from_photos": 0.25}}
        natural["classes_with_probability_from_0.9"] = own
        results = {"natural": natural, "photos": None, "chance_probability": 0.001, "judges": {"judge": {}}}
        return {"model": {"name": "net"}, "seed": seed, "results": results}

    lines = archetypes.table([run(2, 0.5, 7), run(0, 0.25, 8)])
    assert lines[0] == "| explained | pictures | seeds | p >= 0.9 | judge: first; among five | colours |"
    assert lines[2:] == ["| net | natural | 0 2 | 8 7 | 0.375 (0.250 0.500); 1.000 | 0.250 |"]
    assert lines[1].count("|") == lines[0].count("|") == lines[2].count("|")
