"""What becomes of an item that cannot be used: an error, or, where that was asked for, an entry in a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

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


def reason_of(error: DataError) -> str:
    """What it says, as one line that a file in UTF-8 can hold; folders may be called otherwise."""
    return " ".join(str(error).split()).encode(errors="backslashreplace").decode()


def listed(paths: Iterable[Path]) -> Iterator[Path]:
    """For readers: files and folders in order, without hidden ones, which other programs leave behind (`._a.png`).
    Refuses those whose name is none that a table, a list or a message could hold."""
    for path in sorted(path for path in paths if path.name[0] != "."):
        try:
            path.name.encode()
        except UnicodeEncodeError:
            refuse(DataError(f"{path.parent}: the file name {path.name!a} is not UTF-8; one that is would be right"))
        else:
            yield path
