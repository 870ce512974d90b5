"""The short way from an image and queries to masks: answers from the template, one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import CoraProcessor


@dataclass(frozen=True)
class Segmentation:
    """Masks of one image, one per query.

    Attributes:
        masks: bool (n, H, W) at image size.
        scores: fp32 (n,) in [0, 1], the model's estimate of each mask's IoU.
    """

    masks: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
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
    masks, scores, embeddings = [], [], None
    for start in range(0, len(queries), queries_per_pass):
        inputs = processor(image, list(queries[start : start + queries_per_pass])).to(model.device)
        del inputs["labels"]
        if embeddings is None:
            embeddings = model.get_image_embeddings(inputs["sam_pixel_values"])
        del inputs["sam_pixel_values"]
        output = model(**inputs, sam_image_embeddings=embeddings)
        masks += processor.post_process_masks(
            output.pred_masks,
            output.seg_batch_index,
            inputs["original_sizes"],
            inputs["reshaped_input_sizes"],
            threshold,
        )
        scores.append(output.iou_scores.float().clamp(0, 1))
    return Segmentation(torch.cat(masks).cpu(), torch.cat(scores).cpu())


__all__ = ["Segmentation", "segment"]
