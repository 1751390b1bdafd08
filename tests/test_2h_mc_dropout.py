"""Monte Carlo dropout: against the closed form, against whole passes, and image by image."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, load_script, rows_of, save_labelled, save_photo, table_of
from scipy.stats import ks_2samp
from torch import nn

import common
from explain.methods import dropout, selective
from explain.methods.disturbances import disturbed
from explain.report import uncertainty as uncertainty_report
from explain.report.numbers import with_error

script = load_script("2h_mc_dropout")
T = 10_000


def generators(*seeds):
    return common.seeded_generators(0, seeds)


class Head(nn.Module):
    """W dropout(f) + b on the pixels themselves; `skip` adds W f, which forbids sharing."""

    def __init__(self, p=0.3, skip=False):
        super().__init__()
        torch.manual_seed(1)
        self.linear, self.p, self.skip = nn.Linear(192, 3).double(), p, skip

    def forward(self, x):
        f = x.flatten(1)
        return self.linear(F.dropout(f, self.p, training=False) + (f if self.skip else 0))


@pytest.mark.parametrize(("own", "given"), [(0.3, None), (0.6, 0.3), (0.0, 0.3)], ids=["own p", "another", "from 0"])
@pytest.mark.parametrize("skip", [False, True], ids=["shared features", "whole passes"])
def test_two_moments_in_closed_form(skip, own, given, images):
    """Mean W f + b, variance p / (1 - p) * W^2 f^2, each within 4.5 standard errors of T passes; F.dropout(f, own)."""
    net, x = Head(own, skip), images[:2].double()
    assert dropout.passes_can_be_shared(net, x, given) != skip
    logits = script.mc_dropout_logits(net, x, T, generators(1, 2), p=given)
    f, weight = x.flatten(1), net.linear.weight.detach()
    mean = (1 + skip) * f @ weight.T + net.linear.bias.detach()
    terms = weight**2 * f[:, None] ** 2  # (N, classes, features)
    variance = 0.3 / 0.7 * terms.sum(-1)
    assert ((logits.mean(0) - mean).abs() < 4.5 * (variance / T).sqrt()).all()
    # for a sum of independent terms var(s^2) = (mu_4 - sigma^4) / T, and kurtosis is close to the normal one
    assert ((logits.var(0) - variance).abs() < 4.5 * variance * (2 / T) ** 0.5 * 1.1).all()


class Whole(nn.Module):
    """The same network with a term of weight 0 from before the dropout, which forbids sharing."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + 0 * x.flatten(1)[:, :1]


def test_sharing_gives_the_same_passes_as_whole_ones(images):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(192, 3))
    assert dropout.passes_can_be_shared(net, images) and not dropout.passes_can_be_shared(Whole(net), images)
    shared = script.mc_dropout_logits(net, images, 50, generators(*range(5)))
    whole = script.mc_dropout_logits(Whole(net), images, 50, generators(*range(5)))
    torch.testing.assert_close(shared, whole)
    assert shared.std(0).min() > 0.01


@pytest.mark.parametrize("share", [True, False])
def test_the_deterministic_pass_comes_with_the_sampled_ones(images, share, monkeypatch):
    """Also where the passes come in several batches: the masks are those of the passes alone."""
    net = nn.Sequential(nn.Flatten(), nn.AlphaDropout(0.3), nn.Linear(192, 8), nn.Dropout(0.4), nn.Linear(8, 3))
    for together in (dropout.NUMBERS_TOGETHER, 192 * 20):
        monkeypatch.setattr(dropout, "NUMBERS_TOGETHER", together)
        logits = script.mc_dropout_logits(net, images, 50, generators(*range(5)), share, deterministic=True)
        single, passes = logits[0], logits[1:]
        torch.testing.assert_close(single, common.predict_logits(net, images))
        torch.testing.assert_close(passes, script.mc_dropout_logits(net, images, 50, generators(*range(5)), share))


@pytest.mark.parametrize("share", [True, False])
def test_the_rows_are_of_the_public_functions_logits(share, tmp_path, run_2h, monkeypatch):
    """Bit for bit."""
    monkeypatch.setattr(dropout, "passes_can_be_shared", lambda *_: share)
    photos = [save_photo(tmp_path / f"{i}.png", i) for i in range(3)]
    _, rows, _ = run_2h(*photos, "--passes", "4", "--dropout", "0.5")
    model = common.load_model("timm/test_resnet", "random", input_size=64)
    dropout.prepare(model, 0.5)
    batch = torch.stack([model.preprocess(common.read_image(photo)) for photo in photos])
    logits = script.mc_dropout_logits(model, batch, 4, generators(0, 1, 2), share, True, p=0.5)
    for n, row in enumerate(rows):
        assert script.uncertainty(logits[1:, n], logits[0, n]).items() <= row.items()


def test_one_generator_gives_every_image_its_own_masks(images):
    same = images[:1].expand(3, -1, -1, -1)
    for net in (Head(), Head(skip=True)):
        out = script.mc_dropout_logits(net, same.double(), 4, torch.Generator().manual_seed(0))
        again = script.mc_dropout_logits(net, same.double(), 4, torch.Generator().manual_seed(0))
        assert torch.equal(out, again) and not torch.allclose(out[:, 0], out[:, 1])


def test_the_callers_images_are_not_written_into(images):
    given = images.clone()
    for net in (
        nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Flatten()),
        Whole(nn.Sequential(nn.Flatten(), nn.Dropout(0.5, inplace=True))),
    ):
        script.mc_dropout_logits(net, images, 3)
        assert torch.equal(images, given)


def test_two_dropouts_have_the_distribution_of_pytorchs_own(images):
    """VGG's and AlexNet's head: two-sample test against the modules in training mode."""
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))
    ours = script.mc_dropout_logits(net.eval(), images[:1], 4000, generators(7), share=True)[:, 0]
    theirs = net.train()(images[:1].expand(4000, 3, 8, 8)).detach()
    assert all(ks_2samp(ours[:, c], theirs[:, c]).pvalue > 1e-3 for c in range(3))


@pytest.mark.parametrize("numbers", [dropout.NUMBERS_TOGETHER, 144 * 7])
def test_an_images_passes_are_its_own(numbers, images, monkeypatch):
    """The same alone, in any batch, in any order; also where passes are split into groups."""
    monkeypatch.setattr(dropout, "NUMBERS_TOGETHER", numbers)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3))
    together = script.mc_dropout_logits(net, images, 20, generators(*range(5)))
    order = [3, 0, 4]
    torch.testing.assert_close(together[:, order], script.mc_dropout_logits(net, images[order], 20, generators(*order)))
    assert together.shape == (20, 5, 3) and len(together[:, 0].unique(dim=0)) > 15  # groups do not repeat each other
    with pytest.raises(common.UserError, match="2 generators for 5 images"):
        script.mc_dropout_logits(net, images, 2, generators(0, 1))


def test_uncertainty_by_hand():
    """Two passes that are certain of different classes: H = log 2, all of it mutual information."""
    logits = torch.tensor([[50.0, 0, 0], [0, 50.0, 0]])
    row = script.uncertainty(logits, torch.tensor([1.0, 1.0, -50]))
    assert row["predictive_entropy"] == pytest.approx(np.log(2))
    assert row["mutual_information"] == pytest.approx(np.log(2))
    assert row["agreement"] == 0.5 and row["class"] == 0
    assert row["variance"] == pytest.approx(0.5)  # of 0 and 1, with n - 1
    assert row["deterministic_entropy"] == pytest.approx(np.log(2))
    assert row["leading"][0]["standard_deviation"] == pytest.approx(0.5**0.5)
    assert row["leading"][0]["quantiles"] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    same = script.uncertainty(torch.zeros(4, 3), torch.zeros(3))
    assert same["predictive_entropy"] == pytest.approx(np.log(3)) and same["mutual_information"] == pytest.approx(0)
    once = script.uncertainty(torch.zeros(1, 3), torch.zeros(3))  # one pass has no spread
    assert once["variance"] is None and once["leading"][2]["standard_deviation"] is None


@pytest.fixture
def run_2h(tmp_path, run, undrawn):
    """A function that runs 2h on a tiny network; it returns its metrics and rows, and the names of its figures."""

    def run_2h(*arguments):
        metrics = run("2h_mc_dropout", *TINY, *arguments)
        folder = tmp_path / "output/2h_mc_dropout"
        return metrics, rows_of(folder), {path.name for path in folder.glob("*.png")}

    return run_2h


def test_run(tmp_path, run_2h, capsys):
    for i in range(3):
        save_photo(tmp_path / f"{i}.png", i)
    settings = ["--dropout", "0.5", "--passes", "12", "--batch-size", "2"]
    metrics, rows, figures = run_2h("0.png", "1.png", "2.png", *settings)
    assert metrics["images"]["used"] == 3 and metrics["settings"]["passes"] == 12
    results = metrics["results"]
    assert 0 < results["mean_mutual_information"] < results["mean_predictive_entropy"] < results["entropy_of_chance"]
    table = table_of(tmp_path / "output/2h_mc_dropout/uncertainty.csv")
    order = sorted(range(3), key=lambda i: -rows[i]["mutual_information"])
    assert [int(list(line.values())[3]) for line in table] == order
    assert figures == {"mc_dropout.png", "uncertainty.png", "settling.png"}
    enough = uncertainty_report.enough_in_words(results["passes_enough"], 12)
    assert enough in capsys.readouterr().out and "between successive images after about" in enough
    # one image alone has the same passes, and is not ranked; three passes show no settling
    metrics, again, figures = run_2h("0.png", *settings)
    assert again[0]["predictive_entropy"] == pytest.approx(rows[0]["predictive_entropy"], abs=1e-5)
    assert metrics["results"]["most_uncertain"] is None and "order" not in metrics["results"]["passes_enough"]
    assert figures == {"mc_dropout.png", "settling.png"} and "least sure" not in capsys.readouterr().out
    assert "largest MI first" not in " ".join(metrics["captions"]["mc_dropout.png"])
    run_2h("0.png", "--dropout", "0.5", "--passes", "3")
    assert "settling.png is not drawn: it needs at least 4 passes" in capsys.readouterr().out


def test_a_known_images_measures_by_hand():
    """The passes of `test_uncertainty_by_hand`: half for each of two classes, the mean undecided."""
    logits = torch.tensor([[50.0, 0, 0], [0, 50.0, 0]])
    row = script.known_uncertainty(logits, torch.tensor([0.0, 1.0, -50.0]), 1)
    assert row["variance"] == pytest.approx(0.5) and row["coefficient_of_variation"] == pytest.approx(2**0.5)
    assert row["mutual_information"] == pytest.approx(np.log(2)) and row["disagreement"] == 0.5
    p = 1 / (1 + np.exp(-1))
    assert row["single_probability"] == pytest.approx(p) and row["single_margin"] == pytest.approx(2 * p - 1)
    assert row["single"]["right"] and row["single"]["loss"] == pytest.approx(-np.log(p))
    assert row["mean"]["confidence"] == pytest.approx(0.5)
    with pytest.raises(common.UserError, match="class 3 is unknown to a model of 3 classes"):
        script.known_uncertainty(logits, torch.zeros(3), 3)


def test_measures_are_judged_on_the_validation_images(tmp_path, run_2h):
    save_photo(tmp_path / "data/DL_data/test_images/a.png", 90)
    model = save_labelled(tmp_path / "data/DL_data_p", [False, True] * 6)
    metrics, rows, figures = run_2h("--dropout", "0.1", "--passes", "6", "--shift-limit", "2")
    results = metrics["results"]
    assert results["images"] == 1 and results["predictions"]["images"] == 12
    assert {*results["mistakes"]} == {*selective.MEASURES}
    low, high = results["mistakes"]["single_probability"]["auroc_interval"]
    assert 0 <= low <= results["mistakes"]["single_probability"]["auroc"] <= high <= 1
    shift = results["mistakes_under_shift"]
    assert {*shift} == {"none", "pooled", *disturbed(torch.rand(1, 3, 8, 8), generators(0))}
    assert shift["pooled"]["variance"]["mistakes"] >= 0 and 0 <= shift["blur_4_px"]["confidence"] <= 1
    row, other = (row for row in rows if "disturbed" in row)  # of two classes
    assert row["label"] != other["label"]
    assert results["classes_measured"] == results["classes_in_data"] == len({row["label"] for row in rows[1:]})
    assert [("label" in row, "leading" in row) for row in rows] == [(False, True)] + [(True, False)] * 12
    assert figures == {"mc_dropout.png", "settling.png", "mistakes.png", "shift.png"}
    caption = " ".join(metrics["captions"]["shift.png"])
    assert f"2 images from 2 of {results['classes_in_data']} classes" in caption
    assert "fewer than 5 mistakes" in caption
    # a disturbed picture's row is that of the disturbed picture
    turned = model.preprocess(common.read_image(tmp_path / "data" / row["path"]))[None].rot90(1, (2, 3))
    dropout.prepare(model, 0.1)
    logits = script.mc_dropout_logits(model, turned, 6, generators(row["index"]), deterministic=True, p=0.1)
    expected = script.known_uncertainty(logits[1:, 0], logits[0, 0], row["label"])["predictive_entropy"]
    assert row["disturbed"]["quarter_turn"]["predictive_entropy"] == pytest.approx(expected, rel=1e-5)


def test_a_labelled_folder_is_explained_and_judged(tmp_path, run_2h, capsys):
    """Without a dataset; with a picture beside its subfolders, or a folder of no class, it is one of test pictures."""
    save_labelled(tmp_path / "photos", [False, True] * 6)
    settings = ["photos", "--dropout", "0.1", "--passes", "4", "--shift-limit", "0"]
    metrics, rows, figures = run_2h(*settings)
    assert all("label" in row and "leading" in row for row in rows) and len(rows) == 12
    assert all(row["label"] == int(row["path"].split("/")[1]) for row in rows)
    results = metrics["results"]
    assert results["images"] == results["predictions"]["images"] == 12
    assert results["predictions"]["single"]["accuracy"] == 0.5
    assert figures == {"mc_dropout.png", "uncertainty.png", "settling.png", "mistakes.png"}
    assert "note: the folders' names are taken as labels" in capsys.readouterr().err
    (tmp_path / "photos" / rows[0]["path"].split("/")[1]).rename(tmp_path / "photos/no class")
    metrics, rows, _ = run_2h(*settings)
    assert not any("label" in row for row in rows) and len(rows) == 12
    assert "the images are taken as unlabelled, since 1 of the" in metrics["model"]["notes"][-1]
    save_photo(tmp_path / "photos/0.png")
    metrics, rows, _ = run_2h(*settings)
    assert not any("label" in row for row in rows) and len(rows) == 13 and not metrics["model"]["notes"]


# ------------------------------------------------------------------------------------------------
# What is said of the numbers


def made_rows(*values, error=0.01):
    """Rows with these values for every measure, in order, the error for each."""
    keys = uncertainty_report.SPREADS
    return [
        {"index": i, "path": f"a/{i}.png", "deterministic_entropy": 0.1}
        | {key: value for key in keys}
        | {f"{key}_standard_error": error for key in keys}
        for i, value in enumerate(values)
    ]


def test_passes_enough_by_hand():
    """After 100 passes two errors of 0.01 are 0.02: within 0.1 * 0.5 after 16, and within 0.1 * 0.1 after 400.

    The differences are 0.3 and 0.1, with an error of 0.01 * sqrt 2: 100 * 8e-4 / 0.1^2 = 8 passes order them.
    """
    enough = uncertainty_report.passes_enough(made_rows(0.5, 0.2, 0.1), 100)
    assert enough == {**dict.fromkeys(uncertainty_report.SPREADS, 400), "order": 8}
    said = uncertainty_report.enough_in_words(enough, 100)
    assert "each variance after about 400, below" in said and "successive images after about 8 passes." in said
    assert uncertainty_report.passes_enough(made_rows(0.5), 100)["variance"] == 16
    alone = uncertainty_report.passes_enough(made_rows(0.5), 9)
    assert "successive" not in uncertainty_report.enough_in_words(alone, 9)
    assert uncertainty_report.passes_enough(made_rows(0.5, 0.5), 100)["order"] is None
    assert uncertainty_report.passes_enough(made_rows(0.5, error=None), 1) == {}


@pytest.mark.parametrize(("difference", "apart"), [(0.0302, True), (0.0272, False)])  # 2.14 and 1.92 errors of it
def test_what_is_told_apart(difference, apart):
    """The rule is twice the error of the difference, 0.01 * sqrt 2; the figure draws what it leaves as open dots."""
    rows = made_rows(0.1302, 0.1302 - difference, 0.01)
    assert [row["index"] for row in uncertainty_report.least_sure(rows)] == ([0] if apart else [0, 1])
    tail = "" if apart else "; cannot be told apart from it: 1.png"
    assert uncertainty_report.findings(rows) == [
        f"least sure (largest mutual information): 0.png, 0.130 ± 0.010{tail}",
        "surest (smallest mutual information): 2.png, 0.010 ± 0.010",
    ]
    assert uncertainty_report.findings(rows[:1]) == ["0.png: mutual information 0.130 ± 0.010"]
    if not apart:
        assert len(uncertainty_report.findings(rows[:2])) == 1  # the surest would be among the least sure
    figure, text = uncertainty_report.draw_order(rows, SimpleNamespace(label="net"), 100)
    open_dots = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in open_dots] == ([] if apart else [[2]])
    says = "All other images can" if apart else "1 of the other images cannot"
    assert text[2].startswith(f"{says} be told apart from the first")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.1614, 0.0102, "0.161 ± 0.010"),
        (0.00723, 0.00041, "0.0072 ± 0.0004"),
        (0.5, None, "0.500"),
        (0.5, 0.0, "0.500 ± 0"),
    ]
    + [(1.24e-8, 3e-9, "1.2e-08 ± 3e-09")],
)
def test_an_error_has_a_digit(value, error, text):
    assert with_error(value, error) == text
