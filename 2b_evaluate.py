"""2b: how good is the network?

On the labelled images, measures the cross-entropy loss (the mean of -log p(y | x)) and the fractions of images whose
class is the most likely one (top-1) or among the five most likely (top-5). To tell whether the network's confidence can
be believed, the script also measures the expected calibration error, the sum over 15 bins of (n_b / n) |accuracy_b -
confidence_b| (Guo et al. 2017, On Calibration of Modern Neural Networks, section 2), draws the reliability diagram, and
measures the loss and the calibration error after temperature scaling (section 4.2), which is fitted and judged on
different images. The orientation in an image's EXIF data is ignored, as it is for published accuracies.

    python 2b_evaluate.py                 # all validation images, after process_data.py
    python 2b_evaluate.py --limit 16      # 16 of them, to be quick
    python 2b_evaluate.py FOLDER          # your own labelled images, one subfolder for each class
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from explain.run.shell import answer_early, run

from explain.run.command_line import exercise_parser


def parse_options() -> argparse.Namespace:
    parser = exercise_parser(__doc__, "--limit", "--prefetch", "--strict")
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="labelled images to use instead of the dataset's: a folder with a subfolder for each class, named by the "
        "class's name, WordNet id (n01770393) or id; by default the results go to output/pictures",
    )
    return parser.parse_args()


if __name__ == "__main__":
    answer_early(parse_options)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from explain.report import evaluation as report


def evaluate(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return loss (nats), rank of the true class, predicted class, confidence and Brier score, each (N,), by name.

    images (N, 3, H, W), true classes (N,). Rank 1 is the most likely class; the Brier score is the sum over classes of
    (p - 1[true])^2. The result also has the logits (N, classes). Raises UserError for a class that the network does not
    have.
    """
    logits = common.predict_logits(model, images)
    if classes.max() >= logits.shape[1]:
        raise common.UserError(
            f"class {int(classes.max())} is unknown to a model of {logits.shape[1]} classes: do the ids start at 1?"
        )
    # a tie counts against the network, so that a constant output is never right
    rank = (logits >= logits.gather(1, classes[:, None])).sum(1)
    p = logits.softmax(1)
    predicted = common.most_likely(logits)[:, 0]
    confidence = p.amax(1)
    loss = F.cross_entropy(logits, classes, reduction="none")
    brier = (p - F.one_hot(classes, p.shape[1])).square().sum(1)
    columns = {"loss": loss, "rank": rank, "predicted": predicted, "confidence": confidence, "brier": brier}
    return {"logits": logits, **columns}


def main() -> None:
    options = common.resolve_options(parse_options())
    split = None if options.folder else common.validation_images(options.dataset)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    if split is None:
        files = common.labelled_images(options.folder, model)
    else:
        files = common.label_images(split, model, options.dataset)
    files = common.spread_over_classes(files, options.limit, options.seed)

    def evaluate_batch(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        classes = torch.tensor([file.label for file in batch], device=images.device)
        columns = {"class": classes, **evaluate(model, images, classes)}
        logits = columns.pop("logits")
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        for file, own, row in zip(batch, logits.float().cpu().numpy(), values, strict=True):
            name = f"logits/{file.index:05d}.npy"
            common.write_array(output.file(name), own)  # (classes,)
            yield {**dict(zip(columns, row, strict=True)), "files": [name]}

    rows, skipped = common.explain_images(model, files, evaluate_batch, options, output, upright=False)
    report.write(rows, skipped, [file.path for file in files], model, output)


if __name__ == "__main__":
    run(main)
