"""From SAM's low-resolution logits to masks at image size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resize_mask_logits(
    low_res_masks: torch.Tensor, input_size: int, reshaped_size: Sequence[int], size: Sequence[int]
) -> torch.Tensor:
    """SAM's post-processing: up to the padded input, crop the padding, then to the wanted size; bilinear throughout.

    (`segment_anything/modeling/sam.py`, `postprocess_masks`; LISA uses the same.)

    Args:
        low_res_masks: (n, h, w) logits.
        input_size: side of SAM's padded square input.
        reshaped_size: (height, width) of the image inside that square.
        size: (height, width) of the result; the image's own, or that of a label map that covers the image.

    Returns:
        fp32 (n, *size) logits.
    """
    height, width = reshaped_size
    masks = F.interpolate(low_res_masks[:, None].float(), (input_size, input_size), mode="bilinear")
    masks = masks[..., :height, :width]
    if [height, width] != list(size):
        masks = F.interpolate(masks, tuple(size), mode="bilinear")
    return masks[:, 0]
