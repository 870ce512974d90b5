"""Values of a function that are kept, for data sets that DataLoader sends to its workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


class PicklableCache:
    """`functools.lru_cache` around a function, which cannot be pickled; this can, without its content.

    Workers that are not forked (macOS, Windows, any system from Python 3.14 on) get their data set that way.
    """

    def __init__(self, function: Callable[..., Any], maxsize: int):
        self._given = function, maxsize
        self._kept = lru_cache(maxsize)(function)

    def __call__(self, *arguments: int) -> Any:
        return self._kept(*arguments)

    def __reduce__(self):
        return PicklableCache, self._given
