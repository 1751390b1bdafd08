"""What keeps gradient ascent near pictures that others would recognise.

Three ideas of other people: steps mostly in coarse waves, an image that is seen each time from another side (both
Olah et al. 2017, Feature Visualization), and the mean and the spread in every channel of the network that real photos
have there (Yin et al. 2020, Dreaming to Distill).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common

# ------------------------------------------------------------------------------------------------
# Steps as photos differ

# Square root of the colours' covariance on ImageNet: what three independent channels become (a constant of Lucid's,
# github.com/tensorflow/lucid, optvis/param/color.py, scaled so that its longest column is 1)
COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / 0.4619


def amplitudes(height: int, width: int) -> Tensor:
    """The amplitude that photos have at the frequencies of `rfft2`, but for a factor: (height, width // 2 + 1).

    In inverse proportion to the frequency (Field 1987, Relations between the statistics of natural images);
    the mean, which has no frequency, is left out with 0.
    """
    down, right = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]  # waves per pixel
    frequency = torch.sqrt(down**2 + right**2)
    return torch.where(frequency > 0, 1 / frequency, 0)


def as_photos_differ(gradient: Tensor) -> Tensor:
    """A gradient by pixels (N, 3, H, W), led to where photos differ: to brighter or darker, in coarse waves.

    Colours and waves count as much as their amplitudes in photos: the root of the colours' covariance, and one over
    the frequency. So equal steps change the image as natural images differ (Olah et al. 2017, Feature Visualization,
    "Preconditioning and Parameterization"). Each colour keeps its mean, which would otherwise go farther than all
    else (SqueezeNet's archetypes turned dark), and each image's gradient its length.
    """
    height, width = gradient.shape[2:]
    variances, axes = torch.linalg.eigh(COLOURS @ COLOURS.T)
    root = (axes * variances.sqrt() @ axes.T).to(gradient)
    waves = torch.fft.rfft2(torch.einsum("dc,nchw->ndhw", root, gradient)) * amplitudes(height, width).to(gradient)
    led = torch.fft.irfft2(waves, s=(height, width))
    before, after = (torch.linalg.vector_norm(step, dim=(1, 2, 3), keepdim=True) for step in (gradient, led))
    return led * torch.where(after > 0, before / after, 0)


# ------------------------------------------------------------------------------------------------
# The image from many sides


def random_view(
    generators: Sequence[torch.Generator],
    side: int,
    zoom_from: float,
    zoom_to: float,
    turn_degrees: float,
) -> Callable[[Tensor], Tensor]:
    """What shows images (N, 3, side, side) zoomed, moved, turned and mirrored, each by its own generator.

    A view has from `zoom_from` to `zoom_to` of the image's side, evenly in the logarithm: below 1 a part of
    it, above 1 all of it with mirrored surroundings.
    """
    chance = torch.stack([torch.rand(5, generator=g, device=g.device) for g in generators])
    zoom = zoom_from * (zoom_to / zoom_from) ** chance[:, 0]
    move = (2 * chance[:, 1:3] - 1) * (1 - zoom).abs()[:, None]  # the part stays in the image, the image in the view
    turn = (2 * chance[:, 3] - 1) * math.radians(turn_degrees)
    mirror = torch.where(chance[:, 4] < 0.5, -1.0, 1.0)
    cos, sin = zoom * turn.cos(), zoom * turn.sin()
    rows = torch.stack([cos * mirror, -sin, move[:, 0], sin * mirror, cos, move[:, 1]], 1)  # (N, 6)
    grid = F.affine_grid(rows.view(-1, 2, 3), [len(rows), 3, side, side], align_corners=False)

    def view(images: Tensor) -> Tensor:
        return F.grid_sample(images, grid.to(images.device), padding_mode="reflection", align_corners=False)

    return view


def random_noise(generators: Sequence[torch.Generator], side: int, noise: float) -> Tensor:
    """(N, 3, side, side), each by its own generator, with a standard deviation of 0 to `noise`."""
    spread = torch.stack([torch.rand(1, generator=g, device=g.device) for g in generators])[:, :, None, None]
    return noise * spread * torch.stack([torch.randn(3, side, side, generator=g, device=g.device) for g in generators])


# ------------------------------------------------------------------------------------------------
# The statistics of real photos

# of ImageNet's, red, green and blue, as torchvision's models take them
PHOTOS = {"mean": [0.485, 0.456, 0.406], "spread": [0.229, 0.224, 0.225]}


class _Natural(torch.autograd.Function):
    """The values unchanged; on the way back their gradient less that of `weight` times their distance from normal.

    The distance of an image's channel with mean m and variance v from those of the photos, M and V: the
    square of (m - M) / sqrt(V), and a quarter of the square of log(v / V); over channels the mean.
    Its gradient is known in closed form, so that no graph and no copies are needed for it.
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
        variance = torch.linalg.vector_norm(values, dim=(2, 3)).square() / pixels - own.square()
        ratio = variance / std.square()
        # below a 10,000th the logarithm is held: a channel that is dead in this image is not pulled at all
        by_variance = torch.where(ratio > 1e-4, 0.5 * ratio.clamp(min=1e-4).log() / (ratio * std.square()), 0.0)
        slope = -2 * ctx.weight / (channels * pixels) * by_variance
        level = -2 * ctx.weight / (channels * pixels) * (own - mean) / std.square() - slope * own
        return torch.addcmul(gradient + level[:, :, None, None], values, slope[:, :, None, None]), None, None, None


def has_batch_norm(model: nn.Module) -> bool:
    """Whether it has batch norms that know their statistics, or had them before they were folded."""
    return bool(_batch_norms(model))


def normal_statistics(model: nn.Module) -> list[tuple[Callable, Tensor, Tensor]]:
    """Where a network's values are known to have what mean and standard deviation on its training data.

    From batch norms, also those that `classifier.prepare` folded into their convolutions: there only the first
    layer's and those of convolutions that do not widen, which say as much and cost a tenth. A network without
    batch norm (VGG, AlexNet, SqueezeNet) has this only of its input: the colours of photos.
    """
    layers = _batch_norms(model)
    if not layers:
        device = common.device_of(model)
        layers = [(model.register_forward_pre_hook, *(torch.tensor(v, device=device) for v in PHOTOS.values()))]
    return [(register, mean, std.clamp(min=1e-2)) for register, mean, std in layers]


def _batch_norms(model: nn.Module) -> list[tuple[Callable, Tensor, Tensor]]:
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


@contextmanager
def natural_statistics(layers: Sequence[tuple[Callable, Tensor, Tensor]], weight: float) -> Iterator[None]:
    """While it is held, each image's gradient also leads its channels to the mean and the spread that photos have.

    `layers` are those of `normal_statistics`; the gradient is that of the score less `weight` times
    the mean distance over them. Yin et al. 2020, Dreaming to Distill, section 3.1, equation 4, with each
    image's own statistics in place of its batch's, so that no archetype depends on its company, and with a
    scale, so that all channels count alike.
    """

    def lead(mean: Tensor, std: Tensor) -> Callable:
        def hook(_: nn.Module, values: Any, output: Tensor | None = None) -> Any:
            if output is None:  # before a batch norm
                return (_Natural.apply(values[0], mean, std, weight / len(layers)), *values[1:])
            return _Natural.apply(output, mean, std, weight / len(layers))

        return hook

    used = layers if weight else ()
    with _hooks([(register, lead(mean, std)) for register, mean, std in used]):
        yield


@contextmanager
def _hooks(wanted: Sequence[tuple[Callable, Callable]]) -> Iterator[None]:
    handles = []
    try:
        for register, hook in wanted:
            handles.append(register(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
