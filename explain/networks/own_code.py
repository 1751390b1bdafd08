"""Networks of no library: made by a function of the user's own Python file, or read from an archive of torch.export."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from explain.basics.errors import UserError, one_line, quantity


def own_file(name: str) -> Path | None:
    """Return the file that --model or --map names (FILE.py:NAME, FILE.pt2); None for a network of a library."""
    match = re.fullmatch(r"(.*\.py):.*|(.*\.(?:py|pt2))", name)
    return Path(match[1] or match[2]) if match else None


def load_exported(path: Path) -> nn.Module:
    """Return the network of an archive written by torch.export.save, for batches of any size.

    torch runs the archive as a program instead of reading it as data. Gradients, guided ones too, equal the
    exported network's; dropout is not exported. Raises UserError for other files, and for a fixed batch size.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give --model an archive written by torch.export.save")
    try:
        exported = torch.export.load(path)
    except Exception as error:  # a damaged file makes torch raise anything
        raise UserError(f"{path} is not an archive of torch.export ({one_line(error)}): save it again") from None
    shapes = [node.meta["val"].shape for node in exported.graph.find_nodes(op="placeholder")][-1:]
    sizes = [shape[0] for shape in shapes if isinstance(shape[0], torch.SymInt)]
    limits = [exported.range_constraints.get(size.node.expr) for size in sizes]
    # most ranges leave out 0 and 1, which work all the same
    if not limits or (limits[0] is not None and (limits[0].lower > 2 or limits[0].upper < 1 << 31)):
        cure = "export it with a dynamic batch dimension, dynamic_shapes=({0: torch.export.Dim('batch')},)"
        raise UserError(f"{path} does not take batches of any size: {cure}, or give --model FILE.py:FUNCTION")
    network = exported.module()
    for method in ("train", "eval"):
        network.__dict__.pop(method, None)  # torch's own raise an error, since a graph has no modes
    return network


def network_maker(name: str) -> Callable[[], nn.Module]:
    """Return a function without arguments that makes a network: NAME of FILE.py:NAME, or a reader of FILE.pt2.

    Raises UserError as `import_function` does; the returned function raises it if the user's function fails or does not
    return a module.
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
    """Return whether a network is untrained, and a note; it is if a second call of `make` returns other parameters.

    If the network is made when its file is imported, the file is imported again. Lazy parameters are also untrained.
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
    differ = f"{len(random)} of {quantity(len(own), 'parameter')} (such as {random[0]}) differ when it is called again"
    return True, [f"{differ}, so they are untrained: give --weights FILE"]


def import_function(name: str, option: str) -> Callable:
    """Return the function or class that FILE.py:NAME, given by an `option`, names.

    The file can import modules beside it. Raises UserError if the file or the name does not exist, or the code fails.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not file.endswith(".py"):
        raise UserError(f"{option} {name} names no function: give FILE.py:FUNCTION")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give {option} FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"code_in_{path.stem}", path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as any import does; dataclasses look their module up there
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    try:
        with same_surroundings():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        raise UserError(f"{path} cannot be imported ({_where(error, path)}): correct it") from None
    found = getattr(module, function, None)
    if not callable(found):
        own = {key: value for key, value in vars(module).items() if callable(value)}
        valid = [key for key, value in own.items() if getattr(value, "__module__", None) == module.__name__]
        raise UserError(f"{path} has no function {function!r}: choose from {', '.join(valid) or 'none'}")
    return found


@contextmanager
def same_surroundings() -> Iterator[None]:
    """Restore the working directory and torch's default type, which a user's own code may change.

    The paths on the command line are relative to the former, and images have the latter.
    """
    directory, dtype = os.getcwd(), torch.get_default_dtype()
    try:
        yield
    finally:
        os.chdir(directory)
        torch.set_default_dtype(dtype)


def _where(error: BaseException, path: Path) -> str:
    """Return an error's type and text, and the last line of the user's file in its traceback."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {one_line(error)}" + (f", line {line}" if line else "")
