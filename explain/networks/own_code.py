"""Networks that are in no library: the user's own Python file, called for its network, and torch.export's archives."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from explain.basics.errors import UserError, one_line, quantity


def is_own(name: str) -> bool:
    """Return whether --model names a file rather than a network of a library."""
    return ".py:" in name or name.endswith((".py", ".pt2"))


def own_file(name: str) -> Path:
    """Return the file that --model names."""
    return Path(name if name.endswith((".py", ".pt2")) else name.rpartition(":")[0])


def load_exported(path: Path) -> nn.Module:
    """Return the network of an archive that torch.export.save has written, for images of any batch size.

    torch reads it as it runs a program, not as data. Gradients, guided ones too, are those of the network that was
    exported; dropout is not in it. Raises UserError for other files, and for an archive of one batch size.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give --model an archive that torch.export.save has written")
    try:
        exported = torch.export.load(path)
    except Exception as error:  # a damaged file makes torch raise anything
        raise UserError(f"{path} is not an archive of torch.export ({one_line(error)}): save it again") from None
    shapes = [node.meta["val"].shape for node in exported.graph.find_nodes(op="placeholder")][-1:]
    sizes = [shape[0] for shape in shapes if isinstance(shape[0], torch.SymInt)]
    limits = [exported.range_constraints.get(size.node.expr) for size in sizes]
    bounded = any(limit is not None and (limit.lower > 2 or limit.upper < 1 << 31) for limit in limits)
    if bounded or not limits:  # 0 and 1 are outside of most ranges, and are allowed
        takes = f"{limits[0].lower} to {limits[0].upper} images" if bounded else "one size"
        raise UserError(
            f"{path} takes batches of {takes}: export it with a dynamic batch dimension, dynamic_shapes=({{0: "
            "torch.export.Dim('batch')},), or give --model FILE.py:FUNCTION, on which all exercises work"
        )
    network = exported.module()
    for method in ("train", "eval"):
        network.__dict__.pop(method, None)  # torch's refuse to be called; a graph has no modes
    return network


def network_maker(name: str) -> Callable[[], nn.Module]:
    """Return the function or class of a user's own file, FILE.py:NAME, that makes a network without arguments.

    FILE.pt2 is an archive, see `load_exported`. Raises UserError where `import_function` does; what is returned raises
    it where the user's function fails or returns no module.
    """
    if name.endswith(".pt2"):
        return partial(load_exported, Path(name))
    function = import_function(name, "--model")

    def make() -> nn.Module:
        try:
            with same_surroundings():
                network = function()
        except (Exception, SystemExit) as error:
            file, _, own_name = name.rpartition(":")
            hint = f"{own_name}() must return the network when it is called without arguments"
            raise UserError(f"{name} cannot be called ({_where(error, Path(file))}): {hint}") from None
        if not isinstance(network, nn.Module):
            raise UserError(f"{name} returns a {type(network).__name__}: it must return a torch.nn.Module")
        return network

    return make


def try_weights(name: str, network: nn.Module, make: Callable[[], nn.Module]) -> tuple[bool, list[str]]:
    """Return whether a network is untrained, and a note: it is if `make` gives other parameters when called again.

    A network that is made when its file is imported is imported again. Lazy parameters are untrained, too.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            again = make()
            again = network_maker(name)() if again is network else again
    except UserError as error:
        return False, [f"whether its weights are trained is unknown, since a second call fails: {error}"]
    own, others = dict(network.named_parameters()), dict(again.named_parameters())
    random = [key for key, p in own.items() if is_lazy(p) or not (key in others and p.equal(others[key]))]
    if not random:
        return False, []
    differ = f"{len(random)} of {quantity(len(own), 'parameter')} ({random[0]} first) differ when it is called again"
    return True, [f"{differ}, so they are untrained: give --weights FILE"]


def import_function(name: str, option: str) -> Callable:
    """Return the function or class NAME of a user's own file, FILE.py:NAME, given by an option.

    Modules beside the file can be imported by it. Raises UserError where there is no such file or name, and where the
    code fails.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not file.endswith(".py"):
        raise UserError(f"{option} {name} names no function: give FILE.py:FUNCTION")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give {option} FILE.py:FUNCTION")
    module = _import_file(path)
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        valid = [key for key in own if inspect.isroutine(getattr(module, key)) or inspect.isclass(getattr(module, key))]
        raise UserError(f"{path} has no function {function!r}: valid are {', '.join(valid) or 'none'}")
    return found


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"code_in_{path.stem}", path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as for any import: dataclasses look their module up there
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    try:
        with same_surroundings():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's own code may raise
        raise UserError(f"{path} cannot be imported ({_where(error, path)}): correct it") from None
    return module


@contextmanager
def same_surroundings() -> Iterator[None]:
    """Give this process its working directory and torch's default type back, whatever a user's own code sets.

    The other files of the command line are relative to the one, and images have the other.
    """
    directory, dtype = os.getcwd(), torch.get_default_dtype()
    try:
        yield
    finally:
        os.chdir(directory)
        torch.set_default_dtype(dtype)


def _where(error: BaseException, path: Path) -> str:
    """Return an error's kind and text, with the last line of the user's file that it went through."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {one_line(error)}" + (f", line {line}" if line else "")
