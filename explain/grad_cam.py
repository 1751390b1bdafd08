"""Grad-CAM: where the last layer that still has a height and a width speaks for a class.

The layer is found by running, whatever the network and its modules are called; its gradient comes with any backward
pass that is run anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What only rearranges numbers: feature maps that are laid out in three dimensions for a mean are no tokens
REARRANGEMENTS = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "clone"}


class GradCAM(TorchFunctionMode):
    """Run a forward pass of images (N, 3, H, W) inside the block, then a backward pass; `maps` are those of the latter.

    Chosen is the last output (N, C, h, w) of any operation, module or function. Tokens (N, T, D) that come after it
    make it useless, since their places are mixed from then on: such a network (a vision transformer) has no maps.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.features: Tensor | None = None  # (N, C, h, w)
        self.gradients: list[Tensor] = []  # of the score, by the features

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        rows = max(1, len(self.images))  # an empty batch is run as one image
        if not isinstance(output, Tensor) or not output.requires_grad or output.shape[:1] != (rows,):
            return output
        name = getattr(function, "__name__", "").rstrip("_")
        if output.dim() == 4 and min(output.shape[2:]) > 1:
            self.features = output if self._is_feature_map(output) else None
        elif output.dim() == 3 and output.shape[1] > 1 and name not in REARRANGEMENTS:
            self.features = None
        return output

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

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.features is not None and error[0] is None:
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
