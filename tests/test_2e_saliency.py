"""The class saliency map: gradients known by hand, one image at a time, nothing left behind."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script, rows_of, save_photo
from torch import nn

import common
from explain.methods.faithfulness import blurred
from explain.methods.maps import describe_map
from explain.report import maps as report
from explain.report.figures import brightest
from explain.run import shell

script, guided = load_script("2e_saliency"), load_script("2f_guided_saliency")
CLASSES = torch.tensor([0, 1, 2, 3, 0])


def test_a_linear_network_has_its_weights_as_gradient(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    gradient, scores = common.class_score_gradient(net, images, CLASSES)
    rows = net[1].weight.detach()[CLASSES].view(5, 3, 8, 8)
    torch.testing.assert_close(gradient, rows)
    torch.testing.assert_close(scores, net(images).detach().gather(1, CLASSES[:, None])[:, 0])
    torch.testing.assert_close(script.saliency_maps(net, images, CLASSES), rows.abs().amax(1))


@pytest.mark.parametrize("default", [False, True])
def test_batch_of_n_is_n_single_ones_in_any_order(default, toy, images):
    """On the default network in float64, where no rounding remains."""
    model, images, classes, bound = toy, images, CLASSES, 1e-6
    if default:
        model, images = common.load_model().double(), torch.rand(2, 3, 224, 224, dtype=torch.float64)
        classes, bound = torch.tensor([5, 999]), 1e-12
    for method in (script.saliency_maps, guided.guided_saliency_maps):
        together = method(model, images, classes)
        backwards = method(model, images.flip(0), classes.flip(0)).flip(0)
        for n in range(len(images)):
            alone = method(model, images[n : n + 1], classes[n : n + 1])[0]
            assert (together[n] - alone).norm() <= bound * alone.norm()
            assert (backwards[n] - alone).norm() <= bound * alone.norm()


@pytest.mark.parametrize("pixels", [1, 300, 1 << 20])  # of 2 images of 8 x 8: one copy of each in a pass, two, all
def test_smoothing_by_hand(pixels, images, toy, monkeypatch):
    monkeypatch.setattr(script, "PIXELS_TOGETHER", pixels)

    def of(indices):
        generators = common.seeded_generators(0, indices)
        return script.smoothed_saliency_maps(toy, images[indices], CLASSES[indices], generators, 4, 0.3)

    torch.testing.assert_close(of([3, 1])[0], of([3])[0])  # whatever its company
    by_hand, generators = 0, common.seeded_generators(0, [0, 1])
    for _ in range(4):
        noise = torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators])
        by_hand = by_hand + script.saliency_maps(toy, images[:2] + 0.3 * noise, CLASSES[:2]) / 4
    torch.testing.assert_close(of([0, 1]), by_hand)


def test_the_combined_map_is_a_product(images):
    torch.manual_seed(0)
    with_places = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    without = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    detail = (images - blurred(images)).square().sum(1).sqrt()
    for net, has_places in ((with_places, True), (without, False)):
        smoothed = script.smoothed_saliency_maps(net, images, CLASSES, common.seeded_generators(0, range(5)), 3)
        expected = smoothed * detail
        if has_places:
            expected = expected * guided.grad_cam_maps(net, images, CLASSES)
        found = script.combined_maps(net, images, CLASSES, common.seeded_generators(0, range(5)), 3)
        torch.testing.assert_close(found, expected)
        assert found.any()


def test_a_model_that_writes_into_its_input(images):
    class Writes(nn.Module):
        def forward(self, x):
            return x.mul_(2).flatten(1)[:, :4]

    given = images.clone()
    maps = script.saliency_maps(Writes(), images, CLASSES)
    assert torch.equal(images, given) and maps.max() == 2


@pytest.mark.parametrize(("value", "status"), [(0.0, "zero gradient"), (np.nan, "not finite")])
def test_a_map_that_says_nothing_is_named(value, status):
    nothing = dict.fromkeys(("largest", "half_mass_area", "roughness"))
    assert describe_map(np.full((4, 4), value)) == {"status": status, **nothing}


def test_measures_of_a_map_by_hand():
    values = np.zeros((10, 10))
    values[3, 4] = 2.0
    found = describe_map(values)
    assert found["half_mass_area"] == 0.01 and found["largest"] == 2
    assert found["roughness"] == pytest.approx(4 * 2 / 180 / 0.02)
    even = describe_map(np.ones((10, 10)))
    assert even["half_mass_area"] == 0.5 and even["roughness"] == 0
    noise = describe_map(np.random.default_rng(0).random((300, 300)))
    assert noise["roughness"] == pytest.approx(2 / 3, abs=0.01)


def test_the_scale_of_a_sparse_map_is_not_empty():
    """Its percentile is 0, by which nothing can be divided."""
    sparse = np.zeros((100, 100))
    sparse[0, 0] = 3.0
    assert brightest([sparse]) == 3 and brightest([]) == 1
    assert brightest([np.ones((4, 4)), np.full((4, 4), 2.0)]) == 2


SMALL = ["--model", "timm/test_resnet", "--weights", "random", "--threads", "1", "--output", "output"]
QUICK = [*SMALL, "--copies", "2", "--scores", "0"]


@pytest.mark.usefixtures("undrawn")
def test_run_saves_the_maps_of_the_public_functions(tmp_path, run):
    """Bit for bit, of the pictures as the network sees them."""
    for i in range(3):
        save_photo(tmp_path / f"{i}.png", i)
    (tmp_path / "broken.jpg").write_text("no picture")
    metrics = run("2e_saliency", "0.png", "broken.jpg", "1.png", "2.png", *SMALL, "--copies", "2", "--scores", "1")
    assert metrics["images"]["found"] == 4 and metrics["images"]["used"] == 3
    assert metrics["images"]["skipped"][0]["path"] == "broken.jpg"
    assert metrics["results"]["plain_status"] == {"ok": 3}
    assert 0 < metrics["results"]["mean_plain_half_mass_area"] < 0.5
    worth = metrics["results"]["insertion_minus_deletion"]
    assert {*worth} == {"plain", "smoothed", "combined", "random"} and worth["smoothed"]["images"] == 1

    model = common.load_model("timm/test_resnet", "random")
    images = torch.stack([model.preprocess(common.read_image(tmp_path / f"{i}.png")) for i in range(3)])
    classes, indices = common.predict_logits(model, images).argmax(1), [0, 2, 3]
    for kind, expected in {
        "plain": script.saliency_maps(model, images, classes),
        "smoothed": script.smoothed_saliency_maps(model, images, classes, common.seeded_generators(0, indices), 2),
        "combined": script.combined_maps(model, images, classes, common.seeded_generators(0, indices), 2),
    }.items():
        files = [tmp_path / f"output/2e_saliency/maps/{i:05d}_{kind}.npy" for i in indices]
        saved = torch.from_numpy(np.stack([*map(np.load, files)]))
        assert torch.equal(saved, expected) and expected.any()


@pytest.mark.usefixtures("undrawn")
def test_captions_say_what_this_run_did(tmp_path, run, monkeypatch):
    """The settings and the functions' docstrings, a changed reduction's too; and which maps share a scale."""
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "b.png", 1)
    monkeypatch.setattr(script.over_channels, "__doc__", "Return the norm over the channels.\n\n(N, 3, H, W)")
    metrics = run("2e_saliency", "a.png", "b.png", *QUICK, "--noise", "0.5")
    text = " ".join(metrics["captions"]["saliency.png"])
    assert "; saliency map: the gradient of the class's logit, reduced to the norm over the channels; smoothed" in text
    assert "of 2 copies with Gaussian noise of standard deviation 0.5;" in text and "(N, " not in text
    assert "Each map has a linear scale" in text and "without Grad-CAM" not in text and "in logits" not in text
    metrics = run("2e_saliency", "a.png", *QUICK, "--classes", "1", "2", "--signed", "--copies", "0")
    text = " ".join(metrics["captions"]["saliency.png"])
    assert "channel where its absolute value is largest" in text and "smoothed" not in text and "Grad-CAM" not in text
    assert "The classes of an image share one linear scale for each kind of map." in text
    assert metrics["results"]["maps"] == 2 and metrics["images"]["used"] == 1
    network = ["--model", "timm/test_vit", "--weights", "random", "--threads", "1", "--output", "output"]
    metrics = run("2e_saliency", "a.png", *network, "--copies", "2", "--scores", "0")
    assert not metrics["results"]["grad_cam_in_combined"]
    assert "here without Grad-CAM, which cannot be made for this network" in metrics["captions"]["saliency.png"][1]


def mine(model, images, classes, copies):
    """Return `copies` of `images`, by `maps.describe`,
    in kelvin.

    Whatever follows.
    """


def test_a_description_is_the_first_paragraph_with_the_runs_numbers():
    describe = report.describe
    assert describe(mine, {"copies": 4, "images": ["a.png"]}) == "4 of images, by maps.describe, in kelvin"
    assert describe(lambda images: images, {}) == describe(functools.partial(mine), {}) == ""


@pytest.mark.usefixtures("undrawn")
def test_the_class_asked_for(tmp_path, run):
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "b.png", 1)
    arguments = ["a.png", "b.png", *QUICK, "--classes", "tarantula", "55"]
    run("2e_saliency", *arguments)
    assert [row["class"] for row in rows_of(tmp_path / "output/2e_saliency")] == [76, 55]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.jpg"], "missing.jpg does not exist"),
        ([], "process_data.py --sample"),
        (["--classes", "tarantula", "a.png"], "give image files before --classes"),
        (["a.png", "--seed", "-1"], "--seed must be a whole number from 0 to 2147483647, not '-1'"),
        (["a.png", "--batch-size", "0"], "--batch-size must be a whole number of at least 1, not '0'"),
        (["text.jpg", "--limit", "1"], "is not an image in JPEG"),
    ],
)
def test_errors_are_one_sentence(arguments, says, tmp_path, run):
    save_photo(tmp_path / "a.png")
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(SystemExit) as caught:
        shell.run(lambda: run("2e_saliency", *arguments, *SMALL))
    message = str(caught.value.code)
    assert message.startswith("error: ") and says in message and "\n" not in message
    assert not (tmp_path / "output/2e_saliency/metrics.json").exists()
    # only that one is found while running
    assert says == "is not an image in JPEG" or not (tmp_path / "output").exists()


def test_from_a_shell(tmp_path):
    save_photo(tmp_path / "a b.png")
    command = [sys.executable, ROOT / "2e_saliency.py", "a b.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "\r" not in done.stderr  # no progress bar where there is no terminal
    assert done.stdout.splitlines()[-2] == "output/pictures/2e_saliency/metrics.json"
