"""Anchors of conditional queries: "the car to the left of *this*". A mask becomes two tokens, one for how it looks and
one for where it is, as in SegLLM (`get_bitmask_bbox_encode`).

The tokens open the user's turn of a branch, as two placeholders `[ANCHOR]` for each anchor, whose embeddings the
encoder adds to. So branches with and without anchors pack alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .configuration_cora import CoraConfig
from .images import shrunk

ANCHOR_TOKEN = "[ANCHOR]"
TOKENS_PER_ANCHOR = 2
"""Appearance, then box."""


class AnchorEncoder(nn.Module):
    """Box -> token, and whole-token dropout of both tokens of an anchor.

    `config.anchor_dropout` is the probability with which a token is dropped in training (SegLLM: 0.5), so that a model
    learns to do with either. `config.anchor_dropout_scaling` says how training and evaluation are kept on one scale:
    `segllm` leaves tokens in training and multiplies them by 1 - p in evaluation, `inverted` divides by 1 - p in
    training, as `nn.Dropout` does.
    """

    def __init__(self, config: CoraConfig):
        super().__init__()
        anchor_appearance(config)  # a model that could not see its anchors is not made
        self.box = nn.Linear(4, config.get_text_config().hidden_size)
        self.dropout = config.anchor_dropout
        self.scaling = config.anchor_dropout_scaling

    def forward(
        self, appearances: torch.Tensor, boxes: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            appearances: (A, d), from the vision tower and the connector.
            boxes: (A, 4), [top, left, bottom, right] in [0, 1] of SAM's padded frame.
            noise: (A, 2), uniform in [0, 1): a token whose number is below `anchor_dropout` is dropped in training;
                drawn where not given.

        Returns:
            (A, 2, d).
        """
        tokens = torch.stack([appearances, self.box(boxes.to(self.box.bias.dtype)).to(appearances)], dim=1)
        keep = 1.0 - self.dropout
        if self.training and self.dropout:
            noise = torch.rand(tokens.shape[:2], device=tokens.device) if noise is None else noise
            kept = noise >= self.dropout
            tokens = tokens * kept[..., None]
            return tokens / keep if self.scaling == "inverted" else tokens
        return tokens * keep if self.scaling == "segllm" else tokens


def anchor_appearance(config: CoraConfig) -> str:
    """How an anchor's appearance is had, "cls" or "mean".

    Raises:
        ValueError: the configuration names a class state, but the VLM has none.
    """
    family = config.vlm_config.model_type
    if config.anchor_appearance == "cls" and family != "llava":
        raise ValueError(f"anchor_appearance 'cls': a {family} has no class state; 'mean' would be right")
    return config.anchor_appearance or ("cls" if family == "llava" else "mean")


def anchor_crop(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """What the vision tower sees of an anchor: its pixels on black, cut out and padded to a square below or right.

    Args:
        image: RGB.
        mask: bool (H, W), of the image's size.

    Raises:
        ValueError: the mask is empty or of another size.
    """
    top, left, bottom, right = _bounds(mask, image)
    pixels = np.asarray(image)[top:bottom, left:right] * mask[top:bottom, left:right, None].astype(np.uint8)
    pixels = np.asarray(shrunk(Image.fromarray(pixels)))
    side = max(pixels.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    square[: pixels.shape[0], : pixels.shape[1]] = pixels
    return Image.fromarray(square)


def anchor_box(mask: np.ndarray) -> list[float]:
    """[top, left, bottom, right] of a mask (H, W), in [0, 1] of a square whose side is the mask's longer one.

    That is SAM's padded frame, whatever its size. SegLLM divides the last row and column (included) by 1024; here
    bottom and right are the edges behind them.
    """
    top, left, bottom, right = _bounds(mask)
    return [edge / max(mask.shape) for edge in (top, left, bottom, right)]


def _bounds(mask: np.ndarray, image: Image.Image | None = None) -> tuple[int, int, int, int]:
    if image is not None and mask.shape != (image.height, image.width):
        raise ValueError(
            f"anchors: a mask of {mask.shape[1]}x{mask.shape[0]} for an image of {image.width}x{image.height}"
        )
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("anchors: an empty mask points at nothing")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


@contextmanager
def added_to_placeholders(embeddings: nn.Module, token_id: int, tokens: torch.Tensor, beams: int = 1) -> Iterator[None]:
    """Adds anchor tokens to the embeddings of their placeholders while the block runs.

    A hook and not `inputs_embeds`: with those, each VLM family finds its image tokens in another way.

    Args:
        embeddings: the input embedding table.
        token_id: of `[ANCHOR]`.
        tokens: (n, d) in reading order of the placeholders.
        beams: how often each row may be there, one after another.
    """

    def add(_module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        found = arguments[0].to(output.device) == token_id  # a `device_map` moves the ids behind this hook
        places = found.nonzero(as_tuple=True)
        if not len(places[0]):  # a later step of generation
            return output
        given = tokens
        if beams > 1 and len(places[0]) == beams * len(tokens):
            of_rows = found.sum(1)[::beams].tolist()
            given = torch.cat([row.repeat(beams, 1) for row in tokens.split(of_rows)])
        if len(places[0]) != len(given):
            raise ValueError(f"anchors: {len(tokens)} tokens for {len(places[0])} placeholders")
        return output.index_put(places, given.to(output), accumulate=True)

    hook = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


__all__ = [
    "ANCHOR_TOKEN",
    "TOKENS_PER_ANCHOR",
    "AnchorEncoder",
    "added_to_placeholders",
    "anchor_appearance",
    "anchor_box",
    "anchor_crop",
]
