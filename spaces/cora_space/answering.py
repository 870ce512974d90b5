"""The model behind a lock and a cache: a picture is encoded once, whoever asks about it and however often."""

from __future__ import annotations

import functools
import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.loading import ModelLoadError, load_trained, pick_device
from modeling_cora.segmentation import EncodedImages, MaskLogits, encode, query_logits

from .inputs import VisitorError, anchors_of
from .settings import Settings, SettingsError


class EncodedCache:
    """Encoded pictures by the hash of their file, those in use last, up to a number of bytes, and for a time.

    Args:
        keep_seconds: from `put` on; to be used does not renew it, since a picture is promised to be gone by then.
        clock: in seconds.
    """

    def __init__(self, max_bytes: float, keep_seconds: float, clock: Callable[[], float] = time.monotonic):
        self.max_bytes, self.keep_seconds, self.clock = max_bytes, keep_seconds, clock
        self._kept: OrderedDict[str, tuple[float, EncodedImages]] = OrderedDict()
        # its own: who drops what is old does not wait for the model
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(encoded.nbytes for _, encoded in self._kept.values())

    def get(self, key: str) -> EncodedImages | None:
        with self._lock:
            self.drop_old()
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][1]

    def put(self, key: str, encoded: EncodedImages) -> None:
        """The last one stays, whatever its size."""
        with self._lock:
            self.drop_old()
            self._kept[key] = self.clock(), encoded
            while self.nbytes > self.max_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)

    def drop_old(self) -> None:
        """Drops what was put `keep_seconds` ago or earlier."""
        with self._lock:
            latest = self.clock() - self.keep_seconds
            for key in [key for key, (put, _) in self._kept.items() if put <= latest]:
                del self._kept[key]


@dataclass(frozen=True)
class Answer:
    """What a visitor's session keeps: enough to draw and to download, without model or file.

    With `cora-7b`, seven queries and their rephrasings that is 9 MB: 49 masks of 256 x 256, and the picture.

    Attributes:
        picture: the image at the size at which it is shown.
        path: of its file.
        queries: n texts.
        logits: of n masks, in half precision.
        anchor: bool (H, W) at image size, or None.
    """

    picture: Image.Image
    path: str
    queries: tuple[str, ...]
    logits: MaskLogits
    anchor: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Of the file, without its folders, which are the server's own."""
        return Path(self.path).name

    def masks(self, threshold: float, size: Sequence[int] | None = None) -> np.ndarray:
        """bool (n, *size), by default at image size.

        Args:
            threshold: of the probability, in (0, 1).
        """
        return self.logits.masks(logit(threshold), size).numpy()


def logit(probability: float) -> float:
    """The logit of a probability in (0, 1); 0.5 is 0."""
    return math.log(probability / (1 - probability))


class Answering:
    """
    Args:
        on_gpu: decorates the two functions that need a GPU where one is lent for each call (`spaces.GPU`). What they
            take and give lies on the CPU, so they may run in another process.
    """

    def __init__(
        self,
        model: CoraForReasoningSegmentation,
        processor: CoraProcessor,
        cache_bytes: float = 512e6,
        keep_seconds: float = 3600,
        on_gpu: Callable[[Any], Any] = lambda function: function,
    ):
        self.model, self.processor = model, processor
        self.cache = EncodedCache(cache_bytes, keep_seconds)
        # One request at a time: an anchor is a hook on the model's embeddings while its request runs.
        self._lock = threading.Lock()

        def encoded(image: Image.Image) -> EncodedImages:
            return encode(model, processor, [image]).to("cpu")

        def answered(image: EncodedImages, queries: Sequence[str], uncertainty: bool, anchors: Any) -> MaskLogits:
            answer = query_logits(model, processor, image, queries, uncertainty=uncertainty, anchors=anchors)
            return answer.to("cpu", torch.float16)

        self._encode, self._answer = on_gpu(_refusing(encoded)), on_gpu(_refusing(answered))

    @classmethod
    def load(cls, settings: Settings, **kwargs: Any) -> Answering:
        """
        Raises:
            SettingsError: there is no such model.
            ModelLoadError: there is no such device.
        """
        device = pick_device(settings.device)
        try:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            model, processor = load_trained(settings.model, dtype=dtype)
        except ModelLoadError as error:
            raise SettingsError(f"--model {error}") from None
        return cls(model.to(device), processor, 1e6 * settings.cache_megabytes, settings.keep_seconds, **kwargs)

    @property
    def takes_anchors(self) -> bool:
        return self.model.config.anchor_token_id is not None

    def prepare(self, content: bytes, decode: Callable[[bytes], Image.Image]) -> EncodedImages:
        """The image of a file, encoded; decoded only where it is not known yet.

        Raises:
            VisitorError: an image that the model cannot see; whatever `decode` raises.
        """
        key = hashlib.sha256(content).hexdigest()
        with self._lock:
            encoded = self.cache.get(key)
            if encoded is None:
                encoded = _told(self._encode, decode(content))
                self.cache.put(key, encoded)
            return encoded

    def ask(
        self, encoded: EncodedImages, queries: Sequence[str], uncertainty: bool, anchor: np.ndarray | None
    ) -> MaskLogits:
        """One mask for each query; the anchor, bool (H, W), goes with those that say "this".

        Raises:
            VisitorError: a query that the model cannot take, or an anchor that no query speaks of.
        """
        anchors = anchors_of(queries, anchor)
        with self._lock:
            return _told(self._answer, encoded, queries, uncertainty, anchors)


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which gives a refusal back: of an error in a lent GPU's process nothing arrives but its class."""

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            return VisitorError(f"The model cannot take this: {error}.")

    return wrapped


def _told(function: Callable[..., Any], *arguments: Any) -> Any:
    """
    Raises:
        VisitorError: that the function gives back.
    """
    result = function(*arguments)
    if isinstance(result, VisitorError):
        raise result
    return result
