"""Checkpoints: weights read from a file as data, never as code, and loaded only where they fit."""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from explain.errors import UserError
from explain.files import sha256_of

# Where training loops keep a state dict beside the epoch, the optimiser and so on; the first that is there is taken
KEYS = ("state_dict", "model", "model_state_dict", "net", "network", "params", "ema", "state_dict_ema", "model_ema")
# Where they keep the names of the classes
NAME_KEYS = ("classes", "class_to_idx", "class_names", "idx_to_class")

# What training loops put beside the weights and can do no harm, by the names that files have for it. Paths become pure
# ones, which exist on every system.
PATHS = {f"{pure}{kind}Path": f"Pure{kind}Path" for pure in ("", "Pure") for kind in ("Posix", "Windows")}
HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefdFDU"}]
HARMLESS += [(np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
HARMLESS += [(getattr(pathlib, to), f"{m}.{name}") for name, to in PATHS.items() for m in ("pathlib", "pathlib._local")]


class Checkpoint(NamedTuple):
    """Weights from a file, the file's SHA-256, the names of classes that it carries, and what was done to it."""

    state: dict[str, Tensor]
    sha256: str
    names: list[str] | None = None
    notes: tuple[str, ...] = ()


def split_key(text: str) -> tuple[Path, str | None]:
    """Split FILE:KEY into the file and the key; a file whose own name has the colon comes first."""
    file, _, key = text.rpartition(":")
    return (Path(file), key) if file and not Path(text).exists() and Path(file).is_file() else (Path(text), None)


def read_state_dict(path: Path, key: str | None = None) -> Checkpoint:
    """Read a state dict, alone in its file or under a key beside other things, as data and never as code.

    Floating-point weights become float32. Raises UserError for what is none, and for a `key` that is not there.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give --weights a state dict (.pth, .safetensors)")
    content, sha256 = _read(path)
    notes, names = [], None
    if not _is_state_dict(content) or key is not None:
        entries = content if isinstance(content, dict) else {}
        state_dicts = {str(k): v for k, v in entries.items() if isinstance(v, dict) and v and _is_state_dict(v)}
        names = names_in(entries)
        entry = key or next((k for k in KEYS if k in state_dicts), next(iter(state_dicts), None))
        if not state_dicts:
            raise UserError(f"{path} is not a state dict (a tensor under each name): save model.state_dict()")
        if entry not in state_dicts:
            raise UserError(f"{path} has no state dict under {entry!r}: valid are {', '.join(state_dicts)}")
        if key is None and entry not in KEYS and len(state_dicts) > 1:
            raise UserError(
                f"{path} has several state dicts: give --weights {path}:KEY, one of {', '.join(state_dicts)}"
            )
        left = [str(k) for k in entries if str(k) != entry]
        notes.append(f"weights under {entry!r}" + (f"; left: {', '.join(left)}" if left else ""))
        content = state_dicts[entry]
    kinds = Counter(str(t.dtype)[6:] for t in content.values() if t.is_floating_point() and t.dtype != torch.float32)
    notes += [f"{number} tensors converted from {kind} to float32" for kind, number in sorted(kinds.items())]
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}
    return Checkpoint(state, sha256, names, tuple(notes))


def _read(path: Path) -> tuple[Any, str]:
    """Read whatever a file holds, as data; return it with the file's SHA-256."""
    cure = "save model.state_dict() by torch.save or safetensors"
    try:
        if path.name.endswith(".index.json"):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return load_file(path), sha256_of(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # of a TorchScript archive, which is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True), sha256_of(path)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes all raise anything; torch's text advises to run the file as code
        kind = re.search(r"GLOBAL (\S+)", str(error))
        holds = f" (it holds a {kind[1].rstrip('.')}, which only code can make)" if kind else ""
        raise UserError(f"{path} cannot be loaded as data{holds}: {cure}") from None


def _read_shards(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the shards that an index of safetensors names, all beside it."""
    shards = sorted({*json.loads(path.read_bytes())["weight_map"].values()})
    state, digest = {}, hashlib.sha256(path.read_bytes())
    for name in shards:
        shard = path.parent / name
        if Path(name).name != name or not name.endswith(".safetensors") or not shard.is_file():
            raise UserError(f"{path} names {name!r}, which is not a .safetensors file beside it: put all shards there")
        state |= load_file(shard)
        digest.update(bytes.fromhex(sha256_of(shard)))
    return state, digest.hexdigest()


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def names_in(content: Mapping[Any, Any]) -> list[str] | None:
    """Return the names of classes that a checkpoint carries under one of NAME_KEYS, in the order of their ids."""
    return next(filter(None, (as_names(content[key]) for key in NAME_KEYS if key in content)), None)


def as_names(content: Any) -> list[str] | None:
    """Return the names in a list, in {id: name} or in {name: id}, in the order of their ids from 0; None for others."""
    if isinstance(content, Mapping):
        by_id = content
        if content and all(type(value) is int for value in content.values()):
            by_id = {value: key for key, value in content.items()}
        if len(by_id) < len(content) or sorted(map(str, by_id)) != sorted(map(str, range(len(content)))):
            return None
        by_id = {int(key): name for key, name in by_id.items()}
        content = [by_id[i] for i in range(len(by_id))]
    if isinstance(content, (list, tuple)) and content and all(isinstance(name, (str, int)) for name in content):
        return [str(name) for name in content]
    return None


def fit_names(
    state: dict[str, Tensor], own: Collection[str], rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
) -> tuple[dict[str, Tensor], str]:
    """Return the state dict without a prefix that all its names share, and that prefix, where the names fit then.

    `own` are the network's names. `rename` gives tensors the names that the network has for them. DataParallel leaves
    `module.`, torch.compile `_orig_mod.`, Lightning `model.`; any is taken, nested ones too. Where none makes all
    names fit, the nearest form is returned, for `load_state` to refuse.
    """
    needed = {name for name in own if not name.endswith("num_batches_tracked")}

    def misfits(form: tuple[dict[str, Tensor], str]) -> int:
        return len(needed - form[0].keys()) + len(form[0].keys() - {*own})

    forms, prefix = [(rename(state), "")], ""
    while state and misfits(forms[-1]):
        head = next(iter(state)).partition(".")[0] + "."
        if not all(name.startswith(head) and len(name) > len(head) for name in state):
            break
        state, prefix = {name[len(head) :]: tensor for name, tensor in state.items()}, prefix + head
        forms.append((rename(state), prefix))
    return min(forms, key=misfits)


def other_sizes(network: nn.Module, state: dict[str, Tensor], classes: int) -> dict[str, int]:
    """Return num_classes and in_chans of a file's weights where they are not those of the network.

    Read from the shapes alone: tensors that differ only in a first dimension of as many rows as the network has
    `classes` belong to its last layer, and those with a third of the input channels to its first.
    """
    sizes: dict[str, set[int]] = {"num_classes": set(), "in_chans": set()}
    for name, tensor in network.state_dict().items():
        own, other = tensor.shape, state[name].shape if name in state else tensor.shape
        if own == other or len(own) != len(other):
            continue
        if own[0] == classes and own[1:] == other[1:]:
            sizes["num_classes"].add(other[0])
        elif len(own) > 1 and own[1] == 3 * other[1] and (own[0], own[2:]) == (other[0], other[2:]):
            sizes["in_chans"].add(1)
    return {key: values.pop() for key, values in sizes.items() if len(values) == 1 and min(values) > 0}


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
