"""How far answers to equivalent queries agree, pixel by pixel (eq. 6)."""

from __future__ import annotations

from typing import Literal

import torch

WeightKind = Literal["inverse", "exp", "literal"]

MAX_VARIANCE = 0.25
"""Of probabilities: half of them 0, half of them 1."""

REPHRASINGS: tuple[str, ...] = (
    "Please segment this: {query}",
    "Give me the mask for the following. {query}",
    "Mark it in the picture: {query}",
    "{query} Respond with a segmentation mask.",
    "I would like to see this highlighted: {query}",
    "Which pixels are meant by this? {query}",
)
"""Ways to ask that mean the same whatever the query is; 6 beside the query itself, as in the paper (K = 7)."""


def rephrase(query: str) -> list[str]:
    """K - 1 = 6 queries that mean what `query` means."""
    return [template.format(query=query.strip()) for template in REPHRASINGS]


def mask_variance(logits: torch.Tensor) -> torch.Tensor:
    """Eq. 6: the variance of the masks predicted for equivalent queries, a mask being its probabilities.

    Args:
        logits: (k, ..., H, W), k >= 2 equivalent queries first.

    Returns:
        fp32 (..., H, W), divided by k as printed, in [0, 1/4].
    """
    if len(logits) < 2:
        raise ValueError(f"logits: {len(logits)} mask(s); a variance needs at least 2")
    return logits.float().sigmoid().var(0, unbiased=False)


def consistency_weight(variance: torch.Tensor, kind: WeightKind = "inverse", temperature: float = 0.05) -> torch.Tensor:
    """The weight lambda of a pseudo-labelled pixel. Eq. 6 prints the variance itself; the text around it says that
    unstable pixels count less, which is the opposite.

    Args:
        variance: of `mask_variance`, in [0, 1/4].
        kind: `inverse` 1 - 4 v, in [0, 1]; `exp` exp(-v / temperature), in (0, 1]; `literal` v as printed.
        temperature: of `exp`.

    Returns:
        the same shape, without a gradient.
    """
    variance = variance.detach()
    if kind == "inverse":
        return 1 - 4 * variance
    if kind == "exp":
        return torch.exp(-variance / temperature)
    if kind == "literal":
        return variance
    raise ValueError(f"kind: {kind!r} is not one of inverse, exp, literal")
