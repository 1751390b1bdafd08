"""The last layer on the way to the logits that still has a height and a width, which Grad-CAM explains.

It is found by running, whatever the network and its modules are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from explain.methods.rectifiers import graph_nodes, without_hidden_rectifier

# Operations that only rearrange numbers: feature maps laid out in three dimensions for a mean are no tokens
REARRANGEMENTS = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "clone"}
# The places before a mean over neighbours are finer, and say the same
POOLING = {"avg_pool2d", "adaptive_avg_pool2d"}


def run_with_features(run: Callable[[], Tensor], images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Run a forward pass of images (N, 3, H, W); return its logits and the last feature maps on the way to them.

    The feature maps (N, C, h, w) are None where the network has no such layer, or where tokens (N, T, D) come after it,
    in which places are mixed (a vision transformer). Where another head of the network runs after the layer, the pass
    runs again, so that no more than this one output is kept.
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
    """Keep the feature maps of a forward pass of images (N, 3, H, W): of layer `keep`, else of the last layer.

    In-place rectifiers are kept visible in autograd's graph; see `without_hidden_rectifier`.
    """

    def __init__(self, images: Tensor, keep: int | None = None) -> None:
        super().__init__()
        self.images, self.keep = images, keep
        self.kept: Tensor | None = None  # (N, C, h, w)
        self.kept_number: int | None = None  # in `layers`
        self.layers: list[tuple[Any, bool]] = []  # node of autograd's graph, and whether the output is a feature map

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = without_hidden_rectifier(function, args, kwargs or {})
        if not isinstance(output, Tensor) or not output.requires_grad or output.shape[:1] != (len(self.images),):
            return output
        name = getattr(function, "__name__", "").partition(".")[0].strip("_")  # conv2d.default in an exported graph
        # a weight has four dimensions too: what only passes pooled places on has no other input of that kind
        places = [tensor for tensor in _tensors(args) if tensor.dim() == 4]
        if name in POOLING or (places and all(hasattr(tensor, "pooled_places") for tensor in places)):
            output.pooled_places = True
        elif output.dim() == 4 and min(output.shape[2:]) > 1:
            self.note(output, self.is_feature_map(output))
        elif output.dim() == 3 and output.shape[1] > 1 and name not in REARRANGEMENTS:
            self.note(output, False)
        return output

    def note(self, output: Tensor, is_feature_map: bool) -> None:
        """Note a layer's output, and keep it if it is the one to keep, so far."""
        number = len(self.layers)
        self.layers.append((output.grad_fn, is_feature_map))
        if is_feature_map and self.keep in (None, number):
            self.kept, self.kept_number = output, number

    def is_feature_map(self, output: Tensor) -> bool:
        """Return whether it is no image before its first layer, and its sides are in the image's ratio.

        Those of attention weights and of channels-last layouts are not, with few exceptions.
        """
        # the strides that each side may have come by, two places at its ends more or less
        (low, high), (least, most) = (
            (side / (places + 2), side / max(places - 2, 0.5))
            for side, places in zip(self.images.shape[2:], output.shape[2:], strict=True)
        )
        return output.shape[1:] != self.images.shape[1:] and max(low, least) <= min(high, most)

    def last_before(self, logits: Tensor) -> int | None:
        """Return the number of the last layer on the way to the logits; None if it has tokens, or there is no layer."""
        on_the_way = set(graph_nodes([logits]))
        noted = reversed([*enumerate(self.layers)])
        number = next((number for number, (node, _) in noted if node in on_the_way), None)
        return number if number is not None and self.layers[number][1] else None


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)
