"""2e: which pixels did the network look at?

The class saliency map, M = max over channels of |d S_c / d x|: how strongly the logit S_c of the
class reacts to a small change of each pixel (Simonyan et al. 2014, Deep Inside Convolutional
Networks, section 3.1). The map explains the most likely class unless you name another.

    python 2e_saliency.py                                 # the dataset's test images
    python 2e_saliency.py photo.jpg                       # your own picture, no dataset needed; the fast one
    python 2e_saliency.py photo.jpg --classes tarantula   # where would it see a tarantula?
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
) -> Figure:
    """Draw picture, map, and map over picture, for each row."""
    figure, axes = common.panel_grid(len(rows), columns=3, per_line=2)
    for (left, middle, right), row in zip(axes, rows, strict=True):
        saliency = np.load(output.path / common.map_name(row["index"]))
        white = common.brightest([saliency] if row["status"] == "ok" else [])
        name = common.short(model.categories[row["class"]])
        title = f"{name}\np = {row['probability']:.3f}, rank {row['rank']}"
        picture = common.draw_picture(left, model, files[row["index"]].path, title)
        common.draw_map(middle, saliency, white, f"saliency map\nbrightest ≥ {white:.2g}", row["status"])
        common.draw_image(right, picture.mean(0).numpy(), "map over picture\n", cmap="gray", vmin=0, vmax=1)
        if row["status"] == "ok":
            # the stronger the saliency, the more of the colour covers the grey picture
            alpha = np.clip(saliency / white, 0, 1)
            right.imshow(saliency, cmap="inferno", vmin=0, vmax=white, alpha=alpha)
    common.draw_title(
        figure,
        f"{model.name}: class saliency maps, max over channels of |gradient of the class's logit|, "
        f"in logits per unit of pixel value",
        f"linear from 0 (black) to the map's {common.MAP_PERCENTILE}th "
        f"percentile (brightest, as are the {100 - common.MAP_PERCENTILE:.1f} % above); {len(rows)} of {total} images",
    )
    return figure


def main() -> None:
    options = common.exercise_parser(__doc__, "images", "--classes", "--limit", "--strict").parse_args()
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    classes = common.classes_to_explain(options.classes, files, model.categories)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        forward = common.forward_pass(model, images, [classes[file.index] for file in batch])
        maps = saliency(forward).cpu().numpy()
        for file, row, array in zip(batch, common.describe_classes(forward), maps, strict=True):
            name = common.map_name(file.index)
            common.write_array(output.file(name), array)
            yield {**row, **describe_map(array), "files": [name]}

    rows, skipped = common.explain_images(model, files, explain, options, output)
    common.save_figure(draw(rows[: options.show], len(rows), files, model, output), output.file("saliency.png"))
    table = [{"name": model.categories[row["class"]], **row} for row in rows]
    output.finish(rows, skipped, summary(rows), {"saliency.csv": table}, model)


if __name__ == "__main__":
    run(main)
