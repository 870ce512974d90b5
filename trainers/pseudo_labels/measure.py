"""Every method on every fraction with every seed, and the table of what came out.

    python trainers/pseudo_labels/measure.py trainers/pseudo_labels/recipes/camvid_cpu.yaml --data CAMVID \
        --splits CAMVID/splits/camvid --runs runs/pseudo_labels --table results/pseudo_labels_camvid.md

Runs one after another, each of steps as in `trainers/run.py`: what is done is kept, what was interrupted goes on. The
table, and beside it the curve over the fractions (.png), are written anew after each run. `--only training` leaves
pseudo-labels and their audit out, `--only table` runs nothing. `--segmenter.FIELD VALUE` goes to every training.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: this folder has modules with names of libraries, and `import evaluate` would find another's file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from datasets_scripts.command_line import ArgumentParser, UsageError, one_line_errors
from datasets_scripts.files import write_text
from datasets_scripts.instructions.statistics import markdown_table
from trainers.arguments import split_sections
from trainers.label_efficiency import draw_curves
from trainers.pseudo_labels.arguments import METHODS
from trainers.pseudo_labels.steps import pseudo_label_steps
from trainers.steps import Step, StepFolders
from trainers.summary import mean_and_spread


@dataclass(frozen=True)
class Cell:
    """One run: a method, a fraction, a seed, and its training, prediction and audit."""

    method: str
    fraction: str
    seed: int
    steps: tuple[Step, Step, Step]


def read_run(cell: Cell, folders: StepFolders) -> dict | None:
    """mIoU on val and of the pseudo-labels, of a run whose training has ended."""
    train, _, audit = cell.steps
    if not folders.done(train).exists():
        return None
    record = json.loads((folders.folder(train) / "training.json").read_text(encoding="utf-8"))
    pseudo = None
    if folders.done(audit).exists():
        pseudo = json.loads((folders.folder(audit) / "audit.json").read_text(encoding="utf-8"))["miou"]
    return {"val": (record["val"] or {}).get("miou"), "pseudo_labels": pseudo}


def scores(cells: Sequence[Cell], folders: StepFolders) -> dict[str, dict[str, dict[str, list[float]]]]:
    """For "val" and "pseudo_labels", by method, by fraction, the mIoU of each seed that has ended."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {
        kind: {cell.method: {one.fraction: [] for one in cells} for cell in cells} for kind in ("val", "pseudo_labels")
    }
    for cell in cells:
        for kind, value in (read_run(cell, folders) or {}).items():
            if value is not None:
                found[kind][cell.method][cell.fraction].append(value)
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> str:
    """Markdown: a row for each method, for each fraction the mIoU on val and of the pseudo-labels."""
    fractions = next(iter(found["val"].values()))
    rows = [(m, *(mean_and_spread(found[kind][m][f]) for f in fractions for kind in found)) for m in found["val"]]
    head = [f"{f.replace('_', '/')} {kind.replace('_', '-')}" for f in fractions for kind in found]
    return markdown_table(("mIoU, %", *head), rows)


def write_results(path: Path, cells: Sequence[Cell], folders: StepFolders) -> str:
    """The table, which is returned, and the curve of the mIoU on val."""
    found = scores(cells, folders)
    text = table(found)
    write_text(path, text)
    curves = {method: {f: v for f, v in own.items() if v} for method, own in found["val"].items()}
    if curves := {method: own for method, own in curves.items() if own}:
        draw_curves(path.with_suffix(".png"), curves, "mIoU on val")
    return text


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="of train.py; the networks and steps of all methods")
    parser.add_argument("--data", required=True, type=Path, help="data set in a layout that read_folder knows")
    parser.add_argument("--splits", required=True, type=Path, help="folder of split folders, one per fraction")
    parser.add_argument("--fractions", nargs="+", default=["1_30", "1_16", "1_8"], help="names of split folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["supervised", "unimatch_v2"], help=", ".join(METHODS))
    parser.add_argument("--runs", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--table", required=True, type=Path, help="markdown file to write, and a .png")
    parser.add_argument(
        "--only", choices=["training", "table"], help="training: mIoU on val alone; table: run nothing, write the table"
    )
    return parser.parse_args(argv)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    own, dotted = split_sections(sys.argv[1:] if argv is None else argv)
    arguments = _parse(own)
    for method in arguments.methods:
        if method not in METHODS:
            raise UsageError(f"--methods {method}: is not one of {', '.join(METHODS)}")
    for fraction in arguments.fractions:
        if not (arguments.splits / fraction).is_dir():
            raise UsageError(f"--splits {arguments.splits}: has no {fraction}")
    for name in dotted:
        if not name.startswith("segmenter."):
            raise UsageError(f"unknown argument '--{name}'; --segmenter.FIELD goes to every training")
    fields = {name.partition(".")[2]: value for name, value in dotted.items()}
    cells = [
        Cell(method, fraction, seed, _steps(arguments, fraction, {**fields, "method": method, "seed": seed}))
        for seed in arguments.seeds
        for fraction in arguments.fractions
        for method in arguments.methods
    ]
    folders = StepFolders(arguments.runs)
    for cell in tqdm(cells if arguments.only != "table" else [], unit="run"):
        folders.run(cell.steps[:1] if arguments.only == "training" else cell.steps)
        write_results(arguments.table, cells, folders)
    print(write_results(arguments.table, cells, folders), end="")


def _steps(arguments: argparse.Namespace, fraction: str, fields: dict[str, Any]) -> tuple[Step, Step, Step]:
    data, split = arguments.data, arguments.splits / fraction
    return pseudo_label_steps(data, data, fields, arguments.recipe, split)


if __name__ == "__main__":
    main()
