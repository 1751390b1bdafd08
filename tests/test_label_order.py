"""explain/data/label_order.py: labels that are not in the network's order are noticed, and the order is named."""

from __future__ import annotations

import random

import pytest

from explain.data.label_order import orders, other_order

CLASSES = 20
IN_ORDER, SHIFTED = list(range(CLASSES)), [(c + 5) % CLASSES for c in range(CLASSES)]
NAMES = [f"name {chr(ord('a') + (7 * i) % CLASSES)}" for i in range(CLASSES)]  # not in the order of text


def row(label: int, predicted: int, confidence: float = 0.8) -> dict:
    return {"class": label, "predicted": predicted, "rank": 1 if predicted == label else 2, "confidence": confidence}


def rows_of(order: list[int], accuracy: float = 0.9, confidence: float = 0.8, images: int = 100) -> list[dict]:
    """Rows of a network that is right in a fraction of the images, whose labels c are its class order[c]."""
    true = [order[i % CLASSES] for i in range(images)]
    predicted = [c if i < accuracy * images else (c + 3) % CLASSES for i, c in enumerate(true)]
    return [row(i % CLASSES, predicted[i], confidence) for i in range(images)]


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


def test_another_permutation_is_noticed_without_a_name():
    order = random.Random(1).sample(range(CLASSES), CLASSES)
    says = other_order(rows_of(order), NAMES)["says"]
    assert "in another order (0." in says and "development kit" in says and "sorts before" in says


def test_labels_without_any_order_get_the_likely_cures():
    labels = random.Random(2).choices(range(CLASSES), k=100)
    says = other_order([row(label, i % CLASSES) for i, label in enumerate(labels)], NAMES)["says"]
    assert "agree" not in says and "are they ids from 1" in says


def shifted_from(first: int, by: int) -> list[dict]:
    """Five rows for each label: four of its class, or of the next one from `first` on, and one of a class far away."""
    rows = []
    for label in range(CLASSES):
        true = label + by * (label >= first)
        if 0 <= true < CLASSES:
            rows += [row(label, predicted) for predicted in [true] * 4 + [(label + 10) % CLASSES]]
    return rows


@pytest.mark.parametrize(("first", "by", "hits"), [(10, 1, "40 of 50"), (4, -1, "16 of 20"), (17, -1, "68 of 85")])
def test_labels_that_are_shifted_from_some_id_on(first, by, hits):
    """A class that the labels lack, or have more than the network: all later ones were counted as mistakes."""
    rows = shifted_from(first, by)
    later = 5 * (CLASSES - first - (by == 1))
    found = other_order(rows, NAMES)
    assert (found["suspect"], found["shifted_from"], found["shift"]) == (True, first, by)
    assert found["agreement_shifted"] == 0.8
    direction = "higher" if by == 1 else "lower"
    for part in (f"from id {first} on", f"(0 of {later})", direction, f"below, {hits} are right"):
        assert part in found["says"]


def test_a_class_that_the_network_takes_for_its_neighbour_is_no_shift():
    """However many images it has; nor two such classes, nor several that it takes for one and the same."""
    assert other_order(shifted_from(18, -1), NAMES) is None
    rows = rows_of(IN_ORDER, images=1000)
    for first, taken_for in ((CLASSES - 1, CLASSES - 2), (CLASSES - 5, CLASSES - 6)):
        rows = [row(c["class"], taken_for) if c["class"] >= first else c for c in rows]
        assert other_order(rows, NAMES) is None


def exchanged(images: int, accuracy: float = 0.9) -> list[dict]:
    """So many rows for each label, with the labels of classes 3 and 7 exchanged."""
    order = [{3: 7, 7: 3}.get(c, c) for c in IN_ORDER]
    return rows_of(order, accuracy, images=images * CLASSES)


def test_some_classes_that_are_never_right():
    """Two labels that are exchanged: 18 of 20 classes are right in nine of ten images."""
    found = other_order(exchanged(10), NAMES)
    assert found["never_right"] == [3, 7]
    for part in ("2 classes are never right (0 of 20 images)", "162 of 180", f"They are {NAMES[3]}, {NAMES[7]}"):
        assert part in found["says"]


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(IN_ORDER),
        rows_of(SHIFTED, confidence=0.1),  # an untrained network is not sure
        rows_of(SHIFTED, images=3),  # three misses say nothing
        rows_of(IN_ORDER, accuracy=0.3),  # bad, but above chance
        exchanged(3),  # classes that may be missed by chance
        exchanged(10, accuracy=0.3),  # nor is the network much better with the others
    ],
)
def test_nothing_is_said_where_the_labels_may_belong(rows):
    assert other_order(rows, NAMES) is None


def test_a_network_that_sees_one_class_everywhere_is_not_put_down_to_the_labels():
    """Three steps of training leave a network whose images of four classes are all taken for one."""
    says = other_order([row(i % 4, 0, confidence=0.7) for i in range(60)], ["blue", "green", "red", "yellow"])["says"]
    assert "the images of 4 classes are taken for blue: is the network trained" in says
    assert "do not fit this network" not in says and "--mean" in says
