"""The model: packed queries equal separate ones, branches are blind to each other, losses, saving, generation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.masks import pool_squares
from modeling_cora.presets import cora_tiny
from modeling_cora.segmentation import segment

from .conftest import TEXTS, noise_image

ROOT = Path(__file__).resolve().parents[1]
QUERIES = [
    ["Segment the road.", "the vehicle with four wheels, the one far away behind all of the others", "tree"],
    ["Where is the sky?"],
    ["Please mark everything that is a person.", "car"],
]
IMAGES = [noise_image(64, 48, 1), noise_image(40, 80, 2), noise_image(50, 50, 3)]


def masks_for(queries, seed=0):
    rng = np.random.default_rng(seed)
    masks = [rng.choice([0, 1, 255], size=(len(q), 24, 32), p=[0.6, 0.3, 0.1]).astype(np.uint8) for q in queries]
    return masks


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_packed_equals_separate(tiny, attention, seg_state):
    model, processor = tiny
    model.set_attn_implementation(attention)
    model.config.seg_state = seg_state
    packed = processor(IMAGES, QUERIES)
    with torch.no_grad():
        out = model(**packed, output_logits=True)
        for b, queries in enumerate(QUERIES):
            for k, query in enumerate(queries):
                one = processor(IMAGES[b], query)
                expected = model(**one, output_logits=True)
                row = (out.seg_batch_index == b) & (out.seg_branch_index == k)
                assert relative(out.seg_embeddings[row], expected.seg_embeddings) < 1e-5
                assert relative(out.pred_masks[row], expected.pred_masks) < 1e-5
                assert torch.allclose(out.iou_scores[row], expected.iou_scores, atol=1e-6)
                branch_logits = out.logits[b][packed["branch_ids"][b] == k + 1]
                assert relative(branch_logits, expected.logits[0][one["branch_ids"][0] == 1]) < 1e-5


def test_packed_gradients_equal_the_sum_of_separate_ones(tiny):
    model, processor = tiny
    masks = masks_for(QUERIES)
    total = sum(map(len, QUERIES))
    model(**processor(IMAGES, QUERIES, mask_labels=masks)).loss.backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    answers = [(b, k) for b, queries in enumerate(QUERIES) for k in range(len(queries))]
    for b, k in answers:
        # every answer is as long as the others, so the mean over all tokens is the mean of the answers' means
        (model(**processor(IMAGES[b], QUERIES[b][k], mask_labels=[masks[b][k : k + 1]])).loss / total).backward()
    assert len(packed) > 200
    scale = max(g.abs().max().item() for g in packed.values())
    for name, parameter in model.named_parameters():
        if name in packed:
            assert (parameter.grad - packed[name]).abs().max().item() <= 1e-5 * scale, name


def test_branches_do_not_see_each_other(tiny):
    model, processor = tiny
    image = IMAGES[0]
    with torch.no_grad():
        first = model(**processor(image, ["the road", "the sky", "the tree"]))
        second = model(**processor(image, ["the road", "car", "the tree"]))
    # the other branch is of another length here, so sums run in another order; equal lengths must be equal to the bit
    assert relative(second.pred_masks[[0, 2]], first.pred_masks[[0, 2]]) < 1e-5
    inputs = processor(image, ["the road", "the sky", "the tree"])
    with torch.no_grad():
        changed = dict(inputs)
        changed["input_ids"] = inputs["input_ids"].clone()
        middle = (inputs["branch_ids"][0] == 2).nonzero()[:, 0]
        changed["input_ids"][0, middle[1:4]] = 77
        third = model(**changed)
    assert torch.equal(third.pred_masks[[0, 2]], first.pred_masks[[0, 2]])
    assert torch.equal(third.seg_embeddings[[0, 2]], first.seg_embeddings[[0, 2]])
    assert not torch.equal(third.seg_embeddings[1], first.seg_embeddings[1])


def test_ignored_pixels_neither_count_nor_teach(tiny):
    model, processor = tiny
    masks = masks_for(QUERIES[:1])
    kept = model(**processor(IMAGES[:1], QUERIES[:1], mask_labels=masks))
    (counted,) = [m != 255 for m in masks]
    from modeling_cora.losses import bce_per_mask, dice_per_mask
    from modeling_cora.masks import resize_mask_logits

    logits = resize_mask_logits(kept.pred_masks, 128, (96, 128), (24, 32))
    for k in range(len(counted)):
        chosen = logits[k][torch.from_numpy(counted[k])][None, None]
        target = torch.from_numpy(masks[0][k][counted[k]])[None, None]
        assert torch.allclose(bce_per_mask(logits, torch.from_numpy(masks[0]))[k], bce_per_mask(chosen, target)[0])
        assert torch.allclose(dice_per_mask(logits, torch.from_numpy(masks[0]))[k], dice_per_mask(chosen, target)[0])
    everything = [np.full_like(m, 255) for m in masks]
    ignored = model(**processor(IMAGES[:1], QUERIES[:1], mask_labels=everything))
    assert ignored.bce_loss.item() == 0.0
    assert torch.isfinite(ignored.loss)


def test_loss_is_the_weighted_sum_of_its_terms(tiny):
    model, processor = tiny
    model.config.lm_loss_weight, model.config.bce_loss_weight = 0.5, 2.0
    model.config.dice_loss_weight, model.config.iou_loss_weight = 0.25, 3.0
    out = model(**processor(IMAGES, QUERIES, mask_labels=masks_for(QUERIES)))
    expected = 0.5 * out.lm_loss + 2.0 * out.bce_loss + 0.25 * out.dice_loss + 3.0 * out.iou_loss
    assert torch.allclose(out.loss, expected)


def test_lm_loss_is_the_cross_entropy_of_the_answers(tiny):
    model, processor = tiny
    inputs = processor(IMAGES, QUERIES)
    out = model(**inputs, output_logits=True)
    losses = [
        torch.nn.functional.cross_entropy(out.logits[b, t - 1], inputs["labels"][b, t])
        for b, t in (inputs["labels"] != -100).nonzero().tolist()
    ]
    assert len(losses) == 6 * len(processor.tokenizer("It is[SEG].</s>", add_special_tokens=False)["input_ids"]) + 6
    assert torch.allclose(out.lm_loss, torch.stack(losses).mean(), atol=1e-6)


def test_number_of_masks_must_be_that_of_seg_tokens(tiny):
    model, processor = tiny
    with pytest.raises(ValueError, match=r"\[2, 1, 2\] masks for \[3, 1, 2\]"):
        model(**processor(IMAGES, QUERIES, mask_labels=masks_for([["a", "b"], ["c"], ["d", "e"]])))


def test_an_answer_without_seg_gives_no_mask_and_a_finite_loss(tiny):
    model, processor = tiny
    empty = [np.zeros((0, 4, 4), np.uint8)]
    out = model(**processor(IMAGES[0], "Is there a bus?", answers=[["No."]], mask_labels=empty))
    assert out.pred_masks.shape == (0, 32, 32) and out.iou_scores.shape == (0,)
    assert torch.isfinite(out.loss)
    out.loss.backward()


def test_save_and_load_is_bit_exact_and_deterministic(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "a")
    processor.save_pretrained(tmp_path / "a")
    loaded, info = CoraForReasoningSegmentation.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    again = CoraProcessor.from_pretrained(tmp_path / "a")
    for name, value in processor(IMAGES, QUERIES).items():
        assert torch.equal(value, again(IMAGES, QUERIES)[name]), name
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_checkpoints_hold_the_keys_that_load_state_dict_reads(tiny, tmp_path):
    """Trainer resumes with `load_state_dict(strict=False)`: a renamed key would be a weight lost in silence."""
    from safetensors.torch import load_file

    model, _ = tiny
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors").keys()
    tied = set(model.state_dict()) - set(saved)
    assert set(saved) <= set(model.state_dict())
    assert tied <= {"sam.prompt_encoder.shared_embedding.positional_embedding"}


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    first, _ = cora_tiny(TEXTS, seed=3, clip_image_size=56, sam_image_size=128)
    second, _ = cora_tiny(reversed(TEXTS), seed=3, clip_image_size=56, sam_image_size=128)
    other, _ = cora_tiny(TEXTS, seed=4, clip_image_size=56, sam_image_size=128)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.seg_projector.linear_1.weight, other.seg_projector.linear_1.weight)


def test_projected_prompts_start_at_the_scale_of_sams_own(tiny):
    """SAM's points and boxes: a standard deviation of about 0.7; up to twice that for cora-tiny (see presets.py)."""
    model, processor = tiny
    with torch.no_grad():
        out = model(**processor(IMAGES, QUERIES))
    assert 0.5 < out.seg_embeddings.std() < 1.5


def test_cora_tiny_has_about_five_million_parameters():
    model, _ = cora_tiny(TEXTS)
    assert 4.0e6 < sum(p.numel() for p in model.parameters()) < 5.5e6


def test_segment_equals_forward_and_passes_do_not_matter(tiny):
    model, processor = tiny
    queries = ["the road", "the sky", "the tree", "a car", "the bus"]
    together = segment(model, processor, IMAGES[1], queries)
    apart = segment(model, processor, IMAGES[1], queries, queries_per_pass=2)
    assert together.masks.shape == (5, 80, 40) and together.masks.dtype == torch.bool
    assert ((together.scores >= 0) & (together.scores <= 1)).all()
    assert torch.allclose(together.scores, apart.scores, atol=1e-5)
    assert (together.masks != apart.masks).float().mean() < 1e-4


def test_gradient_checkpointing_changes_no_gradient(tiny):
    model, processor = tiny
    model.train()
    batch = processor(IMAGES, QUERIES, mask_labels=masks_for(QUERIES))
    model(**batch).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain:
            assert torch.allclose(parameter.grad, plain[name], atol=1e-6), name


def test_without_sams_input_there_are_embeddings_and_no_masks(tiny):
    model, processor = tiny
    inputs = processor(IMAGES, QUERIES)
    whole = model(**inputs)
    del inputs["sam_pixel_values"]
    alone = model(**inputs)
    assert alone.pred_masks is None and alone.iou_scores is None
    assert torch.equal(alone.seg_embeddings, whole.seg_embeddings) and torch.equal(alone.lm_loss, whole.lm_loss)
    masks = [torch.zeros(len(queries), 4, 4, dtype=torch.uint8) for queries in QUERIES]
    with pytest.raises(ValueError, match="sam_pixel_values"):
        model(**inputs, mask_labels=masks)


def test_pooled_embeddings_are_means_of_squares(tiny):
    """What decides is the mean of each square alone."""
    model, processor = tiny
    embeddings = model.get_image_embeddings(processor(IMAGES, QUERIES)["sam_pixel_values"]).detach()
    channels, height, width = embeddings.shape[1:]
    prompts, owner = torch.randn(4, channels), torch.tensor([0, 1, 1, 2])
    whole, _ = model.decode_masks(embeddings, prompts, owner)
    model.config.embedding_pooling = 4
    pooled, scores = model.decode_masks(embeddings, prompts, owner)
    assert pooled.shape == (4, height, width) and whole.shape == (4, 4 * height, 4 * width) and scores.shape == (4,)
    squares = embeddings.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # (B, C, h / 4, 4, w / 4, 4)
    inside = squares.flip(3, 5).flatten(4, 5).flatten(2, 3)
    assert not torch.equal(inside, embeddings)
    torch.testing.assert_close(model.decode_masks(inside, prompts, owner)[0], pooled, rtol=1e-4, atol=1e-4)
    across = squares.flip(2, 4).flatten(4, 5).flatten(2, 3)
    assert (model.decode_masks(across, prompts, owner)[0] - pooled).abs().max() > 1e-2


ASK_BOTH = """
import sys, torch
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from tests.test_modeling_cora import IMAGES, QUERIES
inputs, answers = CoraProcessor.from_pretrained(sys.argv[1])(IMAGES, QUERIES), []
for attention in ("sdpa", "flex_attention"):
    chosen = {"vlm_config": attention, "sam_config": "sdpa"}
    model = CoraForReasoningSegmentation.from_pretrained(sys.argv[1], attn_implementation=chosen).eval()
    assert model.config.get_text_config()._attn_implementation == attention
    with torch.no_grad():
        answers.append(model(**inputs).seg_embeddings)
print((answers[0] - answers[1]).abs().max().item())
"""


def test_flex_attention_gives_the_same_answers(tiny, tmp_path):
    """Itself, in a process of its own where it is not compiled, for which there is a GPU missing. Packed, its tokens
    would see other branches, and even what comes after them."""
    for part in tiny:
        part.save_pretrained(tmp_path)
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASK_BOTH, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout.split()[-1]) < 1e-4


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_attention_without_masks_of_pairs_packs_no_branches(tiny, monkeypatch, attention):
    """flash-attn itself runs on GPUs alone."""
    model, processor = tiny
    asked = []
    monkeypatch.setattr(model, "_hidden_states_one_by_one", lambda ids, *_: asked.append(ids.shape) or 1 / 0)
    for packing in (None, True):
        model.config.branch_packing = packing
        model.config.get_text_config()._attn_implementation = attention
        with pytest.raises(ZeroDivisionError):
            model(**processor(IMAGES, QUERIES))
    assert len(asked) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_of_another_precision_are_taken(tiny, dtype):
    model, processor = tiny
    inputs = processor(IMAGES, QUERIES)
    embeddings = model.get_image_embeddings(inputs["sam_pixel_values"]).to(dtype)
    whole = model(**inputs)
    rounded = model(**{**inputs, "sam_image_embeddings": embeddings, "sam_pixel_values": None})
    assert rounded.pred_masks.dtype == torch.float32 and relative(rounded.pred_masks, whole.pred_masks) < 0.05
    model.sam.to(torch.bfloat16)
    assert model(**{**inputs, "sam_image_embeddings": embeddings, "sam_pixel_values": None}).pred_masks.isfinite().all()


def test_squares_that_do_not_cover_the_embeddings_are_refused():
    """avg_pool2d would leave out what is left over, and masks would be stretched without a word."""
    embeddings = torch.arange(96.0).view(1, 2, 6, 8)
    assert pool_squares(embeddings, 1) is embeddings and pool_squares(embeddings, 2).shape == (1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"embedding_pooling: 4 does not divide \(6, 8\)"):
        pool_squares(embeddings, 4)


def test_pooling_goes_through_losses_and_answers(tiny):
    model, processor = tiny
    model.config.embedding_pooling = 2
    for where in ("labels", "low_res", "points"):
        model.config.mask_loss_at = where
        assert model(**processor(IMAGES, QUERIES, mask_labels=masks_for(QUERIES))).loss.isfinite()
    assert segment(model, processor, IMAGES[0], QUERIES[0]).masks.shape == (3, 48, 64)
