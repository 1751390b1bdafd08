"""Running a network in evaluation mode: its mode, its device, its logits."""

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
_held: Counter[nn.Module] = Counter()  # calls, of all threads, that hold a module of training mode in evaluation mode


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Hold every module in evaluation mode, and restore each module's own mode, also after an error.

    Several threads may use a network at once: a module's mode is restored when no call holds the module any more. The
    network's own `eval()` is not called, since it may do more than set the mode. Raises UserError for a batch norm
    without running averages, unless --stochastic accepts it.
    """
    modules = list(model.modules())
    accepted = any(getattr(module, "stochastic", False) for module in modules)  # by --stochastic
    for module in modules if not accepted else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                "a batch norm of this network keeps no averages, so an image's result depends on its batch: "
                "build it with track_running_stats=True, or accept it with --stochastic"
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
    """Return the device of the network's tensors; the CPU if it has none."""
    return next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


def check_finite(logits: Tensor) -> Tensor:
    """Return the logits; raise UserError if any is NaN or infinite."""
    if not logits.isfinite().all():
        raise UserError("the network's logits are not finite: its weights are damaged, or the images contain NaN")
    return logits


def predict_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the logits (N, classes) of images (N, 3, H, W) in evaluation mode, without a graph.

    The caller's tensor does not change, even if the network writes into its input. See `as_logits` for the outputs that
    a network may have. Raises UserError for logits that are not finite.
    """
    check_images(images)
    with evaluation_mode(model), torch.inference_mode():
        logits = class_logits(model, at_least_one(images))[: len(images)]
    with torch.inference_mode(False):  # the caller may compute with a copy under autograd
        return check_finite(logits).clone()


def most_likely(logits: Tensor, count: int = 1) -> Tensor:
    """Return the most likely classes (N, count) of logits (N, classes), in a tie the lowest id first.

    It ranks logits, since the probabilities of an untrained network may tie by rounding where its logits differ.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :count]


def class_standing(logits: Tensor, classes: Tensor) -> list[dict]:
    """Return each image's class (N,) with its logit, probability and rank (1: most likely) in logits (N, classes)."""
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
    """Return whether the network runs on images (N, 3, H, W) of this size, which may not be its own."""
    try:
        predict_logits(model, images)
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True
