"""2f: which pixels did the network look at, according to guided backpropagation?

The class saliency map again, but in the backward pass every rectifier with input x lets only positive signals R pass:
R_in = 1[0 < x] * 1[0 < R_out] * R_out (Springenberg et al. 2015, Striving for Simplicity, section 3.4). The map looks
cleaner, but it depends little on the upper layers and on the class (Adebayo et al. 2018, Sanity Checks for Saliency
Maps; 2g measures how little): it shows which edges the network saw, not why it chose the class. Grad-CAM shows where
the last spatial layer sees the class; guided Grad-CAM, the product of the guided map and Grad-CAM, shows which edges
the network sees there (Selvaraju et al. 2017, Grad-CAM, section 3). Below each map is its faithfulness score.

    python 2f_guided_saliency.py                # the dataset's test images
    python 2f_guided_saliency.py photo.jpg      # your own image, no dataset needed; quick
"""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from explain.run.shell import answer_early, run

from explain.run.command_line import exercise_parser


def parse_options() -> argparse.Namespace:
    return exercise_parser(__doc__, "images", "--classes", "--limit", "--prefetch", "--strict", "--scores").parse_args()


if __name__ == "__main__":
    answer_early(parse_options)

import torch.nn.functional as F
from torch import Tensor, nn

import common
from explain.methods.maps import rank_correlation
from explain.methods.rectifiers import RectifierRule, activations, refuse_opaque
from explain.report import maps as report

saliency = importlib.import_module("2e_saliency")  # for the plain map and the reduction over channels


def guide(signal: Tensor) -> Tensor:
    """Return the positive part of the signal.

    For a signal R_out this is 1[0 < R_out] * R_out; the rectifier's own derivative then multiplies it by 1[0 < x].
    Springenberg et al. 2015, section 3.4.
    """
    return signal.clamp(min=0)


@contextmanager
def guided_rectifiers() -> Iterator[RectifierRule]:
    """Make `torch.autograd.grad` and `Tensor.backward` follow guided backpropagation's rule inside the block.

    Yields a RectifierRule, whose `rectifiers` and `others` count the operations that the signal passed. Raises
    NoSuchMap at the end if there was no rectifier, since the gradient would be the plain gradient. Springenberg et al.
    2015, section 3.4.
    """
    with RectifierRule(guide) as rule:
        yield rule
    if not rule.backward_passes:
        raise common.UserError("no gradient was taken inside guided_rectifiers(): call torch.autograd.grad there")
    if not rule.rectifiers:
        others = ", ".join(sorted(rule.others)) or "no activation at all"
        raise common.NoSuchMap(
            f"guided backpropagation is a rule for rectifiers, and this network has none ({others}): "
            "use 2e_saliency.py, or a network with ReLU",
            lacking="no rectifiers",
        )


@common.shared
def guided_saliency_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return the gradient of the class's logit with each rectifier passing back only `guide`, reduced to
    `saliency.over_channels`, in logits per unit of pixel value.

    images (N, 3, H, W) in [0, 1], classes one for each or one for all -> maps (N, H, W). Springenberg et al. 2015,
    section 3.4. Raises UserError where `common.forward_pass` does, and for a network whose operations cannot be seen;
    NoSuchMap for a network without rectifiers.
    """
    refuse_opaque(model)
    with guided_rectifiers():
        return saliency.over_channels(common.forward_pass(model, images, classes).gradient())


@common.shared
def grad_cam_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return the positive part of the sum of the last spatial layer's channels, weighted by their mean gradients, in
    logits.

    images (N, 3, H, W) in [0, 1], classes one for each or one for all -> maps (N, H, W), bilinear between the layer's
    places. Selvaraju et al. 2017, section 3, equations 1 and 2. Raises UserError where `common.forward_pass` does, and
    NoSuchMap for a network without a layer that has a height and a width.
    """
    forward = common.forward_pass(model, images, classes)
    if forward.features is None:
        raise common.NoSuchMap(
            "Grad-CAM is a map of the last layer whose output has a height and a width, and this network has no such "
            "layer (its first layer, or its tokens, mix all positions): use 2e_saliency.py, or a convolutional network",
            lacking="no layer with a height and a width",
        )
    features = forward.features.detach()[: len(images)]  # (N, C, h, w)
    weights = forward.gradient(by=forward.features).mean((2, 3), keepdim=True)  # (N, C, 1, 1)
    coarse = (weights * features).sum(1, keepdim=True).clamp(min=0)  # (N, 1, h, w)
    return F.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def guided_grad_cam_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return the product of the guided saliency map and Grad-CAM.

    images (N, 3, H, W) in [0, 1], classes one for each or one for all -> maps (N, H, W). Selvaraju et al. 2017, section
    3.2, with the guided saliency map. Raises UserError and NoSuchMap as `guided_saliency_maps` and `grad_cam_maps` do.
    """
    with common.shared_results():  # both come from one forward pass
        return guided_saliency_maps(model, images, classes) * grad_cam_maps(model, images, classes)


# The maps of this exercise, with their captions in the docstrings, as in 2e
MAPS: dict[str, common.MapFunction] = {
    "plain": saliency.saliency_maps,
    "guided": guided_saliency_maps,
    "grad_cam": grad_cam_maps,
    "guided_grad_cam": guided_grad_cam_maps,
}


def main() -> None:
    options = common.resolve_options(parse_options())
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    files, classes = common.classes_to_explain(options.classes, files, model.categories, model.wnids)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        ids = [classes[file.index] for file in batch]
        with common.shared_results():
            forward = common.forward_pass(model, images, ids)
            maps, reasons = common.make_maps(MAPS, model, images, ids, options, [file.index for file in batch])
            seen = [*activations([forward.scores])]
        counts = {
            "rectifiers": Counter(name for *_, name, rectifies in seen if rectifies),
            "left_as_they_are": Counter(name for *_, name, rectifies in seen if not rectifies),
        }
        for n, row in enumerate(common.map_rows(forward, images, batch, maps, reasons, options, output)):
            if {"plain", "guided"} <= maps.keys():
                row["rank_correlation"] = rank_correlation(maps["plain"][n], maps["guided"][n])
            yield row | counts

    rows, skipped = common.explain_images(model, files, explain, options, output)
    report.write_guided(rows, skipped, [file.path for file in files], model, output, MAPS)


if __name__ == "__main__":
    run(main)
