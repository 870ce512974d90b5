"""COCO's annotation files (cocodataset.org, "Data format"): objects as polygons or run lengths, which may overlap.

    {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "segmentation", "iscrowd"}]}

`segmentation` is a list of polygons [x, y, x, y, ...], or {"size": [height, width], "counts": ...} with run lengths,
as a list or as COCO's text. Reading checks its form; masks are made when a map is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from .json_files import excerpt, is_number, is_whole, read_json
from .planes import MOST_INSTANCES, allotted, stacked
from .polygons import coco_polygon
from .records import IGNORE_INDEX, DataError, SemanticClass

BACKGROUND = "background"
"""Name of the class of pixels that are in no object; unless told otherwise nobody asks for it."""


def is_background(name: str) -> bool:
    """Whether a class is called that, in any spelling: "Background", "_background_"."""
    return name.strip(" _").casefold() == BACKGROUND


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        segmentation: as in the file.
        crowd: a region with many objects of a category: in the label map, and no instance.
    """

    id: int
    category_id: int
    segmentation: Any
    crowd: bool


@dataclass
class CocoImage:
    id: int
    file_name: str
    height: int
    width: int
    objects: list[CocoObject] = field(default_factory=list)

    def instance_ids(self) -> dict[int, int]:
        """Annotation id -> id in the instance map: 1, 2, ... in the order of the file."""
        return {o.id: k for k, o in enumerate((o for o in self.objects if not o.crowd), start=1)}


@dataclass(frozen=True)
class CocoFile:
    """Attributes:
    categories: id -> name.
    images: by id.
    """

    path: Path
    categories: dict[int, str]
    images: dict[int, CocoImage]

    def facts(self, image_id: int) -> dict[int, dict[str, str]]:
        """The category of every instance of an image, as `Scene.facts` has it. The label map does not tell it: what
        lies on an object may cover most of its pixels."""
        image = self.images[image_id]
        names = {o.id: self.categories[o.category_id] for o in image.objects}
        return {number: {"class": names[i]} for i, number in image.instance_ids().items()}


@dataclass(frozen=True)
class CocoMap:
    """A map of one image.

    In the label map smaller objects lie on top of larger ones and `background` is where there is none. In the instance
    map every object keeps all its pixels, on planes if need be.

    Attributes:
        class_ids: category id -> class id.
        background: class id.
    """

    path: Path
    image: CocoImage
    class_ids: dict[int, int]
    background: int
    part: Literal["label map", "instance map"]

    def __str__(self) -> str:
        return f"{self.path}: image {self.image.id} ({self.image.file_name})"

    def open(self) -> Image.Image:
        size, objects = (self.image.height, self.image.width), self.image.objects
        if self.part == "instance map":
            masks = (object_mask(o, *size, place=str(self)) for o in objects if not o.crowd)
            maps = (np.uint16(number) * mask for number, mask in enumerate(masks, start=1))
            return Image.fromarray(stacked(allotted(maps, *size)))
        labels = np.full(size, self.background, np.uint8)
        # pixels as indices: whole masks of a thousand objects would take gigabytes
        pixels = [np.flatnonzero(object_mask(o, *size, place=str(self))) for o in objects]
        for index in sorted(range(len(objects)), key=lambda k: -len(pixels[k])):
            labels.flat[pixels[index]] = self.class_ids[objects[index].category_id]
        return Image.fromarray(labels)


def object_mask(coco_object: CocoObject, height: int, width: int, place: str) -> np.ndarray:
    """bool (H, W): the union of an object's polygons, or what its run lengths say.

    Raises:
        DataError: the run lengths are of another size; `place` and the annotation are named.
    """
    segmentation = coco_object.segmentation
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), bool)
        for polygon in segmentation:
            mask |= coco_polygon(np.reshape(polygon, (-1, 2)), height, width)
        return mask
    counts = segmentation["counts"]
    try:
        runs = text_run_lengths(counts) if isinstance(counts, str) else counts
        if segmentation["size"] != [height, width]:
            raise ValueError(f"size {segmentation['size']}; its image's {[height, width]} would be right")
        return run_length_mask(runs, height, width)
    except ValueError as error:
        raise DataError(f"{place}: annotation {coco_object.id}: {error}") from None


def run_length_mask(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """bool (H, W) of run lengths: pixels outside, inside, outside ... of the columns one after the other.

    Raises:
        ValueError: a run is negative, or all together are not the image's pixels.
    """
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"run lengths of {sum(runs)} pixels; the image's {height * width} would be right")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def text_run_lengths(text: str) -> list[int]:
    """The run lengths of COCO's compressed text (`rleFrString` of `maskApi.c`).

    A number is 5 bits to a character from the lowest on, the sixth says that more follow, the highest of the last 5 is
    the sign. From the fourth number on it is the difference to the one two places before.

    Raises:
        ValueError: a character outside of "0".."o", or the text ends within a number.
    """
    runs: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"counts has the character {character!r}; '0'..'o' would be right")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = bits = 0
    if bits:
        raise ValueError("counts ends within a number")
    return runs


def read_coco(path: Path) -> CocoFile:
    """The images, categories and objects of a file.

    Raises:
        DataError: a field is missing or of another form, an id stands twice, or an annotation names an image or
            category that is not there.
    """
    content = read_json(path)
    tables = [content.get(name) if isinstance(content, dict) else None for name in ("images", "categories")]
    for name, table in zip(("images", "categories"), tables, strict=True):
        if not isinstance(table, list) or not table:
            raise DataError(f"{path}: {name} {excerpt(table)} is not a list with entries")
    images = _by_id(path, "images", tables[0])
    categories = _by_id(path, "categories", tables[1])
    coco = CocoFile(
        path,
        {i: _text(path, "categories", entry, "name") for i, entry in categories.items()},
        {i: _image(path, entry) for i, entry in images.items()},
    )
    for name in coco.categories.values():
        if list(coco.categories.values()).count(name) > 1:
            raise DataError(f"{path}: categories: name {name!r} stands twice")
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise DataError(f"{path}: annotations {excerpt(annotations)} is not a list")
    for annotation in _by_id(path, "annotations", annotations).values():
        _add_object(coco, annotation)
    return coco


def _by_id(path: Path, table: str, entries: list[Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not is_whole(entry.get("id")):
            raise DataError(f"{path}: {table}: {excerpt(entry)} has no whole number as id")
        if entry["id"] in found:
            raise DataError(f"{path}: {table}: id {entry['id']} stands twice")
        found[entry["id"]] = entry
    return found


def _text(path: Path, table: str, entry: dict[str, Any], name: str) -> str:
    if not isinstance(value := entry.get(name), str) or not value.strip():
        raise DataError(f"{path}: {table}: id {entry['id']}: {name} {excerpt(value)} is no text")
    return value.strip()


def _image(path: Path, entry: dict[str, Any]) -> CocoImage:
    for name in ("height", "width"):
        if not is_whole(value := entry.get(name)) or not 0 < value < 2**16:
            raise DataError(f"{path}: images: id {entry['id']}: {name} {excerpt(value)} is not a number of pixels")
    return CocoImage(entry["id"], _text(path, "images", entry, "file_name"), entry["height"], entry["width"])


def _add_object(coco: CocoFile, annotation: dict[str, Any]) -> None:
    where = f"{coco.path}: annotations: id {annotation['id']}"
    for name, known in (("image_id", coco.images), ("category_id", coco.categories)):
        value = annotation.get(name)
        if not is_whole(value) or value not in known:
            table = "images" if name == "image_id" else "categories"
            raise DataError(f"{where}: {name} {excerpt(value)} is none of the {len(known)} {table}")
    segmentation = annotation.get("segmentation")
    # a box alone (`"segmentation": []`) would become background
    if not (_are_polygons(segmentation) or _are_run_lengths(segmentation)):
        raise DataError(
            f"{where}: segmentation {excerpt(segmentation)} is neither polygons [[x, y, ...]] of three points or more "
            "nor size and counts"
        )
    image = coco.images[annotation["image_id"]]
    crowd = bool(annotation.get("iscrowd"))
    image.objects.append(CocoObject(annotation["id"], annotation["category_id"], segmentation, crowd))
    if len(image.objects) > MOST_INSTANCES:
        raise DataError(f"{where}: image {image.id} has more than {MOST_INSTANCES} objects")


def _are_polygons(segmentation: Any) -> bool:
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return False
    numbers = [x for polygon in segmentation for x in polygon]
    return (
        all(len(polygon) % 2 == 0 for polygon in segmentation)
        and any(len(polygon) >= 6 for polygon in segmentation)
        and all(is_number(x) and abs(x) < 1e6 for x in numbers)
    )


def _are_run_lengths(segmentation: Any) -> bool:
    if not isinstance(segmentation, dict):
        return False
    size, counts = segmentation.get("size"), segmentation.get("counts")
    return isinstance(size, list) and (
        isinstance(counts, str) or (isinstance(counts, list) and all(is_whole(run) for run in counts))
    )


def classes_with_background(classes: Sequence[SemanticClass], path: Path) -> tuple[tuple[SemanticClass, ...], int]:
    """The classes and the id of the background, which is added with the lowest free id where it is not among them.

    Raises:
        DataError: no id is free.
    """
    for semantic_class in classes:
        if is_background(semantic_class.name):
            return tuple(classes), semantic_class.id
    free = set(range(IGNORE_INDEX)) - {c.id for c in classes}
    if not free:
        raise DataError(f"{path}: has {len(classes)} classes; {IGNORE_INDEX - 1} and the background would be right")
    return (*classes, SemanticClass(min(free), BACKGROUND, asked=False)), min(free)


def category_classes(coco: CocoFile) -> tuple[SemanticClass, ...]:
    """The categories as classes of the same ids; nobody asks for the background.

    Raises:
        DataError: an id is outside of 0..254.
    """
    for category_id, name in coco.categories.items():
        if not 0 <= category_id < IGNORE_INDEX:
            raise DataError(f"{coco.path}: categories: id {category_id} ({name}) is outside of 0..{IGNORE_INDEX - 1}")
    return tuple(
        SemanticClass(category_id, name, asked=not is_background(name))
        for category_id, name in sorted(coco.categories.items())
    )
