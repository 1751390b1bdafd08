"""Any network as a function from images (N, 3, H, W) to logits, whatever it takes and returns.

All that runs a network for one of the methods goes through here: images and classes are checked, and the tensor that is
meant is found in the output.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from explain.errors import UserError


def check_images(images: Tensor) -> Tensor:
    """Return the images; raises UserError where they are not floating-point values (N, channels, H, W)."""
    if not isinstance(images, Tensor):
        raise UserError(f"images must be a tensor (N, 3, H, W), not {type(images).__name__}: use torch.as_tensor")
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}: give values in [0, 1], of 8 bits as images.float() / 255")
    if images.dim() == 3:
        raise UserError(f"images of shape {(*images.shape,)} have no batch dimension: give a single one as image[None]")
    if images.dim() != 4:
        raise UserError(f"images must be of shape (N, 3, H, W), not {(*images.shape,)}: give pictures, not features")
    return images


def class_ids(classes: Any, images: int | None = None) -> list[int | None]:
    """Return class ids as a list: of a tensor, an array or a sequence of one for each image, or of one for all.

    None stands for an image's most likely class. Without `images` any number of classes will do. Raises UserError for
    what is not a whole number, and for another number of classes than of images.
    """
    values = classes.tolist() if hasattr(classes, "tolist") else classes  # on whatever device
    if values is None or not isinstance(values, Iterable):
        values = [values] * (1 if images is None else images)
    try:
        ids = [None if value is None else operator.index(value) for value in values]
        if any(isinstance(value, bool) for value in values):
            raise TypeError
    except TypeError:
        raise UserError(
            f"classes must be whole numbers, one for all images or one for each, not {reprlib.repr(values)}"
        ) from None
    if images is not None and len(ids) != images:
        raise UserError(f"{len(ids)} classes for {images} images: give one for each, or a single number for all")
    return ids


def run_network(model: nn.Module, images: Tensor) -> Any:
    """Return what the network returns for images (N, 3, H, W).

    It gets a copy, since it may write into its input, in the floating-point type that its parameters have.
    """
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    copied = images.to(types.pop() if len(types) == 1 else images.dtype, copy=True)
    if torch.is_grad_enabled() and any(t.is_inference() for t in chain(model.parameters(), model.buffers())):
        # built under torch.inference_mode(): autograd takes only copies of its parameters
        tensors = chain(model.named_parameters(), model.named_buffers())
        usable = {name: tensor.detach().clone() for name, tensor in tensors}
        return torch.func.functional_call(model, usable, (copied,))
    return model(copied)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the network's logits (N, classes) of images (N, 3, H, W), or (N, ...); see `as_logits`."""
    return as_logits(run_network(model, images), len(images))


def class_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, classes) of images (N, 3, H, W); raises UserError for a network that returns maps."""
    logits = logits_of(model, images)
    if logits.dim() > 2:
        raise UserError(
            f"the network returns a tensor of shape {(*logits.shape,)}, not (N, classes): wrap it in a module that "
            "takes the mean over all other dimensions, or one place of them"
        )
    return logits


def as_logits(output: Any, images: int) -> Tensor:
    """Return the logits (N, classes) in a network's output for N images, or (N, ...) where it has more dimensions.

    The output is a tensor, or has one as `logits`; else its first tensor of two dimensions is meant, or its only one.
    A single logit z for an image, (N,) or (N, 1), stands for two classes: class 1 where z > 0, class 0 where z < 0.
    Their logits are (0, z), whose softmax is the sigmoid. The gradient of class 0 is that of -z; 0 itself has none.
    """
    logits = _find_tensor(output, images)
    if not logits.is_floating_point():
        raise UserError(f"the network returns {logits.dtype}, which cannot be logits: return the scores of the classes")
    if logits.numel() == images and logits.shape in ((), (images,), (images, 1)):
        z = logits.reshape(images)
        return torch.stack((z.detach() - z, z), 1)
    if logits.dim() < 2 or len(logits) != images:
        raise UserError(
            f"the network returns a tensor of shape {(*logits.shape,)} for {images} images: return (N, classes)"
        )
    return logits


def _find_tensor(output: Any, images: int) -> Tensor:
    """Return the tensor of logits in an output for N images, by its name or by its shape."""
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, Mapping):
        values = output.values()
    else:
        values = output if isinstance(output, Sequence) else getattr(output, "__dict__", {}).values()
    tensors = [value for value in values if isinstance(value, Tensor)]
    candidates = [tensor for tensor in tensors if tensor.dim() == 2 or tensor.shape == (images,)] or tensors
    if len(candidates) == 1 or (candidates and candidates[0].dim() == 2):
        return candidates[0]
    shapes = ", ".join(str((*tensor.shape,)) for tensor in tensors) or "no tensor"
    raise UserError(
        f"the network returns a {type(output).__name__} of {shapes}: return the logits (N, classes) alone, "
        "or name them `logits`"
    )


def at_least_one(images: Tensor) -> Tensor:
    """Return the images, or a black one in place of none: many networks cannot take an empty batch."""
    return images if len(images) else images.new_zeros((1, *images.shape[1:]))
