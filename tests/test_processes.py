"""Work shared among processes: which result is of which job, and what becomes of it when one of them is killed."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest
from PIL import Image

from datasets_scripts.build import build
from datasets_scripts.command_line import UsageError
from datasets_scripts.instructions.verify import check_set
from datasets_scripts.processes import in_processes
from datasets_scripts.records import DataError, Instruction, Scene, SceneSet, SemanticClass


def twice(number: int) -> int:
    if number > 90:
        raise DataError(f"{number} is too much")
    return 2 * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_with_the_numbers_of_their_jobs(workers):
    assert sorted(in_processes(twice, [5, 3, 9], workers)) == [(0, 10), (1, 6), (2, 18)]
    with pytest.raises(DataError, match="95 is too much"):
        list(in_processes(twice, [5, 95, 9], workers))


@dataclass(frozen=True)
class Deadly:
    """A label map that costs whoever opens it too much memory."""

    def open(self) -> Image.Image:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_process_ends_the_work_in_one_line(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    scenes = tuple(Scene(name, tmp_path / "a.png", Deadly()) for name in "ab")
    scene_set = SceneSet((SemanticClass(0, "road"),), scenes)
    asked = [Instruction(name, "semantic", "road", "the road", "It is [SEG].") for name in "ab"]
    for work in (
        lambda: check_set(scene_set, asked, workers=2),
        lambda: build(scene_set, tmp_path / "out", shard_size=1, workers=2),
    ):
        with pytest.raises(UsageError, match="--workers 2: a process was killed"):
            work()
