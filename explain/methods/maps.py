"""Measures of a saliency map, and of the similarity of two maps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor


def latest(function: Callable) -> Callable:
    """Return the current function of this name in the function's module, which a notebook may have redefined."""
    return getattr(sys.modules.get(function.__module__), getattr(function, "__name__", ""), function)


def describe_map(saliency: np.ndarray) -> dict[str, Any]:
    """Measure a saliency map (H, W).

    `half_mass_area`: smallest fraction of the pixels that holds half of the map's sum (0.5: even; small: concentrated).
    `roughness`: mean difference of neighbours over the mean (0: flat; 2/3: independent uniform noise).
    `status`: "ok", "zero gradient" or "not finite"; unless it is "ok", the measures are None.
    """
    values = saliency.astype(np.float64)
    status = "not finite" if not np.isfinite(values).all() else "ok" if values.any() else "zero gradient"
    if status != "ok":
        return {"status": status, "largest": None, "half_mass_area": None, "roughness": None}
    mass = np.cumsum(np.sort(values, axis=None)[::-1])
    steps = np.concatenate([np.abs(np.diff(values, axis=axis)).ravel() for axis in (0, 1)])
    return {
        "status": "ok",
        "largest": float(values.max()),
        "half_mass_area": float(np.searchsorted(mass, mass[-1] / 2) + 1) / values.size,
        "roughness": float(steps.mean() / values.mean()),
    }


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Return Spearman's rank correlation of two maps over all pixels; None if one is constant or not finite."""
    a, b = (saliency.double().cpu().numpy() for saliency in (first, second))  # NumPy has no bfloat16
    if not (np.isfinite(a).all() and np.isfinite(b).all() and np.ptp(a) and np.ptp(b)):
        return None
    return float(np.corrcoef(average_ranks(a.ravel()), average_ranks(b.ravel()))[0, 1])


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value (n,), from 1; equal values share the mean of their ranks, and none may be NaN."""
    # in place of scipy.stats.rankdata, whose import takes a second
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return (times.cumsum() - (times - 1) / 2)[place]
