"""2e: which pixels did the network look at?

The class saliency map, M = max over channels of |d S_c / d x|, says how strongly the logit S_c of the class reacts to a
small change of each pixel (Simonyan et al. 2014, Deep Inside Convolutional Networks, section 3.1). Beside it are the
smoothed map, which is the mean of the maps of noisy copies (Smilkov et al. 2017, SmoothGrad, section 3), and the
combined map, the product of the smoothed map, Grad-CAM (2f) and each pixel's distance from a blurred copy, drawn over
the image. Below each map is its faithfulness score, which tells whether the class's probability depends on the pixels
that the map highlights (2g). The maps explain the most likely class unless you name another.

    python 2e_saliency.py                                 # the dataset's test images
    python 2e_saliency.py photo.jpg                       # your own image, no dataset needed; quick
    python 2e_saliency.py photo.jpg --classes airedale "mountain bike"   # two classes on one scale
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence

from explain.run.shell import answer_early, run

from explain.basics.options import COPIES, NOISE
from explain.run.command_line import exercise_parser


def parse_options() -> argparse.Namespace:
    images = ("images", "--classes", "--limit", "--prefetch", "--strict", "--scores")
    parser = exercise_parser(__doc__, *images, "--copies", "--noise")
    help_text = "show whether a brighter pixel raises or lowers the logit"
    parser.add_argument("--signed", action="store_true", help=help_text)
    return parser.parse_args()


if __name__ == "__main__":
    answer_early(parse_options)

import torch
from torch import Tensor, nn

import common
from explain.methods.disturbances import noise_of
from explain.methods.faithfulness import detail_maps
from explain.report import maps as report

PIXELS_TOGETHER = 1 << 20  # in the copies of a pass, which limits its memory: 20 copies of 224 x 224


def saliency_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return the gradient of the class's logit, reduced to `over_channels`, in logits per unit of pixel value.

    images (N, 3, H, W) in [0, 1], classes one for each or one for all -> maps (N, H, W). Raises UserError where
    `common.forward_pass` does.
    """
    return over_channels(common.forward_pass(model, images, classes).gradient())


def over_channels(gradient: Tensor) -> Tensor:
    """Return the largest absolute value over the channels.

    gradient (N, 3, H, W) -> maps (N, H, W). Simonyan et al. 2014, section 3.1.
    """
    return gradient.abs().amax(1)


def signed_saliency_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return the gradient of the class's logit in the channel where its absolute value is largest, positive where a
    larger pixel value raises the logit, in logits per unit of pixel value.

    Arguments and maps as in `saliency_maps`.
    """
    gradient = common.forward_pass(model, images, classes).gradient()  # (N, 3, H, W)
    return gradient.gather(1, gradient.abs().argmax(1, keepdim=True))[:, 0]


@common.shared
def smoothed_saliency_maps(
    model: nn.Module,
    images: Tensor,
    classes: common.Classes,
    generators: Sequence[torch.Generator],
    copies: int = COPIES,
    noise: float = NOISE,
) -> Tensor:
    """Return the mean saliency map of `copies` copies with Gaussian noise of standard deviation `noise`, in logits per
    unit of pixel value.

    Arguments and maps as in `saliency_maps`; generators: one for each image; noise is in pixel values. Smilkov et al.
    2017, section 3, of absolute values. Raises UserError where `common.forward_pass` does, and unless there are as many
    generators as images.
    """
    ids = common.class_ids(classes, len(common.check_images(images)))
    if None in ids:  # found without a graph, whose memory would add to that of the copies
        best = common.most_likely(common.predict_logits(model, images))[:, 0].tolist()
        ids = [c if asked is None else asked for asked, c in zip(ids, best, strict=True)]
    copies = common.integer_argument("copies", copies)
    if len(generators) != len(images):
        raise common.UserError(f"{len(generators)} generators for {len(images)} images: give one for each")
    total = torch.zeros_like(images[:, 0])
    together = PIXELS_TOGETHER // max(1, total.numel()) or 1  # copies of every image in a pass
    for start in range(0, copies, together) if len(images) else ():
        noisy = [noise_of(images, generators, noise).add_(images) for _ in range(min(together, copies - start))]
        with common.shared_results(False):  # the graph of a pass is freed with its maps
            maps = saliency_maps(model, torch.cat(noisy), ids * len(noisy))
        total += maps.unflatten(0, (len(noisy), len(images))).sum(0)
    return total / copies


def combined_maps(
    model: nn.Module,
    images: Tensor,
    classes: common.Classes,
    generators: Sequence[torch.Generator],
    copies: int = COPIES,
    noise: float = NOISE,
) -> Tensor:
    """Return the product of the smoothed map, each pixel's distance from a blurred copy of the image, and Grad-CAM.

    Grad-CAM shows in which region the network sees the class, the smoothed map which pixels count there, and the
    distance how much each pixel has to lose: the smoothed map times the distance is like gradient times input, with the
    copy in place of zero. If the network has no Grad-CAM, the map is the product of the other two. Arguments and errors
    as in `smoothed_saliency_maps`.
    """
    combined = smoothed_saliency_maps(model, images, classes, generators, copies, noise) * detail_maps(images)
    try:
        # imported here, since 2f imports this file
        return combined * importlib.import_module("2f_guided_saliency").grad_cam_maps(model, images, classes)
    except common.NoSuchMap:
        return combined


# The maps of this exercise, in the order of the figure's columns; 2g judges them, too. The first paragraph of a
# function's docstring is the map's caption, with ", in" before its unit (see `describe` in report/maps.py).
MAPS: dict[str, common.MapFunction] = {
    "plain": saliency_maps,
    "smoothed": smoothed_saliency_maps,
    "combined": combined_maps,
}


def main() -> None:
    options = common.resolve_options(parse_options())
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    files, classes = common.classes_to_explain(options.classes, files, model.categories, model.wnids)
    table = MAPS | ({"plain": signed_saliency_maps} if options.signed else {})

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        ids = [classes[file.index] for file in batch]
        with common.shared_results():
            maps, reasons = common.make_maps(table, model, images, ids, options, [file.index for file in batch])
            forward = common.forward_pass(model, images, ids)
        for row in common.map_rows(forward, images, batch, maps, reasons, options, output):
            yield row | {"grad_cam_in_combined": "combined" in maps and forward.features is not None}

    rows, skipped = common.explain_images(model, files, explain, options, output)
    report.write_saliency(rows, skipped, [file.path for file in files], model, output, table)


if __name__ == "__main__":
    run(main)
