"""How commands fail: one line, exit code 2."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest

from modeling_cora.hub import push as push_module
from modeling_cora.hub.__main__ import main
from publishing.command_line import ArgumentParser, OneLineError, one_line_errors


def line_of(capsys, command, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(list(map(str, arguments)))
    *others, line = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("error: ") and not others
    return line.removeprefix("error: ")


def forbidden(path, *_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_bad_input_takes_one_line_and_errors_of_the_program_keep_their_traceback(capsys):
    @one_line_errors
    def command(given: list[str]) -> None:
        parser = ArgumentParser(prog="command")
        parser.add_argument("--number", type=int)
        number = parser.parse_args(given).number
        if number == 1:
            raise OneLineError("number: 1 is\n too small")
        if number == 2:
            forbidden("some/file")
        raise OSError("of the program") if number == 3 else ValueError("of the program")

    assert line_of(capsys, command, "--number", "x").endswith("invalid int value: 'x' (--help lists what there is)")
    assert line_of(capsys, command, "--number", 1) == "number: 1 is too small"
    assert line_of(capsys, command, "--number", 2) == "some/file: cannot be read or written (Permission denied)"
    for number, kind in ((3, OSError), (4, ValueError)):
        with pytest.raises(kind, match="of the program"):
            command(["--number", str(number)])


@pytest.fixture
def adapter(tmp_path, monkeypatch) -> Path:
    """What a push looks at before the weights; nothing reaches a Hub."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "training.json").write_text("{}")
    monkeypatch.setattr(push_module, "make_repository", lambda name, *_: name)
    return folder


def test_a_push_of_a_file_that_may_not_be_read_takes_one_line(adapter, monkeypatch, capsys):
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, **k: (forbidden if p.name == "training.json" else read)(p, **k))
    assert (
        line_of(capsys, main, "push", adapter, "org/a")
        == f"{adapter / 'training.json'}: cannot be read or written (Permission denied)"
    )


def test_so_does_a_merge_in_a_folder_that_may_not_be_written(adapter, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "mkdtemp", lambda suffix, prefix, dir: forbidden(dir))
    line = line_of(capsys, main, "push", adapter, "org/a", "--merge", "--license", "mit")
    assert line == f"{adapter}: cannot be read or written (Permission denied)"
