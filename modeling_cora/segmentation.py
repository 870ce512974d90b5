"""The short way from an image and queries to masks: by the template's answer in one pass, or by generated text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .consistency import mask_variance, rephrase
from .image_layouts import VISION_INPUTS, select_images
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


def segment(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image,
    queries: Sequence[str],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
    uncertainty: bool = False,
    rephrasings: Sequence[Sequence[str]] | None = None,
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
) -> Segmentation:
    """Asks all queries about one image; up to `queries_per_pass` of them share one forward pass.

    SAM's encoder runs once whatever their number. The model is used in the mode (train or eval) that it is in.

    Args:
        threshold: of the mask logits.
        uncertainty: also ask K - 1 equivalent queries for each, and tell where the answers differ.
        rephrasings: for each query at least 2 others that mean the same; those of `rephrase` where not given.
        anchors: for each query the masks (H, W) that it points at, most often one or none; see [`CoraProcessor`].

    Raises:
        ValueError: see [`CoraProcessor`]; rephrasings that are not one list of at least 2 for each query.
    """
    groups = [rephrase(query) for query in queries] if uncertainty and rephrasings is None else rephrasings or []
    if groups and (len(groups) != len(queries) or min(map(len, groups)) < 2):
        raise ValueError(f"rephrasings: {[len(g) for g in groups]} for {len(queries)} queries; at least 2 for each")
    inputs = processor.image_inputs([image])
    asked = [*queries, *(text for group in groups for text in group)]
    if anchors is not None:
        pointed = zip(anchors, groups, strict=True) if groups else ()
        anchors = [*anchors, *(masks for masks, group in pointed for _ in group)]
    ((logits, scores),) = _ask(model, processor, inputs, [asked], queries_per_pass, image, anchors)
    masks = _at_image_size(processor, inputs, 0, logits[: len(queries)], threshold)
    others = logits[len(queries) :].split([len(group) for group in groups])
    variances = [mask_variance(_at_image_size(processor, inputs, 0, one, threshold=None)) for one in others]
    return Segmentation(masks, scores[: len(queries)], torch.stack(variances) if groups else None)


def segment_batch(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    images: Sequence[Image.Image],
    queries: Sequence[Sequence[str]],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
) -> list[Segmentation]:
    """As `segment`, for B images and B lists of queries; up to `queries_per_pass` of each list share one pass."""
    image_inputs = processor.image_inputs(images)
    answers = _ask(model, processor, image_inputs, queries, queries_per_pass)
    return [
        Segmentation(_at_image_size(processor, image_inputs, index, logits, threshold), scores)
        for index, (logits, scores) in enumerate(answers)
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
        queries_per_pass: rows that are generated together.
        generate_kwargs: go to `model.generate`.

    Returns:
        B lists, one answer per query.
    """
    image_inputs = processor.image_inputs(images)
    embeddings, vision = _on_device(model, image_inputs)
    rows = [(index, query) for index, given in enumerate(queries) for query in given]
    answers: list[list[Segmentation]] = [[] for _ in queries]
    for start in range(0, len(rows), queries_per_pass):
        part = rows[start : start + queries_per_pass]
        owners = [index for index, _ in part]
        inputs = _inputs(
            processor, image_inputs["image_texts"], vision, owners, [[query] for _, query in part], generate=True
        )
        output: Any = model.generate(**inputs, sam_image_embeddings=embeddings[owners], **generate_kwargs)
        generated = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        for row, (index, ids) in enumerate(zip(owners, generated, strict=True)):
            owned = output.seg_batch_index == row
            masks = _at_image_size(processor, image_inputs, index, output.pred_masks[owned], threshold)
            scores = output.iou_scores[owned].float().clamp(0, 1).cpu()
            answers[index].append(Segmentation(masks, scores, text=answer_text(processor, ids)))
    return answers


def answer_text(processor: CoraProcessor, generated: Sequence[int]) -> str:
    """Generated token ids as text: up to the end of the sequence, `[SEG]` as it is written."""
    ids, eos = list(generated), processor.tokenizer.eos_token_id
    ids = ids[: ids.index(eos)] if eos in ids else ids
    return str(processor.tokenizer.decode(ids, skip_special_tokens=False)).strip()


@torch.no_grad()
def _ask(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image_inputs: Mapping[str, Any],
    queries: Sequence[Sequence[str]],
    queries_per_pass: int,
    image: Image.Image | None = None,
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each image, low-resolution logits (n, h, w) and, on the CPU, scores (n,) of its queries.

    Args:
        image, anchors: of a batch of one image, where its queries have anchors.
    """
    embeddings, vision = _on_device(model, image_inputs)
    logits: list[list[torch.Tensor]] = [[] for _ in queries]
    scores: list[list[torch.Tensor]] = [[] for _ in queries]
    for start in range(0, max(1, *map(len, queries)), queries_per_pass):
        # an image whose queries have all been asked sits out; one without any reaches the processor, which refuses it
        images = [index for index, given in enumerate(queries) if not start or len(given) > start]
        parts = [list(queries[index][start : start + queries_per_pass]) for index in images]
        own = None if anchors is None else [anchors[start : start + queries_per_pass]]
        inputs = _inputs(processor, image_inputs["image_texts"], vision, images, parts, anchors=own)
        if image is not None and own is not None:
            pointed = processor.anchor_inputs([image], own)
            inputs |= {name: tensor.to(embeddings.device) for name, tensor in pointed.items()}
        output = model(**inputs, sam_image_embeddings=embeddings[images])
        for row, index in enumerate(images):
            owned = output.seg_batch_index == row
            logits[index].append(output.pred_masks[owned])
            scores[index].append(output.iou_scores[owned].float().clamp(0, 1).cpu())
    return [(torch.cat(pair[0]), torch.cat(pair[1])) for pair in zip(logits, scores, strict=True)]


def _on_device(
    model: CoraForReasoningSegmentation, image_inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Once for all passes: SAM's embeddings of the images, and the vision tower's inputs where the model is."""
    embeddings = model.get_image_embeddings(image_inputs["sam_pixel_values"].to(model.device))
    return embeddings, {name: image_inputs[name].to(model.device) for name in VISION_INPUTS if name in image_inputs}


def _inputs(
    processor: CoraProcessor,
    image_texts: Sequence[str],
    vision: Mapping[str, torch.Tensor],
    images: list[int],
    queries: Sequence[Sequence[str]],
    generate: bool = False,
    anchors: Sequence[Sequence[Sequence[np.ndarray]]] | None = None,
) -> dict[str, torch.Tensor]:
    """What the language side needs to be asked `queries[k]` about image `images[k]` of the batch."""
    device = vision["pixel_values"].device
    counts = None if anchors is None else [[len(masks) for masks in of_image] for of_image in anchors]
    texts = [image_texts[index] for index in images]
    tokens = processor.query_inputs(queries, texts, generate=generate, anchor_counts=counts)
    return {
        "input_ids": tokens["input_ids"].to(device),
        "branch_ids": tokens["branch_ids"].to(device),
        **select_images(vision, torch.tensor(images, device=device)),
    }


def _at_image_size(
    processor: CoraProcessor,
    image_inputs: Mapping[str, Any],
    index: int,
    low_res: torch.Tensor,
    threshold: float | None,
) -> torch.Tensor:
    """`processor.post_process_masks` of one image: (n, H, W) on the CPU."""
    original, reshaped = (image_inputs[name][index : index + 1] for name in ("original_sizes", "reshaped_input_sizes"))
    owner = torch.zeros(len(low_res), dtype=torch.long, device=low_res.device)
    return processor.post_process_masks(low_res, owner, original, reshaped, threshold)[0].cpu()


__all__ = ["Segmentation", "answer_batch", "answer_text", "segment", "segment_batch"]
