"""How far can a saliency map be believed? The class's probability as pixels come and go in its order, and baselines.

Removed pixels are replaced by those of a blurred copy, not by grey: a grey patch has edges that no photo has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain.basics.errors import UserError, integer_argument
from explain.basics.sharing import shared
from explain.networks.logits import check_images, class_ids
from explain.networks.running import predict_logits

BLUR_PX = 10.0  # standard deviation of the Gaussian that blurs the copy: objects go, colours of the scene stay
ROWS_TOGETHER = 17  # images in a pass; six passes take the curves of 2g's ten maps and baselines
SEED = 0  # of the order of pixels that a map does not tell apart
# Gauss-Lobatto quadrature with seven points (Abramowitz and Stegun 1964, table 25.6): fractions of the pixels and their
# weights in the area. docs/faithfulness.md compares it with 28 equal steps, which take five times as many passes.
NODES = (0.0, 0.08488805186071654, 0.2655756032646429, 0.5, 0.7344243967353571, 0.9151119481392835, 1.0)
WEIGHTS = (1 / 42, 0.1384130236807831, 0.2158726906049313, 128 / 525, 0.2158726906049313, 0.1384130236807831, 1 / 42)


def blurred(images: Tensor, sigma_px: float = BLUR_PX) -> Tensor:
    """Return images (N, C, H, W) blurred by a Gaussian of standard deviation `sigma_px`.

    Each axis is one product with a matrix whose rows add up to 1, so that the border does not darken.
    """

    def kernel(side: int) -> Tensor:
        places = torch.arange(side, dtype=images.dtype, device=images.device)
        weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma_px) ** 2)
        return weights / weights.sum(1, keepdim=True)

    return kernel(images.shape[2]) @ images @ kernel(images.shape[3]).T


def pixel_ranks(maps: Tensor) -> Tensor:
    """Return the place of each pixel (N, H, W) in its map's order, 0 for the largest value; ties in random order."""
    shuffled = torch.randperm(maps[0].numel(), generator=torch.Generator().manual_seed(SEED)).to(maps.device)
    order = shuffled[maps.flatten(1)[:, shuffled].argsort(dim=1, descending=True, stable=True)]  # (N, H * W)
    return order.argsort(1).view(maps.shape)


Maps = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]
ClassIds = Tensor | np.ndarray | Sequence[int] | int  # one for each image, or one for all


def class_tensor(classes: ClassIds, images: Tensor) -> Tensor:
    """Return the classes (N,) of images (N, 3, H, W) on their device; raises UserError for missing ones."""
    ids = class_ids(classes, len(check_images(images)))
    if None in ids:
        raise UserError("classes must be whole numbers, not None: give the most likely class, logits.argmax(1)")
    return torch.tensor(ids, dtype=torch.long, device=images.device)


def map_tensor(
    maps: Maps, shape: tuple[int, ...], device: torch.device, kinds: bool = False, of: str = "maps", signed: bool = True
) -> Tensor:
    """Return maps (N, H, W) of this shape as a tensor, with `kinds` (..., N, H, W).

    An array may have any strides and byte order, and may be read-only; maps may be listed one by one. Raises UserError,
    with `of` as their name, for maps of another shape, that are not finite, or, unless `signed`, with values below 0.
    """
    wanted = f"{of} must be finite numbers of shape ({'..., ' if kinds else ''}{', '.join(map(str, shape))})"
    try:
        tensor = _as_tensor(maps).to(device)
    except (TypeError, ValueError, RuntimeError):  # of numpy and torch, for what is not numbers, or of several shapes
        tensor = None
    if tensor is None or tensor.is_complex():
        kind = type(maps).__name__ + (f" of {maps.dtype}" if hasattr(maps, "dtype") else "")
        raise UserError(f"{wanted}: this {kind} cannot be made into a tensor of real numbers")
    if tensor.shape[-3:] != shape or tensor.dim() > 3 and not kinds or not tensor.isfinite().all():
        raise UserError(
            f"{wanted}: their shape is {tuple(tensor.shape)}; {int((~tensor.isfinite()).sum())} values are not finite"
        )
    if not signed and tensor.min() < 0:
        raise UserError(
            f"{of} must be at least 0, and the smallest value is {float(tensor.min()):.3g}: give maps.abs(), or "
            "maps.clamp(min=0) where only positive values count"
        )
    return tensor if tensor.is_floating_point() else tensor.float()


def _as_tensor(maps: Any) -> Tensor:
    if isinstance(maps, Tensor):
        return maps
    if isinstance(maps, Sequence) and any(isinstance(own, Tensor) for own in maps):
        return torch.stack([_as_tensor(own) for own in maps])
    array = np.asarray(maps)
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))  # a copy


def curve_points(steps: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the points (K,) of a curve, as fractions of the pixels moved, and their weights (K,) in the area under it.

    `steps` are equal steps with the trapezoid rule; by default the seven points of Gauss-Lobatto quadrature.
    """
    if steps is None:
        return torch.tensor(NODES, dtype=torch.float64), torch.tensor(WEIGHTS, dtype=torch.float64)
    steps = integer_argument("steps", steps)
    weights = torch.full((steps + 1,), 1 / steps, dtype=torch.float64)
    weights[[0, -1]] /= 2
    return torch.arange(steps + 1, dtype=torch.float64) / steps, weights


@shared
def insertion_deletion_curves(
    model: nn.Module, images: Tensor, classes: ClassIds, maps: Maps, steps: int | None = None
) -> Tensor:
    """Return the class's probability (2, N, K) as pixels are put into a blurred copy, and taken from the image.

    images (N, 3, H, W), classes one for each or one for all, maps (N, H, W), or several kinds of them in one call
    (kinds, N, H, W) -> (2, kinds, N, K). At each of the K `curve_points` that fraction of the pixels, those with the
    largest values, is the image's in the first curve and the copy's in the second. Petsiuk et al. 2018, RISE, section
    3.2. Raises UserError for maps that are not finite or of another size, for a class out of range, for no images, and
    for less than one step.
    """
    classes, (fractions, _) = class_tensor(classes, images), curve_points(steps)
    if not len(images):
        raise UserError("there are no images to draw curves for: give at least one")
    maps = map_tensor(maps, (len(images), *images.shape[2:]), images.device, kinds=True)
    ranks = pixel_ranks(maps.flatten(0, -3)).unflatten(0, (-1, len(images)))  # (kinds, N, H, W)
    counts = (fractions * ranks[0, 0].numel() + 1e-6).long().to(images.device)  # of pixels; 3 / 7 * 49 is below 21

    def mixtures() -> Iterator[Tensor]:  # of an image: the ends of its curves, and of each kind what is between them
        for n, (image, copy) in enumerate(zip(images, blurred(images), strict=True)):
            yield from (copy, image)
            for rank in ranks[:, n]:
                moved = (rank < counts[1:-1, None, None])[:, None]  # (K - 2, 1, H, W)
                yield from (*torch.where(moved, image, copy), *torch.where(moved, copy, image))

    between = len(counts) - 2
    p = class_probabilities(model, mixtures(), classes.repeat_interleave(2 + len(ranks) * 2 * between))
    ends, inner = p.view(len(images), -1).split([2, len(ranks) * 2 * between], 1)
    inner = inner.view(len(images), len(ranks), 2, between)
    first, last = (end[:, None, :, None].expand(-1, len(ranks), -1, -1) for end in (ends, ends.flip(1)))
    curves = torch.cat([first, inner, last], -1).permute(2, 1, 0, 3)  # (2, kinds, N, K)
    return curves.reshape(2, *maps.shape[:-2], -1)


def class_probabilities(model: nn.Module, images: Iterator[Tensor], classes: Tensor) -> Tensor:
    """Return each image's probability (N,) of its class (N,), from passes of `ROWS_TOGETHER` images (3, H, W)."""
    logits = []
    while rows := list(islice(images, ROWS_TOGETHER)):
        short = ROWS_TOGETHER - len(rows)  # kernels may differ with the batch's shape: all passes have the same
        logits.append(predict_logits(model, torch.stack([*rows, *rows[-1:] * short]))[: len(rows)])
    p = torch.cat(logits).softmax(1)
    if classes.min() < 0 or classes.max() >= p.shape[1]:
        raise UserError(f"class ids must be 0 to {p.shape[1] - 1}, not {sorted(set(classes.tolist()))}")
    return p.gather(1, classes[:, None])[:, 0]


def insertion_deletion(
    model: nn.Module, images: Tensor, classes: ClassIds, maps: Maps, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the areas (N,) under the insertion curve (larger is better) and the deletion curve (smaller is better).

    Arguments and errors as in `insertion_deletion_curves`; of several kinds of maps (kinds, N). Forward passes: two an
    image, and ten, or 2 * steps - 2, a map.
    """
    curves = insertion_deletion_curves(model, images, classes, maps, steps).double()  # (2, ..., N, K)
    insertion, deletion = curves @ curve_points(steps)[1].to(curves.device)
    return insertion, deletion


def faithfulness_scores(
    model: nn.Module, image: Tensor, c: Tensor, maps: dict[str, Tensor], generator: torch.Generator
) -> dict[str, float | None]:
    """Return insertion minus deletion of each kind of map (H, W) of an image (3, H, W), and of a random order.

    None for a map that says nothing: all zero, or not finite.
    """
    kinds = {**maps, "random": random_maps(image[None], [generator])[0]}
    good = with_order(kinds)
    insertion, deletion = insertion_deletion(model, image[None], c.view(1), torch.stack([*good.values()])[:, None])
    values = dict(zip(good, (insertion - deletion)[:, 0].tolist(), strict=True))
    return {f"{kind}_insertion_minus_deletion": values.get(kind) for kind in kinds}


def with_order(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the maps that order pixels: not those that are zero at every pixel, or not finite."""
    return {kind: saliency for kind, saliency in maps.items() if saliency.any() and saliency.isfinite().all()}


def summarise_scores(rows: Sequence[dict]) -> dict[str, dict]:
    """Return for each kind of map, and the random order, the mean of `faithfulness_scores` over the rows."""
    suffix = "_insertion_minus_deletion"
    kinds = dict.fromkeys(key.removesuffix(suffix) for row in rows for key in row if key.endswith(suffix))
    return {kind: mean_and_error(row.get(kind + suffix) for row in rows) for kind in kinds}


def mean_and_error(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Return mean, standard error of the mean, and number of the values that are not None."""
    known = [value for value in values if value is not None]
    n = len(known)
    mean = math.fsum(known) / n if n else None
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1) / n) if n > 1 else None
    return {"mean": mean, "standard_error": error, "images": n}


def in_cells(maps: Tensor, side: int) -> Tensor:
    """Return maps (N, H, W) averaged over cells of side x side pixels, which then come and go as one."""
    means = F.avg_pool2d(maps[:, None], side, ceil_mode=True)[:, 0]
    return means.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : maps.shape[1], : maps.shape[2]]


def tiled(images: Tensor) -> Tensor:
    """Return four images (4, 3, H, W) as one mosaic (3, 2H, 2W): the first two above the others."""
    return torch.cat([torch.cat([*pair], 2) for pair in images.split(2)], 1)


def grid_pointing(
    model: nn.Module, images: Tensor, classes: ClassIds, maps_of: Callable[[nn.Module, Tensor, Tensor], Maps]
) -> Tensor:
    """Return the share (..., N) of the mass of each image's map that lies in its own cell of a mosaic.

    images (N, 3, H, W), classes one for each or one for all: each four images make a mosaic (3, 2H, 2W), whose map is
    made for the class of each cell; `maps_of(model, mosaics (4, 3, 2H, 2W), classes (4,))` -> maps (..., 4, 2H, 2W), of
    at least 0. NaN for a map of zeros. Rao et al. 2022, section 4 (GridPG). Raises UserError where N is not a multiple
    of 4, and for maps of another shape, that are not finite, or with values below 0.
    """
    classes = class_tensor(classes, images)
    if not len(images) or len(images) % 4:
        raise UserError(f"{len(images)} images make no mosaics of four: give a multiple of 4")
    height, width = images.shape[2:]
    shares = []
    for four, c in zip(images.split(4), classes.split(4), strict=True):
        mosaic = tiled(four)
        made = maps_of(model, mosaic.expand(4, -1, -1, -1), c)
        maps = map_tensor(made, (4, 2 * height, 2 * width), images.device, kinds=True, signed=False)
        cells = maps.unflatten(-1, (2, width)).unflatten(-3, (2, height)).sum((-3, -1))  # (..., 4, 2, 2)
        cells = cells.flatten(-2)  # mass by map and cell
        shares.append(cells.diagonal(dim1=-2, dim2=-1) / cells.sum(-1))
    return torch.cat(shares, -1)


# ------------------------------------------------------------------------------------------------
# Baselines: maps that know nothing of the network


def random_maps(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return maps (N, H, W) of uniform noise, each image's by its own generator."""
    return torch.stack([torch.rand(images.shape[2:], generator=g) for g in generators]).to(images)


def middle_maps(images: Tensor) -> Tensor:
    """Return maps (N, H, W) that fall from the middle outwards: a Gaussian, a quarter of the side wide."""
    height, width = images.shape[2:]
    vertical, horizontal = torch.linspace(-2, 2, height).to(images), torch.linspace(-2, 2, width).to(images)
    return torch.exp(-0.5 * (vertical[:, None] ** 2 + horizontal**2)).expand(len(images), -1, -1)


def edge_maps(images: Tensor) -> Tensor:
    """Return maps (N, H, W) of the strength of edges in brightness, by Sobel's filter."""
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(images)
    slopes = F.conv2d(grey, torch.stack([across, across.T])[:, None])  # (N, 2, H, W)
    return slopes.square().sum(1).sqrt()


def detail_maps(images: Tensor) -> Tensor:
    """Return maps (N, H, W) of each pixel's distance from the blurred copy, the strongest baseline.

    The pixels that differ most from the copy bring back most of the image, whatever a network looks at.
    """
    return (images - blurred(images)).square().sum(1).sqrt()
