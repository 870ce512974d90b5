"""What dataclasses of arguments say about a value that does not fit: one line, with what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from datasets_scripts.command_line import UsageError

Share = Annotated[float, "in [0, 1]"]
"""The type of a field."""


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


def check_types(arguments: Any) -> None:
    """What the types of fields say: the values of a `Literal`, the range of a `Share`.

    Raises:
        UsageError: a field has another value.
    """
    types = get_type_hints(type(arguments), include_extras=True)
    for one in fields(arguments):
        hint, value = types[one.name], getattr(arguments, one.name)
        kinds = (hint, *get_args(hint))  # of `Literal[...] | None`, both
        known = [fits for kind in kinds if get_origin(kind) is Literal for fits in get_args(kind)]
        if known and value not in known and not (value is None and NoneType in kinds):
            raise UsageError(f"{one.name}: {value!r} is not one of {', '.join(map(str, known))}")
        if hint == Share and not 0 <= value <= 1:
            raise UsageError(f"{one.name}: {value} is outside of [0, 1]")


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
