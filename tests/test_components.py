"""Patches of masses as instance maps: what a worker is sent."""

from __future__ import annotations

import pickle

from datasets_scripts.components import with_components
from datasets_scripts.folder import read_folder
from datasets_scripts.scenes import write_scenes


def test_a_scene_does_not_carry_the_others_along(tmp_path):
    sizes = []
    for count in (2, 6):
        write_scenes(tmp_path / str(count), count, 0, 0, seed=0, size=(64, 96))
        scene_set = with_components(read_folder(tmp_path / str(count)))
        sizes.append(len(pickle.dumps(scene_set.scenes[0])))
        labels, instances = scene_set.read_maps(scene_set.scenes[0])
        assert instances.shape == labels.shape and (instances > 0).any()
    assert sizes[0] == sizes[1]
