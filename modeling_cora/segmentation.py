"""The short way from an image and queries to masks: answers from the template, one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from .consistency import mask_variance, rephrase
from .masks import resize_mask_logits
from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import CoraProcessor


@dataclass(frozen=True)
class Segmentation:
    """Masks of one image, one per query.

    Attributes:
        masks: bool (n, H, W) at image size.
        scores: fp32 (n,) in [0, 1], the model's estimate of each mask's IoU.
        uncertainty: fp32 (n, H, W) in [0, 1/4], the variance over equivalent queries (eq. 6); None unless asked for.
    """

    masks: torch.Tensor
    scores: torch.Tensor
    uncertainty: torch.Tensor | None = None


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
    low_res, scores, embeddings = [], [], None
    for start in range(0, len(asked), queries_per_pass):
        inputs = processor(image, asked[start : start + queries_per_pass]).to(model.device)
        del inputs["labels"]
        if embeddings is None:
            embeddings = model.get_image_embeddings(inputs["sam_pixel_values"])
        del inputs["sam_pixel_values"]
        output = model(**inputs, sam_image_embeddings=embeddings)
        low_res.append(output.pred_masks)
        scores.append(output.iou_scores.float().clamp(0, 1))
    logits, input_size = torch.cat(low_res), processor.sam_image_processor.pad_size["height"]
    reshaped = inputs["reshaped_input_sizes"][0].tolist()

    def at_image_size(chosen: torch.Tensor) -> torch.Tensor:
        return resize_mask_logits(chosen, input_size, reshaped, (image.height, image.width))

    # one query at a time: at image size, logits are four times as large as masks, and there are K of them
    masks = [(at_image_size(one[None]) > threshold)[0].cpu() for one in logits[: len(queries)]]
    others = logits[len(queries) :].split([len(group) for group in groups])
    maps = torch.stack([mask_variance(at_image_size(one)).cpu() for one in others]) if groups else None
    return Segmentation(torch.stack(masks), torch.cat(scores)[: len(queries)].cpu(), maps)


__all__ = ["Segmentation", "segment"]
