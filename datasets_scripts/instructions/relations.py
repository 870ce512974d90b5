"""Relations between a target and its anchors, decided from the masks in the image plane, the camera's own frame of
reference (arXiv 2511.17755, section on conditional instructions).

`left` and `right`, `higher` and `lower`, `above` and `below`, `front` and `behind` are opposites; a mirrored photo
swaps the first two and changes none of the others. On the ground, higher in the picture means farther away: so things
that stand there, and the ground itself, are `higher` or `behind` but never `above`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from .claims import Claim, Decide, Decision, Verdict, verdict
from .objects import SceneObject, SceneObjects

GAP = 0.01
"""`left`, `right`, `above`, `below`, `higher`, `lower`: at least this fraction of the image's width (height) lies
between the edges."""
OVERLAP = 0.5
"""`above`, `below`, `front`, `behind`: at least this fraction of the narrower one's columns is shared."""
WIDE = 0.5
"""`left`, `right`: a mass that spans more than this fraction of the image's width has no side (the sky)."""
DEPTH = 0.03
"""`front`, `behind`: the ground contacts are this fraction of the image's height apart."""
NEARER, NEARER_GAP = 1.3, 0.01
"""`nearest`, `farthest`: the next one is this many times as far (near) and this fraction of the image's diagonal
farther (nearer)."""
LARGER = 1.5
"""`larger`, `smaller`: ratio of the areas."""
BETWEEN = (0.15, 0.25, 0.5)
"""`between`: the centroid's foot on the line between the anchors' centroids keeps this fraction of its length from
both ends, and the centroid this fraction from the line; beyond the third fraction it is false. True only where the
centroid also lies in the gap between the anchors: a person in front of a bus is not between it and a car."""
SURROUNDED = (0.9, 0.6)
"""`inside`: at least the first fraction of the pixels around the target are the anchor's; below the second: false."""
TOUCHING = (0.1, 0.02)
"""`touching`: at least the first fraction of the pixels around the target are the anchor's; false where the two are
farther apart than the second fraction of the image's diagonal."""


def _shared_columns(one: SceneObject, other: SceneObject) -> float:
    """Of the narrower one."""
    shared = min(one.right, other.right) - max(one.left, other.left) + 1
    return shared / min(one.right - one.left + 1, other.right - other.left + 1)


# `left`, `right`, `higher`, `lower` are false of an object whose centroid lies on the other side of the anchor's. A
# patch of a mass has parts rather than a place: the facade behind a pole is on both sides of it. So there they are
# false only where the patch reaches no farther to that side than the anchor does.


def _beyond(
    target: SceneObject,
    rivals: Sequence,
    anchors: Sequence[SceneObject],
    scene: SceneObjects,
    first: str,
    last: str,
    before: bool,
) -> Decision:
    """Along one axis, `first` and `last` being the edges of an object there: before the anchor, or behind it."""
    (anchor,) = anchors
    across = first == "left"
    if across and _is_wide(anchor, scene):
        return Verdict.UNCLEAR, {}
    size, axis = (scene.width, 1) if across else (scene.height, 0)
    near, far = (last, first) if before else (first, last)  # the target's edge towards the anchor, and the other one
    sign = 1 if before else -1
    gap = (sign * (getattr(anchor, far) - getattr(target, near)) - 1) / size
    if scene.counted(target.class_id):
        false = round(sign * (target.centre[axis] - anchor.centre[axis]), 9) >= 0
    else:
        false = sign * (getattr(target, far) - getattr(anchor, far)) >= 0
    facts = {
        f"target_{near}": round(getattr(target, near) / size, 4),
        f"anchor_{far}": round(getattr(anchor, far) / size, 4),
    }
    return verdict(gap >= GAP, false), facts


_LEFT = partial(_beyond, first="left", last="right", before=True)
_RIGHT = partial(_beyond, first="left", last="right", before=False)
_HIGHER = partial(_beyond, first="top", last="bottom", before=True)
_LOWER = partial(_beyond, first="top", last="bottom", before=False)


def _is_wide(anchor: SceneObject, scene: SceneObjects) -> bool:
    return not scene.counted(anchor.class_id) and anchor.right - anchor.left + 1 > WIDE * scene.width


def _upright(decide: Decide) -> Decide:
    """`higher` and right above, `lower` and right below; not where the difference could be one of depth."""

    def decided(target: SceneObject, rivals: Sequence, anchors: Sequence[SceneObject], scene: SceneObjects) -> Decision:
        one, other = scene.classes[target.class_id], scene.classes[anchors[0].class_id]
        if (one.stands and other.stands) or one.ground or other.ground:
            return Verdict.UNCLEAR, {}
        decision, facts = decide(target, rivals, anchors, scene)
        shared = _shared_columns(target, anchors[0])
        facts = {**facts, "shared_columns": round(shared, 4)}
        return (Verdict.UNCLEAR if decision is Verdict.TRUE and shared < OVERLAP else decision), facts

    return decided


def _depth(
    target: SceneObject, rivals: Sequence, anchors: Sequence[SceneObject], scene: SceneObjects, nearer: bool
) -> Decision:
    (anchor,) = anchors
    contacts = scene.ground_contact(target), scene.ground_contact(anchor)
    if contacts[0] is None or contacts[1] is None:
        return Verdict.UNCLEAR, {}
    ahead = (contacts[0] - contacts[1]) / scene.height * (1 if nearer else -1)
    facts = {"target_foot": round(contacts[0] / scene.height, 4), "anchor_foot": round(contacts[1] / scene.height, 4)}
    return verdict(ahead >= DEPTH and _shared_columns(target, anchor) >= OVERLAP, ahead <= 0), facts


def _clearly(near: float, far: float) -> bool:
    return far >= NEARER * near and far - near >= NEARER_GAP


def _distance(
    target: SceneObject,
    rivals: Sequence[SceneObject],
    anchors: Sequence[SceneObject],
    scene: SceneObjects,
    nearest: bool,
) -> Decision:
    if not rivals:
        return Verdict.UNCLEAR, {}
    diagonal = float(np.hypot(scene.height, scene.width))
    own, *others = (scene.distance(o, anchors[0]) / diagonal for o in (target, *rivals))
    other = min(others) if nearest else max(others)
    ahead, behind = _clearly(own, other), _clearly(other, own)
    facts = {"distance": round(own, 4), "next_distance": round(other, 4)}
    return verdict(*((ahead, behind) if nearest else (behind, ahead))), facts


def _size(
    target: SceneObject, rivals: Sequence, anchors: Sequence[SceneObject], scene: SceneObjects, larger: bool
) -> Decision:
    ratio = target.area / anchors[0].area
    decided = (ratio >= LARGER, ratio <= 1) if larger else (ratio <= 1 / LARGER, ratio >= 1)
    return verdict(*decided), {"area_ratio": round(ratio, 3)}


def _between(target: SceneObject, rivals: Sequence, anchors: Sequence[SceneObject], scene: SceneObjects) -> Decision:
    start, end, point = (np.array(o.centre) for o in (*anchors, target))
    axis = end - start
    length = float(np.hypot(*axis))
    if length < 2 * BETWEEN[0] * np.hypot(scene.height, scene.width):
        return Verdict.UNCLEAR, {}  # too close together for anything to be between them
    # rounded, so that what lies exactly on a margin is decided by the margin and not by the last bit
    along = round(float((point - start) @ axis) / length**2, 9)
    aside = round(abs(float((point - start)[0] * axis[1] - (point - start)[1] * axis[0])) / length**2, 9)
    true = BETWEEN[0] <= along <= 1 - BETWEEN[0] and aside <= BETWEEN[1] and _in_gap(target, anchors)
    return verdict(true, not 0 <= along <= 1 or aside >= BETWEEN[2]), {
        "along": round(along, 4),
        "aside": round(aside, 4),
    }


def _in_gap(target: SceneObject, anchors: Sequence[SceneObject]) -> bool:
    """Whether the target's centroid lies beyond the edges that two anchors turn to each other, along the axis of the
    picture on which they are farther apart."""
    down, across = (abs(one - other) for one, other in zip(*(a.centre for a in anchors), strict=True))
    first, last, axis = ("left", "right", 1) if round(across - down, 9) >= 0 else ("top", "bottom", 0)
    before, after = sorted(anchors, key=lambda anchor: anchor.centre[axis])
    return getattr(before, last) < round(target.centre[axis], 9) < getattr(after, first)


def _surrounded(target: SceneObject, anchor: SceneObject, scene: SceneObjects) -> float:
    """Fraction of the pixels around the target that are the anchor's."""
    around = scene.full_mask(anchor)[scene.surroundings(target)]
    return float(around.mean()) if len(around) else 0.0


def _at_border(target: SceneObject, scene: SceneObjects) -> bool:
    top, left, bottom, right = target.box
    return top == 0 or left == 0 or bottom == scene.height or right == scene.width


def _inside(target: SceneObject, rivals: Sequence, anchors: Sequence[SceneObject], scene: SceneObjects) -> Decision:
    around = _surrounded(target, anchors[0], scene)
    true = around >= SURROUNDED[0] and not _at_border(target, scene)
    return verdict(true, around < SURROUNDED[1]), {"surrounded": round(around, 4)}


def _touching(target: SceneObject, rivals: Sequence, anchors: Sequence[SceneObject], scene: SceneObjects) -> Decision:
    around = _surrounded(target, anchors[0], scene)
    apart = scene.distance(target, anchors[0]) / float(np.hypot(scene.height, scene.width))
    facts = {"contact": round(around, 4), "distance": round(apart, 4)}
    return verdict(around >= TOUCHING[0], apart > TOUCHING[1]), facts


RELATIONS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "left",
            (
                "the {target} to the left of the {anchor}",
                "the {target} left of the {anchor}",
                "the {target} that is on the left-hand side of the {anchor}",
                "the {target} farther left in the picture than the {anchor}",
            ),
            _LEFT,
            1,
        ),
        Claim(
            "right",
            (
                "the {target} to the right of the {anchor}",
                "the {target} right of the {anchor}",
                "the {target} that is on the right-hand side of the {anchor}",
                "the {target} farther right in the picture than the {anchor}",
            ),
            _RIGHT,
            1,
        ),
        Claim(
            "above",
            (
                "the {target} above the {anchor}",
                "the {target} that is over the {anchor}",
                "the {target} directly above the {anchor} in the picture",
                "the {target} located above the {anchor}",
            ),
            _upright(_HIGHER),
            1,
        ),
        Claim(
            "below",
            (
                "the {target} below the {anchor}",
                "the {target} that is under the {anchor}",
                "the {target} directly below the {anchor} in the picture",
                "the {target} located below the {anchor}",
            ),
            _upright(_LOWER),
            1,
        ),
        Claim(
            "higher",
            (
                "the {target} higher up in the picture than the {anchor}",
                "the {target} that appears higher in the image than the {anchor}",
                "the {target} closer to the top of the picture than the {anchor}",
                "the {target} shown farther up in the image than the {anchor}",
            ),
            _HIGHER,
            1,
        ),
        Claim(
            "lower",
            (
                "the {target} lower down in the picture than the {anchor}",
                "the {target} that appears lower in the image than the {anchor}",
                "the {target} closer to the bottom of the picture than the {anchor}",
                "the {target} shown farther down in the image than the {anchor}",
            ),
            _LOWER,
            1,
        ),
        Claim(
            "front",
            (
                "the {target} in front of the {anchor}",
                "the {target} that stands in front of the {anchor}",
                "the {target} that is closer to the camera than the {anchor}",
                "the {target} between the camera and the {anchor}",
            ),
            partial(_depth, nearer=True),
            1,
        ),
        Claim(
            "behind",
            (
                "the {target} behind the {anchor}",
                "the {target} that stands behind the {anchor}",
                "the {target} that is farther from the camera than the {anchor}",
                "the {target} beyond the {anchor}",
            ),
            partial(_depth, nearer=False),
            1,
        ),
        Claim(
            "nearest",
            (
                "the {target} that appears closest to the {anchor} in the picture",
                "the {target} nearest to the {anchor} in the image",
                "the {target} with the smallest distance in the image to the {anchor}",
                "the {target} shown nearest to the {anchor}",
            ),
            partial(_distance, nearest=True),
            1,
        ),
        Claim(
            "farthest",
            (
                "the {target} that appears farthest from the {anchor} in the picture",
                "the {target} farthest from the {anchor} in the image",
                "the {target} with the largest distance in the image to the {anchor}",
                "the {target} shown farthest away from the {anchor}",
            ),
            partial(_distance, nearest=False),
            1,
        ),
        Claim(
            "larger",
            (
                "the {target} that looks larger than the {anchor}",
                "the {target} that takes up more of the picture than the {anchor}",
                "the {target} that covers a larger area than the {anchor}",
                "the {target} that appears bigger than the {anchor}",
            ),
            partial(_size, larger=True),
            1,
        ),
        Claim(
            "smaller",
            (
                "the {target} that looks smaller than the {anchor}",
                "the {target} that takes up less of the picture than the {anchor}",
                "the {target} that covers a smaller area than the {anchor}",
                "the {target} that appears smaller than the {anchor}",
            ),
            partial(_size, larger=False),
            1,
        ),
        Claim(
            "between",
            (
                "the {target} between the {anchor} and the {other}",
                "the {target} that is in between the {anchor} and the {other}",
                "the {target} with the {anchor} on one side and the {other} on the other",
                "the {target} flanked by the {anchor} and the {other}",
            ),
            _between,
            2,
        ),
        Claim(
            "inside",
            (
                "the {target} surrounded by the {anchor}",
                "the {target} enclosed by the {anchor}",
                "the {target} with the {anchor} all around it",
                "the {target} that has the {anchor} on every side",
            ),
            _inside,
            1,
        ),
        Claim(
            "touching",
            (
                "the {target} that touches the {anchor} in the picture",
                "the {target} adjoining the {anchor} in the image",
                "the {target} directly against the {anchor} in the picture",
                "the {target} that borders on the {anchor}",
            ),
            _touching,
            1,
        ),
    )
}
"""By name."""
