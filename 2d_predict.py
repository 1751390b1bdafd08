"""2d: what does the network say about the test images?

Shows each image with its five most likely classes and their probabilities p(c | x) = softmax(logits(x))_c. A softmax
probability is the network's own confidence; the reliability diagram of 2b shows how far it can be believed (Guo et al.
2017, On Calibration of Modern Neural Networks, section 2). A softmax assumes one class per image, so its probabilities
mean nothing for a multi-label network, which is trained with sigmoids.

    python 2d_predict.py                  # the dataset's test images
    python 2d_predict.py photo.jpg        # your own image, no dataset needed; quick
"""

from __future__ import annotations

import argparse

from explain.run.shell import answer_early, run

from explain.run.command_line import exercise_parser


def parse_options() -> argparse.Namespace:
    return exercise_parser(__doc__, "images", "--limit", "--prefetch", "--strict").parse_args()


if __name__ == "__main__":
    answer_early(parse_options)

from torch import Tensor, nn

import common
from explain.report import predictions as report

TOP = 5  # classes listed for an image


def top_classes(model: nn.Module, images: Tensor, count: int = TOP) -> tuple[Tensor, Tensor]:
    """Return the most likely classes (N, count) of images (N, 3, H, W), and their probabilities (N, count)."""
    logits = common.predict_logits(model, images)  # (N, classes)
    top = common.most_likely(logits, count)
    return top, logits.softmax(1).gather(1, top)


def main() -> None:
    options = common.resolve_options(parse_options())
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)

    def predict(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes, probabilities = top_classes(model, images)
        pairs = zip(classes.tolist(), probabilities.tolist(), strict=True)
        return [{"classes": c, "probabilities": p} for c, p in pairs]

    rows, skipped = common.explain_images(model, files, predict, options, output)
    report.write(rows, skipped, [file.path for file in files], model, output)


if __name__ == "__main__":
    run(main)
