"""Monte Carlo dropout: against the closed form, against whole passes, and image by image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, load_script, run_main, run_script, save_photo
from scipy.stats import ks_2samp
from torch import nn

import common
from explain.methods import dropout, selective
from explain.methods.disturbances import disturbed
from explain.report import uncertainty as uncertainty_report

script = load_script("2h_mc_dropout")
T = 20_000


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


@pytest.mark.parametrize("skip", [False, True], ids=["shared features", "whole passes"])
def test_two_moments_in_closed_form(skip, images):
    """Mean W f + b, variance p / (1 - p) * W^2 f^2, each within 4.5 standard errors of T passes."""
    net, x = Head(skip=skip), images[:2].double()
    assert dropout.passes_can_be_shared(net, x) != skip
    logits = script.mc_dropout_logits(net, x, T, generators(1, 2))
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
    for together in (1 << 22, 192 * 20):
        monkeypatch.setattr(script, "NUMBERS_TOGETHER", together)
        logits = script.mc_dropout_logits(net, images, 50, generators(*range(5)), share, deterministic=True)
        single, passes = logits[0], logits[1:]
        torch.testing.assert_close(single, common.predict_logits(net, images))
        torch.testing.assert_close(passes, script.mc_dropout_logits(net, images, 50, generators(*range(5)), share))


@pytest.mark.parametrize("share", [True, False])
def test_the_rows_are_of_the_public_functions_logits(share, tmp_path, monkeypatch):
    """Bit for bit."""
    row_of, rows_of = script.uncertainty, []
    monkeypatch.setattr(script, "uncertainty", lambda *logits: rows_of.append(logits) or row_of(*logits))
    monkeypatch.setattr(dropout, "passes_can_be_shared", lambda model, images: share)
    photos = [save_photo(tmp_path / f"{i}.png", i) for i in range(3)]
    arguments = [*photos, *TINY, "--passes", "4", "--dropout", "0.5", "--show", "1"]
    run_main("2h_mc_dropout", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    model = common.load_model("timm/test_resnet", "random", input_size=64)
    dropout.set_dropout(model, 0.5)
    batch = torch.stack([model.preprocess(common.read_image(photo)) for photo in photos])
    logits = script.mc_dropout_logits(model, batch, 4, generators(0, 1, 2))
    single = script.mc_dropout_logits(model, batch, 4, generators(0, 1, 2), share, deterministic=True)[0]
    rows = (tmp_path / "output/2h_mc_dropout/rows.jsonl").read_text().splitlines()
    for n, row in enumerate(map(json.loads, rows)):
        assert torch.equal(rows_of[n][0], logits[:, n])
        assert row_of(logits[:, n], single[n]).items() <= row.items()


@pytest.mark.parametrize("share", [None, True, False])
def test_outputs_of_more_dimensions(share, images):
    """A segmentation: the passes in front, and the same ones in every way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout2d(0.5), nn.Conv2d(4, 2, 1))
    assert dropout.passes_can_be_shared(net, images)
    out = script.mc_dropout_logits(net, images, 7, generators(*range(5)), share)
    assert out.shape == (7, 5, 2, 8, 8) and out.std(0).min() > 0
    whole = script.mc_dropout_logits(net, images[3:4], 7, generators(3), share=False)
    torch.testing.assert_close(out[:, 3], whole[:, 0])


def test_features_run_once(images):
    calls = []

    class Counts(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x

    net = nn.Sequential(Counts(), nn.Flatten(), nn.Dropout(), nn.Linear(192, 3))
    assert script.mc_dropout_logits(net, images, 100, share=True).shape == (100, 5, 3)
    assert calls == [5]
    script.mc_dropout_logits(net, images, 100)  # the passes of two and of three images try whether it can be shared
    assert calls == [5, 3, 2, 3, 5]


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


@pytest.mark.parametrize("whole", [False, True], ids=["shared features", "whole passes"])
def test_two_dropouts_have_the_distribution_of_pytorchs_own(whole, images):
    """VGG's and AlexNet's head: two-sample test against the modules in training mode."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))
    x = images[:1]
    ours = script.mc_dropout_logits(net.eval(), x, 4000, generators(7), share=not whole)[:, 0]
    theirs = net.train()(x.expand(4000, 3, 8, 8)).detach()
    single = net.eval()(x)[0]
    for c in range(3):
        assert ks_2samp(ours[:, c].numpy(), theirs[:, c].numpy()).pvalue > 1e-3
        # the test can tell: without the second dropout the distribution is another
        assert ks_2samp(ours[:, c].numpy(), (theirs[:, c] * 0.7 + 0.3 * single[c]).detach().numpy()).pvalue < 1e-6


def test_an_images_passes_are_its_own(images):
    """The same alone, in any batch, in any order; also where passes are split into groups."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3))
    for numbers in (script.NUMBERS_TOGETHER, 144 * 7):
        script.NUMBERS_TOGETHER, usual = numbers, script.NUMBERS_TOGETHER
        try:
            together = script.mc_dropout_logits(net, images, 20, generators(*range(5)))
            order = [3, 0, 4]
            some = script.mc_dropout_logits(net, images[order], 20, generators(*order))
            alone = script.mc_dropout_logits(net, images[2:3], 20, generators(2))
        finally:
            script.NUMBERS_TOGETHER = usual
        assert together.shape == (20, 5, 3)
        torch.testing.assert_close(together[:, order], some)
        torch.testing.assert_close(together[:, 2], alone[:, 0])
        assert len(together[:, 0].unique(dim=0)) > 15  # groups of passes do not repeat each other


def test_number_of_generators(images):
    with pytest.raises(common.UserError, match="2 generators for 5 images"):
        script.mc_dropout_logits(Head(), images, 2, generators(0, 1))


@pytest.mark.parametrize("passes", [0, -1, 2.5])
def test_number_of_passes(passes, images):
    with pytest.raises(common.UserError, match=f"passes must be a whole number of at least 1, not {passes}"):
        script.mc_dropout_logits(Head(), images, passes)


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


def test_run(tmp_path, monkeypatch):
    for i in range(3):
        save_photo(tmp_path / f"{i}.png", i)
    settings = [*TINY, "--dropout", "0.5", "--passes", "12"]
    arguments = ["0.png", "1.png", "2.png", *settings, "--batch-size", "2"]
    run_main("2h_mc_dropout", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output/2h_mc_dropout"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"]["used"] == 3 and metrics["settings"]["passes"] == 12
    results = metrics["results"]
    assert 0 < results["mean_mutual_information"] < results["mean_predictive_entropy"] < results["entropy_of_chance"]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    order = (folder / "uncertainty.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[3]) for line in order] == sorted(range(3), key=lambda i: -rows[i]["mutual_information"])
    assert {p.name for p in folder.glob("*.png")} == {"mc_dropout.png", "uncertainty.png", "settling.png"}
    # the third image alone has the same passes
    run_main("2h_mc_dropout", *arguments[:3], *settings, "--output", "b", cwd=tmp_path, monkeypatch=monkeypatch)
    again = [json.loads(line) for line in (tmp_path / "b/2h_mc_dropout/rows.jsonl").read_text().splitlines()]
    assert again[2]["predictive_entropy"] == pytest.approx(rows[2]["predictive_entropy"], abs=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_bfloat16_rounds_what_follows_the_first_dropout(share, images):
    """The same masks, factors of 8 bits behind them, of 24 before; autocast ends with the call, and with an error."""
    types = []

    class Types(nn.Module):
        def forward(self, x):
            types.append(x.dtype)
            return x

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), Types(), nn.Dropout(0.4), nn.Linear(64, 3), Types())
    full, rounded = (script.mc_dropout_logits(net, images, 50, generators(*range(5)), share, b) for b in (False, True))
    assert [*dict.fromkeys(types[::2])] == [torch.float32]
    assert {*types[1::2]} == {torch.float32, torch.bfloat16} and rounded.dtype == torch.float32
    change = (rounded - full).abs().max()  # of sums of 64 products, each rounded by at most 2 ** -8
    assert 0 < change < 0.1 * full.std(0).min()
    single = script.mc_dropout_logits(net, images, 1, generators(*range(5)), share, True, True)[0]
    torch.testing.assert_close(single, common.predict_logits(net, images), rtol=0, atol=0.02)
    assert not torch.equal(single, common.predict_logits(net, images))
    broken = nn.Sequential(net, nn.Linear(4, 3))
    with pytest.raises(RuntimeError, match="shape"):
        script.mc_dropout_logits(broken, images, 2, generators(*range(5)), share, True)
    assert not torch.is_autocast_enabled("cpu")


def test_a_run_in_bfloat16_says_what_it_changes(tmp_path, monkeypatch):
    """Compared with passes of the same masks, for the first images alone."""
    monkeypatch.setattr(script, "COMPARED", 2)
    for i in range(3):
        save_photo(tmp_path / f"{i}.png", i)
    arguments = ["0.png", "1.png", "2.png", *TINY, "--dropout", "0.5", "--bfloat16", "--no-title"]
    run_main("2h_mc_dropout", *arguments, "--passes", "12", cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output/2h_mc_dropout"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    results = json.loads((folder / "metrics.json").read_text())["results"]["bfloat16"]
    assert results["images"] == 2 and ["bfloat16" in row for row in rows] == [True, True, False]
    assert 0 < results["change"] < results["standard_error"]
    caption = (folder / "mc_dropout.txt").read_text()
    assert f"by {results['change']:.1g}, within its Monte Carlo standard error" in " ".join(caption.split())
    with pytest.raises(common.UserError, match="--bfloat16 is compared with the spread of the passes"):
        run_main("2h_mc_dropout", *arguments, "--passes", "1", cwd=tmp_path, monkeypatch=monkeypatch)


def test_rounding_by_hand():
    """Probabilities 1/2 and 3/4 of the first class, in both passes 1/4 after rounding."""
    full = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    row = uncertainty_report.rounding(torch.tensor([[0.25, 0.75]] * 2).log(), full)
    assert row == pytest.approx({"change": -0.375, "standard_error": 0.125})
    mean = uncertainty_report.mean_rounding([row, {"change": 0.0, "standard_error": 0.125}])
    assert mean == pytest.approx({"images": 2, "change": 0.375 / 2**0.5, "standard_error": 0.125})
    assert "by 0.3, BEYOND its Monte Carlo standard error of 0.1 " in uncertainty_report.rounding_in_words(mean)[0]
    assert uncertainty_report.rounding_in_words(uncertainty_report.mean_rounding([])) == []


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


def test_measures_are_judged_on_the_validation_images(tmp_path, monkeypatch):
    """An untrained network errs on nearly all; five photos are labelled with what it says."""
    model = common.load_model("timm/test_resnet", "random", input_size=64)
    save_photo(tmp_path / "data/DL_data/test_images/a.png", 90)
    for i in range(12):
        photo = save_photo(tmp_path / "one.png", i)
        c = int(common.predict_logits(model, model.preprocess(common.read_image(photo))[None]).argmax())
        save_photo(tmp_path / f"data/DL_data_p/{c if i % 2 else (c + 1) % 1000}/{i}.png", i)
    settings = [*TINY, "--dropout", "0.1", "--passes", "6", "--shift-limit", "2"]
    run_main("2h_mc_dropout", *settings, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output/2h_mc_dropout"
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert results["images"] == 1 and results["predictions"]["images"] == 12
    assert {*results["mistakes"]} == {*selective.MEASURES}
    low, high = results["mistakes"]["single_probability"]["auroc_interval"]
    assert 0 <= low <= results["mistakes"]["single_probability"]["auroc"] <= high <= 1
    shift = results["mistakes_under_shift"]
    assert {*shift} == {"none", "pooled", *disturbed(torch.rand(1, 3, 8, 8), generators(0))}
    assert shift["pooled"]["variance"]["mistakes"] >= 0 and 0 <= shift["blur_4_px"]["confidence"] <= 1
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows if "label" not in row] == [0]
    row, other = (row for row in rows if "disturbed" in row)  # of two classes
    assert row["label"] != other["label"]
    assert results["classes_measured"] == results["classes_in_data"] == len({r["label"] for r in rows[1:]})
    caption = json.loads((folder / "metrics.json").read_text())["captions"]["shift.png"][1]
    assert caption.startswith(f"2 images from 2 of {results['classes_in_data']} classes")
    names = {"mc_dropout", "uncertainty", "settling", "mistakes", "shift"}
    assert {path.stem for path in folder.glob("*.png")} == names
    # a disturbed picture's row is that of the disturbed picture
    image = model.preprocess(common.read_image(tmp_path / "data" / row["path"]))
    dropout.set_dropout(model, 0.1)
    turned = image[None].rot90(1, (2, 3))
    single, *passes = script.mc_dropout_logits(model, turned, 6, generators(row["index"]), deterministic=True)
    logits = torch.stack(passes)
    expected = script.known_uncertainty(logits[:, 0], single[0], row["label"])
    assert row["disturbed"]["quarter_turn"]["predictive_entropy"] == pytest.approx(
        expected["predictive_entropy"], rel=1e-5
    )


def test_dropout_on_request(tmp_path, monkeypatch):
    save_photo(tmp_path / "one.png")
    arguments = ["one.png", "--model", "timm/resnet18", "--weights", "random", "--passes", "5"]
    run_main("2h_mc_dropout", *arguments, "--dropout", "0.3", cwd=tmp_path, monkeypatch=monkeypatch)
    metrics = json.loads((tmp_path / "output/pictures/2h_mc_dropout/metrics.json").read_text())
    assert metrics["settings"]["dropout"] == 0.3 and metrics["results"]["mean_mutual_information"] > 0
    with pytest.raises(common.UserError, match="--dropout must be above 0 and below 1, not 1.5"):
        run_main("2h_mc_dropout", *arguments, "--dropout", "1.5", cwd=tmp_path, monkeypatch=monkeypatch)
    arguments[2] = "squeezenet1_0"
    with pytest.raises(common.UserError, match="no dropout with p = 0 for --dropout to set"):
        run_main("2h_mc_dropout", *arguments, "--dropout", "0.3", cwd=tmp_path, monkeypatch=monkeypatch)


def test_resnet_is_one_sentence(tmp_path):
    save_photo(tmp_path / "one.png")
    done = run_script("2h_mc_dropout", "one.png", "--model", "resnet18", "--weights", "random", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "no dropout" in done.stderr
