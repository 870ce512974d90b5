"""Own data: a folder with images, masks of class ids, and a list of classes.

    DIR/classes.json            {"classes": [{"id": 0, "name": "car", "attributes": ["the vehicle with four wheels"],
                                "noun": "vehicle with four wheels"}, ...]} (see `SemanticClass`; attributes and noun
                                may be left out), or, shorter, {"0": "road", "1": "car"}
    DIR/images/STEM.jpg         labelled training images (any format that Pillow reads)
    DIR/masks/STEM.png          class ids, 255 = ignored; greyscale or palette PNG of the image's size
    DIR/instances/STEM.png      optional, 8 or 16 bits: instance ids, 0 = none
    DIR/facts/STEM.json         optional: {"7": {"class": "car", "colour": "red"}}, by instance id
    DIR/unlabelled/STEM.jpg     optional: images without masks (an image of images/ without a mask counts as one too)
    DIR/val/, DIR/test/         optional: the same folders again

A folder with `leftImg8bit/` in it is read as the Cityscapes layout. Nothing is decoded here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cityscapes import read_cityscapes, relabelled
from .records import IGNORE_INDEX, DataError, Scene, SceneSet, SemanticClass, Split

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def read_folder(root: str | Path, split_lists: str | Path | None = None) -> SceneSet:
    """Scenes of a folder in either layout.

    Args:
        root: the folder.
        split_lists: folder with `labeled.txt` and `unlabeled.txt` that choose the training scenes; see `splits.py`.

    Raises:
        DataError: the folder, its images or `classes.json` are missing or wrong; no training image is labelled.
    """
    if not str(root):
        raise DataError("data: not given; a folder with images/ masks/ classes.json, or the Cityscapes layout")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "leftImg8bit").is_dir():
        scene_set = read_cityscapes(root, split_lists)
    else:
        if not (root / "images").is_dir():
            raise DataError(f"{root}: has no images/ (own data) and no leftImg8bit/ (Cityscapes layout)")
        classes = read_classes(root / "classes.json")
        scenes = _read_split(root, "train") + _read_split(root / "val", "val") + _read_split(root / "test", "test")
        if split_lists is not None:
            scenes = relabelled(scenes, split_lists)
        scene_set = SceneSet(classes, tuple(scenes))
    if not scene_set.split("train"):
        raise DataError(f"{root / 'images'}: no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    if not scene_set.split("train", labelled=True):
        raise DataError(f"{root / 'masks'}: no training image has a mask of the same stem")
    return scene_set


def read_classes(path: Path) -> tuple[SemanticClass, ...]:
    """The classes of a `classes.json`.

    Raises:
        DataError: not there, not JSON, an id outside of 0..254, or an id or name twice.
    """
    content = _read_json(path)
    entries = content.get("classes") if isinstance(content, dict) and "classes" in content else content
    if isinstance(entries, dict):
        entries = [{"id": key, "name": name} for key, name in entries.items()]
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path}: lists no classes; {{"0": "road", "1": "car"}} would')
    classes = tuple(_read_class(path, index, entry) for index, entry in enumerate(entries))
    for field in ("id", "name"):
        values = [getattr(c, field) for c in classes]
        for value in values:
            if values.count(value) > 1:
                raise DataError(f"{path}: {field} {value!r} stands for two classes")
    return classes


def _read_class(path: Path, index: int, entry: Any) -> SemanticClass:
    where = f"{path}: class {index}"
    if not isinstance(entry, dict) or "id" not in entry or "name" not in entry:
        raise DataError(f"{where}: {json.dumps(entry)[:60]} has no id and name")
    try:
        class_id = int(entry["id"])
    except (TypeError, ValueError):
        class_id = -1
    if not 0 <= class_id < IGNORE_INDEX:
        raise DataError(f"{where}: id {entry['id']!r} is not a whole number of 0..254 (255 means ignored)")
    name, attributes = entry["name"], entry.get("attributes", [])
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: name {name!r} is no text")
    if not isinstance(attributes, list) or not all(isinstance(a, str) and a.strip() for a in attributes):
        raise DataError(f"{where}: attributes {json.dumps(attributes)[:60]} is not a list of texts")
    noun = entry.get("noun", "")
    if not isinstance(noun, str):
        raise DataError(f"{where}: noun {noun!r} is no text")
    return SemanticClass(class_id, name.strip(), tuple(a.strip() for a in attributes), noun.strip())


def _read_split(folder: Path, split: Split) -> list[Scene]:
    if not folder.is_dir():
        return []
    masks, instances = _by_stem(folder / "masks"), _by_stem(folder / "instances")
    facts = {path.stem: path for path in (folder / "facts").glob("*.json")}
    images = _by_stem(folder / "images")
    for stem, mask in masks.items():
        if stem not in images:
            raise DataError(f"{mask}: {folder / 'images'} has no image of this stem")
    unlabelled = _by_stem(folder / "unlabelled")
    for stem in images.keys() & unlabelled.keys():
        raise DataError(f"{unlabelled[stem]}: {images[stem]} has the same stem")
    scenes = []
    for stem, image in images.items():
        known = _read_facts(facts[stem]) if stem in facts else {}
        scenes.append(Scene(stem, image, masks.get(stem), instances.get(stem), split, known))
    return scenes + [Scene(stem, image, split=split) for stem, image in unlabelled.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in _images(folder):
        if path.stem in files:
            raise DataError(f"{path}: {files[path.stem].name} has the same stem")
        files[path.stem] = path
    return files


def _images(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")


def _read_facts(path: Path) -> dict[int, dict[str, str]]:
    try:
        return {int(key): dict(value) for key, value in _read_json(path).items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f'{path}: is not of the form {{"7": {{"class": "car", "colour": "red"}}}}') from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
