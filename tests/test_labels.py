"""explain/labels.py: the forms that lists of names and of labels may have."""

from __future__ import annotations

import pytest

from explain.labels import read_labels, read_names

NAMES = ["tench, Tinca tinca", "goldfish", "great white shark"]
WNIDS = ["n01440764", "n01443537", "n01484850"]
LABELS = {"a.jpg": 0, "b b.png": 2, "c.jpg": 2}


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg 0\nb b.png 2\nc.jpg 2\n",
        "a.jpg,0\nb b.png,2\nc.jpg,2",
        "a.jpg , 0\nb b.png , 2\nc.jpg, 2",
        "a.jpg\t0\nb b.png\t\t2\nc.jpg\t2\n",
        "a.jpg 0\r\nb b.png 2\r\nc.jpg 2\r\n",
        "a.jpg 0\rb b.png 2\rc.jpg 2\r",
        "\ufeffa.jpg 0\nb b.png 2\nc.jpg 2\n",
        "\n\na.jpg 0\n  \nb b.png    2\n\nc.jpg 2\n\n\n",
        "  a.jpg 0  \n./b b.png 002\nc.jpg 2\nc.jpg 2\n",
        "a.jpg n01440764\nb b.png,n01484850\nc.jpg 2\n",
        "a.jpg 0\nb b.png 2\nc.jpg 2\nabsent, with comma.jpg 1\n",
    ],
)
def test_forms_of_val_txt(tmp_path, text):
    (tmp_path / "val.txt").write_bytes(text.encode())
    names = list(zip(WNIDS, NAMES, strict=True))
    labels, bad, *_ = read_labels(tmp_path / "val.txt", names)
    if "absent" in text:
        assert labels.pop("absent, with comma.jpg") == 1
    assert (labels, bad) == (LABELS, {})


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("wnids", [WNIDS, ["", "", ""]])
def test_forms_of_synset_words(tmp_path, start, end, wnids):
    lines = [f"{wnid} {name}".strip() for wnid, name in zip(wnids, NAMES, strict=True)]
    (tmp_path / "synset_words.txt").write_bytes((start + end.join(lines) + end + end).encode())
    assert read_names(tmp_path / "synset_words.txt") == list(zip(wnids, NAMES, strict=True))


def test_only_a_whole_wnid_is_taken_off_a_name(tmp_path):
    (tmp_path / "names").write_text("n0144076 x\nn01440764tench\nnail\n")
    assert read_names(tmp_path / "names") == [("", "n0144076 x"), ("", "n01440764tench"), ("", "nail")]


def test_one_line_of_separators_takes_no_time(tmp_path):
    """A line that a regular expression with two loops would chew on for hours."""
    (tmp_path / "val.txt").write_text("x" + " ," * 1_000_000 + "y z 1\n")
    labels, bad, *_ = read_labels(tmp_path / "val.txt", [("", "a"), ("", "b")])
    assert (len(labels), bad) == (1, {})
