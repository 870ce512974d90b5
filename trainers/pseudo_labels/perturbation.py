"""Feature perturbation: masks that switch off whole channels of the encoder's features.

Masks are drawn for each sample from its own seed. So a sample is perturbed the same way in any batch, on any process
and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channel_dropout_masks(seeds: Sequence[int], channels: Sequence[int], probability: float) -> list[Tensor]:
    """UniMatch's `Dropout2d`: for each level (B, channels), 0 with `probability`, else 1 / (1 - probability).

    Args:
        seeds: one per sample.
        channels: of each level of features.
    """
    drawn = [_uniform(seed, sum(channels)) for seed in seeds]
    masks = (torch.stack(drawn) >= probability).float() / (1 - probability)
    return list(masks.split(list(channels), dim=1))


def complementary_masks(kept: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """UniMatch V2's complementary dropout: a channel that view 1 loses, view 2 keeps at double strength.

    Args:
        kept: 0/1 (B, channels), Bernoulli(0.5).
        dropped: bool (B,); False = both views of this sample keep every channel.

    Returns:
        m = 2 kept for view 1 and 2 - m for view 2, each (B, channels).
    """
    first = torch.where(dropped[:, None], 2.0 * kept, torch.ones_like(kept))
    return first, 2.0 - first


def complementary_dropout(seeds: Sequence[int], dropped: Sequence[int], channels: int) -> tuple[Tensor, Tensor]:
    """Masks of a batch; every level of features uses the same, as their channels are those of one residual stream.

    Args:
        seeds: one per sample.
        dropped: 0 or 1 for each sample; half of each (see `draws_dropout`).
    """
    kept = torch.stack([(_uniform(seed, channels) < 0.5).float() for seed in seeds])
    return complementary_masks(kept, torch.tensor(dropped, dtype=torch.bool))


def draws_dropout(index: int, coin: int) -> int:
    """Whether item `index` is dropped, 0 or 1: one of each two neighbours, by a coin that the two share.

    UniMatch V2 leaves a random half of a GPU's batch of 2 undropped; this is the same for any batch and any number of
    processes.
    """
    return (index + coin) % 2


def _uniform(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(int(seed)))
