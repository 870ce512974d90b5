"""Instruction sets: built from labelled scenes, written and read as JSON lines."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_text
from ..json_files import os_reason, parse_json
from ..records import IGNORE_INDEX, DataError, Instruction, Kind, Scene, SceneSet, SemanticClass
from .attribute import attribute_claims, attribute_queries, instance_queries
from .claims import single_out
from .conditional import conditional_claims
from .objects import SceneObject, SceneObjects
from .places import PLACES, place_descriptions, place_queries
from .semantic import ANSWERS, semantic_queries

KINDS: tuple[Kind, ...] = ("semantic", "attribute", "conditional")
"""Kinds that are built from masks; "reasoning" needs people or a language model."""

MIN_CLASS_AREA = 1e-4
"""Fraction of the image's pixels below which a class is not asked for (17 pixels of a 480x360 image)."""

REPHRASINGS = 11
"""Kept besides the query; the paper needs K = 7 equivalent queries."""


def class_queries(semantic_class: SemanticClass, *kinds: Kind) -> tuple[str, ...]:
    """All phrasings that ask for a whole class, e.g. for images without labels; none for kinds that have no such."""
    of_kind = {"semantic": semantic_queries, "attribute": attribute_queries}
    return tuple(query for kind in kinds if kind in of_kind for query in of_kind[kind](semantic_class))


def shown_classes(classes: Iterable[SemanticClass], labels: np.ndarray) -> list[SemanticClass]:
    """The classes that a label map (H, W) shows enough of to be asked for."""
    pixels = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
    return [c for c in classes if c.asked and pixels[c.id] >= max(1, MIN_CLASS_AREA * labels.size)]


def build_instructions(
    scene_set: SceneSet, scenes: Sequence[Scene], kinds: Sequence[Kind] = ("semantic", "attribute"), seed: int = 0
) -> list[Instruction]:
    """Instructions for labelled scenes, each true of its target alone.

    Semantic: one for each class that an image shows, and one for each place that singles out some of it ("in the left
    half"). Attribute: the same for each description of the class, and one for each claim that singles out an instance.
    Conditional: one for each relation that picks its target out of a class. Which phrasing is the query depends on the
    seed, the image and the claim alone.

    Raises:
        DataError: a scene has no label map, or a map is wrong; an unknown kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise DataError(f"kinds: {kind!r} is not one that is built; known are {', '.join(KINDS)}")
    return [instruction for scene in scenes for instruction in scene_instructions(scene_set, scene, kinds, seed)]


def scene_instructions(scene_set: SceneSet, scene: Scene, kinds: Sequence[Kind], seed: int = 0) -> list[Instruction]:
    """The instructions of one labelled scene; see `build_instructions`."""
    return object_instructions(scene.image_id, SceneObjects.of_scene(scene_set, scene), kinds, seed)


def object_instructions(
    image_id: str, objects: SceneObjects, kinds: Sequence[Kind], seed: int = 0
) -> list[Instruction]:
    """The instructions about what stands in one image; see `build_instructions`."""
    made: list[Instruction | None] = []
    for semantic_class in shown_classes(objects.classes.values(), objects.labels):
        new = partial(_instruction, image_id, semantic_class, seed)
        if "semantic" in kinds:
            made.append(new("semantic", semantic_queries(semantic_class)))
        if "attribute" in kinds:
            made += [new("attribute", attribute_queries(semantic_class, a)) for a in semantic_class.attributes]
        candidates, counted = objects.of_class(semantic_class.id), objects.counted(semantic_class.id)
        if "attribute" in kinds and counted:
            for claim in attribute_claims(objects, semantic_class):
                if picked := single_out(claim, candidates, (), objects):
                    targets, facts = picked
                    queries = instance_queries(semantic_class, claim)
                    made.append(new("attribute", queries, targets, claim=claim.name, facts=facts))
        for claim in PLACES.values():
            if picked := single_out(claim, candidates, (), objects):
                targets, facts = picked
                place = partial(new, targets=targets, claim=claim.name, facts=facts)
                if "semantic" in kinds:
                    made.append(place("semantic", place_queries(semantic_class, claim)))
                if "attribute" in kinds:
                    descriptions = place_descriptions(semantic_class, counted)
                    made += [place("attribute", place_queries(semantic_class, claim, d)) for d in descriptions]
    if "conditional" in kinds:
        for found in conditional_claims(objects):
            semantic_class = objects.classes[found.targets[0].class_id]
            made.append(
                _instruction(
                    image_id,
                    semantic_class,
                    seed,
                    "conditional",
                    found.queries(semantic_class),
                    found.targets,
                    claim=found.relation.name,
                    anchors=found.records(objects),
                    facts=found.facts,
                )
            )
    return [instruction for instruction in made if instruction is not None]


def _instruction(
    image_id: str,
    semantic_class: SemanticClass,
    seed: int,
    kind: Kind,
    queries: Sequence[str],
    targets: Sequence[SceneObject] = (),
    **fields: Any,
) -> Instruction | None:
    """One instruction, or none where there is no query; no targets = every pixel of the class."""
    if not queries:
        return None
    # crc32 and not hash(), which differs between processes
    key = zlib.crc32(f"{image_id}/{kind}/{semantic_class.name}/{queries[0]}".encode())
    rng = np.random.default_rng((seed, key))
    chosen = [queries[i] for i in rng.permutation(len(queries))[: 1 + REPHRASINGS]]
    return Instruction(
        image_id=image_id,
        kind=kind,
        class_name=semantic_class.name,
        query=chosen[0],
        answer=ANSWERS[int(rng.integers(len(ANSWERS)))],
        instance_ids=tuple(t.id for t in targets if t.id is not None) or None,
        rephrasings=tuple(chosen[1:]),
        **fields,
    )


def write_instructions(path: str | Path, instructions: Sequence[Instruction]) -> None:
    """One JSON object per line; the file is whole or not there."""
    lines = (json.dumps(dataclasses.asdict(instruction), ensure_ascii=False) for instruction in instructions)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_instructions(path: str | Path) -> list[Instruction]:
    """Raises:
    DataError: a line is not an instruction; it is named as FILE:LINE.
    """
    instructions = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    instruction = Instruction.from_dict(parse_json(line))
                    if wrong := wrong_type(instruction):
                        raise TypeError(f"{wrong} is not of its type")
                    instructions.append(instruction)
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{path}:{number}: not an instruction ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {os_reason(error)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from None
    return instructions


def wrong_type(instruction: Instruction) -> str:
    """The first field that is not what it is declared to be, or ""; JSON may hold anything."""
    for name in ("image_id", "kind", "class_name", "query", "answer", "claim", "source"):
        if not isinstance(getattr(instruction, name), str):
            return name
    if not isinstance(instruction.rephrasings, list | tuple) or not all(
        isinstance(text, str) for text in instruction.rephrasings
    ):
        return "rephrasings"
    for name, ids in (
        ("instance_ids", instruction.instance_ids),
        *(("anchors.instance_ids", a.instance_ids) for a in instruction.anchors),
    ):
        if ids is not None and not all(type(i) is int for i in ids):
            return name
    if not all(isinstance(a.class_name, str) for a in instruction.anchors):
        return "anchors.class_name"
    return "" if isinstance(instruction.facts, dict) else "facts"
