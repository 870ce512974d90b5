"""ReasonSeg (Lai et al., LISA, arXiv 2308.00692): images, one target each, and implicit queries for it.

    ROOT/{train,val,test}/<id>.jpg
    ROOT/{train,val,test}/<id>.json   {"text": ["..."], "is_sentence": true, "shapes": [{"label": "target",
                                      "points": [[x, y], ...]}, ...]}, in UTF-8 or cp1252

Masks are painted as LISA's `get_mask_from_json` (`utils/data_processing.py`) has OpenCV paint them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .bad_items import listed, refuse
from .instructions.free_text import free_text_instruction
from .json_files import excerpt, is_number, read_json
from .polygons import paint_polygon
from .records import IGNORE_INDEX, SPLITS, DataError, Instruction, Scene, SceneSet, SemanticClass, image_size

BACKGROUND = SemanticClass(0, "background", asked=False)
TARGET = SemanticClass(1, "target")

ENCODINGS = ("utf-8", "cp1252")

Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PaintedPolygons:
    """The label map of one image: polygons, painted when it is opened.

    Attributes:
        shapes: value and corners (x, y in pixels) of each polygon, in the order of the file.
    """

    path: Path
    image: Path
    shapes: tuple[tuple[int, Polygon], ...]

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> Image.Image:
        return Image.fromarray(painted(self.shapes, *image_size(self.image)))


def painted(shapes: tuple[tuple[int, Polygon], ...], height: int, width: int) -> np.ndarray:
    """uint8 (H, W): polygons painted over each other, those with the most pixels first; 0 where there is none."""
    areas = []
    for _, points in shapes:
        alone = np.zeros((height, width), np.uint8)
        paint_polygon(alone, points, 1)
        areas.append(int(alone.sum()))
    mask = np.zeros((height, width), np.uint8)
    for index in np.argsort(areas)[::-1]:  # as LISA sorts: of equal ones the later comes first
        value, points = shapes[index]
        paint_polygon(mask, points, value)
    return mask


def read_reasonseg(root: str | Path) -> tuple[SceneSet, list[Instruction]]:
    """Scenes and the queries that ask for their "target"; polygons are checked and not yet painted.

    The first text is the query, the others rephrase it; `instruction.facts["is_sentence"]` tells whole sentences from
    phrases, as LISA words its prompts by it. An image without a polygon of the target keeps its queries: their mask is
    empty, as for two images of the test set.

    Args:
        root: holds at least one of train/, val/ and test/.

    Raises:
        DataError: no image, an image without annotations or the other way round, or annotations of another form.
    """
    root = Path(root)
    scenes: dict[str, Scene] = {}
    instructions = []
    for split in SPLITS:
        folder = root / split
        images = {path.stem: path for path in listed(folder.glob("*.jpg"))}
        for path in listed(folder.glob("*.json")):
            if path.stem not in images:
                refuse(DataError(f"{path}: {path.stem}.jpg is not beside it"))
        for image_id, image in images.items():
            if image_id in scenes:
                refuse(DataError(f"{image}: {scenes[image_id].image} has the same id"))
                continue
            path = image.with_suffix(".json")
            try:
                content = read_json(path, ENCODINGS)
                texts, is_sentence = _texts(path, content)
                shapes = _shapes(path, content)
            except DataError as error:
                refuse(error)
                continue
            scenes[image_id] = Scene(image_id, image, PaintedPolygons(path, image, shapes), split=split)
            facts = {"is_sentence": is_sentence}
            instructions.append(free_text_instruction(image_id, TARGET.name, texts, facts=facts))
    if not scenes:
        raise DataError(f"{root}: has no train/*.jpg, val/*.jpg or test/*.jpg")
    return SceneSet((BACKGROUND, TARGET), tuple(scenes.values())), instructions


def _texts(path: Path, content: Any) -> tuple[list[str], bool]:
    content = content if isinstance(content, dict) else {}
    texts, is_sentence = content.get("text"), content.get("is_sentence")
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts) or not any(t.strip() for t in texts):
        raise DataError(f"{path}: text {excerpt(texts)} is not a list of texts")
    if not isinstance(is_sentence, bool):
        raise DataError(f"{path}: is_sentence {excerpt(is_sentence)} is not true or false")
    return texts, is_sentence


def _shapes(path: Path, content: dict[str, Any]) -> tuple[tuple[int, Polygon], ...]:
    """Value and corners of every polygon but the flags."""
    shapes = content.get("shapes")
    if not isinstance(shapes, list):
        raise DataError(f"{path}: shapes {excerpt(shapes)} is not a list")
    polygons = []
    for index, shape in enumerate(shapes):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str):
            raise DataError(f"{path}: shape {index} {excerpt(shape)} has no label")
        if label.lower() == "flag":
            continue
        points = shape.get("points")
        if not isinstance(points, list) or not points or not all(_is_point(point) for point in points):
            raise DataError(f"{path}: shape {index}: points {excerpt(points)} is not a list of [x, y]")
        value = IGNORE_INDEX if "ignore" in label.lower() else TARGET.id
        polygons.append((value, tuple((x, y) for x, y in points)))
    return tuple(polygons)


def _is_point(point: Any) -> bool:
    # beyond 32 bits the coordinates of the public code have no defined value
    return isinstance(point, list) and len(point) == 2 and all(is_number(c) and abs(c) < 2**31 for c in point)
