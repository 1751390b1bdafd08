"""Sharing of results: one forward pass serves many maps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_results: ContextVar[dict | None] = ContextVar("results", default=None)  # of the block of `shared_results`


@contextmanager
def shared_results(share: bool = True) -> Iterator[None]:
    """Inside the block, a `shared` function that is called again with the same arguments returns its first result.

    So several maps can use one forward pass, though each method asks for it by itself. A nested block shares the
    results of the outer one; with `share` False, nothing is kept in the block.
    """
    outer = _results.get()
    token = _results.set(None if not share else {} if outer is None else outer)
    try:
        yield
    finally:
        _results.reset(token)


def shared(function: Callable) -> Callable:
    """Let a function's results be shared inside `shared_results`; outside, it is called as usual.

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
        key = (function, *(value if isinstance(value, (int, float)) else id(value) for value in values))
        if key not in results:
            results[key] = function(*args, **kwargs), values  # kept alive, so that no id is used again
        return results[key][0]

    return call


def is_shared() -> bool:
    """Return whether results are shared at this point, so that a graph may be needed again."""
    return _results.get() is not None
