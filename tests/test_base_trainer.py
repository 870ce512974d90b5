"""What all trainings share: which checkpoint they go on from, what they refuse, learning rates by part."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import DeepSpeedPlugin
from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainingArguments

from datasets_scripts.command_line import UsageError
from datasets_scripts.scenes import write_scenes
from modeling_cora import CoraForReasoningSegmentation
from modeling_cora.losses import LOSS_TERMS
from trainers import base_trainer
from trainers.arguments import CoraTrainingArguments
from trainers.base_trainer import check_training, checkpoint_to_resume, refuse_evaluation
from trainers.cora_trainer import CoraTrainer, refuse_sharded_anchors
from trainers.pseudo_labels.arguments import SemiSupervisedTrainingArguments
from trainers.stage1 import Stage1Trainer
from trainers.stage1 import main as stage1
from trainers.stage2 import Stage2Trainer
from trainers.stage3 import Stage3Trainer

from .test_stage1 import ROOT, on_two_processes, options


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


@pytest.mark.parametrize("left", [None, "a file", [], ["rng_state.pth"], ["trainer_state.json"]])
def test_a_folder_that_is_no_whole_checkpoint_is_refused(tmp_path, left):
    """The last one is what the folder of a whole training holds."""
    if left == "a file":
        (tmp_path / "folder").write_text("")
    elif left is not None:
        write_checkpoint(tmp_path / "folder", left)
    with pytest.raises(UsageError, match=f"resume_from_checkpoint: {tmp_path}/folder is no whole checkpoint; .* true"):
        checkpoint_to_resume(str(tmp_path / "folder"), tmp_path)


@pytest.mark.parametrize("steps", [-1, 0])
def test_a_training_by_epochs_is_refused(steps):
    with pytest.raises(UsageError, match=f"max_steps: {steps} is no number of steps; 1 or more"):
        check_training(SimpleNamespace(max_steps=steps, seed=0, data_seed=None))
    fine = {"max_steps": 1, "seed": 0, "data_seed": 0, "warmup_steps": 1, "lr_scheduler_type": "linear"}
    check_training(SimpleNamespace(**fine))
    for name in ("seed", "data_seed"):
        with pytest.raises(UsageError, match=f"{name}: -1 is less than 0"):
            check_training(SimpleNamespace(**{**fine, name: -1}))


@pytest.mark.parametrize(
    ("given", "line"),
    [({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy: steps: why"),
     ({"eval_on_start": True}, "eval_on_start: true: why")],
)  # fmt: skip
def test_evaluation_of_nothing_is_refused(tmp_path, given, line):
    with pytest.raises(UsageError, match=line):
        refuse_evaluation(CoraTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given), "why")
    refuse_evaluation(CoraTrainingArguments(output_dir=str(tmp_path), use_cpu=True), "why")


@pytest.mark.parametrize("how", ["whole", "fsdp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("stage", [Stage1Trainer, Stage2Trainer, Stage3Trainer])
def test_stages_with_anchors_refuse_sharded_gradients(monkeypatch, stage, how):
    monkeypatch.setattr(base_trainer, "is_deepspeed_zero3_enabled", lambda: how == "zero3")
    plugin = DeepSpeedPlugin({"zero_optimization": {"stage": int(how[-1])}}) if how.startswith("zero") else None
    args = SimpleNamespace(deepspeed_plugin=plugin)
    trainer = SimpleNamespace(is_fsdp_enabled=how == "fsdp", uses_anchors=stage.uses_anchors, args=args)
    refused = stage is not Stage1Trainer and how not in ("whole", "zero1")
    with pytest.raises(UsageError, match=r"FSDP, ZeRO-2, ZeRO-3.*ddp_4\.yaml") if refused else nullcontext():
        refuse_sharded_anchors(trainer)


class AsDeepSpeeds:
    """Around torch's optimizer, without its `defaults`."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


@pytest.mark.parametrize("deepspeed", [False, True])
def test_a_polynomial_schedule_under_deepspeed_is_the_same(tmp_path, deepspeed):
    options = dict(max_steps=5, warmup_steps=1, lr_scheduler_type="polynomial", learning_rate=0.5, report_to="none")
    args = CoraTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    trainer = base_trainer.BaseTrainer(model=torch.nn.Linear(1, 1), args=args)
    trainer.is_deepspeed_enabled = deepspeed
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.5)
    trainer.optimizer = AcceleratedOptimizer(
        AsDeepSpeeds(optimizer) if deepspeed else optimizer, device_placement=False
    )
    (rate,) = trainer.create_scheduler(5).lr_lambdas
    assert [rate(step) for step in range(6)] == pytest.approx([0, 1, 0.75, 0.5, 0.25, 0], abs=1e-6)


@pytest.mark.parametrize("deepspeed", [False, True])
def test_under_deepspeed_every_weight_gets_a_gradient(deepspeed):
    """It sums up what there is, process by process, so what one of them leaves out shifts all others."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 1, bias=False) for name in ("used", "unused", "frozen")})
    model["frozen"].requires_grad_(False)
    model.weighted_sum = lambda terms: sum(terms.values())
    trainer = SimpleNamespace(
        model=model,
        uses_anchors=True,
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        global_mean=lambda term, *others: term,
        record_terms=lambda terms: None,
    )
    terms = {name: model["used"](torch.ones(2)).sum() for name in ("lm_loss", "bce_loss", "dice_loss", "iou_loss")}
    loss = CoraTrainer.labelled_loss(trainer, terms, {"tokens": 1, "masks": 1}, None)
    loss.backward()
    assert loss.item() == pytest.approx(4 * model["used"].weight.sum().item())
    assert torch.equal(model["used"].weight.grad, torch.full((1, 2), 4.0)) and model["frozen"].weight.grad is None
    unused = model["unused"].weight.grad
    assert unused.eq(0).all() if deepspeed else unused is None


def test_a_new_loss_is_trained_and_not_only_told(monkeypatch):
    """What CONTRIBUTING says of a loss is enough for the trainer to count it, log it and add it."""
    monkeypatch.setitem(LOSS_TERMS, "edge_loss", "masks")
    logged = {}
    config = SimpleNamespace(**{f"{name}_weight": 1.0 for name in LOSS_TERMS} | {"edge_loss_weight": 2.0})
    model = SimpleNamespace(config=config)
    model.weighted_sum = lambda terms: CoraForReasoningSegmentation.weighted_sum(model, terms)
    trainer = SimpleNamespace(
        model=model,
        uses_anchors=False,
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped, num_processes=1),
        current_gradient_accumulation_steps=1,
        record_terms=logged.update,
    )
    trainer.global_mean = lambda *args: CoraTrainer.global_mean(trainer, *args)
    terms = {"lm_loss": 1.0, "bce_loss": 10.0, "dice_loss": 100.0, "iou_loss": 1000.0, "edge_loss": 10_000.0}
    terms = {name: torch.tensor(value) for name, value in terms.items()}
    counts, totals = {"tokens": 3, "masks": 1}, {"tokens": 3, "masks": 2}
    loss = CoraTrainer.labelled_loss(trainer, terms, counts, totals)
    assert loss.item() == 1 + (10 + 100 + 1000 + 2 * 10_000) / 2
    assert logged["edge_loss"] == 5000


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


@pytest.mark.parametrize("kind", [SemiSupervisedTrainingArguments, CoraTrainingArguments])
@pytest.mark.parametrize("field", [{"label_smoothing_factor": 0.1}, {"train_sampling_strategy": "group_by_length"}])
def test_what_would_have_no_effect_is_refused(tmp_path, kind, field):
    kind(output_dir=str(tmp_path), use_cpu=True, label_smoothing_factor=0.0, train_sampling_strategy="random")
    with pytest.raises(UsageError, match=f"{next(iter(field))}: .* has no effect here"):
        kind(output_dir=str(tmp_path), use_cpu=True, **field)


@pytest.mark.parametrize("found", [0, 1, 2])
def test_one_process_takes_one_gpu_of_several(tmp_path, monkeypatch, found):
    """transformers wraps the model in nn.DataParallel for more."""
    own = TrainingArguments.__post_init__

    def finds(self):
        own(self)
        self._n_gpu = found

    monkeypatch.setattr(TrainingArguments, "__post_init__", finds)
    for kind in (SemiSupervisedTrainingArguments, CoraTrainingArguments):
        arguments = kind(output_dir=str(tmp_path), use_cpu=True)
        assert arguments.n_gpu == min(found, 1) and arguments.train_batch_size == 2


@pytest.mark.parametrize("where", ["bce_loss", "grad_norm"])
def test_a_training_whose_weights_are_lost_ends_as_one_that_failed(tmp_path, monkeypatch, capsys, where):
    """transformers would go on to the end, write the weights and log a loss of 0."""
    write_scenes(tmp_path / "street", labelled=2, unlabelled=0, val=1, size=(48, 64), progress=False)
    compute_loss = Stage1Trainer.compute_loss

    def broken(self, *args, **kwargs):
        bias = self.model.seg_projector.linear_1.bias
        if self.state.global_step and where == "bce_loss":
            bias.data.fill_(float("nan"))
        loss = compute_loss(self, *args, **kwargs)
        # 0, of gradient 0 * inf
        return loss + (bias * 0).square().sum().sqrt() if self.state.global_step else loss

    monkeypatch.setattr(Stage1Trainer, "compute_loss", broken)
    given = dict(max_steps=4, logging_steps=1, save_strategy="steps", save_steps=1)
    with pytest.raises(SystemExit) as stopped:
        stage1(options(tmp_path / "street", tmp_path / "out", **given))
    assert stopped.value.code == 2
    assert f"error: step 2: {where} is nan; a smaller learning_rate" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


NODE = """
import os
import sys
sys.path[0] = {root!r}
from trainers.stage1 import main
main([*sys.argv[1:], "--output_dir", {disks!r}[int(os.environ["RANK"])]])
"""


def test_processes_that_found_different_checkpoints_do_not_start(tmp_path):
    """Two nodes without a shared disk: on the second one's there is nothing to go on from."""
    write_scenes(tmp_path / "street", labelled=2, unlabelled=0, val=1, size=(48, 64), progress=False)
    first, second = tmp_path / "first", tmp_path / "second"
    given = dict(max_steps=4, save_strategy="steps", save_steps=2, per_device_train_batch_size=1)
    stage1(options(tmp_path / "street", first, **{**given, "max_steps": 2}))
    program = tmp_path / "node.py"
    program.write_text(NODE.format(root=str(ROOT), disks=[str(first), str(second)]))
    argv = options(tmp_path / "street", first, **given, resume_from_checkpoint="true")
    with pytest.raises(AssertionError, match="processes found checkpoint-2, none; an output_dir that all nodes share"):
        on_two_processes(str(program), argv)
    assert sorted(path.name for path in first.glob("checkpoint-*")) == ["checkpoint-2"]
    # the same step on both disks: it goes on
    shutil.copytree(first, second, dirs_exist_ok=True)
    on_two_processes(str(program), argv)
    assert (first / "checkpoint-4").is_dir()
