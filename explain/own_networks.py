"""Networks that are in no library: the user's own Python file, called for its network, and torch.export's archives."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

from torch import nn

from explain.errors import UserError, one_line


def is_own(name: str) -> bool:
    """Return whether --model names a file rather than a network of a library."""
    return ".py:" in name or name.endswith((".py", ".pt2"))


def import_network(name: str) -> nn.Module:
    """Return what a function or class in a user's own file, FILE.py:NAME, returns when it is called without arguments.

    Modules beside the file can be imported by it. Raises UserError where there is no such file or name, where the code
    fails, and where it returns no module.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not file.endswith(".py"):
        raise UserError(f"--model {name} names no function: give FILE.py:FUNCTION, which returns the network")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give --model FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"network_in_{path.stem}", path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as for any import: dataclasses look their module up there
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's own code may raise
        raise UserError(f"{path} cannot be imported ({_where(error, path)}): correct it") from None
    make = getattr(module, function, None)
    if not callable(make):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == spec.name]
        valid = [key for key in own if inspect.isroutine(getattr(module, key)) or inspect.isclass(getattr(module, key))]
        raise UserError(f"{path} has no function {function!r}: valid are {', '.join(valid) or 'none'}")
    try:
        network = make()
    except (Exception, SystemExit) as error:
        hint = f"{function}() must return the network when it is called without arguments"
        raise UserError(f"{name} cannot be called ({_where(error, path)}): {hint}") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} returns a {type(network).__name__}: it must return a torch.nn.Module")
    return network


def _where(error: BaseException, path: Path) -> str:
    """Return an error's kind and text, with the last line of the user's file that it went through."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {one_line(error)}" + (f", line {line}" if line else "")
