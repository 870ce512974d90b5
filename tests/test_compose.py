"""Composing: parts that never met keep their weights to the bit; what is new is at the scale that the rest needs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from pyarrow.parquet import read_table
from transformers import (
    AutoTokenizer,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from datasets_scripts.build import main as build
from datasets_scripts.scenes import write_scenes
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.compose import convert
from modeling_cora.segmentation import segment

from .conftest import SHARED, TEXTS, noise_image
from .small_checkpoints import clip_config, randomised, refused, sam_folder, tokenizer
from .test_tiny_vit import WEIGHTS as MOBILE_SAM
from .test_tiny_vit import mobile_sam_model

DINOV2 = SHARED / "weights" / "dinov2-small"
QUERIES = [["the road", "Where is the tree, please?", "sky"], ["the vehicle with four wheels"]]
IMAGES = [noise_image(60, 40, 0), noise_image(30, 70, 1)]


def dinov2_folder(folder, old_layout=True) -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2, image_size=56, patch_size=14
    )
    model = randomised(Dinov2Model(config), 4)
    model.save_pretrained(folder, save_original_format=old_layout)
    normalisation = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return model


def llama_folder(folder, tied=True, norm=1.0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=259, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = randomised(LlamaForCausalLM(config), 5)
    torch.nn.init.constant_(model.model.norm.weight, norm)
    model.save_pretrained(folder)
    tokenizer([]).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(folder, DINOv2, LLaMA, SAM) with the three in `folder/vision`, `folder/language`, `folder/sam`, and a text."""
    root = tmp_path_factory.mktemp("parts")
    (root / "texts.txt").write_text("\n".join(TEXTS))
    return root, dinov2_folder(root / "vision"), llama_folder(root / "language"), sam_folder(root / "sam")


def composed(root, output, *more, language=True):
    parts = ["--language", root / "language"] if language else ["--texts", root / "texts.txt"]
    given = ["--sam", root / "sam", "--vision", root / "vision", *parts, "--output", output, *more]
    convert([str(word) for word in given])
    return loaded(output)


def loaded(folder):
    model, info = CoraForReasoningSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval(), CoraProcessor.from_pretrained(folder)


def assert_same(part, original):
    """Every weight to the bit, up to rows that were added."""
    states, expected = part.state_dict(), original.state_dict()
    assert states.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(states[name][: len(tensor)], tensor.to(states[name].dtype)), name


@pytest.mark.parametrize("old_layout", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_every_part_keeps_its_weights(tmp_path, parts, old_layout, tied):
    root, _, _, sam = parts
    shutil.copytree(root / "sam", tmp_path / "sam")
    vision = dinov2_folder(tmp_path / "vision", old_layout)
    language = llama_folder(tmp_path / "language", tied)
    model, processor = composed(tmp_path, tmp_path / "out")
    del vision.encoder.layer[2:]  # behind -2, the default, nobody looks
    assert_same(model.vlm.model.vision_tower, vision)
    assert_same(model.vlm.model.language_model, language.model)
    assert_same(model.sam, sam)
    assert torch.equal(model.vlm.lm_head.weight[:259], language.lm_head.weight)
    tables = model.vlm.lm_head.weight, model.get_input_embeddings().weight
    assert (tables[0] is tables[1]) == tied
    assert [len(table) for table in tables] == [261, 261]
    assert processor.tokenizer.convert_ids_to_tokens([259, 260]) == ["[SEG]", "<image>"]
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]


@torch.no_grad()
@pytest.mark.parametrize(("layer", "size"), [(2, 56), (-1, 28), (1, 84)])
def test_the_language_model_sees_the_named_hidden_state_of_every_patch(tmp_path, parts, layer, size):
    root, vision, _, _ = parts
    model, processor = composed(root, tmp_path / "out", "--vision-layer", layer, "--vision-size", size)
    inputs = processor(IMAGES, QUERIES)
    patches = (size // 14) ** 2
    assert (inputs["input_ids"] == model.config.vlm_config.image_token_id).sum(1).tolist() == [patches, patches]
    assert inputs["pixel_values"].shape == (2, 3, size, size)
    states = [vision.embeddings(inputs["pixel_values"])]
    for block in vision.encoder.layer:
        states.append(block(states[-1]))
    expected = model.vlm.model.multi_modal_projector(states[layer][:, 1:])
    found = model.vlm.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.stack(list(found)), expected)


@torch.no_grad()
def test_packed_equals_separate(tmp_path, parts):
    model, processor = composed(parts[0], tmp_path / "out")
    packed = model(**processor(IMAGES, QUERIES))
    alone = [model(**processor(i, q)) for i, qs in zip(IMAGES, QUERIES, strict=True) for q in qs]
    assert packed.pred_masks.abs().max() > 1e-2
    assert packed.seg_embeddings.std(0).mean() > 0.01  # queries differ, so a leak between them would show
    torch.testing.assert_close(packed.seg_embeddings, torch.cat([a.seg_embeddings for a in alone]))
    torch.testing.assert_close(packed.pred_masks, torch.cat([a.pred_masks for a in alone]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_first_layers_are_the_language_model(tmp_path, parts):
    root, _, language, _ = parts
    model, _ = composed(root, tmp_path / "out", "--language-layers", 2)
    ids = torch.tensor([[1, 20, 30, 40]])
    embeddings = language.model.embed_tokens(ids)
    rotation = language.model.rotary_emb(embeddings, torch.arange(4)[None])
    causal = torch.full((1, 1, 4, 4), torch.finfo(torch.float32).min).triu(1)
    for layer in language.model.layers[:2]:
        embeddings = layer(embeddings, attention_mask=causal, position_embeddings=rotation)
    found = model.vlm.model.language_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, language.model.norm(embeddings))


@pytest.mark.parametrize("norm", [0.1, 12.0])
def test_prompts_begin_at_the_scale_of_sams_own(tmp_path, parts, norm):
    """Whatever the scale of the language model's states is: 0.7, as of SAM's points and boxes."""
    root = parts[0]
    for part in ("sam", "vision"):
        shutil.copytree(root / part, tmp_path / part)
    llama_folder(tmp_path / "language", norm=norm)
    model, processor = composed(tmp_path, tmp_path / "out")
    embeddings = model(**processor(IMAGES, QUERIES)).seg_embeddings
    assert embeddings.square().mean().sqrt().item() == pytest.approx(0.7, rel=0.3)


def test_a_new_language_model_follows_the_seed_and_keeps_the_scale(tmp_path, parts):
    root = parts[0]
    made = [composed(root, tmp_path / str(k), "--seed", k // 2, language=False) for k in range(3)]
    states = [model.state_dict() for model, _ in made]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differ = {name.split(".")[0] for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert differ == {"vlm", "seg_projector"}
    assert not any(torch.equal(states[0][n], states[2][n]) for n in states[0] if "language_model.layers.0.mlp" in n)
    model, processor = made[0]
    assert model.config.get_text_config().num_hidden_layers == 4
    assert len(processor.tokenizer.encode("the road", add_special_tokens=False)) == 2  # words of the texts are tokens
    for name, parameter in model.vlm.model.language_model.layers.named_parameters():
        if parameter.ndim == 2:  # layers keep the scale of their input; what attention carries is doubled
            gain = 2 if "v_proj" in name or "o_proj" in name else 1
            assert parameter.std().item() == pytest.approx(gain * parameter.shape[1] ** -0.5, rel=0.05), name


def test_built_instructions_are_texts_too(tmp_path, parts):
    write_scenes(tmp_path / "drawn", labelled=2, unlabelled=0, val=1, size=(64, 96), progress=False)
    built = tmp_path / "built"
    build(["folder", "--root", str(tmp_path / "drawn"), "--out", str(built), "--shard_size", "1"])
    shards = sorted(built.glob("instructions/train-*.parquet"))
    rows = [row for path in shards for row in read_table(path).to_pylist()]
    assert len(shards) == 2 and rows
    (tmp_path / "lines.txt").write_text("\n".join(q for row in rows for q in (row["query"], *row["rephrasings"])))
    towers = ("--sam", parts[0] / "sam", "--vision", parts[0] / "vision")
    for name, texts in (("tables", built), ("lines", tmp_path / "lines.txt")):
        convert([str(word) for word in (*towers, "--texts", texts, "--output", tmp_path / name)])
    tables, lines = ((tmp_path / name / "tokenizer.json").read_text() for name in ("tables", "lines"))
    assert tables == lines


def test_generated_answers_end_with_the_tokenizers_own_end(tmp_path, parts):
    root = tmp_path / "parts"
    shutil.copytree(parts[0], root)
    words = AutoTokenizer.from_pretrained(root / "language")
    words.eos_token = "<unk>"
    words.save_pretrained(root / "language")
    _, processor = composed(root, tmp_path / "out")
    assert processor(IMAGES[0], "the road")["input_ids"][0, -1] == processor.tokenizer.eos_token_id == 0


def test_a_clip_is_a_vision_tower_too(tmp_path, parts):
    root = tmp_path / "parts"
    shutil.copytree(parts[0], root)
    shutil.rmtree(root / "vision")
    clip = randomised(CLIPVisionModel(clip_config()), 6)
    clip.save_pretrained(root / "vision")
    model, _ = composed(root, tmp_path / "out")
    tower = getattr(clip, "vision_model", clip)
    del tower.encoder.layers[-1]
    assert_same(model.vlm.model.vision_tower, clip)


def test_parts_and_options_that_do_not_fit_are_refused(tmp_path, parts, capsys):
    root = parts[0]
    (tmp_path / "x").mkdir()
    output = tmp_path / "x" / "out"
    towers = ("--sam", root / "sam", "--vision", root / "vision")
    whole = (*towers, "--language", root / "language")

    def told(*arguments):
        return refused(convert, capsys, output, *arguments)

    assert "--texts: not given" in told(*towers)
    assert "leave one of them out" in told(*whole, "--texts", root / "texts.txt")
    assert "nowhere.txt: cannot be read" in told(*towers, "--texts", tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "holds no line" in told(*towers, "--texts", tmp_path / "empty.txt")
    assert "holds no instructions/train-*.parquet" in told(*towers, "--texts", tmp_path)
    (tmp_path / "instructions").mkdir()
    (tmp_path / "instructions/train-0.parquet").write_text("no table")
    assert "holds no tables of instructions" in told(*towers, "--texts", tmp_path)
    assert "language has 3" in told(*whole, "--language-layers", 4)
    assert "is less than 1" in told(*whole, "--language-layers", 0)
    assert "--vision-size 30: is not a multiple of 14" in told(*whole, "--vision-size", 30)
    for layer in (4, 0, -4):
        assert f"--vision-layer {layer}: is none of 1 to 3 or -3 to -1" in told(*whole, "--vision-layer", layer)
    assert "known are clip_vision_model, dinov2" in told("--sam", root / "sam", "--vision", root / "sam", *whole[4:])
    assert "only 'llama'" in told(*towers, "--language", root / "vision")
    assert "is no SAM" in told("--sam", root / "vision", *whole[2:])
    shutil.copytree(root / "vision", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes((root / "vision/model.safetensors").read_bytes()[:-99])
    assert "cut short" in told("--sam", root / "sam", "--vision", tmp_path / "cut", *whole[4:])


@torch.no_grad()
def test_the_real_parts_keep_their_weights_and_answer(tmp_path):
    """MobileSAM and DINOv2-S, where they lie: as the other readers of these files have them."""
    for weights in (MOBILE_SAM, DINOV2):
        if not weights.exists():
            pytest.skip(f"no weights at {weights}")
    sam = mobile_sam_model()
    sam.save_pretrained(tmp_path / "sam")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    options = f"--vision-layer 9 --vision-size 168 --texts {tmp_path}/texts.txt --output {tmp_path}/out"
    convert(["--sam", str(tmp_path / "sam"), "--vision", str(DINOV2), *options.split()])
    model, processor = loaded(tmp_path / "out")
    vision = Dinov2Model.from_pretrained(DINOV2, dtype=torch.float32)
    del vision.encoder.layer[9:]
    assert_same(model.vlm.model.vision_tower, vision)
    assert_same(model.sam, sam)
    answer = segment(model, processor, noise_image(96, 72), ["the road", "sky"])
    assert answer.masks.shape == (2, 72, 96)
    inputs = processor(noise_image(96, 72), "the road")
    assert (inputs["input_ids"] == model.config.vlm_config.image_token_id).sum() == 144
