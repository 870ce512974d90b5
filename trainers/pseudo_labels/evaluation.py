"""Sliding-window prediction and mean IoU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from datasets_scripts.records import IGNORE_INDEX, Scene, SceneSet, SemanticClass, read_image

from .augmentation import pixels, scaled
from .scenes import class_index_lookup
from .segmenter import SemanticSegmenter

WINDOWS_AT_ONCE = 8
"""In one forward pass; more of them cost memory and gain little."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover 0 .. length; the last one ends with the image.

    UniMatch cuts the last windows off at the image's border; whole ones look like what the model was trained on.
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


@torch.inference_mode()
def predict_probabilities(
    segmenter: SemanticSegmenter, image: Tensor, window: tuple[int, int], stride: float = 2 / 3
) -> Tensor:
    """float (classes, H, W): mean over all windows that see a pixel of their softmax.

    Args:
        image: uint8 (3, H, W).
        window: (height, width) in pixels.
        stride: as a share of the window (UniMatch 2/3; its last pixels as in `window_starts`).
    """
    height, width = image.shape[-2:]
    rows, columns = (min(side, own) for side, own in zip((height, width), window, strict=True))
    total = torch.zeros(len(segmenter.classes), height, width, device=image.device)
    times = torch.zeros(height, width, device=image.device)
    tops = window_starts(height, rows, max(1, int(rows * stride)))
    lefts = window_starts(width, columns, max(1, int(columns * stride)))
    places = [(slice(top, top + rows), slice(left, left + columns)) for top, left in product(tops, lefts)]
    for first in range(0, len(places), WINDOWS_AT_ONCE):
        some = places[first : first + WINDOWS_AT_ONCE]
        parts = torch.stack([image[:, y, x] for y, x in some])
        for (y, x), probabilities in zip(some, segmenter.logits(parts).softmax(1), strict=True):
            total[:, y, x] += probabilities
            times[y, x] += 1
    return total / times


def predict_scene(segmenter: SemanticSegmenter, scene: Scene, stride: float) -> tuple[np.ndarray, np.ndarray]:
    """Class ids, uint8 (H, W), and confidence, uint8 (H, W): 255 times the probability of that class.

    With the segmenter's own window and image scale; probabilities are brought back to the image's size.
    """
    image, config = read_image(scene.image), segmenter.config
    shown = torch.from_numpy(pixels(scaled(image, config.image_scale))).to(segmenter.device)
    probabilities = predict_probabilities(segmenter, shown, tuple(config.window), stride)
    if probabilities.shape[-2:] != (image.height, image.width):
        size = (image.height, image.width)
        probabilities = F.interpolate(probabilities[None], size=size, mode="bilinear", align_corners=False)[0]
    confidence, index = probabilities.max(0)
    ids = torch.tensor(segmenter.config.class_ids, device=index.device)[index]
    return ids.to(torch.uint8).cpu().numpy(), (confidence * 255).round().to(torch.uint8).cpu().numpy()


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[SemanticClass]) -> np.ndarray:
    """int64 (n, n): pixels of class i that are predicted as class j. Ignored pixels count nowhere.

    Args:
        labels, predicted: class ids, uint8 of any one shape.
    """
    index_of = class_index_lookup(classes).astype(int)
    counted = labels != IGNORE_INDEX
    pairs = index_of[labels[counted]] * len(classes) + index_of[predicted[counted]]
    return np.bincount(pairs, minlength=len(classes) ** 2).reshape(len(classes), -1)


def scores(matrix: np.ndarray, classes: Sequence[SemanticClass]) -> dict:
    """mIoU over the classes that the truth shows, IoU of each of them, and pixel accuracy; None without a truth."""
    correct, truth, answer = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = {
        one.name: float(correct[k] / (truth[k] + answer[k] - correct[k])) for k, one in enumerate(classes) if truth[k]
    }
    return {
        "miou": sum(iou.values()) / len(iou) if iou else None,
        "accuracy": float(correct.sum() / truth.sum()) if truth.sum() else None,
        "iou": iou,
    }


def evaluate_scenes(
    segmenter: SemanticSegmenter,
    scene_set: SceneSet,
    scenes: Sequence[Scene],
    stride: float,
    progress: bool = True,
) -> np.ndarray:
    """Confusion matrix over all pixels of the scenes."""
    was_training = segmenter.training
    segmenter.eval()
    matrix = np.zeros((len(scene_set.classes),) * 2, np.int64)
    for scene in tqdm(scenes, desc="evaluating", unit="image", disable=not progress, leave=False):
        predicted, _ = predict_scene(segmenter, scene, stride)
        matrix += confusion_matrix(scene_set.read_labels(scene), predicted, scene_set.classes)
    segmenter.train(was_training)
    return matrix
