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
    odd = [k for k, v in state.items() if v.is_nested or v.is_quantized or v.is_meta or v.layout != torch.strided]
    for key in odd[:1]:
        raise UserError(f"{path} does not have plain values in {key} ({len(odd)} tensors): save dense tensors")
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    for key in (misshapen + missing + extra)[:1]:
        raise UserError(
            f"{path} does not fit {name}: {len(missing)} tensors missing, {len(extra)} extra, "
            f"{len(misshapen)} of another shape, {key} first; give the --model that the file was saved from"
        )
    cast = [key for key, tensor in state.items() if tensor.is_floating_point() != own[key].is_floating_point()]
    for key in cast[:1]:
        kinds = f"{state[key].dtype} in {key}, not {own[key].dtype}"
        raise UserError(f"{path} does not fit {name}: {kinds} ({len(cast)} tensors of another kind); convert it first")
    network.load_state_dict(state, strict=False)
    bad = [key for key, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    for key in bad[:1]:
        raise UserError(f"{path} has NaN or infinity in {key} ({len(bad)} tensors): it is damaged")
