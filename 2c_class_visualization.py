"""2c: what does the network take a class to be?

Gradient ascent from seeded noise to an image I that the network scores high for class c:
argmax_I S_c(I) - l2 * ||I - grey||^2, with S_c the class's logit (Simonyan et al. 2014, Deep Inside
Convolutional Networks, section 2). "plain" is just that; "gaussian" also applies a Gaussian kernel
every few iterations, which keeps out the high frequencies that please the network and look like
noise to us (Yosinski et al. 2015, Understanding Neural Networks Through Deep Visualization, section 3).

    python 2c_class_visualization.py                                           # six classes, both methods
    python 2c_class_visualization.py --classes tarantula --steps 60            # a rough one; the fast one
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import common

# green snake and tarantula are the report's; then strawberry, dalmatian, spoonbill, bald eagle
CLASSES = ["55", "76", "949", "251", "129", "22"]
GREY = 0.5  # normalised pixel 0, the mean image, is within 0.1 of it in all the networks here
NOISE = 0.02  # standard deviation of the start around grey: enough to tell the seeds apart
RESTARTS = 10  # at the most, for a class without any gradient at its start
SCORE_EVERY = 5  # iterations between the scores kept in a row
KEEP_EVERY = 50  # iterations between the states from which an interrupted ascent goes on
COLUMNS = ("class", "name", "method", "path", "logit", "probability", "rank", "starts", "photo", "photo_probability")
SURE = 0.9  # probability from which metrics.json counts an archetype as the network's own


def not_negative(text: str) -> float:
    """A finite number from 0 (argparse type)."""
    try:
        if 0 <= float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")


def _setting(default: float, meaning: str, kind: Callable[[str], float] = not_negative) -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning, "type": kind})


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an archetype is made. What moves from a first to a final value moves along a power curve."""

    steps: int = _setting(120, "iterations of gradient ascent", common.positive)
    rate: float = _setting(0.04, "first step: root mean square change of a pixel (1 is black to white)")
    final_rate: float = _setting(0.004, "last step, likewise")
    l2: float = _setting(0.002, "weight of the squared distance to grey, in logits")
    jitter_px: int = _setting(
        0, "the network sees the image rolled by up to so many pixels, anew in each iteration", common.whole
    )
    blur_every: int = _setting(0, "apply the Gaussian kernel every so many iterations; 0: never", common.whole)
    blur_px: float = _setting(0.0, "the kernel's standard deviation in the first iteration, in pixels")
    final_blur_px: float = _setting(0.0, "the kernel's standard deviation in the last iteration, in pixels")


# Chosen by eye on goldfish 1, flamingo 130, tiger 292, zebra 340, balloon 417 and tennis ball 852, which are
# neither default classes nor in DL_data, with efficientnet_lite0. The wide kernel at first makes the object
# large, the narrow one at last lets its texture in; jitter takes away the grid of the network's strides, also
# in the last step: the tiger's probability was 0.03 without it there (280 steps), 0.96 with it (240 steps);
# a rate that begins large gives colour, and ending small it leaves little noise.
METHODS: dict[str, Settings] = {
    "plain": Settings(),
    "gaussian": Settings(
        steps=280, rate=0.2, final_rate=0.02, l2=1e-4, jitter_px=32, blur_every=4, blur_px=3.0, final_blur_px=0.5
    ),
}


def gaussian_blur(images: Tensor, sigma_px: float) -> Tensor:
    """images (N, C, H, W), blurred: a depthwise convolution down the columns, then along the rows.

    The image continues at the opposite edge, as under `torch.roll`: so the blur commutes with the
    jitter, darkens no frame, and keeps every channel's mean.
    """
    for axis, size in (2, images.shape[2]), (3, images.shape[3]):
        radius = min(math.ceil(3 * sigma_px), (size - 1) // 2)
        if radius == 0:
            continue
        offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
        shape, padding = ((-1, 1), (0, 0, radius, radius)) if axis == 2 else ((1, -1), (radius, radius, 0, 0))
        weight = (kernel / kernel.sum()).view(1, 1, *shape).expand(images.shape[1], 1, *shape)
        images = F.conv2d(F.pad(images, padding, mode="circular"), weight, groups=images.shape[1])
    return images


def visualize_classes(
    model: nn.Module,
    classes: Sequence[int],
    method: str,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    size: int | None = None,
    observe: Callable[[int, Tensor, list[int]], None] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    resume: dict[str, Any] | None = None,
    **settings: float,
) -> Tensor:
    """An image of each class by gradient ascent: (N, 3, size, size) in [0, 1], all in one batch.

    `method` is one of METHODS, `settings` replace some of its Settings. `size` is the model's
    `input_size` where it has one. With a list of generators, one per class, an image depends
    neither on the other classes nor on their order. `observe(step, scores (N,), starts)` is called in
    each step with the logits before it, of the image as the network saw it (jittered), and with the
    number of starts that each class needed: one without any gradient is drawn again, coarser. `keep(state)`
    is called every KEEP_EVERY steps with all that the next step depends on; given as `resume`, it goes on
    from there to the same image. Raises UserError where a class's gradient is zero or not finite.
    Simonyan et al. 2014, section 2.
    """
    if method not in METHODS:
        raise common.UserError(f"no method is named {method!r}: valid are {', '.join(METHODS)}")
    how = dataclasses.replace(METHODS[method], **settings)
    size = size or getattr(model, "input_size", None)
    if size is None:
        raise common.UserError("this model has no input_size: give size, in pixels")
    if generator is None:
        generator = torch.default_generator
    generators = [generator] * len(classes) if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != len(classes):
        raise common.UserError(f"{len(generators)} generators for {len(classes)} classes: give one, or one for each")
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
    targets = torch.tensor(classes, device=device)

    # 1. start from grey with a little noise
    images = torch.stack([GREY + NOISE * torch.randn(3, size, size, generator=g, device=g.device) for g in generators])
    images = images.to(device).clamp(0, 1)  # (N, 3, S, S)
    starts = [1] * len(classes)
    first = 0
    if resume is not None:
        first, images, starts = resume["step"], resume["images"].to(device), list(resume["starts"])
        for g, state in zip(generators, resume["generators"], strict=True):
            g.set_state(state)
    for step in range(first, how.steps):
        if keep is not None and step > first and step % KEEP_EVERY == 0:
            keep({"step": step, "images": images, "starts": starts, "generators": [g.get_state() for g in generators]})
        done, last = step / max(how.steps - 1, 1), step == how.steps - 1

        # 2. the logits' gradient, seen through the jitter
        reach = range(-how.jitter_px, how.jitter_px + 1)
        shifts = [torch.randint(len(reach), (2,), generator=g, device=g.device).tolist() for g in generators]
        shifts = [(reach[down], reach[right]) for down, right in shifts]
        gradient, scores = _seen_through(shifts, model, images, targets)
        while step == 0 and max(starts) <= RESTARTS and (dead := (gradient.flatten(1) == 0).all(1)).any():
            # where the last layer is a rectifier (SqueezeNet) some logits are 0, with no way up from there
            for n in dead.nonzero()[:, 0].tolist():
                images[n], starts[n] = _coarse_noise(size, generators[n]).to(device), starts[n] + 1
            gradient, scores = _seen_through(shifts, model, images, targets)
        scale = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()  # (N, 1, 1, 1)
        for c, value in zip(classes, scale.flatten().tolist(), strict=True):
            if not 0 < value < math.inf:
                what = "zero" if value == 0 else "not finite"
                raise common.UserError(
                    f"the gradient of class {c} is {what} in step {step}: try another --seed or --rate"
                )
        if observe is not None:
            observe(step, scores, starts)

        # 3. one step uphill. The logit's gradient sets the unit of length, so that one rate suits all
        # networks; the L2 term is scaled with it, so that the objective stays what it says.
        uphill = gradient - 2 * how.l2 * (images - GREY)
        images = images + _between(how.rate, how.final_rate, done) / scale * uphill

        # 4. the Gaussian kernel; not in the last step, so that what was climbed last is in the picture
        if how.blur_every and (step + 1) % how.blur_every == 0 and not last:
            images = gaussian_blur(images, _between(how.blur_px, how.final_blur_px, done))

        # 5. back to what a picture can show: projection onto [0, 1], a part of the method
        images = images.clamp(0, 1)
    return images


def _seen_through(
    shifts: Sequence[tuple[int, int]], model: nn.Module, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient by the pixels (N, 3, S, S) and the scores (N,) of images that the network sees rolled."""
    gradient, scores = common.class_score_gradient(model, _roll(images, shifts), targets)
    return _roll(gradient, [(-down, -right) for down, right in shifts]), scores


def _coarse_noise(size: int, generator: torch.Generator) -> Tensor:
    """Blotches of a 14th of the side: of the starts tried, the one that leaves the fewest classes of SqueezeNet dead
    (1.3 % a start, and none always; fine noise as above 3.1 %)."""
    blotches = torch.randn(1, 3, 14, 14, generator=generator, device=generator.device)
    return (GREY + 0.2 * F.interpolate(blotches, (size, size), mode="bicubic")[0]).clamp(0, 1)


def _roll(images: Tensor, shifts: Sequence[Sequence[int]]) -> Tensor:
    """Each image moved down and right by its own number of pixels, re-entering at the other edge."""
    return torch.stack([image.roll(tuple(shift), (1, 2)) for image, shift in zip(images, shifts, strict=True)])


def _between(first: float, final: float, done: float) -> float:
    """From first to final, in equal ratios where both are above 0."""
    return first * (final / first) ** done if first > 0 and final > 0 else first + (final - first) * done


def measure(model: nn.Module, picture: Image.Image, c: int) -> dict[str, float]:
    """What the network gives class c for an 8-bit picture of its own input size: no pixel is resampled."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255  # (1, 3, S, S)
    logits = common.predict_logits(model, pixels.to(next(model.parameters()).device))[0].double().cpu()  # (classes,)
    rank = 1 + int((logits > logits[c]).sum())  # 1 is the likeliest class
    return {"logit": logits[c].item(), "probability": logits.softmax(0)[c].item(), "rank": rank}


def real_photos(model: common.Classifier, classes: Sequence[int], dataset: str) -> tuple[dict[int, dict], list[dict]]:
    """The first readable photo of each class in the split dataset, if any, and what was skipped."""
    photos: dict[int, dict] = {}
    skipped = []
    try:
        files = common.validation_images(dataset)
    except common.UserError:
        files = []  # no dataset: the archetypes do without
    for file in files:
        c = common.class_of(file)
        if c not in classes or c in photos:
            continue
        try:
            crop = Image.fromarray(common.to_pixels(model.preprocess(common.read_image(file.path))))
        except common.UserError as error:
            skipped.append({"path": file.key, "reason": str(error)})
            continue
        probability = measure(model, crop, c)["probability"]
        photos[c] = {"path": file.key, "bytes": common.size_of(file.path), "crop": crop, "probability": probability}
    return photos, skipped


def settings_of(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The method's settings with those given as options; a method without a kernel gets none by them."""
    default = METHODS[method]
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    kept = {k: v for k, v in given.items() if v is not None and (default.blur_every or "blur" not in k)}
    return dataclasses.asdict(dataclasses.replace(default, **kept))


def draw_archetypes(rows: list[dict], photos: dict[int, dict], folder: Path) -> Figure:
    """A line of panels per class: a real photo where the dataset has some, then the archetype by each method."""
    by_class = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["class"])]
    figure, axes = common.panel_grid(len(by_class), columns=bool(photos) + len(by_class[0]), per_line=2)
    for panels, group in zip(axes, by_class, strict=True):
        c, name = group[0]["class"], common.short(group[0]["name"])
        if photos and c in photos:
            common.draw_image(panels[0], photos[c]["crop"], f"{name} {c}\na photo: p = {photos[c]['probability']:.3f}")
        elif photos:
            common.draw_image(panels[0], np.ones((1, 1, 3)), f"{name} {c}\n")
            panels[0].text(0, 0, "the dataset has\nno photo of it", ha="center", va="center", fontsize=7.5)
        for panel, row in zip(panels[bool(photos) :], group, strict=True):
            archetype = common.read_image(folder / row["path"])
            common.draw_image(panel, archetype, f"{name}, {row['method']}\np = {row['probability']:.3f}")
    return figure


def draw_scores(rows: list[dict]) -> Figure:
    """The class's logit over the iterations: a panel per method, a line per class."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(4.5 * len(methods), 3.6), layout="constrained")
    for panel, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        for row in rows:
            if row["method"] == method:
                panel.plot(*zip(*row["scores"], strict=True), label=f"{row['class']} {common.short(row['name'])}", lw=1)
        panel.set_title(method, fontsize=8)
        panel.set_xlabel("iteration", fontsize=8)
        panel.set_ylabel("logit of the class", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6)
    return figure


def ascend(
    model: nn.Module,
    classes: list[int],
    method: str,
    settings: dict[str, Any],
    seed: int,
    shape: int,
    kept: common.Rows,
    index: int,
    progress: tqdm,
) -> Iterator[tuple[Tensor, tuple[float, ...], int]]:
    """Image, scores of all steps and number of starts of each class, from the state kept under `index`, if any.

    The batch is filled up to `shape` with its last class; what is found for the filling comes last.
    """
    batch = common.filled(classes, shape)
    state = kept.load_state(index)
    if state is None or state["classes"] != batch:  # of other company: it was split otherwise then
        state = {"classes": batch, "scores": [], "ascent": None}
    scores_so_far: list[list[float]] = state["scores"]  # (steps, shape)
    starts_needed: list[int] = []  # (shape,)

    def observe(step: int, scores: Tensor, starts: list[int]) -> None:
        scores_so_far.append(scores.tolist())
        starts_needed[:] = starts
        progress.update(len(classes))

    def keep(ascent: dict[str, Any]) -> None:
        kept.save_state(index, {**state, "ascent": ascent})

    progress.update(len(scores_so_far) * len(classes))
    generators = common.streams(seed, batch)
    images = visualize_classes(
        model, batch, method, generators, observe=observe, keep=keep, resume=state["ascent"], **settings
    )
    return zip(images, zip(*scores_so_far, strict=True), starts_needed, strict=True)


def main() -> None:
    parser = common.option_parser(
        __doc__,
        *("--dataset", "--output", "--model", "--weights", "--device", "--threads", "--batch-size", "--seed", "--show"),
        *("--shard", "--merge", "--fresh"),
    )
    parser.add_argument(
        "--classes", nargs="+", default=CLASSES, metavar="CLASS", help="classes, by id or name, or `all`"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="ways to visualize them")
    for field in dataclasses.fields(Settings):
        defaults = ", ".join(f"{name} {getattr(how, field.name):g}" for name, how in METHODS.items())
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=field.metadata["type"],
            metavar="N",
            help=f"{field.metadata['help']} (default: {defaults})",
        )
    options = parser.parse_args()
    report = common.Report(options, __file__)
    model = common.load_from_options(options)
    asked = range(len(model.categories)) if options.classes == ["all"] else options.classes
    classes = list(dict.fromkeys(common.find_class(str(text), model.categories) for text in asked))
    methods = list(dict.fromkeys(options.methods))
    photos, skipped = real_photos(model, classes, options.dataset)

    settings = {method: settings_of(method, options) for method in methods}
    of_photos = [(c, photo["path"], photo["bytes"]) for c, photo in photos.items()]
    what = common.run_settings(options, report.source, model, of_photos) | {"classes": classes, "methods": methods}
    # row number class * methods + method: a shard has whole classes
    kept = common.Rows(report, options, what, len(classes) * len(methods), unit=len(methods))
    shape = min(options.batch_size, len(classes))  # of every batch, see common.explain_batches
    total = sum(settings[methods[k % len(methods)]]["steps"] for k in kept.todo)
    with tqdm(total=total, unit="step", disable=None) as progress:
        for m, method in enumerate(methods):
            indices = [k for k in kept.todo if k % len(methods) == m]
            for group in (indices[start : start + shape] for start in range(0, len(indices), shape)):
                of_group = [classes[k // len(methods)] for k in group]
                with common.noting_chance(torch.device(options.device)) as chance:
                    found = ascend(
                        model, of_group, method, settings[method], options.seed, shape, kept, group[0], progress
                    )
                rows = []
                for k, c, (image, scores, starts) in zip(group, of_group, found, strict=False):
                    name = model.categories[c]
                    path = f"archetypes/{c}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_{method}.png"
                    png = io.BytesIO()
                    Image.fromarray(common.to_pixels(image)).save(png, format="PNG")
                    common.write_file(report.path(path), png.getvalue())
                    saved = measure(model, common.read_image(report.folder / path), c)
                    row = {
                        "index": k,
                        "class": c,
                        "name": name,
                        "method": method,
                        "path": path,
                        "files": [path],
                        **saved,
                        "starts": starts,
                        "photo": photos[c]["path"] if c in photos else None,
                        "photo_probability": photos[c]["probability"] if c in photos else None,
                        "settings": settings[method],
                        "scores": [[i, scores[i]] for i in range(0, len(scores), SCORE_EVERY)]
                        + [[len(scores), saved["logit"]]],
                    }
                    rows.append({**row, "nondeterministic": sorted(chance)} if chance else row)
                kept.append(rows)
                kept.remove_state(group[0])
    rows = kept.complete()
    if not rows:
        return  # other shards are still at work; the last of them goes on from here

    # the summary is a function of the rows
    results: dict[str, Any] = {"chance_probability": 1 / len(model.categories)}
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        results[method] = {
            "classes": len(own),
            "mean_probability": sum(row["probability"] for row in own) / len(own),
            "mean_logit": sum(row["logit"] for row in own) / len(own),
            "starts_drawn_again": sum(row["starts"] - 1 for row in own),
            f"classes_with_probability_from_{SURE}": sum(row["probability"] >= SURE for row in own),
            "settings": settings[method],
        }
    table = [{"steps": row["settings"]["steps"], **{key: row[key] for key in COLUMNS}} for row in rows]
    shown = [row for row in rows if row["class"] in classes[: options.show]]
    note = f"({min(options.show, len(classes))} of {len(classes)} classes)"
    figure = draw_archetypes(shown, photos, report.folder)
    common.draw_title(figure, f"{model.name}: archetypes, and the probability p it gives their class {note}")
    common.save_figure(figure, report.path("archetypes.png"))
    figure = draw_scores(shown)
    common.draw_title(figure, f"{model.name}: the climb, of the image as the network sees it {note}")
    common.save_figure(figure, report.path("scores.png"))
    report.finish(rows, skipped, results, {"archetypes.csv": table}, model, images=len(photos))


if __name__ == "__main__":
    common.run(main)
