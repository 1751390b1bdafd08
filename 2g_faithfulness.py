"""2g: how far can a saliency map be believed?

The maps of 2e and 2f are judged by three measures, beside baselines that ignore the network:

  insertion, deletion   area under the curve of the class's probability as pixels are put into a blurred copy, or
                        removed from the image, in the map's order (Petsiuk et al. 2018, RISE, section 3.2)
  grid pointing         share of the map in the class's own quarter of a mosaic of four photos (Rao et al. 2022,
                        Towards Better Understanding Attribution Methods, section 4); chance level: 1/4
  rank correlation      with the map of the network whose layers are randomised from the top down (Adebayo et al. 2018,
                        Sanity Checks for Saliency Maps, section 3.1), with the map of another class, and with the map
                        of the same image with a little noise

    python 2g_faithfulness.py                                 # validation images that the network gets right
    python 2g_faithfulness.py photo.jpg --classes tarantula   # your own image
    python 2g_faithfulness.py --limit 4 --randomise 1 --mosaics 0   # quick
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from explain.run.shell import answer_early, run

from explain.run.command_line import exercise_parser, not_negative, positive


def parse_options() -> argparse.Namespace:
    parser = exercise_parser(__doc__, "images", "--classes", "--limit", "--prefetch", "--strict", "--copies", "--noise")
    numbers = {  # of what, by default
        "steps": (None, positive, "number of equal steps in a curve (default: seven Gauss-Lobatto points)"),
        "cells": (1, positive, "side, in pixels, of cells inserted or deleted whole, by the map's mean in each"),
        "mosaics": (1, not_negative, "number of mosaics of four photos for grid pointing"),
        "randomise": (3, not_negative, "images to map again: with random layers, with noise, for another class"),
        "stages": (6, positive, "number of stages in which layers are randomised"),
    }
    for name, (default, kind, meaning) in numbers.items():
        parser.add_argument(f"--{name}", default=default, type=kind, metavar="N", help=meaning)
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="judge a map of your own beside the others: function(model, images (N, 3, H, W), classes (N,)) -> "
        "(N, H, W); can be repeated",
    )
    parser.set_defaults(limit=32)
    return parser.parse_args()


if __name__ == "__main__":
    answer_early(parse_options)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from explain.methods.disturbances import noise_of
from explain.methods.faithfulness import (
    detail_maps,
    edge_maps,
    grid_pointing,
    in_cells,
    insertion_deletion,
    insertion_deletion_curves,
    middle_maps,
    random_maps,
    tiled,
    with_order,
)
from explain.methods.maps import rank_correlation
from explain.methods.own_maps import import_maps
from explain.methods.randomisation import cascading_randomisation
from explain.networks.running import accepts, class_standing
from explain.report import faithfulness as report

saliency_of, guided_of = importlib.import_module("2e_saliency"), importlib.import_module("2f_guided_saliency")

# The maps that are judged, those of --map beside them, and the baselines, which know nothing of the network:
# images (N, 3, H, W) -> maps (N, H, W)
MAPS: dict[str, common.MapFunction] = saliency_of.MAPS | guided_of.MAPS
BASELINES: dict[str, Callable[..., Tensor]] = {
    "random": random_maps,
    "middle": middle_maps,
    "edges": edge_maps,
    "detail": detail_maps,
}
Table = Mapping[str, common.MapFunction]
NOISE = 0.02  # standard deviation, in pixel values, of the noise that a stable map withstands
SURE = 0.5  # probability from which on a photo is good for a mosaic: more than all other classes have


def baseline_maps(images: Tensor, indices: Sequence[int], options: argparse.Namespace) -> dict[str, Tensor]:
    """Return the maps (N, H, W) of each baseline; a random map is drawn from the images' indices."""
    return {
        kind: common.call_with(function, images, generators=common.seeded_generators(options.seed, indices))
        for kind, function in BASELINES.items()
    }


def measure_image(
    maps: dict[str, Tensor], model: nn.Module, image: Tensor, c: Tensor, index: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return curves and areas of insertion and deletion for the maps and every baseline of an image (1, 3, H, W)."""
    baselines = baseline_maps(image, [index], options)
    good = with_order(maps | baselines)
    ordered = in_cells(torch.cat([*good.values()]), options.cells)[:, None]  # (kinds, 1, H, W)
    arguments = model, image, c, ordered, options.steps
    with common.shared_results():  # the areas are those under the curves that are drawn
        curves, areas = insertion_deletion_curves(*arguments)[:, :, 0], torch.stack(insertion_deletion(*arguments))
    names = ("insertion", "deletion")
    return {
        "maps": [*maps],
        "baselines": [*baselines],
        "curves": {kind: dict(zip(names, curves[:, k].tolist(), strict=True)) for k, kind in enumerate(good)},
        "areas": {kind: dict(zip(names, areas[:, k, 0].tolist(), strict=True)) for k, kind in enumerate(good)},
    }


def check_image(
    table: Table,
    maps: dict[str, Tensor],
    model: nn.Module,
    image: Tensor,
    c: Tensor,
    other: Tensor,
    index: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the rank correlation of an image's maps with those under noise, of another class, and of random layers."""

    def maps_of(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:  # (kinds, 1, H, W)
        intact = network is model and images is image and classes is c  # what cascading_randomisation asks for first
        made = maps if intact else common.make_maps(table, network, images, classes, options, [index])[0]
        return torch.stack([*made.values()])

    noisy = image + noise_of(image, common.seeded_generators(options.seed, [index]), NOISE)
    changed = {"stability": maps_of(model, noisy, c), "other_class": maps_of(model, image, other)}
    row: dict[str, Any] = {
        name: {kind: rank_correlation(a, b) for (kind, a), b in zip(maps.items(), others, strict=True)}
        for name, others in changed.items()
    }
    generator = torch.Generator().manual_seed(options.seed)  # the same random layers for every image
    layers, stages = cascading_randomisation(model, image, c, maps_of, options.stages, generator)
    row["randomised"] = {kind: [stage[k][0] for stage in stages] for k, kind in enumerate(maps)}
    return row | {"layers": [number for number, _ in layers], "down_to": [name for _, name in layers]}


def choose_mosaic(
    number: int, of: int, files: Sequence[common.ImageFile], sure_class: Callable[[common.ImageFile], int | None]
) -> dict[int, common.ImageFile]:
    """Return the first four images of different classes that the network is sure of, by their class.

    They come from this mosaic's part of the files, one of `of` parts, so that no photo is in two mosaics. There are
    fewer than four if the part has no more.
    """
    part, members = len(files) // of, {}
    for file in files[number * part : (number + 1) * part]:
        c = sure_class(file) if len(members) < 4 else None
        if c is not None:
            members.setdefault(c, file)
    return members


def point(
    table: Table, model: nn.Module, photos: Tensor, classes: Tensor, indices: list[int], options: argparse.Namespace
) -> tuple[dict[str, list[float | None]], Tensor]:
    """Return the shares of each kind of map of a mosaic of four photos (4, 3, S, S), and the first class's maps.

    The maps are (kinds, S, S), half of the mosaic's side, as they are drawn.
    """
    kinds: list[str] = []
    first: list[Tensor] = []

    def maps_of(model: nn.Module, mosaics: Tensor, classes: Tensor) -> Tensor:  # (kinds, 4, 2S, 2S)
        maps, _ = common.make_maps(table, model, mosaics, classes, options, indices)
        first.append(F.avg_pool2d(torch.stack([of_kind[0] for of_kind in maps.values()]), 2))
        maps |= baseline_maps(mosaics, indices, options)
        kinds.extend(maps)
        made = torch.stack([*maps.values()])
        return made.where(made.isfinite().all(-1, True).all(-2, True), 0)  # a map of zeros points nowhere

    shares = grid_pointing(model, photos, classes, maps_of).tolist()
    known = [[None if np.isnan(share) else share for share in of_kind] for of_kind in shares]
    return dict(zip(kinds, known, strict=True)), first[0]


def measure_mosaic(
    number: int,
    table: Table,
    model: common.Classifier,
    files: Sequence[common.ImageFile],
    options: argparse.Namespace,
    output: common.OutputFolder,
) -> dict[str, Any]:
    """Return the members of a mosaic and the shares of its maps, or why there are none; save the first class's maps."""

    def load(file: common.ImageFile) -> Tensor:
        return model.preprocess(common.read_image(file.path, white=model.white))[None].to(options.device)

    def sure_class(file: common.ImageFile) -> int | None:
        try:
            logits = common.predict_logits(model, load(file))
        except common.UserError:  # one that cannot be read is listed in its own row
            return None
        c = int(common.most_likely(logits))
        return c if logits.softmax(1)[0, c] >= SURE and file.label in (None, c) else None

    members = choose_mosaic(number, options.mosaics, files, sure_class)
    indices = [file.index for file in members.values()]
    mosaic: dict[str, Any] = {"members": indices, "classes": [*members], "shares": None}
    if len(members) < 4:
        return mosaic | {"left_out": f"no four photos of different classes, each with a probability of at least {SURE}"}
    photos = torch.cat([load(file) for file in members.values()])
    if not accepts(model, tiled(photos)[None]):
        return mosaic | {"left_out": f"the network does not accept images with sides of {2 * model.input_size} pixels"}
    classes = torch.tensor([*members], device=options.device)
    mosaic["shares"], maps = point(table, model, photos, classes, indices, options)
    mosaic["maps"] = [*mosaic["shares"]][: len(maps)]
    common.write_array(output.file(common.map_name(number, "mosaic")), maps.cpu().numpy())
    return mosaic


def measure_batch(
    table: Table,
    model: common.Classifier,
    images: Tensor,
    batch: Sequence[common.ImageFile],
    classes: Sequence[int | None],
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yield the row of each image (N, 3, H, W); a labelled image is measured only if the network gets it right.

    `classes` are the labels or the classes that were asked for; None stands for the most likely one.
    """
    logits = common.predict_logits(model, images)
    best = common.most_likely(logits)[:, 0].tolist()
    ids = [c if asked is None else asked for asked, c in zip(classes, best, strict=True)]
    explained = torch.tensor(ids, device=images.device)
    for n, (file, row) in enumerate(zip(batch, class_standing(logits, explained), strict=True)):
        image, c = images[n : n + 1], explained[n : n + 1]
        row["right"] = file.label is None or row["rank"] == 1
        if row["right"]:
            maps, reasons = common.make_maps(table, model, image, c, options, [file.index])
            row["left_out"] = {kind: reason.lacking for kind, reason in reasons.items()}
            row |= measure_image(maps, model, image, c, file.index, options)
            if file.index < options.randomise:
                leading = common.most_likely(logits[n : n + 1], 2)[0]
                other = leading[leading != c][:1]  # the likeliest of the others
                row |= check_image(table, maps, model, image, c, other, file.index, options)
        yield row


def main() -> None:
    options = common.resolve_options(parse_options())
    labelled = not options.images and not options.classes
    files = common.test_images(options) if options.images else common.validation_images(options.dataset)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    table = MAPS | import_maps(options.map)
    if labelled:
        files = common.label_images(files, model, options.dataset)
        files = common.spread_over_classes(files, options.limit, options.seed)
    else:
        files = common.ImageFiles(files[: options.limit], files.other_files)
    files, classes = common.classes_to_explain(options.classes, files, model.categories, model.wnids)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict[str, Any]]:
        asked = [file.label if labelled else classes[file.index] for file in batch]
        for file, row in zip(batch, measure_batch(table, model, images, batch, asked, options), strict=True):
            if file.index < options.mosaics:
                row["mosaic"] = measure_mosaic(file.index, table, model, files, options, output)
                row["files"] = [common.map_name(file.index, "mosaic")] if row["mosaic"]["shares"] else []
            yield row

    rows, skipped = common.explain_images(model, files, explain, options, output)
    report.write(rows, skipped, [file.path for file in files], model, output)


if __name__ == "__main__":
    run(main)
