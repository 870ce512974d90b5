"""What becomes of an item that cannot be used: an error, or, where that was asked for, an entry in a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .records import DataError

_skipped: ContextVar[list[DataError] | None] = ContextVar("skipped", default=None)


@contextmanager
def skipping() -> Iterator[list[DataError]]:
    """While it is open, readers leave out items that they would refuse, and the list tells which and why."""
    skipped: list[DataError] = []
    token = _skipped.set(skipped)
    try:
        yield skipped
    finally:
        _skipped.reset(token)


def refuse(error: DataError) -> None:
    """For readers: raises the error, or notes it, after which the reader goes on with its next item."""
    skipped = _skipped.get()
    if skipped is None:
        raise error
    skipped.append(error)
