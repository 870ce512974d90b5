"""Values of a function that are kept, for data sets that DataLoader sends to its workers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image


def one(value: Any) -> float:
    return 1


def gigabytes(value: Any) -> float:
    """Of the arrays and pictures in a value, in tuples and dicts too; the rest counts nothing."""
    if isinstance(value, np.ndarray):
        return value.nbytes / 1e9
    if isinstance(value, Image.Image):
        # Pillow keeps a colour pixel in four bytes
        return value.width * value.height * (1 if value.mode in ("L", "P", "1") else 4) / 1e9
    if isinstance(value, Mapping):
        return sum(map(gigabytes, value.values()))
    return sum(map(gigabytes, value)) if isinstance(value, tuple | list) else 0.0


class PicklableCache:
    """A function and what it returned last. `functools.lru_cache` counts values, whatever their size, and cannot be
    pickled; this can, without its content: workers that are not forked (macOS, Windows, any system from Python 3.14 on)
    get their data set that way.

    Args:
        limit: of the sizes of all kept values together; those used longest ago go first.
        size: of a value.
    """

    def __init__(self, function: Callable[..., Any], limit: float, size: Callable[[Any], float] = one):
        self._given = function, limit, size
        self._kept: OrderedDict[tuple, tuple[Any, float]] = OrderedDict()
        self._used = 0.0

    def __call__(self, *arguments: int) -> Any:
        function, limit, size = self._given
        if arguments in self._kept:
            self._kept.move_to_end(arguments)
            return self._kept[arguments][0]
        value = function(*arguments)
        if (own := size(value)) <= limit:
            self._kept[arguments] = value, own
            self._used += own
            while self._used > limit:
                self._used -= self._kept.popitem(last=False)[1][1]
        return value

    def __reduce__(self):
        return PicklableCache, self._given
