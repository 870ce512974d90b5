"""How an image stands in the token sequence: each family of vision-language models has its own way.

    fixed       LLaVA and most others: `num_image_tokens` times the image token
    grid        Qwen2-VL, 2.5, 3: as many tokens as merged patches, which depends on the image's size (`image_grid_thw`)
    tiles       Idefics3, SmolVLM: marked tiles of the image, then the whole image (`rows`, `cols`)

A family with another way gets a branch in `image_texts` and in `square_inputs`, and its inputs a line in
`VISION_INPUTS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from .images import shrunk

VISION_INPUTS = ("pixel_values", "pixel_attention_mask", "image_grid_thw")
"""What image processors make for the vision tower; the model hands on whatever of it there is."""
SQUARE_SIDE = 8
"""Merged patches along the side of an anchor, where a VLM takes images of any size: 224 pixels of Qwen2.5-VL."""


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


def square_inputs(image_processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Pixels of A square images that are seen whole and at one size, as anchors are.

    Returns:
        (A, 3, s, s); tiles: (A, 1, 3, s, s); grid: (A, n, c), the patches of each.

    Raises:
        ValueError: an image processor of another way.
    """
    if hasattr(image_processor, "do_image_splitting"):
        side = {"longest_edge": image_processor.max_image_size["longest_edge"]}
        single = [[image] for image in images]
        return image_processor(single, do_image_splitting=False, size=side, return_tensors="pt")["pixel_values"]
    if hasattr(image_processor, "merge_size"):
        side = SQUARE_SIDE * image_processor.merge_size * image_processor.patch_size
        # here, since the processor's own resizing rounds the sides of small pictures up now and then
        resized = [image.resize((side, side), image_processor.resample) for image in images]
        patches = image_processor(resized, do_resize=False, return_tensors="pt")["pixel_values"]
        return patches.unflatten(0, (len(images), -1))
    inputs = vision_inputs(image_processor, images)
    if set(inputs) & set(VISION_INPUTS) != {"pixel_values"} or inputs["pixel_values"].ndim != 4:
        raise ValueError(f"anchors: not available with a {type(image_processor).__name__}")
    return inputs["pixel_values"]


def inputs_of_squares(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The vision inputs for what `square_inputs` made."""
    if pixels.ndim != 3:
        return {"pixel_values": pixels}
    side = math.isqrt(pixels.shape[1])
    grid = torch.tensor([[1, side, side]] * len(pixels), device=pixels.device)
    return {"pixel_values": pixels.flatten(0, 1), "image_grid_thw": grid}
