"""Experiments: what they run, and the tables that come of it."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.files import write_text
from datasets_scripts.scenes import write_scenes
from datasets_scripts.splits import write_split
from trainers import comparison, experiment
from trainers.comparison import Comparison
from trainers.diagnose import main as diagnose
from trainers.experiment import ALL, Cell, ExperimentArguments, Plans, main, plan_cells, run_of, sections_of
from trainers.pseudo_labels.measure import main as measure
from trainers.recipe_parser import parse_recipe
from trainers.run import STAGES, RunArguments, plan, read_run

from .test_run import RECIPE, SECTIONS
from .test_stage1 import ROOT

METHODS, FRACTIONS, SEEDS = ("lisa", "cora"), ("1_8", "1_30"), (0, 1, 2)


def ciou(method: str, fraction: str, seed: int, stage: int = 3) -> float:
    """A score that differs between all runs."""
    return round(
        0.2 + 0.1 * METHODS.index(method) + 0.05 * FRACTIONS.index(fraction) + 0.01 * seed**2 - stage / 1000, 4
    )


def summary(value: float) -> dict:
    return {"all": {"ciou": value}, "by_kind": {"semantic, class": {"ciou": value / 2}}, "miou": None}


def write_run(out: Path, method: str, fraction: str, seed: int, data: str = "data") -> None:
    """What a run of `options` leaves, somewhere else."""
    experiment = ExperimentArguments(data=str(out / data), splits=str(out / "splits"), out=str(out))
    steps = Plans(experiment, Path(RECIPE), {}).steps(Cell(method, fraction, seed))
    steps = {name: f"/elsewhere/{folder}" for name, folder in steps.items()}
    stages = {f"stage{k}": summary(ciou(method, fraction, seed, k)) for k in (1, 2, 3)}
    write_text(Cell(method, fraction, seed).folder(out) / "run.json", json.dumps({"summaries": stages, "steps": steps}))


def options(tmp_path: Path, *more: str) -> list[str]:
    for fraction in FRACTIONS:
        (tmp_path / "splits" / fraction).mkdir(parents=True, exist_ok=True)
    (tmp_path / "data").mkdir(exist_ok=True)
    return ["--recipe", RECIPE, "--data", str(tmp_path / "data"), "--splits", str(tmp_path / "splits"), "--out",
            str(tmp_path), "--methods", *METHODS, "--fractions", *FRACTIONS, "--only_results", *more]  # fmt: skip


def test_tables_hold_the_mean_and_the_spread_over_seeds(tmp_path, capsys):
    options(tmp_path)
    for method in METHODS:
        for fraction in FRACTIONS:
            for seed in SEEDS[: 2 if (method, fraction) == ("cora", "1_8") else 3]:  # one run has not ended yet
                write_run(tmp_path, method, fraction, seed)
    main(options(tmp_path))
    tables = capsys.readouterr().out
    assert tables == (tmp_path / "results.md").read_text()
    head, _, *rows, differences = tables.split("\n\n")[1].splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["%", "1/30", "1/8"]
    assert [cell.strip() for cell in differences.split("|")[1:-1]] == [
        "cora - lisa",
        "10.0 ± 0.0 (3)",
        "10.0 ± 0.0 (2)",
    ]
    for row, method in zip(rows, METHODS, strict=True):
        name, *cells = (cell.strip() for cell in row.split("|")[1:-1])
        assert name == method
        for cell, fraction in zip(cells, ("1_30", "1_8"), strict=True):
            seeds = SEEDS[:2] if (method, fraction) == ("cora", "1_8") else SEEDS
            values = [100 * ciou(method, fraction, seed) for seed in seeds]
            assert cell == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(seeds)})"
    with open(tmp_path / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 11 * 3 * 2  # runs, stages, scores
    for line in lines:
        value = ciou(line["method"], line["fraction"], int(line["seed"]), int(line["stage"][-1]))
        assert float(line["value"]) == pytest.approx(value / (1 if line["score"] == "all" else 2))
    main(options(tmp_path, "--methods", "cora"))
    assert "cora - lisa" not in capsys.readouterr().out
    main(options(tmp_path))
    # each method has its colour in the curve
    colours = {pixel for _, pixel in Image.open(tmp_path / "results.png").convert("RGB").getcolors(1 << 20)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_runs_of_another_recipe_are_left_out(tmp_path, capsys):
    """Of other options and other data as well; where that cannot be known all count, and it is said."""
    argv = [*options(tmp_path), "--seeds", "0"]
    for method in METHODS:
        write_run(tmp_path, method, "1_8", 0)

    def rows(*more: str) -> tuple[set[str], list[str]]:
        main([*argv, *more])
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        with open(tmp_path / "results.csv", newline="") as file:
            return {line["method"] for line in csv.DictReader(file)}, told

    assert rows() == (set(METHODS), [])
    assert rows("--fractions", "1_30") == (set(), [])
    assert rows("--stage3.bank_size", "100")[0] == {"lisa"}  # it has no bank
    found, told = rows("--stage3.unlabelled_queries", "7")
    assert found == set() and len(told) == 2  # once for each run
    for method, line in zip(METHODS, told, strict=True):
        assert f"{method}_1_8_seed0/run.json is left out" in line and ": it has stage3-" in line
        assert ", planned is stage3-" in line
    found, told = rows("--prediction.window_stride", "1.0")
    assert found == set() and all("it has pseudo_labels-" in line for line in told)
    (tmp_path / "data/more").write_text("")
    assert rows()[0] == set() and "it has instructions-" in rows()[1][0]
    found, told = rows("--data", str(tmp_path / "gone"))
    assert found == set(METHODS) and len(told) == 1
    assert "since the steps cannot be known" in told[0] and "gone: no such file or folder" in told[0]
    old = Cell("cora", "1_8", 0).folder(tmp_path) / "run.json"
    (tmp_path / "data/more").unlink()
    write_text(old, json.dumps({"summaries": {"stage3": summary(0.5)}}))
    found, told = rows()
    assert found == {"lisa"} and "it has no instructions, planned is instructions-" in told[0] and len(told) == 1


def test_bad_options_of_one_method_stop_an_experiment_before_its_first_run(tmp_path, capsys):
    argv = [*options(tmp_path), "--only_results", "false", "--stage3.alignment", "false"]
    with pytest.raises(SystemExit):
        main(argv)  # lisa would take it
    assert "stage3.alignment: False, but method cora decides True" in capsys.readouterr().err
    assert not (tmp_path / "steps").exists()


@pytest.mark.parametrize("program", [main, diagnose, measure])
def test_without_matplotlib_nothing_begins(tmp_path, monkeypatch, capsys, program):
    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        program(options(tmp_path))
    error = capsys.readouterr().err
    assert error.startswith("error: matplotlib: not installed") and error.count("\n") == 1
    assert "pip install -e '.[experiment]'" in error and not (tmp_path / "results.csv").exists()


def test_one_threshold_is_for_all_methods(tmp_path):
    experiment = ExperimentArguments(data=str(tmp_path), out="out")
    plans = Plans(experiment, Path(RECIPE), {"stage3.pseudo_confidence": 0})
    for method in ("supervised", "lisa", "segllm", "cora"):
        run = plan(*plans.of(Cell(method, ALL, 0)))
        seen = None if method in ("supervised", "segllm") else 0  # no image has pseudo-labels there
        assert run.stages["stage3"].fields.get("pseudo_confidence") == seen and not run.notes


def test_with_one_fraction_each_method_has_a_place_of_its_own(tmp_path):
    methods = ("supervised", "lisa", "cora")
    seeds = {(method, ALL): {0: 0.3, 1: 0.4} for method in methods}
    Comparison("cIoU, all", methods, [ALL], seeds, "lisa").draw(tmp_path / "one.png")
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"))
    places = []
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        _, columns = np.nonzero((pixels == colour).all(2))
        places.append((columns.min(), columns.max()))
    (_, first), (second, third), (fourth, _) = places
    width = pixels.shape[1]
    assert second - first > width / 5 and fourth - third > width / 5


def test_without_runs_there_are_empty_tables_and_no_curve(tmp_path):
    main(options(tmp_path))
    assert (tmp_path / "results.csv").read_text() == "method,fraction,seed,stage,score,value\n"
    assert not (tmp_path / "results.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "coral"], "method 'coral'"),
        (["--baseline", "liza"], "method 'liza'"),
        (["--fractions", "1_4"], "fractions: 1_4: no folder"),
        (["--recipe", ""], "recipe: not given"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as ended:
        main(options(tmp_path, *more))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_an_experiment_shares_steps_and_does_nothing_twice(tmp_path, capsys):
    street = tmp_path / "street"
    write_scenes(street, labelled=3, unlabelled=1, val=1, size=(64, 96), progress=False)
    names = sorted(path.stem for path in (street / "images").glob("*.png"))
    rows = [f"{name}.png {name}.png" for name in names]
    write_split(tmp_path / "splits" / "1_2", rows[:2], rows[2:])
    folders = {"recipe": RECIPE, "data": street, "splits": tmp_path / "splits", "out": tmp_path / "runs"}
    argv = [text for name, value in folders.items() for text in (f"--{name}", str(value))]
    argv += ["--methods", "supervised", "lisa", "--fractions", "1_2", "--seeds", "0"]
    for section, given in SECTIONS.items():
        argv += [text for name, value in given.items() for text in (f"--{section}.{name}", str(value))]
    argv += ["--stage3.pseudo_confidence", "0"]  # after two steps nothing is sure of itself
    main(argv)
    steps = [path.name.split("-")[0] for path in (tmp_path / "runs/steps").glob("*.done.json")]
    assert sorted(steps) == sorted([
        "instructions", "stage1", "evaluation_stage1", "stage2", "evaluation_stage2",  # of both
        "segmenter", "pseudo_labels", "audit", "stage3", "stage3", "evaluation_stage3", "evaluation_stage3",
    ])  # fmt: skip
    table = (tmp_path / "runs/results.md").read_text()
    capsys.readouterr()
    main(argv)
    assert capsys.readouterr().out.count("done before") == 7 + 10
    assert (tmp_path / "runs/results.md").read_text() == table


def test_the_fraction_without_lists_has_a_name():
    assert Cell("cora", ALL, 1).folder(Path("out")).name == "cora_all_seed1"


def test_a_run_keeps_its_recipes_own_fields_but_for_what_the_experiment_decides(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{data_name: the data, embedding_cache: cache, out: elsewhere, method: lisa, seed: 7}")
    experiment = ExperimentArguments(data="data", splits="splits", out="out")
    found, _ = run_of(Cell("cora", "1_8", 1), recipe, {}, experiment)
    assert found == RunArguments(
        data="data", data_name="the data", embedding_cache="cache", split_lists="splits/1_8", out="out/cora_1_8_seed1",
        steps="out/steps", method="cora", seed=1,
    )  # fmt: skip
    assert run_of(Cell("cora", ALL, 1), recipe, {}, experiment)[0].split_lists is None


def test_a_variant_is_its_method_with_fields_of_its_own(tmp_path):
    (tmp_path / "run.yaml").write_text("{stage2: {max_steps: 9}, stage3: {max_steps: 10, flip: 0.0}}")
    recipe = tmp_path / "experiment.yaml"
    recipe.write_text(
        "recipe: run.yaml\nmethods: [lisa, lisa_350]\nbaseline: lisa_350\n"
        "variants: {lisa_350: {method: lisa, stage3: {max_steps: 350}}}\n"
    )
    (experiment,) = parse_recipe((ExperimentArguments,), [str(recipe), "--data", "data", "--out", "out"])
    lisa, other = (cell for cell in plan_cells(experiment) if cell.seed == 0)
    dotted = {"stage3.max_steps": 20, "stage2.flip": 0.5}
    for cell, steps, name in ((lisa, 20, "lisa_all_seed0"), (other, 350, "lisa_350_all_seed0")):
        own, sections = run_of(cell, tmp_path / "run.yaml", dotted, experiment)
        assert (own.method, Path(own.out).name, own.steps) == ("lisa", name, "out/steps")
        assert sections["stage3"] == {"max_steps": steps, "flip": 0.0}
        assert sections["stage2"] == {"max_steps": 9, "flip": 0.5}


def test_a_variants_recipe_lies_beside_the_experiments(tmp_path, monkeypatch):
    recipe, seen = tmp_path / "recipes/experiment.yaml", []
    write_text(recipe, f"recipe: {RECIPE}\nvariants: {{longer: {{method: lisa, stage3: {{recipe: own.yaml}}}}}}\n")
    write_text(recipe.with_name("own.yaml"), "max_steps: 7\n")
    monkeypatch.setattr(experiment, "run", lambda _, sections: seen.append(sections["stage3"]["recipe"]))
    (tmp_path / "data").mkdir()
    argv = ["--methods", "longer", "--seeds", "0", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    main([str(recipe), *argv])
    assert seen == [str(tmp_path / "recipes/own.yaml")]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("{a b: {method: lisa}}", "variants: 'a b': letters, digits and"),
        (
            "{more: {stage3: {max_steps: 3}}}",
            "variants: more: {'stage3': {'max_steps': 3}} is no mapping with a `method`",
        ),
        ("{more: {method: lise}}", "method 'lise'"),
        ("{more: {method: 3}}", "is no mapping with a `method`"),
        ("{cora: {method: lisa}}", "variants: cora: is a method; another name"),
        ("[cora]", """variants: invalid dict value: '["cora"]'"""),
        ("{more: {method: lisa, stage4: {max_steps: 3}}}", "stage4: {'max_steps': 3} is no section of a run; did you"),
        ("{more: {method: lisa, stage3: 3}}", "variants: more: stage3: 3 is no section of a run"),
    ],
)
def test_a_variant_that_cannot_be_gets_one_line(tmp_path, capsys, variant, message):
    recipe = tmp_path / "experiment.yaml"
    recipe.write_text(f"variants: {variant}\n")
    with pytest.raises(SystemExit) as ended:
        main([str(recipe), *options(tmp_path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "path", sorted((ROOT / "trainers/recipes").glob("*_experiment.yaml")), ids=lambda path: path.name
)
def test_the_recipes_plan_what_the_paper_compares(tmp_path, path):
    (arguments,) = parse_recipe((ExperimentArguments,), [str(path), "--splits", str(tmp_path)])
    for fraction in arguments.fractions:
        (tmp_path / fraction).mkdir()
    cells = plan_cells(arguments)
    assert len(set(cells)) == max(1, len(arguments.fractions)) * 4 * 3
    assert {cell.method for cell in cells} == {"supervised", "lisa", "segllm", "cora"}
    run_arguments, sections = read_run([str(path.parent / arguments.recipe)])
    assert all(sections[stage]["recipe"] for stage in STAGES) and not run_arguments.data
    (tmp_path / "data").mkdir()
    given = replace(arguments, data=str(tmp_path / "data"), out=str(tmp_path / "out"), methods=[*arguments.variants])
    for cell in plan_cells(given):
        planned = plan(*run_of(cell, path.parent / arguments.recipe, {}, given))
        changed = sections_of(arguments.variants[cell.method])
        for stage, values in changed.items():
            assert {name: planned.stages[stage].fields[name] for name in values} == values
