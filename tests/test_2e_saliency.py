"""The class saliency map: gradients known by hand, one image at a time, nothing left behind."""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, Raises, assert_same_state, load_script, run_main, run_script, save_photo, state_of
from torch import nn

import common
from explain.methods.faithfulness import blurred
from explain.methods.maps import describe_map
from explain.report import maps as report
from explain.report.figures import brightest
from explain.run import shell

script, guided = load_script("2e_saliency"), load_script("2f_guided_saliency")
METHODS = [script.saliency_maps, guided.guided_saliency_maps, guided.grad_cam_maps]
CLASSES = torch.tensor([0, 1, 2, 3, 0])
QUICK = ["--copies", "2", "--scores", "0", "--threads", "1"]


def test_a_linear_network_has_its_weights_as_gradient(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    gradient, scores = common.class_score_gradient(net, images, CLASSES)
    rows = net[1].weight.detach()[CLASSES].view(5, 3, 8, 8)
    torch.testing.assert_close(gradient, rows)
    torch.testing.assert_close(scores, net(images).detach().gather(1, CLASSES[:, None])[:, 0])
    torch.testing.assert_close(script.saliency_maps(net, images, CLASSES), rows.abs().amax(1))


def test_central_differences(toy, images):
    toy, images = toy.double().eval(), images.double()
    gradient, _ = common.class_score_gradient(toy, images, CLASSES)
    for n, c, y, x in [(0, 0, 3, 3), (1, 2, 0, 5), (4, 1, 6, 1)]:
        step = torch.zeros_like(images)
        step[n, c, y, x] = 1e-6
        difference = (toy(images + step) - toy(images - step))[n, CLASSES[n]] / 2e-6
        assert float(gradient[n, c, y, x]) == pytest.approx(difference.item(), abs=1e-8)


def default_network():
    model = common.load_model()
    return model, torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 76, 999])


@pytest.mark.parametrize(
    ("default", "dtype", "bound"),
    [(False, torch.float32, 1e-6), (True, torch.float64, 1e-12), (True, torch.float32, 5e-6)],
)
def test_batch_of_n_is_n_single_ones_in_any_order(default, dtype, bound, toy, images):
    """On the default network in float32 rounding remains: 7e-7 on real photos."""
    model, images, classes = default_network() if default else (toy, images, CLASSES)
    model, images = model.to(dtype), images.to(dtype)
    together = script.saliency_maps(model, images, classes)
    backwards = script.saliency_maps(model, images.flip(0), classes.flip(0)).flip(0)
    guided_together = guided.guided_saliency_maps(model, images, classes)
    for n in range(len(images)):
        alone = script.saliency_maps(model, images[n : n + 1], classes[n : n + 1])[0]
        guided_alone = guided.guided_saliency_maps(model, images[n : n + 1], classes[n : n + 1])[0]
        assert (together[n] - alone).norm() <= bound * alone.norm()
        assert (backwards[n] - alone).norm() <= bound * alone.norm()
        assert (guided_together[n] - guided_alone).norm() <= bound * guided_alone.norm()


def test_smoothing_leaves_a_linear_network_as_it_is_and_is_seeded(images, toy):
    """The gradient of a linear network does not depend on the picture, and so neither on the noise."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    smoothed = script.smoothed_saliency_maps(linear, images, CLASSES, common.seeded_generators(0, range(5)), 3, 0.5)
    torch.testing.assert_close(smoothed, script.saliency_maps(linear, images, CLASSES))

    def of(indices, copies=4, noise=0.3):
        generators = common.seeded_generators(0, indices)
        return script.smoothed_saliency_maps(toy, images[indices], CLASSES[indices], generators, copies, noise)

    torch.testing.assert_close(of([3, 1])[0], of([3])[0])  # whatever its company
    torch.testing.assert_close(of([0, 1], noise=0.0), script.saliency_maps(toy, images[:2], CLASSES[:2]))
    by_hand, generators = 0, common.seeded_generators(0, [0, 1])
    for _ in range(4):
        noise = torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators])
        by_hand = by_hand + script.saliency_maps(toy, images[:2] + 0.3 * noise, CLASSES[:2]) / 4
    torch.testing.assert_close(of([0, 1]), by_hand)


def test_the_copies_in_a_pass_are_as_many_as_their_size_allows(images, monkeypatch):
    """Five images of 8 x 8: the memory of a pass does not grow with their size, the map does not depend on it."""
    passes = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 4))
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    maps = []
    for pixels in (1, 700, 1 << 20):
        monkeypatch.setattr(script, "PIXELS_TOGETHER", pixels)
        generators = common.seeded_generators(0, range(5))
        maps.append(script.smoothed_saliency_maps(net, images, CLASSES, generators, 7, 0.3))
    assert passes == [5] * 7 + [10, 10, 10, 5] + [35]
    torch.testing.assert_close(maps[0], maps[1])
    torch.testing.assert_close(maps[0], maps[2])


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


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("where", ["nowhere", "forward", "backward"])
def test_nothing_is_left_behind(where, method, toy, images):
    """The toy is in training mode: its batch norm must neither mix the images nor move its averages."""
    for parameter in toy.parameters():
        parameter.grad = torch.ones_like(parameter)
    net = toy if where == "nowhere" else nn.Sequential(*toy, Raises(where)).train()
    before, given, plain = state_of(net), images.clone(), script.saliency_maps(toy, images, CLASSES)
    if where == "nowhere":
        assert torch.equal(method(net, images, CLASSES), method(net, images, CLASSES))
    else:
        with pytest.raises(RuntimeError, match=f"broken {where}"):
            method(net, images, CLASSES)
    assert_same_state(before, state_of(net))
    assert torch.equal(images, given) and images.grad is None and not images.requires_grad
    assert torch.equal(plain, script.saliency_maps(toy, images, CLASSES))  # no mode is left on


@pytest.mark.parametrize("wrong", [4, -1])
def test_a_class_out_of_range(wrong, toy, images):
    before = state_of(toy)
    with pytest.raises(common.UserError, match="class ids must be 0 to 3"):
        script.saliency_maps(toy, images, torch.full((5,), wrong))
    assert_same_state(before, state_of(toy))


def test_the_callers_tensor_may_require_a_gradient(toy, images):
    images.requires_grad_()
    script.saliency_maps(toy, images, CLASSES)
    assert images.grad is None and images.requires_grad


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


def test_run(tmp_path, monkeypatch):
    for i in range(3):
        save_photo(tmp_path / f"{i}.png", i)
    (tmp_path / "broken.jpg").write_text("no picture")
    files = ["0.png", "broken.jpg", "1.png", "2.png"]
    options = ["--copies", "2", "--scores", "1", "--batch-size", "2", "--limit", "3"]
    run_main("2e_saliency", *files, *options, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output/pictures/2e_saliency"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"]["found"] == 3 and metrics["images"]["used"] == 2
    assert metrics["images"]["skipped"][0]["path"] == "broken.jpg"
    assert metrics["results"]["plain_status"] == {"ok": 2}
    assert 0 < metrics["results"]["mean_plain_half_mass_area"] < 0.5
    worth = metrics["results"]["insertion_minus_deletion"]
    assert {*worth} == {"plain", "smoothed", "combined", "random"} and worth["smoothed"]["images"] == 1
    assert (folder / "saliency.png").stat().st_size > 10_000
    # the map on disk is the method's, of the picture as the network sees it
    model = common.load_model()
    images = model.preprocess(common.read_image(tmp_path / "1.png"))[None]
    expected = script.saliency_maps(model, images, model(images).argmax(1))[0]
    torch.testing.assert_close(
        torch.from_numpy(np.load(folder / "maps/00002_plain.npy")), expected, rtol=1e-3, atol=1e-5
    )


def test_the_saved_maps_are_the_public_functions(tmp_path, monkeypatch):
    """Bit for bit, on the same batch."""
    photos = [save_photo(tmp_path / f"{i}.png", i) for i in range(3)]
    model = common.load_model("timm/test_resnet", "random")
    images = torch.stack([model.preprocess(common.read_image(photo)) for photo in photos])
    classes, generators = common.predict_logits(model, images).argmax(1), common.seeded_generators(0, range(3))
    arguments = [*photos, *QUICK, "--model", "timm/test_resnet", "--weights", "random", "--output", "a"]
    run_main("2e_saliency", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    for kind, expected in {
        "plain": script.saliency_maps(model, images, classes),
        "smoothed": script.smoothed_saliency_maps(model, images, classes, generators, 2),
        "combined": script.combined_maps(model, images, classes, common.seeded_generators(0, range(3)), 2),
    }.items():
        saved = np.stack([np.load(tmp_path / f"a/2e_saliency/maps/{i:05d}_{kind}.npy") for i in range(3)])
        assert torch.equal(torch.from_numpy(saved), expected) and expected.any()


def test_maps_of_copies_come_first_whatever_their_place(images):
    """Or the graph that the other maps share would stand beside those of the copies: 1.24 times the memory."""
    called = []
    table = {
        "a": lambda model, images, classes: called.append("a") or images[:, 0],
        "b": lambda model, images, classes, copies: called.append("b") or images[:, 0],
    }
    maps, reasons = common.make_maps(table, None, images, CLASSES, argparse.Namespace(seed=0, copies=2), range(5))
    assert called == ["b", "a"] and [*maps] == ["a", "b"] and not reasons


def test_captions_say_what_this_run_did(tmp_path, monkeypatch):
    """The settings and the functions' docstrings, a changed reduction's too; and which maps share a scale."""
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "b.png", 1)
    monkeypatch.setattr(script.over_channels, "__doc__", "Return the norm over the channels.\n\n(N, 3, H, W)")

    def caption(*arguments: str) -> str:
        nonlocal metrics
        given = [*QUICK, "--model", "timm/test_resnet", "--weights", "random", *arguments]
        run_main("2e_saliency", *given, cwd=tmp_path, monkeypatch=monkeypatch)
        metrics = json.loads((tmp_path / "output/pictures/2e_saliency/metrics.json").read_text())
        return " ".join(metrics["captions"]["saliency.png"])

    metrics: dict = {}
    text = caption("a.png", "b.png", "--noise", "0.5")
    assert "; saliency map: the gradient of the class's logit, reduced to the norm over the channels; smoothed" in text
    assert "of 2 copies with Gaussian noise of standard deviation 0.5;" in text and "(N, " not in text
    assert "Each map has a linear scale" in text and "no Grad-CAM" not in text and "in logits" not in text
    text = caption("a.png", "--classes", "1", "2", "--signed", "--copies", "0")
    assert "in the channel where it is largest" in text and "smoothed" not in text and "Grad-CAM" not in text
    assert "The classes of an image share one linear scale for each kind of map." in text
    assert metrics["results"]["maps"] == 2 and metrics["images"]["used"] == 1


def mine(model, images, classes, copies):
    """Return `copies` of `images`, by `maps.describe`,
    in kelvin.

    Whatever follows.
    """


def test_a_description_is_the_first_paragraph_with_the_runs_numbers():
    describe = report.describe
    assert describe(mine, {"copies": 4, "images": ["a.png"]}) == "4 of images, by maps.describe, in kelvin"
    assert describe(lambda images: images, {}) == describe(functools.partial(mine), {}) == ""


def test_the_class_asked_for(tmp_path, monkeypatch):
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "b.png", 1)
    arguments = ["a.png", "b.png", *QUICK, "--model", "squeezenet1_0", "--weights", "random"]
    asked = ["--classes", "tarantula", "55"]
    run_main("2e_saliency", *arguments, *asked, cwd=tmp_path, monkeypatch=monkeypatch)
    rows = [json.loads(line) for line in (tmp_path / "output/pictures/2e_saliency/rows.jsonl").read_text().splitlines()]
    assert [row["class"] for row in rows] == [76, 55]
    with pytest.raises(common.UserError, match="3 classes for 2 images"):
        run_main("2e_saliency", *arguments, *asked, "7", cwd=tmp_path, monkeypatch=monkeypatch)


def test_the_same_bytes_again_and_nothing_stale(tmp_path, monkeypatch):
    for i in range(2):
        save_photo(tmp_path / f"{i}.png", i)
    arguments = [*QUICK, "--model", "squeezenet1_0", "--weights", "random"]

    def contents():
        folder = tmp_path / "output/pictures/2e_saliency"
        return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "metrics.json"}

    run_main("2e_saliency", "0.png", "1.png", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    first = contents()
    run_main("2e_saliency", "0.png", "1.png", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    assert contents() == first and len(first) == 12  # a file for each of three maps, twice
    run_main("2e_saliency", "0.png", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    assert len(contents()) == 8  # the second picture and its maps are gone


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.jpg"], "missing.jpg does not exist"),
        ([], "process_data.py --sample"),
        (["a.png", "--classes", "tarantla"], "did you mean tarantula"),
        (["a.png", "--classes", "1000"], "ids go from 0 to 999"),
        (["--classes", "tarantula", "a.png"], "give image files before --classes"),
        (["a.png", "--seed", "-1"], "--seed must be a whole number from 0 to 2147483647, not '-1'"),
        (["a.png", "--batch-size", "0"], "--batch-size must be a whole number of at least 1, not '0'"),
        (["text.jpg", "--limit", "1"], "is not an image in JPEG"),
    ],
)
def test_errors_are_one_sentence(arguments, says, tmp_path, monkeypatch, capsys):
    save_photo(tmp_path / "a.png")
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(SystemExit) as caught:
        shell.run(lambda: run_main("2e_saliency", *arguments, cwd=tmp_path, monkeypatch=monkeypatch))
    message = str(caught.value.code)
    assert message.startswith("error: ") and says in message and "\n" not in message
    assert not (tmp_path / "output/2e_saliency/metrics.json").exists()
    # only that one is found while running
    assert says == "is not an image in JPEG" or not (tmp_path / "output").exists()


def test_from_a_shell(tmp_path):
    save_photo(tmp_path / "a b.png")
    command = [sys.executable, ROOT / "2e_saliency.py", "a b.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == ""  # no progress bar where there is no terminal
    assert done.stdout.splitlines()[-2] == "output/pictures/2e_saliency/metrics.json"
    done = run_script("2e_saliency", "a b.png", "--model", "resnet19", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "resnet18" in done.stderr


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with its photos is not there")
def test_real_photos_and_the_second_network(tmp_path, monkeypatch):
    photos = sorted((SHARED / "data/DL_data/test_images").iterdir())[:2]
    weights = SHARED / "models/squeezenet1_0.pth"
    arguments = [*photos, "--model", "squeezenet1_0", "--weights", weights, "--copies", "2", "--scores", "1"]
    run_main("2e_saliency", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    metrics = json.loads((tmp_path / "output/pictures/2e_saliency/metrics.json").read_text())
    assert metrics["model"]["weights"] == "squeezenet1_0.pth" and len(metrics["model"]["sha256"]) == 64
    assert metrics["results"]["plain_status"] == {"ok": 2}
