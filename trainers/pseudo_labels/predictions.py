"""A folder of pseudo-labels, whoever made them.

DIR/masks/IMAGE_ID.png        class ids, uint8 of the image's size; 255 = no answer
DIR/confidence/IMAGE_ID.png   255 times the probability of that class, uint8 (absent where nobody knows it)
DIR/source.json               what predict.py makes them from; written first
DIR/meta.json                 who made them: method, weights, split, classes, mIoU on val; written last
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_scripts.files import write_image, write_text
from datasets_scripts.json_files import read_json
from datasets_scripts.records import DataError, read_map

META, SOURCE = "meta.json", "source.json"


def mask_path(folder: Path, image_id: str) -> Path:
    return folder / "masks" / f"{image_id}.png"


def confidence_path(folder: Path, image_id: str) -> Path:
    return folder / "confidence" / f"{image_id}.png"


def write_prediction(folder: Path, image_id: str, mask: np.ndarray, confidence: np.ndarray | None) -> None:
    """Both uint8 (H, W). The mask comes last, so that an image with a mask is finished."""
    if confidence is not None:
        write_image(confidence_path(folder, image_id), Image.fromarray(confidence))
    write_image(mask_path(folder, image_id), Image.fromarray(mask))


def read_prediction(folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Mask and confidence, uint8 (H, W).

    Raises:
        DataError: a file is missing or no map of ids, or the two differ in size.
    """
    mask, path = read_map(mask_path(folder, image_id)), confidence_path(folder, image_id)
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


def write_json(folder: Path, name: str, content: dict) -> None:
    write_text(folder / name, json.dumps(content, indent=1) + "\n")
