"""What a language model is asked about: pairs of a target and an anchor, and targets to be described."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..build import shown_classes
from ..claims import single_out
from ..conditional import COUNTED_ONLY, NamedObject, named_objects
from ..objects import SceneObject, SceneObjects
from ..relations import RELATIONS

PAIR_RELATIONS = tuple(name for name, relation in RELATIONS.items() if relation.anchors == 1)
"""Relations that a pair can have."""


@dataclass(frozen=True)
class Target:
    """
    Attributes:
        instance_ids: None = every pixel of the class.
    """

    class_id: int
    instance_ids: tuple[int, ...] | None

    def objects(self, scene: SceneObjects) -> tuple[SceneObject, ...]:
        """Raises:
        LookupError: the scene has no such objects.
        """
        if self.instance_ids is None:
            found = [scene.whole(self.class_id)]
        else:
            found = [scene.instance(self.class_id, each) for each in self.instance_ids]
        if None in found:
            raise LookupError(f"no {self} in this scene")
        return tuple(found)


@dataclass(frozen=True)
class Pair:
    """
    Attributes:
        anchor: the class or one instance of it.
        anchor_name: what singles it out, such as "largest car", without an article.
        anchor_claim: as `NamedObject.claim`.
        relations: those that pick exactly this target out of its class, by the masks; may be none.
    """

    target: Target
    anchor: Target
    anchor_name: str
    anchor_claim: str
    relations: tuple[str, ...]


def choose_targets(scene: SceneObjects, count: int, seed: int, image_id: str) -> list[Target]:
    """Classes that the scene shows, and instances of classes with several, drawn by lot."""
    found: list[Target] = []
    for semantic_class in shown_classes(scene.classes.values(), scene.labels):
        found.append(Target(semantic_class.id, None))
        instances = scene.of_class(semantic_class.id) if scene.counted(semantic_class.id) else ()
        if len(instances) > 1:
            found += [Target(semantic_class.id, (each.id,)) for each in instances if scene.visible(each)]
    return [found[index] for index in _drawn(len(found), seed, image_id, "targets")[:count]]


def choose_pairs(scene: SceneObjects, count: int, seed: int, image_id: str) -> list[Pair]:
    """Pairs for which the masks bear out a relation; where these are too few, others too, in which a model may see one.

    Stops as soon as there are enough: not every pair of a large scene is measured.
    """
    candidates = _class_and_anchor(scene)
    found: dict[tuple[Target, Target], Pair] = {}
    open_pairs: list[Pair] = []
    for index in _drawn(len(candidates), seed, image_id, "pairs"):
        class_id, named = candidates[index]
        anchor = Target(named.object.class_id, None if named.object.id is None else (named.object.id,))
        picked: dict[tuple[int, ...], list[str]] = {}
        for name in PAIR_RELATIONS:
            if name in COUNTED_ONLY and not (scene.counted(class_id) and scene.counted(anchor.class_id)):
                continue
            if singled := single_out(RELATIONS[name], scene.of_class(class_id), [named.object], scene):
                picked.setdefault(tuple(each.id for each in singled[0]), []).append(name)
        for ids, relations in picked.items():
            target = Target(class_id, ids)
            found[target, anchor] = Pair(target, anchor, named.name, named.claim, tuple(relations))
        open_pairs += [
            Pair(Target(class_id, (each.id,)), anchor, named.name, named.claim, ())
            for each in scene.of_class(class_id)
            if each is not named.object and scene.counted(class_id) and scene.visible(each) and (each.id,) not in picked
        ]
        if len(found) >= count:
            break
    return [*found.values(), *open_pairs][:count]


def _class_and_anchor(scene: SceneObjects) -> list[tuple[int, NamedObject]]:
    """Classes with instances, each with everything that can be named beside them."""
    anchors = named_objects(scene)
    return [
        (semantic_class.id, named)
        for semantic_class in scene.classes.values()
        if semantic_class.asked and scene.of_class(semantic_class.id)
        for named in anchors
        # neither a mass beside itself nor an only instance beside itself
        if named.object.class_id != semantic_class.id
        or (named.object.id is not None and len(scene.of_class(semantic_class.id)) > 1)
    ]


def _drawn(count: int, seed: int, image_id: str, what: str) -> Sequence[int]:
    """The numbers below `count` in an order that depends on the seed and the image alone."""
    rng = np.random.default_rng((seed, zlib.crc32(f"{image_id}/{what}".encode())))
    return rng.permutation(count).tolist()
