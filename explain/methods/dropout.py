"""Dropout as an operation: switched on wherever a forward pass calls it, by a module or by a function.

Switching modules to training mode would miss timm's networks, which call F.dropout without a module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from explain.basics.errors import UserError
from explain.networks.logits import as_logits, logits_of, run_network
from explain.networks.running import device_of, evaluation_mode

Generators = Sequence[torch.Generator]

WHOLE_CHANNELS = {"dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_alpha_dropout"}
DROPOUTS = {"dropout", "alpha_dropout"} | WHOLE_CHANNELS
# Attention that drops its weights by itself, and the place of the probability among its arguments.
ATTENTION = {"multi_head_attention_forward": 10, "scaled_dot_product_attention": 4}
ALPHA = -1.7580993408473766  # SELU's limit at minus infinity: Klambauer et al. 2017, "New Dropout Technique"
NUMBERS_IN_THREADS = 1 << 23  # fewer are drawn sooner than the network's own threads make way for others
# Passes run together, as many as keep the first dropout's input of one image below this many numbers
# (16 MB). A rule without the batch in it: an image's masks must not depend on its company.
NUMBERS_TOGETHER = 1 << 22


class NoDropoutError(UserError):
    """A network has no active dropout: none at all, or `only_zero`, with p = 0."""

    def __init__(self, only_zero: bool):
        self.only_zero = only_zero
        self.problem = f"{'only dropout with p = 0' if only_zero else 'no dropout'}, so all passes would be the same"
        cure = "give p, its probability" if only_zero else "add nn.Dropout to it, or build timm's with drop_rate=0.2"
        super().__init__(f"this network has {self.problem}: {cure}")


class DropoutMode(TorchFunctionMode):
    """Switch on every dropout of the forward passes run inside, and nothing else, whatever mode the modules are in.

    `draw(shape)` returns uniform numbers in [0, 1) for the mask of an input of this shape; None drops nothing. `p` is
    the probability of every dropout, in place of its own. Raises UserError for attention that drops inside a fused
    operation, and NoDropoutError at the end if no active dropout was met.
    """

    batch_dimensions = 1
    intact = 0  # rows in front in which nothing is dropped

    def __init__(self, draw: Callable[[tuple[int, ...]], Tensor] | None = None, p: float | None = None):
        super().__init__()
        self.draw, self.p = draw, p
        self.probabilities: list[float] = []  # of every dropout met

    def __exit__(self, error: type | None, *details: Any) -> None:
        super().__exit__(error, *details)
        if error is None and not any(self.probabilities):
            raise NoDropoutError(only_zero=bool(self.probabilities))

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        spelling = getattr(function, "__name__", "")
        name = spelling.removesuffix("_")
        if name in ATTENTION:
            _refuse_hidden(kwargs.get("dropout_p", args[ATTENTION[name]] if len(args) > ATTENTION[name] else 0))
        if name not in DROPOUTS:
            return function(*args, **kwargs)
        input, p = (lambda input, p=0.5, *_, **__: (input, p))(*args, **kwargs)  # all of them begin with these
        p = p if self.p is None else self.p
        self.probabilities.append(p)
        if p == 0 or self.draw is None:
            return input
        output = self.drop(input, p, name)
        if spelling.endswith("_") or kwargs.get("inplace") or args[3:4] == (True,):
            # later readers of the input must see what was dropped; where the batch has just grown
            # they cannot, and the NaN makes such a reader known
            input.copy_(output) if input.shape == output.shape else input.fill_(torch.nan)
        return output

    def grow(self, input: Tensor) -> Tensor:
        """Return the input with the batch dimensions that its mask has: here it stays as it is."""
        return input

    def drop(self, input: Tensor, p: float, name: str) -> Tensor:
        """Return the input (batch dimensions, channels, ...), grown, with a new mask on it."""
        grown = self.grow(input)
        shape = [*grown.shape]
        if name in WHOLE_CHANNELS:  # one value for each channel
            shape[self.batch_dimensions + 1 :] = [1] * (grown.dim() - self.batch_dimensions - 1)
        mask = self.draw(shape).ge_(p).to(input)  # 1 is kept; in place, like what follows: memory is what it costs
        if "alpha" in name:
            output = mask_alpha(grown, mask, p)
        else:
            scaled = self.grow(input * (1 / (1 - p) if p < 1 else 0))
            output = mask.mul_(scaled) if mask.shape == scaled.shape else mask * scaled
        if self.intact:
            output[: self.intact] = grown[: self.intact]
        return output


class SharedPasses(DropoutMode):
    """Let passes share all that comes before the first dropout, where the batch grows.

    There an input (images, ...) becomes (passes * images, ...), and `draw` gets the shape (passes, images, ...).
    The first `intact` passes drop nothing, whatever is drawn for them. At most `at_most` passes run together, fewer
    where the first dropout's inputs of one image hold more than `numbers` values; `passes` is their number, known from
    that dropout on.
    """

    batch_dimensions = 2

    def __init__(
        self,
        draw: Callable,
        images: int,
        at_most: int,
        numbers: int = sys.maxsize,
        intact: int = 0,
        p: float | None = None,
    ):
        super().__init__(draw, p)
        self.images, self.at_most, self.numbers, self.intact, self.passes = images, at_most, numbers, intact, 0

    def drop(self, input: Tensor, p: float, name: str) -> Tensor:
        return super().drop(input, p, name).flatten(0, 1)

    def grow(self, input: Tensor) -> Tensor:
        """Return the input as (passes, images, ...), whether or not its batch has grown before."""
        if not self.passes:
            of_one_image = max(1, input.numel() // self.images)
            self.passes = min(self.at_most, max(1, self.numbers // of_one_image) + self.intact)
        if len(input) == self.passes * self.images:
            return input.unflatten(0, (self.passes, self.images))
        if len(input) == self.images:
            return input[None].expand(self.passes, *input.shape)
        raise UserError(
            f"the passes of this network cannot share what comes before dropout: it is called on {len(input)} rows "
            f"for {self.images} images, so give share=False"
        )


def mask_alpha(input: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return the input with ALPHA where the mask is 0, shifted and scaled so that mean and variance stay the same."""
    a = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5 if p < 1 else 0
    return a * (input * mask + ALPHA * (1 - mask)) - a * ALPHA * p


def shared_passes(model: nn.Module, images: Tensor, passes: int, generators: Generators, p: float | None) -> Tensor:
    """Run the network up to the first dropout for the N images, and the rest of it for (1 + passes) * N rows."""

    def draw(shape: tuple[int, ...]) -> Tensor:  # (passes, N, ...)
        return uniform_numbers(shape, generators, mode.intact)

    logits: list[Tensor] = []  # (passes, N, classes) that ran together, the deterministic pass first
    while (missing := 1 + passes - sum(map(len, logits))) > 0:
        intact = 0 if logits else 1
        with SharedPasses(draw, len(images), missing, NUMBERS_TOGETHER, intact, p) as mode:
            output = run_network(model, images)
        rows = as_logits(output, mode.passes * len(images))  # (mode.passes * N, classes)
        logits.append(rows.unflatten(0, (mode.passes, len(images))))
    with torch.inference_mode(False):  # the caller may compute with them under autograd
        return torch.cat(logits)


def separate_passes(model: nn.Module, images: Tensor, passes: int, generators: Generators, p: float | None) -> Tensor:
    """Run the passes one by one for each image, which is correct for every network."""
    with DropoutMode(p=p):
        single = logits_of(model, images)
    columns = []  # (1 + passes, classes) of each image
    for n, g in enumerate(generators):
        sampled = []
        for _ in range(passes):
            with DropoutMode(partial(torch.rand, generator=g, device=g.device), p):
                sampled.append(logits_of(model, images[n : n + 1]))
        columns.append(torch.cat([single[n : n + 1], *sampled]))
    with torch.inference_mode(False):  # as in shared_passes
        return torch.stack(columns, 1)


_trials: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()  # the last one of each network


def passes_can_be_shared(model: nn.Module, images: Tensor, p: float | None = None) -> bool:
    """Return whether the passes may share what comes before the first dropout; a trial's answer is kept.

    It is found anew for another size, type or device of the images, another `p` of every dropout, and after any change
    of the network that can be seen: a module replaced, an attribute or a hook set, a parameter written to.
    """
    key = (images.shape[1:], images.dtype, images.device, p, describe_network(model))
    if _trials.get(model, (None, False))[0] != key:
        _trials[model] = key, try_to_share(model, images, p)
    return _trials[model][1]


def fraction_after_dropout(model: nn.Module, example: Tensor, p: float | None = None) -> float:
    """Return the fraction of a forward pass's floating-point operations that follow its first dropout.

    They are those of matrix products and convolutions, counted for an example (1, 3, H, W); 1 where there are none.
    """
    before: list[int] = []

    def count(shape: Sequence[int]) -> Tensor:
        before.append(counter.get_total_flops())
        return torch.ones(shape, device=example.device)  # nothing is dropped

    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter, DropoutMode(count, p):
        logits_of(model, example)
    total = counter.get_total_flops()
    return 1 - before[0] / total if total else 1.0


def describe_network(model: nn.Module) -> list[tuple]:
    """Return what the operations of a network depend on: its modules with their attributes, hooks and parameters."""
    return [
        (
            (name, id(module), type(module), type(module).forward, *map(len, (module._forward_hooks, module._buffers))),
            {
                key: value
                for key, value in vars(module).items()
                if key != "training" and isinstance(value, (bool, int, float, str, tuple))
            },
            [(id(p), p.is_inference() or p._version) for p in module._parameters.values() if p is not None],
        )
        for name, module in model.named_modules()
    ]


def try_to_share(model: nn.Module, images: Tensor, p: float | None = None) -> bool:
    """Return True if the passes may share what comes before the first dropout, which is found by a trial.

    With nothing dropped, a batch that grows threefold at the first dropout must give the logits of one that does not.
    It does not around a skip connection, where rows are paired by their place, where weights are dropped, or where the
    first dimension is not that of the images. Two batches are tried, of two images and of three: a table of weights can
    have as many rows as one of them, but not as both. Of the images (N, 3, H, W) only shape, type and device matter.
    """
    examples = torch.rand((3, *images.shape[1:]), generator=torch.Generator().manual_seed(0)).to(images)
    with evaluation_mode(model), torch.inference_mode():
        with DropoutMode(torch.ones, p):  # kept values are scaled by 1 / (1 - p) in both
            expected = logits_of(model, examples)  # (3, classes)
        tolerance = 1e-4 * float(expected.abs().max())
        for count in (2, 3):
            try:
                with SharedPasses(torch.ones, count, at_most=3, p=p) as mode:
                    output = run_network(model, examples[:count])
                grown = as_logits(output, mode.passes * count).unflatten(0, (mode.passes, count))
                if not torch.allclose(grown, expected[:count].expand_as(grown), rtol=1e-3, atol=tolerance):
                    return False
            except (RuntimeError, ValueError, IndexError, AssertionError):
                return False  # shapes that do not fit; an error of the model's own comes again in a separate pass
    return True


def refuse_unreachable(model: nn.Module) -> None:
    """Raise UserError for dropout inside a fused operation, where no mask can be set."""
    for module in model.modules():
        if getattr(module, "fused_attn", False):  # a kernel that takes the place of timm's attention dropout
            _refuse_hidden(getattr(getattr(module, "attn_drop", None), "p", 0))
        _refuse_hidden(module.dropout if isinstance(module, nn.RNNBase) else 0)


def prepare(model: nn.Module, p: float | None, name: str) -> bool:
    """Set every `drop_rate` of 0, for which a network calls no dropout, to p; return whether passes can be shared.

    `name` is the --model. Raises UserError for a network without active dropout, with the cure.
    """
    off = [module for module in model.modules() if getattr(module, "drop_rate", None) == 0]
    for module in off if p else ():
        module.drop_rate = p
    example = torch.empty(1, 3, model.input_size, model.input_size, device=device_of(model))
    try:
        return passes_can_be_shared(model, example, p)
    except NoDropoutError as error:
        file = name.rpartition(":")[0]
        if error.only_zero or (off and not p):
            cure = "give its probability by --dropout P"
        elif file.endswith(".py"):
            cure = f"add nn.Dropout to {file}, before the last layer, say"
        else:
            cure = "choose a network that has some, such as efficientnet_lite0, alexnet or googlenet"
        raise UserError(f"{model.name} has {error.problem}: {cure}") from None


def _refuse_hidden(p: float) -> None:
    if p > 0:
        raise UserError(
            f"this network has dropout (p = {p}) inside a fused operation (attention, recurrent layers), where no mask "
            "can be set: build it without"
        )


def one_generator_each(generator: torch.Generator | Generators | None, images: int) -> Generators:
    """Return a generator for each image, which a single one (None: PyTorch's own) has seeded."""
    if generator is None or isinstance(generator, torch.Generator):
        seeds = torch.randint(1 << 62, (images,), generator=generator)
        return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    if len(generator) != images:
        raise UserError(f"{len(generator)} generators for {images} images: give one, or one for each")
    return list(generator)


def uniform_numbers(shape: Sequence[int], generators: Generators, intact: int = 0) -> Tensor:
    """Return uniform numbers in [0, 1) of a shape (passes, N, ...), each image's by its own generator.

    None are drawn for the first `intact` passes, which have any values.
    """
    numbers = torch.empty(shape, device=generators[0].device)

    def fill(own: Tensor, generator: torch.Generator) -> None:
        with torch.inference_mode():  # a mode of each thread
            own.uniform_(generator=generator)

    each = numbers[intact:].unbind(1), generators
    if numbers.numel() <= NUMBERS_IN_THREADS:
        list(map(fill, *each))
    else:  # a generator makes one number after the other: those of several images at once
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(fill, *each))
    return numbers
