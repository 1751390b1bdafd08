"""2f: which pixels did the network look at, seen through guided backpropagation?

The class saliency map again, but on the way back every rectifier lets only positive signals pass:
R_in = 1[0 < x] * 1[0 < R_out] * R_out (Springenberg et al. 2015, Striving for Simplicity, section
3.4). The map is less noisy, and less faithful: it depends little on the upper layers (Adebayo et
al. 2018, Sanity Checks for Saliency Maps), so read it as "which edges", not as "why": the second
figure randomises the network's layers from the top down and shows how much of each map survives.

    python 2f_guided_saliency.py                # the dataset's test images
    python 2f_guided_saliency.py photo.jpg      # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from explain.shell import run

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import common
from explain.figures import BLUE, GREY, ORANGE
from explain.maps import cascading_randomisation, describe_map, mean_known, rank_correlation
from explain.rectifiers import RectifierRule, refuse_opaque

saliency = importlib.import_module("2e_saliency").saliency  # the plain map is 2e's

NOISE = 0.02  # standard deviation, in pixel values, of the noise that a stable map withstands
KINDS = ("plain", "guided")  # the order of the maps in maps/*.npy


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
    return guided_pass(model, images, classes)[0]


def guided_pass(
    model: nn.Module, images: Tensor, classes: common.Classes, retain_graph: bool = False
) -> tuple[Tensor, common.ForwardPass, RectifierRule]:
    """Return guided saliency maps (N, H, W), their forward pass, and what its backward pass met."""
    refuse_opaque(model)
    with guided_rectifiers() as rule:
        forward = common.forward_pass(model, images, classes)
        return saliency(forward, retain_graph), forward, rule


def plain_and_guided_maps(
    model: nn.Module, images: Tensor, classes: common.Classes
) -> tuple[Tensor, common.ForwardPass, RectifierRule]:
    """Return plain and guided saliency maps (2, N, H, W) from one forward pass, that pass, and what the rule met."""
    guided, forward, rule = guided_pass(model, images, classes, retain_graph=True)
    return torch.stack([saliency(forward), guided]), forward, rule


def compare(pair: np.ndarray, noisy: np.ndarray) -> dict[str, Any]:
    """Return the measures of an image's plain and guided maps (2, H, W), and of the same with a little noise."""
    row: dict[str, Any] = {"rank_correlation": rank_correlation(*pair)}
    for kind, array, with_noise in zip(KINDS, pair, noisy, strict=True):
        row |= {f"{kind}_{key}": value for key, value in describe_map(array).items()}
        row[f"{kind}_stability"] = rank_correlation(array, with_noise)
    return row


def randomise(model: nn.Module, images: Tensor, classes: Tensor, options: argparse.Namespace) -> list[dict]:
    """Return for each image the rank correlations with the intact maps, stage by stage, of each kind of map."""
    generator = torch.Generator().manual_seed(options.seed)  # the same random layers for every batch
    layers, correlations = cascading_randomisation(
        model, images, classes, lambda *arguments: plain_and_guided_maps(*arguments)[0], options.stages, generator
    )
    return [
        {"down_to": layers, **{kind: [stage[k][n] for stage in correlations] for k, kind in enumerate(KINDS)}}
        for n in range(len(images))
    ]


def summary(rows: list[dict]) -> dict:
    """Return the metrics, from sums over rows: guided beside plain, its yardstick."""
    good = [row for row in rows if row["plain_status"] == row["guided_status"] == "ok"]
    keys = [f"{kind}_{measure}" for measure in ("half_mass_area", "roughness", "stability") for kind in KINDS]
    curves = [row["randomised"] for row in rows if "randomised" in row]
    return {
        "maps": len(rows),
        "plain_status": dict(Counter(row["plain_status"] for row in rows)),
        "guided_status": dict(Counter(row["guided_status"] for row in rows)),
        **{f"mean_{key}": mean_known(row[key] for row in good) for key in (*keys, "rank_correlation")},
        "rectifiers": rows[0]["rectifiers"],
        "left_as_they_are": rows[0]["left_as_they_are"],
    } | ({"randomised": survival(curves)} if curves else {})


def survival(curves: list[dict]) -> list[dict]:
    """Return for each stage of randomisation how many maps could be compared, and their mean rank correlation."""
    stages = []
    for k, name in enumerate(curves[0]["down_to"]):
        stage: dict[str, Any] = {"down_to": name}
        for kind in KINDS:
            stage[f"{kind}_maps"] = sum(curve[kind][k] is not None for curve in curves)
            stage[kind] = mean_known(curve[kind][k] for curve in curves)
        stages.append(stage)
    return stages


def draw(
    rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, output: common.OutputFolder
) -> tuple[Figure, list[str]]:
    """Draw picture, plain map and guided map; one scale for all maps of a picture."""
    heads = ["real image", "saliency map", "guided saliency map"]
    figure, axes = common.panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=4)
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
        f"Pictures: {model.view}. One scale for the maps of a picture. {common.MAP_SCALE}",
    ]


def draw_randomised(rows: list[dict], stages: list[dict], model: common.Classifier) -> tuple[Figure, list[str]]:
    """Draw the rank correlation with the intact network's maps as its layers are randomised from the top down."""
    figure = Figure(figsize=(common.WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    curves = [row["randomised"] for row in rows if "randomised" in row]
    for kind, colour in (("plain", BLUE), ("guided", ORANGE)):
        for curve in curves:
            axes.plot([1.0, *curve[kind]], color=colour, alpha=0.25, linewidth=0.8)
        means = [1.0, *(stage[kind] for stage in stages)]
        axes.plot(means, "o-", color=colour, label=f"{kind} saliency map", markersize=4)
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle="--", label="chance")
    axes.set_xticks(range(len(stages) + 1), ["none", *(f"{k}/{len(stages)}" for k in range(1, len(stages))), "all"])
    axes.set(xlabel="layers randomised, from the output down", ylabel="rank correlation with the intact map")
    axes.legend()
    return figure, [
        f"{model.label}: what is left of the maps when layers are randomised",
        f"Mean over {common.quantity(len(curves), 'image')} (thin: each). A faithful map falls at once (Adebayo et al. "
        "2018). metrics.json names the layers.",
    ]


def main() -> None:
    parser = common.exercise_parser(__doc__, "images", "--classes", "--limit", "--strict")
    parser.add_argument(
        "--stages", default=12, type=common.positive, metavar="N", help="number of steps in which layers are randomised"
    )
    parser.add_argument(
        "--randomise",
        default=8,
        type=common.whole,
        metavar="N",
        help="randomise layers for the first N images (0: none)",
    )
    options = parser.parse_args()
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    files, classes = common.classes_to_explain(options.classes, files, model.categories)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        maps, forward, rule = plain_and_guided_maps(model, images, [classes[file.index] for file in batch])
        generators = common.seeded_generators(options.seed, (file.index for file in batch))
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images)
        noisy_maps, *_ = plain_and_guided_maps(model, images + NOISE * noise, forward.classes)
        if batch[0].index < options.randomise:
            first = slice(options.randomise)  # always as many, since kernels may differ with the batch's shape
            curves = randomise(model, images[first], forward.classes[first], options)
        pairs, noisy_pairs = (array.transpose(0, 1).cpu().numpy() for array in (maps, noisy_maps))  # (N, 2, H, W)
        for n, (file, row) in enumerate(zip(batch, common.describe_classes(forward), strict=True)):
            row |= compare(pairs[n], noisy_pairs[n]) | {"files": [common.map_name(file.index)]}
            row |= {"rectifiers": dict(rule.rectifiers), "left_as_they_are": dict(rule.others)}
            if file.index < options.randomise:
                row["randomised"] = curves[n]
            common.write_array(output.file(common.map_name(file.index)), pairs[n])
            yield row

    rows, skipped = common.explain_images(model, files, explain, options, output)
    results = summary(rows)
    output.draw("guided_saliency", draw, rows[: options.show], len(rows), files, model, output)
    if "randomised" in results:
        output.draw("randomisation", draw_randomised, rows, results["randomised"], model)
    table = [{"name": model.categories[row["class"]], **row} for row in rows]
    findings = [common.class_finding(row, model.categories) for row in rows]
    images = len({row["path"] for row in rows})  # one may have several classes
    output.finish(rows, skipped, results, {"guided_saliency.csv": table}, model, images, findings)


if __name__ == "__main__":
    run(main)
