"""Text that others wrote, in a card."""

from __future__ import annotations

import html
import re


def plain_text(value: object) -> str:
    """On one line, and shown as it is: never HTML, a link, a picture or the end of a table's cell."""
    return re.sub(r"([\\|*\[\]!])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


__all__ = ["plain_text"]
