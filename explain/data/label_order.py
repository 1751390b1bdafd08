"""Labels that do not belong to a network: ids in another order than the one it was trained with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from explain.data.datasets import shown

SURE = 1e-4  # probability below which chance, or the network's own confidence, explains the number of hits no longer
MOVED = 3  # labels that must have moved, for a shift to be suspected
CURES = (
    "are they ids from 1, those of ILSVRC-2012's development kit (an order of their own), or places in another order "
    "of the names (as text, 10 sorts before 2)?"
)


class Answers(NamedTuple):
    """The label of each image (n,), the class that the network predicts, its confidence, and whether it is right."""

    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def orders(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the few orders that labels are known to come in: label -> the network's class, -1 for none."""
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
    """Return the likely fault of the labels, and its cure; None where they may belong to the network.

    Suspect are labels by which top-1 is at chance, for all images (`another_order`), from some id on (`shift`) or in
    some classes (`never_right`), although the network's mean confidence there is a quarter of the way from chance to
    certainty, and the number of hits that it promises is refuted (both by binomial tests).
    """
    columns = (np.array([row[key] for row in rows]) for key in ("class", "predicted", "confidence", "rank"))
    answers, chance = Answers(*columns), 1 / len(names)
    answers = answers._replace(right=answers.right == 1)
    if breaks_promise(answers.right.sum(), len(rows), answers.confidence.mean(), chance, SURE):
        return another_order(answers, names)
    return shift(answers, chance) or never_right(answers, names)


def breaks_promise(hits: Any, n: Any, confidence: Any, chance: float, sure: float) -> Any:
    """Return whether chance explains so few hits among n images, and the network's mean confidence does not.

    Numbers or arrays, as in `explains`.
    """
    from scipy.stats import binom  # here, since it takes a second and few runs need it

    at_chance, promised = binom.sf(hits - 1, n, chance) > 0.01, chance + (1 - chance) / 4 <= confidence
    return at_chance & promised & (binom.cdf(hits, n, confidence) <= sure)


def explains(hits: Any, n: Any, confidence: Any, chance: float, sure: float) -> Any:
    """Return whether another order has half of the hits that the confidence promises, too many for chance."""
    from scipy.stats import binom

    return (hits > n * confidence / 2) & (binom.sf(hits - 1, n, chance) < sure)


def another_order(answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    """Return which of a few other orders explains labels by which top-1 is at chance.

    The order by which most images agree is named if it explains them.
    """
    n, hits, confidence = len(answers.label), int(answers.right.sum()), float(answers.confidence.mean())
    agree = {how: (np.array(order)[answers.label] == answers.predicted).sum() for how, order in orders(names).items()}
    how, best = max(agree.items(), key=lambda item: item[1])
    says = (
        f"top-1 is at chance ({hits} of {n}) at a mean confidence of {confidence:.2f}: the labels are another network's"
    )
    consistent = majority_agreement(answers)
    if explains(best, n, confidence, 1 / len(names), SURE):
        says += f"; {best / n:.3f} of the images agree if {how}"
    elif consistent is not None and consistent > confidence / 2:
        says += (
            f"; they are its classes in another order ({consistent:.3f} agree with the others of their class): {CURES}"
        )
    else:
        says += f"; {CURES}"
    agreement = {how: float(hits / n) for how, hits in agree.items()}
    return {"suspect": True, "agreement": agreement, "agreement_within_classes": consistent, "says": says}


def shift(answers: Answers, chance: float) -> dict[str, Any] | None:
    """Return the id from which on all labels seem one too low or too high; None where there is no such id.

    Each label is tried, in both directions. From it on, the labels must break the confidence's promise, and those of
    the next id must explain the images, by the tests of `other_order` at SURE over the number of trials (Bonferroni).
    Since a network may also take a class for its neighbour, at least MOVED labels, and half of those from there on,
    must have more than half of their images predicted as the next id.
    """
    labels, place, images = np.unique(answers.label, return_inverse=True, return_counts=True)

    def from_on(values: np.ndarray) -> np.ndarray:  # (labels,): sums over each and all higher ones
        return values[::-1].cumsum()[::-1]

    n, hits = from_on(images), from_on(np.bincount(place, answers.right))
    confidence = from_on(np.bincount(place, answers.confidence)) / n
    sure, left = SURE / (2 * len(labels)), np.arange(len(labels), 0, -1)
    found: list[tuple[int, int, int]] = []  # images that agree more, place of the first label, shift
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
        f"the labels seem shifted by one from id {labels[k]} on: there top-1 is at chance ({right_later} of {later}) "
        f"at a mean confidence of {confidence[k]:.2f}, and {agreement:.3f} of the images agree with the next "
        f"{'higher' if by == 1 else 'lower'} id; below, {int(hits[0]) - right_later} of {n[0] - later} are right: "
        "is a class missing there, among the labels or in the network?"
    )
    return {"suspect": True, "shifted_from": int(labels[k]), "shift": by, "agreement_shifted": agreement, "says": says}


def never_right(answers: Answers, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the classes that are never right although the others are, at least two; None where there are no such.

    They must break the promise of their confidence, or of the other classes' accuracy where that is lower, by the test
    of `other_order` at SURE over the number of classes (Bonferroni). Those that the network takes for one and the same
    class are its own mistake.
    """
    labels, place = np.unique(answers.label, return_inverse=True)
    missed = labels[np.bincount(place, answers.right) == 0]
    others, hits, chance = ~np.isin(answers.label, missed), int(answers.right.sum()), 1 / len(names)
    n = int(others.sum())
    if len(missed) < 2 or not n or not explains(hits, n, answers.confidence[others].mean(), chance, SURE):
        return None
    taken_for = {c: Counter(answers.predicted[answers.label == c]).most_common(1)[0][0] for c in missed.tolist()}
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
        f", and of those of other classes {hits} of {n} are: are their labels or names exchanged? They are "
        f"{shown([names[c] for c in suspect])}"
    )
    return {"suspect": True, "never_right": suspect, "says": says}


def majority_agreement(answers: Answers) -> float | None:
    """Return the fraction of images whose prediction is the most frequent one of the other images with their label.

    None where no label has two images.
    """
    agree = []
    for label in np.unique(answers.label):
        counts = Counter(answers.predicted[answers.label == label].tolist())
        for p, times in counts.items() if counts.total() > 1 else ():
            others = counts - Counter([p])
            agree += [others[p] == max(others.values())] * times
    return sum(agree) / len(agree) if agree else None
