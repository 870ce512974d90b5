"""How a command of this project fails: one line that says what is wrong, exit code 2."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NoReturn, ParamSpec, TypeVar

from safetensors import SafetensorError

from publishing.hub import DISK_FULL, HubError

from .records import DataError

P = ParamSpec("P")
R = TypeVar("R")


class UsageError(ValueError):
    """An argument or a model folder that cannot be used, told in one line."""


class ArgumentParser(argparse.ArgumentParser):
    """Tells what is wrong in one line, instead of after a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists what there is)")


def _argument_type(cast: Callable[[str], Any], fits: Callable[[Any], bool], right: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = cast(text)
            if fits(value):
                return value
        except (ValueError, ZeroDivisionError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r}: {right} would be right")

    return read


positive = _argument_type(int, lambda value: value >= 1, "1 or more")
not_negative = _argument_type(int, lambda value: value >= 0, "0 or more")
above_zero = _argument_type(float, lambda value: 0 < value < float("inf"), "a number above 0")
up_to_1 = _argument_type(str, lambda text: 0 < Fraction(text) <= 1, "a fraction above 0 and up to 1, such as 1/30,")
"""Types of arguments; the last is a fraction and stays a text."""

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""A file or folder that may not be touched, or that lies where the other should."""


def one_line_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Turns bad input, a full disk and a place that may not be touched into one line on stderr and exit code 2; errors
    of the program itself keep their traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (DataError, HubError, UsageError) as error:
            line = str(error)
        except (OSError, SafetensorError) as error:
            if not (line := _untouched(error)):
                raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        raise SystemExit(2)

    return wrapped


def _untouched(error: OSError | SafetensorError) -> str:
    """What could not be read or written, where that is no fault of the program; else empty. safetensors gives the
    number in its text alone."""
    told = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if number in DISK_FULL:
        return f"{name or 'weights'}: cannot be written ({os.strerror(number)})"
    return f"{name}: cannot be read or written ({os.strerror(number)})" if name and number in _NOT_OURS else ""
