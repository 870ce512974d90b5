"""SemiVL (arXiv 2311.16241): UniMatch's loop on a vision-language segmenter, guided by a frozen CLIP."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from datasets_scripts.records import IGNORE_INDEX

from ..arguments import MethodArguments
from ..clip import FrozenClip
from ..cutmix import paste
from ..losses import Mean, guidance
from . import Step
from .unimatch import UniMatch, box_insides


class SemiVL(UniMatch):
    """UniMatch's terms, each with a second one for what the frozen CLIP says of the same pixels.

    The guidance has UniMatch's weights of the unlabelled terms, without the division by 2 (SemiVL, `semivl.py`).
    """

    def __init__(self, arguments: MethodArguments, clip: FrozenClip | None):
        super().__init__(replace(arguments, confidence=arguments.confidence or "image_mean"))
        self.clip = clip

    def weights(self, progress: float) -> dict[str, float]:
        weights = super().weights(progress)
        if self.clip is None:
            return weights
        share = self.arguments.guidance_weight * (1 - progress)  # linearly to 0 at the last step
        names = ("strong1_loss", "strong2_loss", "feature_loss")
        return weights | {name.replace("loss", "guidance"): 2 * weights[name] * share for name in names}

    def terms(self, step: Step) -> dict[str, Mean]:
        inside = box_insides(step.batch)
        logits, logits_strong = step.model(self.passes(step, inside))
        terms = self.terms_of(step, inside, logits, logits_strong)
        if self.clip is None:
            return terms
        batch, over = step.batch, self.arguments.guidance_over
        own, mix = (self._clip_labels(batch[f"{of}weak"], batch[f"{of}ignore"]) for of in ("", "mix_"))
        for k, of_strong in enumerate(logits_strong.chunk(2)):
            terms[f"strong{k + 1}_guidance"] = guidance(of_strong, paste(own, mix, inside[k]), over)
        return terms | {"feature_guidance": guidance(logits[-len(own) :], own, over)}

    def _clip_labels(self, images: Tensor, ignore: Tensor) -> Tensor:
        labels = self.clip.labels(images, self.arguments.guidance_threshold)
        return labels.masked_fill(ignore == IGNORE_INDEX, IGNORE_INDEX)
