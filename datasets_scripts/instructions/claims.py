"""A claim is what a query says of its target and what the masks must bear out.

Every claim is decided three ways: true, false, or unclear. Between true and false lies a margin, so that no answer
is nearly right: a query is made only where the claim is true of its target and clearly false of every rival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .objects import SceneObject, SceneObjects

MAX_UNCLEAR = 0.02
"""Of a mass (vegetation, cut into patches), patches of this fraction of the target's area may be unclear; of things
that one can count, none."""

MIN_LEFT_OUT = 0.05
"""Of a mass, a claim is false of patches with at least this fraction of its area: "the road at the left edge" is no
part of it where one patch crosses the picture and a scrap lies elsewhere."""


class Verdict(Enum):
    TRUE = "true"
    FALSE = "false"
    UNCLEAR = "unclear"


def verdict(true: bool, false: bool) -> Verdict:
    return Verdict.TRUE if true else Verdict.FALSE if false else Verdict.UNCLEAR


Decision = tuple[Verdict, dict[str, Any]]
"""With the numbers it rests on: fractions of the image's width or height, or ratios."""

Decide = Callable[[SceneObject, Sequence[SceneObject], Sequence[SceneObject], SceneObjects], Decision]


@dataclass(frozen=True)
class Claim:
    """
    Attributes:
        name: as in `Instruction.claim`.
        phrases: ways to say it, with the places {target}, {anchor} and, for two anchors, {other}: nouns that bring no
            article of their own, but for places, whose target does.
        decide: (target, rivals, anchors, scene) -> decision. Rivals are the other objects that "the {target}" could
            mean; the anchors are not among them.
        anchors: how many it needs.
    """

    name: str
    phrases: tuple[str, ...]
    decide: Decide
    anchors: int = 0


def single_out(
    claim: Claim, candidates: Sequence[SceneObject], anchors: Sequence[SceneObject], scene: SceneObjects
) -> tuple[tuple[SceneObject, ...], dict[str, Any]] | None:
    """What the claim picks from the candidates, which are of one class; None where that is not clear, or nothing.

    Of things that one can count that is a single one; of a mass it is all patches for which the claim is true, and it
    must be false of a visible one and of `MIN_LEFT_OUT` in all: "the sky higher up than the road" says no more than
    "the sky". Of a single thing nothing is said without an anchor ("the largest").

    Returns:
        The targets, and the facts of the largest of them.
    """
    rivals = [c for c in candidates if not any(c is a for a in anchors)]
    if not rivals or (not claim.anchors and len(rivals) < 2):
        return None
    true, unclear, left_out, excluded = [], 0, 0, False
    facts: dict[int | None, dict[str, Any]] = {}
    for candidate in rivals:
        decision, numbers = claim.decide(candidate, [r for r in rivals if r is not candidate], anchors, scene)
        if decision is Verdict.UNCLEAR:
            unclear += candidate.area
        elif decision is Verdict.TRUE:
            facts[candidate.id] = numbers
            true.append(candidate)
        else:
            left_out += candidate.area
            excluded = excluded or scene.visible(candidate)
    area = sum(target.area for target in true)
    if scene.counted(rivals[0].class_id):
        singled_out = len(true) == 1 and not unclear and scene.visible(true[0])
    else:
        decided = any(scene.visible(target) for target in true) and unclear <= MAX_UNCLEAR * area
        singled_out = decided and excluded and left_out >= MIN_LEFT_OUT * (area + unclear + left_out)
    if not singled_out:
        return None
    return tuple(true), facts[max(true, key=lambda target: target.area).id]
