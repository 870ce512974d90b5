"""Packing against a slow obvious version: lists of what each token may see."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cora.branches import Branch, SegPositions, branch_attention_mask, branch_position_ids, pack_branches

SEG = 9

layouts = st.tuples(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=4))


def pack(layout_list, side):
    prefixes = [[1] * prefix for prefix, _ in layout_list]
    branches = [
        [Branch([10 * (k + 1) + t for t in range(n)], [-100] * n) for k, n in enumerate(lengths)]
        for _, lengths in layout_list
    ]
    return pack_branches(prefixes, branches, pad_token_id=0, padding_side=side)


@settings(max_examples=60, deadline=None)
@given(st.lists(layouts, min_size=1, max_size=3), st.sampled_from(["left", "right"]))
def test_mask_and_positions_equal_those_of_separate_sequences(layout_list, side):
    packed = pack(layout_list, side)
    mask, positions = branch_attention_mask(packed["branch_ids"]), branch_position_ids(packed["branch_ids"])
    for row, (prefix, lengths) in enumerate(layout_list):
        real = (packed["branch_ids"][row] >= 0).nonzero()[:, 0].tolist()
        start = real[0]
        assert len(real) == prefix + sum(lengths)
        offset = start + prefix
        for length in lengths:
            # the columns of the separate sequence "prefix + this branch", in the packed one
            columns = list(range(start, start + prefix)) + list(range(offset, offset + length))
            for place, column in enumerate(columns):
                assert positions[row, column] == place
                assert mask[row, 0, column].nonzero()[:, 0].tolist() == columns[: place + 1]
            offset += length


@settings(max_examples=30, deadline=None)
@given(st.lists(layouts, min_size=2, max_size=3), st.sampled_from(["left", "right"]))
def test_padding_sees_and_is_seen_by_itself_alone(layout_list, side):
    branch_ids = pack(layout_list, side)["branch_ids"]
    mask = branch_attention_mask(branch_ids)[:, 0]
    for row, column in (branch_ids == -1).nonzero().tolist():
        assert mask[row, column].nonzero()[:, 0].tolist() == [column]
        assert mask[row, :, column].nonzero()[:, 0].tolist() == [column]
    assert not branch_position_ids(branch_ids)[branch_ids == -1].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_seg_positions_are_found_in_reading_order(side):
    branches = [[Branch([5, 6, SEG, 7], [-100] * 4), Branch([5, SEG], [-100] * 2)], [Branch([8, SEG, 5, SEG], [0] * 4)]]
    packed = pack_branches([[1, 1], [1]], branches, 0, side)
    pad = 0 if side == "right" else 3
    before = SegPositions.find(packed["input_ids"], packed["branch_ids"], SEG, "before")
    at = SegPositions.find(packed["input_ids"], packed["branch_ids"], SEG, "at")
    assert before.batch_index.tolist() == at.batch_index.tolist() == [0, 0, 1, 1]
    assert before.branch_index.tolist() == [0, 1, 0, 0]
    assert before.state_position.tolist() == [3, 6, 1 + pad, 3 + pad]
    assert at.state_position.tolist() == [4, 7, 2 + pad, 4 + pad]


def test_a_branch_that_begins_with_seg_has_no_state_before_it():
    for prefix, branches in (([1], [[5, SEG], [SEG]]), ([], [[SEG, 5]])):
        packed = pack_branches([prefix], [[Branch(ids, [0] * len(ids)) for ids in branches]], 0)
        with pytest.raises(ValueError, match="begins with"):
            SegPositions.find(packed["input_ids"], packed["branch_ids"], SEG, "before")


def test_pad_token_equal_to_seg_is_no_seg():
    packed = pack_branches([[1], [1]], [[Branch([5], [0])], [Branch([5, 6, 7], [0] * 3)]], pad_token_id=SEG)
    assert len(SegPositions.find(packed["input_ids"], packed["branch_ids"], SEG, "before").batch_index) == 0
