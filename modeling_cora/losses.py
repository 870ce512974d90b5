"""Losses of eqs. 4 and 5: pure functions of logits and targets, computed in fp32; `mask_losses` is those of a batch.

Mask losses take logits (n, H, W), targets (n, H, W) with 1 target, 0 other, 255 ignored, and give one value per mask,
so that images of different sizes can be averaged over all masks of a batch. Pixel weights (n, H, W), eq. 7, are
constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F

from .configuration_cora import CoraConfig
from .masks import IGNORE_INDEX, resize_mask_logits, shrink_masks, uncertain_points, values_at_points

LOSS_TERMS = {"lm_loss": "tokens", "bce_loss": "masks", "dice_loss": "masks", "iou_loss": "masks"}
"""The terms of eq. 5, and what each is a mean over. `CoraConfig` has the weight of each (`lm_loss_weight`)."""


def bce_per_mask(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> torch.Tensor:
    """Binary cross-entropy, the mean over a mask's counted pixels (LISA's `sigmoid_ce_loss`); 0 where none counts.

    Args:
        weights: multiply each pixel's term; the mean is still over all counted pixels, so weights of 1 change nothing.
        reduction: over pixels; eq. 7 prints a sum.

    Returns:
        fp32 (n,).
    """
    counted = targets != IGNORE_INDEX
    loss = F.binary_cross_entropy_with_logits(logits.float(), (targets == 1).float(), reduction="none")
    total = (loss * _weighted(counted, weights)).sum((1, 2))
    return total if reduction == "sum" else total / counted.sum((1, 2)).clamp(min=1)


def dice_per_mask(
    logits: torch.Tensor,
    targets: torch.Tensor,
    scale: float = 1000.0,
    eps: float = 1e-6,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 - Dice of probabilities (LISA's `dice_loss`: sums are divided by `scale` before `eps` is added).

    Args:
        weights: of pixels inside each of the three sums, so that a pixel of weight 0 might as well be ignored.

    Returns:
        fp32 (n,), in [0, 1].
    """
    counted = targets != IGNORE_INDEX
    share = _weighted(counted, weights)
    target = (targets == 1).float() * share
    probability = logits.float().sigmoid()
    numerator = 2 * (probability / scale * target).sum((1, 2))
    denominator = (probability / scale * share).sum((1, 2)) + (target / scale).sum((1, 2))
    return 1 - (numerator + eps) / (denominator + eps)


def _weighted(counted: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return counted.float() if weights is None else counted * weights.detach().float()


def iou_per_mask(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Intersection over union of (logit > 0) with the target over counted pixels; 1 where both are empty.

    Returns:
        fp32 (n,), no gradient.
    """
    counted = targets != IGNORE_INDEX
    predicted, target = (logits.detach() > 0) & counted, targets == 1
    intersection = (predicted & target).sum((1, 2)).float()
    union = (predicted | target).sum((1, 2)).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of `labels` (n,) under `logits` (n, V), in fp32; 0 (with a gradient of 0) for n = 0."""
    if not len(labels):
        return logits.float().sum()
    return F.cross_entropy(logits.float(), labels)


def token_contrast(
    tokens: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, temperature: float = 0.07
) -> torch.Tensor:
    """Eq. 8 for each token: -log of the share of its positive among the positive and the negatives, by
    exp(cosine / temperature); the mean over positives where there are several.

    Args:
        tokens: (n, C).
        positives: (n, P, C), of the same class.
        negatives: (n, M, C), of other classes.

    Returns:
        fp32 (n,).
    """

    def similarity(others: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(tokens.float()[:, None], others.float(), dim=-1) / temperature

    near, far = similarity(positives), similarity(negatives)
    against = torch.logsumexp(far, 1, keepdim=True).expand_as(near)
    return (torch.logaddexp(near, against) - near).mean(1)


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
            loss, which no single pixel has, counts once for each pixel, as much as lambda says; `mean` is that divided
            by the number of pixels.
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
        counted = labels != IGNORE_INDEX
        pixels = _weighted(counted, weights).sum((1, 2))
        if reduction == "mean":
            pixels = pixels / counted.sum((1, 2)).clamp(min=1)
        dice.append(pixels * dice_per_mask(compared, labels, weights=weights))
        iou.append(_iou(config, logits, target, reshaped_size, compared, labels))
    return {
        "bce_loss": torch.cat(bce).mean(),
        "dice_loss": torch.cat(dice).mean(),
        "iou_loss": F.mse_loss(iou_scores.float(), torch.cat(iou)),
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
        return logits, *shrink_masks(target, *grid, weights)
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
        compared, (labels, _) = logits, shrink_masks(target, logits.shape[-2:], input_size, reshaped_size)
    return iou_per_mask(compared, labels)
