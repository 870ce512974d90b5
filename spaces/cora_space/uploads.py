"""Components that take nothing but what was uploaded, and hand a picture over unopened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block


async def uploads_only(self: Block, url_or_file_path: str | Path | None) -> str | None:
    """In place of a method of Gradio that fetches addresses which a client names."""
    if str(url_or_file_path).lower().startswith(("http://", "https://")):
        raise gr.Error("Only uploaded files are taken.")
    return await Block.async_move_resource_to_block_cache(self, url_or_file_path)


class Photo(gr.Image):
    """`gr.Image` whose value is the path of the uploaded file, as it was sent.

    Gradio's own opens files before anyone could count their pixels, and decodes `data:` addresses of any length.
    """

    is_template = True  # the browser shows it as what it derives from
    async_move_resource_to_block_cache = uploads_only

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload is not None else None


class Editor(gr.ImageEditor):
    """`gr.ImageEditor` for uploaded files."""

    is_template = True
    async_move_resource_to_block_cache = uploads_only
