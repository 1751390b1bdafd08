"""The names of a network's classes, and the class that a label of a dataset, or a text, means."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from explain.basics.errors import UserError, quantity, unknown
from explain.data.datasets import read_as, read_dataset_names, shown
from explain.data.labels import Names, split_wnid
from explain.data.lookup import caseless, class_lookup, names_several, other_numbers, synonyms
from explain.networks.classifier import Classifier

# The fraction of names in place by which two lists are in the same order. ImageNet's names have several spellings.
IN_PLACE, IN_PLACE_IMAGENET = 0.99, 0.5


def name_classes(model: Classifier, found: tuple[Names, Path] | None, given: bool = False) -> None:
    """Name a model's classes: by `found` if it is `given` by --names, else by the checkpoint, else by the dataset.

    `found` are names and their file. A dataset's names are used if the network has only numbers, or the same names in
    the same order. Raises UserError if --names, or the dataset's list for a network without names, has another number
    of names than the network has classes.
    """
    count, carried = len(model.categories), model.checkpoint_names
    if carried and len(carried) != count:
        model.notes.append(f"the checkpoint has {len(carried)} names for {count} classes: not used")
    elif carried:
        names = Names(map(split_wnid, carried))
        if not _are_its_own(names, model):
            model.wnids = []  # the library's network was retrained for other classes
        _take_names(model, names, "the checkpoint")
    if found is None or not (given or model.names_from != "the checkpoint" or _are_ids(model)):
        return
    names, source = found
    if len(names) != count and (given or model.names_from == "numbers"):
        cure = f"give {count}" if given else f"give --names with {count}, or another --dataset"
        raise UserError(f"{source} has {len(names)} names and {model.name} has {count} classes: {cure}")
    if not given and (len(names) != count or not (_are_ids(model) or _are_its_own(names, model))):
        model.notes.append(f"{source} does not have the names of the network's {count} classes in order: not used")
        return
    _take_names(model, names, str(source))
    model.warnings += [f"{source}: {note}" for note in read_as(names)]


def _take_names(model: Classifier, names: Names, source: str) -> None:
    model.categories, model.names_from = [name for _, name in names], source
    if any(wnid for wnid, _ in names):
        model.wnids = [wnid for wnid, _ in names]


def _are_ids(model: Classifier) -> bool:
    """Return whether a network's names are only the classes' ids."""
    return model.names_from == "numbers" or model.categories == [str(c) for c in range(len(model.categories))]


def _are_its_own(names: Names, model: Classifier) -> bool:
    """Return whether names, as many as the network has classes, are the network's in its order.

    Of ImageNet's names, whose spelling varies, half are enough if none of the others names another class.
    """
    classes = match_names(names, model)
    return _are_in_order(classes, len(classes) * (IN_PLACE_IMAGENET if model.wnids else 1))


def _are_in_order(classes: Sequence[Sequence[int]], enough: float) -> bool:
    """Return whether no name is the name of another class, and enough names are in place."""
    in_place = sum(found == [c] for c, found in enumerate(classes))
    elsewhere = any(len(found) == 1 and found != [c] for c, found in enumerate(classes))
    return not elsewhere and in_place >= enough


# ------------------------------------------------------------------------------------------------
# The class that a label means


class LabelNames(NamedTuple):
    """The names of a dataset and their file, the names of the network and their source, and how they match.

    `classes` has the network's class for each class of the dataset; several if its name is ambiguous.
    """

    names: Names
    file: Path
    categories: Sequence[str]
    source: str
    classes: Sequence[Sequence[int]]

    def class_of(self, label: int) -> int | str:
        """Return the network's class for a label of the dataset, or the reason why there is none."""
        if label >= len(self.names):
            return f"its class {label} has no name in {self.file}, which has {len(self.names)}: add the name"
        name, found = self.names[label][1], self.classes[label]
        if len(found) == 1:
            return found[0]
        if found:
            return f"its class {name!r} {names_several(found)}: give its full name, or wnids in both lists"
        lacking = f"its class {name!r} is not among the network's {len(self.categories)} classes (names: {self.source})"
        return f"{lacking}: correct the name, or give the network's names with --names"

    def notes(self, skipped: int) -> list[str]:
        """Return notes on a different order, on classes that only one side has, and on labels that share a class.

        `skipped` is the number of images whose class the network lacks.
        """
        unmatched = [name for (_, name), found in zip(self.names, self.classes, strict=True) if len(found) != 1]
        matched = {label: found[0] for label, found in enumerate(self.classes) if len(found) == 1}
        times = Counter(matched.values())
        shared = [self.names[label][1] for label, c in matched.items() if times[c] > 1]
        notes = []
        if any(label != c for label, c in matched.items()):
            notes.append(f"labels are matched by name, not by id ({self.file}; the network's names: {self.source})")
        if unmatched:
            classes = f"{quantity(len(unmatched), 'class')} of {self.file} not matched with the network's"
            notes.append(f"{classes}, {quantity(skipped, 'image')} skipped: {shown(unmatched)}")
        notes += note_missing(self.categories, times, str(self.file))
        if shared:
            notes.append(f"{len(shared)} classes of {self.file} share classes of the network: {shown(shared)}")
        return notes


def note_missing(categories: Sequence[str], there: Container[int], place: str) -> list[str]:
    """Return a note on the network's classes that are not in `there`, the classes of the file or folder `place`."""
    missing = [name for c, name in enumerate(categories) if c not in there]
    return [f"{quantity(len(missing), 'class')} of the network not in {place}: {shown(missing)}"] if missing else []


def match_labels(model: Classifier, dataset: Path) -> LabelNames | None:
    """Match a dataset's classes with the network's by name; None if its labels are the network's ids.

    Labels are ids if one side has only numbers for names, or the network has the dataset's names.
    """
    found = model.dataset_names or read_dataset_names(dataset)
    if found is None or model.names_from in ("numbers", str(found[1])):
        return None
    names, file = found
    of_data, of_network = (all(map(str.isdecimal, own)) for own in ([name for _, name in names], model.categories))
    if of_data != of_network:
        return None
    return LabelNames(names, file, model.categories, model.names_from, match_names(names, model))


def match_names(names: Names, model: Classifier) -> list[list[int]]:
    """Return the network's classes for each (wnid, name), matched by wnid if both have one, else by name.

    The list is empty for a class that the network lacks, and has several classes for an ambiguous name. A name, or one
    of its parts between commas, counts if it also names the class in its own list. A name of several classes means the
    class with the same id if both lists are equally long and their other names in the same order. If several names
    match a class and one has the network's spelling, the others are ambiguous.
    """
    wnids = model.wnids or [""] * len(model.categories)
    by_wnid = {wnid: c for c, wnid in enumerate(wnids) if wnid}
    own, networks = class_lookup([name for _, name in names]), class_lookup(model.categories, model.wnids)

    def match(label: int, wnid: str, name: str) -> list[int]:
        if wnid in by_wnid:
            return [by_wnid[wnid]]
        for text in (name, *name.split(",")):
            labels, found = own(text), [c for c in networks(text) if not (wnid and wnids[c])]
            if label in labels and found:
                if label in found and (len(found) > 1 or len(labels) > 1):
                    repeated.add(label)
                return found if labels == [label] or len(found) > 1 else labels
        return []

    repeated: set[int] = set()  # labels whose name belongs to several classes, one of them with the label's id
    classes = [match(label, wnid, name) for label, (wnid, name) in enumerate(names)]
    single = {label: found[0] for label, found in enumerate(classes) if len(found) == 1}
    exact = {c: label for label, c in single.items() if names[label][1] == model.categories[c]}
    for label, c in single.items():
        if exact.get(c, label) != label and names[label][0] not in by_wnid:
            classes[label] = sorted([label, exact[c]])
    enough = max(1, (IN_PLACE_IMAGENET if model.wnids else IN_PLACE) * sum(len(found) < 2 for found in classes))
    if len(names) == len(model.categories) and _are_in_order(classes, enough):
        classes = [[label] if label in repeated else found for label, found in enumerate(classes)]
    return classes


# ------------------------------------------------------------------------------------------------
# The class that a text means

NUMBER = re.compile(r"[+-]?\d+")


def find_class(text: str, categories: Sequence[str], wnids: Sequence[str] = ()) -> int:
    """Return the class id that an id, a name or a wnid means; raise UserError with similar names if there is none."""
    return _find(text, categories, class_lookup(categories, wnids))


def find_classes(texts: Sequence[str], categories: Sequence[str], wnids: Sequence[str] = ()) -> list[int]:
    """Return the class ids that several ids, names or wnids mean; print a note if a number is a name and not an id.

    Raises UserError as `find_class` does, and for a name of several words without quotes.
    """
    look_up = class_lookup(categories, wnids)
    try:
        classes = [_find(text, categories, look_up) for text in texts]
    except UserError:
        for start, end in combinations(range(len(texts) + 1), 2):
            name = " ".join(texts[start:end])
            if end > start + 1 and look_up(name):
                raise UserError(f'{name!r} is one class: put it in quotes, as in --classes "{name}"') from None
        raise
    ids = zip(texts, classes, strict=True)
    if named := [f"{text} is class {c}" for text, c in ids if NUMBER.fullmatch(text) and int(text) != c]:
        print(f"note: numbers are taken as the names of classes, not as ids: {shown(named)}", file=sys.stderr)
    return classes


def _find(text: str, categories: Sequence[str], look_up: Callable[[str], list[int]]) -> int:
    ids = look_up(text)
    if not ids and NUMBER.fullmatch(text) and not other_numbers(categories):
        if not 0 <= int(text) < len(categories):
            raise UserError(f"class {text} does not exist: ids go from 0 to {len(categories) - 1}")
        return int(text)
    if len(ids) > 1:
        cure = "give each class a name of its own with --names" if NUMBER.fullmatch(text) else "give the id"
        raise UserError(f"{text!r} {names_several(ids)}: {cure}")
    if not ids:
        # suggest "white stork" and "black stork" for "stork", rather than "stole"
        name, known = caseless(text), [synonyms(names) for names in categories]
        word = re.compile(rf"\b{re.escape(name)}\b")
        with_it = [f"{n} {i}" for i, names in enumerate(known) for n in names if name and word.search(n)]
        if not with_it:
            ids_too = "" if other_numbers(categories) else " (ids work too)"
            raise UserError(unknown("class", name, [n for names in known for n in names]) + ids_too)
        more = f" and {len(with_it) - 10} more" if len(with_it) > 10 else ""
        raise UserError(f"no class is named {name!r}: choose from {', '.join(with_it[:10])}{more}")
    return ids[0]
