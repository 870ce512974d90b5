"""Instruction sets: built from labelled scenes, written and read as JSON lines."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import write_text
from ..records import DataError, Instruction, Kind, Scene, SceneSet, SemanticClass
from .attribute import attribute_queries, instance_claims, instance_queries
from .semantic import ANSWERS, semantic_queries

MIN_CLASS_AREA = 1e-4
"""Fraction of the image's pixels below which a class is not asked for (17 pixels of a 480x360 image)."""

REPHRASINGS = 11
"""Kept besides the query; the paper needs K = 7 equivalent queries."""


def class_queries(semantic_class: SemanticClass, kind: Kind) -> tuple[str, ...]:
    """All phrasings that ask for a whole class, e.g. for images without labels."""
    if kind == "semantic":
        return semantic_queries(semantic_class)
    if kind == "attribute":
        return attribute_queries(semantic_class)
    raise DataError(f"kinds: {kind!r} has no class-level queries; known are semantic, attribute")


def build_instructions(
    scene_set: SceneSet, scenes: Sequence[Scene], kinds: Sequence[Kind] = ("semantic", "attribute"), seed: int = 0
) -> list[Instruction]:
    """Instructions for labelled scenes: for each kind one per class that an image shows, and for `attribute` one per
    claim about a single instance.

    Which phrasing is the query depends on the seed, the image and the class alone.

    Raises:
        DataError: a scene has no label map, or a map is wrong.
    """
    instructions = []
    for scene in scenes:
        labels, instances = scene_set.read_maps(scene)
        for semantic_class in scene_set.classes:
            pixels = (labels == semantic_class.id).sum()
            if not semantic_class.asked or pixels < max(1, MIN_CLASS_AREA * labels.size):
                continue
            for kind in kinds:
                queries = class_queries(semantic_class, kind)
                instructions += _instruction(scene, kind, semantic_class, queries, None, seed)
            if "attribute" in kinds and instances is not None:
                for claim in instance_claims(scene, semantic_class.id, labels, instances):
                    queries = instance_queries(semantic_class, claim)
                    instructions += _instruction(scene, "attribute", semantic_class, queries, claim.instance_id, seed)
    return instructions


def _instruction(
    scene: Scene, kind: Kind, semantic_class: SemanticClass, queries: Sequence[str], instance: int | None, seed: int
) -> list[Instruction]:
    """One instruction, or none where there is no query."""
    if not queries:
        return []
    # crc32 and not hash(), which differs between processes
    key = zlib.crc32(f"{scene.image_id}/{kind}/{semantic_class.name}/{queries[0]}".encode())
    rng = np.random.default_rng((seed, key))
    chosen = [queries[i] for i in rng.permutation(len(queries))[: 1 + REPHRASINGS]]
    return [
        Instruction(
            image_id=scene.image_id,
            kind=kind,
            class_name=semantic_class.name,
            query=chosen[0],
            answer=ANSWERS[int(rng.integers(len(ANSWERS)))],
            instance_ids=None if instance is None else (instance,),
            rephrasings=tuple(chosen[1:]),
        )
    ]


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
                    instructions.append(Instruction.from_dict(json.loads(line)))
                except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{path}:{number}: not an instruction ({error})") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from None
    return instructions
