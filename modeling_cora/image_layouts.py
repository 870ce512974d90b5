"""How an image stands in the token sequence: each family of vision-language models has its own way.

    fixed       LLaVA and most others: `num_image_tokens` times the image token
    grid        Qwen2-VL, 2.5, 3: as many tokens as merged patches, which depends on the image's size (`image_grid_thw`)
    tiles       Idefics3, SmolVLM: marked tiles of the image, then the whole image (`rows`, `cols`)

A family with another way gets a branch in `image_texts`, and its inputs a line in `VISION_INPUTS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from .images import shrunk

VISION_INPUTS = ("pixel_values", "pixel_attention_mask", "image_grid_thw")
"""What image processors make for the vision tower; the model hands on whatever of it there is."""


def vision_inputs(image_processor: Any, images: Sequence[Image.Image]) -> dict[str, Any]:
    """The image processor's output for a batch with one image per sequence: `VISION_INPUTS`, and what
    `image_texts` needs to know."""
    if hasattr(image_processor, "do_image_splitting"):  # a flat list would be several images of one sequence
        output = image_processor([[image] for image in images], return_tensors="pt", return_row_col_info=True)
    elif hasattr(image_processor, "pad_to_square") and image_processor.do_pad:
        output = image_processor([shrunk(image) for image in images], return_tensors="pt")  # it pads before it resizes
    else:
        output = image_processor(list(images), return_tensors="pt")
    return dict(output)


def image_texts(image_processor: Any, inputs: Mapping[str, Any], image_token: str, num_image_tokens: int) -> list[str]:
    """What stands in the prompt for each image of the batch.

    Args:
        inputs: of `vision_inputs`.
        num_image_tokens: tokens of one image (fixed), or of one tile (tiles); unused by grids.
    """
    if "image_grid_thw" in inputs:
        merged = image_processor.merge_size**2
        return [image_token * (count // merged) for count in inputs["image_grid_thw"].prod(1).tolist()]
    if "rows" in inputs:
        # here, since it brings video processing along, which no other family needs
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        return [
            get_image_prompt_string(
                rows[0],
                columns[0],
                num_image_tokens,
                fake_token_around_image="<fake_token_around_image>",
                image_token=image_token,
                global_image_token="<global-img>",
            )
            for rows, columns in zip(inputs["rows"], inputs["cols"], strict=True)
        ]
    return [image_token * num_image_tokens] * len(inputs["pixel_values"])


def select_images(inputs: Mapping[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
    """The vision inputs of some images of a batch, each as often as `index` (int64) names it."""
    grid = inputs.get("image_grid_thw")
    selected = {name: tensor[index] for name, tensor in inputs.items() if name != "pixel_values" or grid is None}
    if grid is not None:  # pixel_values holds the patches of all images in one row
        patches = inputs["pixel_values"].split(grid.prod(1).tolist())
        selected["pixel_values"] = torch.cat([patches[k] for k in index.tolist()])
    return selected
