"""How commands fail: one line, exit code 2."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
import torch

from datasets_scripts.scenes import main as draw
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
        raise ValueError("of the program")

    assert line_of(capsys, command, "--number", "x").endswith("invalid int value: 'x' (--help lists what there is)")
    assert line_of(capsys, command, "--number", 1) == "number: 1 is too small"
    with pytest.raises(ValueError, match="of the program"):
        command(["--number", "2"])


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


@one_line_errors
def fails_with(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "", "runs/a"), "error: runs/a: cannot be read or written (Permission denied)"),
        (OSError(errno.EROFS, "", "runs/a"), "error: runs/a: cannot be read or written (Read-only file system)"),
        (
            IsADirectoryError(errno.EISDIR, "", "a.1.partial", None, "a"),
            "error: a: cannot be read or written (Is a dir",
        ),
        (OSError(errno.ENOSPC, "", "runs/a"), "error: runs/a: cannot be written (No space left on device)"),
    ],
)
def test_places_that_may_not_be_touched_take_one_line(capsys, error, line):
    with pytest.raises(SystemExit) as stop:
        fails_with(error)
    (said,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and said.startswith(line)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "", "a"), OSError(errno.EACCES, ""), OSError("own")])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(OSError) as raised:
        fails_with(error)
    assert raised.value is error


def test_a_folder_in_a_file(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        draw(["--out", str(tmp_path / "mine.txt/out/deep")])
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {tmp_path / 'mine.txt'}") and said.endswith(
        "cannot be read or written (Not a directory)"
    )


class Damaged(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int):
        raise OneLineError(f"masks/{index}.png: damaged: half of it\n is missing")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_line_said_in_a_worker_is_one_line(capsys, workers):
    """torch puts the worker's traceback into the error's own words."""

    @one_line_errors
    def command(given: list[str]) -> None:
        next(iter(torch.utils.data.DataLoader(Damaged(), num_workers=workers)))

    assert line_of(capsys, command) == "masks/0.png: damaged: half of it is missing"
