"""From settings to a page that is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.routes import App
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answering import Answering, EncodedCache
from .drawing import MOST_SIDE
from .page import EXAMPLES_FOLDER, Page
from .settings import Settings, SettingsError

SESSIONS = 100
"""Visitors whose answers are kept, those in use last; an answer is 10 MB at most, 26 with an anchor in a large photo.
"""

BODY_BYTES = 100_000
"""Of a request, beside an uploaded file; the page's own need some thousands."""

# the reader's own; those of Gradio's themes come from another server
FONTS, MONOSPACED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


class BodyLimit:
    """Refuses a request once more bytes of its body have come than allowed, whatever it said of its length.

    Gradio limits each file, but not how many of them a request has, and reads those for functions of components, and
    all JSON, into memory.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.max_bytes:
                raise HTTPException(413, "The request is too large.")
            return message

        await self.app(scope, counted, send)


def sweeping(cache: EncodedCache, settings: Settings) -> Callable[[App], AbstractAsyncContextManager[None]]:
    """For the life of a server: what is too old goes also while nobody asks. Of files Gradio takes care by itself."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(settings.sweep_seconds)
                cache.drop_old()
                for session in list(app.state_holder.session_data.values()):
                    # of a tab that was closed, Gradio keeps the answer for an hour, whatever `time_to_live` says
                    session.STATE_TTL_WHEN_CLOSED = settings.keep_seconds

        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()

    return lifespan


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
    # Pillow counts pixels before it decodes anything, whoever asks it to
    Image.MAX_IMAGE_PIXELS = max(settings.max_pixels, MOST_SIDE**2)
    answering = Answering.load(settings, on_gpu=on_gpu)
    blocks = Page(answering, settings).blocks
    # without `api_open`, no request passes the queue by
    blocks.queue(api_open=False, max_size=settings.queue_size, default_concurrency_limit=settings.drawings)
    try:
        blocks.launch(
            server_name=settings.host or None,
            server_port=settings.port,
            prevent_thread_lock=not block,
            max_file_size=settings.max_bytes,
            # Gradio copies the examples to where it serves files from; else only from the folder it was started in
            allowed_paths=[str(EXAMPLES_FOLDER)],
            app_kwargs={
                "lifespan": sweeping(answering.cache, settings),
                "middleware": [Middleware(BodyLimit, max_bytes=settings.max_bytes + BODY_BYTES)],
            },
            state_session_capacity=SESSIONS,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED),
            css_paths=Path(__file__).with_name("page.css"),
        )
    except OSError as error:
        raise SettingsError(f"--port {settings.port}: cannot be listened on ({error})") from None
    return blocks
