"""Mirrored pictures, and what is true of them.

The rules of `places.py`, `relations.py` and `attribute.py` are such that a mirrored picture swaps left and right and
changes nothing else, so the same words with their sides swapped are as true of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from ..records import Anchor, ImageSource, Instruction, Scene, SceneSet, SemanticClass, image_size, open_image

_SIDE = re.compile(r"\b(left|right)(?=most\b|\b)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def names_side(text: str) -> bool:
    """Whether it says "left", "right-hand" or "leftmost"; "upright" is no side."""
    return _SIDE.search(text) is not None


def mirrored_text(text: str) -> str:
    """The text with its sides swapped: "the leftmost car" -> "the rightmost car"."""

    def swapped(match: re.Match) -> str:
        found = match.group()
        other = _OTHER[found.lower()]
        return other.upper() if found.isupper() else other.capitalize() if found[0].isupper() else other

    return _SIDE.sub(swapped, text)


def sided_classes(classes: Iterable[SemanticClass]) -> frozenset[str]:
    """Names of classes that are one side's by name or description ("left kidney"): a mirrored one is another class."""
    return frozenset(c.name for c in classes if any(map(names_side, (c.name, c.noun, *c.attributes))))


def can_be_mirrored(instruction: Instruction, sided: frozenset[str] = frozenset()) -> bool:
    """Whether `mirrored_text` of its queries is true of the mirrored picture.

    Of free text only where it names no side ("the man who left", "right behind the bus").

    Args:
        sided: classes as of `sided_classes`.
    """
    if sided and not sided.isdisjoint((instruction.class_name, *(a.class_name for a in instruction.anchors))):
        return False
    texts = (instruction.query, *instruction.rephrasings, instruction.answer)
    return instruction.source == "rules" or not any(map(names_side, texts))


def mirrored_instruction(instruction: Instruction, width: int) -> Instruction:
    """The same about the mirrored picture; true of it if `can_be_mirrored`.

    Of its facts the names of the anchors are kept alone: measured numbers are those of the picture as it was.

    Args:
        width: of the picture, in pixels.
    """
    named = [mirrored_text(claim) for claim in instruction.facts.get("anchors", ())]
    return replace(
        instruction,
        query=mirrored_text(instruction.query),
        rephrasings=tuple(map(mirrored_text, instruction.rephrasings)),
        answer=mirrored_text(instruction.answer),
        claim=mirrored_text(instruction.claim),
        anchors=tuple(_mirrored_anchor(anchor, width) for anchor in instruction.anchors),
        facts={"anchors": named} if named else {},
    )


def _mirrored_anchor(anchor: Anchor, width: int) -> Anchor:
    top, left, bottom, right = anchor.box
    return replace(anchor, box=(top, width - right, bottom, width - left))


@dataclass(frozen=True)
class MirroredImage:
    """Another image or map with left and right swapped (a `StoredImage`)."""

    source: ImageSource

    def __str__(self) -> str:
        return f"{self.source} (mirrored)"

    def open(self) -> Image.Image:
        with open_image(self.source) as file:
            return ImageOps.mirror(ImageOps.exif_transpose(file))  # a camera's turn first, then left and right


def mirrored(
    scene_set: SceneSet, scenes: Iterable[Scene], instructions: Iterable[Instruction]
) -> tuple[tuple[Scene, ...], list[Instruction]]:
    """Scenes of mirrored images and maps, and those instructions that `can_be_mirrored` about them.

    Raises:
        DataError: the image of an instruction does not open.
    """
    scenes, sided = tuple(scenes), sided_classes(scene_set.classes)
    kept = [i for i in instructions if can_be_mirrored(i, sided)]
    asked = {i.image_id for i in kept}
    widths = {scene.image_id: image_size(scene.image)[1] for scene in scenes if scene.image_id in asked}
    return tuple(map(_mirrored_scene, scenes)), [mirrored_instruction(i, widths[i.image_id]) for i in kept]


def _mirrored_scene(scene: Scene) -> Scene:
    maps = {
        name: MirroredImage(source)
        for name in ("image", "label_map", "instance_map")
        if (source := getattr(scene, name)) is not None
    }
    return replace(scene, **maps)
