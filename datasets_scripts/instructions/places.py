"""Places in the picture: "the vegetation in the left half of the picture", of things and of masses, with the class
named (semantic queries) or described (attribute queries).

A mirrored photo swaps left and right and changes nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import numpy as np

from ..records import SemanticClass
from .attribute import names_class, phrasings
from .claims import Claim, Decision, verdict
from .objects import SceneObject, SceneObjects

REACHED, CLEAR_OF = 0.02, 0.03
"""An edge of the picture: reached where at least the first fraction of its pixels are the target's, clear where the
target keeps the second fraction of the picture's width (height) away from it."""


def _half(
    target: SceneObject, rivals: Sequence, anchors: Sequence, scene: SceneObjects, axis: int, first: bool
) -> Decision:
    """Edges leave out a tenth of the pixels, see `objects.EDGE`; what lies on both sides is unclear."""
    start, stop, size = (
        (target.top, target.bottom, scene.height) if axis == 0 else (target.left, target.right, scene.width)
    )
    inside, outside = 2 * (stop + 1) <= size, 2 * start >= size
    facts = {"extends_from": round(start / size, 4), "extends_to": round((stop + 1) / size, 4)}
    return verdict(*((inside, outside) if first else (outside, inside))), facts


def _edge(
    target: SceneObject, rivals: Sequence, anchors: Sequence, scene: SceneObjects, axis: int, first: bool
) -> Decision:
    top, left, bottom, right = target.box
    size, across = (scene.height, scene.width) if axis == 0 else (scene.width, scene.height)
    distance = {(0, True): top, (0, False): scene.height - bottom, (1, True): left, (1, False): scene.width - right}
    apart = distance[axis, first]
    line = np.take(target.mask, 0 if first else -1, axis=axis)
    reached = 0.0 if apart else float(line.sum()) / across
    facts = {"edge_reached": round(reached, 4), "edge_distance": round(apart / size, 4)}
    return verdict(reached >= REACHED, apart >= CLEAR_OF * size), facts


PLACES: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        *(
            Claim(
                f"{side} half",
                (f"{{target}} in the {side} half of the picture", f"{{target}} inside the {side} half of the image"),
                partial(_half, axis=axis, first=first),
            )
            for side, axis, first in (("left", 1, True), ("right", 1, False), ("upper", 0, True), ("lower", 0, False))
        ),
        *(
            Claim(
                f"{side} edge",
                (
                    f"{{target}} at the {side} edge of the picture",
                    f"{{target}} touching the {side} border of the image",
                ),
                partial(_edge, axis=axis, first=first),
            )
            for side, axis, first in (("left", 1, True), ("right", 1, False), ("top", 0, True), ("bottom", 0, False))
        ),
    )
}
"""By name. Their phrases take a noun phrase with its article."""


def place_descriptions(semantic_class: SemanticClass, counted: bool) -> tuple[str, ...]:
    """Noun phrases with their article that a place can follow and that do not name the class.

    Args:
        counted: whether one thing is meant, and not patches of a mass.
    """
    if counted:
        return (f"the {semantic_class.noun}",) if semantic_class.noun else ()
    # "what grows leaves at the left edge" could mean the leaves
    return tuple(a for a in semantic_class.attributes if a.startswith("the ") and not re.search("picture|image", a))


def place_queries(semantic_class: SemanticClass, claim: Claim, description: str | None = None) -> tuple[str, ...]:
    """All phrasings of a place.

    Args:
        description: one of `place_descriptions`; the class's name where it is not given.
    """
    target = description or f"the {semantic_class.name}"
    texts = phrasings(phrase.format(target=target) for phrase in claim.phrases)
    return tuple(text for text in texts if description is None or not names_class(text, semantic_class.name))
