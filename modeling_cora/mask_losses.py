"""The mask losses of a batch, taken where `CoraConfig.mask_loss_at` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from .configuration_cora import CoraConfig
from .losses import IGNORE_INDEX, bce_per_mask, dice_per_mask, iou_per_mask
from .masks import resize_mask_logits, shrink_mask_labels, uncertain_points, values_at_points


def mask_losses(
    config: CoraConfig,
    output: Mapping[str, torch.Tensor],
    mask_labels: list[torch.Tensor],
    reshaped_input_sizes: torch.Tensor,
    mask_weights: list[torch.Tensor] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> dict[str, torch.Tensor]:
    """Means over all masks of the batch (LISA: summed, divided by their number).

    Args:
        config: says where they are taken (`mask_loss_at`).
        output: `pred_masks` (N, h, w), `iou_scores` (N,), `seg_embeddings` (N, C) and `seg_batch_index` (N,).
        mask_labels: per image (n, H, W): 1 target, 0 other, 255 ignored, one for each of its `[SEG]` tokens.
        reshaped_input_sizes: (B, 2), (height, width) of each image inside SAM's input.
        mask_weights: lambda of eq. 7 for each pixel of `mask_labels`.
        reduction: over the pixels of a mask. `sum` is eq. 7 as printed: cross-entropies are summed, and the Dice
            loss, which no single pixel has, counts once for each pixel.
    """
    low_res_masks, iou_scores = output["pred_masks"], output["iou_scores"]
    counts = torch.bincount(output["seg_batch_index"], minlength=len(mask_labels)).tolist()
    if counts != [len(masks) for masks in mask_labels]:
        raise ValueError(f"mask_labels: {[len(m) for m in mask_labels]} masks for {counts} [SEG] tokens per image")
    if not sum(counts):
        # 0 with a graph, so that there is something to go backward from
        zero = output["seg_embeddings"].float().sum()
        return {"bce_loss": zero, "dice_loss": zero, "iou_loss": zero}
    bce, dice, iou = [], [], []
    for index, (logits, target) in enumerate(zip(low_res_masks.split(counts), mask_labels, strict=True)):
        if not len(target):
            continue
        reshaped_size = reshaped_input_sizes[index].tolist()
        given = None if mask_weights is None else mask_weights[index]
        compared, labels, weights = _where_compared(config, logits, target, reshaped_size, given)
        bce.append(bce_per_mask(compared, labels, weights, reduction))
        own = dice_per_mask(compared, labels, weights=weights)
        if reduction == "sum":
            counted = (labels != IGNORE_INDEX).float()
            own = own * (counted if weights is None else counted * weights).sum((1, 2))
        dice.append(own)
        iou.append(_iou(config, logits, target, reshaped_size, compared, labels))
    return {
        "bce_loss": torch.cat(bce).mean(),
        "dice_loss": torch.cat(dice).mean(),
        "iou_loss": nn.functional.mse_loss(iou_scores.float(), torch.cat(iou)),
    }


def _where_compared(
    config: CoraConfig,
    logits: torch.Tensor,
    target: torch.Tensor,
    reshaped_size: list[int],
    weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Logits, targets and weights (n, ., .) of one image, where `config.mask_loss_at` says."""
    input_size = config.sam_config.vision_config.image_size
    if config.mask_loss_at == "labels":
        return resize_mask_logits(logits, input_size, reshaped_size, target.shape[-2:]), target, weights
    if config.mask_loss_at == "low_res":
        grid = logits.shape[-2:], input_size, reshaped_size
        return (
            logits,
            shrink_mask_labels(target, *grid),
            None if weights is None else shrink_mask_labels(weights, *grid),
        )
    height, width = reshaped_size
    extent = torch.tensor([width / input_size, height / input_size], device=logits.device)
    points = uncertain_points(
        logits, config.mask_loss_points, extent, config.mask_loss_oversampling, config.mask_loss_importance
    )
    values = values_at_points(logits, points * extent, "bilinear")
    return (
        values[:, None],
        values_at_points(target, points, "nearest")[:, None],
        None if weights is None else values_at_points(weights, points, "nearest")[:, None],
    )


def _iou(
    config: CoraConfig,
    logits: torch.Tensor,
    target: torch.Tensor,
    reshaped_size: list[int],
    compared: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    if config.mask_loss_at == "points":  # which are not a fair sample of the mask
        input_size = config.sam_config.vision_config.image_size
        compared, labels = logits, shrink_mask_labels(target, logits.shape[-2:], input_size, reshaped_size)
    return iou_per_mask(compared, labels)


__all__ = ["mask_losses"]
