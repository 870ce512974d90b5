"""Checkpoints that a killed training can go on from.

transformers writes a checkpoint file by file, and takes the newest folder for the last one, whole or not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoints are whole as soon as they have their `trainer_state.json`, which is written last."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # the last file that each process writes on its own; the main one goes on to the trainer's state
        self.accelerator.wait_for_everyone()


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a training folder; one whose writing was cut short does not count."""
    found = [(int(match[1]), path) for path in Path(output_dir).glob("checkpoint-*")
             if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _is_whole(path)]  # fmt: skip
    return str(max(found)[1]) if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True
