"""How a command of this project fails: one line that says what is wrong, exit code 2."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from publishing.hub import HubError

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
    """Turns bad input into one line on stderr and exit code 2; errors of the program itself keep their traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (DataError, HubError, UsageError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped
