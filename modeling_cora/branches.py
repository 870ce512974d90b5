"""Branch packing: an image is one sequence, its queries are branches of it.

    [ system | image tokens | "USER:" ]--+-- query 1 ... [SEG]
              shared prefix              +-- query 2 ... [SEG]

Packed, the branches lie one after another behind the prefix. One integer per token says where it belongs, `branch_ids`:

    -1 padding,  0 shared prefix,  k >= 1 branch k

and everything else is derived from it: a token sees the prefix and its own branch (never another branch, never
padding), and positions restart at the end of the prefix in every branch. So n packed queries compute exactly what n
sequences "prefix + query" would, while vision tower, prefix and SAM's encoder run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

PADDING = -1
PREFIX = 0

PACKED_FAMILIES = frozenset({"llava", "idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
"""`model_type` of the VLMs whose packed branches equal separate sequences (tests/test_vlm_families.py)."""
PACKED_ATTENTION = frozenset({"sdpa", "eager"})
"""Attention functions that obey a mask of single pairs of tokens. Those of flash-attn know padding alone, and
FlexAttention takes such a mask for numbers to add to the scores."""


def branch_attention_mask(branch_ids: torch.Tensor) -> torch.Tensor:
    """Which token sees which.

    Args:
        branch_ids: int (B, L), see the module's text.

    Returns:
        bool (B, 1, L, L); [b, 0, q, k] is True where token q attends to token k. Padding sees only itself, so that no
        row is empty (a softmax over nothing is NaN and would reach the gradients).
    """
    length = branch_ids.shape[1]
    query, key = branch_ids[:, :, None], branch_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_ids.device).tril()
    visible = ((key == PREFIX) | (key == query)) & (query != PADDING)
    itself = torch.eye(length, dtype=torch.bool, device=branch_ids.device)
    return ((visible & causal) | itself)[:, None]


def branch_position_ids(branch_ids: torch.Tensor) -> torch.Tensor:
    """Positions that restart at the end of the prefix in every branch.

    Args:
        branch_ids: int (B, L).

    Returns:
        int64 (B, L): the number of tokens that a token sees besides itself; 0 for padding.
    """
    is_prefix, is_branch = branch_ids == PREFIX, branch_ids > PREFIX
    prefix_length = is_prefix.sum(1, keepdim=True)
    in_prefix = is_prefix.cumsum(1) - 1
    order = is_branch.cumsum(1) - 1
    previous = torch.nn.functional.pad(branch_ids[:, :-1], (1, 0), value=PADDING)
    starts = torch.where(is_branch & (branch_ids != previous), order, torch.zeros_like(order)).cummax(1).values
    return torch.where(is_branch, prefix_length + order - starts, in_prefix * is_prefix)


@dataclass(frozen=True)
class SegPositions:
    """Where the `[SEG]` tokens of a batch lie, in reading order (by image, then by place).

    Attributes:
        batch_index: int64 (N,), the sequence (= image) of each.
        branch_index: int64 (N,), its branch there, counted from 0.
        state_position: int64 (N,), the position whose last-layer state is projected.
    """

    batch_index: torch.Tensor
    branch_index: torch.Tensor
    state_position: torch.Tensor

    @classmethod
    def find(
        cls, input_ids: torch.Tensor, branch_ids: torch.Tensor, seg_token_id: int, seg_state: Literal["before", "at"]
    ) -> SegPositions:
        """`before` takes the state that predicts `[SEG]`, `at` the one at `[SEG]`.

        Raises:
            ValueError: a branch begins with `[SEG]`, so that no state of the branch comes before it.
        """
        batch, position = ((input_ids == seg_token_id) & (branch_ids != PADDING)).nonzero(as_tuple=True)
        branch = branch_ids[batch, position]
        if seg_state == "before":
            position = position - 1
            if bool(((position < 0) | (branch_ids[batch, position] != branch)).any()):
                raise ValueError("a branch begins with [SEG]; the state before it belongs to another branch")
        return cls(batch, branch - 1, position)


@dataclass(frozen=True)
class Branch:
    """Tokens of one query and its answer. `labels` are the token ids of the answer and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


def pack_branches(
    prefixes: Sequence[list[int]],
    branches: Sequence[Sequence[Branch]],
    pad_token_id: int,
    padding_side: Literal["left", "right"] = "right",
) -> dict[str, torch.Tensor]:
    """Lays the branches of each image behind its prefix and pads the images to one length.

    Args:
        prefixes: per image, the token ids up to and including the image tokens.
        branches: per image, at least one branch.

    Returns:
        `input_ids`, `branch_ids`, `labels`: int64 (B, L).
    """
    rows = []
    for prefix, image_branches in zip(prefixes, branches, strict=True):
        ids, owner, labels = list(prefix), [PREFIX] * len(prefix), [-100] * len(prefix)
        for index, branch in enumerate(image_branches, start=1):
            ids += branch.input_ids
            labels += branch.labels
            owner += [index] * len(branch.input_ids)
        rows.append((ids, owner, labels))
    length = max(len(row[0]) for row in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        padding = [fill] * (length - len(values))
        return values + padding if padding_side == "right" else padding + values

    return {
        "input_ids": torch.tensor([padded(ids, pad_token_id) for ids, _, _ in rows]),
        "branch_ids": torch.tensor([padded(owner, PADDING) for _, owner, _ in rows]),
        "labels": torch.tensor([padded(labels, -100) for _, _, labels in rows]),
    }
