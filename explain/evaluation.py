"""Running a network as it is meant to be evaluated: its mode, its device, its logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from explain.errors import UserError


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Hold every module in evaluation mode; each gets its own mode back, also after an error."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                "a batch norm of this network keeps no averages, so that an image's result depends on its batch: "
                "build it with track_running_stats=True"
            )
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


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

    The caller's tensor stays as it is, also where the network writes into its input.
    """
    with evaluation_mode(model), torch.inference_mode():
        logits = model(images.clone())
    return check_finite(logits).clone()  # not an inference tensor: the caller may compute with it under autograd


def class_standing(logits: Tensor, classes: Tensor) -> list[dict]:
    """Return where a class (N,) stands under logits (N, classes): a dict of class, logit, probability and rank each.

    Rank 1 is the likeliest class. Probabilities have the precision of the logits.
    """
    chosen = logits.gather(1, classes[:, None])  # (N, 1)
    columns = {
        "class": classes,
        "logit": chosen[:, 0],
        "probability": logits.softmax(1).gather(1, classes[:, None])[:, 0],
        "rank": 1 + (logits > chosen).sum(1),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
