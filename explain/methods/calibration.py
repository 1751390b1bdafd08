"""Calibration: can a network's confidence be believed, and what one temperature does to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BINS = 15  # of equal width, for the calibration error: Guo et al. 2017, table 1
COLDEST, HOTTEST = 0.01, 100.0  # temperatures between which the best is searched
TOLERANCE = 1e-4  # of the search, in the logarithm of the temperature
CHUNK = 1 << 22  # logits in double precision at a time: 32 MB
FEWEST = 30  # images that bear fitting and judging a temperature: of fewer, one sure mistake decides
FOLDS = 10
MANY = 5000  # images of which halves fix one number as well, in a fifth of the time


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


def at_temperature(logits: Tensor, classes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return loss and confidence, each (N,) in double precision, of logits (N, classes) divided by a temperature."""

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        rows = max(1, CHUNK // logits.shape[1])
        for some, c in zip(logits.split(rows), classes.split(rows), strict=True):
            log_p = (some.double() / temperature).log_softmax(1)
            yield -log_p.gather(1, c[:, None])[:, 0], log_p.amax(1).exp()

    losses, confidences = zip(*chunks(), strict=True)
    return torch.cat(losses), torch.cat(confidences)


def fit_temperature(logits: Tensor, classes: Tensor) -> tuple[float, str]:
    """Return the temperature with the least mean loss of logits (N, classes), and "at least" or "at most" at an end.

    The loss is convex in 1 / T, and so has one minimum in log T. At an end of the search it may be beyond; where all
    are right, the loss falls as long as T does. Where no temperature changes the loss, T is 1.
    """
    from scipy.optimize import minimize_scalar  # here, since its import takes time

    def loss(log_temperature: float) -> float:
        return float(at_temperature(logits, classes, math.exp(log_temperature))[0].mean())

    low, high = math.log(COLDEST), math.log(HOTTEST)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": TOLERANCE})
    at_low, at_high = loss(low), loss(high)
    if at_low == at_high == found.fun:
        return 1.0, ""
    if min(at_low, at_high) <= found.fun:
        return (COLDEST, "at most") if at_low <= at_high else (HOTTEST, "at least")
    return math.exp(found.x), ""


def temperature_scaling(logits: Tensor, classes: Tensor, correct: Sequence[bool]) -> tuple[dict, list[dict]] | None:
    """Return loss and calibration after temperature scaling, and its table of bins; None for fewer than FEWEST images.

    logits (N, classes), true classes (N,), whether each answer is `correct`. Every FOLDS-th image (of more than MANY,
    every second) is judged at the temperature with the least loss of all others, so that none is judged by a
    temperature that it helped to choose. `temperature` is fitted on all images, for others. Guo et al. 2017, section
    4.2.
    """
    if len(logits) < FEWEST:
        return None
    folds = FOLDS if len(logits) <= MANY else 2
    temperatures = []
    loss, confidence = torch.empty(2, len(logits), dtype=torch.float64)
    for fold in range(folds):
        judged = torch.arange(len(logits)) % folds == fold
        temperatures.append(fit_temperature(logits[~judged], classes[~judged])[0])
        loss[judged], confidence[judged] = at_temperature(logits[judged], classes[judged], temperatures[-1])
    error, bins = calibration(confidence.numpy(), np.asarray(correct))
    temperature, limit = fit_temperature(logits, classes)
    return {
        "temperature": temperature,
        "temperature_limit": limit or None,
        "temperatures_of_folds": temperatures,
        "loss": float(loss.mean()),
        "expected_calibration_error": error,
        "mean_confidence": float(confidence.mean()),
    }, bins
