"""Every method on every fraction with every seed, and the table of what came out.

    python trainers/pseudo_labels/measure.py --data CAMVID --splits CAMVID/splits/camvid --runs runs/pseudo_labels \
        --table results/pseudo_labels_camvid.md

Runs one after another, each in a program of its own; a run that has ended (`training.json`) is kept, one that was
interrupted goes on from its last checkpoint. The table is written anew after each run. `--only table` runs nothing.
Options after `--` go to every run: `-- --max_steps 200`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: this folder has modules with names of libraries, and `import evaluate` would find another's file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import subprocess
import time
from collections.abc import Sequence

from tqdm.auto import tqdm

from datasets_scripts.command_line import ArgumentParser, UsageError, one_line_errors
from datasets_scripts.files import write_text
from trainers.summary import mean_and_spread

HERE = Path(__file__).resolve().parent
ROWS = {
    "SegFormer-B0, supervised": ("camvid_cpu", "supervised"),
    "SegFormer-B0, UniMatch": ("camvid_cpu", "unimatch"),
    "SegFormer-B0, UniMatch V2": ("camvid_cpu", "unimatch_v2"),
    "SemiVL's network, supervised": ("camvid_semivl_cpu", "supervised"),
    "SemiVL's network, SemiVL": ("camvid_semivl_cpu", "semivl"),
}
"""Row of the table -> recipe and method. Each method stands beside *supervised* with the same network and steps."""


def run_folder(runs: Path, row: str, fraction: str, seed: int) -> Path:
    recipe, method = ROWS[row]
    return runs / f"{recipe}_{method}_{fraction}_seed{seed}"


def run_once(arguments: argparse.Namespace, row: str, fraction: str, seed: int) -> None:
    """One training run, its pseudo-labels and their audit, as far as they are not there yet.

    Raises:
        UsageError: the run ended with an error (its last line is told).
    """
    recipe, method = ROWS[row]
    folder = run_folder(arguments.runs, row, fraction, seed)
    split = arguments.splits / fraction
    started = time.perf_counter()
    if not (folder / "training.json").exists():
        train = [str(HERE / "train.py"), str(HERE / "recipes" / f"{recipe}.yaml"), "--data", str(arguments.data)]
        train += ["--split_lists", str(split), "--method", method, "--seed", str(seed), "--output_dir", str(folder)]
        train += ["--resume_from_checkpoint", "true", *arguments.options]
        _run(train, folder)
        write_text(folder / "seconds.txt", f"{time.perf_counter() - started:.0f}\n")
    predictions = folder / "pseudo_labels"
    if not (predictions / "audit.json").exists():
        data = ["--data", str(arguments.data)]
        _run([str(HERE / "predict.py"), "--model", str(folder), *data, "--split_lists", str(split), "--out",
              str(predictions)], folder)  # fmt: skip
        _run([str(HERE / "audit.py"), "--predictions", str(predictions), *data], folder)


def _run(command: Sequence[str], folder: Path) -> None:
    result = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        last = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "no message")
        raise UsageError(f"{folder}: {Path(command[0]).name} ended with {result.returncode}: {last}")


def read_run(folder: Path) -> dict | None:
    """mIoU on val and of the pseudo-labels, of a run that has ended."""
    if not (folder / "training.json").exists():
        return None
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    audit = folder / "pseudo_labels" / "audit.json"
    pseudo = json.loads(audit.read_text(encoding="utf-8"))["miou"] if audit.exists() else None
    return {"val": (record["val"] or {}).get("miou"), "pseudo_labels": pseudo, "steps": record["steps"]}


def table(runs: Path, fractions: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: a row for each method, for each fraction the mIoU on val and of the pseudo-labels."""
    head = ["mIoU, %", *(f"{f.replace('_', '/')} {kind}" for f in fractions for kind in ("val", "pseudo-labels"))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in ROWS:
        cells = [row]
        for fraction in fractions:
            found = [read_run(run_folder(runs, row, fraction, seed)) for seed in seeds]
            for kind in ("val", "pseudo_labels"):
                cells.append(mean_and_spread([one[kind] for one in found if one and one[kind] is not None]))
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="data set in a layout that read_folder knows")
    parser.add_argument("--splits", required=True, type=Path, help="folder of split folders, one per fraction")
    parser.add_argument("--fractions", nargs="+", default=["1_30", "1_16", "1_8"], help="names of split folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="rows of the table to run")
    parser.add_argument("--runs", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--table", required=True, type=Path, help="markdown file to write")
    parser.add_argument("--only", choices=["table"], default=None, help="run nothing, write the table")
    parser.add_argument("options", nargs="*", help="for train.py, after --")
    return parser.parse_args(argv)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    for row in arguments.rows:
        if row not in ROWS:
            raise UsageError(f"--rows {row!r}: is not one of {', '.join(ROWS)}")
    for fraction in arguments.fractions:
        if not (arguments.splits / fraction).is_dir():
            raise UsageError(f"--splits {arguments.splits}: has no {fraction}")
    plan = [(row, f, seed) for seed in arguments.seeds for f in arguments.fractions for row in arguments.rows]
    for row, fraction, seed in tqdm(plan if arguments.only is None else [], unit="run"):
        run_once(arguments, row, fraction, seed)
        write_text(arguments.table, table(arguments.runs, arguments.fractions, arguments.seeds))
    write_text(arguments.table, table(arguments.runs, arguments.fractions, arguments.seeds))
    print(arguments.table.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
