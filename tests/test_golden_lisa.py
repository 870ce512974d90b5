"""LISA's own numbers (`LISAForCausalLM` on a small random checkpoint): ours, after the converter, must be the same.

The stored conversations of one image differ in the text before the image too, so packed they share the first token
alone, and each branch holds a copy of the image.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.checkpoint_keys import LISA, rename

from .conftest import SHARED

FILE = SHARED / "golden" / "lisa_tiny" / "lisa_tiny.safetensors"
IMAGE = -200
CLOSE = dict(rtol=1e-4, atol=1e-5)

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no stored results of LISA's own code at {FILE}")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with safe_open(FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def sizes() -> dict:
    with safe_open(FILE, framework="pt") as file:
        metadata = file.metadata()
    return {**json.loads(metadata["config"]), "ids": json.loads(metadata["token_ids"])}


def lisa_folder(folder: Path, weights: dict[str, torch.Tensor], sizes: dict) -> Path:
    """What LISA saves: weights, LLaVA's old configuration, a tokenizer that knows [SEG] as an ordinary token."""
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "llava",
        "architectures": ["LISAForCausalLM"],
        **sizes["llama"],
        "vocab_size": sizes["ids"]["V"],
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": True,
        "out_dim": sizes["sam"]["out_chans"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    ids = sizes["ids"]
    names = {0: "<unk>", 1: "<s>", 2: "</s>", ids["seg"]: "[SEG]", ids["ims"]: "<im_start>", ids["ime"]: "<im_end>"}
    words = {names.get(index, f"w{index}"): index for index in range(ids["V"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.add_tokens(["[SEG]", "<im_start>", "<im_end>"])
    tokenizer.save_pretrained(folder)
    return folder


def clip_folder(folder: Path, sizes: dict, weights: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **sizes["clip"]}))
    if weights:
        save_file(weights, folder / "model.safetensors")
    return folder


def convert(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "modeling_cora.convert_lisa", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])


@pytest.fixture(scope="module")
def converted(tmp_path_factory, golden, sizes):
    """(model in train mode, processor), through the command line and `from_pretrained`."""
    root = tmp_path_factory.mktemp("lisa")
    weights = {name[2:]: tensor for name, tensor in golden.items() if name.startswith("w.")}
    folder = lisa_folder(root / "lisa", weights, sizes)
    tower = clip_folder(root / "clip", sizes)
    done = convert(
        *("--checkpoint", folder, "--tokenizer", folder, "--vision-tower", tower, "--output", root / "cora"),
        *("--sam-decoder-heads", sizes["sam"]["dec_heads"]),
    )
    assert done.returncode == 0, done.stderr
    model, info = CoraForReasoningSegmentation.from_pretrained(root / "cora", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.train(), CoraProcessor.from_pretrained(root / "cora")


def expanded(model, tokens: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """LISA's one placeholder becomes as many image tokens as there are patches."""
    place, count = tokens.index(IMAGE), model.config.vlm_config.image_seq_length
    image = [model.config.vlm_config.image_token_id] * count
    return tokens[:place] + image + tokens[place + 1 :], labels[:place] + [-100] * count + labels[place + 1 :]


def conversations(model, golden, case) -> list[list[tuple[list[int], list[int]]]]:
    """Per image, (token ids, labels) of each conversation without its padding."""
    ids = golden[f"{case}.in.input_ids"]
    keep = golden.get(f"{case}.in.attention_masks", torch.ones_like(ids)).bool()
    labels = golden.get(f"{case}.in.labels", torch.full_like(ids, -100))
    rows = [expanded(model, ids[row][keep[row]].tolist(), labels[row][keep[row]].tolist()) for row in range(len(ids))]
    offset = golden.get(f"{case}.in.offset", torch.tensor([0, len(rows)])).tolist()
    return [rows[start:end] for start, end in itertools.pairwise(offset)]


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


def separate_inputs(model, golden, case) -> dict:
    """One row per conversation; the prefix reaches to the end of the image."""
    groups = conversations(model, golden, case)
    image_index = golden[f"{case}.in.image_index"].tolist()
    images = [image_index[i] for i, group in enumerate(groups) for _ in group]
    rows = [row for group in groups for row in group]
    image_token = model.config.vlm_config.image_token_id
    prefix = [len(ids) - ids[::-1].index(image_token) for ids, _ in rows]
    branch = [[0] * n + [1] * (len(ids) - n) for n, (ids, _) in zip(prefix, rows, strict=True)]
    return {
        "input_ids": padded([ids for ids, _ in rows], 0),
        "labels": padded([labels for _, labels in rows], -100),
        "branch_ids": padded(branch, -1),
        "pixel_values": golden["in.images_clip"][images],
        "sam_pixel_values": golden["in.images"][images],
        "reshaped_input_sizes": golden["in.resize_list"][images],
    }


def packed_inputs(model, golden, case) -> dict:
    """One row per image, one branch per conversation."""
    groups = conversations(model, golden, case)
    image_index = golden[f"{case}.in.image_index"].tolist()
    assert len({ids[0] for group in groups for ids, _ in group}) == 1
    ids = [group[0][0][:1] + [token for row, _ in group for token in row[1:]] for group in groups]
    labels = [[-100] + [label for _, row in group for label in row[1:]] for group in groups]
    branch = [[0] + [k for k, (row, _) in enumerate(group, start=1) for _ in row[1:]] for group in groups]
    copies = [image_index[i] for i, group in enumerate(groups) for _ in group]
    return {
        "input_ids": padded(ids, 0),
        "labels": padded(labels, -100),
        "branch_ids": padded(branch, -1),
        "pixel_values": golden["in.images_clip"][copies],
        "sam_pixel_values": golden["in.images"][image_index],
        "reshaped_input_sizes": golden["in.resize_list"][image_index],
    }


def mask_labels(golden, case, inputs) -> list[torch.Tensor]:
    """Per image; per conversation where each has a row of its own (there LISA has one mask per [SEG], in order)."""
    offset = golden[f"{case}.in.offset"].tolist()
    masks = [golden[f"{case}.in.masks_list_{i}"] for i in range(len(offset) - 1)]
    if len(inputs["input_ids"]) == len(masks):
        return masks
    result = []
    for i, (start, end) in enumerate(itertools.pairwise(offset)):
        assert end - start == len(masks[i]) or end - start == 1
        result += list(masks[i].split(1)) if end - start > 1 else [masks[i]]
    return result


def all_of(golden, case, name) -> list[torch.Tensor]:
    images = len(golden[f"{case}.in.image_index"])
    return [golden[f"{case}.out.{name}_{i}"] for i in range(images)]


@pytest.mark.parametrize("inputs_of", [separate_inputs, packed_inputs])
@pytest.mark.parametrize("case", ["a", "b", "d", "f"])
def test_losses_are_lisas(converted, golden, case, inputs_of):
    model, _ = converted
    inputs = inputs_of(model, golden, case)
    output = model(**inputs, mask_labels=mask_labels(golden, case, inputs))
    config = model.config
    weighted = {
        "ce_loss": config.lm_loss_weight * output.lm_loss,
        "mask_bce_loss": config.bce_loss_weight * output.bce_loss,
        "mask_dice_loss": config.dice_loss_weight * output.dice_loss,
        "loss": output.loss,
    }
    for name, value in weighted.items():
        torch.testing.assert_close(value.detach(), golden[f"{case}.out.{name}"][0], rtol=1e-5, atol=0, msg=name)


@pytest.mark.parametrize("inputs_of", [separate_inputs, packed_inputs])
@pytest.mark.parametrize("case", ["a", "b", "c", "d", "f"])
def test_embeddings_and_masks_are_lisas(converted, golden, case, inputs_of):
    model, processor = converted
    inputs = inputs_of(model, golden, case)
    with torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(output.seg_embeddings, torch.cat(all_of(golden, case, "seg_embeddings")), **CLOSE)
    low_res, iou = torch.cat(all_of(golden, case, "low_res_masks")), torch.cat(all_of(golden, case, "iou"))
    torch.testing.assert_close(output.pred_masks, low_res[:, 0], **CLOSE)
    torch.testing.assert_close(output.iou_scores, iou[:, 0], **CLOSE)
    if f"{case}.out.pred_masks_0" in golden and inputs_of is packed_inputs:
        original = golden["in.original_size"][golden[f"{case}.in.image_index"]]
        masks = processor.post_process_masks(
            output.pred_masks, output.seg_batch_index, original, inputs["reshaped_input_sizes"], threshold=None
        )
        for ours, lisas in zip(masks, all_of(golden, case, "pred_masks"), strict=True):
            torch.testing.assert_close(ours, lisas, **CLOSE)


@pytest.mark.parametrize("case", ["a", "b", "c", "d", "f"])
def test_logits_are_lisas(converted, golden, case):
    """Over LISA's classes and no other, though the tables have a row for `<image>`."""
    model, _ = converted
    inputs = separate_inputs(model, golden, case)
    with torch.no_grad():
        logits = model(**inputs, output_logits=True).logits
    assert logits.shape[-1] == golden["w.lm_head.weight"].shape[0]
    assert len(model.get_output_embeddings().weight) > logits.shape[-1]
    expected = golden.get(f"{case}.out.logits", golden.get(f"{case}.out.logits_tail"))
    logits = logits[:, -expected.shape[1] :]
    real = inputs["branch_ids"][:, -expected.shape[1] :] >= 0
    torch.testing.assert_close(logits[real], expected[real], **CLOSE)


def test_logits_of_packed_conversations_are_lisas(converted, golden):
    model, _ = converted
    inputs = packed_inputs(model, golden, "b")
    with torch.no_grad():
        logits = model(**inputs, output_logits=True).logits
    separate = separate_inputs(model, golden, "b")
    tail = golden["b.out.logits_tail"].shape[1]
    row = 0
    for image in range(len(inputs["input_ids"])):
        for branch in range(1, int(inputs["branch_ids"][image].max()) + 1):
            ours = logits[image][inputs["branch_ids"][image] == branch]
            real = separate["branch_ids"][row, -tail:] >= 0
            expected = golden["b.out.logits_tail"][row][real]
            torch.testing.assert_close(ours[-len(expected) :], expected, **CLOSE)
            row += 1
    assert row == len(golden["b.out.logits_tail"])


@pytest.mark.parametrize("inputs_of", [separate_inputs, packed_inputs])
def test_gradients_are_lisas(converted, golden, inputs_of):
    model, _ = converted
    model.zero_grad()
    inputs = inputs_of(model, golden, "b")
    model(**inputs, mask_labels=mask_labels(golden, "b", inputs)).loss.backward()
    ours = {
        "lm_head.weight": model.get_output_embeddings().weight,
        "model.embed_tokens.weight": model.get_input_embeddings().weight,
        "model.text_hidden_fcs.0.0.weight": model.seg_projector.linear_1.weight,
        "model.text_hidden_fcs.0.0.bias": model.seg_projector.linear_1.bias,
        "model.text_hidden_fcs.0.2.weight": model.seg_projector.linear_2.weight,
        "model.text_hidden_fcs.0.2.bias": model.seg_projector.linear_2.bias,
    }
    for name, parameter in ours.items():
        expected = golden[f"b.grad.{name}"]
        gradient = parameter.grad[: len(expected)]
        assert not parameter.grad[len(expected) :].any(), name  # the row of <image> learns nothing
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item(), msg=name)
    parameters = dict(model.named_parameters())
    names = [name.removeprefix("b.gradnorm.") for name in golden if name.startswith("b.gradnorm.")]
    norms = {name: golden[f"b.gradnorm.{name}"][0] for name in names}
    assert sum(".mask_decoder." in name for name in names) > 50
    for name, norm in norms.items():
        gradient = parameters[rename(name, LISA)].grad
        # a part that was not used has a gradient of None here; the bias of a key has one of rounding alone
        ours = torch.tensor(0.0) if gradient is None else gradient.norm()
        torch.testing.assert_close(ours, norm, rtol=1e-4, atol=1e-7, msg=f"{name}: {ours} and {norm}")
    model.zero_grad()


def test_generation_is_lisas(converted, golden):
    model, processor = converted
    inputs = separate_inputs(model, golden, "e")
    del inputs["labels"]
    reshaped = inputs.pop("reshaped_input_sizes")
    expected = golden["e.out.output_ids"][0].tolist()
    new = len(expected) - golden["e.in.input_ids"].shape[1]
    output = model.eval().generate(**inputs, max_new_tokens=new, do_sample=False)
    model.train()
    assert output.sequences[0].tolist() == expanded(model, expected, expected)[0]
    torch.testing.assert_close(output.seg_embeddings, golden["e.out.seg_embeddings_0"], **CLOSE)
    torch.testing.assert_close(output.pred_masks, golden["e.out.low_res_masks_0"][:, 0], **CLOSE)
    original = golden["in.original_size"][golden["e.in.image_index"]]
    masks = processor.post_process_masks(output.pred_masks, output.seg_batch_index, original, reshaped, threshold=None)
    torch.testing.assert_close(masks[0], golden["e.out.pred_masks_0"], **CLOSE)


def test_pixels_are_lisas(converted, golden):
    """Both inputs from the photo itself: CLIP's centre crop, SAM's longest side."""
    _, processor = converted
    for index in range(len(golden["in.images"])):
        image = Image.fromarray(golden[f"in.images_u8_{index}"].numpy())
        inputs = processor.image_inputs([image])
        torch.testing.assert_close(inputs["pixel_values"][0], golden["in.images_clip"][index], rtol=0, atol=1e-6)
        torch.testing.assert_close(inputs["sam_pixel_values"][0], golden["in.images"][index], rtol=0, atol=1e-6)
        assert inputs["reshaped_input_sizes"][0].tolist() == golden["in.resize_list"][index].tolist()
        assert inputs["original_sizes"][0].tolist() == golden["in.original_size"][index].tolist()


def test_merged_folder_takes_its_vision_tower_from_clip(tmp_path, golden, sizes):
    """As LISA merges: no vision tower inside; several .bin shards."""
    weights = {name[2:]: tensor for name, tensor in golden.items() if name.startswith("w.")}
    prefix = "model.vision_tower.vision_tower."
    tower = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    merged = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    folder = lisa_folder(tmp_path / "lisa", {"gone": torch.zeros(1)}, sizes)
    (folder / "model.safetensors").unlink()
    names = sorted(merged)
    files = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, keys in files.items():
        torch.save({key: merged[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    common = ["--checkpoint", folder, "--tokenizer", folder, "--output", tmp_path / "out"]
    common += ["--sam-decoder-heads", sizes["sam"]["dec_heads"]]
    without = convert(*common)
    assert without.returncode == 2 and without.stderr.count("\n") == 1 and "--vision-tower" in without.stderr
    assert not (tmp_path / "out").exists()
    done = convert(*common, "--vision-tower", clip_folder(tmp_path / "clip", sizes, tower))
    assert done.returncode == 0, done.stderr
    model = CoraForReasoningSegmentation.from_pretrained(tmp_path / "out")
    inputs = packed_inputs(model, golden, "b")
    loss = model(**inputs, mask_labels=mask_labels(golden, "b", inputs)).loss
    torch.testing.assert_close(loss.detach(), golden["b.out.loss"][0], rtol=1e-5, atol=0)
