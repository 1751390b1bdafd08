"""The priors of 2c, against closed forms, autograd and the network before its folding."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack

import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from explain.methods import priors
from explain.networks import inference


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 18), (7, 9)])
def test_a_preconditioned_gradient_is_the_direct_sum_of_its_waves(height, width):
    """Each wave divided by its frequency and its colours mixed, against sums of cosines and sines; of equal length.

    No colour's mean moves: that made archetypes of SqueezeNet too dark.
    """
    gradient = torch.randn(2, 3, height, width, generator=generators(0)[0]).double()
    root = torch.from_numpy(sqrtm((priors.COLOURS @ priors.COLOURS.T).double().numpy()))
    mixed = torch.einsum("dc,nchw->ndhw", root, gradient)
    y, x = torch.arange(height).double()[:, None], torch.arange(width).double()[None, :]
    expected = torch.zeros_like(mixed)
    for down in range(-(height // 2), height - height // 2):
        for right in range(-(width // 2), width - width // 2):
            wave = torch.exp(2j * math.pi * (down * y / height + right * x / width))
            amount = (mixed * wave.conj()).sum((2, 3), keepdim=True)
            if (down, right) != (0, 0):
                expected += (amount * wave).real / math.hypot(down / height, right / width)
    expected *= gradient.flatten(1).norm(dim=1).view(2, 1, 1, 1) / expected.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    result = priors.precondition(gradient)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.mean((2, 3)), torch.zeros_like(result[..., 0, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e10])
def test_a_gradient_of_any_length_keeps_it(size):
    gradient = torch.randn(1, 3, 8, 8, generator=generators(0)[0]) * size
    result = priors.precondition(gradient)
    assert result.double().norm().item() == pytest.approx(gradient.double().norm().item(), rel=1e-4)


def test_without_zoom_and_rotation_an_image_stays_or_is_flipped():
    images = torch.rand(8, 3, 16, 16, generator=generators(0)[0])
    augmented = priors.random_affine(generators(*range(8)), 16, zoom_from=1, zoom_to=1, rotation_degrees=0)(images)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(augmented, images, strict=True)]
    flipped = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(augmented, images, strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True)) and any(same) and any(flipped)


@pytest.mark.parametrize(("zoom", "outside"), [(0.25, False), (0.9, False), (1.5, True)])
def test_a_crop_stays_in_the_image_and_a_shrunk_image_stays_whole(zoom, outside):
    """A ramp from 0 to 1 keeps zoom times its range; beyond its edges it is reflected."""
    ramp = torch.linspace(0, 1, 64).expand(20, 3, 64, 64)
    augmented = priors.random_affine(generators(*range(20)), 64, zoom_from=zoom, zoom_to=zoom, rotation_degrees=0)(ramp)
    ranges = augmented[:, 0].amax((1, 2)) - augmented[:, 0].amin((1, 2))
    assert augmented.min() >= 0 and augmented.max() <= 1
    torch.testing.assert_close(ranges, torch.full((20,), min(zoom, 1.0)), rtol=0, atol=0.04)
    steps = augmented[:, 0, 32].diff().sign()
    assert ((steps.amin(1) != steps.amax(1)) == outside).float().mean() >= 0.9
    assert len({round(v, 3) for v in augmented[:, 0].amin((1, 2)).tolist()}) > 5 or outside  # moved to many places


def test_noise_has_up_to_the_standard_deviation_asked_for():
    noise = priors.random_noise(generators(*range(200)), 16, 0.5)
    assert noise.shape == (200, 3, 16, 16) and torch.equal(noise[5:6], priors.random_noise(generators(5), 16, 0.5))
    spread = noise.flatten(1).std(1)
    assert 0 < spread.min() < 0.05 and 0.45 < spread.max() < 0.53
    assert spread.mean() == pytest.approx(0.25, abs=0.03)


def test_an_augmentation_depends_on_its_own_generator_alone():
    images = torch.rand(1, 3, 16, 16, generator=generators(0)[0]).expand(3, -1, -1, -1)
    settings = dict(side=16, zoom_from=0.5, zoom_to=1.2, rotation_degrees=20)
    together = priors.random_affine(generators(4, 5, 6), **settings)(images)
    alone = priors.random_affine(generators(5), **settings)(images[:1])
    assert torch.equal(together[1], alone[0]) and not torch.allclose(together[0], together[1], atol=0.01)


def test_the_gradient_of_the_statistics_is_autograds():
    values = torch.rand(2, 5, 6, 7, generator=generators(0)[0]).double().requires_grad_()
    mean, std = torch.rand(2, 5, generator=generators(1)[0]).double() + 0.1
    (result,) = torch.autograd.grad((priors._StatisticsPrior.apply(values, mean, std, 3.0) ** 2).sum(), values)
    own, variance = values.mean((2, 3)), values.var((2, 3), correction=0)
    distance = ((own - mean) / std).square() + 0.25 * (variance / std.square()).log().square()
    (expected,) = torch.autograd.grad((values**2).sum() - 3.0 * distance.mean(1).sum(), values)
    torch.testing.assert_close(result, expected)


def test_a_channel_without_any_spread_has_a_finite_gradient():
    values = torch.zeros(1, 2, 4, 4, requires_grad=True)
    (result,) = torch.autograd.grad(
        priors._StatisticsPrior.apply(values, torch.zeros(2), torch.ones(2), 1.0).sum(), values
    )
    assert torch.equal(result, torch.ones(1, 2, 4, 4))


def convolutional(seed: int = 0) -> nn.Module:
    """Two convolutions with batch norms that have seen something, rectifiers in place after them."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )
    for norm in (model[1], model[4]):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, -1.5, 1.5)  # of both signs
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model.double().eval()


def gradient_of(model: nn.Module, images: torch.Tensor, weight: float) -> torch.Tensor:
    images = images.clone().requires_grad_()
    with priors.statistics_prior(priors.channel_statistics(model), weight):
        return torch.autograd.grad(model(images)[:, 1].sum(), images)[0]


def test_statistics_are_the_same_before_and_after_folding():
    """A batch norm's input and, folded, its convolution's output are equally far from what they should be."""
    images = torch.rand(2, 3, 12, 12, generator=generators(0)[0]).double()
    model = convolutional()
    folded = copy.deepcopy(model)
    inference.fold_batch_norms(folded, images, ExitStack())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert len(priors.channel_statistics(model)) == len(priors.channel_statistics(folded)) == 2
    assert priors.grey_distance_limit(model, 0.25) == priors.grey_distance_limit(folded, 0.25) == 0.5
    torch.testing.assert_close(gradient_of(model, images, 5.0), gradient_of(folded, images, 5.0))
    assert (gradient_of(model, images, 5.0) - gradient_of(model, images, 0.0)).abs().max() > 0.01


def test_of_folded_layers_the_first_and_those_that_do_not_widen():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),  # the first
        *(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)),  # widens
        *(nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16)),  # each channel by itself
        *(nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4)),  # narrows
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()
    inference.fold_batch_norms(model, torch.rand(1, 3, 8, 8), ExitStack())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert [len(mean) for _, mean, _ in priors.channel_statistics(model)] == [8, 4]


def test_a_network_without_batch_norm_has_the_colours_of_photos():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    assert priors.grey_distance_limit(model, 0.25) == 0.25
    images = torch.rand(2, 3, 8, 8, generator=generators(0)[0]).double()
    leaf = images.clone().requires_grad_()
    mean, spread = (torch.tensor(v).double()[:, None, None] for v in priors.PHOTO_COLOURS.values())
    values = leaf.var((2, 3), correction=0, keepdim=True)
    distance = ((leaf.mean((2, 3), keepdim=True) - mean) / spread).square() + 0.25 * (values / spread**2).log().square()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum() - 7.0 * distance.mean(1).sum(), leaf)
    torch.testing.assert_close(gradient_of(model, images, 7.0), expected, rtol=1e-5, atol=1e-7)
