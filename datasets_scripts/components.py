"""Instances where a data set gives none: the patches of each mass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from .records import IGNORE_INDEX, MAX_SECOND_CLASS, DataError, Scene, SceneSet, SemanticClass

NEIGHBOURS = np.ones((3, 3), bool)
"""Pixels that touch at a corner belong together."""

BRIDGED = 0.01
"""Parts of a mass that are nearer to each other than twice this fraction of the image's height are one patch: a pole
hides what is behind it and does not cut it."""


def patches(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The patches of a mass, as `scipy.ndimage.label` gives them: int32 (H, W), 0 = outside, and their number."""
    steps = max(1, round(BRIDGED * mask.shape[0]))
    found, count = ndimage.label(ndimage.binary_dilation(mask, NEIGHBOURS, steps), NEIGHBOURS)
    return np.where(mask, found, 0), count


@dataclass(frozen=True)
class ComponentMap:
    """The instance map of a scene's label map, and of its given instances where there are any (a `StoredImage`).

    Pixels of instances that are given keep their ids. Masses are cut into `patches`, numbered on from there class by
    class or, where ids tell the class, within its own. A class that one can count is not: a row of parked cars is one
    component and a car behind a pole is two, so its objects are those that are given, and other pixels of it are
    crowds.
    """

    scene_set: SceneSet  # without its scenes: a map is sent to workers with one shard of them
    scene: Scene

    def __str__(self) -> str:
        return f"{self.scene.label_map} (patches)"

    def open(self) -> Image.Image:
        labels, instances = self.scene_set.read_maps(self.scene)
        result = completed_instances(self.scene_set.classes, labels, instances, self.scene_set.ids_per_class)
        if (last := result.max(initial=0)) > np.iinfo(np.uint16).max:
            raise DataError(f"{self}: {last} instances, more than an instance map can hold (65535)")
        return Image.fromarray(result.reshape(-1, labels.shape[1]).astype(np.uint16))


def completed_instances(
    classes: Sequence[SemanticClass], labels: np.ndarray, instances: np.ndarray | None = None, ids_per_class: int = 0
) -> np.ndarray:
    """int32 (P, H, W): the instances that are given, and the patches of each class that one cannot count; 0 = none.

    A class of which more than `MAX_SECOND_CLASS` lies in given instances is not cut. Up to that these are borders of
    other classes' instances, which were drawn apart from the label map, and its patches take these pixels.

    Args:
        labels: class ids (H, W).
        instances: as from `SceneSet.read_maps`.
        ids_per_class: as in `SceneSet`; patches keep to it.
    """
    planes = np.zeros((1, *labels.shape), np.int32) if instances is None else instances.reshape(-1, *labels.shape)
    given, result = planes.max(0), planes.copy()
    last = int(given.max(initial=0))
    counted = {c.id for c in classes if c.noun}
    for class_id in np.unique(labels).tolist():
        own = labels == class_id
        if class_id == IGNORE_INDEX or class_id in counted or (given[own] > 0).mean() > MAX_SECOND_CLASS:
            continue
        components, count = patches(own)
        if ids_per_class:
            last = class_id * ids_per_class
        result[0][own] = components[own] + last
        last += count
    return result


def with_components(scene_set: SceneSet) -> SceneSet:
    """The same scenes, each labelled one with an instance map.

    Where no scene had one, nobody knows how many objects there are, and no class is one that can be counted: "the car
    left of the pole" then means every car there, as "the car" means all cars.
    """
    known = any(scene.instance_map is not None for scene in scene_set.scenes)
    classes = scene_set.classes if known else tuple(replace(c, noun="") for c in scene_set.classes)
    scene_set = replace(scene_set, classes=classes)
    empty = replace(scene_set, scenes=())
    scenes = [
        replace(scene, instance_map=ComponentMap(empty, scene)) if scene.labelled else scene
        for scene in scene_set.scenes
    ]
    return replace(scene_set, scenes=tuple(scenes), instance_lookup="as_is")
