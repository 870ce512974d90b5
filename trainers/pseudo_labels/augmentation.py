"""Views of an image: where it is cut (geometry, shared with its label map) and how it is coloured (strong views).

As UniMatch's `dataset/transform.py`, on Pillow images, with every draw from a generator that is passed in.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from datasets_scripts.records import IGNORE_INDEX

from .arguments import SegmentationDataArguments, StrongViewArguments


def random_crop(
    image: Image.Image, labels: np.ndarray | None, arguments: SegmentationDataArguments, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A random resize, crop and mirror image of an image and its label map.

    The longer side is drawn from `scale_min` to `scale_max` times its length. What the crop has too much, right and
    below, is padding: black, ignored.

    Args:
        labels: uint8 (H, W); None = nothing is known.

    Returns:
        RGB image, labels and ignore map, uint8 (crop_height, crop_width). The ignore map is 255 on padding, else 0;
        labels are 255 there too, and everywhere without `labels`.
    """
    height, width = _resized_size(image.height, image.width, arguments, rng)
    rows, columns = arguments.crop_height, arguments.crop_width
    top = int(rng.integers(0, max(height - rows, 0), endpoint=True))
    left = int(rng.integers(0, max(width - columns, 0), endpoint=True))
    box = (left, top, left + columns, top + rows)
    known = np.zeros((image.height, image.width), np.uint8) if labels is None else labels
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    maps = Image.fromarray(known).resize((width, height), Image.Resampling.NEAREST)
    # beyond the image Pillow's crop is black, which is a class in a label map
    cropped, ignore = resized.crop(box), np.full((rows, columns), IGNORE_INDEX, np.uint8)
    ignore[:height, :width] = 0  # of an image that is larger than the crop, all of it
    labels = np.where(ignore == IGNORE_INDEX, IGNORE_INDEX, np.asarray(maps.crop(box)) if labels is not None else 255)
    if rng.random() < arguments.flip:
        cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels, ignore = labels[:, ::-1], ignore[:, ::-1]
    return cropped, np.ascontiguousarray(labels, np.uint8), np.ascontiguousarray(ignore)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) in whole pixels, at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def scaled(image: Image.Image, scale: float, resampling: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """The image with its sides times `scale`; Pillow's filters look at every pixel of a larger image."""
    if scale == 1:
        return image
    height, width = scaled_size(image.height, image.width, scale)
    return image.resize((width, height), resampling)


def _resized_size(
    height: int, width: int, arguments: SegmentationDataArguments, rng: np.random.Generator
) -> tuple[int, int]:
    longest = max(height, width)
    long_side = int(rng.integers(int(longest * arguments.scale_min), int(longest * arguments.scale_max), endpoint=True))
    long_side = max(1, long_side)
    short_side = max(1, int(min(height, width) * long_side / longest + 0.5))
    return (long_side, short_side) if height > width else (short_side, long_side)


def strong_view(
    image: Image.Image, arguments: StrongViewArguments, rng: np.random.Generator, image_scale: float = 1.0
) -> Image.Image:
    """Colour jitter, grey and blur, each with its probability. No pixel moves.

    Args:
        image_scale: of the image, so that a picture of half the size is blurred as much as the whole one.
    """
    if rng.random() < arguments.jitter_probability:
        image = colour_jitter(image, arguments, rng)
    if rng.random() < arguments.grey_probability:
        image = image.convert("L").convert("RGB")
    if rng.random() < arguments.blur_probability:
        sigma = rng.uniform(arguments.blur_sigma_min, arguments.blur_sigma_max)
        image = image.filter(ImageFilter.GaussianBlur(sigma * image_scale))
    return image


def colour_jitter(image: Image.Image, arguments: StrongViewArguments, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue in random order (torchvision's `ColorJitter`)."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    names = [*enhancers, "hue"]
    for position in rng.permutation(len(names)):
        name = names[position]
        width = getattr(arguments, name)
        if name == "hue":
            image = turn_hue(image, rng.uniform(-width, width))
        else:
            image = enhancers[name](image).enhance(rng.uniform(max(0.0, 1 - width), 1 + width))
    return image


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Args:
    turn: share of the full circle.
    """
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + int(turn * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 (3, H, W) of an RGB image."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
