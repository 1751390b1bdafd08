"""Lists in text files: the names of the classes (synset_words.txt), and the class of each image (val.txt)."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from explain.basics.errors import UserError
from explain.data.lookup import class_lookup, composed, names_several

MAX_BYTES = 16_000_000  # of a list; ILSVRC-2012's, of 50,000 images, has 1.7 MB
MAX_NAME = 1000  # characters of a class name; ImageNet's longest has 121
MAX_QUOTE = 300  # characters of a line that an error quotes
SAMPLE = 500  # lines that decide how a list is read


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a text file, whatever their line ending, without a byte-order mark.

    Raises UserError for a file that is neither UTF-8 nor UTF-16 text, or too large for a list.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes: give a list of images or of class names")
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # Windows' "Unicode" has a mark
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise UserError(f"{path} is not {kind} (byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path} is not a text file (it contains zero bytes): save it as UTF-8")
    return [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]


# ------------------------------------------------------------------------------------------------
# The names of the classes


class Names(list[tuple[str, str]]):
    """(wnid, name) of each class in the order of the ids; `read_as` describes any form but a name on each line."""

    def __init__(self, names: Iterable[tuple[str, str]], read_as: str = ""):
        super().__init__(names)
        self.read_as = read_as


STRUCTURE = re.compile(r"[{\[]\s*['\"0-9]")  # the beginning of a dictionary or a list, in Python or JSON
MAX_LITERAL = 1_000_000  # characters in Python's syntax, whose parser takes a hundred times as much memory
ID_AND_NAME = re.compile(r"([0-9]{1,9})\s*[\s,;:]\s*(.+)")


def as_names(content: Any) -> list[str] | None:
    """Return the names in a list, in {id: name} or in {name: id}, in the order of their ids from 0; None for others."""
    if isinstance(content, Mapping):
        is_by_name = all(type(value) is int for value in content.values())
        by_id = {str(value if is_by_name else key): key if is_by_name else value for key, value in content.items()}
        content = [by_id.get(str(i)) for i in range(len(content))]
    if isinstance(content, (list, tuple)) and content and all(isinstance(name, (str, int)) for name in content):
        return [str(name) for name in content]
    return None


def read_names(path: Path) -> Names:
    """Read the (wnid, name) of each class from a file; the wnid is empty if the file has none.

    The file has a class on each line, where a wnid alone is also the name, and an id may come first if it does on all
    lines (`0 cat`, `0,cat`, `0: cat`). Or it is JSON, or a dictionary or list as Python prints it: names in order,
    {name: id}, {id: name}, {id: [wnid, name]}, or these under id2label, as in config.json of the Hugging Face hub.
    Raises UserError for a blank line, since skipping it would shift the class ids of all names after it, and for ids
    that start at 1.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a list of class names, one per line")
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty: write the name of class n on line n, counting from 0")
    text = "\n".join(lines)
    is_structured = path.suffix.lower() == ".json" or STRUCTURE.match(text)
    names = _structured_names(text, path) if is_structured else _names_of_lines(lines)
    if names is None:
        raise UserError(
            f"{path} has ids that start at 1 before the names, but class ids start at 0: remove the ids or subtract 1, "
            "or, if the numbers belong to the names, write an id before each, starting at 0"
        )
    for number, (_, name) in enumerate(names, start=1):
        if not 0 < len(name) <= MAX_NAME:
            raise UserError(f"line {number} of {path} has a name of {len(name)} characters: give 1 to {MAX_NAME}")
    for wnid, times in Counter(wnid for wnid, _ in names if wnid).items():
        if times > 1:
            raise UserError(f"{path} has the wnid {wnid} on {times} lines: give each class its own")
    return names


def names_text(names: Names) -> str:
    """Return a list that `read_names` reads as these names, with ids if it would misread the names alone."""
    lines = [name if name == wnid else f"{wnid} {name}".strip() for wnid, name in names]
    if STRUCTURE.match(lines[0]) or _names_of_lines(lines) != names:
        lines = [f"{c} {line}" for c, line in enumerate(lines)]
    return "".join(line + "\n" for line in lines)


def split_wnid(text: str) -> tuple[str, str]:
    """Return (wnid, name) of a line such as `n01440764 tench`; a wnid alone is also the name."""
    wnid, name = re.fullmatch(r"(n[0-9]{8}(?!\S))?\s*(.*)", clean(text)).groups(default="")
    return wnid, name or wnid


def _names_of_lines(lines: Sequence[str]) -> Names | None:
    """Read a name from each line, or an id and a name if the ids are exactly those from 0; None if they start at 1.

    If most names are equal without the number (0 stars, 1 star, 2 stars), it is a part of them.
    """
    has_header = _is_header(lines[0]) and bool(ID_AND_NAME.fullmatch(lines[-1]))
    found = [match for match in map(ID_AND_NAME.fullmatch, lines[has_header:]) if match]
    by_id = {int(match[1]): re.sub(r"""^(["'])(.*)\1$""", r"\2", match[2]) for match in found}
    if len(by_id) == len(lines) - has_header and 2 * len({*by_id.values()}) > len(by_id):
        if sorted(by_id) == [*range(len(by_id))]:
            read_as = "an id and a name on each line" + (f", header {lines[0]!r} left out" if has_header else "")
            return Names((split_wnid(by_id[c]) for c in range(len(by_id))), read_as)
        if len(by_id) > 1 and sorted(by_id) == [*range(1, len(by_id) + 1)]:
            return None
    return Names(map(split_wnid, lines))


def _structured_names(text: str, path: Path) -> Names:
    """Read names from JSON, or from a Python literal, as data."""
    content: Any = ...
    for parse in (json.loads, ast.literal_eval) if len(text) <= MAX_LITERAL else (json.loads,):
        with warnings.catch_warnings(), suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            warnings.simplefilter("ignore")  # Python's about a backslash in a name
            content = parse(text)
            break
    if content is ...:
        raise UserError(
            f"{path} is neither JSON nor a dictionary nor a list: give a list of names, or a .txt file, one per line"
        )
    read_as = ""
    if isinstance(content, dict) and isinstance(content.get("id2label"), dict):
        read_as, content = "the names under id2label", content["id2label"]
    elif path.suffix.lower() != ".json":
        read_as = "a dictionary with ids" if isinstance(content, dict) else "a list in brackets"
    wnids: dict[str, str] = {}
    if isinstance(content, dict) and all(isinstance(v, list) and len(v) == 2 for v in content.values()):
        wnids = {str(key): str(wnid) for key, (wnid, _) in content.items()}
        content = {key: name for key, (_, name) in content.items()}
    names = as_names(content)
    if names is None:
        raise UserError(f'{path} has no names by id: give a list, {{"name": id}} or {{"id": name}}, with ids from 0')
    return Names(((wnids.get(str(i), ""), clean(name)) for i, name in enumerate(names)), read_as)


def clean(name: str) -> str:
    """Return a name on one line, in NFC and encodable in UTF-8; joiners and direction marks are kept."""
    return composed(re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", name).strip())


# ------------------------------------------------------------------------------------------------
# The classes of the images


class Labels(NamedTuple):
    """The class id of each good file name, the problem of each bad one, notes on the reading, and the first line."""

    labels: dict[str, int]
    problems: dict[str, str]
    notes: list[str]
    first: str = ""


Line = tuple[int, str]  # its number in the file, and the text


def _columns(separator: str | None, line: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator)) if separator else line.split(None, 3)
    except csv.Error:  # a field of more than 131,072 characters
        return []


at_first, at_last = partial(re.split, "[ \t,]+", maxsplit=1), partial(re.split, "[ \t,](?=[^ \t,]*$)")
# The function that splits a line, and the places of the file name and the class; in the order of preference
READINGS: dict[str, tuple[Callable[[str], list[str]], int, int]] = {
    "NAME CLASS": (at_last, 0, 1),  # a name may contain spaces, an id does not
    "CLASS NAME": (at_first, 1, 0),
    "NAME CLASS, a class of several words": (at_first, 0, 1),
}
for separator, (name, label) in itertools.product((",", ";", "\t", None), itertools.permutations(range(3), 2)):
    layout = f"column {name + 1} the name, column {label + 1} the class, separated by {separator or 'spaces'!r}"
    READINGS[layout] = partial(_columns, separator), name, label


def split_line(line: str, layout: str = "NAME CLASS") -> tuple[str, str]:
    """Return the file name and the class of a line; either may be empty if the line has another layout."""
    split, name, label = READINGS[layout]
    fields = [field.strip(" \t,") for field in split(line)]
    return (fields[name].removeprefix("./"), fields[label]) if len(fields) > max(name, label) else ("", "")


def read_labels(path: Path, names: Names, files: Collection[str] = (), ids: Mapping[int, int] | None = None) -> Labels:
    """Read the class of each image from a list, by the one of READINGS that fits most lines, or a class per line.

    `names` are (wnid, name) of the classes, from `read_names`; `files` are the names of the existing images; `ids`
    translates the list's class ids (development kit). The class on a line is an id, a wnid or a name, with or without
    boxes after it. The problem of an incomplete line has the key `line <number>`. Raises UserError for ids that start
    at 1.
    """
    find, classes_of = _file_finder(files), _class_finder(names, ids)
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line]
    listed = [line for line in lines if not line[1].startswith("#") or find(split_line(line[1])[0]) is not None]
    notes = [f"comment lines left out: {len(lines) - len(listed)}"] if len(listed) < len(lines) else []
    if listed and files and all(CLASS_ALONE.fullmatch(line) and find(line) is None for _, line in listed):
        if len(listed) != len(files):
            raise UserError(
                f"{path} has a class on each of {len(listed)} lines, but there are {len(files)} images: give a class "
                "for each image, in the order of the file names, or a file name beside each class"
            )
        entries = [(*line, name, line[1]) for line, name in zip(listed, sorted(files), strict=True)]
        notes.append("one class per line, for the images in the order of their names")
    else:
        known = range(len(names))
        entries, more = _two_columns(listed, find, lambda text: any(c in known for c in classes_of(text)))
        notes += more
    numbers = (text for *_, name, text in entries if name and re.fullmatch("[0-9]{1,9}", text))
    ids_given = [c for text in numbers for c in classes_of(text)]
    if ids_given and ids is None and min(ids_given) > 0 and max(ids_given) == len(names):
        raise UserError(
            f"{path} has class ids from {min(ids_given)} to {max(ids_given)} for {len(names)} names, but they must "
            "start at 0: subtract 1, or, for ILSVRC-2012's development kit, which has its own order, put the kit's "
            "meta.mat and ILSVRC2012_validation_ground_truth.txt there instead"
        )

    labels: dict[str, int] = {}
    problems: dict[str, str] = {}
    by_last_part = 0
    for number, line, name_in_list, text in entries:
        file, found = find(name_in_list), classes_of(text)
        name = (file or name_in_list) if name_in_list and text else f"line {number}"
        by_last_part += file is not None and composed(file) != composed(name_in_list)
        problem = _problem(line, name_in_list, file, text, found, len(names))
        if not problem and labels.setdefault(name, found[0]) != found[0]:
            quoted = repr(name_in_list[:MAX_QUOTE])
            problem = f"gives {quoted} the class {found[0]}, but another line gives it {labels[name]}: remove one"
        if problem:
            problems[name] = f"line {number} of {path} {problem}"
    if by_last_part:
        notes.append(f"{by_last_part} names matched by their last part or without their extension")
    first = listed[0][1][:MAX_QUOTE] if listed else ""
    return Labels({name: c for name, c in labels.items() if name not in problems}, problems, notes, first)


CLASS_ALONE = re.compile("-?[0-9]{1,9}|n[0-9]{8}")


def _class_finder(names: Names, ids: Mapping[int, int] | None) -> Callable[[str], list[int]]:
    """Return a function from a text in a list, with or without boxes, to class ids; `ids`: see `read_labels`.

    A number is an id, even if no class has it.
    """
    look_up = class_lookup([name for _, name in names], [wnid for wnid, _ in names])

    def classes_of(text: str) -> list[int]:
        if re.fullmatch(r"n[0-9]{8}( -?[0-9.]+){4}.*", text):  # Kaggle's, with boxes
            objects = {*re.findall("n[0-9]{8}", text)}
            text = objects.pop() if len(objects) == 1 else text
        if not re.fullmatch("-?[0-9]{1,9}", text):
            return look_up(text)
        number = int(text)
        return [number] if ids is None else [ids[number]] if number in ids else []

    return classes_of


def _two_columns(
    lines: list[Line], find: Callable[[str], str | None], is_class: Callable[[str], bool]
) -> tuple[list[tuple[int, str, str, str]], list[str]]:
    """Return lines with the file name and the class in each, by the one of READINGS that fits most, and notes on it."""

    def fits(layout: str, line: str) -> bool:
        name, text = split_line(line, layout)
        return bool(name and text and find(name) is not None and is_class(text))

    sample = [line for _, line in lines[:: len(lines) // SAMPLE + 1]]
    scores = {layout: sum(fits(layout, line) for line in sample) for layout in READINGS}
    layout = max(scores, key=scores.get)
    notes = [] if layout == "NAME CLASS" else [f"read as {layout}"]
    if scores[layout] and _is_header(lines[0][1]) and not fits(layout, lines[0][1]):
        notes.append(f"header {lines[0][1][:MAX_QUOTE]!r} left out")
        lines = lines[1:]
    return [(number, line, *split_line(line, layout)) for number, line in lines], notes


def _problem(line: str, name: str, file: str | None, text: str, found: list[int], classes: int) -> str | None:
    """Return the problem of a line's file name or class text, or None.

    `file` is the image that the name means, `found` are the class ids that the text means, of `classes` in all.
    """
    if not (name and text):
        return f"is {line[:MAX_QUOTE]!r}: give a file name and a class id"
    quoted, text = repr(name[:MAX_QUOTE]), text[:MAX_QUOTE]
    if file is None and (name.startswith("/") or "\\" in name or ".." in name.split("/")):
        return f"names {quoted}: give a path inside the image folder, without '..' or backslashes"
    if len(found) > 1:
        return f"gives {quoted} the class {text!r}, but {text!r} {names_several(found)}: give the wnid or the id"
    if not found:
        return f"gives {quoted} the class {text!r}: give a class id, or a wnid or name in the list of class names"
    if not 0 <= found[0] < classes:
        return f"gives {quoted} the class {found[0]}, but only 0 to {classes - 1} have names: correct one"
    return None


def _is_header(line: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]+([ ,;\t]+[A-Za-z_]+)+", line.replace('"', "")) is not None


def _file_finder(files: Collection[str]) -> Callable[[str], str | None]:
    """Return a function that finds a listed name among the files: in full, by its last part, or without its extension.

    Names that differ only in their Unicode normal form are the same, but an exact match takes precedence.
    """

    def last(name: str) -> str:
        return re.split(r"[\\/]", composed(name))[-1]

    def stem(file: str) -> str:
        return last(file).rpartition(".")[0] or last(file)

    # the key of a file, the key of a listed name
    forms = [(str, str), (composed, composed), (last, last), (stem, last)]
    tables: list[dict[str, list[str]]] = [{} for _ in forms]
    for file in files:
        for table, (key_of, _) in zip(tables, forms, strict=True):
            table.setdefault(key_of(file), []).append(file)

    def find(name: str) -> str | None:
        keys = zip(tables, (key_of(name) for _, key_of in forms), strict=True)
        hits = next((table[key] for table, key in keys if key in table), [])
        return hits[0] if len(hits) == 1 else None

    return find
