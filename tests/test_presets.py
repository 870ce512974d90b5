"""`cora-7b` has the sizes of LLaVA-1.5-7B and SAM ViT-H, counted part by part without memory for them."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from modeling_cora.checkpoint_keys import SAM_ORIGINAL, rename
from modeling_cora.conversion import empty_model
from modeling_cora.presets import cora_7b_config
from modeling_cora.sam_checkpoint import sam_config_of

from .small_checkpoints import original_sam

FOURIER = 2 * 128  # the matrix of the positions: a buffer in segment-anything, a parameter in transformers


@pytest.fixture(scope="module")
def model():
    return empty_model(cora_7b_config())


def weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_language_model_is_llama_2_7b_with_64_more_rows(model):
    published = 6_738_415_616  # Llama-2-7B, Vicuna-7B-v1.5: 32,000 rows
    width, inner = 4096, 11008
    layer = 4 * width * width + 3 * width * inner + 2 * width
    assert published == 2 * 32000 * width + 32 * layer + width
    ours = weights(model.vlm.model.language_model) + weights(model.vlm.lm_head)
    assert ours == published + 2 * 64 * width == 6_738_939_904


def test_vision_tower_is_clip_vit_large_at_336(model):
    width, inner, patches = 1024, 4096, (336 // 14) ** 2
    layer = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width
    embeddings = 3 * 14 * 14 * width + width + (patches + 1) * width
    assert weights(model.vlm.model.vision_tower) == embeddings + 24 * layer + 4 * width == 303_507_456
    assert model.config.vlm_config.image_seq_length == patches


def test_whole_llava_has_its_published_size(model):
    assert weights(model.vlm.model.multi_modal_projector) == linear(1024, 4096) + linear(4096, 4096)
    assert weights(model.vlm) == 7_063_427_072  # as the Hub counts llava-hf/llava-1.5-7b-hf


def test_projection_is_lisas(model):
    assert weights(model.seg_projector) == linear(4096, 4096) + linear(4096, 256)


def test_sam_is_vit_h(model):
    """Every weight of segment-anything's own `vit_h` by name and shape, and the sizes that its shapes tell."""
    original_sam()  # skips where the package is not installed
    build = importlib.import_module("segment_anything.build_sam")
    with torch.device("meta"):
        sam = build.sam_model_registry["vit_h"]()
    shapes = {rename(name, SAM_ORIGINAL): tensor for name, tensor in sam.state_dict().items()}
    ours = {f"sam.{name}": tensor.shape for name, tensor in model.sam.state_dict().items()}
    del ours["sam.prompt_encoder.shared_embedding.positional_embedding"]  # the second of the two
    assert {name: tensor.shape for name, tensor in shapes.items()} == ours
    assert weights(model.sam.vision_encoder) == weights(sam.image_encoder) == 637_026_048
    assert weights(model.sam.prompt_encoder) - FOURIER == weights(sam.prompt_encoder) == 6_220
    assert weights(model.sam.mask_decoder) == weights(sam.mask_decoder) == 4_058_340
    found, expected = sam_config_of(shapes, 8, "vit_h").to_dict(), model.config.sam_config.to_dict()
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        assert {**found[part], "global_attn_indexes": 0} == {**expected[part], "global_attn_indexes": 0}
    assert list(model.config.sam_config.vision_config.global_attn_indexes) == [7, 15, 23, 31]
    assert found["vision_config"]["global_attn_indexes"] == [7, 15, 23, 31]


def test_sam_has_its_published_size(model):
    assert weights(model.sam) - FOURIER == 641_090_608
    assert math.isclose(weights(model), 7.7e9, rel_tol=0.01)
