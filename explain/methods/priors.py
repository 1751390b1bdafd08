"""Priors that keep the images of gradient ascent near photos, so that other networks and people recognise them.

Steps of mostly low frequency and random augmentation (both Olah et al. 2017, Feature Visualization), the channel
statistics of photos in all layers of the network (Yin et al. 2020, Dreaming to Distill), and a limit to the contrast.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain.networks.running import device_of

# ------------------------------------------------------------------------------------------------
# The spectrum of photos

# Square root of the covariance of colours on ImageNet: maps three independent channels to red, green and blue (from
# github.com/tensorflow/lucid, optvis/param/color.py, scaled so that its longest column is 1)
COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / 0.4619


def precondition(gradient: Tensor) -> Tensor:
    """Return a pixel gradient (N, 3, H, W) whose frequencies and colours are weighted by their amplitudes in photos.

    Equal steps then change an image as photos differ (Olah et al. 2017, Feature Visualization, "Preconditioning and
    Parameterization"). The mean of each colour does not change: otherwise it would go farther than all else, and
    SqueezeNet's archetypes turn dark. Each image's gradient keeps its norm.
    """
    height, width = gradient.shape[2:]
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]  # cycles per pixel
    frequency = torch.sqrt(vertical**2 + horizontal**2)
    # in photos; up to a factor (Field 1987, Relations between the statistics of natural images)
    amplitudes = torch.where(frequency > 0, 1 / frequency, 0).to(gradient)
    variances, axes = torch.linalg.eigh(COLOURS @ COLOURS.T)
    root = (axes * variances.sqrt() @ axes.T).to(gradient)
    coloured = (root @ gradient.flatten(2)).view_as(gradient)  # a third of einsum's time
    spectrum = torch.fft.rfft2(coloured) * amplitudes
    step = torch.fft.irfft2(spectrum, s=(height, width))
    before, after = (torch.linalg.vector_norm(t, dim=(1, 2, 3), keepdim=True) for t in (gradient, step))
    return step * torch.where(after > 0, before / after, 0)


# ------------------------------------------------------------------------------------------------
# Random augmentation


def random_affine(
    generators: Sequence[torch.Generator], side: int, zoom_from: float, zoom_to: float, rotation_degrees: float
) -> Callable[[Tensor], Tensor]:
    """Return a function that crops or shrinks, shifts, rotates and flips images (N, 3, side, side) at random.

    Each image has its own generator. The visible part has `zoom_from` to `zoom_to` times the image's side, uniform in
    the logarithm: below 1 it is a crop, above 1 the image is surrounded by its reflection.
    """
    chance = torch.stack([torch.rand(5, generator=g, device=g.device) for g in generators])
    zoom = zoom_from * (zoom_to / zoom_from) ** chance[:, 0]
    shift = (2 * chance[:, 1:3] - 1) * (1 - zoom).abs()[:, None]  # a crop stays inside the image, a shrunk image whole
    angle = (2 * chance[:, 3] - 1) * math.radians(rotation_degrees)
    flip = torch.where(chance[:, 4] < 0.5, -1.0, 1.0)
    cos, sin, flip, *shift = (t[:, None, None] for t in (zoom * angle.cos(), zoom * angle.sin(), flip, *shift.T))
    x = (2 * torch.arange(side, device=chance.device) + 1) / side - 1  # of the pixels' centres, from -1 to 1
    y = x[:, None]
    # as F.affine_grid has it, in a fifth of the time
    grid = torch.stack([cos * flip * x + (shift[0] - sin * y), sin * flip * x + (shift[1] + cos * y)], -1)
    return lambda images: F.grid_sample(images, grid.to(images.device), padding_mode="reflection", align_corners=False)


def random_noise(generators: Sequence[torch.Generator], side: int, noise: float) -> Tensor:
    """Return noise (N, 3, side, side), each image's by its own generator, of a standard deviation from 0 to `noise`."""
    samples = torch.empty(len(generators), 3, side, side, device=generators[0].device)
    for sample, g in zip(samples, generators, strict=True):
        spread = noise * torch.rand(1, generator=g, device=g.device)
        sample.normal_(generator=g).mul_(spread)
    return samples


# ------------------------------------------------------------------------------------------------
# The colours and channel statistics of photos

GREY = 0.5  # zero after the normalisation of each network here, give or take 0.1
NO_LIMIT = 0.5  # root mean square distance from grey: black and white are no farther
# mean and standard deviation of red, green and blue on ImageNet, as in torchvision's normalisation
PHOTO_COLOURS = {"mean": [0.485, 0.456, 0.406], "spread": [0.229, 0.224, 0.225]}


def near_grey(images: Tensor, limit: float) -> Tensor:
    """Return images (N, 3, H, W), with those farther from grey than `limit` (root mean square) moved back to it.

    The projection onto a ball: the objective's L2 term as a constraint, whose unit is the same for all networks.
    """
    if limit >= NO_LIMIT:
        return images
    distance = (images - GREY).square().mean((1, 2, 3), keepdim=True).sqrt()
    return torch.where(distance > limit, GREY + (images - GREY) * (limit / distance), images)


def with_contrast(images: Tensor, min_std: float) -> Tensor:
    """Return images (N, C, H, W), with those of a smaller standard deviation than `min_std` stretched to it."""
    mean = images.mean((1, 2, 3), keepdim=True)
    std = (images - mean).square().mean((1, 2, 3), keepdim=True).sqrt()  # `std` takes eight times as long
    return mean + (images - mean) * torch.where(std > 0, min_std / std, 1).clamp(min=1)


def grey_distance_limit(model: nn.Module, max_grey_distance: float) -> float:
    """Return the limit for `near_grey`: `max_grey_distance` for a network without batch norm, else none.

    The archetypes of efficientnet_lite0 end at 0.16 to 0.26 without a limit (photos: 0.23). Those of SqueezeNet, whose
    steps agree from one augmentation to the next, reach 0.4 and are cut off at white (docs/archetypes.md).
    """
    return NO_LIMIT if _batch_norms(model) else max_grey_distance


class _StatisticsPrior(torch.autograd.Function):
    """The identity, whose backward pass subtracts `weight` times the gradient of the distance to given statistics.

    For a channel of mean m and variance v, and given M and V, the distance is the square of (m - M) / sqrt(V) plus a
    quarter of the square of log(v / V), averaged over channels. Its gradient has a closed form, so that it needs
    neither a graph nor copies.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, mean: Tensor, std: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(values, mean, std)
        ctx.weight = weight
        return values.clone()  # the next layer may change its input in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values, mean, std = ctx.saved_tensors  # (N, C, H, W), (C,), (C,)
        channels, pixels = values.shape[1], values.shape[2] * values.shape[3]
        own = values.mean((2, 3))  # (N, C)
        variance = values.square().mean((2, 3)) - own.square()  # faster than `var` or a norm in channels-last memory
        ratio = variance / std.square()
        # a ratio below 1/10,000 is clamped: a channel that is constant in this image gets no gradient
        by_variance = torch.where(ratio > 1e-4, 0.5 * ratio.clamp(min=1e-4).log() / (ratio * std.square()), 0.0)
        slope = -2 * ctx.weight / (channels * pixels) * by_variance
        level = -2 * ctx.weight / (channels * pixels) * (own - mean) / std.square() - slope * own
        result = (gradient + level[:, :, None, None]).addcmul_(values, slope[:, :, None, None])
        return result, None, None, None


def channel_statistics(model: nn.Module) -> list[tuple[Callable, Tensor, Tensor]]:
    """Return a network's layers whose statistics on photos are known, as (function that registers a hook, mean, std).

    They come from batch norms, including those that `networks.prepare` folded into convolutions; of these only the
    first layer and the convolutions that do not widen, which say as much and cost a tenth. A network without batch
    norm (VGG, AlexNet, SqueezeNet) has one entry, its input: the colours of photos.
    """
    colours = (torch.tensor(values, device=device_of(model)) for values in PHOTO_COLOURS.values())
    layers = _batch_norms(model) or [(model.register_forward_pre_hook, *colours)]
    return [(register, mean, std.clamp(min=1e-2)) for register, mean, std in layers]


def _batch_norms(model: nn.Module) -> list[tuple[Callable, Tensor, Tensor]]:
    """Return the entries of `channel_statistics` from batch norms with running statistics, folded or not."""
    layers: list[tuple[Callable, Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            std = torch.sqrt(module.running_var + module.eps)
            layers.append((module.register_forward_pre_hook, module.running_mean, std))
        elif hasattr(module, "normal_mean") and (
            not layers or (module.groups == 1 and module.out_channels <= module.in_channels)
        ):
            layers.append((module.register_forward_hook, module.normal_mean, module.normal_std))
    return layers


@contextlib.contextmanager
def statistics_prior(layers: Sequence[tuple[Callable, Tensor, Tensor]], weight: float) -> Iterator[None]:
    """Add to each image's gradient, inside the context, that of -`weight` times its distance to the layers' statistics.

    `layers` come from `channel_statistics`; the distance is the mean over them. Yin et al. 2020, Dreaming to Distill,
    section 3.1, equation 4, with two changes: the statistics of each image replace those of its batch, so that no
    archetype depends on the others, and distances are relative, so that all channels count alike.
    """

    thread = threading.get_ident()

    def hook(mean: Tensor, std: Tensor, _: nn.Module, inputs: Any, output: Tensor | None = None) -> Tensor | None:
        if threading.get_ident() != thread:  # the network is used by another call at the same time
            return None
        values = inputs[0] if output is None else output  # a pre-hook has no output yet
        return _StatisticsPrior.apply(values, mean, std, weight / len(layers))

    with contextlib.ExitStack() as hooks:
        for register, mean, std in layers:
            hooks.enter_context(register(functools.partial(hook, mean, std)))
        yield
