"""Files of variances that a frozen model wrote ahead (eq. 6), and the 256 levels that they are stored in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from datasets_scripts.records import DataError
from modeling_cora.consistency import MAX_VARIANCE

LEVELS = 256


def to_levels(variance: np.ndarray) -> np.ndarray:
    """The fourth root in 8 bits. Answers to equivalent queries differ little: variances of 1e-5 to 1e-3 are what tells
    right pixels of pseudo-labels from wrong ones (`results/camvid_small.md`); 255 equal steps make most of them 0.

    Args:
        variance: in [0, 1/4].

    Returns:
        uint8, 255 for 1/4; from level n on the variance is known to a part of 2 / n.
    """
    return np.round((LEVELS - 1) * (np.asarray(variance) / MAX_VARIANCE) ** 0.25).astype(np.uint8)


def of_levels(levels: np.ndarray) -> np.ndarray:
    """fp32, the variance that each level stands for."""
    return MAX_VARIANCE * (np.asarray(levels, np.float32) / (LEVELS - 1)) ** 4


def packed_variances(variances: Mapping[int, np.ndarray]) -> bytes:
    """The content of a file of `ConsistencyMaps`; variances (h, w) by class id, all of one size."""
    planes = [to_levels(variance) for variance in variances.values()]
    return save(
        {
            "classes": np.array(list(variances), np.int64),
            "variance_levels": np.stack(planes) if planes else np.zeros((0, 1, 1), np.uint8),
        }
    )


class ConsistencyMaps:
    """The variance of eq. 6, computed ahead by a frozen model (`trainers/consistency_weights.py`).

    DIR/ID.safetensors: `classes` int64 (n,), `variance_levels` uint8 (n, h, w), see `to_levels`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not folder or not self.folder.is_dir():
            raise DataError(
                f"consistency_weights: {folder or 'not given'} is no folder; trainers/consistency_weights.py writes "
                "one, or take --consistency online"
            )

    def require(self, image_ids: Iterable[str]) -> None:
        """Raises:
        DataError: an image has no file.
        """
        for image_id in image_ids:
            if not (path := self.path_of(image_id)).exists():
                raise DataError(f"{path}: no such file; run trainers/consistency_weights.py to the end")

    def path_of(self, image_id: str) -> Path:
        return self.folder / f"{image_id}.safetensors"

    def read(self, image_id: str) -> dict[int, np.ndarray]:
        """By class id: fp32 (h, w) in [0, 1/4].

        Raises:
            DataError: the file is missing or damaged.
        """
        self.require([image_id])
        path = self.path_of(image_id)
        try:
            stored = load_file(path)
            classes, planes = stored["classes"].tolist(), of_levels(stored["variance_levels"])
            return dict(zip(classes, planes, strict=True))
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path}: not a file of consistency weights ({error})") from None
