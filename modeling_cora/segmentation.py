"""The short way from images and queries to masks: by the template's answer in one pass, or by generated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image

from .consistency import mask_variance, rephrase
from .masks import resize_mask_logits
from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import CoraProcessor


@dataclass(frozen=True)
class Segmentation:
    """Masks of one image, one per query; or of one generated answer, one per `[SEG]` in it.

    Attributes:
        masks: bool (n, H, W) at image size.
        scores: fp32 (n,) in [0, 1], the model's estimate of each mask's IoU.
        uncertainty: fp32 (n, H, W) in [0, 1/4], the variance over equivalent queries (eq. 6); None unless asked for.
        text: the generated answer; empty where the answer was the template's.
    """

    masks: torch.Tensor
    scores: torch.Tensor
    uncertainty: torch.Tensor | None = None
    text: str = ""


class _Answers(NamedTuple):
    """To the queries about one image: logits (n, h, w), scores (n,), and (height, width) inside SAM's input."""

    low_res: torch.Tensor
    scores: torch.Tensor
    reshaped_size: list[int]


@torch.no_grad()
def segment(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image,
    queries: Sequence[str],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
    uncertainty: bool = False,
    rephrasings: Sequence[Sequence[str]] | None = None,
) -> Segmentation:
    """Asks all queries about one image; up to `queries_per_pass` of them share one forward pass.

    SAM's encoder runs once whatever their number. The model is used in the mode (train or eval) that it is in.

    Args:
        threshold: of the mask logits.
        uncertainty: also ask K - 1 equivalent queries for each, and tell where the answers differ.
        rephrasings: for each query at least 2 others that mean the same; those of `rephrase` where not given.

    Raises:
        ValueError: see [`CoraProcessor`]; rephrasings that are not one list of at least 2 for each query.
    """
    groups = [rephrase(query) for query in queries] if uncertainty and rephrasings is None else rephrasings or []
    if groups and (len(groups) != len(queries) or min(map(len, groups)) < 2):
        raise ValueError(f"rephrasings: {[len(g) for g in groups]} for {len(queries)} queries; at least 2 for each")
    asked = [*queries, *(text for group in groups for text in group)]
    ((logits, scores, reshaped),) = _ask(model, processor, [image], [asked], queries_per_pass)
    masks = _masks(processor, logits[: len(queries)], reshaped, image, threshold)
    others = logits[len(queries) :].split([len(group) for group in groups])
    input_size, size = processor.sam_image_processor.pad_size["height"], (image.height, image.width)
    maps = [mask_variance(resize_mask_logits(one, input_size, reshaped, size)).cpu() for one in others]
    return Segmentation(masks, scores[: len(queries)], torch.stack(maps) if groups else None)


@torch.no_grad()
def segment_batch(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    images: Sequence[Image.Image],
    queries: Sequence[Sequence[str]],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
) -> list[Segmentation]:
    """As `segment`, for B images and B lists of queries; up to `queries_per_pass` of each list share one pass."""
    answers = _ask(model, processor, images, queries, queries_per_pass)
    return [
        Segmentation(_masks(processor, logits, reshaped, image, threshold), scores)
        for image, (logits, scores, reshaped) in zip(images, answers, strict=True)
    ]


@torch.no_grad()
def answer_batch(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    images: Sequence[Image.Image],
    queries: Sequence[Sequence[str]],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
    **generate_kwargs: Any,
) -> list[list[Segmentation]]:
    """Lets the model answer in its own words: no, one or several masks per query.

    Args:
        images, queries: B images and B lists.
        queries_per_pass: sequences that are generated together, one for each query.
        generate_kwargs: go to `model.generate`.

    Returns:
        B lists, one answer per query.
    """
    sam_pixel_values = processor.image_inputs(images)["sam_pixel_values"]
    embeddings = model.get_image_embeddings(sam_pixel_values.to(model.device))
    rows = [(index, query) for index, given in enumerate(queries) for query in given]
    answers: list[list[Segmentation]] = [[] for _ in queries]
    for start in range(0, len(rows), queries_per_pass):
        part = rows[start : start + queries_per_pass]
        shown = [index for index, _ in part]
        inputs = processor([images[index] for index in shown], [[query] for _, query in part], generate=True)
        del inputs["sam_pixel_values"]
        inputs = inputs.to(model.device)
        output: Any = model.generate(**inputs, sam_image_embeddings=embeddings[shown], **generate_kwargs)
        generated = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        scores = output.iou_scores.float().clamp(0, 1).cpu()
        for row, (index, ids) in enumerate(zip(shown, generated, strict=True)):
            of_row = output.seg_batch_index == row
            reshaped = inputs["reshaped_input_sizes"][row].tolist()
            masks = _masks(processor, output.pred_masks[of_row], reshaped, images[index], threshold)
            answers[index].append(Segmentation(masks, scores[of_row.cpu()], text=_answer_text(processor, ids)))
    return answers


def _ask(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    images: Sequence[Image.Image],
    queries: Sequence[Sequence[str]],
    queries_per_pass: int,
) -> list[_Answers]:
    """The template's answer to every query; each image goes through SAM's encoder once."""
    low_res: list[list[torch.Tensor]] = [[] for _ in images]
    scores: list[list[torch.Tensor]] = [[] for _ in images]
    embeddings, reshaped = None, []
    for start in range(0, max(1, *map(len, queries)), queries_per_pass):
        # an image whose queries have all been asked sits out; one without any reaches the processor, which refuses it
        asked = [index for index, given in enumerate(queries) if not start or len(given) > start]
        parts = [list(queries[index][start : start + queries_per_pass]) for index in asked]
        inputs = processor([images[index] for index in asked], parts).to(model.device)
        del inputs["labels"]
        if embeddings is None:
            embeddings = model.get_image_embeddings(inputs["sam_pixel_values"])
            reshaped = inputs["reshaped_input_sizes"].tolist()
        del inputs["sam_pixel_values"]
        output = model(**inputs, sam_image_embeddings=embeddings[asked])
        for row, index in enumerate(asked):
            of_row = output.seg_batch_index == row
            low_res[index].append(output.pred_masks[of_row])
            scores[index].append(output.iou_scores[of_row].float().clamp(0, 1).cpu())
    return [_Answers(torch.cat(m), torch.cat(s), r) for m, s, r in zip(low_res, scores, reshaped, strict=True)]


def _masks(
    processor: CoraProcessor, logits: torch.Tensor, reshaped: list[int], image: Image.Image, threshold: float
) -> torch.Tensor:
    """Low-resolution logits (n, h, w) -> bool (n, H, W) at the image's size, on the CPU."""
    input_size, size = processor.sam_image_processor.pad_size["height"], (image.height, image.width)
    # one query at a time: at image size, logits are four times as large as masks, and there are many
    masks = [(resize_mask_logits(one[None], input_size, reshaped, size) > threshold)[0].cpu() for one in logits]
    return torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)


def _answer_text(processor: CoraProcessor, generated: list[int]) -> str:
    """Token ids as text: up to the end of the sequence, `[SEG]` as it is written."""
    eos = processor.tokenizer.eos_token_id
    ids = generated[: generated.index(eos)] if eos in generated else generated
    return str(processor.tokenizer.decode(ids, skip_special_tokens=False)).strip()


__all__ = ["Segmentation", "answer_batch", "segment", "segment_batch"]
