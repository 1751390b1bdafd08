"""Guided backpropagation once more, by other means: rectifiers replaced as they are called.

The script puts hooks on the nodes of autograd's graph. This never looks at the graph: it replaces
each call of a rectifier, as it happens, by a function with the rule written out as its backward.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode


class Rule(torch.autograd.Function):
    """Springenberg et al. 2015, section 3.4, for the open interval (0, high)."""

    @staticmethod
    def forward(ctx, x, high):
        ctx.save_for_backward((x > 0) & (x < high))
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx, signal):
        (inside,) = ctx.saved_tensors
        return torch.where(inside & (signal > 0), signal, 0), None


class Replace(TorchFunctionMode):
    """The forms that torchvision's and timm's networks use."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "").removesuffix("_")
        in_place = function.__name__.endswith("_") or kwargs.get("inplace") or args[-1] is True
        high = None
        if name in ("relu", "relu6"):
            high = 6.0 if name == "relu6" else float("inf")
        elif name == "hardtanh":
            low, top = (*args[1:3], *(kwargs[k] for k in ("min_val", "max_val") if k in kwargs))
            high = float(top) if low == 0 else None
        if high is None or not args[0].requires_grad:
            return function(*args, **kwargs)
        output = Rule.apply(args[0].clone() if in_place else args[0], high)
        return args[0].copy_(output) if in_place else output


def guided_gradient(model: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    leaf = images.detach().clone().requires_grad_()
    with Replace():
        scores = model(leaf * 1.0).gather(1, classes[:, None])
    return torch.autograd.grad(scores.sum(), leaf)[0]
