"""Every method on every fraction with every seed, and the table of what came out.

    python trainers/pseudo_labels/measure.py trainers/pseudo_labels/recipes/camvid_cpu.yaml --data CAMVID \
        --splits CAMVID/splits/camvid --runs runs/pseudo_labels --table results/pseudo_labels_camvid.md

Runs one after another, each of steps as in `trainers/run.py`: what is done is kept, what was interrupted goes on. The
tables (mIoU on val and of the pseudo-labels, and the differences to a baseline with the same seed), and beside them the
curve over the fractions (.png), are written anew after each run. `--only training` leaves pseudo-labels and their audit
out, `--only table` runs nothing. `--segmenter.FIELD VALUE` goes to every training. With `--first RECIPE` every run,
supervised ones too, goes on from a supervised training by that recipe with the same fraction and seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: the packages lie two folders up, and `import clip` would find this folder's file, not the library
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from datasets_scripts.command_line import ArgumentParser, UsageError, one_line_errors
from datasets_scripts.files import write_text
from modeling_cora.hub.run_folder import TRAINING
from trainers.comparison import Comparison, require_matplotlib
from trainers.pseudo_labels.arguments import METHODS
from trainers.pseudo_labels.steps import pseudo_label_steps
from trainers.recipe_parser import split_sections
from trainers.steps import Step, StepFolders


@dataclass(frozen=True)
class Cell:
    """One run: a method, a fraction, a seed, its training, prediction and audit, and what it goes on from."""

    method: str
    fraction: str
    seed: int
    steps: tuple[Step, Step, Step]
    first: tuple[Step, ...] = ()


SCORES = ("mIoU on val", "mIoU of the pseudo-labels")


INSTEAD = dict(method="--methods", seed="--seeds", data="--data", split_lists="--splits", output_dir="--runs")
"""What to give in place of a training's field that differs from run to run."""


def scores_of(cell: Cell, folders: StepFolders) -> dict[str, float]:
    """`SCORES` of a run, as far as it has come."""
    train, _, audit = cell.steps
    found = {}
    if folders.done(train).exists():
        record = json.loads((folders.folder(train) / TRAINING).read_text(encoding="utf-8"))
        found[SCORES[0]] = (record["val"] or {}).get("miou")
    if folders.done(audit).exists():
        found[SCORES[1]] = json.loads((folders.folder(audit) / "audit.json").read_text(encoding="utf-8"))["miou"]
    return {score: value for score, value in found.items() if value is not None}


def write_results(path: Path, cells: Sequence[Cell], folders: StepFolders, baseline: str) -> str:
    """The tables, which are returned, and the curve of the mIoU on val."""
    seeds: dict[str, dict[tuple[str, str], dict[int, float]]] = {score: {} for score in SCORES}
    for cell in cells:
        for score, value in scores_of(cell, folders).items():
            seeds[score].setdefault((cell.method, cell.fraction), {})[cell.seed] = value
    methods, fractions = (list(dict.fromkeys(getattr(c, name) for c in cells)) for name in ("method", "fraction"))
    comparisons = [Comparison(score, methods, fractions, seeds[score], baseline) for score in SCORES]
    text = "\n".join(comparison.table() for comparison in comparisons if comparison.seeds)
    write_text(path, text)
    comparisons[0].draw(path.with_suffix(".png"))
    return text


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="of train.py; the networks and steps of all methods")
    parser.add_argument("--data", required=True, type=Path, help="data set in a layout that read_folder knows")
    parser.add_argument("--splits", required=True, type=Path, help="folder of split folders, one per fraction")
    parser.add_argument("--fractions", nargs="+", default=["1_30", "1_16", "1_8"], help="names of split folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["supervised", "unimatch_v2"], help=", ".join(METHODS))
    parser.add_argument("--baseline", default="supervised", help="method that the others are compared with")
    parser.add_argument("--first", type=Path, help="recipe of a supervised training that every run goes on from")
    parser.add_argument("--runs", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--table", required=True, type=Path, help="markdown file to write, and a .png")
    parser.add_argument(
        "--only", choices=["training", "table"], help="training: mIoU on val alone; table: run nothing, write the table"
    )
    return parser.parse_args(argv)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    require_matplotlib()
    own, dotted = split_sections(sys.argv[1:] if argv is None else argv)
    arguments = _parse(own)
    for option, method in (*(("methods", method) for method in arguments.methods), ("baseline", arguments.baseline)):
        if method not in METHODS:
            raise UsageError(f"--{option} {method}: is not one of {', '.join(METHODS)}")
    for fraction in arguments.fractions:
        if not (arguments.splits / fraction).is_dir():
            raise UsageError(f"--splits {arguments.splits}: has no {fraction}")
    instead = INSTEAD if arguments.first is None else {**INSTEAD, "start_from": "--first alone"}
    for name in dotted:
        if not name.startswith("segmenter."):
            raise UsageError(f"unknown argument '--{name}'; --segmenter.FIELD goes to every training")
        if (decided := name.removeprefix("segmenter.")) in instead:
            raise UsageError(f"--{name}: {dotted[name]!r} has no effect here; {instead[decided]} would be right")
    fields = {name.partition(".")[2]: value for name, value in dotted.items()}
    cells = [
        _cell(arguments, method, fraction, seed, fields)
        for seed in arguments.seeds
        for fraction in arguments.fractions
        for method in arguments.methods
    ]
    folders = StepFolders(arguments.runs)
    for cell in tqdm(cells if arguments.only != "table" else [], unit="run"):
        folders.run([*cell.first, *(cell.steps[:1] if arguments.only == "training" else cell.steps)])
        write_results(arguments.table, cells, folders, arguments.baseline)
    print(write_results(arguments.table, cells, folders, arguments.baseline), end="")


def _cell(arguments: argparse.Namespace, method: str, fraction: str, seed: int, fields: dict[str, Any]) -> Cell:
    data, split = arguments.data, arguments.splits / fraction
    fields, first = {**fields, "seed": seed}, ()
    if arguments.first is not None:
        supervised = {**fields, "method": "supervised"}
        first = pseudo_label_steps(data, data, supervised, arguments.first, split)[:1]
        fields["start_from"] = first[0]
    steps = pseudo_label_steps(data, data, {**fields, "method": method}, arguments.recipe, split)
    return Cell(method, fraction, seed, steps, first)


if __name__ == "__main__":
    main()
