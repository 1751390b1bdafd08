"""2h: how sure is the network?

Monte Carlo dropout: T passes with dropout kept on are T samples of the predictive distribution
(Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, section 4). For each image: the mean
p of the passes' probabilities p_t, the predictive entropy H[p] (all uncertainty), its part that
the passes disagree about, the mutual information H[p] - mean_t H[p_t] (Houlsby et al. 2011,
section 2), and the spread of the leading classes, beside the single deterministic pass. Entropies are in nats.

    python 2h_mc_dropout.py                         # the dataset's test images, T = 100
    python 2h_mc_dropout.py photo.jpg --passes 20   # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from explain.shell import run

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import common
from explain import dropout

TOP = 5  # leading classes, by mean probability, whose spread is kept
QUANTILES = (0, 0.25, 0.5, 0.75, 1)  # of a box plot
# Passes run together, as many as keep the first dropout's input of one image below this many numbers
# (16 MB). A rule without the batch in it: an image's masks must not depend on its company.
NUMBERS_TOGETHER = 1 << 22
Generators = torch.Generator | Sequence[torch.Generator] | None


def mc_dropout_logits(
    model: nn.Module, images: Tensor, passes: int, generator: Generators = None, share: bool | None = None
) -> Tensor:
    """Return the logits (passes, N, classes) of images (N, 3, H, W) with every dropout on, and only dropout.

    (passes, N, ...) for a network whose output has more dimensions (a segmentation); see `explain.logits.as_logits`.

    With a list of generators, one for each image, an image's passes do not depend on the others in the batch; from a
    single generator, one for each image is seeded. `share` says whether the passes share what comes before the first
    dropout; by default a trial decides. Raises UserError for a network without active dropout, with some that cannot
    be reached, or whose logits are not finite, and for no images. Gal and Ghahramani 2016, section 4.
    """
    return single_and_mc_logits(model, images, passes, generator, share)[1]


def single_and_mc_logits(
    model: nn.Module, images: Tensor, passes: int, generator: Generators = None, share: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits (N, classes) of the deterministic pass, and those (passes, N, classes) with dropout on."""
    if passes < 1:
        raise common.UserError(f"passes must be a whole number of at least 1, not {passes}")
    if not len(common.check_images(images)):
        raise common.UserError("there are no images: give at least one")
    generators = one_generator_each(generator, len(images))
    dropout.refuse_unreachable(model)
    if share is None:
        share = dropout.passes_can_be_shared(model, images)
    with common.evaluation_mode(model), torch.inference_mode():
        logits = (shared_passes if share else whole_passes)(model, images, passes, generators)
    common.check_finite(logits[0])
    logits = common.usable(logits)
    return logits[0], logits[1:]


def uncertainty(logits: Tensor, single: Tensor) -> dict[str, Any]:
    """Return an image's row from the logits (T, classes) of its passes and (classes,) of the deterministic one."""
    p = logits.double().softmax(1).cpu().numpy()  # (T, classes): p_t
    mean = p.mean(0)  # (classes,): the predictive distribution p
    predictive_entropy = float(entropy(mean))  # H[p]
    expected_entropy = float(entropy(p).mean())  # mean_t H[p_t]
    mutual_information = max(predictive_entropy - expected_entropy, 0.0)  # below 0 by rounding alone
    leading = np.argsort(-mean, kind="stable")[:TOP].tolist()
    variance = {c: float(p[:, c].var(ddof=1)) if len(p) > 1 else None for c in leading}
    p_single = single.double().softmax(0).cpu().numpy()
    return {
        "class": leading[0],
        "deterministic_class": int(p_single.argmax()),
        "deterministic_probability": float(p_single.max()),
        "deterministic_entropy": float(entropy(p_single)),
        "mean_probability": float(mean[leading[0]]),
        "variance": variance[leading[0]],
        "agreement": float((p.argmax(1) == leading[0]).mean()),
        "predictive_entropy": predictive_entropy,
        "mutual_information": mutual_information,
        "leading": [
            {
                "class": c,
                "mean": float(mean[c]),
                "standard_deviation": variance[c] and float(np.sqrt(variance[c])),
                "deterministic": float(p_single[c]),
                "quantiles": np.quantile(p[:, c], QUANTILES).tolist(),
            }
            for c in leading
        ],
    }


def entropy(p: np.ndarray) -> np.ndarray:
    """Return the entropy, in nats, of distributions p (..., classes); 0 log 0 is 0."""
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def shared_passes(model: nn.Module, images: Tensor, passes: int, generators: list[torch.Generator]) -> Tensor:
    """Run the network up to the first dropout for the N images, and the rest of it for (1 + passes) * N rows."""

    def draw(shape: tuple[int, ...]) -> Tensor:  # (passes, N, ...)
        one = (shape[0], *shape[2:])
        return torch.stack([torch.rand(one, generator=g, device=g.device) for g in generators], 1)

    logits: list[Tensor] = []  # (N, classes) of each pass, the deterministic one first
    while (missing := 1 + passes - len(logits)) > 0:
        with dropout.SharedPasses(draw, len(images), missing, NUMBERS_TOGETHER, intact=0 if logits else 1) as mode:
            output = common.run_network(model, images)
        rows = common.as_logits(output, mode.passes * len(images))  # (mode.passes * N, classes)
        logits += rows.unflatten(0, (mode.passes, len(images)))
    return torch.stack(logits)


def whole_passes(model: nn.Module, images: Tensor, passes: int, generators: list[torch.Generator]) -> Tensor:
    """Run the passes one by one for each image: right for every network, whatever its dropouts are applied to."""
    with dropout.DropoutMode():
        single = common.logits_of(model, images)
    columns = []  # (1 + passes, classes) of each image
    for n, g in enumerate(generators):
        with dropout.DropoutMode(partial(torch.rand, generator=g, device=g.device)):
            sampled = [common.logits_of(model, images[n : n + 1]) for _ in range(passes)]
        columns.append(torch.cat([single[n : n + 1], *sampled]))
    return torch.stack(columns, 1)


def one_generator_each(generator: Generators, images: int) -> list[torch.Generator]:
    """Return a generator for each image, which a single one (None: PyTorch's own) has seeded."""
    if generator is None or isinstance(generator, torch.Generator):
        seeds = torch.randint(1 << 62, (images,), generator=generator)
        return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    if len(generator) != images:
        raise common.UserError(f"{len(generator)} generators for {images} images: give one, or one for each")
    return list(generator)


def summary(rows: list[dict], passes: int, classes: int) -> dict:
    """Return the metrics, from sums over rows."""
    keys = ("deterministic_probability", "mean_probability", "agreement", "deterministic_entropy")
    keys += ("predictive_entropy", "mutual_information")
    return {
        "images": len(rows),
        "passes": passes,
        "mean_and_single_pass_disagree": sum(row["class"] != row["deterministic_class"] for row in rows),
        "most_uncertain": max(rows, key=lambda row: row["mutual_information"])["path"],
        "entropy_of_chance": float(np.log(classes)),
        **{f"mean_{key.removeprefix('mean_')}": sum(row[key] for row in rows) / len(rows) for key in keys},
    }


def tables(rows: list[dict], ordered: list[dict], categories: Sequence[str]) -> dict[str, list[dict]]:
    """Return the tables by their file names: the images in order of uncertainty, and the leading classes of each."""
    images = [
        {"order": order, "name": categories[row["class"]], "deterministic_name": categories[row["deterministic_class"]]}
        | row
        for order, row in enumerate(ordered, start=1)
    ]
    quantiles = ("min", "quartile_1", "median", "quartile_3", "max")
    classes = [
        {"index": row["index"], "path": row["path"], "name": categories[c["class"]], **c}
        | dict(zip(quantiles, c["quantiles"], strict=True))
        for row in rows
        for c in row["leading"]
    ]
    return {"uncertainty.csv": images, "leading_classes.csv": classes}


def draw(rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, passes: int) -> Figure:
    """Draw each picture beside box plots of its leading classes over the passes."""
    figure, axes = common.panel_grid(len(rows), columns=2, per_line=3)
    for (left, right), row in zip(axes, rows, strict=True):
        title = f"MI {row['mutual_information']:.3f}, H {row['predictive_entropy']:.2f}\n{row['agreement']:.0%} agree"
        common.draw_picture(left, model, files[row["index"]].path, title)
        keys = ("whislo", "q1", "med", "q3", "whishi")
        boxes = [dict(zip(keys, c["quantiles"], strict=True), mean=c["mean"]) for c in row["leading"]]
        right.bxp(boxes, range(len(boxes)), orientation="horizontal", showfliers=False, widths=0.3, showmeans=True)
        right.plot([c["deterministic"] for c in row["leading"]], range(len(boxes)), "|", color="tab:red", markersize=12)
        for position, c in enumerate(row["leading"]):
            name = common.short(model.categories[c["class"]])
            label = f"{name}  {c['mean']:.3f} ± {c['standard_deviation'] or 0:.3f}"
            right.text(0.0, position - 0.27, label, fontsize=6.5, parse_math=False)
        right.set(xlim=(-0.03, 1.03), ylim=(len(boxes) - 0.5, -0.75), yticks=[])
        right.set_box_aspect(0.95)
        right.tick_params(labelsize=6)
        right.spines[["top", "right"]].set_visible(False)
    common.draw_title(
        figure,
        f"{model.name}: {passes} passes with dropout on; the {len(rows)} most uncertain of {total} images, by mutual "
        "information (MI, nats; H: predictive entropy)",
        "class, mean ± standard deviation of its probability; "
        "box: quartiles, whiskers: least and largest, triangle: mean, red: the single deterministic pass",
    )
    return figure


def draw_order(rows: list[dict], files: list[common.ImageFile], model: common.Classifier, passes: int) -> Figure:
    """Draw the two parts of the predictive entropy for all images, ordered by mutual information."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(1, len(rows) + 1)
    keys = ("mutual_information", "predictive_entropy", "deterministic_entropy")
    mutual, predictive, single = (np.array([row[key] for row in rows]) for key in keys)
    edges = np.arange(len(rows) + 1) + 0.5
    # one artist for all images: a bar each would take minutes and gigabytes for 50,000
    axes.stairs(mutual, edges, fill=True, label="mutual information: the passes disagree")
    label = "expected entropy: each pass is unsure"
    axes.stairs(predictive, edges, baseline=mutual, fill=True, color="lightsteelblue", label=label)
    axes.plot(places, single, "r_", label="entropy of the single deterministic pass")
    if len(rows) <= 40:
        names = [common.short(row["path"].rpartition("/")[2], 20) for row in rows]
        axes.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
    axes.set(xlabel="images, ordered by mutual information", ylabel="predictive entropy (nats)")
    axes.set_ylim(0, 1.45 * predictive.max() or 1)  # room for the legend
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.set_title(f"{model.name}: predictive entropy of {len(rows)} images over {passes} passes", fontsize=9)
    return figure


def main() -> None:
    parser = common.exercise_parser(__doc__, "images", "--limit", "--strict")
    parser.add_argument(
        "--passes", default=100, type=common.positive, metavar="T", help="number of forward passes with dropout on"
    )
    parser.add_argument(
        "--dropout", type=float, metavar="P", help="dropout probability (0 < P < 1) for dropout layers whose own is 0"
    )
    options = parser.parse_args()
    if options.dropout is not None and not 0 < options.dropout < 1:
        raise common.UserError(f"--dropout must be above 0 and below 1, not {options.dropout}")
    files = common.test_images(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    if options.dropout is not None and not dropout.set_dropout(model, options.dropout):
        raise common.UserError(f"{model.name} has no dropout with p = 0 for --dropout to set: leave the option out")
    example = torch.empty(1, 3, model.input_size, model.input_size, device=options.device)
    share = dropout.passes_can_be_shared(model, example)  # one trial, so that all images are treated alike

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        generators = common.seeded_generators(options.seed, (file.index for file in batch))
        single, logits = single_and_mc_logits(model, images, options.passes, generators, share)  # (T, N, classes)
        return (uncertainty(logits[:, n], single[n]) for n in range(len(batch)))

    rows, skipped = common.explain_images(model, files, explain, options, output)
    ordered = sorted(rows, key=lambda row: (-row["mutual_information"], row["index"]))
    figure = draw(ordered[: options.show], len(rows), files, model, options.passes)
    common.save_figure(figure, output.file("mc_dropout.png"))
    common.save_figure(draw_order(ordered, files, model, options.passes), output.file("uncertainty.png"))
    results = summary(rows, options.passes, len(model.categories))
    output.finish(rows, skipped, results, tables(rows, ordered, model.categories), model)


if __name__ == "__main__":
    run(main)
