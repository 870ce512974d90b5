"""The colour of an object, named only where hardly anybody would disagree."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

COLOURS = ("red", "yellow", "green", "blue", "white", "black")
CLEAR, ABSENT = 0.6, 0.15
"""Fractions of an object's pixels: at least the first and it has the colour, at most the second and it has not."""

_HUES = {"red": (345, 15), "yellow": (42, 65), "green": (85, 160), "blue": (195, 255)}
"""Degrees. Between the hues lie guard bands (orange, turquoise, purple), which are no colour word."""
_MIN_SATURATION, _MIN_VALUE = 0.35, 0.2
_WHITE = (0.15, 0.75)  # saturation below, value above
_BLACK = 0.18  # value below


def colour_fractions(pixels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Fraction of an object's pixels that are clearly of each colour.

    Args:
        pixels: uint8 RGB (h, w, 3).
        mask: bool (h, w), the object. Its outermost pixels, mixed with what lies behind, are left out where at
            least a quarter of it remains.
    """
    inner = ndimage.binary_erosion(mask)
    rgb = pixels[inner if inner.sum() >= mask.sum() / 4 else mask].astype(np.float64) / 255
    value = rgb.max(1)
    chroma = value - rgb.min(1)
    saturation = np.where(value > 0, chroma / np.maximum(value, 1e-9), 0)
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-9)
    hue = 60 * np.select(
        [value == red, value == green],
        [((green - blue) / safe) % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    coloured = (saturation >= _MIN_SATURATION) & (value >= _MIN_VALUE)
    found = {}
    for name, (start, stop) in _HUES.items():
        within = (hue >= start) | (hue <= stop) if start > stop else (hue >= start) & (hue <= stop)
        found[name] = coloured & within
    found["white"] = (saturation <= _WHITE[0]) & (value >= _WHITE[1])
    found["black"] = value <= _BLACK
    return {name: float(is_so.mean()) for name, is_so in found.items()}
