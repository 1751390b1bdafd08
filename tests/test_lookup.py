"""explain/data/lookup.py: the class that a name means, by one rule wherever classes are named."""

from __future__ import annotations

import unicodedata

import pytest
from conftest import save_photo

import common
from explain.basics.errors import UserError
from explain.data.datasets import class_folders
from explain.data.labels import read_labels
from explain.data.lookup import class_lookup

CLASSES = ["A", "a", "tench, Tinca tinca", "crane", "Crane", "crane", "maillot", "maillot, tank suit", "Café au lait"]
WNIDS = ["", "", "n01440764", "n02012849", "", "n03126707", "", "", ""]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("A", [0]),
        ("a", [1]),
        ("tench, Tinca tinca", [2]),
        ("tench Tinca tinca", []),  # neither the whole name nor a part of it
        ("TENCH,_tinca_tinca", [2]),
        ("tinca tinca", [2]),
        ("Tench", [2]),
        ("n01440764", [2]),
        ("n01440764 tench, Tinca tinca", [2]),
        ("Crane", [4]),
        ("crane", [3, 5]),
        ("CRANE", [3, 4, 5]),
        ("n03126707", [5]),
        ("maillot", [6]),  # a whole name comes before a part
        ("tank suit", [7]),
        (unicodedata.normalize("NFD", "Café au lait"), [8]),
        (unicodedata.normalize("NFD", "CAFÉ_AU_LAIT"), [8]),
        ("", []),
        ("whale", []),
    ],
)
def test_the_rule_by_hand(text, ids):
    assert class_lookup(CLASSES, WNIDS)(text) == ids


def test_names_alike_in_all_but_their_composition_are_two_classes():
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    look_up = class_lookup(names)
    assert [look_up(name) for name in names] == [[0], [1]] and look_up("É") == [0, 1]


def test_everything_that_takes_a_name_takes_it_by_this_rule(tmp_path):
    """--classes, a list of labels and a folder of labelled pictures."""
    names = list(zip(WNIDS, CLASSES, strict=True))
    texts = ("A", "a", "tench, Tinca tinca", "Tench", "n01440764", "maillot", "Cafe\u0301 au lait")
    for number, text in enumerate(texts):
        (expected,) = class_lookup(CLASSES, WNIDS)(text)
        assert common.find_class(text, CLASSES, WNIDS) == expected
        (tmp_path / "val.csv").write_text(f'a.png,"{text}"\n')
        assert read_labels(tmp_path / "val.csv", names, ["a.png"]).labels == {"a.png": expected}
        save_photo(tmp_path / f"photos {number}" / text / "a.png", size=(8, 8))
        assert class_folders(tmp_path / f"photos {number}", names)[0] == {text: expected}


def test_a_name_of_two_classes_is_never_no_class(tmp_path):
    names = list(zip(WNIDS, CLASSES, strict=True))
    says = "'crane' names two classes: 3 and 5: give"
    with pytest.raises(UserError, match=says):
        common.find_class("crane", CLASSES, WNIDS)
    (tmp_path / "val.txt").write_text("a.png crane\n")
    (problem,) = read_labels(tmp_path / "val.txt", names, ["a.png"]).problems.values()
    assert says in problem
    save_photo(tmp_path / "photos/crane/a.png", size=(8, 8))
    with pytest.raises(UserError, match="'crane' in .* names two classes: 3 and 5: rename it to the class's"):
        class_folders(tmp_path / "photos", names)
    with pytest.raises(UserError, match="'CRANE' names 3 classes: 3, 4 and 5"):
        common.find_class("CRANE", CLASSES)
    with pytest.raises(UserError, match="'x' names 12 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and others"):
        common.find_class("x", ["x"] * 12)


def test_numbers_that_are_names_are_no_ids(tmp_path, capsys):
    """A network trained by ImageFolder: 10 sorts before 2, and `--classes 2` was the class by the name of 10."""
    names = ["0", "10", "2"]
    assert common.find_classes(["2", "10", "0"], names) == [2, 1, 0] and "10 is class 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="no class is named '1'"):
        common.find_class("1", names)
    save_photo(tmp_path / "photos/2/a.png", size=(8, 8))
    assert class_folders(tmp_path / "photos", [("", name) for name in names])[0] == {"2": 2}
    save_photo(tmp_path / "photos/1/a.png", size=(8, 8))
    with pytest.raises(UserError, match="such as '1'"):
        class_folders(tmp_path / "photos", [("", name) for name in names])
    # other numbers are ids
    assert common.find_classes(["1", "0"], ["00", "01"]) == [1, 0]
    assert common.find_classes(["1"], ["cat", "dog"]) == [1] and capsys.readouterr().err == ""
    assert common.find_classes(["1"], ["1", "dog"]) == [0] and "1 is class 0" in capsys.readouterr().err
