"""What trains, LoRA adapters through the trainer, and merging."""

from __future__ import annotations

import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from datasets_scripts.command_line import UsageError
from datasets_scripts.scenes import write_scenes
from modeling_cora.presets import cora_tiny
from trainers import merge_adapter, stage1
from trainers.arguments import TrainedPartsArguments
from trainers.loading import load_trained
from trainers.trained_parts import LISA_PARTS, PARTS, parameter_table, select_trained_parts

from .conftest import TEXTS, noise_image


def test_lisa_recipe_trains_what_lisa_trains(tiny):
    """`train_ds.py`: LoRA on q_proj and v_proj outside of vision tower, projector, SAM and text_hidden_fcs; in full,
    every parameter whose name contains lm_head, embed_tokens, mask_decoder or text_hidden_fcs."""
    model, _ = tiny
    names = [n for n, _ in model.named_parameters()]
    in_full = {n for n in names if re.search(r"lm_head|embed_tokens|mask_decoder|seg_projector", n)}
    adapted = {n for n in names if re.search(r"language_model.*(q_proj|v_proj)\.weight", n)}
    assert len(adapted) == 2 * 4
    wrapped = select_trained_parts(model, TrainedPartsArguments())
    assert isinstance(wrapped, PeftModel)
    found_full, found_lora = set(), set()
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            if "lora_" in plain:
                found_lora.add(re.sub(r"lora_[AB]\.default\.", "", plain))
            else:
                found_full.add(plain)
    assert found_lora == adapted
    assert found_full == in_full


def test_parts_are_disjoint_and_complete(tiny):
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    every = {n for n, _ in model.named_parameters()}
    seen: list[str] = []
    for part in PARTS:
        select_trained_parts(model, TrainedPartsArguments(trained_parts=[part], lora_r=0))
        mine = [n for n, p in model.named_parameters() if p.requires_grad]
        assert mine, part
        seen += mine
    assert sorted(seen) == sorted(every)


def test_a_model_without_anchors_has_no_such_part(tiny):
    wrapped = select_trained_parts(tiny[0], TrainedPartsArguments())
    assert "anchor_encoder" not in parameter_table(wrapped)


def test_a_random_start_trains_everything(tiny):
    model, _ = tiny
    same = select_trained_parts(model, TrainedPartsArguments(), random_start=True)
    assert same is model
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UsageError, match="saved base"):
        select_trained_parts(model, TrainedPartsArguments(lora_r=4), random_start=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trained_parts": ["mask_decodr"]}, "'mask_decodr' is not one of"),
        ({"trained_parts": ["language_model"]}, "trained by LoRA"),
        ({"lora_target_modules": ["query"]}, "fit no layer.*q_proj"),
    ],
)
def test_wrong_choices_are_named(tiny, fields, message):
    with pytest.raises(UsageError, match=message):
        select_trained_parts(tiny[0], TrainedPartsArguments(**fields))


@pytest.mark.parametrize("rank", [0, 2])
def test_the_head_of_a_tied_model_does_not_stay_frozen_without_a_word(tiny, rank):
    model, _ = tiny
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    with pytest.raises(UsageError, match="lm_head is one table with embeddings in this model; both would be right"):
        select_trained_parts(model, TrainedPartsArguments(trained_parts=["lm_head", "seg_projector"], lora_r=rank))
    parts = TrainedPartsArguments(trained_parts=["lm_head", "embeddings", "seg_projector"], lora_r=rank)
    wrapped = select_trained_parts(model, parts)
    assert any(p.requires_grad for name, p in wrapped.named_parameters() if "embed_tokens" in name)


def test_table_counts_every_parameter_once(tiny):
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    everything = sum(p.numel() for p in model.parameters())

    def rows(model) -> dict[str, list[str]]:
        return {line[:16].strip(): line[16:].split() for line in parameter_table(model).splitlines()[1:]}

    assert rows(model)["all"][0] == f"{everything:,}"
    wrapped = select_trained_parts(model, TrainedPartsArguments())
    table = rows(wrapped)
    assert set(table) == {*PARTS, "LoRA", "frozen originals", "all"}
    assert table["all"][1] == f"{sum(p.numel() for p in wrapped.parameters() if p.requires_grad):,}"
    # rank 8 on two square matrices of width 192 in each of 4 layers
    assert table["LoRA"][0] == f"{4 * 2 * 8 * (192 + 192):,}"
    copies = sum(int(table[part][0].replace(",", "")) for part in LISA_PARTS)
    assert table["frozen originals"][:2] == [f"{copies:,}", "0"]


@pytest.mark.parametrize("part", ["connector", "vision_tower", "sam_encoder", "prompt_encoder"])
def test_any_part_can_train_beside_lora(tiny, part):
    model, processor = tiny
    wrapped = select_trained_parts(model, TrainedPartsArguments(trained_parts=[part, "seg_projector"]))
    inputs = processor(noise_image(40, 30), ["the road", "the sky"])
    output = wrapped(**inputs)
    (output.pred_masks.square().mean() + output.lm_loss).backward()
    prefixes = {"sam_encoder": "sam.vision_encoder", "prompt_encoder": "sam.prompt_encoder"}
    fragment = prefixes.get(part, {"connector": "projector", "vision_tower": "vision_tower"}.get(part))
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in wrapped.named_parameters() if fragment in n)


@pytest.mark.parametrize("rank", ["0", "2"])
@pytest.mark.parametrize("autocast", ["false", "true"])
def test_small_steps_are_not_lost_on_weights_stored_in_bfloat16(tmp_path, rank, autocast):
    """Adam's first step is the learning rate, whatever the gradient; in bfloat16 most weights would stay."""
    write_scenes(tmp_path / "scenes", labelled=2, unlabelled=0, val=1, size=(48, 64), progress=False)
    model, processor = cora_tiny(TEXTS, clip_image_size=28, sam_image_size=128)
    for part in (model.to(torch.bfloat16), processor):
        part.save_pretrained(tmp_path / "base")
    options = {"model": tmp_path / "base", "data": tmp_path / "scenes", "output_dir": tmp_path / "out", "max_steps": 1}
    options |= {"warmup_steps": 0, "learning_rate": 2e-5, "bf16": autocast, "use_cpu": "true", "disable_tqdm": "true"}
    options |= {"lora_r": rank, "max_grad_norm": 0, "adam_epsilon": 1e-30}
    stage1.main([*(f"--{k}={v}" for k, v in options.items()), "--trained_parts", "seg_projector", "mask_decoder"])
    file = tmp_path / "out" / ("model.safetensors" if rank == "0" else "adapter_model.safetensors")
    (name,) = (n for n in load_file(file) if n.endswith("seg_projector.linear_2.weight"))
    moved = load_file(file)[name].double() - model.seg_projector.linear_2.weight.double()
    touched = moved.abs() > 1e-6  # behind a ReLU that is off nothing is learned
    assert touched.double().mean() > 0.5
    torch.testing.assert_close(moved[touched].abs(), torch.full_like(moved[touched], 2e-5), rtol=1e-2, atol=0)


def test_the_next_stage_goes_on_from_every_bit_of_weights_beside_bfloat16(tmp_path):
    """Without LoRA a folder holds fp32 for what was trained and bfloat16 for the rest."""
    write_scenes(tmp_path / "scenes", labelled=2, unlabelled=0, val=1, size=(48, 64), progress=False)
    model, processor = cora_tiny(TEXTS, clip_image_size=28, sam_image_size=128)
    for part in (model.to(torch.bfloat16), processor):
        part.save_pretrained(tmp_path / "base")
    for start, out, rate in (("base", "first", 1e-3), ("first", "second", 0)):
        options = {"model": tmp_path / start, "data": tmp_path / "scenes", "output_dir": tmp_path / out, "lora_r": 0}
        options |= {"max_steps": 1, "warmup_steps": 0, "learning_rate": rate, "use_cpu": "true", "disable_tqdm": "true"}
        options |= {"bf16": "true"}  # in fp32 the rest would be fp32 too
        stage1.main([*(f"--{k}={v}" for k, v in options.items()), "--trained_parts", "seg_projector", "mask_decoder"])
    base, was, now = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "first", "second"))
    assert {tensor.dtype for tensor in was.values()} == {torch.float32, torch.bfloat16}
    for name, tensor in was.items():
        assert now[name].dtype == tensor.dtype and torch.equal(now[name], tensor), name
        assert tensor.dtype == torch.float32 or torch.equal(tensor, base[name]), name
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in was.values())


def test_adapter_trains_resumes_loads_and_merges(tmp_path, monkeypatch):
    """Through the programs that a user runs: base folder -> stage 1 with LoRA -> adapter -> merged folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_scenes(tmp_path / "scenes", labelled=2, unlabelled=0, val=1, size=(48, 64), progress=False)
    model, processor = cora_tiny(TEXTS, clip_image_size=56, sam_image_size=128)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")

    def train(out: str, steps: int, *more: str) -> None:
        options = {"model": tmp_path / "base", "data": tmp_path / "scenes", "output_dir": tmp_path / out}
        options |= {"max_steps": 4, "save_steps": 2, "warmup_steps": 1, "per_device_train_batch_size": 1}
        options |= {"learning_rate": 1e-2, "logging_steps": 2, "disable_tqdm": True}
        with monkeypatch.context() as patch:
            if steps < 4:  # a run that ends early, as one that was killed
                patch.setattr(stage1.Stage1Trainer, "_maybe_log_save_evaluate", _stop_after(steps))
            stage1.main([*(f"--{k}={v}" for k, v in options.items()), *more])

    train("whole", 4)
    train("parts", 2)
    train("parts", 4, "--resume_from_checkpoint", "true")
    whole, parts = (load_trained(str(tmp_path / name))[0] for name in ("whole", "parts"))
    image = noise_image(64, 48)
    inputs = processor(image, ["the road", "the sky"])
    expected = whole(**inputs)
    assert torch.equal(parts(**inputs).pred_masks, expected.pred_masks)
    assert not torch.allclose(model.eval()(**inputs).pred_masks, expected.pred_masks, atol=1e-4)
    weights = {f.name for f in (tmp_path / "whole").glob("*.safetensors")}
    assert weights == {"adapter_model.safetensors"}

    merge_adapter.main(["--adapter", str(tmp_path / "whole"), "--out", str(tmp_path / "merged")])
    merged, merged_processor = load_trained(str(tmp_path / "merged"))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    output = merged(**merged_processor(image, ["the road", "the sky"]))
    assert torch.allclose(output.pred_masks, expected.pred_masks, atol=1e-4)
    assert torch.allclose(output.seg_embeddings, expected.seg_embeddings, atol=1e-5)

    with pytest.raises(SystemExit):
        merge_adapter.main(["--adapter", str(tmp_path / "base"), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit):
        train("again", 4, "--seg_state", "at")


def _stop_after(steps: int):
    original = stage1.Stage1Trainer._maybe_log_save_evaluate

    def stop(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.state.global_step >= steps:
            self.control.should_training_stop = True

    return stop
