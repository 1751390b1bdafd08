"""Predictions: the five likeliest classes, their order, and the report of them."""

from __future__ import annotations

import pytest
import torch
from conftest import load_script, save_photo, table_of
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


@pytest.mark.parametrize("gap", [0, 1e-9])
def test_classes_that_tie_are_ranked_alike_by_all_exercises(gap):
    """An untrained network's logits: the same, or so near that their probabilities are; class 300 or the lowest id."""
    scores = torch.zeros(1000)
    scores[300], images = gap, torch.rand(2, 3, 4, 4)
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3, 1000))
    net[2].weight.data.zero_(), net[2].bias.data.copy_(scores)
    expected = 300 if gap else 0
    assert net(images).softmax(1).unique().numel() == 1
    assert script.top_classes(net, images)[0].tolist() == [[expected, *[c for c in range(6) if c != expected][:4]]] * 2
    assert common.forward_pass(net, images, None).classes.tolist() == [expected] * 2
    evaluated = load_script("2b_evaluate").evaluate(net, images, torch.tensor([0, 300]))
    assert evaluated["predicted"].tolist() == [expected] * 2
    (logits,) = net(images[:1]).detach()
    row = load_script("2h_mc_dropout").uncertainty(logits[None], logits)
    assert row["class"] == row["deterministic_class"] == expected


@pytest.mark.usefixtures("undrawn")
def test_run(tmp_path, run):
    for i in range(3):
        save_photo(tmp_path / "photos" / f"{i}.png", i)
    save_photo(tmp_path / "photos" / ".hidden.png")
    metrics = run("2d_predict", "photos", "--batch-size", "2", "--show", "2", "--output", "output")
    table = table_of(tmp_path / "output/2d_predict/predictions.csv")
    assert len(table) == 15 and [row["rank"] for row in table[:5]] == list("12345")
    model = common.load_model()
    image = model.preprocess(common.read_image(tmp_path / "photos/1.png"))[None]
    expected = model(image).softmax(1)[0].topk(5)
    assert [int(row["class"]) for row in table[5:10]] == expected.indices.tolist()
    for row, p in zip(table[5:10], expected.values.tolist(), strict=True):
        assert float(row["probability"]) == pytest.approx(p, rel=1e-4)
        assert row["name"] == model.categories[int(row["class"])]
    assert metrics["settings"]["show"] == 2 and metrics["settings"]["device"] == "cpu"
    assert set(metrics) == {
        *("script", "settings", "model", "seed", "device", "deterministic", "versions", "images", "seconds"),
        *("results", "files", "figures", "captions", "margins", "command", "dataset"),
    }
    assert metrics["dataset"] is None  # pictures given as arguments have none


def test_help_teaches(run, capsys):
    with pytest.raises(SystemExit):
        run("2d_predict", "--help")
    said = " ".join(capsys.readouterr().out.split())  # wherever the lines are broken
    for words in ("python 2d_predict.py photo.jpg", "(default: efficientnet_lite0)", "--strict", "Guo et al. 2017"):
        assert words in said
