"""Queries that people wrote, with one instruction for each target."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from ..records import Instruction
from .semantic import ANSWERS


def free_text_instruction(
    image_id: str,
    class_name: str,
    texts: Sequence[str],
    instance_ids: tuple[int, ...] | None = None,
    facts: dict[str, Any] | None = None,
) -> Instruction:
    """An instruction of the kind "reasoning": the first text is the query, the others rephrase it.

    Args:
        texts: at least one that is not blank; doubles and blank ones are left out.
    """
    query, *rephrasings = dict.fromkeys(stripped for text in texts if (stripped := text.strip()))
    return Instruction(
        image_id=image_id,
        kind="reasoning",
        class_name=class_name,
        query=query,
        # crc32 and not hash(), which differs between processes
        answer=ANSWERS[zlib.crc32(f"{image_id}/{query}".encode()) % len(ANSWERS)],
        instance_ids=instance_ids,
        rephrasings=tuple(rephrasings),
        facts=facts or {},
        source="people",
    )
