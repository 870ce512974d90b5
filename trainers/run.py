"""A whole run from one recipe: instructions, pseudo-labels, the three stages, an evaluation after each, a report.

    python trainers/run.py trainers/recipes/camvid_run.yaml --data CAMVID --split_lists LISTS --out runs/camvid
    python trainers/run.py RECIPE --data DIR --out DIR --method lisa --seed 1 --stage3.max_steps 2000

A recipe has the fields of `RunArguments` and a section for each program (`SECTIONS`), with that program's fields and,
for trainings (`pseudo_labels` and the stages), under `recipe` the file that they override. On the command line a field
of a section is `--SECTION.FIELD`. What the run or its method decides, such as the data and the seed, no section can
change: another value there is an error.

Every step has its own folder in OUT/steps (`steps.py`): interrupt it and run it again, and what is done stays done;
change a field, and only the steps that depend on it are done anew. Writes OUT/report.html, OUT/run.json, and OUT/model
and OUT/evaluation, which are links to the last stage's.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import link, write_json
from datasets_scripts.folder import read_folder
from datasets_scripts.records import DataError
from trainers.adapters import refuse_base_without_anchors
from trainers.argument_checks import nearest
from trainers.arguments import EmbeddingCacheArguments, UnlabelledArguments
from trainers.base_trainer import SHARDED_GRADIENTS
from trainers.consistency_weights import ConsistencyArguments
from trainers.evaluate import EvaluationArguments
from trainers.methods import LISA_CONFIDENCE, method_named
from trainers.pseudo_labels.steps import pseudo_label_steps
from trainers.recipe_parser import parse_recipe, read_recipe, read_yaml, split_sections
from trainers.report import Stage, read_history, write_report
from trainers.stage import ARGUMENTS as STAGE_ARGUMENTS
from trainers.steps import RESUMES, Step, StepFolders
from trainers.summary import markdown, stage_table

STAGES = ("stage1", "stage2", "stage3")
LINKS = ("model", "evaluation")
"""Names in OUT for the folders of the last stage."""
SECTIONS = ("instructions", "pseudo_labels", "prediction", *STAGES, "consistency", "evaluation")
"""`instructions`: options of `datasets_scripts.build`; `pseudo_labels`: fields of `trainers/pseudo_labels/train.py`, or
`folder` for pseudo-labels that are there; `prediction`: of its `predict.py`; the others: of the programs so named."""
OUTPUTS = {"instructions": "out", "pseudo_labels": "output_dir", "prediction": "out", "consistency": "out",
           "evaluation": "out", **dict.fromkeys(STAGES, "output_dir")}  # fmt: skip
"""The field of each section that names its step's folder, which the run decides."""
INSTEAD = {
    "seed": "--seed",
    "data": "--data",
    "data_name": "--data_name",
    "split_lists": "--split_lists",
    "embedding_cache": "--embedding_cache",
    "embedding_cache_gigabytes": "--embedding_cache_gigabytes",
    "stage2.model": "--stage1.model",
    "stage3.model": "--stage1.model",
    "pseudo_labels": "--pseudo_labels.folder",
}
"""What to give in place of a field that the run decides."""
OF_STAGE3 = {"rephrasings": "rephrasings", "kinds": "unlabelled_kinds"}
"""Fields of `consistency` that stage 3 gives where the section does not, by its own names."""
PLACES = ("recipe", "folder")
"""What sections have beside fields of their programs: paths, of which null means none."""
LEAVE_OUT = ("consistency", "sigma")
"""Fields by which a method does without a component; a recipe of all methods may give them for those that have it."""


@dataclass
class RunArguments:
    data: str = field(default="", metadata={"help": "Folder with the data; see datasets_scripts/folder.py."})
    data_name: str | None = field(
        default=None, metadata={"help": "What a model card calls the data: a Hub id, or the folder's name by default."}
    )
    split_lists: str | None = field(default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt."})
    out: str = field(default="", metadata={"help": "Folder of the run."})
    steps: str | None = field(
        default=None, metadata={"help": "Folder of the steps, which several runs may share; OUT/steps."}
    )
    method: str = field(
        default="cora",
        metadata={"help": "cora, lisa, segllm, supervised, or components joined by + (see trainers/methods.py)."},
    )
    seed: int = field(default=42, metadata={"help": "Of every training."})
    evaluated_stages: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={"help": "Stages whose models answer the evaluation's queries; the last one has to be among them."},
    )
    embedding_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of SAM's embeddings for all stages, weights and evaluations, for a frozen encoder; "
                  "see trainers/embedding_cache.py."},
    )  # fmt: skip
    embedding_cache_gigabytes: float | None = field(
        default=None, metadata={"help": "Most that the cache takes of the disk; by default what each program takes."}
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "File of `accelerate config`; starts what can be on its devices."}
    )

    def __post_init__(self):
        given = self.evaluated_stages
        if unknown := [name for name in given if name not in STAGES]:
            raise UsageError(f"evaluated_stages: {unknown[0]!r} is not one of {', '.join(STAGES)}")
        if STAGES[-1] not in given:
            raise UsageError(f"evaluated_stages: {' '.join(given)}: without {STAGES[-1]}, whose scores are the run's")


@dataclass(frozen=True)
class Run:
    """Attributes:
    preparation: steps before stage 1.
    stages: by name, the training of each stage.
    evaluations: by name, of the stages that are evaluated.
    notes: what the sections give and the method does without.
    """

    preparation: tuple[Step, ...]
    stages: dict[str, Step]
    weights: Step | None
    evaluations: dict[str, Step]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> list[Step]:
        """All of them, in an order in which they can be run."""
        before = {"stage3": self.weights}
        steps = list(self.preparation)
        for name in STAGES:
            steps += [step for step in (before.get(name), self.stages[name], self.evaluations.get(name)) if step]
        return steps


def read_run(argv: Sequence[str] | None = None) -> tuple[RunArguments, dict[str, dict[str, Any]]]:
    """`[recipe.yaml] [--field value ...] [--section.field value ...]` -> the run's own fields, and its sections.

    Raises:
        DataError, UsageError: a recipe that cannot be read, or an unknown field or section.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    recipe_path = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else None
    recipe = read_yaml(recipe_path) if recipe_path else {}
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    own: dict[str, Any] = {}
    known = {*sections, *(f.name for f in fields(RunArguments))}
    for name, value in recipe.items():
        if name not in known:
            raise DataError(f"{recipe_path}: unknown field {name!r}{nearest(str(name), known)}")
        if name not in sections:
            if value is not None:  # null is what is not given
                own[name] = value
        else:
            sections[name] = section_of(recipe_path, name, value)
    given, dotted = split_sections(argv)
    override(sections, dotted)
    defaults = read_recipe(recipe_path, (RunArguments,), own) if recipe_path else {}
    (arguments,) = parse_recipe((RunArguments,), given, defaults)
    return arguments, sections


def section_of(path: Path, name: str, value: Any) -> dict[str, Any]:
    """A section of a file; the recipe that it names lies beside that file.

    Raises:
        DataError: it is no mapping, or names no file.
    """
    if not isinstance(value, dict):
        raise DataError(f"{path}: {name}: holds {value!r}; a section is a mapping of fields to values")
    for place in PLACES:
        if not isinstance(value.get(place), str | None):
            raise DataError(f"{path}: {name}: {place}: {value[place]!r} is no path")
    given = {k: v for k, v in value.items() if v is not None or k not in PLACES}
    return {**given, "recipe": str(path.parent / given["recipe"])} if "recipe" in given else given


def override(sections: dict[str, dict[str, Any]], dotted: Mapping[str, Any]) -> None:
    """Puts values that were given as `section.field` into their sections.

    Raises:
        UsageError: an unknown section, or no path where one is asked for.
    """
    for name, value in dotted.items():
        section, _, entry = name.partition(".")
        if section not in sections:
            raise UsageError(f"unknown argument '--{name}'{nearest(section, sections)}")
        if entry in PLACES and not isinstance(value, str | None):
            raise UsageError(f"--{name}: {value!r} is no path")
        if entry in PLACES and value is None:
            sections[section].pop(entry, None)
        else:
            sections[section][entry] = value


def plan(arguments: RunArguments, sections: Mapping[str, Mapping[str, Any]]) -> Run:
    """The steps of a run; nothing is done yet, and nothing read but the recipes of trainings.

    Raises:
        UsageError: no data or no place, an unknown method, or a section's field that the run or the method decides
            otherwise. What a section's recipe file gives is overridden: it serves other runs as well.
        DataError: a recipe that cannot be read.
    """
    method = method_named(arguments.method)
    for name in ("data", "out"):
        if not getattr(arguments, name):
            raise UsageError(f"--{name}: not given; a folder")
    for name, output in OUTPUTS.items():
        if output in sections[name]:
            given = sections[name][output]
            raise UsageError(f"{name}.{output}: {given!r}, but steps lie in --steps; --out or --steps would be right")
    data = _instructions(arguments, sections["instructions"])
    preparation = [data] if isinstance(data, Step) else []
    given = {name: getattr(arguments, name) for name in ("embedding_cache", "embedding_cache_gigabytes")}
    caching = {name: value for name, value in given.items() if value is not None}
    # tables that the run builds are made with the lists; those that are there have all images
    lists = {"split_lists": Path(arguments.split_lists)} if arguments.split_lists and not preparation else {}
    # each stage draws other images, views and queries, or a later one would see those of an earlier one again
    draws = [{"data_seed": arguments.seed + 1000 * k} for k in range(3)]
    named = {"data": data, **lists, "data_name": arguments.data_name or Path(arguments.data).resolve().name, **caching}
    stage1 = _stage("stage1", sections, {**named, "seed": arguments.seed}, defaults=draws[0])
    _refuse_overridden("stage2", sections["stage2"], method.stage2(), f"method {arguments.method}")
    stage2 = _stage(
        # without conditional queries the second stage goes on as the first
        "stage2", sections, {"model": stage1, **named, "seed": arguments.seed}, method.stage2(),
        module="trainers.stage2" if "cvi" in method.components else "trainers.stage1", defaults=draws[1],
    )  # fmt: skip
    _refuse_overridden("stage3", sections["stage3"], method.stage3(), f"method {arguments.method}")
    types = (*STAGE_ARGUMENTS, UnlabelledArguments)
    third = {"model": stage2, **named, "seed": arguments.seed}
    weights = None
    if method.unlabelled:
        labels, steps = _pseudo_labels(arguments, sections, data, lists.get("split_lists"))
        preparation += steps
        third["pseudo_labels"] = labels
        given = _given(sections["stage3"], types)
        if "ocpl" in method.components and given.get("consistency", "ahead") == "ahead":
            decided = {"model": stage2, "data": data, **lists, "pseudo_labels": labels, **caching}
            _refuse_overridden("consistency", sections["consistency"], decided, "the run")
            # as where they are asked online; other seeds, other rephrasings
            asked = {name: given[of] for name, of in OF_STAGE3.items() if of in given} | {"seed": arguments.seed}
            weights = Step(
                "consistency",
                "trainers.consistency_weights",
                {**asked, **decided, **sections["consistency"]},
                arguments=(ConsistencyArguments, EmbeddingCacheArguments),
            )
            third["consistency_weights"] = weights
    idle, chosen = method.idle(), {"pseudo_confidence": LISA_CONFIDENCE, **draws[2]}
    own = {**sections, "stage3": _without(sections["stage3"], idle)}
    stage3 = _stage("stage3", own, third, method.stage3(), types=types, defaults=_without(chosen, idle))
    stages = {"stage1": stage1, "stage2": stage2, "stage3": stage3}
    _refuse_overridden("evaluation", sections["evaluation"], {"model": stage3, **named}, "the run")
    evaluations = {
        name: Step(
            f"evaluation_{name}",
            "trainers.evaluate",
            {"model": stage, **named, **sections["evaluation"]},
            arguments=(EvaluationArguments, EmbeddingCacheArguments),
        )
        for name, stage in stages.items()
        if name in arguments.evaluated_stages
    }
    notes = tuple(
        f"stage3.{name}: {sections['stage3'][name]} does not count; method {arguments.method} decides {decided}"
        for name, decided in method.stage3().items()
        if name in LEAVE_OUT and name in sections["stage3"] and not _same(sections["stage3"][name], decided)
    )
    return Run(tuple(preparation), stages, weights, evaluations, notes)


def _stage(
    name: str,
    sections: Mapping[str, Mapping[str, Any]],
    decided: Mapping[str, Any],
    by_method: Mapping[str, Any] | None = None,
    module: str = "",
    types: tuple[type, ...] = STAGE_ARGUMENTS,
    defaults: Mapping[str, Any] | None = None,
) -> Step:
    """Args:
    decided: fields that the run decides; a section cannot change them.
    by_method: fields that the method decides.
    defaults: fields that a section or its recipe can change.
    """
    _refuse_overridden(name, sections[name], decided, "the run")
    section = dict(sections[name])
    recipe = Path(section.pop("recipe")) if "recipe" in section else None
    in_recipe = read_recipe(recipe, types) if recipe else {}
    left = {field_name: value for field_name, value in (defaults or {}).items() if field_name not in in_recipe}
    given = {**left, **section, **decided, **(by_method or {})}
    return Step(name, module or f"trainers.{name}", given, "output_dir", recipe, types, resumes=RESUMES)


def _without(section: Mapping[str, Any], idle: Collection[str]) -> dict[str, Any]:
    """A section but for fields that change nothing, which are no reason to train a method anew."""
    return {name: value for name, value in section.items() if name not in idle}


def _given(section: Mapping[str, Any], types: Sequence[type]) -> dict[str, Any]:
    """The fields of a section over those of its recipe file."""
    recipe = read_recipe(Path(section["recipe"]), types) if "recipe" in section else {}
    return {**recipe, **section}


def _refuse_overridden(name: str, section: Mapping[str, Any], decided: Mapping[str, Any], by: str) -> None:
    """Raises:
    UsageError: the section gives a field another value than the one that is decided; it would have no effect.
    """
    for field_name in sorted(section.keys() & decided.keys()):
        given, value = section[field_name], decided[field_name]
        if field_name in LEAVE_OUT or _same(given, value):
            continue
        if field_name == "kinds" and _without_conditional(given) in ([], sorted(value)):
            continue  # what a method without conditional queries makes of a recipe of all methods
        shown = f"the folder of the step {value.name}" if isinstance(value, Step) else value
        field_of_run = INSTEAD.get(field_name) or INSTEAD.get(f"{name}.{field_name}")
        instead = field_of_run if by == "the run" else "another method"
        instead = f"{instead}, or nothing here," if instead else "nothing here"
        raise UsageError(f"{name}.{field_name}: {given!r}, but {by} decides {shown}; {instead} would be right")


def _same(given: Any, decided: Any) -> bool:
    if isinstance(decided, Path):
        return Path(str(given)).absolute() == decided.absolute()
    if isinstance(decided, list):
        return isinstance(given, list) and sorted(map(str, given)) == sorted(decided)
    return not isinstance(decided, Step) and given == decided


def _without_conditional(kinds: Any) -> list[str]:
    return sorted(str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "conditional")


def _instructions(arguments: RunArguments, section: Mapping[str, Any]) -> Step | Path:
    """The step that makes tables of a folder; a folder that holds tables stays as it is."""
    root = Path(arguments.data)
    if any(root.glob("scenes/*.parquet")):
        if given := sorted(section.keys() - {"name"}):
            raise UsageError(
                f"instructions.{given[0]}: has no effect on {root}, which holds tables already; the folder that they "
                "were built from, or nothing here, would be right"
            )
        return root
    options = dict(section)
    if given := options.get("instructions"):  # paths, since a step is known by what its files hold
        options["instructions"] = [Path(path) for path in (given if isinstance(given, list) else [given])]
    name = options.pop("name", "data")  # no reader's, so the layout is recognised
    split_lists = Path(arguments.split_lists) if arguments.split_lists else None
    own = {"root": root, "split_lists": split_lists, **options}
    return Step("instructions", "datasets_scripts.build", own, words=(str(name),), launched=False)


def _pseudo_labels(
    arguments: RunArguments, sections: Mapping[str, Mapping[str, Any]], data: Step | Path, split_lists: Path | None
) -> tuple[Step | Path, list[Step]]:
    """Where the pseudo-labels are, and the steps that make them.

    Args:
        split_lists: of `data`.
    """
    section = dict(sections["pseudo_labels"])
    if "folder" in section:
        return Path(section["folder"]), []
    recipe = Path(section.pop("recipe")) if "recipe" in section else None
    fields = {**section, "seed": arguments.seed}
    decided = {"data": data, "split_lists": split_lists}
    _refuse_overridden("pseudo_labels", section, {**decided, "seed": arguments.seed}, "the run")
    # the folder as it came has the truth of images that the split calls unlabelled; nothing trains on this
    steps = pseudo_label_steps(data, Path(arguments.data), fields, recipe, split_lists, sections["prediction"])
    _refuse_overridden("prediction", sections["prediction"], {**decided, "model": steps[0]}, "the run")
    return steps[1], list(steps)


def write_results(arguments: RunArguments, run: Run, folders: StepFolders) -> dict[str, dict]:
    """OUT/run.json, OUT/report.html and the names OUT/model and OUT/evaluation for those of the last stage.

    Returns:
        the summary of each evaluated stage (see `summary.py`).
    """
    out = Path(arguments.out)
    evaluated = {name: folders.folder(step) for name, step in run.evaluations.items()}
    summaries = {name: read_summary(folder) for name, folder in evaluated.items()}
    record = {
        "method": arguments.method,
        "seed": arguments.seed,
        "steps": {step.name: str(folders.folder(step)) for step in run.steps},
        "seconds": {step.name: folders.seconds_of(step) for step in run.steps},
        "summaries": summaries,
    }
    write_json(out / "run.json", record)
    stages = [
        Stage(
            name,
            read_history(folders.folder(step)),
            summaries.get(name),
            picture_of(evaluated[name]) if name in evaluated else None,
        )
        for name, step in run.stages.items()
    ]
    minutes = sum(record["seconds"].values()) / 60
    introduction = f"Method {arguments.method}, seed {arguments.seed}; {minutes:.1f} minutes in all."
    for name, step in zip(LINKS, (run.stages[STAGES[-1]], run.evaluations[STAGES[-1]]), strict=True):
        link(out / name, folders.folder(step))
    write_report(out / "report.html", f"CORA on {arguments.data}", introduction, stages)
    return summaries


def read_summary(folder: Path) -> dict:
    """What `evaluate.py` wrote."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def picture_of(evaluation: Path) -> Path | None:
    """None where `examples: 0` asked for none."""
    path = evaluation / "overlays.png"
    return path if path.exists() else None


def refuse_to_write_into_inputs(arguments: RunArguments, steps: Sequence[Step]) -> None:
    """What a step reads is known by its files: with the run's own among them nothing would ever be done before.

    Raises:
        UsageError: a folder of the run lies in one that a step is given.
    """
    read = {value for step in steps for value in step.fields.values() if isinstance(value, Path)}
    for name in ("out", "steps", "embedding_cache"):
        place = getattr(arguments, name)
        for folder in sorted(read):
            if place and Path(place).resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"--{name}: {place} lies in {folder}, which the run reads; a folder beside it would be right"
                )


def run(arguments: RunArguments, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    """Does what is not done yet; returns the summary of each evaluated stage.

    Raises:
        DataError, UsageError, SystemExit: see `StepFolders.run`.
    """
    planned = plan(arguments, sections)
    refuse_to_write_into_inputs(arguments, planned.steps)
    for note in planned.notes:
        print(f"note: {note}", flush=True)
    for path in (Path(arguments.out) / name for name in LINKS):
        if path.exists() and not path.is_symlink():
            raise UsageError(f"{path}: is not of a run; another --out, or an --out without it, would be right")
    scene_set = read_folder(arguments.data, arguments.split_lists)  # whose errors nobody wants to wait for
    split = sections["evaluation"].get("split", EvaluationArguments.split)
    if not scene_set.split(str(split), labelled=True):
        raise DataError(
            f"{arguments.data}: split {split!r} has no labelled image to be asked about; {split}/images and "
            f"{split}/masks, a val.txt in --split_lists, or another --evaluation.split, would be right"
        )
    if method_named(arguments.method).unlabelled and not scene_set.split("train", labelled=False):
        raise DataError(
            f"{arguments.data}: no unlabelled training image, and method {arguments.method} learns from some; "
            "unlabelled/, --split_lists, or --method segllm or supervised would be right"
        )
    folders = StepFolders(Path(arguments.steps or Path(arguments.out) / "steps"), arguments.accelerate_config)
    if folders.sharded:  # stage 2 would say so, after all of stage 1
        raise UsageError(
            f"accelerate_config: {arguments.accelerate_config}: stages 2 and 3 do not run with {SHARDED_GRADIENTS}"
        )
    if "cvi" in method_named(arguments.method).components:  # no other method's stages show anchors
        model, parts, *_ = folders.arguments_of(planned.stages["stage1"])
        refuse_base_without_anchors(model.model, parts.lora_r)
    folders.run(planned.steps)
    return write_results(arguments, planned, folders)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    arguments, sections = read_run(argv)
    summaries = run(arguments, sections)
    print(markdown(stage_table(summaries)), end="")
    print(f"Report: {Path(arguments.out) / 'report.html'}")


if __name__ == "__main__":
    main()
