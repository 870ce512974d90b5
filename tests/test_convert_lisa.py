"""The converter of LISA on small random models: transformers' own LLaVA and SAM compute what the result must, peft's
own merge is what adapters must become."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTextConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.convert_lisa import convert

from .conftest import noise_image
from .small_checkpoints import clip_config, original_sam, randomised, refused, tokenizer

CLASSES = 262  # 259 bytes and specials, [SEG], <im_start>, <im_end>
HIDDEN = 32
CONFIG = {
    "model_type": "llava",
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "vocab_size": 999,  # LISA resizes the tables and their rows tell
    "mm_vision_select_layer": -2,
    "vision_tower": "openai/clip-vit-large-patch14",
    "out_dim": 16,
}


def language_model() -> LlamaForCausalLM:
    """LLaMA keeps the names that LISA has for it to this day."""
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
    return randomised(LlamaForCausalLM(LlamaConfig(vocab_size=CLASSES, **{name: CONFIG[name] for name in fields})), 11)


def clip() -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = CLIPModel.config_class(
        text_config=text.to_dict(), vision_config=clip_config().to_dict(), projection_dim=16
    )
    return randomised(CLIPModel(config), 12)


def layer(outputs: int, inputs: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(outputs, inputs, generator=generator) / inputs**0.5,
        "bias": torch.randn(outputs, generator=generator),
    }


def lisa_parts(projector: str) -> dict[str, torch.Tensor]:
    """Everything of LISA but its language model and vision tower."""
    weights = {f"model.visual_model.{name}": tensor for name, tensor in original_sam().state_dict().items()}
    linears = {"text_hidden_fcs.0.0": layer(HIDDEN, HIDDEN, 1), "text_hidden_fcs.0.2": layer(16, HIDDEN, 2)}
    if projector == "linear":
        linears["mm_projector"] = layer(HIDDEN, HIDDEN, 3)
    else:
        linears |= {"mm_projector.0": layer(HIDDEN, HIDDEN, 3), "mm_projector.2": layer(HIDDEN, HIDDEN, 4)}
    return weights | {f"model.{part}.{name}": tensor for part, pair in linears.items() for name, tensor in pair.items()}


def lisa_folder(root, weights, name="lisa"):
    folder = root / name
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    lisas = tokenizer([])
    lisas.add_tokens(["[SEG]"])
    lisas.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    lisas.save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tmp_path):
    """A merged LISA and the CLIP that it needs."""
    clip().save_pretrained(tmp_path / "clip")
    weights = language_model().state_dict() | lisa_parts("mlp2x_gelu")
    return lisa_folder(tmp_path, weights), tmp_path / "clip"


def converted(output, lisa, clip_folder, *more) -> CoraForReasoningSegmentation:
    arguments = ["--checkpoint", lisa, "--tokenizer", lisa, "--vision-tower", clip_folder, "--output", output, *more]
    convert([str(argument) for argument in arguments])
    model, info = CoraForReasoningSegmentation.from_pretrained(output, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def expected_logits(language: LlamaForCausalLM, weights, projector: str, ids, pixels) -> torch.Tensor:
    """LLaVA by hand: CLIP's layer before the last without its class token, the projector, LLaMA."""
    features = clip().vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    def linear(name: str, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"])

    if projector == "linear":
        features = linear("model.mm_projector", features)
    else:
        hidden = torch.nn.functional.gelu(linear("model.mm_projector.0", features))
        features = linear("model.mm_projector.2", hidden)
    embedded = language.get_input_embeddings()(ids.clamp(max=CLASSES - 1))
    embedded[ids == CLASSES] = features.flatten(0, 1)
    return language(inputs_embeds=embedded).logits


@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
def test_both_projectors_compute_what_they_did(tmp_path, projector):
    language, parts = language_model(), lisa_parts(projector)
    clip().save_pretrained(tmp_path / "clip")
    lisa = lisa_folder(tmp_path, language.state_dict() | parts)
    model = converted(tmp_path / "out", lisa, tmp_path / "clip")
    ids = torch.tensor([[1, 30, 260, *[CLASSES] * 4, 261, 40, 41, 259, 2]])
    pixels = torch.randn(1, 3, 28, 28)
    inputs = {"input_ids": ids, "branch_ids": torch.zeros_like(ids), "pixel_values": pixels}
    with torch.no_grad():
        output = model(**inputs, output_logits=True)
    expected = expected_logits(language, parts, projector, ids, pixels)
    assert output.logits.shape == expected.shape == (1, 12, CLASSES)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    # LISA's text_hidden_fcs on the state that predicts [SEG]
    hidden = model.vlm.base_model(input_ids=ids, pixel_values=pixels).last_hidden_state[0, 9]
    weights = [parts[f"model.text_hidden_fcs.0.{k}.{kind}"] for k in (0, 2) for kind in ("weight", "bias")]
    embedding = weights[2] @ (weights[0] @ hidden + weights[1]).relu() + weights[3]
    torch.testing.assert_close(output.seg_embeddings[0], embedding.detach(), rtol=1e-4, atol=1e-5)


def test_image_row_is_neither_a_class_nor_generated(tmp_path, folders):
    model = converted(tmp_path / "out", *folders)
    assert model.config.lm_classes == CLASSES and len(model.get_output_embeddings().weight) == CLASSES + 1
    processor = CoraProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(noise_image(30, 20), "the road", generate=True)
    with torch.no_grad():  # the row of <image> would win every time
        model.get_output_embeddings().weight[:CLASSES] = 0
        model.get_output_embeddings().weight[CLASSES] = 0
        model.vlm.lm_head.register_forward_hook(lambda m, a, out: out.index_fill(-1, torch.tensor([CLASSES]), 9.0))
        output = model.generate(**{k: v for k, v in inputs.items() if "sizes" not in k}, max_new_tokens=3)
    assert (output.sequences[:, inputs["input_ids"].shape[1] :] < CLASSES).all()


def test_a_row_that_no_token_uses_takes_the_image(tmp_path):
    language = language_model()
    table = torch.randn(CLASSES + 5, HIDDEN)
    weights = language.state_dict() | lisa_parts("linear")
    weights |= {"lm_head.weight": table, "model.embed_tokens.weight": table.clone()}
    clip().save_pretrained(tmp_path / "clip")
    model = converted(tmp_path / "out", lisa_folder(tmp_path, weights), tmp_path / "clip")
    assert model.config.lm_classes is None and model.config.vlm_config.image_token_id == CLASSES
    assert torch.equal(model.get_output_embeddings().weight, table)


def test_prompt_is_lisas(tmp_path, folders):
    """System text, <im_start> and <im_end> around the image, which all queries share; [SEG] is one special token."""
    converted(tmp_path / "out", *folders)
    processor = CoraProcessor.from_pretrained(tmp_path / "out")
    assert "[SEG]" in processor.tokenizer.all_special_tokens
    inputs = processor(noise_image(30, 20), ["the <im_end> [SEG] road", "tree"])
    ids, owner = inputs["input_ids"][0], inputs["branch_ids"][0]
    prefix = ids[owner == 0].tolist()
    assert prefix[-6:] == [260, *[CLASSES] * 4, 261]
    assert (ids == 261).sum() == 1 and (ids == 259).sum() == 2
    text = processor.tokenizer.decode(ids[owner <= 1])
    assert text.startswith("You are LLaVA, a large") and "in detail. USER: <im_start><image>" in text
    assert text.endswith("<im_end>\nthe <im_end> [SEG] road ASSISTANT: It is [SEG].</s>")


def peft_model():
    language = language_model()
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    adapted = get_peft_model(language, config)
    generator = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3, generator=generator)
    return adapted


@pytest.mark.parametrize("where", ["folder", "checkpoint", "old checkpoint"])
def test_adapters_become_what_peft_merges(tmp_path, where):
    adapted = peft_model()
    parts = lisa_parts("linear")
    clip().save_pretrained(tmp_path / "clip")
    if where == "folder":
        adapted.save_pretrained(tmp_path / "adapter")
        lisa = lisa_folder(tmp_path, language_model().state_dict() | parts)
        more = ["--lora", tmp_path / "adapter"]
    else:
        weights = dict(adapted.state_dict())
        if where == "old checkpoint":  # peft before 0.6: no level between a layer and its weight
            weights = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items()}
        weights |= {f"base_model.model.{name}": tensor for name, tensor in parts.items()}
        lisa = lisa_folder(tmp_path, weights)
        more = ["--lora-alpha", 12]
    model = converted(tmp_path / "out", lisa, tmp_path / "clip", *more)
    merged = adapted.merge_and_unload().state_dict()
    ours = model.vlm.state_dict()
    changed = language_model().state_dict()
    for name, tensor in merged.items():
        mine = ours[name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name]
        torch.testing.assert_close(mine[: len(tensor)], tensor, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(tensor, changed[name]) != any(part in name for part in ("q_proj", "v_proj", "lm_head"))


def test_factors_are_added_before_the_cast(tmp_path):
    """0.003 and 0.002 are each less than half a step of bfloat16 behind 1 and would be lost; their sum is more."""
    weights = language_model().state_dict() | lisa_parts("linear")
    name = "model.layers.0.self_attn.q_proj"
    weights[f"{name}.weight"] = torch.full((HIDDEN, HIDDEN), 1.003)
    weights[f"{name}.lora_A.default.weight"] = torch.full((8, HIDDEN), 0.25)
    weights[f"{name}.lora_B.default.weight"] = torch.full((HIDDEN, 8), 0.0005)
    clip().save_pretrained(tmp_path / "clip")
    model = converted(tmp_path / "out", lisa_folder(tmp_path, weights), tmp_path / "clip", "--dtype", "bfloat16")
    merged = model.vlm.model.language_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(merged, torch.full((HIDDEN, HIDDEN), 1 + 2**-7).bfloat16())


def test_parts_that_lisa_lacks_come_from_sam(tmp_path, folders, capsys):
    weights = language_model().state_dict() | lisa_parts("linear")
    encoder = {name: weights.pop(name) for name in list(weights) if ".image_encoder." in name}
    lisa = lisa_folder(tmp_path, weights, "without")
    assert "--sam" in refused(
        convert, capsys, tmp_path / "out", "--checkpoint", lisa, "--tokenizer", lisa, "--vision-tower", folders[1]
    )
    sam = {name: torch.zeros_like(tensor) for name, tensor in original_sam().state_dict().items()}
    sam |= {name.removeprefix("model.visual_model."): tensor for name, tensor in encoder.items()}
    torch.save(sam, tmp_path / "sam.pth")
    model = converted(tmp_path / "out", lisa, folders[1], "--sam", tmp_path / "sam.pth")
    assert torch.equal(model.sam.vision_encoder.pos_embed, encoder["model.visual_model.image_encoder.pos_embed"])
    assert model.sam.mask_decoder.mask_tokens.weight.any()  # LISA's own, not the zeros


def test_what_does_not_fit_is_refused_in_one_line(tmp_path, folders, capsys):
    lisa, clip_folder = folders
    (tmp_path / "x").mkdir()

    def line(*changed, **options):
        given = {"checkpoint": lisa, "tokenizer": lisa, "vision_tower": clip_folder, **options}
        arguments = [part for name, value in given.items() if value for part in (f"--{name.replace('_', '-')}", value)]
        return refused(convert, capsys, tmp_path / "x" / "out", *arguments, *changed)

    whole = language_model().state_dict() | lisa_parts("linear")

    def variant(name, change):
        weights = dict(whole)
        change(weights)
        return lisa_folder(tmp_path, weights, name)

    assert "LISA drops it" in line(vision_tower=None)
    assert "no such" in line(checkpoint="/nowhere/at/all")
    assert "not a CLIP" in line(vision_tower=lisa)
    extra = variant("extra", lambda w: w.update({"model.surprise": torch.zeros(3)}))
    assert "1 unexpected key: model.surprise" in line(checkpoint=extra)
    lost = variant("lost", lambda w: w.pop("model.visual_model.prompt_encoder.point_embeddings.2.weight"))
    assert "point_embed" in line(checkpoint=lost)
    half = variant("half", lambda w: w.update({"model.layers.0.mlp.up_proj.lora_A.default.weight": torch.zeros(2, 32)}))
    assert "lora_A alone" in line(checkpoint=half)
    factors = {
        "model.norm.lora_A.default.weight": torch.zeros(2, 32),
        "model.norm.lora_B.default.weight": torch.zeros(32, 2),
    }
    assert "do not adapt [32]" in line(checkpoint=variant("shapes", lambda w: w.update(factors)))
    flat = {"model.visual_model.image_encoder.pos_embed": torch.zeros(64, 32)}
    assert "pos_embed is of shape [64, 32]" in line(checkpoint=variant("flat", lambda w: w.update(flat)))
    strange = tmp_path / "strange"
    tokenizer(["<a>", "<b>", "<c>", "<d>", "[SEG]"]).save_pretrained(strange)
    assert "token ids up to 263" in line(tokenizer=strange)
    ignorant = tmp_path / "ignorant"
    tokenizer([]).save_pretrained(ignorant)
    assert "knows no [SEG]" in line(tokenizer=ignorant)
    dora = tmp_path / "dora"
    dora.mkdir()
    (dora / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16, "use_dora": True}))
    assert "use_dora" in line(lora=dora)


def test_llava_classes_are_the_installed_ones():
    """The hand-made LLaVA above is transformers' own."""
    language, parts = language_model(), lisa_parts("mlp2x_gelu")
    config = LlavaConfig(
        text_config=language.config, vision_config=clip_config(), image_token_id=CLASSES - 1, image_seq_length=4
    )
    model = Llava(config).eval()
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(
        {k.removeprefix("vision_model."): v for k, v in clip().vision_model.state_dict().items()}
    )
    for index, name in ((0, "linear_1"), (2, "linear_2")):
        pair = {kind: parts[f"model.mm_projector.{index}.{kind}"] for kind in ("weight", "bias")}
        getattr(model.model.multi_modal_projector, name).load_state_dict(pair)
    ids, pixels = torch.tensor([[1, *[CLASSES - 1] * 4, 7]]), torch.randn(1, 3, 28, 28)
    by_hand = ids.masked_fill(ids == CLASSES - 1, CLASSES)
    expected = expected_logits(language, parts, "mlp2x_gelu", by_hand, pixels)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids, pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-5)
