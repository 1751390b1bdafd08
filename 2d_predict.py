"""2d: what does the network say about the test images?

Shows each image with its five likeliest classes: p(c | x) = softmax(logits(x))_c.
A softmax probability is the network's own confidence; 2b's reliability diagram tells how far to
believe it (Guo et al. 2017, On Calibration of Modern Neural Networks, section 2).

    python 2d_predict.py                  # the dataset's test images
    python 2d_predict.py photo.jpg        # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

from explain.shell import run

from torch import Tensor, nn

import common

TOP = 5  # classes shown for an image


def top_classes(model: nn.Module, images: Tensor, count: int = TOP) -> tuple[Tensor, Tensor]:
    """images (N, 3, H, W) -> the likeliest classes (N, count), their probabilities (N, count)."""
    probabilities = common.predict_logits(model, images).softmax(1)  # (N, classes)
    top = probabilities.topk(min(count, probabilities.shape[1]))
    return top.indices, top.values


def main() -> None:
    options = common.option_parser(
        __doc__,
        *("images", "--dataset", "--output", "--model", "--weights", "--device", "--threads"),
        *("--batch-size", "--seed", "--limit", "--strict", "--show", "--shard", "--merge", "--fresh"),
    ).parse_args()
    files = common.test_images(options)
    report = common.Report(options, __file__)
    model = common.load_from_options(options)

    def predict(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes, probabilities = top_classes(model, images)
        return [
            {"classes": c, "probabilities": p} for c, p in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]

    rows, skipped = common.explain_images(model, files, predict, options, report)
    if not rows:
        return  # other shards are still at work; the last of them goes on from here

    # the summary is a function of the rows
    results = {
        "mean_top1_probability": sum(row["probabilities"][0] for row in rows) / len(rows),
        "chance_probability": 1 / len(model.categories),
        "images_under_half": sum(row["probabilities"][0] < 0.5 for row in rows),
    }
    table = [
        {
            "index": row["index"],
            "path": row["path"],
            "rank": rank,
            "class": c,
            "name": model.categories[c],
            "probability": p,
        }
        for row in rows
        for rank, (c, p) in enumerate(zip(row["classes"], row["probabilities"], strict=True), start=1)
    ]
    shown = rows[: options.show]
    figure, axes = common.panel_grid(len(shown), columns=2, per_line=3)
    for (left, right), row in zip(axes, shown, strict=True):
        common.draw_picture(left, model, files[row["index"]].path, common.short(row["path"].rpartition("/")[2]))
        names = [common.short(model.categories[c], 20) for c in row["classes"]]
        bars = right.barh(range(len(names)), row["probabilities"], color=["tab:blue"] + ["lightsteelblue"] * 4)
        right.bar_label(
            bars,
            [f"{n}  {p:.3f}" for n, p in zip(names, row["probabilities"], strict=True)],
            padding=3,
            fontsize=7,
            parse_math=False,
        )
        right.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), yticks=[])
        right.set_box_aspect(0.9)
        right.tick_params(labelsize=6)
        right.spines[["top", "right"]].set_visible(False)
    common.draw_title(
        figure,
        f"{model.name}: the likeliest classes and their softmax probability",
        f"{len(shown)} of {len(rows)} images, cropped as the network sees them",
    )
    common.save_figure(figure, report.path("predictions.png"))
    report.finish(rows, skipped, results, {"predictions.csv": table}, model)


if __name__ == "__main__":
    run(main)
