"""Files that are whole or absent: written beside their place under another name, then moved there in one step."""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from .records import DataError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Readers see the old file or the new one, never a part; makes the folder.

    Raises:
        OSError: it cannot be written; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.write_bytes(content)
    except OSError as error:  # a full disk is told without the file's name
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.replace(partial, path)


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, with the line ends of `text` on every system."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, content: Any, **options: Any) -> None:
    """As `write_text`.

    Args:
        options: of `json.dumps`.
    """
    write_text(path, json.dumps(content, indent=1, **options) + "\n")


def write_image(path: str | Path, image: Image.Image, **options: Any) -> None:
    """In the format that the suffix names.

    Args:
        options: of Pillow for this format, such as `compress_level`.

    Raises:
        ValueError: Pillow knows no format of this suffix.
        OSError: the format cannot hold an image of this mode, or the file cannot be written.
    """
    path = Path(path)
    Image.init()
    if (file_format := Image.EXTENSION.get(path.suffix.lower())) not in Image.SAVE:
        raise ValueError(f"unknown image format {path.suffix!r}")
    content = io.BytesIO()
    image.save(content, file_format, **options)
    write_bytes(path, content.getvalue())


def link(path: str | Path, target: str | Path) -> None:
    """Makes `path` another name of the folder `target`, in the place of an earlier link; both may be moved together.

    Raises:
        DataError: something else than a link lies there.
    """
    path, target = Path(path), Path(target)
    if path.exists() and not path.is_symlink():
        raise DataError(f"{path}: is no link of an earlier run; another folder would be right")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    partial.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()), target_is_directory=True)
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    """Of this call alone: another process may be writing the same file. A killed one leaves it behind. Without the
    file's own name, to which nothing can be added where it is as long as a name may be."""
    return path.with_name(f"{uuid.uuid4().hex}.partial")


def claim_folder(folder: str | Path, record: str, settings: Mapping[str, Any], of_data: Collection[str] = ()) -> None:
    """Makes a folder ours for work that goes on where it stopped, or finds that it is.

    Args:
        record: name of the JSON file in it that keeps the settings.
        settings: what the content depends on, as JSON has it (lists, no tuples).
        of_data: names of those that tell what the data hold. Whoever mends the data changes them, and a folder that
            holds nothing but the record then becomes one of the mended data.

    Raises:
        DataError: the folder holds something else, or was made with other settings.
    """
    path = Path(folder) / record
    if Path(folder).is_file():
        raise DataError(f"{folder}: is a file; a new or empty folder would be right")
    others = sorted(p.name for p in path.parent.glob("*") if p.name != record and not p.name.endswith(".partial"))
    if not path.exists():
        if others:
            raise DataError(f"{folder}: holds {others[0]} and no {record}; a new or empty folder would be right")
        write_json(path, settings)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds {found!r:.60} and no settings; choose another folder")
    for name in (*settings, *found):
        if name not in found:
            made, asked = f"without {name}", f"with {settings[name]}"
        elif name not in settings:
            made, asked = f"with {name} {found[name]}", "without it"
        elif found[name] != settings[name]:
            made, asked = f"with {name} {found[name]}", settings[name]
        else:
            continue
        if name not in of_data:
            raise DataError(f"{path}: was made {made}, not {asked}; choose another folder")
        if others:
            raise DataError(
                f"{path}: was made {made}, not {asked}: the data have changed since; remove {folder}, or choose "
                "another folder"
            )
    if found != settings:
        write_json(path, settings)
