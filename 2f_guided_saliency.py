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
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from explain.shell import run

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import common

# Standard deviation of the noise on the picture, in pixel values, that a map should not change with
NOISE = 0.02

# The kinds of nodes in autograd's graph whose operations have no flat half: left as they are, and counted
OTHER_ACTIVATIONS = {
    *("LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Gelu", "Silu", "Mish", "Hardswish"),
    *("Softplus", "Sigmoid", "Hardsigmoid", "LogSigmoid", "Tanh", "Glu", "Hardtanh", "Threshold"),
}
# Nodes that stand for many operations, of which none can be seen: torch.jit, torch.compile, reentrant checkpoints
OPAQUE = ("torch::jit", "CompiledFunction", "CheckpointFunction")


class _GuidedMode(TorchFunctionMode):
    """Guided backpropagation as a rule for an operation: hooks on the graph's own nodes, whatever made them.

    A hook on a module misses `F.relu`, ReLU6 and rectifiers inside functions. Autograd's graph has
    a node for each rectifier that the signal passes, in whatever form it was called; when a gradient
    is asked for inside the `with` block, those nodes get the rule for this one backward pass. No
    module changes, and other readers of a rectifier's input keep their gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backward_passes = 0
        self.rectifiers: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.autograd.grad, Tensor.backward):
            with self.hooked(args[0] if args else kwargs["outputs"]):
                return function(*args, **kwargs)
        name = getattr(function, "__name__", "").strip("_")
        if name in ("relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "threshold") and _is_view(args):
            # written in place, a view has one node with its base, which hides the operation: write a copy instead
            fresh = args[0].clone()
            output = function(fresh, *args[1:], **kwargs)
            return args[0].copy_(output) if output is fresh else output
        return function(*args, **kwargs)

    @contextmanager
    def hooked(self, outputs: Tensor | Sequence[Tensor]) -> Iterator[None]:
        """The rule on every rectifier behind `outputs`, until the end of the block."""
        self.backward_passes += 1
        handles = []
        try:
            for node in graph_nodes([outputs] if isinstance(outputs, Tensor) else outputs):
                own = isinstance(node, torch.autograd.function.BackwardCFunction)  # a custom autograd.Function
                kind = (type(node).__name__ if own else node.name()).split("Backward")[0]
                if kind.startswith(OPAQUE):
                    raise common.UserError(
                        f"the operations inside {kind} cannot be seen: give the network as it was "
                        "before torch.jit, torch.compile or checkpointing"
                    )
                name = re.sub("(?<!^)(?=[A-Z])", "_", kind).lower()
                if is_rectifier(kind, node):
                    handles.append(node.register_prehook(partial(self.guide, name, kind, node)))
                elif own or kind in OTHER_ACTIVATIONS:
                    handles.append(node.register_prehook(partial(self.count, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def guide(self, name: str, kind: str, node: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The rule's part that is not the rectifier's own derivative: only positive signals pass."""
        self.rectifiers[name] += 1  # here, so that only what lies between the image and the score counts
        (signal,) = gradients
        signal = signal.clamp(min=0)
        # at its ends, where the open interval has none, clamp has a derivative of 1 and maximum of a half
        if kind.startswith("Clamp"):
            signal = signal * (node._saved_self > node._saved_min)
            if (high := getattr(node, "_saved_max", None)) is not None:
                signal = signal * (node._saved_self < high)
        elif kind in ("Maximum", "Fmax"):
            signal = signal * (torch.maximum(node._saved_self, node._saved_other) > 0)
        return (signal,)

    def count(self, name: str, gradients: tuple[Tensor, ...]) -> None:
        self.others[name] += 1


def is_rectifier(kind: str, node: Any) -> bool:
    """Is this node of the graph a rectifier, that is, flat below 0 and beginning at 0?"""
    if kind in ("Relu", "Hardtanh", "Threshold"):
        return getattr(node, {"Hardtanh": "_saved_min_val", "Threshold": "_saved_threshold"}.get(kind, ""), 0) == 0
    if kind in ("Clamp", "ClampMin"):
        low = node._saved_min
        return low is not None and not (low.any() or low.requires_grad if isinstance(low, Tensor) else low)
    if kind == "LeakyRelu":
        return node._saved_negative_slope == 0
    if kind in ("Maximum", "Fmax"):
        constants = [
            value
            for value, (source, _) in zip((node._saved_self, node._saved_other), node.next_functions, strict=True)
            if source is None
        ]
        return any(not value.any() for value in constants)
    return False


def graph_nodes(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of autograd's graph behind the tensors, once."""
    todo, seen = [output.grad_fn for output in outputs], {None}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [source for source, _ in node.next_functions]
            yield node


def _is_view(args: tuple) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].requires_grad and args[0]._is_view()


@contextmanager
def guided_rectifiers() -> Iterator[_GuidedMode]:
    """Inside, `torch.autograd.grad` and `Tensor.backward` go by guided backpropagation's rule.

    Yields the counts of what the signal passed: `.rectifiers` and `.others` (activations, and custom
    autograd.Functions, left as they are). Raises UserError at the end where there was no rectifier:
    the gradient would be the plain one under another name. Springenberg et al. 2015, section 3.4.
    """
    with _GuidedMode() as seen:
        yield seen
    if not seen.backward_passes:
        raise common.UserError("no gradient was taken inside guided_rectifiers(): call torch.autograd.grad there")
    if not seen.rectifiers:
        others = ", ".join(sorted(seen.others)) or "no activation at all"
        raise common.UserError(
            f"guided backpropagation is a rule for rectifiers, and this network has none ({others}): "
            "use 2e_saliency.py, or a network with ReLU"
        )


def guided_gradient(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, _GuidedMode]:
    """As `common.class_score_gradient`, by guided backpropagation: gradient (N, 3, H, W), and what was met."""
    _refuse_opaque(model)
    with guided_rectifiers() as seen:
        gradient, _ = common.class_score_gradient(model, images, classes)
    return gradient, seen


def _refuse_opaque(model: nn.Module) -> None:
    for module in model.modules():  # their first passes may leave single nodes, later ones do not
        if isinstance(module, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)):
            raise common.UserError(
                f"the operations inside a {type(module).__name__} cannot be seen: give the network as it was "
                "before torch.jit or torch.compile"
            )


def guided_saliency_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """images (N, 3, H, W) in [0, 1], classes (N,) -> guided saliency maps (N, H, W).

    Springenberg et al. 2015, section 3.4, reduced over channels as in Simonyan et al. 2014, section
    3.1. Raises UserError for a class out of range, and for a network without rectifiers or whose
    operations cannot be seen.
    """
    gradient, _ = guided_gradient(model, images, classes)
    return gradient.abs().amax(1)


def both_maps(
    model: nn.Module, images: Tensor, asked: Sequence[int | None]
) -> tuple[np.ndarray, Tensor, Tensor, _GuidedMode]:
    """Plain and guided saliency maps (2, N, H, W) from one forward pass.

    `asked` are class ids, None for an image's likeliest. Also returns the logits (N, classes), the
    classes (N,), and what the guided backward pass met.
    """
    _refuse_opaque(model)
    with common.evaluation_mode(model):
        with guided_rectifiers() as seen:
            leaf, logits = common.logits_with_graph(model, images)
            classes = common.chosen_classes(logits, asked)
            guided = common.input_gradient(leaf, logits, classes, once_more=True)
        plain = common.input_gradient(leaf, logits, classes)
    maps = torch.stack([plain, guided]).abs().amax(2).cpu().numpy()
    return maps, logits.detach(), classes, seen


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
    intact, *_ = both_maps(model, images, classes.tolist())
    names, correlations = [], []
    for layers in randomised_layers(model, images[:1], stages):
        for _, module in layers:
            for parameter in module.parameters(recurse=False):
                spread = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
                drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.detach().copy_(drawn * spread + parameter.mean())
        names.append(layers[-1][0])
        kinds = zip(both_maps(model, images, classes.tolist())[0], intact, strict=True)
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
        *("images", "--classes", "--dataset", "--output", "--model", "--weights", "--device", "--threads"),
        *("--batch-size", "--seed", "--limit", "--strict", "--show", "--shard", "--merge", "--fresh"),
    )
    parser.add_argument(
        "--stages", default=12, type=common.positive, metavar="N", help="steps in which the layers are randomised"
    )
    parser.add_argument(
        "--randomise",
        default=8,
        type=common.whole,
        metavar="N",
        help="randomise for the first N images; 0 leaves it out",
    )
    options = parser.parse_args()
    files = common.test_images(options)
    report = common.Report(options, __file__)
    model = common.load_from_options(options)
    asked = common.classes_asked(options.classes, files, model.categories)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> Iterator[dict]:
        maps, logits, classes, seen = both_maps(model, images, [asked[file.index] for file in batch])
        rows = common.describe_classes(logits, classes)
        generators = common.seeded_generators(options.seed, (file.index for file in batch))
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images)
        noisy_maps, *_ = both_maps(model, images + NOISE * noise, classes.tolist())
        randomised = randomise(images, batch, classes)
        for n, (file, row) in enumerate(zip(batch, rows, strict=True)):
            pair = maps[:, n]  # (2, H, W): plain, guided
            for kind, saliency, noisy in zip(("plain", "guided"), pair, noisy_maps[:, n], strict=True):
                row.update({f"{kind}_{key}": value for key, value in common.describe_map(saliency).items()})
                row[f"{kind}_stability"] = rank_correlation(saliency, noisy)
            row["rank_correlation"] = rank_correlation(*pair)
            row["rectifiers"], row["left_as_they_are"] = dict(seen.rectifiers), dict(seen.others)
            if n in randomised:
                row["randomised"] = randomised[n]
            name = common.map_name(file.index)
            common.write_array(report.path(name), pair)
            yield {**row, "files": [name]}

    def randomise(images: Tensor, batch: list[common.ImageFile], classes: Tensor) -> dict[int, dict]:
        """The cascade for the batch's images with an index below --randomise, by their place in the batch."""
        places = [n for n, file in enumerate(batch) if file.index < options.randomise]
        if not places:
            return {}
        # one shape, however many they are (see common.explain_batches)
        shape = min(options.randomise, len(batch))
        places = common.pad(places, shape)[:shape]
        generator = torch.Generator().manual_seed(options.seed)  # the same random layers for every batch
        layers, left = cascading_randomisation(model, images[places], classes[places], options.stages, generator)
        curves = [
            {kind: [stage[k][n] for stage in left] for k, kind in enumerate(("plain", "guided"))} for n in range(shape)
        ]
        return {place: {"down_to": layers, **curve} for place, curve in zip(places, curves, strict=True)}

    rows, skipped = common.explain_images(model, files, explain, options, report)
    if not rows:
        return  # other shards are still at work; the last of them goes on from here
    results = summary(rows)
    figure = draw(rows[: options.show], results, files, model, report)
    common.save_figure(figure, report.path("guided_saliency.png"))
    if "randomised" in results:
        common.save_figure(draw_randomised(rows, results, model), report.path("randomisation.png"))
    hidden = ("notes", "files", "rectifiers", "left_as_they_are", "randomised")
    table = [
        {"name": model.categories[row["class"]], **{k: v for k, v in row.items() if k not in hidden}} for row in rows
    ]
    report.finish(rows, skipped, results, {"guided_saliency.csv": table}, model)


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
        pair = np.load(report.folder / common.map_name(row["index"]))
        good = [m for m, kind in zip(pair, ("plain", "guided"), strict=True) if row[f"{kind}_status"] == "ok"]
        white = common.brightest(good)
        name = common.short(model.categories[row["class"]])
        title = f"{name}\np = {row['probability']:.3f}, rank {row['rank'] + 1}"
        common.draw_picture(left, model, files[row["index"]].path, title)
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
    run(main)
