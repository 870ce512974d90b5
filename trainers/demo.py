"""The main job, small enough for a laptop without a GPU: a few labelled images in, a model that answers queries out.

    make demo          or          python trainers/demo.py [--steps N] [--out runs/demo]

Draws street scenes, trains `cora-tiny` from a random start on the labelled ones (trainers/recipes/demo.yaml), scores it
on unseen scenes and writes `report.html`. Interrupt it and run it again: it goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time

from datasets_scripts.command_line import ArgumentParser, one_line_errors
from datasets_scripts.scenes import write_scenes
from trainers.evaluate import EvaluationArguments, run_evaluation
from trainers.report import read_history, write_report
from trainers.stage1 import main as train
from trainers.summary import markdown_table

LABELLED, UNLABELLED, VAL = 24, 96, 40
DATA_NAME = "drawn street scenes"
RECIPE = Path(__file__).parent / "recipes/demo.yaml"

NEXT_STEPS = """
What next, with your own images? Make a folder: images/ masks/ (PNGs of class ids) classes.json, val/images/ val/masks/
  1. .venv/bin/accelerate launch trainers/stage1.py trainers/recipes/demo.yaml --data FOLDER --output_dir runs/mine
  2. .venv/bin/python trainers/evaluate.py --model runs/mine --data FOLDER --out runs/mine/evaluation
  3. .venv/bin/python trainers/predict.py --model runs/mine --image FILE --query "the road" --out overlay.png
"""


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: the recipe's)")
    arguments = parser.parse_args(argv)
    start = time.monotonic()
    scenes, model, evaluation = arguments.out / "scenes", arguments.out / "model", arguments.out / "evaluation"

    print(f"1/3  drawing {LABELLED} labelled, {UNLABELLED} unlabelled and {VAL} unseen scenes", flush=True)
    write_scenes(scenes, LABELLED, UNLABELLED, VAL)

    print("2/3  training cora-tiny from a random start on the labelled scenes", flush=True)
    options = ["--data", str(scenes), "--output_dir", str(model), "--resume_from_checkpoint", "true"]
    options += ["--data_name", DATA_NAME]
    if arguments.steps:
        options += ["--max_steps", str(arguments.steps)]
    train([str(RECIPE), *options])

    print("3/3  asking about unseen scenes", flush=True)
    paths = {"model": str(model), "data": str(scenes), "out": str(evaluation)}
    summary = run_evaluation(EvaluationArguments(**paths, data_name=DATA_NAME))
    minutes = (time.monotonic() - start) / 60
    introduction = (
        f"cora-tiny, trained from a random start on {LABELLED} labelled drawn scenes (semantic and attribute queries), "
        f"asked about {VAL} scenes it has not seen. {minutes:.1f} minutes in all."
    )
    report = arguments.out / "report.html"
    write_report(
        report, "CORA on drawn scenes", introduction, summary, evaluation / "overlays.png", read_history(model)
    )
    print(markdown_table(summary))
    print(f"Report: {report}   ({minutes:.1f} minutes)")
    print(NEXT_STEPS.strip())


if __name__ == "__main__":
    main()
