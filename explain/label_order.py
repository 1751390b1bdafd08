"""Labels that do not belong to a network: ids in another order than the one it was trained with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

SURE = 1e-4  # probability below which chance, or the network's own confidence, explains the number of hits no longer

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
    """Return what is wrong with the labels, and how to put it right; None where they may belong to the network.

    Suspect are labels by which top-1 is at chance although the network's mean confidence is a quarter of the way from
    chance to certainty, and the number of hits that it promises is refuted (both by binomial tests). Then each of a few
    other orders is tried, and the one by which most images agree is named if they are at least half as many as the
    confidence promises, and chance does not explain them.
    """
    from scipy.stats import binom  # here, since it takes a second and few runs need it

    n, chance = len(rows), 1 / len(names)
    hits = sum(row["rank"] == 1 for row in rows)
    confidence = sum(row["confidence"] for row in rows) / n
    at_chance = binom.sf(hits - 1, n, chance) > 0.01
    if not at_chance or confidence < chance + (1 - chance) / 4 or binom.cdf(hits, n, confidence) > SURE:
        return None
    agreement = {
        how: sum(order[row["class"]] == row["predicted"] for row in rows) / n for how, order in orders(names).items()
    }
    how, best = max(agreement.items(), key=lambda item: item[1])
    says = (
        f"top-1 is at chance ({hits} of {n}) at a mean confidence of {confidence:.2f}: the labels are another network's"
    )
    consistent = majority_agreement(rows)
    if best > confidence / 2 and binom.sf(round(best * n) - 1, n, chance) < SURE:
        says += f"; {best:.3f} of the images agree if {how}"
    elif consistent is not None and consistent > confidence / 2:
        says += (
            f"; they are its classes in another order ({consistent:.3f} agree with the others of their class): {CURES}"
        )
    else:
        says += f"; {CURES}"
    return {"suspect": True, "agreement": agreement, "agreement_within_classes": consistent, "says": says}


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
