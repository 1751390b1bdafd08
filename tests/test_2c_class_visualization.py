"""2c: gradient ascent worked out by hand on small nets, and the script run for a few steps."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import Raises, assert_same_state, load_script, run_main, run_script, save_photo, state_of
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


def ascend(model: nn.Module, classes: list[int], method: str, **settings: float) -> Iterator[ascent.State]:
    """The states of an ascent, one object, with class ids as seeds."""
    changed = dataclasses.replace(script.METHODS[method], **settings)
    return script.ascend(model, classes, changed, seeds(*classes), SIZE)


def test_plain_ascent_moves_along_the_weight_row(linear):
    result = script.visualize_classes(
        linear, [2, 0], "plain", seeds(2, 0), size=SIZE, steps=5, rate=0.01, final_rate=0.01, l2=0
    )
    for image, c in zip(result, [2, 0], strict=True):
        row = linear.weights[c].view(3, SIZE, SIZE)
        expected = start_of(c) + 5 * 0.01 * row / row.square().mean().sqrt()
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


def test_the_rate_moves_from_first_to_final_in_equal_ratios(linear):
    result = script.visualize_classes(
        linear, [1], "plain", seeds(1), size=SIZE, steps=3, rate=0.04, final_rate=0.01, l2=0
    )
    row = linear.weights[1].view(3, SIZE, SIZE)
    expected = start_of(1) + (0.04 + 0.02 + 0.01) * row / row.square().mean().sqrt()
    torch.testing.assert_close(result[0], expected, rtol=0, atol=1e-6)


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
    """Before each step and after the last."""
    observed = [(state.step, len(state.scores), linear.calls) for state in ascend(linear, [0, 1], method, steps=steps)]
    assert observed == [(step, step, step) for step in range(steps + 1)]


def test_the_first_score_observed_is_that_of_the_start(linear):
    *_, state = ascend(linear, [3], "plain", steps=2)
    (first,), (second,) = state.scores
    assert first == pytest.approx((linear.weights[3] @ start_of(3).flatten()).item(), rel=1e-4)
    assert second > first


@pytest.mark.parametrize("method", script.METHODS)
@pytest.mark.parametrize("steps_done", [1, 4, 7])
def test_an_ascent_resumed_from_its_saved_state_ends_in_the_same_image(toy, method, steps_done):
    """From the bytes of the state, with generators that have drawn something else since."""
    settings = dataclasses.replace(script.METHODS[method], steps=8)
    *_, undisturbed = script.ascend(toy, [0, 2], settings, seeds(0, 2), 64)
    file = io.BytesIO()
    for state in script.ascend(toy, [0, 2], settings, seeds(0, 2), 64):
        if state.step == steps_done:
            torch.save(vars(state), file)
            break
    file.seek(0)
    saved = ascent.State(**torch.load(file, weights_only=True))
    *_, resumed = script.ascend(toy, [0, 2], settings, seeds(5, 6), 64, saved)
    assert torch.equal(resumed.images, undisturbed.images) and resumed.scores == undisturbed.scores
    assert (resumed.step, resumed.starts) == (8, [1, 1])
    same = [torch.equal(a, b) for a, b in zip(resumed.generators, undisturbed.generators, strict=True)]
    assert all(same)


@pytest.mark.parametrize("method", script.METHODS)
def test_a_class_depends_neither_on_its_company_nor_on_the_order(toy, method):
    def images_of(*classes: int) -> torch.Tensor:
        return script.visualize_classes(toy, classes, method, seeds(*classes), size=SIZE, steps=12)

    alone, together, reversed_ = images_of(2), images_of(0, 2, 3), images_of(3, 2, 0)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(together, reversed_.flip(0), rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01  # and they are not all the same picture


def test_another_seed_is_another_picture_and_the_same_seed_the_same(toy):
    first, again, other = (
        script.visualize_classes(toy, [1], "gaussian", seeds(seed), size=SIZE, steps=6) for seed in (0, 0, 5)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("method", script.METHODS)
def test_values_stay_in_0_1_and_nothing_hangs_on_the_result(toy, method):
    result = script.visualize_classes(toy, [0, 1, 2], method, size=SIZE, steps=30, rate=0.5, final_rate=0.5)
    assert result.shape == (3, 3, SIZE, SIZE) and result.dtype == torch.float32
    assert result.min() == 0 and result.max() == 1  # steps this large reach both ends, and go no farther
    assert not result.requires_grad and result.grad is None


@pytest.mark.parametrize("method", script.METHODS)
def test_the_model_stays_as_it_was(toy, method):
    before = state_of(toy)
    script.visualize_classes(toy, [0, 1], method, size=SIZE, steps=3)
    assert_same_state(before, state_of(toy))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_model_stays_as_it_was_after_an_error_inside_it(toy, where):
    model = nn.Sequential(toy, Raises(where)).train()
    before = state_of(model)
    with pytest.raises(RuntimeError, match=f"broken {where}"):
        script.visualize_classes(model, [0], "plain", size=SIZE, steps=3)
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("method", script.METHODS)
def test_an_error_in_the_observer_is_let_through(toy, method):
    before = state_of(toy)
    with pytest.raises(KeyError, match="mine"):
        for state in ascend(toy, [0], method):
            if state.step == 2:
                raise KeyError("mine")
    assert_same_state(before, state_of(toy))


class Blurred(nn.Module):
    """One logit an image, for class 1, that wants one bright pixel."""

    def forward(self, images):
        return images[:, :1, 4, 4]


def test_the_kernel_is_applied_every_k_steps_and_not_in_the_last():
    """The score is one pixel's value: only a blur moves any other pixel."""

    def spread(steps: int, every: int) -> torch.Tensor:
        settings = dict(l2=0, rate=1.0, final_rate=1.0, blur_every=every, blur_px=1.0, final_blur_px=1.0)
        settings |= dict(contrast=0, precondition=False, **UNMOVED)
        result = script.visualize_classes(Blurred(), [1], "gaussian", seeds(0), size=SIZE, steps=steps, **settings)
        return (result[0] - start_of(0)).abs().flatten()

    assert (spread(steps=2, every=2) > 1e-6).sum() == 1  # the second step is the last
    assert (spread(steps=3, every=4) > 1e-6).sum() == 1
    assert (spread(steps=3, every=2) > 1e-6).sum() > 100
    assert spread(steps=3, every=1).sum() > spread(steps=3, every=2).sum()


def test_the_kernel_narrows_from_first_to_final(linear, monkeypatch):
    used = []
    monkeypatch.setattr(script, "gaussian_blur", lambda images, sigma: used.append(sigma) or images)
    script.visualize_classes(linear, [0], "gaussian", size=SIZE, steps=5, blur_every=2, blur_px=4.0, final_blur_px=1.0)
    assert used == pytest.approx([4 * 0.25**0.25, 4 * 0.25**0.75])  # in steps 1 and 3 of 0 to 4


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
    *_, state = ascend(Blurred(), [1], method, **settings, noise=0.5, augment_until=0.9)
    torch.testing.assert_close(state.images[0], start_of(1))
    noise = torch.tensor(state.scores)[:, 0] - start_of(1)[0, 4, 4]
    assert noise[180:].abs().max() < 1e-6 < noise[:179].abs().min()  # step 180 is 0.905 of the way
    assert noise[:179].std().item() == pytest.approx(0.5 / 3**0.5, abs=0.05)  # of spreads from 0 to 0.5


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_blur_is_the_direct_convolution_in_two_dimensions(sigma):
    images = torch.rand(2, 3, 24, 19, generator=torch.Generator().manual_seed(0)).double()
    radius = math.ceil(3 * sigma)
    offsets = range(-radius, radius + 1)
    weights = {(y, x): math.exp(-(y * y + x * x) / (2 * sigma**2)) for y in offsets for x in offsets}
    expected = sum(w * images.roll(shift, (2, 3)) for shift, w in weights.items()) / sum(weights.values())
    torch.testing.assert_close(script.gaussian_blur(images, sigma), expected)


@pytest.mark.parametrize("size", [3, 8, 40])
def test_blur_keeps_constants_and_the_mean(size):
    """Also where the kernel is wider than the image."""
    constant = torch.tensor([0.1, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, size, size)
    torch.testing.assert_close(script.gaussian_blur(constant, 3.0), constant, rtol=0, atol=1e-6)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    blurred = script.gaussian_blur(images, 3.0)
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)))
    assert blurred.std() < 0.6 * images.std()
    assert torch.equal(script.gaussian_blur(images, 0.0), images)


def test_a_zero_gradient_is_an_error_that_names_the_class():
    weights = torch.ones(3, 3 * SIZE * SIZE)
    weights[1] = 0
    with pytest.raises(common.UserError, match="gradient of class 1 is zero in step 0"):
        script.visualize_classes(Linear(weights), [0, 1, 2], "plain", size=SIZE)


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
    counts = []
    for state in ascend(Dimmed({3, 4}), [0, 1], method, steps=8, **settings):
        counts.append(list(state.zero_gradient_steps))
    assert counts == [[0, 0]] * 3 + [[1, 1]] + [[2, 2]] * 5 and state.starts == [1, 1]
    *_, undisturbed = ascend(Dimmed(set()), [0, 1], method, steps=6, **settings)
    torch.testing.assert_close(state.images, undisturbed.images)  # as if the two steps had not been


def test_a_class_without_gradient_in_half_of_the_steps_is_an_error():
    with pytest.raises(common.UserError, match="gradient of class 0 is zero in step 7"):
        script.visualize_classes(Dimmed({2, 3, 5, 7, 8}), [0], "plain", size=SIZE, steps=8)


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
        (dict(classes=[0], method="cubist", size=SIZE), "no method is named 'cubist'"),
        (dict(classes=[0, 4], method="plain", size=SIZE), "class ids must be 0 to 3"),
        (dict(classes=[0, 1], method="plain", size=SIZE, generator=seeds(0)), "1 generators for 2 classes"),
    ],
)
def test_what_cannot_be_asked_for(linear, arguments, message):
    with pytest.raises(common.UserError, match=message):
        script.visualize_classes(linear, **arguments)


def test_the_size_is_the_models_own_where_it_has_one(linear):
    with pytest.raises(common.UserError, match="no input_size: give size"):
        script.visualize_classes(linear, [0], "plain", steps=1)
    linear.input_size = SIZE
    assert script.visualize_classes(linear, [0], "plain", steps=1).shape == (1, 3, SIZE, SIZE)


def test_a_picture_is_measured_as_it_was_saved(linear):
    """8 bits, no pixel resampled; rank 1 is the likeliest class."""
    linear.input_size = SIZE
    pixels = torch.randint(0, 256, (SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0)).byte()
    logits = linear(pixels.permute(2, 0, 1)[None] / 255)[0].double()
    for c in range(4):
        result = archetypes.measure(linear, Image.fromarray(pixels.numpy()), c)
        assert result["logit"] == pytest.approx(logits[c].item())
        assert result["probability"] == pytest.approx((logits[c].exp() / logits.exp().sum()).item())
        assert result["rank"] == 1 + logits.argsort(descending=True).tolist().index(c)


def test_the_image_grows_where_the_network_takes_other_sizes(toy, linear):
    settings = script.METHODS["gaussian"]
    assert script.growing_sides(toy, settings, 224) == [128, 176, 224] and script.GROW_AT == (0.5, 0.75)
    assert script.growing_sides(toy, script.METHODS["plain"], 224) == [224, 224, 224]
    assert script.growing_sides(linear, settings, 224) == [224, 224, 224]  # takes one size only
    assert script.growing_sides(toy, settings, 8) == [8, 8, 8]


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
    summary = report.summarise(rows, reference)
    a, b = summary["judges"]["a"], summary["judges"]["b"]
    assert (summary["classes"], summary["top1"], summary["top5"]) == (4, 0.75, 1)
    assert (a["top1"], a["top5"], b["top1"], b["top5"]) == (0.5, 0.75, 0, 0.5)
    assert a["median_rank"] == 3 and b["median_rank"] == 5.5
    assert a["mean_probability"] == pytest.approx((1 + 1 / 5 + 1 / 6 + 1) / 4)
    assert summary["colours"]["distance_from_photos"] == pytest.approx(math.sqrt(0.3**2 / 6))


def test_a_line_of_the_tables_has_the_ranks_by_all_judges_and_their_geometric_mean():
    others = dict.fromkeys(report.COLUMNS) | {"settings": {"steps": 2}}
    rows = [
        others | row_of_ranks(1, a=4, b=9),
        others | row_of_ranks(1, a=100, b=1),
        others | row_of_ranks(1, a=1, b=1),
    ]
    lines = [report.table_line(row, photo={}) for row in rows]
    assert [line["mean_rank"] for line in lines] == [6, 10, 1]
    assert (lines[1]["rank_by_a"], lines[1]["rank_by_b"]) == (100, 1)
    assert "mean_rank" not in report.table_line(others | row_of_ranks(1), photo={})


def test_a_judge_sees_the_whole_picture_at_its_own_size(linear):
    pixels = torch.randint(0, 256, (2 * SIZE, 2 * SIZE, 3), generator=seeds(0)[0]).byte()
    linear.input_size = SIZE
    picture = Image.fromarray(pixels.numpy())
    small = torch.from_numpy(np.array(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    logits = linear(small.permute(2, 0, 1)[None] / 255)[0]
    assert archetypes.measure(linear, picture, 1)["logit"] == pytest.approx(logits[1].item())


def test_the_default_judge_is_not_the_network_explained():
    lite0, lite2 = common.load_model(), common.load_model("efficientnet_lite2")
    assert list(archetypes.load_judges(None, lite0, "cpu")) == ["efficientnet_lite2"]
    assert list(archetypes.load_judges(None, lite2, "cpu")) == ["efficientnet_lite0"]
    assert archetypes.load_judges(["none"], lite0, "cpu") == {}
    with pytest.raises(common.UserError, match="is the network that is explained"):
        archetypes.load_judges(["efficientnet_lite0"], lite0, "cpu")


# ------------------------------------------------------------------------------------------------
# The script

TINY = ("--classes", "tarantula", "1", "--steps", "2", "--device", "cpu", "--judge", "timm/test_efficientnet=random")


def outputs(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_command_line(tmp_path):
    """Without a dataset; a second run writes the same bytes."""
    runs = []
    for _ in range(2):
        done = run_script("2c_class_visualization", *TINY, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "output" / "2c_class_visualization"
        assert done.stdout.splitlines()[-2:] == ["output/2c_class_visualization/metrics.json", "output/report.html"]
        files = outputs(folder)
        metrics = json.loads(files.pop("metrics.json"))
        runs.append(files)
        for file in folder.rglob("*.png"):
            file.unlink()  # so that the second run has to write them again
    assert runs[0] == runs[1]
    pictures = {f"archetypes/{c}_{m}.png" for c in ("76_tarantula", "1_goldfish") for m in script.METHODS}
    tables = {"archetypes.csv", "recognised.csv", "least_recognised.csv"}
    assert set(files) == pictures | tables | {
        "archetypes.png",
        "class_images.png",
        "scores.png",
        "rows.jsonl",
        "run.json",
    }
    for name in pictures:
        assert Image.open(io.BytesIO(files[name])).size == (224, 224)
    rows = [json.loads(line) for line in files["rows.jsonl"].decode().splitlines()]
    assert [(row["class"], row["method"]) for row in rows] == [(c, m) for c in (76, 1) for m in script.METHODS]
    for row in rows:
        assert row["settings"]["steps"] == 2
        assert 0 < row["probability"] < 1 and 1 <= row["rank"] <= 1000 and math.isfinite(row["logit"])
        assert [step for step, _ in row["scores"]] == [0, 2] and row["scores"][-1][1] == row["logit"]
        assert 1 <= row["judges"]["timm/test_efficientnet"]["rank"] <= 1000
    lines = {name: list(csv.DictReader(files[name].decode().splitlines())) for name in tables}
    assert [int(line["class"]) for line in lines["archetypes.csv"]] == [76, 76, 76, 1, 1, 1]
    assert {line["photo"] for line in lines["archetypes.csv"]} == {""}
    worst = [float(line["mean_rank"]) for line in lines["least_recognised.csv"]]
    assert len(worst) == 6 and worst == sorted(worst, reverse=True)
    results = metrics["results"]
    assert results["chance_probability"] == 0.001 and results["plain"]["classes"] == 2
    mean = sum(row["probability"] for row in rows if row["method"] == "gaussian") / 2
    assert results["gaussian"]["mean_probability"] == pytest.approx(mean)
    assert metrics["images"]["used"] == 0 and results["photos"] is None  # no dataset, no photo
    ranks = [row["judges"]["timm/test_efficientnet"]["rank"] for row in rows if row["method"] == "natural"]
    assert results["natural"]["judges"]["timm/test_efficientnet"]["top5"] == sum(rank <= 5 for rank in ranks) / 2


def test_without_a_judge_there_is_no_table_of_what_judges_miss(tmp_path, monkeypatch):
    """Where an empty table ended the run with a traceback, after all the work."""
    options = ("--classes", "1", "--steps", "2", "--weights", "random", "--methods", "plain", "--judge", "none")
    run_main("2c_class_visualization", *options, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "output" / "2c_class_visualization"
    assert json.loads((folder / "metrics.json").read_text())["results"]["plain"]["judges"] == {}
    assert not (folder / "least_recognised.csv").exists() and (folder / "archetypes.csv").exists()


def test_options_reach_all_methods(tmp_path, monkeypatch):
    used = {}

    def pretend(model, classes, settings, generators, size, state):
        used[next(name for name in script.METHODS if name not in used)] = settings
        state = ascent.State.start(generators, size)
        for _ in range(settings.steps):
            state.scores.append([1.0] * len(classes))
            state.update(torch.rand(len(classes), 3, size, size), generators)
        yield state

    monkeypatch.setattr(script, "ascend", pretend)
    options = ("--blur-every", "3", "--blur-px", "1.5", "--l2", "0.25", "--noise", "0.125", "--first-size", "0.5")
    options += ("--statistics", "5")
    run_main(
        "2c_class_visualization",
        *(*TINY, "--weights", "random", *options),
        cwd=tmp_path,
        monkeypatch=monkeypatch,
    )
    plain, gaussian, natural = (used[method] for method in script.METHODS)
    assert (plain.blur_every, plain.l2, plain.steps) == (3, 0.25, 2)
    assert (gaussian.blur_every, gaussian.blur_px, gaussian.l2) == (3, 1.5, 0.25)
    assert gaussian.zoom_to == script.METHODS["gaussian"].zoom_to
    assert {settings.statistics for settings in used.values()} == {5}
    assert {settings.noise for settings in used.values()} == {0.125}
    assert (natural.blur_every, natural.l2) == (3, 0.25)
    assert {settings.first_size for settings in used.values()} == {0.5}
    results = json.loads((tmp_path / "output/2c_class_visualization/metrics.json").read_text())["results"]
    assert {results[method]["grey_distance_limit"] for method in script.METHODS} == {0.5}  # it has batch norms
    lines = (tmp_path / "output/2c_class_visualization/rows.jsonl").read_text().splitlines()
    own = [row["probability"] for row in map(json.loads, lines) if row["method"] == "plain"]
    assert results["plain"]["least_probability"] == min(own) < max(own)


@pytest.mark.parametrize("direction", [1, -1])
def test_the_archetypes_are_those_of_the_function(tmp_path, monkeypatch, direction):
    """To the bit; and who changes the gradient (here: to descent) changes both."""
    logit_gradient = script.logit_gradient

    def changed(*arguments):
        gradient, scores = logit_gradient(*arguments)
        return direction * gradient, scores

    monkeypatch.setattr(script, "logit_gradient", changed)
    options = ("--model", "timm/test_resnet", "--weights", "random", "--seed", "3", "--first-size", "0.5")
    run_main("2c_class_visualization", *TINY, *options, cwd=tmp_path, monkeypatch=monkeypatch)
    model = common.load_model("timm/test_resnet", "random")
    names = ("76_tarantula", "1_goldfish")
    for method in script.METHODS:
        generators = common.seeded_generators(3, [76, 1])
        images = script.visualize_classes(model, [76, 1], method, generators, steps=2, first_size=0.5)
        for name, image in zip(names, images, strict=True):
            file = tmp_path / f"output/2c_class_visualization/archetypes/{name}_{method}.png"
            assert np.array_equal(np.asarray(Image.open(file)), common.to_pixels(image))
    lines = (tmp_path / "output/2c_class_visualization/rows.jsonl").read_text().splitlines()
    ((_, first), (_, last)) = json.loads(lines[0])["scores"]
    assert (last > first) == (direction > 0)


def test_the_real_photo_stands_beside_the_archetype(tmp_path, monkeypatch):
    broken = tmp_path / "dataset" / "DL_data_p" / "76" / "a.jpg"
    save_photo(tmp_path / "dataset" / "DL_data_p" / "76" / "b.jpg")
    broken.write_bytes(b"no image")
    run_main(
        "2c_class_visualization",
        *(*TINY, "--methods", "plain"),
        cwd=tmp_path,
        monkeypatch=monkeypatch,
    )
    folder = tmp_path / "output" / "2c_class_visualization"
    lines = list(csv.DictReader((folder / "archetypes.csv").read_text().splitlines()))
    assert [line["photo"] for line in lines] == ["DL_data_p/76/b.jpg", ""]
    assert 0 < float(lines[0]["photo_probability"]) < 1 and lines[1]["photo_probability"] == ""
    (skipped,) = json.loads((folder / "metrics.json").read_text())["images"]["skipped"]
    assert skipped["path"] == "DL_data_p/76/a.jpg" and "is not an image" in skipped["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "tarantulla"), "did you mean tarantula"),
        (("--classes", "1000"), "ids go from 0 to 999"),
        (("--methods", "cubist"), "invalid choice: 'cubist'"),
        (("--rate", "-1"), "--rate must be a number of at least 0, not '-1'"),
        (("--blur-every", "0.5"), "--blur-every.* whole number .*0"),
        (("--steps", "0"), "--steps.* whole number .*1"),
        (("--first-size", "1.5"), "--first-size must be a number above 0 and at most 1, not '1.5'"),
        (("--zoom-to", "0"), "--zoom-to must be a number above 0, not '0'"),
        (("--noise", "nan"), "--noise must be a number of at least 0, not 'nan'"),
        (("--l2", "inf"), "--l2 must be a number of at least 0, not 'inf'"),
        (("--judge", "efficientnet_lite9"), "no model is named 'efficientnet_lite9'"),
        (("--judge", "efficientnet_lite0=absent.pth"), "absent.pth"),
        (("--judge", "timm/test_vit=random", "--judge", "timm/test_vit=random"), "given twice"),
        (("--judge", "timm/swin_tiny_patch4_window7_224.ms_in22k=random"), "has 21841 classes"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, arguments, message):
    with pytest.raises(common.UserError, match=message):
        run_main("2c_class_visualization", "--weights", "random", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    assert not (tmp_path / "output").exists()


def test_an_unknown_class_is_one_line_and_exit_status_1(tmp_path):
    done = run_script("2c_class_visualization", "--weights", "random", "--classes", "tarantulla", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no class is named 'tarantulla'") and len(done.stderr.splitlines()) == 1
