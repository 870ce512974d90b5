"""Text that others wrote, in a card."""

from __future__ import annotations

import re

_SHOWN = str.maketrans(
    {mark: f"\\{mark}" for mark in "`*_~[]!|#"}
    # as references: `\\(` and `$$` begin formulas on the Hub
    | {"\\": "&#92;", "$": "&#36;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)

_LINKED = re.compile(r"(?<=/)(?=/)|(?<=www)(?=\.)|(?<=@)(?=\S)", re.IGNORECASE)
"""Where an address that stands bare in a text is cut, so that no renderer finds it: `://`, `www.` and `@`."""

# Escapes are not enough: cmark-gfm (of e-mail addresses) and remark look for addresses in the text that they stand for.
_CUT = "<!-- -->"


def plain_text(value: object) -> str:
    """On one line, and within a line shown as it is: never HTML, a link, a picture, emphasis, code or the end of a
    table's cell."""
    return _LINKED.sub(_CUT, " ".join(str(value).split()).translate(_SHOWN))


__all__ = ["plain_text"]
