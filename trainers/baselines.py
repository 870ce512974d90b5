"""Answers that need no model. A trained one has to beat them on every frequent class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from datasets_scripts.records import Scene, SceneSet
from metrics.ciou.ciou import intersection_and_union

MEAN_MASK_SIZE = (96, 96)

WHOLE_IMAGE, MEAN_MASK, WHOLE_CLASS = TRIVIAL = ("whole image", "mean training mask", "whole class")
"""Names of the trivial answers."""


class MeanMask:
    """The class's mean training mask, cut at the level that is best on the training images."""

    def __init__(self, scene_set: SceneSet, scenes: Sequence[Scene]):
        # many queries about images of one size
        self.at_size = lru_cache(64)(self._at_size)
        self.means: dict[str, torch.Tensor] = {}
        self.levels: dict[str, float] = {}
        masks: dict[str, list[torch.Tensor]] = {c.name: [] for c in scene_set.classes}
        for scene in tqdm(scenes, desc="mean masks", unit="map", delay=5, leave=False):
            labels = torch.from_numpy(scene_set.read_labels(scene))
            for semantic_class in scene_set.classes:
                if (mask := labels == semantic_class.id).any():
                    small = F.interpolate(mask.float()[None, None], MEAN_MASK_SIZE, mode="area")[0, 0]
                    masks[semantic_class.name].append(small)
        for name, of_class in masks.items():
            if of_class:
                stack = torch.stack(of_class)
                self.means[name] = stack.mean(0)
                self.levels[name] = _best_level(stack)

    def __call__(self, class_name: str, size: tuple[int, int]) -> np.ndarray:
        """bool (H, W), not to be written to; empty for a class without training masks."""
        return self.at_size(class_name, size)

    def _at_size(self, class_name: str, size: tuple[int, int]) -> np.ndarray:
        if class_name not in self.means:
            return np.zeros(size, dtype=bool)
        mean = F.interpolate(self.means[class_name][None, None], size, mode="bilinear")[0, 0]
        return (mean >= self.levels[class_name]).numpy()


def _best_level(masks: torch.Tensor) -> float:
    """The level at which the mean of soft masks (n, h, w) has the largest cIoU with them."""
    mean = masks.mean(0)
    # of many small masks at different places the mean is below .02 everywhere
    levels = [float(mean[mean > 0].min()), 0.005, 0.01, *np.linspace(0.02, 0.9, 45)]

    def ciou(level: float) -> float:
        predicted = (mean >= level).float()
        intersection = torch.minimum(masks, predicted).sum()
        return float(intersection / torch.maximum(masks, predicted).sum().clamp(min=1e-6))

    return float(max(levels, key=ciou))


def part_counts(mask: np.ndarray, target: np.ndarray, whole_class: np.ndarray) -> dict[str, int]:
    """Pixels by which an answer to a query about a part of a class is judged inside of that class alone.

    Args:
        mask: bool (H, W), the answer.
        target: (H, W) of 0, 1 and 255 (ignored), the part that is asked for.
        whole_class: bool (H, W).

    Returns:
        part: the target; found: what of it is in the answer; rest: the class's other pixels; marked: what of them is in
        the answer.
    """
    part, rest = target == 1, whole_class & (target == 0)
    pixels = {"part": part, "found": part & mask, "rest": rest, "marked": rest & mask}
    return {name: int(counted.sum()) for name, counted in pixels.items()}


def trivial_counts(
    target: np.ndarray,
    class_name: str,
    mean_mask: MeanMask | None,
    counting: str = "lisa",
    whole_class: np.ndarray | None = None,
) -> dict[str, tuple[int, int]]:
    """(intersection, union) in pixels of each trivial answer with a target (H, W) of 0, 1 and 255 (ignored).

    Args:
        counting: protocol of `metrics/ciou`.
        whole_class: bool (H, W), of a query about a part of its class: the true mask of all of it. Whoever knows
            classes perfectly, and nothing of places and relations, answers so.
    """
    answers = {WHOLE_IMAGE: np.ones(target.shape, bool)}
    if mean_mask is not None:
        answers[MEAN_MASK] = mean_mask(class_name, target.shape)
    if whole_class is not None:
        answers[WHOLE_CLASS] = whole_class
    counts = {name: intersection_and_union(answer, target, protocol=counting) for name, answer in answers.items()}
    return {name: (int(intersection), int(union)) for name, (intersection, union) in counts.items()}
