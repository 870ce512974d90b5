"""Own data: a folder with images, their masks in one of four forms, and a list of classes.

    DIR/classes.json            {"classes": [{"id": 0, "name": "car", "attributes": ["the vehicle with four wheels"],
                                "noun": "vehicle with four wheels", "stands": true}, ...]}: the fields of
                                `SemanticClass`, all but id and name may be left out; or, shorter, {"0": "road"}. One of
                                `"ignored": true` is no class: pixels of its id become 255
    DIR/images/STEM.jpg         labelled training images (or .png .bmp .tif .webp; greyscale of 16 bits is divided by
                                257, so that 12 bits in 16 are nearly black and have to be multiplied by 16 before)
    DIR/unlabelled/STEM.jpg     optional: images without masks (an image of images/ without a mask counts as one too)
    DIR/facts/STEM.json         optional: {"7": {"class": "car", "colour": "red"}}, by instance id; texts, and a "class"
                                that is one of classes.json
    DIR/val/, DIR/test/         optional: the same folders again

Masks, in one of these forms:

    masks/STEM.png              class ids, 255 = ignored; greyscale or palette PNG of the image's size (no JPEG, which
                                changes values)
    masks/STEM/CLASS.png        one mask for each class that the image shows, not zero = the class
    masks/CLASS/STEM.png        the same, the other way round
    annotations.json            COCO's objects (`coco.py`); its categories are the classes if there is no classes.json

With the first three, `instances/STEM.png` may give instance ids (8 or 16 bits, 0 = none), one for each object of an
image, whatever its class: where a car is 1, no person is. An id that two classes share is refused, unless `facts/` tell
its class. COCO's objects are instances.
Where binary masks overlap, the class that comes later in classes.json wins; where COCO's objects do, the smaller one.
Pixels in no mask and no object are "background", a class that is added if need be. Nobody asks for a class of this
name, however it is spelled ("_Background_"), unless its entry in classes.json says `"asked": true`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .bad_items import listed, refuse
from .coco import CocoFile, CocoMap, category_classes, classes_with_background, is_background, read_coco
from .instructions.attribute import names_class
from .json_files import excerpt, is_whole, read_json
from .records import IGNORE_INDEX, DataError, ImageSource, Scene, SceneSet, SemanticClass, Split, read_map
from .splits import composed

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})

PARTS: dict[Split, str] = {"train": ".", "val": "val", "test": "test"}

FLAGS = ("ground", "stands", "asked")
CLASS_FIELDS = ("id", "name", "attributes", "noun", *FLAGS, "ignored")


def read_own_folder(root: str | Path) -> SceneSet:
    """Scenes of own data; nothing is decoded.

    Raises:
        DataError: images, masks or classes are missing or wrong; no training image is labelled.
    """
    root = Path(root)
    if not (root / "images").is_dir():
        raise DataError(f"{root}: has no images/")
    folders = {split: root / name for split, name in PARTS.items() if (root / name).is_dir()}
    coco = {split: read_coco(path) for split, f in folders.items() if (path := f / "annotations.json").exists()}
    path = root / "classes.json"
    if coco and not path.exists():
        classes, ignored = _same_categories(list(coco.values())), frozenset()
        path = next(iter(coco.values())).path
    else:
        classes, ignored = read_classes(path)
    binary = any(_binary_masks(folder / "masks") for folder in folders.values())
    background = None
    if coco or binary:
        classes, background = classes_with_background(classes, path)
    scenes = [
        scene
        for split, folder in folders.items()
        for scene in _read_split(folder, split, classes, background, coco.get(split))
    ]
    scene_set = SceneSet(tuple(c for c in classes if c.id not in ignored), tuple(scenes))
    if ignored:
        lookup = np.arange(256, dtype=np.uint8)
        lookup[list(ignored)] = IGNORE_INDEX
        unknown = frozenset(range(IGNORE_INDEX)) - {c.id for c in classes}
        scene_set = replace(scene_set, label_lookup=lookup, unknown_labels=unknown)
    if not scene_set.split("train"):
        raise DataError(f"{root / 'images'}: no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    if not scene_set.split("train", labelled=True):
        raise DataError(f"{root / 'masks'}: no training image has a mask of the same stem")
    return scene_set


def read_classes(path: Path) -> tuple[tuple[SemanticClass, ...], frozenset[int]]:
    """The classes of a `classes.json`, and the ids of those that are ignored.

    Raises:
        DataError: not there, not JSON, an id outside of 0..254, an id or name twice, a field that is unknown or of
            another type, a noun or attribute of two classes, an attribute that names its class, or all classes are
            ignored.
    """
    content = read_json(path)
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
    ignored = frozenset(c.id for c, e in zip(classes, entries, strict=True) if e.get("ignored"))
    if len(ignored) == len(classes):
        raise DataError(f"{path}: ignored is true of all classes; one to learn would be right")
    _refuse_ambiguous(path, [c for c in classes if c.asked and c.id not in ignored])
    return classes, ignored


def _refuse_ambiguous(path: Path, classes: list[SemanticClass]) -> None:
    """One description of two classes would be one query with two answers, as another class's name would be; one that
    names its class is never used."""
    described = {c.name.casefold(): c.name for c in classes}
    for c in classes:
        for field, text in (*((("noun", c.noun),) if c.noun else ()), *(("attributes", a) for a in c.attributes)):
            if field == "attributes" and names_class(text, c.name):
                raise DataError(f"{path}: attributes {text!r} names its class {c.name!r}; other words would be right")
            if (other := described.setdefault(text.casefold().removeprefix("the "), c.name)) != c.name:
                raise DataError(
                    f"{path}: {field} {text!r} describes {other!r} and {c.name!r}; words of one alone would be right"
                )


def _read_class(path: Path, index: int, entry: Any) -> SemanticClass:
    where = f"{path}: class {index}"
    if not isinstance(entry, dict) or "id" not in entry or "name" not in entry:
        raise DataError(f"{where}: {excerpt(entry)} has no id and name")
    for field in entry:
        if field not in CLASS_FIELDS:
            raise DataError(f"{where}: {field!r} is no field of a class; those are {', '.join(CLASS_FIELDS)}")
    class_id = entry["id"]
    if isinstance(class_id, str) and class_id.isascii() and class_id.isdecimal():
        class_id = int(class_id)
    if not is_whole(class_id) or not 0 <= class_id < IGNORE_INDEX:
        raise DataError(f"{where}: id {entry['id']!r} is not a whole number of 0..254 (255 means ignored)")
    name, attributes = entry["name"], entry.get("attributes", [])
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: name {name!r} is no text")
    if not isinstance(attributes, list) or not all(isinstance(a, str) and a.strip(" .") for a in attributes):
        raise DataError(f"{where}: attributes {excerpt(attributes)} is not a list of texts")
    noun = entry.get("noun", "")
    if not isinstance(noun, str):
        raise DataError(f"{where}: noun {noun!r} is no text")
    flags = {"asked": not is_background(name), **{field: entry[field] for field in FLAGS if field in entry}}
    for field, value in {**flags, "ignored": entry.get("ignored", False)}.items():
        if not isinstance(value, bool):
            raise DataError(f"{where}: {field} {excerpt(value)} is not true or false")
    # they are put into sentences
    return SemanticClass(class_id, name.strip(), tuple(a.strip(" .") for a in attributes), noun.strip(" ."), **flags)


@dataclass(frozen=True)
class BinaryMasks:
    """A label map of binary masks, put together when it is opened.

    Attributes:
        masks: class id and file; later ones lie on top.
        background: class id of the pixels that are in none.
    """

    masks: tuple[tuple[int, Path], ...]
    background: int

    def __str__(self) -> str:
        return str(self.masks[0][1])

    def open(self) -> Image.Image:
        labels: np.ndarray | None = None
        for class_id, path in self.masks:
            mask = read_map(path, greys=True)
            if labels is None:
                labels = np.full(mask.shape, self.background, np.uint8)
            if mask.shape != labels.shape:
                size, other = (f"{array.shape[1]}x{array.shape[0]}" for array in (mask, labels))
                raise DataError(f"{path}: size {size} differs from the {other} of {self.masks[0][1]}")
            labels[mask != 0] = class_id
        return Image.fromarray(labels)


def _read_split(
    folder: Path, split: Split, classes: tuple[SemanticClass, ...], background: int | None, coco: CocoFile | None
) -> list[Scene]:
    images, unlabelled = _by_stem(_flat(folder / "images")), _by_stem(_flat(folder / "unlabelled"))
    for stem in images.keys() & unlabelled.keys():
        refuse(DataError(f"{unlabelled[stem]}: {images[stem]} has the same stem"))
        del unlabelled[stem]
    labels: dict[str, ImageSource]
    instances: dict[str, ImageSource]
    facts: dict[str, dict[int, dict[str, str]]] = {}
    if coco is not None:
        labels, instances, facts = _coco_maps(folder, coco, images, classes, background)
    else:
        labels = dict(_by_stem(_lossless(_images(folder / "masks"))))
        instances = dict(_by_stem(_lossless(_flat(folder / "instances"))))
        for stem, masks in _class_masks(folder / "masks", classes, background).items():
            if stem in labels:
                refuse(DataError(f"{masks}: {labels[stem]} is a mask of the same image; one of the two would be right"))
                continue
            labels[stem] = masks
    facts_files = _by_stem(listed((folder / "facts").glob("*.json")))
    for stem, source in (*labels.items(), *instances.items(), *facts_files.items()):
        if stem not in images:
            refuse(DataError(f"{source}: {folder / 'images'} has no image of this stem"))
    for stem, path in facts_files.items():
        if stem not in images:
            continue
        try:
            given = _read_facts(path, classes)
        except DataError as error:
            refuse(error)
            del images[stem]  # with instances of the wrong class it would be worse than missing
            continue
        known = facts.get(stem, {})
        facts[stem] = {i: known.get(i, {}) | given.get(i, {}) for i in (*known, *given)}
    return [
        *(
            Scene(stem, image, labels.get(stem), instances.get(stem), split, facts.get(stem, {}))
            for stem, image in images.items()
        ),
        *(Scene(stem, image, split=split) for stem, image in unlabelled.items()),
    ]


def _binary_masks(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inner = (path for path in folder.iterdir() if path.is_dir())
    return [mask for path in listed(inner) for mask in _images(path)]


def _class_masks(folder: Path, classes: tuple[SemanticClass, ...], background: int | None) -> dict[str, BinaryMasks]:
    """The binary masks of each image's stem. A folder that is called like a class holds masks of that class."""
    order = {composed(c.name): (index, c.id) for index, c in enumerate(classes)}
    found: dict[str, dict[str, Path]] = {}
    for path in _lossless(_binary_masks(folder)):
        own, above = composed(path.stem), composed(path.parent.name)
        stem, name = (own, above) if above in order else (above, own)
        if name not in order:
            known = ", ".join(order)
            refuse(DataError(f"{path}: neither {above!r} nor {own!r} is a class of {known}"))
            continue
        if name in found.setdefault(stem, {}):
            refuse(DataError(f"{path}: {found[stem][name]} is the same class of the same image"))
            continue
        found[stem][name] = path
    class_masks = {}
    for stem, masks in found.items():
        in_order = sorted(masks, key=lambda name: order[name])
        class_masks[stem] = BinaryMasks(tuple((order[name][1], masks[name]) for name in in_order), background)
    return class_masks


def _same_categories(files: list[CocoFile]) -> tuple[SemanticClass, ...]:
    first, *others = files
    for other in others:
        if other.categories != first.categories:
            raise DataError(f"{other.path}: its categories differ from {first.path}; equal ones would be right")
    return category_classes(first)


def _coco_maps(
    folder: Path, coco: CocoFile, images: dict[str, Path], classes: tuple[SemanticClass, ...], background: int
) -> tuple[dict[str, ImageSource], dict[str, ImageSource], dict[str, dict[int, dict[str, str]]]]:
    """Label maps, instance maps and the classes of the instances, by the stems of the images."""
    for name in ("masks", "instances"):
        if (folder / name).is_dir():
            raise DataError(f"{coco.path}: {folder / name} is there too; one of the two would be right")
    by_name = {c.name: c.id for c in classes}
    for name in coco.categories.values():
        if name not in by_name:
            raise DataError(f"{coco.path}: category {name!r} is not one of the classes {', '.join(by_name)}")
    class_ids = {category_id: by_name[name] for category_id, name in coco.categories.items()}
    labels: dict[str, ImageSource] = {}
    instances: dict[str, ImageSource] = {}
    facts = {}
    for image in coco.images.values():
        stem = composed(Path(image.file_name).stem)
        if stem not in images:
            refuse(DataError(f"{coco.path}: images: id {image.id}: {folder / 'images'} has no {image.file_name}"))
            continue
        if stem in labels:
            refuse(DataError(f"{coco.path}: images: id {image.id}: {image.file_name} stands twice"))
            continue
        labels[stem] = CocoMap(coco.path, image, class_ids, background, "label map")
        instances[stem] = CocoMap(coco.path, image, class_ids, background, "instance map")
        facts[stem] = coco.facts(image.id)
    return labels, instances, facts


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        stem = composed(path.stem)
        if stem in files:
            refuse(DataError(f"{path}: {files[stem].name} has the same stem"))
            continue
        files[stem] = path
    return files


def _images(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    yield from listed(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _flat(folder: Path) -> Iterator[Path]:
    """The images of a folder; refuses those of folders in it, which nobody would miss."""
    yield from _images(folder)
    below = (path for path in folder.glob("*/**/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    # `.ipynb_checkpoints` and the like
    shown = (path for path in below if not any(part[0] == "." for part in path.relative_to(folder).parts))
    if first := min(shown, default=None):
        refuse(DataError(f"{first}: is in a folder of its own; images directly in {folder} would be right"))


def _lossless(paths: Iterable[Path]) -> Iterator[Path]:
    """Files of ids or masks without those in which compression has put other values."""
    for path in paths:
        if path.suffix.lower() in JPEG_SUFFIXES:
            refuse(DataError(f"{path}: JPEG changes values; PNG would be right"))
        else:
            yield path


def _read_facts(path: Path, classes: tuple[SemanticClass, ...]) -> dict[int, dict[str, str]]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(known, dict) for known in content.values()):
        raise DataError(f'{path}: is not of the form {{"7": {{"class": "car", "colour": "red"}}}}')
    names = [c.name for c in classes]
    facts: dict[int, dict[str, str]] = {}
    for key, known in content.items():
        if not (key.isascii() and key.isdecimal()):
            raise DataError(f"{path}: {excerpt(key)} is no instance id; a whole number would be right")
        for field, value in known.items():
            if not isinstance(value, str):
                raise DataError(f"{path}: instance {key}: {field} {excerpt(value)} is no text")
        if "class" in known and known["class"] not in names:
            raise DataError(f"{path}: instance {key}: class {known['class']!r} is not one of {', '.join(names)}")
        facts[int(key)] = known
    return facts
