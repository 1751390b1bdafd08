"""How far maps can be believed: against networks that look at one place, and by hand; what leaves the class alone."""

from __future__ import annotations

import argparse
import copy
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import guided_gradient
from conftest import TINY, assert_same_state, load_script, rows_of, save_labelled, save_photo, state_of, table_of
from scipy.stats import spearmanr
from torch import nn

import common
from explain.methods import faithfulness, maps
from explain.report import faithfulness as report
from explain.report.verdicts import most_faithful_map
from explain.run.rows import read_rows

script, guided = load_script("2g_faithfulness"), load_script("2f_guided_saliency")
plain = load_script("2e_saliency")
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
    # lists, arrays of any strides, one class for all
    flipped = script.grid_pointing(None, images[:4], [0, 1, 2, 3], lambda *a: maps_of(*a).numpy()[:, ::-1, ::-1])
    assert flipped.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert script.grid_pointing(None, images[:4], 2, maps_of).shape == (4,)


@pytest.mark.parametrize(
    ("says", "count", "classes", "made"),
    [
        ("6 images make no mosaics of four", 6, range(6), None),
        ("0 images make no mosaics", 0, [], None),
        ("3 classes for 4 images", 4, [0, 1, 2], None),
        ("maps must be at least 0, and the smallest value is -4: give maps.abs", 4, 0, torch.full((4, 10, 14), -4.0)),
        (r"shape \(..., 4, 10, 14\): their shape is .4, 5, 7.", 4, 0, torch.ones(4, 5, 7)),
    ],
)
def test_grid_pointing_refuses_what_makes_no_mosaic_and_no_map(says, count, classes, made):
    with pytest.raises(common.UserError, match=says):
        script.grid_pointing(None, torch.ones(count, 3, 5, 7), [*classes] if classes else 0, lambda *_: made)


def test_own_maps_leave_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import os\ndef ones(model, images, classes):\n    os.chdir('/')\n    return images[:, 0]\n"
    (tmp_path / "m.py").write_text(code)
    maps = script.import_maps(["m.py:ones"])["ones"](None, torch.ones(1, 3, 4, 4), torch.zeros(1))
    assert maps.shape == (1, 4, 4) and os.getcwd() == str(tmp_path)


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


def test_cells_come_and_go_as_one():
    saliency = torch.arange(30.0).view(1, 5, 6)
    means = faithfulness.in_cells(saliency, 4)
    assert means.shape == (1, 5, 6) and means[0, :4, :4].eq(saliency[0, :4, :4].mean()).all()
    assert means[0, 4, 4:].eq(28.5).all() and torch.equal(faithfulness.in_cells(saliency, 1), saliency)


def made_rows(*images: dict[str, float], **more) -> list[dict]:
    """Rows of images with these insertions of each kind, and a deletion of 0.25; kinds in capitals are maps."""
    rows = []
    for of_image in images:
        kinds = [k for of in images for k in of]
        rows.append(
            {
                "right": True,
                "maps": [*dict.fromkeys(k for k in kinds if k.isupper())],
                "baselines": [*dict.fromkeys(k for k in kinds if k.islower())],
                "left_out": {},
                "curves": {k: {"insertion": [0.0, a, 1.0], "deletion": [1.0, 0.0, 0.0]} for k, a in of_image.items()},
                "areas": {k: {"insertion": a, "deletion": 0.25} for k, a in of_image.items()},
                **more,
            }
        )
    return rows


def test_measures_and_their_errors_by_hand():
    rows = made_rows({"A": 0.5, "b": 0.25}, {"A": 0.75, "b": 0.25}, stability={"A": 0.5}, other_class={})
    rows[0]["left_out"] = {"guided": "no rectifiers"}
    rows += [{"right": False, "mosaic": {"shares": {"A": [0.5, 1.0, None, 0.0]}}}]
    rows += [{"right": False, "mosaic": {"shares": None, "left_out": "why"}}]
    results = report.summary(rows)
    a = results["maps"]["A"]
    assert a["insertion"] == 0.625 and a["deletion"] == 0.25 and a["insertion_minus_deletion"] == 0.375
    assert a["insertion_standard_error"] == pytest.approx(0.125) and a["images"] == 2
    assert a["grid_pointing"] == 0.5 and a["cells"] == 3
    assert a["grid_pointing_standard_error"] == pytest.approx(np.std([0.5, 1, 0], ddof=1) / 3**0.5)
    assert a["stability"] == 0.5 and a["other_class"] is None and a["other_class_images"] == 0
    assert results["best_baseline"] == "b" and a["above_best_baseline"] == pytest.approx(0.375)
    assert results["images_wrong"] == 2 and results["mosaics"] == 1 and results["mosaics_left_out"] == {"why": 1}
    assert results["left_out"] == {"guided": "no rectifiers"} and results["probability_of_pictures"] == 1
    assert results["kinds"] == ["A"] and results["baselines"] == ["b"]


@pytest.mark.parametrize(
    ("images", "best", "better", "difference", "error", "says"),
    [
        # below, in each image by 0.1 and 0.3: the error is half of their distance
        ([{"A": 0.5, "b": 0.6}, {"A": 0.4, "b": 0.7}], "A", False, -0.2, 0.1, "No map is significantly better than"),
        # above by 0.1 on average, with an error of 0.1
        ([{"A": 0.7, "b": 0.7}, {"A": 0.9, "b": 0.7}], "A", False, 0.1, 0.1, "better than the b baseline (insertion"),
        # bars that overlap far: the scores are 0.2 +- 0.2 and 0.1 +- 0.2, and yet the difference is always 0.1
        ([{"A": 0.65, "b": 0.55}, {"A": 0.25, "b": 0.15}], "A", True, 0.1, 0.0, "faithful map is the A map (insertion"),
        # one image has no error
        ([{"A": 0.9, "b": 0.2}], "A", False, 0.7, None, "No map is significantly better than the b baseline"),
        # C has the higher score, of the one image that it has; A is significantly better
        (
            [{"A": 0.5, "b": 0.25, "C": 1.0}, {"A": 0.5, "b": 0.26}],
            "A",
            True,
            0.245,
            0.005,
            "The best map that is significantly better than the baselines is the A map (C: higher, but with",
        ),
    ],
)
def test_a_map_is_better_than_a_baseline_by_twice_the_error_of_their_difference(
    images, best, better, difference, error, says
):
    results = report.summary(made_rows(*images))
    assert (results["best_map"], results["best_baseline"], results["map_is_better"]) == (best, "b", better)
    assert results["difference"] == pytest.approx(difference)
    assert results["difference_standard_error"] == (None if error is None else pytest.approx(error, abs=1e-9))
    assert says in most_faithful_map(results)


def test_each_curve_and_panel_has_its_own_n():
    """A on three images, Z on one: the other two are zero. No mosaic, and one image with another class's map."""
    rows = made_rows({"A": 0.5, "Z": 0.5, "b": 0.3}, {"A": 0.6, "b": 0.3}, {"A": 0.7, "b": 0.3})
    checked = {"A": 0.5, "Z": None}
    rows[0] |= {"stability": checked, "other_class": checked, "layers": [1, 2], "down_to": ["head", "stem"]}
    rows[0]["randomised"] = {"A": [0.5, 0.25], "Z": [None, None]}
    results = report.summary(rows) | {"measured_on": "3 images"}
    assert results["maps"]["Z"]["insertion_standard_error"] is None and results["maps"]["Z"]["images"] == 1
    model = argparse.Namespace(label="net")
    options = argparse.Namespace(steps=2, cells=8, copies=3, noise=0.5, randomise=1, mosaics=0)
    figure, text = report.draw_curves(rows, results, model, options)
    assert labels_of(figure) == ["A (3)", "Z (1)", "b (3)"] and "order, in cells of 8 x 8 pixels" in text[1]
    figure, text = report.draw_measures(results, model, options)
    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert [title.splitlines()[-1] for title in titles] == ["images: 1 to 3", "images: 1"]  # no panel for pointing
    assert text[-1] == "Measured on 3 images; no grid pointing: no mosaic was made with --mosaics 0."
    figure, text = report.draw_randomised(results["randomised"], model)
    assert labels_of(figure) == ["A (1)", "chance level"] and "alone does not make a map faithful" in text[2]


def labels_of(figure) -> list[str]:
    (legend,) = [panel.get_legend() for panel in figure.axes if panel.get_legend()]
    return [text.get_text() for text in legend.get_texts()]


def test_a_panel_without_data_is_not_drawn_and_says_why():
    rows = [
        *made_rows({"A": 0.5, "b": 0.3}),
        {"right": False, "mosaic": {"shares": None, "left_out": "too few photos"}},
    ]
    options = argparse.Namespace(randomise=0)
    figure, text = report.draw_measures(
        report.summary(rows) | {"measured_on": "2 images"}, argparse.Namespace(label="net"), options
    )
    assert len([panel for panel in figure.axes if panel.get_title()]) == 1
    reasons = "no grid pointing: too few photos; no map of another class was measured with --randomise 0."
    assert text[-1] == f"Measured on 2 images; {reasons}"


@pytest.mark.usefixtures("undrawn")
def test_rows_are_saved_by_the_image_where_one_takes_long(tmp_path, run, monkeypatch):
    """A kill at the third image of a batch of four leaves the rows of two; today's run goes on from there."""
    for i in range(4):
        save_photo(tmp_path / f"photos/{i}.png", i)
    monkeypatch.setattr(common, "SECONDS_UNSAVED", 0.0)
    measure, saved = script.measure_image, []

    def measure_image(*arguments):
        found = [len(read_rows(path)) for path in tmp_path.glob("output/2g_faithfulness/rows.*.jsonl")]
        saved.append(sum(found))
        if len(saved) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(script, "measure_image", measure_image)
    arguments = ["photos", *RUN, "--batch-size", "4", "--mosaics", "0", "--randomise", "0"]
    with pytest.raises(KeyboardInterrupt):
        run("2g_faithfulness", *arguments)
    run("2g_faithfulness", *arguments)
    assert saved == [0, 1, 2, 2, 3]


def test_a_network_without_rectifiers_or_places_has_fewer_kinds(images):
    lacking = {"guided": "no rectifiers", "guided_grad_cam": "no rectifiers"}
    places = {"grad_cam": "no layer with a height and a width"}
    options = argparse.Namespace(seed=0, copies=1, noise=0.1)
    for net, expected in (
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), lacking | places),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 4)), lacking),
    ):
        maps, reasons = common.make_maps(script.MAPS, net, images, CLASSES, options, range(5))
        assert {kind: reason.lacking for kind, reason in reasons.items()} == expected
        assert [*maps] == [kind for kind in script.MAPS if kind not in expected]
    with pytest.raises(common.UserError, match="cannot be seen"):  # any UserError was taken for a lack of rectifiers
        common.make_maps(script.MAPS, torch.jit.script(net), images, CLASSES, options, range(5))


RUN = [*TINY, "--copies", "2", "--steps", "4", "--stages", "2", "--randomise", "2", "--mosaics", "2"]


@pytest.mark.usefixtures("undrawn")
def test_run_on_photos(tmp_path, run, monkeypatch):
    for i in range(8):
        save_photo(tmp_path / f"photos/{i}.png", i)
    monkeypatch.setattr(script, "SURE", 0.0)
    monkeypatch.setattr(script.common, "predict_logits", predict_apart(common.predict_logits))
    results = run("2g_faithfulness", "photos", *RUN, "--classes", *map(str, range(8)))["results"]
    kinds = {"plain", "smoothed", "combined", "guided", "grad_cam", "guided_grad_cam"}
    assert {*results["maps"]} == kinds | {"random", "middle", "edges", "detail"}
    assert results["images_measured"] == 8 and results["left_out"] == {}
    assert results["mosaics"] == 2 and results["maps"]["random"]["cells"] == 8
    assert results["maps"]["detail"]["grid_pointing"] == pytest.approx(0.25, abs=1e-6)  # whatever the class
    assert len(results["randomised"]) == 2 and results["randomised"][0]["plain_maps"] == 2
    assert results["randomised"][1]["layers"] > results["randomised"][0]["layers"] > 0
    assert "stability" not in results["maps"]["edges"] and 0 < results["maps"]["guided"]["stability"] <= 1
    folder = tmp_path / "output/2g_faithfulness"
    names = {"insertion_deletion", "faithfulness", "randomisation", "mosaic"}
    assert {path.stem for path in folder.glob("*.png")} == names
    assert {row["map"] for row in table_of(folder / "faithfulness.csv")} == {*results["maps"]}
    rows = rows_of(folder)
    assert [len(curve) for curve in rows[0]["curves"]["smoothed"].values()] == [5, 5]
    # the curves are those of the maps that 2e draws
    model = common.load_model("timm/test_resnet", "random", input_size=64)
    image = model.preprocess(common.read_image(tmp_path / "photos/5.png"))[None]
    expected = faithfulness.insertion_deletion_curves(model, image, 5, plain.saliency_maps(model, image, 5), 4)[0, 0]
    assert rows[5]["curves"]["plain"]["insertion"] == pytest.approx(expected.tolist(), abs=1e-6)


def predict_apart(predict):
    """The untrained network takes all photos for one class; here each picture has another."""

    def apart(model, images):
        logits = predict(model, images)
        return logits.roll(int(1e4 * images.sum()) % 997, 1)

    return apart


@pytest.mark.usefixtures("undrawn")
def test_images_that_the_network_gets_wrong_are_counted_and_left_out(tmp_path, run):
    save_labelled(tmp_path / "data/DL_data_p", [False, True, True, True])
    more = ["--mosaics", "1", "--randomise", "0"]
    results = run("2g_faithfulness", *RUN, *more)["results"]
    assert (results["images_measured"], results["images_wrong"]) == (3, 1)
    assert results["mosaics"] == 0 and sum(results["mosaics_left_out"].values()) == 1 and results["randomised"] == []
    for photo in tmp_path.glob("data/DL_data_p/*/[123].png"):
        photo.unlink()
    with pytest.raises(common.UserError, match="gets none of 1 images right"):
        run("2g_faithfulness", *RUN, *more)


def test_a_stage_is_named_by_the_part_of_the_network():
    names = ("network.blocks.5.1.conv_pwl", "network.layer4.2.conv3", "features.28", "classifier", "stem.conv")
    assert [*map(report.stage_of, names)] == ["blocks 5", "layer4", "features 28", "classifier", "stem"]


class Turned(nn.Module):
    """Its layers run in another order than that of their definition."""

    def __init__(self):
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(128, 4), nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.last(F.relu(self.middle(F.relu(self.first(x)))).flatten(1))


def test_cascading_randomisation(images):
    """In the order of execution, from the top down; each layer in one stage."""
    toy = Turned()

    def both(*arguments):
        return torch.stack([plain.saliency_maps(*arguments), guided.guided_saliency_maps(*arguments)])

    before = state_of(toy)
    runs = [
        script.cascading_randomisation(toy, images, CLASSES, both, stages, torch.Generator().manual_seed(seed))
        for stages, seed in ((3, 0), (3, 0), (3, 1), (2, 0))
    ]
    assert_same_state(before, state_of(toy))
    layers, left = runs[0]
    assert layers == [(1, "last"), (2, "middle"), (3, "first")] and np.shape(left) == (3, 2, 5)
    assert runs[0] == runs[1] != runs[2] and runs[3][0] == [(1, "last"), (3, "first")]
    assert max(abs(r) for kind in left[-1] for r in kind) < 0.95  # nothing is intact in the end
    # by hand: the last layer drawn anew
    copied = copy.deepcopy(toy)
    generator = torch.Generator().manual_seed(0)
    for parameter in copied.last.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.std() + parameter.mean()
    pairs = [
        [m[0].abs().amax(1) for m in (method(toy, images, CLASSES), method(copied, images, CLASSES))]
        for method in (common.class_score_gradient, guided_gradient)
    ]
    expected = [[spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(*pair, strict=True)] for pair in pairs]
    np.testing.assert_allclose(left[0], expected, atol=1e-6)


def test_a_constant_map_has_no_rank_correlation():
    for constant in (torch.zeros(3, 3), torch.full((3, 3), torch.nan)):
        assert maps.rank_correlation(constant, torch.arange(9.0).view(3, 3)) is None
