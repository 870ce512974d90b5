"""The short way from an image and queries to masks: by the template's answer in one pass, or by generated text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import CoraProcessor


@dataclass(frozen=True)
class Segmentation:
    """Masks of one image, one per query; or of one generated answer, one per `[SEG]` in it.

    Attributes:
        masks: bool (n, H, W) at image size.
        scores: fp32 (n,) in [0, 1], the model's estimate of each mask's IoU.
        text: the generated answer; empty where the answer was the template's.
    """

    masks: torch.Tensor
    scores: torch.Tensor
    text: str = ""


def segment(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image,
    queries: Sequence[str],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
) -> Segmentation:
    """Asks all queries about one image; up to `queries_per_pass` of them share one forward pass.

    SAM's encoder runs once whatever their number. The model is used in the mode (train or eval) that it is in.

    Args:
        threshold: of the mask logits.

    Raises:
        ValueError: see [`CoraProcessor`].
    """
    inputs = processor.image_inputs([image])
    return segment_batch(model, processor, inputs, [queries], threshold, queries_per_pass)[0]


@torch.no_grad()
def segment_batch(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image_inputs: Mapping[str, torch.Tensor],
    queries: Sequence[Sequence[str]],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
) -> list[Segmentation]:
    """As `segment`, for several images in one forward pass.

    Args:
        image_inputs: of B images, from `processor.image_inputs`.
        queries: B lists; up to `queries_per_pass` of each go into one pass.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in image_inputs.items()}
    embeddings = model.get_image_embeddings(inputs["sam_pixel_values"])
    masks: list[list[torch.Tensor]] = [[] for _ in queries]
    scores: list[list[torch.Tensor]] = [[] for _ in queries]
    for start in range(0, max(1, *map(len, queries)), queries_per_pass):
        # an image whose queries have all been asked sits out; one without any reaches the processor, which refuses it
        asked = [index for index, given in enumerate(queries) if not start or len(given) > start]
        parts = [list(queries[index][start : start + queries_per_pass]) for index in asked]
        tokens = processor.query_inputs(parts)
        output = model(
            input_ids=tokens["input_ids"].to(model.device),
            branch_ids=tokens["branch_ids"].to(model.device),
            pixel_values=inputs["pixel_values"][asked],
            sam_image_embeddings=embeddings[asked],
        )
        of_image = _masks_per_row(processor, output, inputs, asked, threshold)
        for index, (image_masks, image_scores) in zip(asked, of_image, strict=True):
            masks[index].append(image_masks)
            scores[index].append(image_scores)
    return [Segmentation(torch.cat(m), torch.cat(s)) for m, s in zip(masks, scores, strict=True)]


@torch.no_grad()
def answer_batch(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image_inputs: Mapping[str, torch.Tensor],
    queries: Sequence[Sequence[str]],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
    **generate_kwargs: Any,
) -> list[list[Segmentation]]:
    """Lets the model answer in its own words: no, one or several masks per query.

    Args:
        image_inputs, queries: as in `segment_batch`.
        queries_per_pass: rows that are generated together.
        generate_kwargs: go to `model.generate`.

    Returns:
        B lists, one answer per query.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in image_inputs.items()}
    embeddings = model.get_image_embeddings(inputs["sam_pixel_values"])
    rows = [(index, query) for index, given in enumerate(queries) for query in given]
    answers: list[list[Segmentation]] = [[] for _ in queries]
    for start in range(0, len(rows), queries_per_pass):
        part = rows[start : start + queries_per_pass]
        image_of_row = [index for index, _ in part]
        tokens = processor.query_inputs([[query] for _, query in part], generate=True)
        output: Any = model.generate(
            input_ids=tokens["input_ids"].to(model.device),
            branch_ids=tokens["branch_ids"].to(model.device),
            pixel_values=inputs["pixel_values"][image_of_row],
            sam_image_embeddings=embeddings[image_of_row],
            **generate_kwargs,
        )
        texts = [answer_text(processor, ids) for ids in output.sequences[:, tokens["input_ids"].shape[1] :].tolist()]
        of_row = _masks_per_row(processor, output, inputs, image_of_row, threshold)
        for index, text, (masks, scores) in zip(image_of_row, texts, of_row, strict=True):
            answers[index].append(Segmentation(masks, scores, text))
    return answers


def answer_text(processor: CoraProcessor, generated: Sequence[int]) -> str:
    """Generated token ids as text: up to the end of the sequence, `[SEG]` as it is written."""
    ids, eos = list(generated), processor.tokenizer.eos_token_id
    ids = ids[: ids.index(eos)] if eos in ids else ids
    return str(processor.tokenizer.decode(ids, skip_special_tokens=False)).strip()


def _masks_per_row(
    processor: CoraProcessor, output: Any, inputs: Mapping[str, torch.Tensor], images: list[int], threshold: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Masks and scores of each row of a batch, on the CPU; row k shows image `images[k]` of `inputs`."""
    masks = processor.post_process_masks(
        output.pred_masks,
        output.seg_batch_index,
        inputs["original_sizes"][images],
        inputs["reshaped_input_sizes"][images],
        threshold,
    )
    scores = output.iou_scores.float().clamp(0, 1)
    return [(m.cpu(), scores[output.seg_batch_index == row].cpu()) for row, m in enumerate(masks)]


__all__ = ["Segmentation", "answer_batch", "answer_text", "segment", "segment_batch"]
