"""explain/data/labels.py: the forms that lists of names and of labels may have."""

from __future__ import annotations

import unicodedata

import pytest

from explain.basics.errors import UserError
from explain.data.labels import names_text, read_labels, read_names, split_wnid

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


FILES = ["a.jpg", "b b.png", "c.jpg"]


def boxes(wnid: str, *more: str) -> str:
    return f"{wnid} 85 1 499 272 " + "".join(f"{other} 1 2 3 4 " for other in more)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("name class\na.jpg 0\nb b.png 2\nc.jpg 2\n", "header 'name class' left out"),
        ("ImageId,Class\na.jpg,0\nb b.png,2\nc.jpg,2\n", "header 'ImageId,Class' left out"),
        ("# my labels\na.jpg 0\n#\nb b.png 2\nc.jpg 2\n", "comment lines left out: 2"),
        (
            f"ImageId,PredictionString\na,{boxes(WNIDS[0])}\nb b,{boxes(WNIDS[2], WNIDS[2])}\nc,{boxes(WNIDS[2])}\n",
            "3 names taken by their last part or without their ending",
        ),
        (
            '"a.jpg","0"\n"b b.png","2"\n"c.jpg","2"\n',
            "read as column 1 the name, column 2 the class, separated by ','",
        ),
        ("a.jpg;0\nb b.png;2\nc.jpg;2\n", "read as column 1 the name, column 2 the class, separated by ';'"),
        ("val/a.jpg 0\nval/b b.png 2\nval/c.jpg 2\n", "3 names taken by their last part or without their ending"),
        ("/data/a.jpg 0\n/data/b b.png 2\n/c.jpg 2\n", "3 names taken by their last part or without their ending"),
        ("C:\\d\\a.jpg 0\nC:\\d\\b b.png 2\n..\\c.jpg 2\n", "3 names taken by their last part or without their ending"),
        (
            "a.jpg,0,tench\nb b.png,2,great white shark\nc.jpg,2,x\n",
            "read as column 1 the name, column 2 the class, separated by ','",
        ),
        ("0,a.jpg,x\n2,b b.png,y\n2,c.jpg,z\n", "read as column 2 the name, column 1 the class, separated by ','"),
        ("0 a.jpg\n2 b b.png\n2 c.jpg\n", "read as CLASS NAME"),
        ("0\n2\n2\n", "a class a line, for the images in the order of their names"),
        (f"{WNIDS[0]}\n{WNIDS[2]}\n{WNIDS[2]}\n", "a class a line, for the images in the order of their names"),
        (
            "a.jpg,tench\nb b.png,Great_White shark\nc.jpg,great white shark\n",
            "read as column 1 the name, column 2 the class, separated by ','",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_as_people_have_them(tmp_path, text, note, encoding):
    (tmp_path / "val.txt").write_text(text, encoding)
    read = read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), FILES)
    assert (read.labels, read.problems) == (LABELS, {})
    assert note in read.notes


def test_a_class_of_several_words_after_a_space(tmp_path):
    (tmp_path / "val.txt").write_text("a.jpg tench\nc.jpg great white shark\n")
    read = read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), ["a.jpg", "c.jpg"])
    assert read.labels == {"a.jpg": 0, "c.jpg": 2}


def test_boxes_of_two_classes_are_a_problem(tmp_path):
    (tmp_path / "val.txt").write_text(f"a,{boxes(WNIDS[0], WNIDS[1])}\nc,{boxes(WNIDS[0])}\n")
    read = read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), FILES)
    assert read.labels == {"c.jpg": 0} and list(read.problems) == ["a.jpg"]


def test_a_first_line_that_is_no_header_stays_a_problem(tmp_path):
    (tmp_path / "val.txt").write_text("a.jpg tunch\nc.jpg 2\n")
    read = read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), FILES)
    assert read.labels == {"c.jpg": 2} and "the class 'tunch'" in read.problems["a.jpg"]


def test_two_files_of_one_last_part_are_told_apart_or_a_problem(tmp_path):
    (tmp_path / "val.txt").write_text("x/a.jpg 0\ny/a.jpg 1\nz/a.jpg 1\n")
    read = read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), ["x/a.jpg", "y/a.jpg"])
    assert read.labels == {"x/a.jpg": 0, "y/a.jpg": 1, "z/a.jpg": 1}  # the last one is listed and absent
    read = read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), ["a.jpg"])
    assert read.labels == {} and "another line gives it 0" in read.problems["a.jpg"]


def test_ids_alone_must_be_as_many_as_the_images(tmp_path):
    (tmp_path / "val.txt").write_text("0\n2\n")
    with pytest.raises(UserError, match="a class on each of 2 lines and there are 3 images"):
        read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), FILES)


@pytest.mark.parametrize("text", ["a.jpg 1\nb b.png 3\nc.jpg 2\n", "1\n3\n2\n", "3 a.jpg\n1 c.jpg\n"])
def test_ids_from_one_are_refused(tmp_path, text):
    (tmp_path / "val.txt").write_text(text)
    with pytest.raises(UserError, match="class ids from 1 to 3 for 3 names: class ids start at 0: subtract 1.*kit"):
        read_labels(tmp_path / "val.txt", list(zip(WNIDS, NAMES, strict=True)), FILES)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "a.json",
            '{"0": ["n01440764", "tench"], "1": ["n01443537", "fish"]}',
            [(WNIDS[0], "tench"), (WNIDS[1], "fish")],
        ),
        ("a.json", '{"goldfish": 1, "tench": 0}', [("", "tench"), ("", "goldfish")]),
        ("a.json", '{"1": "goldfish", "0": "tench"}', [("", "tench"), ("", "goldfish")]),
        ("a.json", '["tench", "goldfish"]', [("", "tench"), ("", "goldfish")]),
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\n", [(WNIDS[0], NAMES[0])]),
        ("a.json", '["two\\nlines", "\\ud800x", "\\u200f\\u0639"]', [("", "two lines"), ("", "x"), ("", "\u200fع")]),
    ],
)
def test_forms_of_names(tmp_path, file, text, expected):
    (tmp_path / file).write_text(text)
    assert read_names(tmp_path / file) == expected


TWO = [("", "tench"), ("", "great white shark, man-eater")]


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("0 tench\n1 great white shark, man-eater\n", "an id and a name on each line"),
        ("1 great white shark, man-eater\n0 tench\n", "an id and a name on each line"),
        ("0,tench\n1,great white shark, man-eater\n", "an id and a name on each line"),
        ('0,tench\n1,"great white shark, man-eater"\n', "an id and a name on each line"),
        ("0: tench\n1: great white shark, man-eater\n", "an id and a name on each line"),
        ("0\t'tench'\n1\tgreat white shark, man-eater", "an id and a name on each line"),
        (
            "ClassId,SignName\n0,tench\n1,great white shark, man-eater\n",
            "an id and a name on each line, header 'ClassId,SignName' left out",
        ),
        ("{0: 'tench',\n 1: 'great white shark, man-eater'}", "a dictionary with ids"),
        ("{1: \"great white shark, man-eater\", 0: 'tench', }\n", "a dictionary with ids"),
        ("{'great white shark, man-eater': 1, 'tench': 0}", "a dictionary with ids"),
        ("['tench', 'great white shark, man-eater']", "a list in brackets"),
        ('{\n  "0": "tench",\n  "1": "great white shark, man-eater"\n}', "a dictionary with ids"),
    ],
)
def test_lists_with_ids_are_names_by_id(tmp_path, text, read_as):
    (tmp_path / "names.txt").write_text(text)
    names = read_names(tmp_path / "names.txt")
    assert names == TWO and names.read_as == read_as


def test_the_config_of_a_network_on_the_hub(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["ViTForImageClassification"], "id2label": {"1": "great white shark, man-eater", '
        '"0": "tench"}, "label2id": {"tench": 0, "great white shark, man-eater": 1}, "num_channels": 3}'
    )
    names = read_names(tmp_path / "config.json")
    assert names == TWO and names.read_as == "the names under id2label"


@pytest.mark.parametrize(
    "lines",
    [
        ["1 tench", "3 goldfish"],  # ids are those from 0 on
        ["1 star", "2 stars", "3 stars", "4 stars"],
        ["0 tench", "goldfish"],
        ["0 tench", "0 goldfish"],
        ["0 tench", "2 goldfish"],
        ["0 stars", "1 star", "2 stars", "3 stars", "4 stars"],  # the number is what tells them apart
        ["0", "1", "10", "2"],
        ["[unclosed", "{brace"],
    ],
)
def test_numbers_that_are_no_ids_stay_in_the_names(tmp_path, lines):
    (tmp_path / "names.txt").write_text("\n".join(lines))
    names = read_names(tmp_path / "names.txt")
    assert names == [("", line) for line in lines] and names.read_as == ""


@pytest.mark.parametrize("lines", [["1 cat", "2 dog", "3 elk"], ["id name", "2,dog", "1,cat"]])
def test_names_with_ids_from_one_are_refused(tmp_path, lines):
    """They were classes by the names of "1 cat", "2 dog" and "3 elk"."""
    (tmp_path / "names.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="names.txt has ids from 1 on .* start at 0: remove the ids or subtract 1"):
        read_names(tmp_path / "names.txt")


def test_a_wnid_may_come_after_the_id_and_be_the_name(tmp_path):
    (tmp_path / "names.txt").write_text("0 n01440764 tench\n1 n01443537\n")
    assert read_names(tmp_path / "names.txt") == [("n01440764", "tench"), ("n01443537", "n01443537")]


@pytest.mark.parametrize(
    "text", ["{0: 'a', 2: 'b'}", "{0: 'a'", "['a', __import__('os')]", "{0: -" + "-" * 10_000 + "1}"]
)
def test_a_dictionary_without_names_by_id_is_one_sentence(tmp_path, text):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match="names.txt .*give a list"):
        read_names(tmp_path / "names.txt")


@pytest.mark.parametrize(
    "lines",
    [
        [
            "0 cat",
            "1 dog",
            "10 x",
            "2 e",
            "3 f",
            "4 g",
            "5 h",
            "6 i",
            "7 j",
            "8 k",
            "9 l",
        ],  # folders, as text sorts them
        ["1 cat", "2 dog"],
        ["{0: cat", "dog"],
        ["n01440764", "n01443537 goldfish", "cat, Felis catus"],
        ["0 stars", "1 star", "2 stars"],
    ],
)
def test_a_list_that_is_written_is_read_as_the_same_names(tmp_path, lines):
    names = [split_wnid(line) for line in lines]
    (tmp_path / "names.txt").write_text(names_text(names))
    assert read_names(tmp_path / "names.txt") == names


def test_names_of_files_that_macos_decomposed(tmp_path):
    """é as one sign in the list, and as e with an accent in the folder, or the other way round."""
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for listed, file in ((composed, apart), (apart, composed)):
        (tmp_path / "val.txt").write_text(f"{listed}.jpg 1\nsub/{listed}.png 0\n{listed} 2.jpg 0\n", "utf-8")
        read = read_labels(tmp_path / "val.txt", TWO, [f"{file}.jpg", f"{file}.png", f"{file} 2.jpg"])
        assert read.labels == {f"{file}.jpg": 1, f"{file}.png": 0, f"{file} 2.jpg": 0}
        assert read.notes == ["1 names taken by their last part or without their ending"]
    (tmp_path / "val.txt").write_text(f"{composed}.jpg 1\n{apart}.jpg 0\n", "utf-8")  # two files are two
    read = read_labels(tmp_path / "val.txt", TWO, [f"{composed}.jpg", f"{apart}.jpg"])
    assert read.labels == {f"{composed}.jpg": 1, f"{apart}.jpg": 0}


@pytest.mark.parametrize("text", ["{", '{"a": 0, "b": 2}', '{"a": 0, "b": 0}', "{}", "[]", "3", '{"a": "b"}', "[[1]]"])
def test_json_without_names_is_one_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="a.json .*give a list"):
        read_names(tmp_path / "a.json")
