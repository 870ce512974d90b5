"""What a query becomes when its picture is mirrored.

The rules of `places.py`, `relations.py` and `attribute.py` are such that a mirrored picture swaps left and right and
changes nothing else, so the same words with their sides swapped are as true of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..records import Instruction, SemanticClass

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
