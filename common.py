"""What several exercises share: the dataset, the class score, the way from image files to rows, options.

Pixel space everywhere: float32, RGB, (N, 3, H, W), values in [0, 1]; normalisation is inside the model. `__all__` is
what an exercise may use; what stands behind it (networks, pictures, figures, the output folder, rows) is in explain/.
Importing this file does nothing.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from explain.run.shell import keep_freed_memory

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from explain.basics.errors import NoSuchMap, UserError, printable, quantity, whole_argument
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
from explain.run.output import OutputFolder, dataset_of, map_name, write_array
from explain.run.progress import progress
from explain.run.rows import Rows, resolve_options, run_settings

# What an exercise may use: the dataset; the class score; maps; from image files to rows; options; what comes out
__all__ = ["ImageFile", "ImageFiles", "add_notes", "class_of", "label_images", "list_files", "list_images"]
__all__ += ["spread_over_classes", "labelled_images", "test_images", "validation_images", "Classes", "class_ids"]
__all__ += ["class_score_gradient", "classes_to_explain", "find_class", "find_classes", "forward_pass", "most_likely"]
__all__ += ["shared", "shared_results", "MapFunction", "NoSuchMap", "call_with", "make_maps", "parameters_of"]
__all__ += ["map_name", "map_rows", "check_finite", "check_images"]
__all__ += ["evaluation_mode", "predict_logits", "explain_batches", "explain_images", "pad", "read_image"]
__all__ += ["record_nondeterminism", "seeded_generators", "Rows", "run_settings", "Classifier"]
__all__ += ["load_from_options", "load_model", "whole_argument"]
__all__ += ["OutputFolder", "UserError", "keep_freed_memory", "progress", "to_pixels", "write_array"]

# Class ids, one for each image, or one for all; None: an image's most likely class
Classes = Tensor | np.ndarray | Sequence[int | None] | int

# ------------------------------------------------------------------------------------------------
# The dataset


class ImageFile(NamedTuple):
    """One image of a run: its `index` in the list, its `key` in rows, tables and figures, its `path`, its `label`."""

    index: int
    key: str
    path: Path
    label: int | None = None  # the class id, where it is not in the key


class ImageFiles(list[ImageFile]):
    """The images of a run, the number of other files beside them, and labelled images left out, as path and reason.

    `classes` is the number of classes that the data have, of which a --limit may leave some out; 0 without labels.
    """

    def __init__(self, files: Iterable[ImageFile], other_files: int, skipped: Iterable[dict] = (), classes: int = 0):
        super().__init__(files)
        self.other_files, self.skipped, self.classes = other_files, list(skipped), classes


def list_images(folder: Path) -> tuple[list[Path], int]:
    """List the files below a folder that may be pictures by their names, as `list_files` does, and count the others."""
    files = list_files(folder)
    pictures = [path for path in files if is_image_name(path)]
    return pictures, len(files) - len(pictures)


def test_images(options: argparse.Namespace) -> ImageFiles:
    """List the files and folders given as arguments, else the dataset's test images; the first --limit of them."""
    if options.images:
        paths, other_files = [], 0
        for path in map(Path, options.images):  # files whatever their names, and the pictures in folders
            if not os.path.lexists(path):
                raise UserError(f"{printable(path)} does not exist: give image files or folders of images")
            pictures, others = list_images(path) if path.is_dir() else ([path], 0)
            paths, other_files = paths + pictures, other_files + others
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
        others = f" but {quantity(other_files, 'file')} without an image extension" if other_files else ""
        raise UserError(f"{source} has no files{others}: put images there or give them as arguments")
    return ImageFiles(files[: options.limit], other_files)


def validation_images(dataset: str | os.PathLike) -> ImageFiles:
    """List the validation images as `process_data.py` split them, by class id, then name; see `class_of`."""
    base = Path(dataset)
    split = base / "DL_data_p"
    folders = [p for p in split.glob("*") if p.is_dir() and not is_system_name(p.name)]
    for folder in folders:
        if not re.fullmatch("[0-9]{1,9}", folder.name):
            raise UserError(
                f"{printable(folder)} is not named by a class id: rename it, or evaluate it in place by "
                f"`python 2b_evaluate.py {split}`"
            )
    folders.sort(key=lambda p: int(p.name))
    listings = [list_images(folder) for folder in folders]
    paths = [path for pictures, _ in listings for path in pictures]
    if not paths:
        raise UserError(
            f"{split} holds no validation images: run `python process_data.py` first, "
            "with --sample where there is no dataset"
        )
    files = [ImageFile(i, printable(path.relative_to(base)), path) for i, path in enumerate(paths)]
    return ImageFiles(files, sum(others for _, others in listings))


def class_of(file: ImageFile) -> int:
    """Return the class id of a labelled image; of a split one it is in the key: DL_data_p/<class id>/..."""
    return int(file.key.split("/")[1]) if file.label is None else file.label


def spread_over_classes(files: ImageFiles, limit: int | None, seed: int) -> ImageFiles:
    """Return `limit` labelled images in a random order in which each class comes before any second image of one.

    Without a limit, all of them as they are. The indices are the places in the new list.
    """
    images_of: Counter[int] = Counter()

    def turn(file: ImageFile) -> int:  # 1 for the first image of a class, 2 for the second, ...
        images_of[class_of(file)] += 1
        return images_of[class_of(file)]

    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    spread = sorted((files[place] for place in order), key=turn)
    chosen = files if limit is None else spread[:limit]
    numbered = (file._replace(index=index) for index, file in enumerate(chosen))
    return ImageFiles(numbered, files.other_files, files.skipped, len(images_of))


def label_images(files: ImageFiles, model: Classifier, dataset: str | os.PathLike) -> ImageFiles:
    """Label the split validation images with the network's classes.

    A dataset's classes are matched with the network's by name where both have names, else by id; see `match_labels`.
    Images of other classes are `skipped`, and classes that only one side has are noted.
    """
    matched = match_labels(model, Path(dataset)) if files else None
    labelled: list[ImageFile] = []
    skipped: list[dict] = []
    for file in files:
        c = matched.class_of(class_of(file)) if matched else class_of(file)
        if isinstance(c, str):
            skipped.append({"path": file.key, "reason": c})
        else:
            labelled.append(file._replace(index=len(labelled), label=c))
    if matched:
        add_notes(model, matched.notes(len(skipped)))
    return ImageFiles(labelled, files.other_files, skipped)


def labelled_images(folder: str | os.PathLike, model: Classifier) -> ImageFiles:
    """List the images in a folder with a subfolder for each class.

    Images outside the subfolders are `skipped`; notes on the classes are printed, and kept with the model.

    A subfolder is named by the class's name, wnid or id. Where the model has only numbers for names, as many subfolders
    as it has classes may have any names, in the order of torchvision's ImageFolder; they are then the model's.
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
            "the folders' names are numbers, taken as class ids; a network trained with torchvision's ImageFolder has "
            "its classes in the order of text (10 before 2): give their names in that order by --names"
        )
    files: list[ImageFile] = []
    skipped: list[dict] = []
    paths, other_files = list_images(base)
    for path in paths:
        parts = path.relative_to(base).parts
        if len(parts) == 1:
            reason = f"it is not in the folder of a class in {printable(base)}"
            skipped.append({"path": printable(path), "reason": reason})
        else:
            files.append(ImageFile(len(files), printable(path), path, ids[parts[0]]))
    if not files:
        raise UserError(f"the folders in {printable(base)} have no files: put images there")
    notes += note_missing(model.categories, ids.values(), printable(base))
    add_notes(model, [*notes, *note_empty(ids, (path.relative_to(base).as_posix() for path in paths))])
    return ImageFiles(files, other_files, skipped)


def add_notes(model: Classifier, notes: Iterable[str]) -> None:
    """Print notes on stderr, and keep them for metrics.json."""
    for text in notes:
        model.notes.append(text)
        print(f"note: {text}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------
# The class score


class ForwardPass(NamedTuple):
    """A forward pass whose class logits can be differentiated by the pixels; made by `forward_pass`."""

    model: nn.Module
    images: Tensor  # (N, 3, H, W), the leaf of the graph
    logits: Tensor  # (N, classes)
    classes: Tensor  # (N,), those to explain
    features: Tensor | None = None  # (N, C, h, w), the last layer with a height and a width; None without one

    @property
    def scores(self) -> Tensor:
        """S_c (N,): each image's logit of its class."""
        return self.logits.gather(1, self.classes[:, None])[:, 0]

    def gradient(self, by: Tensor | None = None) -> Tensor:
        """Return dS_c/dx (N, 3, H, W), in logits per unit of pixel value; once, but in a block of `shared_results`.

        One backward pass serves the batch, since no image's logit depends on another image. `by` (N, ...), the output
        of a layer such as `features`, takes the place of the pixels x: the pass ends there.
        """
        # evaluation mode, also for a network that runs parts again on the way back
        with evaluation_mode(self.model), torch.inference_mode(False):
            gradient, scores = None, self.scores.sum()
            if scores.requires_grad:
                settings = dict(retain_graph=is_shared(), allow_unused=True)
                try:
                    (gradient,) = torch.autograd.grad(scores, self.images if by is None else by, **settings)
                except CheckpointError:
                    raise UserError(
                        "a checkpointed part of this network computes something else when it is run again: switch its "
                        "checkpointing off"
                    ) from None
        if gradient is None:
            raise UserError(
                "the network's logits do not depend on the images, or it computes them without gradients: explain a "
                "network without torch.no_grad(), detach() and the like between the image and the logits"
            )
        return gradient[: len(self.classes)]


@shared
def forward_pass(model: nn.Module, images: Tensor, classes: Classes) -> ForwardPass:
    """Run images (N, 3, H, W) through the network in evaluation mode, and keep the graph.

    `classes` are the ids to explain, one for each image or one for all; None stands for the image's most likely class.
    The caller's tensors, the model's state and every `.grad` stay as they are. Works under torch.no_grad() and
    torch.inference_mode(), too. Raises UserError for images of another shape or type, for a class that the
    network does not have, and for an output that is no (N, classes); see `logits.as_logits`.
    """
    ids = class_ids(classes, len(check_images(images)))
    with evaluation_mode(model), torch.inference_mode(False):  # which switches gradients on, too
        leaf = at_least_one(images).detach().clone().requires_grad_()
        logits, features = run_with_features(lambda: class_logits(model, leaf), leaf)
        logits = logits[: len(images)]
        if None in ids:
            ids = [best if c is None else c for c, best in zip(ids, most_likely(logits)[:, 0].tolist(), strict=True)]
        if any(not 0 <= c < logits.shape[1] for c in ids):
            raise UserError(f"class ids must be 0 to {logits.shape[1] - 1}, not {ids}")
        return ForwardPass(model, leaf, logits, torch.tensor(ids, dtype=torch.long, device=logits.device), features)


def class_score_gradient(model: nn.Module, images: Tensor, classes: Classes) -> tuple[Tensor, Tensor]:
    """Return the gradient (N, 3, H, W) of each image's class logit by its pixels, and those logits (N,).

    images (N, 3, H, W), classes one for each or one for all; see `forward_pass`. Simonyan et al. 2014, section 3.
    """
    forward = forward_pass(model, images, classes)
    return forward.gradient(), forward.scores.detach()


# One kind of map: model, images (N, 3, H, W), classes -> maps (N, H, W); more by the names of its parameters
MapFunction = Callable[..., Tensor]


def make_maps(
    table: Mapping[str, MapFunction],
    model: nn.Module,
    images: Tensor,
    classes: Classes,
    options: argparse.Namespace,
    indices: Iterable[int],
) -> tuple[dict[str, Tensor], dict[str, NoSuchMap]]:
    """Return the maps (N, H, W) of each kind in a table, and of the kinds that the network cannot have, the reason.

    A function gets what it has parameters for: generators, one for each of the images' indices, the same in every call,
    and copies and noise of the options. Those that take copies are left out if there are none (--copies 0), else called
    first, while no graph of a shared forward pass takes memory beside theirs.
    """
    settings = {name: value for name, value in vars(options).items() if name in ("copies", "noise")}
    settings["generators"] = seeded_generators(options.seed, indices)
    of_copies = [kind for kind in table if "copies" in parameters_of(table[kind])]
    maps, reasons = {}, {}
    with shared_results():
        for kind in [
            *(of_copies if getattr(options, "copies", 0) else ()),
            *(kind for kind in table if kind not in of_copies),
        ]:
            try:
                maps[kind] = call_with(table[kind], model, images, classes, **settings)
            except NoSuchMap as reason:
                reasons[kind] = reason
    return {kind: maps[kind] for kind in table if kind in maps}, reasons


def call_with(function: Callable, *arguments: Any, **settings: Any) -> Any:
    """Call the latest form of a table's function with those of the settings that it has parameters for."""
    known = {name: settings[name] for name in parameters_of(function) if name in settings}
    return latest(function)(*arguments, **known)


def parameters_of(function: Callable) -> Collection[str]:
    """Return the names of the parameters of the latest form of a function."""
    return inspect.signature(latest(function)).parameters.keys()


def map_rows(
    forward: ForwardPass,
    images: Tensor,
    files: Sequence[ImageFile],
    maps: Mapping[str, Tensor],
    reasons: Mapping[str, NoSuchMap],
    options: argparse.Namespace,
    output: OutputFolder,
) -> Iterator[dict]:
    """Yield the row of each image (N, 3, H, W): its class, and of each kind of map (N, H, W) its measures and its file.

    `maps` and `reasons` are those of `make_maps`. The first images also get the faithfulness of their maps (--scores).
    Raises UserError where the logits are not finite.
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
    texts: Sequence[str] | None, files: list[ImageFile], categories: Sequence[str], wnids: Sequence[str] = ()
) -> tuple[list[ImageFile], list[int | None]]:
    """Return the images to explain and the class for each, from --classes: an id, or None for the most likely class.

    One picture with several classes is repeated, once for each.
    """
    if not texts:
        return files, [None] * len(files)
    classes = find_classes(texts, categories, wnids)
    if len(files) == 1:
        files = [files[0]._replace(index=index) for index in range(len(classes))]
    if len(classes) not in (1, len(files)):
        raise UserError(
            f"{len(classes)} classes for {len(files)} images: give one class for all images, one for each image, or "
            "several for one image"
        )
    return files, classes * (len(files) // len(classes))


# ------------------------------------------------------------------------------------------------
# From image files to rows

SECONDS_UNSAVED = 1.0  # of computing that a kill may lose, beside the image that is computed then


def explain_images(
    model: Classifier,
    files: Sequence[ImageFile],
    explain: Callable[[Tensor, list[ImageFile]], Iterable[dict]],
    options: argparse.Namespace,
    output: OutputFolder,
    upright: bool = True,
) -> tuple[list[dict], list[dict]]:
    """Run `explain` over the images that have no row yet; return one row per image, and what was skipped.

    `explain` as in `explain_batches`. Raises OthersAtWork where rows of other shards are missing, UserError where no
    image can be used.
    """
    output.other_files, output.classes = getattr(files, "other_files", 0), getattr(files, "classes", 0)
    skipped = list(getattr(files, "skipped", []))
    if not files:
        raise UserError(_unusable(skipped))
    inputs = [(file.index, file.key, size_of(file.path), file.label) for file in files]
    rows_on_disk = Rows(output, options, run_settings(options, output.source, model, inputs), len(files))
    todo = [files[index] for index in rows_on_disk.todo]
    batch = min(options.batch_size, len(files))
    for rows in explain_batches(model, todo, explain, batch, options.strict, upright, options.prefetch):
        rows_on_disk.append(rows)
    rows = rows_on_disk.complete()
    warn_of_nearly_black(rows, model.white)
    skipped += [{"path": row["path"], "reason": row["skipped"]} for row in rows if "skipped" in row]
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

    `explain(images (batch, 3, S, S), files)` yields a dict of plain values for each image. The rows of a batch come
    together, or one by one where an image takes more than SECONDS_UNSAVED. Kernels may differ with the
    batch's shape, and so a short batch is padded with copies of its last image, whose rows are dropped. A file that
    cannot be read gets a row that says why, and is a UserError where the run is `strict`. `prefetch` batches are read
    while others are explained.
    """
    device = model.mean.device
    with (
        closing(progress(len(files), "images")) as bar,
        closing(read_batches(model, files, batch, upright, prefetch)) as batches,
    ):
        for chunk, results, images in batches:
            rows: list[dict] = [{"index": file.index, "path": file.key} for file in chunk]
            for row, result in zip(rows, results, strict=True):
                if not isinstance(result, UserError):
                    row |= result
                elif strict:
                    raise result
                else:
                    row["skipped"] = str(result)
            columns: Iterator[dict] = iter(())
            if readable := [n for n, row in enumerate(rows) if "skipped" not in row]:
                padded = pad(readable, batch)
                images = images if len(readable) == batch else images[padded]
                images = images.to(device, non_blocking=images.is_pinned())
                # called at the first next() below, inside record_nondeterminism
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
    model: Classifier, files: Sequence[ImageFile], batch: int, upright: bool, prefetch: int
) -> Iterator[tuple[Sequence[ImageFile], list[dict[str, Any] | UserError], Tensor]]:
    """Yield the files, `batch` at a time, columns of their rows or errors, and their images (batch, 3, S, S).

    The columns are notes, the fraction of the area that is cropped, and the largest value of a 16-bit picture. Where a
    file has no image, or there is none, the values are arbitrary. The next `prefetch` batches are read meanwhile.
    """

    def load(file: ImageFile, place: Tensor) -> dict[str, Any] | UserError:
        try:
            image = read_image(file.path, upright, model.white)
        except UserError as error:
            return error
        place.copy_(model.preprocess(image))
        findings = {key: image.info[key] for key in FINDINGS if key in image.info}
        return findings | {"cropped": model.cropped(image.size)}

    shape = batch, 3, model.input_size, model.input_size
    pinned = model.mean.device.type == "cuda"  # from there a copy does not wait for what the GPU is doing
    # decoding releases Python's lock; a thread of each reader's own for torch, or they would fight for the cores
    readers = ThreadPoolExecutor(torch.get_num_threads(), "reader", torch.set_num_threads, (1,))
    ahead: deque[tuple[Sequence[ImageFile], list[Future], Tensor]] = deque()

    def first_of_them() -> tuple[Sequence[ImageFile], list[dict[str, Any] | UserError], Tensor]:
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
    """Return the items, followed by copies of the last one up to the length."""
    return [*items, *[items[-1]] * (length - len(items))]


@contextmanager
def record_nondeterminism(device: torch.device) -> Iterator[set[str]]:
    """Use deterministic kernels where the device has them; the set gets the names of operations without one.

    A processor's kernels are deterministic anyway, as far as any of these networks go.
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
    """Return a generator for each key (an image's index, a class id), whatever the other keys are.

    torch's generator on the CPU takes no more than the lowest 32 bits of its seed. There the seeds' ranges of keys
    start as far apart as they can: at multiples of 2^32 / golden ratio (Knuth, The Art of Computer Programming,
    volume 3, section 6.4), for 1,000 seeds over a million keys.
    """
    return [torch.Generator().manual_seed((seed * 0x9E3779B1 + key) % 2**32) for key in keys]


def load_from_options(options: argparse.Namespace) -> Classifier:
    """Load the model that the options describe, with its classes' names, on the device that `resolve_options` finds.

    Assumptions are printed to stderr.
    """
    resolve_options(options)
    if options.squash and options.whole:
        raise UserError("--squash and --whole are two ways to show whole pictures: give only one")
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
    # After loading, since a network's own file may set them too. With the newer switches, which some releases of torch
    # recommend here in a warning, torch.backends.cudnn.flags fails, which a network may use.
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
