"""The one schema of the project: scenes, and instructions about them, joined by `image_id`.

No image is stored once per query: an `Instruction` names the image and says which pixels it is about (a class, or some
instances); the target mask is read off the scene's label and instance maps when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from publishing.command_line import OneLineError

IGNORE_INDEX = 255
"""Label of pixels without truth; never a target, never counted."""

MAX_SECOND_CLASS = 0.05
"""Fraction of an instance's labelled pixels that may be of a second class: label and instance maps that were drawn
apart differ at borders."""

PART = "part"
"""What a data set calls a part of one of its splits (RefCOCO's `testA`), among `Scene.facts[0]`."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Kind = Literal["semantic", "attribute", "conditional", "reasoning"]


class DataError(OneLineError):
    """Bad input, told in one line that names the file, the field, the value and what would be right."""


_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged or no images. `DataError` is a `ValueError`."""


class StoredImage(Protocol):
    """An image that is no file of its own: a row of an array, a cell of a table. `str()` of it says where it is."""

    def open(self) -> Image.Image:
        """The image, decoded now or when its pixels are asked for, as with `PIL.Image.open`.

        Raises:
            OSError, ValueError: what is stored there cannot be read.
        """
        ...


ImageSource = Path | StoredImage


@dataclass(frozen=True)
class SemanticClass:
    """One class of a data set.

    Attributes:
        id: its value in label maps, 0..254.
        name: what a semantic query calls it ("traffic light").
        attributes: noun phrases that describe the class without naming it ("the vehicle with four wheels");
            attribute queries are made of them.
        noun: what one instance is called without naming the class, where a colour or size can stand before it ("small
            vehicle with four wheels": "the red small vehicle with four wheels"). Where it names the class, there are
            relations between its instances and no descriptions. Empty: its instances are patches of a mass
            ("vegetation") and not objects that one can count.
        ground: surfaces that things stand on (road, terrain).
        stands: its objects touch the ground where their masks end, unless something hides it (car, person).
        asked: False for pixels that are known to be nothing in particular ("background"): they count as wrong where an
            answer covers them, and nobody asks for them.
    """

    id: int
    name: str
    attributes: tuple[str, ...] = ()
    noun: str = ""
    ground: bool = False
    stands: bool = False
    asked: bool = True


@dataclass(frozen=True)
class Scene:
    """One image and, where it is labelled, its maps (paths or places: nothing is read before it is needed).

    Attributes:
        image_id: unique within a `SceneSet`.
        image: RGB, grey, palette, RGBA or 16-bit image.
        label_map: PNG of class ids, same size as the image; None for an unlabelled image.
        instance_map: PNG (8- or 16-bit) of instance ids, 0 = no instance; None where instances are unknown. Where
            instances overlap it has several planes, one below the other, each of the image's size.
        facts: what is known about instances beyond the pixels, by instance id (drawn scenes know each colour):
            `{7: {"colour": "red"}}`. Under 0 stands what is known about the whole scene: `{0: {"tissue": "Colon"}}`,
            that it is held out from a split of the data set (`splits.HELD_OUT_FROM`), or its `PART` of the split.
        group: scenes of one group show the same thing (overlapping tiles of a slide, frames of a video) and belong to
            the same side of any split; empty = the scene alone.
    """

    image_id: str
    image: ImageSource
    label_map: ImageSource | None = None
    instance_map: ImageSource | None = None
    split: Split = "train"
    facts: dict[int, dict[str, str]] = field(default_factory=dict)
    group: str = ""

    @property
    def labelled(self) -> bool:
        return self.label_map is not None


@dataclass(frozen=True)
class SceneSet:
    """Scenes that share one list of classes.

    Attributes:
        label_lookup: uint8 (256,), raw value of a label map -> class id or 255; None where the maps hold class ids.
            A raw value listed in `unknown_labels` is an error, and no `raw_labels` ("Cityscapes id (0..33, -1)").
        instance_lookup: how raw instance maps become instance ids; "as_is", or "cityscapes" (id * 1000 + k is a
            countable object, any other value none).
        ids_per_class: instance id // this is the id of its class; 0 = ids do not tell it. Where instances overlap, the
            label map does not either: what lies on one may cover most of its pixels.
    """

    classes: tuple[SemanticClass, ...]
    scenes: tuple[Scene, ...]
    label_lookup: np.ndarray | None = None
    unknown_labels: frozenset[int] = frozenset()
    raw_labels: str = ""
    instance_lookup: Literal["as_is", "cityscapes"] = "as_is"
    ids_per_class: int = 0

    def split(self, split: Split | str, labelled: bool | None = None) -> tuple[Scene, ...]:
        """The scenes of one split, or of a part of one; only the labelled or only the unlabelled ones where `labelled`
        is given."""
        own = (s for s in self.scenes if split in (s.split, s.facts.get(0, {}).get(PART)))
        return tuple(s for s in own if labelled in (None, s.labelled))

    def class_named(self, name: str) -> SemanticClass:
        for semantic_class in self.classes:
            if semantic_class.name == name:
                return semantic_class
        raise DataError(f"class {name!r} is not one of {', '.join(c.name for c in self.classes)}")

    def read_labels(self, scene: Scene) -> np.ndarray:
        """Label map (uint8, H x W, class ids and 255); instances, which may have to be found first, are left alone.

        Raises:
            DataError: there is none, it does not open, its size is not the image's, or a label is not a class id.
        """
        if scene.label_map is None:
            raise DataError(f"{scene.image}: has no label map, so it has no target masks")
        labels = read_map(scene.label_map)
        if labels.shape != (size := image_size(scene.image)):
            raise DataError(
                f"{scene.label_map}: size {labels.shape[1]}x{labels.shape[0]} differs from its image's "
                f"{size[1]}x{size[0]} ({scene.image})"
            )
        known = {c.id for c in self.classes} | {IGNORE_INDEX}
        for label in (int(labels.max(initial=0)), int(labels.min(initial=0))):
            if not 0 <= label <= 255:
                raise DataError(f"{scene.label_map}: label {label} is outside of 0..255")
        found = set(np.unique(labels).tolist())
        if unknown := found - known if self.label_lookup is None else found & self.unknown_labels:
            ids = ", ".join(f"{c.id} {c.name}" for c in self.classes)
            right = self.raw_labels or f"known class id ({ids}, 255 ignore)"
            raise DataError(f"{scene.label_map}: label {min(unknown)} is not a {right}")
        return labels.astype(np.uint8) if self.label_lookup is None else self.label_lookup[labels]

    def read_maps(self, scene: Scene) -> tuple[np.ndarray, np.ndarray | None]:
        """Label map as from `read_labels`, and instance map (int32, 0 = none) or None.

        The instance map is H x W, or P x H x W where instances overlap; an instance may lie on one plane only.

        Raises:
            DataError: as `read_labels`; the instance map does not open, is of another size or has negative ids, or an
                instance lies in two classes.
        """
        labels = self.read_labels(scene)
        if scene.instance_map is None:
            return labels, None
        instances = read_map(scene.instance_map)
        height, width = labels.shape
        if instances.shape[1] != width or instances.shape[0] % height or not instances.size:
            raise DataError(
                f"{scene.instance_map}: size {instances.shape[1]}x{instances.shape[0]} differs from its label map's "
                f"{width}x{height}"
            )
        if instances.shape[0] > height:
            instances = instances.reshape(-1, height, width)
        if self.instance_lookup == "cityscapes":
            instances = np.where(instances >= 1000, instances, 0)
        if (lowest := instances.min(initial=0)) < 0:
            raise DataError(f"{scene.instance_map}: instance id {lowest} is negative; 0 for no instance would be right")
        if instances.ndim == 2:
            self._refuse_shared_ids(scene, labels, instances)
        return labels, instances

    def _refuse_shared_ids(self, scene: Scene, labels: np.ndarray, instances: np.ndarray) -> None:
        """Raises:
        DataError: an instance lies in two classes and no fact tells its own. Then ids were counted for each class
            anew, and what has this one is several objects.
        """
        inside = (instances > 0) & (labels != IGNORE_INDEX)
        ids, own = instances[inside], labels[inside]
        one_of_them = np.zeros(ids.max(initial=0) + 1, np.uint8)
        one_of_them[ids] = own
        # most maps end here, after two look-ups for each pixel
        mixed = np.setdiff1d(ids[one_of_them[ids] != own], [i for i, fact in scene.facts.items() if "class" in fact])
        if not len(mixed):
            return
        chosen = np.isin(ids, mixed)
        pixels = np.searchsorted(mixed, ids[chosen]) * 256 + own[chosen]
        counts = np.bincount(pixels, minlength=256 * len(mixed)).reshape(-1, 256)
        shared = np.partition(counts, -2)[:, -2] > MAX_SECOND_CLASS * counts.sum(1)
        if shared.any():
            index = int(shared.argmax())
            second, first = np.argsort(counts[index])[-2:].tolist()
            names = {c.id: c.name for c in self.classes}
            shown = " and of ".join(f"{names.get(k, k)} ({counts[index, k]} pixels)" for k in (first, second))
            raise DataError(
                f"{scene.instance_map}: instance {mixed[index]} is of {shown}; one id for each object, whatever its "
                "class, would be right, or facts that name the class"
            )

    def facts_of(self, scene: Scene, instances: np.ndarray | None) -> dict[int, dict[str, str]]:
        """The scene's facts, with the class of each instance whose id tells it.

        Args:
            instances: as from `read_maps`.
        """
        if instances is None or not self.ids_per_class:
            return scene.facts
        names = {c.id: c.name for c in self.classes}
        told = {i: {"class": names[i // self.ids_per_class]} for i in np.unique(instances[instances > 0]).tolist()}
        return {i: told.get(i, {}) | scene.facts.get(i, {}) for i in (*scene.facts, *told)}


@dataclass(frozen=True)
class Anchor:
    """What a conditional query points at in order to find its target.

    Attributes:
        instance_ids: None = every pixel of the class.
        box: (top, left, bottom, right) in pixels, bottom and right excluded.
    """

    class_name: str
    instance_ids: tuple[int, ...] | None
    box: tuple[int, int, int, int]


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
        claim: what the query says of its target, by name: a relation to the anchors ("left", `relations.py`), a place
            in the picture ("left half", `places.py`) or what the target alone has ("largest", "red", `attribute.py`);
            empty = nothing that masks could decide.
        anchors: of a conditional query; two for "between".
        facts: the measured numbers that make the claim true; under "said" what a language model said of it.
        source: "rules", "people" (the data set's annotators), or the language model that wrote the query.
    """

    image_id: str
    kind: Kind
    class_name: str
    query: str
    answer: str
    instance_ids: tuple[int, ...] | None = None
    rephrasings: tuple[str, ...] = ()
    claim: str = ""
    anchors: tuple[Anchor, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    source: str = "rules"

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Instruction:
        """The inverse of `dataclasses.asdict`, also after JSON, which knows no tuples.

        Raises:
            KeyError, TypeError: these are not the fields of an instruction.
        """
        fields = dict(fields)
        for name in ("instance_ids", "rephrasings", "anchors"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        fields["anchors"] = tuple(
            Anchor(
                anchor["class_name"],
                None if anchor["instance_ids"] is None else tuple(anchor["instance_ids"]),
                tuple(anchor["box"]),
            )
            for anchor in fields.get("anchors", ())
        )
        return cls(**fields)

    def target_mask(self, class_id: int, labels: np.ndarray, instances: np.ndarray | None = None) -> np.ndarray:
        """uint8 (H, W): 1 target, 0 other, 255 unknown.

        Args:
            class_id: of `class_name`.
            labels, instances: as from `SceneSet.read_maps`.
        """
        return region_mask(class_id, self.instance_ids, labels, instances, of=f"{self.image_id}: {self.query!r}")


def by_image(instructions: Iterable[Instruction]) -> dict[str, list[Instruction]]:
    """Those about each image, in their order."""
    about: dict[str, list[Instruction]] = {}
    for instruction in instructions:
        about.setdefault(instruction.image_id, []).append(instruction)
    return about


def region_mask(
    class_id: int,
    instance_ids: tuple[int, ...] | None,
    labels: np.ndarray,
    instances: np.ndarray | None,
    of: str = "a target",
) -> np.ndarray:
    """uint8 (H, W): 1 for the pixels of a class, or of instances where ids are given; 0 other; 255 unknown."""
    if instance_ids is None:
        mask = (labels == class_id).astype(np.uint8)
    elif instances is None:
        raise DataError(f"{of} needs an instance map and there is none")
    else:
        mask = np.isin(instances, instance_ids).reshape(-1, *labels.shape).any(0).astype(np.uint8)
    mask[labels == IGNORE_INDEX] = IGNORE_INDEX
    return mask


def open_image(source: ImageSource | str) -> Image.Image:
    """As `PIL.Image.open`, of any source.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    try:
        return Image.open(source) if isinstance(source, str | Path) else source.open()
    except FileNotFoundError:
        raise DataError(f"{source}: no such file") from None
    except _UNREADABLE as error:
        raise _not_readable(source, error) from None


def read_image(source: ImageSource | str) -> Image.Image:
    """An RGB image from any file Pillow reads; 16-bit greyscale is scaled to 8 bits, EXIF orientation applied.

    Raises:
        DataError: the file is missing, truncated, no image, or of floats or more than 16 bits.
    """
    try:
        with open_image(source) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode == "F":
                raise DataError(f"{source}: pixels are floats of unknown range; 8 or 16 bits would be right")
            if image.mode.startswith("I"):
                # Pillow clips 16-bit values at 255 instead of scaling them
                values = np.asarray(image)
                if not 0 <= values.min() <= values.max() < 2**16:
                    raise DataError(f"{source}: pixels of {values.min()} to {values.max()}; 16 bits would be right")
                image = Image.fromarray((values.astype(np.float32) / 257.0).round().astype(np.uint8))
            return image.convert("RGB")
    except _UNREADABLE as error:
        raise _not_readable(source, error) from None


def read_map(source: ImageSource | str, greys: bool = False) -> np.ndarray:
    """The raw ids of a label or instance map as int32 (H, W); a palette PNG gives its indices, not its colours.

    Args:
        greys: a mask whose zeros alone mean something: a palette of greys gives the greys, which may begin with white,
            and grey PNGs of 2 and 4 bits are read. Pillow scales these, so that nobody knows their ids.

    Raises:
        DataError: the file is missing, truncated, no image, of floats or of 2 or 4 bits, or has more than one channel.
    """
    try:
        with open_image(source) as file:
            if not greys and file.format == "PNG" and any(tile[3] in ("L;2", "L;4") for tile in file.tile):
                raise DataError(f"{source}: a grey PNG of 2 or 4 bits, read as scaled greys; 8 or 16 would be right")
            file.load()
            grey_palette = file.mode == "P" and not np.ptp(np.reshape(file.getpalette(), (-1, 3)), axis=1).any()
            ids = np.asarray(file.convert("L") if greys and grey_palette else file)
    except _UNREADABLE as error:
        raise _not_readable(source, error) from None
    if ids.ndim != 2:
        raise DataError(f"{source}: has {ids.shape[2]} channels; a map of ids has one (greyscale or palette PNG)")
    if ids.dtype.kind == "f":
        raise DataError(f"{source}: ids are floats; whole numbers of 8 or 16 bits would be right")
    return ids.astype(np.int32)


def image_size(source: ImageSource) -> tuple[int, int]:
    """(height, width) as `read_image` will give it; no pixels are decoded, but of some PNGs with EXIF data.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with open_image(source) as file:
            width, height = file.size
            # asked for the EXIF data of a PNG that has none, Pillow decodes all pixels to look behind them
            known = file.format != "PNG" or _png_has_exif(file)
            rotated = known and file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except _UNREADABLE as error:
        raise _not_readable(source, error) from None
    return (width, height) if rotated else (height, width)


def _png_has_exif(file: Image.Image) -> bool:
    """Whether a chunk anywhere in an opened PNG is one that Pillow reads an orientation from."""
    place = file.fp.tell()
    file.fp.seek(8)
    found = False
    while not found and len(head := file.fp.read(8)) == 8:
        start = file.fp.tell()
        found = head[4:] == b"eXIf" or file.fp.read(21).startswith((b"Raw profile type exif", b"XML:com.adobe.xmp"))
        file.fp.seek(start + int.from_bytes(head[:4], "big") + 4)  # the chunk and its checksum
    file.fp.seek(place)
    return found


def _not_readable(source: ImageSource | str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # "Image size (N pixels) exceeds limit of M pixels, could be"
        return DataError(f"{source}: {str(error).partition(',')[0]}; cutting it into tiles would be right")
    return DataError(f"{source}: not a readable image ({error})")
