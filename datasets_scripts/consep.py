"""CoNSeP (Graham et al., HoVer-Net, 2019), cut into tiles and stored with PanNuke's channels.

    tiles/<id>.jpg    RGB tiles; <id> is train_<image>_r<row>c<column>, and neighbouring tiles overlap
    fold1.npz         masks (N, H, W, 6) as in PanNuke, ids (N,), types (N,): the tissue

Tiles of one source image overlap, so they form a group and lie on the same side of every split.
"""

from __future__ import annotations

import functools
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .bad_items import refuse
from .pannuke import CHANNELS, CLASSES, NUCLEI_PER_CHANNEL, nuclei_maps
from .planes import stacked
from .records import DataError, Scene, SceneSet

ARRAYS = "fold1.npz"
VAL_EVERY = 4
"""Source images whose number is divisible by this are for validation: 4, 8, ... 24, which are 96 of the 432 tiles.

Numbers and not a drawn lot, so that a part of the data is split as the whole is. Every class that occurs does so on
both sides (epithelial cells are in the images 6, 10 and 20 alone).
"""

_TILE = re.compile(r"(?P<source>.*?(?P<number>\d+))_r\d+c\d+")


@dataclass(frozen=True)
class ArchivedMap:
    """A map of one tile. An archive cannot be memory-mapped: a process reads it once, at the first map it opens."""

    path: Path
    row: int
    part: Literal["label map", "instance map"]

    def __str__(self) -> str:
        return f"{self.path}[masks][{self.row}]"

    def open(self) -> Image.Image:
        maps = _maps(self.path, self.path.stat().st_mtime_ns)
        if self.row >= len(maps):
            raise DataError(f"{self.path}: masks has {len(maps)} rows and ids more; equal numbers would be right")
        labels, instances = maps[self.row]
        return Image.fromarray(labels if self.part == "label map" else stacked(instances))


@functools.lru_cache(maxsize=1)
def _maps(path: Path, changed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both maps of all tiles (85 MB for CoNSeP); the masks themselves, four times as large, are let go."""
    masks = _array(path, "masks")
    if masks.ndim != 4 or masks.shape[3] != CHANNELS or masks.dtype.kind not in "fiu":
        raise DataError(f"{path}: masks is {masks.dtype} {masks.shape}; numbers (N, H, W, {CHANNELS}) would be right")
    return [nuclei_maps(row, f"{path}[masks][{index}]") for index, row in enumerate(masks)]


def _array(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except KeyError:
        raise DataError(f"{path}: has no array {name!r}; masks, ids and types would be right") from None
    # a file that is no archive at all gives an array, which is no context manager
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: {name} is not readable ({error})") from None


def read_consep(root: str | Path) -> SceneSet:
    """Scenes `train_1_r0c0`... with PanNuke's classes; of the archive only the names are read.

    Returns:
        scenes with the source image as group, those of `VAL_EVERY` in the split "val" and all others in "train".

    Raises:
        DataError: a file is missing or damaged, an id is double or not of the form above.
    """
    root = Path(root)
    path = root / ARRAYS
    ids, types = _array(path, "ids").tolist(), _array(path, "types").tolist()
    if len(ids) != len(types):
        raise DataError(f"{path}: {len(ids)} ids and {len(types)} types; equal numbers would be right")
    scenes: dict[str, Scene] = {}
    for row, (image_id, tissue) in enumerate(zip(ids, types, strict=True)):
        tile = _TILE.fullmatch(str(image_id))
        if tile is None:
            refuse(DataError(f"{path}: ids[{row}] is {image_id!r}; train_1_r0c0 would be right"))
            continue
        if image_id in scenes:
            refuse(DataError(f"{path}: id {image_id} stands for two tiles"))
            continue
        image = root / "tiles" / f"{image_id}.jpg"
        if not image.exists():
            refuse(DataError(f"{image}: no such file; {path} has its masks"))
            continue
        scenes[image_id] = Scene(
            image_id,
            image,
            label_map=ArchivedMap(path, row, "label map"),
            instance_map=ArchivedMap(path, row, "instance map"),
            split="train" if int(tile["number"]) % VAL_EVERY else "val",
            facts={0: {"tissue": str(tissue)}},
            group=tile["source"],
        )
    if not scenes:
        raise DataError(f"{path}: ids is empty")
    return SceneSet(CLASSES, tuple(scenes.values()), ids_per_class=NUCLEI_PER_CHANNEL)
