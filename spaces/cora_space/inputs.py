"""What a visitor may send: one picture, some queries, an anchor. Whatever else comes is refused in a sentence."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_cora.images import load_image

from .settings import Settings

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Those of Pillow that decode by themselves; some of the others start programs."""

LAYER_FORMATS = ("PNG", "WEBP")
"""Of what is painted: the browser sends the first, and back what the page sent as the second."""

MOST_LAYERS = 4
"""The page's editor has one."""

LOST = "What was painted is no longer here. Press Clear, and paint it again."

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
    with _opened(content, settings.max_pixels, FORMATS) as image:
        return load_image(image)


@contextmanager
def _opened(content: bytes, max_pixels: int, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The image, of which no more than the header is read yet.

    Raises:
        VisitorError: more pixels than allowed, or not an image, also where that shows when it is decoded.
    """
    at_most = f"at most {max_pixels / 1e6:.3g} million are taken."
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise VisitorError(f"The picture has {image.width} x {image.height} pixels; {at_most}")
            yield image
    except VisitorError:
        raise
    except Image.DecompressionBombError:
        raise VisitorError(f"The picture has too many pixels; {at_most}") from None
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


def read_anchor(paths: Sequence[str], size: tuple[int, int], settings: Settings, max_pixels: int) -> np.ndarray | None:
    """What is painted on any layer, as a mask at the image's (width, height); None for nothing.

    Args:
        paths: of the layers, uploaded files with an alpha channel.
        max_pixels: of a layer, which has the size of the shown picture, not of the image.

    Raises:
        VisitorError: a layer that is gone, too large or not as the editor sends it; too many of them.
    """
    if len(paths) > MOST_LAYERS:
        raise VisitorError(f"{len(paths)} layers are painted on; at most {MOST_LAYERS} are taken.")
    painted = np.zeros((size[1], size[0]), bool)
    for path in paths:
        if not Path(path).is_file():
            raise VisitorError(LOST)
        with _opened(read_file(path, settings), max_pixels, LAYER_FORMATS) as layer:
            alpha = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BILINEAR)
        painted |= np.asarray(alpha) >= 128
    return painted if painted.any() else None
