"""Dropout as an operation, switched on wherever a forward pass calls it, in a module or as a function.

Setting modules to training mode would miss timm's networks, which call F.dropout without a module.
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
# Fused attention that drops its weights, and the position of the probability among its arguments
ATTENTION = {"multi_head_attention_forward": 10, "scaled_dot_product_attention": 4}
ALPHA = -1.7580993408473766  # SELU's limit at minus infinity: Klambauer et al. 2017, "New Dropout Technique"
# As many passes run together as keep the inputs of one image's first dropout below this many numbers (18 MB): 100
# of SqueezeNet in two groups, each of which runs the layers before dropout anew. The rule ignores the batch, on which
# an image's masks must not depend.
NUMBERS_TOGETHER = 4_500_000


class DropoutMode(TorchFunctionMode):
    """Switch on every dropout, and nothing else, in the forward passes inside the block, in any mode of the modules.

    `draw(shape)` returns uniform numbers in [0, 1) for the mask of an input of this shape; with None, nothing is
    dropped. `p` replaces the probability of every dropout. Raises UserError for attention that drops inside a fused
    operation, and at the end if there was no dropout with a probability above 0.
    """

    batch_dimensions = 1
    intact = 0  # number of leading rows in which nothing is dropped

    def __init__(self, draw: Callable[[tuple[int, ...]], Tensor] | None = None, p: float | None = None):
        super().__init__()
        self.draw, self.p = draw, p
        self.probabilities: list[float] = []  # of every dropout called

    def __exit__(self, error: type | None, *details: Any) -> None:
        super().__exit__(error, *details)
        if error is None and not any(self.probabilities):
            raise UserError(
                "this network has no dropout with a probability above 0, so all passes would be the same: give one "
                "(--dropout P, or the argument p), add nn.Dropout to the network, or use another, such as "
                "efficientnet_lite0"
            )

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        spelling = getattr(function, "__name__", "")
        name = spelling.removesuffix("_")
        if name in ATTENTION:
            _refuse_hidden(kwargs.get("dropout_p", args[ATTENTION[name]] if len(args) > ATTENTION[name] else 0))
        if name not in DROPOUTS:
            return function(*args, **kwargs)
        input, p = (lambda input, p=0.5, *_, **__: (input, p))(*args, **kwargs)  # the first parameters of all of them
        p = p if self.p is None else self.p
        self.probabilities.append(p)
        if p == 0 or self.draw is None:
            return input
        output = self.drop(input, p, name)
        if spelling.endswith("_") or kwargs.get("inplace") or args[3:4] == (True,):
            # later readers of the input must see the dropped values; if the batch has just grown they cannot, and NaN
            # reveals such a reader
            input.copy_(output) if input.shape == output.shape else input.fill_(torch.nan)
        return output

    def grow(self, input: Tensor) -> Tensor:
        """Return the input with the batch dimensions of its mask: here, unchanged."""
        return input

    def drop(self, input: Tensor, p: float, name: str) -> Tensor:
        """Return the grown input (batch dimensions, channels, ...) under a new mask."""
        grown = self.grow(input)
        shape = [*grown.shape]
        if name in WHOLE_CHANNELS:  # one value for each channel
            shape[self.batch_dimensions + 1 :] = [1] * (grown.dim() - self.batch_dimensions - 1)
        mask = self.draw(shape).ge_(p).to(input)  # 1 keeps a value; in place here and below to save memory
        if "alpha" in name:
            output = mask_alpha(grown, mask, p)
        else:
            scaled = self.grow(input * (1 / (1 - p) if p < 1 else 0))
            output = mask.mul_(scaled) if mask.shape == scaled.shape else mask * scaled
        if self.intact:
            output[: self.intact] = grown[: self.intact]
        return output


class SharedPasses(DropoutMode):
    """Let passes share the layers before the first dropout, where the batch grows.

    There an input (images, ...) becomes (passes * images, ...), and `draw` gets the shape (passes, images, ...). The
    first `intact` passes drop nothing. At most `at_most` passes run together, fewer if the inputs of one image's first
    dropout would hold more than `numbers` values; `passes` is their number, known from that dropout on.
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
        """Return the input as (passes, images, ...), whether or not its batch has grown already."""
        if not self.passes:
            of_one_image = max(1, input.numel() // self.images)
            self.passes = min(self.at_most, max(1, self.numbers // of_one_image) + self.intact)
        if len(input) == self.passes * self.images:
            return input.unflatten(0, (self.passes, self.images))
        if len(input) == self.images:
            return input[None].expand(self.passes, *input.shape)
        raise UserError(
            f"the passes of this network cannot share the layers before dropout, which is called on {len(input)} rows "
            f"for {self.images} images: give share=False"
        )


def mask_alpha(input: Tensor, mask: Tensor, p: float) -> Tensor:
    """Return the input with ALPHA where the mask is 0, shifted and scaled to keep its mean and variance."""
    a = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5 if p < 1 else 0
    return a * (input * mask + ALPHA * (1 - mask)) - a * ALPHA * p


def shared_passes(model: nn.Module, images: Tensor, passes: int, generators: Generators, p: float | None) -> Tensor:
    """Return the logits (1 + passes, N, classes); only the layers after the first dropout run for every pass."""

    def draw(shape: tuple[int, ...]) -> Tensor:  # (passes, N, ...)
        return uniform_numbers(shape, generators, mode.intact)

    logits: list[Tensor] = []  # (passes that ran together, N, classes), the deterministic pass first
    while (missing := 1 + passes - sum(map(len, logits))) > 0:
        intact = 0 if logits else 1
        with SharedPasses(draw, len(images), missing, NUMBERS_TOGETHER, intact, p) as mode:
            output = run_network(model, images)
        rows = as_logits(output, mode.passes * len(images))  # (mode.passes * N, classes)
        logits.append(rows.unflatten(0, (mode.passes, len(images))))
    return torch.cat(logits) if len(logits) > 1 else logits[0]  # without a copy, which can be the peak of the memory


def separate_passes(model: nn.Module, images: Tensor, passes: int, generators: Generators, p: float | None) -> Tensor:
    """Return the logits (1 + passes, N, classes) of passes run one by one for each image, right for every network."""
    with DropoutMode(p=p):
        single = logits_of(model, images)
    columns = []  # (1 + passes, classes) of each image
    for n, g in enumerate(generators):
        sampled = []
        for _ in range(passes):
            with DropoutMode(partial(torch.rand, generator=g, device=g.device), p):
                sampled.append(logits_of(model, images[n : n + 1]))
        columns.append(torch.cat([single[n : n + 1], *sampled]))
    return torch.stack(columns, 1)


_trials: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()  # the last trial of each network


def passes_can_be_shared(model: nn.Module, images: Tensor, p: float | None = None) -> bool:
    """Return whether the passes can share the layers before the first dropout; the result of the last trial is kept.

    There is a new trial for another size, type or device of the images, for another `p`, and after any change of the
    network that can be detected: a module replaced, an attribute or a hook set, a parameter written to.
    """
    key = (images.shape[1:], images.dtype, images.device, p, describe_network(model))
    if _trials.get(model, (None, False))[0] != key:
        _trials[model] = key, try_to_share(model, images, p)
    return _trials[model][1]


def fraction_after_dropout(model: nn.Module, example: Tensor, p: float | None = None) -> float:
    """Return the fraction of a forward pass's floating-point operations that follow its first dropout.

    Operations of matrix products and convolutions are counted for an example (1, 3, H, W); 1 if there are none.
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
    """Return what a network's operations depend on: its modules with their attributes, hooks and parameters."""
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
    """Return whether the passes can share the layers before the first dropout, by a trial.

    With nothing dropped, a batch that grows threefold at the first dropout must give the same logits as one that does
    not. It fails if a skip connection leads around the dropout, if rows are paired by position, if weights are dropped,
    or if the first dimension is not the batch. Batches of two and of three images are tried, since a table of weights
    may have as many rows as one of them. Of the images (N, 3, H, W) only shape, type and device matter.
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
                return False  # shapes do not fit; an error of the model itself occurs again in a separate pass
    return True


def refuse_unreachable(model: nn.Module) -> None:
    """Raise UserError for dropout inside a fused operation, where it cannot be switched on."""
    for module in model.modules():
        if getattr(module, "fused_attn", False):  # timm's attention dropout is then in a kernel
            _refuse_hidden(getattr(getattr(module, "attn_drop", None), "p", 0))
        _refuse_hidden(module.dropout if isinstance(module, nn.RNNBase) else 0)


def prepare(model: nn.Module, p: float | None) -> bool:
    """Set every `drop_rate` of 0 to p, since networks call no dropout for it; return whether passes can be shared.

    Raises UserError for a network without active dropout.
    """
    for module in model.modules():
        if p and getattr(module, "drop_rate", None) == 0:
            module.drop_rate = p
    example = torch.empty(1, 3, model.input_size, model.input_size, device=device_of(model))
    return passes_can_be_shared(model, example, p)


def _refuse_hidden(p: float) -> None:
    if p > 0:
        raise UserError(
            f"this network has dropout (p = {p}) inside a fused operation (attention, recurrent layers), where it "
            "cannot be switched on: build the network without it"
        )


def one_generator_each(generator: torch.Generator | Generators | None, images: int) -> Generators:
    """Return a generator for each image; a single one (None: PyTorch's own) seeds them."""
    if generator is None or isinstance(generator, torch.Generator):
        seeds = torch.randint(1 << 62, (images,), generator=generator)
        return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    if len(generator) != images:
        raise UserError(f"{len(generator)} generators for {images} images: give one, or one for each")
    return list(generator)


def uniform_numbers(shape: Sequence[int], generators: Generators, intact: int = 0) -> Tensor:
    """Return uniform numbers in [0, 1) of a shape (passes, N, ...), from one generator for each of the N images.

    Nothing is drawn for the first `intact` passes, whose values are arbitrary.
    """
    # a generator draws one number after the other, but several can work at once, in threads with modes of their own
    with torch.inference_mode(False), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        numbers = torch.empty(shape, device=generators[0].device)
        list(threads.map(lambda own, g: own.uniform_(generator=g), numbers[intact:].unbind(1), generators))
    return numbers
