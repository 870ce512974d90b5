"""What the commands of data and trainings begin with: their parser, their numbers, one line for what is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from publishing.command_line import ArgumentParser, UsageError, one_line_errors


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

__all__ = ["ArgumentParser", "UsageError", "above_zero", "not_negative", "one_line_errors", "positive", "up_to_1"]
