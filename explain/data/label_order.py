"""Labels that do not belong to a network: ids in another order than the order of its training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from explain.data.datasets import shown

SURE = 1e-4  # probability below which a number of hits is not put down to chance, or to the network's own confidence
MOVED = 3  # labels that must have moved before a shift is suspected
CURES = (
    "are they ids from 1, the ids of ILSVRC-2012's development kit (which has its own order), or positions in another "
    "order of the names (as text, 10 sorts before 2)?"
)
UNTRAINED = (
    "is the network trained, including its batch norms' means and variances, and do --mean, --std and --resize have "
    "the values used in training?"
)


class Answers(NamedTuple):
    """The label of each image (n,), the class that the network predicts, its confidence, and whether it is right."""

    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def orders(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the orders in which labels are known to come, as lists from label to the network's class (-1: none)."""
    n = len(names)
    as_text, by_name = sorted(range(n), key=str), sorted(range(n), key=lambda i: names[i])
    return {
        "the ids start at 1": [-1, *range(n - 1)],
        "the network's classes are numbers sorted as text, the labels are not": np.argsort(as_text).tolist(),
        "the labels are places among numbers sorted as text": as_text,
        "the network's classes are sorted by name, the labels are not": np.argsort(by_name).tolist(),
        "the labels are places among the sorted names": by_name,
    }


def other_order(rows: Sequence[dict], names: Sequence[str]) -> dict[str, Any] | None:
    """Return the likely fault of the labels, and its cure; None if they may belong to the network.

    Labels are suspect if top-1 is at chance, for all images (`another_order`), from some id on (`shift`) or in some
    classes (`never_right`), and the network's confidence promises more (`breaks_promise`).
    """
    columns = (np.array([row[key] for row in rows]) for key in ("class", "predicted", "confidence", "rank"))
    answers, chance = Answers(*columns), 1 / len(names)
    answers = answers._replace(right=answers.right == 1)
    if breaks_promise(answers.right.sum(), len(rows), answers.confidence.mean(), chance, SURE):
        return another_order(answers, names)
    return shift(answers, chance) or never_right(answers, names)


def breaks_promise(hits: Any, n: Any, confidence: Any, chance: float, sure: float) -> Any:
    """Return whether chance explains the hits among n images, while the network's mean confidence does not.

    The confidence must be at least a quarter of the way from chance to certainty. Both parts are binomial tests; the
    arguments are numbers or arrays.
    """
    from scipy.stats import binom  # slow to import, and few runs need it

    at_chance, promised = binom.sf(hits - 1, n, chance) > 0.01, chance + (1 - chance) / 4 <= confidence
    return at_chance & promised & (binom.cdf(hits, n, confidence) <= sure)


def explains(hits: Any, n: Any, confidence: Any, chance: float, sure: float) -> Any:
    """Return whether the hits of an order are half of those that the confidence promises, and too many for chance."""
    from scipy.stats import binom

    return (hits > n * confidence / 2) & (binom.sf(hits - 1, n, chance) < sure)


def another_order(answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    """Return the one of `orders` by which most images agree, if it explains labels by which top-1 is at chance.

    If most classes are taken for the same few, no order explains that: the network or its input is at fault.
    """
    n, hits, confidence = len(answers.label), int(answers.right.sum()), float(answers.confidence.mean())
    agree = {how: (np.array(order)[answers.label] == answers.predicted).sum() for how, order in orders(names).items()}
    how, best = max(agree.items(), key=lambda item: item[1])
    consistent = majority_agreement(answers)
    if explains(best, n, confidence, 1 / len(names), SURE):
        cause = f"{best / n:.3f} of the images agree if {how}"
    elif consistent is not None and consistent > confidence / 2:
        cause = f"they are in another order ({consistent:.3f} of the predictions agree within a label): {CURES}"
    else:
        cause = CURES
    chance = f"top-1 is at chance ({hits} of {n}) at a mean confidence of {confidence:.2f}"
    agreement = {how: float(hits / n) for how, hits in agree.items()}
    says = f"{chance}: the labels do not fit this network; {cause}"
    labels, favourites = len(np.unique(answers.label)), {*favourite_of_labels(answers).values()}
    if 2 * len(favourites) <= labels and cause.endswith(CURES):
        named = shown([names[c] for c in sorted(favourites)])
        says = f"{chance}: the images of {labels} classes are taken for {named}: {UNTRAINED}"
    return {"suspect": True, "agreement": agreement, "agreement_within_classes": consistent, "says": says}


def shift(answers: Answers, chance: float) -> dict[str, Any] | None:
    """Return the id from which on all labels seem one too low or too high; None if there is no such id.

    Each label is tried, in both directions. From it on, the labels must break the confidence's promise, and those of
    the next id must explain the predictions, at SURE over the number of trials (Bonferroni). Since a network may also
    mistake a class for its neighbour, at least MOVED labels, and half of those from there on, must have more than half
    of their images predicted as the next id.
    """
    labels, place, images = np.unique(answers.label, return_inverse=True, return_counts=True)

    def from_on(values: np.ndarray) -> np.ndarray:  # (labels,): sums over each label and all higher ones
        return values[::-1].cumsum()[::-1]

    n, hits = from_on(images), from_on(np.bincount(place, answers.right))
    confidence = from_on(np.bincount(place, answers.confidence)) / n
    sure, left = SURE / (2 * len(labels)), np.arange(len(labels), 0, -1)
    found: list[tuple[int, int, int]] = []  # gain in hits, place of the first label, shift
    for by in (1, -1):
        of_label = np.bincount(place, answers.predicted - answers.label == by)
        agree, moved = from_on(of_label), from_on(2 * of_label > images)
        suspect = (moved >= MOVED) & (2 * moved >= left) & breaks_promise(hits, n, confidence, chance, sure)
        suspect &= explains(agree, n, confidence, chance, sure)
        found += [(int(agree[k] - hits[k]), int(k), by) for k in np.flatnonzero(suspect)]
    if not found:
        return None
    gain, k, by = max(found)
    later, right_later, agreement = int(n[k]), int(hits[k]), float((gain + hits[k]) / n[k])
    says = (
        f"the labels seem shifted by one from id {labels[k]} on: there, top-1 is at chance ({right_later} of {later}) "
        f"at a mean confidence of {confidence[k]:.2f}, and {agreement:.3f} of the images agree with the next "
        f"{'higher' if by == 1 else 'lower'} id; below, {int(hits[0]) - right_later} of {n[0] - later} are right: "
        "is a class missing there, among the labels or in the network?"
    )
    return {"suspect": True, "shifted_from": int(labels[k]), "shift": by, "agreement_shifted": agreement, "says": says}


def never_right(answers: Answers, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the classes, at least two, that are never right while other classes are; None if there are none.

    They must break the promise of their confidence, or of the other classes' accuracy if that is lower, at SURE over
    the number of classes (Bonferroni). Classes that are mistaken for the same class are the network's own mistake.
    """
    labels, place = np.unique(answers.label, return_inverse=True)
    missed = labels[np.bincount(place, answers.right) == 0]
    others, hits, chance = ~np.isin(answers.label, missed), int(answers.right.sum()), 1 / len(names)
    n = int(others.sum())
    if len(missed) < 2 or not n or not explains(hits, n, answers.confidence[others].mean(), chance, SURE):
        return None
    taken_for = {c: p for c, p in favourite_of_labels(answers).items() if c in missed}
    times = Counter(taken_for.values())
    suspect = []
    for c, prediction in taken_for.items():
        confidence = answers.confidence[answers.label == c]
        promise = min(confidence.mean(), hits / n), chance, SURE / len(labels)
        if times[prediction] == 1 and breaks_promise(0, len(confidence), *promise):
            suspect.append(c)
    if len(suspect) < 2:
        return None
    wrong = answers.confidence[np.isin(answers.label, suspect)]
    says = (
        f"{len(suspect)} classes are never right (0 of {len(wrong)} images) at a mean confidence of {wrong.mean():.2f}"
        f", while {hits} of {n} images of other classes are: are their labels or names exchanged? They are "
        f"{shown([names[c] for c in suspect])}"
    )
    return {"suspect": True, "never_right": suspect, "says": says}


def favourite_of_labels(answers: Answers) -> dict[int, int]:
    """Return the class that the network predicts most often for the images of each label."""
    labels = np.unique(answers.label).tolist()
    return {c: Counter(answers.predicted[answers.label == c].tolist()).most_common(1)[0][0] for c in labels}


def majority_agreement(answers: Answers) -> float | None:
    """Return the fraction of images whose prediction is the most frequent one of the other images with their label.

    Labels with one image do not count; None if there are no others.
    """
    agree = []
    for label in np.unique(answers.label):
        counts = Counter(answers.predicted[answers.label == label].tolist())
        for p, times in counts.items() if counts.total() > 1 else ():
            others = counts - Counter([p])
            agree += [others[p] == max(others.values())] * times
    return sum(agree) / len(agree) if agree else None
