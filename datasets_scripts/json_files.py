"""JSON that other people wrote: what is wrong with a file, in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .records import DataError


def read_json(path: Path, encodings: Sequence[str] = ("utf-8",)) -> Any:
    """The content of a file in the first of the encodings that fits.

    Raises:
        DataError: missing, in none of the encodings, or not JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {os_reason(error)}") from None
    for encoding in encodings:
        try:
            return json.loads(content.decode(encoding))
        except UnicodeDecodeError:
            continue
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from None
    raise DataError(f"{path}: not JSON in {' or '.join(encodings)}")


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
