"""Tests of a network before it is used: do its logits depend on each image alone, and does another form keep them?"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from explain.basics.errors import UserError
from explain.networks.logits import class_logits
from explain.networks.running import evaluation_mode, predict_logits

# Differences that count as rounding
LOGITS_ROUNDING = 1e-3  # of the logits' spread, between kernels and batch sizes (1.3e-4 in maxvit_t)
OFFSET_ROUNDING = 1e-5  # of the largest logit, in case all logits share an offset
REPEAT_ROUNDING = 1e-6  # of the largest logit, between runs of the same kernels on the same numbers
GRADIENT_ROUNDING = 0.05  # of the gradient's norm; rounding switches some rectifiers (0.012 in googlenet)

# Logits (N, classes) of images, and the gradient (N, 3, H, W) of a sum over them; None if it cannot be computed
Answer = tuple[Tensor, Tensor | None]


def probe_images(channels: int, size: int) -> Tensor:
    """Return two noise images (2, channels, S, S) in [0, 1], each with its own mean and contrast."""
    noise = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([1, 0.5]).view(-1, 1, 1, 1)


def answer(model: nn.Module, images: Tensor) -> Answer:
    """Return the network's answer to images (N, 3, H, W); every call draws the same random numbers."""
    with torch.random.fork_rng(devices=[]), evaluation_mode(model), torch.inference_mode(False):
        torch.manual_seed(0)
        leaf = images.clone().requires_grad_()
        logits = class_logits(model, leaf)
        gradient = None
        if logits.requires_grad:
            weights = torch.arange(logits.shape[1], dtype=logits.dtype).cos()  # every class contributes
            with suppress(RuntimeError):  # an operation without a backward pass; 2b and 2d need none
                (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
        return logits.detach(), gradient


def difference(found: Answer, expected: Answer) -> str | None:
    """Return in words how an answer differs from the expected one beyond rounding; None if it does not."""
    (logits, gradient), (own_logits, own_gradient) = found, expected
    if not _close(logits, own_logits):
        return f"logits that differ by up to {_largest(logits, own_logits):.2g}"
    if (gradient is None) != (own_gradient is None):
        return "no gradient"
    if own_gradient is not None:
        change = (gradient - own_gradient).norm() / own_gradient.norm().clamp(min=1e-30)
        if not change <= GRADIENT_ROUNDING:
            return f"a gradient that differs by {change:.2g} of its norm"
    return None


def refuse_unsteady(name: str, model: nn.Module, images: Tensor, stochastic: bool) -> str | None:
    """Raise UserError if an image's logits depend on more than the image; if `stochastic`, return in words on what.

    The images (N, 3, H, W) run twice, then the first of them alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # each pass draws other random numbers
        once, again = predict_logits(model, images), predict_logits(model, images)
        is_random = _largest(again, once) > REPEAT_ROUNDING * float(once.abs().max())
        alone = once[:1] if is_random else predict_logits(model, images[:1])
    if not is_random and _close(alone, once[:1]):
        return None
    if not stochastic and is_random:
        raise UserError(
            f"{name} gives logits that differ by up to {_largest(again, once):.2g} when the same images run again: it "
            "is random in evaluation mode too, for instance by F.dropout(x) or nn.Dropout()(x) inside forward; write "
            "F.dropout(x, p, self.training), which 2h switches on by itself, or accept it with --stochastic"
        )
    if not stochastic:
        raise UserError(
            f"{name} gives an image logits in a batch that differ by up to {_largest(alone, once[:1]):.2g} from those "
            "alone: a batch norm uses the batch's statistics (call eval() before torch.export; "
            "track_running_stats=True), or activations are quantised by the range of the batch; correct that, or give "
            "--stochastic to accept it"
        )
    return "random" if is_random else "dependent on its batch"


def _close(found: Tensor, expected: Tensor) -> bool:
    spread = float((expected.amax(1) - expected.amin(1)).max())
    return _largest(found, expected) <= LOGITS_ROUNDING * spread + OFFSET_ROUNDING * float(expected.abs().max())


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())
