"""Dropout as an operation: every kind of it, in every kind of network, against PyTorch's own modules."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import assert_same_state, load_script, state_of
from torch import nn

import common
from explain.methods import dropout

script = load_script("2h_mc_dropout")  # which runs the passes


def generators(*seeds):
    return common.seeded_generators(0, seeds)


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


class Table(nn.Module):
    """Features are dropped, then weights: as many rows as the trial's two images in three passes."""

    def __init__(self, rows=6):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(rows, 192))

    def forward(self, x):
        return F.linear(F.dropout(x.flatten(1), 0.5), F.dropout(self.weight, 0.5))


class Branches(nn.Module):
    """A second dropout on what did not grow, cut into windows."""

    def forward(self, x):
        a = F.dropout(x.flatten(1), 0.5)
        b = F.dropout(x.flatten(2).flatten(0, 1), 0.5)  # (3 N, 64)
        return torch.cat([a.unflatten(1, (3, 64)).mean(2), b.view(len(x), 3, 64).mean(2)], 1)


@pytest.mark.parametrize("kind", [TwoSided, Sequence, DropConnect, Table, Branches])
def test_a_batch_that_must_not_grow_does_not(kind, images):
    """Mean and spread of the network's own dropout, where the first dimension is not that of one image each."""
    torch.manual_seed(1)
    net = kind()
    assert not dropout.passes_can_be_shared(net, images)
    ours = script.mc_dropout_logits(net, images, 4000, generators(*range(5)))
    theirs = torch.stack([net(images) for _ in range(4000)]).detach()  # F.dropout's default is to drop
    assert ours.shape == theirs.shape
    spread = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * spread * (2 / 4000) ** 0.5).all()
    assert ((ours.std(0) / spread - 1).abs() < 0.12).all()
    together = script.mc_dropout_logits(net, images, 5, generators(*range(5)))
    alone = script.mc_dropout_logits(net, images[3:4], 5, generators(3))
    torch.testing.assert_close(together[:, 3], alone[:, 0])
    first, second = (script.mc_dropout_logits(net, images, 1, deterministic=True)[0] for _ in range(2))
    assert torch.equal(first, second)  # the deterministic pass drops nothing


@pytest.mark.parametrize("rows", [2, 3, 6, 9])
def test_a_table_of_weights_is_not_taken_for_a_batch(rows, images):
    """Its 6 rows were taken for two images in three passes: one mask in place of three, 2.5 times the variance."""
    assert not dropout.passes_can_be_shared(Table(rows), images)
    with pytest.raises(common.UserError, match=f"called on {rows} rows for 5 images: give share=False"):
        script.mc_dropout_logits(Table(rows), images, 7, share=True)


def test_the_trial_lets_a_batch_of_any_size_grow():
    """An image of more than NUMBERS_TOGETHER values grew to one pass, which is no trial."""

    class Skips(nn.Module):
        def forward(self, x):
            return (F.dropout(x, 0.5) + x).mean((2, 3))

    image = torch.zeros(1, 1, 1, dropout.NUMBERS_TOGETHER + 1)
    assert not dropout.passes_can_be_shared(Skips(), image)


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
    out = script.mc_dropout_logits(Apply(drop).eval(), images, 400, generators(*range(5))).view(400, 5, 3, 64)
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
    out = script.mc_dropout_logits(net, x, 200, generators(*range(4)))
    assert abs(out.mean()) < 0.03 and abs(out.var() - 1) < 0.03
    theirs = module.train()(torch.full((50, 3, 40, 40), 0.5)).unique()  # 150 channels: not all the same by luck
    ours = script.mc_dropout_logits(net, torch.full((1, 3, 40, 40), 0.5), 50, generators(0)).unique()
    torch.testing.assert_close(ours, theirs)


def test_all_else_stays_off(images):
    """A model in training mode: batch norm uses its averages, stochastic depth lets all through."""
    torch.manual_seed(0)
    depth = torchvision.ops.StochasticDepth(0.5, "row")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), depth, nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))
    net.train()
    before = state_of(net)
    passes = script.mc_dropout_logits(net, images, 3000, generators(*range(5)))
    assert_same_state(before, state_of(net))
    net.eval()
    spread = passes.std(0) / 3000**0.5
    assert ((passes.mean(0) - net(images)).abs() < 5 * spread).all()


def test_a_reader_of_what_was_dropped_in_place(images):
    """After an in-place dropout its input is the dropped tensor, for whoever reads it."""

    class Reads(nn.Module):
        def forward(self, x):
            h = x.flatten(1) + 1
            return F.dropout(h, 0.5, True, True) + h

    out = script.mc_dropout_logits(Reads(), images[:1], 30, generators(0))
    full = (images[:1].flatten(1) + 1) * 4
    assert ((out == 0) | torch.isclose(out, full)).all() and (out == 0).any()


def test_a_batch_size_read_before_the_dropout(images):
    class Views(nn.Module):
        def forward(self, x):
            n = len(x)
            return F.dropout(x).view(n, 3, -1).mean(-1)

    out = script.mc_dropout_logits(Views(), images, 40, generators(*range(5)))
    assert out.shape == (40, 5, 3) and out.std(0).min() > 0


@pytest.mark.parametrize("share", [None, True, False])
@pytest.mark.parametrize("middle", [nn.Identity(), nn.Dropout(0.0)], ids=["none", "off"])
def test_without_active_dropout_there_is_an_error_with_the_cure(middle, share, images):
    net = nn.Sequential(nn.Flatten(), middle, nn.Linear(192, 3))
    with pytest.raises(common.UserError, match="has no dropout with a probability above 0, .*--dropout P, or the arg"):
        script.mc_dropout_logits(net, images, 5, share=share)


SMALL = dict(img_size=32, num_classes=3)
NETWORKS = {
    "efficientnet_lite0": None,
    "timm/resnet18": 0.2,
    "densenet121": 0.2,
    "googlenet": None,
    "squeezenet1_0": 0.1,
    "torchvision's ViT": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, num_classes=3),
    "timm's ViT": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, **SMALL),
    "timm's Swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", window_size=4, depths=(1, 1, 1, 1), **SMALL
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_real_architectures(name):
    """timm's call F.dropout without a module, densenet's are inside its layers; ResNet's is off until asked for.

    Transformers drop in every block, from the embedding on: the residual connections lie behind the first one.
    """
    p, side = NETWORKS[name], 64
    torch.manual_seed(0)
    if callable(p):
        model, side, p = p(), 32, 0.1
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer.out_features == 3:
                nn.init.normal_(layer.weight)
    else:
        model = common.load_model(name, "random")
        dropout.prepare(model, p)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = state_of(model)
    both = script.mc_dropout_logits(model, images, 6, generators(1, 2), p=p)
    alone = script.mc_dropout_logits(model, images[1:], 6, generators(2), p=p)
    assert_same_state(before, state_of(model))
    assert both.shape[:2] == (6, 2) and len(both[:, 0].unique(dim=0)) == 6
    torch.testing.assert_close(both[:, 1], alone[:, 0], rtol=1e-4, atol=1e-5 * max(1, float(both.abs().max())))


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


def test_a_network_that_has_changed_is_tried_again(images):
    """Whether passes can be shared is kept with the network."""

    class Skips(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5) + x

    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3))
    assert dropout.passes_can_be_shared(net, images) and dropout.passes_can_be_shared(net, images)
    net[1] = Skips()
    assert not dropout.passes_can_be_shared(net, images)


def test_the_fraction_of_the_operations_after_the_first_dropout():
    """By hand, two operations a product: 2 * 3 * 4 * 64 of the convolution before, 2 * 256 * 10 of the linear layer."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10), nn.Dropout(0.5))
    assert dropout.fraction_after_dropout(network, torch.rand(1, 3, 8, 8)) == pytest.approx(5120 / (1536 + 5120))
    assert network.training and not network[0].weight.grad
    first = nn.Sequential(nn.Dropout(0.1), nn.Flatten(), nn.Linear(192, 2))
    assert dropout.fraction_after_dropout(first, torch.rand(1, 3, 8, 8)) == 1
    assert dropout.fraction_after_dropout(nn.Sequential(nn.Flatten(), nn.Dropout()), torch.rand(1, 3, 8, 8)) == 1
