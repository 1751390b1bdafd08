"""What several of the numbered scripts need: images, the dataset, the class score, options.

The networks themselves are in classifier.py, the reading of pictures in images.py, the output folder in report.py,
the rows in it in rows.py, what figures are drawn with in drawing.py; all are used from here.
What makes a script a command (Ctrl-C, one line for an error) is in command.py, which comes before all imports that
take time.

Pixel space everywhere: float32, RGB, (N, 3, H, W), values in [0, 1]; normalisation is inside the
model. Importing this file does nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from explain.errors import UserError, one_line, printable, unknown
from explain.evaluation import check_finite, device_of, evaluation_mode, predict_logits  # noqa: F401 (for the scripts)
from explain.figures import (  # noqa: F401 (scripts take all from here)
    MAP_PERCENTILE,
    brightest,
    draw_image,
    draw_map,
    draw_picture,
    draw_title,
    map_name,
    panel_grid,
    short,
)
from explain.networks import Classifier, load_model
from explain.output import Report, save_figure, write_array, write_file  # noqa: F401 (likewise)
from explain.pictures import read_image, to_pixels  # noqa: F401 (likewise)
from explain.rows import Rows, run_settings, shard, size_of

TEST_FOLDERS = ("test_images", "test images", "test", "ILSVRC2012_img_test")  # spellings met in the wild


# ------------------------------------------------------------------------------------------------
# Image files


class ImageFile(NamedTuple):
    """One image of a run: `index` in the list, `key` as it stands in rows, tables and figures, where it is."""

    index: int
    key: str
    path: Path


def list_files(folder: Path) -> list[Path]:
    """All files below a folder but the hidden ones (.DS_Store, ._photo.jpg), in a fixed order."""
    return sorted(
        Path(root, name)
        for root, _, names in os.walk(folder, onerror=_raise)
        if not any(part.startswith(".") for part in Path(root).relative_to(folder).parts)
        for name in names
        if not name.startswith(".")
    )


def _raise(error: OSError) -> NoReturn:  # os.walk passes over folders that it may not read
    raise error


def find_folder(parent: Path, spellings: Sequence[str]) -> Path | None:
    """The first of the spellings that is a folder in `parent`, upper and lower case alike."""
    folders = {p.name.casefold(): p for p in parent.iterdir() if p.is_dir()} if parent.is_dir() else {}
    return next((folders[s.casefold()] for s in spellings if s.casefold() in folders), None)


def test_images(options: argparse.Namespace) -> list[ImageFile]:
    """The files and folders given as arguments, else the dataset's test images; the first --limit of them."""
    base = Path(options.dataset)
    for text in [] if options.images else getattr(options, "classes", None) or []:
        if os.path.lexists(text):
            raise UserError(f"{text} stands among the classes: give image files before --classes")
    if options.images:
        paths = []
        for given in map(Path, options.images):
            if not os.path.lexists(given):
                raise UserError(f"{printable(given)} does not exist: give image files or folders of images")
            paths += list_files(given) if given.is_dir() else [given]
        files = [ImageFile(i, printable(path), path) for i, path in enumerate(paths)]
        source = " ".join(printable(Path(given)) for given in options.images)
    else:
        folder = find_folder(base / "DL_data", TEST_FOLDERS)
        if folder is None:
            raise UserError(
                f"{base / 'DL_data'} has no folder {TEST_FOLDERS[0]}: give image files as arguments, "
                "or run `python process_data.py --sample` for a sample dataset"
            )
        files = [ImageFile(i, printable(path.relative_to(base)), path) for i, path in enumerate(list_files(folder))]
        source = str(folder)
    if not files:
        raise UserError(f"{source} holds no file: put images there or give them as arguments")
    return files[: options.limit]


def validation_images(dataset: str | os.PathLike) -> list[ImageFile]:
    """The validation images as `process_data.py` split them, by class id, then name; see `class_of`."""
    base = Path(dataset)
    split = base / "DL_data_p"
    folders = [p for p in split.glob("*") if p.is_dir() and re.fullmatch("[0-9]{1,9}", p.name)]
    folders.sort(key=lambda p: int(p.name))
    paths = [path for folder in folders for path in list_files(folder)]
    if not paths:
        raise UserError(
            f"{split} holds no validation images: run `python process_data.py` first, "
            "with --sample where there is no dataset"
        )
    return [ImageFile(i, printable(path.relative_to(base)), path) for i, path in enumerate(paths)]


def class_of(file: ImageFile) -> int:
    """The class id of a split validation image: DL_data_p/<class id>/..."""
    return int(file.key.split("/")[1])


# ------------------------------------------------------------------------------------------------
# The class score


def find_class(text: str, categories: Sequence[str]) -> int:
    """A class id from an id or a name; raises UserError with the near or ambiguous names."""
    if re.fullmatch(r"[+-]?\d+", text):
        if not 0 <= int(text) < len(categories):
            raise UserError(f"class {text} does not exist: ids go from 0 to {len(categories) - 1}")
        return int(text)
    wanted = text.replace("_", " ").strip().casefold()
    found = [i for i, name in enumerate(categories) if wanted in [n.strip() for n in name.casefold().split(",")]]
    if len(found) > 1:
        raise UserError(f"{text!r} names the classes {', '.join(map(str, found))}: give the id")
    if not found:
        raise UserError(unknown("class", wanted, [name.casefold() for name in categories]) + " (ids work too)")
    return found[0]


def logits_with_graph(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """images (N, 3, H, W) -> a copy of them to differentiate by, logits (N, classes); see `input_gradient`."""
    leaf = images.detach().clone().requires_grad_()
    with evaluation_mode(model), torch.enable_grad():
        return leaf, model(leaf.clone())  # a clone, since a model may write into its input


def input_gradient(leaf: Tensor, logits: Tensor, classes: Tensor, once_more: bool = False) -> Tensor:
    """The gradient (N, 3, H, W) of each image's class logit by its pixels, from `logits_with_graph`.

    classes (N,). One backward pass serves the batch: no image's logit depends on another image.
    `once_more` keeps the graph for another pass. Raises UserError for a class out of range.
    """
    if classes.min() < 0 or classes.max() >= logits.shape[1]:
        raise UserError(f"class ids must be 0 to {logits.shape[1] - 1}, not {classes.tolist()}")
    scores = logits.gather(1, classes.to(logits.device)[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), leaf, retain_graph=once_more)
    return gradient


def class_score_gradient(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of each image's class logit by its pixels.

    images (N, 3, H, W), classes (N,) -> gradient (N, 3, H, W), scores (N,) (logits). The caller's
    tensors, the model's state and every `.grad` stay as they are. Raises UserError for a class out
    of range. Simonyan et al. 2014, section 3.
    """
    with evaluation_mode(model):  # also for a model that runs parts again on the way back
        leaf, logits = logits_with_graph(model, images)
        gradient = input_gradient(leaf, logits, classes)
    return gradient, logits.detach().gather(1, classes.to(logits.device)[:, None])[:, 0]


def classes_asked(
    given: Sequence[str] | None, files: Sequence[ImageFile], categories: Sequence[str]
) -> list[int | None]:
    """The class to explain for each file: the one given, or None for the image's likeliest."""
    if not given:
        return [None] * len(files)
    classes = [find_class(text, categories) for text in given]
    if len(classes) not in (1, len(files)):
        raise UserError(f"{len(classes)} classes for {len(files)} images: give one class for all, or one for each")
    return classes * len(files) if len(classes) == 1 else classes


def chosen_classes(logits: Tensor, asked: Sequence[int | None]) -> Tensor:
    """logits (N, classes) -> the classes to explain (N,): those asked for, the image's likeliest for None."""
    likeliest = logits.argmax(1).tolist()
    classes = [best if c is None else c for c, best in zip(asked, likeliest, strict=True)]
    return torch.tensor(classes, device=logits.device)


def describe_classes(logits: Tensor, classes: Tensor) -> list[dict]:
    """What logits (N, classes) say of a class (N,) for each image; raises UserError where they are not finite."""
    logits, chosen = check_finite(logits.detach()), classes[:, None]
    columns = {
        "class": classes,
        "logit": logits.gather(1, chosen)[:, 0],
        "probability": logits.softmax(1).gather(1, chosen)[:, 0],
        "rank": (logits > logits.gather(1, chosen)).sum(1),  # 0: the likeliest
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def describe_map(saliency: np.ndarray) -> dict[str, Any]:
    """What can be measured on a saliency map (H, W).

    `half_mass_area`: share of the pixels that hold half of the map's sum (0.5: even; small:
    concentrated). `roughness`: mean difference of neighbours over the mean (0: flat; 2/3:
    independent uniform noise). `status` is "ok", "zero gradient" or "not finite": such a map says
    nothing, and its measures are None.
    """
    values = saliency.astype(np.float64)
    status = "not finite" if not np.isfinite(values).all() else "ok" if values.any() else "zero gradient"
    if status != "ok":
        return {"status": status, "largest": None, "half_mass_area": None, "roughness": None}
    mass = np.cumsum(np.sort(values, axis=None)[::-1])
    steps = np.concatenate([np.abs(np.diff(values, axis=axis)).ravel() for axis in (0, 1)])
    return {
        "status": "ok",
        "largest": float(values.max()),
        "half_mass_area": float(np.searchsorted(mass, mass[-1] / 2) + 1) / values.size,
        "roughness": float(steps.mean() / values.mean()),
    }


# ------------------------------------------------------------------------------------------------
# From image files to rows


def explain_images(
    model: Classifier,
    files: Sequence[ImageFile],
    explain: Callable[[Tensor, list[ImageFile]], Iterable[dict]],
    options: argparse.Namespace,
    report: Report,
    upright: bool = True,
) -> tuple[list[dict], list[dict]]:
    """Run `explain` over the images that have no row yet; returns one row per image, and what was skipped.

    `explain` as in `explain_batches`. Both lists are empty where other shards are still at work: the
    one that finishes last gets them all. Raises UserError where no image can be used.
    """
    inputs = [(file.index, file.key, size_of(file.path)) for file in files]
    kept = Rows(report, options, run_settings(options, report.source, model, inputs), len(files))
    todo = [files[index] for index in kept.todo]
    batch = min(options.batch_size, len(files))
    for rows in explain_batches(model, todo, explain, batch, options.strict, upright):
        kept.append(rows)
    rows = kept.complete()
    skipped = [{"path": row["path"], "reason": row["skipped"]} for row in rows if "skipped" in row]
    if rows and len(skipped) == len(rows):
        raise UserError(f"none of the {len(rows)} images can be used, the first because {skipped[0]['reason']}")
    return [row for row in rows if "skipped" not in row], skipped


def explain_batches(
    model: Classifier,
    files: Sequence[ImageFile],
    explain: Callable[[Tensor, list[ImageFile]], Iterable[dict]],
    batch: int,
    strict: bool = False,
    upright: bool = True,
) -> Iterator[list[dict]]:
    """Run `explain` over the images, `batch` at a time; yields the rows of each batch in the order of the files.

    `explain(images (batch, 3, S, S), files)` gives a dict of plain values for each image. Kernels may
    differ with the batch's shape, and so a short batch is filled up with copies of its last image;
    their rows are never asked for. A file that cannot be read gets a row that says why, and is a
    UserError where the run is `strict`.
    """

    def load(file: ImageFile) -> tuple[Tensor, list[str]] | UserError:
        try:
            image = read_image(file.path, upright)
        except UserError as error:
            return error
        return model.preprocess(image), image.info["notes"]

    # decoding releases Python's lock; a thread of each reader's own for torch, or they would fight for the cores
    readers = ThreadPoolExecutor(torch.get_num_threads(), "reader", torch.set_num_threads, (1,))
    try:
        for start in tqdm(range(0, len(files), batch), unit="batch", disable=None):
            rows, readable, pixels = [], [], []
            chunk = files[start : start + batch]
            for file, loaded in zip(chunk, readers.map(load, chunk), strict=True):
                row = {"index": file.index, "path": file.key}
                rows.append(row)
                if isinstance(loaded, UserError):
                    if strict:
                        raise loaded
                    row["skipped"] = str(loaded)
                else:
                    readable.append((file, row))
                    pixels.append(loaded[0])
                    row["notes"] = loaded[1]
            if readable:
                images = torch.stack(pad(pixels, batch)).to(model.mean.device)
                with record_nondeterminism(images.device) as chance:
                    found = islice(explain(images, pad([file for file, _ in readable], batch)), len(readable))
                    for (_, row), values in zip(readable, found, strict=True):
                        row.update(values)
                for _, row in readable if chance else ():
                    row["nondeterministic"] = sorted(chance)
            yield rows
    finally:
        readers.shutdown(cancel_futures=True)


def pad(items: Sequence[Any], length: int) -> list:
    """The items, and copies of the last one up to the length."""
    return [*items, *[items[-1]] * (length - len(items))]


@contextmanager
def record_nondeterminism(device: torch.device) -> Iterator[set[str]]:
    """Deterministic kernels inside, where the device has them; the set gets the names of operations without one.

    A processor's kernels are deterministic anyway, as far as any of these networks go.
    """
    chance: set[str] = set()
    if device.type == "cpu":
        yield chance
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield chance
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    for warning in caught:
        if found := re.match(r"(\S+) does not have a deterministic implementation", str(warning.message)):
            chance.add(found[1])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


# ------------------------------------------------------------------------------------------------
# Options


def positive(text: str) -> int:
    """A whole number from 1 (argparse type)."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0 (argparse type)."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 to 2^31 - 1 (argparse type): an image's index goes beside it into a stream's seed."""
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {(1 << 31) - 1}")
    return int(text)


def seeded_generators(seed: int, keys: Iterable[int]) -> list[torch.Generator]:
    """A generator for each key (an image's index, a class id), whatever the others are.

    torch's generator on the CPU takes no more than the lowest 32 bits of its seed. There the seeds' ranges of keys
    start as far apart as they can: at multiples of 2^32 / golden ratio (Knuth, The Art of Computer Programming,
    volume 3, section 6.4), for 1,000 seeds over a million keys.
    """
    return [torch.Generator().manual_seed((seed * 0x9E3779B1 + key) % 2**32) for key in keys]


# One name, one meaning, one default in every script that has them.
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "images": dict(nargs="*", metavar="IMAGE", help="image files or folders, in place of the dataset's test images"),
    "--dataset": dict(default="dataset", metavar="DIR", help="folder that holds DL_data and DL_data_p"),
    "--output": dict(default="output", metavar="DIR", help="results go to DIR/<name of the script>/"),
    "--model": dict(
        default="efficientnet_lite0",
        metavar="NAME",
        help="efficientnet_lite0 or _lite2 (both installed with their weights), a torchvision model (vgg16, resnet50, "
        "...) or timm/NAME",
    ),
    "--weights": dict(metavar="FILE", help="state dict to load in place of the published weights, or `random`"),
    "--device": dict(default="auto", help="cpu, cuda, mps, ...; auto takes an accelerator where there is one"),
    "--threads": dict(
        type=positive,
        metavar="N",
        help="threads that compute; the last bits depend on their number, so that it is the same for all shards, "
        "and OMP_NUM_THREADS, which torchrun sets, is not looked at (default: the machine's cores)",
    ),
    "--batch-size": dict(default=16, type=positive, metavar="N", help="images per forward pass"),
    "--seed": dict(default=0, type=seed, metavar="N", help="seed of all that is random; each image has its own stream"),
    "--limit": dict(type=positive, metavar="N", help="only the first N images"),
    "--strict": dict(action="store_true", help="stop at an image that cannot be read, in place of skipping it"),
    "--classes": dict(
        nargs="+",
        metavar="CLASS",
        help="class to explain, id or name: one for all images or one each (default: each image's likeliest)",
    ),
    "--show": dict(default=12, type=positive, metavar="N", help="pictures drawn in a figure; tables have all"),
    "--shard": dict(
        type=shard,
        metavar="I/N",
        help="only the images whose index modulo N is I; the last shard to finish writes the summary "
        "(default: RANK and WORLD_SIZE of the environment, else all)",
    ),
    "--merge": dict(action="store_true", help="only write the summary, of the rows that the shards have left"),
    "--fresh": dict(action="store_true", help="start over in place of going on with the rows that are there"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python {self.prog} --help` explains the options")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == []
        if isinstance(action.default, list) and not silent:
            return f"{action.help} (default: {' '.join(action.default)})"
        return action.help if silent else super()._get_help_string(action)


def option_parser(doc: str, *shared: str) -> argparse.ArgumentParser:
    """A parser with the script's docstring as its description and the shared options named."""
    parser = _Parser(description=doc, formatter_class=_HelpFormatter)
    for name in shared:
        parser.add_argument(name, **SHARED_OPTIONS[name])
    return parser


def physical_cores() -> int:
    """The cores that this process may use; two threads on one core only wait for each other."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text() if path.is_file() else str(cpu))
    return len(siblings)


def load_from_options(options: argparse.Namespace) -> Classifier:
    """The model that --model, --weights and --device ask for; `auto` is resolved in `options`, and --threads set."""
    options.threads = options.threads or physical_cores()
    torch.set_num_threads(options.threads)
    if options.device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        options.device = accelerator.type if accelerator else "cpu"
    # deterministic matrix products on a GPU; read once, when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        if options.device == "cuda" and os.environ.get("LOCAL_RANK"):  # each of torchrun's processes has its own GPU
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=options.device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"device {options.device!r} cannot be used ({one_line(error)}): try --device cpu") from None
    return load_model(options.model, options.weights, options.device)
