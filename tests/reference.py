"""Guided backpropagation once more, by other means: hooks on the nodes of autograd's graph.

The scripts see operations as they are called; this sees what autograd recorded of them.
"""

from __future__ import annotations

import torch

RECTIFIERS = ("ReluBackward", "HardtanhBackward", "ThresholdBackward", "ClampMinBackward")


def graph_nodes(tensor: torch.Tensor) -> list:
    """All nodes of the graph behind a tensor."""
    found, todo = [], [tensor.grad_fn]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        todo += [following for following, _ in node.next_functions]
    return found


def guided_gradient(model: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    leaf = images.detach().clone().requires_grad_()
    scores = model(leaf * 1.0).gather(1, classes[:, None]).sum()
    for node in graph_nodes(scores):
        if node.name().startswith(RECTIFIERS):
            node.register_prehook(lambda gradients: tuple(g.clamp(min=0) for g in gradients))
    return torch.autograd.grad(scores, leaf)[0]
