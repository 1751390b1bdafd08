"""Checkpoints: weights read from a file as data, never as code, and loaded only if they fit the network."""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from explain.basics.errors import UserError, one_line, quantity
from explain.basics.files import sha256_of
from explain.data.labels import as_names

# Where training loops keep a state dict beside the epoch, the optimiser and so on, in the order of preference
KEYS = ("state_dict", "model", "model_state_dict", "net", "network", "params", "ema", "state_dict_ema", "model_ema")
# Where they keep the names of the classes
NAME_KEYS = ("classes", "class_to_idx", "class_names", "idx_to_class")
# Parts that wrappers insert into names: sharded training, gradient checkpointing, torch.compile
INFIXES = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
MAX_PREFIX = 20  # parts of a prefix; in a damaged file a name may have any length
Rename = Callable[[dict[str, Any]], dict[str, Any]]

# Harmless types that training loops save beside the weights, under the names that files have for them. Paths become
# pure paths, which exist on every system.
PATHS = {f"{pure}{kind}Path": f"Pure{kind}Path" for pure in ("", "Pure") for kind in ("Posix", "Windows")}
HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefdFDU"}]
HARMLESS += [(np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
HARMLESS += [(getattr(pathlib, to), f"{m}.{name}") for name, to in PATHS.items() for m in ("pathlib", "pathlib._local")]


class Checkpoint(NamedTuple):
    """Weights from a file, the file's SHA-256 and name, its class names, and notes on what was done to the weights.

    An entry of the state need not be a tensor: a module may keep anything (`get_extra_state`, quantised layers).
    `warnings` are notes that are printed too.
    """

    state: dict[str, Any]
    sha256: str
    source: str
    names: list[str] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def split_key(text: str) -> tuple[Path, str | None]:
    """Split FILE:KEY into the file and the key; an existing file whose own name has a colon takes precedence."""
    file, _, key = text.rpartition(":")
    return (Path(file), key) if file and not Path(text).exists() and Path(file).is_file() else (Path(text), None)


def read_state_dict(path: Path, key: str | None = None) -> Checkpoint:
    """Read a state dict, alone in its file or under a key beside other entries, as data and never as code.

    Floating-point weights become float32. Raises UserError if there is no state dict, and for an unknown `key`.
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
        valid = ", ".join(state_dicts)
        if entry not in state_dicts:
            raise UserError(f"{path} has no state dict under {entry!r}: choose from {valid}")
        if key is None and entry not in KEYS and len(state_dicts) > 1:
            raise UserError(f"{path} has several state dicts: give --weights {path}:KEY, with KEY one of {valid}")
        left = [str(k) for k in entries if str(k) != entry]
        notes.append(f"weights under {entry!r}" + (f"; not used: {', '.join(left)}" if left else ""))
        content = state_dicts[entry]
    floats = {name: t for name, t in content.items() if isinstance(t, Tensor) and t.is_floating_point()}
    converted = {name: t for name, t in floats.items() if t.dtype != torch.float32}
    kinds = Counter(str(tensor.dtype)[6:] for tensor in converted.values())
    notes += [f"{number} tensors converted from {kind} to float32" for kind, number in sorted(kinds.items())]
    state = {**content, **{name: tensor.float() for name, tensor in converted.items()}}
    return Checkpoint(state, sha256, path.name + (f":{key}" if key else ""), names, tuple(notes))


def _read(path: Path) -> tuple[Any, str]:
    """Return the content of a file, read as data, and the file's SHA-256."""
    try:
        if path.name.endswith(".index.json"):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return load_file(path), sha256_of(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # about a TorchScript archive, which is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True), sha256_of(path)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes all of them raise anything; torch advises to run it as code
        kind = re.search(r"GLOBAL (\S+)", str(error))
        holds = f" (it holds a {kind[1].rstrip('.')}, which only code can make)" if kind else ""
        cure = "save model.state_dict() with torch.save or safetensors"
        raise UserError(f"{path} cannot be loaded as data{holds}: {cure}") from None


def _read_shards(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the shards that a safetensors index names, which must be beside it; return also a digest of all files."""
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
    """Return whether a value is an empty dict, or names tensors and contains no dict that does.

    A module's extra state may be anything.
    """
    if not _names_tensors(content):
        return isinstance(content, dict) and not content
    return not any(_names_tensors(v) for k, v in content.items() if not k.endswith("_extra_state"))


def _names_tensors(content: Any) -> bool:
    is_named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    return is_named and any(isinstance(value, Tensor) for value in content.values())


def names_in(content: Mapping[Any, Any]) -> list[str] | None:
    """Return the class names that a checkpoint has under one of NAME_KEYS, in the order of their ids."""
    return next(filter(None, (as_names(content[key]) for key in NAME_KEYS if key in content)), None)


def fit_names(
    state: Mapping[str, Any], own: Mapping[str, Any], rename: Rename = dict
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Return the entries of a state dict under a network's names, notes on the names, and on entries left out.

    `own` is the network's state dict; `rename` gives entries the network's names. DataParallel adds `module.` to all
    names, torch.compile `_orig_mod.`, Lightning `model.`: this function removes the prefix under which all names that
    the network needs are found. If no prefix has them all, it first removes INFIXES and multiplies pruned weights by
    their masks. Of several prefixes it prefers the one with most tensors of the right shape, then one without "ema",
    then the shortest, then the first alphabetically.

    Entries that belong to no module of the network are left out. If no form has all names, the nearest is returned, for
    `load_state` to refuse.
    """
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    for unwraps in (False, True):
        form, notes = _unwrap(state) if unwraps else (state, ())
        found = {prefix: rename(_under(prefix, form)) for prefix in _prefixes(form, len(needed))}
        fits = [prefix for prefix in found if needed <= found[prefix].keys()]
        if fits:
            break
    else:
        return min(found.values(), key=lambda s: len(needed - s.keys()) + len(s.keys() - own.keys())), (), ()

    def rank(prefix: str) -> tuple:
        misshapen = sum(_shape(found[prefix][name]) != _shape(own[name]) for name in needed)
        return misshapen, "ema" in prefix.lower(), len(prefix), prefix

    prefix, *others = sorted(fits, key=rank)
    if prefix:
        taken = len(_under(prefix, form))
        notes += (f"prefix {prefix!r} removed from {'all' if taken == len(form) else taken} names",)
    if others:
        notes += (f"all names are found under {', '.join(map(repr, others))} too",)
    # a further block of a module, or a further number in a sequence, is part of a larger network, which must not pass
    # for this one
    modules = {name.partition(".")[0] for name in own}
    is_sequence = any(map(str.isdecimal, modules))
    head_of = {name: name.partition(".")[0] for name in found[prefix]}
    foreign = {name for name, head in head_of.items() if head not in modules and not (is_sequence and head.isdecimal())}
    fitted = {name: value for name, value in found[prefix].items() if name not in foreign}
    left = [name for name in form if not name.startswith(prefix) or name.removeprefix(prefix) in foreign]
    heads = Counter(name.partition(".")[0] for name in left)
    listed = ", ".join(f"{head} ({number})" for head, number in heads.items())
    return fitted, notes, (f"{quantity(len(left), 'item')} of the weights left out: {listed}",) if left else ()


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries whose names have a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _unwrap(state: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a state dict without INFIXES and with pruned weights multiplied by their masks, and notes on both."""
    unwrapped = {INFIXES.sub("", name): value for name, value in state.items()}
    notes = [f"{infix!r} removed from names" for infix in dict.fromkeys(chain(*map(INFIXES.findall, state)))]
    pruned = 0
    for name in [name for name in unwrapped if name.endswith("_orig")]:
        stem = name.removesuffix("_orig")
        weight, mask = unwrapped[name], unwrapped.get(f"{stem}_mask")
        if _is_stored(weight) and _is_stored(mask) and weight.shape == mask.shape:
            unwrapped[stem] = unwrapped.pop(name) * unwrapped.pop(f"{stem}_mask").to(weight.dtype)
            pruned += 1
    notes += [f"{quantity(pruned, 'pruned weight')} multiplied by the mask"] if pruned else []
    return unwrapped, tuple(notes)


def _is_stored(value: Any) -> bool:
    """Return whether a value is a tensor with memory for all of its numbers: a damaged file may claim any size."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not is_lazy(value)
    return dense and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _prefixes(names: Iterable[str], needed: int) -> list[str]:
    """Return the empty prefix, then those under which at least half as many names are found as are needed."""
    parts = (name.split(".", MAX_PREFIX)[:-1] for name in names)
    counts = Counter(chain.from_iterable(accumulate(heads, "{}{}.".format, initial="") for heads in parts))
    return ["", *(prefix for prefix, number in counts.items() if prefix and 2 * number >= needed)]


def other_sizes(network: nn.Module, state: Mapping[str, Any], classes: int) -> dict[str, int]:
    """Return the num_classes and in_chans of a file's weights if they differ from the network's.

    They are read from the shapes: a tensor that differs only in its first dimension, which is `classes` in the network,
    belongs to the last layer; a tensor with a third of the input channels belongs to the first.
    """
    sizes: dict[str, set[int]] = {"num_classes": set(), "in_chans": set()}
    for name, tensor in network.state_dict().items():
        own, other = _shape(tensor), _shape(state.get(name))
        if own is None or other is None or own == other or len(own) != len(other):
            continue
        if own[0] == classes and own[1:] == other[1:]:
            sizes["num_classes"].add(other[0])
        elif len(own) > 1 and own[1] == 3 * other[1] and (own[0], own[2:]) == (other[0], other[2:]):
            sizes["in_chans"].add(1)
    return {key: values.pop() for key, values in sizes.items() if len(values) == 1 and min(values) > 0}


def load_state(network: nn.Module, state: Mapping[str, Any], path: Path, name: str) -> None:
    """Load a state dict into a network; errors name the file `path` and the network `name`.

    Raises UserError unless every entry fits in name, shape and kind, and is finite.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    other = [key for key in own if key in state and not _takes(own[key], state[key])]
    for key in (other + missing + extra)[:1]:
        raise UserError(
            f"{path} does not fit {name}: {len(missing)} tensors missing, {len(extra)} extra, "
            f"{len(other)} of another shape or kind, such as {key}; give the --model that the file was saved from"
        )
    fitting = OrderedDict(state)
    fitting._metadata = getattr(own, "_metadata", None)  # without versions, some modules look for names of old releases
    try:
        network.load_state_dict(fitting, strict=False)
    except Exception as error:  # a module may raise anything about an entry that is no tensor
        raise UserError(f"{path} does not fit {name} ({one_line(error)}): give the --model of this file") from None
    tensors = {key: t for key, t in network.state_dict().items() if isinstance(t, Tensor) and not is_lazy(t)}
    bad = [key for key, tensor in tensors.items() if not (tensor.is_quantized or tensor.isfinite().all())]
    for key in bad[:1]:
        raise UserError(f"{path} has NaN or infinity in {key} ({len(bad)} tensors): it is damaged")


def load_checkpoint(
    name: str, create: Callable[..., nn.Module], weights: str, classes: int, rename: Rename = dict
) -> tuple[nn.Module, Checkpoint, dict[str, int]]:
    """Build a network with as many classes and input channels as a file's weights have, and load them.

    `create(num_classes=, in_chans=)` builds it, with `classes` by default. Returns the network, the checkpoint, and the
    sizes that differ from the defaults.
    """
    path, key = split_key(weights)
    checkpoint = read_state_dict(path, key)
    network = create()
    state, notes, warnings = fit_names(checkpoint.state, network.state_dict(), rename)
    sizes = other_sizes(network, state, classes)
    if sizes:
        network = create(**sizes)
    load_state(network, state, path, name)
    return network, checkpoint._replace(notes=checkpoint.notes + notes, warnings=warnings), sizes


def _takes(own: Any, value: Any) -> bool:
    """Return whether `value` can replace an entry of a network; a lazy module's, which has no shape yet, takes any."""
    if not (isinstance(own, Tensor) and isinstance(value, Tensor)):
        return isinstance(own, Tensor) == isinstance(value, Tensor)
    kinds = [(t.is_floating_point(), t.layout, t.is_meta, t.is_quantized) for t in (own, value)]
    return kinds[0] == kinds[1] and (_shape(own) == _shape(value) or (is_lazy(own) and _is_stored(value)))


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) and not is_lazy(value) else None
