"""Checkpoints: weights read from a file as data, never as code, and loaded only where they fit."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from explain.errors import UserError
from explain.files import sha256_of


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict as data, never as code; return it with the file's SHA-256."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: give --weights a state dict (.pth, .safetensors)")
    sha256 = sha256_of(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a TorchScript archive, which is refused anyway
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file makes both raise anything; torch's text advises to run the file as code
        cure = "save model.state_dict() by torch.save or safetensors"
        raise UserError(f"{path} cannot be loaded as data: {cure}") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path} is not a state dict (a tensor under each name): save model.state_dict()")
    return state, sha256


def load_state(network: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    """Load a state dict into a network where it fits in name, shape and kind and is finite; else raise UserError.

    `path` and `name` stand for the file and the network in errors.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    other = [key for key in own if key in state and _form(own[key]) != _form(state[key])]
    for key in (other + missing + extra)[:1]:
        raise UserError(
            f"{path} does not fit {name}: {len(missing)} tensors missing, {len(extra)} extra, "
            f"{len(other)} of another shape or kind, {key} first; give the --model that the file was saved from"
        )
    network.load_state_dict(state, strict=False)
    bad = [key for key, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    for key in bad[:1]:
        raise UserError(f"{path} has NaN or infinity in {key} ({len(bad)} tensors): it is damaged")


def _form(tensor: Tensor) -> tuple[torch.Size, bool, torch.layout, bool]:
    return tensor.shape, tensor.is_floating_point(), tensor.layout, tensor.is_meta
