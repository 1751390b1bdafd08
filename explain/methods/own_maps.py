"""Map functions from a user's own Python file, with checks of their results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from explain.basics.errors import NoSuchMap, UserError, one_line
from explain.methods.faithfulness import map_tensor
from explain.networks.own_code import import_function, same_surroundings


def import_maps(names: Sequence[str]) -> dict[str, Callable[..., Tensor]]:
    """Import the map functions given as FILE.py:FUNCTION; return them by function name.

    Raises UserError for a file or a function that does not exist, and for two functions of the same name.
    """
    functions: dict[str, Callable[..., Tensor]] = {}
    for name in names:
        kind = name.rpartition(":")[2]
        if kind in functions:
            raise UserError(f"--map names two functions {kind!r}: give one of them another name")
        functions[kind] = _checked(name, import_function(name, "--map"))
    return functions


def _checked(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the map function with its errors and unusable results turned into UserErrors that name it."""

    def checked(model: nn.Module, images: Tensor, classes: Tensor, **settings: Any) -> Tensor:
        try:
            with same_surroundings():
                maps = function(model, images, classes, **settings)
        except NoSuchMap:
            raise
        except Exception as error:  # whatever a user's own code may raise
            raise UserError(f"--map {name} fails ({type(error).__name__}: {one_line(error)}): correct it") from None
        shape = len(images), *images.shape[2:]
        return map_tensor(maps, shape, images.device, of=f"maps of --map {name}", signed=False).detach().to(images)

    checked.__signature__ = inspect.signature(function)  # which may include generators, copies and noise
    return checked
