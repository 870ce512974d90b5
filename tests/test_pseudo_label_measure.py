"""The measurement: what is run, what is kept, and the table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from datasets_scripts.files import write_text
from datasets_scripts.scenes import write_scenes
from datasets_scripts.splits import write_split
from trainers.pseudo_labels import measure
from trainers.steps import StepFolders

from .test_run import SECTIONS
from .test_stage1 import ROOT

SUPERVISED, UNIMATCH = "supervised", "unimatch"
RECIPES = ROOT / "trainers/pseudo_labels/recipes"
RECIPE, FROM_SUPERVISED = str(RECIPES / "camvid_cpu.yaml"), str(RECIPES / "camvid_from_supervised_cpu.yaml")


def cell(folder: Path, method: str, fraction: str, seed: int) -> measure.Cell:
    for path in (folder / "data", folder / fraction):
        path.mkdir(exist_ok=True)
    (folder / fraction / "labeled.txt").write_text(fraction)  # folders are known by what they hold
    arguments = argparse.Namespace(data=folder / "data", splits=folder, recipe=Path(RECIPE), first=None)
    return measure._cell(arguments, method, fraction, seed, {})


def finished(one: measure.Cell, folders: StepFolders, val: float, pseudo: float | None = None) -> None:
    """As the programs leave it."""
    train, _, audit = one.steps
    for step, name, content in (
        (train, "training.json", {"val": {"miou": val}}),
        (audit, "audit.json", {"miou": pseudo}),
    ):
        if step is train or pseudo is not None:
            write_text(folders.folder(step) / name, json.dumps(content))
            write_text(folders.done(step), "{}")


def cells_of(table: str) -> list[list[str]]:
    """Of each line that has some; without the rule below the head."""
    lines = [line for line in table.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_tables_have_means_spreads_and_differences_of_what_has_ended(tmp_path):
    folders = StepFolders(tmp_path / "runs")
    scores = {SUPERVISED: (0.30, 0.31), UNIMATCH: (0.30, 0.32, 0.37)}  # one run has not ended yet
    cells = [cell(tmp_path, method, "1_30", seed) for seed in range(3) for method in scores]
    for one in cells:
        if one.seed < len(scores[one.method]):
            finished(one, folders, scores[one.method][one.seed], 0.5 if one.method == UNIMATCH else None)
    cells.append(cell(tmp_path, UNIMATCH, "1_8", 0))
    finished(cells[-1], folders, 0.4)
    written = measure.write_results(tmp_path / "t.md", cells, folders, SUPERVISED)
    assert written == (tmp_path / "t.md").read_text()
    val, pseudo_labels = written.split("mIoU of the pseudo-labels")
    assert cells_of(val) == [
        ["%", "1/30", "1/8"],
        [SUPERVISED, "30.5 ± 0.7 (2)", ""],
        # mean .33, sample standard deviation sqrt((.03^2 + .01^2 + .04^2) / 2)
        [UNIMATCH, "33.0 ± 3.6 (3)", "40.0 (1)"],
        ["unimatch - supervised", "0.5 ± 0.7 (2)", ""],
    ]
    assert cells_of(pseudo_labels)[2] == [UNIMATCH, "50.0 ± 0.0 (3)", ""]
    # compared with a method that is not there: no differences
    assert " - " not in measure.write_results(tmp_path / "t.md", cells, folders, "semivl")
    assert Image.open(tmp_path / "t.png").width > 500


def test_before_a_run_has_ended_there_is_no_curve(tmp_path):
    assert (
        measure.write_results(tmp_path / "t.md", [cell(tmp_path, UNIMATCH, "1_8", 0)], StepFolders(tmp_path), "") == ""
    )
    assert not (tmp_path / "t.png").exists()


def options(folder: Path, recipe: str) -> list[str]:
    """Of supervised training and UniMatch on two of three drawn scenes, with one seed."""
    write_scenes(folder / "street", labelled=3, unlabelled=0, val=1, size=(64, 96), progress=False)
    names = sorted(path.stem for path in (folder / "street/images").glob("*.png"))
    rows = [f"{name}.png {name}.png" for name in names]
    write_split(folder / "splits/1_3", rows[:2], rows[2:])
    folders = {"data": "street", "splits": "splits", "runs": "runs", "table": "table.md"}
    argv = [recipe, *(text for name, path in folders.items() for text in (f"--{name}", str(folder / path)))]
    argv += ["--fractions", "1_3", "--seeds", "0", "--methods", SUPERVISED, UNIMATCH]
    fields = {**SECTIONS["pseudo_labels"], "absent_classes": "keep", "dataloader_num_workers": 0}
    return [*argv, *(text for name, value in fields.items() for text in (f"--segmenter.{name}", str(value)))]


def test_runs_that_have_ended_are_kept(tmp_path, capsys):
    argv = options(tmp_path, RECIPE)
    measure.main([*argv, "--only", "training"])
    assert (tmp_path / "table.md").read_text().count("(1)") == 3  # two methods and their difference, on val
    assert "done before" not in capsys.readouterr().out
    measure.main(argv)
    table = (tmp_path / "table.md").read_text()
    assert table.count("(1)") == 6  # and of the pseudo-labels
    assert capsys.readouterr().out.count("done before") == 2
    measure.main(argv)
    assert Image.open(tmp_path / "table.png").width > 500
    told = capsys.readouterr().out
    assert told.count("done before\n") == 6 and (tmp_path / "table.md").read_text() == table
    done = sorted((tmp_path / "runs").glob("segmenter-*.done.json"))[0]
    done.write_text(json.dumps(json.loads(done.read_text()) | {"code": "another"}))
    measure.main(argv)
    told = capsys.readouterr().out
    assert told.count("done before\n") == 5
    assert f"done before, by other code; to do it again remove {done.with_name(done.name.split('.')[0])}*\n" in told


def test_runs_go_on_from_one_supervised_training(tmp_path, capsys):
    argv = [*options(tmp_path, FROM_SUPERVISED), "--only", "training"]
    measure.main([*argv, "--first", RECIPE])
    assert capsys.readouterr().out.count("done before") == 1  # the first training, by the second method
    commands = [json.loads(path.read_text())["arguments"] for path in (tmp_path / "runs").glob("segmenter-*.done.json")]
    done = [{"recipe": words[0], **dict(word[2:].split("=", 1) for word in words[1:])} for words in commands]
    starts = {one["start_from"] for one in done if "start_from" in one}
    (first,) = (one for one in done if "start_from" not in one)
    assert len(done) == 3 and starts == {first["output_dir"]}
    assert (first["recipe"], first["method"]) == (RECIPE, SUPERVISED)
    measure.main([*options(tmp_path / "alone", RECIPE), "--only", "training", "--methods", SUPERVISED])
    (alone,) = (tmp_path / "alone/runs").glob("segmenter-*.done.json")
    assert alone.name == Path(first["output_dir"]).name + ".done.json"  # one step, of either table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--fractions", "1_7"], "1_7"),
        (["--methods", "none"], "--methods none: is not"),
        (["--baseline", "none"], "--baseline none: is not"),
        (["--first", "none.yaml"], "none.yaml: no such recipe"),
        (["--stage1.flip", "0"], "'--stage1.flip'"),
        (["--segmenter.seed", "3"], "--segmenter.seed: 3 has no effect here; --seeds would be right"),
        (["--segmenter.start_from", "F", "--first", RECIPE], "has no effect here; --first alone would be right"),
        (["--segmenter.data", "E"], "--segmenter.data: 'E' has no effect here; --data would be right"),
        (["--segmenter.method", "semivl"], "--segmenter.method: 'semivl' has no effect here; --methods would be right"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path, capsys, changes, message):
    base = [RECIPE, "--data", "D", "--splits", str(tmp_path)]
    base += ["--runs", str(tmp_path / "r"), "--table", str(tmp_path / "t.md")]
    (tmp_path / "1_30").mkdir()
    with pytest.raises(SystemExit) as exit_info:
        measure.main([*base, "--fractions", "1_30", *changes])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["1_30"]
