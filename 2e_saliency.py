"""2e: which pixels did the network look at?

The class saliency map, M = max over channels of |d S_c / d x|: how strongly the logit S_c of the
class reacts to a small change of each pixel (Simonyan et al. 2014, Deep Inside Convolutional
Networks, section 3.1). The map explains the most likely class unless you name another.

    python 2e_saliency.py                                 # the dataset's test images
    python 2e_saliency.py photo.jpg                       # your own picture, no dataset needed; the fast one
    python 2e_saliency.py photo.jpg --classes airedale "mountain bike"   # two classes on one scale
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from explain.shell import run

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

import common
from explain.maps import describe_map, mean_known


def saliency(forward: common.ForwardPass, retain_graph: bool = False) -> Tensor:
    """Return the saliency maps (N, H, W) of a forward pass: the gradient (N, 3, H, W) reduced over channels."""
    return forward.gradient(retain_graph).abs().amax(1)


def saliency_maps(model: nn.Module, images: Tensor, classes: common.Classes) -> Tensor:
    """Return saliency maps (N, H, W), in logits per unit of pixel value, of images (N, 3, H, W) in [0, 1].

    classes: one for each image, or one for all. Simonyan et al. 2014, section 3.1. Raises UserError where
    `common.forward_pass` does.
    """
    return saliency(common.forward_pass(model, images, classes))


def signed_saliency(forward: common.ForwardPass) -> Tensor:
    """Return maps (N, H, W) of the gradient's channel that reacts most at each pixel, with its sign.

    Its absolute value is the saliency map; above 0, more of that channel raises the class's logit.
    """
    gradient = forward.gradient()  # (N, 3, H, W)
    return gradient.gather(1, gradient.abs().argmax(1, keepdim=True))[:, 0]


def summary(rows: list[dict]) -> dict:
    """Return the metrics, from sums over rows."""
    return {
        "maps": len(rows),
        "status": dict(Counter(row["status"] for row in rows)),
        **{f"mean_{key}": mean_known(row[key] for row in rows) for key in ("half_mass_area", "roughness")},
        "half_mass_area_of_an_even_map": 0.5,
    }


def draw(
    rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, output: common.OutputFolder
) -> tuple[Figure, list[str]]:
    """Draw picture, map, and map over picture, for each row; one scale for the maps of one picture."""
    signed = output.options.signed
    heads = ["picture", "signed saliency map" if signed else "saliency map", "map over picture"]
    figure, axes = common.panel_grid(len(rows), heads, per_line=1 if len(rows) <= 4 else 2, text_lines=4)
    maps = {row["index"]: np.load(output.path / common.map_name(row["index"])) for row in rows}
    for (left, middle, right), row in zip(axes, rows, strict=True):
        good = [maps[r["index"]] for r in rows if r["path"] == row["path"] and r["status"] == "ok"]
        saliency, limit = maps[row["index"]], common.brightest([abs(m) for m in good])
        common.draw_heading((left, middle, right), *common.class_lines(row, model.categories))
        picture = common.draw_picture(left, model, files[row["index"]].path)
        image = common.draw_map(middle, saliency, limit, row["status"], signed)
        common.draw_image(right, picture.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
        if row["status"] == "ok":
            # the stronger the saliency, the more of the colour covers the grey picture
            alpha = np.clip(abs(saliency) / limit, 0, 1)
            common.draw_map(right, saliency, limit, signed=signed).set_alpha(alpha)
            common.draw_colour_bar((middle, right), image)
    return figure, [
        f"{model.label}: class saliency {'map' if total == 1 else 'maps'}"
        + ("" if len(rows) == total else f", {len(rows)} of {total}"),
        f"Where the logit of the class reacts to small changes of a pixel, {'' if signed else 'up or down, '}"
        "not whether the class is there: |gradient| of the channel that reacts most"
        + (", with the gradient's sign (red: more of it raises the logit)." if signed else "."),
        f"Pictures: {model.view}. {common.MAP_SCALE}",
    ]


def main() -> None:
    parser = common.exercise_parser(__doc__, "images", "--classes", "--limit", "--strict")
    parser.add_argument("--signed", action="store_true", help="show whether more of a pixel raises or lowers the logit")
    options = parser.parse_args()
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    files, classes = common.classes_to_explain(options.classes, files, model.categories)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        forward = common.forward_pass(model, images, [classes[file.index] for file in batch])
        maps = (signed_saliency if options.signed else saliency)(forward).cpu().numpy()
        for file, row, array in zip(batch, common.describe_classes(forward), maps, strict=True):
            name = common.map_name(file.index)
            common.write_array(output.file(name), array)
            yield {**row, **describe_map(abs(array)), "files": [name]}

    rows, skipped = common.explain_images(model, files, explain, options, output)
    output.draw("saliency", draw, rows[: options.show], len(rows), files, model, output)
    table = [{"name": model.categories[row["class"]], **row} for row in rows]
    findings = [common.class_finding(row, model.categories) for row in rows]
    images = len({row["path"] for row in rows})  # one may have several classes
    output.finish(rows, skipped, summary(rows), {"saliency.csv": table}, model, images, findings)


if __name__ == "__main__":
    run(main)
