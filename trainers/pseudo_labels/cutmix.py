"""CutMix (arXiv 1905.04899): a rectangle of one image is replaced by the same rectangle of another.

Images, pseudo-labels, confidences and ignore maps are pasted with the same box, so they stay aligned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .arguments import StrongViewArguments

NO_BOX = (0, 0, 0, 0)


def cutmix_box(
    height: int, width: int, options: StrongViewArguments, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box (top, left, bottom, right) in pixels, bottom and right excluded; `NO_BOX` where none is drawn.

    UniMatch, `obtain_cutmix_box`: the area is drawn once, aspect (height / width) and corner again until the box fits.
    """
    if rng.random() > options.cutmix_probability:
        return NO_BOX
    pixels = rng.uniform(options.cutmix_area_min, options.cutmix_area_max) * height * width
    while True:
        ratio = rng.uniform(options.cutmix_aspect_min, 1 / options.cutmix_aspect_min)
        box_width, box_height = int((pixels / ratio) ** 0.5), int((pixels * ratio) ** 0.5)
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        if left + box_width <= width and top + box_height <= height:
            return top, left, top + box_height, left + box_width


def box_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool (B, H, W), True inside of each box of (B, 4)."""
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    top, left, bottom, right = (boxes[:, k, None] for k in range(4))
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]


def paste(onto: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    """`other` inside of the box, `onto` elsewhere.

    Args:
        onto, other: (B, H, W), or (B, C, H, W).
        inside: bool (B, H, W).
    """
    return torch.where(inside[:, None] if onto.ndim == 4 else inside, other, onto)
