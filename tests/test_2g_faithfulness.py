"""How far maps can be believed: against networks that look at one place, and by hand; what leaves the class alone."""

from __future__ import annotations

import argparse
import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import guided_gradient
from conftest import TINY, assert_same_state, load_script, run_main, save_photo, state_of
from scipy.stats import spearmanr
from torch import nn

import common
from explain.methods import faithfulness, maps, randomisation
from explain.report import faithfulness as faithfulness_report

script, guided = load_script("2g_faithfulness"), load_script("2f_guided_saliency")
CLASSES = torch.tensor([0, 1, 2, 3, 0])


def test_grid_pointing_by_hand():
    """A mosaic's map that is 1, 2, 3 and 4 times the pixels of its cells: shares of 0.1 to 0.4."""
    images = torch.arange(1, 9.0)[:, None, None, None].expand(8, 3, 5, 7).clone()
    seen = []

    def maps_of(model, mosaics, classes):
        seen.append((mosaics[:, 0], classes))
        return mosaics[:, 0]

    shares = script.grid_pointing(None, images, torch.arange(8), maps_of)
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, *(n / 26 for n in (5, 6, 7, 8))])
    (first, classes), _ = seen
    assert first.shape == (4, 10, 14) and classes.tolist() == [0, 1, 2, 3]
    assert first[0, :5, :7].eq(1).all() and first[0, :5, 7:].eq(2).all()
    assert first[0, 5:, :7].eq(3).all() and first[0, 5:, 7:].eq(4).all()
    kinds = script.grid_pointing(None, images, torch.arange(8), lambda *a: torch.stack([maps_of(*a), 0 * maps_of(*a)]))
    torch.testing.assert_close(kinds[0], shares)
    assert kinds[1].isnan().all()  # a map of zeros points nowhere
    with pytest.raises(common.UserError, match="6 images make no mosaics of four"):
        script.grid_pointing(None, images[:6], torch.arange(6), maps_of)


def test_grid_pointing_takes_lists_and_arrays_and_refuses_signs():
    """A share of a map with values below 0 was -1.23."""
    images = torch.arange(1, 5.0)[:, None, None, None].expand(4, 3, 5, 7).clone()
    shares = script.grid_pointing(None, images, [0, 1, 2, 3], lambda model, mosaics, classes: mosaics[:, 0].numpy())
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert script.grid_pointing(None, images, 2, lambda model, mosaics, classes: mosaics[:, 0]).shape == (4,)
    with pytest.raises(common.UserError, match="maps must be at least 0, and the smallest value is -4: give maps.abs"):
        script.grid_pointing(None, images, [0, 1, 2, 3], lambda model, mosaics, classes: -mosaics[:, 0])
    with pytest.raises(common.UserError, match="3 classes for 4 images"):
        script.grid_pointing(None, images, [0, 1, 2], None)
    with pytest.raises(common.UserError, match="0 images make no mosaics"):
        script.grid_pointing(None, images[:0], [], None)


def test_grid_pointing_takes_any_array_and_refuses_what_are_no_maps():
    images = torch.arange(1, 5.0)[:, None, None, None].expand(4, 3, 5, 7).clone()
    flipped = script.grid_pointing(None, images, 0, lambda model, mosaics, c: mosaics[:, 0].numpy()[:, ::-1, ::-1])
    assert flipped.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    wrong = {
        "they are .4, 5, 7.": torch.ones(4, 5, 7),
        "they are .10, 14.": torch.ones(10, 14),
        "of this NoneType no tensor": None,
        "560 values not finite": torch.full((4, 10, 14), torch.nan),
    }
    for says, made in wrong.items():
        with pytest.raises(common.UserError, match=rf"shape \(..., 4, 10, 14\): .*{says}"):
            script.grid_pointing(None, images, 0, lambda *_, made=made: made)


def test_own_maps_leave_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(
        "import os\ndef ones(model, images, classes):\n    os.chdir('/')\n    return images[:, 0]\n"
    )
    maps = script.import_maps(["m.py:ones"])["ones"](None, torch.ones(1, 3, 4, 4), torch.zeros(1))
    assert maps.shape == (1, 4, 4) and Path.cwd() == tmp_path


def test_a_network_that_looks_at_one_corner_only():
    """Its maps point there whatever is asked: a share of 1 for the photo in that corner, of 0 for the others."""

    class Corner(nn.Module):
        def forward(self, x):
            return x[:, :, : x.shape[2] // 2, : x.shape[3] // 2].mean((2, 3))

    plain = load_script("2e_saliency").saliency_maps
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert script.grid_pointing(Corner(), images, torch.tensor([0, 1, 2, 0]), plain).tolist() == [1, 0, 0, 0]


def test_mosaics_take_different_classes_and_no_photo_twice():
    files = [common.ImageFile(k, str(k), None) for k in range(16)]
    classes = {k: k // 2 for k in range(16)} | {1: None, 4: 1, 12: 1}  # photo 1 is missed; 4 and 12 show class 1
    chosen = [script.choose_mosaic(k, 2, files, lambda file: classes[file.index]) for k in range(2)]
    assert [[file.index for file in members.values()] for members in chosen] == [[0, 2, 5, 6], [8, 10, 12, 13]]
    assert len(script.choose_mosaic(0, 4, files, lambda file: 7)) == 1  # one class is no mosaic
    sorted_by_class = common.ImageFiles([common.ImageFile(k, str(k), None, k // 8) for k in range(32)], 0)
    spread = common.spread_over_classes(sorted_by_class, 32, seed=0)
    mosaics = [script.choose_mosaic(k, 8, spread, lambda file: file.label) for k in range(8)]
    assert all({*members} == {0, 1, 2, 3} for members in mosaics)
    assert len({file.index for members in mosaics for file in members.values()}) == 32


def test_cells_come_and_go_as_one():
    saliency = torch.arange(30.0).view(1, 5, 6)
    means = faithfulness.in_cells(saliency, 4)
    assert means.shape == (1, 5, 6) and means[0, :4, :4].eq(saliency[0, :4, :4].mean()).all()
    assert means[0, 4, 4:].eq(28.5).all() and torch.equal(faithfulness.in_cells(saliency, 1), saliency)


def test_measures_and_their_errors_by_hand():
    def curves(*ends):
        return {"insertion": [0.0, *ends], "deletion": [ends[-1], 0.0, 0.0]}

    images = [
        {"plain": curves(0.5, 1.0), "random": curves(0.0, 1.0)},
        {"plain": curves(1.0, 1.0), "random": curves(0, 1)},
    ]
    areas = [{"plain": 0.5, "random": 0.25}, {"plain": 0.75, "random": 0.25}]
    told = {"right": True, "maps": ["plain"], "baselines": ["random"], "left_out": {"guided": "no rectifiers"}}
    told |= {"stability": {"plain": 0.5}, "other_class": {}}
    rows = [
        told | {"curves": image, "areas": {kind: {"insertion": a, "deletion": 0.25} for kind, a in of.items()}}
        for image, of in zip(images, areas, strict=True)
    ]
    rows += [{"right": False, "mosaic": {"shares": {"plain": [0.5, 1.0, None, 0.0]}}}]
    rows += [{"right": False, "mosaic": {"shares": None, "left_out": "why"}}]
    results = faithfulness_report.summary(rows)
    plain = results["maps"]["plain"]
    assert plain["insertion"] == 0.625 and plain["deletion"] == 0.25 and plain["insertion_minus_deletion"] == 0.375
    assert plain["insertion_standard_error"] == pytest.approx(0.125) and plain["images"] == 2
    assert plain["grid_pointing"] == 0.5 and plain["cells"] == 3
    assert plain["grid_pointing_standard_error"] == pytest.approx(np.std([0.5, 1, 0], ddof=1) / 3**0.5)
    assert plain["stability"] == 0.5 and plain["other_class"] is None
    assert results["best_baseline"] == "random" and plain["above_best_baseline"] == pytest.approx(0.375)
    assert results["images_wrong"] == 2 and results["mosaics"] == 1 and results["mosaics_left_out"] == {"why": 1}
    assert results["left_out"] == {"guided": "no rectifiers"} and results["probability_of_pictures"] == 1
    assert results["kinds"] == ["plain"] and results["baselines"] == ["random"]


def test_a_network_without_rectifiers_or_places_has_fewer_kinds(images):
    lacking = {"guided": "no rectifiers", "guided_grad_cam": "no rectifiers"}
    places = {"grad_cam": "no layer with a height and a width"}
    for net, expected in (
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), lacking | places),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 4)), lacking),
    ):
        options = argparse.Namespace(seed=0, copies=1, noise=0.1)
        maps, reasons = script.explained_maps(script.MAPS, net, images, CLASSES % 4, range(5), options)
        assert {kind: reason.lacking for kind, reason in reasons.items()} == expected
        assert [*maps] == [kind for kind in script.MAPS if kind not in expected]


def test_an_error_that_is_not_about_the_network_is_not_passed_over(images):
    """Any UserError was taken for a network without rectifiers."""
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)))
    options = argparse.Namespace(seed=0, copies=1, noise=0.1)
    with pytest.raises(common.UserError, match="cannot be seen"):
        script.explained_maps(script.MAPS, scripted, images, CLASSES % 4, range(5), options)


RUN = [*TINY, "--copies", "2", "--steps", "4", "--stages", "2", "--randomise", "2", "--mosaics", "2"]


def test_run_on_photos(tmp_path, monkeypatch):
    for i in range(8):
        save_photo(tmp_path / f"photos/{i}.png", i)
    monkeypatch.setattr(script, "SURE", 0.0)
    classes = ["--classes", *map(str, range(8))]
    monkeypatch.setattr(script.common, "predict_logits", predict_apart(common.predict_logits))
    run_main("2g_faithfulness", "photos", *RUN, *classes, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output/2g_faithfulness"
    results = json.loads((folder / "metrics.json").read_text())["results"]
    kinds = {"plain", "smoothed", "combined", "guided", "grad_cam", "guided_grad_cam"}
    assert {*results["maps"]} == kinds | {"random", "middle", "edges", "detail"}
    assert results["images_measured"] == 8 and results["left_out"] == {}
    assert results["mosaics"] == 2 and results["maps"]["random"]["cells"] == 8
    assert results["maps"]["detail"]["grid_pointing"] == pytest.approx(0.25, abs=1e-6)  # whatever the class
    assert len(results["randomised"]) == 2 and results["randomised"][0]["plain_maps"] == 2
    assert results["randomised"][1]["layers"] > results["randomised"][0]["layers"] > 0
    assert "stability" not in results["maps"]["edges"] and 0 < results["maps"]["guided"]["stability"] <= 1
    names = {"insertion_deletion", "faithfulness", "randomisation", "mosaic"}
    assert {path.stem for path in folder.glob("*.png")} == names
    table = list(csv.DictReader((folder / "faithfulness.csv").read_text().splitlines()))
    assert {row["map"] for row in table} == {*results["maps"]}
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [len(curve) for curve in rows[0]["curves"]["smoothed"].values()] == [5, 5]
    # the curves are those of the maps that 2e draws
    model = common.load_model("timm/test_resnet", "random", input_size=64)
    image = model.preprocess(common.read_image(tmp_path / "photos/5.png"))[None]
    saliency = load_script("2e_saliency").saliency_maps(model, image, 5)
    expected = faithfulness.insertion_deletion_curves(model, image, 5, saliency, 4)[0, 0]
    assert rows[5]["curves"]["plain"]["insertion"] == pytest.approx(expected.tolist(), abs=1e-6)


def predict_apart(predict):
    """The untrained network takes all photos for one class; here each picture has another."""

    def apart(model, images):
        logits = predict(model, images)
        return logits.roll(int(1e4 * images.sum()) % 997, 1)

    return apart


def test_images_that_the_network_gets_wrong_are_counted_and_left_out(tmp_path, monkeypatch):
    model = common.load_model("timm/test_resnet", "random", input_size=64)
    for i in range(4):
        photo = save_photo(tmp_path / "one.png", i)
        c = int(common.predict_logits(model, model.preprocess(common.read_image(photo))[None]).argmax())
        save_photo(tmp_path / f"data/DL_data_p/{c if i else (c + 1) % 1000}/{i}.png", i)
    more = ["--mosaics", "1", "--randomise", "0"]
    run_main("2g_faithfulness", *RUN, *more, cwd=tmp_path, monkeypatch=monkeypatch)
    results = json.loads((tmp_path / "output/2g_faithfulness/metrics.json").read_text())["results"]
    assert (results["images_measured"], results["images_wrong"]) == (3, 1)
    assert results["mosaics"] == 0 and sum(results["mosaics_left_out"].values()) == 1 and results["randomised"] == []


def test_none_right_is_one_sentence(tmp_path, monkeypatch):
    model = common.load_model("timm/test_resnet", "random", input_size=64)
    photo = save_photo(tmp_path / "one.png")
    c = int(common.predict_logits(model, model.preprocess(common.read_image(photo))[None]).argmax())
    save_photo(tmp_path / f"data/DL_data_p/{(c + 1) % 1000}/0.png")
    with pytest.raises(common.UserError, match="gets none of 1 images right"):
        run_main("2g_faithfulness", *RUN, cwd=tmp_path, monkeypatch=monkeypatch)


def test_layers_are_randomised_from_the_top_down(toy, images):
    """In the order of execution, whatever the order of definition; each layer in one group."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(192, 4), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.last(F.relu(self.first(x)).flatten(1))

    groups = randomisation.layers_from_the_top(Turned(), images[:1], 9)
    assert [[name for name, _ in group] for group in groups] == [["last"], ["first"]]
    groups = randomisation.layers_from_the_top(toy, images[:1], 2)
    assert [[name for name, _ in group] for group in groups] == [["8", "3"], ["1", "0"]]


def test_a_stage_is_named_by_the_part_of_the_network():
    names = ("network.blocks.5.1.conv_pwl", "network.layer4.2.conv3", "features.28", "classifier", "stem.conv")
    assert [*map(faithfulness_report.stage_of, names)] == ["blocks 5", "layer4", "features 28", "classifier", "stem"]


def test_cascading_randomisation(images):
    torch.manual_seed(0)
    toy = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))

    def both(*arguments):
        return torch.stack([*common.make_maps(guided.MAPS, *arguments)[0].values()])[:2]

    before = state_of(toy)
    runs = [
        randomisation.cascading_randomisation(toy, images, CLASSES % 4, both, 3, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert_same_state(before, state_of(toy))
    layers, left = runs[0]
    assert layers == [(1, "5"), (2, "2"), (3, "0")] and np.shape(left) == (3, 2, 5)
    assert runs[0] == runs[1] != runs[2]
    assert max(abs(r) for kind in left[-1] for r in kind) < 0.95  # nothing is intact in the end
    # by hand: the last layer drawn anew
    copied = copy.deepcopy(toy)
    generator = torch.Generator().manual_seed(0)
    for parameter in copied[5].parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.std() + parameter.mean()
    pairs = [
        [m[0].abs().amax(1) for m in (method(toy, images, CLASSES % 4), method(copied, images, CLASSES % 4))]
        for method in (common.class_score_gradient, guided_gradient)
    ]
    expected = [[spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(*pair, strict=True)] for pair in pairs]
    np.testing.assert_allclose(left[0], expected, atol=1e-6)


def test_a_constant_map_has_no_rank_correlation():
    assert maps.rank_correlation(np.zeros((3, 3)), np.arange(9.0).reshape(3, 3)) is None
    assert maps.rank_correlation(np.full((3, 3), np.nan), np.arange(9.0).reshape(3, 3)) is None
