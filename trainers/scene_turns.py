"""Scenes that take turns: what data sets whose items are drawn from scenes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from datasets_scripts.records import DataError, Scene

from .picklable_cache import PicklableCache


class SceneTurns(torch.utils.data.Dataset):
    """`length` items; item k depends on (seed, k) and on nothing else.

    So the order of the data is the same after a resume, with more workers, and with several processes; passes over the
    scenes follow one another, each in its own order. Read it sequentially. A scene about which nothing can be asked
    gives its turn to the next.

    Args:
        cache_scenes: how many read scenes are kept.
    """

    order_stream: int
    """Of random numbers, for the order of the scenes."""

    def __init__(self, scenes: Sequence[Scene], cache_scenes: int, length: int, seed: int):
        self.scenes, self.length, self.seed = scenes, length, seed
        self._read = PicklableCache(self.read_scene, cache_scenes)
        self._order = PicklableCache(self._shuffled, 2)

    def __len__(self) -> int:
        return self.length

    def read_scene(self, index: int) -> tuple[Any, ...]:
        """A scene as it is drawn from; what can be asked about it comes last."""
        raise NotImplementedError

    def nothing_to_ask(self) -> DataError:
        """What is wrong where no scene at all can be asked about."""
        raise NotImplementedError

    def scene_of(self, index: int) -> tuple[Any, ...]:
        """`read_scene` of the scene whose turn item `index` is."""
        epoch, place = divmod(index, len(self.scenes))
        order = self._order(epoch)
        for turn in range(len(order)):
            scene = self._read(order[(place + turn) % len(order)])
            if scene[-1]:
                return scene
        raise self.nothing_to_ask()

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, self.order_stream, epoch)).permutation(len(self.scenes))
