"""Selective prediction: whether a measure of uncertainty finds the mistakes, on images whose class is known.

Each measure is judged by the mistakes of its own prediction: the mean's for measures of the passes, the single pass's
for its own. Larger values mean less sure, except for the largest probability and the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from explain.methods.calibration import calibration
from explain.methods.maps import average_ranks

# Measures by their keys in a row: 1 if it rises with uncertainty, else -1; and the prediction whose mistakes it judges
MEASURES = {
    "variance": (1, "mean"),
    "coefficient_of_variation": (1, "mean"),
    "mutual_information": (1, "mean"),
    "predictive_entropy": (1, "mean"),
    "disagreement": (1, "mean"),
    "single_probability": (-1, "single"),
    "single_margin": (-1, "single"),
    "single_entropy": (1, "single"),
}
BASELINE = "single_probability"  # known from one ordinary pass
SHOWN = ("mutual_information", "predictive_entropy", "coefficient_of_variation", BASELINE)  # where space is short
FEWEST = 5  # mistakes, and right answers, needed to judge a measure
RESAMPLES = 1000  # of the images, for 0.95 intervals: Efron 1979, Bootstrap Methods


def score_prediction(p: np.ndarray, label: int) -> dict[str, Any]:
    """Return whether a distribution p (classes,) is right, its confidence, loss (nats) and Brier score."""
    return {
        "right": int(p.argmax()) == label,
        "confidence": float(p.max()),
        "loss": float(-np.log(max(p[label], 1e-300))),
        "brier": float((p**2).sum() - 2 * p[label] + 1),  # sum of (p - 1[label])^2
    }


def auroc(uncertainty: np.ndarray, mistakes: np.ndarray) -> float:
    """Return the probability that a mistake is less sure than a right answer; uncertainty, mistakes (n,).

    Ties count half; NaN if there is no mistake or no right answer. This is scikit-learn's roc_auc_score in a tenth of
    its time, for the thousands of resamples.
    """
    wrong = int(mistakes.sum())
    if not 0 < wrong < len(mistakes):
        return float("nan")
    ranks = average_ranks(uncertainty)[mistakes].sum()
    return float((ranks - wrong * (wrong + 1) / 2) / (wrong * (len(mistakes) - wrong)))


def auroc_standard_error(uncertainty: np.ndarray, mistakes: np.ndarray) -> float:
    """Return the standard error of `auroc` over independent images, with at least two mistakes and two right answers.

    DeLong et al. 1988, Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves.
    """
    ranks, variance = average_ranks(uncertainty), 0.0
    for own in (mistakes, ~mistakes):  # for each image, the fraction of the other group below it
        below = (ranks[own] - average_ranks(uncertainty[own])) / (~own).sum()
        variance += below.var(ddof=1) / own.sum()
    return float(np.sqrt(variance))


def risk_coverage(uncertainty: np.ndarray, mistakes: np.ndarray) -> np.ndarray:
    """Return the fraction of mistakes (n,) among the surest 1, 2, ... n images.

    Images of the same uncertainty share their mistakes evenly, which is the mean over all their orders. Geifman and
    El-Yaniv 2017, Selective Classification for Deep Neural Networks, section 2.
    """
    _, group = np.unique(uncertainty, return_inverse=True)
    rate = np.bincount(group, mistakes) / np.bincount(group)
    expected = rate[np.sort(group)]
    return np.cumsum(expected) / np.arange(1, len(expected) + 1)


def compare_measures(rows: Sequence[dict], seed: int | None = None, independent: bool = True) -> dict[str, dict]:
    """Return each measure's AUROC for mistakes, and the area under its risk-coverage curve.

    Rows have the measures, and `mean` and `single` as `score_prediction` returns them. AUROC is None with fewer than
    FEWEST mistakes or right answers. With a seed, the result has 0.95 bootstrap intervals over images, and
    `above_baseline`, the difference from the single pass's largest probability on the same resamples; without, the
    standard error of AUROC, if the rows are `independent`. Measures that a row lacks (one pass has no variance) are
    left out.
    """
    results: dict[str, dict] = {}
    judged: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # uncertainty and mistakes (n,), if there are enough
    for name, (sign, whose) in MEASURES.items():
        if any(row[name] is None for row in rows):
            continue
        values = np.array([row[name] for row in rows])
        uncertainty, mistakes = sign * values, np.array([not row[whose]["right"] for row in rows])
        results[name] = {
            "mistakes": int(mistakes.sum()),
            "mean": float(values.mean()),
            "auroc": None,
            "area_under_risk_coverage": float(risk_coverage(uncertainty, mistakes).mean()),
        }
        if FEWEST <= mistakes.sum() <= len(rows) - FEWEST:
            judged[name] = uncertainty, mistakes
            results[name]["auroc"] = auroc(uncertainty, mistakes)
            if seed is None and independent:
                results[name]["auroc_standard_error"] = auroc_standard_error(uncertainty, mistakes)
    if seed is None or BASELINE not in judged:
        return results
    random = np.random.default_rng(seed)
    aurocs, areas = np.empty((2, RESAMPLES, len(judged)))
    for k in range(RESAMPLES):
        sample = random.integers(len(rows), size=len(rows))
        for m, name in enumerate(judged):
            uncertainty, mistakes = (values[sample] for values in judged[name])
            aurocs[k, m] = auroc(uncertainty, mistakes)
            areas[k, m] = risk_coverage(uncertainty, mistakes).mean()
    base = [*judged].index(BASELINE)
    for m, name in enumerate(judged):
        results[name] |= {
            "auroc_interval": interval(aurocs[:, m]),
            "area_under_risk_coverage_interval": interval(areas[:, m]),
            "above_baseline": results[name]["auroc"] - results[BASELINE]["auroc"],
            "above_baseline_interval": interval(aurocs[:, m] - aurocs[:, base]),
        }
    return results


def interval(values: np.ndarray) -> list[float]:
    """Return the 0.025 and 0.975 quantiles of resampled values, without NaN."""
    return [float(bound) for bound in np.nanquantile(values, (0.025, 0.975))]


def score_predictions(rows: Sequence[dict], whose: str) -> dict[str, float]:
    """Return the mean scores of the predictions of `mean` or `single`, and their calibration error."""
    columns = {key: np.array([row[whose][key] for row in rows]) for key in ("right", "confidence", "loss", "brier")}
    right, confidence = columns["right"], columns["confidence"]
    return {
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "loss": float(columns["loss"].mean()),
        "brier_score": float(columns["brier"].mean()),
        "expected_calibration_error": calibration(confidence, right)[0],
    }


def summary(rows: Sequence[dict], seed: int) -> tuple[dict, dict[str, list[dict]]]:
    """Return the metrics of the labelled images, and their tables by file name."""
    if not rows:
        return {}, {}
    shifted = [{"none": row, **row["disturbed"]} for row in rows if "disturbed" in row]
    groups = {name: [row[name] for row in shifted] for name in (shifted[0] if shifted else ())}
    if shifted:
        groups["pooled"] = [row[name] for row in shifted for name in row if name != "none"]
    under_shift: dict[str, dict] = {}
    for name, group in groups.items():
        scores = score_predictions(group, "mean")
        under_shift[name] = {key: scores[key] for key in ("accuracy", "confidence")}
        under_shift[name] |= compare_measures(group, independent=name != "pooled")
    results = {
        "predictions": {
            "images": len(rows),
            **{whose: score_predictions(rows, whose) for whose in ("mean", "single")},
        },
        "mistakes": compare_measures(rows, seed),
        "mistakes_under_shift": under_shift,
    }
    tables = {"measures.csv": [{"measure": name, **measures} for name, measures in results["mistakes"].items()]}
    if under_shift:
        tables["measures_under_shift.csv"] = [
            {"disturbance": name, "accuracy": group["accuracy"], "confidence": group["confidence"], "measure": measure}
            | {key: group[measure].get(key) for key in ("mean", "auroc", "auroc_standard_error")}
            for name, group in under_shift.items()
            for measure in MEASURES
            if measure in group
        ]
    return results, tables
