"""Guided backpropagation: against rules worked out by hand, against the graph, in every form a rectifier has."""

from __future__ import annotations

import argparse
import functools

import architectures
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from architectures import guided_gradient
from conftest import load_script, save_photo
from reference import guided_gradient as reference_gradient
from torch import nn
from torch.utils.checkpoint import checkpoint

import common

script, plain = load_script("2f_guided_saliency"), load_script("2e_saliency")


class Net(nn.Module):
    """Two convolutions, the rectifier in question after each, a linear layer; float64."""

    def __init__(self, rectify):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5 * 16, 4)
        self.rectify = rectify
        self.double().eval()

    def forward(self, x):
        h = self.rectify(self.first(x))
        return self.head(self.rectify(self.second(h)).flatten(1))


CLASSES = torch.tensor([0, 1, 2, 3, 0])

UNBOUNDED = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place, one module used twice": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "Tensor.relu_ on a view": lambda x: (x.view(-1).relu_(), x)[1],
    "Tensor.clamp": lambda x: x.clamp(min=0),
    "Tensor.clamp_": lambda x: x.clamp_(0),
    "torch.clamp": lambda x: torch.clamp(x, 0.0),
    "torch.clamp with a tensor": lambda x: torch.clamp(x, min=torch.zeros(())),
    "torch.clip": lambda x: torch.clip(x, min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min_": lambda x: x.clamp_min_(0),
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "F.threshold in place": lambda x: F.threshold(x, 0, 0, True),
    "nn.Threshold": nn.Threshold(0, 0),
    "torch.maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "torch.maximum, zero first": lambda x: torch.maximum(torch.zeros(()), x),
    "torch.max": lambda x: torch.max(x, torch.zeros(1, dtype=x.dtype)),
    "Tensor.max": lambda x: x.max(torch.zeros_like(x)),
    "torch.max by name": lambda x: torch.max(x, other=torch.zeros_like(x)),
    "torch.fmax": lambda x: torch.fmax(x, torch.zeros_like(x)),
    "clamp by numpy": lambda x: x.clamp(min=np.float32(0)),
    "F.leaky_relu without a leak": lambda x: F.leaky_relu(x, 0.0),
    "torch.ops.aten.relu": torch.ops.aten.relu.default,
    "torch.vmap": torch.vmap(F.relu),
    "recomputed in the backward pass": lambda x: checkpoint(F.relu, x, use_reentrant=False),
}

BOUNDED = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0, 6),
    "nn.Hardtanh": nn.Hardtanh(0, 6),
    "Tensor.clamp": lambda x: x.clamp(0, 6),
    "Tensor.clamp with tensors": lambda x: x.clamp(torch.zeros(()), torch.tensor(6.0)),
}


def wide(images):
    """Values from -8 to 8, so that ReLU6 saturates at both ends."""
    return (images.double() - 0.5) * 16


FORMS = [(nn.ReLU(), form) for form in UNBOUNDED.items()] + [(nn.ReLU6(), form) for form in BOUNDED.items()]


@pytest.mark.parametrize(("module", "form"), FORMS, ids=[name for _, (name, _) in FORMS])
def test_every_form_of_a_rectifier_is_guided(module, form, images):
    """And leaves the logits as they are, to the bit."""
    expected, net = reference_gradient(Net(module), wide(images), CLASSES), Net(form[1])
    gradient, seen = guided_gradient(net, wide(images), CLASSES)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert sum(seen.rectifiers.values()) == 2
    plain, _ = common.class_score_gradient(net, wide(images), CLASSES)
    assert (plain - gradient).norm() > 0.1 * plain.norm()
    with script.guided_rectifiers():
        leaf = wide(images).requires_grad_()
        guided = net(leaf * 1)
        torch.autograd.grad(guided.sum(), leaf)
    assert torch.equal(guided, net(wide(images) * 1))


@pytest.mark.parametrize("form", ["relu", "clamp", "maximum", "hardtanh"])
def test_the_interval_is_open(form):
    """At exactly 0, clamp and maximum have a derivative of their own; the rule has none there."""
    rectify = {
        "relu": F.relu,
        "clamp": lambda x: x.clamp(0, 6),
        "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
        "hardtanh": lambda x: F.hardtanh(x, 0, 6),
    }[form]
    x = torch.tensor([-1.0, 0.0, 1.0, 6.0, 7.0]).requires_grad_()
    with script.guided_rectifiers():
        rectify(x * 1).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, float(form in ("relu", "maximum")), float(form in ("relu", "maximum"))]


def test_a_second_reader_keeps_its_gradient():
    """captum hooks the module's input gradient, and so also changes h's own path in h + relu(h)."""
    x = torch.tensor([[-2.0, 3.0]]).requires_grad_()
    weight = torch.tensor([-1.0, -1.0])
    with script.guided_rectifiers():
        h = x * 1
        ((h + F.relu(h)) * weight).sum().backward()
    assert x.grad.tolist() == [[-1, -1]]  # from h alone: the rectifier passes no negative signal


@pytest.mark.parametrize(
    "rectify",
    [
        lambda h: F.hardtanh(h, 0, 9),
        lambda h: h.clamp(0),
        lambda h: h.clamp_(0),
        lambda h: h.clamp_(0, 9),
        lambda h: torch.maximum(h, torch.zeros_like(h)),
        lambda h: (F.hardtanh_(h.view(-1), 0, 9), h)[1] * 1,
    ],
)
def test_an_output_written_over_afterwards_is_still_guided(rectify):
    """Adding the shortcut in place to a rectifier's output: PyTorch allows it after these, and so must we."""
    x = (torch.rand(4, 6, dtype=torch.float64) - 0.5).requires_grad_()
    weight = torch.randn(6, dtype=torch.float64)
    with script.guided_rectifiers():
        h = rectify(x * 2)
        h += x * 3
        (gradient,) = torch.autograd.grad((h * weight).sum(), x)
    expected = 3 * weight + 2 * weight.clamp(min=0) * (x > 0)
    torch.testing.assert_close(gradient, expected.expand(4, 6))


def test_rectifiers_in_the_head_and_inside_functions(images):
    class Odd(Net):
        def forward(self, x):
            def inner(h):
                return F.relu(h) + 0.1

            return F.relu(super().forward(inner(x)))

    gradient, seen = guided_gradient(Odd(F.relu), wide(images), CLASSES)
    torch.testing.assert_close(gradient, reference_gradient(Odd(F.relu), wide(images), CLASSES))
    assert seen.rectifiers == {"relu": 4}


ACTIVATIONS = [nn.LeakyReLU(), nn.PReLU().double(), nn.ELU(), nn.SiLU(), nn.GELU(), nn.Hardswish()]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.Hardtanh(), nn.Threshold(0.1, 0)], ids=str)
def test_what_is_no_rectifier_is_refused_by_name(activation, images):
    name = type(activation).__name__.lower().replace("leaky", "leaky_")
    with pytest.raises(common.UserError, match=rf"this network has none \({name}"):
        script.guided_saliency_maps(Net(activation), wide(images), CLASSES)


def test_reductions_by_max_are_no_rectifiers(images):
    class Reduces(Net):
        def forward(self, x):
            return super().forward(x) + x.max(0)[0].max() + x.clamp(0.0001, 1).mean()

    _, seen = guided_gradient(Reduces(F.relu), wide(images), CLASSES)
    assert seen.rectifiers == {"relu": 2}


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return F.relu(x) * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.5


@pytest.mark.parametrize(
    ("net", "others"),
    [
        (nn.Sequential(Net(F.relu), nn.SiLU(), nn.Tanh()), {"silu": 1, "tanh": 1}),
        (Net(lambda x: Swish.apply(F.relu(x))), {"swish": 2}),
    ],
)
def test_other_activations_are_counted_too(net, others, images):
    _, seen = guided_gradient(net, wide(images), CLASSES)
    assert (seen.rectifiers, seen.others) == ({"relu": 2}, others)


@torch.jit.script
def scripted_relu(x):
    return torch.relu(x) * 1.5


@pytest.mark.parametrize(
    "hide",
    [
        *(lambda: torch.jit.script(nn.ReLU()), lambda: torch.compile(nn.ReLU())),
        *(lambda: scripted_relu, lambda: functools.partial(checkpoint, F.relu, use_reentrant=True)),
    ],
    ids=["scripted module", "compiled module", "scripted function", "reentrant checkpoint"],
)
def test_a_hidden_rectifier_beside_one_that_is_seen_is_an_error(hide, images):
    """One visible rectifier must not hide that another one was not guided."""
    hidden = hide()
    net = Net(lambda x: hidden(F.relu(x) - 0.1))
    net.hidden = hidden if isinstance(hidden, nn.Module) else None
    for _ in range(3 if net.hidden is None else 0):  # torch.jit records single operations at first
        net(wide(images).requires_grad_() * 1)
    with pytest.raises(common.UserError, match="cannot be seen"):
        script.guided_saliency_maps(net, wide(images), CLASSES)


def test_only_rectifiers_between_the_image_and_the_score_count(images):
    """A rectified weight, or a branch without a gradient, makes no guided map of a plain one."""

    class Weighted(Net):
        def __init__(self):
            super().__init__(F.silu)
            self.scale = nn.Parameter(torch.ones(4).double())

        def forward(self, x):
            with torch.no_grad():
                offset = F.relu(x).mean()
            return super().forward(x) * F.relu(self.scale) + offset

    with pytest.raises(common.UserError, match="has none .silu"):
        script.guided_saliency_maps(Weighted(), wide(images), CLASSES)


def test_the_graph_is_as_it_was(images):
    """A graph that the caller keeps gives the plain gradient again afterwards."""
    net, leaf = Net(F.relu), wide(images).requires_grad_()
    score = net(leaf * 1)[:, 0].sum()
    (before,) = torch.autograd.grad(score, leaf, retain_graph=True)
    with script.guided_rectifiers() as seen:
        (guided,) = torch.autograd.grad(score, leaf, retain_graph=True)
    (after,) = torch.autograd.grad(score, leaf)
    assert torch.equal(before, after) and not torch.allclose(before, guided)
    assert seen.rectifiers == {"relu": 2}
    with pytest.raises(common.UserError, match="no gradient was taken"), script.guided_rectifiers():
        net(wide(images))


def all_maps(net, images):
    """The maps of a batch as `main` makes them: from one forward pass."""
    with common.shared_results():
        return common.make_maps(script.MAPS, net, images, CLASSES, argparse.Namespace(seed=0), range(5))


def test_guided_grad_cam_is_a_product_whose_grad_cam_follows_the_plain_gradient(images):
    """Of a classifier with a hidden layer the guided signal is another one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 12), nn.ReLU(), nn.Linear(12, 4))
    product, grad_cam = (method(net, images, CLASSES) for method in (script.guided_grad_cam_maps, script.grad_cam_maps))
    torch.testing.assert_close(product, script.guided_saliency_maps(net, images, CLASSES) * grad_cam)
    maps, _ = all_maps(net, images)
    assert torch.equal(maps["plain"], plain.saliency_maps(net, images, CLASSES))
    assert torch.equal(maps["guided_grad_cam"], product) and (product > 0).any()
    with script.guided_rectifiers():
        by_the_guided_signal = script.grad_cam_maps(net, images, CLASSES)
    assert not torch.allclose(by_the_guided_signal, grad_cam)


def test_a_network_without_places_has_no_grad_cam(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(common.UserError, match="has a height and a width, and this network has no such layer"):
        script.guided_grad_cam_maps(net, images, CLASSES)


OF_TORCHVISION = "resnet18 squeezenet1_1 googlenet densenet121 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5"


@pytest.mark.parametrize("name", [*OF_TORCHVISION.split(), "efficientnet_b0"])
def test_on_real_architectures(name):
    """Telling ones of docs/architectures.md, which has all of them; bounds from float64 rounding."""
    row = architectures.check(name)
    assert row["finite_difference"] < 1e-4
    if name == "efficientnet_b0":
        assert row["rectifiers"] == 0 and "silu" in row["others"]
        return
    assert row["reference"] < 1e-9 and row["logits_equal"] and row["plain"] > 0.1
    wrong = {"googlenet", "mobilenet_v2"}
    expected = "the plain gradient" if name in wrong else "differs" if name == "densenet121" else "the same"
    assert architectures.verdict(row).startswith(expected)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv2_050", "regnetx_002"])
def test_rectifiers_inside_timms_fused_layers(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).double().eval()
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    gradient, seen = guided_gradient(model, images, torch.tensor([2]))
    expected = reference_gradient(model, images, torch.tensor([2]))
    assert (gradient - expected).norm() < 1e-9 * expected.norm()
    assert sum(seen.rectifiers.values()) >= 17


@pytest.mark.usefixtures("undrawn")
def test_run(tmp_path, run):
    """The saved maps are the functions', bit for bit, and the independent reference's."""
    photos = [save_photo(tmp_path / "one.png", 1), save_photo(tmp_path / "two.jpg", 2)]
    network = ["--model", "mobilenet_v3_small", "--weights", "random", "--input-size", "64", "--output", "output"]
    metrics = run("2f_guided_saliency", *photos, *network, "--classes", "5", "--scores", "1", "--threads", "1")
    results = metrics["results"]
    assert metrics["images"]["used"] == 2 and results["rectifiers"] == {"relu": 14}
    assert results["left_as_they_are"] == {"hardswish": 19, "hardsigmoid": 9}
    assert results["guided_status"] == {"ok": 2} and -1 <= results["mean_rank_correlation"] < 0.999
    assert results["grad_cam_status"] == results["guided_grad_cam_status"] == {"ok": 2}
    worth = results["insertion_minus_deletion"]
    assert {*worth} == {"plain", "guided", "grad_cam", "guided_grad_cam", "random"} and worth["guided"]["images"] == 1
    caption = " ".join(metrics["captions"]["guided_saliency.png"])
    assert "with each rectifier passing back only the positive part of the signal" in caption
    assert "All maps of an image share one linear scale." in caption and "logits" not in caption
    assert {*metrics["captions"]} == {"guided_saliency.png", "guided_grad_cam.png"}
    model = common.load_model("mobilenet_v3_small", "random", input_size=64)
    images = torch.stack([model.preprocess(common.read_image(photo)) for photo in photos])
    classes, saved = torch.tensor([5, 5]), {}
    for kind, function in script.MAPS.items():
        files = [tmp_path / f"output/2f_guided_saliency/maps/{i:05d}_{kind}.npy" for i in range(2)]
        saved[kind] = torch.from_numpy(np.stack([*map(np.load, files)]))
        assert torch.equal(saved[kind], function(model, images, classes)) and saved[kind].any()
    expected = reference_gradient(model.double(), images.double(), classes).abs().amax(1)
    assert (saved["guided"] - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.usefixtures("undrawn")
def test_a_network_without_rectifiers_has_its_other_maps(tmp_path, run):
    """2f refused it whole, though 2e draws the Grad-CAM of such a network."""
    save_photo(tmp_path / "one.png")
    network = ["--model", "timm/test_convnext", "--weights", "random", "--threads", "1", "--output", "output"]
    metrics = run("2f_guided_saliency", "one.png", *network, "--scores", "0")
    status = {kind: metrics["results"][f"{kind}_status"] for kind in script.MAPS}
    lacking = {"no rectifiers": 1}
    assert status == {"plain": {"ok": 1}, "guided": lacking, "grad_cam": {"ok": 1}, "guided_grad_cam": lacking}
    captions = metrics["captions"]
    for name, title in (("guided_saliency", "saliency map"), ("guided_grad_cam", "Grad-CAM")):
        caption = captions[f"{name}.png"]
        assert caption[0] == f"timm/test_convnext, untrained: {title}"
        assert "; no guided saliency map, since the network has no rectifiers" in caption[1]
