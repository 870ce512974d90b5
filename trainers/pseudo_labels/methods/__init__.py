"""The methods: what each asks of the data, its passes and its loss terms.

A method is a class with

    views: Views                    what an item has to hold
    weights(progress) -> dict       of its terms, at a share of the training in [0, 1]
    terms(step) -> dict             name -> `Mean`, of one batch

and, where it has one, a teacher that `after_step` moves on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import MethodArguments
from ..dataset import Views
from ..losses import (
    Mean,
    consistency,
    cross_entropy,
    image_confidence_consistency,
    image_ratio_consistency,
    ohem_cross_entropy,
)
from ..segmenter import SemanticSegmenter, View


@dataclass(frozen=True)
class Step:
    """One batch on its way through a method.

    Attributes:
        model: called once, with all views that gradients flow through; the segmenter, or what wraps it.
        segmenter: the same weights, for passes without gradients.
        batch: as `dataset.collate` makes it.
        gather: concatenates a tensor over processes.
        processes: how many there are.
    """

    model: Callable
    segmenter: SemanticSegmenter
    batch: dict[str, Tensor]
    gather: Callable[[Tensor], Tensor] | None = None
    processes: int = 1


class Method:
    views = Views(unlabelled=False, mix=False)
    teacher: nn.Module | None = None

    def __init__(self, arguments: MethodArguments):
        self.arguments = arguments

    def weights(self, progress: float) -> dict[str, float]:
        raise NotImplementedError

    def terms(self, step: Step) -> dict[str, Mean]:
        raise NotImplementedError

    def after_step(self, segmenter: SemanticSegmenter, step: int) -> None:
        """After optimizer step 0, 1, 2, ..."""

    def trained(self, segmenter: SemanticSegmenter) -> SemanticSegmenter:
        """What predicts in the end: the segmenter, or its teacher."""
        return segmenter

    def clean(self, images: Tensor, masks: list[Tensor] | None = None) -> View:
        """A pass of labelled or weak images; `masks` perturb features beside them."""
        statistics = "clean" if self.arguments.batch_norm_statistics == "clean" else "all"
        return View(images, masks, beside=masks is not None, statistics=statistics)

    def strong(self, images: Tensor, masks: list[Tensor] | None = None) -> View:
        """A pass of strong views; `masks` perturb their features."""
        statistics = "none" if self.arguments.batch_norm_statistics == "clean" else "all"
        return View(images, masks, statistics=statistics)

    def labelled_loss(self, logits: Tensor, step: Step) -> Mean:
        options, labels = self.arguments, step.batch["labels"]
        if options.labelled_loss == "cross_entropy":
            return cross_entropy(logits, labels)
        min_kept = options.ohem_min_kept * len(labels) * step.processes
        return ohem_cross_entropy(logits, labels, options.ohem_threshold, min_kept, step.gather)

    def consistency(self, logits: Tensor, labels: Tensor, confidence: Tensor, ignore: Tensor) -> Mean:
        kind, threshold = self.arguments.confidence or "pixel", self.arguments.confidence_threshold
        if kind == "image_mean":
            return image_confidence_consistency(logits, labels, confidence, ignore)
        if kind == "image_ratio":
            return image_ratio_consistency(logits, labels, confidence, ignore, threshold)
        return consistency(logits, labels, confidence, ignore, threshold)


@torch.no_grad()
def predicted_without_gradient(segmenter: SemanticSegmenter, images: Tensor) -> Tensor:
    """Logits in evaluation mode; the segmenter's mode is as before afterwards."""
    was_training = segmenter.training
    segmenter.eval()
    try:
        return segmenter.logits(images)
    finally:
        segmenter.train(was_training)
