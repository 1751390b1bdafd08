"""2d: what does the network say about the test images?

Shows each image with its five most likely classes: p(c | x) = softmax(logits(x))_c.
A softmax probability is the network's own confidence; 2b's reliability diagram tells how far to
believe it (Guo et al. 2017, On Calibration of Modern Neural Networks, section 2). A softmax assumes one class per
image: it does not hold for a multi-label network, trained with sigmoids.

    python 2d_predict.py                  # the dataset's test images
    python 2d_predict.py photo.jpg        # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

from explain.shell import run

from matplotlib.figure import Figure
from torch import Tensor, nn

import common
from explain.figures import BLUE, SKY

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


def draw(
    rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier
) -> tuple[Figure, list[str]]:
    """Draw each picture beside the bars of its most likely classes."""
    figure, axes = common.panel_grid(len(rows), ["", ""], 1 if len(rows) == 1 else 2, text_lines=3, widths=[1, 1.3])
    for (left, right), row in zip(axes, rows, strict=True):
        common.draw_picture(left, model, files[row["index"]].path)
        common.draw_heading((left, right), common.short(common.file_name(row), 44))
        places = range(len(row["classes"]))
        right.barh(places, row["probabilities"], height=0.35, align="edge", color=[BLUE] + [SKY] * (TOP - 1))
        for place, c, p in zip(places, row["classes"], row["probabilities"], strict=True):
            right.text(0, place - 0.08, f"{common.short(model.categories[c], 24)}  {p:.3f}", in_layout=False)
        right.set(xlim=(0, 1), ylim=(len(places) - 0.45, -0.6), yticks=[], xticks=[0, 0.5, 1])
        right.set_xlabel("probability", labelpad=1)
        right.spines["left"].set_visible(False)
    shown = f"{len(rows)} of {total} pictures" if len(rows) < total else common.quantity(total, "picture")
    return figure, [
        f"{model.label}: the most likely classes of {shown}",
        f"Softmax probability of the {len(places)} most likely classes. Pictures: {model.view}.",
    ]


def main() -> None:
    options = common.exercise_parser(__doc__, "images", "--limit", "--prefetch", "--strict").parse_args()
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
    output.save_pictures(rows[: options.show], [file.path for file in files], model)
    output.draw("predictions", draw, rows[: options.show], len(rows), files, model)
    results = summary(rows, len(model.categories))
    findings = [
        common.class_finding(
            {**row, "class": row["classes"][0], "probability": row["probabilities"][0]}, model.categories
        )
        for row in rows
    ]
    output.finish(rows, skipped, results, {"predictions.csv": table}, model, findings=findings)


if __name__ == "__main__":
    run(main)
