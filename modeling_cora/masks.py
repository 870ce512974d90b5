"""From SAM's low-resolution logits to masks at image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

IGNORE_INDEX = 255
"""Of label maps and masks: pixels that count nowhere."""


def pool_squares(embeddings: torch.Tensor, side: int) -> torch.Tensor:
    """Means of squares: (B, C, h, w) -> (B, C, h / side, w / side).

    Raises:
        ValueError: h or w is no multiple of `side`; what is left over would be lost, and masks stretched.
    """
    if side == 1:
        return embeddings
    if any(length % side for length in embeddings.shape[-2:]):
        raise ValueError(f"embedding_pooling: {side} does not divide {tuple(embeddings.shape[-2:])}")
    return F.avg_pool2d(embeddings, side)


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


def shrink_masks(
    mask_labels: torch.Tensor,
    low_res_size: Sequence[int],
    input_size: int,
    reshaped_size: Sequence[int],
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Masks on the grid of the decoder's own output, by nearest neighbour; what is padding there is ignored.

    A target that lies between the pixels which are looked at has all cells that it touches: without them a small thing
    that is there would be learned as one that is not.

    Args:
        mask_labels: (n, H, W), values 0, 1 and 255 (ignored), covering the image.
        low_res_size: (h, w) of the decoder's output, which covers the padded square.
        input_size: side of SAM's padded square input.
        reshaped_size: (height, width) of the image inside that square.
        weights: (n, H, W), of a floating type.

    Returns:
        (n, h, w) of the same types; uint8 for bool, which has no value for what is ignored. A cell that a target is
        given has the largest of the target's weights in it.
    """
    sizes = [max(1, round(low * part / input_size)) for low, part in zip(low_res_size, reshaped_size, strict=True)]

    def nearest(maps: torch.Tensor) -> torch.Tensor:
        return F.interpolate(maps[:, None].float(), sizes, mode="nearest-exact")[:, 0].to(maps.dtype)

    mask_labels = mask_labels.to(torch.uint8) if mask_labels.dtype == torch.bool else mask_labels
    small, small_weights = nearest(mask_labels), None if weights is None else nearest(weights)
    targets = mask_labels == 1
    missed = targets.flatten(1).any(1) & ~(small == 1).flatten(1).any(1)
    if missed.any():
        touched = F.adaptive_max_pool2d(targets[missed].float(), sizes) > 0
        small[missed] = small[missed].masked_fill(touched, 1)
        if weights is not None and small_weights is not None:
            largest = F.adaptive_max_pool2d((weights[missed] * targets[missed]).float(), sizes)
            small_weights[missed] = torch.where(touched, largest.to(weights.dtype), small_weights[missed])
    padding = (0, low_res_size[1] - sizes[1], 0, low_res_size[0] - sizes[0])
    small = F.pad(small, padding, value=IGNORE_INDEX)
    return small, None if small_weights is None else F.pad(small_weights, padding)


def values_at_points(maps: torch.Tensor, points: torch.Tensor, mode: Literal["bilinear", "nearest"]) -> torch.Tensor:
    """Values of maps (n, H, W) at points (n, P, 2), (x, y) in [0, 1] of width and height.

    Returns:
        fp32 (n, P).
    """
    grid = 2 * points[:, None] - 1
    sampled = F.grid_sample(maps[:, None].float(), grid, mode=mode, padding_mode="border", align_corners=False)
    return sampled[:, 0, 0]


def uncertain_points(
    logits: torch.Tensor, points: int, extent: torch.Tensor, oversampling: float = 3.0, importance: float = 0.75
) -> torch.Tensor:
    """Points where a mask is least decided, and some anywhere (PointRend; Sa2VA and Mask2Former: 12,544 of them).

    Args:
        logits: (n, h, w), covering the padded square.
        points: P, how many for each mask.
        extent: (2,), the (x, y) part of the square that the image fills; no point lies outside of it.
        oversampling: `oversampling * P` are drawn uniformly, and
        importance: the `importance * P` of them with logits nearest to 0 are kept; the rest of P is uniform.

    Returns:
        (n, P, 2), (x, y) in [0, 1] of the image's width and height; no gradient.
    """
    masks, device = len(logits), logits.device
    drawn = torch.rand(masks, round(oversampling * points), 2, device=device)
    kept = round(importance * points)
    with torch.no_grad():
        doubt = -values_at_points(logits.detach(), drawn * extent, "bilinear").abs()
    nearest = doubt.topk(kept, dim=1).indices[..., None].expand(-1, -1, 2)
    return torch.cat([drawn.gather(1, nearest), torch.rand(masks, points - kept, 2, device=device)], 1)
