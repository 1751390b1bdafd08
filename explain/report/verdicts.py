"""Conclusions from metrics, each in one sentence that a figure, the page and the terminal share."""

from __future__ import annotations

from typing import Any

from explain.basics.errors import quantity
from explain.methods.selective import BASELINE, FEWEST, SHOWN
from explain.report.numbers import label, measured


def most_faithful_map(results: dict[str, Any]) -> str:
    """Return which map of 2g is the most faithful, or that none is significantly better than the best baseline.

    A map whose score is higher, but not significantly, is named.
    """
    best, baseline = results["best_map"], results["best_baseline"]
    if best is None or baseline is None:
        return "There is nothing to compare: every map or every baseline is zero at all pixels."
    key, maps = "insertion_minus_deletion", results["maps"]
    if results["map_is_better"]:
        higher = [label(kind) for kind in results["kinds"] if maps[kind][key] > maps[best][key]]
        text = f"The most faithful map is the {label(best)} map"
        if higher:
            text = f"The best map that is significantly better than the baselines is the {label(best)} map"
            text += f" ({', '.join(higher)}: higher, but with a difference below twice its standard error)"
    else:
        text = f"No map is significantly better than the {label(baseline)} baseline"
    scores = ", ".join(f"{label(kind)} {measured(maps[kind], key)}" for kind in (best, baseline))
    return f"{text} (insertion minus deletion: {scores}; difference: {measured(results, 'difference')})."


def measure(name: str) -> str:
    """Return a measure of uncertainty as a reader knows it."""
    if not name.startswith("single_"):
        return label(name)
    return f"{'largest ' * (name == BASELINE)}{label(name.removeprefix('single_'))} of the single pass"


def best_measure(judged: dict[str, dict]) -> str:
    """Return which measure of uncertainty finds mistakes best, and whether it differs from the baseline.

    Differences are significant if their 95 % intervals exclude 0.
    """
    known = {name: found for name, found in judged.items() if found["auroc"] is not None}
    best = max(known, key=lambda name: (known[name]["auroc"], name == BASELINE))  # of equal ones the baseline
    text = f"the {measure(best)} finds mistakes best (AUROC {known[best]['auroc']:.2f})"
    if best != BASELINE:
        significant = known[best]["above_baseline_interval"][0] > 0
        return f"{text}, {'' if significant else 'but not '}significantly better than the {measure(BASELINE)}"
    worse = [measure(name) for name in known if known[name]["above_baseline_interval"][1] < 0]
    return f"{text}; significantly worse: {', '.join(worse) or 'none'}"


def find_mistakes(results: dict[str, Any]) -> str:
    """Return how well the main measures of uncertainty find the mistakes on labelled images."""
    judged = results.get("mistakes")
    if not judged:
        return "Whether these measures find mistakes is unknown without labelled images."
    aurocs = {name: found["auroc"] for name, found in judged.items() if found["auroc"] is not None}
    wrong, images = judged[BASELINE]["mistakes"], results["predictions"]["images"]
    if not aurocs:
        return (
            f"Too few images to tell whether these measures find mistakes: {quantity(wrong, 'mistake')} and "
            f"{quantity(images - wrong, 'right answer')} on labelled images; at least {FEWEST} of each are needed."
        )
    numbers = ", ".join(f"{measure(name)} {aurocs[name]:.2f}" for name in SHOWN if name in aurocs)
    return f"AUROC for mistakes on {quantity(images, 'labelled image')}: {numbers} (chance level: 0.5)."
