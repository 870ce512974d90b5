"""JSON that other people wrote: what is wrong with a file, in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .records import DataError


def read_json(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> Any:
    """The content of a file in the first of the encodings that fits; UTF-8 by default, where Windows' editors put a
    byte-order mark before it.

    Raises:
        DataError: missing, in none of the encodings, not JSON, a key stands twice, or a text in it has half a
            character.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {os_reason(error)}") from None
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        try:
            return parse_json(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not JSON ({error})") from None
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
    raise DataError(f"{path}: not JSON in {' or '.join(name.removesuffix('-sig') for name in encodings)}")


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON writes half of a character beyond the first 65,536; a whole one takes two."""


def parse_json(text: str) -> Any:
    """As `json.loads`, without half characters, which no file in UTF-8 can hold, and without keys that stand twice, of
    which Python takes the last.

    Raises:
        json.JSONDecodeError: not JSON, or too deep.
        ValueError: half a character or a key twice; names the field and its text.
    """
    try:
        content = json.loads(text, object_pairs_hook=_each_key_once)
        broken = next(_half_characters(content, ""), None) if _SURROGATE.search(text) else None
    except RecursionError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    if broken is not None:
        place, value = broken
        raise ValueError(f"{place}{excerpt(value)} has half a character; whole ones would be right")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in content if keys.count(key) > 1)
        raise ValueError(f"key {excerpt(twice)} stands twice; once would be right")
    return content


def _half_characters(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Where each text is that UTF-8 cannot hold ("classes: 1: name: "), and the text."""
    if isinstance(value, str) and not is_text(value):
        yield place, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        if isinstance(key, str):
            yield from _half_characters(key, f"{place}key ")
        yield from _half_characters(part, f"{place}{key}: ")


def is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can hold."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def os_reason(error: OSError) -> str:
    """Why a file cannot be read, in words."""
    return "no such file" if isinstance(error, FileNotFoundError | NotADirectoryError) else str(error.strerror)


def excerpt(value: Any) -> str:
    """A value as JSON, short enough for a line."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number; Python reads `NaN` and `true` as numbers too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
