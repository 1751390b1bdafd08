"""Labels that do not belong to a network: ids in another order than the one it was trained with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from explain.data.datasets import shown

SURE = 1e-4  # probability below which chance, or the network's own confidence, explains the number of hits no longer

MOVED = 3  # labels that must have moved, for a shift to be suspected

CURES = (
    "are they ids from 1, those of ILSVRC-2012's development kit (an order of their own), or places in another order "
    "of the names (as text, 10 sorts before 2)?"
)


def orders(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the few orders that labels are known to come in: label -> the network's class, -1 for none."""
    n = len(names)
    as_text, by_name = sorted(range(n), key=str), sorted(range(n), key=lambda i: names[i])
    return {
        "the ids start at 1": [-1, *range(n - 1)],
        "the network's classes are numbers sorted as text, the labels are not": invert(as_text),
        "the labels are places among numbers sorted as text": as_text,
        "the network's classes are sorted by name, the labels are not": invert(by_name),
        "the labels are places among the sorted names": by_name,
    }


def invert(order: Sequence[int]) -> list[int]:
    """Return the inverse of a permutation."""
    return sorted(range(len(order)), key=order.__getitem__)


def other_order(rows: Sequence[dict], names: Sequence[str]) -> dict[str, Any] | None:
    """Return the likely fault of the labels, and its cure; None where they may belong to the network.

    Suspect are labels by which top-1 is at chance, for all images (`another_order`), from some id on (`shift`) or in
    some classes (`never_right`), although the network's mean confidence there is a quarter of the way from chance to
    certainty, and the number of hits that it promises is refuted (both by binomial tests).
    """
    n, chance = len(rows), 1 / len(names)
    hits = sum(row["rank"] == 1 for row in rows)
    confidence = sum(row["confidence"] for row in rows) / n
    if breaks_promise(hits, n, confidence, chance, SURE):
        return another_order(rows, hits, confidence, names)
    return shift(rows, chance) or never_right(rows, names)


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


def another_order(rows: Sequence[dict], hits: int, confidence: float, names: Sequence[str]) -> dict[str, Any]:
    """Return which of a few other orders explains labels by which top-1 is at chance.

    The order by which most images agree is named if it explains them.
    """
    n, chance = len(rows), 1 / len(names)
    agreement = {
        how: sum(order[row["class"]] == row["predicted"] for row in rows) / n for how, order in orders(names).items()
    }
    how, best = max(agreement.items(), key=lambda item: item[1])
    says = (
        f"top-1 is at chance ({hits} of {n}) at a mean confidence of {confidence:.2f}: the labels are another network's"
    )
    consistent = majority_agreement(rows)
    if explains(round(best * n), n, confidence, chance, SURE):
        says += f"; {best:.3f} of the images agree if {how}"
    elif consistent is not None and consistent > confidence / 2:
        says += (
            f"; they are its classes in another order ({consistent:.3f} agree with the others of their class): {CURES}"
        )
    else:
        says += f"; {CURES}"
    return {"suspect": True, "agreement": agreement, "agreement_within_classes": consistent, "says": says}


def shift(rows: Sequence[dict], chance: float) -> dict[str, Any] | None:
    """Return the id from which on all labels seem one too low or too high; None where there is no such id.

    Each label is tried, in both directions. From it on, the labels must break the confidence's promise, and those of
    the next id must explain the images, by the tests of `other_order` at SURE over the number of trials (Bonferroni).
    Since a network may also take a class for its neighbour, at least MOVED labels, and half of those from there on,
    must have more than half of their images predicted as the next id.
    """
    labels, place = np.unique([row["class"] for row in rows], return_inverse=True)
    ahead = np.array([row["predicted"] - row["class"] for row in rows])
    right, confidences = (np.array([row[key] for row in rows]) for key in ("rank", "confidence"))

    def of_label(values: np.ndarray) -> np.ndarray:  # (labels,): sums over the images of each
        return np.bincount(place, values)

    def from_on(values: np.ndarray) -> np.ndarray:  # (labels,): sums over each and all higher ones
        return values[::-1].cumsum()[::-1]

    n, hits = from_on(of_label(np.ones(len(rows)))), from_on(of_label(right == 1))
    confidence = from_on(of_label(confidences)) / n
    sure, left = SURE / (2 * len(labels)), np.arange(len(labels), 0, -1)
    found: list[tuple[int, int, int]] = []  # images that agree more, place of the first label, shift
    for by in (1, -1):
        agree = from_on(of_label(ahead == by))
        moved = from_on(2 * of_label(ahead == by) > of_label(np.ones(len(rows))))
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
        f"{'higher' if by == 1 else 'lower'} id; below, {int(hits[0]) - right_later} of {len(rows) - later} are right: "
        "is a class missing there, among the labels or in the network?"
    )
    return {"suspect": True, "shifted_from": int(labels[k]), "shift": by, "agreement_shifted": agreement, "says": says}


def never_right(rows: Sequence[dict], names: Sequence[str]) -> dict[str, Any] | None:
    """Return the classes that are never right although the others are, at least two; None where there are no such.

    They must break the promise of their confidence, or of the other classes' accuracy where that is lower, by the test
    of `other_order` at SURE over the number of classes (Bonferroni). Those that the network takes for one and the same
    class are its own mistake.
    """
    groups: dict[int, list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["class"]].append(row)
    missed = {c: group for c, group in groups.items() if all(row["rank"] > 1 for row in group)}
    others = [row for row in rows if row["class"] not in missed]
    if len(missed) < 2 or not others:
        return None
    chance, hits = 1 / len(names), sum(row["rank"] == 1 for row in others)
    if not explains(hits, len(others), sum(row["confidence"] for row in others) / len(others), chance, SURE):
        return None
    taken_for = {c: Counter(row["predicted"] for row in group).most_common(1)[0][0] for c, group in missed.items()}
    times = Counter(taken_for.values())
    suspect = []
    for c, group in sorted(missed.items()):
        promised = min(sum(row["confidence"] for row in group) / len(group), hits / len(others))
        if times[taken_for[c]] == 1 and breaks_promise(0, len(group), promised, chance, SURE / len(groups)):
            suspect.append(c)
    if len(suspect) < 2:
        return None
    wrong = [row for c in suspect for row in groups[c]]
    says = (
        f"{len(suspect)} classes are never right (0 of {len(wrong)} images) at a mean confidence of "
        f"{sum(row['confidence'] for row in wrong) / len(wrong):.2f}, and of those of other classes {hits} of "
        f"{len(others)} are: are their labels or names exchanged? They are {shown([names[c] for c in suspect])}"
    )
    return {"suspect": True, "never_right": suspect, "says": says}


def majority_agreement(rows: Sequence[dict]) -> float | None:
    """Return the fraction of images whose prediction is the most frequent one of the other images with their label.

    None where no label has two images.
    """
    predicted = defaultdict(list)
    for row in rows:
        predicted[row["class"]].append(row["predicted"])
    agree = []
    for group in (group for group in predicted.values() if len(group) > 1):
        counts = Counter(group)
        for p in group:
            others = counts - Counter([p])
            agree.append(others[p] == max(others.values()))
    return sum(agree) / len(agree) if agree else None
