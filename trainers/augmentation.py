"""Random views of an image and its maps, drawn from the item's own random numbers."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

from .arguments import DataArguments


class View:
    """Whether an item is mirrored and how it is cropped; drawn before its queries are, since some would not survive it.

    A mirrored photo swaps left and right (`datasets_scripts/instructions/mirror.py`), and a crop may take the largest
    or the leftmost instance away.
    """

    def __init__(self, arguments: DataArguments, rng: np.random.Generator):
        self.flipped = bool(rng.random() < arguments.flip)
        self.crop: tuple[float, float, float] | None = None
        if rng.random() < arguments.crop:
            scale = float(rng.uniform(arguments.crop_scale, 1.0))
            top, left = rng.uniform(0, 1 - scale, 2).tolist()
            self.crop = top, left, scale

    def of_image(self, image: Image.Image) -> Image.Image:
        if self.flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image if self.crop is None else image.crop(_box(*self.crop, image.width, image.height))

    def of_map(self, ids: np.ndarray) -> np.ndarray:
        """(..., H, W) that covers the image, at whatever resolution; nothing is copied."""
        if self.flipped:
            ids = ids[..., ::-1]
        if self.crop is None:
            return ids
        x0, y0, x1, y1 = _box(*self.crop, ids.shape[-1], ids.shape[-2])
        return ids[..., y0:y1, x0:x1]


def jitter(image: Image.Image, width: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation times a factor in [1 - width, 1 + width] each."""
    if width:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(1 - width, 1 + width))
    return image


def shrink(ids: np.ndarray, longest: int | None) -> np.ndarray:
    """A map (or planes of them) whose longest side is at most `longest`, by nearest neighbour."""
    height, width = ids.shape[-2:]
    if longest is None or max(height, width) <= longest:
        return ids
    scale = longest / max(height, width)
    return at_size(ids, (max(1, round(height * scale)), max(1, round(width * scale))))


def at_size(maps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Maps (..., h, w) at another (H, W), by nearest neighbour."""
    rows, columns = (((np.arange(n) + 0.5) * of / n).astype(int) for n, of in zip(shape, maps.shape[-2:], strict=True))
    return np.ascontiguousarray(maps[..., rows[:, None], columns])


def _box(top: float, left: float, scale: float, width: int, height: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) in pixels, at least one pixel each way."""
    x0, y0 = round(left * width), round(top * height)
    return x0, y0, max(x0 + 1, round((left + scale) * width)), max(y0 + 1, round((top + scale) * height))
