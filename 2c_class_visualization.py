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
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import command

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import common
import priors

# green snake and tarantula are the report's; then strawberry, dalmatian, spoonbill, bald eagle
CLASSES = ["55", "76", "949", "251", "129", "22"]
GREY = 0.5  # normalised pixel 0, the mean image, is within 0.1 of it in all the networks here
NOISE = 0.02  # standard deviation of the start around grey: enough to tell the seeds apart
RESTARTS = 10  # at the most, for a class without any gradient at its start
SCORE_EVERY = 5  # iterations between the scores kept in a row
BETAS = (0.9, 0.99)  # of Adam, for `natural`
CALMJ = False
CALM_FROM = 0.85  # of the way: from there on `natural` sees the whole image as it is
KEEP_EVERY = 50  # iterations between the states from which an interrupted ascent goes on
COLUMNS = ("class", "name", "method", "path", "logit", "probability", "rank", "starts", "photo", "photo_probability")
JUDGES = ("efficientnet_lite2", "efficientnet_lite0")  # the first of them that is not the network explained
# Means and standard deviations of ImageNet's photos, as torchvision's models take them; where the dataset has none
PHOTOS = {"mean": [0.485, 0.456, 0.406], "spread": [0.229, 0.224, 0.225]}
SURE = 0.9  # probability from which metrics.json counts an archetype as the network's own


def not_negative(text: str) -> float:
    """A finite number from 0 (argparse type)."""
    try:
        if 0 <= float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")


def share(text: str) -> float:
    """A number above 0, up to 1 (argparse type)."""
    if (number := above_0(text)) <= 1:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, up to 1")


def above_0(text: str) -> float:
    """A finite number above 0 (argparse type)."""
    if (number := not_negative(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def _setting(default: float, meaning: str, kind: Callable[[str], float] = not_negative, of: str = "all") -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning, "type": kind, "of": of})


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an archetype is made. What moves from a first to a final value moves along a power curve."""

    steps: int = _setting(120, "iterations of gradient ascent", common.positive)
    rate: float = _setting(
        0.04, "first step: root mean square change of a pixel (1: black to white); natural: Adam's rate"
    )
    final_rate: float = _setting(0.004, "last step, likewise")
    first_size: float = _setting(1.0, "share of the input size at which the ascent begins; it grows to 1", share)
    l2: float = _setting(0.002, "weight of the squared distance to grey, in logits", of="pixels")
    jitter_px: int = _setting(
        0, "the network sees the image rolled by up to so many pixels, anew in each iteration", common.whole, "pixels"
    )
    blur_every: int = _setting(
        0, "apply the Gaussian kernel every so many iterations; 0: never", common.whole, "kernel"
    )
    blur_px: float = _setting(0.0, "the kernel's standard deviation in the first iteration, in pixels", of="kernel")
    final_blur_px: float = _setting(0.0, "the kernel's standard deviation in the last iteration", of="kernel")
    zoom_from: float = _setting(
        1.0, "the network sees from this share of the image's side, anew in each iteration", above_0, "spectrum"
    )
    zoom_to: float = _setting(1.0, "up to this share of it; above 1: with mirrored surroundings", above_0, "spectrum")
    turn_degrees: float = _setting(0.0, "turned by up to so much", of="spectrum")
    noise: float = _setting(0.0, "and with noise of up to this standard deviation", of="spectrum")
    statistics: float = _setting(
        0.0, "weight of the distance from the channel statistics of photos, in logits", of="spectrum"
    )
    decorrelated: bool = False  # a step changes colours as much as photos differ in them
    spectrum: bool = False  # what is climbed in: pixels, or the spectrum of priors.picture_of


SETTINGS = [field for field in dataclasses.fields(Settings) if field.metadata]  # those that are options

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
    "natural": Settings(
        steps=300,
        rate=0.15,
        final_rate=0.02,
        l2=0,
        statistics=30,
        zoom_from=0.35,
        zoom_to=1.2,
        turn_degrees=15,
        noise=0.2,
        first_size=0.57,
        spectrum=True,
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
    device = _device_of(model)
    targets = torch.tensor(classes, device=device)

    sizes = growing_sizes(model, how, size)
    layers = priors.normal_statistics(model) if how.statistics else []

    # 1. start from grey with a little noise
    canvas = torch.stack([_start(how, size, g) for g in generators]).to(device)  # pixels, or their spectrum
    starts = [1] * len(classes)
    first = 0
    if resume is not None:
        first, canvas, starts = resume["step"], resume["canvas"].to(device), list(resume["starts"])
        for g, state in zip(generators, resume["generators"], strict=True):
            g.set_state(state)
    adam = torch.optim.Adam([canvas], betas=BETAS, maximize=True) if how.spectrum else None
    if adam and resume is not None:
        adam.load_state_dict(resume["adam"])
    for step in range(first, how.steps):
        if keep is not None and step > first and step % KEEP_EVERY == 0:
            state = {"step": step, "canvas": canvas, "starts": starts, "adam": adam.state_dict() if adam else None}
            keep(state | {"generators": [g.get_state() for g in generators]})
        done, last = step / max(how.steps - 1, 1), step == how.steps - 1
        side = next(side for until, side in sizes if done < until or last)
        if not how.spectrum and canvas.shape[-1] != side:
            canvas = F.interpolate(canvas, (side, side), mode="bicubic").clamp(0, 1)

        # 2. the logits' gradient, of the images as the network sees them this time. In the first step without the
        # statistics, which would hide that a class has no gradient of its own.
        see = _random_sight(how, generators, side, calm=done >= CALM_FROM)
        with priors.natural_statistics(layers, how.statistics if step else 0):
            gradient, scores = _gradient(model, canvas, targets, see)
        while step == 0 and max(starts) <= RESTARTS and (dead := (gradient.flatten(1) == 0).all(1)).any():
            # where the last layer is a rectifier (SqueezeNet) some logits are 0, with no way up from there
            for n in dead.nonzero()[:, 0].tolist():
                canvas[n], starts[n] = (
                    _start(how, canvas.shape[2], generators[n], coarse=True).to(device),
                    starts[n] + 1,
                )
            gradient, scores = _gradient(model, canvas, targets, see)
        scale = gradient.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (canvas.dim() - 1))  # (N, 1, 1, 1)
        for c, value in zip(classes, scale.flatten().tolist(), strict=True):
            if not 0 < value < math.inf:
                what = "zero" if value == 0 else "not finite"
                raise common.UserError(
                    f"the gradient of class {c} is {what} in step {step}: try another --seed or --rate"
                )
        if observe is not None:
            observe(step, scores, starts)

        # 3. one step uphill
        rate = _between(how.rate, how.final_rate, done)
        if adam:  # every coefficient by about as much as every other, whatever its gradient
            canvas.grad, adam.param_groups[0]["lr"] = gradient, rate
            adam.step()
            continue
        # The logit's gradient sets the unit of length, so that one rate suits all networks; the L2
        # term is scaled with it, so that the objective stays what it says.
        if how.decorrelated:
            gradient = priors.as_photos_colours(gradient)
        canvas = canvas + rate / scale * (gradient - 2 * how.l2 * (canvas - GREY))

        # 4. the Gaussian kernel; not in the last step, so that what was climbed last is in the picture
        if how.blur_every and (step + 1) % how.blur_every == 0 and not last:
            canvas = gaussian_blur(canvas, _between(how.blur_px, how.final_blur_px, done))

        # 5. back to what a picture can show: projection onto [0, 1], a part of the method
        canvas = canvas.clamp(0, 1)
    return priors.picture_of(canvas, size) if how.spectrum else canvas


def _gradient(
    model: nn.Module, canvas: Tensor, targets: Tensor, see: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The gradient by the canvas, and the scores (N,), of images as `see` shows them to the network."""
    leaf = canvas.detach().requires_grad_()
    with torch.enable_grad():
        seen = see(leaf)
    gradient, scores = common.class_score_gradient(model, seen.detach(), targets)
    return torch.autograd.grad(seen, leaf, gradient)[0], scores


def _random_sight(
    how: Settings, generators: Sequence[torch.Generator], side: int, calm: bool
) -> Callable[[Tensor], Tensor]:
    """What turns a canvas into what the network sees in one iteration, drawn for each image by itself."""
    if how.spectrum:
        if calm:
            return lambda spectrum: priors.picture_of(spectrum, side)
        view = priors.random_view(generators, side, how.zoom_from, how.zoom_to, how.turn_degrees, how.noise)
        return lambda spectrum: view(priors.picture_of(spectrum, side))
    reach = range(-how.jitter_px, how.jitter_px + 1) if not (calm and CALMJ) else range(1)
    shifts = [torch.randint(len(reach), (2,), generator=g, device=g.device).tolist() for g in generators]
    shifts = [(reach[down], reach[right]) for down, right in shifts]
    return lambda images: torch.stack([i.roll(shift, (1, 2)) for i, shift in zip(images, shifts, strict=True)])


def _start(how: Settings, size: int, generator: torch.Generator, coarse: bool = False) -> Tensor:
    """A canvas (3, S, S) or (3, S, S // 2 + 1, 2) near grey; `coarse`: with something in it, if only blotches.

    Blotches of a 14th of the side: of the starts tried, the one that leaves the fewest classes of SqueezeNet
    without a gradient (1.3 % a start, and none always; fine noise 3.1 %).
    """
    if how.spectrum:
        return priors.random_spectrum(size, generator, 1.0 if coarse else NOISE)
    if not coarse:
        return (GREY + NOISE * torch.randn(3, size, size, generator=generator, device=generator.device)).clamp(0, 1)
    blotches = torch.randn(1, 3, 14, 14, generator=generator, device=generator.device)
    return (GREY + 0.2 * F.interpolate(blotches, (size, size), mode="bicubic")[0]).clamp(0, 1)


def growing_sizes(model: nn.Module, how: Settings, size: int) -> list[tuple[float, int]]:
    """Until which share of the way the image has which side: half of it at `first_size`, the last quarter at `size`.

    All at the full size where the network takes no other (vision transformers).
    """
    sides = [min(size, 16 * math.ceil(size * how.first_size**power / 16)) for power in (1, 0.5, 0)]
    if sides[0] < size:
        try:
            common.predict_logits(model, torch.zeros(1, 3, sides[0], sides[0], device=_device_of(model)))
        except (RuntimeError, AssertionError, ValueError):
            sides = [size] * 3
    return list(zip((0.5, 0.75, math.inf), sides, strict=True))


def _device_of(model: nn.Module) -> torch.device:
    return next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


def _between(first: float, final: float, done: float) -> float:
    """From first to final, in equal ratios where both are above 0."""
    return first * (final / first) ** done if first > 0 and final > 0 else first + (final - first) * done


def measure(model: common.Classifier, picture: Image.Image, c: int) -> dict[str, float]:
    """What a network gives class c for an 8-bit picture, all of which it sees.

    A picture of its own input size is not resampled.
    """
    side = (model.input_size, model.input_size)
    picture = picture if picture.size == side else picture.resize(side, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255  # (1, 3, S, S)
    logits = common.predict_logits(model, pixels.to(_device_of(model)))[0].double().cpu()  # (classes,)
    rank = 1 + int((logits > logits[c]).sum())  # 1 is the likeliest class
    return {"logit": logits[c].item(), "probability": logits.softmax(0)[c].item(), "rank": rank}


def colours(picture: Image.Image) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, 1 being white."""
    pixels = np.asarray(picture, dtype=np.float64) / 255
    return {"mean": pixels.mean((0, 1)).tolist(), "spread": pixels.std((0, 1)).tolist()}


def load_judges(asked: Sequence[str] | None, model: common.Classifier, device: str) -> dict[str, common.Classifier]:
    """The networks of --judge, by name: NAME or NAME=FILE; none at all for `none`."""
    if asked == ["none"]:
        return {}
    judges: dict[str, common.Classifier] = {}
    for text in asked or [next(name for name in JUDGES if name != model.name)]:
        name, _, weights = text.partition("=")
        judge = common.load_model(name, weights or None, device)
        if judge.sha256 == model.sha256 != "unknown":
            raise common.UserError(f"--judge {text} is the network that is explained: give another one")
        if len(judge.categories) != len(model.categories):
            raise common.UserError(
                f"--judge {text} knows {len(judge.categories)} classes and {model.name} {len(model.categories)}: "
                "give one that knows the same"
            )
        if name in judges:
            raise common.UserError(f"--judge {name} is given twice: give each network once")
        judges[name] = judge
    return judges


def real_photos(
    model: common.Classifier, judges: dict[str, common.Classifier], classes: Sequence[int], dataset: str
) -> tuple[dict[int, dict], list[dict]]:
    """The first readable photo of each class in the split dataset, if any, as all networks see it; what was skipped."""
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
            photo = common.read_image(file.path)
            crops = {name: network.preprocess(photo) for name, network in {"": model, **judges}.items()}
        except common.UserError as error:
            skipped.append({"path": file.key, "reason": str(error)})
            continue
        crops = {name: Image.fromarray(common.to_pixels(crop)) for name, crop in crops.items()}
        photos[c] = {
            "photo": file.key,
            **measure(model, crops[""], c),
            "judges": {name: measure(judge, crops[name], c) for name, judge in judges.items()},
            **colours(crops[""]),
            "bytes": common.size_of(file.path),
            "path": file.path,
        }
    return photos, skipped


def fields_of(how: Settings) -> list[str]:
    """The names of the settings that a method has."""
    kinds = {"all", "spectrum"} if how.spectrum else {"all", "pixels", "kernel" if how.blur_every else "pixels"}
    return [field.name for field in SETTINGS if field.metadata["of"] in kinds]


def settings_of(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The method's settings with those given as options, of which a method gets only what it has."""
    default = METHODS[method]
    given = {name: getattr(options, name) for name in fields_of(default)}
    return dataclasses.asdict(dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None}))


MEASURES = ("top1", "top5", "mean_probability", "median_rank")


def recognised(found: Sequence[dict], judge: str | None) -> dict[str, float]:
    """How the network itself, or a judge, takes archetypes or photos for their class."""
    views = [row["judges"][judge] if judge else row for row in found]
    return {
        "top1": sum(view["rank"] == 1 for view in views) / len(views),
        "top5": sum(view["rank"] <= 5 for view in views) / len(views),
        "mean_probability": sum(view["probability"] for view in views) / len(views),
        "median_rank": statistics.median(view["rank"] for view in views),
    }


def summary(found: Sequence[dict], judges: Sequence[str], reference: dict[str, list[float]]) -> dict[str, Any]:
    """What is said of the archetypes of one method, or of the photos, over all classes."""
    own = {key: np.mean([row[key] for row in found], 0) for key in ("mean", "spread")}
    apart = np.concatenate([own[key] - reference[key] for key in own])
    return {
        "classes": len(found),
        **recognised(found, None),
        "judges": {judge: recognised(found, judge) for judge in judges},
        "mean_logit": sum(row["logit"] for row in found) / len(found),
        "colours": {key: value.tolist() for key, value in own.items()}
        | {"distance_from_photos": float(np.sqrt(np.mean(apart**2)))},
    }


def least_recognised(rows: Sequence[dict], judges: Sequence[str]) -> list[dict]:
    """A line for each archetype, the one whose class its judges put on the last places first."""

    def places(row: dict) -> float:
        return math.prod(row["judges"][judge]["rank"] for judge in judges) ** (1 / len(judges))

    lines = [
        {
            **{key: row[key] for key in ("class", "name", "method", "probability")},
            "mean_rank": places(row),
            **{f"rank_by_{judge}": row["judges"][judge]["rank"] for judge in judges},
        }
        for row in rows
        if judges
    ]
    return sorted(lines, key=lambda line: (-line["mean_rank"], line["class"]))


def _verdicts(found: dict) -> str:
    """The lines under a picture: what its own network and the judges give its class."""
    lines = [f"itself: p {found['probability']:.2f}, rank {found['rank']}"]
    lines += [f"{judge}: p {v['probability']:.2f}, rank {v['rank']}" for judge, v in found["judges"].items()]
    return "\n".join(lines)


def draw_archetypes(rows: list[dict], photos: dict[int, dict], folder: Path, model: common.Classifier) -> Figure:
    """A line of panels per class: a real photo where the dataset has some, then the archetype by each method."""
    by_class = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["class"])]
    figure, axes = common.panel_grid(len(by_class), columns=bool(photos) + len(by_class[0]), per_line=2)
    for panels, group in zip(axes, by_class, strict=True):
        c, name = group[0]["class"], common.short(group[0]["name"])
        if photos and c in photos:
            common.draw_picture(panels[0], model, photos[c]["path"], f"{name} {c}, photo\n{_verdicts(photos[c])}")
        elif photos:
            common.draw_image(panels[0], np.ones((1, 1, 3)), f"{name} {c}\n")
            panels[0].text(0, 0, "the dataset has\nno photo of it", ha="center", va="center", fontsize=7.5)
        for panel, row in zip(panels[bool(photos) :], group, strict=True):
            archetype = common.read_image(folder / row["path"])
            common.draw_image(panel, archetype, f"{name}, {row['method']}\n{_verdicts(row)}")
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


def row_of(k: int, c: int, method: str, image: Tensor, report: common.Report, networks: dict[str, Any]) -> dict:
    """Save an archetype, and say what the networks ("" is the one explained) make of the picture as it was saved."""
    model = networks[""]
    name = model.categories[c]
    path = f"archetypes/{c}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_{method}.png"
    png = io.BytesIO()
    Image.fromarray(common.to_pixels(image)).save(png, format="PNG")
    common.write_file(report.path(path), png.getvalue())
    picture = common.read_image(report.folder / path)
    found = {label: measure(network, picture, c) for label, network in networks.items()}
    about = {"index": k, "class": c, "name": name, "method": method, "path": path, "files": [path]}
    return about | found.pop("") | {"judges": found} | colours(picture)


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
    parser.add_argument(
        "--judge",
        action="append",
        metavar="MODEL",
        help="a network that had no part in making the archetypes and says what it takes them for: as in --model, or "
        f"MODEL=FILE with its weights; can be repeated; or `none` (default: {JUDGES[0]})",
    )
    for field in SETTINGS:
        defaults = ", ".join(
            f"{name} {getattr(how, field.name):g}" for name, how in METHODS.items() if field.name in fields_of(how)
        )
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
    judges = load_judges(options.judge, model, options.device)
    photos, skipped = real_photos(model, judges, classes, options.dataset)

    settings = {method: settings_of(method, options) for method in methods}
    what = common.run_settings(
        options, report.source, model, [(c, photo["photo"], photo["bytes"]) for c, photo in photos.items()]
    )
    what |= {"classes": classes, "methods": methods}
    what |= {"judges": {name: f"{judge.weights}, SHA-256 {judge.sha256}" for name, judge in judges.items()}}
    # row number class * methods + method: a shard has whole classes
    kept = common.Rows(report, options, what, len(classes) * len(methods), unit=len(methods))
    shape = min(options.batch_size, len(classes))  # of every batch, see common.explain_batches
    batches = []  # indices of one method each; the methods in turn, so that the time still needed is known early
    for m in range(len(methods)):
        indices = [k for k in kept.todo if k % len(methods) == m]
        batches += [(start, m, indices[start : start + shape]) for start in range(0, len(indices), shape)]
    total = sum(settings[methods[k % len(methods)]]["steps"] for k in kept.todo)
    with tqdm(total=total, unit="step", disable=None, smoothing=0) as progress:
        for _, m, group in sorted(batches):
            method, of_group = methods[m], [classes[k // len(methods)] for k in group]
            with common.noting_chance(torch.device(options.device)) as chance:
                found = ascend(model, of_group, method, settings[method], options.seed, shape, kept, group[0], progress)
            rows = []
            for k, c, (image, scores, starts) in zip(group, of_group, found, strict=False):
                row = row_of(k, c, method, image, report, {"": model, **judges})
                row |= {"starts": starts, "settings": settings[method]}
                row |= {"photo": None, "photo_probability": None}
                if c in photos:
                    row |= {"photo": photos[c]["photo"], "photo_probability": photos[c]["probability"]}
                row["scores"] = [[i, scores[i]] for i in range(0, len(scores), SCORE_EVERY)]
                row["scores"].append([len(scores), row["logit"]])
                rows.append({**row, "nondeterministic": sorted(chance)} if chance else row)
            kept.append(rows)
            kept.remove_state(group[0])
    rows = kept.complete()
    if not rows:
        return  # other shards are still at work; the last of them goes on from here

    # the summary is a function of the rows
    reference = {
        key: np.mean([photo[key] for photo in photos.values()], 0) if photos else PHOTOS[key] for key in PHOTOS
    }
    results: dict[str, Any] = {"chance_probability": 1 / len(model.categories)}
    results["photos"] = summary(list(photos.values()), judges, reference) if photos else None
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        results[method] = summary(own, judges, reference) | {
            "starts_drawn_again": sum(row["starts"] - 1 for row in own),
            f"classes_with_probability_from_{SURE}": sum(row["probability"] >= SURE for row in own),
            "settings": settings[method],
        }
    results["judges"] = {name: {"weights": judge.weights, "sha256": judge.sha256} for name, judge in judges.items()}
    table = [
        {"steps": row["settings"]["steps"], **{key: row[key] for key in COLUMNS}}
        | {
            f"{key}_by_{judge}": verdict[key]
            for judge, verdict in row["judges"].items()
            for key in ("probability", "rank")
        }
        for row in rows
    ]
    shares = [
        {
            "pictures": kind,
            "network": judge or model.name,
            "judge": judge is not None,
            "classes": results[kind]["classes"],
        }
        | {key: (results[kind]["judges"][judge] if judge else results[kind])[key] for key in MEASURES}
        for kind in (*methods, "photos")
        if results[kind]
        for judge in (None, *judges)
    ]
    tables = {"archetypes.csv": table, "recognised.csv": shares, "least_recognised.csv": least_recognised(rows, judges)}
    shown = [row for row in rows if row["class"] in classes[: options.show]]
    note = f"({min(options.show, len(classes))} of {len(classes)} classes)"
    figure = draw_archetypes(shown, photos, report.folder, model)
    common.draw_title(
        figure, f"{model.name}: archetypes, with the probability p and the rank that networks give their class {note}"
    )
    common.save_figure(figure, report.path("archetypes.png"))
    figure = draw_scores(shown)
    common.draw_title(figure, f"{model.name}: the climb, of the image as the network sees it {note}")
    common.save_figure(figure, report.path("scores.png"))
    report.finish(rows, skipped, results, tables, model, images=len(photos))


if __name__ == "__main__":
    command.run(main)
