"""What all our trainings share, and transformers' Trainer does otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME

from datasets_scripts.command_line import UsageError

from .argument_checks import check_least


@dataclass
class BaseTrainingArguments(TrainingArguments):
    """transformers' arguments, with what none of our trainings could do with."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches need every column."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A NaN loss ends the training instead."})

    def __post_init__(self):
        super().__post_init__()
        check_training(self)
        for name in ("label_smoothing_factor", "train_sampling_strategy"):
            own, default = getattr(self, name), getattr(TrainingArguments, name)
            if own != default:
                raise UsageError(f"{name}: {own} has no effect here; {default} would be right")
        # one process, one GPU: nn.DataParallel, which transformers takes where it sees several, deals out the entries
        # of lists of tensors, such as masks of different sizes, as if they were batches, and its copies share no means
        self._n_gpu = min(self.n_gpu, 1)
        # without a GPU there is nothing to pin memory for, and torch warns about it at every start
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()


class BaseTrainer(Trainer):
    """Reads items in order (item k is a function of the seed and k), logs each loss term, and writes checkpoints that a
    killed training can go on from: they are whole as soon as they have their `trainer_state.json`, which comes last.

    What a subclass saves besides is loaded by `load_more`.
    """

    # `compute_loss` returns means; without this they would be multiplied by accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._term_sums: dict[str, torch.Tensor] = {}
        self._term_counts: dict[str, int] = {}

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.is_deepspeed_enabled and optimizer is None:
            # transformers' polynomial schedule reads `defaults`; torch's optimizer has them, DeepSpeed's around it not
            around = self.optimizer.optimizer
            around.defaults = around.optimizer.defaults
        return super().create_scheduler(num_training_steps, optimizer)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # the last file that each process writes on its own; the main one goes on to the trainer's state
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # with any backend: `_load_from_checkpoint` is skipped under DeepSpeed
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_more(Path(checkpoint))

    def load_more(self, checkpoint: Path) -> None:
        """Loads what a checkpoint holds beside the model, the optimizer and the schedule."""

    def record_terms(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Sums loss terms until the next log line, which shows their means over steps and processes.

        Raises:
            UsageError: one is no number. The step has not been taken yet, so checkpoints are of before.
        """
        for name, term in terms.items():
            self._stop_unless_finite(self.state.global_step + 1, name, term.detach())
            self._term_sums[name] = self._term_sums.get(name, 0.0) + term.detach().float()
            self._term_counts[name] = self._term_counts.get(name, 0) + 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, total in self._term_sums.items():
                logs[name] = round(self.accelerator.reduce(total / self._term_counts[name], "mean").item(), 5)
            self._term_sums, self._term_counts = {}, {}
        super().log(logs, start_time)
        self._stop_unless_finite(self.state.global_step, "grad_norm", torch.tensor(logs.get("grad_norm", 0.0)))

    def _stop_unless_finite(self, step: int, name: str, value: torch.Tensor) -> None:
        """transformers goes on to the end and writes what is left of the weights."""
        # fp16 finds the scale of its loss by trial: what was too large for the type is left out and tried again
        if not self.args.fp16 and not value.isfinite():
            raise UsageError(
                f"step {step}: {name} is {value.item()}; a smaller learning_rate, or a warm-up (warmup_steps), usually "
                f"helps; checkpoints until then are in {self.args.output_dir}"
            )

    def train(self, resume_from_checkpoint: str | None = None, *args, **kwargs):
        """Raises:
        UsageError: processes found different checkpoints, as nodes without a shared disk do: each would go on from its
            own step.
        """
        if self.accelerator.num_processes > 1:
            found = [Path(name).name for name in gather_object([resume_from_checkpoint or "none"])]
            if len(set(found)) > 1:
                raise UsageError(
                    f"resume_from_checkpoint: processes found {', '.join(sorted(set(found)))}; an output_dir that all "
                    "nodes share would be right"
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)


def checkpoint_to_resume(value: str | bool | None, output_dir: str | Path) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` asks for; None for a start from the beginning.

    Args:
        value: absent, `false` or `none`: none; `true`: the newest one of `output_dir`, if any; else a folder.

    Raises:
        UsageError: the folder is no whole checkpoint, or the newest one has weights alone.
    """
    word = str(value).strip().lower()
    if word in ("", "none", "false"):
        return None
    if word == "true":
        newest = last_checkpoint(output_dir)
        if newest and not _has_state(newest):
            raise UsageError(
                f"resume_from_checkpoint: {newest} has no optimizer state, as save_only_model leaves it, so a training "
                "that goes on from it ends at other weights; false (from the beginning) would be right"
            )
        return newest
    # the folder of a whole training has a `trainer_state.json` too, but no state to go on from
    if not (_is_whole(Path(str(value))) and _has_state(str(value))):
        raise UsageError(
            f"resume_from_checkpoint: {value} is no whole checkpoint; a folder checkpoint-N that a training wrote, "
            "true (the newest one in output_dir) or false would be right"
        )
    return str(value)


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a training folder. transformers takes the newest folder, whole or not."""
    found = [(int(match[1]), path) for path in Path(output_dir).glob("checkpoint-*")
             if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _is_whole(path)]  # fmt: skip
    return str(max(found)[1]) if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _has_state(checkpoint: str) -> bool:
    """Of the optimizer and of random numbers, which Trainer writes both or, with `save_only_model`, neither."""
    return any(Path(checkpoint).glob("rng_state*.pth"))


def check_training(arguments: TrainingArguments) -> None:
    """Raises:
    UsageError: `max_steps` is less than 1, as for a training by epochs, a seed less than 0, or no step of a polynomial
        schedule is after its warm-up: transformers divides by their number.
    """
    check_least(arguments, seed=0, data_seed=0)
    if arguments.max_steps < 1:
        raise UsageError(
            f"max_steps: {arguments.max_steps} is no number of steps; 1 or more would be right (a training draws its "
            "items for so many steps, and num_train_epochs counts for nothing)"
        )
    steps, warmup = arguments.max_steps, arguments.warmup_steps
    if arguments.lr_scheduler_type == "polynomial" and arguments.get_warmup_steps(steps) == steps:
        raise UsageError(f"warmup_steps: {warmup:g} are all of max_steps, {steps}; fewer would be right")


def refuse_evaluation(arguments: TrainingArguments, why: str) -> None:
    """For a training that has nothing to evaluate on.

    Args:
        why: the end of the line, with what to do.

    Raises:
        UsageError: it was asked to evaluate.
    """
    strategy = getattr(arguments.eval_strategy, "value", arguments.eval_strategy)
    if strategy != "no" or arguments.eval_on_start:
        asked = f"eval_strategy: {strategy}" if strategy != "no" else "eval_on_start: true"
        raise UsageError(f"{asked}: {why}")


WHOLE = "trainers/accelerate/ddp_4.yaml or deepspeed_zero1_4.yaml would be right"
SHARDED_WEIGHTS = f"sharded weights (FSDP, ZeRO-3); {WHOLE}"
SHARDED_GRADIENTS = f"sharded gradients (FSDP, ZeRO-2, ZeRO-3); {WHOLE}"
"""The ends of lines that refuse them."""


def weights_are_sharded(trainer: Trainer) -> bool:
    """Whether each process holds a part of each layer (FSDP, DeepSpeed's ZeRO-3), so that all must run it together."""
    return trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()


def gradients_are_sharded(trainer: Trainer) -> bool:
    """Whether each process keeps a part of the gradients (besides the above, DeepSpeed's ZeRO-2), so that all must meet
    them in the same order: ZeRO-2 sums up over processes whatever is next on each of them."""
    plugin = trainer.args.deepspeed_plugin
    return weights_are_sharded(trainer) or (plugin is not None and plugin.get_value("zero_optimization.stage", 0) >= 2)
