"""DeepSpeed and FSDP themselves, on two processes without a GPU, against one process.

DeepSpeed is no requirement, and has no wheels: `pip install setuptools wheel ninja hjson py-cpuinfo msgpack einops`,
then `DS_BUILD_OPS=0 pip install --no-build-isolation --no-deps deepspeed`; a C++ compiler is needed, too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from trainers.pseudo_labels.train import main as train_segmenter
from trainers.stage1 import main as stage1
from trainers.stage3 import main as stage3

from . import test_pseudo_label_training as segmenters
from .test_stage1 import ROOT, history
from .test_stage1 import options as stage1_options
from .test_stage3 import pseudo, second_stage, stage3_options, street

__all__ = ["pseudo", "second_stage", "street"]  # fixtures

pytestmark = pytest.mark.slow
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

AS_IF_ON_GPUS = """
import runpy, sys
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

# accelerate takes processes without a GPU for DDP, whatever its configuration says; everything else is as on GPUs
torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = lambda state: setattr(state, "device", torch.device("cpu"))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(name: str, program: str, argv: list[str], folder: Path) -> None:
    """Runs it on two processes by a configuration that we have for four GPUs."""
    config = yaml.safe_load((ROOT / "trainers/accelerate" / f"{name}.yaml").read_text())
    folder.mkdir(exist_ok=True)
    path, wrapper = folder / "two.yaml", folder / "as_if_on_gpus.py"
    path.write_text(yaml.safe_dump({**config, "num_processes": 2, "mixed_precision": "no", "main_process_port": 0}))
    wrapper.write_text(AS_IF_ON_GPUS)
    wrapped = [str(wrapper)] if config["distributed_type"] == "FSDP" else []
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), *wrapped, program, *argv]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths()}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-9000:]


def paths() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def largest_difference(one: Path, two: Path) -> float:
    """Sharded checkpoints name SAM's positional embedding twice, since copies of tied weights are not the same."""
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert a.keys() <= b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def assert_same_steps(one: list[dict], two: list[dict]) -> None:
    one, two = ([entry for entry in run if "loss" in entry] for run in (one, two))
    assert len(one) == len(two) > 2
    for first, second in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert second[name] == pytest.approx(first[name], rel=5e-3, abs=1e-4), (first["step"], name)


def test_stage_1_under_fsdp_equals_one_process_and_resumes(street, tmp_path):
    """Parts that have weights without a use (CLIP's last norm, SAM's mask prompts) leave a state that FSDP refuses."""
    given = dict(queries_per_image=40)
    parts = [
        "--trained_parts",
        "[connector, language_model, lm_head, embeddings, seg_projector, sam_encoder, mask_decoder]",
    ]
    stage1([*stage1_options(street, tmp_path / "one", **given), *parts])
    given = dict(**given, per_device_train_batch_size=1, save_strategy="steps", save_steps=2, save_total_limit=2)
    argv = stage1_options(street, tmp_path / "two", **given)
    launch("fsdp_4", "trainers/stage1.py", [*argv, *parts], tmp_path / "config")
    assert_same_steps(history(tmp_path / "one"), history(tmp_path / "two"))
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 3e-4
    assert {p.name for p in (tmp_path / "two").glob("*.py")} == {p.name for p in (tmp_path / "one").glob("*.py")}
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    argv = stage1_options(street, tmp_path / "resumed", resume_from_checkpoint=True, **given)
    launch("fsdp_4", "trainers/stage1.py", [*argv, *parts], tmp_path / "config")
    assert largest_difference(tmp_path / "two", tmp_path / "resumed") == 0.0


def test_stage_1_under_fsdp_resumes_with_a_model_that_has_anchors(street, second_stage, tmp_path):
    """Nobody shows them in stage 1, so their encoder would leave the optimizer without a state."""
    parts = ["--trained_parts", "[connector, lm_head, embeddings, seg_projector, anchor_encoder, mask_decoder]"]
    given = dict(model=second_stage, lora_r=0, per_device_train_batch_size=1, save_strategy="steps", save_steps=2)
    launch("fsdp_4", "trainers/stage1.py", [*stage1_options(street, tmp_path / "two", **given), *parts], tmp_path / "c")
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    argv = stage1_options(street, tmp_path / "resumed", resume_from_checkpoint=True, **given)
    launch("fsdp_4", "trainers/stage1.py", [*argv, *parts], tmp_path / "c")
    assert largest_difference(tmp_path / "two", tmp_path / "resumed") == 0.0


@needs_deepspeed
def test_stage_3_equals_one_process_and_resumes(street, pseudo, second_stage, tmp_path):
    """One query an image: in most steps one process alone has anchors."""
    given = dict(pseudo_labels=pseudo, consistency="online", queries_per_image=1, max_steps=8)
    stage3(stage3_options(street, second_stage, tmp_path / "one", **given))
    given = dict(**given, per_device_train_batch_size=1, save_strategy="steps", save_steps=4)
    argv = stage3_options(street, second_stage, tmp_path / "two", **given)
    launch("deepspeed_zero1_4", "trainers/stage3.py", argv, tmp_path / "config")
    assert_same_steps(history(tmp_path / "one"), history(tmp_path / "two"))
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 3e-4
    shutil.copytree(tmp_path / "two" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    argv = stage3_options(street, second_stage, tmp_path / "resumed", resume_from_checkpoint=True, **given)
    launch("deepspeed_zero1_4", "trainers/stage3.py", argv, tmp_path / "config")
    assert largest_difference(tmp_path / "two", tmp_path / "resumed") == 0.0


@needs_deepspeed
def test_a_segmenter_equals_one_process_and_keeps_its_teacher(street, tmp_path):
    """With UniMatch's polynomial schedule, and batch statistics over both processes."""
    backbones = {"deeplabv3plus": "resnet-xs"}
    given = dict(
        architecture="deeplabv3plus", method="unimatch_v2", batch_norm_statistics="clean", absent_classes="keep"
    )
    train_segmenter(segmenters.options(street, backbones, tmp_path / "one", per_device_train_batch_size=4, **given))
    given = dict(**given, save_strategy="steps", save_steps=2)
    argv = segmenters.options(street, backbones, tmp_path / "two", **given)
    launch("deepspeed_zero1_4", "trainers/pseudo_labels/train.py", argv, tmp_path / "config")
    assert_same_steps(history(tmp_path / "one"), history(tmp_path / "two"))
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-3
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    argv = segmenters.options(street, backbones, tmp_path / "resumed", resume_from_checkpoint=True, **given)
    launch("deepspeed_zero1_4", "trainers/pseudo_labels/train.py", argv, tmp_path / "config")
    assert largest_difference(tmp_path / "two", tmp_path / "resumed") == 0.0
