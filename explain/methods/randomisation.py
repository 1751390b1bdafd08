"""A network whose layers are randomised from the top down, and how much of its maps survives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from explain.basics.errors import UserError, integer_argument, one_line
from explain.methods.maps import rank_correlation
from explain.networks.logits import run_network
from explain.networks.running import evaluation_mode


def cascading_randomisation(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    stages: int,
    generator: torch.Generator,
) -> tuple[list[tuple[int, str]], list[list[list[float | None]]]]:
    """Randomise the layers of a copy of the model from the top down, and measure how much of the maps survives.

    images (N, 3, H, W), classes (N,), `maps_of(model, images, classes)` -> maps (kinds, N, H, W). Returns how many
    layers are randomised at each stage and the lowest of them, and each map's rank correlation with the intact model's,
    [stage][kind][n].
    Every parameter is drawn anew from the normal distribution with its own mean and standard deviation, so that
    activations keep their scale. Adebayo et al. 2018, section 3.1 (there: a new initialisation). Raises UserError for
    less than one stage.
    """
    stages, intact = integer_argument("stages", stages), maps_of(model, images, classes)
    model = copy_of(model)
    depths, correlations = [], []
    for layers in layers_from_the_top(model, images[:1], stages):
        for _, module in layers:
            for parameter in module.parameters(recurse=False):
                spread = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.detach().copy_(noise * spread + parameter.mean())
        depths.append(((depths[-1][0] if depths else 0) + len(layers), layers[-1][0]))
        kinds = zip(maps_of(model, images, classes), intact, strict=True)
        correlations.append([[rank_correlation(*pair) for pair in zip(now, then, strict=True)] for now, then in kinds])
    return depths, correlations


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of the network; raises UserError where there can be none.

    What a module has computed from its parameters (by torch.nn.utils.weight_norm) PyTorch does not copy: the copy gets
    the values, and computes them anew when it is run.
    """
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    try:
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
    except Exception as error:  # a network may hold anything: a lock, an open file
        raise UserError(
            f"this network cannot be copied ({one_line(error)}), which is needed to randomise its layers: "
            "remove everything that is not part of the network"
        ) from None


def layers_from_the_top(model: nn.Module, image: Tensor, stages: int) -> list[list[tuple[str, nn.Module]]]:
    """Return the layers with parameters of their own, last executed first, in at most `stages` groups of like size."""
    names = {module: name for name, module in model.named_modules() if [*module.parameters(recurse=False)]}
    calls: list[nn.Module] = []
    with ExitStack() as hooks, evaluation_mode(model), torch.no_grad():
        for module in names:
            hooks.enter_context(module.register_forward_hook(lambda module, *_: calls.append(module)))
        run_network(model, image)
    layers = [(names[module], module) for module in reversed(dict.fromkeys(calls))]
    count = min(stages, len(layers))
    return [layers[len(layers) * k // count : len(layers) * (k + 1) // count] for k in range(count)]
