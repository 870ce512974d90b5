"""Whether instructions are true: every claim decided again from the masks, every text read again.

A reason is "what is wrong: the values"; the part before the colon is always the same words, so reasons can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from tqdm import tqdm

from ..processes import in_processes
from ..records import Anchor, DataError, Instruction, Kind, Scene, SceneSet, SemanticClass
from .attribute import attribute_claims, attribute_queries, instance_queries, names_class
from .build import MIN_CLASS_AREA, wrong_type
from .claims import Claim, Verdict, single_out
from .conditional import COUNTED_ONLY, ConditionalClaim, NamedObject, name_of
from .objects import SceneObject, SceneObjects
from .places import PLACES, place_descriptions, place_queries
from .relations import RELATIONS
from .semantic import semantic_queries

MIN_QUERIES = 7
"""Equivalent queries that a rule gives, the instruction's own among them (K of arXiv 2511.17755). People write as many
as they like, and of a language model's those that can be used are kept."""

TOLERANCE = 1e-3
"""Relative difference by which a stored number may miss the measured one."""

SPECIAL = ("[seg]", "<image>")

UNDECIDED = "claim is empty: no mask can decide what the query says"
"""The reason against an instruction that may be true, for all that can be seen here."""


def check_scene(scene_set: SceneSet, scene: Scene, instructions: Sequence[Instruction]) -> list[list[str]]:
    """The reasons against each instruction of one scene: its own, and those of all of them together.

    Raises:
        DataError: the scene's maps or, where a colour is claimed, its image cannot be read.
    """
    if not scene.labelled:
        return [[f"image is not labelled: {scene.image_id}"] for _ in instructions]
    objects = SceneObjects.of_scene(scene_set, scene)
    own = [check_instruction(scene_set, scene, objects, instruction) for instruction in instructions]
    return [[*mine, *common] for mine, common in zip(own, contradictions(instructions), strict=True)]


def check_names(scene_set: SceneSet, scene: Scene, instructions: Sequence[Instruction]) -> list[list[str]]:
    """What each instruction names and its scene does not have; nothing where the scene's maps cannot be read, which
    whoever needs them will say."""
    if not scene.labelled:
        return [[f"image is not labelled: {scene.image_id}"] for _ in instructions]
    try:
        objects = SceneObjects.of_scene(scene_set, scene)
    except DataError:
        return [[] for _ in instructions]
    return [_absent(objects, instruction) for instruction in instructions]


Check = Callable[[SceneSet, Scene, Sequence[Instruction]], list[list[str]]]
"""Gives the reasons against each instruction of one scene."""


def check_set(
    scene_set: SceneSet,
    instructions: Sequence[Instruction],
    workers: int = 1,
    progress: bool = False,
    check: Check = check_scene,
) -> list[list[str]]:
    """The reasons against each instruction, in their order, whatever the number of processes.

    Raises:
        DataError: a map or image cannot be read.
        UsageError: a process was killed.
    """
    reasons: list[list[str]] = [[] for _ in instructions]
    scenes = {scene.image_id: scene for scene in scene_set.scenes}
    numbers: dict[str, list[int]] = {}
    for number, instruction in enumerate(instructions):
        if (image_id := str(instruction.image_id)) in scenes:
            numbers.setdefault(image_id, []).append(number)
        else:
            reasons[number] = [f"image is unknown: {image_id}"]
    jobs = [(scenes[image_id], [instructions[n] for n in own]) for image_id, own in numbers.items()]
    places = list(numbers.values())
    work = partial(_check_job, check, replace(scene_set, scenes=()))
    with tqdm(total=len(instructions), desc="checking", unit="instruction", disable=not progress) as bar:
        for job, found in in_processes(work, jobs, workers):
            for number, mine in zip(places[job], found, strict=True):
                reasons[number] = mine
            bar.update(len(found))
    return reasons


def _check_job(check: Check, scene_set: SceneSet, job: tuple[Scene, list[Instruction]]) -> list[list[str]]:
    return check(scene_set, *job)


def check_instruction(scene_set: SceneSet, scene: Scene, objects: SceneObjects, instruction: Instruction) -> list[str]:
    """Why an instruction is not true of its scene, or not fit to be asked; empty where it is both.

    That a free text says what its claim says cannot be seen here; that of a rule can, and is.

    Args:
        scene: the one that the instruction names, labelled.
        objects: of this scene.
    """
    if wrong := wrong_type(instruction):
        return [f"field is not of its type: {wrong}"]
    if instruction.image_id != scene.image_id:
        return [f"image is another one: {instruction.image_id}, not {scene.image_id}"]
    reasons = _texts(instruction)
    if absent := _absent(objects, instruction):
        return reasons + absent
    target_class, *anchor_classes = (scene_set.class_named(part.class_name) for part in _parts(instruction))
    reasons += _target(objects, target_class, instruction)
    named, wrong_anchors = _anchors(objects, anchor_classes, instruction)
    return reasons + wrong_anchors + _claim_and_wording(objects, target_class, instruction, named)


def contradictions(instructions: Sequence[Instruction]) -> list[list[str]]:
    """For each instruction of one scene: whether another one asks the same and has another target, or is the same."""
    readable = [i for i in instructions if not wrong_type(i)]
    asked: dict[str, set[tuple[Any, ...]]] = {}
    for instruction in readable:
        for query in queries_of(instruction):
            asked.setdefault(folded(query), set()).add(_target_of(instruction))
    reasons: list[list[str]] = []
    seen: set[tuple[Any, ...]] = set()
    for instruction in instructions:
        reasons.append([])
        if wrong_type(instruction):
            continue
        if found := [q for q in queries_of(instruction) if len(asked[folded(q)]) > 1]:
            reasons[-1].append(f"query has two targets in one image: {found[0]!r}")
        key = (instruction.kind, _target_of(instruction), folded(instruction.query))
        if key in seen:
            reasons[-1].append(f"instruction is there twice: {instruction.query!r}")
        seen.add(key)
    return reasons


def queries_of(instruction: Instruction) -> tuple[str, ...]:
    """The query and its rephrasings."""
    return (instruction.query, *instruction.rephrasings)


def folded(text: str) -> str:
    """A text without case, punctuation and surplus spaces; queries of one folded text are one query."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def mentions(text: str, name: str) -> int:
    """How often a text names something, in the singular or plural, as whole words."""
    *first, last = folded(name).split() or [""]
    forms = [last, last + "s", last + "es", *([last[:-1] + "ies"] if last.endswith("y") else [])]
    forms += ["people"] if last == "person" else []
    before = "".join(f"{word} " for word in first)
    return len(re.findall(rf"(?<!\w){before}(?:{'|'.join(forms)})(?!\w)", folded(text)))


def unmentioned(instruction: Instruction, query: str, called: Sequence[str] | None = None) -> str:
    """Why a query does not name the target and the anchors of its instruction, or "".

    Args:
        called: what the anchors are called; by default as their classes.
    """
    of_anchors = [anchor.class_name for anchor in instruction.anchors]
    for name in dict.fromkeys([instruction.class_name, *(of_anchors if called is None else called)]):
        # "the car left of the largest car" needs both
        times = 2 if name == instruction.class_name and name in of_anchors else 1
        if mentions(query, name) < times:
            return f"query does not mention its target and anchors: no {name!r} in {query!r}"
    return ""


def _target_of(instruction: Instruction) -> tuple[Any, ...]:
    ids = instruction.instance_ids
    return instruction.class_name, None if ids is None else tuple(sorted(ids))


def _texts(instruction: Instruction) -> list[str]:
    """What can be seen without the scene."""
    queries, reasons = queries_of(instruction), []
    if instruction.kind not in get_args(Kind):
        reasons.append(f"kind is unknown: {instruction.kind!r}")
    if (count := instruction.answer.count("[SEG]")) != 1:
        reasons.append(f"answer does not hold exactly one [SEG]: {count} in {instruction.answer!r}")
    if "<image>" in instruction.answer.casefold():
        reasons.append(f"answer holds <image>: {instruction.answer!r}")
    if empty := [query for query in queries if not folded(query)]:
        reasons.append(f"query is empty: {empty[0]!r}")
    if special := [query for query in queries if any(mark in query.casefold() for mark in SPECIAL)]:
        reasons.append(f"query holds a special token: {special[0]!r}")
    if instruction.source == "rules" and len(queries) < MIN_QUERIES:
        reasons.append(f"queries are too few: {len(queries)}, not {MIN_QUERIES}")
    seen = [folded(query) for query in queries]
    if twice := [query for k, query in enumerate(queries) if seen[k] in seen[:k]]:
        reasons.append(f"query is there twice: {twice[0]!r}")
    if instruction.kind == "attribute" and (
        leaks := [query for query in queries if names_class(query, instruction.class_name)]
    ):
        reasons.append(f"attribute query names its class: {leaks[0]!r}")
    return reasons


def _parts(instruction: Instruction) -> tuple[Instruction | Anchor, ...]:
    """What an instruction names: target and anchors."""
    return (instruction, *instruction.anchors)


def _absent(objects: SceneObjects, instruction: Instruction) -> list[str]:
    """Which of them are not in the scene; without them nothing else can be looked at."""
    classes = {c.name: c for c in objects.classes.values()}
    for part in _parts(instruction):
        if part.class_name not in classes:
            return [f"class is unknown: {part.class_name!r}"]
        if not classes[part.class_name].asked:
            return [f"class is not asked for: {part.class_name!r}"]
    return [
        reason
        for part in _parts(instruction)
        for reason in _missing(
            objects, "target" if part is instruction else "anchor", classes[part.class_name], part.instance_ids
        )
    ]


def _missing(objects: SceneObjects, part: str, semantic_class: SemanticClass, ids: tuple[int, ...] | None) -> list[str]:
    if ids is None:
        found = objects.whole(semantic_class.id)
        return [] if found else [f"{part} is not in the image: no {semantic_class.name}"]
    if not ids or len(set(ids)) < len(ids):
        return [f"{part}'s instances are none or named twice: {ids}"]
    absent = [i for i in ids if objects.instance(semantic_class.id, i) is None]
    return [f"{part} is no instance of its class: {absent[0]} of {semantic_class.name}"] if absent else []


def _target(objects: SceneObjects, target_class: SemanticClass, instruction: Instruction) -> list[str]:
    """Its size, and whether a query of this kind may be about instances."""
    ids = instruction.instance_ids
    if ids is None:
        area = int((objects.labels == target_class.id).sum())
        return [f"target is too small: {area} pixels"] if area < MIN_CLASS_AREA * objects.labels.size else []
    if instruction.kind == "semantic" and instruction.claim not in PLACES:
        return [f"target is not the whole class: instances {_few(ids)}"]
    targets = [t for t in (objects.instance(target_class.id, i) for i in ids) if t]
    if not any(objects.visible(target) for target in targets):
        return [f"target is too small: {sum(target.area for target in targets)} pixels"]
    if objects.counted(target_class.id) and len(ids) > 1 and instruction.kind != "reasoning":
        return [f"target is more than one object: instances {_few(ids)}"]
    return []


def _anchors(
    objects: SceneObjects, anchor_classes: Sequence[SemanticClass], instruction: Instruction
) -> tuple[list[NamedObject], list[str]]:
    """The anchors as they are called, and whether each is where it is said to be and alone of its name.

    No objects where the anchors are not even named.
    """
    if not instruction.anchors:
        return [], []
    if instruction.kind in ("semantic", "attribute"):
        return [], [f"anchors are of no use: kind {instruction.kind}"]
    claims = instruction.facts.get("anchors")
    if not isinstance(claims, list | tuple) or len(claims) != len(instruction.anchors):
        return [], [f"facts do not name the anchors: {claims!r}"]
    named, reasons = [], []
    for anchor, semantic_class, claim_name in zip(instruction.anchors, anchor_classes, claims, strict=True):
        place = _place(objects, semantic_class.id, anchor)
        if place is None:
            return [], [*reasons, f"anchor is more than one object: instances {anchor.instance_ids}"]
        if tuple(anchor.box) != place.box:
            reasons.append(f"anchor's box is wrong: {tuple(anchor.box)}, not {place.box}")
        claim = next((c for c in attribute_claims(objects, semantic_class) if c.name == claim_name), None)
        name = name_of(semantic_class, claim)
        if (claim is None) != (claim_name == "") or not _is_alone(objects, place, claim):
            reasons.append(f"anchor is not the only one of its name: {name!r}")
        if not objects.visible(place):
            reasons.append(f"anchor is too small: {place.area} pixels")
        if semantic_class.name == instruction.class_name:
            shared = set(anchor.instance_ids or ()) & set(instruction.instance_ids or ())
            if shared or anchor.instance_ids is None:
                reasons.append(f"anchor is the target: {semantic_class.name} {min(shared, default='')}")
        if any(place is other.object for other in named):
            reasons.append(f"anchor is there twice: {name!r}")
        named.append(NamedObject(name, claim.name if claim else "", place))
    return named, reasons


def _place(objects: SceneObjects, class_id: int, anchor: Anchor) -> SceneObject | None:
    if anchor.instance_ids is None:
        return objects.whole(class_id)
    return objects.instance(class_id, anchor.instance_ids[0]) if len(anchor.instance_ids) == 1 else None


def _is_alone(objects: SceneObjects, place: SceneObject, claim: Claim | None) -> bool:
    """Whether an anchor is the only thing of its class, or the only one of which the claim is true."""
    candidates = objects.of_class(place.class_id)
    if claim is not None:
        picked = single_out(claim, candidates, (), objects)
        return picked is not None and len(picked[0]) == 1 and picked[0][0] is place
    if objects.counted(place.class_id):
        return len(candidates) == 1 and candidates[0] is place
    return place.id is None and objects.one_piece(place.class_id)


def _claim_and_wording(
    objects: SceneObjects, target_class: SemanticClass, instruction: Instruction, named: Sequence[NamedObject]
) -> list[str]:
    """Whether the claim is true of the target alone, and whether the queries say it."""
    if instruction.anchors and not named:
        return []  # said already
    conditional = instruction.kind == "conditional" or bool(named)
    if not instruction.claim:
        alone = {o.id for o in objects.of_class(target_class.id)} == set(instruction.instance_ids or ())
        if conditional or (instruction.kind == "attribute" and instruction.instance_ids is not None and not alone):
            return [UNDECIDED]
        return _wording(objects, target_class, instruction, None, named)
    if conditional:
        claim = RELATIONS.get(instruction.claim)
    else:
        claim = PLACES.get(instruction.claim) or next(
            (c for c in attribute_claims(objects, target_class) if c.name == instruction.claim), None
        )
    if claim is None or (instruction.kind == "semantic" and claim.name not in PLACES):
        return [f"claim is unknown: {instruction.claim!r}"]
    if len(named) != claim.anchors:
        return [f"anchors are not as many as the claim needs: {len(named)}, not {claim.anchors} for {claim.name!r}"]
    if instruction.instance_ids is None:
        return [f"claim is made of a whole class: {claim.name!r}"]
    counted = all(objects.counted(c) for c in (target_class.id, *(a.object.class_id for a in named)))
    if not counted and claim.name not in PLACES and (claim.name in COUNTED_ONLY or not conditional):
        return [f"claim is made of a mass: {claim.name!r}"]
    return _truth(objects, target_class, instruction, claim, [a.object for a in named]) + _wording(
        objects, target_class, instruction, claim, named
    )


def _truth(
    objects: SceneObjects,
    target_class: SemanticClass,
    instruction: Instruction,
    claim: Claim,
    anchors: Sequence[SceneObject],
) -> list[str]:
    candidates, ids = objects.of_class(target_class.id), set(instruction.instance_ids or ())
    if not candidates:
        return [f"claim cannot be decided: some pixels of {target_class.name} belong to no instance"]
    picked = single_out(claim, candidates, anchors, objects)
    if picked is not None and {target.id for target in picked[0]} == ids:
        wrong = [
            f"{name} {instruction.facts.get(name)!r}, measured {value!r}"
            for name, value in picked[1].items()
            if not _agree(instruction.facts.get(name), value)
        ]
        return [f"facts are not the measured ones: {wrong[0]}"] if wrong else []
    rivals = [c for c in candidates if not any(c is a for a in anchors)]
    if not claim.anchors and len(rivals) < 2:
        return [f"claim has nothing to be told from: the only {target_class.name}"]
    verdicts = {o.id: claim.decide(o, [r for r in rivals if r is not o], anchors, objects)[0] for o in rivals}
    for verdict, said in ((Verdict.FALSE, "false"), (Verdict.UNCLEAR, "unclear")):
        if found := sorted(i for i in ids if verdicts.get(i) is verdict):
            return [f"claim is {said}: {claim.name!r} of {target_class.name} {_few(found)}"]
    if found := sorted(i for i, v in verdicts.items() if i is not None and i not in ids and v is not Verdict.FALSE):
        return [f"claim is not false of a rival: {claim.name!r} of {target_class.name} {_few(found)}"]
    return [f"claim leaves next to nothing out: {claim.name!r} of {target_class.name}"]


def _agree(stored: Any, measured: Any) -> bool:
    if isinstance(measured, float) and isinstance(stored, int | float):
        return abs(stored - measured) <= TOLERANCE * max(1.0, abs(measured))
    return bool(stored == measured)


def _wording(
    objects: SceneObjects,
    target_class: SemanticClass,
    instruction: Instruction,
    claim: Claim | None,
    named: Sequence[NamedObject],
) -> list[str]:
    """Whether the queries name what they must name, and, of a rule, whether they are this claim's."""
    queries, reasons = queries_of(instruction), []
    rules = instruction.source == "rules"
    if instruction.kind in ("semantic", "conditional"):
        called = [a.name for a in named] if rules else None
        if silent := next(filter(None, (unmentioned(instruction, query, called) for query in queries)), ""):
            reasons.append(silent)
    if rules and instruction.kind != "reasoning":
        known = set(_phrasings(objects, target_class, instruction, claim, named))
        if other := [query for query in queries if query not in known]:
            reasons.append(f"query is not the rule's: {other[0]!r}")
    return reasons


def _phrasings(
    objects: SceneObjects,
    target_class: SemanticClass,
    instruction: Instruction,
    claim: Claim | None,
    named: Sequence[NamedObject],
) -> tuple[str, ...]:
    if claim is not None and claim.name in PLACES:
        if instruction.kind == "semantic":
            return place_queries(target_class, claim)
        descriptions = place_descriptions(target_class, objects.counted(target_class.id))
        return tuple(text for d in descriptions for text in place_queries(target_class, claim, d))
    if instruction.kind == "semantic":
        return semantic_queries(target_class)
    if claim is None:
        return attribute_queries(target_class)
    if not claim.anchors:
        return instance_queries(target_class, claim)
    return ConditionalClaim(claim, (), tuple(named), {}).queries(target_class)


def _few(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
