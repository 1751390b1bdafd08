"""The last layer before the logits whose output has a height and a width: the layer that Grad-CAM explains.

It is found by running the network, whatever its modules are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from explain.methods.rectifiers import graph_nodes, without_hidden_rectifier

# Operations that only rearrange numbers: their outputs with three dimensions need not be tokens
REARRANGEMENTS = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "clone"}
# Means over neighbours: the feature maps before them are finer, and hold the same information
POOLING = {"avg_pool2d", "adaptive_avg_pool2d"}


def run_with_features(run: Callable[[], Tensor], images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Run a forward pass of images (N, 3, H, W); return its logits and the last feature maps on the way to them.

    The feature maps (N, C, h, w) are None if the network has no such layer, or if tokens (N, T, D), which mix all
    places, come after it (a vision transformer). If another head of the network runs after the layer, the pass runs
    again, so that only this output is kept in memory.
    """
    with FeatureMaps(images) as layers:
        logits = run()
    number = layers.last_before(logits)
    if number is None:
        return logits, None
    if number != layers.kept_number:
        with FeatureMaps(images, number) as layers:
            logits = run()
    return logits, layers.kept


class FeatureMaps(TorchFunctionMode):
    """Keep the feature maps of a forward pass of images (N, 3, H, W): those of layer `keep`, else of the last layer.

    In-place rectifiers stay visible in autograd's graph; see `without_hidden_rectifier`.
    """

    def __init__(self, images: Tensor, keep: int | None = None) -> None:
        super().__init__()
        self.images, self.keep = images, keep
        self.kept: Tensor | None = None  # (N, C, h, w)
        self.kept_number: int | None = None  # in `layers`
        self.layers: list[tuple[Any, bool]] = []  # node of autograd's graph, whether the output is a feature map

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = without_hidden_rectifier(function, args, kwargs or {})
        if not isinstance(output, Tensor) or not output.requires_grad or output.shape[:1] != (len(self.images),):
            return output
        name = getattr(function, "__name__", "").partition(".")[0].strip("_")  # conv2d.default in an exported graph
        # an operation on pooled maps alone passes them on; a weight, too, has four dimensions
        places = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() == 4]
        if name in POOLING or (places and all(hasattr(tensor, "pooled_places") for tensor in places)):
            output.pooled_places = True
        elif output.dim() == 4 and min(output.shape[2:]) > 1:
            self.note(output, self.is_feature_map(output))
        elif output.dim() == 3 and output.shape[1] > 1 and name not in REARRANGEMENTS:
            self.note(output, False)
        return output

    def note(self, output: Tensor, is_feature_map: bool) -> None:
        """Add a layer, and keep its output if it is a feature map of layer `keep`, or the last so far."""
        number = len(self.layers)
        self.layers.append((output.grad_fn, is_feature_map))
        if is_feature_map and self.keep in (None, number):
            self.kept, self.kept_number = output, number

    def is_feature_map(self, output: Tensor) -> bool:
        """Return whether the output has the image's aspect ratio, and is not the image itself.

        With few exceptions, attention weights and channels-last layouts have another ratio.
        """
        # the strides from which each side may result, give or take two places at its ends
        (low, high), (least, most) = (
            (side / (places + 2), side / max(places - 2, 0.5))
            for side, places in zip(self.images.shape[2:], output.shape[2:], strict=True)
        )
        return output.shape[1:] != self.images.shape[1:] and max(low, least) <= min(high, most)

    def last_before(self, logits: Tensor) -> int | None:
        """Return the number of the last layer before the logits; None if it has tokens, or if there is no layer."""
        on_the_way = set(graph_nodes([logits]))
        noted = reversed([*enumerate(self.layers)])
        number = next((number for number, (node, _) in noted if node in on_the_way), None)
        return number if number is not None and self.layers[number][1] else None
