"""Any network as a function from images (N, 3, H, W) to logits.

Every method runs its network by these functions. They check images and classes, and find the logits in the output.
"""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from explain.basics.errors import UserError

# Names for the logits among several outputs, in the order of preference
OUTPUT_NAMES = ("logits", "output", "out", "pred", "scores", "main")
SUMS_TO_1 = 1e-3  # distance of a sum of probabilities from 1 that counts as rounding


def check_images(images: Tensor) -> Tensor:
    """Return the images; raise UserError unless they are floating-point values (N, channels, H, W)."""
    if not isinstance(images, Tensor):
        raise UserError(f"images must be a tensor (N, 3, H, W), not {type(images).__name__}: use torch.as_tensor")
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}: give values in [0, 1], as images.float() / 255 for 8-bit images")
    if images.dim() == 3:
        raise UserError(f"images of shape {(*images.shape,)} have no batch dimension: give one image as image[None]")
    if images.dim() != 4:
        raise UserError(f"images must be of shape (N, 3, H, W), not {(*images.shape,)}: give images, not features")
    return images


def class_ids(classes: Any, images: int | None = None) -> list[int | None]:
    """Return class ids as a list, given a tensor, array or sequence with one for each image, or a single one for all.

    None stands for an image's most likely class. `images` is the number of images; without it any number of classes is
    accepted. Raises UserError for a class that is not a whole number, and if the numbers do not match.
    """
    values = classes.tolist() if hasattr(classes, "tolist") else classes
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
    """Return the network's output for images (N, 3, H, W), of whatever kind.

    The network gets a copy, since it may write into its input, in the floating-point type of its parameters.
    """
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    copied = images.to(types.pop() if len(types) == 1 else images.dtype, copy=True)
    tensors = chain(model.named_parameters(), model.named_buffers())
    made = {name: tensor for name, tensor in tensors if not is_lazy(tensor)}  # a lazy module creates its own
    if torch.is_grad_enabled() and any(tensor.is_inference() for tensor in made.values()):
        # built under torch.inference_mode(): autograd needs copies of its parameters
        usable = {name: tensor.detach().clone() for name, tensor in made.items()}
        return torch.func.functional_call(model, usable, (copied,))
    return model(copied)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the network's logits (N, classes), or (N, ...), of images (N, 3, H, W); see `as_logits`."""
    return as_logits(run_network(model, images), len(images))


def class_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, classes) of images (N, 3, H, W); raise UserError if they have more dimensions."""
    logits = logits_of(model, images)
    if logits.dim() > 2:
        raise UserError(
            f"the network returns a tensor of shape {(*logits.shape,)}, not (N, classes): wrap it in a module that "
            "averages over all other dimensions, or selects one position in them"
        )
    return logits


def as_logits(output: Any, images: int) -> Tensor:
    """Return the logits (N, classes), or (N, ...), in a network's output for N `images`.

    If the output has several tensors, `find_output` chooses. A single logit z per image, (N,) or (N, 1), stands for two
    classes: class 1 if z > 0, else class 0. Their logits are (0, z), whose softmax is the sigmoid; class 0 has the
    gradient of -z, since a constant has none. Raises UserError for an output without a row for each image.
    """
    _, logits = find_output(output, images)
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


def find_output(output: Any, images: int, classes: Collection[int] = ()) -> tuple[str | int | None, Tensor]:
    """Return the key and the tensor of the logits in an output for N `images`; the key of a lone tensor is None.

    Tensors (N, C) are preferred to (N,). Of several, the function takes the tensor whose number of columns is in
    `classes`, failing that one of OUTPUT_NAMES, failing that the last, since early exits and embeddings come before the
    classifier. Raises UserError if no tensor has a row for each image, or several have a single value per image.
    """
    if isinstance(output, Tensor):
        return None, output
    tensors = {key: value for key, value in _entries(output).items() if isinstance(value, Tensor)}
    rows = {key: tensor for key, tensor in tensors.items() if tensor.dim() == 2 and len(tensor) == images}
    fitting = rows or {key: tensor for key, tensor in tensors.items() if tensor.shape == (images,)} or tensors
    # a single logit stands for two classes
    sized = {k: t for k, t in fitting.items() if t.dim() and (2 if t.numel() == images else t.shape[1]) in classes}
    fitting = sized or {key: tensor for key, tensor in tensors.items() if key == "logits"} or fitting
    named = [key for name in OUTPUT_NAMES for key in fitting if str(key).casefold() == name]
    if named or rows or len(fitting) == 1:
        key = named[0] if named else [*fitting][-1]
        return key, tensors[key]
    shapes = ", ".join(str((*tensor.shape,)) for tensor in tensors.values()) or "no tensor at the top level"
    raise UserError(
        f"the network returns a {type(output).__name__} of {shapes}: return the logits (N, classes) alone, or name "
        "them `logits`, for instance in a module that wraps the network"
    )


def _entries(output: Any) -> dict[str | int, Any]:
    """Return the entries of a network's output by name, or by place if they have no names."""
    if isinstance(output, Mapping):
        return dict(output)
    if hasattr(output, "_asdict"):  # a named tuple
        return output._asdict()
    return dict(enumerate(output)) if isinstance(output, Sequence) else dict(getattr(output, "__dict__", {}))


class SoftmaxInputs(TorchFunctionMode):
    """Record the input and output of each softmax and log-softmax of a forward pass that returns (N, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []  # output and input

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "").partition(".")[0].strip("_")  # softmax.int in an exported graph
        if name in ("softmax", "log_softmax") and output.dim() == 2:
            self.pairs.append((output, args[0] if args else kwargs["input"]))
        return output

    def input_of(self, output: Tensor) -> Tensor | None:
        """Return the input of the softmax that returned this very tensor; None if no softmax did."""
        return next((before for after, before in self.pairs if after is output), None)


class LogitsOf(nn.Module):
    """Wrap a network that returns several tensors, or probabilities, so that it returns its logits alone.

    `key` names the output among several (None: the only one); with `before_softmax`, the logits are the input of the
    softmax or log-softmax that made this output.
    """

    def __init__(self, network: nn.Module, key: str | int | None, before_softmax: bool):
        super().__init__()
        self.network, self.key, self.before_softmax = network, key, before_softmax

    def forward(self, images: Tensor) -> Tensor:
        with SoftmaxInputs() if self.before_softmax else nullcontext() as softmax:
            output = self.network(images)
        output = output if self.key is None else _entries(output)[self.key]
        return softmax.input_of(output) if self.before_softmax else output


def logits_only(network: nn.Module, images: Tensor, classes: Collection[int]) -> tuple[nn.Module, list[str]]:
    """Return a network that returns its logits alone for images (N, C, H, W), and notes on how they were found.

    A network that does so already is returned itself. `classes`: see `find_output`. A note also tells if the outputs
    look like probabilities and their input is unknown.
    """
    with SoftmaxInputs() as softmax:
        output = run_network(network, images)
    key, scores = find_output(output, len(images), classes)
    notes = []
    others = [name for name, value in ({} if key is None else _entries(output)).items() if isinstance(value, Tensor)]
    if len(others) > 1:
        notes.append(
            f"its logits are taken from output {key!r} {(*scores.shape,)}, one of {', '.join(map(repr, others))}: to "
            "change that, give --model FILE.py:FUNCTION with a network that returns another output alone"
        )
    ending = _probabilities(scores)
    before = softmax.input_of(scores) if ending else None
    if before is not None:
        notes.append(f"it ends in a {ending}: its logits, which go into the {ending}, are explained")
    elif ending:
        notes.append(
            f"it ends in a {ending}: the class score is then a (log) probability, which spoils maps and archetypes "
            f"(Simonyan et al. 2014, section 2, takes the unnormalised score); let it return the {ending}'s input"
        )
    changed = before is not None or len(others) > 1
    return (LogitsOf(network, key, before is not None) if changed else network), notes


def _probabilities(scores: Tensor) -> str | None:
    """Return "softmax", "log-softmax" or "sigmoid" if a network with these outputs (N, ...) ends in it, else None."""
    if scores.max() > 1 or scores.isnan().any():
        return None
    if scores.dim() == 2 and scores.shape[1] > 1:
        if scores.min() >= 0 and (scores.sum(1) - 1).abs().max() < SUMS_TO_1:
            return "softmax"
        if scores.max() <= 0 and (scores.exp().sum(1) - 1).abs().max() < SUMS_TO_1:
            return "log-softmax"
    steps, seen = [scores.grad_fn], []  # back through changes of shape to the operation that computed them
    while steps:
        step = steps.pop()
        seen.append(step.name() if step else "")
        if re.match("Squeeze|Unsqueeze|View|UnsafeView|Reshape|Select", seen[-1]):
            steps += [before for before, _ in step.next_functions]
    return "sigmoid" if scores.min() >= 0 and any(name.startswith("Sigmoid") for name in seen) else None


def at_least_one(images: Tensor) -> Tensor:
    """Return the images, or a black image if there are none: many networks cannot take an empty batch."""
    return images if len(images) else images.new_zeros((1, *images.shape[1:]))
