"""The form in which a network costs least to explain; docs/benchmarks.md has what each part is worth."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from explain.evaluation import predict_logits

MANY_ROWS = 256  # from which on a linear layer gains as a convolution


def prepare(model: nn.Module, example: Tensor) -> nn.Module:
    """Give a network its inference form, in place: the same logits and gradients to rounding, in less time.

    Evaluation mode, frozen parameters, batch norms folded into their convolutions, strided convolutions of the image or
    with TensorFlow's padding and linear layers of many rows rearranged, no copy of what ReLU6 overwrites, channels-last
    memory. `example` (1, 3, H, W) shows which batch norm follows which convolution.
    """
    model.requires_grad_(False).eval()
    fold_batch_norms(model, example)
    for module in model.modules():
        if type(module) is nn.Conv2d and _reads_image_in_strides(module):
            module.__class__ = _ImageConv2d  # the same parameters and names, another forward pass
        if type(module) is timm.layers.Conv2dSame and _halves_channel_by_channel(module):
            module.__class__ = _SameConv2d
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        if type(module) is nn.ReLU6 and module.inplace:
            module.__class__ = _ReLU6
    return model.to(memory_format=torch.channels_last)


def fold_batch_norms(model: nn.Module, example: Tensor) -> int:
    """Fold each batch norm that reads nothing but a convolution's output into that convolution; return how many.

    Where the logits of the example change by more than rounding (another layer reads the convolution too),
    nothing is folded.
    """
    names = {module: name for name, module in model.named_modules()}
    pairs, before = _normalised_convolutions(model, example)
    if not pairs:
        return 0
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        # the statistics of its outputs on the training data: 2c leads its archetypes to them
        if norm.affine:
            fused.register_buffer("normal_mean", norm.bias.detach().clone(), persistent=False)
            fused.register_buffer("normal_std", norm.weight.detach().abs(), persistent=False)
        model.set_submodule(names[conv], fused)
        model.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    with torch.no_grad():
        if torch.allclose(predict_logits(model, example), before, rtol=0, atol=1e-4 * float(before.abs().max())):
            return len(pairs)
    for module in (module for pair in pairs for module in pair):
        model.set_submodule(names[module], module)
    return 0


def _normalised_convolutions(model: nn.Module, example: Tensor) -> tuple[list[tuple[nn.Module, nn.Module]], Tensor]:
    """Return the pairs of a convolution and the batch norm that reads its output, and the example's logits.

    Found by a forward pass, so that the modules' names and order do not matter.
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

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(note_output))
            elif type(module) in (nn.BatchNorm2d, timm.layers.BatchNormAct2d) and module.track_running_stats:
                hooks.enter_context(module.register_forward_pre_hook(note_input))
        logits = predict_logits(model, example)
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1], logits


class _ImageConv2d(nn.Conv2d):
    """A convolution of the image in strides, by space-to-depth where a gradient will be asked for.

    A stride of s over 3 channels is a stride of 1 over the 3 s^2 channels of every s-th pixel. The sums are the same;
    the backward kernels, made for many channels, take half the time (Shi et al. 2016, Is the deconvolution layer the
    same as a convolutional layer?).
    """

    def forward(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return super().forward(images)
        (stride, _), (size, _), (padding, _) = self.stride, self.kernel_size, self.padding
        grown = -(-size // stride) * stride  # the kernel's side, filled up with zeros to whole strides
        ends = [((n + 2 * padding - size) // stride) * stride + grown - n - padding for n in images.shape[2:]]
        images = F.pad(images, (padding, ends[1], padding, ends[0]))  # negative where the last pixels are not read
        weight = F.pad(self.weight, (0, grown - size) * 2)
        images = F.pixel_unshuffle(images, stride).contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, F.pixel_unshuffle(weight, stride), self.bias)


def _reads_image_in_strides(conv: nn.Conv2d) -> bool:
    """For kernels from 5 on: a 3 x 3 one gains nothing."""
    square = all(len({*sides}) == 1 for sides in (conv.stride, conv.kernel_size, conv.padding))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and square and conv.in_channels == 3 and conv.stride[0] > 1 and conv.kernel_size[0] >= 5


class _SameConv2d(timm.layers.Conv2dSame):
    """A depthwise convolution in strides of 2 with TensorFlow's padding, without the padded copy of its input.

    That padding has one place less before even sides than after them, which a convolution cannot do by itself. With a
    kernel that begins with a row and a column of zeros, both ends have the same: the same sums, in half of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        (height, width), padding = x.shape[2:], self.kernel_size[0] // 2
        if x.device.type != "cpu" or height % 2 != width % 2:
            return super().forward(x)
        weight = self.weight if height % 2 else F.pad(self.weight, (1, 0, 1, 0))
        return F.conv2d(x, weight, self.bias, 2, padding, groups=self.groups)


def _halves_channel_by_channel(conv: nn.Conv2d) -> bool:
    """For a layer that mixes channels the wider kernel costs more than the copy."""
    (height, width), depthwise = conv.kernel_size, conv.groups == conv.in_channels
    return depthwise and height == width and height % 2 == 1 and conv.stride == (2, 2) and conv.dilation == (1, 1)


class _Linear(nn.Linear):
    """A linear layer of many rows as a 1 x 1 convolution of so many pixels.

    The same products by oneDNN in place of MKL, which uses half of the width of an AMD processor.
    """

    def forward(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu" or rows.numel() < MANY_ROWS * self.in_features:
            return super().forward(rows)
        pixels = rows.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, C, M, 1), channels-last
        outputs = F.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return outputs.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], self.out_features)


class _ReLU6(nn.ReLU6):
    """ReLU6 in place, for whose backward pass PyTorch would keep a copy of the input.

    The output tells as well where the derivative is 1: between 0 and 6. Without the copies, the gradient of
    EfficientNet-Lite0 takes two thirds of the memory.
    """

    def forward(self, values: Tensor) -> Tensor:
        if torch.is_grad_enabled() and values.requires_grad and not values._is_view():
            return Hardtanh.apply(values)
        return super().forward(values)


class Hardtanh(torch.autograd.Function):
    """Named like PyTorch's own node, with the same lower end, so that explain/rectifiers.py sees the same."""

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
