"""The benchmarks: pairs are compared before they are timed in turn, and the document is what was measured."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, load_script

bench = load_script("benchmarks.bench")
archetypes = load_script("benchmarks.archetypes")


@pytest.fixture
def turns(monkeypatch):
    """Run both sides here; each call takes the next of the seconds that were given for it."""
    order, seconds = [], {"ours": [], "theirs": []}

    def timed(function, network):
        order.append(function(network)[0])
        return function(network)[1], seconds[order[-1]].pop(0)

    monkeypatch.setattr(bench, "side", lambda keep_memory: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench, "timed", timed)
    return order, seconds


def row(theirs=None, **more):
    ours = torch.tensor([3.0, 4.0])
    pair = (lambda _: ("ours", ours)), theirs or (lambda _: ("theirs", ours))
    return bench.Row("2e", "work", "net", *pair, **more)


def test_turns_alternate_and_the_first_one_does_not_count(turns):
    order, seconds = turns
    seconds["ours"], seconds["theirs"] = [9, 1.6, 3.2, 1.6], [9, 3.2, 8, 16]
    found = bench.measure(row(peer="other"), 3)
    assert order == ["ours", "theirs"] * 4
    assert found == {"part": "2e", "work": "work", "network": "net", "peer": "other", "turns": 3} | {
        "ours_ms": 100,  # of 16 images in 1.6 s
        "ratio": 2.5,
        "least": 2,
        "greatest": 10,
    }
    seconds["ours"], seconds["theirs"] = [1.6], [0.8]
    found = bench.measure(row(limit="floor", once=True), 3)  # no range of one turn
    assert (found["ratio"], found["turns"]) == (2, 1) and not {"least", "greatest"} & set(found)


def test_a_side_with_another_result_gets_no_ratio(turns):
    def missing(network):
        raise ImportError("No module named 'peer'\nmore")

    order, seconds = turns
    for theirs, says in (
        (lambda _: ("theirs", torch.tensor([3.0, 4.5])), {"apart": pytest.approx(0.1)}),
        (missing, {"cannot": "ImportError: No module named 'peer'"}),
    ):
        seconds["ours"], seconds["theirs"] = [1.0], [1.0]
        found = bench.measure(row(theirs, peer="other", most=0.09), 3)
        assert found == {"part": "2e", "work": "work", "network": "net", "peer": "other", "turns": 3} | says
    assert order == ["ours", "theirs", "ours"]


def test_the_document_is_what_the_committed_figures_say():
    found = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    notes = (ROOT / "benchmarks" / "notes.md").read_text()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == bench.document(found, notes)
    # a goal whose row nothing measures would never be missed
    measured = {bench.key_of(row) for row in found["rows"]}
    assert {key for key, row in bench.WANTED.items() if row.goal or row.floor} <= measured


@pytest.mark.long
def test_two_real_sides_take_turns():
    rows = [row for row in bench.ROWS if row.part == "2c"]
    assert len(rows) == 6 and all(bench.measure(row, 1)["ratio"] > 0.5 for row in rows)


def test_archetypes_of_several_seeds_are_one_line():
    def run(seed, top1, own):
        natural = {"judges": {"judge": {"top1": top1, "top5": 1.0}}, "colours": {"distance_from_photos": 0.25}}
        natural["classes_with_probability_from_0.9"] = own
        return {"model": {"name": "net"}, "seed": seed, "results": {"natural": natural, "judges": {"judge": {}}}}

    heads, rule, line = archetypes.table([run(2, 0.5, 7), run(0, 0.25, 8)])
    assert heads == "| explained | images | seeds | p >= 0.9 | judge: top-1, top-5 | colours |"
    assert line == "| net | natural | 0 2 | 8 7 | 0.375, 1.000 | 0.250 |" and rule.count("|") == line.count("|")
