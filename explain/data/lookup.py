"""Looking up a class by its name, by one rule for --classes, lists of labels, folders, and matching two lists."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Sequence

MAX_IDS = 10  # ids that an error lists


def composed(text: str) -> str:
    """Return a text in Unicode's form NFC; macOS decomposes file names (é becomes e and an accent)."""
    return unicodedata.normalize("NFC", text)


def caseless(text: str) -> str:
    """Return a class name in lower case and NFC, with spaces for underscores."""
    return composed(composed(text).replace("_", " ").strip().casefold())


def synonyms(name: str) -> list[str]:
    """Return the comma-separated names of a class, each `caseless`."""
    return [part for part in map(caseless, name.split(",")) if part]


@functools.cache
def imagenets_names() -> dict[str, str]:
    """Return {wnid: name} of ImageNet's 1000 classes, in the order of their ids.

    Two of them are cranes, where torchvision has a "crane bird".
    """
    import timm  # slow

    info = timm.data.ImageNetInfo("imagenet-1k")
    return dict(zip(info.label_names(), info.label_descriptions(), strict=True))


def class_lookup(names: Sequence[str], wnids: Sequence[str] = ()) -> Callable[[str], list[int]]:
    """Return a function from a text to the ids of the classes that it names: several for an ambiguous name.

    It returns the classes found by the first of these comparisons that finds any, so that A and a can be two classes:
    the full name, ImageNet's name, the wnid, or wnid and name together, exactly; the same in Unicode's NFC; the same
    ignoring case, with _ for spaces; one of the comma-separated names.
    """
    full: list[list[str]] = [[name] for name in names]
    for own, wnid in zip(full, wnids, strict=bool(wnids)):
        own += [wnid, f"{wnid} {own[0]}", imagenets_names().get(wnid, own[0])] if wnid else []
    steps = [(str, full), (composed, full), (caseless, full), (caseless, [synonyms(name) for name in names])]
    tables: list[dict[str, list[int]]] = [{} for _ in steps]
    for (form, texts), table in zip(steps, tables, strict=True):
        for c, own in enumerate(texts):
            for text in {form(text) for text in own}:
                table.setdefault(text, []).append(c)

    def look_up(text: str) -> list[int]:
        forms = [form(text) for form, _ in steps]
        return next((table[form] for form, table in zip(forms, tables, strict=True) if form in table), [])

    return look_up


def other_numbers(names: Sequence[str]) -> bool:
    """Return whether all names are numbers that differ from the ids: a number is then a name and never an id."""
    return all(name.isdecimal() for name in names) and any(int(name) != c for c, name in enumerate(names))


def names_several(ids: Sequence[int]) -> str:
    """Return the predicate of an error about an ambiguous name, such as "names two classes: 134 and 517"."""
    number = "two" if len(ids) == 2 else f"{len(ids):,}"
    *first, last = [str(c) for c in ids] if len(ids) <= MAX_IDS else [*map(str, ids[:MAX_IDS]), "others"]
    return f"names {number} classes: {', '.join(first)} and {last}"
