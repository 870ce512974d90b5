"""Words that stand for a class in SemiVL: several concepts for a class that shows in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets_scripts.json_files import excerpt, read_json
from datasets_scripts.records import DataError, SemanticClass

CITYSCAPES_CONCEPTS = {
    "road": ["road", "street", "parking space"],
    "sidewalk": ["sidewalk"],
    "building": ["building", "skyscraper", "house", "bus stop building", "garage", "car port", "scaffolding"],
    "wall": ["individual standing wall, which is not part of a building"],
    "fence": ["fence", "hole in fence"],
    "pole": ["pole", "sign pole", "traffic light pole"],
    "traffic light": ["traffic light"],
    "traffic sign": ["traffic sign", "parking sign", "direction sign"],
    "vegetation": ["vegetation", "tree", "hedge"],
    "terrain": ["terrain", "grass", "soil", "sand"],
    "sky": ["sky"],
    "person": [
        "person",
        "pedestrian",
        "walking person",
        "standing person",
        "person sitting on the ground",
        "person sitting on a bench",
        "person sitting on a chair",
    ],
    "rider": ["rider", "cyclist", "motorcyclist"],
    "car": ["car", "jeep", "SUV", "van"],
    "truck": ["truck", "box truck", "pickup truck", "truck trailer"],
    "bus": ["bus"],
    "train": ["train", "tram"],
    "motorcycle": ["motorcycle", "moped", "scooter"],
    "bicycle": ["bicycle"],
}
"""SemiVL's 54 concepts of the 19 classes (`Cityscapes_classes_w_concepts3`), with skyscraper spelt right."""


def concepts_of(classes: Sequence[SemanticClass], path: str | None = None) -> list[list[str]]:
    """The concepts of each class; its name where nothing is known of it.

    Args:
        path: JSON file of {class name: [words]}, in place of SemiVL's.

    Raises:
        DataError: the file is not such a mapping, or names a class that is not there.
    """
    known = CITYSCAPES_CONCEPTS if path is None else _read(Path(path))
    if path is not None:
        for name in known:
            if name not in {c.name for c in classes}:
                raise DataError(f"{path}: {name!r} is not one of {', '.join(c.name for c in classes)}")
    return [known.get(c.name, [c.name]) for c in classes]


def _read(path: Path) -> dict[str, list[str]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f'{path}: is not of the form {{"car": ["car", "van"]}}')
    for name, words in content.items():
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise DataError(f"{path}: {name}: {excerpt(words)} is not a list of words")
    return content
