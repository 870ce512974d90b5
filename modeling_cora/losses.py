"""Losses of eqs. 4 and 5: pure functions of logits and targets, computed in fp32.

Mask losses take logits (n, H, W), targets (n, H, W) with 1 target, 0 other, 255 ignored, and give one value per mask,
so that images of different sizes can be averaged over all masks of a batch. Pixel weights (n, H, W), eq. 7, are
constants.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

IGNORE_INDEX = 255


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
