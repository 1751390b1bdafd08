"""The state of a gradient ascent between two steps: its start, what an interrupted one resumes from, its checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from explain.basics.errors import UserError
from explain.methods.priors import GREY

START_NOISE = 0.02  # standard deviation around grey: enough for seeds to differ
RESTARTS = 10  # at most, for a class without any gradient at its start


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
