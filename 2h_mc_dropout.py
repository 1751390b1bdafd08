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

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from explain.shell import run

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import common

TOP = 5  # leading classes, by mean probability, whose spread is kept
# Passes run together, as many as keep the first dropout's input of one image below this many numbers
# (16 MB). A rule without the batch in it: an image's masks must not depend on its company.
NUMBERS_TOGETHER = 1 << 22

# Where each dropout has its input and its probability.
DROPOUTS: dict[str, Callable] = {
    name: lambda input, p=0.5, *_, **__: (input, p)
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
    + ("alpha_dropout", "feature_alpha_dropout")
}
WHOLE_CHANNELS = {"dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_alpha_dropout"}
# Attention that drops its weights by itself, and the place of the probability among its arguments.
ATTENTION = {"multi_head_attention_forward": 10, "scaled_dot_product_attention": 4}
ALPHA = -1.7580993408473766  # SELU's limit at minus infinity: Klambauer et al. 2017, "New Dropout Technique"


class _CannotShareError(Exception):
    """A dropout's input has neither a row for each image nor one for each image and pass."""


class _DropoutMode(TorchFunctionMode):
    """Dropout on, wherever a forward pass calls it, by a module or a function, in training mode or not.

    `draw(shape)` gives uniform numbers for the mask of an input with this shape. In the one case,
    `rows` is None and the shape is the input's: a plain pass. In the other the passes share all that
    comes before the first dropout: an input of `rows` = N images grows there to (passes * N, ...),
    and the shape asked for is (passes, N, ...). With `single`, one pass more comes first in which
    nothing is dropped: the deterministic one.
    """

    def __init__(
        self,
        draw: Callable[[tuple[int, ...]], Tensor],
        rows: int | None = None,
        at_most: int = 1,
        single: bool = False,
    ):
        super().__init__()
        self.draw, self.rows, self.at_most, self.single = draw, rows, at_most, int(single)
        self.passes = 0  # that run together, known from the first dropout on
        self.probabilities: list[float] = []  # of every dropout met

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        spelling = getattr(function, "__name__", "")
        name = spelling.removesuffix("_")
        if name in ATTENTION:
            _refuse_hidden(kwargs.get("dropout_p", args[ATTENTION[name]] if len(args) > ATTENTION[name] else 0))
        if name not in DROPOUTS:
            return function(*args, **kwargs)
        input, p = DROPOUTS[name](*args, **kwargs)
        self.probabilities.append(p)
        if p == 0:
            return input
        output = self.drop(input, p, name)
        if spelling.endswith("_") or kwargs.get("inplace") or args[3:4] == (True,):
            # later readers of the input must see what was dropped; where the batch has just grown
            # they cannot, and the NaN makes such a reader known
            input.copy_(output) if input.shape == output.shape else input.fill_(torch.nan)
        return output

    def drop(self, input: Tensor, p: float, name: str) -> Tensor:
        if self.rows is not None:
            if not self.passes:
                of_one_image = max(1, input.numel() // self.rows)
                self.passes = min(self.at_most, max(1, NUMBERS_TOGETHER // of_one_image)) + self.single
            if len(input) == self.passes * self.rows:
                input = input.unflatten(0, (self.passes, self.rows))
            elif len(input) == self.rows:
                input = input[None].expand(self.passes, *input.shape)  # (passes, N, ...)
            else:
                raise _CannotShareError
        self.passes = self.passes or 1
        kept, input = input[: self.single], input[self.single :]
        batch = 1 if self.rows is None else 2  # dimensions before the channels
        shape = input.shape
        if name in WHOLE_CHANNELS:
            shape = (*shape[: batch + 1], *(1 for _ in shape[batch + 1 :]))
        mask = self.draw(tuple(shape)).ge_(p).to(input)  # 1 is kept; in place, like all below: memory is what it costs
        if "alpha" not in name:
            output = mask.mul_(1 / (1 - p) if p < 1 else 0)
            output = output.mul_(input) if shape == input.shape else output * input
        else:  # dropped values become ALPHA, then mean and variance are restored
            a = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5 if p < 1 else 0
            output = a * (input * mask + ALPHA * (1 - mask)) - a * ALPHA * p
        if self.single:
            output = torch.cat([kept, output])
        return output if self.rows is None else output.flatten(0, 1)


def passes_can_be_shared(model: nn.Module, images: Tensor) -> bool:
    """May the passes share what comes before the first dropout? Found by trying, with nothing dropped.

    The batch of two images that grows threefold at the first dropout must give the logits of the
    batch that does not. It does not where the two batches meet (a skip connection around the first
    dropout), where rows are paired by their place, where weights are dropped, or where the first
    dimension is none of images. The images (one or more) serve as examples.
    """
    pair = torch.stack([images[0], 1 - images[-1].flip(-1)])  # two that differ, whatever the images are

    def keep(shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape, device=images.device)

    with common.evaluation_mode(model), torch.inference_mode():
        with _DropoutMode(keep) as once:  # kept values are scaled by 1 / (1 - p) in both
            expected = model(pair.clone())  # (2, classes)
        if not any(once.probabilities):
            raise common.UserError(_no_dropout(model, once.probabilities))
        try:
            with _DropoutMode(keep, rows=2, at_most=3) as together:
                grown = model(pair.clone())
        except (_CannotShareError, RuntimeError, ValueError, IndexError, AssertionError):
            return False  # shapes that do not fit; an error of the model's own comes again in a whole pass
    if grown.shape != (together.passes * 2, *expected.shape[1:]):
        return False
    return torch.allclose(
        grown, expected.repeat(together.passes, 1), rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


def mc_dropout_logits(
    model: nn.Module,
    images: Tensor,
    passes: int,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    share: bool | None = None,
) -> Tensor:
    """images (N, 3, H, W) -> logits (passes, N, classes) with every dropout on, and only dropout.

    With a list of generators, one per image, an image's passes do not depend on the others in the
    batch; from a single one, a generator for each image is seeded. `share`: whether the passes
    share what comes before the first dropout; None finds out by `passes_can_be_shared`. Raises
    UserError for a network without active dropout, or with some that cannot be reached.
    Gal and Ghahramani 2016, section 4.
    """
    if generator is None or isinstance(generator, torch.Generator):
        seeds = torch.randint(1 << 62, (len(images),), generator=generator)
        generator = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    if len(generator) != len(images):
        raise common.UserError(f"{len(generator)} generators for {len(images)} images: give one, or one for each")
    _refuse_unreachable(model)
    if share is None:
        share = passes_can_be_shared(model, images)
    run = _shared_passes if share else _whole_passes
    with common.evaluation_mode(model), torch.inference_mode():
        return run(model, images, passes, list(generator))


def single_and_mc_logits(
    model: nn.Module, images: Tensor, passes: int, generators: list[torch.Generator], share: bool
) -> tuple[Tensor, Tensor]:
    """The deterministic pass's logits (N, classes) and `mc_dropout_logits`, from one pass through the features."""
    if not share:
        return common.predict_logits(model, images), mc_dropout_logits(model, images, passes, generators, share)
    _refuse_unreachable(model)
    with common.evaluation_mode(model), torch.inference_mode():
        logits = _shared_passes(model, images, passes, generators, single=True)
    return common.check_finite(logits[0]), logits[1:]


def _shared_passes(
    model: nn.Module, images: Tensor, passes: int, generators: list[torch.Generator], single: bool = False
) -> Tensor:
    """The features once for the N images, the rest of the network for (passes * N) rows; see `single` above."""

    def draw(shape: tuple[int, ...]) -> Tensor:  # (passes, N, ...)
        one = (shape[0], *shape[2:])
        return torch.stack([torch.rand(one, generator=g, device=g.device) for g in generators], 1).to(images.device)

    done: list[Tensor] = []
    while (missing := passes + single - sum(map(len, done))) > 0:
        first = single and not done
        with _DropoutMode(draw, len(images), missing - first, first) as mode:
            logits = model(images.clone())
        done.append(logits.unflatten(0, (mode.passes, len(images))))
    return torch.cat(done)


def _whole_passes(model: nn.Module, images: Tensor, passes: int, generators: list[torch.Generator]) -> Tensor:
    """Pass by pass and image by image: right for every network, whatever its dropouts are applied to."""
    columns = []
    for image, generator in zip(images, generators, strict=True):

        def draw(shape: tuple[int, ...], g: torch.Generator = generator) -> Tensor:
            return torch.rand(shape, generator=g, device=g.device).to(images.device)

        rows = []
        for _ in range(passes):
            with _DropoutMode(draw) as mode:
                rows.append(model(image[None].clone()))
        if not any(mode.probabilities):
            raise common.UserError(_no_dropout(model, mode.probabilities))
        columns.append(torch.cat(rows))
    return torch.stack(columns, 1)


def _refuse_unreachable(model: nn.Module) -> None:
    for module in model.modules():
        _refuse_hidden(getattr(_fused(module), "p", 0))
        _refuse_hidden(module.dropout if isinstance(module, nn.RNNBase) else 0)


def _refuse_hidden(p: float) -> None:
    if p > 0:
        raise common.UserError(
            f"this network has dropout (p = {p}) inside a fused operation (attention, recurrent layers), where no mask "
            "can be set: build it without"
        )


def _fused(module: nn.Module) -> nn.Module | None:
    """timm's attention dropout where the fused kernel, in which it cannot be switched on, takes its place."""
    return getattr(module, "attn_drop", None) if getattr(module, "fused_attn", False) else None


def _no_dropout(model: nn.Module, probabilities: list[float]) -> str:
    what = f"{len(probabilities)} dropouts, all with p = 0" if probabilities else "no dropout"
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        others = "timm/tf_efficientnet_b0, timm/mobilenetv3_small_100 or most others of timm with --dropout P"
    else:
        others = "torchvision's alexnet, vgg16, squeezenet1_0, googlenet, inception_v3, mobilenet_v2, efficientnet_b0"
    return (
        f"this network has {what}, so that all passes would be the same: give --dropout P where it has dropouts, "
        f"or use efficientnet_lite0, {others}"
    )


def set_dropout(model: nn.Module, p: float) -> int:
    """Give every dropout of a network that has p = 0 the probability p; returns how many there were.

    torchvision's and timm's networks keep p in modules, or as a number `drop_rate`. What a fused
    attention kernel would drop stays off.
    """
    hidden = {_fused(module) for module in model.modules()}
    count = 0
    for module in model.modules():
        if module in hidden:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0:
            module.p, count = p, count + 1
        elif getattr(module, "drop_rate", None) == 0:
            module.drop_rate, count = p, count + 1
    return count


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats over the last axis; 0 log 0 is 0."""
    return -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(-1)


def uncertainty(logits: Tensor, deterministic: Tensor) -> dict[str, Any]:
    """What the passes (T, classes) of one image say, beside the deterministic pass (classes,)."""
    p = logits.double().softmax(1).cpu().numpy()  # (T, classes)
    single = deterministic.double().softmax(0).cpu().numpy()
    mean = p.mean(0)
    leading = np.argsort(-mean, kind="stable")[:TOP]
    predictive, expected = float(entropy(mean)), float(entropy(p).mean())
    return {
        "class": int(leading[0]),
        "deterministic_class": int(single.argmax()),
        "deterministic_probability": float(single.max()),
        "deterministic_entropy": float(entropy(single)),
        "mean_probability": float(mean[leading[0]]),
        "variance": float(p[:, leading[0]].var(ddof=1)) if len(p) > 1 else None,
        "agreement": float((p.argmax(1) == leading[0]).mean()),
        "predictive_entropy": predictive,
        "mutual_information": max(predictive - expected, 0.0),  # below 0 by rounding alone
        "leading": [
            {
                "class": int(c),
                "mean": float(mean[c]),
                "standard_deviation": float(p[:, c].std(ddof=1)) if len(p) > 1 else None,
                "deterministic": float(single[c]),
                "quantiles": [float(q) for q in np.quantile(p[:, c], (0, 0.25, 0.5, 0.75, 1))],
            }
            for c in leading
        ],
    }


def main() -> None:
    parser = common.option_parser(
        __doc__,
        *("images", "--dataset", "--output", "--model", "--weights", "--device", "--threads"),
        *("--batch-size", "--seed", "--limit", "--strict", "--show", "--shard", "--merge", "--fresh"),
    )
    parser.add_argument("--passes", default=100, type=common.positive, metavar="T", help="passes with dropout on")
    parser.add_argument(
        "--dropout", type=float, metavar="P", help="p for the dropouts whose own is 0, above 0, below 1"
    )
    options = parser.parse_args()
    if options.dropout is not None and not 0 < options.dropout < 1:
        raise common.UserError(f"--dropout {options.dropout} is no probability between 0 and 1")
    files = common.test_images(options)
    report = common.Report(options, __file__)
    model = common.load_from_options(options)
    if options.dropout is not None and not set_dropout(model, options.dropout):
        raise common.UserError(f"{model.name} has no dropout with p = 0 for --dropout to set: leave the option out")

    # decided once, not on the user's images, so that it is the same for all of them
    size = (2, 3, model.input_size, model.input_size)
    share = passes_can_be_shared(model, torch.rand(size, generator=torch.Generator().manual_seed(0)).to(options.device))

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        generators = common.seeded_generators(options.seed, (file.index for file in batch))
        single, logits = single_and_mc_logits(model, images, options.passes, generators, share)  # (T, N, classes)
        return (uncertainty(logits[:, n], single[n]) for n in range(len(batch)))

    rows, skipped = common.explain_images(model, files, explain, options, report)
    if not rows:
        return  # other shards are still at work; the last of them goes on from here
    ordered = sorted(rows, key=lambda row: (-row["mutual_information"], row["index"]))
    shown = ordered[: options.show]
    common.save_figure(draw(shown, len(rows), files, model, options.passes), report.path("mc_dropout.png"))
    common.save_figure(draw_order(ordered, files, model, options.passes), report.path("uncertainty.png"))
    table = [
        {
            "order": order,
            "name": model.categories[row["class"]],
            "deterministic_name": model.categories[row["deterministic_class"]],
            **{k: v for k, v in row.items() if k not in ("leading", "notes")},
        }
        for order, row in enumerate(ordered, start=1)
    ]
    spread = [
        {"index": row["index"], "path": row["path"], "name": model.categories[c["class"]]}
        | {k: v for k, v in c.items() if k != "quantiles"}
        | dict(zip(("min", "quartile_1", "median", "quartile_3", "max"), c["quantiles"], strict=True))
        for row in rows
        for c in row["leading"]
    ]
    tables = {"uncertainty.csv": table, "leading_classes.csv": spread}
    report.finish(rows, skipped, summary(rows, options.passes, len(model.categories)), tables, model)


def summary(rows: list[dict], passes: int, classes: int) -> dict:
    """The metrics, from sums over rows."""
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


def draw(rows: list[dict], total: int, files: list[common.ImageFile], model: common.Classifier, passes: int) -> Figure:
    """Each picture beside the box plots of its leading classes over the passes."""
    figure, axes = common.panel_grid(len(rows), columns=2, per_line=3)
    for (left, right), row in zip(axes, rows, strict=True):
        title = f"MI {row['mutual_information']:.3f}, H {row['predictive_entropy']:.2f}\n{row['agreement']:.0%} agree"
        common.draw_picture(left, model, files[row["index"]].path, title)
        boxes = [
            dict(zip(("whislo", "q1", "med", "q3", "whishi"), c["quantiles"], strict=True), mean=c["mean"])
            for c in row["leading"]
        ]
        positions = range(len(boxes))
        right.bxp(boxes, positions, orientation="horizontal", showfliers=False, widths=0.3, showmeans=True)
        right.plot([c["deterministic"] for c in row["leading"]], positions, "|", color="tab:red", markersize=12)
        for position, c in zip(positions, row["leading"], strict=True):
            name = common.short(model.categories[c["class"]])
            right.text(
                0.0,
                position - 0.27,
                f"{name}  {c['mean']:.3f} ± {c['standard_deviation'] or 0:.3f}",
                fontsize=6.5,
                parse_math=False,
            )
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
    """All images ordered by uncertainty: the two parts of the predictive entropy."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(1, len(rows) + 1)
    mutual = np.array([row["mutual_information"] for row in rows])
    expected = np.array([row["predictive_entropy"] for row in rows]) - mutual
    edges = np.arange(len(rows) + 1) + 0.5
    # one artist for all images: a bar each would take minutes and gigabytes for 50,000
    axes.stairs(mutual, edges, fill=True, label="mutual information: the passes disagree")
    axes.stairs(
        mutual + expected,
        edges,
        baseline=mutual,
        fill=True,
        color="lightsteelblue",
        label="expected entropy: each pass is unsure",
    )
    axes.plot(
        places, [row["deterministic_entropy"] for row in rows], "r_", label="entropy of the single deterministic pass"
    )
    if len(rows) <= 40:
        axes.set_xticks(
            places,
            [common.short(row["path"].rpartition("/")[2], 20) for row in rows],
            rotation=90,
            fontsize=7,
            parse_math=False,
        )
    axes.set(xlabel="images, ordered by mutual information", ylabel="predictive entropy (nats)")
    axes.set_ylim(0, 1.45 * (mutual + expected).max() or 1)  # room for the legend
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.set_title(f"{model.name}: predictive entropy of {len(rows)} images over {passes} passes", fontsize=9)
    return figure


if __name__ == "__main__":
    run(main)
