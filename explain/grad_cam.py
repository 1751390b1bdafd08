"""Grad-CAM: where the last layer that still has a height and a width speaks for a class.

The layer is found by running, whatever the network and its modules are called; its gradient comes with any backward
pass that is run anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from explain.rectifiers import graph_nodes

# Operations that only rearrange numbers: feature maps laid out in three dimensions for a mean are no tokens
REARRANGEMENTS = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "clone"}
# The places before such a mean are finer, and say the same
POOLING = {"avg_pool2d", "adaptive_avg_pool2d"}


class HasLogits(Protocol):
    logits: Tensor  # (N, classes), with their graph


Pass = TypeVar("Pass", bound=HasLogits)


def with_grad_cam(run: Callable[[], Pass], images: Tensor) -> tuple[Pass, GradCAM]:
    """Run a forward pass of images (N, 3, H, W), and return it with the Grad-CAM of its layer.

    Chosen is the last output (N, C, h, w) on the way to the logits. Where another head of the network runs after it,
    the pass runs again, so that no more than this one output is kept.
    """
    with GradCAM(images) as cam:
        forward = run()
    chosen = cam.layer_before(forward.logits)
    if chosen not in (None, cam.kept):
        with GradCAM(images, chosen) as cam:
            forward = run()
    cam.watch(chosen)
    return forward, cam


class GradCAM(TorchFunctionMode):
    """Keep the output of a layer in a forward pass of images (N, 3, H, W); `maps` are of the backward pass after it.

    The layer is the operation with the number `keep`, else the last one with a height and a width. Tokens (N, T, D)
    that come after it on the way to the logits make it useless, since their places are mixed from then on: such a
    network (a vision transformer) has no maps.
    """

    def __init__(self, images: Tensor, keep: int | None = None) -> None:
        super().__init__()
        self.images, self.keep = images, keep
        self.features: Tensor | None = None  # (N, C, h, w)
        self.kept: int | None = None  # its number in `layers`
        self.layers: list[tuple[Any, bool]] = []  # node of autograd's graph, and whether the output is a feature map
        self.gradients: list[Tensor] = []  # of the score, by the features

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        rows = max(1, len(self.images))  # an empty batch is run as one image
        if not isinstance(output, Tensor) or not output.requires_grad or output.shape[:1] != (rows,):
            return output
        name = getattr(function, "__name__", "").partition(".")[0].strip("_")  # conv2d.default in an exported graph
        if output.dim() == 4 and min(output.shape[2:]) > 1 and name not in POOLING:
            self._note(output, self._is_feature_map(output))
        elif output.dim() == 3 and output.shape[1] > 1 and name not in REARRANGEMENTS:
            self._note(output, False)
        return output

    def _note(self, output: Tensor, is_feature_map: bool) -> None:
        number = len(self.layers)
        self.layers.append((output.grad_fn, is_feature_map))
        if is_feature_map and self.keep in (None, number):
            self.features, self.kept = output, number

    def _is_feature_map(self, output: Tensor) -> bool:
        """Return whether it is no image before its first layer, and its sides are in the image's ratio.

        Those of attention weights and of channels-last layouts are not, with few exceptions.
        """
        # the strides that each side may have come by, two places at its ends more or less
        (low, high), (least, most) = (
            (side / (places + 2), side / max(places - 2, 0.5))
            for side, places in zip(self.images.shape[2:], output.shape[2:], strict=True)
        )
        return output.shape[1:] != self.images.shape[1:] and max(low, least) <= min(high, most)

    def layer_before(self, logits: Tensor) -> int | None:
        """Return the number of the last layer on the way to the logits; None where tokens come after it, or none is."""
        on_the_way = set(graph_nodes([logits]))
        passed = (number for number, (node, _) in reversed([*enumerate(self.layers)]) if node in on_the_way)
        last = next(passed, None)
        return last if last is not None and self.layers[last][1] else None

    def watch(self, chosen: int | None) -> None:
        """Keep the gradients of the chosen layer, and of no other, from now on."""
        self.layers.clear()  # whose nodes hold what they need for a backward pass
        if chosen is None:
            self.features = None
        else:
            # goes with the graph, and knows nothing of this object: a circle through the graph would stay for ever
            self.features.register_hook(self.gradients.append)

    def maps(self) -> Tensor | None:
        """Return Grad-CAM maps (N, H, W), in logits, of the last backward pass; None without such a layer.

        The channels' sum, each weighted by its mean gradient, where it is above 0; bilinear between the layer's places.
        Selvaraju et al. 2017, section 3, equations 1 and 2.
        """
        if self.features is None or not self.gradients:
            return None
        with torch.inference_mode(False):
            weights = self.gradients[-1].mean((2, 3), keepdim=True)
            coarse = (weights * self.features.detach()).sum(1, keepdim=True).clamp(min=0)  # (N, 1, h, w)
            maps = F.interpolate(coarse, size=self.images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        return maps[: len(self.images)]
