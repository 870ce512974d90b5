"""How well a number tells right pixels of pseudo-labels from wrong ones: lambda (eq. 6), and the segmenter's confidence
to compare with. Pixels are counted at 256 levels as they come; none is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from datasets_scripts.records import IGNORE_INDEX, Scene, SceneSet, image_size
from modeling_cora.consistency import WeightKind, consistency_weight
from trainers.augmentation import at_size
from trainers.consistency_maps import LEVELS, of_levels, to_levels
from trainers.pseudo_labels.audit import CONFIDENCES, deciles, read_audited
from trainers.pseudo_labels.predictions import PseudoLabels

SHARES = np.arange(1, 21) / 20
"""Of the pixels, at which `kept_accuracy` is told."""
TEMPERATURES = (1e-5, 1e-4, 1e-3, 1e-2, 0.05)
"""Of lambda = exp(-variance / temperature), at which `weighted_accuracy` is told."""


def weight_levels(kind: WeightKind, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The values of lambda for the 256 levels of a stored variance (`consistency_maps`).

    Returns:
        fp32 (256,) the values, ascending, and uint8 (256,) for each stored level the place of its lambda there.
    """
    variances = of_levels(np.arange(LEVELS))
    weights = consistency_weight(torch.from_numpy(variances), kind, temperature).numpy()
    order = np.lexsort((-variances, weights))  # of equal weights, too small for fp32, the higher variance is below
    level_of = np.empty(LEVELS, np.uint8)
    level_of[order] = np.arange(LEVELS)
    return weights[order], level_of


def auroc(right: np.ndarray, wrong: np.ndarray) -> float | None:
    """The probability that a right pixel's level is above a wrong one's, equal levels counting a half; 0.5 says
    nothing. None where there are none of either.

    Args:
        right, wrong: (256,), how many pixels each level has.
    """
    pairs = float(right.sum()) * float(wrong.sum())
    below = np.cumsum(wrong) - wrong
    return float((right * (below + wrong / 2)).sum() / pairs) if pairs else None


def auroc_within(right: np.ndarray, wrong: np.ndarray) -> float | None:
    """AUROC over pairs of pixels that are alike in something else: what a level tells beyond it.

    Args:
        right, wrong: (other levels, 256).
    """
    pairs = right.sum(1).astype(float) * wrong.sum(1)
    if not pairs.sum():
        return None
    each = [auroc(*rows) or 0.0 for rows in zip(right, wrong, strict=True)]
    return float((pairs * each).sum() / pairs.sum())


def kept_accuracy(right: np.ndarray, wrong: np.ndarray) -> list[dict]:
    """Accuracy of the highest 5 %, 10 %, ... of all pixels; a level that is cut in two gives each side its share."""
    at = right + wrong
    if not at.sum():
        return []
    count = np.concatenate([[0], np.cumsum(at[::-1])])
    correct = np.concatenate([[0], np.cumsum(right[::-1])])
    return [
        {"share": float(share), "accuracy": float(np.interp(share * count[-1], count, correct) / (share * count[-1]))}
        for share in SHARES
    ]


def weighted_accuracy(weights: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> float | None:
    """Of pixels that count as much as their weights say; None where none counts."""
    total = (weights * (right + wrong)).sum()
    return float((weights * right).sum() / total) if total else None


class Reliability:
    """Sums over pixels; `summary` says what they come to.

    Args:
        classes: names, in the order of the numbers that `add` takes.
        values: by score, fp32 (256,), what each level stands for, ascending.
    """

    def __init__(self, classes: Sequence[str], values: Mapping[str, np.ndarray]):
        self.classes, self.values = classes, dict(values)
        # [wrong, right, without truth]
        self.counts = {name: np.zeros((3, len(classes), LEVELS), np.int64) for name in values}
        self.together = np.zeros((2, LEVELS, LEVELS), np.int64)

    def add(self, of_class: np.ndarray, levels: Mapping[str, np.ndarray], outcome: np.ndarray) -> None:
        """All of n pixels.

        Args:
            of_class: the number of the class that the pseudo-label gives each pixel.
            levels: by score, in 0 .. 255.
            outcome: 0 wrong, 1 right, 2 without truth.
        """
        for name, own in levels.items():
            counts = self.counts[name]
            places = (outcome.astype(np.int64) * counts.shape[1] + of_class) * LEVELS + own
            counts += np.bincount(places, minlength=counts.size).reshape(counts.shape)
        if len(levels) == 2:
            first, second = (levels[name][outcome < 2].astype(np.int64) for name in self.values)
            places = (outcome[outcome < 2].astype(np.int64) * LEVELS + first) * LEVELS + second
            self.together += np.bincount(places, minlength=self.together.size).reshape(self.together.shape)

    def summary(self) -> dict:
        """By score; and under "beyond" the AUROC of each among pixels that are alike in the other."""
        first, second = self.values
        wrong, right = self.together
        beyond = {first: auroc_within(right.T, wrong.T), second: auroc_within(right, wrong)}
        return {**{name: self._of(name) for name in self.values if self.counts[name].any()}, "beyond": beyond}

    def _of(self, name: str) -> dict:
        values, counts = self.values[name], self.counts[name]
        wrong, right, unknown = counts.sum(1)
        every = wrong + right + unknown
        return {
            "pixels": int(every.sum()),
            "pixels_with_truth": int((wrong + right).sum()),
            "mean": _mean(values, every),
            "mean_right": _mean(values, right),
            "mean_wrong": _mean(values, wrong),
            "accuracy": _share(right.sum(), wrong.sum()),
            "auroc": auroc(right, wrong),
            "deciles": deciles(right + wrong, right, values),
            "kept": kept_accuracy(right, wrong),
            "by_class": {
                one: {
                    "pixels": int(counts[:, k].sum()),
                    "mean": _mean(values, counts[:, k].sum(0)),
                    "accuracy": _share(counts[1, k].sum(), counts[0, k].sum()),
                    "auroc": auroc(counts[1, k], counts[0, k]),
                }
                for k, one in enumerate(self.classes)
                if counts[:, k].any()
            },
        }


def _share(right: int, wrong: int) -> float | None:
    return float(right / (right + wrong)) if right + wrong else None


def _mean(values: np.ndarray, at: np.ndarray) -> float | None:
    return float((values * at).sum() / at.sum()) if at.sum() else None


def measure_reliability(
    scene_set: SceneSet,
    with_truth: SceneSet,
    scenes: Sequence[Scene],
    pseudo_labels: PseudoLabels,
    variances: Callable[[Scene, np.ndarray], Mapping[int, np.ndarray]],
    kind: WeightKind,
    temperature: float,
) -> dict:
    """Of lambda and confidence on unlabelled images.

    Args:
        scene_set, scenes: as they are trained on.
        with_truth: the same images with the label maps that training must not see, where there are any.
        variances: of a scene and its pseudo-label, by class id (h, w) of eq. 6, as `ConsistencyMaps.read`.
        kind, temperature: of `consistency_weight`.

    Returns:
        `images`, `images_with_truth`; `labels`: each pixel by the lambda of the class that its pseudo-label gives it;
        `masks`: as eq. 7 has it, each pixel once for each mask of its image, right where mask and truth agree on it;
        `scales`: for each of `TEMPERATURES` the mean of exp(-variance / temperature) and the accuracy of pixels that
        count as much, of both views.

    Raises:
        DataError: a file is missing or damaged, or a size differs.
    """
    values, level_of = weight_levels(kind, temperature)
    names = [c.name for c in scene_set.classes]
    labels_view, masks_view = (Reliability(names, {"lambda": values, "confidence": CONFIDENCES}) for _ in range(2))
    number_of = {c.id: k for k, c in enumerate(scene_set.classes)}
    truths = {scene.image_id: scene for scene in with_truth.split("train")}
    images_with_truth = 0
    for scene in tqdm(scenes, desc="lambda", unit="image"):
        labels = pseudo_labels.read(scene.image_id, image_size(scene.image))
        _, confidence, truth = read_audited(with_truth, truths.get(scene.image_id, scene), Path(pseudo_labels.folder))
        images_with_truth += truth is not None
        of_classes = variances(scene, labels)
        for class_id, variance in of_classes.items():
            levels = {"lambda": level_of[to_levels(at_size(variance, labels.shape))]}
            if confidence is not None:
                levels["confidence"] = confidence
            counted, inside = labels != IGNORE_INDEX, labels == class_id
            outcome = np.full(labels.shape, 2, np.uint8)
            if truth is not None:
                outcome = np.where(truth == IGNORE_INDEX, 2, inside == (truth == class_id)).astype(np.uint8)
            for view, chosen in ((labels_view, inside), (masks_view, counted)):
                numbers = np.full(int(chosen.sum()), number_of[class_id])
                view.add(numbers, {name: level[chosen] for name, level in levels.items()}, outcome[chosen])
    return {
        "images": len(scenes),
        "images_with_truth": images_with_truth,
        "labels": labels_view.summary(),
        "masks": masks_view.summary(),
        "scales": [_scale(one, labels_view, masks_view, level_of) for one in TEMPERATURES],
    }


def _scale(temperature: float, labels_view: Reliability, masks_view: Reliability, level_of: np.ndarray) -> dict:
    variances = torch.from_numpy(of_levels(np.arange(LEVELS)))
    weights = consistency_weight(variances, "exp", temperature).numpy().astype(float)
    found: dict = {"temperature": temperature}
    for name, view in (("labels", labels_view), ("masks", masks_view)):
        wrong, right, unknown = view.counts["lambda"].sum(1)[:, level_of]
        mean, accuracy = _mean(weights, wrong + right + unknown), weighted_accuracy(weights, right, wrong)
        found[name] = {"mean": mean, "accuracy": accuracy}
    return found
