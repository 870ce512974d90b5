"""What all trainings share: which checkpoint they go on from, what they refuse, learning rates by part."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from datasets_scripts.command_line import UsageError
from trainers import base_trainer
from trainers.arguments import CoraTrainingArguments
from trainers.base_trainer import check_steps, checkpoint_to_resume, refuse_evaluation
from trainers.cora_trainer import CoraTrainer, refuse_sharded_anchors
from trainers.pseudo_labels.arguments import SemiSupervisedTrainingArguments
from trainers.stage1 import Stage1Trainer
from trainers.stage2 import Stage2Trainer
from trainers.stage3 import Stage3Trainer


def write_checkpoint(folder, names=("trainer_state.json", "rng_state.pth")):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("none", [None, "", False, "false", "False", "None", "none"])
def test_no_checkpoint_is_asked_for(tmp_path, none):
    write_checkpoint(tmp_path / "checkpoint-2")
    assert checkpoint_to_resume(none, tmp_path) is None


@pytest.mark.parametrize("true", [True, "true", "True"])
def test_the_newest_whole_checkpoint_of_the_folder(tmp_path, true):
    assert checkpoint_to_resume(true, tmp_path) is None  # nothing is there yet
    for step in (2, 10):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    write_checkpoint(tmp_path / "checkpoint-12", ["rng_state.pth"])
    assert checkpoint_to_resume(true, tmp_path) == str(tmp_path / "checkpoint-10")


def test_weights_without_an_optimizers_state_are_nothing_to_go_on_from(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-2")
    write_checkpoint(tmp_path / "checkpoint-10", ["trainer_state.json"])
    with pytest.raises(UsageError, match=r"checkpoint-10 has no optimizer state, as save_only_model .* false"):
        checkpoint_to_resume("true", tmp_path)
    assert checkpoint_to_resume("false", tmp_path) is None


def test_a_checkpoint_by_its_name_is_that_one(tmp_path):
    named = write_checkpoint(tmp_path / "other" / "checkpoint-2")
    write_checkpoint(tmp_path / "own" / "checkpoint-10")
    for value in (named, str(named)):
        assert checkpoint_to_resume(value, tmp_path / "own") == str(named)


@pytest.mark.parametrize("left", [None, [], ["rng_state.pth"], ["trainer_state.json"]])
def test_a_folder_that_is_no_whole_checkpoint_is_refused(tmp_path, left):
    """The last one is what the folder of a whole training holds."""
    if left is not None:
        write_checkpoint(tmp_path / "folder", left)
    with pytest.raises(UsageError, match=f"resume_from_checkpoint: {tmp_path}/folder is no whole checkpoint; .* true"):
        checkpoint_to_resume(str(tmp_path / "folder"), tmp_path)


@pytest.mark.parametrize("steps", [-1, 0])
def test_a_training_by_epochs_is_refused(steps):
    with pytest.raises(UsageError, match=f"max_steps: {steps} is no number of steps; 1 or more"):
        check_steps(SimpleNamespace(max_steps=steps))
    check_steps(SimpleNamespace(max_steps=1))


@pytest.mark.parametrize(
    ("given", "line"),
    [({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy: steps: why"),
     ({"eval_on_start": True}, "eval_on_start: true: why")],
)  # fmt: skip
def test_evaluation_of_nothing_is_refused(tmp_path, given, line):
    with pytest.raises(UsageError, match=line):
        refuse_evaluation(CoraTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given), "why")
    refuse_evaluation(CoraTrainingArguments(output_dir=str(tmp_path), use_cpu=True), "why")


@pytest.mark.parametrize("how", ["whole", "fsdp", "zero3"])
@pytest.mark.parametrize("stage", [Stage1Trainer, Stage2Trainer, Stage3Trainer])
def test_stages_with_anchors_refuse_sharded_weights(monkeypatch, stage, how):
    monkeypatch.setattr(base_trainer, "is_deepspeed_zero3_enabled", lambda: how == "zero3")
    trainer = SimpleNamespace(is_fsdp_enabled=how == "fsdp", uses_anchors=stage.uses_anchors)
    refused = stage is not Stage1Trainer and how != "whole"
    with pytest.raises(UsageError, match=r"FSDP, ZeRO-3.*ddp_4\.yaml") if refused else nullcontext():
        refuse_sharded_anchors(trainer)


def test_a_learning_rate_of_zero_is_one(tmp_path):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False) for name in ("sam", "seg_projector", "vlm")})
    names = {id(parameter): name.split(".")[0] for name, parameter in model.named_parameters()}

    def rates(**given) -> dict[str, float]:
        args = CoraTrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=0.5, **given)
        trainer = SimpleNamespace(args=args, get_decay_parameter_names=lambda model: [])
        groups = CoraTrainer.parameter_groups(trainer, model)
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    assert rates() == {"sam": 0.5, "seg_projector": 0.5, "vlm": 0.5}
    assert rates(sam_learning_rate=0.0) == {"sam": 0.0, "seg_projector": 0.5, "vlm": 0.5}
    assert rates(projector_learning_rate=0.0, sam_learning_rate=0.1) == {"sam": 0.1, "seg_projector": 0.0, "vlm": 0.5}


@pytest.mark.parametrize("found", [0, 1, 2])
def test_one_process_takes_one_gpu_of_several(tmp_path, monkeypatch, found):
    """transformers wraps the model in nn.DataParallel for more."""
    own = SemiSupervisedTrainingArguments.__mro__[1].__post_init__

    def finds(self):
        own(self)
        self._n_gpu = found

    monkeypatch.setattr(SemiSupervisedTrainingArguments.__mro__[1], "__post_init__", finds)
    arguments = SemiSupervisedTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert arguments.n_gpu == min(found, 1) and arguments.train_batch_size == 2
