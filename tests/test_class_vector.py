"""The benchmark against class vectors: what it computes by itself."""

from __future__ import annotations

import pytest

from benchmarks.class_vector import warmed_up


@pytest.mark.parametrize(("warmup_steps", "expected"), [(0, [1, 1, 1]), (2, [0.5, 1, 1]), (4, [0.25, 0.5, 0.75])])
def test_warm_up_also_of_no_steps(warmup_steps, expected):
    assert [warmed_up(step, warmup_steps) for step in range(3)] == expected
