"""Anchors: SegLLM's crops, boxes and tokens; and that a branch with an anchor is still a branch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.anchors import AnchorEncoder, anchor_box, anchor_crop
from modeling_cora.image_processors import clip_image_processor
from modeling_cora.presets import cora_tiny_config, train_query_tokenizer
from modeling_cora.segmentation import segment

from .conftest import SHARED, TEXTS, noise_image

LOSSES = SHARED / "golden" / "losses"
needs_golden = pytest.mark.skipif(not LOSSES.is_dir(), reason="../shared/golden/losses is not here")


@pytest.fixture
def anchored(tiny):
    """A small model that was given an anchor encoder, and its processor."""
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    return model.eval(), processor


def box_mask(top, left, bottom, right, height=60, width=90):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


@needs_golden
def test_crops_and_boxes_are_segllms():
    golden = load_file(LOSSES / "segllm_anchor.safetensors")
    for case in range(3):
        image = Image.fromarray(golden[f"segllm.{case}.in.image_u8"].numpy())
        mask = golden[f"segllm.{case}.in.mask"].numpy() > 0
        crop = anchor_crop(image, mask)
        assert np.array_equal(crop, golden[f"segllm.{case}.out.crop_padded_u8"].numpy())
        pixels = clip_image_processor(224)([crop], return_tensors="pt")["pixel_values"][0]
        # the same photo, resized by another version of Pillow
        assert (pixels - golden[f"segllm.{case}.out.clip_pixel_values"]).abs().max() < 0.02
        theirs = golden[f"segllm.{case}.out.box_rowmin_colmin_rowmax_colmax"]
        # they name the last row and column of a resized mask, we the edge behind it
        assert (torch.tensor(anchor_box(mask)) - theirs).abs().max() < 1.3 / 1024


@needs_golden
def test_tokens_are_segllms():
    """CLS of the last layer but one -> connector -> token; the box through its Linear; half as much in evaluation."""
    golden = load_file(LOSSES / "segllm_mask_token.safetensors")
    boxes = load_file(LOSSES / "segllm_anchor.safetensors")
    tokenizer = train_query_tokenizer(TEXTS)
    config = cora_tiny_config(tokenizer, 224, 128)
    text = {"vocab_size": len(tokenizer), "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config.vlm_config = LlavaConfig(
        text_config=LlamaConfig(hidden_size=40, **text),
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=224,
            patch_size=14, projection_dim=16,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )  # fmt: skip
    config.anchor_token_id = tokenizer.convert_tokens_to_ids("[SEG]")  # any; nothing is looked up here
    model = CoraForReasoningSegmentation(config).eval()
    tower = {
        key.removeprefix("w.vision_tower.vision_tower.vision_model."): value
        for key, value in golden.items()
        if key.startswith("w.vision_tower.vision_tower.vision_model.")
    }
    model.vlm.base_model.vision_tower.load_state_dict(tower)
    projector = {"linear_1.weight": "0.weight", "linear_1.bias": "0.bias", "linear_2.weight": "2.weight"}
    projector["linear_2.bias"] = "2.bias"
    model.vlm.base_model.multi_modal_projector.load_state_dict(
        {ours: golden[f"w.mm_projector.{theirs}"] for ours, theirs in projector.items()}
    )
    pixels = torch.stack([boxes[f"segllm.{case}.out.clip_pixel_values"] for case in range(3)])
    looks = model.anchor_appearances(pixels)
    torch.testing.assert_close(looks, golden["out.mask_token_train_kept"][:, 0], atol=2e-6, rtol=1e-5)

    encoder = AnchorEncoder(config)
    encoder.box = torch.nn.Linear(4, 32)
    encoder.box.load_state_dict({"weight": boxes["segllm.box_head.weight"], "bias": boxes["segllm.box_head.bias"]})
    places = torch.stack([boxes[f"segllm.{c}.out.box_rowmin_colmin_rowmax_colmax"] for c in range(3)])
    kept = encoder.train()
    kept.dropout = 0.0
    torch.testing.assert_close(kept(torch.zeros(3, 32), places)[:, 1], boxes["segllm.out.box_token_train_kept"])
    encoder.dropout = 0.5
    torch.testing.assert_close(encoder.eval()(torch.zeros(3, 32), places)[:, 1], boxes["segllm.out.box_token_eval"])
    torch.testing.assert_close(encoder(looks[:, :32], places)[:, 0], looks[:, :32] / 2)


@pytest.mark.parametrize("scaling", ["segllm", "inverted"])
def test_whole_tokens_are_dropped_and_the_mean_is_kept(scaling):
    config = cora_tiny_config(train_query_tokenizer(TEXTS))
    config.anchor_dropout, config.anchor_dropout_scaling = 0.25, scaling
    encoder = AnchorEncoder(config).train()
    looks, boxes = torch.randn(4000, 192), torch.rand(4000, 4)
    tokens = encoder(looks, boxes)
    dropped = (tokens == 0).all(-1)
    assert ((tokens == 0).any(-1) == dropped).all()  # whole tokens
    assert abs(dropped[:, 0].float().mean() - 0.25) < 0.03 and abs(dropped[:, 1].float().mean() - 0.25) < 0.03
    both = dropped.all(1).float().mean()
    assert abs(both - 0.0625) < 0.02  # each by itself
    ratio = tokens[~dropped[:, 0], 0] / looks[~dropped[:, 0]]
    evaluated = encoder.eval()(looks, boxes)[:, 0] / looks
    expected = {"segllm": (1.0, 0.75), "inverted": (1 / 0.75, 1.0)}[scaling]
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected[0]))
    torch.testing.assert_close(evaluated, torch.full_like(evaluated, expected[1]))


@pytest.mark.parametrize("packing", [True, False])
def test_packed_branches_with_anchors_equal_separate_ones(anchored, packing):
    """Values and gradients, for ragged numbers of queries and anchors."""
    model, processor = anchored
    model.config.branch_packing = packing
    images = [noise_image(90, 60, seed=1), noise_image(50, 80, seed=2)]
    first, second = box_mask(5, 10, 30, 40), box_mask(20, 50, 55, 85)
    other = box_mask(0, 0, 40, 20, 80, 50)
    queries = [["Segment the road.", "Where is the tree?", "the car left of this"], ["between these", "the sky"]]
    anchors = [[[], [first], [second]], [[other, ~other], []]]
    packed = model(**processor(images, queries, anchors=anchors))
    packed.pred_masks.square().mean().backward()
    gradient = model.anchor_encoder.box.weight.grad.clone()
    model.zero_grad()
    alone = []
    for image, texts, masks in zip(images, queries, anchors, strict=True):
        for text, own in zip(texts, masks, strict=True):
            alone.append(model(**processor([image], [[text]], anchors=[[own]])).pred_masks)
    alone = torch.cat(alone)
    torch.testing.assert_close(packed.pred_masks, alone, atol=1e-4, rtol=1e-5)
    alone.square().mean().backward()
    torch.testing.assert_close(gradient, model.anchor_encoder.box.weight.grad, atol=1e-4, rtol=1e-4)
    assert gradient.abs().max() > 0


def test_an_anchor_moves_its_own_branch_only(anchored):
    model, processor = anchored
    image, queries = noise_image(90, 60), ["the car left of this", "the car left of this", "the sky"]
    mask, other = box_mask(5, 10, 30, 40), box_mask(2, 50, 20, 80)
    with torch.no_grad():
        before = model(**processor([image], [queries], anchors=[[[mask], [other], []]])).pred_masks
        after = model(**processor([image], [queries], anchors=[[[mask], [~mask], []]])).pred_masks
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert (before[1] - after[1]).abs().max() > 1e-3


@pytest.mark.parametrize("appearance", ["cls", "mean"])
def test_saved_and_loaded_and_generated_with_anchors(anchored, tmp_path, appearance):
    model, processor = anchored
    model.config.anchor_appearance = appearance
    image, mask = noise_image(90, 60), box_mask(5, 10, 30, 40)
    inputs = processor([image], [["the car left of this"]], anchors=[[[mask]]])
    for part in anchored:
        part.save_pretrained(tmp_path)
    again, its_processor = (c.from_pretrained(tmp_path) for c in (CoraForReasoningSegmentation, CoraProcessor))
    weights = again.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        # to rounding only: a table that was enlarged lies elsewhere in memory
        torch.testing.assert_close(again(**inputs).pred_masks, model(**inputs).pred_masks, atol=1e-4, rtol=1e-5)
    tokens = its_processor.add_anchor_token()
    assert tokens == model.config.anchor_token_id == again.config.anchor_token_id
    asked = its_processor([image], [["the car left of this"]], anchors=[[[mask]]], generate=True)
    sequences = again.generate(**asked, max_new_tokens=6, do_sample=False).sequences
    assert tokens not in sequences[0, asked["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_masks_with_anchors_are_those_of_a_forward_pass(anchored, beams):
    """Rows with one anchor, none and two; beams repeat each row."""
    model, processor = anchored
    model.vlm.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    image, mask = noise_image(90, 60), box_mask(5, 10, 30, 40)
    queries, anchors = [["left of this"], ["the road"], ["between these"]], [[[mask]], [[]], [[mask, ~mask]]]
    asked = processor([image] * 3, queries, anchors=anchors, generate=True)
    length = asked["input_ids"].shape[1]
    wanted = [30, model.config.seg_token_id, 40]
    out = model.generate(
        **asked,
        max_new_tokens=3,
        num_beams=beams,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, ids: [wanted[ids.shape[-1] - length]],
    )
    inputs = {name: tensor for name, tensor in asked.items() if "sizes" not in name}
    branches = torch.nn.functional.pad(asked["branch_ids"], (0, 3), value=1)
    with torch.no_grad():
        expected = model(**{**inputs, "input_ids": out.sequences, "branch_ids": branches}).pred_masks
        others = model(**{**inputs, "input_ids": out.sequences, "branch_ids": branches,
                          "anchor_boxes": asked["anchor_boxes"].flip(0)}).pred_masks  # fmt: skip
    assert len(out.pred_masks) == 3 and out.seg_batch_index.tolist() == [0, 1, 2]
    torch.testing.assert_close(out.pred_masks, expected, atol=1e-3, rtol=1e-4)
    assert (expected[0] - others[0]).abs().max() > 1e-2 and torch.equal(expected[1], others[1])


def test_boxes_keep_their_numbers_where_weights_are_quantised(anchored):
    """bitsandbytes keeps bytes as the weight of a Linear."""
    model, _ = anchored
    encoder, boxes = model.anchor_encoder, torch.tensor([[0.2, 0.3, 0.8, 1.0]])
    appearances = torch.zeros(1, encoder.box.out_features)
    expected = encoder(appearances, boxes)

    class Quantised(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.kept, self.bias = [linear], linear.bias
            self.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)

        def forward(self, given):
            return self.kept[0](given)

    encoder.box = Quantised(encoder.box)
    assert torch.equal(encoder(appearances, boxes), expected)


def test_segment_takes_anchors_in_any_number_of_passes(anchored):
    model, processor = anchored
    image, mask = noise_image(90, 60), box_mask(5, 10, 30, 40)
    queries, anchors = ["Where is the tree?", "left of this", "above this"], [[], [mask], [~mask]]
    one = segment(model, processor, image, queries, anchors=anchors)
    several = segment(model, processor, image, queries, anchors=anchors, queries_per_pass=1)
    assert torch.equal(one.masks, several.masks)
    torch.testing.assert_close(one.scores, several.scores, atol=1e-5, rtol=1e-5)
    without = segment(model, processor, image, queries)
    assert torch.equal(one.masks[0], without.masks[0]) and not torch.equal(one.scores[1], without.scores[1])
    uncertain = segment(model, processor, image, queries[1:2], anchors=anchors[1:2], uncertainty=True)
    assert uncertain.uncertainty.shape == (1, 60, 90)


def test_what_many_queries_point_at_is_looked_at_once(anchored):
    """Of each image by itself; the answers are those of a look for each query."""
    model, processor = anchored
    images = [noise_image(90, 60, seed=k) for k in range(2)]
    this, that = box_mask(0, 0, 20, 30), box_mask(10, 10, 50, 60)
    queries = [["left of this", "right of this", "between these"], ["left of this"]]
    inputs = processor(images, queries, anchors=[[[this], [this], [that, this]], [[this]]])
    assert inputs["anchor_index"].tolist() == [0, 0, 1, 0, 2]
    assert len(inputs["anchor_pixel_values"]) == 3 and len(inputs["anchor_boxes"]) == 5
    every = {k: v for k, v in inputs.items() if k != "anchor_index"}
    every["anchor_pixel_values"] = inputs["anchor_pixel_values"][[0, 0, 1, 0, 2]]
    with torch.no_grad():
        once, often = model(**inputs), model(**every)
    torch.testing.assert_close(once.seg_embeddings, often.seg_embeddings, atol=1e-5, rtol=1e-5)


def test_user_text_is_no_anchor(anchored):
    model, processor = anchored
    inputs = processor([noise_image(90, 60)], [["left of [ANCHOR] [ANCHOR]"]])
    assert model.config.anchor_token_id not in inputs["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("anchor_boxes",), "anchor_boxes: not given"),
        (("anchor_pixel_values",), "anchor_pixel_values: not given"),
        (("anchor_boxes", "anchor_pixel_values"), "not given; there are .ANCHOR. tokens in input_ids"),
    ],
)
def test_anchors_do_not_get_lost(anchored, missing, message):
    model, processor = anchored
    image, anchors = [noise_image(90, 60)], [[[box_mask(0, 0, 9, 9)]]]
    for generate in (False, True):
        inputs = processor(image, [["left of this"]], anchors=anchors, generate=generate)
        given = {name: tensor for name, tensor in inputs.items() if name not in missing}
        with pytest.raises(ValueError, match=message):
            model.generate(**given, max_new_tokens=2) if generate else model(**given)


def test_wrong_anchors_are_refused(tiny):
    model, processor = tiny
    image = noise_image(90, 60)
    with pytest.raises(ValueError, match="add_anchor_token"):
        processor([image], [["left of this"]], anchors=[[[box_mask(0, 0, 9, 9)]]])
    token = processor.add_anchor_token()
    inputs = processor([image], [["left of this"]], anchors=[[[box_mask(0, 0, 9, 9)]]])
    with pytest.raises(ValueError, match="no anchor encoder"):
        model(**inputs)
    model.add_anchors(token)
    for mask, message in (
        (np.zeros((60, 90), bool), "empty mask"),
        (np.ones((9, 9), bool), "mask of 9x9 for an image of 90x60"),
    ):
        with pytest.raises(ValueError, match=message):
            processor([image], [["left of this"]], anchors=[[[mask]]])
    inputs |= {name: torch.cat([inputs[name]] * 2) for name in ("anchor_boxes", "anchor_index")}
    with pytest.raises(ValueError, match="4 tokens for 2 placeholders"):
        model(**inputs)
