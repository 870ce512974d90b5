"""Variances in files: what their 256 levels keep, and what they were made of."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from datasets_scripts.folder import read_folder
from datasets_scripts.records import DataError
from trainers.arguments import DataArguments, UnlabelledArguments
from trainers.consistency_maps import ConsistencyMaps, of_levels, packed_variances, to_levels
from trainers.consistency_weights import main as consistency_main
from trainers.unlabelled_dataset import UnlabelledDataset

from .test_stage3 import pseudo, second_stage, street, weights  # noqa: F401


def test_levels_keep_small_variances_apart():
    """1e-5 and 2e-5, 1e-4 and 2e-4: 255 equal steps up to 1/4 would call all four 0."""
    levels = to_levels(np.array([0, 1e-5, 2e-5, 1e-4, 2e-4, 0.25]))
    assert levels.tolist() == [0, 20, 24, 36, 43, 255]  # 255 (4 v)^(1/4)
    variances = np.geomspace(1e-6, 0.25, 500)
    levels = to_levels(variances)
    assert (np.abs(of_levels(levels) / variances - 1) < 2.2 / levels).all()
    assert (np.diff(levels.astype(int)) >= 0).all()
    assert np.array_equal(to_levels(of_levels(np.arange(256))), np.arange(256))


def test_files_hold_what_was_packed(tmp_path):
    rng = np.random.default_rng(0)
    variances = {7: rng.random((3, 5)) / 4, 2: rng.random((3, 5)) / 400}
    (tmp_path / "a.safetensors").write_bytes(packed_variances(variances))
    (tmp_path / "none.safetensors").write_bytes(packed_variances({}))
    maps = ConsistencyMaps(tmp_path)
    read = maps.read("a")
    assert list(read) == [7, 2] and maps.read("none") == {}
    for class_id, variance in variances.items():
        assert read[class_id].dtype == np.float32 and np.allclose(read[class_id], variance, rtol=0.05, atol=1e-6)
    # files with 255 equal steps, as they once were, would be read as other variances
    save_file({"classes": np.array([0]), "variance": np.zeros((1, 2, 2), np.uint8)}, tmp_path / "old.safetensors")
    with pytest.raises(DataError, match=r"old.safetensors: not a file of consistency weights .*variance_levels"):
        maps.read("old")


def test_an_image_without_weights_is_told_before_the_training(street, pseudo, weights, tmp_path):  # noqa: F811
    scene_set = read_folder(street)
    shutil.copytree(weights, tmp_path / "weights")
    given = UnlabelledArguments(pseudo_labels=str(pseudo), consistency_weights=str(tmp_path / "weights"))
    scenes = scene_set.split("train", labelled=False)
    UnlabelledDataset(scene_set, scenes, given, DataArguments(), 4, seed=0)
    (gone := max((tmp_path / "weights").glob("*.safetensors"))).unlink()
    with pytest.raises(DataError, match=re.escape(f"{gone}: no such file; run trainers/consistency_weights.py to the")):
        UnlabelledDataset(scene_set, scenes, given, DataArguments(), 4, seed=0)


def test_weights_of_other_queries_are_not_gone_on_with(street, pseudo, second_stage, tmp_path, capsys):  # noqa: F811
    """A class that has queries only now would have no weights, and so never be asked for."""
    shutil.copytree(street, tmp_path / "street")
    argv = ["--model", str(second_stage), "--data", str(tmp_path / "street"), "--pseudo_labels", str(pseudo),
            "--out", str(tmp_path / "weights")]  # fmt: skip
    consistency_main(argv)
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "weights").iterdir()}
    # wherever the data and the model lie
    (tmp_path / "street").rename(tmp_path / "moved")
    shutil.copytree(second_stage, tmp_path / "model")
    argv[1:4:2] = [str(tmp_path / "model"), str(tmp_path / "moved")]
    consistency_main(argv)
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "weights").iterdir()} == written
    path = tmp_path / "moved/classes.json"
    told = json.loads(path.read_text())
    told["classes"][0]["attributes"] = ["what was not asked before"]
    path.write_text(json.dumps(told))
    with pytest.raises(SystemExit):
        consistency_main(argv)
    assert "was made with queries" in capsys.readouterr().err
