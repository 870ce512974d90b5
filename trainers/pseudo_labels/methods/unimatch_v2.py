"""UniMatch V2 (arXiv 2410.10777): an EMA teacher, and two strong views whose features are dropped complementarily."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..arguments import MethodArguments
from ..cutmix import paste
from ..dataset import Views
from ..losses import Mean, pseudo_labels
from ..perturbation import complementary_dropout
from ..segmenter import SemanticSegmenter, View
from . import Method, Step
from .unimatch import box_insides


def unimatch_v2_weights() -> dict[str, float]:
    """(L_x + (L_s1 + L_s2) / 2) / 2 (UniMatch V2, `unimatch_v2.py`)."""
    return {"labelled_loss": 0.5, "strong1_loss": 0.25, "strong2_loss": 0.25}


class UniMatchV2(Method):
    """CutMix boxes are filled from the neighbour in the batch: images 0 and 1 swap, 2 and 3, ... The public code
    reverses a GPU's batch, which with its 2 images per GPU is the same; so processes do not matter."""

    views = Views(unlabelled=True, mix=False)

    def __init__(self, arguments: MethodArguments, segmenter: SemanticSegmenter):
        super().__init__(arguments)
        self.teacher = copy.deepcopy(segmenter).requires_grad_(False).eval()

    def weights(self, progress: float) -> dict[str, float]:
        return unimatch_v2_weights()

    def trained(self, segmenter: SemanticSegmenter) -> SemanticSegmenter:
        return self.teacher

    def after_step(self, segmenter: SemanticSegmenter, step: int) -> None:
        update_teacher(self.teacher, segmenter, ema_ratio(step, self.arguments.ema_ratio))

    def terms(self, step: Step) -> dict[str, Mean]:
        batch = step.batch
        with torch.no_grad():
            confidence, labels = pseudo_labels(self.teacher.logits(batch["weak"]))
        inside = box_insides(batch)
        of_labelled, of_strong = step.model(self.passes(step, inside))
        terms = {"labelled_loss": self.labelled_loss(of_labelled, step)}
        for k, logits in enumerate(of_strong.chunk(2)):
            pasted = [paste(one, swapped(one), inside[k]) for one in (labels, confidence, batch["ignore"])]
            terms[f"strong{k + 1}_loss"] = self.consistency(logits, *pasted)
        return terms

    def passes(self, step: Step, inside: list[Tensor]) -> list[View]:
        batch, channels = step.batch, step.segmenter.network.channels
        if len(set(channels)) == 1:
            masks = complementary_dropout(batch["feature_seed"].tolist(), batch["dropped"].tolist(), channels[0])
            levels = [torch.cat(masks)] * len(channels)
        else:
            # levels of different widths have no channel in common
            masks = complementary_dropout(batch["feature_seed"].tolist(), batch["dropped"].tolist(), sum(channels))
            levels = list(torch.cat(masks).split(channels, dim=1))
        strong = [paste(batch[f"strong{k + 1}"], swapped(batch[f"strong{k + 1}"]), inside[k]) for k in range(2)]
        device = batch["weak"].device
        return [self.clean(batch["labelled"]), self.strong(torch.cat(strong), [level.to(device) for level in levels])]


def swapped(batch: Tensor) -> Tensor:
    """Neighbours change places: 1 0 3 2 5 4 ...; of an even number of samples."""
    return batch.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def ema_ratio(step: int, highest: float = 0.996) -> float:
    """min(1 - 1 / (step + 1), highest): what is kept of the teacher after optimizer step 0, 1, 2, ...

    0 at step 0 (the teacher becomes the student), then the plain average of all students so far until `highest`.
    """
    return min(1 - 1 / (step + 1), highest)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, ratio: float) -> None:
    """teacher = ratio * teacher + (1 - ratio) * student; running statistics too. Counters are copied."""
    theirs = student.state_dict()
    for name, own in teacher.state_dict().items():
        if own.is_floating_point():
            own.mul_(ratio).add_(theirs[name].to(own), alpha=1 - ratio)
        else:
            own.copy_(theirs[name])
