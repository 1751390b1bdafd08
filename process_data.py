"""Split the validation images by class: DL_data/<validation images>/NAME -> DL_data_p/<class id>/NAME.

`val.txt` has a line `NAME ID` for each image, with spaces, tabs or a comma in between; ID is a class id or a WordNet id
(wnid). Line n of `synset_words.txt`, counting from 0, names class n. ILSVRC-2012's validation set is distributed in
this layout (Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge). Everything is read and checked
before anything is written, and all problems are reported at once. A second run changes nothing. No file is ever
deleted: --prune (also called --fresh) moves files that are not part of the dataset to another folder.

    python process_data.py --sample       # no dataset yet: 23 photos from installed packages, in seconds
    python process_data.py                # your own dataset in dataset/DL_data; --link saves disk space
    python process_data.py --folders DIR  # your own photos, a folder for each class
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from explain.run.shell import answer_early, run

from explain.run.command_line import option_parser


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, "--dataset", "--names", "--output", "--white", "--show", "--no-title", "--pdf")
    parser.set_defaults(show=24)
    parser.add_argument(
        "--folders",
        metavar="DIR",
        help="split DIR, which has a folder for each class, named by the class's name, wnid or id; without --names, "
        "the ids follow the order of the folders' names, as in torchvision's ImageFolder",
    )
    parser.add_argument("--numeric", action="store_true", help="sort numeric folder names as numbers, not as text")
    parser.add_argument("--sample", action="store_true", help="write the sample dataset to DL_data first")
    parser.add_argument("--link", action="store_true", help="make hard links instead of copies, to save disk space")
    parser.add_argument(
        "--prune",
        "--fresh",
        action="store_true",
        help="move files that are not part of the dataset to DL_data_p_pruned",
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip problematic entries and list them")
    parser.add_argument("--strict", action="store_true", help="treat a listed file that is absent as a problem")
    return parser.parse_args()


if __name__ == "__main__":
    answer_early(parse_options)

import common
from explain.basics.errors import UserError, printable, quantity
from explain.basics.files import copy_or_link, is_file_of, is_inside, move_out, write_file
from explain.data import image_files
from explain.data.datasets import SPLIT_NAMES, TEST_FOLDERS, find_folder, key_of, read_lists
from explain.data.image_files import is_image_name
from explain.data.labels import Labels, Names, names_text
from explain.data.sample import write_sample
from explain.report import classes as report
from explain.run import shell

MAX_LINES = 20  # of problems or file names that are printed; the others are counted


def split_by_class(options: argparse.Namespace) -> tuple[list[dict], list[dict], dict[str, Any]]:
    """Split the validation images; return a row for each image, the files that were skipped, and the results."""
    base = Path(options.dataset)
    split = base / "DL_data_p"

    # 1. Find the folders, and read the lists.
    image_folder, test_folder, names, labels, label_list = read_lists(
        base / "DL_data", options.folders, options.names, options.numeric
    )
    if options.folders and (others := find_folder(base / "DL_data", TEST_FOLDERS)):
        print(f"note: {others} does not belong to {options.folders}: give 2d to 2h your test images", file=sys.stderr)

    # 2. Read and check everything. Problems end the run here, before anything is written.
    images, skipped, counts = check_images(image_folder, label_list, names, labels, options)
    test_files, other_files = common.list_images(test_folder) if test_folder else ([], 0)
    tests = describe_images("test", test_files, base, options.white)
    skipped += [{"path": row["path"], "reason": row["reason"]} for row in tests if "reason" in row]
    tests = [row for row in tests if "reason" not in row]

    # 3. Find what no longer belongs there. Until --prune moves it, the other scripts read it, so it has rows.
    images_there, others_there = common.list_images(split) if split.is_dir() else ([], 0)
    leftovers = sorted(set(images_there) - {base / row["path"] for row in images.values()})
    if options.prune:
        for path in leftovers:
            move_out(path, split)
    elif leftovers and not any(is_file_of(base / row["path"], row["sha256"]) for row in images.values()):
        raise UserError(
            f"{split} has {quantity(len(leftovers), 'image')} of another dataset or other labels, and none of "
            f"{image_folder}: give --fresh to move them to {split}_pruned, or another --dataset"
        )

    # 4. Copy or link each image into the folder of its class.
    written = 0
    shell.progress_is_kept = True  # a later run keeps the copies
    with common.progress(len(images), "images", desc="splitting") as bar:
        for path, row in images.items():
            written += copy_or_link(path, base / row["path"], split, row["sha256"], options.link)
            bar.update()

    name_list = split / SPLIT_NAMES
    others_there -= name_list.is_file()
    if options.folders or options.names or name_list.is_file():  # else DL_data has the names
        write_file(name_list, names_text(names))
    rows = [*images.values(), *tests]
    if not options.prune:
        for row in describe_images("leftover", leftovers, base, options.white):
            rows.append(row | {"notes": ["no longer part of the dataset", *row.get("notes", [])]})

    results = counts | {
        "classes": len({row["class"] for row in images.values()}),
        "validation_images": len(images),
        "test_images": len(tests),
        "written": written,
        "unchanged": len(images) - written,
        "no_longer_belong": len(leftovers),
        "other_files": counts["other_files"] + other_files + others_there,
        "pruned": len(leftovers) if options.prune else 0,
    }
    print_changes(results, split, leftovers)
    return rows, skipped, results


def print_changes(results: Mapping[str, Any], split: Path, leftovers: Sequence[Path]) -> None:
    """Print how many images were split, which listed files are missing, and which files are left over."""
    images, classes = quantity(results["validation_images"], "image"), quantity(results["classes"], "class")
    print(f"{images} of {classes} -> {split} ({results['written']} written, {results['unchanged']} unchanged)")
    tests, listed = quantity(results["test_images"], "test image"), quantity(results["listed"], "listed file")
    print(list_lines(f"{tests}; {results['listed_but_absent']} of {listed} missing", map(repr, results["absent"])))
    if leftovers:
        files = quantity(len(leftovers), "leftover file")
        head = f"moved {files} to {split}_pruned:" if results["pruned"] else f"{files} in {split} (see --prune):"
        print(list_lines(head, (repr(path.relative_to(split).as_posix()) for path in leftovers)))


def check_images(
    folder: Path, label_list: Path, names: Names, read: Labels, options: argparse.Namespace
) -> tuple[dict[Path, dict], list[dict], dict[str, Any]]:
    """Compare the folder with the labels that were `read`, and decode all validation images.

    Returns the row of each good image, in the order in which the other scripts read them; the bad images with the
    reason; and counts for metrics.json. Raises UserError with all problems at once, or prints them with --skip-bad.
    """
    base = Path(options.dataset)
    files, problems, other_files = match_files(folder, read, bool(options.folders))
    labels = read.labels

    # decode the images without a problem so far
    order = sorted((name for name in files if name not in problems), key=lambda name: (labels[name], Path(name)))
    described = describe_images("validation", [files[name] for name in order], base, options.white)
    rows = dict(zip(order, described, strict=True))
    problems |= {name: row["reason"] for name, row in rows.items() if "reason" in row}
    absent = [name for name in labels if name not in files]
    if options.strict:
        problems |= {name: f"{name!r} is listed, but not in {folder}: add it" for name in absent}

    good = [name for name in order if name not in problems]
    total = f"{base} has {quantity(len(problems), 'problem')}"
    if not good:
        head = f"no image in {folder} is readable and listed: put the images there or correct {label_list}"
        if read.first:
            example = f"{next(iter(files), 'a.jpg')} 0"
            head += f", whose first line is {read.first!r}; give a file name and a class, as in {example!r}"
        raise UserError(list_lines(head, problems.values()))
    if problems and not options.skip_bad:
        head = f"{total}, so nothing was written: correct the dataset, or skip these entries with --skip-bad"
        raise UserError(list_lines(head, problems.values()))
    if problems:
        print(list_lines(f"{total}, skipped because of --skip-bad:", problems.values()), file=sys.stderr)
    for index, name in enumerate(good):
        c = labels[name]
        rows[name] |= {"index": index, "path": f"DL_data_p/{c}/{name}", "class": c, "name": names[c][1]}
    skipped = [{"path": key_of(files[name], base), "reason": problems[name]} for name in files if name in problems]
    counts = {
        "listed": len({*labels, *read.problems}),
        "listed_but_absent": len(absent),
        "absent": absent,
        "problems": len(problems),
        "other_files": other_files,
        "bad_lines": [problem for name, problem in problems.items() if name not in files],
    }
    if read.notes:
        counts["read_as"] = read.notes
        print(f"{label_list}: {'; '.join(read.notes)}", file=sys.stderr)
    return {files[name]: rows[name] for name in good}, skipped, counts


def match_files(folder: Path, read: Labels, follow: bool) -> tuple[dict[str, Path], dict[str, str], int]:
    """Return {name: path} of the files in the folder that are listed or are images, the problems, and the number of
    other files.

    Links to folders are followed, since whoever prepared the dataset made them, and only images that can be decoded are
    taken from there. Unless `follow`, a link to a file must stay in the dataset's folder, or in the file's own folder.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in common.list_files(folder)}
    listed, problems = {*read.labels, *read.problems}, dict(read.problems)
    files = {name: path for name, path in paths.items() if name in listed or is_image_name(path)}
    for name, path in files.items():  # listed names are only looked up here, and never opened
        if not is_image_name(path):
            problems[name] = f"{name!r} is listed, but has no image extension: rename it or remove it from the list"
        elif name not in listed:
            problems[name] = f"{name!r} is in {folder} but not in the list: list it or move it away"
        elif name in read.labels and path.is_symlink() and not os.path.lexists(os.path.realpath(path)):
            problems[name] = f"{name!r} is a dangling link to {os.readlink(path)!r}: fetch that file or remove the link"
        elif name in read.labels and not follow and not is_inside(path, folder) and not is_inside(path, path.parent):
            problems[name] = f"{name!r} is a link out of {folder}: put the file itself there"
    return files, problems, len(paths) - len(files)


def describe_images(role: str, paths: Sequence[Path], base: Path, white: int | None) -> list[dict[str, Any]]:
    """Return a row for each image, with its digest and findings, or the `reason` why it cannot be used.

    Each role is numbered from 0, as `common.validation_images` and `common.test_images` number their files. A note is
    printed if 16-bit images come out nearly black; `white` as in `read_image`.
    """
    upright, rows = role == "test", []  # 2b uses validation images as they are stored
    with (
        ThreadPool(min(8, os.cpu_count() or 1)) as pool,  # Pillow decodes outside the interpreter's lock
        common.progress(len(paths), "images", desc="checking") as bar,
    ):
        facts = pool.imap(lambda path: inspect_image(path, upright, white), paths)
        for index, (path, fact) in enumerate(zip(paths, facts, strict=True)):
            rows.append({"role": role, "index": index, "path": key_of(path, base), "class": None, "name": None, **fact})
            bar.update()
    image_files.warn_of_nearly_black(rows, white)
    return rows


def inspect_image(path: Path, upright: bool, white: int | None = None) -> dict[str, Any]:
    """Decode an image in full; return its size, digest and findings, or the `reason` why it cannot be used."""
    try:
        data = image_files.read_bytes(path)  # once, so that the decoded bytes are the hashed bytes
        info = image_files.decode_image(data, printable(path), upright, white).info
    except UserError as error:
        return {"reason": str(error)}
    findings = {key: info[key] for key in image_files.FINDINGS if key in info}
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **findings}


def list_lines(head: str, lines: Iterable[str]) -> str:
    """Return a message with the first lines, and the number of the others."""
    lines = list(lines)
    more = [f"and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return "\n  ".join([head, *lines[:MAX_LINES], *more])


def main() -> None:
    options = parse_options()
    output = common.OutputFolder(options, __file__)
    if options.sample:
        write_sample(Path(options.dataset) / "DL_data")
    rows, skipped, results = split_by_class(options)
    report.write(rows, skipped, results, output)


if __name__ == "__main__":
    run(main)
