"""Cascading randomisation: a measure of saliency maps, by how they change when the network forgets what it learned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from explain.evaluation import evaluation_mode


def cascading_randomisation(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    stages: int,
    generator: torch.Generator,
) -> tuple[list[str], list[list[list[float | None]]]]:
    """Randomise the layers from the top down, and measure how much of the maps survives.

    images (N, 3, H, W), classes (N,), `maps_of(model, images, classes)` -> maps (kinds, N, H, W). Returns the lowest
    layer randomised at each stage, and the rank correlation of each map with that of the intact model,
    [stage][kind][n]; None where a map is constant or not finite. Every parameter is drawn anew from the normal
    distribution with its own mean and standard deviation, so that activations keep their scale.
    Works on a copy of the model. Adebayo et al. 2018, section 3.1 (there: a new initialisation).
    """
    model = copy.deepcopy(model)
    intact = maps_of(model, images, classes).cpu().numpy()
    names, correlations = [], []
    for layers in layers_from_the_top(model, images[:1], stages):
        for _, module in layers:
            for parameter in module.parameters(recurse=False):
                spread = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.detach().copy_(noise * spread + parameter.mean())
        names.append(layers[-1][0])
        kinds = zip(maps_of(model, images, classes).cpu().numpy(), intact, strict=True)
        correlations.append([[rank_correlation(*pair) for pair in zip(now, then, strict=True)] for now, then in kinds])
    return names, correlations


def layers_from_the_top(model: nn.Module, image: Tensor, stages: int) -> list[list[tuple[str, nn.Module]]]:
    """Return the layers with parameters of their own, last executed first, in at most `stages` groups of like size."""
    order: dict[nn.Module, str] = {}
    with ExitStack() as hooks, evaluation_mode(model), torch.no_grad():
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                hooks.enter_context(
                    module.register_forward_hook(lambda m, *_, name=name: order.setdefault(m, name) and None)
                )
        model(image)
    layers = [(name, module) for module, name in reversed(order.items())]
    count = min(stages, len(layers))
    return [layers[len(layers) * k // count : len(layers) * (k + 1) // count] for k in range(count)]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's rank correlation over all pixels; None where a map is constant or not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all() and np.ptp(a) and np.ptp(b)):
        return None
    return float(spearmanr(a, b, axis=None).statistic)
