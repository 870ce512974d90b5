"""segment-anything's own numbers: its weights through the converter's table into `SamModel`, its pixels through the
image processor that the converter saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import SamModel

from modeling_cora.image_processors import sam_image_processor
from modeling_cora.masks import resize_mask_logits
from modeling_cora.sam_checkpoint import read_sam

from .conftest import SHARED

FOLDER = SHARED / "golden" / "sam_tiny"
SHAPES = (
    "landscape",
    "odd",
    "one_px_high",
    "one_px_wide",
    "portrait",
    "square",
    "tiny7x5",
    "two_to_one",
)
CLOSE = dict(rtol=1e-4, atol=1e-5)

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"no stored results of segment-anything at {FOLDER}")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "sam_tiny.safetensors")


def decoder_heads(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return json.loads((opened.metadata() or {}).get("config", "{}")).get("dec_heads", 4)


@pytest.fixture(scope="module")
def sam(tmp_path_factory, golden) -> SamModel:
    """Through a `.pth` like segment-anything's own."""
    file = tmp_path_factory.mktemp("sam") / "sam_tiny.pth"
    torch.save({name[2:]: tensor for name, tensor in golden.items() if name.startswith("w.")}, file)
    config, tensors = read_sam(file, decoder_heads(FOLDER / "sam_tiny.safetensors"))
    model = SamModel(config)
    weights = {name.removeprefix("sam."): tensor for name, tensor in tensors.items()}
    name = "prompt_encoder.shared_embedding.positional_embedding"
    weights[name] = weights["shared_image_embedding.positional_embedding"]
    model.load_state_dict(weights, strict=True)
    return model.eval()


@torch.no_grad()
def decode(sam: SamModel, golden, sparse: torch.Tensor, dense: torch.Tensor | None, multimask: bool):
    """(n, k, 32) sparse prompts -> masks (n, m, 4h, 4w) and IoU estimates (n, m), through SAM's own decoder."""
    height, width = golden["out.image_embedding"].shape[-2:]
    if dense is None:
        dense = sam.prompt_encoder.no_mask_embed.weight[:, :, None, None].expand(-1, -1, height, width)
    count = len(sparse)
    masks, iou = sam.mask_decoder(
        image_embeddings=golden["out.image_embedding"].expand(count, -1, -1, -1),
        image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(count, -1, -1, -1),
        sparse_prompt_embeddings=sparse[:, None],
        dense_prompt_embeddings=dense.expand(count, -1, -1, -1),
        multimask_output=multimask,
    )
    return masks[:, 0], iou[:, 0]


@torch.no_grad()
def test_image_embedding_and_positions_are_sams(sam, golden):
    embedding = sam.get_image_embeddings(golden["in.pixel_values"])
    torch.testing.assert_close(embedding, golden["out.image_embedding"], **CLOSE)
    torch.testing.assert_close(sam.get_image_wide_positional_embeddings(), golden["out.dense_pe"], **CLOSE)
    no_mask = sam.prompt_encoder.no_mask_embed.weight[0]
    torch.testing.assert_close(no_mask, golden["out.no_prompt_dense_value"], **CLOSE)


@pytest.mark.parametrize(
    ("case", "multimask"),
    [
        ("point", False),
        ("point", True),
        ("box", False),
        ("box", True),
        ("point_box", False),
        ("mask_only", False),
        ("point_mask", False),
    ],
)
@torch.no_grad()
def test_masks_of_points_boxes_and_masks_are_sams(sam, golden, case, multimask):
    """Each prompt alone: `SamModel` adds one mask prompt per image, not one per point."""
    expected = f"{case}.out.low_res_{'multi' if multimask else 'single'}"
    for index in range(len(golden[expected])):
        one = slice(index, index + 1)
        prompts = {}
        if "point" in case:
            prompts["input_points"] = golden["in.points_input_frame"][one][None]
            prompts["input_labels"] = golden["in.point_labels"][one][None]
        if "box" in case:
            prompts["input_boxes"] = golden["in.boxes_input_frame"][one][None]
        if "mask" in case:
            prompts["input_masks"] = golden["in.mask_inputs"][one]
        output = sam(image_embeddings=golden["out.image_embedding"], multimask_output=multimask, **prompts)
        torch.testing.assert_close(output.pred_masks[0, 0], golden[expected][index], **CLOSE)
        iou = golden[expected.replace("low_res", "iou")][index]
        torch.testing.assert_close(output.iou_scores[0, 0], iou, **CLOSE)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("case", ["raw", "raw4"])
def test_masks_of_raw_prompts_are_sams(sam, golden, case, multimask):
    masks, iou = decode(sam, golden, golden[f"{case}.out.sparse"], None, multimask)
    kind = "multi" if multimask else "single"
    torch.testing.assert_close(masks, golden[f"{case}.out.low_res_{kind}"], **CLOSE)
    torch.testing.assert_close(iou, golden[f"{case}.out.iou_{kind}"], **CLOSE)


@pytest.mark.parametrize("case", ["raw", "point", "box"])
def test_masks_at_image_size_are_sams(sam, golden, case):
    masks, _ = decode(sam, golden, golden[f"{case}.out.sparse"], None, multimask=False)
    side = golden["in.pixel_values"].shape[-1]
    size = golden["in.original_size"].tolist()
    ours = resize_mask_logits(masks[:, 0], side, golden["in.input_size"].tolist(), size)
    torch.testing.assert_close(ours, golden[f"{case}.out.masks_original_size"][:, 0], **CLOSE)


@torch.no_grad()
def test_whole_way_from_a_photo_is_sams_predictor(sam, golden):
    image = Image.fromarray(golden["in.image_u8"].numpy())
    side = golden["in.pixel_values"].shape[-1]
    inputs = sam_image_processor(side)([image], return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], golden["in.pixel_values"], rtol=0, atol=1e-5)
    output = sam(
        pixel_values=inputs["pixel_values"],
        input_points=golden["in.points_input_frame"][:1][None],
        input_labels=golden["in.point_labels"][:1][None],
        multimask_output=True,
    )
    torch.testing.assert_close(output.pred_masks[0, 0], golden["predictor.out.low_res"], **CLOSE)
    size = golden["in.original_size"].tolist()
    masks = resize_mask_logits(output.pred_masks[0, 0], side, golden["in.input_size"].tolist(), size) > 0
    assert torch.equal(masks, golden["predictor.out.masks"].bool())


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_sams(shape):
    golden = load_file(FOLDER / "sam_preprocess.safetensors")
    image = Image.fromarray(golden[f"{shape}.in.image_u8"].numpy())
    expected = golden[f"{shape}.out.preprocessed"]
    inputs = sam_image_processor(expected.shape[-1])([image], return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"][0], expected, rtol=0, atol=1e-6)
    assert list(inputs["reshaped_input_sizes"][0]) == list(golden[f"{shape}.out.resized_u8"].shape[:2])
    assert list(inputs["original_sizes"][0]) == list(image.size[::-1])
    at_1024 = sam_image_processor(1024)([image], return_tensors="pt")
    assert list(at_1024["reshaped_input_sizes"][0]) == golden[f"{shape}.out.resized1024_shape"].tolist()
    height, width = golden[f"{shape}.out.resized1024_shape"].tolist()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    grey = ((at_1024["pixel_values"][0][:, :height, :width] * std + mean) * 255).permute(1, 2, 0)[::29, ::29]
    torch.testing.assert_close(grey, golden[f"{shape}.out.resized1024_every29"].float(), rtol=0, atol=1e-3)
