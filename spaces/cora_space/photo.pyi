"""The upload, handed over unopened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from gradio.events import Dependency

class Photo(gr.Image):
    """`gr.Image` whose value is the path of the uploaded file, as it was sent.

    Gradio's own opens files before anyone could count their pixels, decodes `data:` addresses of any length, and
    fetches addresses that a client names.
    """

    is_template = True  # the page shows it as an Image

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload is not None else None

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        if str(url_or_file_path).lower().startswith(("http://", "https://")):
            raise gr.Error("Only uploaded files are taken.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component
