"""What users of transformers take for granted of a model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, pipeline

from modeling_cora import CoraConfig, CoraForReasoningSegmentation
from modeling_cora.loading import ModelLoadError, load_trained
from modeling_cora.segmentation import answer_batch, segment

from .conftest import noise_image
from .two_accelerators import FIRST, SECOND, place, two_accelerators
from .vlm_families import build

IMAGES = [noise_image(60, 40, 0), noise_image(30, 70, 1)]
QUERIES = [["the road", "Where is the tree?"], ["the sky"]]
TERMS = ("loss", "lm_loss", "bce_loss", "dice_loss", "iou_loss")


def without_labels(inputs):
    return {name: value for name, value in inputs.items() if name not in ("labels", "mask_labels")}


def test_resized_embeddings_keep_the_old_rows(tiny):
    model, processor = tiny
    inputs = without_labels(processor(IMAGES, QUERIES))
    before = model(**inputs, output_logits=True)
    size = model.config.get_text_config().vocab_size
    model.resize_token_embeddings(size + 3, mean_resizing=False)
    assert model.config.get_text_config().vocab_size == size + 3
    after = model(**inputs, output_logits=True)
    assert after.logits.shape[-1] == size + 3
    assert torch.equal(after.pred_masks, before.pred_masks)
    torch.testing.assert_close(after.logits[..., :size], before.logits)
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == size + 3


def test_tied_weights_stay_tied(tiny, tmp_path):
    config = copy.deepcopy(tiny[0].config)
    config.vlm_config.text_config.tie_word_embeddings = True
    config.vlm_config.tie_word_embeddings = True
    model = CoraForReasoningSegmentation(config)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded, info = CoraForReasoningSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    shared = loaded.sam.shared_image_embedding.positional_embedding
    assert loaded.sam.prompt_encoder.shared_embedding.positional_embedding.data_ptr() == shared.data_ptr()


@pytest.mark.parametrize("device_map", ["auto", {"vlm": "disk", "sam": "cpu", "seg_projector": "cpu"}])
def test_device_map(tiny, tmp_path, device_map):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    loaded = CoraForReasoningSegmentation.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
    ).eval()
    inputs = without_labels(processor(IMAGES, QUERIES))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).pred_masks, model(**inputs).pred_masks)
    # and where inputs are put to the model's device, though its first part has none
    found, expected = (segment(one, processor, IMAGES[0], QUERIES[0]) for one in (loaded, model))
    # not to the bit: weights that are mapped from a file lie at odd addresses, where some processors round otherwise
    assert torch.equal(found.masks, expected.masks)
    torch.testing.assert_close(found.scores, expected.scores)


def test_an_offloaded_sam_is_refused(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    places = {"vlm": "cpu", "sam": "disk", "seg_projector": "cpu"}
    loaded = CoraForReasoningSegmentation.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload")
    )
    with pytest.raises(ValueError, match=r"device_map: .* a device for 'sam' would be right"), torch.no_grad():
        loaded(**without_labels(processor(IMAGES, QUERIES)))


def losses(model, processor, device):
    """And masks: packed or not, wherever losses are taken, with anchors; and without any `[SEG]`. The last loss again,
    with its graph."""
    anchor = np.zeros((40, 60), bool)
    anchor[5:20, 10:40] = True
    masks = [np.ones((2, 40, 60), np.uint8), np.ones((1, 70, 30), np.uint8)]
    seg = processor(IMAGES, QUERIES, anchors=[[[], [anchor]], [[]]], mask_labels=masks)
    none = processor(IMAGES, QUERIES, answers=[["No.", "No."], ["No."]], mask_labels=[m[:0] for m in masks])
    found = []
    for inputs, packing, at in ((none, True, "labels"), (seg, False, "low_res"), (seg, True, "labels")):
        model.config.branch_packing, model.config.mask_loss_at = packing, at
        moved = {k: [m.to(device) for m in v] if k == "mask_labels" else v.to(device) for k, v in inputs.items()}
        output = model(**moved)
        found += [output[name].detach().cpu() for name in ("pred_masks", *TERMS)]
    return found, output.loss


def answers(model, processor):
    """The template's, and `[SEG][SEG]` in the model's own words, at every way to the states of generated tokens."""
    found = segment(model, processor, IMAGES[0], QUERIES[0])
    scores = [found.scores]
    for options in ({}, {"num_beams": 2}, {"use_cache": False}):
        others = set(range(len(processor.tokenizer))) - {model.config.seg_token_id}
        options |= {"max_new_tokens": 2, "suppress_tokens": sorted(others)}
        for answer, *_ in answer_batch(model, processor, IMAGES, QUERIES, **options):
            assert answer.text == "[SEG][SEG]"
            scores.append(answer.scores)
    return found.masks, torch.cat(scores)


IN_TWO = [
    {"vlm": 0, "seg_projector": 1, "anchor_encoder": 1, "sam": 1},
    {"vlm.model.vision_tower": 0, "vlm.model.multi_modal_projector": 0, "vlm.model.language_model": 1,
     "vlm.lm_head": 1, "seg_projector": 0, "anchor_encoder": 0, "sam": 0},
]  # fmt: skip


@pytest.mark.parametrize("parts", IN_TWO, ids=["sam", "language_model"])
def test_parts_on_two_accelerators(tiny, parts):
    """Here the devices are pretended; `test_parts_on_two_gpus` does the same where there are some."""
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    model.eval().set_attn_implementation("eager")  # others choose their kernel by the device
    with torch.no_grad():
        expected, _ = losses(model, processor, "cpu")
        masks, scores = answers(model, processor)
        with two_accelerators():
            place(model, {part: (FIRST, SECOND)[number] for part, number in parts.items()})
            found, _ = losses(model, processor, FIRST)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
            again, its_scores = answers(model, processor)
    assert (again != masks).float().mean() < 1e-3
    torch.testing.assert_close(its_scores, scores, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("parts", IN_TWO, ids=["sam", "language_model"])
def test_parts_on_two_gpus(tiny, tmp_path, parts):
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    model.eval().save_pretrained(tmp_path)
    loaded = CoraForReasoningSegmentation.from_pretrained(tmp_path, device_map=parts).eval()
    expected, _ = losses(model, processor, "cpu")
    found, loss = losses(loaded, processor, "cuda:0")
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)
    loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.anchor_encoder.parameters())
    torch.testing.assert_close(answers(loaded, processor)[1], answers(model, processor)[1], rtol=0.01, atol=0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.25), (torch.float16, 0.03)])
def test_half_precision_is_finite_and_near(tiny, tmp_path, dtype, tolerance):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    half = CoraForReasoningSegmentation.from_pretrained(tmp_path, dtype=dtype).eval()
    assert half.dtype == dtype
    inputs = without_labels(processor(IMAGES, QUERIES))
    with torch.no_grad():
        expected, found = model(**inputs).pred_masks, half(**inputs).pred_masks.float()
        assert (found - expected).norm() / expected.norm() < tolerance
        # prompts far beyond those of a trained model must not become NaN on the way through the decoder
        embeddings = half.get_image_embeddings(inputs["sam_pixel_values"])
        prompts = 50 * torch.randn(2, embeddings.shape[1], dtype=dtype)
        masks, scores = half.decode_masks(embeddings, prompts, torch.tensor([0, 1]))
    assert torch.isfinite(masks).all() and torch.isfinite(scores).all()


def test_losses_are_in_single_precision_whatever_the_model(tiny):
    model, processor = tiny
    model.to(torch.bfloat16)
    masks = [torch.zeros(2, 40, 60, dtype=torch.uint8), torch.zeros(1, 70, 30, dtype=torch.uint8)]
    output = model(**processor(IMAGES, QUERIES, mask_labels=masks))
    for name in TERMS:
        assert output[name].dtype == torch.float32 and torch.isfinite(output[name]), name


def test_a_batch_gives_what_its_images_give_alone(tiny):
    model, processor = tiny
    with torch.no_grad():
        together = model(**without_labels(processor(IMAGES, QUERIES))).pred_masks
        alone = [model(**without_labels(processor(i, q))).pred_masks for i, q in zip(IMAGES, QUERIES, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5 * together.abs().max().item())


@pytest.mark.slow
def test_compiled_without_graph_breaks(tiny):
    """The packed language model, SAM's encoder and its decoder compile whole. Which states are prompts depends on the
    token ids, so `forward` itself is cut there: the number of masks is not known before the ids are."""
    model, processor = tiny
    inputs = without_labels(processor(IMAGES, QUERIES))
    ids, branches = inputs["input_ids"], inputs["branch_ids"]
    vision = {"pixel_values": inputs["pixel_values"]}
    prompts, owner = torch.randn(3, 128), torch.tensor([0, 0, 1])
    with torch.no_grad():
        embeddings = model.get_image_embeddings(inputs["sam_pixel_values"])
        for function, arguments in (
            (model._hidden_states, (ids, branches, vision)),
            (model.get_image_embeddings, (inputs["sam_pixel_values"],)),
            (model.decode_masks, (embeddings, prompts, owner)),
        ):
            torch._dynamo.reset()
            compiled = torch.compile(function, backend="eager", fullgraph=True)
            expected, found = function(*arguments), compiled(*arguments)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch._dynamo.reset()
        whole = torch.compile(model, backend="eager")
        torch.testing.assert_close(whole(**inputs).pred_masks, model(**inputs).pred_masks, rtol=1e-4, atol=1e-4)


def test_a_configuration_survives_json(tiny, tmp_path):
    config = tiny[0].config
    config.mask_loss_at = "points"
    config.save_pretrained(tmp_path)
    loaded = CoraConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(loaded.vlm_config) is type(config.vlm_config) and type(loaded.sam_config) is type(config.sam_config)


@pytest.mark.parametrize("field", ["seg_state", "mask_loss_at", "seg_token_id", "lm_loss_weight"])
def test_a_configuration_refuses_what_does_not_fit(tiny, field):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        CoraConfig(**{field: "elsewhere"})
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        setattr(tiny[0].config, field, "elsewhere")


def test_a_model_of_half_precision_weights_configuration_has_one_type(tiny, tmp_path):
    model, processor = tiny
    model.bfloat16().save_pretrained(tmp_path)
    anew = CoraForReasoningSegmentation(CoraConfig.from_pretrained(tmp_path)).eval()
    assert {p.dtype for p in anew.parameters()} == {torch.float32}
    assert segment(anew, processor, IMAGES[0], QUERIES[0]).masks.shape == (2, 40, 60)
    loaded = CoraForReasoningSegmentation.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_cast_leaves_positions_as_loading_does(tiny, tmp_path, wrapped):
    """DeepSpeed casts what it trains by `module.bfloat16()`, an adapter around it or not."""
    model, processor = tiny
    model.save_pretrained(tmp_path)
    loaded = CoraForReasoningSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    around = torch.nn.Sequential(model) if wrapped else model
    around.bfloat16()
    found, expected = (dict(one.named_buffers()) for one in (model, loaded))
    frequencies = [name for name in found if name.endswith("inv_freq")]
    assert frequencies and all(found[name].dtype == torch.float32 for name in frequencies)
    assert all(torch.equal(found[name], expected[name]) for name in frequencies)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    inputs = processor(IMAGES[0], QUERIES[0])
    assert torch.equal(model(**inputs).seg_embeddings, loaded(**inputs).seg_embeddings)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION", None])
def test_peft_models_of_any_task(tiny, task):
    model, processor = tiny
    inputs = processor(IMAGES[0], QUERIES[0])
    expected = model(**inputs)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type=task)).eval()
    for found in (adapted(**inputs), model(**inputs, return_dict=True)):  # an adapter begins with no change
        torch.testing.assert_close(found.pred_masks, expected.pred_masks, rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'attention_mask'"):
        model(**inputs, attention_mask=torch.ones(1, 1))


def test_tied_tables_can_be_untied(tmp_path):
    """As peft's warning about adapters of tied tables tells people to."""
    model, _ = build("smolvlm")
    model.config.tie_word_embeddings = True
    tied = CoraForReasoningSegmentation(model.config)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    tied.save_pretrained(tmp_path)
    assert CoraConfig.from_pretrained(tmp_path).tie_word_embeddings
    untied = CoraForReasoningSegmentation.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    assert not untied.config.tie_word_embeddings and not untied.config.get_text_config().tie_word_embeddings


def test_generate_refuses_a_training_batch(tiny):
    """Its masks would be those of the template answer that is in the prompt already."""
    model, processor = tiny
    inputs = processor([IMAGES[0], IMAGES[0]], [["a"], ["the road, far away"]])
    for given in (inputs, {name: value for name, value in inputs.items() if name != "labels"}):
        with pytest.raises(ValueError, match=r"input_ids: a training batch; processor\(\.\.\., generate=True\)"):
            model.generate(**given, max_new_tokens=2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (dict(images=np.zeros((40, 60, 3), np.uint8), queries="a"), TypeError, "images: ndarray is no Pillow image"),
        (dict(images=[torch.zeros(3, 4, 4)], queries="a"), TypeError, "images: Tensor is no Pillow image"),
        (dict(images=IMAGES[0], queries=["a", "b"], answers=[["[SEG]."]]), ValueError, "answers: lists of [1] for [2]"),
        (dict(images=IMAGES[0], queries=["a", "b"], anchors=[[[]]]), ValueError, "anchors: lists of [1] for [2]"),
        (dict(images=IMAGES[0], queries="a", return_tensors="np"), ValueError, "return_tensors: 'np'"),
    ],
)
def test_what_a_processor_cannot_use_is_named(tiny, given, error, message):
    with pytest.raises(error) as raised:
        tiny[1](**given)
    assert message in str(raised.value)
    assert tiny[1](IMAGES[0], "a", return_tensors="pt")["input_ids"].shape[0] == 1


def test_a_pipeline_refuses_pixels_at_once(saved):
    pipe = pipeline("reasoning-segmentation", model=str(saved))
    with pytest.raises(TypeError):
        pipe(np.zeros((4, 4, 3), np.uint8), "the road")


def test_what_is_no_model_is_said_to_be_none(saved, tmp_path):
    for folder in ("run/model", "segmenter"):
        (tmp_path / folder).mkdir(parents=True)
    # transformers would make up all of a CORA model of the default size, 7 billion weights
    (tmp_path / "segmenter/config.json").write_text('{"model_type": "semantic_segmenter"}')
    for name, why in (("nowhere", "no such folder"), ("run/model", "has no config.json"),
                      ("run", f"has no config.json; {tmp_path / 'run/model'} would be right"),
                      ("segmenter", "config.json is of a model of type 'semantic_segmenter'; 'cora' would be right"),
                      ):  # fmt: skip
        with pytest.raises(ModelLoadError) as raised:
            load_trained(str(tmp_path / name))
        assert str(raised.value) == f"{tmp_path / name}: cannot be loaded as a CORA model: {why}"
    assert load_trained(str(saved))[0].training is False
    with pytest.raises(ValueError, match="of a model of type 'semantic_segmenter'"):
        CoraForReasoningSegmentation.from_pretrained(tmp_path / "segmenter")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_leave_the_masks_to_sam(tiny, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    model, processor = tiny
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    loaded = AutoModel.from_pretrained(tmp_path, quantization_config=config).eval()
    quantised = [name for name, module in loaded.named_modules() if "bit" in type(module).__name__]
    assert quantised and all(name.startswith("vlm.") and "lm_head" not in name for name in quantised)
    assert config.llm_int8_skip_modules is None
    expected, found = (segment(one, processor, IMAGES[0], QUERIES[0]) for one in (model, loaded))
    assert (found.scores.float() - expected.scores).abs().max() < 0.2
