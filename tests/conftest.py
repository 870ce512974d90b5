"""Shared by all tests: a small model with random weights, built in milliseconds."""

from __future__ import annotations

import resource
import socket
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from modeling_cora.presets import cora_tiny

from .local_hub import RIGHT, LocalHub

SHARED = Path(__file__).resolve().parents[2] / "shared"

TEXTS = [
    "Segment the road.",
    "Can you segment the traffic light in this image?",
    "the vehicle with four wheels",
    "Where is the tree?",
    "Please mark everything that is sky.",
]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    """(model in eval mode, processor): 56-pixel vision tower (16 image tokens), 128-pixel SAM."""
    model, processor = cora_tiny(TEXTS, seed=0, clip_image_size=56, sam_image_size=128)
    # a random decoder's masks are all but zero, and so would be every difference between them
    torch.nn.init.normal_(model.sam.mask_decoder.output_hypernetworks_mlps[0].proj_out.weight, std=2.0)
    return model.eval(), processor


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A folder with a model and its processor, to be read only."""
    folder = tmp_path_factory.mktemp("model")
    for part in cora_tiny(TEXTS, seed=0, clip_image_size=28, sam_image_size=128):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def free_port() -> int:
    """Of this machine's own address; nobody listens on it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@contextmanager
def disk_for(size: int):
    """A file may have so many bytes; the system refuses what lies beyond as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A small Hub that this process takes for the Hub, logged in."""
    monkeypatch.setenv("HF_TOKEN", RIGHT)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with LocalHub(RIGHT) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which keeps the address that it was made with
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        yield hub
