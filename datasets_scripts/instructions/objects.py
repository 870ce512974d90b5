"""What stands where in a scene: instances as objects with boxes, edges, ground contact and neighbours.

All positions are pixels of the image plane, rows downwards, columns to the right; a box is (top, left, bottom, right)
with bottom and right excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy import ndimage

from ..components import patches
from ..records import IGNORE_INDEX, Scene, SceneSet, SemanticClass, read_image
from .colours import colour_fractions

EDGE = 0.1
"""An object's left edge is the column with this fraction of its pixels on or left of it; so a stray pixel or a thin
antenna moves no edge."""

MIN_AREA = 1 / 1500
"""Fraction of the image's pixels below which an instance is no target and no anchor (52 of a 320x240 image). It still
is a rival."""

MAX_LOOSE = 1 / 10_000
"""Fraction of the image's pixels of one class that may belong to no instance (a crowd, say) before nothing is said of
its single instances."""


ONE_PIECE = 0.97
"""A mass lies in one place if this fraction of its pixels is one patch."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One instance, or a whole class (`id` None), as its pixels show it.

    Attributes:
        mask: bool, of the size of the box.
    """

    id: int | None
    class_id: int
    box: tuple[int, int, int, int]
    mask: np.ndarray

    @cached_property
    def area(self) -> int:
        return int(self.mask.sum())

    @cached_property
    def centre(self) -> tuple[float, float]:
        """(row, column) of the centroid."""
        rows, columns = self.mask.sum(1), self.mask.sum(0)
        return (
            self.box[0] + float(rows @ np.arange(len(rows))) / self.area,
            self.box[1] + float(columns @ np.arange(len(columns))) / self.area,
        )

    @cached_property
    def left(self) -> int:
        return self.box[1] + _edge(self.mask.sum(0))

    @cached_property
    def right(self) -> int:
        """The last column, included."""
        return self.box[3] - 1 - _edge(self.mask.sum(0)[::-1])

    @cached_property
    def top(self) -> int:
        return self.box[0] + _edge(self.mask.sum(1))

    @cached_property
    def bottom(self) -> int:
        """The last row, included."""
        return self.box[2] - 1 - _edge(self.mask.sum(1)[::-1])


def _edge(counts: np.ndarray) -> int:
    return int(np.searchsorted(np.cumsum(counts), EDGE * counts.sum()))


class SceneObjects:
    """The objects of one labelled scene.

    Args:
        classes: of the scene set.
        labels: class ids (H, W), 255 = unknown.
        instances: instance ids (H, W) or (P, H, W), 0 = none; or None.
        pixels: gives uint8 RGB (H, W, 3), for colours; asked only where `facts` know no colour.
        facts: by instance id, as from `SceneSet.facts_of`.
    """

    def __init__(
        self,
        classes: Sequence[SemanticClass],
        labels: np.ndarray,
        instances: np.ndarray | None = None,
        pixels: Callable[[], np.ndarray] | None = None,
        facts: Mapping[int, Mapping[str, str]] | None = None,
    ):
        self.classes = {c.id: c for c in classes}
        self.labels, self._read_pixels, self.facts = labels, pixels, facts or {}
        self.height, self.width = labels.shape
        self.instances = None if instances is None else instances.reshape(-1, *labels.shape)
        self._wholes: dict[int, SceneObject | None] = {}
        # one scene is asked the same thing for thousands of pairs
        self.of_class = cache(self._of_class)
        self.full_mask = cache(self._full_mask)
        self.surroundings = cache(self._surroundings)
        self.ground_contact = cache(self._ground_contact)
        self.colour_fractions = cache(self._colour_fractions)
        self.distance = cache(self._distance)
        self._distances_from = cache(self._all_distances_from)

    @classmethod
    def of_scene(cls, scene_set: SceneSet, scene: Scene) -> SceneObjects:
        """Reads the scene's files.

        Raises:
            DataError: as `SceneSet.read_maps` and `read_image`.
        """
        labels, instances = scene_set.read_maps(scene)
        facts = scene_set.facts_of(scene, instances)
        return cls(scene_set.classes, labels, instances, lambda: np.asarray(read_image(scene.image)), facts)

    @cached_property
    def pixels(self) -> np.ndarray | None:
        """uint8 RGB (H, W, 3), or None."""
        return self._read_pixels() if self._read_pixels else None

    @cached_property
    def colours_known(self) -> bool:
        """Whether the scene's facts name colours. Then an object without one has none that people would agree on."""
        return any("colour" in fact for fact in self.facts.values())

    @cached_property
    def _by_class(self) -> dict[int, tuple[SceneObject, ...]]:
        found: dict[int, list[SceneObject]] = {}
        for plane in [] if self.instances is None else self.instances:
            for index, place in enumerate(ndimage.find_objects(plane), start=1):
                if place is None:
                    continue
                rows, columns = place
                mask = plane[place] == index
                box = (rows.start, columns.start, rows.stop, columns.stop)
                class_id = self._class_of(index, self.labels[place][mask])
                if class_id is not None:
                    found.setdefault(class_id, []).append(SceneObject(index, class_id, box, mask))
        return {class_id: tuple(objects) for class_id, objects in found.items()}

    def _class_of(self, instance_id: int, labels: np.ndarray) -> int | None:
        """As the facts have it, else the class of most of its pixels; None where that is no class."""
        named = self.facts.get(instance_id, {}).get("class")
        if named is not None:
            return next((c.id for c in self.classes.values() if c.name == named), None)
        class_id = int(np.bincount(labels).argmax())
        return None if class_id == IGNORE_INDEX else class_id

    def _of_class(self, class_id: int) -> tuple[SceneObject, ...]:
        """The instances of a class, by id; none where some of its pixels belong to none of them, since then nobody
        knows how many there are: a crowd, or what is left of a car most of which is ignored."""
        objects = self._by_class.get(class_id, ())
        if not objects:
            return ()
        loose = (self.labels == class_id) & ~np.isin(self.instances, [o.id for o in objects]).any(0)
        return () if loose.sum() > MAX_LOOSE * self.labels.size else objects

    def whole(self, class_id: int) -> SceneObject | None:
        """All pixels of a class as one object; None where there are none."""
        if class_id not in self._wholes:
            mask = self.labels == class_id
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            self._wholes[class_id] = None
            if len(rows):
                top, left, bottom, right = (int(v) for v in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
                crop = mask[top:bottom, left:right]
                self._wholes[class_id] = SceneObject(None, class_id, (top, left, bottom, right), crop)
        return self._wholes[class_id]

    def one_piece(self, class_id: int) -> bool:
        """Whether a mass lies in one place and not, say, on both sides of a street."""
        mask = self.labels == class_id
        return bool(np.bincount(patches(mask)[0][mask]).max() >= ONE_PIECE * mask.sum())

    def instance(self, class_id: int, instance_id: int) -> SceneObject | None:
        """One instance by its id; None where there is none of this class."""
        return next((o for o in self._by_class.get(class_id, ()) if o.id == instance_id), None)

    def visible(self, target: SceneObject) -> bool:
        return target.area >= MIN_AREA * self.labels.size

    def counted(self, class_id: int) -> bool:
        """Whether the class's instances are objects that one can count, and not patches of a mass."""
        return bool(self.classes[class_id].noun)

    def _full_mask(self, target: SceneObject) -> np.ndarray:
        """bool (H, W)."""
        mask = np.zeros((self.height, self.width), bool)
        top, left, bottom, right = target.box
        mask[top:bottom, left:right] = target.mask
        return mask

    def _surroundings(self, target: SceneObject) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the pixels around the object: 8 neighbours, inside the image."""
        mask = np.pad(target.mask, 1)
        rows, columns = np.nonzero(ndimage.binary_dilation(mask, np.ones((3, 3), bool)) & ~mask)
        rows, columns = rows + target.box[0] - 1, columns + target.box[1] - 1
        inside = (rows >= 0) & (columns >= 0) & (rows < self.height) & (columns < self.width)
        return rows[inside], columns[inside]

    def _all_distances_from(self, anchor: SceneObject) -> np.ndarray:
        return ndimage.distance_transform_edt(~self.full_mask(anchor)).astype(np.float32)

    def _distance(self, target: SceneObject, anchor: SceneObject) -> float:
        """Smallest Euclidean distance between pixels of the two, in pixels; 0 where they share one."""
        top, left, bottom, right = target.box
        return float(self._distances_from(anchor)[top:bottom, left:right][target.mask].min())

    def _colour_fractions(self, target: SceneObject) -> dict[str, float]:
        """See `colours.colour_fractions`; empty where there are no pixels."""
        if self.pixels is None:
            return {}
        top, left, bottom, right = target.box
        return colour_fractions(self.pixels[top:bottom, left:right], target.mask)

    def _ground_contact(self, target: SceneObject) -> int | None:
        """The row where the object meets the ground; None where that is not to be seen.

        That is its lowest row, if the class stands on the ground, the row is not at the image's lower border, and at
        least half of what lies right below its lowest tenth is ground.
        """
        if not self.classes[target.class_id].stands:
            return None
        top, left, bottom, _ = target.box
        if bottom >= self.height:
            return None
        foot = max(1, round(EDGE * (bottom - top)))
        columns = np.flatnonzero(target.mask[-foot:].any(0))
        lowest = bottom - 1 - np.argmax(target.mask[::-1][:, columns], axis=0)
        below = np.minimum(lowest + 1, self.height - 1)
        grounds = [c.id for c in self.classes.values() if c.ground]
        on_ground = np.isin(self.labels[below, left + columns], grounds)
        return bottom - 1 if on_ground.mean() >= 0.5 else None


__all__ = ["EDGE", "MAX_LOOSE", "MIN_AREA", "SceneObject", "SceneObjects"]
