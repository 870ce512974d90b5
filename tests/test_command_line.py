"""How commands fail: what is no fault of theirs in one line, their own errors with a traceback."""

from __future__ import annotations

import errno

import pytest

from datasets_scripts.command_line import one_line_errors
from datasets_scripts.scenes import main as draw


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
