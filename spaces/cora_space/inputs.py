"""What a visitor may send: one picture, some queries, an anchor. Whatever else comes is refused in a sentence."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_cora.images import load_image

from .settings import Settings

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Those of Pillow that decode by themselves; some of the others start programs."""

Image.init()  # Pillow knows a format by name once its plug-ins are loaded

_POINTING = re.compile(r"\b(this|these)\b(?!\s+(image|picture|photo|scene|view)s?\b)", re.IGNORECASE)
"""Of "the car in this image" nothing is pointed at."""


class VisitorError(ValueError):
    """Something that cannot be answered, told so that a visitor knows what to do; names no path."""


def read_file(path: str | None, settings: Settings) -> bytes:
    """An uploaded file, whose bytes are counted before they are read.

    Raises:
        VisitorError: there is none, or it is too large.
    """
    if not path:
        raise VisitorError("There is no picture yet. Upload one, or pick an example.")
    try:
        if (size := Path(path).stat().st_size) > settings.max_bytes:
            raise VisitorError(f"The file has {size / 1e6:.1f} MB; at most {settings.max_megabytes:g} MB are taken.")
        return Path(path).read_bytes()
    except OSError:
        raise VisitorError("The picture is no longer here. Upload it again.") from None


def read_picture(content: bytes, settings: Settings) -> Image.Image:
    """An uploaded file's content as an upright RGB image.

    Raises:
        VisitorError: more pixels than allowed, or not an image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # reads no more than the header
            if image.width * image.height > settings.max_pixels:
                raise VisitorError(
                    f"The picture has {image.width} x {image.height} pixels; "
                    f"at most {settings.max_megapixels:g} million are taken."
                )
            return load_image(image)
    except VisitorError:
        raise
    except Image.DecompressionBombError:
        raise VisitorError(
            f"The picture has too many pixels; at most {settings.max_megapixels:g} million are taken."
        ) from None
    except (OSError, SyntaxError, ValueError):
        raise VisitorError("This file cannot be read as a picture. PNG, JPEG and WebP work.") from None


def read_queries(text: str | None, settings: Settings) -> list[str]:
    """One query a line, empty lines left out.

    Raises:
        VisitorError: none, too many, or one that is too long.
    """
    queries = [" ".join(line.split()) for line in (text or "").splitlines()]
    queries = [query for query in queries if query]
    if not queries:
        raise VisitorError("There is no query yet. Type what to look for, one query a line.")
    if len(queries) > settings.max_queries:
        raise VisitorError(f"{len(queries)} queries at once are too many; ask up to {settings.max_queries}.")
    for number, query in enumerate(queries, start=1):
        if len(query) > settings.max_characters:
            raise VisitorError(
                f"Query {number} has {len(query)} characters; at most {settings.max_characters} are taken."
            )
    return queries


def anchors_of(queries: Sequence[str], anchor: np.ndarray | None) -> list[list[np.ndarray]] | None:
    """For each query the anchor where it says "this" or "these" (but for "this image"), and none where it does not;
    None without an anchor.

    Raises:
        VisitorError: there is an anchor that no query speaks of.
    """
    if anchor is None:
        return None
    pointing = [bool(_POINTING.search(query)) for query in queries]
    if not any(pointing):
        raise VisitorError("Something is marked, but no query says “this”. Write “the car left of this”, or clear it.")
    return [[anchor] if points else [] for points in pointing]


def read_anchor(layers: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray | None:
    """What is painted on any layer (RGBA, at any size), as a mask at the image's (width, height); None for nothing."""
    painted = np.zeros((size[1], size[0]), bool)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BILINEAR)
        painted |= np.asarray(alpha) >= 128
    return painted if painted.any() else None
