"""What is wrong with a text that a language model wrote, whatever it says: `verify` knows whether that is true.

A reason begins with words that are the same for all of its kind; details follow after ": ".
"""

from __future__ import annotations

import re

from ..verify import folded

LONGEST = 300
"""Characters of a query or an answer."""

_SPECIAL = re.compile(r"\[\s*/?seg\s*\]|<[^<>]{1,40}>|\[/?INST\]", re.IGNORECASE)
"""The tokens of this project, and what other models write theirs like (`<image>`, `</s>`, `<|im_end|>`)."""


def query_problem(query: str) -> str:
    """A reason, or ""."""
    if not folded(query):
        return "empty query"
    if len(query) > LONGEST:
        return f"too long: {len(query)} characters"
    if _SPECIAL.search(query):
        return "special token in a query"
    return "" if query.isprintable() else "line break or control character in a query"


def answer_problem(answer: str) -> str:
    """As `query_problem`, of what stands around [SEG]; how often that is there is for `verify` to see."""
    return query_problem(answer.replace("[SEG]", "x")).replace("a query", "an answer")
