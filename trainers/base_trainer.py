"""What all our trainings share, and transformers' Trainer does otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME


class BaseTrainer(Trainer):
    """Reads items in order (item k is a function of the seed and k), logs each loss term, and writes checkpoints that a
    killed training can go on from: they are whole as soon as they have their `trainer_state.json`, which comes last."""

    # `compute_loss` returns means; without this they would be multiplied by accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._term_sums: dict[str, torch.Tensor] = {}
        self._term_counts: dict[str, int] = {}

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # the last file that each process writes on its own; the main one goes on to the trainer's state
        self.accelerator.wait_for_everyone()

    def record_terms(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Sums loss terms until the next log line, which shows their means over steps and processes."""
        for name, term in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + term.detach().float()
            self._term_counts[name] = self._term_counts.get(name, 0) + 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, total in self._term_sums.items():
                logs[name] = round(self.accelerator.reduce(total / self._term_counts[name], "mean").item(), 5)
            self._term_sums, self._term_counts = {}, {}
        super().log(logs, start_time)


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a training folder. transformers takes the newest folder, whole or not."""
    found = [(int(match[1]), path) for path in Path(output_dir).glob("checkpoint-*")
             if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _is_whole(path)]  # fmt: skip
    return str(max(found)[1]) if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True
