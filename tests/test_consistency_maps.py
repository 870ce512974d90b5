"""Variances in files: what their 256 levels keep."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from datasets_scripts.records import DataError
from trainers.consistency_maps import ConsistencyMaps, of_levels, packed_variances, to_levels


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
