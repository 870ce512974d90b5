"""What files and folders hold: read again only after a change, links followed."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

from datasets_scripts.build import build
from datasets_scripts.command_line import UsageError
from datasets_scripts.folder import read_folder
from datasets_scripts.scenes import write_scenes
from datasets_scripts.verify import main as verify
from trainers.file_hashes import FileHashes, _walk


def test_files_are_read_again_after_a_change_alone(tmp_path, monkeypatch):
    """Also where another run has added to the file of hashes meanwhile, or left a damaged one."""
    read, kept = [], tmp_path / ".files.json"
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: read.append(Path(file.name).name) or digest(file, name)
    )
    for name in "ab":
        (tmp_path / name).write_text(name)
    one, other = FileHashes(kept), FileHashes(kept)
    assert one.content(tmp_path / "a") != other.content(tmp_path / "b") and read == ["a", "b"]
    one.save(), other.save()
    again = FileHashes(kept)
    assert again.content(tmp_path / "a") == one.content(tmp_path / "a")
    assert again.content(tmp_path / "b") == other.content(tmp_path / "b") and read == ["a", "b"]
    (tmp_path / "b").write_text("c")
    assert again.content(tmp_path / "b") == other.content(tmp_path / "b")  # one run sees its data as they were at first
    assert FileHashes(kept).content(tmp_path / "b") != other.content(tmp_path / "b") and read == ["a", "b", "b"]
    kept.write_text("{")
    assert FileHashes(kept).content(tmp_path / "a") == one.content(tmp_path / "a") and read[3:] == ["a"]
    with pytest.raises(UsageError, match="none: no such file or folder"):
        one.content(tmp_path / "none")


def test_a_link_that_leads_back_is_not_followed(tmp_path):
    """Neither to the folder that it lies in, nor round by way of another one."""
    for name in ("data", "data/deeper", "beside"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/a.png").write_text("a")
    (tmp_path / "beside/b.png").write_text("b")
    (tmp_path / "data/deeper/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/beside").symlink_to(tmp_path / "beside")
    (tmp_path / "beside/back").symlink_to(tmp_path / "data")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in _walk(tmp_path / "data")) == [
        "data/a.png",
        "data/beside/b.png",
    ]


def test_a_folder_that_is_a_link_counts_with_what_it_holds(tmp_path):
    """A data set may be made of links to where its images and masks lie."""
    found = []
    for number in range(2):
        (tmp_path / f"masks{number}").mkdir()
        (tmp_path / f"masks{number}/a.png").write_text(str(number))
        (tmp_path / f"data{number}").mkdir()
        (tmp_path / f"data{number}/masks").symlink_to(tmp_path / f"masks{number}")
        (tmp_path / f"whole{number}/masks").mkdir(parents=True)
        (tmp_path / f"whole{number}/masks/a.png").write_text(str(number))
        found.append([FileHashes().content(tmp_path / f"{name}{number}") for name in ("data", "whole")])
    assert found[0][0] == found[0][1] != found[1][0] == found[1][1]


def test_what_is_told_about_a_folder_is_no_part_of_it(tmp_path):
    """`verify` writes a page beside tables and macOS a file for its windows: nothing to train a model anew for."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("a")
    found = FileHashes().content(tmp_path)
    for name in ("preview.html", "README.md", ".DS_Store", "images/._a.png", "audit.json", "images/b.png.partial"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/more").write_text("more")
    assert FileHashes().content(tmp_path) == found
    (tmp_path / "images/b.png").write_text("b")
    assert FileHashes().content(tmp_path) != found


def test_a_page_about_tables_makes_them_no_others(tmp_path):
    """With all that `verify` writes, pictures in a folder among it."""
    write_scenes(tmp_path / "scenes", labelled=2, unlabelled=0, val=1, size=(64, 96), progress=False)
    build(read_folder(tmp_path / "scenes"), tmp_path / "built")
    before, found = set((tmp_path / "built").rglob("*")), FileHashes().content(tmp_path / "built")
    with contextlib.suppress(SystemExit):
        verify([str(tmp_path / "built")])
    assert set((tmp_path / "built").rglob("*")) - before
    assert FileHashes().content(tmp_path / "built") == found
