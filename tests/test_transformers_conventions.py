"""What users of transformers, peft and bitsandbytes do with any model, they do with this one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, pipeline

from modeling_cora import CoraConfig, CoraForReasoningSegmentation
from modeling_cora.loading import ModelLoadError, load_trained
from modeling_cora.segmentation import encode, segment

from .conftest import noise_image
from .vlm_families import build

IMAGE, QUERIES = noise_image(60, 40), ["the road", "the sky"]


def test_a_part_on_disk_answers_as_in_memory(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    places = {"vlm": "disk", "sam": "cpu", "seg_projector": "cpu"}
    there = CoraForReasoningSegmentation.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload")
    ).eval()
    assert next(there.parameters()).is_meta and there.device.type == "cpu"
    expected, found = (segment(one, processor, IMAGE, QUERIES) for one in (model, there))
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.masks, expected.masks)
    assert encode(there, processor, [IMAGE]).embeddings.device.type == "cpu"


def test_a_model_of_half_precision_weights_configuration_has_one_type(tiny, tmp_path):
    model, processor = tiny
    model.bfloat16().save_pretrained(tmp_path)
    anew = CoraForReasoningSegmentation(CoraConfig.from_pretrained(tmp_path)).eval()
    assert {p.dtype for p in anew.parameters()} == {torch.float32}
    assert segment(anew, processor, IMAGE, QUERIES).masks.shape == (2, 40, 60)
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
    inputs = processor(IMAGE, QUERIES)
    assert torch.equal(model(**inputs).seg_embeddings, loaded(**inputs).seg_embeddings)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION", None])
def test_peft_models_of_any_task(tiny, task):
    model, processor = tiny
    inputs = processor(IMAGE, QUERIES)
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
    inputs = processor([IMAGE, IMAGE], [["a"], ["the road, far away"]])
    for given in (inputs, {name: value for name, value in inputs.items() if name != "labels"}):
        with pytest.raises(ValueError, match=r"input_ids: a training batch; processor\(\.\.\., generate=True\)"):
            model.generate(**given, max_new_tokens=2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (dict(images=np.zeros((40, 60, 3), np.uint8), queries="a"), TypeError, "images: ndarray is no Pillow image"),
        (dict(images=[torch.zeros(3, 4, 4)], queries="a"), TypeError, "images: Tensor is no Pillow image"),
        (
            dict(images=IMAGE, queries=["a", "b"], answers=[["It is [SEG]."]]),
            ValueError,
            "answers: lists of [1]",
        ),
        (dict(images=IMAGE, queries=["a", "b"], anchors=[[[]]]), ValueError, "anchors: lists of [1] for [2] queries"),
        (dict(images=IMAGE, queries="a", return_tensors="np"), ValueError, "return_tensors: 'np'"),
    ],
)
def test_what_a_processor_cannot_use_is_named(tiny, given, error, message):
    with pytest.raises(error) as raised:
        tiny[1](**given)
    assert message in str(raised.value)
    assert tiny[1](IMAGE, "a", return_tensors="pt")["input_ids"].shape[0] == 1


def test_a_pipeline_refuses_pixels_at_once(saved):
    pipe = pipeline("reasoning-segmentation", model=str(saved))
    with pytest.raises(TypeError):
        pipe(np.zeros((4, 4, 3), np.uint8), "the road")


def test_what_is_no_model_is_said_to_be_none(saved, tmp_path):
    (tmp_path / "run/model").mkdir(parents=True)
    for name, why in (("nowhere", "no such folder"), ("run/model", "has no config.json"),
                      ("run", f"has no config.json; {tmp_path / 'run/model'} would be right")):  # fmt: skip
        with pytest.raises(ModelLoadError) as raised:
            load_trained(str(tmp_path / name))
        assert str(raised.value) == f"{tmp_path / name}: cannot be loaded as a CORA model: {why}"
    assert load_trained(str(saved))[0].training is False


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
    expected, found = (segment(one, processor, IMAGE, QUERIES) for one in (model, loaded))
    assert (found.scores.float() - expected.scores).abs().max() < 0.2
