"""Code that several exercises share: the dataset, the class score, the path from image files to rows, options.

Images are float32, RGB, (N, 3, H, W), with values in [0, 1]; normalisation is inside the model. Exercises use the names
in `__all__`; the code behind them (networks, image files, figures, the output folder, rows) is in explain/. Importing
this file has no effect.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import os
import re
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from explain.run.shell import keep_freed_memory, return_freed_memory

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from explain.basics.errors import NoSuchMap, UserError, integer_argument, printable, quantity
from explain.basics.files import is_system_name, list_files, size_of
from explain.basics.sharing import is_shared, shared, shared_results
from explain.data.datasets import TEST_FOLDERS, class_folders, find_folder, note_empty, read_dataset_names
from explain.data.image_files import FINDINGS, is_image_name, read_image, to_pixels, warn_of_nearly_black
from explain.data.labels import read_names
from explain.methods.faithfulness import faithfulness_scores
from explain.methods.feature_maps import run_with_features
from explain.methods.maps import describe_map, latest
from explain.networks.class_names import find_class, find_classes, match_labels, name_classes, note_missing
from explain.networks.classifier import Classifier, load_model
from explain.networks.logits import at_least_one, check_images, class_ids, class_logits
from explain.networks.preprocessing import OPTIONS
from explain.networks.running import check_finite, class_standing, evaluation_mode, most_likely, predict_logits
from explain.run.command_line import dataset_of
from explain.run.output import OutputFolder, map_name, write_array
from explain.run.progress import progress
from explain.run.rows import Rows, resolve_options, run_settings

# The dataset; the class score; maps; from image files to rows; options; output
__all__ = ["ImageFile", "ImageFiles", "add_notes", "label_images", "list_files", "list_images"]
__all__ += ["spread_over_classes", "labelled_images", "test_images", "validation_images", "Classes", "class_ids"]
__all__ += ["class_score_gradient", "classes_to_explain", "find_class", "find_classes", "forward_pass", "most_likely"]
__all__ += ["shared", "shared_results", "MapFunction", "NoSuchMap", "call_with", "make_maps"]
__all__ += ["map_name", "map_rows", "check_finite", "check_images"]
__all__ += ["evaluation_mode", "predict_logits", "explain_batches", "explain_images", "pad", "read_image"]
__all__ += ["record_nondeterminism", "seeded_generators", "Rows", "run_settings", "Classifier"]
__all__ += ["resolve_options", "load_from_options", "load_model", "integer_argument"]
__all__ += ["OutputFolder", "UserError", "keep_freed_memory", "progress", "to_pixels", "write_array"]

# Class ids, one for each image or one for all; None means an image's most likely class
Classes = Tensor | np.ndarray | Sequence[int | None] | int

# ------------------------------------------------------------------------------------------------
# The dataset


class ImageFile(NamedTuple):
    """An image of a run: its `index` in the list, its `key` in rows, tables and figures, its `path` and its `label`."""

    index: int
    key: str
    path: Path
    label: int | None = None  # the class id, if known


class ImageFiles(list[ImageFile]):
    """The images of a run, the number of other files in their folders, and images `skipped` (path and reason).

    `classes` is the number of classes in the data, some of which --limit may leave out; it is 0 without labels.
    """

    def __init__(self, files: Iterable[ImageFile], other_files: int, skipped: Iterable[dict] = (), classes: int = 0):
        super().__init__(files)
        self.other_files, self.skipped, self.classes = other_files, list(skipped), classes


def list_images(folder: Path) -> tuple[list[Path], int]:
    """List the files below a folder that have an image extension, in the order of `list_files`; count the others."""
    files = list_files(folder)
    images = [path for path in files if is_image_name(path)]
    return images, len(files) - len(images)


def test_images(options: argparse.Namespace) -> ImageFiles:
    """List the images given as arguments, else the dataset's test images; the first --limit of them.

    A file given as an argument counts as an image, whatever its name.
    """
    if options.images:
        paths, other_files = [], 0
        for path in map(Path, options.images):
            if not os.path.lexists(path):
                raise UserError(f"{printable(path)} does not exist: give image files or folders of images")
            images, others = list_images(path) if path.is_dir() else ([path], 0)
            paths, other_files = paths + images, other_files + others
        files = [ImageFile(i, printable(path), path) for i, path in enumerate(paths)]
        source = " ".join(printable(Path(argument)) for argument in options.images)
    else:
        for text in getattr(options, "classes", None) or []:
            if os.path.lexists(text):
                raise UserError(f"{text} is a file, but is given as a class: give image files before --classes")
        base = Path(options.dataset)
        folder = find_folder(base / "DL_data", TEST_FOLDERS)
        if folder is None:
            raise UserError(
                f"{base / 'DL_data'} has no folder {TEST_FOLDERS[0]}: give image files as arguments, "
                "or run `python process_data.py --sample` for a sample dataset"
            )
        paths, other_files = list_images(folder)
        files = [ImageFile(i, printable(path.relative_to(base)), path) for i, path in enumerate(paths)]
        source = str(folder)
    if not files:
        others = f", only {quantity(other_files, 'file')} without an image extension" if other_files else ""
        raise UserError(f"{source} has no images{others}: put images there or give them as arguments")
    return ImageFiles(files[: options.limit], other_files)


def validation_images(dataset: str | os.PathLike) -> ImageFiles:
    """List the validation images in the folders made by `process_data.py`, by class id, then name."""
    base = Path(dataset)
    split = base / "DL_data_p"
    folders = [p for p in split.glob("*") if p.is_dir() and not is_system_name(p.name)]
    for folder in folders:
        if not re.fullmatch("[0-9]{1,9}", folder.name):
            raise UserError(
                f"{printable(folder)} is not named by a class id: rename it, or evaluate it in place with "
                f"`python 2b_evaluate.py {split}`"
            )
    folders.sort(key=lambda p: int(p.name))
    listings = [list_images(folder) for folder in folders]
    paths = [path for images, _ in listings for path in images]
    if not paths:
        raise UserError(
            f"{split} holds no validation images: run `python process_data.py` first, "
            "with --sample if you have no dataset"
        )
    files = [ImageFile(i, printable(path.relative_to(base)), path) for i, path in enumerate(paths)]
    return ImageFiles(files, sum(others for _, others in listings))


def spread_over_classes(files: ImageFiles, limit: int | None, seed: int) -> ImageFiles:
    """Return `limit` labelled images in a random order, one of every class before a second of any class.

    Without a limit, all images are returned in their own order. Indices are the places in the returned list.
    """
    images_of: Counter[int | None] = Counter()

    def turn(file: ImageFile) -> int:  # 1 for the first image of a class, 2 for the second
        images_of[file.label] += 1
        return images_of[file.label]

    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    spread = sorted((files[place] for place in order), key=turn)
    chosen = files if limit is None else spread[:limit]
    numbered = (file._replace(index=index) for index, file in enumerate(chosen))
    return ImageFiles(numbered, files.other_files, files.skipped, len(images_of))


def label_images(files: ImageFiles, model: Classifier, dataset: str | os.PathLike) -> ImageFiles:
    """Label the dataset's validation images with the network's classes.

    Classes are matched by name if dataset and network both have names, else by id; see `match_labels`. Images of
    classes that the network does not have are `skipped`.
    """
    matched = match_labels(model, Path(dataset))
    labelled, skipped = [], []
    for file in files:
        c = int(file.key.split("/")[1])  # DL_data_p/<class id>/...
        c = matched.class_of(c) if matched else c
        if isinstance(c, str):
            skipped.append({"path": file.key, "reason": c})
        else:
            labelled.append(file._replace(index=len(labelled), label=c))
    if matched:
        add_notes(model, matched.notes(len(skipped)))
    return ImageFiles(labelled, files.other_files, skipped)


def labelled_images(folder: str | os.PathLike, model: Classifier) -> ImageFiles:
    """List the images in a folder with a subfolder for each class; images outside the subfolders are `skipped`.

    A subfolder is named by its class's name, WordNet id (n01770393) or id. If the model has only numbers for names,
    the subfolders may have any names, provided that there are as many as classes: they name the classes in the order
    of torchvision's ImageFolder.
    """
    base = Path(folder)
    names = list(zip(model.wnids or [""] * len(model.categories), model.categories, strict=True))
    try:
        ids, _, notes = class_folders(base, names)
    except UserError:
        ids, names, notes = class_folders(base) if model.names_from == "numbers" else ({}, [], [])
        if len(ids) != len(model.categories):
            raise
        model.categories, model.names_from = [name for _, name in names], f"the folders in {printable(base)}, in order"
    in_order = sorted(ids) == sorted(ids, key=ids.get)
    if len(ids) == len(names) and not in_order and all(name.isdecimal() and int(name) == c for name, c in ids.items()):
        notes.append(
            "the folders' names are numbers and are taken as class ids; if the network was trained with torchvision's "
            "ImageFolder, which sorts them as text (10 before 2), give the names in that order with --names"
        )
    paths, other_files = list_images(base)
    inside = [(path, ids[path.relative_to(base).parts[0]]) for path in paths if path.parent != base]
    files = [ImageFile(i, printable(path), path, label) for i, (path, label) in enumerate(inside)]
    reason = f"it is not in the folder of a class in {printable(base)}"
    skipped = [{"path": printable(path), "reason": reason} for path in paths if path.parent == base]
    if not files:
        raise UserError(f"the folders in {printable(base)} have no images: put some there")
    notes += note_missing(model.categories, ids.values(), printable(base))
    add_notes(model, [*notes, *note_empty(ids, (path.relative_to(base).as_posix() for path in paths))])
    return ImageFiles(files, other_files, skipped)


def add_notes(model: Classifier, notes: Iterable[str]) -> None:
    """Print notes on stderr, and keep them in the model for metrics.json."""
    for text in notes:
        model.notes.append(text)
        print(f"note: {text}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------
# The class score


class ForwardPass(NamedTuple):
    """A forward pass whose class logits can be differentiated; made by `forward_pass`."""

    model: nn.Module
    images: Tensor  # (N, 3, H, W), the leaf of the graph
    logits: Tensor  # (N, classes)
    classes: Tensor  # (N,), the classes to explain
    features: Tensor | None = None  # (N, C, h, w), the last layer with a height and a width, if there is any

    @property
    def scores(self) -> Tensor:
        """S_c (N,): each image's logit of its class."""
        return self.logits.gather(1, self.classes[:, None])[:, 0]

    def gradient(self, by: Tensor | None = None) -> Tensor:
        """Return dS_c/dx (N, 3, H, W), in logits per unit of pixel value.

        One backward pass serves the batch, since no image's logit depends on another image. `by` (N, ...), the output
        of a layer such as `features`, replaces the pixels x. Outside `shared_results` this can be called only once.
        """
        # evaluation mode, since a network with checkpointing runs parts again on the way back
        with evaluation_mode(self.model), torch.inference_mode(False):
            gradient, scores = None, self.scores.sum()
            if scores.requires_grad:
                settings = dict(retain_graph=is_shared(), allow_unused=True)
                try:
                    (gradient,) = torch.autograd.grad(scores, self.images if by is None else by, **settings)
                except CheckpointError:
                    raise UserError(
                        "a checkpointed part of this network computes something else when it runs again: switch its "
                        "checkpointing off"
                    ) from None
        if gradient is None:
            raise UserError(
                "the network's logits do not depend on the images, or it computes them without gradients: explain a "
                "network without torch.no_grad(), detach() and the like between the image and the logits"
            )
        return gradient[: len(self.classes)]


@shared
def forward_pass(model: nn.Module, images: Tensor, classes: Classes, features: bool = True) -> ForwardPass:
    """Run images (N, 3, H, W) through the network in evaluation mode, and keep the graph.

    `classes` are the ids to explain, one for each image or one for all; None means an image's most likely class. The
    caller's tensors, the model's state and every `.grad` stay as they are. It also works under torch.no_grad() and
    torch.inference_mode(). Raises UserError for images of another shape or type, for a class that the network does not
    have, and for an output that is not (N, classes); see `logits.as_logits`. Without `features`, a pass over small
    images takes a tenth less time, and the feature maps are None.
    """
    ids = class_ids(classes, len(check_images(images)))
    with evaluation_mode(model), torch.inference_mode(False):  # the latter also switches gradients on
        leaf = at_least_one(images).detach().clone().requires_grad_()
        run = functools.partial(class_logits, model, leaf)
        logits, layer = run_with_features(run, leaf) if features else (run(), None)
        logits = logits[: len(images)]
        if None in ids:
            ids = [best if c is None else c for c, best in zip(ids, most_likely(logits)[:, 0].tolist(), strict=True)]
        if any(not 0 <= c < logits.shape[1] for c in ids):
            raise UserError(f"class ids must be 0 to {logits.shape[1] - 1}, not {ids}")
        return ForwardPass(model, leaf, logits, torch.tensor(ids, dtype=torch.long, device=logits.device), layer)


def class_score_gradient(model: nn.Module, images: Tensor, classes: Classes) -> tuple[Tensor, Tensor]:
    """Return the gradient (N, 3, H, W) of each image's class logit with respect to its pixels, and those logits (N,).

    Arguments as for `forward_pass`. Simonyan et al. 2014, section 3.
    """
    forward = forward_pass(model, images, classes, features=False)
    return forward.gradient(), forward.scores.detach()


# model, images (N, 3, H, W), classes -> maps (N, H, W); `make_maps` gives it more arguments by their names
MapFunction = Callable[..., Tensor]


def make_maps(
    table: Mapping[str, MapFunction],
    model: nn.Module,
    images: Tensor,
    classes: Classes,
    options: argparse.Namespace,
    indices: Iterable[int],
) -> tuple[dict[str, Tensor], dict[str, NoSuchMap]]:
    """Return the maps (N, H, W) of each kind in a table, and why the network cannot have the other kinds.

    A function gets each of these arguments for which it has a parameter: `generators`, one for each of the images'
    indices, the same in every call, and the options `copies` and `noise`. With --copies 0, functions that take copies
    are left out. Otherwise they run first, before the graph of a shared forward pass takes memory beside theirs.
    """
    settings = {name: value for name, value in vars(options).items() if name in ("copies", "noise")}
    settings["generators"] = seeded_generators(options.seed, indices)
    of_copies = {kind: "copies" in inspect.signature(latest(table[kind])).parameters for kind in table}
    maps, reasons = {}, {}
    with shared_results():
        for kind in sorted(table, key=lambda kind: not of_copies[kind]):
            if of_copies[kind] and not getattr(options, "copies", 0):
                continue
            try:
                maps[kind] = call_with(table[kind], model, images, classes, **settings)
            except NoSuchMap as reason:
                reasons[kind] = reason
    return {kind: maps[kind] for kind in table if kind in maps}, reasons


def call_with(function: Callable, *arguments: Any, **settings: Any) -> Any:
    """Call the latest version of a function with the settings for which it has parameters."""
    function = latest(function)
    known = {name: settings[name] for name in inspect.signature(function).parameters if name in settings}
    return function(*arguments, **known)


def map_rows(
    forward: ForwardPass,
    images: Tensor,
    files: Sequence[ImageFile],
    maps: Mapping[str, Tensor],
    reasons: Mapping[str, NoSuchMap],
    options: argparse.Namespace,
    output: OutputFolder,
) -> Iterator[dict]:
    """Yield the row of each image (N, 3, H, W): its class, and the measures and the file of each map (N, H, W).

    `maps` and `reasons` come from `make_maps`. The first --scores images also get faithfulness scores. Raises UserError
    if the logits are not finite.
    """
    standings = class_standing(check_finite(forward.logits.detach()), forward.classes)
    for n, (file, row) in enumerate(zip(files, standings, strict=True)):
        row |= {"maps": [*maps, *reasons], "files": []}
        for kind, of_all in maps.items():
            array = of_all[n].cpu().numpy()
            row |= {f"{kind}_{key}": value for key, value in describe_map(abs(array)).items()}
            row["files"].append(map_name(file.index, kind))
            write_array(output.file(row["files"][-1]), array)
        row |= {f"{kind}_status": reason.lacking for kind, reason in reasons.items()}
        if file.index < options.scores:
            (generator,) = seeded_generators(options.seed, [file.index])
            own = {kind: of_all[n].abs() for kind, of_all in maps.items()}
            row |= faithfulness_scores(forward.model, images[n], forward.classes[n], own, generator)
        yield row


def classes_to_explain(
    texts: Sequence[str] | None, files: ImageFiles, categories: Sequence[str], wnids: Sequence[str] = ()
) -> tuple[ImageFiles, list[int | None]]:
    """Return the images and the class to explain in each, from --classes: an id, or None for the most likely class.

    If one image has several classes, it is repeated for each.
    """
    if not texts:
        return files, [None] * len(files)
    classes = find_classes(texts, categories, wnids)
    if len(files) == 1:
        repeated = (files[0]._replace(index=index) for index in range(len(classes)))
        files = ImageFiles(repeated, files.other_files, files.skipped, files.classes)
    if len(classes) not in (1, len(files)):
        raise UserError(
            f"{len(classes)} classes for {len(files)} images: give one class for all images, one for each image, or "
            "several for one image"
        )
    return files, classes * (len(files) // len(classes))


# ------------------------------------------------------------------------------------------------
# From image files to rows

RETURN_MEMORY_EVERY = 8  # batches: the gaps between blocks in use grow, but the next batch has to fill them anew
SECONDS_UNSAVED = 1.0  # seconds of computing that a kill may lose, besides the current image


def explain_images(
    model: Classifier,
    files: ImageFiles,
    explain: Callable[[Tensor, list[ImageFile]], Iterable[dict]],
    options: argparse.Namespace,
    output: OutputFolder,
    upright: bool = True,
) -> tuple[list[dict], list[dict]]:
    """Run `explain` over the images that have no row yet; return the row of each image, and the images skipped.

    For `explain`, see `explain_batches`. Raises OthersAtWork if rows of other shards are missing, and UserError if no
    image can be used.
    """
    output.other_files, output.classes = files.other_files, files.classes
    if not files:
        raise UserError(_unusable(files.skipped))
    inputs = [(file.index, file.key, size_of(file.path), file.label) for file in files]
    rows_on_disk = Rows(output, options, run_settings(options, output.source, model, inputs), len(files))
    todo = [files[index] for index in rows_on_disk.todo]
    batch = min(options.batch_size, len(files))
    batches = explain_batches(model, todo, explain, batch, options.strict, upright, options.prefetch)
    for number, rows in enumerate(batches):
        rows_on_disk.append(rows)
        if number % RETURN_MEMORY_EVERY == 0:
            return_freed_memory()
    return_freed_memory()  # the rows of all images take its place
    rows = rows_on_disk.complete()
    warn_of_nearly_black(rows, model.white)
    skipped = files.skipped + [{"path": row["path"], "reason": row["skipped"]} for row in rows if "skipped" in row]
    used = [row for row in rows if "skipped" not in row]
    if not used:
        raise UserError(_unusable(skipped))
    return used, skipped


def _unusable(skipped: Sequence[dict]) -> str:
    return f"none of the {len(skipped)} images can be used, the first because {skipped[0]['reason']}"


def explain_batches(
    model: Classifier,
    files: Sequence[ImageFile],
    explain: Callable[[Tensor, list[ImageFile]], Iterable[dict]],
    batch: int,
    strict: bool = False,
    upright: bool = True,
    prefetch: int = 0,
) -> Iterator[list[dict]]:
    """Run `explain` over the images, `batch` at a time; yield their rows, in the order of the files.

    `explain(images (batch, 3, S, S), files)` yields a dict of plain values for each image. The rows of a batch are
    yielded together, or as soon as SECONDS_UNSAVED have passed. A short batch is padded with copies of its last image,
    whose rows are dropped, since kernels may differ with the batch's shape. The row of a file that cannot be read says
    why it cannot; with `strict`, UserError is raised instead. `prefetch` batches are read ahead.
    """
    device = model.mean.device
    with (
        closing(progress(len(files), "images")) as bar,
        closing(read_batches(model, files, batch, strict, upright, prefetch)) as batches,
    ):
        for chunk, rows, images in batches:
            columns: Iterator[dict] = iter(())
            if readable := [n for n, row in enumerate(rows) if "skipped" not in row]:
                padded = pad(readable, batch)
                images = images if len(readable) == batch else images[padded]
                images = images.to(device, non_blocking=images.is_pinned())
                # `explain` runs at the first next() below, inside record_nondeterminism
                columns = chain.from_iterable(map(explain, [images], [[chunk[n] for n in padded]]))
            operations: set[str] = set()  # of the batch so far
            first, since = 0, time.monotonic()
            for n, row in enumerate(rows, start=1):
                if "skipped" not in row:
                    with record_nondeterminism(device) as more:
                        row |= next(columns)
                    if operations := operations | more:
                        row["nondeterministic"] = sorted(operations)
                bar.update()
                if n == len(rows) or time.monotonic() - since > SECONDS_UNSAVED:
                    yield rows[first:n]
                    first, since = n, time.monotonic()


def read_batches(
    model: Classifier, files: Sequence[ImageFile], batch: int, strict: bool, upright: bool, prefetch: int
) -> Iterator[tuple[Sequence[ImageFile], list[dict], Tensor]]:
    """Yield the files, `batch` at a time, with the beginnings of their rows and their images (batch, 3, S, S).

    A row has index, path, notes, the fraction of the area that is cropped, and the largest value of a 16-bit image; or
    the reason why the file is `skipped`. The pixels of skipped files are arbitrary. `prefetch` batches are read ahead.
    """

    def load(file: ImageFile, place: Tensor) -> dict[str, Any]:
        row = {"index": file.index, "path": file.key}
        try:
            image = read_image(file.path, upright, model.white)
        except UserError as error:
            if strict:
                raise
            return row | {"skipped": str(error)}
        place.copy_(model.preprocess(image))
        findings = {key: image.info[key] for key in FINDINGS if key in image.info}
        return row | findings | {"cropped": model.cropped(image.size)}

    shape = batch, 3, model.input_size, model.input_size
    pinned = model.mean.device.type == "cuda"  # copies from pinned memory do not wait for the GPU
    # decoding releases Python's lock; torch gets one thread in each reader, or the readers would compete for the cores
    readers = ThreadPoolExecutor(torch.get_num_threads(), "reader", torch.set_num_threads, (1,))
    ahead: deque[tuple[Sequence[ImageFile], list[Future], Tensor]] = deque()

    def first_of_them() -> tuple[Sequence[ImageFile], list[dict], Tensor]:
        chunk, futures, images = ahead.popleft()
        return chunk, [future.result() for future in futures], images

    try:
        for start in range(0, len(files), batch):
            chunk, images = files[start : start + batch], torch.empty(shape, pin_memory=pinned)
            ahead.append((chunk, [readers.submit(load, *both) for both in zip(chunk, images, strict=False)], images))
            if len(ahead) > prefetch:
                yield first_of_them()
        while ahead:
            yield first_of_them()
    finally:
        readers.shutdown(cancel_futures=True)


def pad(items: Sequence[Any], length: int) -> list:
    """Return the items, followed by copies of the last one up to this length."""
    return [*items, *[items[-1]] * (length - len(items))]


@contextmanager
def record_nondeterminism(device: torch.device) -> Iterator[set[str]]:
    """Use deterministic kernels inside the block; at its end the yielded set names the operations that lack such a
    kernel.

    A CPU's kernels for these networks are always deterministic.
    """
    operations: set[str] = set()
    if device.type == "cpu":
        yield operations
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield operations
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    for warning in caught:
        if match := re.match(r"(\S+) does not have a deterministic implementation", str(warning.message)):
            operations.add(match[1])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def seeded_generators(seed: int, keys: Iterable[int]) -> list[torch.Generator]:
    """Return a generator for each key (an image's index, a class id), which does not depend on the other keys.

    torch's CPU generator uses only the lowest 32 bits of its seed. The keys of each seed start at a multiple of
    2^32 / golden ratio, so that 1,000 seeds have over a million keys each before any two share a generator (Knuth, The
    Art of Computer Programming, volume 3, section 6.4).
    """
    return [torch.Generator().manual_seed((seed * 0x9E3779B1 + key) % 2**32) for key in keys]


def load_from_options(options: argparse.Namespace) -> Classifier:
    """Load the model that the options describe, with its classes' names; print assumptions on stderr.

    The options are those that `resolve_options` returns.
    """
    if options.squash and options.whole:
        raise UserError("--squash and --whole are two ways to fit a whole image into the input: give only one")
    settings = {key: getattr(options, key) for key in OPTIONS if getattr(options, key) is not None}
    dataset, names = dataset_of(options), None
    if options.names:
        names = read_names(Path(options.names)), Path(options.names)
    elif dataset:
        names = read_dataset_names(dataset)
    if options.stochastic:
        torch.manual_seed(options.seed)
    classes = [len(names[0])] if names else []
    model = load_model(options.model, options.weights, options.device, classes, options.stochastic, **settings)
    # After loading, since a network's own file may set them too. Some releases of torch warn that there are newer
    # switches, but with those torch.backends.cudnn.flags fails, which a network may use.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.tf32
    model.dataset_names = None if options.names else names
    name_classes(model, names, given=bool(options.names))
    for warning in model.warnings:
        print(f"note: {warning}", file=sys.stderr)
    model.white = options.white
    if options.whole:
        model.use_uncropped_images()
    return model
