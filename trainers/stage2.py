"""Stage 2: labelled images with conditional queries, "the car to the left of the bus", and their anchors.

    accelerate launch trainers/stage2.py trainers/recipes/demo_stage2.yaml --model runs/stage1 --data DIR
    accelerate launch trainers/stage2.py RECIPE --model DIR --data DIR --output_dir DIR

An anchor enters its query's branch as two tokens, how it looks and where it is (`modeling_cora/anchors.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets_scripts.command_line import one_line_errors
from trainers.stage import train_stage
from trainers.stage1 import Stage1Trainer


class Stage2Trainer(Stage1Trainer):
    """Stage 1's loss, eq. 5, on conditional queries with their anchors."""

    uses_anchors = True


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    train_stage(Stage2Trainer, argv)


if __name__ == "__main__":
    main()
