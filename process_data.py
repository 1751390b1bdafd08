"""Split the validation images by class: DL_data/<validation images>/NAME -> DL_data_p/<class id>/NAME.

`val.txt` gives each image its class id (`NAME ID` a line; a comma, tabs, or a wnid for the id work
too) and line n, from 0, of `synset_words.txt` names class n. That is the layout in which ILSVRC-2012's
validation set is handed around (Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition
Challenge). Everything is read and checked before anything is written, and all problems are listed
at once. A second run changes nothing, and no file is ever deleted: --prune moves it.

    python process_data.py --sample       # no dataset yet: 23 photos from installed packages; the fast one
    python process_data.py                # your own, in dataset/DL_data; --link saves the disk space
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from explain.shell import run

from matplotlib.figure import Figure
from PIL import ImageOps
from tqdm import tqdm

import common
from explain import pictures
from explain.errors import UserError
from explain.files import is_inside, sha256_of
from explain.labels import read_labels, read_names
from explain.sample import write_sample

IMAGE_FOLDERS = ("validation_images", "validation images", "val", "ILSVRC2012_img_val")  # spellings met in the wild
SHOWN_PROBLEMS = 20  # and the number of the rest


class Source(NamedTuple):
    """Where the four parts of a dataset are."""

    images: Path
    labels: Path
    names: Path
    tests: Path | None


class Item(NamedTuple):
    """An image to be split: its class, its name (relative to the folder), where it is."""

    class_id: int
    name: str
    source: Path


class Checked(NamedTuple):
    """What the check found: facts are those of `inspect_image`, problems a sentence for each name."""

    names: list[tuple[str, str]]
    present: dict[str, Path]
    good: list[tuple[Item, dict]]
    tests: list[tuple[Path, dict]]
    problems: dict[str, str]
    listed: int
    absent: int


# ------------------------------------------------------------------------------------------------
# Reading


def find_source(data: Path) -> Source:
    """Find the parts of the dataset, in any of their spellings."""
    if not data.is_dir():
        raise UserError(f"{data} does not exist: put your dataset there, or add --sample for a small one")
    files = {path.name.casefold(): path for path in data.iterdir() if path.is_file()}
    found = {
        f"folder {IMAGE_FOLDERS[0]}": common.find_folder(data, IMAGE_FOLDERS),
        "file val.txt": files.get("val.txt") or files.get("val"),
        "file synset_words.txt": files.get("synset_words.txt") or files.get("synset_words"),
    }
    for part in [part for part, path in found.items() if path is None][:1]:
        raise UserError(f"{data} has no {part}: put it there, or give another --dataset")
    return Source(*found.values(), common.find_folder(data, common.TEST_FOLDERS))


def inspect_image(path: Path, upright: bool) -> dict[str, Any]:
    """Decode the whole image; what identifies its content, or the `reason` why it is no image."""
    try:
        data = pictures.read_bytes(path)  # once: what is decoded is what is hashed
        notes = pictures.decode_image(data, common.printable(path), upright).info["notes"]
    except UserError as error:
        return {"reason": " ".join(str(error).split())}
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "notes": notes}


# ------------------------------------------------------------------------------------------------
# Planning


def plan(
    present: Mapping[str, Path], folder: Path, labels: Mapping[str, int], bad: Mapping[str, str]
) -> tuple[list[Item], dict[str, str]]:
    """What to split, in the order in which the scripts will read it, and what is wrong with the rest.

    Names of `val.txt` are only ever looked up among the files that are there, never opened.
    """
    items, problems = [], dict(bad)
    for name, path in present.items():
        if name in bad:
            continue
        if name not in labels:
            problems[name] = f"{name!r} is in {folder} but not in the list: list it or move it away"
        elif not is_inside(path, folder):
            problems[name] = f"{name!r} is a link that leaves {folder}: put the file itself there"
        else:
            items.append(Item(labels[name], name, path))
    return sorted(items, key=lambda item: (item.class_id, Path(item.name))), problems


def list_lines(head: str, lines: Collection[str]) -> str:
    """A message with the first lines, and the number of the rest."""
    rest = len(lines) - SHOWN_PROBLEMS
    return "\n  ".join([head, *list(lines)[:SHOWN_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])])


# ------------------------------------------------------------------------------------------------
# Carrying out


def put(source: Path, split: Path, target: Path, digest: str, link: bool) -> bool:
    """Copy or hard-link one file, all or nothing; False where the target is right already.

    `digest` is the content's SHA-256 when it was checked. Raises UserError where it has changed since.
    """
    if not is_inside(target.parent, split):
        raise UserError(f"{target.parent} is a link that leaves {split}: remove the link")
    if target.is_file() and (target.samefile(source) if link else sha256_of(target) == digest):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.tmp")  # not made from a name that may have 255 bytes already
    try:
        if link:
            try:
                os.link(os.path.realpath(source), temporary)
            except OSError as error:
                raise UserError(
                    f"{source} cannot be hard-linked into {target.parent} ({error.strerror}): "
                    "leave --link away, or keep DL_data and DL_data_p on one file system"
                ) from None
        else:
            shutil.copyfile(source, temporary)
            status = source.stat()
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        if sha256_of(temporary) != digest:
            raise UserError(f"{source} changed while it was read: start the same command again")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def prune(path: Path, split: Path) -> Path:
    """Move a file out of the split, to a name that is free; returns where it is now."""
    wanted = split.with_name(split.name + "_pruned") / path.relative_to(split)
    numbered = (wanted.with_name(f"{wanted.stem}.{n}{wanted.suffix}") for n in count(1))
    target = wanted if not os.path.lexists(wanted) else next(p for p in numbered if not os.path.lexists(p))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    return target


# ------------------------------------------------------------------------------------------------
# Checking, and the report


def draw_classes(table: Sequence[dict], photos: Mapping[int, Path], show: int) -> Figure:
    """How many images a class has, and a photo each of up to `show` classes spread over all."""
    shown = min(show, len(table))
    chosen = [table[i * len(table) // shown] for i in range(shown)]
    lines = -(-shown // 7)
    per_line = -(-shown // lines)  # 24: four lines of 6; 19: 7, 7, 5
    heights = [2.8, lines * (9 / max(per_line, 5) + 0.25)]  # inches
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)

    axes = upper.subplots()
    few = len(table) <= 100  # names can be read below the bars
    where = range(len(table)) if few else [line["class"] for line in table]
    axes.bar(where, [line["images"] for line in table], width=0.8 if few else 1.0)
    if few:
        labels = [common.short(line["name"]) for line in table]
        axes.set_xticks(where, labels, rotation=90, fontsize=7 if len(table) <= 50 else 5, parse_math=False)
    axes.set(xlabel="" if few else "class id", ylabel="images")
    axes.margins(x=0.01)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    total = sum(line["images"] for line in table)
    title = f"{total} validation images of {len(table)} classes; below, a photo (cropped) of {shown} of them"
    upper.suptitle(title, fontsize=10)

    for place, line in zip(lower.subplots(lines, per_line, squeeze=False).flat, chosen, strict=False):
        place.imshow(ImageOps.fit(common.read_image(photos[line["class"]]), (160, 160)))
        place.set_title(f"{line['class']} {common.short(line['name'], 18)}", fontsize=7.5, parse_math=False)
    for place in lower.axes:
        place.axis("off")
    return figure


def check(options: argparse.Namespace, base: Path) -> Checked:
    """Read everything, write nothing; raises UserError with all that is wrong, unless --skip-bad."""
    source = find_source(base / "DL_data")
    names = read_names(source.names)
    labels, bad = read_labels(source.labels, names)
    present = {path.relative_to(source.images).as_posix(): path for path in common.list_files(source.images)}
    items, problems = plan(present, source.images, labels, bad)
    tests = common.list_files(source.tests) if source.tests else []
    jobs = [(item.source, False) for item in items] + [(path, True) for path in tests]  # 2b takes them as stored
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter's lock
        reading = pool.imap(lambda job: inspect_image(*job), jobs)
        facts = list(tqdm(reading, desc="checking", total=len(jobs), unit="image", disable=None))
    looked_at = list(zip(items, facts, strict=False))
    problems |= {item.name: fact["reason"] for item, fact in looked_at if "reason" in fact}
    absent = [name for name in labels if name not in present]
    if options.strict:
        problems |= {name: f"{name!r} is listed, but not in {source.images}: add it" for name in absent}
    good = [(item, fact) for item, fact in looked_at if item.name not in problems]
    lines = list(problems.values())
    if present.keys().isdisjoint({*labels, *bad}):
        head = f"no file that {source.labels} lists is in {source.images}: put the images there or correct the list"
        raise UserError(list_lines(head, lines))
    if problems and not options.skip_bad:
        head = f"{base} has problems, {len(lines)}; nothing was written, --skip-bad goes on without these:"
        raise UserError(list_lines(head, lines))
    if not good:
        raise UserError(list_lines(f"no image in {source.images} can be used:", lines))
    if problems:
        print(list_lines(f"going on without these, {len(lines)}:", lines), file=sys.stderr)
    looked_at_tests = list(zip(tests, facts[len(items) :], strict=True))
    return Checked(names, present, good, looked_at_tests, problems, len(labels) + len(bad), len(absent))


def describe(base: Path, checked: Checked, leftover: Sequence[Path]) -> tuple[list[dict], list[dict]]:
    """One row per image, with what identifies its content and nothing that changes from run to run.

    Each role is numbered from 0, as `common.validation_images` and `common.test_images` number them.
    Second, the files that are left out, with the reason.
    """
    rows = []
    skipped = [
        {"path": path.relative_to(base).as_posix(), "reason": checked.problems[name]}
        for name, path in checked.present.items()
        if name in checked.problems
    ]
    for index, (item, fact) in enumerate(checked.good):
        path = f"DL_data_p/{item.class_id}/{item.name}"
        kind = {"role": "validation", "class": item.class_id, "name": checked.names[item.class_id][1]}
        rows.append({"index": index, "path": path, **kind, **fact})
    for index, (path, fact) in enumerate(checked.tests):
        key = path.relative_to(base).as_posix()
        if "reason" in fact:
            skipped.append({"path": key, **fact})
        else:
            rows.append({"index": index, "path": key, "role": "test", "class": None, "name": None, **fact})
    # the scripts read what no longer belongs until it is pruned, so that it is part of what the data are
    for index, path in enumerate(leftover):
        fact = inspect_image(path, upright=False)
        fact["notes"] = ["no longer belongs", *fact.pop("notes", [])]
        key = path.relative_to(base).as_posix()
        rows.append({"index": index, "path": key, "role": "leftover", "class": None, "name": None, **fact})
    return rows, skipped


def main() -> None:
    parser = common.option_parser(__doc__, "--dataset", "--output", "--show")
    parser.set_defaults(show=24)
    parser.add_argument("--sample", action="store_true", help="write the sample dataset to DL_data first")
    parser.add_argument("--link", action="store_true", help="make hard links, which take no space, in place of copies")
    parser.add_argument("--prune", action="store_true", help="move what no longer belongs to DL_data_p_pruned")
    parser.add_argument("--skip-bad", action="store_true", help="go on without what is wrong, and say what it was")
    parser.add_argument("--strict", action="store_true", help="take a listed file that is absent for an error")
    options = parser.parse_args()
    report = common.Report(options, __file__)
    base = Path(options.dataset)
    if options.sample:
        write_sample(base / "DL_data")
    checked = check(options, base)

    # from here on something is written
    split = base / "DL_data_p"
    targets = [split / str(item.class_id) / item.name for item, _ in checked.good]
    jobs = list(zip(checked.good, targets, strict=True))
    written = 0
    for (item, fact), target in tqdm(jobs, desc="splitting", unit="image", disable=None):
        written += put(item.source, split, target, fact["sha256"], options.link)
    leftover = sorted(set(common.list_files(split)) - set(targets))
    pruned = [prune(path, split) for path in leftover] if options.prune else []

    # the summary
    rows, skipped = describe(base, checked, [] if options.prune else leftover)
    images = Counter(item.class_id for item, _ in checked.good)
    table = [{"class": c, "name": checked.names[c][1], "images": images[c]} for c in sorted(images)]
    results = {
        "classes": len(images),
        "validation_images": len(checked.good),
        "test_images": sum(row["role"] == "test" for row in rows),
        "listed": checked.listed,
        "listed_but_absent": checked.absent,
        "written": written,
        "unchanged": len(targets) - written,
        "no_longer_belong": len(leftover),
        "pruned": len(pruned),
        "problems": len(checked.problems),
        "bad_lines": [reason for name, reason in checked.problems.items() if name not in checked.present],
    }
    photos = {item.class_id: item.source for item, _ in reversed(checked.good)}  # the first of each class
    common.save_figure(draw_classes(table, photos, options.show), report.path("classes.png"))
    done = f"({written} written, {len(targets) - written} unchanged)"
    print(f"{len(targets)} images of {len(images)} classes -> {split} {done}")
    print(f"{results['test_images']} test images; {checked.absent} of the {checked.listed} listed files are not there")
    if leftover:
        cure = f"moved to {split}_pruned" if options.prune else "--prune moves them away"
        names = [repr(path.relative_to(split).as_posix()) for path in leftover]
        print(list_lines(f"no longer belong in {split}, {len(leftover)} ({cure}):", names))
    report.finish(rows, skipped, results, {"classes.csv": table})


if __name__ == "__main__":
    run(main)
