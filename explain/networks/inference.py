"""The form in which a network runs fastest; docs/benchmarks.md has the gain of each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from explain.basics.errors import one_line
from explain.networks.running import predict_logits
from explain.networks.trial import answer, difference

MANY_ROWS = 256  # the fewest for which a linear layer is faster as a convolution


def prepare(model: nn.Module, images: Tensor) -> list[str]:
    """Change a network, in place, to a form with the same logits and gradients to rounding that takes less time.

    It is put into evaluation mode, its parameters are frozen, and STEPS are applied. A step is kept only if the network
    still runs and has the same logits and gradient for `images` (N, 3, H, W). Returns a note on each step left out.
    """
    model.requires_grad_(False).eval()
    expected = answer(model, images)

    def attempt(*steps: Step) -> str | None:
        """Take the steps; undo them if the network no longer works, and return the reason."""
        with ExitStack() as undo:
            try:
                for step in steps:
                    step(model, images, undo)
                problem = difference(answer(model, images), expected)
            except Exception as error:  # a network may raise anything when its form is not as written
                problem = f"{type(error).__name__}: {one_line(error)}"
            if problem is None:
                undo.pop_all()
        return problem

    if attempt(*STEPS.values()) is None:
        return []
    problems = {name: attempt(step) for name, step in STEPS.items()}
    return [f"left out of the preparation: {name} ({problem})" for name, problem in problems.items() if problem]


def fold_batch_norms(model: nn.Module, images: Tensor, undo: ExitStack) -> None:
    """Fold each batch norm whose only input is a convolution's output into the convolution."""
    names = {module: name for name, module in model.named_modules()}
    for conv, norm in _normalised_convolutions(model, images[:1]):
        both = fuse_conv_bn_eval(conv, norm)
        # the statistics of its outputs on the training data, which 2c's archetypes are to have
        if norm.affine:
            both.register_buffer("normal_mean", norm.bias.detach().clone(), persistent=False)
            both.register_buffer("normal_std", norm.weight.detach().abs(), persistent=False)
        for module, new in ((conv, both), (norm, getattr(norm, "act", nn.Identity()))):
            undo.callback(model.set_submodule, names[module], module)
            model.set_submodule(names[module], new)


def rearrange_layers(model: nn.Module, images: Tensor, undo: ExitStack) -> None:
    """Give layers the forward passes below, which compute the same by other kernels."""
    for module in model.modules():
        for plain, faster, gains in REARRANGED:
            if type(module) is plain and gains(module):
                undo.callback(setattr, module, "__class__", plain)
                module.__class__ = faster  # the same parameters and names


def use_channels_last(model: nn.Module, images: Tensor, undo: ExitStack) -> None:
    """Store the weights in channels-last memory, which convolutions pass on to their outputs."""
    undo.callback(model.to, memory_format=torch.contiguous_format)
    model.to(memory_format=torch.channels_last)


# Each changes a network (N, 3, H, W) -> logits, in place, and adds to a stack of functions that undo the change
Step = Callable[[nn.Module, Tensor, ExitStack], None]
STEPS: dict[str, Step] = {
    "batch norms folded into convolutions": fold_batch_norms,
    "layers computed by other kernels": rearrange_layers,
    "channels-last memory": use_channels_last,
}


def _normalised_convolutions(model: nn.Module, images: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Return the pairs of a convolution and the batch norm that reads its output.

    A forward pass finds them, so the modules' names and order do not matter. Convolutions whose weight is computed
    (weight norm, spectral norm, pruning) are left out, since they have no parameter to fold into.
    """
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note_output(conv: nn.Module, _: Any, output: Tensor) -> None:
        calls[conv] += 1
        output.made_by = conv

    def note_input(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if hasattr(inputs[0], "made_by"):
            pairs.append((inputs[0].made_by, norm))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and "weight" in module._parameters:
                hooks.enter_context(module.register_forward_hook(note_output))
            elif type(module) in (nn.BatchNorm2d, timm.layers.BatchNormAct2d) and module.track_running_stats:
                hooks.enter_context(module.register_forward_pre_hook(note_input))
        predict_logits(model, images)
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


class _ImageConv2d(nn.Conv2d):
    """A strided convolution of the image, by space-to-depth if its gradient is needed.

    A stride of s over 3 channels is a stride of 1 over the 3 s^2 channels of every s-th pixel. The sums are the same;
    the backward kernels, made for many channels, take half the time (Shi et al. 2016, Is the deconvolution layer the
    same as a convolutional layer?).
    """

    def forward(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return super().forward(images)
        (stride, _), (size, _), (padding, _) = self.stride, self.kernel_size, self.padding
        grown = -(-size // stride) * stride  # the kernel's side, padded with zeros to a multiple of the stride
        ends = [((n + 2 * padding - size) // stride) * stride + grown - n - padding for n in images.shape[2:]]
        images = F.pad(images, (padding, ends[1], padding, ends[0]))  # negative if the last pixels are not read
        weight = F.pad(self.weight, (0, grown - size) * 2)
        images = F.pixel_unshuffle(images, stride).contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, F.pixel_unshuffle(weight, stride), self.bias)


def _reads_image_in_strides(conv: nn.Conv2d) -> bool:
    """Return whether a convolution gains: a kernel of 3 x 3 does not."""
    square = all(len({*sides}) == 1 for sides in (conv.stride, conv.kernel_size, conv.padding))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and square and conv.in_channels == 3 and conv.stride[0] > 1 and conv.kernel_size[0] >= 5


class _SameConv2d(timm.layers.Conv2dSame):
    """A depthwise convolution with stride 2 and TensorFlow's padding, without the padded copy of its input.

    TensorFlow pads even sides with one place less before than after, which a convolution cannot do by itself. A kernel
    that begins with a row and a column of zeros needs the same padding at both ends: the same sums in half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        (height, width), padding = x.shape[2:], self.kernel_size[0] // 2
        if x.device.type != "cpu" or height % 2 != width % 2:
            return super().forward(x)
        weight = self.weight if height % 2 else F.pad(self.weight, (1, 0, 1, 0))
        return F.conv2d(x, weight, self.bias, 2, padding, groups=self.groups)


def _halves_channel_by_channel(conv: nn.Conv2d) -> bool:
    """Return whether a convolution gains: if it mixes channels, the wider kernel costs more than the copy."""
    (height, width), depthwise = conv.kernel_size, conv.groups == conv.in_channels
    return depthwise and height == width and height % 2 == 1 and conv.stride == (2, 2) and conv.dilation == (1, 1)


class _Linear(nn.Linear):
    """A linear layer of many rows, computed as a 1 x 1 convolution of as many pixels.

    oneDNN computes the same products as MKL, which uses half the vector width of an AMD processor.
    """

    def forward(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu" or rows.numel() < MANY_ROWS * self.in_features:
            return super().forward(rows)
        pixels = rows.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, C, M, 1), channels-last
        outputs = F.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return outputs.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], self.out_features)


class _ReLU6(nn.ReLU6):
    """ReLU6 in place, without the copy of its input that PyTorch keeps for the backward pass.

    The derivative is 1 where the output is between 0 and 6. Without the copies, the gradient of EfficientNet-Lite0
    takes two thirds of the memory.
    """

    def forward(self, values: Tensor) -> Tensor:
        if torch.is_grad_enabled() and values.requires_grad and not values._is_view():
            return Hardtanh.apply(values)
        return super().forward(values)


class Hardtanh(torch.autograd.Function):
    """ReLU6 with the name and the lower end of PyTorch's own node, which explain/methods/rectifiers.py looks for."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx._saved_min_val = 0
        ctx.mark_dirty(values.clamp_(0, 6))
        ctx.save_for_backward(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, values, 0, 6)


REARRANGED = (  # class, faster class, whether a layer gains
    (nn.Conv2d, _ImageConv2d, _reads_image_in_strides),
    (timm.layers.Conv2dSame, _SameConv2d, _halves_channel_by_channel),
    (nn.Linear, _Linear, lambda _: True),
    (nn.ReLU6, _ReLU6, lambda activation: activation.inplace),
)
