"""2d: what does the network say about the test images?

Shows each image with its five most likely classes: p(c | x) = softmax(logits(x))_c.
A softmax probability is the network's own confidence; 2b's reliability diagram tells how far to
believe it (Guo et al. 2017, On Calibration of Modern Neural Networks, section 2).

    python 2d_predict.py                  # the dataset's test images
    python 2d_predict.py photo.jpg        # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

from explain.shell import run

from matplotlib.figure import Figure
from torch import Tensor, nn

import common

TOP = 5  # classes listed for an image


def top_classes(model: nn.Module, images: Tensor, count: int = TOP) -> tuple[Tensor, Tensor]:
    """Return the most likely classes (N, count) of images (N, 3, H, W), and their probabilities (N, count)."""
    probabilities = common.predict_logits(model, images).softmax(1)  # (N, classes)
    top = probabilities.topk(min(count, probabilities.shape[1]))
    return top.indices, top.values


def summary(rows: list[dict], classes: int) -> dict:
    """Return the metrics, from sums over rows."""
    return {
        "mean_top1_probability": sum(row["probabilities"][0] for row in rows) / len(rows),
        "chance_probability": 1 / classes,
        "images_under_half": sum(row["probabilities"][0] < 0.5 for row in rows),
    }


def draw(rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier) -> Figure:
    """Draw each picture beside the bars of its most likely classes."""
    figure, axes = common.panel_grid(len(rows), columns=2, per_line=3)
    for (left, right), row in zip(axes, rows, strict=True):
        common.draw_picture(left, model, files[row["index"]].path, common.short(row["path"].rpartition("/")[2]))
        names = [common.short(model.categories[c], 20) for c in row["classes"]]
        bars = right.barh(range(len(names)), row["probabilities"], color=["tab:blue"] + ["lightsteelblue"] * 4)
        labels = [f"{name}  {p:.3f}" for name, p in zip(names, row["probabilities"], strict=True)]
        right.bar_label(bars, labels, padding=3, fontsize=7, parse_math=False)
        right.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), yticks=[])
        right.set_box_aspect(0.9)
        right.tick_params(labelsize=6)
        right.spines[["top", "right"]].set_visible(False)
    common.draw_title(
        figure,
        f"{model.name}: the most likely classes and their softmax probability",
        f"{len(rows)} of {total} images, cropped as the network sees them",
    )
    return figure


def main() -> None:
    options = common.exercise_parser(__doc__, "images", "--limit", "--strict").parse_args()
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)

    def predict(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes, probabilities = top_classes(model, images)
        pairs = zip(classes.tolist(), probabilities.tolist(), strict=True)
        return [{"classes": c, "probabilities": p} for c, p in pairs]

    rows, skipped = common.explain_images(model, files, predict, options, output)
    table = [
        {**{key: row[key] for key in ("index", "path")}, "rank": rank, "class": c}
        | {"name": model.categories[c], "probability": p}
        for row in rows
        for rank, (c, p) in enumerate(zip(row["classes"], row["probabilities"], strict=True), start=1)
    ]
    common.save_figure(draw(rows[: options.show], len(rows), files, model), output.file("predictions.png"))
    results = summary(rows, len(model.categories))
    output.finish(rows, skipped, results, {"predictions.csv": table}, model)


if __name__ == "__main__":
    run(main)
