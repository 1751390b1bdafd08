"""Lists as lines of text: the names of the classes (synset_words.txt), the class of each image (val.txt)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from explain.errors import UserError
from explain.figures import short

MAX_LIST_BYTES = 16_000_000  # ILSVRC's list of 50,000 images has 1.7 MB; a list beyond that is no list of images
MAX_LINES = 1_000_000  # a list of ten million blank lines has fewer bytes than that
MAX_NAME = 1000  # characters of a class name; ImageNet's longest has 121


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, whatever ends them, without a byte-order mark."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise UserError(f"{path} has more than {MAX_LIST_BYTES:,} bytes: give a list of images or of names")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path} is no text (it has zero bytes): save it as UTF-8")
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        raise UserError(f"{path} has more than {MAX_LINES:,} lines: give a list of images or of names")
    return [line.strip() for line in lines]


def read_names(path: Path) -> list[tuple[str, str]]:
    """(wnid, name) of every class; the wnid is empty where the line does not begin with one."""
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    names = [re.fullmatch(r"(n[0-9]{8}(?!\S))?\s*(.*)", line).groups(default="") for line in lines]
    for number, (_, name) in enumerate(names, start=1):
        if not 0 < len(name) <= MAX_NAME:  # to pass over a blank line would shift all names after it
            raise UserError(f"line {number} of {path} has a name of {len(name)} letters: give 1 to {MAX_NAME}")
    for wnid, times in Counter(wnid for wnid, _ in names if wnid).items():
        if times > 1:
            raise UserError(f"{path} has the wnid {wnid} on {times} lines: give each class its own")
    if not names:
        raise UserError(f"{path} is empty: write the name of class n into line n, from 0")
    return names


def read_labels(path: Path, names: Sequence[tuple[str, str]]) -> tuple[dict[str, int], dict[str, str]]:
    """Read `val.txt`: the class id of every good file name, and what is wrong with every bad one.

    A line without a name stands among the bad ones as `line <number>`.
    """
    ids = {wnid: i for i, (wnid, _) in enumerate(names) if wnid}
    labels: dict[str, int] = {}
    bad: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        cut = max(line.rfind(separator) for separator in " \t,")  # a name may contain blanks, an id does not
        name, field = line[: max(cut, 0)].strip(" \t,").removeprefix("./"), line[cut + 1 :]
        is_id = re.fullmatch("-?[0-9]{1,9}", field)
        class_id = int(field) if is_id else ids.get(field)
        said, wrong = repr(short(name, MAX_NAME)), None
        if not line:
            continue
        if not name or not field:
            name, wrong = f"line {number}", f"is {short(line, 80)!r}: give a file name and a class id"
        elif name.startswith("/") or "\\" in name or ".." in name.split("/"):
            wrong = f"names {said}, which leaves the folder: give a name inside it"
        elif class_id is None and re.fullmatch("n[0-9]{8}", field):
            wrong = f"gives {said} the wnid {field}, with which no line of the names begins: give the class id"
        elif class_id is None:
            wrong = f"gives {said} the class {short(field)!r}: give a class id or a wnid"
        elif not 0 <= class_id < len(names):
            wrong = f"gives {said} the class {class_id}, but the names are of 0 to {len(names) - 1}: correct one"
        elif labels.setdefault(name, class_id) != class_id:
            wrong = f"gives {said} the class {class_id}, another line {labels[name]}: remove one of the lines"
        if wrong:
            bad[name] = f"line {number} of {path} {wrong}"
    return {name: class_id for name, class_id in labels.items() if name not in bad}, bad
