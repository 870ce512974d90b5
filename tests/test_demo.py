"""`make demo`, with few scenes and few steps."""

from __future__ import annotations

import pytest

from trainers import demo

from .test_readme_commands import options
from .test_run import SECTIONS


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_a_report_and_then_has_nothing_to_do(tmp_path, monkeypatch, capsys):
    for name, count in (("LABELLED", 2), ("UNLABELLED", 2), ("VAL", 1)):
        monkeypatch.setattr(demo, name, count)
    argv = ["--out", str(tmp_path / "demo")]
    argv += [text for name, fields in SECTIONS.items() for text in options(fields, f"{name}.")]
    demo.main(argv)
    assert "stage3" in capsys.readouterr().out
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    made = (tmp_path / "demo" / "model" / "model.safetensors").stat().st_mtime_ns
    demo.main(argv)
    assert (tmp_path / "demo" / "model" / "model.safetensors").stat().st_mtime_ns == made


@pytest.mark.parametrize("option", ["--data", "--data_name"])
def test_the_demo_takes_no_other_images(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--out", str(tmp_path / "demo"), option, "mine"])
    assert stopped.value.code == 2 and not (tmp_path / "demo").exists()
    assert capsys.readouterr().err.startswith(f"error: {option} mine: the demo draws its own images")
