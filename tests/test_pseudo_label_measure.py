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
RECIPE = str(ROOT / "trainers/pseudo_labels/recipes/camvid_cpu.yaml")


def cell(folder: Path, method: str, fraction: str, seed: int) -> measure.Cell:
    for path in (folder / "data", folder / fraction):
        path.mkdir(exist_ok=True)
    arguments = argparse.Namespace(data=folder / "data", splits=folder, recipe=Path(RECIPE))
    steps = measure._steps(arguments, fraction, {"method": method, "seed": seed})
    return measure.Cell(method, fraction, seed, steps)


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


def test_the_table_has_means_and_spreads_of_what_has_ended(tmp_path):
    folders = StepFolders(tmp_path / "runs")
    cells = [cell(tmp_path, UNIMATCH, "1_30", seed) for seed in range(3)]
    for one, value in zip(cells, (0.30, 0.32, 0.37), strict=True):
        finished(one, folders, value, 0.5)
    cells += [cell(tmp_path, UNIMATCH, "1_8", 0), cell(tmp_path, SUPERVISED, "1_8", 0)]
    finished(cells[3], folders, 0.4)
    rows = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in measure.table(measure.scores(cells, folders)).splitlines()
    ]
    assert rows[0] == ["mIoU, %", "1/30 val", "1/30 pseudo-labels", "1/8 val", "1/8 pseudo-labels"]
    # mean .33, sample standard deviation sqrt((.03^2 + .01^2 + .04^2) / 2)
    assert rows[2] == [UNIMATCH, "33.0 ± 3.6 (3)", "50.0 ± 0.0 (3)", "40.0 (1)", ""]
    assert rows[3] == [SUPERVISED, "", "", "", ""]


def test_the_curve_shows_the_rows_that_have_a_score(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(measure, "draw_curves", lambda path, curves, label: drawn.append((path, curves)))
    folders = StepFolders(tmp_path / "runs")
    cells = [cell(tmp_path, UNIMATCH, fraction, 0) for fraction in ("1_30", "1_8")]
    cells += [cell(tmp_path, SUPERVISED, "1_30", 0)]
    measure.write_results(tmp_path / "t.md", cells, folders)
    assert not drawn
    finished(cells[1], folders, 0.4)
    measure.write_results(tmp_path / "t.md", cells, folders)
    assert drawn == [(tmp_path / "t.png", {UNIMATCH: {"1_8": [0.4]}})]


def test_runs_that_have_ended_are_kept(tmp_path, capsys):
    write_scenes(tmp_path / "street", labelled=3, unlabelled=0, val=1, size=(64, 96), progress=False)
    names = sorted(path.stem for path in (tmp_path / "street/images").glob("*.png"))
    rows = [f"{name}.png {name}.png" for name in names]
    write_split(tmp_path / "splits/1_3", rows[:2], rows[2:])
    argv = [
        RECIPE,
        "--data",
        str(tmp_path / "street"),
        "--splits",
        str(tmp_path / "splits"),
        "--fractions",
        "1_3",
        "--seeds",
        "0",
    ]
    argv += ["--runs", str(tmp_path / "runs"), "--table", str(tmp_path / "table.md"), "--methods", SUPERVISED, UNIMATCH]
    fields = {**SECTIONS["pseudo_labels"], "absent_classes": "keep", "dataloader_num_workers": 0}
    argv += [text for name, value in fields.items() for text in (f"--segmenter.{name}", str(value))]
    measure.main([*argv, "--only", "training"])
    assert (tmp_path / "table.md").read_text().count("(1)") == 2  # two rows, scores on val
    assert "done before" not in capsys.readouterr().out
    measure.main(argv)
    table = (tmp_path / "table.md").read_text()
    assert table.count("(1)") == 4  # two rows, scores on val and of the pseudo-labels
    assert capsys.readouterr().out.count("done before") == 2
    measure.main(argv)
    assert Image.open(tmp_path / "table.png").width > 500
    assert capsys.readouterr().out.count("done before") == 6 and (tmp_path / "table.md").read_text() == table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--fractions", "1_7"], "1_7"),
        (["--methods", "none"], "none: is not"),
        (["--stage1.flip", "0"], "'--stage1.flip'"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path, capsys, changes, message):
    base = [
        RECIPE,
        "--data",
        "D",
        "--splits",
        str(tmp_path),
        "--runs",
        str(tmp_path / "r"),
        "--table",
        str(tmp_path / "t.md"),
    ]
    (tmp_path / "1_30").mkdir()
    with pytest.raises(SystemExit) as exit_info:
        measure.main([*base, "--fractions", "1_30", *changes])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["1_30"]
