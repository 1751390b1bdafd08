"""Predictions: the five likeliest classes, their order, and the report of them."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from conftest import load_script, run_main, run_script, save_photo
from torch import nn

import common

script = load_script("2d_predict")


def test_top_classes_by_hand():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False)).requires_grad_(False)
    net[1].weight.copy_(torch.eye(3))
    classes, probabilities = script.top_classes(net, logits.view(2, 3, 1, 1), 2)
    assert classes.tolist() == [[1, 2], [0, 2]]
    torch.testing.assert_close(probabilities, logits.softmax(1).gather(1, classes))
    assert script.top_classes(net, logits.view(2, 3, 1, 1), 5)[0].shape == (2, 3)  # no more than there are


@pytest.mark.parametrize("classes", [4, 1000])
def test_of_tied_logits_the_lowest_id_comes_first_in_every_exercise(images, classes):
    """As of an untrained network that ends in a rectifier: 2d named one class, and 2e explained another."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).requires_grad_(False)
    net[1].weight.zero_(), net[1].bias.zero_()
    net[1].bias[[1, 3]] = torch.tensor([-1.0, 2.0])
    found, _ = script.top_classes(net, images, 3)
    assert found.tolist() == [[3, 0, 2]] * 5
    net[1].bias[3] = 0
    first = script.top_classes(net, images)[0][:, 0].tolist()
    assert first == [0] * 5 == common.forward_pass(net.requires_grad_(), images, None).classes.tolist()
    assert load_script("2b_evaluate").evaluate(net, images, torch.zeros(5).long())["predicted"].tolist() == first
    logits = torch.zeros(2, classes)
    assert load_script("2h_mc_dropout").uncertainty(logits, logits[0])["class"] == 0


def test_run(tmp_path, monkeypatch):
    for i in range(3):
        save_photo(tmp_path / "photos" / f"{i}.png", i)
    save_photo(tmp_path / "photos" / ".hidden.png")
    arguments = ["photos", "--batch-size", "2", "--show", "2"]
    run_main("2d_predict", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output/pictures/2d_predict"
    table = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert len(table) == 15 and [row["rank"] for row in table[:5]] == list("12345")
    model = common.load_model()
    image = model.preprocess(common.read_image(tmp_path / "photos/1.png"))[None]
    expected = model(image).softmax(1)[0].topk(5)
    assert [int(row["class"]) for row in table[5:10]] == expected.indices.tolist()
    for row, p in zip(table[5:10], expected.values.tolist(), strict=True):
        assert float(row["probability"]) == pytest.approx(p, rel=1e-4)
        assert row["name"] == model.categories[int(row["class"])]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["settings"]["show"] == 2 and metrics["settings"]["device"] == "cpu"
    assert set(metrics) == {
        *("script", "settings", "model", "seed", "device", "deterministic", "versions", "images", "seconds"),
        *("results", "files", "figures", "captions", "margins", "command"),
    }
    assert (folder / "predictions.png").stat().st_size > 10_000


def test_help_teaches(tmp_path):
    done = run_script("2d_predict", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for words in (
        "python 2d_predict.py photo.jpg",
        "(default: efficientnet_lite0)",
        "--strict",
        "(default: 0)",
        "Guo et al. 2017",
    ):
        assert words in " ".join(done.stdout.split())  # wherever the lines are broken
