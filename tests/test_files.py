"""Files and links appear whole, also where two processes write the same one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets_scripts.files import claim_folder, link, write_bytes, write_text
from datasets_scripts.records import DataError

from .conftest import disk_for


def _target(path: Path, name: str) -> None:
    (path.parent / name).mkdir()
    link(path, path.parent / name)


@pytest.mark.parametrize("write", [write_text, _target], ids=["file", "link"])
def test_another_may_write_the_same_at_the_same_moment(tmp_path, monkeypatch, write: Callable[[Path, str], None]):
    """The other one begins and ends just before this one's last step; both have written, and the last one counts."""
    path, replace = tmp_path / "name", os.replace

    def after_another(source, target):
        monkeypatch.setattr(os, "replace", replace)
        write(path, "other")
        os.replace(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    write(path, "own")
    assert path.resolve().name == "own" if path.is_symlink() else path.read_text() == "own"
    assert not list(tmp_path.glob("*.partial"))


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path):
    path = tmp_path / f"{'图' * 83}1.json"
    assert len(path.name.encode()) > 250
    write_text(path, "{}")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 2, "seed": None}, "was made with size 1, not 2"),
        ({"size": 1, "seed": None, "threshold": 0.5}, "was made without threshold, not with 0.5"),
        ({"size": 1, "seed": None, "mask": None}, "was made without mask, not with None"),
        ({"size": 1}, "was made with seed None, not without it"),
    ],
)
def test_a_setting_that_differs_is_named_with_its_values(tmp_path, settings, message):
    claim_folder(tmp_path, "meta.json", {"size": 1, "seed": None})
    claim_folder(tmp_path, "meta.json", {"seed": None, "size": 1})
    with pytest.raises(DataError) as error:
        claim_folder(tmp_path, "meta.json", settings)
    assert str(error.value) == f"{tmp_path / 'meta.json'}: {message}; choose another folder"
    (tmp_path / "meta.json").write_text('["size", 1]')
    with pytest.raises(DataError, match=r"meta\.json: holds \['size', 1\] and no settings"):
        claim_folder(tmp_path, "meta.json", settings)


def test_what_a_killed_program_left_is_nobodys_content(tmp_path, monkeypatch):
    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.json", "{}")
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial"
    claim_folder(tmp_path, "meta.json", {"size": 1})
    assert (tmp_path / "meta.json").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with disk_for(1000), pytest.raises(OSError, match=f"File too large: '{tmp_path / 'a'}'"):
        write_bytes(tmp_path / "a", bytes(2000))
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"
