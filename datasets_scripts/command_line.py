"""How a command of this project fails: one line that says what is wrong, exit code 2."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

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


def one_line_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Turns bad input and a full disk into one line on stderr and exit code 2; errors of the program itself keep their
    traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (DataError, HubError, UsageError) as error:
            line = str(error)
        except (OSError, SafetensorError) as error:
            if not (line := _full_disk(error)):
                raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        raise SystemExit(2)

    return wrapped


def _full_disk(error: OSError | SafetensorError) -> str:
    """What a full disk left unwritten; empty for any other error. safetensors gives the number in its text alone."""
    told = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    if number not in DISK_FULL:
        return ""
    return f"{getattr(error, 'filename', None) or 'weights'}: cannot be written ({os.strerror(number)})"
