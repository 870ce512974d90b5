"""Merging an adapter: bases and adapters that are not whole are refused before anything is written."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from modeling_cora import CoraProcessor
from modeling_cora.checkpoint_shards import ConversionError
from modeling_cora.merging import merge_adapter


@pytest.fixture
def folders(tiny, tmp_path) -> tuple[Path, Path]:
    """A base, and an adapter of it."""
    model, processor = tiny
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(adapter)
    processor.save_pretrained(adapter)
    return base, adapter


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_projection(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["seg_projector.linear_1.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


DAMAGES = {
    "a tensor of the base is missing": (
        lambda b, _: without_projection(b / "model.safetensors"),
        "missing keys: seg_pro",
    ),
    "the base is gone": (lambda b, a: change(a / "adapter_config.json", base_model_name_or_path=f"{b}-gone"), "-gone"),
    "no base is named": (
        lambda _, a: change(a / "adapter_config.json", base_model_name_or_path=None),
        "names no base_model_name_or_path",
    ),
    "the adapter is cut short": (lambda _, a: cut(a / "adapter_model.safetensors"), "--adapter"),
    "the adapter has no weights": (lambda _, a: (a / "adapter_model.safetensors").unlink(), "--adapter"),
    "the adapter has another rank": (lambda _, a: change(a / "adapter_config.json", r=3), "size mismatch"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_refused_in_one_line(folders, tmp_path, damage):
    spoil, message = DAMAGES[damage]
    spoil(*folders)
    with pytest.raises(ConversionError, match=message) as refused:
        merge_adapter(folders[1], tmp_path / "out")
    assert "\n" not in str(refused.value) and not list(tmp_path.glob("out*"))


def test_a_file_is_no_place_for_a_model(folders, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConversionError, match="is a file; a new folder would be right"):
        merge_adapter(folders[1], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_nothing_of_ours_and_all_of_others(folders, tmp_path, monkeypatch):
    def full(self, folder):
        (Path(folder) / "half").write_text("of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(CoraProcessor, "save_pretrained", full)
    with pytest.raises(ConversionError, match=re.escape(f"--out {tmp_path / 'out'}: No space left on device")):
        merge_adapter(folders[1], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == before and (tmp_path / "out.partial" / "mine").exists()


def test_a_whole_one_is_merged(folders, tmp_path):
    (tmp_path / "out").mkdir()
    merge_adapter(folders[1], tmp_path / "out")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(folders[0] / "model.safetensors").keys()
    )
