"""Monte Carlo dropout: against the closed form, against PyTorch's own modules, and image by image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import Raises, assert_same_state, load_script, run_main, run_script, save_photo, state_of
from scipy.stats import ks_2samp
from torch import nn

import common

script = load_script("2h_mc_dropout")
T = 20_000


def streams(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


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
    assert script.passes_can_be_shared(net, x) != skip
    logits = script.mc_dropout_logits(net, x, T, streams(1, 2))
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
    assert script.passes_can_be_shared(net, images) and not script.passes_can_be_shared(Whole(net), images)
    shared = script.mc_dropout_logits(net, images, 50, streams(*range(5)))
    whole = script.mc_dropout_logits(Whole(net), images, 50, streams(*range(5)))
    torch.testing.assert_close(shared, whole)
    assert shared.std(0).min() > 0.01


@pytest.mark.parametrize("share", [True, False])
def test_the_deterministic_pass_comes_with_the_sampled_ones(images, share, monkeypatch):
    """Also where the passes come in several batches: the masks are those of the passes alone."""
    net = nn.Sequential(nn.Flatten(), nn.AlphaDropout(0.3), nn.Linear(192, 8), nn.Dropout(0.4), nn.Linear(8, 3))
    for together in (1 << 22, 192 * 20):
        monkeypatch.setattr(script, "NUMBERS_TOGETHER", together)
        single, passes = script.single_and_mc_logits(net, images, 50, streams(*range(5)), share)
        torch.testing.assert_close(single, common.predict_logits(net, images))
        torch.testing.assert_close(passes, script.mc_dropout_logits(net, images, 50, streams(*range(5)), share))


def test_features_run_once(images):
    calls = []

    class Counts(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x

    net = nn.Sequential(Counts(), nn.Flatten(), nn.Dropout(), nn.Linear(192, 3))
    assert script.mc_dropout_logits(net, images, 100, share=True).shape == (100, 5, 3)
    assert calls == [5]
    script.mc_dropout_logits(net, images, 100)  # the two passes of a pair find out whether it can be shared
    assert calls == [5, 2, 2, 5]


class TwoSided(nn.Module):
    """The mean over a picture and its mirror image: rows are paired by their place in the batch."""

    def forward(self, x):
        both = F.dropout(torch.cat([x, x.flip(-1)]).flatten(1), 0.5)
        a, b = both.chunk(2)
        return (a + b)[:, :3] / 2


class Sequence(nn.Module):
    """The first dimension is the place in a sequence, not the image."""

    def forward(self, x):
        return F.dropout(x.flatten(2).permute(2, 0, 1), 0.5).mean(0)


class DropConnect(nn.Module):
    """Weights are dropped: the same for all images of a pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 192))  # as many rows as there are images

    def forward(self, x):
        return F.linear(x.flatten(1), F.dropout(self.weight, 0.5))


class Branches(nn.Module):
    """A second dropout on what did not grow, cut into windows."""

    def forward(self, x):
        a = F.dropout(x.flatten(1), 0.5)
        b = F.dropout(x.flatten(2).flatten(0, 1), 0.5)  # (3 N, 64)
        return torch.cat([a.unflatten(1, (3, 64)).mean(2), b.view(len(x), 3, 64).mean(2)], 1)


@pytest.mark.parametrize("kind", [TwoSided, Sequence, DropConnect, Branches])
def test_a_batch_that_must_not_grow_does_not(kind, images):
    """Mean and spread of the network's own dropout, where the first dimension is not that of one image each."""
    net = kind()
    assert not script.passes_can_be_shared(net, images)
    ours = script.mc_dropout_logits(net, images, 4000, streams(*range(5)))
    theirs = torch.stack([net(images) for _ in range(4000)]).detach()  # F.dropout's default is to drop
    assert ours.shape == theirs.shape
    spread = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * spread * (2 / 4000) ** 0.5).all()
    assert ((ours.std(0) / spread - 1).abs() < 0.12).all()
    together = script.mc_dropout_logits(net, images, 5, streams(*range(5)))
    alone = script.mc_dropout_logits(net, images[3:4], 5, streams(3))
    torch.testing.assert_close(together[:, 3], alone[:, 0])


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
    ours = script.mc_dropout_logits(net.eval(), x, 4000, streams(7), share=not whole)[:, 0]
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
            together = script.mc_dropout_logits(net, images, 20, streams(*range(5)))
            order = [3, 0, 4]
            some = script.mc_dropout_logits(net, images[order], 20, streams(*order))
            alone = script.mc_dropout_logits(net, images[2:3], 20, streams(2))
        finally:
            script.NUMBERS_TOGETHER = usual
        assert together.shape == (20, 5, 3)
        torch.testing.assert_close(together[:, order], some)
        torch.testing.assert_close(together[:, 2], alone[:, 0])
        assert len(together[:, 0].unique(dim=0)) > 15  # groups of passes do not repeat each other


KINDS = {
    "nn.Dropout": (nn.Dropout(0.4), False),
    "nn.Dropout in place": (nn.Dropout(0.4, inplace=True), False),
    "F.dropout": (lambda h: F.dropout(h, 0.4, False), False),
    "F.dropout in place": (lambda h: F.dropout(h, 0.4, False, True), False),
    "torch.dropout": (lambda h: torch.dropout(h, 0.4, False), False),
    "nn.Dropout1d": (lambda h: nn.Dropout1d(0.4)(h.flatten(2)), True),
    "nn.Dropout2d": (nn.Dropout2d(0.4), True),
    "F.dropout2d": (lambda h: F.dropout2d(h, 0.4, training=False), True),
    "nn.Dropout3d": (lambda h: nn.Dropout3d(0.4)(h[:, :, None])[:, :, 0], True),
    "torch.feature_dropout": (lambda h: torch.feature_dropout(h, 0.4, False), True),
}


class Apply(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        return self.drop(x + 1).flatten(1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dropout(kind, images):
    drop, whole_channels = KINDS[kind]
    out = script.mc_dropout_logits(Apply(drop).eval(), images, 400, streams(*range(5))).view(400, 5, 3, 64)
    kept = out != 0
    values = (images + 1).flatten(2).expand(400, 5, 3, 64)
    torch.testing.assert_close(out[kept], (values / 0.6)[kept])
    assert abs(kept.float().mean() - 0.6) < (0.05 if whole_channels else 0.01)
    per_channel = kept.float().mean(-1)
    assert ((per_channel == 0) | (per_channel == 1)).all() == whole_channels


@pytest.mark.parametrize("module", [nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)], ids=lambda m: type(m).__name__)
def test_alpha_dropout_keeps_mean_and_variance(module):
    """Klambauer et al. 2017: for standard normal input; and the same values as PyTorch's own."""
    x = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(module, nn.Flatten()).eval()
    out = script.mc_dropout_logits(net, x, 200, streams(*range(4)))
    assert abs(out.mean()) < 0.03 and abs(out.var() - 1) < 0.03
    theirs = module.train()(torch.full((1, 3, 40, 40), 0.5)).unique()
    ours = script.mc_dropout_logits(net, torch.full((1, 3, 40, 40), 0.5), 50, streams(0)).unique()
    torch.testing.assert_close(ours, theirs)


def test_all_else_stays_off(images):
    """A model in training mode: batch norm uses its averages, stochastic depth lets all through."""
    torch.manual_seed(0)
    depth = torchvision.ops.StochasticDepth(0.5, "row")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), depth, nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))
    net.train()
    before = state_of(net)
    passes = script.mc_dropout_logits(net, images, 3000, streams(*range(5)))
    assert_same_state(before, state_of(net))
    net.eval()
    spread = passes.std(0) / 3000**0.5
    assert ((passes.mean(0) - net(images)).abs() < 5 * spread).all()


def test_nothing_is_left_behind_after_an_error(toy, images):
    broken = nn.Sequential(*toy, Raises("forward")).train()
    before = state_of(broken)
    with pytest.raises(RuntimeError, match="broken forward"):
        script.mc_dropout_logits(broken, images, 5)
    assert_same_state(before, state_of(broken))
    assert torch.equal(F.dropout(images, 0.5, False), images)  # no mode is left on


def test_a_reader_of_what_was_dropped_in_place(images):
    """After an in-place dropout its input is the dropped tensor, for whoever reads it."""

    class Reads(nn.Module):
        def forward(self, x):
            h = x.flatten(1) + 1
            return F.dropout(h, 0.5, True, True) + h

    out = script.mc_dropout_logits(Reads(), images[:1], 30, streams(0))
    full = (images[:1].flatten(1) + 1) * 4
    assert ((out == 0) | torch.isclose(out, full)).all() and (out == 0).any()


def test_a_batch_size_read_before_the_dropout(images):
    class Views(nn.Module):
        def forward(self, x):
            n = len(x)
            return F.dropout(x).view(n, 3, -1).mean(-1)

    out = script.mc_dropout_logits(Views(), images, 40, streams(*range(5)))
    assert out.shape == (40, 5, 3) and out.std(0).min() > 0


def test_without_active_dropout_there_is_an_error_with_the_cure(images):
    none = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(common.UserError, match="has no dropout, .*efficientnet_lite0"):
        script.mc_dropout_logits(none, images, 5)
    with pytest.raises(common.UserError, match="timm/mobilenetv3_small_100"):
        script.mc_dropout_logits(timm.create_model("mobilenetv3_small_050", num_classes=3), torch.rand(1, 3, 32, 32), 5)
    off = nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(192, 3))
    with pytest.raises(common.UserError, match="1 dropouts, all with p = 0"):
        script.mc_dropout_logits(off, images, 5)
    assert script.set_dropout(off, 0.5) == 1
    assert script.mc_dropout_logits(off, images, 5).std(0).min() > 0


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm/resnet18", "densenet121", "googlenet", "squeezenet1_0"])
def test_real_architectures(name):
    """timm's call F.dropout without a module, densenet's are inside its layers; ResNet's is off until asked for."""
    model = common.load_model(name, "random")
    if name in ("timm/resnet18", "densenet121"):
        assert script.set_dropout(model, 0.2) >= 1
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = state_of(model)
    both = script.mc_dropout_logits(model, images, 6, streams(1, 2))
    alone = script.mc_dropout_logits(model, images[1:], 6, streams(2))
    assert_same_state(before, state_of(model))
    assert both.shape == (6, 2, 1000) and len(both[:, 0].unique(dim=0)) == 6
    torch.testing.assert_close(both[:, 1], alone[:, 0], rtol=1e-4, atol=1e-5 * float(both.abs().max()))


def test_attention_dropout_is_refused_not_left_off():
    """Inside the fused kernel no mask can be set; to go on would be a pass with part of the dropout off."""
    images = torch.rand(1, 3, 32, 32)
    ours = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, dropout=0.1, attention_dropout=0.1, num_classes=3)
    with pytest.raises(common.UserError, match=r"dropout \(p = 0.1\) inside a fused"):
        script.mc_dropout_logits(ours, images, 3)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, attn_drop_rate=0.2)
    with pytest.raises(common.UserError, match=r"dropout \(p = 0.2\) inside a fused"):
        script.mc_dropout_logits(theirs, images, 3)

    class Direct(nn.Module):
        def forward(self, x):
            q = x.flatten(2)
            return F.dropout(F.scaled_dot_product_attention(q, q, q, None, 0.3).mean(2))

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(32, 4, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            return F.dropout(self.lstm(x.mean(1))[0][:, -1])

    for net, p in ((Direct(), 0.3), (Recurrent(), 0.5)):
        with pytest.raises(common.UserError, match=rf"dropout \(p = {p}\) inside a fused"):
            script.mc_dropout_logits(net, images, 3)


def test_vision_transformers():
    """Dropout in every block, from the embedding on: the residual connections lie behind the first one."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    models = [
        torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, num_classes=3),
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3),
        timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1, 1, 1), num_classes=3
        ),
    ]
    assert script.set_dropout(models[1], 0.1) >= 5 and script.set_dropout(models[2], 0.1) >= 5
    nn.init.normal_(models[0].heads.head.weight)
    for model in models:
        both = script.mc_dropout_logits(model, images, 9, streams(1, 2))
        alone = script.mc_dropout_logits(model, images[1:], 9, streams(2))
        torch.testing.assert_close(both[:, 1], alone[:, 0], rtol=1e-4, atol=1e-5)
        assert len(both[:, 0].unique(dim=0)) == 9


def test_number_of_generators(images):
    with pytest.raises(common.UserError, match="2 generators for 5 images"):
        script.mc_dropout_logits(Head(), images, 2, streams(0, 1))


def test_uncertainty_by_hand():
    """Two passes that are certain of different classes: H = log 2, all of it mutual information."""
    logits = torch.tensor([[50.0, 0, 0], [0, 50.0, 0]])
    found = script.uncertainty(logits, torch.tensor([1.0, 1.0, -50]))
    assert found["predictive_entropy"] == pytest.approx(np.log(2))
    assert found["mutual_information"] == pytest.approx(np.log(2))
    assert found["agreement"] == 0.5 and found["class"] == 0
    assert found["variance"] == pytest.approx(0.5)  # of 0 and 1, with n - 1
    assert found["deterministic_entropy"] == pytest.approx(np.log(2))
    same = script.uncertainty(torch.zeros(4, 3), torch.zeros(3))
    assert same["predictive_entropy"] == pytest.approx(np.log(3)) and same["mutual_information"] == pytest.approx(0)


def test_run(tmp_path, monkeypatch):
    for i in range(3):
        save_photo(tmp_path / f"{i}.png", i)
    arguments = ["0.png", "1.png", "2.png", "--passes", "12", "--batch-size", "2"]
    run_main("2h_mc_dropout", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output" / "2h_mc_dropout"
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert results["images"] == 3 and results["passes"] == 12
    assert 0 < results["mean_mutual_information"] < results["mean_predictive_entropy"] < results["entropy_of_chance"]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    order = (folder / "uncertainty.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[3]) for line in order] == sorted(range(3), key=lambda i: -rows[i]["mutual_information"])
    assert {p.name for p in folder.glob("*.png")} == {"mc_dropout.png", "uncertainty.png"}
    # the third image alone has the same passes
    run_main("2h_mc_dropout", *arguments[:3], "--passes", "12", "--output", "b", cwd=tmp_path, monkeypatch=monkeypatch)
    again = [json.loads(line) for line in (tmp_path / "b/2h_mc_dropout/rows.jsonl").read_text().splitlines()]
    assert again[2]["predictive_entropy"] == pytest.approx(rows[2]["predictive_entropy"], abs=1e-5)


def test_dropout_on_request(tmp_path, monkeypatch):
    save_photo(tmp_path / "one.png")
    arguments = ["one.png", "--model", "timm/resnet18", "--weights", "random", "--passes", "5"]
    run_main("2h_mc_dropout", *arguments, "--dropout", "0.3", cwd=tmp_path, monkeypatch=monkeypatch)
    metrics = json.loads((tmp_path / "output/2h_mc_dropout/metrics.json").read_text())
    assert metrics["settings"]["dropout"] == 0.3 and metrics["results"]["mean_mutual_information"] > 0
    with pytest.raises(common.UserError, match="no probability between 0 and 1"):
        run_main("2h_mc_dropout", *arguments, "--dropout", "1.5", cwd=tmp_path, monkeypatch=monkeypatch)
    arguments[2] = "squeezenet1_0"
    with pytest.raises(common.UserError, match="no dropout with p = 0 for --dropout to set"):
        run_main("2h_mc_dropout", *arguments, "--dropout", "0.3", cwd=tmp_path, monkeypatch=monkeypatch)


def test_resnet_is_one_sentence(tmp_path):
    save_photo(tmp_path / "one.png")
    done = run_script("2h_mc_dropout", "one.png", "--model", "resnet18", "--weights", "random", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "no dropout" in done.stderr
