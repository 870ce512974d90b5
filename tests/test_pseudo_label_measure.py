"""The measurement: what is run, what is kept, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.pseudo_labels import measure


def finished(runs: Path, row: str, fraction: str, seed: int, val: float, pseudo: float | None = None) -> None:
    folder = measure.run_folder(runs, row, fraction, seed)
    (folder / "pseudo_labels").mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({"val": {"miou": val}, "steps": 10}))
    if pseudo is not None:
        (folder / "pseudo_labels" / "audit.json").write_text(json.dumps({"miou": pseudo}))


def test_the_table_has_means_and_spreads_of_what_has_ended(tmp_path):
    row = "SegFormer-B0, UniMatch"
    for seed, value in enumerate((0.30, 0.32, 0.37)):
        finished(tmp_path, row, "1_30", seed, value, 0.5)
    finished(tmp_path, row, "1_8", 0, 0.4)
    table = measure.table(tmp_path, ["1_30", "1_8"], [0, 1, 2])
    assert "| mIoU, % | 1/30 val | 1/30 pseudo-labels | 1/8 val | 1/8 pseudo-labels |" in table
    # mean .33, sample standard deviation sqrt((.03^2 + .01^2 + .04^2) / 2)
    assert f"| {row} | 33.0 ± 3.6 (3) | 50.0 ± 0.0 (3) | 40.0 (1) |  |" in table
    assert "| SegFormer-B0, supervised |  |  |  |  |" in table


def test_runs_that_have_ended_are_kept_and_others_go_on(tmp_path, monkeypatch):
    (tmp_path / "splits" / "1_30").mkdir(parents=True)
    done, open_ = "SegFormer-B0, supervised", "SegFormer-B0, UniMatch"
    finished(tmp_path / "runs", done, "1_30", 0, 0.3, 0.4)
    commands = []

    def run(command, folder):
        commands.append((Path(command[0]).name, folder.name, command))
        if command[0].endswith("train.py"):
            finished(tmp_path / "runs", open_, "1_30", 0, 0.35)
        if command[0].endswith("audit.py"):
            (folder / "pseudo_labels" / "audit.json").write_text('{"miou": 0.5}')

    monkeypatch.setattr(measure, "_run", run)
    argv = ["--data", "DATA", "--splits", str(tmp_path / "splits"), "--fractions", "1_30", "--seeds", "0"]
    argv += ["--runs", str(tmp_path / "runs"), "--table", str(tmp_path / "table.md"), "--rows", done, open_]
    measure.main([*argv, "--", "--max_steps", "7"])
    assert [name for name, _, _ in commands] == ["train.py", "predict.py", "audit.py"]
    train = commands[0][2]
    assert commands[0][1] == "camvid_cpu_unimatch_1_30_seed0" and train[-2:] == ["--max_steps", "7"]
    assert train[train.index("--method") + 1] == "unimatch" and "--resume_from_checkpoint" in train
    assert "35.0 (1) | 50.0 (1)" in (tmp_path / "table.md").read_text()
    commands.clear()
    measure.main(argv)
    assert commands == []


@pytest.mark.parametrize(("changes", "message"), [(["--fractions", "1_7"], "1_7"), (["--rows", "none"], "'none'")])
def test_bad_arguments_get_one_line(tmp_path, capsys, changes, message):
    base = ["--data", "D", "--splits", str(tmp_path), "--runs", str(tmp_path / "r"), "--table", str(tmp_path / "t.md")]
    with pytest.raises(SystemExit) as exit_info:
        measure.main([*base, *changes])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_row_has_its_recipe_and_a_supervised_row_beside_it():
    recipes = {recipe for recipe, _ in measure.ROWS.values()}
    for recipe in recipes:
        assert (measure.HERE / "recipes" / f"{recipe}.yaml").exists()
        assert (recipe, "supervised") in measure.ROWS.values()
