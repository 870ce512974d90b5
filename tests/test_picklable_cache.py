"""The cache of decoded scenes against `functools.lru_cache`, and by its bytes."""

from __future__ import annotations

import pickle
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from trainers.arguments import DataArguments
from trainers.instruction_dataset import AskedScene
from trainers.picklable_cache import PicklableCache, gigabytes


@pytest.mark.parametrize("limit", [0, 1, 3, 7])
def test_counted_values_are_kept_as_the_standard_library_keeps_them(limit):
    asked: dict[str, list[int]] = {"own": [], "library": []}
    own = PicklableCache(lambda number: asked["own"].append(number) or number * number, limit)
    library = lru_cache(limit)(lambda number: asked["library"].append(number) or number * number)
    for number in np.random.default_rng(0).integers(0, 9, 400).tolist():
        assert own(number) == library(number) == number**2
    assert asked["own"] == asked["library"] and len(asked["own"]) <= 400


def test_scenes_are_kept_up_to_their_bytes():
    """A colour picture of 100x50 is 20 kB in Pillow's memory, its labels are 5 kB: of five scenes 100 kB hold four."""
    read = []

    def scene(number: int) -> AskedScene:
        read.append(number)
        labels = np.zeros((50, 100), np.uint8)
        return AskedScene(Image.new("RGB", (100, 50)), labels, None, (), None)

    assert gigabytes(scene(0)) == 25e-6
    assert gigabytes(scene(0)._replace(variances={3: np.zeros((50, 100), np.float32)})) == pytest.approx(45e-6)
    cache = PicklableCache(scene, 100.1e-6, gigabytes)
    read.clear()
    for number in (0, 1, 2, 3, 0, 4, 0, 2, 3, 1):
        assert gigabytes(cache(number)) == 25e-6
    assert read == [0, 1, 2, 3, 4, 1]
    PicklableCache(scene, 24e-6, gigabytes)(9)  # one that is larger than all that may be kept is given, and not kept
    assert read[-1] == 9


def test_it_is_pickled_without_its_content():
    cache = PicklableCache(abs, DataArguments().scene_cache_gigabytes, gigabytes)
    assert cache(-3) == 3 and len(pickle.dumps(cache)) < 200
    assert pickle.loads(pickle.dumps(cache))(-3) == 3
