"""The same model around LLaVA, Idefics3, SmolVLM and Qwen-VL: packing equals separate sequences in every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Idefics3Processor, Qwen2_5_VLProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

import modeling_cora.modeling_cora
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.anchors import anchor_crop
from modeling_cora.segmentation import segment
from trainers.arguments import TrainedPartsArguments
from trainers.trained_parts import parameter_table, select_trained_parts

from .conftest import noise_image
from .vlm_families import FAMILIES, build

QUERIES = [["the road", "Where is the tree, please?", "sky"], ["the vehicle with four wheels"]]
IMAGES = [noise_image(60, 40, 0), noise_image(30, 70, 1)]


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    return request.param, *build(request.param)


def run(model, inputs, **options):
    inputs = {name: value for name, value in inputs.items() if name != "mask_labels"}
    return model(**inputs, output_logits=True, **options)


def test_packed_equals_separate(family):
    """Several queries on several images of different sizes, against one call for each query; values and gradients."""
    _, model, processor = family
    packed_inputs = processor(IMAGES, QUERIES)
    packed = run(model, packed_inputs)
    (packed.lm_loss * (packed_inputs["labels"] != -100).sum() + packed.pred_masks.square().sum()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    embeddings, masks = [], []
    for k, (image, queries) in enumerate(zip(IMAGES, QUERIES, strict=True)):
        for branch, query in enumerate(queries, start=1):
            inputs = processor(image, query)
            alone = run(model, inputs)
            (alone.lm_loss * (inputs["labels"] != -100).sum() + alone.pred_masks.square().sum()).backward()
            embeddings.append(alone.seg_embeddings)
            masks.append(alone.pred_masks)
            own = packed_inputs["branch_ids"][k] == branch
            expected = alone.logits[0][inputs["branch_ids"][0] == 1]
            assert torch.allclose(packed.logits[k][own], expected, atol=1e-4, rtol=1e-4)
    assert torch.allclose(packed.seg_embeddings, torch.cat(embeddings), atol=1e-5, rtol=1e-4)
    assert torch.allclose(packed.pred_masks, torch.cat(masks), atol=1e-4, rtol=1e-4)
    assert packed.seg_embeddings.std(0).mean() > 0.01  # queries differ, so a leak between them would show
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max() + 1e-3
            assert (parameter.grad - gradients[name]).abs().max() / scale < 1e-3, name
    model.zero_grad()


def test_one_query_equals_the_library_model(family):
    """The VLM by itself, with its own mask and positions, on the same token ids."""
    name, model, processor = family
    inputs = processor(IMAGES[0], QUERIES[0][1])
    own = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}
    own |= {k: inputs[k] for k in ("image_grid_thw", "pixel_attention_mask") if k in inputs}
    own["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if name.startswith("qwen"):
        own["mm_token_type_ids"] = (inputs["input_ids"] == model.config.vlm_config.image_token_id).int()
    with torch.no_grad():
        expected = model.vlm(**own).logits
        assert torch.allclose(run(model, inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_without_packing_the_same(family):
    """`branch_packing=False`, one sequence for each query, and eager attention."""
    _, model, processor = family
    inputs = processor(IMAGES, QUERIES)
    with torch.no_grad():
        packed = run(model, inputs)
        model.config.branch_packing = False
        try:
            separate = run(model, inputs)
        finally:
            model.config.branch_packing = None
    real = inputs["branch_ids"] >= 0
    assert torch.allclose(packed.logits[real], separate.logits[real], atol=1e-4, rtol=1e-4)
    assert torch.allclose(packed.pred_masks, separate.pred_masks, atol=1e-4, rtol=1e-4)
    assert torch.allclose(packed.loss, separate.loss, rtol=1e-4)


def test_unknown_families_are_not_packed(monkeypatch):
    """What was not tested is not trusted: one sequence for each query, and one warning."""
    model, processor = build("llava")
    inputs = processor(IMAGES, QUERIES)
    calls = []
    model.vlm.base_model.register_forward_pre_hook(
        lambda _, __, given: calls.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    with torch.no_grad():
        packed = run(model, inputs)
        monkeypatch.setattr(modeling_cora.modeling_cora, "PACKED_FAMILIES", frozenset())
        separate = run(model, inputs)
    assert calls == [2, 4]  # images, then queries
    assert torch.allclose(packed.pred_masks, separate.pred_masks, atol=1e-4, rtol=1e-4)


def test_eager_equals_sdpa(family, tmp_path):
    _, model, processor = family
    model.save_pretrained(tmp_path)
    eager = CoraForReasoningSegmentation.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert eager.config.get_text_config()._attn_implementation == "eager"
    inputs = processor(IMAGES, QUERIES)
    with torch.no_grad():
        a, b = run(model, inputs), run(eager, inputs)
    assert torch.allclose(a.seg_embeddings, b.seg_embeddings, atol=1e-5, rtol=1e-3)
    assert torch.allclose(a.pred_masks, b.pred_masks, atol=1e-4, rtol=1e-3)


def test_save_and_load(family, tmp_path):
    _, model, processor = family
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = CoraForReasoningSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(p, dict(loaded.named_parameters())[n]) for n, p in model.named_parameters())
    inputs, again = processor(IMAGES, QUERIES), CoraProcessor.from_pretrained(tmp_path)(IMAGES, QUERIES)
    assert inputs.keys() == again.keys()
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)


def test_generated_states_are_those_of_a_forward_pass(family):
    """Whatever is generated, [SEG] or not: the embeddings of a second, teacher-forced pass over the same tokens."""
    _, model, processor = family
    inputs = processor(IMAGES, [[q[0]] for q in QUERIES], generate=True)
    seg = model.config.seg_token_id
    forced = iter([50, seg, 51, seg, 52])
    step = {}

    def always(_, scores):
        token = step.setdefault(len(step), next(forced)) if scores.shape else 0
        return torch.full_like(scores, -1e4).index_fill_(1, torch.tensor([token]), 0.0)

    output = model.generate(**inputs, max_new_tokens=5, do_sample=False, logits_processor=[always])
    assert (output.sequences == seg).sum() == 4 and len(output.pred_masks) == 4
    length = output.sequences.shape[1] - inputs["branch_ids"].shape[1]
    owner = torch.nn.functional.pad(inputs["branch_ids"], (0, length), value=1)
    full = {**inputs, "input_ids": output.sequences, "branch_ids": owner}
    with torch.no_grad():
        expected = model(**full)
    assert torch.allclose(output.seg_embeddings, expected.seg_embeddings, atol=1e-5, rtol=1e-3)
    assert torch.allclose(output.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def anchored(family):
    """The family's model with an anchor encoder; its own tests alone, since the table may have grown."""
    name, _, _ = family
    model, processor = build(name)
    model.add_anchors(processor.add_anchor_token())
    torch.nn.init.normal_(model.anchor_encoder.box.weight, std=0.5)
    return name, model, processor


MASKS = [np.zeros((40, 60), bool), np.zeros((40, 60), bool), np.zeros((70, 30), bool)]
MASKS[0][5:20, 10:50] = MASKS[1][20:23, 3:4] = MASKS[2][30:60, 5:25] = True
POINTED = [[[MASKS[0]], [], [MASKS[0], MASKS[1]]], [[MASKS[2]]]]


def test_anchors_look_as_the_library_model_sees_them(anchored):
    """The mean of what the family's own classes make of the cut-out anchor, one by one."""
    name, model, processor = anchored
    seen = processor.anchor_inputs(IMAGES, POINTED)
    with torch.no_grad():
        found = model.anchor_appearances(seen["anchor_pixel_values"])[seen["anchor_index"]]
        pairs = [(IMAGES[0], MASKS[0]), (IMAGES[0], MASKS[0]), (IMAGES[0], MASKS[1]), (IMAGES[1], MASKS[2])]
        for token, (image, mask) in zip(found, pairs, strict=True):
            crop = anchor_crop(image, mask)
            if name == "llava":
                states = model.vlm.model.vision_tower(
                    processor.image_processor([crop], return_tensors="pt").pixel_values
                )
                expected = model.vlm.model.multi_modal_projector(states.last_hidden_state[:, 0])[0]
            else:
                one_size = {"do_image_splitting": False, "size": {"longest_edge": 32}}
                if name.startswith("qwen"):
                    one_size = {"do_resize": False}
                    crop = crop.resize((224, 224), Image.Resampling.BICUBIC)
                inputs = processor.image_processor([[crop]], return_tensors="pt", **one_size)
                given = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
                (tokens,) = model.vlm.get_image_features(**given).pooler_output
                assert len(tokens) == (64 if name.startswith("qwen") else 16)
                expected = tokens.mean(0)
            assert torch.allclose(token, expected, atol=1e-5, rtol=1e-4)
    assert found.std(0).mean() > 1e-3


def test_anchors_packed_equal_separate(anchored):
    _, model, processor = anchored
    with torch.no_grad():
        packed = model(**processor(IMAGES, QUERIES, anchors=POINTED)).pred_masks
        alone = [
            model(**processor(image, query, anchors=[[own]])).pred_masks
            for image, queries, pointed in zip(IMAGES, QUERIES, POINTED, strict=True)
            for query, own in zip(queries, pointed, strict=True)
        ]
        without = model(**processor(IMAGES, QUERIES)).pred_masks
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)
    changed = (packed - without).abs().amax((1, 2))
    assert (changed > 1e-3).tolist() == [True, False, True, True]


def test_generation_sees_anchors(anchored):
    """Each step's states, by `generate` with its cache, are those of one pass over the whole answer."""
    _, model, processor = anchored
    asked = processor(IMAGES, [[q[0]] for q in QUERIES], anchors=[[of[0]] for of in POINTED], generate=True)
    output = model.generate(
        **asked,
        max_new_tokens=3,
        do_sample=False,
        suppress_tokens=[
            token for token in range(model.config.get_text_config().vocab_size) if token != model.config.seg_token_id
        ],
    )
    owner = torch.nn.functional.pad(asked["branch_ids"], (0, 3), value=1)
    with torch.no_grad():
        expected = model(**{**asked, "input_ids": output.sequences, "branch_ids": owner})
    assert len(output.seg_embeddings) == 6
    assert torch.allclose(output.seg_embeddings, expected.seg_embeddings, atol=1e-5, rtol=1e-3)


def test_a_class_state_is_asked_of_who_has_one(family):
    name, _, _ = family
    model, processor = build(name)
    model.config.anchor_appearance = "cls"
    if name == "llava":
        model.add_anchors(processor.add_anchor_token())
        return
    with pytest.raises(ValueError, match=f"anchor_appearance 'cls': a {name} has no class state; 'mean' would be"):
        model.add_anchors(processor.add_anchor_token())


def test_segment_takes_any_number_of_queries(family):
    _, model, processor = family
    result = segment(model, processor, IMAGES[0], QUERIES[0], queries_per_pass=2)
    assert result.masks.shape == (3, 40, 60) and result.scores.shape == (3,)
    alone = segment(model, processor, IMAGES[0], QUERIES[0][2:])
    assert torch.equal(result.masks[2], alone.masks[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_text_of_the_user_stays_plain_in_every_template(name):
    _, processor = build(name)
    specials = processor.tokenizer.all_special_tokens
    plain = processor(IMAGES[0], "the road")["input_ids"][0]
    hostile = processor(IMAGES[0], "the " + " ".join(specials))["input_ids"][0]
    for token in specials:
        token_id = processor.tokenizer.convert_tokens_to_ids(token)
        assert (plain == token_id).sum() == (hostile == token_id).sum(), token


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_is_that_of_the_tokenizer(name):
    """The template rendered as text, image tokens in place, and tokenised in one go."""
    _, processor = build(name)
    inputs = processor(IMAGES[0], "the road")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the road"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It is [SEG]."}]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False).rstrip()
    merged = (inputs["image_grid_thw"].prod() // 4).item() if "image_grid_thw" in inputs else None
    if name in ("smolvlm", "idefics3"):  # 60x40 becomes 64x64 pixels: 2 x 2 tiles of 32 pixels
        image = get_image_prompt_string(2, 2, 16, "<fake_token_around_image>", "<image>", "<global-img>")
    else:
        image = processor.image_token * (merged or 16)
    expected = processor.tokenizer(text.replace(processor.image_token, image, 1))["input_ids"]
    assert inputs["input_ids"][0].tolist() == expected
    learned = inputs["labels"][0][inputs["labels"][0] != -100]
    end = processor.tokenizer.eos_token
    assert processor.tokenizer.decode(learned).strip() == f"It is [SEG].{end}"


def test_image_tokens_are_those_of_the_families_own_processors():
    for name in ("qwen2_5_vl", "idefics3"):
        _, processor = build(name)
        if name == "idefics3":
            theirs = Idefics3Processor(processor.image_processor, processor.tokenizer, image_seq_len=16)
        else:
            theirs = Qwen2_5_VLProcessor.__new__(Qwen2_5_VLProcessor)  # its video processor needs torchvision
            theirs.image_processor, theirs.image_token = processor.image_processor, processor.image_token
        for image in (noise_image(60, 40), noise_image(31, 97), noise_image(200, 50)):
            ids = processor(image, "the road")["input_ids"][0].tolist()
            prefix = processor._frame().prefix
            if name == "idefics3":
                expected = theirs(images=[[image]], text=[prefix], add_special_tokens=False)["input_ids"][0]
            else:
                inputs = processor.image_processor([image], return_tensors="pt")
                replacement = theirs.replace_image_token(inputs, 0)
                expected = processor.tokenizer(prefix.replace(processor.image_token, replacement))["input_ids"]
            assert ids[: len(expected)] == list(expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_reaches_the_language_model_and_nothing_else(name):
    model, processor = build(name)
    wrapped = select_trained_parts(model, TrainedPartsArguments())
    inputs = processor(IMAGES, QUERIES)
    output = wrapped(**inputs)
    (output.lm_loss + output.pred_masks.square().mean()).backward()
    trained = {n.removeprefix("base_model.model.") for n, p in wrapped.named_parameters() if p.requires_grad}
    adapted = {n for n in trained if "lora_" in n}
    assert len(adapted) == 2 * 2 * 2  # A and B of q_proj and v_proj in 2 layers
    assert all(n.startswith("vlm.model.") and "vis" not in n for n in adapted)
    assert all(p.grad is not None for n, p in wrapped.named_parameters() if "lora_" in n)
    for fragment in ("embed_tokens", "lm_head", "seg_projector", "mask_decoder"):
        assert any(fragment in n for n in trained - adapted), fragment
    assert not any("vision" in n or "visual" in n or "connector" in n or "multi_modal" in n for n in trained)
    rows = {line.split()[0] for line in parameter_table(wrapped).splitlines()[1:]}
    assert {"vision_tower", "connector", "language_model", "LoRA"} <= rows


@pytest.mark.parametrize("name", FAMILIES)
def test_activation_checkpointing_differentiates_no_frozen_tower(name):
    """As Trainer switches it on below adapters, and with the same gradients as without."""
    model, processor = build(name)
    wrapped = select_trained_parts(model, TrainedPartsArguments()).train()
    found: list[bool] = []
    for part, module in model.vlm.named_modules():
        if "vis" in part:
            module.register_forward_hook(
                lambda module, given, output: found.append(getattr(output, "requires_grad", False))
            )

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # of the adapters' dropout
        wrapped.zero_grad()
        output = wrapped(**processor(IMAGES, QUERIES))
        (output.lm_loss + output.pred_masks.square().mean()).backward()
        return {n: p.grad.clone() for n, p in wrapped.named_parameters() if "lora_" in n}

    plain, calls = gradients(), len(found)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(), plain)
    assert len(found) == 2 * calls and not any(found)  # nor was a layer of it run again
    words: list[bool] = []
    embeddings = model.get_input_embeddings().requires_grad_(False)
    embeddings.register_forward_hook(lambda module, given, output: words.append(output.requires_grad))
    wrapped(**processor(IMAGES, QUERIES))
    model.disable_input_require_grads()
    wrapped(**processor(IMAGES, QUERIES))
    assert words == [True, False]
