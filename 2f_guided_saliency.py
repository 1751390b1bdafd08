"""2f: which pixels did the network look at, seen through guided backpropagation?

The class saliency map again, but on the way back every rectifier lets only positive signals pass:
R_in = 1[0 < x] * 1[0 < R_out] * R_out (Springenberg et al. 2015, Striving for Simplicity, section
3.4). The map is less noisy, and less faithful: it depends little on the upper layers and on the class
(Adebayo et al. 2018, Sanity Checks for Saliency Maps; 2g shows it), so read it as "which edges", not as "why".
Grad-CAM says where the last layer sees the class, and guided Grad-CAM, the product of both, which edges there
(Selvaraju et al. 2017, Grad-CAM, section 3). Under each map stands its worth.

    python 2f_guided_saliency.py                # the dataset's test images
    python 2f_guided_saliency.py photo.jpg      # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from explain.shell import run

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

import common
from explain.faithfulness import summarise_worth, worth
from explain.figures import WORTH, write_worth
from explain.grad_cam import GradCAM, with_grad_cam
from explain.maps import describe_map, mean_known, rank_correlation
from explain.rectifiers import RectifierRule, refuse_opaque

saliency = importlib.import_module("2e_saliency").saliency  # the plain map is 2e's

KINDS = ("plain", "guided")  # the order of the maps in maps/*.npy
CAM_KINDS = ("grad_cam", "guided_grad_cam")  # and in maps/*_grad_cam.npy
NO_LAYER = "no layer with a height and a width"  # in the place of a map


def guide(signal: Tensor) -> Tensor:
    """Return the part of a signal R_out that a rectifier passes back: 1[0 < R_out] * R_out.

    The rectifier's own derivative makes the rule complete, with 1[0 < x]. Springenberg et al. 2015, section 3.4.
    """
    return signal.clamp(min=0)


@contextmanager
def guided_rectifiers() -> Iterator[RectifierRule]:
    """Make `torch.autograd.grad` and `Tensor.backward` follow guided backpropagation's rule inside the block.

    Yields the counts of what the signal passed, `.rectifiers` and `.others` (see RectifierRule). Raises UserError at
    the end where there was no rectifier: the gradient would be the plain one. Springenberg et al. 2015, section 3.4.
    """
    with RectifierRule(guide) as rule:
        yield rule
    if not rule.backward_passes:
        raise common.UserError("no gradient was taken inside guided_rectifiers(): call torch.autograd.grad there")
    if not rule.rectifiers:
        others = ", ".join(sorted(rule.others)) or "no activation at all"
        raise common.UserError(
            f"guided backpropagation is a rule for rectifiers, and this network has none ({others}): "
            "use 2e_saliency.py, or a network with ReLU"
        )


def guided_saliency_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return guided saliency maps (N, H, W) of images (N, 3, H, W) in [0, 1]; classes: one for each image, or for all.

    Springenberg et al. 2015, section 3.4, reduced over channels as in Simonyan et al. 2014, section 3.1. Raises
    UserError where `common.forward_pass` does, and for a network without rectifiers or whose operations cannot be seen.
    """
    refuse_opaque(model)
    with guided_rectifiers():
        return saliency(common.forward_pass(model, images, classes))


def guided_grad_cam_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return guided Grad-CAM maps (N, H, W), the product of both, of images (N, 3, H, W) in [0, 1].

    classes: one for each image, or for all. Selvaraju et al. 2017, section 3.2, with the guided saliency map. Raises
    UserError as `guided_saliency_maps`, and for a network of which no layer has a height and a width.
    """
    guided, forward, cam, _ = guided_pass(model, images, classes)
    if cam.maps() is None:
        raise common.UserError(
            "Grad-CAM is a map of the last layer whose output has a height and a width, and this network has none "
            "(places are mixed in tokens, or from the first layer on): use 2e_saliency.py, or a convolutional network"
        )
    forward.gradient(inputs=cam.features)  # a plain backward pass, which ends at that layer
    return guided * cam.maps()


def all_maps(
    model: nn.Module, images: Tensor, classes: common.Classes
) -> tuple[dict[str, Tensor], common.ForwardPass, RectifierRule]:
    """Return the maps (N, H, W) of each kind from a forward pass and two backward ones, that pass, what the rule met.

    Grad-CAM's layer gets its gradient with the plain map's; without such a layer its two kinds are missing.
    """
    guided, forward, cam, rule = guided_pass(model, images, classes)
    maps = {"plain": saliency(forward), "guided": guided}
    if (grad_cam := cam.maps()) is not None:
        maps |= {"grad_cam": grad_cam, "guided_grad_cam": guided * grad_cam}
    return maps, forward, rule


def guided_pass(
    model: nn.Module, images: Tensor, classes: common.Classes
) -> tuple[Tensor, common.ForwardPass, GradCAM, RectifierRule]:
    """Return the guided maps (N, H, W), the pass, ready for a plain backward pass, and what both have shown."""
    refuse_opaque(model)
    with guided_rectifiers() as rule:
        forward, cam = with_grad_cam(lambda: common.forward_pass(model, images, classes), images)
        guided = saliency(forward, True)  # the graph is kept
    return guided, forward, cam, rule


def summary(rows: list[dict]) -> dict:
    """Return the metrics, from sums over rows: guided beside plain, its yardstick."""
    kinds = (*KINDS, *CAM_KINDS)
    good = [row for row in rows if row["plain_status"] == row["guided_status"] == "ok"]
    keys = [f"{kind}_{measure}" for measure in ("half_mass_area", "roughness") for kind in KINDS]
    return {
        "maps": len(rows),
        **{f"{kind}_status": dict(Counter(row[f"{kind}_status"] for row in rows)) for kind in kinds},
        **{f"mean_{key}": mean_known(row[key] for row in good) for key in (*keys, "rank_correlation")},
        "rectifiers": rows[0]["rectifiers"],
        "left_as_they_are": rows[0]["left_as_they_are"],
        "insertion_minus_deletion": summarise_worth(rows),
    }


def draw(
    rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, output: common.OutputFolder
) -> tuple[Figure, list[str]]:
    """Draw picture, plain map and guided map; one scale for all maps of a picture."""
    heads = ["real image", "saliency map", "guided saliency map"]
    figure, axes = common.panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=5)
    maps = {row["index"]: np.load(output.path / common.map_name(row["index"])) for row in rows}
    for panels, row in zip(axes, rows, strict=True):
        same_picture = [r for r in rows if r["path"] == row["path"]]
        good = [
            maps[r["index"]][k] for r in same_picture for k, kind in enumerate(KINDS) if r[f"{kind}_status"] == "ok"
        ]
        limit = common.brightest(good)
        common.draw_heading(panels, *common.class_lines(row, model.categories))
        common.draw_picture(panels[0], model, files[row["index"]].path)
        for panel, kind, array in zip(panels[1:], KINDS, maps[row["index"]], strict=True):
            image = common.draw_map(panel, array, limit, row[f"{kind}_status"])
            write_worth(panel, row, kind)
        write_worth(panels[0], row, "random")
        if good:
            common.draw_colour_bar(panels[1:], image)
    left_alone = ", ".join(f"{n} {name}" for name, n in rows[0]["left_as_they_are"].items())
    return figure, [
        f"{model.label}: saliency {'map' if total == 1 else 'maps'} by plain and by guided backpropagation"
        + ("" if len(rows) == total else f", {len(rows)} of {total}"),
        "Where the logit of the class reacts to small changes of a pixel, not whether the class is there. Guided maps "
        "depend little on the upper layers (Adebayo et al. 2018): they show edges, not reasons. "
        f"{common.quantity(sum(rows[0]['rectifiers'].values()), 'rectifier')} guided"
        + (f"; left as they are: {left_alone}." if left_alone else "."),
        WORTH if any("random_insertion_minus_deletion" in row for row in rows) else "",
        f"Pictures: {model.view}. One scale for the maps of a picture. {common.MAP_SCALE}",
    ]


def draw_grad_cam(
    rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, output: common.OutputFolder
) -> tuple[Figure, list[str]]:
    """Draw picture, Grad-CAM and guided Grad-CAM; one scale for each kind of map of a picture."""
    heads = ["real image", "Grad-CAM", "guided Grad-CAM"]
    figure, axes = common.panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=5)
    has_layer = NO_LAYER not in rows[0].values()
    # one map of zeros stands for those of a network without the layer
    nothing = np.zeros((len(CAM_KINDS), model.input_size, model.input_size))
    file = {row["index"]: output.path / common.map_name(row["index"], "grad_cam") for row in rows}
    maps = {index: np.load(path) if has_layer else nothing for index, path in file.items()}
    for panels, row in zip(axes, rows, strict=True):
        common.draw_heading(panels, *common.class_lines(row, model.categories))
        common.draw_picture(panels[0], model, files[row["index"]].path)
        for k, (panel, kind) in enumerate(zip(panels[1:], CAM_KINDS, strict=True)):
            status = row[f"{kind}_status"]
            good = [r for r in rows if r["path"] == row["path"] and r[f"{kind}_status"] == "ok"]
            limit = common.brightest([maps[r["index"]][k] for r in good])
            image = common.draw_map(panel, maps[row["index"]][k], limit, status)
            write_worth(panel, row, kind)
            if status == "ok":
                common.draw_colour_bar([panel], image)
        write_worth(panels[0], row, "random")
    return figure, [
        f"{model.label}: Grad-CAM and guided Grad-CAM" + ("" if len(rows) == total else f", {len(rows)} of {total}"),
        "Grad-CAM: where the last layer that has a height and a width speaks for the class (Selvaraju et al. 2017); "
        "guided Grad-CAM: the same times the guided saliency map.",
        WORTH if any("random_insertion_minus_deletion" in row for row in rows) else "",
        f"Pictures: {model.view}. The scale is linear from 0 to the map's 99.5th percentile; Grad-CAM is in logits.",
    ]


def main() -> None:
    options = common.exercise_parser(
        __doc__, "images", "--classes", "--limit", "--prefetch", "--strict", "--worth"
    ).parse_args()
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    files, classes = common.classes_to_explain(options.classes, files, model.categories, model.wnids)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        maps, forward, rule = all_maps(model, images, [classes[file.index] for file in batch])
        for n, (file, row) in enumerate(zip(batch, common.describe_classes(forward), strict=True)):
            own = {kind: of_all[n] for kind, of_all in maps.items()}
            arrays = {kind: array.cpu().numpy() for kind, array in own.items()}
            row |= {"rank_correlation": rank_correlation(arrays["plain"], arrays["guided"]), "files": []}
            for kind in (*KINDS, *CAM_KINDS):
                measures = describe_map(arrays[kind]) if kind in maps else {"status": NO_LAYER}
                row |= {f"{kind}_{key}": value for key, value in measures.items()}
            row |= {"rectifiers": dict(rule.rectifiers), "left_as_they_are": dict(rule.others)}
            for suffix, kinds in (("", KINDS), ("grad_cam", CAM_KINDS)):
                if kinds[0] in maps:
                    row["files"].append(common.map_name(file.index, suffix))
                    common.write_array(output.file(row["files"][-1]), np.stack([arrays[kind] for kind in kinds]))
            if file.index < options.worth:
                (generator,) = common.seeded_generators(options.seed, [file.index])
                row |= worth(model, images[n], forward.classes[n], own, generator)
            yield row

    rows, skipped = common.explain_images(model, files, explain, options, output)
    output.save_pictures(rows[: options.show], [file.path for file in files], model)
    output.draw("guided_saliency", draw, rows[: options.show], len(rows), files, model, output)
    output.draw("guided_grad_cam", draw_grad_cam, rows[: options.show], len(rows), files, model, output)
    table = [{"name": model.categories[row["class"]], **row} for row in rows]
    findings = [common.class_finding(row, model.categories) for row in rows]
    images = len({row["path"] for row in rows})  # one may have several classes
    output.finish(rows, skipped, summary(rows), {"guided_saliency.csv": table}, model, images, findings)


if __name__ == "__main__":
    run(main)
