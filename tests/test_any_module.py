"""Any nn.Module from Python: what goes in, what comes out, and where from, for the four public functions."""

from __future__ import annotations

import argparse
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_state, load_script, state_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import common
from explain.methods import faithfulness
from explain.methods.randomisation import cascading_randomisation

saliency_maps = load_script("2e_saliency").saliency_maps
guided_saliency_maps = load_script("2f_guided_saliency").guided_saliency_maps
MAPS_2F = load_script("2f_guided_saliency").MAPS
mc_dropout_logits = load_script("2h_mc_dropout").mc_dropout_logits
visualize_classes = load_script("2c_class_visualization").visualize_classes
MAPS = [saliency_maps, guided_saliency_maps]
FAST = dict(size=8, steps=3, first_size=1.0)


def ascend(model, classes, images=None, method="gaussian"):
    count = sum(1 for _ in classes) if np.iterable(classes) else 1
    return visualize_classes(model, classes, method, common.seeded_generators(0, range(count)), **FAST)


def passes(model, images):
    return mc_dropout_logits(model, images, 4, common.seeded_generators(0, range(len(images))))


METHODS = {
    "2e": lambda model, images: saliency_maps(model, images, 1),
    "2f": lambda model, images: guided_saliency_maps(model, images, 1),
    "2h": passes,
    "2c": lambda model, images: ascend(model, [0, 1]),
    "2c natural": lambda model, images: ascend(model, [0, 1], method="natural"),
    "gradient": lambda model, images: common.class_score_gradient(model, images, 1)[0],
    "logits": common.predict_logits,
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Returns(nn.Module):
    """A network whose output is packed as `pack` says."""

    def __init__(self, network, pack):
        super().__init__()
        self.network, self.pack = network, pack

    def forward(self, x):
        return self.pack(self.network(x))


def head(classes=3):
    """Pixels, a rectifier, dropout, a linear layer; in training mode."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes)]
    return nn.Sequential(*layers)


# ------------------------------------------------------------------------------------------------
# Classes


@pytest.mark.parametrize("maps", MAPS)
def test_one_class_for_all_is_a_number_not_a_list_of_one(maps, images):
    """The second image's map was all zeros: gather took one class of the first."""
    expected = maps(head(), images, torch.tensor([2] * 5))
    assert expected.flatten(1).amax(1).min() > 0
    for spelling in (2, np.int64(2), np.array(2), torch.tensor(2)):
        assert torch.equal(maps(head(), images, spelling), expected)
    for wrong in (torch.tensor([2]), [2], [2] * 4, [2] * 6):
        says = f"{len(wrong)} classes for 5 images: give one for each, or a single"
        with pytest.raises(common.UserError, match=says):
            maps(head(), images, wrong)


# visualize_classes takes no images
of_classes = pytest.mark.parametrize("method", [*MAPS, lambda model, images, classes: ascend(model, classes)])


@of_classes
def test_classes_of_every_kind(method, images):
    classes = [2, 0, 1, 1, 0]
    expected = method(head(), images, torch.tensor(classes))
    for kind in (list, tuple, np.array, np.int32, lambda ids: torch.tensor(ids, dtype=torch.int32)):
        assert torch.equal(method(head(), images, kind(classes)), expected)


@pytest.mark.parametrize(
    "wrong",
    [[0.5, 1.0], torch.ones(2), np.ones((2, 1), int), torch.zeros(2, 1).long(), ["a", "b"], [True, False], "ab", 1.0],
)
@of_classes
def test_what_is_no_class(method, wrong, images):
    with pytest.raises(common.UserError, match="classes must be whole numbers, one for all images or one for each"):
        method(head(), images[:2], wrong)
    with pytest.raises(common.UserError, match=r"class ids must be 0 to 2, not \[0, 3\]"):
        method(head(), images[:2], np.array([0, 3]))


# ------------------------------------------------------------------------------------------------
# Images


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("2c")])  # which takes no images
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: (images * 255).byte(), r"images are torch.uint8: give .* images.float\(\) / 255"),
        (lambda images: images[0], r"shape \(3, 8, 8\) have no batch dimension: give one image as image\[None\]"),
        (lambda images: images.flatten(1), r"of shape \(N, 3, H, W\), not \(5, 192\): give images, not features"),
        (lambda images: images.numpy(), "images must be a tensor .*, not ndarray: use torch.as_tensor"),
    ],
)
def test_what_is_no_batch_of_images(change, says, name, images):
    with pytest.raises(common.UserError, match=says):
        METHODS[name](head(), change(images))


def test_no_images_give_an_empty_result(images):
    for model in (head(), Returns(nn.ReLU(), lambda x: x.reshape(len(x), -1)[:, :3])):  # which cannot take an empty one
        for maps in MAPS:
            for classes in ([], torch.zeros(0, dtype=torch.long), np.zeros(0, int), 1):
                assert maps(model, images[:0], classes).shape == (0, 8, 8)
        gradient, scores = common.class_score_gradient(model, images[:0], [])
        assert gradient.shape == (0, 3, 8, 8) and scores.shape == (0,)
        assert common.predict_logits(model, images[:0]).shape == (0, 3)
    with pytest.raises(common.UserError, match="there are no images: give at least one"):
        mc_dropout_logits(head(), images[:0], 3)


# ------------------------------------------------------------------------------------------------
# Where gradients are off, and where others use the network too


def insertion_deletion(model, images):
    return torch.stack(faithfulness.insertion_deletion(model, images, 1, images.mean(1), 4))


def smoothed(model, images):
    generators = common.seeded_generators(0, range(len(images)))
    return load_script("2e_saliency").smoothed_saliency_maps(model, images, 1, generators, 2)


GRADIENTS = METHODS.keys() - {"2h", "logits"} | {"2e smoothed", "2f Grad-CAM"}
LEAVE_NOTHING = METHODS | {
    "2b": lambda model, images: load_script("2b_evaluate").evaluate(model, images, torch.tensor([0] * 5))["loss"],
    "2d": lambda model, images: load_script("2d_predict").top_classes(model, images)[1],
    "2e smoothed": smoothed,
    "2f Grad-CAM": lambda model, images: load_script("2f_guided_saliency").guided_grad_cam_maps(model, images, 1),
    "2g": insertion_deletion,
}


def broken(*_):
    raise RuntimeError("broken")


def broken_backward(logits):
    if logits.requires_grad:
        logits.register_hook(broken)
    return logits


@pytest.mark.parametrize("where", ["nowhere", "forward", "backward"])
@pytest.mark.parametrize("name", LEAVE_NOTHING)
def test_nothing_is_left_behind(name, where, toy, images):
    """The toy is in training mode: its batch norm must neither mix the images nor move its averages."""
    for parameter in toy.parameters():
        parameter.grad = torch.ones_like(parameter)
    net = toy if where == "nowhere" else Returns(toy, broken if where == "forward" else broken_backward).train()
    method, given, plain = LEAVE_NOTHING[name], images.clone(), saliency_maps(toy, images, 1)
    before = state_of(net)
    if where == "nowhere" or where == "backward" and name not in GRADIENTS:
        result = method(net, images)
        assert torch.equal(result, method(net, images)) or name == "2h"
        assert not result.requires_grad
    else:
        with pytest.raises(RuntimeError, match="broken"):
            method(net, images)
    assert_same_state(before, state_of(net))
    assert torch.equal(images, given) and images.grad is None and not images.requires_grad
    assert torch.equal(plain, saliency_maps(toy, images, 1))  # no mode is left on
    assert torch.equal(F.dropout(images, 0.5, False), images)


@every_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode, method, toy, images):
    """As from outside, with images made inside and outside, and with what comes out fit for autograd outside."""
    before = state_of(toy)
    expected = method(toy, images)
    with mode():
        for given in (images, images.clone()):
            result = method(toy, given)
            assert torch.equal(result, expected)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert_same_state(before, state_of(toy))
    weight = torch.ones((), requires_grad=True)
    (weight * result.clone()).sum().backward()


@every_method
def test_a_network_built_in_inference_mode(method, images):
    with torch.inference_mode():
        model = head()
        inside = method(model, images)
    assert torch.equal(inside, method(head(), images)) and torch.equal(method(model, images), inside)


@every_method
def test_a_network_in_training_mode_used_from_eight_threads(method, images):
    """They saw training mode where another had put it back, and left the network in evaluation mode."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), head()).train()
    with torch.no_grad():
        model[1].running_mean.fill_(0.3)
    expected = method(model, images)
    before = state_of(model)
    sharing = nn.Sequential(*model)  # another network of the same layers
    start = threading.Barrier(8)

    def use(n):
        start.wait()
        return [method(model if n % 2 else sharing, images) for _ in range(2)]

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(use, range(8)))
    assert all(torch.equal(result, expected) for found in results for result in found)
    assert_same_state(before, state_of(model))


class Caches(nn.Module):
    """As timm's levit: what it needs for a mode is cached, and any change of the mode, also to the same, forgets it."""

    def __init__(self):
        super().__init__()
        self.weight, self.cache = nn.Parameter(torch.rand(192, 3)), {}

    def train(self, mode=True):
        self.cache = {}
        return super().train(mode)

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)

    def block(self, x):
        if "weight" not in self.cache:
            self.cache["weight"] = self.weight.sin()
        return F.relu(x.flatten(1)) @ self.cache["weight"]


def test_a_network_in_evaluation_mode_is_left_alone(images):
    """It was told eval() before the way back, where its checkpoint then met another network than on the way forward."""
    torch.manual_seed(0)
    model = Caches().eval()
    with pytest.raises(common.UserError, match="when it runs again: switch its checkpointing off"):
        saliency_maps(model, images, 1)
    expected = model.weight.sin()[:, 1].view(3, 8, 8).abs().amax(0).expand(5, 8, 8)
    for maps in MAPS:
        torch.testing.assert_close(maps(model, images, 1), expected.detach())
    assert "weight" in model.cache


# ------------------------------------------------------------------------------------------------
# What a network returns

PACKS = {
    "tuple": lambda logits: (logits[:, :2] + 1, logits),  # an embedding, or an early exit, comes first
    "list": lambda logits: [logits],
    "dict": lambda logits: {"loss": logits.sum(), "scores": logits},
    "dict with logits": lambda logits: {"features": logits[:, :2] + 1, "logits": logits},
    "object": lambda logits: SimpleNamespace(features=logits[:, :2] + 1, logits=logits),
    "object without logits": lambda logits: SimpleNamespace(loss=None, maps=logits[:, :, None, None], out=logits),
}


@every_method
@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_packed_logits(pack, method, images):
    assert torch.equal(method(Returns(head(), pack), images), method(head(), images))


@every_method
@pytest.mark.parametrize(
    "pack", [lambda z: z, lambda z: z[:, 0], lambda z: (z[:, 0],)], ids=["(N, 1)", "(N,)", "tuple"]
)
def test_one_logit_an_image_is_two_classes(pack, method, images):
    """By its sign: class 1 above 0; as a network with the logits (0, z), but that class 0 is explained as -z."""
    archetypes = method in (METHODS["2c"], METHODS["2c natural"])
    pair = Returns(head(1), lambda z: torch.cat([-z if archetypes else 0 * z, z], 1))
    torch.testing.assert_close(method(Returns(head(1), pack), images), method(pair, images))


def test_the_two_classes_of_one_logit(images):
    model = Returns(head(1), lambda z: z[:, 0])
    z = head(1).eval()(images)[:, 0]
    torch.testing.assert_close(common.predict_logits(model, images).softmax(1)[:, 1], z.sigmoid())
    low, high = (common.class_score_gradient(model, images, c)[0] for c in (0, 1))
    assert torch.equal(low, -high)
    low, high = model.eval()(ascend(model, [0, 1]))
    assert low < high
    best = saliency_maps(model, images, [None] * 5)
    assert torch.equal(best, saliency_maps(model, images, (z > 0).long()))


@pytest.mark.parametrize(
    ("pack", "says"),
    [
        (lambda x: {"maps": x[None], "aux": x[None]}, "a dict of .*: return the logits .* alone"),
        (lambda x: (x[:, 0], x[:, 1]), "a tuple of .*: return the logits .* alone, or name them"),
        (lambda x: {"name": "x"}, "a dict of no tensor"),
        (lambda x: {"res": {"logits": x}}, "a dict of no tensor at the top level: return .*wraps the network"),
        (lambda x: None, "a NoneType of no tensor"),
        (lambda x: x.argmax(1), "torch.int64, which cannot be logits"),
        (lambda x: x.T, r"shape \(3, \d\) for \d image"),
        (lambda x: x[0], r"shape \(3,\) for \d image"),
    ],
)
def test_what_are_no_logits_of_classes(pack, says, images):
    model = Returns(head(), pack)
    for method in METHODS.values():
        with pytest.raises(common.UserError, match=says):
            method(model, images[:2])


@pytest.mark.parametrize("share", [None, True, False])
def test_a_segmentation_has_passes_but_no_map(share, images):
    """The passes in front, and the same ones in every way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(4, 2, 1))
    packed = Returns(net, lambda x: {"out": x})
    found = mc_dropout_logits(packed, images, 7, common.seeded_generators(0, range(5)), share)
    assert found.shape == (7, 5, 2, 8, 8) and found.std(0).amax((1, 2, 3)).min() > 0
    whole = mc_dropout_logits(net, images[3:4], 7, common.seeded_generators(0, [3]), share=False)
    torch.testing.assert_close(found[:, 3], whole[:, 0])
    for method in (METHODS["2e"], METHODS["2f"], METHODS["2c"]):
        with pytest.raises(common.UserError, match=r"shape \(\d, 2, 8, 8\), not \(N, classes\)"):
            method(net, images)


@pytest.mark.parametrize("logits", [torch.rand(1, 3), torch.rand(1, 3, requires_grad=True)])
@pytest.mark.parametrize("name", ["2e", "2f", "2c", "2c natural", "gradient"])
def test_logits_that_do_not_depend_on_the_image(name, logits, images):
    with pytest.raises(common.UserError, match="logits do not depend on the images, or"):
        METHODS[name](Returns(head(), lambda x: logits.expand(len(x), 3)), images)


# ------------------------------------------------------------------------------------------------
# Floating-point types, copies, settings


def test_a_network_in_float64(images):
    """Its own type inside; images and maps keep theirs."""
    expected = {name: method(head(), images) for name, method in METHODS.items()}
    for name, method in METHODS.items():
        result = method(head().double(), images)
        assert result.dtype == (torch.float64 if name in ("2h", "logits") else torch.float32)
        torch.testing.assert_close(result.float(), expected[name], rtol=1e-3, atol=1e-4)


def randomise(model, images, classes):
    return cascading_randomisation(
        model,
        images,
        classes,
        lambda *a: torch.stack([*common.make_maps(MAPS_2F, *a, argparse.Namespace(seed=0), [0])[0].values()])[:2],
        2,
        torch.Generator().manual_seed(0),
    )


def test_randomisation_in_bfloat16(images):
    layers, correlations = randomise(head().bfloat16(), images.bfloat16(), 1)
    assert layers == [(1, "4"), (2, "1")] and np.abs(correlations).max() <= 1


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_randomisation_with_weight_norm(images):
    """What it computes from its parameters PyTorch does not copy."""
    model = head()
    expected = saliency_maps(model, images, 1)
    nn.utils.weight_norm(model[1])
    torch.testing.assert_close(saliency_maps(model, images, 1), expected)
    assert not model[1].weight.is_leaf
    weight = model[1].weight_v.clone()
    layers, correlations = randomise(model, images, 1)
    assert layers == [(1, "4"), (2, "1")] and max(correlations[1][0]) < 0.9
    assert torch.equal(model[1].weight_v, weight)
    torch.testing.assert_close(saliency_maps(model, images, 1), expected)


def test_what_cannot_be_copied_is_one_sentence(images):
    model = head()
    model.lock = threading.Lock()
    with pytest.raises(common.UserError, match="cannot be copied .*lock.*, which is needed to randomise its layers"):
        randomise(model, images, 1)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "3"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("passes", lambda images, number: mc_dropout_logits(head(), images, number)),
        ("steps", lambda images, number: faithfulness.insertion_deletion(head(), images, 0, images.mean(1), number)),
        ("stages", lambda images, number: cascading_randomisation(head(), images, 0, None, number, torch.Generator())),
    ],
)
def test_a_number_is_whole_and_at_least_one(wrong, name, call, images):
    """0 steps were a division by zero."""
    with pytest.raises(common.UserError, match=f"{name} must be a whole number of at least 1, not {wrong!r}"):
        call(images, wrong)
