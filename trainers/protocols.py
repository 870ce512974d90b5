"""How an answer is got and counted: what makes published numbers of the same name differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets_scripts.records import Instruction
from modeling_cora import SEG_TOKEN, CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.processing_cora import DEFAULT_ANSWER
from modeling_cora.segmentation import answer_batch, segment


@dataclass(frozen=True)
class Protocol:
    """Attributes:
    generated: the model answers in its own words, and all masks of an answer are one; otherwise the answer is the
        template's (teacher-forced), which always has a mask.
    answer: of the template.
    prompts: queries that people wrote are asked in the sentences of LISA's `ValDataset` (`utils/dataset.py`).
    counting: of `metrics/ciou`: "lisa" leaves ignored pixels (255) out and takes IoU 1 where nothing was to be found
        and nothing was; "segzero" takes ignored pixels for target and skips queries whose union is empty.
    """

    generated: bool
    counting: str
    answer: str = DEFAULT_ANSWER
    prompts: bool = False

    def query(self, instruction: Instruction) -> str:
        """What the model is asked."""
        if not self.prompts or instruction.kind != "reasoning":
            return instruction.query
        question = "{}" if instruction.facts.get("is_sentence") else "What is {} in this image?"
        return f" {question.format(instruction.query)} Please output segmentation mask."

    def __str__(self) -> str:
        """In words, for who reads the scores."""
        answers = "the model answers in its own words and is shown no anchors, all masks of an answer are one"
        ignored = "nowhere" if self.counting == "lisa" else "as the target's"
        answers = answers if self.generated else f'answers are teacher-forced ("{self.answer}")'
        asked = ", queries of people are asked in LISA's sentences" if self.prompts else ""
        return f"{answers}{asked}, pixels labelled 255 count {ignored}"


PROTOCOLS = {
    "lisa": Protocol(generated=False, counting="lisa"),  # LISA's counting; CORA's tables
    # all of LISA's validate(): for its weights on ReasonSeg and RefCOCO
    "lisa_prompts": Protocol(generated=False, counting="lisa", answer=f"{SEG_TOKEN}.", prompts=True),
    "generated": Protocol(generated=True, counting="lisa"),  # Sa2VA
    "segzero": Protocol(generated=True, counting="segzero"),  # Seg-Zero, VisionReasoner
}
"""By name. Every one thresholds logits at 0, at the image's own size."""


@dataclass(frozen=True)
class Answers:
    """Attributes:
    masks: bool (n, H, W).
    scores: n estimates of the IoU, in [0, 1]; of several masks, the least.
    failed: n times whether the answer had no mask.
    """

    masks: np.ndarray
    scores: list[float]
    failed: list[bool]


def ask(
    protocol: Protocol,
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image,
    queries: Sequence[str],
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
    **generate_kwargs: Any,
) -> Answers:
    """Asks all queries about one image.

    Args:
        anchors: see `segment`; generated answers are given words alone.
        generate_kwargs: see `answer_batch`.
    """
    if not protocol.generated:
        result = segment(model, processor, image, queries, anchors=anchors, answer=protocol.answer)
        return Answers(result.masks.numpy(), result.scores.tolist(), [False] * len(queries))
    (answers,) = answer_batch(model, processor, [image], [queries], **generate_kwargs)
    empty = torch.zeros(image.height, image.width, dtype=torch.bool)
    masks = [answer.masks.any(0) if len(answer.masks) else empty for answer in answers]
    scores = [answer.scores.min().item() if len(answer.masks) else 0.0 for answer in answers]
    return Answers(torch.stack(masks).numpy(), scores, [not len(answer.masks) for answer in answers])
