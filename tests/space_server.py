"""The demo Space, served to tests over HTTP by this process, and visitors that speak to it as the page does."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image

from modeling_cora.presets import cora_tiny

from .conftest import TEXTS

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported


def save_small_model(folder: Path, anchors: bool) -> None:
    """With random weights, whose masks are neither empty nor full."""
    torch.manual_seed(0)
    model, processor = cora_tiny(TEXTS, seed=0, clip_image_size=56, sam_image_size=128)
    torch.nn.init.normal_(model.sam.mask_decoder.output_hypernetworks_mlps[0].proj_out.weight, std=2.0)
    if anchors:
        model.add_anchors(processor.add_anchor_token())
    for part in (model, processor):
        part.save_pretrained(folder)


@dataclass
class Server:
    """
    Attributes:
        address: of the page.
        runs: how often the model encoded a picture and answered.
        open: while it is cleared, the model does not answer.
        broken: while it is set, the model fails.
    """

    address: str
    runs: dict[str, int] = field(default_factory=lambda: {"encoded": 0, "answered": 0})
    open: threading.Event = field(default_factory=threading.Event)
    broken: threading.Event = field(default_factory=threading.Event)

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            self.open.wait(60)
            if self.broken.is_set():
                raise RuntimeError("a secret of /the/server")
            self.runs[function.__name__] += 1
            return function(*arguments)

        return wrapped


def unused_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextmanager
def space_server(folder: Path, port: int, files: Path, **settings: Any) -> Iterator[Server]:
    """The page of the model in `folder`; uploads lie under `files`."""
    from cora_space.serving import serve
    from cora_space.settings import Settings

    server = Server(f"http://127.0.0.1:{port}")
    server.open.set()
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(files))
        blocks = serve(Settings(model=str(folder), port=port, **settings), server.watched, block=False)
        try:
            yield server
        finally:
            server.open.set()
            blocks.close()
            Image.MAX_IMAGE_PIXELS = limit


class Visitor:
    """A browser tab without the browser: uploads, puts events into the queue, reads what comes of them."""

    def __init__(self, address: str):
        self.client = httpx2.Client(base_url=address, timeout=60)
        self.session = uuid.uuid4().hex[:10]
        self.config = self.client.get("/config").json()
        self.events = {event["api_name"]: event for event in self.config["dependencies"] if event["api_name"]}

    def upload(self, content: bytes, name: str = "picture.png") -> httpx2.Response:
        return self.client.post("/gradio_api/upload", files={"files": (name, content)})

    def photo(self, content: bytes) -> dict[str, Any]:
        """What the page sends of an uploaded picture."""
        (path,) = self.upload(content).json()
        return file_data(path)

    def join(self, event: str, data: list[Any], **about: Any) -> httpx2.Response:
        """Args: about: the event, as `event_data`."""
        body = {"data": data, "fn_index": self.events[event]["id"], "session_hash": self.session, **about}
        return self.client.post("/gradio_api/queue/join", json=body)

    def send(self, event: str, data: list[Any], **about: Any) -> dict[str, Any]:
        """The message that ends the event: `success` and `output`."""
        event_id = self.join(event, data, **about).json()["event_id"]
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed" and message["event_id"] == event_id:
                        return message
        raise AssertionError(f"{event}: the stream ended")


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
