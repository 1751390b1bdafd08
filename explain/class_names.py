"""The names of a network's classes: where they come from, and which class a name means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from explain.datasets import read_dataset_names
from explain.errors import UserError, unknown
from explain.labels import clean, name_form, read_names, synonyms
from explain.networks import Classifier


def name_classes(model: Classifier, file: str | None, dataset: Path | None) -> None:
    """Give a model the names of its classes: those in --names, the checkpoint's, the dataset's, else its own.

    Raises UserError where --names, or the dataset's list alone, has another number than the network has classes.
    """
    count = len(model.categories)
    names_and_source = None
    if file:
        names_and_source = read_names(Path(file)), file
        if len(names_and_source[0]) != count:
            raise UserError(
                f"{file} has {len(names_and_source[0])} names and {model.name} has {count} classes: give {count}"
            )
    elif model.checkpoint_names and len(model.checkpoint_names) == count:
        names_and_source = [("", clean(name)) for name in model.checkpoint_names], "the checkpoint"
    elif dataset:
        names_and_source = read_dataset_names(dataset)
        if names_and_source and len(names_and_source[0]) != count:
            raise UserError(
                f"{names_and_source[1]} has {len(names_and_source[0])} names and {model.name} has {count} classes: "
                f"give --names with {count}, or another --dataset"
            )
    if model.checkpoint_names and len(model.checkpoint_names) != count:
        model.notes.append(f"the checkpoint has {len(model.checkpoint_names)} names for {count} classes: not used")
    if names_and_source:
        names, source = names_and_source
        model.categories, model.names_from = [name for _, name in names], str(source)
        if any(wnid for wnid, _ in names):
            model.wnids = [wnid for wnid, _ in names]


def find_class(text: str, categories: Sequence[str]) -> int:
    """Return a class id from an id or a name; raises UserError with the ids of names that may be meant."""
    if re.fullmatch(r"[+-]?\d+", text):
        if not 0 <= int(text) < len(categories):
            raise UserError(f"class {text} does not exist: ids go from 0 to {len(categories) - 1}")
        return int(text)
    name = name_form(text)
    known = [synonyms(names) for names in categories]
    ids = [i for i, names in enumerate(known) if name in names]
    if len(ids) > 1:
        raise UserError(f"{text!r} names the classes {', '.join(map(str, ids))}: give the id")
    if not ids:
        # "stork" means one of "white stork" and "black stork" rather than "stole"
        word = re.compile(rf"\b{re.escape(name)}\b")
        with_it = [f"{n} {i}" for i, names in enumerate(known) for n in names if name and word.search(n)]
        if not with_it:
            raise UserError(unknown("class", name, [n for names in known for n in names]) + " (ids work too)")
        more = f" and {len(with_it) - 10} more" if len(with_it) > 10 else ""
        raise UserError(f"no class is named {name!r}: choose from {', '.join(with_it[:10])}{more}")
    return ids[0]


def find_classes(texts: Sequence[str], categories: Sequence[str]) -> list[int]:
    """Return the class ids of several names or ids; raises UserError, also for a name that wants quotes."""
    try:
        return [find_class(text, categories) for text in texts]
    except UserError:
        known = {name for names in categories for name in synonyms(names)}
        for start, end in combinations(range(len(texts) + 1), 2):
            name = " ".join(texts[start:end])
            if end > start + 1 and name_form(name) in known:
                raise UserError(f'{name!r} is one class: put it in quotes, as in --classes "{name}"') from None
        raise
