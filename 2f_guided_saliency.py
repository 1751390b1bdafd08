"""2f: which pixels did the network look at, seen through guided backpropagation?

The class saliency map again, but on the way back every rectifier lets only positive signals pass:
R_in = 1[0 < x] * 1[0 < R_out] * R_out (Springenberg et al. 2015, Striving for Simplicity, section
3.4). The map is less noisy, and less faithful: it depends little on the upper layers (Adebayo et
al. 2018, Sanity Checks for Saliency Maps), so read it as "which edges", not as "why".

    python 2f_guided_saliency.py                # the dataset's test images
    python 2f_guided_saliency.py photo.jpg      # your own picture, no dataset needed; the fast one
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
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


def main() -> None:
    options = common.option_parser(
        __doc__,
        *("images", "--classes", "--dataset", "--output", "--model", "--weights", "--device"),
        *("--batch-size", "--seed", "--limit", "--strict", "--show"),
    ).parse_args()
    files = common.test_images(options)
    report = common.Report(options, __file__)
    model = common.load_from_options(options)
    asked = common.classes_asked(options.classes, files, model.categories)

    def explain(images: Tensor, batch: list[common.ImageFile]) -> list[dict]:
        classes, rows = common.explained_classes(model, images, [asked[file.index] for file in batch])
        plain, _ = common.class_score_gradient(model, images, classes)
        guided, seen = guided_gradient(model, images, classes)
        for file, row, *gradients in zip(batch, rows, plain, guided, strict=True):
            pair = torch.stack(gradients).abs().amax(1).cpu().numpy()  # (2, H, W): plain, guided
            for kind, saliency in zip(("plain", "guided"), pair, strict=True):
                row.update({f"{kind}_{key}": value for key, value in common.describe_map(saliency).items()})
            row["rank_correlation"] = None
            if row["plain_status"] == row["guided_status"] == "ok":
                row["rank_correlation"] = float(spearmanr(pair[0], pair[1], axis=None).statistic)
            row["rectifiers"], row["left_as_they_are"] = dict(seen.rectifiers), dict(seen.others)
            common.write_array(report.path(map_name(file.index)), pair)
        return rows

    rows, skipped = common.explain_images(model, files, explain, options)
    results = summary(rows)
    figure = draw(rows[: options.show], results, files, model, report)
    common.save_figure(figure, report.path("guided_saliency.png"))
    hidden = ("notes", "rectifiers", "left_as_they_are")
    table = [
        {"name": model.categories[row["class"]], **{k: v for k, v in row.items() if k not in hidden}} for row in rows
    ]
    report.finish(rows, skipped, results, {"guided_saliency.csv": table}, model)


def map_name(index: int) -> str:
    return f"maps/{index:05d}.npy"


def summary(rows: list[dict]) -> dict:
    """The metrics, from sums over rows: guided beside plain, its yardstick."""
    good = [row for row in rows if row["rank_correlation"] is not None]
    keys = [f"{kind}_{measure}" for measure in ("half_mass_area", "roughness") for kind in ("plain", "guided")]
    return {
        "maps": len(rows),
        "plain_status": dict(Counter(row["plain_status"] for row in rows)),
        "guided_status": dict(Counter(row["guided_status"] for row in rows)),
        **{f"mean_{key}": sum(row[key] for row in good) / len(good) for key in (*keys, "rank_correlation") if good},
        "rectifiers": rows[0]["rectifiers"],
        "left_as_they_are": rows[0]["left_as_they_are"],
    }


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
    figure.suptitle(
        f"{model.name}: saliency maps by plain and by guided backpropagation ({sum(results['rectifiers'].values())} "
        f"rectifiers guided{f'; left as they are: {left_alone}' if left_alone else ''})\n"
        f"one scale for both maps of a picture: linear from 0 (black) to the larger {common.MAP_PERCENTILE}th "
        f"percentile; {len(rows)} of {results['maps']} images\n"
        "guided maps depend little on the upper layers (Adebayo et al. 2018): they show edges, not reasons",
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    common.run(main)
