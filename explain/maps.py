"""Measures of a saliency map."""

from __future__ import annotations

from typing import Any

import numpy as np


def describe_map(saliency: np.ndarray) -> dict[str, Any]:
    """Measure a saliency map (H, W).

    `half_mass_area`: share of the pixels that hold half of the map's sum (0.5: even; small:
    concentrated). `roughness`: mean difference of neighbours over the mean (0: flat; 2/3:
    independent uniform noise). `status` is "ok", "zero gradient" or "not finite": such a map says
    nothing, and its measures are None.
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
