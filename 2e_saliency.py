"""2e: which pixels did the network look at?

The class saliency map, M = max over channels of |d S_c / d x|: how strongly the logit S_c of the
class reacts to a small change of each pixel (Simonyan et al. 2014, Deep Inside Convolutional
Networks, section 3.1). Beside it the smoothed one, the mean of the maps of noisy copies (Smilkov
et al. 2017, SmoothGrad, section 3), and over the picture a combined one. Under each map stands its worth:
does the class's probability follow the pixels that the map names (2g)? The maps explain the most likely class
unless you name another.

    python 2e_saliency.py                                 # the dataset's test images
    python 2e_saliency.py photo.jpg                       # your own picture, no dataset needed; the fast one
    python 2e_saliency.py photo.jpg --classes airedale "mountain bike"   # two classes on one scale
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

from explain.shell import run

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import common
from explain.disturbances import noise_of
from explain.faithfulness import detail_maps, summarise_worth, worth
from explain.figures import WORTH, write_worth
from explain.grad_cam import with_grad_cam
from explain.maps import describe_map, mean_known
from explain.options import at_least_0

COPIES, NOISE = 16, 0.15  # chosen on the sample's photos: docs/faithfulness.md
PIXELS_TOGETHER = 1 << 20  # of copies in a pass, whose memory they are: 20 of 224 x 224
SMOOTH_KINDS = ("smoothed", "combined")  # the order of the maps in maps/*_smoothed.npy


def saliency(forward: common.ForwardPass, retain_graph: bool = False) -> Tensor:
    """Return the saliency maps (N, H, W) of a forward pass: the gradient (N, 3, H, W) reduced over channels."""
    return forward.gradient(retain_graph).abs().amax(1)


def saliency_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return saliency maps (N, H, W), in logits per unit of pixel value, of images (N, 3, H, W) in [0, 1].

    classes: one for each image, or one for all. Simonyan et al. 2014, section 3.1. Raises UserError where
    `common.forward_pass` does.
    """
    return saliency(common.forward_pass(model, images, classes))


def smoothed_saliency_maps(
    model: nn.Module,
    images: Tensor,
    classes: common.Classes,
    generators: Sequence[torch.Generator],
    copies: int = COPIES,
    noise: float = NOISE,
) -> Tensor:
    """Return the mean (N, H, W) of the saliency maps of `copies` copies of images (N, 3, H, W) with Gaussian noise.

    classes: one for each image, or one for all; `noise` is its standard deviation in pixel values, `generators` are one
    for each image. Smilkov et al. 2017, SmoothGrad, section 3, of saliency maps (absolute values). Raises UserError
    where `common.forward_pass` does, and for another number of generators.
    """
    ids = common.class_ids(classes, len(common.check_images(images)))
    if None in ids:
        ids = common.forward_pass(model, images, ids).classes.tolist()
    copies = common.whole_argument("copies", copies)
    if len(generators) != len(images):
        raise common.UserError(f"{len(generators)} generators for {len(images)} images: give one for each")
    total = torch.zeros_like(images[:, 0])
    together = PIXELS_TOGETHER // max(1, total.numel()) or 1  # copies of all images in a pass
    for start in range(0, copies, together) if len(images) else ():
        noisy = [noise_of(images, generators, noise).add_(images) for _ in range(min(together, copies - start))]
        maps = saliency_maps(model, torch.cat(noisy), ids * len(noisy))
        total += maps.unflatten(0, (len(noisy), len(images))).sum(0)
    return total / copies


def combined_maps(images: Tensor, smoothed: Tensor, grad_cam: Tensor | None) -> Tensor:
    """Return the product (N, H, W) of smoothed map, detail, and Grad-CAM where the network has one.

    Grad-CAM says in which region the class is seen, the smoothed map which pixels count there, and the detail, the
    distance from a blurred copy, how much of each pixel there is to lose: gradient times input, with the copy as zero.
    """
    return smoothed * detail_maps(images) * (1 if grad_cam is None else grad_cam)


def signed_saliency(forward: common.ForwardPass) -> Tensor:
    """Return maps (N, H, W) of the gradient's channel that reacts most at each pixel, with its sign.

    Its absolute value is the saliency map; above 0, more of that channel raises the class's logit.
    """
    gradient = forward.gradient()  # (N, 3, H, W)
    return gradient.gather(1, gradient.abs().argmax(1, keepdim=True))[:, 0]


def describe_kinds(maps: dict[str, np.ndarray]) -> dict:
    """Return the measures of an image's maps (H, W), those of the plain one without a prefix."""
    measures = {kind: describe_map(abs(array)) for kind, array in maps.items()}
    return {f"{prefix(kind)}{key}": value for kind, of_kind in measures.items() for key, value in of_kind.items()}


def prefix(kind: str) -> str:
    """Return what the measures of a kind of map begin with, in rows and metrics."""
    return "" if kind == "plain" else f"{kind}_"


def summary(rows: list[dict]) -> dict:
    """Return the metrics, from sums over rows."""
    kinds = [prefix(kind) for kind in ("plain", *SMOOTH_KINDS) if f"{prefix(kind)}status" in rows[0]]
    measures = ("half_mass_area", "roughness")
    return {
        "maps": len(rows),
        **{f"{kind}status": dict(Counter(row[f"{kind}status"] for row in rows)) for kind in kinds},
        **{f"mean_{kind}{key}": mean_known(row[f"{kind}{key}"] for row in rows) for kind in kinds for key in measures},
        "half_mass_area_of_an_even_map": 0.5,
        "grad_cam_in_combined": rows[0].get("grad_cam_in_combined"),
        "insertion_minus_deletion": summarise_worth(rows),
    }


def draw(
    rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, output: common.OutputFolder
) -> tuple[Figure, list[str]]:
    """Draw picture, maps, and the best map over the picture, for each row; one scale for each kind of map."""
    signed, smoothed = output.options.signed, "smoothed_status" in rows[0]
    kinds = ("plain", *SMOOTH_KINDS) if smoothed else ("plain",)
    heads = ["picture", "signed saliency map" if signed else "saliency map"]
    heads += ["smoothed", "combined"] if smoothed else ["map over picture"]
    figure, axes = common.panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=5)
    maps = {row["index"]: load_maps(row, output) for row in rows}
    for panels, row in zip(axes, rows, strict=True):
        common.draw_heading(panels, *common.class_lines(row, model.categories))
        picture = common.draw_picture(panels[0], model, files[row["index"]].path)
        common.draw_image(panels[-1], picture.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
        for column, kind in enumerate(kinds if smoothed else ("plain", "plain"), start=1):
            panel, array, status = panels[column], maps[row["index"]][kind], row[f"{prefix(kind)}status"]
            good = [r for r in rows if r["path"] == row["path"] and r[f"{prefix(kind)}status"] == "ok"]
            limit = common.brightest([abs(maps[r["index"]][kind]) for r in good])
            with_sign = signed and kind == "plain"
            if column < len(panels) - 1 or status != "ok":
                image = common.draw_map(panel, array, limit, status, with_sign)
            else:  # the larger the value, the more of the colour covers the grey picture
                image = common.draw_map(panel, array, limit, signed=with_sign)
                image.set_alpha(np.clip(abs(array) / limit, 0, 1))
            write_worth(panel, row, kind)
            if status == "ok":
                common.draw_colour_bar([panel], image)
        write_worth(panels[0], row, "random")
    best = "Grad-CAM x smoothed map x detail" if rows[0].get("grad_cam_in_combined") else "smoothed map x detail"
    return figure, [
        f"{model.label}: class saliency {'map' if total == 1 else 'maps'}"
        + ("" if len(rows) == total else f", {len(rows)} of {total}"),
        f"Where the logit of the class reacts to small changes of a pixel, {'' if signed else 'up or down, '}"
        "not whether the class is there: |gradient| of the channel that reacts most"
        + (", with the gradient's sign (red: more of it raises the logit)." if signed else "."),
        f"Smoothed: mean over {output.options.copies} copies with noise (SmoothGrad). Combined, over the picture: "
        f"{best} (the distance from a blurred copy)."
        if smoothed
        else "",
        WORTH if any("random_insertion_minus_deletion" in row for row in rows) else "",
        f"Pictures: {model.view}. {common.MAP_SCALE}",
    ]


def load_maps(row: dict, output: common.OutputFolder) -> dict[str, np.ndarray]:
    """Read an image's maps (H, W) of each kind, as `main` saved them."""
    maps = {"plain": np.load(output.path / common.map_name(row["index"]))}
    if "smoothed_status" in row:
        smooth = np.load(output.path / common.map_name(row["index"], "smoothed"))
        maps |= dict(zip(SMOOTH_KINDS, smooth, strict=True))
    return maps


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = common.exercise_parser(__doc__, "images", "--classes", "--limit", "--prefetch", "--strict", "--worth")
    parser.add_argument("--signed", action="store_true", help="show whether more of a pixel raises or lowers the logit")
    parser.add_argument(
        "--copies",
        default=COPIES,
        type=common.whole,
        metavar="N",
        help="noisy copies of the smoothed map (0: no such map)",
    )
    parser.add_argument(
        "--noise",
        default=NOISE,
        type=at_least_0,
        metavar="SD",
        help="standard deviation of their noise, in pixel values",
    )
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    files, classes = common.classes_to_explain(options.classes, files, model.categories, model.wnids)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        ids = [classes[file.index] for file in batch]
        forward, cam = with_grad_cam(lambda: common.forward_pass(model, images, ids), images)
        maps = {"plain": (signed_saliency if options.signed else saliency)(forward)}
        more = {}
        if options.copies:
            generators = common.seeded_generators(options.seed, (file.index for file in batch))
            settings = options.copies, options.noise
            smoothed = smoothed_saliency_maps(model, images, forward.classes, generators, *settings)
            maps |= {"smoothed": smoothed, "combined": combined_maps(images, smoothed, cam.maps())}
            more = {"grad_cam_in_combined": cam.maps() is not None}
        for n, (file, row) in enumerate(zip(batch, common.describe_classes(forward), strict=True)):
            arrays = {kind: of_all[n].cpu().numpy() for kind, of_all in maps.items()}
            row |= describe_kinds(arrays) | more | {"files": [common.map_name(file.index)]}
            common.write_array(output.file(row["files"][0]), arrays["plain"])
            if options.copies:
                row["files"].append(common.map_name(file.index, "smoothed"))
                common.write_array(output.file(row["files"][1]), np.stack([arrays[kind] for kind in SMOOTH_KINDS]))
            if file.index < options.worth:
                (generator,) = common.seeded_generators(options.seed, [file.index])
                own = {kind: of_all[n].abs() for kind, of_all in maps.items()}
                row |= worth(model, images[n], forward.classes[n], own, generator)
            yield row

    rows, skipped = common.explain_images(model, files, explain, options, output)
    output.save_pictures(rows[: options.show], [file.path for file in files], model)
    output.draw("saliency", draw, rows[: options.show], len(rows), files, model, output)
    table = [{"name": model.categories[row["class"]], **row} for row in rows]
    findings = [common.class_finding(row, model.categories) for row in rows]
    images = len({row["path"] for row in rows})  # one may have several classes
    output.finish(rows, skipped, summary(rows), {"saliency.csv": table}, model, images, findings)


if __name__ == "__main__":
    run(main)
