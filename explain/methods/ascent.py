"""A gradient ascent's random augmentation, and its state, from which an interrupted one is resumed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain.basics.errors import UserError
from explain.methods import priors
from explain.methods.ascent_settings import Settings
from explain.methods.priors import GREY
from explain.networks.classifier import Classifier
from explain.networks.running import accepts, device_of

START_NOISE = 0.02  # standard deviation around grey: enough for seeds to differ
RESTARTS = 10  # at most, for a class without any gradient at its start
GROW_AT = (0.5, 0.75)  # fractions of the steps after which the image is enlarged


@dataclass
class State:
    """All that the next step depends on, and the record of the steps before; plain values, so that it can be saved."""

    images: Tensor  # (N, 3, side, side) in [0, 1]
    generators: list[Tensor]  # (N,) states of the random generators
    starts: list[int]  # (N,) starting images drawn
    zero_gradient_steps: list[int]  # (N,) steps in which the class had no gradient
    scores: list[list[float]] = field(default_factory=list)  # (step, N) logits of the augmented images
    step: int = 0  # steps done

    @classmethod
    def start(cls, generators: Sequence[torch.Generator], size: int) -> State:
        """Return the state before the first step: images (N, 3, size, size) of grey with a little noise."""
        noise = [torch.randn(3, size, size, generator=g, device=g.device) for g in generators]
        images = torch.stack([(GREY + START_NOISE * sample).clamp(0, 1) for sample in noise])
        return cls(images, [g.get_state() for g in generators], [1] * len(images), [0] * len(images))

    def resume(self, generators: Sequence[torch.Generator]) -> State:
        """Set the generators to what they were in this state, and return it."""
        for generator, generator_state in zip(generators, self.generators, strict=True):
            generator.set_state(generator_state)
        return self

    def update(self, images: Tensor, generators: Sequence[torch.Generator]) -> None:
        """Record the images after a step."""
        self.images, self.generators = images, [g.get_state() for g in generators]
        self.step += 1

    def restart_without_gradient(self, images: Tensor, gradient: Tensor, generators: Sequence[torch.Generator]) -> bool:
        """Replace, in place, the images whose gradient is zero; return False where there are none, or no start is left.

        Where the last layer is a rectifier (SqueezeNet), some logits are 0 with no way up. A new image has blotches of
        a 14th of its side: of the starts tried, these leave the fewest classes of SqueezeNet without a gradient (1.3 %
        of the starts, and no class in all of them; fine noise 3.1 %).
        """
        indices = (gradient == 0).flatten(1).all(1).nonzero()[:, 0].tolist()
        if max(self.starts) > RESTARTS:
            return False
        for n in indices:
            blotches = torch.randn(1, 3, 14, 14, generator=generators[n], device=generators[n].device)
            images[n] = (GREY + 0.2 * F.interpolate(blotches, images.shape[2:], mode="bicubic")[0]).clamp(0, 1)
            self.starts[n] += 1
        return bool(indices)

    def record_step(self, gradient: Tensor, scores: Tensor, classes: Sequence[int], steps: int) -> Tensor:
        """Record the logits (N,) before the step; return the root mean square (N, 1, 1, 1) of each image's gradient.

        Gradients that are zero are counted. Raises UserError where one is not finite, or zero in the first step or in
        more than half of the steps.
        """
        cure = f"in step {self.step}: try another --seed or --rate"
        norm = gradient.square().flatten(1).mean(1).sqrt()
        norms, logits = torch.stack([norm, scores]).cpu().tolist()  # together: a step waits once for its device
        for n, value in enumerate(norms):
            self.zero_gradient_steps[n] += value == 0
            if value == 0 and (self.step == 0 or self.zero_gradient_steps[n] > steps // 2):
                raise UserError(f"the gradient of class {classes[n]} is zero {cure}")
            if not math.isfinite(value):
                raise UserError(f"the gradient of class {classes[n]} is not finite {cure}")
        self.scores.append(logits)
        return norm.view(-1, 1, 1, 1)

    def record(self, n: int, logit: float) -> dict[str, Any]:
        """Return the columns of image n after the last step: how it went, and a hundred logits or a few more.

        `logit` is that of the finished image, the last of them.
        """
        every = max(1, self.step // 100)
        scores = [[step, self.scores[step][n]] for step in range(0, self.step, every)] + [[self.step, logit]]
        return {"starts": self.starts[n], "zero_gradient_steps": self.zero_gradient_steps[n], "scores": scores}


def random_augmentation(
    settings: Settings, generators: Sequence[torch.Generator], side: int, progress: float
) -> Callable[[Tensor], Tensor]:
    """Return the random augmentation of images (N, 3, side, side) in one step; the identity after `augment_until`."""
    if progress >= settings.augment_until:
        return nn.Identity()
    transform, noise = nn.Identity(), torch.zeros(())
    zoom_and_rotation = settings.zoom_from, settings.zoom_to, settings.rotation_degrees
    if zoom_and_rotation != (1, 1, 0):
        transform = priors.random_affine(generators, side, *zoom_and_rotation)
    if settings.noise:
        noise = priors.random_noise(generators, side, settings.noise)  # (N, 3, side, side)
    return lambda images: transform(images) + noise.to(images.device)


def check_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, classes: Sequence[int]
) -> list[torch.Generator]:
    """Return a generator for each class: the one given, or torch's own, for all; or the one of each."""
    generator = generator or torch.default_generator
    generators = [generator] * len(classes) if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != len(classes):
        raise UserError(f"{len(generators)} generators for {len(classes)} classes: give one, or one per class")
    return generators


def square_side(size: int | Sequence[int] | None) -> int:
    """Return the side of an image, in pixels, from its size as a number, (H, W) or (3, H, W)."""
    sides = list(size)[-2:] if isinstance(size, Iterable) else [size or 0]
    if len({*sides}) != 1 or not sides[0] >= 1:
        raise UserError(f"archetypes are square: give size, one number of pixels, not {size}")
    return int(sides[0])


def growing_sides(model: nn.Module, settings: Settings, size: int) -> list[int]:
    """Return the side of the images, in pixels, at the start and each time that they grow; the last is `size`.

    All are `size` where the network takes no other (vision transformers).
    """
    sides = [min(size, 16 * math.ceil(size * settings.first_size**power / 16)) for power in (1, 0.5, 0)]
    if sides[0] < size and not accepts(model, torch.zeros(1, 3, sides[0], sides[0], device=device_of(model))):
        return [size] * 3
    return sides


def check_network(options: argparse.Namespace, methods: Collection[Settings], model: Classifier) -> None:
    """Raise UserError for an option that has no effect on this network."""
    distance, fraction, size = options.max_grey_distance, options.first_size or 1, model.input_size
    if distance and priors.grey_distance_limit(model, distance) != distance:
        raise UserError(
            f"--max-grey-distance {distance:g} has no effect, since {model.name} has batch norm: leave it out"
        )
    if fraction < 1 and all(growing_sides(model, method, size)[0] == size for method in methods):
        raise UserError(
            f"--first-size {fraction:g} has no effect, since {model.name} takes images of {size} px in every step "
            "(smaller sides are multiples of 16): leave it out"
        )


def resize(images: Tensor, side: int) -> Tensor:
    """Return images (N, 3, H, W) at the size (N, 3, side, side)."""
    same = images.shape[-1] == side
    return images if same else F.interpolate(images, (side, side), mode="bicubic").clamp(0, 1)
