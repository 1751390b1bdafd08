"""Calibration: whether a network's confidence can be believed, before and after temperature scaling."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BINS = 15  # of equal width, for the calibration error: Guo et al. 2017, table 1
COLDEST, HOTTEST = 0.01, 100.0  # the range in which the best temperature is searched
TOLERANCE = 1e-4  # of the search, in the logarithm of the temperature
CHUNK = 1 << 22  # logits converted to double precision at a time: 32 MB
FEWEST = 30  # images needed to fit and judge a temperature: with fewer, one confident mistake decides
FOLDS = 10
MANY = 5000  # images from which two folds determine a temperature as well, in a fifth of the time


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[float, list[dict]]:
    """Return the expected calibration error, and for each bin its edges, count, mean confidence and accuracy.

    Bins are (k / bins, (k + 1) / bins], as in Guo et al. 2017, section 2; the means of an empty bin are None.
    scikit-learn's calibration_curve omits empty bins and returns no counts, which the error needs.
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
    """Return the 0.95 confidence interval of the accuracy `right` / `images`. Wilson 1927, Probable Inference."""
    k, z = round(right), statistics.NormalDist().inv_cdf(0.975)
    middle = k / images + z**2 / (2 * images)
    half = z * math.sqrt(k / images * (1 - k / images) / images + (z / (2 * images)) ** 2)
    low, high = ((middle + end) / (1 + z**2 / images) for end in (-half, half))
    return (low if k else 0.0), (high if k < images else 1.0)  # these ends are exact


def at_temperature(logits: Tensor, classes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return loss and confidence, each (N,) in double precision, of logits (N, classes) divided by a temperature."""
    losses, confidences = [], []
    rows = max(1, CHUNK // logits.shape[1])
    for chunk, c in zip(logits.split(rows), classes.split(rows), strict=True):
        log_p = (chunk.double() / temperature).log_softmax(1)
        losses.append(-log_p.gather(1, c[:, None])[:, 0])
        confidences.append(log_p.amax(1).exp())
    return torch.cat(losses), torch.cat(confidences)


def fit_temperature(logits: Tensor, classes: Tensor) -> float:
    """Return the temperature from COLDEST to HOTTEST with the least mean loss of logits (N, classes).

    The loss is convex in 1 / T, and so has one minimum in log T; if all answers are right, it falls as long as T does.
    If no temperature changes the loss, T is 1.
    """
    from scipy.optimize import minimize_scalar  # here, since its import takes time

    def loss(log_temperature: float) -> float:
        return float(at_temperature(logits, classes, math.exp(log_temperature))[0].mean())

    low, high = math.log(COLDEST), math.log(HOTTEST)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": TOLERANCE})
    at_low, at_high = loss(low), loss(high)
    if at_low == at_high == found.fun:
        return 1.0
    if min(at_low, at_high) <= found.fun:
        return COLDEST if at_low <= at_high else HOTTEST
    return math.exp(found.x)


def temperature_scaling(logits: Tensor, classes: Tensor, correct: Sequence[bool]) -> tuple[dict, list[dict]] | None:
    """Return loss and calibration after temperature scaling, and its table of bins; None for fewer than FEWEST images.

    logits (N, classes), true classes (N,), whether each answer is `correct`. Images are judged in FOLDS folds (two for
    more than MANY images), each at the temperature fitted on all other images, so that no image is judged at a
    temperature that it helped to choose. `temperature` in the result is fitted on all images. Guo et al. 2017, section
    4.2.
    """
    if len(logits) < FEWEST:
        return None
    folds = FOLDS if len(logits) <= MANY else 2
    temperatures = []
    loss, confidence = torch.empty(2, len(logits), dtype=torch.float64)
    for fold in range(folds):
        judged = torch.arange(len(logits)) % folds == fold
        temperatures.append(fit_temperature(logits[~judged], classes[~judged]))
        loss[judged], confidence[judged] = at_temperature(logits[judged], classes[judged], temperatures[-1])
    error, bins = calibration(confidence.numpy(), np.asarray(correct))
    temperature = fit_temperature(logits, classes)
    return {
        "temperature": temperature,
        "temperature_limit": {COLDEST: "at most", HOTTEST: "at least"}.get(temperature),
        "temperatures_of_folds": temperatures,
        "loss": float(loss.mean()),
        "expected_calibration_error": error,
        "mean_confidence": float(confidence.mean()),
    }, bins
