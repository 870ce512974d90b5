"""Attribute queries: they describe their target and never name its class.

Class-level ones come from `SemanticClass.attributes` and ask for every pixel of the class. Instance-level ones single
out one instance of the class by something read off the scene: its colour, that it is the largest, or the one farthest
to the left or right. They are made only where exactly one instance of the class fits, with a margin, so that no second
answer is nearly right; instances too small to see count as rivals, but are never targets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..records import Scene, SemanticClass

TEMPLATES: tuple[str, ...] = (
    "{phrase}",
    "Segment {phrase}.",
    "Where is {phrase}?",
    "Please mark {phrase}.",
    "Can you find {phrase} in this picture?",
    "Show me {phrase}.",
    "Which pixels belong to {phrase}?",
    "Give me a mask of {phrase}, please.",
)

MIN_INSTANCE_AREA = 1 / 1500
"""Fraction of the image's pixels below which an instance is no target (52 of a 320x240 image)."""
LARGEST_MARGIN = 1.5
"""The largest instance has at least this many times the pixels of the next."""
SIDE_MARGIN = 0.05
"""The outermost instance's centre is this fraction of the image's width beyond the next one's."""


@dataclass(frozen=True)
class InstanceClaim:
    """One instance, and the attribute that it alone has among all instances of its class.

    Attributes:
        attribute: "largest", "leftmost", "rightmost", or a colour word.
    """

    instance_id: int
    attribute: str


def attribute_queries(semantic_class: SemanticClass) -> tuple[str, ...]:
    """All phrasings that ask for every pixel of a class without its name; none where it has no attributes."""
    return tuple(
        template.format(phrase=phrase)
        for template in TEMPLATES
        for phrase in semantic_class.attributes
        if not names_class(phrase, semantic_class.name)
    )


def instance_queries(semantic_class: SemanticClass, claim: InstanceClaim) -> tuple[str, ...]:
    """All phrasings of a claim about one instance; none where the class has no noun to describe it by."""
    noun = semantic_class.noun
    if not noun or names_class(noun, semantic_class.name):
        return ()
    if claim.attribute in ("leftmost", "rightmost"):
        side = claim.attribute.removesuffix("most")
        phrases = (f"the {claim.attribute} {noun}", f"the {noun} that is farthest to the {side}")
    elif claim.attribute == "largest":
        phrases = (f"the largest {noun}", f"the {noun} that takes up the most space")
    else:
        phrases = (f"the {claim.attribute} {noun}", f"the {noun} that is {claim.attribute}")
    return tuple(template.format(phrase=phrase) for template in TEMPLATES for phrase in phrases)


def instance_claims(scene: Scene, class_id: int, labels: np.ndarray, instances: np.ndarray) -> list[InstanceClaim]:
    """What singles out instances of a class in a scene.

    Args:
        labels: class ids (H, W).
        instances: instance ids (H, W), 0 = none.
    """
    ids, areas = np.unique(instances[(labels == class_id) & (instances > 0)], return_counts=True)
    if len(ids) < 2:
        return []  # "the largest" of one says nothing
    columns = np.arange(labels.shape[1])
    centres = [
        float((((instances == i) & (labels == class_id)).sum(0) * columns).sum() / area)
        for i, area in zip(ids.tolist(), areas.tolist(), strict=True)
    ]
    visible = set(ids[areas >= MIN_INSTANCE_AREA * labels.size].tolist())
    claims = []
    by_area = np.argsort(-areas, kind="stable")
    if areas[by_area[0]] >= LARGEST_MARGIN * areas[by_area[1]]:
        claims.append(InstanceClaim(int(ids[by_area[0]]), "largest"))
    order = np.argsort(centres, kind="stable")
    for attribute, outer, inner in (("leftmost", order[0], order[1]), ("rightmost", order[-1], order[-2])):
        if abs(centres[outer] - centres[inner]) >= SIDE_MARGIN * labels.shape[1]:
            claims.append(InstanceClaim(int(ids[outer]), attribute))
    claims += _colour_claims(scene, ids.tolist())
    return [claim for claim in claims if claim.instance_id in visible]


def _colour_claims(scene: Scene, ids: list[int]) -> list[InstanceClaim]:
    """Colours that exactly one instance has; none at all while any instance's colour is unknown."""
    colours = [scene.facts.get(i, {}).get("colour") for i in ids]
    if None in colours:
        return []
    return [InstanceClaim(i, colour) for i, colour in zip(ids, colours, strict=True) if colours.count(colour) == 1]


def names_class(phrase: str, class_name: str) -> bool:
    """Whether a phrase contains a word of the class name, in the singular or plural."""
    words = set(re.findall(r"[a-z]+", phrase.lower()))
    return any(
        form in words
        for word in re.findall(r"[a-z]+", class_name.lower())
        for form in (
            word,
            word + "s",
            word + "es",
            word.removesuffix("y") + "ies",
            word.removesuffix("s"),
            word.removesuffix("ies") + "y",
        )
    )
