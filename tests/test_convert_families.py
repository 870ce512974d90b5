"""The converter with the families that transformers itself loads: what comes out computes what the VLM did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from modeling_cora import SEG_TOKEN, CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.convert_vlm_sam import convert
from modeling_cora.segmentation import segment

from .conftest import noise_image
from .small_checkpoints import randomised, refused, sam_folder
from .vlm_families import FAMILIES, tokenizer

OTHERS = [name for name in FAMILIES if name != "llava"]
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer")


def vlm_folder(folder: Path, family: str, template: str = "chat_template.jinja", tied: bool = False) -> None:
    """As a public repository holds it: no [SEG] yet, weights under the names of the family's first release."""
    (special, bos, eos, _, chat), vlm_config, image_processor = FAMILIES[family]
    words = tokenizer(special, bos, eos, seg=False)
    config = vlm_config(words.convert_tokens_to_ids, len(words))
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    model = AutoModelForImageTextToText.from_config(config)
    randomised(model, seed=1)
    model.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    if template == "tokenizer":
        words.chat_template = chat
    words.save_pretrained(folder)
    if template == "chat_template.jinja":
        (folder / template).write_text(chat)
    elif template == "chat_template.json":
        (folder / template).write_text(json.dumps({"chat_template": chat}))


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    sam_folder(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", OTHERS)
@torch.no_grad()
def test_it_computes_what_the_vlm_did(tmp_path, sam, family, tied):
    template = TEMPLATES[(OTHERS.index(family) + tied) % len(TEMPLATES)]
    vlm_folder(tmp_path / "vlm", family, template, tied)
    convert(["--vlm", str(tmp_path / "vlm"), "--sam", str(sam), "--output", str(tmp_path / "out")])
    model, info = CoraForReasoningSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = CoraProcessor.from_pretrained(tmp_path / "out")
    # an answer ends where the chat template ends it
    assert model.generation_config.eos_token_id == processor.end_token_id
    library = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm").eval()
    rows = library.get_input_embeddings().num_embeddings
    assert processor.tokenizer.convert_tokens_to_ids(SEG_TOKEN) == model.config.seg_token_id == rows
    states, expected = model.vlm.state_dict(), library.state_dict()
    assert states.keys() == expected.keys()
    assert all(torch.equal(states[name][: len(tensor)], tensor) for name, tensor in expected.items())
    mean = expected["lm_head.weight"].mean(0)
    assert torch.allclose(states["lm_head.weight"][rows], mean, atol=1e-6)
    # prompts are as loud as SAM's own, whatever the states' scale
    norm = next(
        tensor
        for name, tensor in expected.items()
        if name.endswith(("language_model.norm.weight", "text_model.norm.weight"))
    )
    first = model.seg_projector.linear_1.weight
    loudness = first.std() * norm.square().mean().sqrt() * first.shape[1] ** 0.5
    assert loudness == pytest.approx(1, abs=0.05)
    # the library's model on the same prompt, with its own mask and positions; up to [SEG], which it has no row for
    inputs = processor(noise_image(60, 40), "the road")
    ids = inputs["input_ids"][:, : int((inputs["input_ids"][0] == rows).int().argmax())]
    given = {k: inputs[k] for k in ("pixel_values", "image_grid_thw", "pixel_attention_mask") if k in inputs}
    if family.startswith("qwen"):
        given["mm_token_type_ids"] = (ids == model.config.vlm_config.image_token_id).int()
    logits = library(input_ids=ids, attention_mask=torch.ones_like(ids), **given).logits
    labels = {name: value for name, value in inputs.items() if name != "mask_labels"}
    found = model.eval()(**labels, output_logits=True).logits[:, : ids.shape[1], :rows]
    assert torch.allclose(found, logits, atol=1e-4, rtol=1e-4)
    assert segment(model, processor, noise_image(60, 40), ["the road", "the sky"]).masks.shape == (2, 40, 60)


def test_max_pixels_limits_what_an_image_is_shown_with(tmp_path, sam):
    vlm_folder(tmp_path / "vlm", "qwen2_5_vl")
    argv = ["--vlm", str(tmp_path / "vlm"), "--sam", str(sam), "--output"]
    convert([*argv, str(tmp_path / "few"), "--max-pixels", "3600"])
    convert([*argv, str(tmp_path / "all")])
    counts = {}
    for name in ("few", "all"):
        inputs = CoraProcessor.from_pretrained(tmp_path / name)(noise_image(300, 300), "the road")
        counts[name] = int(inputs["image_grid_thw"].prod())
    assert counts == {"few": 16, "all": 36}


@pytest.mark.parametrize(
    ("family", "broken", "more", "message"),
    [
        ("smolvlm", "missing key", [], "missing keys: lm_head.weight"),
        ("qwen2_vl", "no template", [], "no chat_template.jinja, nor any other chat template"),
        ("smolvlm", "", ["--max-pixels", "9999"], "--max-pixels 9999: this VLM shows images at sizes of its own; only"),
        ("qwen3_vl", "", ["--max-pixels", "99"], "--max-pixels 99: is less than 3136, the least that this model takes"),
        ("qwen3_vl", "family", [], "config.json is of model_type 'blip-2'; known are idefics3, llava, qwen2_5_vl"),
    ],
)
def test_bad_input_takes_one_line(tmp_path, sam, capsys, family, broken, more, message):
    vlm_folder(tmp_path / "vlm", family, "none" if broken == "no template" else "chat_template.jinja")
    if broken == "missing key":
        weights = load_file(tmp_path / "vlm" / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, tmp_path / "vlm" / "model.safetensors", {"format": "pt"})
    if broken == "family":
        path = tmp_path / "vlm" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "blip-2"}))
    assert message in refused(convert, capsys, tmp_path / "out", "--vlm", tmp_path / "vlm", "--sam", sam, *more)
