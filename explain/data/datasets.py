"""The layouts of datasets: folders and lists, ILSVRC-2012's development kit, a folder per class."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from explain.basics.errors import UserError, printable, quantity
from explain.basics.files import is_system_name, list_files
from explain.data.image_files import is_image_name
from explain.data.labels import Labels, Names, read_labels, read_names, split_wnid
from explain.data.lookup import class_lookup, names_several, other_numbers

# Spellings in use; the last of each is from Kaggle's archive
IMAGE_FOLDERS = ("validation_images", "validation images", "val", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")
TEST_FOLDERS = ("test_images", "test images", "test", "ILSVRC2012_img_test", "ILSVRC/Data/CLS-LOC/test")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # of the development kit, whose class ids have their own order
LABEL_LISTS = ("val.txt", "val", "val.csv", "LOC_val_solution.csv", GROUND_TRUTH)
NAME_LISTS = ("synset_words.txt", "synset_words", "LOC_synset_mapping.txt", "imagenet_classes.txt")
SPLIT_NAMES = "synset_words.txt"  # in DL_data_p, if the names are not those of DL_data
# The parts of datasets, in the order of preference for an evaluation: val, Validation, test_images, dev2, ...
PARTS = ("val(id(ation)?)?", "test(ing)?", "dev(el(opment)?)?", "eval(uation)?", "train(ing)?")
BESIDE_PARTS = {"meta", "metadata", "annotations", "labels", "devkit", "lists"}  # other folders found there
PART_NAME = re.compile(  # also seg_train, test_simple
    rf"(?P<before>(.*[ _-])?)(?P<part>{'|'.join(PARTS)})"
    r"([ _-]*((data)?set|data|images?|imgs?|photos|split|folder|dir)?[ _-]*\d*|(?P<after>[ _-].*))"
)
MAX_NAMES = 10  # class names that a note lists
KIT = ("", "data", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data")  # where the development kit's files may be


def find_folder(parent: Path, spellings: Sequence[str]) -> Path | None:
    """Return the first of the spellings that is a folder in `parent`, ignoring case."""
    folders = {p.name.casefold(): p for p in parent.iterdir() if p.is_dir()} if parent.is_dir() else {}
    folders |= {s.casefold(): parent / s for s in spellings if "/" in s and (parent / s).is_dir()}
    return next((folders[s.casefold()] for s in spellings if s.casefold() in folders), None)


def find_file(parent: Path, spellings: Sequence[str]) -> Path | None:
    """Return the first of the spellings that is a file in `parent` or a folder of the development kit there."""
    for folder in (parent / place for place in KIT):
        files = {p.name.casefold(): p for p in folder.iterdir() if p.is_file()} if folder.is_dir() else {}
        if path := next((files[s.casefold()] for s in spellings if s.casefold() in files), None):
            return path
    return None


def find_parts(data: Path) -> tuple[Path, Path | None, Path | None, Path | None]:
    """Return the parts of a dataset: image folder, label list, name list, folder of test images.

    Images in a folder per class need no label list and no name list; the development kit needs no name list. Raises
    UserError for a missing part that is needed.
    """
    if not data.is_dir():
        raise UserError(f"{data} does not exist: put your dataset there, or add --sample for a small one")
    images, labels = find_folder(data, IMAGE_FOLDERS), find_file(data, LABEL_LISTS)
    names = find_file(data, NAME_LISTS)
    entries = [] if labels or not images else [e for e in os.scandir(images) if not is_system_name(e.name)]
    by_class = bool(entries) and all(entry.is_dir() for entry in entries)
    has_kit = labels is not None and labels.name == GROUND_TRUTH
    needed = {f"folder {IMAGE_FOLDERS[0]}": images, "file val.txt": labels or by_class}
    needed["file synset_words.txt"] = names or by_class or has_kit
    for part, path in needed.items():
        if not path:
            raise UserError(f"{data} has no {part}: put it there, or choose another --dataset")
    return images, labels, names, find_folder(data, TEST_FOLDERS)


def read_kit(data: Path, names: Names | None) -> tuple[dict[int, int], Names]:
    """Read the development kit's meta.mat; return the class id of each id of the kit, and the classes' (wnid, name).

    The classes are in the order of `names`, matched by wnid, or without `names` in the usual order, by wnid
    (Russakovsky et al. 2015; readme.txt of the kit).
    """
    path = find_file(data, ["meta.mat"])
    if path is None:
        raise UserError(f"{data} has the development kit's {GROUND_TRUTH} without its meta.mat: put meta.mat there too")
    import scipy.io  # slow, and every script imports this file

    try:
        synsets = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        kit = {int(s["ILSVRC2012_ID"]): (str(s["WNID"]), str(s["words"])) for s in synsets if not s["num_children"]}
    except Exception:  # a damaged file makes scipy raise anything
        raise UserError(f"{path} is not the development kit's meta.mat: copy it from ILSVRC2012_devkit_t12") from None
    names = names or Names(sorted(kit.values()))
    places = {wnid: i for i, (wnid, _) in enumerate(names) if wnid}
    missing = [wnid for wnid, _ in kit.values() if wnid not in places]
    if missing:
        raise UserError(f"{len(missing)} wnids of {path} have no name, such as {missing[0]}: give names with wnids")
    return {kit_id: places[wnid] for kit_id, (wnid, _) in kit.items()}, names


def class_folders(
    folder: Path, names: Names | None = None, numeric: bool = False
) -> tuple[dict[str, int], Names, list[str]]:
    """Return the class id of each subfolder, (wnid, name) of the classes, and notes on their order.

    With `names`, each subfolder must be named by a class's name, wnid or id. Without, class ids follow the order of the
    folders' names, as in torchvision.datasets.ImageFolder, or with `numeric` the order of their numbers. Links to
    folders count, as for torchvision. Raises UserError for a subfolder of no class, and for the parts of a dataset in
    place of classes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one with a subfolder for each class")
    subfolders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_system_name(entry.name))
    if not subfolders:
        raise UserError(f"{folder} has no subfolders: give a folder with one for each class")
    if names is not None:
        return _ids_by_name(folder, subfolders, names)
    refuse_parts(folder, subfolders)
    no_numbers = [name for name in subfolders if not name.isdecimal()]
    if numeric and no_numbers:
        raise UserError(f"--numeric needs folders named by numbers, not {no_numbers[0]!r}")
    by_number = subfolders if no_numbers else sorted(subfolders, key=int)
    order, notes = by_number if numeric else subfolders, []
    if by_number != subfolders:
        as_text = "text, as in torchvision's ImageFolder (10 before 2): add --numeric to sort them as numbers"
        followed = "numbers: omit --numeric to sort them as text" if numeric else as_text
        notes.append(f"the folders' names are numbers, and class ids follow their order as {followed}")
    # bytes in a folder's name that are not UTF-8 are written as \xff
    texts = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in order]
    return {name: i for i, name in enumerate(order)}, Names(map(split_wnid, texts)), notes


def _ids_by_name(folder: Path, subfolders: Sequence[str], names: Names) -> tuple[dict[str, int], Names, list[str]]:
    """Return what `class_folders` returns, for subfolders named by class names, wnids or ids."""
    look_up = class_lookup([name for _, name in names], [wnid for wnid, _ in names])
    numbers = other_numbers([name for _, name in names])
    ids: dict[str, int] = {}
    for name in subfolders:
        found = look_up(name)
        if not found and re.fullmatch("[0-9]{1,9}", name) and int(name) < len(names) and not numbers:
            found = [int(name)]
        if len(found) > 1:
            place = f"the folder {name!r} in {printable(folder)}"
            raise UserError(f"{place} {names_several(found)}: rename it to the class's wnid or id")
        if found:
            ids[name] = found[0]
    if unknown := [name for name in subfolders if name not in ids]:
        refuse_parts(folder, subfolders)
        raise UserError(
            f"{len(unknown)} of the {len(subfolders)} folders in {printable(folder)} are not named by a class, "
            f"such as {unknown[0]!r}: name each by the class's name, wnid or id from 0 to {len(names) - 1}"
        )
    folders_of = Counter(ids.values())
    twice = [name for name, c in ids.items() if folders_of[c] > 1]
    return ids, names, [f"several folders for one class: {shown(twice)}"] if twice else []


def refuse_parts(folder: Path, subfolders: Sequence[str]) -> None:
    """Raise UserError if the subfolders are train, val, test and the like instead of classes.

    They are if all have such names, or if two names differ only in a part to train on and another part, as seg_train
    and seg_test do. The folders bullet train and test tube are classes.
    """
    folders = [name for name in subfolders if name.casefold() not in BESIDE_PARTS]
    alike: dict[tuple, dict[str, str]] = {}  # text before and after the part -> {name: part}
    for name in folders:
        if match := PART_NAME.fullmatch(name.casefold()):
            alike.setdefault(match.group("before", "after"), {})[name] = match["part"]
    for around, parts in alike.items():
        both = len({part.startswith("train") for part in parts.values()}) == 2
        if both or (around == ("", None) and len(parts) == len(folders)):
            first = min(parts, key=lambda name: [bool(re.fullmatch(part, parts[name])) for part in PARTS].index(True))
            raise UserError(
                f"{printable(folder)} has the folders {', '.join(parts)}, which are parts of a dataset, not classes: "
                f"give one of them, such as {printable(folder / first)}"
            )


def shown(names: Collection[str]) -> str:
    """Return the first names in a line of text, and the number of the others."""
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return ", ".join(list(names)[:MAX_NAMES]) + more


def note_empty(subfolders: Iterable[str], files: Iterable[str]) -> list[str]:
    """Return a note on the class folders without an image among the files, whose paths begin with a class folder.

    A link to a folder that is also listed under its own name is such a folder.
    """
    full = {file.partition("/")[0] for file in files if is_image_name(Path(file))}
    empty = [printable(Path(name)) for name in subfolders if name not in full]
    return [f"{quantity(len(empty), 'class folder')} without an image: {shown(empty)}"] if empty else []


def key_of(path: Path, base: Path) -> str:
    """Return the path of a file in rows: relative to the dataset, or in full if it is elsewhere."""
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def read_lists(
    data: Path, folders: str | None, name_file: str | None, numeric: bool
) -> tuple[Path, Path | None, Names, Labels, Path]:
    """Return a dataset's image folder, test image folder, (wnid, name) of each class, labels, and the labels' source.

    `folders`, with a folder per class, replaces `data`, and `name_file` replaces the dataset's own names. Raises
    UserError for lists that cannot be read, and for a folder of no class.
    """
    folder, label_list, name_list, tests = (Path(folders), None, None, None) if folders else find_parts(data)
    name_list = Path(name_file) if name_file else name_list
    names, kit = read_names(name_list) if name_list else None, None
    if label_list is None:
        ids, names, notes = class_folders(folder, names, numeric)
    elif label_list.name == GROUND_TRUTH:
        kit, names = read_kit(data, names)
    files = [path.relative_to(folder).as_posix() for path in list_files(folder)]
    if label_list is None:
        in_folders = [file for file in files if "/" in file and is_image_name(Path(file))]
        labels = Labels({file: ids[file.split("/")[0]] for file in in_folders}, {}, notes + note_empty(ids, files))
    else:
        labels = read_labels(label_list, names, files, kit)
    return folder, tests, names, labels._replace(notes=read_as(names) + labels.notes), label_list or folder


def read_as(names: Names) -> list[str]:
    """Return a note on the form of a list of names, unless it has a name on each line."""
    return [f"list of names read as {names.read_as}"] if names.read_as else []


def read_dataset_names(dataset: Path) -> tuple[Names, Path] | None:
    """Return (wnid, name) of each class of a dataset, and their file; None if there is no such file."""
    split = dataset / "DL_data_p" / SPLIT_NAMES
    path = split if split.is_file() else find_file(dataset / "DL_data", NAME_LISTS)
    return (read_names(path), path) if path else None


def dataset_digest(dataset: Path) -> str | None:
    """Return a digest of the names of a dataset's split images and test images; None if there are no images."""
    tests = find_folder(dataset / "DL_data", TEST_FOLDERS)
    folders = [folder for folder in (dataset / "DL_data_p", tests) if folder and folder.is_dir()]
    images = [path for folder in folders for path in list_files(folder) if is_image_name(path)]
    names = "\n".join(printable(path.relative_to(dataset)) for path in images)
    return hashlib.sha256(names.encode()).hexdigest()[:12] if names else None
