"""Gives a model its anchor encoder, so that adapters of it can be trained in all stages.

    python trainers/add_anchors.py --model cora-7b --out cora-7b-anchors

Stages 2 and 3 add the encoder, and a row for `[ANCHOR]`, to the model that they train. An adapter cannot hold either:
it is nothing but changes of its base. So with LoRA the base gets them before stage 1. The model's answers stay what
they are; the new weights are random and belong to nothing until they are trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil

import torch

from datasets_scripts.command_line import ArgumentParser, UsageError, one_line_errors
from modeling_cora.conversion import whole_folder
from trainers.adapters import anchors_needed, base_of
from trainers.loading import load_trained
from trainers.training_record import record_path


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description="Gives a CORA model its anchor encoder.")
    parser.add_argument("--model", required=True, help="folder or Hub id of a CORA model that is no adapter")
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the new weights (default 0)")
    arguments = parser.parse_args(argv)
    with whole_folder(arguments.out, "--out") as folder:
        if base_of(arguments.model) != arguments.model:
            raise UsageError(anchors_needed(arguments.model))
        model, processor = load_trained(arguments.model)
        if model.config.anchor_token_id is not None:
            raise UsageError(f"--model {arguments.model}: has an anchor encoder; it can be used as it is")
        torch.manual_seed(arguments.seed)
        model.add_anchors(processor.add_anchor_token())
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if record := record_path(arguments.model):
            shutil.copy(record, folder)


if __name__ == "__main__":
    main()
