"""Files that are whole or absent: written beside their place under another name, then moved there in one step."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image


def write_bytes(path: str | Path, content: bytes) -> None:
    """Readers see the old file or the new one, never a part; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, with the line ends of `text` on every system."""
    write_bytes(path, text.encode("utf-8"))


def write_image(path: str | Path, image: Image.Image) -> None:
    """In the format that the suffix names.

    Raises:
        ValueError: Pillow knows no format of this suffix.
        OSError: the format cannot hold an image of this mode, or the file cannot be written.
    """
    path = Path(path)
    Image.init()
    if (file_format := Image.EXTENSION.get(path.suffix.lower())) not in Image.SAVE:
        raise ValueError(f"unknown image format {path.suffix!r}")
    content = io.BytesIO()
    image.save(content, file_format)
    write_bytes(path, content.getvalue())
