"""One image from a file, a URL or Pillow: upright, RGB, 8 bits."""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
from PIL import Image, ImageOps

MAX_BYTES = 50_000_000
"""The largest download of an image."""
LONGEST_SIDE = 4096
"""Of what is padded to a square: a strip of 60,000 x 250 pixels, a file of some kilobytes, would become 11 GB."""


class ImageError(ValueError):
    """An image that cannot be had or read, told in one line that names it."""


def load_image(
    source: str | os.PathLike[str] | Image.Image, timeout: float = 30.0, max_bytes: int = MAX_BYTES
) -> Image.Image:
    """An upright RGB image.

    EXIF orientation is applied, 16-bit greyscale scaled to 8 bits (transformers' `load_image` clips it at 255), a
    palette looked up and transparency dropped, as when the model was trained.

    Args:
        source: file, `http://` or `https://` URL, or an image of Pillow. Private addresses are not refused: a server
            that takes URLs from strangers has to check them itself.
        timeout: of a download, in seconds.
        max_bytes: of a download.

    Raises:
        ImageError: no such file, not an image, more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, pixels without a known
            range; a URL of another scheme, or whose answer is an error, too slow or too large.
        TypeError: anything else as a source.
    """
    if isinstance(source, Image.Image):
        with _one_line("image"):
            return _upright_rgb(source, "image")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"image: a file, a URL or an image of Pillow is needed, not {type(source).__name__}")
    name, file = os.fspath(source), os.fspath(source)
    opened: Any = file
    if isinstance(source, str) and "://" in source:
        name = source if len(source) <= 100 else f"{source[:97]}..."
        opened = io.BytesIO(_download(source, name, timeout, max_bytes))
    with _one_line(name), Image.open(opened) as image:
        # the header gives the size; Pillow itself only warns up to twice its limit
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ImageError(f"{name}: {image.width}x{image.height} pixels; the limit is {limit} in all")
        image.load()
        return _upright_rgb(image, name)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """What Pillow raises for damaged files, as an `ImageError`; struct.error comes from broken EXIF."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: not a readable image ({error})") from None


def shrunk(image: Image.Image, longest: int = LONGEST_SIDE) -> Image.Image:
    """The image, or a smaller one of about the same shape whose sides are at most `longest` pixels."""
    if max(image.size) <= longest:
        return image
    smaller = image.copy()
    smaller.thumbnail((longest, longest))
    return smaller


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError(f"{name}: its pixels are floating point numbers of unknown range; save it with 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32) / 257.0
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _download(url: str, name: str, timeout: float, max_bytes: int) -> bytes:
    if url.partition("://")[0].lower() not in ("http", "https"):
        raise ImageError(f"{name}: only http:// and https:// addresses are fetched")
    deadline = time.monotonic() + timeout
    data = bytearray()
    try:
        with httpx2.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise ImageError(f"{name}: more than {max_bytes / 1e6:g} MB; the limit is on downloads")
                if time.monotonic() > deadline:
                    raise ImageError(f"{name}: not complete after {timeout:g} seconds")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ImageError(f"{name}: not to be had ({' '.join(str(error).split())})") from None
    return bytes(data)


__all__ = ["LONGEST_SIDE", "MAX_BYTES", "ImageError", "load_image", "shrunk"]
