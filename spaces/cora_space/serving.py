"""From settings to a page that is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from .answering import Answering
from .page import Page
from .settings import Settings, SettingsError

SESSIONS = 100
"""Visitors whose answers are kept, those in use last; an answer is 10 MB at most, 26 with an anchor in a large photo.
"""

# the reader's own; those of Gradio's themes come from another server
FONTS, MONOSPACED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def serve(
    settings: Settings, on_gpu: Callable[[Any], Any] = lambda function: function, block: bool = True
) -> gr.Blocks:
    """
    Args:
        on_gpu: see `Answering`.
        block: serve until the process is ended; otherwise beside it, until `close()` of what is returned.

    Raises:
        SettingsError: a model or device that is not there, a port that is taken.
    """
    # Pillow counts pixels before it decodes anything, whoever asks it to: here, or Gradio of what was painted.
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    blocks = Page(Answering.load(settings, on_gpu=on_gpu), settings).blocks
    # without `api_open`, no request passes the queue by
    blocks.queue(api_open=False, max_size=settings.queue_size, default_concurrency_limit=settings.drawings)
    try:
        blocks.launch(
            server_name=settings.host or None,
            server_port=settings.port,
            prevent_thread_lock=not block,
            max_file_size=settings.max_bytes,
            state_session_capacity=SESSIONS,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED),
            css_paths=Path(__file__).with_name("page.css"),
        )
    except OSError as error:
        raise SettingsError(f"--port {settings.port}: cannot be listened on ({error})") from None
    return blocks
