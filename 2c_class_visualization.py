"""2c: what does the network take a class to be?

Gradient ascent from seeded noise to an image I that the network scores high for class c:
argmax_I S_c(I) - l2 * ||I - grey||^2, with S_c the class's logit (Simonyan et al. 2014, Deep Inside
Convolutional Networks, section 2). Three methods, from no prior to a strong one:

  plain     just that: the network is certain, and nobody else sees why
  gaussian  a Gaussian kernel every few iterations keeps out the high frequencies that please the network and look
            like noise to us (Yosinski et al. 2015, Understanding Neural Networks Through Deep Visualization, sec. 3);
            steps go mostly in coarse waves, and what the network sees is noisy, so that a shape must stand out of it
            (as in SmoothGrad, Smilkov et al. 2017), and comes from many sides (Olah et al. 2017, Feature Visualization)
  natural   likewise, and all channels of the network are led to the mean and the spread that photos have there
            (Yin et al. 2020, Dreaming to Distill, section 3.1): priors.py

A network without batch norm has no such statistics but its input's; the last two hold its images as near to grey as
photos are.

How far others recognise what comes out is measured by judges, networks that had no part in it: judges.py.

    python 2c_class_visualization.py                                           # six classes, three methods
    python 2c_class_visualization.py --classes tarantula --methods gaussian --steps 80     # the fast one
    python 2c_class_visualization.py --classes all --methods natural           # a thousand, hours; can be stopped
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from explain.shell import run

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import common
from ascent import METHODS, Settings, add_options, settings_of
from explain import judges as recognition
from explain import priors

# green snake and tarantula are the report's; then strawberry, dalmatian, spoonbill, bald eagle
CLASSES = ["55", "76", "949", "251", "129", "22"]
GREY = 0.5  # normalised pixel 0, the mean image, is within 0.1 of it in all the networks here
NOISE = 0.02  # standard deviation of the start around grey: enough to tell the seeds apart
RESTARTS = 10  # at the most, for a class without any gradient at its start
SCORE_EVERY = 5  # iterations between the scores kept in a row
SHARP_FROM = 0.8  # of the way: from there on the kernel rests, or the finer waves of photos would be missing
KEEP_EVERY = 50  # iterations between the states from which an interrupted ascent goes on
COLUMNS = ("class", "name", "method", "path", "logit", "probability", "rank", "starts", "blind_steps")
COLUMNS += ("photo", "photo_probability")
SURE = 0.9  # probability from which metrics.json counts an archetype as the network's own


def gaussian_blur(images: Tensor, sigma_px: float) -> Tensor:
    """images (N, C, H, W), blurred: a depthwise convolution down the columns, then along the rows.

    The image continues at the opposite edge, so that no frame is darkened and every channel keeps its mean.
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


def with_contrast(images: Tensor, least: float) -> Tensor:
    """images (N, C, H, W), those whose values have a smaller standard deviation than `least` stretched to it."""
    mean = images.mean((1, 2, 3), keepdim=True)
    spread = images.std((1, 2, 3), keepdim=True, correction=0)
    return mean + (images - mean) * torch.where(spread > 0, least / spread, 1).clamp(min=1)


def near_grey(images: Tensor, farthest: float) -> Tensor:
    """images (N, C, H, W), those farther from grey than `farthest`, as a root mean square, drawn back to it.

    The projection onto a ball: the L2 term of the objective as a bound, which has no unit that differs
    between networks.
    """
    distance = (images - GREY).square().mean((1, 2, 3), keepdim=True).sqrt()
    return torch.where(distance > farthest, GREY + (images - GREY) * (farthest / distance), images)


def farthest_from_grey(model: nn.Module, how: Settings) -> float:
    """The bound of `near_grey`: with batch norm none, 0.5 being as far as any picture can be.

    efficientnet_lite0's archetypes end at 0.16 to 0.26 by themselves (photos: 0.23). Those of SqueezeNet, whose
    steps agree from view to view, go on to 0.4 and are cut off at white (docs/archetypes.md).
    """
    return 0.5 if priors.has_batch_norm(model) else how.farthest


def visualize_classes(
    model: nn.Module,
    classes: Sequence[int],
    method: str,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    size: int | None = None,
    observe: Callable[[int, Tensor, list[dict[str, int]]], None] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    resume: dict[str, Any] | None = None,
    **settings: float,
) -> Tensor:
    """An image of each class by gradient ascent: (N, 3, size, size) in [0, 1], all in one batch.

    `method` is one of METHODS, `settings` replace some of its Settings. `size` is the model's
    `input_size` where it has one. With a list of generators, one per class, an image depends
    neither on the other classes nor on their order. `observe(step, scores (N,), counts)` is called in
    each step with the logits before it, of the image as the network saw it, and with each class's
    `starts` (one without any gradient is drawn again, coarser) and `blind_steps` (in which it had none at all:
    where statistics lead as well, there is always some).
    `keep(state)` is called every KEEP_EVERY steps with all that the next step depends on; given as `resume`,
    it goes on from there to the same image. Raises UserError where a class's gradient is not finite, or zero
    at all starts or in half of the steps.
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
    device = common.device_of(model)
    targets = torch.tensor(classes, device=device)

    sizes = growing_sizes(model, how, size)
    farthest = farthest_from_grey(model, how)
    layers = priors.normal_statistics(model) if how.statistics else []

    # 1. start from grey with a little noise
    images = torch.stack([_start(size, g) for g in generators]).to(device)  # (N, 3, size, size)
    counts = [{"starts": 1, "blind_steps": 0} for _ in classes]
    first = 0
    if resume is not None:
        first, images, counts = resume["step"], resume["images"].to(device), [dict(c) for c in resume["counts"]]
        for g, state in zip(generators, resume["generators"], strict=True):
            g.set_state(state)
    for step in range(first, how.steps):
        if keep is not None and step > first and step % KEEP_EVERY == 0:
            states = [g.get_state() for g in generators]
            keep({"step": step, "images": images, "counts": counts, "generators": states})
        done, last = step / max(how.steps - 1, 1), step == how.steps - 1
        side = size if last else next(side for until, side in sizes if done < until)
        if images.shape[-1] != side:
            images = F.interpolate(images, (side, side), mode="bicubic").clamp(0, 1)

        # 2. the logits' gradient, of the images as the network sees them this time. In the first step without the
        # statistics, which would hide that a class has no gradient of its own.
        see = _random_sight(how, generators, side, calm=done >= how.calm_from)
        with priors.natural_statistics(layers, how.statistics if step else 0):
            gradient, scores = _gradient(model, images, targets, see)
        blind = _without_gradient(gradient)
        while step == 0 and blind and max(count["starts"] for count in counts) <= RESTARTS:
            # where the last layer is a rectifier (SqueezeNet) some logits are 0, with no way up from there
            for n in blind:
                images[n] = _start(side, generators[n], coarse=True).to(device)
                counts[n]["starts"] += 1
            gradient, scores = _gradient(model, images, targets, see)
            blind = _without_gradient(gradient)
        for n in blind:
            counts[n]["blind_steps"] += 1
            if step == 0 or counts[n]["blind_steps"] > how.steps // 2:
                raise common.UserError(
                    f"the gradient of class {classes[n]} is zero in step {step}: try another --seed or --rate"
                )
        scale = gradient.square().flatten(1).mean(1).sqrt().view(-1, 1, 1, 1)
        for c, value in zip(classes, scale.flatten().tolist(), strict=True):
            if not math.isfinite(value):
                raise common.UserError(
                    f"the gradient of class {c} is not finite in step {step}: try another --seed or --rate"
                )
        if observe is not None:
            observe(step, scores, counts)

        # 3. one step uphill. The gradient sets the unit of length, so that one rate suits all networks; the L2
        # term is scaled with it, so that the objective stays what it says.
        rate = _between(how.rate, how.final_rate, done)
        if how.as_photos:
            gradient = priors.as_photos_differ(gradient)
        images = images + torch.where(scale > 0, rate / scale, 0) * (gradient - 2 * how.l2 * (images - GREY))

        # 4. the Gaussian kernel, and back the contrast that it takes; not in the last steps, so that what was climbed
        # then is in the picture
        if how.blur_every and (step + 1) % how.blur_every == 0 and done < SHARP_FROM:
            images = gaussian_blur(images, _between(how.blur_px, how.final_blur_px, done))
            images = with_contrast(images, how.contrast * done)

        # 5. back to what a picture can show: projection onto [0, 1], a part of the method
        images = near_grey(images.clamp(0, 1), farthest)
    return images


def _gradient(
    model: nn.Module, images: Tensor, targets: Tensor, see: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The gradient by the images (N, 3, S, S), and the scores (N,), of what `see` shows of them to the network."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        seen = see(leaf)
    gradient, scores = common.class_score_gradient(model, seen.detach(), targets)
    return torch.autograd.grad(seen, leaf, gradient)[0], scores


def _without_gradient(gradient: Tensor) -> list[int]:
    return (gradient.flatten(1) == 0).all(1).nonzero()[:, 0].tolist()


def _random_sight(
    how: Settings, generators: Sequence[torch.Generator], side: int, calm: bool
) -> Callable[[Tensor], Tensor]:
    """What the network sees of images (N, 3, side, side) in one iteration, drawn for each of them by itself."""
    view = noise = None
    if how.moved and not calm:
        view = priors.random_view(generators, side, how.zoom_from, how.zoom_to, how.turn_degrees)
    if how.noise and not calm:
        noise = priors.random_noise(generators, side, how.noise)  # (N, 3, side, side)

    def seen(images: Tensor) -> Tensor:
        images = view(images) if view else images
        return images if noise is None else images + noise.to(images.device)

    return seen


def _start(size: int, generator: torch.Generator, coarse: bool = False) -> Tensor:
    """An image (3, size, size) near grey; `coarse`: with something in it, if only blotches.

    Blotches of a 14th of the side: of the starts tried, the one that leaves the fewest classes of SqueezeNet
    without a gradient (1.3 % a start, and none always; fine noise 3.1 %).
    """
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
            common.predict_logits(model, torch.zeros(1, 3, sides[0], sides[0], device=common.device_of(model)))
        except (RuntimeError, AssertionError, ValueError):
            sides = [size] * 3
    return list(zip((0.5, 0.75, math.inf), sides, strict=True))


def _between(first: float, final: float, done: float) -> float:
    """From first to final, in equal ratios where both are above 0."""
    return first * (final / first) ** done if first > 0 and final > 0 else first + (final - first) * done


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
        panel.set_prop_cycle(color=colormaps["tab20"].colors)
        for row in rows:
            if row["method"] == method:
                panel.plot(*zip(*row["scores"], strict=True), label=f"{row['class']} {common.short(row['name'])}", lw=1)
        panel.set_title(method, fontsize=8)
        panel.set_xlabel("iteration", fontsize=8)
        panel.set_ylabel("logit of the class", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=6)
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
) -> Iterator[tuple[Tensor, tuple[float, ...], dict[str, int]]]:
    """Image, scores of all steps and counts of each class, from the state kept under `index`, if any.

    The batch is filled up to `shape` with its last class; what is found for the filling comes last.
    """
    batch = common.pad(classes, shape)
    state = kept.load_state(index)
    if state is None or state["classes"] != batch:  # of other company: it was split otherwise then
        state = {"classes": batch, "scores": [], "ascent": None}
    scores_so_far: list[list[float]] = state["scores"]  # (steps, shape)
    counted: list[dict[str, int]] = []  # (shape,)

    def observe(step: int, scores: Tensor, counts: list[dict[str, int]]) -> None:
        scores_so_far.append(scores.tolist())
        counted[:] = counts
        progress.update(len(classes))

    def keep(ascent: dict[str, Any]) -> None:
        kept.save_state(index, {**state, "ascent": ascent})

    progress.update(len(scores_so_far) * len(classes))
    generators = common.seeded_generators(seed, batch)
    images = visualize_classes(
        model, batch, method, generators, observe=observe, keep=keep, resume=state["ascent"], **settings
    )
    return zip(images, zip(*scores_so_far, strict=True), counted, strict=True)


def row_of(k: int, c: int, method: str, image: Tensor, report: common.Report, networks: dict[str, Any]) -> dict:
    """Save an archetype, and say what the networks ("" is the one explained) make of the picture as it was saved."""
    model = networks[""]
    name = model.categories[c]
    path = f"archetypes/{c}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_{method}.png"
    png = io.BytesIO()
    Image.fromarray(common.to_pixels(image)).save(png, format="PNG")
    common.write_file(report.path(path), png.getvalue())
    picture = common.read_image(report.folder / path)
    found = {label: recognition.measure(network, picture, c) for label, network in networks.items()}
    about = {"index": k, "class": c, "name": name, "method": method, "path": path, "files": [path]}
    return about | found.pop("") | {"judges": found} | recognition.colours(picture)


def make_archetypes(
    kept: common.Rows,
    model: common.Classifier,
    judges: dict[str, common.Classifier],
    photos: dict[int, dict],
    classes: Sequence[int],
    settings: dict[str, dict[str, Any]],
    report: common.Report,
) -> None:
    """The rows that are still to be made, batch by batch, each of one method."""
    options, methods = report.options, list(settings)
    shape = min(options.batch_size, len(classes))  # of every batch, see common.explain_batches
    batches = []  # (first, method, indices); the methods in turn, so that the time still needed is known early
    for m in range(len(methods)):
        indices = [k for k in kept.todo if k % len(methods) == m]
        batches += [(start, m, indices[start : start + shape]) for start in range(0, len(indices), shape)]
    total = sum(settings[methods[k % len(methods)]]["steps"] for k in kept.todo)
    with tqdm(total=total, unit="step", disable=None, smoothing=0) as progress:
        for _, m, group in sorted(batches):
            method, of_group = methods[m], [classes[k // len(methods)] for k in group]
            with common.record_nondeterminism(torch.device(options.device)) as chance:
                found = ascend(model, of_group, method, settings[method], options.seed, shape, kept, group[0], progress)
            rows = []
            for k, c, (image, scores, counts) in zip(group, of_group, found, strict=False):
                row = row_of(k, c, method, image, report, {"": model, **judges})
                photo = photos.get(c, {})
                row |= {**counts, "settings": settings[method]}
                row |= {"photo": photo.get("photo"), "photo_probability": photo.get("probability")}
                row["scores"] = [[i, scores[i]] for i in range(0, len(scores), SCORE_EVERY)]
                row["scores"].append([len(scores), row["logit"]])
                rows.append({**row, "nondeterministic": sorted(chance)} if chance else row)
            kept.append(rows)
            kept.remove_state(group[0])


def write_summary(
    rows: list[dict],
    photos: dict[int, dict],
    skipped: list[dict],
    model: common.Classifier,
    judges: dict[str, common.Classifier],
    settings: dict[str, dict[str, Any]],
    report: common.Report,
) -> None:
    """Metrics, tables and figures: a function of the rows, the archetypes and the photos beside them."""
    reference = priors.PHOTOS
    if photos:
        reference = {key: np.mean([photo[key] for photo in photos.values()], 0) for key in priors.PHOTOS}
    results: dict[str, Any] = {"chance_probability": 1 / len(model.categories)}
    results["judges"] = {name: {"weights": judge.weights, "sha256": judge.sha256} for name, judge in judges.items()}
    results["photos"] = recognition.summary(list(photos.values()), judges, reference) if photos else None
    for method in settings:
        own, how = [row for row in rows if row["method"] == method], Settings(**settings[method])
        results[method] = recognition.summary(own, judges, reference) | {
            "starts_drawn_again": sum(row["starts"] - 1 for row in own),
            "steps_without_gradient": sum(row["blind_steps"] for row in own),
            f"classes_with_probability_from_{SURE}": sum(row["probability"] >= SURE for row in own),
            "least_probability": min(row["probability"] for row in own),
            "settings": settings[method],
            "farthest_from_grey": farthest_from_grey(model, how),
            "sides_px": [side for _, side in growing_sizes(model, how, model.input_size)],
        }
    tables = {
        "archetypes.csv": [
            {"steps": row["settings"]["steps"], **{key: row[key] for key in COLUMNS}, **recognition.columns(row)}
            for row in rows
        ],
        "recognised.csv": recognition.shares({kind: results[kind] for kind in (*settings, "photos")}, model.name),
    }
    if judges:
        tables["least_recognised.csv"] = recognition.least_recognised(rows, judges)
    classes = list(dict.fromkeys(row["class"] for row in rows))
    drawn = classes[: report.options.show]
    shown = [row for row in rows if row["class"] in drawn]
    note = f"({len(drawn)} of {len(classes)} classes)"
    figure = draw_archetypes(shown, photos, report.folder, model)
    common.draw_title(
        figure, f"{model.name}: archetypes, with the probability p and the rank that networks give their class {note}"
    )
    common.save_figure(figure, report.path("archetypes.png"))
    figure = draw_scores(shown)
    common.draw_title(figure, f"{model.name}: the climb, of the image as the network sees it {note}")
    common.save_figure(figure, report.path("scores.png"))
    report.finish(rows, skipped, results, tables, model, images=len(photos))


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
        f"MODEL=FILE with its weights; can be repeated; or `none` (default: {recognition.JUDGES[0]})",
    )
    add_options(parser)
    options = parser.parse_args()
    report = common.Report(options, __file__)
    model = common.load_from_options(options)
    asked = range(len(model.categories)) if options.classes == ["all"] else options.classes
    classes = list(dict.fromkeys(common.find_class(str(text), model.categories) for text in asked))
    methods = list(dict.fromkeys(options.methods))
    judges = recognition.load_judges(options.judge, model, options.device)
    photos, skipped = recognition.real_photos(model, judges, classes, options.dataset)

    settings = {method: settings_of(method, options) for method in methods}
    what = common.run_settings(
        options, report.source, model, [(c, photo["photo"], photo["bytes"]) for c, photo in photos.items()]
    )
    what |= {"classes": classes, "methods": methods}
    what |= {"judges": {name: f"{judge.weights}, SHA-256 {judge.sha256}" for name, judge in judges.items()}}
    # row number class * methods + method: a shard has whole classes
    kept = common.Rows(report, options, what, len(classes) * len(methods), unit=len(methods))
    make_archetypes(kept, model, judges, photos, classes, settings, report)
    rows = kept.complete()
    if rows:  # else other shards are still at work, and the last of them writes it
        write_summary(rows, photos, skipped, model, judges, settings, report)


if __name__ == "__main__":
    run(main)
