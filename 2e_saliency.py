"""2e: which pixels did the network look at?

The class saliency map, M = max over channels of |d S_c / d x|: how strongly the logit S_c of the
class reacts to a small change of each pixel (Simonyan et al. 2014, Deep Inside Convolutional
Networks, section 3.1). Explained is the likeliest class, or the one asked for.

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


def saliency_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """images (N, 3, H, W) in [0, 1], classes (N,) -> saliency maps (N, H, W), in logits per unit of pixel value.

    Simonyan et al. 2014, section 3.1. Raises UserError for a class out of range.
    """
    gradient, _ = common.class_score_gradient(model, images, classes)  # (N, 3, H, W)
    return gradient.abs().amax(1)


def main() -> None:
    options = common.option_parser(
        __doc__,
        *("images", "--classes", "--dataset", "--output", "--model", "--weights", "--device", "--threads"),
        *("--batch-size", "--seed", "--limit", "--strict", "--show", "--shard", "--merge", "--fresh"),
    ).parse_args()
    files = common.test_images(options)
    report = common.Report(options, __file__)
    model = common.load_from_options(options)
    asked = common.classes_asked(options.classes, files, model.categories)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        # saliency_maps(), with the classes chosen between its forward and its backward pass
        leaf, logits = common.logits_with_graph(model, images)
        classes = common.chosen_classes(logits, [asked[file.index] for file in batch])
        rows = common.describe_classes(logits, classes)
        maps = common.input_gradient(leaf, logits, classes).abs().amax(1).cpu().numpy()
        for file, row, saliency in zip(batch, rows, maps, strict=True):
            name = common.map_name(file.index)
            common.write_array(report.path(name), saliency)
            yield {**row, **common.describe_map(saliency), "files": [name]}

    rows, skipped = common.explain_images(model, files, explain, options, report)
    if not rows:
        return  # other shards are still at work; the last of them goes on from here
    figure = draw(rows[: options.show], len(rows), files, model, report)
    common.save_figure(figure, report.path("saliency.png"))
    hidden = ("notes", "files")
    table = [
        {"name": model.categories[row["class"]], **{k: v for k, v in row.items() if k not in hidden}} for row in rows
    ]
    report.finish(rows, skipped, summary(rows), {"saliency.csv": table}, model)


def summary(rows: list[dict]) -> dict:
    """The metrics, from sums over rows."""
    good = [row for row in rows if row["status"] == "ok"]
    means = {key: sum(row[key] for row in good) / len(good) for key in ("half_mass_area", "roughness") if good}
    return {
        "maps": len(rows),
        "status": dict(Counter(row["status"] for row in rows)),
        **{f"mean_{key}": value for key, value in means.items()},
        "half_mass_area_of_an_even_map": 0.5,
    }


def draw(rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, report) -> Figure:
    """Picture, map, and map over picture, for each row."""
    figure, axes = common.panel_grid(len(rows), columns=3, per_line=2)
    for (left, middle, right), row in zip(axes, rows, strict=True):
        saliency = np.load(report.folder / common.map_name(row["index"]))
        white = common.brightest([saliency] if row["status"] == "ok" else [])
        name = common.short(model.categories[row["class"]])
        title = f"{name}\np = {row['probability']:.3f}, rank {row['rank'] + 1}"
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


if __name__ == "__main__":
    run(main)
