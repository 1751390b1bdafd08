"""Lists as lines of text: the names of the classes (synset_words.txt), the class of each image (val.txt)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from explain.errors import UserError

MAX_BYTES = 16_000_000  # of a list; ILSVRC-2012's, of 50,000 images, has 1.7 MB
MAX_LINES = 1_000_000  # ten million blank lines have fewer bytes than that
MAX_NAME = 1000  # characters of a class name; ImageNet's longest has 121
MAX_QUOTE = 300  # characters of a line that an error quotes


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, whatever ends them, without a byte-order mark.

    Raises UserError for a file that is not UTF-8 text or is too large to be a list.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes: give a list of images or of class names")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path} is not a text file (it contains zero bytes): save it as UTF-8")
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        raise UserError(f"{path} has more than {MAX_LINES:,} lines: give a list of images or of class names")
    return [line.strip() for line in lines]


def read_names(path: Path) -> list[tuple[str, str]]:
    """Return (wnid, name) of each class; the wnid is empty where the line does not begin with one.

    Raises UserError for a blank line: to skip it would shift the class ids of all names after it.
    """
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    names = [re.fullmatch(r"(n[0-9]{8}(?!\S))?\s*(.*)", line).groups(default="") for line in lines]
    for number, (_, name) in enumerate(names, start=1):
        if not 0 < len(name) <= MAX_NAME:
            raise UserError(f"line {number} of {path} has a name of {len(name)} characters: give 1 to {MAX_NAME}")
    for wnid, times in Counter(wnid for wnid, _ in names if wnid).items():
        if times > 1:
            raise UserError(f"{path} has the wnid {wnid} on {times} lines: give each class its own")
    if not names:
        raise UserError(f"{path} is empty: write the name of class n on line n, counting from 0")
    return names


def read_labels(path: Path, names: Sequence[tuple[str, str]]) -> tuple[dict[str, int], dict[str, str]]:
    """Read the class of each image; return the class id of each good file name, and the problem of each bad one.

    `names` are those of the classes, from `read_names`. The problem of an incomplete line is called `line <number>`.
    """
    wnids = {wnid: class_id for class_id, (wnid, _) in enumerate(names) if wnid}
    labels: dict[str, int] = {}
    problems: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        name, text = split_line(line)
        class_id = int(text) if re.fullmatch("-?[0-9]{1,9}", text) else wnids.get(text)
        quoted, problem = repr(name[:MAX_QUOTE]), None
        if not name or not text:
            name, problem = f"line {number}", f"is {line[:MAX_QUOTE]!r}: give a file name and a class id"
        elif name.startswith("/") or "\\" in name or ".." in name.split("/"):
            problem = f"names {quoted}: give a path inside the image folder, without '..' or backslashes"
        elif class_id is None and re.fullmatch("n[0-9]{8}", text):
            problem = f"gives {quoted} the wnid {text}, which is not in the list of class names: give the class id"
        elif class_id is None:
            problem = f"gives {quoted} the class {text[:MAX_QUOTE]!r}: give a class id or a wnid"
        elif not 0 <= class_id < len(names):
            problem = f"gives {quoted} the class {class_id}, but only 0 to {len(names) - 1} have names: correct one"
        elif labels.setdefault(name, class_id) != class_id:
            problem = f"gives {quoted} the class {class_id}, but another line gives it {labels[name]}: remove one"
        if problem:
            problems[name] = f"line {number} of {path} {problem}"
    return {name: class_id for name, class_id in labels.items() if name not in problems}, problems


def split_line(line: str) -> tuple[str, str]:
    """Return the file name and the class of a line `NAME CLASS`; either is empty if it is missing."""
    cut = max(line.rfind(separator) for separator in " \t,")  # a name may contain spaces, a class does not
    return line[: max(cut, 0)].strip(" \t,").removeprefix("./"), line[cut + 1 :]
