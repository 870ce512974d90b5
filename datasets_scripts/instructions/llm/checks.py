"""What is wrong with a text that a language model wrote. Every check gives a reason, or "" where it finds nothing.

A reason begins with words that are the same for all of its kind; details follow after ": ".
"""

from __future__ import annotations

import re

from ..attribute import attribute_claims, colour_claim
from ..claims import Claim, Verdict, single_out
from ..colours import COLOURS
from ..conditional import COUNTED_ONLY
from ..objects import SceneObject, SceneObjects
from ..relations import RELATIONS
from .subjects import Pair, Target, rivals_of

LONGEST = 300
"""Characters of a query or an answer."""

_SPECIAL = re.compile(r"\[\s*/?seg\s*\]|<[^<>]{1,40}>|\[/?INST\]", re.IGNORECASE)
"""The tokens of this project, and what other models write theirs like (`<image>`, `</s>`, `<|im_end|>`)."""


def words(text: str) -> str:
    """What two queries have in common that differ in case, spaces and punctuation alone."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def query_problem(query: str) -> str:
    if not words(query):
        return "empty query"
    if len(query) > LONGEST:
        return f"too long: {len(query)} characters"
    if _SPECIAL.search(query):
        return "special token in a query"
    return "" if query.isprintable() else "line break or control character in a query"


def answer_problem(answer: str) -> str:
    if answer.count("[SEG]") != 1:
        return f"not one [SEG] in the answer: {answer.count('[SEG]')}"
    rest = query_problem(answer.replace("[SEG]", "x"))
    return rest.replace("query", "answer")


def claim_problem(
    claim: Claim, targets: tuple[SceneObject, ...], anchors: tuple[SceneObject, ...], scene: SceneObjects
) -> tuple[str, dict]:
    """Whether a claim is true of the targets and of nothing else of their class; with the numbers it rests on, which of
    several targets are those of the largest, as `single_out` has them."""
    facts: dict = {}
    for target in targets:
        rivals = list(rivals_of(target, anchors, scene))
        if not (rivals or anchors):
            return "nothing to be told from: the only one of its class", {}
        decision, numbers = claim.decide(target, rivals, anchors, scene)
        facts = facts or numbers
        if decision is not Verdict.TRUE:
            return f"claim is {decision.value}: {claim.name}", numbers
    picked = single_out(claim, scene.of_class(targets[0].class_id), anchors, scene)
    if picked is None or {id(each) for each in picked[0]} != {id(each) for each in targets}:
        return f"claim does not single out its target: {claim.name}", facts
    return "", picked[1]


def relation_problem(name: str, pair: Pair, scene: SceneObjects) -> tuple[str, dict]:
    """As `claim_problem`, for a relation by its name."""
    if name in COUNTED_ONLY and not all(scene.counted(part.class_id) for part in (pair.target, pair.anchor)):
        return f"claim is made of a mass: {name}", {}
    return claim_problem(RELATIONS[name], pair.target.objects(scene), pair.anchor.objects(scene), scene)


def attribute_problem(name: str, target: Target, scene: SceneObjects) -> tuple[str, dict]:
    """As `claim_problem`, for an attribute or colour by its name."""
    known = {claim.name: claim for claim in attribute_claims(scene, scene.classes[target.class_id])}
    claim = known.get(name) or (colour_claim(name) if name in COLOURS else None)
    if claim is None:
        return f"unknown attribute: {name}", {}
    if not scene.counted(target.class_id):
        return f"claim is made of a mass: {name}", {}
    return claim_problem(claim, target.objects(scene), (), scene)
