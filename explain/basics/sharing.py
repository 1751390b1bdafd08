"""One forward pass for many maps: functions that return the same result again for the same arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import NoneType
from typing import Any

_results: ContextVar[dict | None] = ContextVar("results", default=None)  # of the block of `shared_results`


@contextmanager
def shared_results(share: bool = True) -> Iterator[None]:
    """Inside the block a `shared` function called again with the same arguments returns its first result.

    So a forward pass and a map serve every map that is made from them, and each method still says all that it does.
    A block inside another takes part in its results, or, with `share` False, keeps nothing.
    """
    outer = _results.get()
    token = _results.set(None if not share else {} if outer is None else outer)
    try:
        yield
    finally:
        _results.reset(token)


def shared(function: Callable) -> Callable:
    """Let a function take part in `shared_results`; elsewhere it is called as ever.

    Arguments are the same if they are the same objects, or equal numbers.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        results = _results.get()
        if results is None:
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        values = given.arguments.values()
        key = (function, *(value if isinstance(value, (int, float, NoneType)) else id(value) for value in values))
        if key not in results:
            results[key] = function(*args, **kwargs), values  # which stay alive, so that no id comes again
        return results[key][0]

    return call


def is_shared() -> bool:
    """Return whether results are shared here, so that a graph will be needed again."""
    return _results.get() is not None
