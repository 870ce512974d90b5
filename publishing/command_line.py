"""How a command fails: one line on stderr that says what is wrong, exit code 2."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from safetensors import SafetensorError

P = ParamSpec("P")
R = TypeVar("R")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""A file or folder that may not be touched, or that lies where the other should."""


class OneLineError(ValueError):
    """What cannot be used as it is, told in one line that names it; the base of all such errors."""


class UsageError(OneLineError):
    """An argument or a model folder that cannot be used."""


class ArgumentParser(argparse.ArgumentParser):
    """Tells what is wrong in one line, instead of after a page of usage; options are written whole."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists what there is)")


def first_line(error: BaseException) -> str:
    """Of what a library says, whose texts may have many lines, or none: then its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Ends bad input, a full disk and a place that may not be touched in one line; errors of the program itself keep
    their traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except OneLineError as error:
            line = _told_by_worker(error)
        except (OSError, SafetensorError) as error:
            if not (line := _untouched(error)):
                raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        raise SystemExit(2)

    return wrapped


def _told_by_worker(error: OneLineError) -> str:
    """What an error says. Of one in a DataLoader's worker torch makes another of its type, whose words are the worker's
    whole traceback; the error's own stand behind its type at the end."""
    kind = type(error)
    return str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2]


def _untouched(error: OSError | SafetensorError) -> str:
    """What could not be read or written, where that is no fault of the program; else empty. safetensors gives the
    number in its text alone."""
    told = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if number in DISK_FULL:
        return f"{name or 'weights'}: cannot be written ({os.strerror(number)})"
    return f"{name}: cannot be read or written ({os.strerror(number)})" if name and number in NOT_OURS else ""


__all__ = ["DISK_FULL", "ArgumentParser", "OneLineError", "UsageError", "first_line", "one_line_errors"]
