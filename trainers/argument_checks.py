"""What dataclasses of arguments say about a value that does not fit: one line, with what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from datasets_scripts.command_line import UsageError


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: which known name was meant; empty where none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_kinds(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raises:
    UsageError: none is given, or one that is not known.
    """
    for kind in given:
        if kind not in known:
            raise UsageError(f"{name}: {kind!r} is not one of {', '.join(known)}{nearest(str(kind), known)}")
    if not given:
        raise UsageError(f"{name}: none is given; one of {', '.join(known)} or more would be right")


def check_choice(arguments: Any, **known: Sequence[str]) -> None:
    """Raises:
    UsageError: a field has none of its known values.
    """
    for name, values in known.items():
        if getattr(arguments, name) not in values:
            raise UsageError(f"{name}: {getattr(arguments, name)!r} is not one of {', '.join(values)}")


def check_least(arguments: Any, **lowest: float) -> None:
    """Raises:
    UsageError: a field is less than its lowest value, or no number; None is what is not given.
    """
    for name, low in lowest.items():
        if (value := getattr(arguments, name)) is not None and not value >= low:
            raise UsageError(f"{name}: {value} is less than {low}")


def check_above_zero(arguments: Any, *names: str) -> None:
    """Raises:
    UsageError: a field is 0, less, or no number.
    """
    for name in names:
        if not getattr(arguments, name) > 0:
            raise UsageError(f"{name}: {getattr(arguments, name)} is not above 0")


def check_shares(arguments: Any, *names: str) -> None:
    """Raises:
    UsageError: a field is outside of [0, 1].
    """
    for name in names:
        if not 0 <= getattr(arguments, name) <= 1:
            raise UsageError(f"{name}: {getattr(arguments, name)} is outside of [0, 1]")
