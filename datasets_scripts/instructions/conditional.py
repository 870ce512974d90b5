"""Conditional queries: "the {target} to the left of the {anchor}", true of their target and of nothing else.

An anchor is something that the query can name without a second thought: the only instance of its class, an instance
that an attribute singles out ("the largest car"), or all of a mass that lies in one place ("the sky").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..records import Anchor, SemanticClass
from .attribute import attribute_claims, phrasings
from .claims import Claim, single_out
from .objects import SceneObject, SceneObjects
from .relations import RELATIONS

COUNTED_ONLY = frozenset({"front", "behind", "nearest", "farthest", "larger", "smaller", "between"})
"""Relations that make sense between objects that one can count, not between patches of a mass."""


@dataclass(frozen=True, eq=False)
class NamedObject:
    """An object and how a query calls it.

    Attributes:
        name: without an article, such as "largest car".
        claim: the attribute that singles it out, or "" where its class does.
    """

    name: str
    claim: str
    object: SceneObject


@dataclass(frozen=True, eq=False)
class ConditionalClaim:
    """
    Attributes:
        targets: one object, or the patches of a mass.
        facts: the relation's numbers; under "anchors" what each anchor is singled out by.
    """

    relation: Claim
    targets: tuple[SceneObject, ...]
    anchors: tuple[NamedObject, ...]
    facts: dict[str, Any]

    def queries(self, target_class: SemanticClass) -> tuple[str, ...]:
        """All phrasings."""
        anchor, other = (*[a.name for a in self.anchors], "")[:2]
        names = {"target": target_class.name, "anchor": anchor, "other": other}
        return phrasings(phrase.format(**names) for phrase in self.relation.phrases)

    def records(self, scene: SceneObjects) -> tuple[Anchor, ...]:
        """The anchors as an `Instruction` keeps them."""
        return tuple(
            Anchor(
                scene.classes[a.object.class_id].name,
                None if a.object.id is None else (a.object.id,),
                a.object.box,
            )
            for a in self.anchors
        )


def name_of(semantic_class: SemanticClass, claim: Claim | None) -> str:
    """ "largest car", or "car" where no claim is needed."""
    if claim is None:
        return semantic_class.name
    return claim.phrases[0].format(target=semantic_class.name).removeprefix("the ")


def named_objects(scene: SceneObjects) -> list[NamedObject]:
    """Everything that can be an anchor, each object once, by the first name it gets."""
    found: list[NamedObject] = []
    for semantic_class in scene.classes.values():
        if not semantic_class.asked:
            continue
        candidates, name = scene.of_class(semantic_class.id), semantic_class.name
        if not scene.counted(semantic_class.id):
            whole = scene.whole(semantic_class.id)
            if whole is not None and scene.visible(whole) and scene.one_piece(semantic_class.id):
                found.append(NamedObject(name, "", whole))
        elif len(candidates) == 1:
            if scene.visible(candidates[0]):
                found.append(NamedObject(name, "", candidates[0]))
        else:
            named: dict[int | None, NamedObject] = {}
            for claim in attribute_claims(scene, semantic_class):
                if picked := single_out(claim, candidates, (), scene):
                    target = picked[0][0]
                    named.setdefault(target.id, NamedObject(name_of(semantic_class, claim), claim.name, target))
            found += named.values()
    return found


def conditional_claims(scene: SceneObjects) -> Iterator[ConditionalClaim]:
    """Every relation that picks its target out of a class with a margin, in a fixed order."""
    anchors = named_objects(scene)
    for semantic_class in scene.classes.values():
        candidates = scene.of_class(semantic_class.id) if semantic_class.asked else ()
        if not candidates:
            continue
        counted = scene.counted(semantic_class.id)
        for relation in RELATIONS.values():
            for chosen in combinations(anchors, relation.anchors):
                if relation.name in COUNTED_ONLY and not (
                    counted and all(scene.counted(a.object.class_id) for a in chosen)
                ):
                    continue
                if any(a.object.class_id == semantic_class.id and a.object.id is None for a in chosen):
                    continue  # a mass beside itself
                picked = single_out(relation, candidates, [a.object for a in chosen], scene)
                if picked is not None:
                    targets, facts = picked
                    facts = {**facts, "anchors": [a.claim for a in chosen]}
                    yield ConditionalClaim(relation, targets, chosen, facts)
