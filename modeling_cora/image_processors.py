"""The two image processors of a CORA model: for the vision tower and for SAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

ClipPreprocessing = Literal["letterbox", "centre_crop"]


def clip_image_processor(
    image_size: int,
    preprocessing: ClipPreprocessing = "letterbox",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> LlavaImageProcessorPil:
    """For the vision tower.

    Args:
        image_size: side of its input.
        preprocessing: `letterbox` pads the image to a square of its long side, as LLaVA-1.5 does; `centre_crop` brings
            the short side to `image_size` and cuts the rest off, as CLIP and LISA do, so half of a 2:1 image is unseen.
        image_mean, image_std: of RGB in [0, 1]; CLIP's where not given.
    """
    normalisation = {"image_mean": image_mean, "image_std": image_std}
    return LlavaImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        do_pad=preprocessing == "letterbox",
        **{name: list(values) for name, values in normalisation.items() if values is not None},
    )


def sam_image_processor(image_size: int) -> SamImageProcessorPil:
    """For SAM: the long side to `image_size`, then zeros to the right and below (`ResizeLongestSide`, `preprocess`)."""
    square = {"height": image_size, "width": image_size}
    longest = {"longest_edge": image_size}
    return SamImageProcessorPil(size=longest, pad_size=square, mask_size=longest, mask_pad_size=square)


__all__ = ["ClipPreprocessing", "clip_image_processor", "sam_image_processor"]
