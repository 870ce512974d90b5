"""Methods x fractions x seeds: every combination is a run of `run.py`, and what came out stands in tables and a curve.

    python trainers/experiment.py trainers/recipes/camvid_experiment.yaml --data CAMVID --out runs/camvid_experiment \
        --results results/camvid_experiment
    python trainers/experiment.py RECIPE ... --methods lisa cvi cvi+ocpl cora --seeds 0 1 2 --stage3.max_steps 500

Runs one after another. Steps that several runs have in common (the same instructions, pseudo-labels, first stage) are
done once (`steps.py`); interrupt it and start it again, and it goes on where it stopped. Several of these programs may
share OUT, say one per GPU with seeds of its own: a step that two of them need one does, and the other waits for it.
Each writes the rows of its own runs, so give each its own RESULTS; at the end `--only_results` with all seeds.
All methods see the same labelled images in the same order and take the same number of steps, but for variants of them
that a recipe adds, such as one with as much time as another:

    methods: [lisa, cora, lisa_350]
    variants: {lisa_350: {method: lisa, stage3: {max_steps: 350}}}

Writes RESULTS.csv (every score of every run), RESULTS.md (mean and standard deviation over seeds, also of the
differences to a baseline with the same seed) and RESULTS.png (the curve over fractions), anew after each run.
`--only_results` runs nothing. A run counts where its steps are those that the recipe and the options plan now; what an
older recipe left in OUT is told, and left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import Any

from tqdm.auto import tqdm

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import write_text
from trainers.argument_checks import nearest
from trainers.comparison import Comparison, require_matplotlib
from trainers.file_hashes import FileHashes
from trainers.methods import BASELINES, method_named
from trainers.recipe_parser import parse_recipe, split_sections
from trainers.run import SECTIONS, STAGES, RunArguments, override, plan, read_run, run, section_of
from trainers.steps import StepFolders

ALL = "all"
"""The fraction without lists."""
CSV_COLUMNS = ("method", "fraction", "seed", "stage", "score", "value")


@dataclass
class ExperimentArguments:
    recipe: str = field(default="", metadata={"help": "Recipe of a run, beside this one; see trainers/run.py."})
    data: str = field(default="", metadata={"help": "Folder with the data; see datasets_scripts/folder.py."})
    splits: str | None = field(
        default=None,
        metadata={"help": "Folder of folders with labeled.txt and unlabeled.txt, named as in `fractions`."},
    )
    fractions: list[str] = field(
        default_factory=list, metadata={"help": "Such as 1_30 1_16 1_8; none: the data as they are."}
    )
    methods: list[str] = field(
        default_factory=lambda: ["supervised", "lisa", "segllm", "cora"],
        metadata={"help": "See trainers/methods.py; the paper's table 4: lisa cvi ocpl tfca cvi+ocpl cvi+tfca cora."},
    )
    variants: dict = field(
        default_factory=dict,
        metadata={"help": "Further names for `methods`, in a recipe: each a mapping of `method`, and of sections with "
                  "fields that override those of the run's recipe."},
    )  # fmt: skip
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of every training."})
    out: str = field(default="", metadata={"help": "Folder of the runs and their steps."})
    results: str = field(default="", metadata={"help": "Path of the results without an ending; OUT/results."})
    score: str = field(
        default="all", metadata={"help": "The score of the curve: all, miou, or a kind such as `semantic, class`."}
    )
    baseline: str = field(
        default="lisa", metadata={"help": "What the other methods are compared with, seed by seed, where it is run."}
    )
    only_results: bool = field(default=False, metadata={"help": "Write the results of what has ended; run nothing."})
    embedding_cache: str | None = field(default=None, metadata={"help": "As in trainers/run.py."})
    embedding_cache_gigabytes: float | None = field(default=None, metadata={"help": "As in trainers/run.py."})
    accelerate_config: str | None = field(default=None, metadata={"help": "As in trainers/run.py."})


@dataclass(frozen=True)
class Cell:
    """One run of an experiment."""

    method: str
    fraction: str
    seed: int

    def folder(self, out: Path) -> Path:
        return out / f"{self.method}_{self.fraction.replace(' ', '_')}_seed{self.seed}"


def scores_of(summary: dict) -> dict[str, float]:
    """What one evaluation comes to: cIoU of all queries and of each kind, and the mean over classes."""
    scores = {"all": summary["all"]["ciou"]} | {kind: s["ciou"] for kind, s in summary["by_kind"].items()}
    return scores | ({"miou": summary["miou"]} if summary["miou"] is not None else {})


@dataclass
class Plans:
    """What the runs of an experiment are with today's recipe, options and data.

    Args:
        recipe: of a run.
        dotted: `section.field`, of all runs.
    """

    arguments: ExperimentArguments
    recipe: Path
    dotted: Mapping[str, Any]
    _steps: dict[Cell, dict[str, str] | str] = field(default_factory=dict)

    @cached_property
    def _files(self) -> FileHashes:
        """Shared, since all cells read the same data."""
        return FileHashes(Path(self.arguments.out) / "steps" / ".files.json")

    def of(self, cell: Cell) -> tuple[RunArguments, dict[str, dict[str, Any]]]:
        return run_of(cell, self.recipe, self.dotted, self.arguments)

    def steps(self, cell: Cell) -> dict[str, str] | str:
        """The name of each step's folder, by that of the step; why it cannot be told, where files are missing by which
        steps are known, such as the data."""
        if cell not in self._steps:
            own, sections = self.of(cell)
            planned = plan(own, sections)
            folders = StepFolders(Path(own.steps), own.accelerate_config)
            folders.files = self._files
            try:
                self._steps[cell] = {step.name: folders.folder(step).name for step in planned.steps}
            except UsageError as error:
                self._steps[cell] = str(error)
            else:
                self._files.save()
        return self._steps[cell]


def read_cells(cells: Iterable[Cell], plans: Plans) -> tuple[list[tuple[Cell, str, str, float]], list[str]]:
    """(cell, stage, score, value) of every run that has ended as it is planned now; what to say about the others."""
    found, notes = [], []
    for cell in cells:
        path = cell.folder(Path(plans.arguments.out)) / "run.json"
        if not path.exists():
            continue
        record, planned = json.loads(path.read_text(encoding="utf-8")), plans.steps(cell)
        if isinstance(planned, str):
            notes.append(f"note: runs count whatever their recipe was, since the steps cannot be known ({planned})")
        elif reason := _difference(record.get("steps", {}), planned):
            notes.append(f"note: {path} is left out, since it is not of this recipe and these options: {reason}")
            continue
        for stage, summary in record["summaries"].items():
            found += [(cell, stage, score, value) for score, value in scores_of(summary).items()]
    return found, list(dict.fromkeys(notes))


def _difference(recorded: Mapping[str, str], planned: Mapping[str, str]) -> str:
    """The first step that is another one; empty where there is none."""
    found = {name: Path(folder).name for name, folder in recorded.items()}
    for name in (*planned, *found):
        if found.get(name) != planned.get(name):
            return f"it has {found.get(name, f'no {name}')}, planned is {planned.get(name, f'no {name}')}"
    return ""


def write_results(plans: Plans, cells: Sequence[Cell]) -> str:
    """Writes the three files; returns the text of the tables, after a line for each run that is left out."""
    arguments = plans.arguments
    results = Path(arguments.results or Path(arguments.out) / "results")
    found, notes = read_cells(cells, plans)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows((c.method, c.fraction, c.seed, stage, score, value) for c, stage, score, value in found)
    write_text(results.with_name(results.name + ".csv"), lines.getvalue())

    scores: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for cell, stage, score, value in found:
        if stage == STAGES[-1]:
            scores.setdefault(score, {}).setdefault((cell.method, cell.fraction), {})[cell.seed] = value
    fractions = list(dict.fromkeys(cell.fraction for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    comparisons = {
        score: Comparison(
            "mean over classes of the cIoU" if score == "miou" else f"cIoU, {score}",
            methods,
            fractions,
            seeds,
            arguments.baseline,
        )
        for score, seeds in scores.items()
    }
    text = "\n".join(comparison.table() for comparison in comparisons.values())
    write_text(results.with_name(results.name + ".md"), text)
    if arguments.score in comparisons:
        comparisons[arguments.score].draw(results.with_name(results.name + ".png"))
    elif comparisons:
        notes.append(f"note: score: {arguments.score!r} is none of {'; '.join(comparisons)}; no curve is drawn")
    return "".join(f"{note}\n" for note in notes) + text


def plan_cells(arguments: ExperimentArguments) -> list[Cell]:
    """Seed by seed, so that there is something to compare early.

    Raises:
        UsageError: an unknown method, a variant that cannot be, or a fraction that has no lists.
    """
    for name, variant in arguments.variants.items():
        _check_variant(name, variant)
    for method in (*arguments.methods, arguments.baseline):
        if method not in arguments.variants:
            method_named(method)
    for fraction in arguments.fractions:
        folder = Path(arguments.splits or "") / fraction
        if not arguments.splits or not folder.is_dir():
            raise UsageError(f"fractions: {fraction}: no folder {folder} with labeled.txt and unlabeled.txt")
    fractions = sorted(arguments.fractions, key=_as_number) or [ALL]
    return [Cell(m, f, s) for s, f, m in product(arguments.seeds, fractions, arguments.methods)]


def _check_variant(name: str, variant: Any) -> None:
    if not re.fullmatch(r"[\w.+-]+", str(name)):
        raise UsageError(f"variants: {name!r}: letters, digits and . _ + - alone, since folders bear the name")
    if name in BASELINES:
        raise UsageError(f"variants: {name}: is a method; another name would be right")
    if not isinstance(variant, dict) or not isinstance(variant.get("method"), str):
        raise UsageError(f"variants: {name}: {variant!r} is no mapping with a `method`")
    method_named(variant["method"])
    for section, given in sections_of(variant).items():
        if section not in SECTIONS or not isinstance(given, dict):
            raise UsageError(
                f"variants: {name}: {section}: {given!r} is no section of a run{nearest(section, SECTIONS)}"
            )


def sections_of(variant: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant overrides."""
    return {section: given for section, given in variant.items() if section != "method"}


def run_of(
    cell: Cell, recipe: Path, dotted: Mapping[str, Any], arguments: ExperimentArguments
) -> tuple[RunArguments, dict[str, dict[str, Any]]]:
    """What `run` takes: the recipe's own fields but for what the experiment decides, and its sections.

    Args:
        dotted: `section.field`, of all runs; a variant's own come before them.
    """
    own, sections = read_run([str(recipe)])
    variant = arguments.variants.get(cell.method, {"method": cell.method})
    override(sections, dotted)
    for section, given in sections_of(variant).items():
        sections[section].update(given)
    decided = replace(
        own,
        data=arguments.data,
        split_lists=None if cell.fraction == ALL else str(Path(arguments.splits or "") / cell.fraction),
        out=str(cell.folder(Path(arguments.out))),
        steps=str(Path(arguments.out) / "steps"),
        method=variant["method"],
        seed=cell.seed,
        embedding_cache=arguments.embedding_cache or own.embedding_cache,
        embedding_cache_gigabytes=arguments.embedding_cache_gigabytes or own.embedding_cache_gigabytes,
        accelerate_config=arguments.accelerate_config or own.accelerate_config,
    )
    return decided, sections


def _as_number(fraction: str) -> Fraction:
    try:
        return Fraction(fraction.replace("_", "/"))
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"fractions: {fraction!r} is not a fraction such as 1_30") from None


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    require_matplotlib()
    argv = list(sys.argv[1:] if argv is None else argv)
    own, dotted = split_sections(argv)
    (arguments,) = parse_recipe((ExperimentArguments,), own)
    for name in ("recipe", "data", "out"):
        if not getattr(arguments, name):
            raise UsageError(f"{name}: not given")
    cells = plan_cells(arguments)
    recipe = Path(own[0]).parent / arguments.recipe if own and not own[0].startswith("-") else Path(arguments.recipe)
    for variant in arguments.variants.values():
        variant |= {name: section_of(Path(own[0]), name, given) for name, given in sections_of(variant).items()}
    plans = Plans(arguments, recipe, dotted)
    for cell in cells if not arguments.only_results else ():
        plan(*plans.of(cell))  # whose errors nobody wants to wait for
    for cell in tqdm(cells if not arguments.only_results else [], unit="run"):
        run(*plans.of(cell))
        write_results(plans, cells)
    print(write_results(plans, cells), end="")


if __name__ == "__main__":
    main()
