"""Running a network as it is meant to be evaluated: its mode, its device, its logits."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from explain.basics.errors import UserError
from explain.networks.logits import at_least_one, check_images, class_logits

_lock = threading.Lock()
# How many calls, of any thread, hold each module in evaluation mode that is in training mode by itself
_held: Counter[nn.Module] = Counter()


class DependsOnBatch(UserError):  # noqa: N818
    """An image's result depends on the other images of its batch."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Hold every module in evaluation mode; each gets its own mode back, also after an error.

    Threads may use one network at the same time: a module gets its mode back when no call holds it any more. A network
    in evaluation mode is left alone, since its own `eval()` may do more than set the mode.
    """
    modules = list(model.modules())
    accepted = any(getattr(module, "stochastic", False) for module in modules)  # by --stochastic
    for module in modules if not accepted else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise DependsOnBatch(
                "a batch norm of this network keeps no averages, so that an image's result depends on its batch: "
                "build it with track_running_stats=True"
            )
    with _lock:
        held = [module for module in modules if module.training or module in _held]
        _held.update(held)
        for module in held:
            module.training = False
    try:
        yield
    finally:
        with _lock:
            _held.subtract(held)
            for module in held:
                if not _held[module]:
                    del _held[module]
                    module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Return the device that holds the network's tensors; the CPU for a network without any."""
    return next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


def check_finite(logits: Tensor) -> Tensor:
    """Return the logits; raises UserError where one is NaN or infinite."""
    if not logits.isfinite().all():
        raise UserError("the network's logits are not finite: its weights are damaged, or the images are not numbers")
    return logits


def predict_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Compute logits (N, classes) of images (N, 3, H, W), without a graph; raises UserError where they are not finite.

    The caller's tensor stays as it is, also where the network writes into its input. What it may return: `as_logits`.
    """
    check_images(images)
    with evaluation_mode(model), torch.inference_mode():
        logits = class_logits(model, at_least_one(images))[: len(images)]
    with torch.inference_mode(False):  # the caller may compute with a copy under autograd
        return check_finite(logits).clone()


def most_likely(logits: Tensor, count: int = 1) -> Tensor:
    """Return the most likely classes (N, count) of logits (N, classes); in a tie the lowest id comes first.

    Ranks logits, since rounding makes the probabilities of an untrained network tie where its logits differ.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :count]


def class_standing(logits: Tensor, classes: Tensor) -> list[dict]:
    """Return class, logit, probability and rank (1 is the most likely) of a class (N,) in logits (N, classes)."""
    classes = classes.to(logits.device)
    chosen = logits.gather(1, classes[:, None])  # (N, 1)
    columns = {
        "class": classes,
        "logit": chosen[:, 0],
        "probability": logits.softmax(1).gather(1, classes[:, None])[:, 0],
        "rank": 1 + (logits > chosen).sum(1),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def accepts(model: nn.Module, images: Tensor) -> bool:
    """Return whether the network runs on images of this size, which need not be its own."""
    try:
        predict_logits(model, images)
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True
