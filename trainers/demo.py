"""The whole method, small enough for a laptop without a GPU: a few labelled images in, a model that answers out.

    make demo      or      python trainers/demo.py [--out runs/demo] [any option of trainers/run.py but the data]

Draws street scenes, a few of them labelled, and gives them to `trainers/run.py` with trainers/recipes/demo_run.yaml:
pseudo-labels, three stages, an evaluation on unseen scenes after each, `report.html`. Interrupt it and run it again: it
goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from collections.abc import Sequence

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.scenes import write_scenes
from trainers.run import main as run
from trainers.run import read_run

DATA_NAME = "drawn street scenes"
LABELLED, UNLABELLED, VAL = 24, 48, 40
RECIPE = Path(__file__).parent / "recipes/demo_run.yaml"

NEXT_STEPS = """
What next, with your own images? Make a folder: images/ masks/ (PNGs of class ids) unlabelled/ classes.json, and
val/images/ val/masks/ to be scored on
  1. .venv/bin/python trainers/run.py trainers/recipes/demo_run.yaml --data FOLDER --out runs/mine
  2. open runs/mine/report.html
  3. .venv/bin/python trainers/predict.py --model runs/mine/model --image FILE --query "the road" --out overlay.png
"""


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    argv = [str(RECIPE), *(sys.argv[1:] if argv is None else argv)]
    arguments, _ = read_run(argv)
    if arguments.data or arguments.data_name:
        what = f"--data {arguments.data}" if arguments.data else f"--data_name {arguments.data_name}"
        raise UsageError(f"{what}: the demo draws its own images; trainers/run.py with its recipe would be right")
    scenes = Path(arguments.out) / "scenes"
    print(f"drawing {LABELLED} labelled, {UNLABELLED} unlabelled and {VAL} unseen scenes", flush=True)
    write_scenes(scenes, LABELLED, UNLABELLED, VAL)
    run([*argv, "--data", str(scenes), "--data_name", DATA_NAME])
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    print(NEXT_STEPS.strip())


if __name__ == "__main__":
    main()
