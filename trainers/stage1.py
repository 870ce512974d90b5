"""Stage 1: labelled images with semantic and attribute queries.

    accelerate launch trainers/stage1.py trainers/recipes/demo.yaml --data DIR
    accelerate launch trainers/stage1.py trainers/recipes/camvid.yaml --data DIR

What it writes, and how it goes on after an interruption, is told in `trainers/stage.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets_scripts.command_line import one_line_errors
from trainers.cora_trainer import CoraTrainer
from trainers.stage import train_stage


class Stage1Trainer(CoraTrainer):
    """Eq. 5: L = alpha * L_ce + BCE + Dice on labelled masks."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        loss = self.labelled_loss(output, self.counts(inputs), num_items_in_batch)
        return (loss, output) if return_outputs else loss


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    train_stage(Stage1Trainer, argv)


if __name__ == "__main__":
    main()
