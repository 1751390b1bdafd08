"""2f: which pixels did the network look at, seen through guided backpropagation?

The class saliency map again, but on the way back every rectifier lets only positive signals pass:
R_in = 1[0 < x] * 1[0 < R_out] * R_out (Springenberg et al. 2015, Striving for Simplicity, section
3.4). The map is less noisy, and less faithful: it depends little on the upper layers (Adebayo et
al. 2018, Sanity Checks for Saliency Maps), so read it as "which edges", not as "why": the second
figure randomises the network's layers from the top down and shows how much of each map survives.

    python 2f_guided_saliency.py                # the dataset's test images
    python 2f_guided_saliency.py photo.jpg      # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import common

# Standard deviation of the noise on the picture, in pixel values, that a map should not change with
NOISE = 0.02

# Where each rectifier has its input, the ends of its open interval, and whether it works in place.
# Only those that begin at 0 are rectifiers; `None` as an end is infinity.
RECTIFIERS: dict[str, Callable] = {
    "relu": lambda input, inplace=False: (input, 0, None, inplace),
    "relu6": lambda input, inplace=False: (input, 0, 6, inplace),
    "hardtanh": lambda input, min_val=-1.0, max_val=1.0, inplace=False: (input, min_val, max_val, inplace),
    "clamp": lambda input, min=None, max=None, **_: (input, min, max, False),
    "clip": lambda input, min=None, max=None, **_: (input, min, max, False),
    "clamp_min": lambda input, min, **_: (input, min, None, False),
    "threshold": lambda input, threshold, value, inplace=False: (
        (input, 0, None, inplace) if threshold == value == 0 else (input, None, None, inplace)
    ),
    "maximum": lambda input, other, **_: (input, other, None, False),
    "max": lambda input, *other, **_: (input, *(other or (None,))[:1], None, False),
}

# Their own derivative is 0 at both ends. clamp's is 1 there, and maximum's a half.
OPEN = {"relu", "relu6", "hardtanh", "threshold"}

# These have no half on which they are flat at 0: they are left as they are, and counted.
OTHER_ACTIVATIONS = {
    *("leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish"),
    *("softplus", "softsign", "sigmoid", "hardsigmoid", "logsigmoid", "tanh", "glu"),
}


class _GuidedMode(TorchFunctionMode):
    """Sees every torch function that runs; the gradient that arrives at a rectifier's output loses its negative part.

    The other half of the rule, that the signal stops where the input is outside the open interval,
    is the rectifier's own derivative. What is hooked is the output's place in this one graph: no
    module changes, other readers of the input keep their gradient, and the hook goes with the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rectifiers: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        spelling = getattr(function, "__name__", "")
        name = spelling.strip("_")  # relu_ works in place, F.threshold calls itself _threshold
        found = _rectifier(name, args, kwargs)
        if found is None:
            if name in OTHER_ACTIVATIONS and _on_the_path(args):
                self.others[name] += 1
            return function(*args, **kwargs)
        self.rectifiers[name] += 1
        input, high, in_place = found
        in_place = in_place or spelling.endswith("_")
        if name in OPEN and not (in_place and input._is_view()):
            output = function(*args, **kwargs)
            output.register_hook(_positive)
            return output
        # in place on a view: a hook there would miss the gradient that comes through the view's base
        output = _rectify(input.clone() if in_place else input, high)
        output.register_hook(_positive)
        return input.copy_(output) if in_place else output


def _rectifier(name: str, args: tuple, kwargs: dict) -> tuple[Tensor, float | None, bool] | None:
    """(input, upper end, in place?) where this call is a rectifier that the image's signal passes, else None."""
    if name not in RECTIFIERS or not _on_the_path((*args, *kwargs.values())):
        return None
    input, low, high, in_place = RECTIFIERS[name](*args, **kwargs)
    if name in ("max", "maximum") and isinstance(low, Tensor) and _is_zero(input):
        input, low = low, input
    if not _is_zero(low) or (name == "max" and not isinstance(low, Tensor)):  # x.max(0) reduces dimension 0
        return None
    if name in ("max", "maximum"):
        input = input.expand(torch.broadcast_shapes(input.shape, low.shape))
    return input, high, in_place


def _rectify(input: Tensor, high: float | Tensor | None) -> Tensor:
    """The rectifier, by an operation whose own derivative is 0 at both ends, as the open interval asks."""
    if high is None:
        return F.threshold(input, 0, 0)
    if isinstance(high, Tensor):
        return torch.where(input < high, F.threshold(input, 0, 0), high)
    return F.hardtanh(input, 0, high)


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.requires_grad and not value.any()
    return isinstance(value, (int, float)) and value == 0


def _on_the_path(values: tuple) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _positive(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0)


@contextmanager
def guided_rectifiers() -> Iterator[_GuidedMode]:
    """Inside, every forward pass is recorded with guided backpropagation's rule for its rectifiers.

    Yields the counts of what was met: `.rectifiers` and `.others` (activations left as they are).
    Raises UserError at the end where no rectifier was met: the gradient would be the plain one
    under another name. Springenberg et al. 2015, section 3.4.
    """
    with _GuidedMode() as seen:
        yield seen
    if not seen.rectifiers:
        others = ", ".join(sorted(seen.others)) or "no activation at all"
        raise common.UserError(
            f"guided backpropagation is a rule for rectifiers, and this network has none ({others}): "
            "use 2e_saliency.py, or a network with ReLU"
        )


def guided_gradient(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, _GuidedMode]:
    """As `common.class_score_gradient`, by guided backpropagation: gradient (N, 3, H, W), and what was met."""
    for module in model.modules():
        if isinstance(module, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)):
            raise common.UserError(
                f"the operations inside a {type(module).__name__} cannot be seen: give the network as it was "
                "before torch.jit.script, torch.jit.trace or torch.compile"
            )
    with guided_rectifiers() as seen:
        gradient, _ = common.class_score_gradient(model, images, classes)
    return gradient, seen


def guided_saliency_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """images (N, 3, H, W) in [0, 1], classes (N,) -> guided saliency maps (N, H, W).

    Springenberg et al. 2015, section 3.4, reduced over channels as in Simonyan et al. 2014, section
    3.1. Raises UserError for a class out of range, and for a network without rectifiers or whose
    operations cannot be seen.
    """
    gradient, _ = guided_gradient(model, images, classes)
    return gradient.abs().amax(1)


def both_maps(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[np.ndarray, _GuidedMode]:
    """Plain and guided saliency maps (2, N, H, W), and what the guided pass met."""
    plain, _ = common.class_score_gradient(model, images, classes)
    guided, seen = guided_gradient(model, images, classes)
    return torch.stack([plain, guided]).abs().amax(2).cpu().numpy(), seen


def randomised_layers(model: nn.Module, image: Tensor, stages: int) -> list[list[tuple[str, nn.Module]]]:
    """The layers with parameters of their own, last executed first, in at most `stages` groups of like size."""
    order: dict[nn.Module, str] = {}
    names = {
        module: name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    hooks = [m.register_forward_hook(lambda m, *_: order.setdefault(m, names[m]) and None) for m in names]
    try:
        with common.evaluation_mode(model), torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    layers = [(name, module) for module, name in reversed(order.items())]
    count = min(stages, len(layers))
    return [layers[len(layers) * k // count : len(layers) * (k + 1) // count] for k in range(count)]


def cascading_randomisation(
    model: nn.Module, images: Tensor, classes: Tensor, stages: int, generator: torch.Generator
) -> tuple[list[str], list[list[list[float | None]]]]:
    """Randomise the layers from the top down, and see how much of the maps survives.

    images (N, 3, H, W), classes (N,) -> the lowest layer randomised at each stage, and the rank
    correlation of plain and guided maps with those of the intact model, [stage][plain, guided][n];
    None where a map is constant or not finite. Every parameter is drawn anew from the normal
    distribution with its own mean and standard deviation, so that activations keep their scale.
    Works on a copy of the model. Adebayo et al. 2018, section 3.1 (there: a new initialisation).
    """
    model = copy.deepcopy(model)
    intact, _ = both_maps(model, images, classes)
    names, correlations = [], []
    for layers in randomised_layers(model, images[:1], stages):
        for _, module in layers:
            for parameter in module.parameters(recurse=False):
                spread = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
                drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.detach().copy_(drawn * spread + parameter.mean())
        names.append(layers[-1][0])
        kinds = zip(both_maps(model, images, classes)[0], intact, strict=True)
        correlations.append([[rank_correlation(*pair) for pair in zip(now, then, strict=True)] for now, then in kinds])
    return names, correlations


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, over all pixels; None where a map is constant or not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all() and np.ptp(a) and np.ptp(b)):
        return None
    return float(spearmanr(a, b, axis=None).statistic)


def main() -> None:
    parser = common.option_parser(
        __doc__,
        *("images", "--classes", "--dataset", "--output", "--model", "--weights", "--device"),
        *("--batch-size", "--seed", "--limit", "--strict", "--show"),
    )
    parser.add_argument(
        "--stages", default=12, type=common.positive, metavar="N", help="steps in which the layers are randomised"
    )
    parser.add_argument(
        "--randomise", default=8, type=int, metavar="N", help="randomise for the first N images; 0 leaves it out"
    )
    options = parser.parse_args()
    files = common.test_images(options)
    report = common.Report(options, __file__)
    model = common.load_from_options(options)
    asked = common.classes_asked(options.classes, files, model.categories)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes, rows = common.explained_classes(model, images, [asked[file.index] for file in batch])
        generators = common.streams(options.seed, (file.index for file in batch))
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images)
        maps, seen = both_maps(model, images, classes)
        noisy_maps, _ = both_maps(model, images + NOISE * noise, classes)
        for n, (file, row) in enumerate(zip(batch, rows, strict=True)):
            pair = maps[:, n]  # (2, H, W): plain, guided
            for kind, saliency, noisy in zip(("plain", "guided"), pair, noisy_maps[:, n], strict=True):
                row.update({f"{kind}_{key}": value for key, value in common.describe_map(saliency).items()})
                row[f"{kind}_stability"] = rank_correlation(saliency, noisy)
            row["rank_correlation"] = rank_correlation(*pair)
            row["rectifiers"], row["left_as_they_are"] = dict(seen.rectifiers), dict(seen.others)
            common.write_array(report.path(map_name(file.index)), pair)
        tested = sum(file.index < options.randomise for file in batch)
        if tested:
            generator = torch.Generator().manual_seed(options.seed)  # the same random layers for every batch
            layers, left = cascading_randomisation(model, images[:tested], classes[:tested], options.stages, generator)
            for n, row in enumerate(rows[:tested]):
                curves = {kind: [stage[k][n] for stage in left] for k, kind in enumerate(("plain", "guided"))}
                row["randomised"] = {"down_to": layers, **curves}
        return rows

    rows, skipped = common.explain_images(model, files, explain, options)
    results = summary(rows)
    figure = draw(rows[: options.show], results, files, model, report)
    common.save_figure(figure, report.path("guided_saliency.png"))
    if "randomised" in results:
        common.save_figure(draw_randomised(rows, results, model), report.path("randomisation.png"))
    hidden = ("notes", "rectifiers", "left_as_they_are", "randomised")
    table = [
        {"name": model.categories[row["class"]], **{k: v for k, v in row.items() if k not in hidden}} for row in rows
    ]
    report.finish(rows, skipped, results, {"guided_saliency.csv": table}, model)


def map_name(index: int) -> str:
    return f"maps/{index:05d}.npy"


def summary(rows: list[dict]) -> dict:
    """The metrics, from sums over rows: guided beside plain, its yardstick."""
    good = [row for row in rows if row["plain_status"] == row["guided_status"] == "ok"]
    keys = [
        f"{kind}_{measure}" for measure in ("half_mass_area", "roughness", "stability") for kind in ("plain", "guided")
    ]
    return {
        "maps": len(rows),
        "plain_status": dict(Counter(row["plain_status"] for row in rows)),
        "guided_status": dict(Counter(row["guided_status"] for row in rows)),
        **{f"mean_{key}": mean_known(row[key] for row in good) for key in (*keys, "rank_correlation")},
        "rectifiers": rows[0]["rectifiers"],
        "left_as_they_are": rows[0]["left_as_they_are"],
        **(
            {"randomised": survival(tested)}
            if (tested := [row["randomised"] for row in rows if "randomised" in row])
            else {}
        ),
    }


def mean_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def survival(tested: list[dict]) -> list[dict]:
    """Per stage of randomisation: how many maps could be compared, and their mean rank correlation."""
    stages = []
    for k, name in enumerate(tested[0]["down_to"]):
        stage: dict[str, Any] = {"down_to": name}
        for kind in ("plain", "guided"):
            stage[f"{kind}_maps"] = sum(row[kind][k] is not None for row in tested)
            stage[kind] = mean_known(row[kind][k] for row in tested)
        stages.append(stage)
    return stages


def draw(rows: list[dict], results: dict, files: list[common.ImageFile], model: common.Classifier, report) -> Figure:
    """Picture, plain map, guided map, the two maps of a picture on one scale."""
    figure, axes = common.panel_grid(len(rows), columns=3, per_line=2)
    for (left, middle, right), row in zip(axes, rows, strict=True):
        picture = model.preprocess(common.read_image(files[row["index"]].path))
        pair = np.load(report.folder / map_name(row["index"]))
        good = [m for m, kind in zip(pair, ("plain", "guided"), strict=True) if row[f"{kind}_status"] == "ok"]
        white = max((np.percentile(m, common.MAP_PERCENTILE) for m in good), default=1.0)
        name = common.short(model.categories[row["class"]])
        common.draw_image(left, picture, f"{name}\np = {row['probability']:.3f}, rank {row['rank'] + 1}")
        common.draw_map(middle, pair[0], white, f"plain\nbrightest ≥ {white:.2g}", row["plain_status"])
        common.draw_map(right, pair[1], white, f"guided\nbrightest ≥ {white:.2g}", row["guided_status"])
    left_alone = ", ".join(f"{n} {name}" for name, n in results["left_as_they_are"].items())
    common.draw_title(
        figure,
        f"{model.name}: saliency maps by plain and by guided backpropagation ({sum(results['rectifiers'].values())} "
        f"rectifiers guided{f'; left as they are: {left_alone}' if left_alone else ''})",
        f"one scale for both maps of a picture: linear from 0 (black) to the larger {common.MAP_PERCENTILE}th "
        f"percentile; {len(rows)} of {results['maps']} images",
        "guided maps depend little on the upper layers (Adebayo et al. 2018): they show edges, not reasons",
    )
    return figure


def draw_randomised(rows: list[dict], results: dict, model: common.Classifier) -> Figure:
    """Rank correlation with the intact network's maps, as its layers are randomised from the top down."""
    stages = results["randomised"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    tested = [row["randomised"] for row in rows if "randomised" in row]
    for kind, colour in (("plain", "tab:blue"), ("guided", "tab:orange")):
        for row in tested:
            axes.plot([1.0, *(np.nan if r is None else r for r in row[kind])], color=colour, alpha=0.2, linewidth=0.8)
        means = [1.0, *(np.nan if stage[kind] is None else stage[kind] for stage in stages)]
        axes.plot(means, "o-", color=colour, label=f"{kind} saliency map", markersize=4)
    axes.axhline(0, color="gray", linewidth=0.8, linestyle="--", label="chance")
    names = ["none", *(stage["down_to"].removeprefix("network.") for stage in stages)]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set(xlabel="layers randomised, from the output down to", ylabel="rank correlation with the intact map")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(
        f"{model.name}: what is left of the maps when layers are randomised (Adebayo et al. 2018)\n"
        f"mean over {len(tested)} images, thin: each image; a faithful map falls at once",
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    common.run(main)
