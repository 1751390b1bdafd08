"""2h: how sure is the network?

Monte Carlo dropout: T passes with dropout kept on are T samples of the predictive distribution (Gal and Ghahramani
2016, Dropout as a Bayesian Approximation, section 4). For each image, the script reports the mean p of the passes'
probabilities p_t; the predictive entropy H[p], which is the total uncertainty; the mutual information H[p] - mean_t
H[p_t], the part due to disagreement between the passes (Houlsby et al. 2011, section 2); and the spread of the most
likely classes' probabilities, beside their probabilities in the single deterministic pass. Entropies are in nats. To
tell whether these measures can be trusted, it compares them on labelled images, both as they are and disturbed: does a
measure find the mistakes, and does it find them better than the largest probability of the single pass?

    python 2h_mc_dropout.py                         # the dataset's test images
    python 2h_mc_dropout.py photo.jpg --passes 20   # your own image, no dataset needed; quick
    python 2h_mc_dropout.py FOLDER                  # your own labelled images, one subfolder for each class
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from explain.run.shell import answer_early, run

from explain.basics.options import number
from explain.run.command_line import exercise_parser, not_negative, positive

PASSES_MANY, PASSES_FEW = 1000, 100  # the default: many if all of them take no more operations than ...
CHEAP = 4  # ... this number of passes without dropout
PASSES_TO_JUDGE = 200  # at most, for images that only judge the measures: more images would say more, not more passes


def parse_options() -> argparse.Namespace:
    parser = exercise_parser(__doc__, "images", "--limit", "--prefetch", "--strict")
    parser.add_argument(
        "--passes",
        type=positive,
        metavar="T",
        help=f"number of forward passes with dropout on; at most {PASSES_TO_JUDGE} for images that are used only to "
        f"judge the measures (default: {PASSES_MANY} if {PASSES_MANY} passes take no more operations than {CHEAP} "
        f"without dropout, else {PASSES_FEW})",
    )
    probability = number("above 0 and below 1", lambda p: 0 < p < 1)
    help_text = "dropout probability of every dropout layer (default: the network's own values)"
    parser.add_argument("--dropout", type=probability, metavar="P", help=help_text)
    help_text = "also judge the measures on N labelled images disturbed by noise, blur, a quarter turn or low contrast"
    parser.add_argument("--shift-limit", default=100, type=not_negative, metavar="N", help=help_text)
    return parser.parse_args()


if __name__ == "__main__":
    answer_early(parse_options)

import numpy as np
import torch
from torch import Generator, Tensor, nn

import common
from explain.methods import dropout, selective
from explain.methods.disturbances import disturbed
from explain.networks.running import device_of
from explain.report import uncertainty as report

TOP = 5  # number of leading classes, by mean probability, whose spread is in the row
SETTLING = (3, 10, 30, 100, 300, 1000)  # numbers of passes at which the spread is in the row, beside all passes
QUANTILES = (0, 0.25, 0.5, 0.75, 1)  # of a box plot


def mc_dropout_logits(
    model: nn.Module,
    images: Tensor,
    passes: int,
    generator: Generator | Sequence[Generator] | None = None,
    share: bool | None = None,
    deterministic: bool = False,
    p: float | None = None,
) -> Tensor:
    """Return the logits (passes, N, classes) of images (N, 3, H, W) with every dropout, and nothing else, switched on.

    If the network's output has more dimensions (segmentation), so has the result; see `as_logits`. With
    `deterministic`, a pass without dropout comes first: (1 + passes, N, classes).

    With a list of generators, one for each image, an image's passes do not depend on the others in the batch; a single
    generator seeds one for each image. `share` says whether the passes share the layers before the first dropout; by
    default, a trial decides. `p` replaces the probability of every dropout that the network calls. Raises UserError for
    a network without active dropout, with dropout that cannot be reached, or with logits that are not finite, and if
    there are no images. Gal and Ghahramani 2016, section 4.
    """
    passes = common.integer_argument("passes", passes)
    if not len(common.check_images(images)):
        raise common.UserError("there are no images: give at least one")
    generators = dropout.one_generator_each(generator, len(images))
    dropout.refuse_unreachable(model)
    if share is None:
        share = dropout.passes_can_be_shared(model, images, p)
    with common.evaluation_mode(model), torch.no_grad():
        logits = (dropout.shared_passes if share else dropout.separate_passes)(model, images, passes, generators, p)
    common.check_finite(logits[0])
    return logits if deterministic else logits[1:]


def uncertainty(logits: Tensor, single: Tensor) -> dict[str, Any]:
    """Return an image's row from the logits (T, classes) of its passes, and `single` (classes,) without dropout."""
    p = logits.double().softmax(1).cpu().numpy()  # (T, classes): p_t
    mean = p.mean(0)  # (classes,): the predictive distribution p
    leading = np.argsort(-mean, kind="stable")[:TOP].tolist()
    p_single = single.double().softmax(0).cpu().numpy()
    numbers = [n for n in SETTLING if n < len(p)] + [len(p)]
    spreads = {n: spread(p[:n], leading[0]) for n in numbers}
    return {
        "class": leading[0],
        "deterministic_class": int(common.most_likely(single[None])),
        "deterministic_probability": float(p_single.max()),
        "deterministic_entropy": float(entropy(p_single)),
        "mean_probability": float(mean[leading[0]]),
        **spreads[len(p)],
        "leading": [
            {
                "class": c,
                "mean": float(mean[c]),
                "standard_deviation": float(p[:, c].std(ddof=1)) if len(p) > 1 else None,
                "deterministic": float(p_single[c]),
                "quantiles": np.quantile(p[:, c], QUANTILES).tolist(),
            }
            for c in leading
        ],
        "settling": [{"passes": n, **measures} for n, measures in spreads.items()],
    }


def spread(p: np.ndarray, c: int) -> dict[str, float | None]:
    """Return the measures of spread of class c over passes p (T, classes), and their Monte Carlo standard errors.

    Each measure is a smooth function of means over passes, so its standard error is the standard deviation of the
    passes' influence on it, divided by the square root of T: the infinitesimal jackknife (Efron 1982, The Jackknife,
    the Bootstrap and Other Resampling Plans, section 6.3). It is None for a single pass.
    """
    passes, mean = len(p), p.mean(0)
    x = p[:, c]  # (T,)
    cross_entropy = -p @ np.log(np.maximum(mean, 1e-300))  # (T,): its mean is H[p]
    divergence = cross_entropy - entropy(p)  # (T,), of p_t from p: its mean is the mutual information
    variance = float(x.var(ddof=1)) if passes > 1 else None
    coefficient = float(np.sqrt(variance) / mean[c]) if variance is not None else None
    deviation = (x - mean[c]) ** 2
    measures = {
        "variance": (variance, deviation),
        "coefficient_of_variation": (coefficient, 0 * x),
        "agreement": (float((p.argmax(1) == c).mean()), p.argmax(1) == c),
        "predictive_entropy": (float(cross_entropy.mean()), cross_entropy),
        "mutual_information": (max(float(divergence.mean()), 0.0), divergence),  # below 0 by rounding alone
    }
    if variance:
        influence = coefficient * (deviation / (2 * variance) - x / mean[c])
        measures["coefficient_of_variation"] = coefficient, influence
    row: dict[str, float | None] = {}
    for name, (value, influence) in measures.items():
        row[name] = value
        error = float(influence.std(ddof=1) / np.sqrt(passes)) if passes > 1 else None
        row[f"{name}_standard_error"] = error
    return row


def known_uncertainty(logits: Tensor, single: Tensor, label: int) -> dict[str, Any]:
    """Return `selective.MEASURES` of a labelled image, and the scores of the mean of its passes and of the single pass.

    logits (T, classes), single (classes,). Raises UserError for a class that the network does not have.
    """
    p, p_single = (t.double().softmax(-1).cpu().numpy() for t in (logits, single))
    if label >= len(p_single):
        raise common.UserError(f"class {label} is unknown to a model of {len(p_single)} classes")
    mean = p.mean(0)
    second, first = np.sort(p_single)[-2:]
    measures = spread(p, int(mean.argmax()))
    return {
        **{name: measures[name] for name in selective.MEASURES if name in measures},
        "disagreement": 1 - measures["agreement"],
        "single_probability": float(first),
        "single_margin": float(first - second),
        "single_entropy": float(entropy(p_single)),
        "passes": len(p),
        "mean": selective.score_prediction(mean, label),
        "single": selective.score_prediction(p_single, label),
    }


def entropy(p: np.ndarray) -> np.ndarray:
    """Return the entropy, in nats, of distributions p (..., classes); 0 log 0 is 0."""
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def default_passes(model: common.Classifier, share: bool, p: float | None) -> int:
    """Return PASSES_MANY if that many passes take few operations, else PASSES_FEW; the same number on every machine."""
    example = torch.zeros(1, 3, model.input_size, model.input_size, device=device_of(model))
    fraction = dropout.fraction_after_dropout(model, example, p) if share else 1
    return PASSES_MANY if PASSES_MANY * fraction <= CHEAP else PASSES_FEW


def images_to_judge(model: common.Classifier, options: argparse.Namespace) -> common.ImageFiles:
    """List the labelled images that judge the measures; the list may be empty.

    They are the dataset's validation images; or, if a single folder is given as an argument and all its images are in
    subfolders named by classes, these images. A note says whether the folder's names are taken as labels.
    """
    none, folder = common.ImageFiles([], 0), Path(*options.images[:1])
    if not options.images:
        try:
            split = common.validation_images(options.dataset)
        except common.UserError:
            return none
        return common.label_images(split, model, options.dataset)
    if len(options.images) > 1 or not folder.is_dir() or folder in {p.parent for p in common.list_images(folder)[0]}:
        return none
    try:
        labelled, note = common.labelled_images(folder, model), "the folders' names are taken as labels"
    except common.UserError as error:
        labelled, note = none, f"the images are taken as unlabelled, since {error}"
    common.add_notes(model, [note])
    return labelled


def main() -> None:
    options = common.resolve_options(parse_options())
    tested = common.test_images(options)
    model = common.load_from_options(options)
    share = dropout.prepare(model, options.dropout)  # one trial, so that all images are treated alike
    passes = options.passes or default_passes(model, share, options.dropout)
    options = argparse.Namespace(**vars(options) | {"passes": passes, "passes_to_judge": min(passes, PASSES_TO_JUDGE)})
    output = common.OutputFolder(options, __file__)  # its settings include the number of passes
    labelled = common.spread_over_classes(images_to_judge(model, options), options.limit, options.seed)
    to_disturb = {file.key for file in common.spread_over_classes(labelled, options.shift_limit, options.seed)}
    if options.images and labelled:  # the same images are explained and judge the measures
        files, shown = labelled, len(labelled)
    else:
        shown, numbered = len(tested), [file._replace(index=len(tested) + file.index) for file in labelled]
        files = common.ImageFiles([*tested, *numbered], tested.other_files, labelled.skipped, labelled.classes)

    def passes_of(images: Tensor, batch: list[common.ImageFile], passes: int) -> tuple[Tensor, Tensor]:
        generators = common.seeded_generators(options.seed, (file.index for file in batch))
        logits = mc_dropout_logits(model, images, passes, generators, share, True, options.dropout)
        return logits[0], logits[1:]  # (N, classes), (T, N, classes)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        counts = [options.passes if file.index < shown else options.passes_to_judge for file in batch]
        run = {passes: passes_of(images, batch, passes) for passes in {*counts}}
        rows = []
        for n, (file, passes) in enumerate(zip(batch, counts, strict=True)):
            single, logits = (of_batch.select(-2, n) for of_batch in run[passes])  # (classes,), (T, classes)
            rows.append(uncertainty(logits, single) if file.index < shown else {})
            if file.label is not None:
                rows[n] |= {"label": file.label, **known_uncertainty(logits, single, file.label)}
        shifted = [n for n, file in enumerate(batch) if file.label is not None and file.key in to_disturb]
        if shifted:
            generators = common.seeded_generators(options.seed, (file.index for file in batch))
            for name, changed in disturbed(images, generators).items():
                single, logits = passes_of(changed, batch, options.passes_to_judge)
                for n in shifted:
                    known = known_uncertainty(logits[:, n], single[n], batch[n].label)
                    rows[n].setdefault("disturbed", {})[name] = known
        return rows

    rows, skipped = common.explain_images(model, files, explain, options, output)
    report.write(rows, skipped, [file.path for file in files], model, output)


if __name__ == "__main__":
    run(main)
