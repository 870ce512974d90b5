"""The one schema of the project: scenes, and instructions about them, joined by `image_id`.

No image is stored once per query: an `Instruction` names the image and says which pixels it is about (a class, or some
instances of it); the target mask is read off the scene's label and instance maps when it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IGNORE_INDEX = 255
"""Label of pixels without truth; never a target, never counted."""

Split = Literal["train", "val", "test"]
Kind = Literal["semantic", "attribute", "conditional", "reasoning"]


class DataError(ValueError):
    """Bad input, told in one line that names the file, the field, the value and what would be right."""


@dataclass(frozen=True)
class SemanticClass:
    """One class of a data set.

    Attributes:
        id: its value in label maps, 0..254.
        name: what a semantic query calls it ("traffic light").
        attributes: noun phrases that describe the class without naming it ("the vehicle with four wheels");
            attribute queries are made of them.
        noun: what one instance is called without naming the class, where a colour or size can stand before it ("small
            vehicle with four wheels": "the red small vehicle with four wheels"); empty = no queries about instances.
    """

    id: int
    name: str
    attributes: tuple[str, ...] = ()
    noun: str = ""


@dataclass(frozen=True)
class Scene:
    """One image and, where it is labelled, its maps (paths: nothing is read before it is needed).

    Attributes:
        image_id: unique within a `SceneSet`.
        image: RGB, grey, palette, RGBA or 16-bit image file.
        label_map: PNG of class ids, same size as the image; None for an unlabelled image.
        instance_map: PNG (8- or 16-bit) of instance ids, 0 = no instance; None where instances are unknown.
        facts: what is known about instances beyond the pixels, by instance id (drawn scenes know each colour):
            `{7: {"colour": "red"}}`.
    """

    image_id: str
    image: Path
    label_map: Path | None = None
    instance_map: Path | None = None
    split: Split = "train"
    facts: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        return self.label_map is not None


@dataclass(frozen=True)
class SceneSet:
    """Scenes that share one list of classes.

    Attributes:
        label_lookup: uint8 (256,), raw value of a label map -> class id or 255; None where the maps hold class ids.
            A raw value listed in `unknown_labels` is an error.
        instance_lookup: how raw instance maps become instance ids; "as_is", or "cityscapes" (id * 1000 + k is a
            countable object, any other value none).
    """

    classes: tuple[SemanticClass, ...]
    scenes: tuple[Scene, ...]
    label_lookup: np.ndarray | None = None
    unknown_labels: frozenset[int] = frozenset()
    instance_lookup: Literal["as_is", "cityscapes"] = "as_is"

    def split(self, split: Split, labelled: bool | None = None) -> tuple[Scene, ...]:
        """The scenes of one split; only the labelled or only the unlabelled ones where `labelled` is given."""
        return tuple(s for s in self.scenes if s.split == split and labelled in (None, s.labelled))

    def class_named(self, name: str) -> SemanticClass:
        for semantic_class in self.classes:
            if semantic_class.name == name:
                return semantic_class
        raise DataError(f"class {name!r} is not one of {', '.join(c.name for c in self.classes)}")

    def read_maps(self, scene: Scene) -> tuple[np.ndarray, np.ndarray | None]:
        """Label map (uint8, H x W, class ids and 255) and instance map (int32, H x W, 0 = none) or None.

        Raises:
            DataError: a file does not open, sizes differ, or a label is not a class id.
        """
        if scene.label_map is None:
            raise DataError(f"{scene.image}: has no label map, so it has no target masks")
        labels = read_map(scene.label_map)
        if labels.shape != (size := _image_size(scene.image)):
            raise DataError(
                f"{scene.label_map}: size {labels.shape[1]}x{labels.shape[0]} differs from its image's "
                f"{size[1]}x{size[0]} ({scene.image})"
            )
        known = {c.id for c in self.classes} | {IGNORE_INDEX}
        if labels.max(initial=0) > 255 or labels.min(initial=0) < 0:
            raise DataError(f"{scene.label_map}: label {int(labels.max())} is outside of 0..255")
        if self.label_lookup is None:
            unknown = set(np.unique(labels).tolist()) - known
        else:
            unknown = set(np.unique(labels).tolist()) & self.unknown_labels
        if unknown:
            raise DataError(
                f"{scene.label_map}: label {min(unknown)} is not a known class id "
                f"({', '.join(f'{c.id} {c.name}' for c in self.classes)}, 255 ignore)"
            )
        labels = labels.astype(np.uint8) if self.label_lookup is None else self.label_lookup[labels]
        if scene.instance_map is None:
            return labels, None
        instances = read_map(scene.instance_map)
        if instances.shape != labels.shape:
            raise DataError(
                f"{scene.instance_map}: size {instances.shape[1]}x{instances.shape[0]} differs from its label map's"
            )
        if self.instance_lookup == "cityscapes":
            instances = np.where(instances >= 1000, instances, 0)
        return labels, instances


@dataclass(frozen=True)
class Instruction:
    """A query about one scene, the equivalent ways to ask it, and which pixels answer it.

    Attributes:
        kind: semantic (names the class), attribute (does not), conditional (relative to an anchor), reasoning (free).
        class_name: the class of the target.
        instance_ids: the target's instances; None = every pixel of the class.
        query: what is asked.
        rephrasings: other queries that mean exactly the same.
        answer: the text to be generated, with one `[SEG]`.
    """

    image_id: str
    kind: Kind
    class_name: str
    query: str
    answer: str
    instance_ids: tuple[int, ...] | None = None
    rephrasings: tuple[str, ...] = ()

    def target_mask(self, class_id: int, labels: np.ndarray, instances: np.ndarray | None = None) -> np.ndarray:
        """uint8 (H, W): 1 target, 0 other, 255 unknown."""
        target = labels == class_id
        if self.instance_ids is not None:
            if instances is None:
                raise DataError(f"{self.image_id}: the query {self.query!r} needs an instance map and there is none")
            target &= np.isin(instances, self.instance_ids)
        mask = target.astype(np.uint8)
        mask[labels == IGNORE_INDEX] = IGNORE_INDEX
        return mask


def read_image(path: str | Path) -> Image.Image:
    """An RGB image from any file Pillow reads; 16-bit greyscale is scaled to 8 bits, EXIF orientation applied.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                # Pillow clips 16-bit values at 255 instead of scaling them
                image = Image.fromarray((np.asarray(image).astype(np.float32) / 257.0).round().astype(np.uint8))
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None


def read_map(path: str | Path) -> np.ndarray:
    """The raw ids of a label or instance map as int32 (H, W); a palette PNG gives its indices, not its colours.

    Raises:
        DataError: the file is missing, truncated, no image, or has more than one channel.
    """
    try:
        with Image.open(path) as file:
            file.load()
            ids = np.asarray(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None
    if ids.ndim != 2:
        raise DataError(f"{path}: has {ids.shape[2]} channels; a map of ids has one (greyscale or palette PNG)")
    return ids.astype(np.int32)


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width) as `read_image` will give it, without decoding the pixels."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            rotated = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None
    return (width, height) if rotated else (height, width)
