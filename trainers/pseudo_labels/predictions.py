"""A folder of pseudo-labels, whoever made them.

DIR/masks/IMAGE_ID.png        class ids, uint8 of the image's size; 255 = no answer
DIR/confidence/IMAGE_ID.png   255 times the probability of that class, uint8 (absent where nobody knows it)
DIR/source.json               what predict.py makes them from; written first
DIR/meta.json                 who made them: method, weights, split, classes, mIoU on val; written last
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_scripts.files import write_image, write_text
from datasets_scripts.json_files import read_json
from datasets_scripts.records import IGNORE_INDEX, DataError, SceneSet, read_map

META, SOURCE = "meta.json", "source.json"


def mask_path(folder: Path, image_id: str) -> Path:
    return folder / "masks" / f"{image_id}.png"


def confidence_path(folder: Path, image_id: str) -> Path:
    return folder / "confidence" / f"{image_id}.png"


def write_prediction(folder: Path, image_id: str, mask: np.ndarray, confidence: np.ndarray | None) -> None:
    """Both uint8 (H, W). The mask comes last, so that an image with a mask is finished."""
    if confidence is not None:
        # of smooth noise a higher level takes seven times as long, and an eighth less room
        write_image(confidence_path(folder, image_id), Image.fromarray(confidence), compress_level=1)
    write_image(mask_path(folder, image_id), Image.fromarray(mask))


def read_prediction(folder: Path, image_id: str, known: Collection[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Mask and confidence, uint8 (H, W).

    Args:
        known: class ids that may occur.

    Raises:
        DataError: a file is missing or no map of ids, holds an unknown class id, or the two differ in size.
    """
    mask, path = read_map(mask_path(folder, image_id)), confidence_path(folder, image_id)
    if unknown := set(np.unique(mask).tolist()) - {*known, IGNORE_INDEX}:
        raise DataError(f"{mask_path(folder, image_id)}: {min(unknown)} is not a class id of the data set")
    confidence = read_map(path) if path.exists() else None
    if confidence is not None and confidence.shape != mask.shape:
        raise DataError(f"{path}: size {confidence.shape[::-1]} differs from its mask's {mask.shape[::-1]}")
    return mask.astype(np.uint8), None if confidence is None else confidence.astype(np.uint8)


def read_meta(folder: Path) -> dict:
    """Raises:
    DataError: the folder has no complete pseudo-labels.
    """
    path = folder / META
    if not path.exists():
        unfinished = (folder / SOURCE).exists()
        hint = "unfinished; run predict.py again" if unfinished else "no pseudo-labels; predict.py writes them"
        raise DataError(f"{folder}: {hint} ({META} is missing)")
    return read_json(path)


def check_classes(classes: Mapping[int, str], scene_set: SceneSet, place: str) -> None:
    """Args:
        classes: name by id, of pseudo-labels or of what makes them.
        place: of the data set.

    Raises:
        DataError: the data set calls one of them something else.
    """
    own = {c.id: c.name for c in scene_set.classes}
    for number, name in classes.items():
        if own.get(number) != name:
            raise DataError(f"{place}: class {number} is {own.get(number)!r}, for the pseudo-labels {name!r}")


def write_json(folder: Path, name: str, content: dict) -> None:
    write_text(folder / name, json.dumps(content, indent=1) + "\n")
