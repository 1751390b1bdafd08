"""explain/label_order.py: labels that are not in the network's order are noticed, and the order is named."""

from __future__ import annotations

import random

import pytest

from explain.label_order import invert, orders, other_order

CLASSES = 20
NAMES = [f"name {chr(ord('a') + (7 * i) % CLASSES)}" for i in range(CLASSES)]  # not in the order of text


def rows_of(order: list[int], accuracy: float = 0.9, confidence: float = 0.8, images: int = 100) -> list[dict]:
    """Rows of a network that is right in a fraction of the images, whose labels c are its class order[c]."""
    rows = []
    for i in range(images):
        true = order[i % CLASSES]
        predicted = true if i < accuracy * images else (true + 3) % CLASSES
        rank = 1 if predicted == i % CLASSES else 2
        rows.append({"class": i % CLASSES, "predicted": predicted, "rank": rank, "confidence": confidence})
    return rows


@pytest.mark.parametrize("how", orders(NAMES))
def test_the_order_is_named(how):
    order = [c % CLASSES for c in orders(NAMES)[how]]
    found = other_order(rows_of(order), NAMES)
    assert found["suspect"] and f"agree if {how}" in found["says"]
    # by the ids from 1 the label 0 belongs to nothing: of five such images none can agree
    assert found["agreement"][how] == pytest.approx(0.9, abs=0.06)


def test_orders_by_hand():
    eleven = orders([str(i) for i in range(11)])
    # as text: 0 1 10 2 3 ...; a network trained on such folders calls the number 10 its class 2
    assert eleven["the labels are places among numbers sorted as text"][:4] == [0, 1, 10, 2]
    assert eleven["the network's classes are numbers sorted as text, the labels are not"][10] == 2
    assert eleven["the ids start at 1"][:3] == [-1, 0, 1]
    assert invert([2, 0, 1]) == [1, 2, 0]


def test_another_permutation_is_noticed_without_a_name():
    order = list(range(CLASSES))
    random.Random(1).shuffle(order)
    says = other_order(rows_of(order), NAMES)["says"]
    assert "in another order (0." in says and "development kit" in says and "sorts before" in says


def test_labels_without_any_order_get_the_likely_cures():
    rows = rows_of(list(range(CLASSES)))
    labels = [row["class"] for row in rows]
    random.Random(2).shuffle(labels)
    for row, label in zip(rows, labels, strict=True):
        row |= {"class": label, "rank": 1 if row["predicted"] == label else 2}
    says = other_order(rows, NAMES)["says"]
    assert "agree" not in says and "are they ids from 1" in says


def test_nothing_is_said_where_the_labels_may_belong():
    assert other_order(rows_of(list(range(CLASSES))), NAMES) is None
    shifted = [(c + 5) % CLASSES for c in range(CLASSES)]
    assert other_order(rows_of(shifted, confidence=0.1), NAMES) is None  # an untrained network is not sure
    assert other_order(rows_of(shifted, images=3), NAMES) is None  # three misses say nothing
    assert other_order(rows_of(list(range(CLASSES)), accuracy=0.3), NAMES) is None  # bad, but above chance
