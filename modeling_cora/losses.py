"""Losses of eqs. 4 and 5: pure functions of logits and targets, computed in fp32.

All take logits (n, H, W), targets (n, H, W) with 1 target, 0 other, 255 ignored, and give one value per mask, so that
images of different sizes can be averaged over all masks of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE_INDEX = 255


def bce_per_mask(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, the mean over a mask's counted pixels (LISA's `sigmoid_ce_loss`); 0 where none counts.

    Returns:
        fp32 (n,).
    """
    counted = targets != IGNORE_INDEX
    loss = F.binary_cross_entropy_with_logits(logits.float(), (targets == 1).float(), reduction="none")
    return (loss * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)


def dice_per_mask(
    logits: torch.Tensor, targets: torch.Tensor, scale: float = 1000.0, eps: float = 1e-6
) -> torch.Tensor:
    """1 - Dice of probabilities (LISA's `dice_loss`: sums are divided by `scale` before `eps` is added).

    Returns:
        fp32 (n,), in [0, 1].
    """
    counted = targets != IGNORE_INDEX
    target = (targets == 1).float()
    probability = logits.float().sigmoid() * counted
    numerator = 2 * (probability / scale * target).sum((1, 2))
    denominator = (probability / scale).sum((1, 2)) + (target / scale).sum((1, 2))
    return 1 - (numerator + eps) / (denominator + eps)


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
