"""UniMatch (arXiv 2208.09910): two strong views and perturbed features follow the weak view's prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cutmix import box_masks, paste
from ..dataset import Views
from ..losses import Mean, pseudo_labels
from ..perturbation import channel_dropout_masks
from ..segmenter import View
from . import Method, Step, predicted_without_gradient


def unimatch_weights(strong: float = 0.25, feature: float = 0.5) -> dict[str, float]:
    """(L_x + strong L_s1 + strong L_s2 + feature L_fp) / 2 (UniMatch, `unimatch.py`)."""
    return {
        "labelled_loss": 0.5,
        "strong1_loss": strong / 2,
        "strong2_loss": strong / 2,
        "feature_loss": feature / 2,
    }


class UniMatch(Method):
    """Pseudo-labels are hard, of the current weights, and come out of the training pass itself (BatchNorm with the
    batch's statistics); those of what is pasted come out of a pass in evaluation mode."""

    views = Views(unlabelled=True, mix=True)

    def weights(self, progress: float) -> dict[str, float]:
        return unimatch_weights(self.arguments.strong_loss_weight, self.arguments.feature_loss_weight)

    def terms(self, step: Step) -> dict[str, Mean]:
        inside = box_insides(step.batch)
        return self.terms_of(step, inside, *step.model(self.passes(step, inside)))

    def terms_of(self, step: Step, inside: list[Tensor], logits: Tensor, logits_strong: Tensor) -> dict[str, Mean]:
        """Args:
        inside: bool (B, H, W), the CutMix box of each strong view.
        logits: of labelled images, weak views and weak views with perturbed features, one after another.
        logits_strong: of both strong views.
        """
        batch = step.batch
        of_mix = pseudo_labels(predicted_without_gradient(step.segmenter, batch["mix_weak"]))
        count = len(batch["weak"])
        of_labelled, of_weak, of_perturbed = logits.split([len(logits) - 2 * count, count, count])
        confidence, labels = pseudo_labels(of_weak)
        terms = {"labelled_loss": self.labelled_loss(of_labelled, step)}
        for k, of_strong in enumerate(logits_strong.chunk(2)):
            pasted = self.pasted((confidence, labels), of_mix, batch, inside[k])
            terms[f"strong{k + 1}_loss"] = self.consistency(of_strong, *pasted)
        terms["feature_loss"] = self.consistency(of_perturbed, labels, confidence, batch["ignore"])
        return terms

    def passes(self, step: Step, inside: list[Tensor]) -> list[View]:
        """Labelled and weak images, with the weak ones' features perturbed beside them; both strong views."""
        batch = step.batch
        masks = channel_dropout_masks(
            batch["feature_seed"].tolist(), step.segmenter.network.channels, self.arguments.feature_dropout
        )
        masks = [mask.to(batch["weak"].device) for mask in masks]
        strong = [paste(batch[f"strong{k + 1}"], batch[f"mix_strong{k + 1}"], inside[k]) for k in range(2)]
        return [self.clean(torch.cat([batch["labelled"], batch["weak"]]), masks), self.strong(torch.cat(strong))]

    @staticmethod
    def pasted(
        weak: tuple[Tensor, Tensor], mix: tuple[Tensor, Tensor], batch: dict[str, Tensor], inside: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, confidence and ignore map of a strong view, pasted as its image was."""
        confidence, labels = (paste(own, other, inside) for own, other in zip(weak, mix, strict=True))
        return labels, confidence, paste(batch["ignore"], batch["mix_ignore"], inside)


def box_insides(batch: dict[str, Tensor]) -> list[Tensor]:
    """bool (B, H, W) for each of the two strong views."""
    return [box_masks(batch[box], *batch["ignore"].shape[-2:]) for box in ("box1", "box2")]
