"""Rectifiers, found in autograd's graph in whatever form a network calls them, and a backward rule for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from explain.basics.errors import UserError

# Kinds of nodes in autograd's graph: activations that are not flat below 0, which are left as they are, and counted
OTHER_ACTIVATIONS = {
    *("LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Gelu", "Silu", "Mish", "Hardswish"),
    *("Softplus", "Sigmoid", "Hardsigmoid", "LogSigmoid", "Tanh", "Glu", "Hardtanh", "Threshold"),
}
# Attributes that are 0 if a node of this kind is a rectifier
MUST_BE_ZERO = {"Hardtanh": "_saved_min_val", "Threshold": "_saved_threshold", "LeakyRelu": "_saved_negative_slope"}
# Functions that may write a rectifier's output over its input
IN_PLACE = {"relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "threshold"}
# Nodes that hide their operations: torch.jit, torch.compile, reentrant checkpoints
OPAQUE = ("torch::jit", "CompiledFunction", "CheckpointFunction")


def without_hidden_rectifier(function: Callable, args: tuple, kwargs: dict) -> Any:
    """Call a function of a forward pass so that, if it is a rectifier, autograd's graph shows it.

    If a view is written in place, one node for view and base hides the operation; so a copy is written instead.
    """
    name = getattr(function, "__name__", "").strip("_")
    if name in IN_PLACE and args and args[0].requires_grad and args[0]._is_view():
        fresh = args[0].clone()
        output = function(fresh, *args[1:], **kwargs)
        return args[0].copy_(output) if output is fresh else output
    return function(*args, **kwargs)


class RectifierRule(TorchFunctionMode):
    """Inside the block, apply `rule` to the backward signal at each rectifier, before the rectifier's own derivative.

    A hook on a module misses `F.relu`, ReLU6 and rectifiers inside functions. Autograd's graph has a node for each
    rectifier, in whatever form it was called; these nodes get the rule while a gradient is computed. No module changes,
    and other readers of a rectifier's input keep their gradient. `rectifiers` counts the rectifiers that the signal
    passed, `others` the activations and custom autograd.Functions that were left as they are.
    """

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.backward_passes = 0
        self.rectifiers: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.autograd.grad, Tensor.backward):
            self.backward_passes += 1
            outputs = args[0] if args else kwargs["outputs"]
            with ExitStack() as hooks:
                for node, kind, name, rectifies in activations([outputs] if isinstance(outputs, Tensor) else outputs):
                    hook = partial(self.apply, name, kind, node) if rectifies else partial(self.count, name)
                    hooks.enter_context(node.register_prehook(hook))
                return function(*args, **kwargs)
        return without_hidden_rectifier(function, args, kwargs)

    def apply(self, name: str, kind: str, node: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the signal, the gradient by the rectifier's output, after the rule."""
        self.rectifiers[name] += 1  # counted here, since only nodes between the image and the score are called
        signal = self.rule(gradients[0])
        # at the ends of its interval clamp has a derivative of 1 and maximum of a half, a rectifier of 0
        if kind.startswith("Clamp"):
            signal = signal * (node._saved_self > node._saved_min)
            if (high := getattr(node, "_saved_max", None)) is not None:
                signal = signal * (node._saved_self < high)
        elif kind in ("Maximum", "Fmax"):
            signal = signal * (torch.maximum(node._saved_self, node._saved_other) > 0)
        return (signal,)

    def count(self, name: str, gradients: tuple[Tensor, ...]) -> None:
        """Count an activation that is left as it is."""
        self.others[name] += 1


def is_rectifier(kind: str, node: Any) -> bool:
    """Return whether a node of the graph is a rectifier: flat below 0 and rising from 0."""
    if kind in MUST_BE_ZERO:
        return getattr(node, MUST_BE_ZERO[kind]) == 0
    if kind in ("Clamp", "ClampMin"):
        low = node._saved_min
        return low is not None and not (low.any() or low.requires_grad if isinstance(low, Tensor) else low)
    if kind in ("Maximum", "Fmax"):
        inputs = zip((node._saved_self, node._saved_other), node.next_functions, strict=True)
        return any(source is None and not value.any() for value, (source, _) in inputs)
    return kind == "Relu"


def activations(outputs: Iterable[Tensor]) -> Iterator[tuple[Any, str, str, bool]]:
    """Yield the node, kind and name of each activation on the way to the outputs, and whether it is a rectifier.

    Custom autograd.Functions count as activations. Raises UserError if a node hides its operations.
    """
    for node in graph_nodes(outputs):
        own = isinstance(node, torch.autograd.function.BackwardCFunction)
        kind = (type(node).__name__ if own else node.name()).split("Backward")[0]
        if kind.startswith(OPAQUE):
            raise cannot_be_seen(kind)
        if (rectifies := is_rectifier(kind, node)) or own or kind in OTHER_ACTIVATIONS:
            yield node, kind, re.sub("(?<!^)(?=[A-Z])", "_", kind).lower(), rectifies


def graph_nodes(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """Yield every node of autograd's graph on the way to the tensors, once."""
    queue, visited = [output.grad_fn for output in outputs], {None}
    while queue:
        node = queue.pop()
        if node not in visited:
            visited.add(node)
            queue += [source for source, _ in node.next_functions]
            yield node


def refuse_opaque(model: nn.Module) -> None:
    """Raise UserError for a network with scripted or compiled parts."""
    for module in model.modules():  # their first passes may show every operation, later ones do not
        if isinstance(module, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)):
            raise cannot_be_seen(type(module).__name__)


def cannot_be_seen(kind: str) -> UserError:
    """Return the error about a node or a module that hides its operations."""
    return UserError(
        f"the operations inside {kind} cannot be seen: give the network as it was before torch.jit, torch.compile or "
        "checkpointing"
    )
