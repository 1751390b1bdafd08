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


def read(folder, text: str, files=FILES, names=NAMED):
    """What `read_labels` makes of a text."""
    (folder / "val.txt").write_text(text)
    return read_labels(folder / "val.txt", names, files)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_ends_of_lines(tmp_path, encoding, end):
    for number, lines in enumerate((["a.jpg 0", "", "b b.png 2", "c.jpg 2", ""], [*NAMES, ""])):
        (tmp_path / f"{number}.txt").write_bytes(end.join(lines).encode(encoding))
    assert read_labels(tmp_path / "0.txt", NAMED, FILES).labels == LABELS
    assert read_names(tmp_path / "1.txt") == [("", name) for name in NAMES]


BAD_LINES = {  # line -> what is said of it
    "x.jpg 3": "the class 3, but only 0 to 2 have names",
    "x.jpg -1": "the class -1, but",
    "x.jpg +1": "the class '+1': give a class id, or a wnid or name in the list of class names",
    "x.jpg " + "9" * 5000: "give a class id",
    "x.jpg \u0661": "give a class id",  # an Arabic 1
    "name,class": "the class 'class'",
    "a.jpg 1": "'a.jpg' the class 1, but another line gives it 0",
    "x.jpg n01440765": "the class 'n01440765': give a class id",
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
    ],
)
def test_files_that_are_no_lists(tmp_path, content, says):
    (tmp_path / "list.txt").write_bytes(content)
    for read_list in (read_names, lambda path: read_labels(path, NAMED)):
        with pytest.raises(UserError, match=says):
            read_list(tmp_path / "list.txt")


def boxes(wnid: str, *more: str) -> str:
    return f"{wnid} 85 1 499 272 " + "".join(f"{other} 1 2 3 4 " for other in more)


BY_LAST_PART = "3 names matched by their last part or without their extension"
IN_COLUMNS = "read as column 1 the name, column 2 the class, separated by "
BOXES = f"a,{boxes(WNIDS[0])}\nb b,{boxes(WNIDS[2], WNIDS[2])}\nc,{boxes(WNIDS[2])}\n"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a.jpg,0\nb b.png,2\nc.jpg,2", None),
        ("a.jpg , 0\nb b.png , 2\nc.jpg, 2", None),
        ("a.jpg\t0\nb b.png\t\t2\nc.jpg\t2\n", None),
        ("\n\n  a.jpg 0  \n  \n./b b.png    002\nc.jpg 2\nc.jpg 2\n\n", None),
        ("a.jpg n01440764\nb b.png,n01484850\nc.jpg 2\n", None),
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
def test_lists_as_people_have_them(tmp_path, text, note):
    found = read(tmp_path, text)
    assert (found.labels, found.problems) == (LABELS, {})
    assert note in found.notes if note else found.notes == []


TWO_OF_ONE_PART = "x/a.jpg 0\ny/a.jpg 1\nz/a.jpg 1\n"


@pytest.mark.parametrize(
    ("text", "files", "labels", "problems"),
    [
        # an absent file, and a comma in its name
        ("a.jpg 0\nb, c.jpg 1\n", ["a.jpg"], {"a.jpg": 0, "b, c.jpg": 1}, {}),
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
        read(tmp_path, text)


TWO = [("", "tench"), ("", "great white shark, man-eater")]
BY_LINE, BY_ID = "an id and a name on each line", "a dictionary with ids"
HUB = """{"architectures": ["ViTForImageClassification"], "id2label": {"1": "great white shark, man-eater",
"0": "tench"}, "label2id": {"tench": 0, "great white shark, man-eater": 1}, "num_channels": 3}"""


@pytest.mark.parametrize(
    ("text", "expected", "read_as"),
    [
        ("tench\ngreat white shark, man-eater\n\n", TWO, ""),
        ("0 tench\n1 great white shark, man-eater\n", TWO, BY_LINE),
        ("1 great white shark, man-eater\n0 tench\n", TWO, BY_LINE),
        ("0,tench\n1,great white shark, man-eater\n", TWO, BY_LINE),
        ('0,tench\n1,"great white shark, man-eater"\n', TWO, BY_LINE),
        ("0: tench\n1: great white shark, man-eater\n", TWO, BY_LINE),
        ("0\t'tench'\n1\tgreat white shark, man-eater", TWO, BY_LINE),
        ("Id,Sign\n0,tench\n1,great white shark, man-eater\n", TWO, BY_LINE + ", header 'Id,Sign' left out"),
        ("{0: 'tench',\n 1: 'great white shark, man-eater'}", TWO, BY_ID),
        ("{1: \"great white shark, man-eater\", 0: 'tench', }\n", TWO, BY_ID),
        ("{'great white shark, man-eater': 1, 'tench': 0}", TWO, BY_ID),
        ("['tench', 'great white shark, man-eater']", TWO, "a list in brackets"),
        ('{\n  "0": "tench",\n  "1": "great white shark, man-eater"\n}', TWO, BY_ID),
        (HUB, TWO, "the names under id2label"),  # config.json of a network there
        ('{"0": ["n01440764", "tench"], "1": ["n01443537", "x"]}', [(WNIDS[0], "tench"), (WNIDS[1], "x")], BY_ID),
        (
            '["two\\nlines", "\\ud800x", "\\u200fع"]',
            [("", "two lines"), ("", "x"), ("", "\u200fع")],
            "a list in brackets",
        ),
        ("n01440764 tench\nn01443537 x", [(WNIDS[0], "tench"), (WNIDS[1], "x")], ""),
        ("0 n01440764 tench\n1 n01443537", [(WNIDS[0], "tench"), (WNIDS[1], WNIDS[1])], BY_LINE),
    ]
    + [  # numbers, wnids and brackets that belong to the names
        (text, [("", line) for line in text.split("\n")], "")
        for text in (
            "n0144076 x\nn01440764tench\nnail",
            "1 tench\n3 goldfish",  # ids are those from 0 on
            "1 star\n2 stars\n3 stars\n4 stars",
            "0 tench\ngoldfish",
            "0 tench\n0 goldfish",
            "0 tench\n2 goldfish",
            "0 stars\n1 star\n2 stars\n3 stars\n4 stars",  # the number is what tells them apart
            "0\n1\n10\n2",
            "[unclosed\n{brace",
        )
    ],
)
def test_names_as_people_have_them(tmp_path, text, expected, read_as):
    for file in ("a.txt", "a.json") if read_as.startswith("a ") else ("a.txt",):
        (tmp_path / file).write_text(text)
        assert read_names(tmp_path / file) == expected
    assert read_names(tmp_path / "a.txt").read_as == read_as


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
FROM_ONE = "has ids that start at 1 .* start at 0: remove the ids or subtract 1"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [("a.json", text, "give a list") for text in NO_NAMES]
    + [("a.txt", text, "give a list") for text in NO_LITERALS]
    + [("a.txt", text, FROM_ONE) for text in ("1 cat\n2 dog\n3 elk", "id name\n2,dog\n1,cat")]
    + [
        ("a.txt", "\n \n", "is empty"),
        ("a.txt", "a\n\nb\n", "line 2 of .* has a name of 0 characters"),
        ("a.txt", "a\n" + "b" * 1001, "line 2 of .* has a name of 1001 characters"),
        ("a.txt", "n01440764 a\nn01440764 b\n", "wnid n01440764 on 2 lines"),
    ],
)
def test_no_names_are_one_sentence(tmp_path, file, text, says):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=says) as error:
        read_names(tmp_path / file)
    assert str(tmp_path / file) in str(error.value) and "\n" not in str(error.value)
