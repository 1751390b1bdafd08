"""2c: gradient ascent worked out by hand on small nets, and the script run for a few steps."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import contents, load_script, rows_of, save_photo, table_of
from PIL import Image
from scipy.linalg import sqrtm
from torch import nn

import common
from explain.methods import archetypes, ascent, priors
from explain.report import archetypes as report

script = load_script("2c_class_visualization")
SIZE = 8
UNMOVED = dict(zoom_from=1, zoom_to=1, rotation_degrees=0)  # no augmentation but noise


class Linear(nn.Module):
    """logits = W x, one row of W per class; counts its forward passes."""

    def __init__(self, weights: torch.Tensor):
        super().__init__()
        self.register_buffer("weights", weights)  # (classes, 3 * S * S)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.flatten(1) @ self.weights.T


@pytest.fixture
def linear() -> Linear:
    return Linear(torch.randn(4, 3 * SIZE * SIZE, generator=torch.Generator().manual_seed(3)))


def seeds(*classes: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(c) for c in classes]


def start_of(c: int) -> torch.Tensor:
    """Where the ascent of class c begins: its own noise around grey."""
    noise = torch.randn(3, SIZE, SIZE, generator=seeds(c)[0])
    return 0.5 + ascent.START_NOISE * noise


def observe(model: nn.Module, classes: list[int], method: str, see: Callable, **settings: float) -> list:
    """What `see` returns of the state before each step and after the last, with class ids as seeds."""
    seen = []
    given = {"size": SIZE, "generator": seeds(*classes)} | settings
    script.visualize_classes(model, classes, method, on_step=lambda state: seen.append(see(state)), **given)
    return seen


@pytest.mark.parametrize(("final_rate", "distance"), [(0.04, 3 * 0.04), (0.01, 0.04 + 0.02 + 0.01)])
def test_plain_ascent_moves_along_the_weight_row(linear, final_rate, distance):
    """By a rate that moves from first to final in equal ratios."""
    settings = dict(size=SIZE, steps=3, rate=0.04, final_rate=final_rate, l2=0)
    result = script.visualize_classes(linear, [2, 0], "plain", seeds(2, 0), **settings)
    for image, c in zip(result, [2, 0], strict=True):
        row = linear.weights[c].view(3, SIZE, SIZE)
        expected = start_of(c) + distance * row / row.square().mean().sqrt()
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("l2", [5.0, 20.0])
def test_with_the_l2_term_the_ascent_ends_at_w_over_two_lambda(linear, l2):
    """The maximum of w.x - l2 |x - grey|^2 is at grey + w / (2 l2), for any scale of the step."""
    result = script.visualize_classes(
        linear, [0, 3], "plain", size=SIZE, l2=l2, steps=400, rate=0.5 / l2, final_rate=0.1 / l2
    )
    expected = 0.5 + linear.weights[[0, 3]].view(2, 3, SIZE, SIZE) / (2 * l2)
    torch.testing.assert_close(result, expected.clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", script.METHODS)
@pytest.mark.parametrize("steps", [1, 7])
def test_exactly_n_steps_each_observed(linear, method, steps):
    """Before each step and after the last; the first score is that of the start."""
    seen = observe(linear, [3, 1], method, lambda s: (s, (s.step, len(s.scores), linear.calls)), steps=steps, noise=0)
    assert [counts for _, counts in seen] == [(step, step, step) for step in range(steps + 1)]
    if method == "plain":  # the others augment
        first = [(linear.weights[c] @ start_of(c).flatten()).item() for c in (3, 1)]
        assert seen[-1][0].scores[0] == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("method", script.METHODS)
def test_a_class_depends_on_its_seed_alone(toy, method):
    """Neither on its company nor on the order."""

    def images_of(*classes: int, first_seed: int = 0) -> torch.Tensor:
        generators = seeds(*(first_seed + c for c in classes))
        return script.visualize_classes(toy, classes, method, generators, size=SIZE, steps=12)

    alone, together, reversed_ = images_of(2), images_of(0, 2, 3), images_of(3, 2, 0)
    assert torch.equal(alone, images_of(2)) and not torch.allclose(alone, images_of(2, first_seed=5), atol=1e-3)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(together, reversed_.flip(0), rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01  # and they are not all the same picture


@pytest.mark.parametrize("method", script.METHODS)
def test_values_stay_in_0_1(toy, method):
    result = script.visualize_classes(toy, [0, 1, 2], method, size=SIZE, steps=30, rate=0.5, final_rate=0.5)
    assert result.shape == (3, 3, SIZE, SIZE) and result.dtype == torch.float32
    assert result.min() == 0 and result.max() == 1  # steps this large reach both ends, and go no farther
    assert not result.requires_grad and result.grad is None


class Blurred(nn.Module):
    """One logit an image, for class 1, that wants one bright pixel."""

    def forward(self, images):
        return images[:, :1, 4, 4]


@pytest.mark.parametrize(
    ("steps", "first", "final", "sigmas"),
    [
        (11, 4.0, 0.5, [4, 2, 1, 0.5]),  # in steps 1, 3, 5, 7 of 0 to 10: equal ratios; 8 is 0.8 of the way
        (11, 3.0, 0.0, [3, 2, 1, 0]),  # no ratio leads to 0: equal differences
        (5, 4.0, 1.0, [4, 1]),
        (3, 4.0, 1.0, [4]),  # the only blur is the first
        (2, 4.0, 1.0, []),  # the last step has none
    ],
)
def test_the_kernel_narrows_from_the_first_blur_to_the_last(steps, first, final, sigmas):
    """It ended at 0.57 where --final-blur-px was 0.5; the contrast, at 0.16 of 0.2."""
    settings = dict(steps=steps, blur_every=2, blur_px=first, final_blur_px=final, contrast=0.12)
    blurs = dataclasses.replace(script.GAUSSIAN, **settings).blurs()
    used, contrasts = zip(*blurs.values(), strict=True) if blurs else ((), ())
    assert [*blurs] == [2 * k + 1 for k in range(len(sigmas))]
    assert used == pytest.approx(sigmas) and [*used[-1:]] == sigmas[-1:]
    assert contrasts == pytest.approx([0.12 * (k + 1) / len(sigmas) for k in range(len(sigmas))])


def test_the_gradient_comes_back_through_the_augmentation():
    """The score is the pixel (4, 4) of the augmented image: flipped, that is the image's pixel (4, 3)."""
    settings = dict(size=SIZE, steps=12, l2=0.0, rate=0.1, final_rate=0.1, rotation_degrees=1e-9)
    result = script.visualize_classes(Blurred(), [1], "plain", seeds(1), **settings)[0] - start_of(1)
    assert {tuple(i) for i in (result.abs() > 1e-3).nonzero().tolist()} == {(0, 4, 3), (0, 4, 4)}


def test_a_close_crop_has_a_part_of_the_image_and_a_distant_one_all_of_it():
    """A score that adds all pixels: a crop of half the side moves half of the rows and columns, about."""
    model = Linear(torch.ones(1, 3 * SIZE * SIZE))

    def moved(zoom: float) -> torch.Tensor:
        settings = dict(steps=1, l2=0.0, rate=0.01, zoom_from=zoom, zoom_to=zoom)
        result = script.visualize_classes(model, [0], "plain", seeds(0), SIZE, **settings)[0] - start_of(0)
        return (result.abs() > 1e-4).float().mean()

    assert moved(2.0) == moved(1.0) == 1
    assert 0.2 < moved(0.5) < 0.6


def test_contrast_is_stretched_about_the_mean_and_never_taken():
    images = torch.rand(3, 3, 8, 8, generator=seeds(0)[0]) * torch.tensor([0.1, 1.0, 0.0]).view(3, 1, 1, 1)
    result = priors.with_contrast(images, 0.2)
    torch.testing.assert_close(result[0].std(correction=0), torch.tensor(0.2))
    torch.testing.assert_close(result.mean((1, 2, 3)), images.mean((1, 2, 3)))
    assert torch.equal(result[0].flatten().argsort(), images[0].flatten().argsort())
    torch.testing.assert_close(result[1:], images[1:])  # enough of it, and none at all


def test_what_is_too_far_from_grey_is_moved_back_straight():
    images = 0.5 + torch.rand(3, 3, 8, 8, generator=seeds(0)[0]) * torch.tensor([1.0, 0.1, 0.0]).view(3, 1, 1, 1)
    result = priors.near_grey(images, 0.25)
    distance = (images[0] - 0.5).square().mean().sqrt()
    torch.testing.assert_close(result[0], 0.5 + (images[0] - 0.5) * 0.25 / distance)
    assert torch.equal(result[1:], images[1:])  # near enough, and grey itself
    black = torch.zeros(1, 3, 8, 8)
    assert torch.equal(priors.near_grey(black, 0.5), black)


@pytest.mark.parametrize("method", ["gaussian", "natural"])
def test_only_without_batch_norm_an_archetype_is_held_near_grey(linear, toy, method):
    """Strong steps against a bound of a tenth."""
    settings = dict(steps=20, rate=0.5, final_rate=0.5, noise=0, contrast=0, max_grey_distance=0.1)

    def distance(model: nn.Module, size: int) -> float:
        result = script.visualize_classes(model, [0, 1], method, seeds(0, 1), size, **settings)
        return (result - 0.5).square().mean((1, 2, 3)).sqrt().max().item()

    assert distance(linear, SIZE) == pytest.approx(0.1, abs=1e-6)
    assert distance(toy, 32) > 0.2


def test_a_preconditioned_step_goes_to_brighter_or_darker_in_coarse_waves():
    """The score is one pixel's red: the step changes its green and blue too, and what is around it."""
    settings = dict(steps=1, l2=0.0, rate=0.01, blur_every=0, first_size=1, **UNMOVED)
    result = script.visualize_classes(Blurred(), [1], "gaussian", seeds(0), size=SIZE, **settings)[0] - start_of(0)
    changed = result[:, 4, 4]
    root = torch.from_numpy(sqrtm((priors.COLOURS @ priors.COLOURS.T).numpy()))
    torch.testing.assert_close(changed / changed[0], root[:, 0] / root[0, 0], rtol=1e-3, atol=1e-3)
    assert (changed > 0).all() and result.square().mean().sqrt() == pytest.approx(0.01, rel=1e-3)
    waves = torch.fft.fft2(result[0]).abs()
    torch.testing.assert_close(waves[0, 1] / waves[3, 4], torch.tensor(5.0), rtol=1e-3, atol=0)  # 3, 4: 5 times as fine


@pytest.mark.parametrize("method", ["plain", "gaussian"])
def test_noise_is_added_until_augment_until_and_not_to_the_image(method):
    """The score is one pixel of the augmented image: less the pixel of the image, it is the noise."""
    settings = dict(steps=200, rate=0.0, final_rate=0.0, blur_every=0, first_size=1, **UNMOVED)
    settings |= dict(noise=0.5, augment_until=0.9)
    *_, state = observe(Blurred(), [1], method, lambda state: state, **settings)
    torch.testing.assert_close(state.images[0], start_of(1))
    noise = torch.tensor(state.scores)[:, 0] - start_of(1)[0, 4, 4]
    assert noise[180:].abs().max() < 1e-6 < noise[:179].abs().min()  # step 180 is 0.905 of the way
    assert noise[:179].std().item() == pytest.approx(0.5 / 3**0.5, abs=0.05)  # of spreads from 0 to 0.5


@pytest.mark.parametrize("sigma", [0.5, 2.5])
def test_blur_is_the_direct_convolution_in_two_dimensions(sigma):
    images = torch.rand(2, 3, 24, 19, generator=torch.Generator().manual_seed(0)).double()
    radius = math.ceil(3 * sigma)
    offsets = range(-radius, radius + 1)
    weights = {(y, x): math.exp(-(y * y + x * x) / (2 * sigma**2)) for y in offsets for x in offsets}
    expected = sum(w * images.roll(shift, (2, 3)) for shift, w in weights.items()) / sum(weights.values())
    torch.testing.assert_close(script.gaussian_blur(images, sigma), expected)


@pytest.mark.parametrize("size", [3, 40])
def test_blur_keeps_constants_and_the_mean(size):
    """Also where the kernel is wider than the image."""
    constant = torch.tensor([0.1, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, size, size)
    torch.testing.assert_close(script.gaussian_blur(constant, 3.0), constant, rtol=0, atol=1e-6)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    blurred = script.gaussian_blur(images, 3.0)
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)))
    assert blurred.std() < 0.6 * images.std()
    assert torch.equal(script.gaussian_blur(images, 0.0), images)


class Dimmed(nn.Module):
    """A linear layer whose logits are rectified, and 0 in the step (from 1) that is named."""

    def __init__(self, dark: set[int]):
        super().__init__()
        self.dark, self.calls = dark, 0

    def forward(self, images):
        self.calls += 1
        return images.flatten(1).sum(1, keepdim=True).expand(-1, 2) * (self.calls not in self.dark)


@pytest.mark.parametrize("method", ["plain", "gaussian"])
def test_steps_without_gradient_are_counted_and_move_nothing(method):
    """Where an ascent ended with an error as soon as a class had no gradient in one step."""
    settings = dict(rate=0.01, final_rate=0.01, blur_every=0, first_size=1, **UNMOVED)
    seen = observe(Dimmed({3, 4}), [0, 1], method, lambda s: (s, list(s.zero_gradient_steps)), steps=8, **settings)
    state = seen[-1][0]
    assert [count for _, count in seen] == [[0, 0]] * 3 + [[1, 1]] + [[2, 2]] * 5 and state.starts == [1, 1]
    *_, undisturbed = observe(Dimmed(set()), [0, 1], method, lambda state: state, steps=6, **settings)
    torch.testing.assert_close(state.images, undisturbed.images)  # as if the two steps had not been


@pytest.mark.parametrize(("dark", "step"), [({1, *range(2, 20)}, 0), ({2, 3, 5, 7, 8}, 7)])
def test_a_class_without_gradient_at_all_or_in_half_of_the_steps_is_an_error(dark, step):
    with pytest.raises(common.UserError, match=f"gradient of class 1 is zero in step {step}"):
        script.visualize_classes(Dimmed(dark), [1], "plain", size=SIZE, steps=8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_class(bad):
    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[1, 2, 3, 4] = bad  # one pixel of the second image
        return gradient

    class Spoiled(Linear):
        def forward(self, images):
            images = images.clone()
            images.register_hook(spoil)
            return super().forward(images)

    with pytest.raises(common.UserError, match="gradient of class 2 is not finite in step 0"):
        script.visualize_classes(Spoiled(torch.ones(3, 3 * SIZE * SIZE)), [0, 2, 1], "plain", size=SIZE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(method="cubist"), "no method is named 'cubist'"),
        (dict(classes=[0, 4]), "class ids must be 0 to 3"),
        (dict(classes=[0, 1], generator=seeds(0)), "1 generators for 2 classes"),
        (dict(size=None), "archetypes are square: give size, one number of pixels, not None"),
        (dict(classes=torch.zeros(0).long()), r"one or more class ids, not \[\]: give ids"),
        (dict(size=(8, 6)), r"give size, one number of pixels, not \(8, 6\)"),
        (dict(size=-8), "give size, one number of pixels, not -8"),
        (dict(steps=0), "steps must be a whole number of at least 1, not '0'"),
        (dict(blur_px=-0.5), "blur_px must be a number of at least 0, not '-0.5'"),
        (dict(first_size=2), "first_size must be a number above 0 and at most 1, not '2'"),
        (dict(blur=1), "no setting is named 'blur': did you mean blur_px.*; choose from steps, "),
    ],
)
def test_what_cannot_be_asked_for(linear, arguments, message):
    with pytest.raises(common.UserError, match=message):
        script.visualize_classes(linear, **{"classes": [0], "method": "gaussian", "size": SIZE} | arguments)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_picture_is_measured_as_it_was_saved(linear, factor):
    """8 bits, resized as a whole to the network's size; rank 1 is the likeliest class."""
    linear.input_size, side = SIZE, factor * SIZE
    pixels = torch.randint(0, 256, (side, side, 3), generator=seeds(0)[0]).byte()
    picture = Image.fromarray(pixels.numpy())
    small = torch.from_numpy(np.array(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    assert factor > 1 or torch.equal(small, pixels)
    logits = linear(small.permute(2, 0, 1)[None] / 255)[0].double()
    for c in range(4):
        result = archetypes.measure(linear, picture, c)
        assert result["logit"] == pytest.approx(logits[c].item())
        assert result["probability"] == pytest.approx((logits[c].exp() / logits.exp().sum()).item())
        assert result["rank"] == 1 + logits.argsort(descending=True).tolist().index(c)


@pytest.mark.parametrize("method", ["gaussian", "natural"])
def test_the_image_grows_in_three_stages_to_its_full_size(toy, method):
    sides = []
    toy.register_forward_pre_hook(lambda model, images: sides.append(images[0].shape[-1]))
    result = script.visualize_classes(toy, [0, 1], method, size=64, steps=8, first_size=0.5)
    assert result.shape == (2, 3, 64, 64)
    assert sides[1:] == [32] * 4 + [48] * 2 + [64] * 2  # after the trial whether it takes the smallest


def test_statistics_lead_the_ascent(toy):
    """With their weight the channels end nearer to what the batch norm has seen."""
    norm = toy[1]

    def distance(statistics: float) -> float:
        settings = dict(size=32, steps=40, statistics=statistics, noise=0)
        result = script.visualize_classes(toy, [0, 1], "natural", seeds(0, 1), **settings)
        values = toy[0](result)
        z = (values.mean((2, 3)) - norm.running_mean) / norm.running_var.sqrt()
        v = (values.var((2, 3)) / norm.running_var).log()
        return (z.square() + 0.25 * v.square()).mean().item()

    assert distance(30.0) < 0.7 * distance(0.0)


# ------------------------------------------------------------------------------------------------
# Judges


def row_of_ranks(own: int, **ranks: int) -> dict:
    """A row with ranks; probabilities are one by the rank."""
    measures = {judge: {"rank": rank, "probability": 1 / rank} for judge, rank in ranks.items()}
    row = {"rank": own, "probability": 1 / own, "logit": 0.0, "judges": measures}
    return row | {"mean": [0.5] * 3, "spread": [0.2] * 3}


def test_the_summary_of_all_classes():
    rows = [
        row_of_ranks(1, a=1, b=1000),
        row_of_ranks(1, a=5, b=5),
        row_of_ranks(2, a=6, b=2),
        row_of_ranks(1, a=1, b=6),
    ]
    reference = {"mean": [0.5, 0.5, 0.2], "spread": [0.2, 0.2, 0.2]}
    assert "top5" not in report.summarise(rows, reference, 5)
    summary = report.summarise(rows, reference, 6)
    a, b = summary["judges"]["a"], summary["judges"]["b"]
    assert (summary["classes"], summary["top1"], summary["top5"]) == (4, 0.75, 1)
    assert (a["top1"], a["top5"], b["top1"], b["top5"]) == (0.5, 0.75, 0, 0.5)
    assert a["median_rank"] == 3 and b["median_rank"] == 5.5
    assert a["mean_probability"] == pytest.approx((1 + 1 / 5 + 1 / 6 + 1) / 4)
    assert summary["colours"]["distance_from_photos"] == pytest.approx(math.sqrt(0.3**2 / 6))


def test_the_mean_rank_is_the_geometric_mean_over_the_judges():
    row = dict.fromkeys(report.COLUMNS) | {"settings": {"steps": 2}} | row_of_ranks(1, a=4, b=9)
    assert report.table_line(row, photo={})["mean_rank"] == pytest.approx(6)


def test_the_default_judge_is_not_the_network_explained(monkeypatch):
    def network(name, *_):
        return argparse.Namespace(name=name, sha256=name, categories=range(1000))

    monkeypatch.setattr(archetypes, "load_model", network)
    lite0, lite2 = network("efficientnet_lite0"), network("efficientnet_lite2")
    assert list(archetypes.load_judges(None, lite0, "cpu")) == ["efficientnet_lite2"]
    assert list(archetypes.load_judges(None, lite2, "cpu")) == ["efficientnet_lite0"]
    assert archetypes.load_judges(["none"], lite0, "cpu") == {}
    with pytest.raises(common.UserError, match="is the network being explained"):
        archetypes.load_judges(["efficientnet_lite0"], lite0, "cpu")


# ------------------------------------------------------------------------------------------------
# What figures say

FULL = "gradient ascent, 340 steps, low frequencies favoured, random zoom, random rotation, random noise, "
FULL += "Gaussian blur every 4 steps until step 272 (standard deviation 1 to 0.5 px)"


@pytest.mark.parametrize(
    ("method", "settings", "description"),
    [
        ("plain", {}, "gradient ascent, 120 steps"),
        ("plain", {"steps": 1, "noise": 0.1, "blur_px": 4}, "gradient ascent, 1 step, random noise"),
        (
            "plain",
            {"steps": 11, "blur_every": 1, "blur_px": 4},
            "gradient ascent, 11 steps, Gaussian blur every 1 step until step 8 (standard deviation 4 to 0 px)",
        ),
        ("gaussian", {}, FULL),
        ("gaussian", {"blur_px": 0.5}, FULL.replace("1 to 0.5", "0.5")),
        ("gaussian", {"blur_every": 0}, FULL[: FULL.index(", Gaussian")]),
        ("gaussian", {"steps": 3}, FULL[: FULL.index(", Gaussian")].replace("340", "3")),
        ("gaussian", {"statistics": 1}, FULL + ", channel statistics pulled towards those of photos"),
    ],
)
def test_a_description_says_what_the_settings_do(method, settings, description):
    assert report.describe(dataclasses.replace(script.METHODS[method], **settings)) == description


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"steps": 560}, {280: "larger image", 420: "larger image", 448: "last blur", 532: "augmentation off"}),
        ({"steps": 6}, {3: "larger image", 4: "larger image, last blur", 5: "augmentation off"}),
        ({"steps": 3, "blur_every": 0}, {1: "larger image", 2: "augmentation off, larger image"}),
        ({"steps": 1}, {}),
        ({"steps": 101, "first_size": 1, "blur_every": 1, **UNMOVED, "noise": 0}, {80: "last blur"}),
    ],
)
def test_the_steps_at_which_an_ascent_changes(toy, settings, changes):
    toy.input_size = 224
    found = report.what_changes(dataclasses.replace(script.GAUSSIAN, **settings), toy)
    assert {step: ", ".join(names) for step, names in found.items()} == changes


def drawn_scores(model: nn.Module, settings: ascent.Settings, scores: list, classes: Iterable[int] = (1,)) -> tuple:
    """Return the figure of the ascents of these classes, and its text."""
    model.input_size, model.label = 224, "toy"
    row = {"name": "one", "method": "gaussian", "scores": scores, "settings": dataclasses.asdict(settings)}
    return report.draw_scores([row | {"class": c} for c in classes], model, "")


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        # scores 0, 3, 0, 3, ...; two of the 41 on both sides while there is noise, to step 36 (0.9 of 39 is 35.1)
        ({"steps": 40, "noise": 0.1, "augment_until": 0.9}, {0: 0, 1: 1, 2: 6 / 5, 3: 9 / 5, 35: 3, 36: 0, 40: 0}),
        ({"steps": 40}, {1: 3, 2: 0, 3: 3, 40: 0}),
        ({"steps": 3, "noise": 0.1}, {0: 0, 1: 3, 2: 0, 3: 3}),
    ],
)
def test_the_thick_line_ends_at_the_archetypes_logit(toy, settings, drawn):
    """It ended at a mean over 45 steps, and of a few steps it was level."""
    scores = [[step, 3.0 * (step % 2)] for step in range(settings["steps"] + 1)]
    figure, _ = drawn_scores(toy, ascent.Settings(**settings), scores)
    thin, thick = figure.axes[0].get_lines()[:2]
    assert thin.get_ydata().tolist() == [score for _, score in scores]
    assert {step: thick.get_ydata()[step] for step in drawn} == pytest.approx(drawn)


def test_the_changes_of_an_ascent_are_letters_above_the_curves_and_named_in_the_caption(toy):
    """Their names stood on the curves; and of six steps no line is a running mean, of which the caption spoke.

    More classes than colours differ in their lines.
    """
    settings = dataclasses.replace(script.GAUSSIAN, steps=6)
    figure, text = drawn_scores(toy, settings, [[k, 1.0] for k in range(7)], range(12))
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 7]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12
    assert [(t.get_text(), t.get_position()) for t in figure.axes[0].texts] == [
        ("a", (3, 1.01)), ("a,b", (4, 1.01)), ("c", (5, 1.01)),
    ]  # fmt: skip
    assert text[-1] == "Dotted lines: larger image (a), last blur (b), augmentation off (c)."
    assert "running mean" not in " ".join(text)


# ------------------------------------------------------------------------------------------------
# The script

NAME = "2c_class_visualization"
TINY = ("--classes", "tarantula", "1", "--steps", "2", "--judge", "timm/test_efficientnet=random")
ALONE = ("--classes", "1", "--judge", "none")


@pytest.fixture
def run(run, tmp_path, undrawn) -> Callable[..., tuple[Path, dict]]:
    """A function that runs the script on a small network, and returns its folder and metrics."""

    def run_2c(*options: str) -> tuple[Path, dict]:
        small = ("--model", "timm/test_resnet", "--weights", "random", "--threads", "1")
        return tmp_path / "output" / NAME, run(NAME, *small, *options)

    return run_2c


def test_what_a_run_leaves(run, capsys):
    """Without a dataset."""
    folder, metrics = run(*TINY)
    assert capsys.readouterr().out.splitlines()[-2:] == [f"output/{NAME}/metrics.json", "output/report.html"]
    pictures = {f"archetypes/{c}_{m}.png" for c in ("76_tarantula", "1_goldfish") for m in script.METHODS}
    others = {"archetypes.csv", "least_recognised.csv", "archetypes.png", "class_images.png", "scores.png"}
    assert set(contents(folder)) == pictures | others | {"metrics.json", "rows.jsonl", "run.json"}
    rows = rows_of(folder)
    assert [(row["class"], row["method"]) for row in rows] == [(c, m) for c in (76, 1) for m in script.METHODS]
    for row in rows:
        assert row["settings"]["steps"] == 2
        assert 0 < row["probability"] < 1 and 1 <= row["rank"] <= 1000 and math.isfinite(row["logit"])
        assert [step for step, _ in row["scores"]] == [0, 1, 2] and row["scores"][-1][1] == row["logit"]
        assert 1 <= row["judges"]["timm/test_efficientnet"]["rank"] <= 1000
    table = table_of(folder / "archetypes.csv")
    assert [int(line["class"]) for line in table] == [76, 76, 76, 1, 1, 1]
    assert {line["photo"] for line in table} == {""}
    worst = [float(line["mean_rank"]) for line in table_of(folder / "least_recognised.csv")]
    assert len(worst) == 6 and worst == sorted(worst, reverse=True)
    results = metrics["results"]
    assert results["chance_probability"] == 0.001 and results["plain"]["classes"] == 2
    mean = sum(row["probability"] for row in rows if row["method"] == "gaussian") / 2
    assert results["gaussian"]["mean_probability"] == pytest.approx(mean)
    assert metrics["images"]["used"] == 0 and results["photos"] is None  # no dataset, no photo
    ranks = [row["judges"]["timm/test_efficientnet"]["rank"] for row in rows if row["method"] == "natural"]
    assert results["natural"]["judges"]["timm/test_efficientnet"]["top5"] == sum(rank <= 5 for rank in ranks) / 2


def test_options_reach_all_methods_and_captions_say_so(run):
    """Without a judge no table has what judges miss."""
    options = ("--steps", "11", "--blur-every", "3", "--blur-px", "1.5", "--final-blur-px", "1", "--noise", "0.125")
    folder, metrics = run(*ALONE, *options, "--zoom-to", "1.5", "--statistics", "5")
    given = dict(steps=11, blur_every=3, blur_px=1.5, final_blur_px=1, noise=0.125, zoom_to=1.5, statistics=5)
    for method, row in zip(script.METHODS, rows_of(folder), strict=True):
        settings, results = dataclasses.replace(script.METHODS[method], **given), metrics["results"][method]
        assert results["settings"] == dataclasses.asdict(settings)
        for figure in ("archetypes.png", "class_images.png")[: 1 + (method != "natural")]:
            assert f"{method}: {report.describe(settings)}" in metrics["captions"][figure][1]
        assert "blur every 3 steps until step 6 (standard deviation 1.5 to 1 px)" in results["description"]
        assert results["grey_distance_limit"] == 0.5  # it has batch norms
        assert results["least_probability"] == row["probability"] and results["judges"] == {}
    assert not (folder / "least_recognised.csv").exists() and (folder / "archetypes.csv").exists()


def test_the_archetypes_are_those_of_the_function(run):
    """To the bit."""
    folder, _ = run(*TINY, "--seed", "3", "--first-size", "0.5")
    model = common.load_model("timm/test_resnet", "random")
    for method in script.METHODS:
        generators = common.seeded_generators(3, [76, 1])
        images = script.visualize_classes(model, [76, 1], method, generators, steps=2, first_size=0.5)
        for name, image in zip(("76_tarantula", "1_goldfish"), images, strict=True):
            file = folder / f"archetypes/{name}_{method}.png"
            assert np.array_equal(np.asarray(Image.open(file)), common.to_pixels(image))


def test_the_real_photo_stands_beside_the_archetype(run, tmp_path):
    broken = tmp_path / "dataset" / "DL_data_p" / "76" / "a.jpg"
    save_photo(tmp_path / "dataset" / "DL_data_p" / "76" / "b.jpg")
    broken.write_bytes(b"no image")
    folder, metrics = run(*TINY, "--methods", "plain")
    lines = table_of(folder / "archetypes.csv")
    assert [line["photo"] for line in lines] == ["DL_data_p/76/b.jpg", ""]
    assert 0 < float(lines[0]["photo_probability"]) < 1 and lines[1]["photo_probability"] == ""
    (skipped,) = metrics["images"]["skipped"]
    assert skipped["path"] == "DL_data_p/76/a.jpg" and "is not an image" in skipped["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--classes tarantulla", "did you mean tarantula"),
        ("--classes 1000", "ids go from 0 to 999"),
        ("--judge efficientnet_lite9", "no model is named 'efficientnet_lite9'"),
        ("--judge efficientnet_lite0=absent.pth", "absent.pth"),
        ("--judge timm/test_vit=random --judge timm/test_vit=random", "given twice"),
        ("--judge net.py:three", "has 4 classes"),
        ("--max-grey-distance 0.2", "--max-grey-distance 0.2 has no effect, since timm/test_resnet has batch norm"),
        ("--input-size 16 --first-size 0.5", "--first-size 0.5 has no effect, .* of 16 px in"),
    ],
)
def test_what_does_not_fit_the_network(own, run, arguments, message):
    with pytest.raises(common.UserError, match=message):
        run(*arguments.split())
    assert not (own / "output").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods cubist", "invalid choice: 'cubist'"),
        ("--noise nan", "--noise must be a number of at least 0, not 'nan'"),
        ("--methods plain --blur-px 4", "--blur-px 4 has no effect, since no step has a blur: give --blur-px, and"),
        ("--methods plain --blur-every 4", "--blur-every 4 has no effect, since no step has a blur"),
        ("--blur-every 0 --final-blur-px 0.5", "--final-blur-px 0.5 has no effect, since no step has a blur"),
        ("--steps 3 --blur-every 4", "--blur-every 4 has no effect, since no step has a blur"),
        ("--methods plain --contrast 0.2", "--contrast 0.2 has no effect, since no step has a blur"),
        ("--methods plain --blur-until 0.5", "--blur-until 0.5 has no effect, since no step has a blur"),
        ("--methods plain --augment-until 0.5", "--augment-until 0.5 has no effect, since there are no crops"),
        ("--steps 1 --final-rate 0.1", "--final-rate 0.1 has no effect, since there is only one step"),
        # nothing is wrong with these, and the network would be loaded
        ("--methods plain gaussian --blur-px 4", "load_from_options"),
        ("--methods plain --blur-every 1 --blur-px 4", "load_from_options"),
        ("--methods plain --blur-every 0", "load_from_options"),
        ("--methods plain --noise 0.1 --augment-until 0.5", "load_from_options"),
    ],
)
def test_a_wrong_option_is_an_error_before_any_network_is_loaded(run, monkeypatch, arguments, message):
    monkeypatch.delattr(common, "load_from_options")
    with pytest.raises((common.UserError, AttributeError), match=message):
        run(*arguments.split())
