"""2c: which image does the network score highest for a class?

The archetype of class c is argmax_I S_c(I) - l2 * ||I - grey||^2, where S_c is the class's logit; gradient ascent looks
for it, starting from seeded noise (Simonyan et al. 2014, Deep Inside Convolutional Networks, section 2). There are
three methods, from no prior to a strong prior:

  plain     the objective alone: the network is certain, but other networks hardly ever recognise the class
  gaussian  blurs the image with a Gaussian kernel every few steps, since ascent favours high frequencies, which raise
            the logit but show nothing (Yosinski et al. 2015, Understanding Neural Networks Through Deep Visualization,
            section 3). Each step favours low frequencies, crops and rotates the image at random (Olah et al. 2017,
            Feature Visualization), and adds noise (as in SmoothGrad, Smilkov et al. 2017)
  natural   like gaussian, but also pulls the statistics of the network's channels towards those of photos (Yin et al.
            2020, Dreaming to Distill, section 3.1)

The priors are in explain/methods/priors.py. How well an archetype is recognised is measured by judges, networks that
had no part in making it (explain/methods/archetypes.py).

    python 2c_class_visualization.py                                           # six classes, three methods
    python 2c_class_visualization.py --classes tarantula --methods gaussian --steps 80     # quick
    python 2c_class_visualization.py --classes all --methods natural    # 1,000 classes: takes hours, can be resumed
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from explain.run.shell import answer_early, run

from explain.basics.options import JUDGES, add_settings, change_settings, replace_settings
from explain.methods.ascent_settings import Settings, anneal, check_effect
from explain.run.command_line import exercise_parser

# green snake, tarantula, strawberry, dalmatian, spoonbill, bald eagle
CLASSES = ["55", "76", "949", "251", "129", "22"]
# Chosen with efficientnet_lite0 by the judgement of efficientnet_lite2 and by eye; all but the number of steps and the
# noise on classes that are neither default ones nor among those reported (docs/archetypes.md). Noise almost to the end
# leaves only what stands out from it; low frequencies, and a small image at first, give that a shape; close crops give
# detail, distant ones the whole. A kernel much wider than a pixel removes what lies between outline and grain; after
# the last blur the image regains as much high frequency as photos have.
GAUSSIAN = Settings(
    steps=340,
    rate=0.08,
    final_rate=0.008,
    first_size=0.57,
    l2=0.005,
    max_grey_distance=0.25,
    zoom_from=0.5,
    zoom_to=2.0,
    rotation_degrees=10,
    noise=0.16,
    augment_until=0.95,
    blur_every=4,
    blur_px=1.0,
    final_blur_px=0.5,
    contrast=0.16,
    precondition=True,
)
METHODS: dict[str, Settings] = {
    "plain": Settings(),
    "gaussian": GAUSSIAN,
    # the statistics smooth the image and give it contrast; a weaker kernel leaves more detail
    "natural": dataclasses.replace(
        GAUSSIAN, steps=400, noise=0.2, statistics=30, blur_every=8, blur_px=0.5, contrast=0
    ),
}


def parse_options() -> argparse.Namespace:
    parser = exercise_parser(__doc__)
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help=f"classes to visualise, by id or name, or `all` (default: {' '.join(CLASSES)}; the first six for a "
        "network without ImageNet's 1,000 classes)",
    )
    methods = "methods to use; an option below, such as --blur-every, applies to all of them"
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help=methods)
    parser.add_argument(
        "--judge",
        action="append",
        metavar="MODEL",
        help="network that judges the archetypes and has no part in making them: a name as for --model, or NAME=FILE "
        f"to load its weights from a file; can be repeated; `none` for no judge (default: {JUDGES[0]})",
    )
    add_settings(parser, METHODS)
    options = parser.parse_args()
    check_effect(options, settings_of(options).values())
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Settings]:
    """Return the settings of each method asked for."""
    return {method: replace_settings(METHODS[method], options) for method in dict.fromkeys(options.methods)}


if __name__ == "__main__":
    answer_early(parse_options)

import torch
from torch import Tensor, nn
from tqdm import tqdm

import common
from explain.methods import archetypes, ascent, priors
from explain.networks.running import device_of
from explain.report import archetypes as report


@torch.inference_mode(False)  # gradients, where it is called under torch.inference_mode(), too
def visualize_classes(
    model: nn.Module,
    classes: common.Classes,
    method: str,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    size: int | Sequence[int] | None = None,
    state: ascent.State | None = None,
    on_step: Callable[[ascent.State], None] = lambda state: None,
    **settings: float,
) -> Tensor:
    """Return an image of each class, made by gradient ascent in one batch: (N, 3, size, size) in [0, 1].

    `classes` as in `common.forward_pass`; `method` is one of METHODS, and `settings` replace some of its Settings.
    `size`, in pixels, is one number, or a pair of equal numbers; it defaults to the model's `input_size`. With a list
    of generators, one per class, an image depends neither on the other classes nor on their order. If a `state` is
    given, the ascent resumes from it and ends at the same images; `on_step` is called with the state before each step
    and after the last. Raises UserError for arguments that do not fit, and if a gradient is not finite, or is zero too
    often. Simonyan et al. 2014, section 2.
    """
    if method not in METHODS:
        raise common.UserError(f"no method is named {method!r}: choose from {', '.join(METHODS)}")
    settings = change_settings(METHODS[method], settings)
    size, classes = ascent.square_side(size or getattr(model, "input_size", None)), common.class_ids(classes)
    if not classes or None in classes:
        raise common.UserError(f"classes must be one or more class ids, not {classes}: give ids, as in [55, 76]")
    generators = ascent.check_generators(generator, classes)
    sides, device = ascent.growing_sides(model, settings, size), device_of(model)
    limit = priors.grey_distance_limit(model, settings.max_grey_distance)
    layers = priors.channel_statistics(model) if settings.statistics else []
    blurs = settings.blurs()

    # 1. start from grey with a little noise
    state = state.resume(generators) if state else ascent.State.start(generators, size)
    for step in range(state.step, settings.steps):
        on_step(state)
        progress = step / max(settings.steps - 1, 1)  # 0 in the first step, 1 in the last

        # 2. enlarge the images, which are small at first
        side = size if step == settings.steps - 1 else sides[bisect.bisect(ascent.GROW_AT, progress)]
        images = ascent.resize(state.images.to(device), side)  # (N, 3, side, side)

        # 3. the gradient of the logits for a random augmentation of the images, and of the distance to the statistics
        augment = ascent.random_augmentation(settings, generators, side, progress)
        with priors.statistics_prior(layers if step else [], settings.statistics):
            gradient, scores = logit_gradient(model, images, classes, augment)
        while step == 0 and state.restart_without_gradient(images, gradient, generators):
            gradient, scores = logit_gradient(model, images, classes, augment)
        norm = state.record_step(gradient, scores, classes, settings.steps)

        # 4. one step uphill, of length `rate` in all networks; the L2 term is scaled like the gradient
        gradient = priors.precondition(gradient) if settings.precondition else gradient
        rate = anneal(settings.rate, settings.final_rate, progress)
        images = images + torch.where(norm > 0, rate / norm, 0) * (gradient - 2 * settings.l2 * (images - priors.GREY))

        # 5. blur, and restore the contrast that it takes
        if step in blurs:
            sigma_px, contrast = blurs[step]
            images = priors.with_contrast(gaussian_blur(images, sigma_px), contrast)

        # 6. project onto the values that an image can have: [0, 1]
        state.update(priors.near_grey(images.clamp(0, 1), limit), generators)
    on_step(state)
    return state.images


def logit_gradient(
    model: nn.Module, images: Tensor, classes: Sequence[int], augment: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the gradient (N, 3, S, S) by the images of the logits of their augmentation, and these logits (N,)."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        inputs = augment(leaf)
    gradient, scores = common.class_score_gradient(model, inputs.detach(), classes)
    return torch.autograd.grad(inputs, leaf, gradient)[0], scores


def gaussian_blur(images: Tensor, sigma_px: float) -> Tensor:
    """Return images (N, C, H, W) blurred by a Gaussian kernel of standard deviation `sigma_px`, one axis at a time.

    The image wraps around at its edges, so that the border is not darkened and every channel keeps its mean.
    """
    for axis in (2, 3):
        side = images.shape[axis]
        radius = min(math.ceil(3 * sigma_px), (side - 1) // 2)
        if radius > 0:
            kernel = [math.exp(-0.5 * (offset / sigma_px) ** 2) for offset in range(-radius, radius + 1)]
            total = sum(kernel)
            before, after = images.narrow(axis, side - radius, radius), images.narrow(axis, 0, radius)
            wrapped = torch.cat([before, images, after], axis)
            images = torch.zeros_like(images)
            for k, weight in enumerate(kernel):  # faster than a convolution, which is made for many channels
                images.add_(wrapped.narrow(axis, k, side), alpha=weight / total)
    return images


# ------------------------------------------------------------------------------------------------
# The script

KEEP_EVERY = 50  # steps between the states that are saved for resuming


def run_ascent(
    model: common.Classifier,
    classes: list[int],
    method: str,
    settings: Settings,
    store: common.Rows,
    index: int,
    progress: tqdm,
) -> tuple[Tensor, ascent.State]:
    """Return the archetypes of an ascent and its last state; it resumes from, and saves, the state under `index`."""
    saved = store.load_state(index)
    generators, done = common.seeded_generators(store.output.options.seed, classes), progress.n
    resumable = saved is not None and saved.pop("classes") == classes  # else it was split into other batches
    state = ascent.State(**saved) if resumable else ascent.State.start(generators, model.input_size)

    def on_step(state: ascent.State) -> None:
        progress.update(done + state.step - progress.n)
        if state.step % KEEP_EVERY == 0 and 0 < state.step < settings.steps:
            store.save_state(index, {"classes": classes, **vars(state)})

    values = dataclasses.asdict(settings)
    return visualize_classes(model, classes, method, generators, model.input_size, state, on_step, **values), state


def make_archetypes(
    store: common.Rows,
    model: common.Classifier,
    judge_networks: dict[str, common.Classifier],
    classes: Sequence[int],
    settings: dict[str, Settings],
) -> None:
    """Make the archetypes that have no row yet, in batches of one method each."""
    options, methods = store.output.options, list(settings)
    batch_size = min(options.batch_size, len(classes))  # of every batch, see common.explain_batches
    batches = []  # (method, row numbers)
    for m, method in enumerate(methods):
        todo = [k for k in store.todo if k % len(methods) == m]
        batches += [(method, todo[start : start + batch_size]) for start in range(0, len(todo), batch_size)]
    total = sum(settings[method].steps for method, _ in batches)
    with common.progress(total, "steps", smoothing=0) as progress:
        for method, numbers in batches:
            batch = common.pad([classes[k // len(methods)] for k in numbers], batch_size)
            with common.record_nondeterminism(torch.device(options.device)) as operations:
                images, state = run_ascent(model, batch, method, settings[method], store, numbers[0], progress)
            rows = []
            for n, k in enumerate(numbers):
                row = archetypes.save(images[n], batch[n], method, model, judge_networks, store.output.file)
                row |= {"index": k, "settings": dataclasses.asdict(settings[method])} | state.record(n, row["logit"])
                rows.append({**row, "nondeterministic": sorted(operations)} if operations else row)
            store.append(rows)
            store.remove_state(numbers[0])


def main() -> None:
    options = common.resolve_options(parse_options())
    settings = settings_of(options)
    output = common.OutputFolder(options, __file__)
    model = common.load_from_options(options)
    ascent.check_network(options, settings.values(), model)
    every_class = [*map(str, range(len(model.categories)))]
    requested = options.classes or (CLASSES if len(every_class) == 1000 else every_class[: len(CLASSES)])
    requested = every_class if requested == ["all"] else requested
    classes = list(dict.fromkeys(common.find_classes(requested, model.categories, model.wnids)))
    judge_networks = archetypes.load_judges(options.judge, model, options.device, options.whole)

    run_settings = common.run_settings(options, output.source, model, inputs=[])
    run_settings |= {"classes": classes, "methods": list(settings)}
    run_settings["judges"] = {name: f"{j.weights}, SHA-256 {j.sha256}" for name, j in judge_networks.items()}
    # row number class * methods + method, so that a shard has whole classes
    store = common.Rows(output, options, run_settings, len(classes) * len(settings), unit=len(settings))
    make_archetypes(store, model, judge_networks, classes, settings)
    rows, files = store.complete(), []
    if any(Path(options.dataset, "DL_data_p").glob("[!.]*/*")):  # archetypes need no dataset
        files = common.label_images(common.validation_images(options.dataset), model, options.dataset)
    photos, skipped = archetypes.describe_photos(files, classes, model, judge_networks)
    report.write(rows, photos, skipped, model, judge_networks, settings, output)


if __name__ == "__main__":
    run(main)
