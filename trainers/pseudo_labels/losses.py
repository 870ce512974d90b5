"""Loss terms of the semi-supervised methods, as pure functions of logits and targets.

UniMatch (arXiv 2208.09910), UniMatch V2 (arXiv 2410.10777), SemiVL (arXiv 2311.16241). Every term is a weighted mean
over pixels and comes as its numerator and denominator, so that processes can be added up before they are divided.

Shapes: logits (B, C, H, W); labels, confidence and ignore maps (B, H, W). Labels are 0..C-1, or 255 = ignored; an
ignore map is 255 where an image is padding and 0 elsewhere; confidences are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets_scripts.records import IGNORE_INDEX


@dataclass(frozen=True)
class Mean:
    """`total / count`. Where nothing counts the mean is 0 (the public codes give NaN, which ends a training run)."""

    total: Tensor
    count: Tensor

    @property
    def value(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, H, W), 0 where labels are 255."""
    return F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")


def cross_entropy(logits: Tensor, labels: Tensor) -> Mean:
    """Mean over the pixels that have a label."""
    return Mean(pixel_cross_entropy(logits, labels).sum(), (labels != IGNORE_INDEX).sum())


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    threshold: float,
    min_kept: int,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Mean:
    """Cross-entropy of the hard pixels alone (online hard example mining; `ProbOhemCrossEntropy2d` of UniMatch).

    Kept are pixels whose true class has a probability of at most `threshold`; where fewer than `min_kept` are so hard,
    the threshold rises to the probability of the `min_kept`-th hardest. All labelled pixels are kept where there are
    fewer than `min_kept`, or where `min_kept` is 0.

    Args:
        min_kept: in the whole batch; UniMatch 200,000 for two crops of 801 x 801.
        gather: (n,) of this process -> (m,) of all, so that the hardest pixels are those of all processes.
    """
    valid = labels != IGNORE_INDEX
    losses = pixel_cross_entropy(logits, labels)
    with torch.no_grad():
        # ignored pixels count as sure (their loss is 0), so that they are the last to be kept
        probability = torch.exp(-losses).masked_fill(~valid, 1.0).flatten()
        counted = valid.sum()[None]
        if gather is not None:
            probability, counted = gather(probability), gather(counted)
        if min_kept and min_kept <= counted.sum():
            hardest = probability.kthvalue(min(min_kept, probability.numel())).values
            kept = valid & (torch.exp(-losses) <= hardest.clamp(min=threshold))
        else:
            kept = valid
    return Mean((losses * kept).sum(), kept.sum())


def consistency(logits: Tensor, labels: Tensor, confidence: Tensor, ignore: Tensor, threshold: float) -> Mean:
    """Cross-entropy with pseudo-labels where they are confident (UniMatch).

    The denominator is the number of all pixels that are not padding, confident or not: so a batch of unsure images
    weighs little.

    Args:
        labels: hard pseudo-labels.
        threshold: of the confidence (at least); 0 keeps every pixel.
    """
    valid = ignore != IGNORE_INDEX
    kept = (confidence >= threshold) & valid
    return Mean((pixel_cross_entropy(logits, labels) * kept).sum(), valid.sum())


def image_confidence_consistency(logits: Tensor, labels: Tensor, confidence: Tensor, ignore: Tensor) -> Mean:
    """Cross-entropy with every pseudo-label, weighted by its image's mean confidence (SemiVL on Cityscapes).

    SemiVL's code (`pixelavg`) multiplies the loss of the whole batch by the sum of the images' mean confidences and
    lets padding into the numerator; with one image per process, as it is trained, and no padding, that is this.
    """
    valid = ignore != IGNORE_INDEX
    pixels = valid.sum((1, 2), keepdim=True)
    weight = (confidence * valid).sum((1, 2), keepdim=True) / pixels.clamp(min=1)
    return Mean((pixel_cross_entropy(logits, labels) * valid * weight).sum(), valid.sum())


def image_ratio_consistency(
    logits: Tensor, labels: Tensor, confidence: Tensor, ignore: Tensor, threshold: float
) -> Mean:
    """As above, the weight being the share of the image's pixels that are confident (SemiVL's `pixelratio`)."""
    return image_confidence_consistency(logits, labels, (confidence >= threshold).float(), ignore)


def guidance(logits: Tensor, clip_labels: Tensor, over: str = "all") -> Mean:
    """Cross-entropy with what a frozen CLIP says (SemiVL), 255 where it is not sure.

    Args:
        over: the denominator: `all` pixels (SemiVL's `mean_all`: the fewer sure pixels, the less weight) or the `sure`
            ones.
    """
    sure = clip_labels != IGNORE_INDEX
    count = sure.sum() if over == "sure" else torch.tensor(clip_labels.numel(), device=logits.device)
    return Mean(pixel_cross_entropy(logits, clip_labels).sum(), count)


def pseudo_labels(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence in [0, 1] and class (B, H, W) of the most probable class. No gradient reaches the logits."""
    confidence, labels = logits.detach().float().softmax(1).max(1)
    return confidence, labels


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The loss. Every weight has its term and every term its weight."""
    return sum(weights[name] * terms[name] for name in weights)
