"""2h: how sure is the network?

Monte Carlo dropout: T passes with dropout kept on are T samples of the predictive distribution
(Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, section 4). For each image: the mean
p of the passes' probabilities p_t, the predictive entropy H[p] (all uncertainty), its part that
the passes disagree about, the mutual information H[p] - mean_t H[p_t] (Houlsby et al. 2011,
section 2), and the spread of the leading classes, beside the single deterministic pass. Entropies are in nats.
Are these worth anything? On the validation images, whose classes are known, as they are and disturbed: does each
measure find the mistakes, and does it find more than the largest probability of the single pass does?

    python 2h_mc_dropout.py                         # the dataset's test images, T = 1,000
    python 2h_mc_dropout.py photo.jpg --passes 20   # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from explain.run.shell import answer_early, run

from explain.basics.errors import UserError
from explain.run.command_line import exercise_parser, positive, whole

PASSES_SHARED, PASSES_WHOLE = 1000, 100  # by default: where passes share the features, they are all but free
COMPARED = 16  # images whose passes --bfloat16 computes in full precision, too


def parse_options() -> argparse.Namespace:
    parser = exercise_parser(__doc__, "images", "--limit", "--prefetch", "--strict")
    parser.add_argument(
        "--passes",
        type=positive,
        metavar="T",
        help=f"number of forward passes with dropout on (default: {PASSES_SHARED}, or {PASSES_WHOLE} where they cannot "
        "share what comes before the first dropout)",
    )
    parser.add_argument(
        "--dropout", type=float, metavar="P", help="dropout probability (0 < P < 1) for dropout layers whose own is 0"
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="round the factors of the products after the first dropout to bfloat16, 8 bits: half of their time on a "
        f"processor with instructions for it; the first {COMPARED} images tell how far that changes the means",
    )
    help_text = "disturb N validation images too, spread as by --limit: noise, blur, a turn, low contrast (0: none)"
    parser.add_argument("--shift-limit", default=100, type=whole, metavar="N", help=help_text)
    options = parser.parse_args()
    if options.dropout is not None and not 0 < options.dropout < 1:
        raise UserError(f"--dropout must be above 0 and below 1, not {options.dropout}")
    if options.bfloat16 and options.passes == 1:
        raise UserError("--bfloat16 is compared with the spread of the passes, not with 1: leave it out")
    return options


if __name__ == "__main__":
    answer_early(parse_options)

import numpy as np
import torch
from torch import Generator, Tensor, nn

import common
from explain.methods import dropout, selective
from explain.methods.disturbances import disturbed
from explain.networks.logits import as_logits, logits_of, run_network
from explain.report import uncertainty as report

TOP = 5  # leading classes, by mean probability, whose spread is kept
SETTLING = (3, 10, 30, 100, 300, 1000)  # numbers of passes at which the spread is kept, beside the last
QUANTILES = (0, 0.25, 0.5, 0.75, 1)  # of a box plot
# Passes run together, as many as keep the first dropout's input of one image below this many numbers
# (16 MB). A rule without the batch in it: an image's masks must not depend on its company.
NUMBERS_TOGETHER = 1 << 22
Generators = Generator | Sequence[Generator] | None


def mc_dropout_logits(
    model: nn.Module,
    images: Tensor,
    passes: int,
    generator: Generators = None,
    share: bool | None = None,
    bfloat16: bool = False,
    deterministic: bool = False,
) -> Tensor:
    """Return the logits (passes, N, classes) of images (N, 3, H, W) with every dropout on, and only dropout.

    (passes, N, ...) for a network whose output has more dimensions (a segmentation); see `as_logits`.
    With `deterministic`, a pass without dropout comes first: (1 + passes, N, classes).

    With a list of generators, one for each image, an image's passes do not depend on the others in the batch; from a
    single generator, one for each image is seeded. `share` says whether the passes share what comes before the first
    dropout; by default a trial decides. `bfloat16` rounds the factors of the products after the first dropout to 8
    bits: half of their time where the processor has instructions for it. Raises UserError for a network without active
    dropout, with some that cannot be reached, or whose logits are not finite, and for no images. Gal and Ghahramani
    2016, section 4.
    """
    passes = common.whole_argument("passes", passes)
    if not len(common.check_images(images)):
        raise common.UserError("there are no images: give at least one")
    generators = dropout.one_generator_each(generator, len(images))
    dropout.refuse_unreachable(model)
    if share is None:
        share = dropout.passes_can_be_shared(model, images)
    with common.evaluation_mode(model), torch.inference_mode():
        logits = (shared_passes if share else whole_passes)(model, images, passes, generators, bfloat16)
    logits = logits.float() if bfloat16 and logits.dtype == torch.bfloat16 else logits
    common.check_finite(logits[0])
    return logits if deterministic else logits[1:]


def uncertainty(logits: Tensor, single: Tensor) -> dict[str, Any]:
    """Return an image's row from the logits (T, classes) of its passes and (classes,) of the deterministic one."""
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
    """Return the measures of spread over passes p (T, classes), of class c, and their Monte Carlo standard errors.

    Each measure is smooth in the mean over passes, and so its error is the standard deviation over passes of their
    influence on it, over the square root of T: the infinitesimal jackknife (Efron 1982, The Jackknife, the Bootstrap
    and Other Resampling Plans, section 6.3). None where there is a single pass.
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
    """Return the measures of a labelled image, and how right the mean of its passes and the single pass are.

    logits (T, classes), single (classes,). The measures are those of `selective.MEASURES`.
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
        "mean": selective.judge_prediction(mean, label),
        "single": selective.judge_prediction(p_single, label),
    }


def entropy(p: np.ndarray) -> np.ndarray:
    """Return the entropy, in nats, of distributions p (..., classes); 0 log 0 is 0."""
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def shared_passes(model: nn.Module, images: Tensor, passes: int, generators: list[Generator], bfloat16: bool) -> Tensor:
    """Run the network up to the first dropout for the N images, and the rest of it for (1 + passes) * N rows."""

    def draw(shape: tuple[int, ...]) -> Tensor:  # (passes, N, ...)
        return dropout.uniform_numbers(shape, generators, mode.intact)

    logits: list[Tensor] = []  # (passes, N, classes) that ran together, the deterministic pass first
    while (missing := 1 + passes - sum(map(len, logits))) > 0:
        intact = 0 if logits else 1
        with dropout.SharedPasses(draw, len(images), missing, NUMBERS_TOGETHER, intact, bfloat16) as mode:
            output = run_network(model, images)
        rows = as_logits(output, mode.passes * len(images))  # (mode.passes * N, classes)
        logits.append(rows.unflatten(0, (mode.passes, len(images))))
    with torch.inference_mode(False):  # the caller may compute with them under autograd
        return torch.cat(logits)


def whole_passes(model: nn.Module, images: Tensor, passes: int, generators: list[Generator], bfloat16: bool) -> Tensor:
    """Run the passes one by one for each image: right for every network, whatever its dropouts are applied to."""
    with dropout.DropoutMode(bfloat16=bfloat16):
        single = logits_of(model, images)
    columns = []  # (1 + passes, classes) of each image
    for n, g in enumerate(generators):
        sampled = []
        for _ in range(passes):
            with dropout.DropoutMode(partial(torch.rand, generator=g, device=g.device), bfloat16):
                sampled.append(logits_of(model, images[n : n + 1]))
        columns.append(torch.cat([single[n : n + 1], *sampled]))
    with torch.inference_mode(False):  # as in shared_passes
        return torch.stack(columns, 1)


def split_images(options: argparse.Namespace) -> common.ImageFiles:
    """List the validation images; an empty list where there is no split, or pictures were given."""
    try:
        return common.ImageFiles([], 0) if options.images else common.validation_images(options.dataset)
    except common.UserError:
        return common.ImageFiles([], 0)


def main() -> None:
    options = parse_options()
    tested = common.test_images(options)
    split = split_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    labelled = common.label_images(split, model, options.dataset)
    labelled = common.spread_over_classes(labelled, options.limit, options.seed)
    to_disturb = {file.key for file in common.spread_over_classes(labelled, options.shift_limit, options.seed)}
    if options.dropout is not None and not dropout.set_dropout(model, options.dropout):
        raise common.UserError(f"{model.name} has no dropout with p = 0 for --dropout to set: leave the option out")
    example = torch.zeros(1, 3, model.input_size, model.input_size, device=options.device)
    share = dropout.passes_can_be_shared(model, example)  # one trial, so that all images are treated alike
    options.passes = options.passes or (PASSES_SHARED if share else PASSES_WHOLE)

    def passes_of(images: Tensor, batch: list[common.ImageFile], bfloat16: bool) -> tuple[Tensor, Tensor]:
        generators = common.seeded_generators(options.seed, (file.index for file in batch))
        logits = mc_dropout_logits(model, images, options.passes, generators, share, bfloat16, deterministic=True)
        return logits[0], logits[1:]  # (N, classes), (T, N, classes)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        single, logits = passes_of(images, batch, options.bfloat16)
        files = batch[: len({file.index for file in batch})]  # without the copies that fill the last batch
        rows = [
            uncertainty(logits[:, n], single[n])
            if file.label is None
            else {"label": file.label, **known_uncertainty(logits[:, n], single[n], file.label)}
            for n, file in enumerate(files)
        ]
        compared = [n for n, file in enumerate(files) if options.bfloat16 and file.index < COMPARED]
        full = passes_of(images, batch, bfloat16=False)[1] if compared else logits
        for n in compared:
            rows[n]["bfloat16"] = report.rounding(logits[:, n], full[:, n])
        shifted = [n for n, file in enumerate(files) if file.label is not None and file.key in to_disturb]
        if shifted:
            generators = common.seeded_generators(options.seed, (file.index for file in batch))
            for name, pictures in disturbed(images, generators).items():
                single, logits = passes_of(pictures, batch, options.bfloat16)
                for n in shifted:
                    judged = known_uncertainty(logits[:, n], single[n], files[n].label)
                    rows[n].setdefault("disturbed", {})[name] = judged
        return rows

    numbered = [file._replace(index=len(tested) + file.index) for file in labelled]
    files = common.ImageFiles([*tested, *numbered], tested.no_picture, labelled.skipped, labelled.classes)
    rows, skipped = common.explain_images(model, files, explain, options, output)
    report.write(rows, skipped, [file.path for file in files], model, output)


if __name__ == "__main__":
    run(main)
