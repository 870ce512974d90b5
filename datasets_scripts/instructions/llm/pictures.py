"""How a language model is shown what a query is about: outlines in the picture, boxes and polygons in the text."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from ..objects import SceneObject, SceneObjects

TARGET_COLOUR, ANCHOR_COLOUR = (255, 0, 255), (0, 255, 255)
"""Magenta and cyan: few things in photos have these colours."""
LINE = 1 / 300
"""Width of an outline as a fraction of the picture's longest side; two pixels at least."""
POLYGON_ROWS = 8
"""A polygon has two corners for each of so many rows."""
JPEG_QUALITY = 85


def outlined_jpeg(
    picture: Image.Image, scene: SceneObjects, outlines: Sequence[tuple[Sequence[SceneObject], tuple[int, int, int]]]
) -> bytes:
    """The picture with objects outlined: (objects, colour) pairs, the later ones on top. Lines run around an object and
    cover none of it, unless it reaches the border or another object's line.

    Args:
        picture: RGB, the scene's image at any size.
    """
    pixels = np.array(picture)
    height, width = pixels.shape[:2]
    line = max(2, round(LINE * max(height, width)))
    rows, columns = _nearest(height, scene.height), _nearest(width, scene.width)
    for objects, colour in outlines:
        mask = np.zeros((scene.height, scene.width), bool)
        for each in objects:
            top, left, bottom, right = each.box
            mask[top:bottom, left:right] |= each.mask
        small = mask[rows[:, None], columns]
        pixels[ndimage.binary_dilation(small, np.ones((3, 3), bool), iterations=line) & ~small] = colour
    file = io.BytesIO()
    # full chroma, or a thin coloured line turns grey
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _nearest(size: int, of: int) -> np.ndarray:
    """For each of `size` pixels the one of `of` under its centre."""
    return np.minimum(((np.arange(size) + 0.5) * of / size).astype(int), of - 1)


def place(target: SceneObject, scale: tuple[float, float], polygon: bool = True) -> dict[str, list]:
    """Box (left, top, right, bottom) and polygon [[x, y], ...] in pixels of the picture that is sent.

    Args:
        scale: (x, y), size of that picture / size of the scene.
    """
    top, left, bottom, right = target.box
    x, y = scale
    found: dict[str, list] = {"box": [round(left * x), round(top * y), round(right * x), round(bottom * y)]}
    if polygon:
        found["polygon"] = [[round(column * x), round(row * y)] for row, column in outline_polygon(target)]
    return found


def outline_polygon(target: SceneObject) -> list[tuple[int, int]]:
    """Corners (row, column) in pixels of the scene, clockwise from the top left.

    Down the right side and up the left one, through the outermost pixels of evenly spaced rows: exact for shapes
    without dents at their sides, the hull of each row for others.
    """
    filled = np.flatnonzero(target.mask.any(1))
    rows = filled[np.unique(np.linspace(0, len(filled) - 1, min(POLYGON_ROWS, len(filled))).round().astype(int))]
    spans = [(int(row), np.flatnonzero(target.mask[row])) for row in rows]
    top, left = target.box[:2]
    down = [(top + row, left + int(columns[-1]) + 1) for row, columns in spans]
    up = [(top + row, left + int(columns[0])) for row, columns in reversed(spans)]
    return [*up[-1:], *down, *up[:-1]]
