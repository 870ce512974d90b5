"""Components that take nothing but what was uploaded, and hand a picture over unopened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components.image_editor import EditorData

from .inputs import LOST


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
    """`gr.ImageEditor` whose value is the paths of its layers, uploaded files: what was painted, and nothing else.

    Gradio's own opens all that is sent, the background and the composite too, in any format that Pillow knows.
    """

    is_template = True
    async_move_resource_to_block_cache = uploads_only

    # Of Gradio, a function that anyone may call over HTTP, and that keeps what it gets until an event names its id.
    # Browsers call it only where something listens to `change` or `input` of the editor. Nothing here does: what was
    # painted comes as uploaded files, and nobody can call None.
    accept_blobs = None

    def preprocess(self, payload: EditorData | None) -> list[str]:
        """
        Raises:
            gr.Error: the paint is told by an id, under which nothing is kept here.
        """
        if payload is None:
            return []
        if payload.id is not None:
            raise gr.Error(LOST)
        return [layer.path for layer in payload.layers]
