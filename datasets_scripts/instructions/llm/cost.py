"""What a run will cost, before the first request is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from .requests import Request

CHARACTERS_PER_TOKEN = 3
"""English prose has about 4, coordinates about 2; rather too many tokens than too few."""

IMAGE_TOKENS = {"gpt-4o-mini": (2833, 5667), "gpt-5": (70, 140), "o1": (75, 150), "o3": (75, 150)}
"""Beginning of a model's name -> tokens of an image, and of each of its tiles, as OpenAI's guide to vision has them."""
OTHER_MODELS = (85, 170)
"""gpt-4o's. Open models count by patches; at the sizes sent here that comes to the same order of magnitude."""
PATCH_TOKENS = {"gpt-4.1-mini": 1.62, "gpt-4.1-nano": 2.46, "gpt-5-mini": 1.62, "gpt-5-nano": 2.46, "o4-mini": 1.72}
"""Models that count patches of 32 pixels, at most 1536 of them, and the tokens of a patch (from the same guide)."""


def image_tokens(model: str, width: int, height: int) -> int:
    """OpenAI's rule for high detail: into a square of 2048, shortest side to 768 at most, then tiles of 512 pixels."""
    per_patch = next((tokens for name, tokens in PATCH_TOKENS.items() if model.startswith(name)), None)
    if per_patch is not None:
        return round(min(1536, math.ceil(width / 32) * math.ceil(height / 32)) * per_patch)
    scale = min(1.0, 2048 / max(width, height))
    scale *= min(1.0, 768 / (min(width, height) * scale))
    # rounded first, so that 512.0000001 is no second tile
    tiles = math.prod(math.ceil(round(side * scale, 3) / 512) for side in (width, height))
    base, per_tile = next((t for name, t in IMAGE_TOKENS.items() if model.startswith(name)), OTHER_MODELS)
    return base + per_tile * tiles


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens."""

    per_million_in: float
    per_million_out: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """Dollars."""
        return (tokens_in * self.per_million_in + tokens_out * self.per_million_out) / 1e6


@dataclass(frozen=True)
class Estimate:
    """
    Attributes:
        tokens_in: with those of the images.
        tokens_out: if every reply is as long as it is expected to be.
    """

    requests: int = 0
    tokens_in: int = 0
    image_tokens: int = 0
    tokens_out: int = 0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.requests + other.requests,
            self.tokens_in + other.tokens_in,
            self.image_tokens + other.image_tokens,
            self.tokens_out + other.tokens_out,
        )

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests, about {self.tokens_in:,} tokens in "
            f"({self.image_tokens:,} of them images) and {self.tokens_out:,} out"
        )


def estimate(requests: Iterable[Request]) -> Estimate:
    """Half of the longest reply that a request allows is what is expected of it."""
    total = Estimate()
    for request in requests:
        characters = len(request.system) + len(request.text) + len(json.dumps(request.schema))
        image = image_tokens(request.model, *request.picture_size) if request.picture_size else 0
        total += Estimate(1, math.ceil(characters / CHARACTERS_PER_TOKEN) + image, image, request.max_tokens // 2)
    return total
