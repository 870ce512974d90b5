"""SAM's image embeddings on disk: a frozen encoder makes the same of the same pixels, in every epoch and stage.

An embedding's name is the SHA-256 of all that its bits depend on: the pixels that the encoder sees (so a random crop or
jitter is an image of its own), the encoder's weights and configuration, and how this machine computes. In
training and with a cache the model encodes images one by one, so which others share a batch is no part of it; with a
cold cache, a warm one and none, losses are the same.

Several processes may share a folder: a file appears whole, two that write it write the same, and whatever is not a
whole file of that name counts as missing and is written anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import SamModel, Trainer
from transformers.utils import logging

from datasets_scripts.command_line import UsageError
from modeling_cora import CoraForReasoningSegmentation

from .arguments import DataArguments, EmbeddingCacheArguments
from .base_trainer import SHARDED_WEIGHTS, weights_are_sharded

logger = logging.get_logger(__name__)

OURS = re.compile(r"[0-9a-f]{64}(\.safetensors|\.[0-9a-f]{32}\.partial)")
"""Names of a cache's files; nothing else in the folder is counted or removed."""
LOOK_AFTER = 0.01
"""Of the budget: a process looks what the folder holds after having written so much of it."""
ABANDONED = 3600.0
"""Seconds after which a file that nobody finished was left by a process that was killed."""


class EmbeddingCache:
    """What a model's `embedding_cache` can be.

    Files are `KEY.safetensors` with one tensor, named KEY. The least recently used make room for new ones; one process
    never exceeds the budget, and each further one by a hundredth of it, or one embedding, at most.

    Args:
        folder: is made where it is missing.
        sam: whose encoder's embeddings these are; its weights are read at the first embedding, and stay.
        budget: bytes.
        half: store, and give, embeddings that are rounded to float16.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, sam: SamModel, budget: int, half: bool = False):
        self.folder, self.sam, self.budget, self.half = Path(folder), sam, budget, half
        self.found = self.encoded = 0
        self._granted = 0  # bytes that may be written before looking again
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"embedding_cache: {folder}: no folder can be made there ({error.strerror})") from None

    def __call__(self, pixels: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The embedding (C, h, w) of an image (3, S, S).

        Raises:
            UsageError: the budget is less than one embedding.
        """
        key = self.key(pixels)
        stored = self._read(key)
        if stored is None:
            self.encoded += 1
            stored = encode(pixels)
            stored = stored.half() if self.half else stored
            self._write(key, stored)
        else:
            self.found += 1
        return stored.to(pixels.device, pixels.dtype if self.half else None)

    def summary(self) -> str:
        return f"embedding_cache: {self.found} embeddings found, {self.encoded} computed (by the main process)"

    def key(self, pixels: torch.Tensor) -> str:
        """The name of an image's embedding: 64 hexadecimal digits."""
        digest = hashlib.sha256(self._encoder)
        digest.update(f"{_arithmetic(pixels.device)} {pixels.dtype} {tuple(pixels.shape)} {self.half}".encode())
        digest.update(_bytes(pixels))
        return digest.hexdigest()

    @cached_property
    def _encoder(self) -> bytes:
        """What the encoder is. Read late: a resumed training loads its weights after the cache was made."""
        config = self.sam.config.vision_config
        text = f"{type(self.sam.vision_encoder).__name__} {config.to_json_string()} {config._attn_implementation}"
        return f"{text} {weights_hash(self.sam.vision_encoder)}".encode()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> torch.Tensor | None:
        """None where there is no whole file of that key."""
        try:
            # read, not mapped: a file that another process cuts short under a mapping would end this one
            stored = load(self._path(key).read_bytes())[key]
        except (OSError, SafetensorError, KeyError):
            return None
        # a file of another user, or one that another process has just removed: it counts as used less recently
        with suppress(OSError):
            _touch(self._path(key))
        return stored

    def _write(self, key: str, embedding: torch.Tensor) -> None:
        content = save({key: embedding.contiguous()})
        if len(content) > self.budget:
            raise UsageError(
                f"embedding_cache_gigabytes: {self.budget / 1e9:g} is less than one embedding, {len(content) / 1e9:g}"
            )
        # of this process alone: another one may be writing the same embedding
        partial = self.folder / f"{key}.{uuid.uuid4().hex}.partial"
        try:
            self._make_room(len(content))
            partial.write_bytes(content)
            _touch(partial)
            os.replace(partial, self._path(key))
        except OSError as error:  # nothing is lost but time
            logger.warning_once(f"embedding_cache: {self.folder}: cannot be written ({error.strerror})")
            partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Removes the least recently used files until `size` more bytes fit."""
        if size > self._granted:
            wanted = max(size, int(self.budget * LOOK_AFTER))
            files = sorted(self._files())
            total = sum(length for _, length, _ in files)
            for _, length, path in files:
                if total + wanted <= self.budget:
                    break
                path.unlink(missing_ok=True)
                total -= length
            self._granted = wanted
        self._granted -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of the last use, bytes and path of each; what was abandoned goes first."""
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name):
                try:
                    stat = path.stat()
                except FileNotFoundError:  # another process made room
                    continue
                abandoned = path.suffix == ".partial" and time.time() - stat.st_mtime > ABANDONED
                if abandoned or path.suffix != ".partial":
                    yield 0.0 if abandoned else stat.st_mtime_ns, stat.st_size, path


def add_embedding_cache(
    model: CoraForReasoningSegmentation | PeftModel, arguments: EmbeddingCacheArguments | None, training: bool = False
) -> EmbeddingCache | None:
    """Gives a model the cache that the arguments name; None where they name none.

    Args:
        training: the model's weights are going to change, but for the frozen ones.

    Raises:
        UsageError: SAM's encoder is trained, or the folder cannot be made.
    """
    if arguments is None or not arguments.embedding_cache:
        return None
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if training and any(p.requires_grad for p in base.sam.vision_encoder.parameters()):
        raise UsageError(
            f"embedding_cache {arguments.embedding_cache}: SAM's encoder is trained, so its embeddings change with "
            "every step; trained_parts without sam_encoder, or no cache, would be right"
        )
    budget = int(arguments.embedding_cache_gigabytes * 1e9)
    half = arguments.embedding_cache_precision == "float16"
    base.embedding_cache = EmbeddingCache(arguments.embedding_cache, base.sam, budget, half)
    return base.embedding_cache


def refuse_sharded_weights(trainer: Trainer) -> None:
    """Processes that hold parts of each layer gather them together: one that finds its image would let others wait.

    Raises:
        UsageError: FSDP, or DeepSpeed's ZeRO-3.
    """
    if weights_are_sharded(trainer):
        raise UsageError(f"embedding_cache: not with {SHARDED_WEIGHTS}")


def warn_of_new_images(arguments: DataArguments) -> None:
    """Says so where random views leave nothing to be found again."""
    for name, hopeless in (("colour_jitter", arguments.colour_jitter > 0), ("crop", arguments.crop >= 1)):
        if hopeless:
            print(
                f"warning: embedding_cache: with {name} {getattr(arguments, name)} every view of an image is a new "
                "one, so hardly any embedding is found again",
                file=sys.stderr,
            )
            return


def weights_hash(model: torch.nn.Module) -> str:
    """Of all weights, so that what another model made is never taken for this one's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _touch(path: Path) -> None:
    """Notes the time of a file's last use; the system's own stamps may be milliseconds old."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _arithmetic(device: torch.device) -> str:
    """What last bits depend on beside the numbers themselves."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return f"{torch.__version__} {name} {torch.get_float32_matmul_precision()} {autocast}"
