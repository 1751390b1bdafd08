"""Calibration: can a network's confidence be believed, and what one temperature does to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BINS = 15  # of equal width, for the calibration error: Guo et al. 2017, table 1
TEMPERATURES = np.geomspace(0.25, 4, 41)  # 7 % apart; each row keeps what they give, and no logits


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[float, list[dict]]:
    """Return the expected calibration error, and for each bin its edges, count, mean confidence and accuracy.

    Bins are (k / bins, (k + 1) / bins], as in Guo et al. 2017, section 2; the means are None where one is empty.
    scikit-learn's calibration_curve leaves empty bins out and does not count, so that it cannot give the error.
    """
    bin_of = np.ceil(confidence * bins).clip(1, bins) - 1
    error, table = 0.0, []
    for k in range(bins):
        inside = bin_of == k
        count = int(inside.sum())
        row = {"from": k / bins, "to": (k + 1) / bins, "images": count, "confidence": None, "accuracy": None}
        if count:
            row["confidence"] = float(confidence[inside].mean())
            row["accuracy"] = float(correct[inside].mean())
            error += count / len(confidence) * abs(row["accuracy"] - row["confidence"])
        table.append(row)
    return error, table


def wilson_interval(right: float, images: int) -> tuple[float, float]:
    """Return the 95% interval of an accuracy of `right` of `images`. Wilson 1927, Probable Inference."""
    from scipy.stats import binomtest  # here, since its import takes a second

    interval = binomtest(round(right), images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def at_temperatures(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and confidence, each (N, temperatures), of logits (N, classes) divided by each of TEMPERATURES."""
    temperatures = torch.as_tensor(TEMPERATURES, dtype=torch.float32, device=logits.device)
    losses, confidences = [], []
    for temperature in temperatures:
        log_p = (logits / temperature).log_softmax(1)
        losses.append(-log_p.gather(1, classes[:, None])[:, 0])
        confidences.append(log_p.amax(1).exp())
    return torch.stack(losses, 1), torch.stack(confidences, 1)


def temperature_scaling(
    losses: np.ndarray, confidences: np.ndarray, correct: Sequence[bool]
) -> tuple[dict, list[dict]] | None:
    """Return the temperature with the least loss, and loss and calibration after it; None for a single image.

    losses and confidences (N, temperatures) as `at_temperatures` returns them. A temperature is fitted on every second
    image and judged on the others, and the other way round, so that no image is judged by one that it helped to choose.
    The table of the bins after it is returned too. Guo et al. 2017, section 4.2.
    """
    if len(losses) < 2:
        return None
    halves = [slice(0, None, 2), slice(1, None, 2)]
    best = [int(losses[half].mean(0).argmin()) for half in halves]
    after, confidence = np.empty(len(losses)), np.empty(len(losses))
    for half, other in zip(halves, reversed(best), strict=True):
        after[half], confidence[half] = losses[half, other], confidences[half, other]
    error, bins = calibration(confidence, np.asarray(correct))
    return {
        "temperature": float(TEMPERATURES[losses.mean(0).argmin()]),
        "temperatures_of_halves": [float(TEMPERATURES[k]) for k in best],
        "loss": float(after.mean()),
        "expected_calibration_error": error,
        "mean_confidence": float(confidence.mean()),
    }, bins
