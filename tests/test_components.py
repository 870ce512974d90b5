"""Patches of masses as instance maps: what a worker is sent."""

from __future__ import annotations

import pickle

import numpy as np

from datasets_scripts.components import completed_instances, with_components
from datasets_scripts.folder import read_folder
from datasets_scripts.records import SemanticClass
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


def test_pixels_astray_leave_a_mass_its_patches():
    """Label and instance maps that were drawn apart: a car laps over the hedge by a pixel, or by half of it."""
    classes = (SemanticClass(0, "vegetation"), SemanticClass(1, "car", noun="vehicle with four wheels"))
    labels, instances = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.int32)
    labels[5:10, 10:20] = instances[5:10, 10:20] = 1
    instances[10, 10] = 1
    completed = completed_instances(classes, labels, instances)[0]
    assert (completed[labels == 0] == 2).all() and (completed[labels == 1] == 1).all()
    instances[10:, :] = 1
    assert np.array_equal(completed_instances(classes, labels, instances)[0], instances)
