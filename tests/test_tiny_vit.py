"""TinyViT against MobileSAM's weights and real boxes, where these lie; and as a part of the model."""

from __future__ import annotations

import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
from accelerate import infer_auto_device_map
from safetensors.torch import load_file
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from datasets_scripts.folder import read_folder
from datasets_scripts.records import read_image
from modeling_cora import CoraForReasoningSegmentation
from modeling_cora.tiny_vit import TinyVitEncoder

from .conftest import SHARED, noise_image
from .vlm_families import build

WEIGHTS = SHARED / "weights" / "mobilesam"
NAMES = (
    (r"mb\.(\d+)\.(.+)", r"stages.0.\1.\2"),
    (r"merge\.(\d)\.(.+)", r"downsamples.\1.\2"),
    (r"stages\.(\d)\.(\d)\.norm1\.(.+)", lambda m: f"stages.{int(m[1]) + 1}.{m[2]}.attn.norm.{m[3]}"),
    (r"stages\.(\d)\.(\d)\.norm2\.(.+)", lambda m: f"stages.{int(m[1]) + 1}.{m[2]}.mlp.norm.{m[3]}"),
    (r"stages\.(\d)\.(\d)\.(fc.+)", lambda m: f"stages.{int(m[1]) + 1}.{m[2]}.mlp.{m[3]}"),
    (r"stages\.(\d)\.(\d)\.(local_conv.+)", lambda m: f"stages.{int(m[1]) + 1}.{m[2]}.{m[3]}"),
    (r"stages\.(\d)\.(\d)\.(.+)", lambda m: f"stages.{int(m[1]) + 1}.{m[2]}.attn.{m[3]}"),
    (r"neck\.([0-3])\.(.+)", lambda m: f"neck.{('conv1', 'layer_norm1', 'conv2', 'layer_norm2')[int(m[1])]}.{m[2]}"),
    (r"(.+)", r"\1"),
)


def our_name(name: str) -> str:
    return next(re.sub(pattern, new, name) for pattern, new in NAMES if re.fullmatch(pattern, name))


def mobile_sam_model() -> SamModel:
    """SamModel with our encoder and MobileSAM's weights, which lie in `WEIGHTS`."""
    state = {name: value.float() for name, value in load_file(WEIGHTS / "model.safetensors").items()}
    prefix = "vision_encoder."
    encoder = TinyVitEncoder()
    encoder.load_state_dict({our_name(n.removeprefix(prefix)): v for n, v in state.items() if n.startswith(prefix)})
    sam = SamModel(
        SamConfig(
            vision_config=SamVisionConfig(num_hidden_layers=0, hidden_size=16, num_attention_heads=1, mlp_dim=16),
            prompt_encoder_config=SamPromptEncoderConfig(hidden_act="gelu"),
            mask_decoder_config=SamMaskDecoderConfig(layer_norm_eps=1e-5),
        )
    )
    sam.vision_encoder = encoder
    missing, unexpected = sam.load_state_dict(
        {n: v for n, v in state.items() if not n.startswith(prefix)}, strict=False
    )
    assert not unexpected and all(n.startswith(prefix) for n in missing)
    return sam.eval()


@pytest.fixture(scope="module")
def mobile_sam() -> tuple[SamModel, torch.nn.Module]:
    """`mobile_sam_model`; and the reader that comes with the weights."""
    if not WEIGHTS.exists():
        pytest.skip(f"no MobileSAM weights at {WEIGHTS}")
    spec = importlib.util.spec_from_file_location("mobilesam_reader", WEIGHTS / "mobilesam.py")
    reader = importlib.util.module_from_spec(spec)
    sys.modules["mobilesam_reader"] = reader
    spec.loader.exec_module(reader)
    return mobile_sam_model(), reader.load()


@torch.no_grad()
def test_embeddings_are_those_of_the_other_reader(mobile_sam):
    """At sizes that windows of 7 and 14 do and do not divide."""
    ours, theirs = mobile_sam
    for size in (224, 320):
        pixels = torch.randn(1, 3, size, size)
        expected = theirs.vision_encoder(pixels).last_hidden_state
        found = ours.vision_encoder(pixels).last_hidden_state
        assert found.shape == (1, 256, size // 16, size // 16)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_boxes_around_real_objects_give_their_masks(mobile_sam):
    """CamVid photos: boxes of cars and people of the label maps -> masks; MobileSAM is known for an mIoU above .8."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    if not (SHARED / "data" / "camvid").exists():
        pytest.skip("no photos")
    scenes = read_folder(SHARED / "data" / "camvid")
    processor, ious = SamImageProcessorPil(), []
    for scene in scenes.split("val", labelled=True)[::25]:
        labels, _ = scenes.read_maps(scene)
        image = read_image(scene.image)
        inputs = processor(image, return_tensors="pt")
        embeddings = mobile_sam[0].vision_encoder(inputs["pixel_values"]).last_hidden_state
        for name in ("sky", "road"):
            target = labels == scenes.class_named(name).id
            rows, columns = np.nonzero(target)
            scale = 1024 / max(image.size)
            box = torch.tensor([[[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]]) * scale
            masks = mobile_sam[0](image_embeddings=embeddings, input_boxes=box, multimask_output=False).pred_masks
            (full,) = processor.post_process_masks(masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
            found = full[0, 0].numpy() & (labels != 255)
            ious.append((found & target).sum() / (found | target).sum())
    assert np.mean(ious) > 0.7, ious


def test_parameters_are_those_of_tiny_vit_5m():
    """5.4M (TinyViT, table 3) with a classifier of 320 x 1000 + 1000 and its norm, which the encoder leaves out."""
    encoder = sum(p.numel() for n, p in TinyVitEncoder().named_parameters() if not n.startswith("neck"))
    assert encoder == pytest.approx(5.39e6 - 321_000 - 640, rel=0.01)


def test_as_the_encoder_of_a_model(tmp_path):
    model, processor = build("llava")
    config = model.config
    config.sam_encoder = "tiny_vit"
    config.sam_config.vision_config = SamVisionConfig(
        num_hidden_layers=0, hidden_size=16, num_attention_heads=1, mlp_dim=16, image_size=64, num_pos_feats=16,
        output_channels=32,
    )  # fmt: skip
    model = CoraForReasoningSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    loaded, info = CoraForReasoningSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    labels = [torch.ones(2, 30, 40, dtype=torch.uint8)]
    inputs = processor(noise_image(40, 30), ["the road", "the sky"], mask_labels=labels)
    output, again = model(**inputs), loaded.eval()(**inputs)
    assert output.pred_masks.shape == (2, 16, 16)
    assert torch.equal(output.pred_masks, again.pred_masks)
    output.loss.backward()
    assert all(p.grad is not None for p in model.sam.vision_encoder.parameters())
    # activations computed again: transformers asks what sees the pixels
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model.train()
    model(**inputs).loss.backward()
    found = dict(model.named_parameters())
    assert all(torch.allclose(found[name].grad, gradient, atol=1e-6) for name, gradient in gradients.items())
    # residuals stay on one device
    memory = dict.fromkeys((0, 1, 2), sum(p.numel() for p in model.parameters()) * 4 // 2)
    placed = infer_auto_device_map(model, memory, no_split_module_classes=[*model._no_split_modules])
    assert placed and not [name for name in placed if re.search(r"stages\.\d+\.\d+\.", name)]
