"""explain/data/labels.py: the forms that lists of names and of labels may have."""

from __future__ import annotations

import unicodedata

import pytest

from explain.basics.errors import UserError
from explain.data.labels import names_text, read_labels, read_names, split_wnid

NAMES = ["tench, Tinca tinca", "goldfish", "great white shark"]
WNIDS = ["n01440764", "n01443537", "n01484850"]
NAMED = list(zip(WNIDS, NAMES, strict=True))
LABELS = {"a.jpg": 0, "b b.png": 2, "c.jpg": 2}
FILES = [*LABELS]


def read(folder, text: str, files=(), names=NAMED, encoding="utf-8"):
    """What `read_labels` makes of a text."""
    (folder / "val.txt").write_bytes(text.encode(encoding))
    return read_labels(folder / "val.txt", names, files)


FORMS = [
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
]


@pytest.mark.parametrize("text", FORMS)
def test_forms_of_val_txt(tmp_path, text):
    labels, bad, *_ = read(tmp_path, text)
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


BAD_LINES = {  # line -> what is said of it
    "x.jpg 3": "the class 3, but only 0 to 2 have names",
    "x.jpg -1": "the class -1, but",
    "x.jpg +1": "the class '+1': give a class id",
    "x.jpg " + "9" * 5000: "give a class id",
    "x.jpg \u0661": "give a class id",  # an Arabic 1
    "name,class": "the class 'class'",
    "a.jpg 1": "'a.jpg' the class 1, but another line gives it 0",
    "x.jpg n01440765": "the wnid n01440765, which is not in the list",
    ", 1": "give a file name and a class id",
    "/etc/passwd 1": "'/etc/passwd': give a path inside the image folder",
    "x/../../y.jpg 1": "give a path inside the image folder",
    "..\\x.jpg 1": "give a path inside the image folder",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_a_problem(tmp_path, line):
    labels, problems, *_ = read(tmp_path, "a.jpg 0\nb b.png 2\nc.jpg 2\n" + line)
    assert set(labels) <= {*FILES} and BAD_LINES[line] in "".join(problems.values())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"caf\xe9\n", "not UTF-8 .byte 3.: save it"),
        ("a\nb\n".encode("utf-16")[:-1], "not UTF-16"),
        (b"a\0\nb\n", "is not a text file"),
        (b"a 1\n" * 4_000_001, "more than 16,000,000 bytes"),
        (b"\n \n", "is empty"),
        (b"a\n\nb\n", "line 2 of .* has a name of 0 characters"),
        (b"a\n" + b"b" * 1001, "line 2 of .* has a name of 1001 characters"),
        (b"n01440764 a\nn01440764 b\n", "wnid n01440764 on 2 lines"),
    ],
)
def test_files_that_are_no_lists(tmp_path, content, says):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_names(tmp_path / "list.txt")
    if "name" not in says and "wnid" not in says and "empty" not in says:  # nor are they a list of labels
        with pytest.raises(UserError, match=says):
            read_labels(tmp_path / "list.txt", NAMED)


def boxes(wnid: str, *more: str) -> str:
    return f"{wnid} 85 1 499 272 " + "".join(f"{other} 1 2 3 4 " for other in more)


BY_LAST_PART = "3 names matched by their last part or without their extension"
IN_COLUMNS = "read as column 1 the name, column 2 the class, separated by "
BOXES = f"a,{boxes(WNIDS[0])}\nb b,{boxes(WNIDS[2], WNIDS[2])}\nc,{boxes(WNIDS[2])}\n"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("name class\na.jpg 0\nb b.png 2\nc.jpg 2\n", "header 'name class' left out"),
        ("ImageId,Class\na.jpg,0\nb b.png,2\nc.jpg,2\n", "header 'ImageId,Class' left out"),
        ("# my labels\na.jpg 0\n#\nb b.png 2\nc.jpg 2\n", "comment lines left out: 2"),
        ("ImageId,PredictionString\n" + BOXES, BY_LAST_PART),
        ('"a.jpg","0"\n"b b.png","2"\n"c.jpg","2"\n', f"{IN_COLUMNS}','"),
        ("a.jpg;0\nb b.png;2\nc.jpg;2\n", f"{IN_COLUMNS}';'"),
        ("val/a.jpg 0\nval/b b.png 2\nval/c.jpg 2\n", BY_LAST_PART),
        ("/data/a.jpg 0\n/data/b b.png 2\n/c.jpg 2\n", BY_LAST_PART),
        ("C:\\d\\a.jpg 0\nC:\\d\\b b.png 2\n..\\c.jpg 2\n", BY_LAST_PART),
        ("a.jpg,0,tench\nb b.png,2,great white shark\nc.jpg,2,x\n", f"{IN_COLUMNS}','"),
        ("0,a.jpg,x\n2,b b.png,y\n2,c.jpg,z\n", "read as column 2 the name, column 1 the class, separated by ','"),
        ("0 a.jpg\n2 b b.png\n2 c.jpg\n", "read as CLASS NAME"),
        ("0\n2\n2\n", "one class per line, for the images in the order of their names"),
        (f"{WNIDS[0]}\n{WNIDS[2]}\n{WNIDS[2]}\n", "one class per line, for the images in the order of their names"),
        ("a.jpg,tench\nb b.png,Great_White shark\nc.jpg,great white shark\n", f"{IN_COLUMNS}','"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_as_people_have_them(tmp_path, text, note, encoding):
    found = read(tmp_path, text, FILES, encoding=encoding)
    assert (found.labels, found.problems) == (LABELS, {})
    assert note in found.notes


TWO_OF_ONE_PART = "x/a.jpg 0\ny/a.jpg 1\nz/a.jpg 1\n"


@pytest.mark.parametrize(
    ("text", "files", "labels", "problems"),
    [
        # a class of several words after a space
        ("a.jpg tench\nc.jpg great white shark\n", ["a.jpg", "c.jpg"], {"a.jpg": 0, "c.jpg": 2}, {}),
        # boxes of two classes
        (f"a,{boxes(WNIDS[0], WNIDS[1])}\nc,{boxes(WNIDS[0])}\n", FILES, {"c.jpg": 0}, {"a.jpg": ""}),
        # a first line that is no header
        ("a.jpg tunch\nc.jpg 2\n", FILES, {"c.jpg": 2}, {"a.jpg": "the class 'tunch'"}),
        # the third is listed and absent
        (TWO_OF_ONE_PART, ["x/a.jpg", "y/a.jpg"], {"x/a.jpg": 0, "y/a.jpg": 1, "z/a.jpg": 1}, {}),
        (TWO_OF_ONE_PART, ["a.jpg"], {}, {"x/a.jpg": "", "a.jpg": "another line gives it 0"}),
    ],
)
def test_lists_that_are_read_in_part(tmp_path, text, files, labels, problems):
    found = read(tmp_path, text, files)
    assert found.labels == labels
    assert found.problems.keys() <= problems.keys() and bool(found.problems) == bool(problems)
    assert all(problems[name] in says for name, says in found.problems.items())


@pytest.mark.parametrize(
    ("text", "says"),
    [("0\n2\n", "a class on each of 2 lines, but there are 3 images")]
    + [
        (text, "class ids from 1 to 3 for 3 names, but they must start at 0: subtract 1.*kit")
        for text in ("a.jpg 1\nb b.png 3\nc.jpg 2\n", "1\n3\n2\n", "3 a.jpg\n1 c.jpg\n")
    ],
)
def test_ids_from_one_or_of_too_few_images_are_refused(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, text, FILES)


TWO = [("", "tench"), ("", "great white shark, man-eater")]
BY_LINE = "an id and a name on each line"
HUB = """{"architectures": ["ViTForImageClassification"], "id2label": {"1": "great white shark, man-eater",
"0": "tench"}, "label2id": {"tench": 0, "great white shark, man-eater": 1}, "num_channels": 3}"""


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("0 tench\n1 great white shark, man-eater\n", BY_LINE),
        ("1 great white shark, man-eater\n0 tench\n", BY_LINE),
        ("0,tench\n1,great white shark, man-eater\n", BY_LINE),
        ('0,tench\n1,"great white shark, man-eater"\n', BY_LINE),
        ("0: tench\n1: great white shark, man-eater\n", BY_LINE),
        ("0\t'tench'\n1\tgreat white shark, man-eater", BY_LINE),
        ("Id,Sign\n0,tench\n1,great white shark, man-eater\n", BY_LINE + ", header 'Id,Sign' left out"),
        ("{0: 'tench',\n 1: 'great white shark, man-eater'}", "a dictionary with ids"),
        ("{1: \"great white shark, man-eater\", 0: 'tench', }\n", "a dictionary with ids"),
        ("{'great white shark, man-eater': 1, 'tench': 0}", "a dictionary with ids"),
        ("['tench', 'great white shark, man-eater']", "a list in brackets"),
        ('{\n  "0": "tench",\n  "1": "great white shark, man-eater"\n}', "a dictionary with ids"),
        (HUB, "the names under id2label"),  # config.json of a network there
    ],
)
def test_lists_with_ids_are_names_by_id(tmp_path, text, read_as):
    (tmp_path / "names.txt").write_text(text)
    names = read_names(tmp_path / "names.txt")
    assert names == TWO and names.read_as == read_as


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"0": ["n01440764", "tench"], "1": ["n01443537", "x"]}', [(WNIDS[0], "tench"), (WNIDS[1], "x")]),
        ('{"goldfish": 1, "tench": 0}', [("", "tench"), ("", "goldfish")]),
        ('["two\\nlines", "\\ud800x", "\\u200f\\u0639"]', [("", "two lines"), ("", "x"), ("", "\u200fع")]),
    ],
)
def test_names_in_json(tmp_path, text, expected):
    (tmp_path / "a.json").write_text(text)
    assert read_names(tmp_path / "a.json") == expected


def test_only_a_whole_wnid_is_taken_off_a_name(tmp_path):
    """It may come after an id, and be the name."""
    (tmp_path / "names").write_text("n0144076 x\nn01440764tench\nnail\n")
    assert read_names(tmp_path / "names") == [("", "n0144076 x"), ("", "n01440764tench"), ("", "nail")]
    (tmp_path / "names").write_text("0 n01440764 tench\n1 n01443537\n")
    assert read_names(tmp_path / "names") == [("n01440764", "tench"), ("n01443537", "n01443537")]


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
    with pytest.raises(UserError, match="has ids that start at 1 .* start at 0: remove the ids or subtract 1"):
        read_names(tmp_path / "names.txt")


@pytest.mark.parametrize(
    "lines",
    [
        sorted(f"{i} {letter}" for i, letter in enumerate("abcdefghijkl")),  # folders, as text sorts them
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
        text, files = f"{listed}.jpg 1\nsub/{listed}.png 0\n{listed} 2.jpg 0\n", [".jpg", ".png", " 2.jpg"]
        found = read(tmp_path, text, [file + end for end in files], TWO)
        assert found.labels == {f"{file}.jpg": 1, f"{file}.png": 0, f"{file} 2.jpg": 0}
        assert found.notes == ["1 names matched by their last part or without their extension"]
    two = [f"{composed}.jpg", f"{apart}.jpg"]  # two files are two
    assert read(tmp_path, f"{two[0]} 1\n{two[1]} 0\n", two, TWO).labels == {two[0]: 1, two[1]: 0}


NO_NAMES = ["{", '{"a": 0, "b": 2}', '{"a": 0, "b": 0}', "{}", "[]", "3", '{"a": "b"}', "[[1]]"]
NO_LITERALS = ["{0: 'a', 2: 'b'}", "{0: 'a'", "['a', __import__('os')]", "{0: -" + "-" * 10_000 + "1}"]


@pytest.mark.parametrize(
    ("file", "text"), [("a.json", text) for text in NO_NAMES] + [("a.txt", text) for text in NO_LITERALS]
)
def test_no_names_by_id_are_one_sentence(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=f"{file} .*give a list"):
        read_names(tmp_path / file)
