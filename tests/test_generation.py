"""Answers in the model's own words: their masks are those of a forward pass over the same tokens, however they came."""

from __future__ import annotations

import pytest
import torch

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor

from .test_modeling_cora import IMAGES, relative

ANSWER = 6


def inputs_of(processor: CoraProcessor) -> dict[str, torch.Tensor]:
    inputs = processor(IMAGES[:2], [["the road"], ["the vehicle with four wheels"]], generate=True)
    return {k: v for k, v in inputs.items() if k not in ("original_sizes", "reshaped_input_sizes")}


def saying(model: CoraForReasoningSegmentation, inputs: dict[str, torch.Tensor]) -> dict:
    """Options that make it answer with two `[SEG]`."""
    seg, length = model.config.seg_token_id, inputs["input_ids"].shape[1]
    wanted = [30, seg, 40, seg, 50, 60]
    return {"max_new_tokens": ANSWER, "prefix_allowed_tokens_fn": lambda _, ids: [wanted[ids.shape[-1] - length]]}


def assert_as_forward(model: CoraForReasoningSegmentation, inputs: dict[str, torch.Tensor], out) -> None:
    assert out.seg_batch_index.tolist() == [0, 0, 1, 1]
    branch_ids = torch.nn.functional.pad(inputs["branch_ids"], (0, ANSWER), value=1)
    expected = model(**{**inputs, "input_ids": out.sequences, "branch_ids": branch_ids})
    assert torch.allclose(out.seg_embeddings, expected.seg_embeddings, atol=1e-5)
    assert relative(out.pred_masks, expected.pred_masks) < 1e-4


@pytest.mark.parametrize("seg_state", ["before", "at"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 2.0},
        {"num_beams": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_masks_are_those_of_a_forward_pass_over_the_same_tokens(tiny, seg_state, options):
    model, processor = tiny
    model.config.seg_state = seg_state
    inputs = inputs_of(processor)
    assert_as_forward(model, inputs, model.generate(**inputs, **saying(model, inputs), **options))


def test_masks_without_a_cache_of_the_folder_or_of_training(tiny):
    """A language model's folder may say `use_cache: false`; checkpointing switches the cache off."""
    model, processor = tiny
    inputs = inputs_of(processor)
    model.vlm.config.get_text_config().use_cache = False
    model.vlm.generation_config.use_cache = model.generation_config.use_cache = False
    assert_as_forward(model, inputs, model.generate(**inputs, **saying(model, inputs)))
    model.train()
    model.gradient_checkpointing_enable()
    assert_as_forward(model, inputs, model.generate(**inputs, **saying(model, inputs)))


def test_steps_are_not_compiled(tiny):
    """On a GPU a static cache would have them compiled, and their states overwritten."""
    model, _ = tiny
    config, rest = model._generation_config({"cache_implementation": "static"})
    assert config.disable_compile and config.cache_implementation == "static" and not rest


def test_the_models_own_generation_config_counts(tiny):
    model, processor = tiny
    inputs = inputs_of(processor)
    model.generation_config.max_new_tokens = 3
    length = inputs["input_ids"].shape[1]
    assert model.generate(**inputs, eos_token_id=-1).sequences.shape[1] == length + 3
    assert model.generate(**inputs, eos_token_id=-1, max_new_tokens=2).sequences.shape[1] == length + 2


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_no_answer_has_a_place_for_an_image(tiny, options):
    """Fed back with the image, one more place than its features fill is an error of the VLM."""
    model, processor = tiny
    image = model.config.vlm_config.image_token_id

    def insist(_module, _arguments, logits):
        return logits.index_fill(-1, torch.tensor([image]), 1e4)

    model.get_output_embeddings().register_forward_hook(insist)
    inputs = inputs_of(processor)
    sequences = model.generate(**inputs, max_new_tokens=3, eos_token_id=-1, **options).sequences
    assert sequences.shape[1] == inputs["input_ids"].shape[1] + 3
    assert (sequences == image).sum() == (inputs["input_ids"] == image).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences: 2; generate gives one answer to a row"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens: generate takes no assisted decoding"),
    ],
)
def test_what_it_cannot_do_is_refused(tiny, options, message):
    model, processor = tiny
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs_of(processor), max_new_tokens=3, **options)
