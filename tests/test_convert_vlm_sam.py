"""The converter of LLaVA and SAM: what comes out computes what went in, and bad input leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor, conversion
from modeling_cora.conversion import load_tokenizer
from modeling_cora.convert_vlm_sam import convert
from modeling_cora.tiny_vit import TinyVitEncoder

from .conftest import disk_for, noise_image
from .small_checkpoints import (
    llava_folder,
    original_sam,
    randomised,
    refused,
    sam_folder,
    tokenizer,
)

LM_HEAD, EMBEDDING = "vlm.lm_head.weight", "vlm.model.language_model.embed_tokens.weight"
NORM = "language_model.model.norm.weight"  # in the layout of the Hub


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(folder, the LLaVA in it, the SAM in it): `folder/vlm` and `folder/sam`."""
    root = tmp_path_factory.mktemp("parts")
    return root, llava_folder(root / "vlm"), sam_folder(root / "sam")


def converted(root, output, *more):
    convert(["--vlm", str(root / "vlm"), "--sam", str(root / "sam"), "--output", str(output), *map(str, more)])
    return loaded(output)


def loaded(output):
    model, info = CoraForReasoningSegmentation.from_pretrained(output, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def vlm_logits(vlm):
    ids = torch.tensor([[1, 20, 21, *[259] * 4, 30, 31, 32]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    return vlm(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits


def sam_inputs():
    generator = torch.Generator().manual_seed(6)
    return torch.randn(1, 3, 64, 64, generator=generator), torch.tensor([[[[12.0, 40.0], [50.0, 9.0]]]])


@torch.no_grad()
def sam_masks(sam):
    pixels, points = sam_inputs()
    return sam(pixel_values=pixels, input_points=points, input_labels=torch.tensor([[[1, 0]]])).pred_masks


def assert_same(part, original):
    """Every weight to the bit, up to rows that were added."""
    states, expected = part.state_dict(), original.state_dict()
    assert states.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(states[name][: len(tensor)], tensor), name


@pytest.mark.parametrize("layout", ["hub", "hub with vision_model", "5.23", "5.23 sharded", "bin", "bin sharded"])
def test_every_layout_computes_what_it_did(tmp_path, parts, layout):
    root, vlm, sam = parts
    folder = tmp_path / "vlm"
    shard = "40KB" if "sharded" in layout else "5GB"
    llava_folder(folder, old_layout="hub" in layout or "bin" in layout, shard=shard)
    if layout == "hub with vision_model":
        weights = load_file(folder / "model.safetensors")
        weights = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in weights.items()}
        weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        weights["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        save_file(weights, folder / "model.safetensors")
    if "bin" in layout:
        for file in folder.glob("*.safetensors"):
            torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
            file.unlink()
        if (index := folder / "model.safetensors.index.json").exists():
            listed = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            (folder / "pytorch_model.bin.index.json").write_text(listed)
            index.unlink()
    assert len([*folder.glob("*.bin"), *folder.glob("*.safetensors")]) > (3 if "sharded" in layout else 0)
    shutil.copytree(root / "sam", tmp_path / "sam")
    model = converted(tmp_path, tmp_path / "out")
    assert_same(model.vlm, vlm)
    assert_same(model.sam, sam)
    torch.testing.assert_close(vlm_logits(model.vlm)[..., :260], vlm_logits(vlm))
    torch.testing.assert_close(sam_masks(model.sam), sam_masks(sam))


@pytest.mark.parametrize("zipped", [True, False])
@torch.no_grad()
def test_segment_anythings_own_file_computes_what_it_did(tmp_path, parts, zipped):
    """`zipped` as torch saves since 1.6; older files cannot be mapped."""
    root, _, _ = parts
    sam = original_sam()
    torch.save(sam.state_dict(), tmp_path / "sam.pth", _use_new_zipfile_serialization=zipped)
    shutil.copytree(root / "vlm", tmp_path / "vlm")
    convert(f"--vlm {tmp_path}/vlm --sam {tmp_path}/sam.pth --output {tmp_path}/out".split())
    model = loaded(tmp_path / "out").sam
    pixels, points = sam_inputs()
    embedding = sam.image_encoder(pixels)
    torch.testing.assert_close(model.get_image_embeddings(pixels), embedding, rtol=1e-4, atol=1e-5)
    sparse, dense = sam.prompt_encoder(points=(points[0], torch.tensor([[1, 0]])), boxes=None, masks=None)
    for multimask in (False, True):
        expected = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask)
        output = model(
            image_embeddings=embedding,
            input_points=points,
            input_labels=torch.tensor([[[1, 0]]]),
            multimask_output=multimask,
        )
        assert expected[0].abs().max() > 1e-2
        torch.testing.assert_close(output.pred_masks[0], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.iou_scores[0], expected[1], rtol=1e-4, atol=1e-5)


def test_folder_is_what_save_pretrained_writes(tmp_path, parts):
    root, _, _ = parts
    model = converted(root, tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    CoraProcessor.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {file.name for file in (tmp_path / "again").iterdir()}
    assert "generation_config.json" in names
    (tmp_path / "plain").write_text("")
    (mode,) = {file.stat().st_mode for file in [*(tmp_path / "out").iterdir(), tmp_path / "plain"]}
    assert mode & 0o077  # or the check is none: others may read nothing here


def test_tables_that_share_memory_are_written_both_where_the_model_ties_none(tmp_path, parts):
    """As in a `.bin` of a model that was tied once; a view of another tensor is one too."""
    root, _, _ = parts
    llava_folder(tmp_path / "vlm", rows=320)
    weights = load_file(tmp_path / "vlm/model.safetensors")
    (tmp_path / "vlm/model.safetensors").unlink()
    table = torch.randn(320 * 32 + 32)
    for name in ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"):
        weights[name] = table[32:].view(320, 32)
    weights[NORM] = table[:32]
    weights["multi_modal_projector.linear_1.bias"] = torch.tensor(0.5).expand(32)
    torch.save(weights, tmp_path / "vlm/pytorch_model.bin")
    shutil.copytree(root / "sam", tmp_path / "sam")
    states = converted(tmp_path, tmp_path / "out", "--max-shard-size", "50KB").state_dict()
    assert len([*(tmp_path / "out").glob("*.safetensors")]) > 3
    assert all(torch.equal(states[name], table[32:].view(320, 32)) for name in (LM_HEAD, EMBEDDING))
    assert torch.equal(states["vlm.model.language_model.norm.weight"], table[:32])
    assert torch.equal(states["vlm.model.multi_modal_projector.linear_1.bias"], torch.full((32,), 0.5))


def test_seg_gets_a_row_only_where_there_is_none(tmp_path, parts):
    root, vlm, _ = parts
    grown = converted(root, tmp_path / "grown").state_dict()
    old = {LM_HEAD: vlm.lm_head.weight, EMBEDDING: vlm.get_input_embeddings().weight}
    for name, table in old.items():
        assert grown[name].shape == (261, 32)
        assert torch.equal(grown[name][:260], table)
        torch.testing.assert_close(grown[name][260], table.mean(0))
    padded = llava_folder(tmp_path / "vlm", rows=320)
    shutil.copytree(root / "sam", tmp_path / "sam")
    model = converted(tmp_path, tmp_path / "kept")
    assert model.config.seg_token_id == 260
    assert torch.equal(model.state_dict()[LM_HEAD], padded.lm_head.weight)
    assert torch.equal(model.state_dict()[EMBEDDING], padded.get_input_embeddings().weight)


def test_answers_end_with_the_tokenizers_own_token(tmp_path, parts):
    root = tmp_path / "other"
    shutil.copytree(parts[0], root)
    other = AutoTokenizer.from_pretrained(root / "vlm")
    other.eos_token = "<unk>"
    other.save_pretrained(root / "vlm")
    converted(root, tmp_path / "out")
    processor = CoraProcessor.from_pretrained(tmp_path / "out")
    ids = processor(noise_image(30, 20), "the road")["labels"]
    learned = ids[ids != -100].tolist()
    assert learned[-1] == processor.tokenizer.eos_token_id == other.convert_tokens_to_ids("<unk>")
    assert "</s>" not in processor.tokenizer.decode(learned)


def test_a_tokenizer_of_sentencepiece_is_read(tmp_path, parts):
    """LISA's and older LLaVA's folders have no other file of it."""
    root = tmp_path / "old"
    shutil.copytree(parts[0], root)
    (root / "vlm/tokenizer.json").unlink()
    texts = iter(["the road is grey", "a car on the road", "the tree left of the car"] * 20)
    stored = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=stored, vocab_size=300, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (root / "vlm/tokenizer.model").write_bytes(stored.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=stored.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (root / "vlm/tokenizer_config.json").write_text(json.dumps(settings))
    read = load_tokenizer(root / "vlm")
    expected = [*pieces.encode("a car"), pieces.piece_to_id("</s>"), *pieces.encode("on the road")]
    assert read.encode("a car</s>on the road", add_special_tokens=False) == expected
    read.save_pretrained(root / "vlm")
    again = AutoTokenizer.from_pretrained(root / "vlm")  # as a processor's is
    assert again.encode("a car</s>on the road", add_special_tokens=False) == expected


def test_only_the_projection_is_new_and_it_follows_the_seed(tmp_path, parts):
    root, _, _ = parts
    states = [converted(root, tmp_path / str(k), "--seed", seed).state_dict() for k, seed in enumerate([3, 3, 4])]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differ = {name for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert differ == {"seg_projector.linear_1.weight", "seg_projector.linear_2.weight"}
    # a prompt's scale is not that of the states, which the final norm's weights give
    scale = states[0]["vlm.model.language_model.norm.weight"].square().mean().sqrt()
    weight = states[0]["seg_projector.linear_1.weight"] * scale
    assert weight.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_converted_model_segments_and_shards_and_casts(tmp_path, parts):
    root, vlm, _ = parts
    model = converted(root, tmp_path / "out", "--dtype", "bfloat16", "--max-shard-size", "50KB")
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for name in files:
        assert sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / name).values()) <= 50_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(model.vlm.lm_head.weight[:260], vlm.lm_head.weight.bfloat16())
    processor = CoraProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(noise_image(40, 20), ["the road", "[SEG] <image> tree"])
    assert (inputs["input_ids"] == 260).sum() == 2 and (inputs["input_ids"] == 259).sum() == 4
    with torch.no_grad():
        output = model(**inputs)
    assert output.pred_masks.shape == (2, 32, 32) and torch.isfinite(output.loss)


def test_clip_preprocessing_is_letterbox_or_centre_crop(tmp_path, parts):
    root, _, _ = parts
    image = np.full((56, 112, 3), 200, dtype=np.uint8)
    image[:, :28] = image[:, -28:] = 0  # what a centre crop does not see
    seen = {}
    for choice in ("letterbox", "centre_crop"):
        converted(root, tmp_path / choice, "--clip-preprocessing", choice)
        processor = CoraProcessor.from_pretrained(tmp_path / choice).image_processor
        pixels = processor([torch.from_numpy(image).permute(2, 0, 1)], return_tensors="pt")["pixel_values"][0, 0]
        seen[choice] = pixels * processor.image_std[0] + processor.image_mean[0]
    assert seen["centre_crop"].shape == seen["letterbox"].shape == (28, 28)
    inner = seen["centre_crop"][:, 2:-2]  # bicubic interpolation overshoots beside the edge
    torch.testing.assert_close(inner, torch.full((28, 24), 200 / 255), rtol=0, atol=0.01)
    assert seen["letterbox"][14, 0] < 0.02  # the black edge, in the middle row
    torch.testing.assert_close(seen["letterbox"][0], torch.full((28,), 0.48), rtol=0, atol=0.01)  # CLIP's mean


class Harmful:
    """What a malicious checkpoint holds: a call that unpickling would make."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def edited(root, target, change):
    """A copy of the LLaVA folder with other weights."""
    shutil.copytree(root / "vlm", target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.update({"language_model.model.extra.weight": w[NORM].clone()}), "extra.weight"),
        (
            lambda w: w.update({"language_model.model.layers.7.mlp.up_proj.weight": torch.zeros(64, 32)}),
            "1 unexpected key: vlm.model.language_model.layers.7.mlp.up_proj.weight",
        ),
        (lambda w: w.pop(NORM), "1 missing key: vlm.model.language_model.norm.weight"),
        (lambda w: [w.pop(name) for name in list(w) if "vision_tower" in name], "39 missing keys: "),
        (lambda w: w.update({NORM: torch.zeros(31)}), "[31] instead of [32]"),
        (lambda w: w.update({"lm_head.weight": w["language_model.lm_head.weight"].clone()}), "second key"),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path, parts, capsys, change, told):
    root, _, _ = parts
    edited(root, tmp_path / "vlm", change)
    line = refused(convert, capsys, tmp_path / "out", "--vlm", tmp_path / "vlm", "--sam", root / "sam")
    assert told in line


def test_checkpoints_that_cannot_be_read_are_refused(tmp_path, parts, capsys):
    root, _, _ = parts
    whole = load_file(root / "vlm" / "model.safetensors")
    (tmp_path / "x").mkdir()
    output = tmp_path / "x" / "out"

    def folder(name):
        shutil.copytree(root / "vlm", tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        return tmp_path / name

    cut = folder("cut")
    (cut / "model.safetensors").write_bytes((root / "vlm" / "model.safetensors").read_bytes()[:-1000])
    assert "cut short" in refused(convert, capsys, output, "--vlm", cut, "--sam", root / "sam")
    cut_bin = folder("cut_bin")
    torch.save(whole, cut_bin / "pytorch_model.bin")
    content = (cut_bin / "pytorch_model.bin").read_bytes()
    (cut_bin / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    assert "cut short" in refused(convert, capsys, output, "--vlm", cut_bin, "--sam", root / "sam")
    torch.save({"w": Harmful()}, tmp_path / "code.pth")
    line = refused(convert, capsys, output, "--vlm", root / "vlm", "--sam", tmp_path / "code.pth")
    assert "refused" in line and "mkdir" in line
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    assert "'epoch' is int" in refused(convert, capsys, output, "--vlm", root / "vlm", "--sam", tmp_path / "other.pth")
    lost = folder("lost")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (lost / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(whole, lost / "model-00001-of-00002.safetensors")
    assert "00002" in refused(convert, capsys, output, "--vlm", lost, "--sam", root / "sam")
    twice = folder("twice")
    for number in (1, 2):
        save_file({NORM: torch.zeros(32)}, twice / f"model-{number}.safetensors")
    assert f"model-2.safetensors: {NORM} is in another file" in refused(
        convert, capsys, output, "--vlm", twice, "--sam", root / "sam"
    )
    small = folder("small")
    save_file({**whole, NORM: whole[NORM].to(torch.float8_e4m3fn)}, small / "model.safetensors")
    assert f"{NORM} is float8_e4m3fn; 16 bits or more" in refused(
        convert, capsys, output, "--vlm", small, "--sam", root / "sam"
    )


def test_folders_and_options_that_do_not_fit_are_refused(tmp_path, parts, capsys):
    root, _, _ = parts
    (tmp_path / "x").mkdir()
    output = tmp_path / "x" / "out"
    right = ("--vlm", root / "vlm", "--sam", root / "sam")
    assert "no such" in refused(convert, capsys, output, "--vlm", "/nowhere/at/all", "--sam", root / "sam")
    assert "is no SAM" in refused(convert, capsys, output, "--vlm", root / "vlm", "--sam", root / "vlm")
    assert "is of model_type 'sam'; known are" in refused(
        convert, capsys, output, "--vlm", root / "sam", "--sam", root / "sam"
    )
    assert "--max-shard-size" in refused(convert, capsys, output, *right, "--max-shard-size", "many")
    assert "--help" in refused(convert, capsys, output, "--vlm", root / "vlm")
    (output / "mine").mkdir(parents=True)
    assert "is not empty" in refused(convert, capsys, output, *right)
    shutil.copytree(root / "vlm", tmp_path / "other")
    tokenizer(["<pad>", "<image>"]).save_pretrained(tmp_path / "other")
    assert "<image> is token 260" in refused(
        convert, capsys, tmp_path / "x" / "new", "--vlm", tmp_path / "other", "--sam", root / "sam"
    )


def test_a_full_disk_or_an_interruption_leaves_nothing(tmp_path, parts, capsys, monkeypatch):
    root, _, _ = parts
    given = ("--vlm", root / "vlm", "--sam", root / "sam")
    with disk_for(100_000):  # the weights take 535 KB
        assert "File too large" in refused(convert, capsys, tmp_path / "out", *given)

    def interrupted(folder, *_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "write_shards", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert([*map(str, given), "--output", str(tmp_path / "out")])
    assert not [*tmp_path.iterdir()]


UPSTREAM = (  # of our names, those in mobile_sam/modeling/tiny_vit_sam.py
    (r"stem\.0\.(.+)", r"patch_embed.seq.0.\1"),
    (r"stem\.1\.(.+)", r"patch_embed.seq.2.\1"),
    (r"stages\.(\d)\.(\d)\.(.+)", r"layers.\1.blocks.\2.\3"),
    (r"downsamples\.(\d)\.(.+)", r"layers.\1.downsample.\2"),
    (r"neck\.conv1\.(.+)", r"neck.0.\1"),
    (r"neck\.layer_norm1\.(.+)", r"neck.1.\1"),
    (r"neck\.conv2\.(.+)", r"neck.2.\1"),
    (r"neck\.layer_norm2\.(.+)", r"neck.3.\1"),
)


@torch.no_grad()
def test_mobile_sams_file_computes_what_it_did(tmp_path, parts):
    """MobileSAM's names, every convolution with its batch norm; the truth is torch's own BatchNorm2d behind it."""
    root, _, _ = parts
    reference = randomised(TinyVitEncoder(16), 4).eval()
    checkpoint = {n: t for n, t in original_sam().state_dict().items() if not n.startswith("image_encoder.")}
    generator = torch.Generator().manual_seed(7)
    for name, module in list(reference.named_modules()):
        pattern, new = next((pair for pair in UPSTREAM if re.fullmatch(pair[0], f"{name}.x")), (None, None))
        if pattern is None or not list(module.parameters(recurse=False)):
            continue
        upstream = "image_encoder." + re.sub(pattern, new, f"{name}.x").removesuffix(".x")
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            norm = torch.nn.BatchNorm2d(module.out_channels).eval()
            for tensor in (norm.weight, norm.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (norm.bias, norm.running_mean):
                tensor.normal_(0, 0.3, generator=generator)
            module.bias = None
            checkpoint[f"{upstream}.c.weight"] = module.weight
            checkpoint |= {f"{upstream}.bn.{key}": value for key, value in norm.state_dict().items()}
            module.register_forward_hook(lambda _, __, output, norm=norm: norm(output))
        else:
            checkpoint |= {f"{upstream}.{key}": value for key, value in module.named_parameters(recurse=False)}
    checkpoint["image_encoder.head.weight"] = torch.zeros(1000, 320)
    torch.save(checkpoint, tmp_path / "mobile_sam.pt")
    shutil.copytree(root / "vlm", tmp_path / "vlm")
    convert(f"--vlm {tmp_path}/vlm --sam {tmp_path}/mobile_sam.pt --output {tmp_path}/out".split())
    model = loaded(tmp_path / "out")
    assert model.config.sam_encoder == "tiny_vit"
    pixels = torch.randn(1, 3, 224, 224, generator=generator)
    expected = reference(pixels).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(model.get_image_embeddings(pixels), expected, rtol=1e-3, atol=1e-4)
