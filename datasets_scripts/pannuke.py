"""PanNuke: nuclei of 19 tissues (Gamper et al., arXiv 2003.10778), in its own arrays.

    Fold k/images/foldk/images.npy   (N, H, W, 3)   0..255; float64 as downloaded, any integer or float dtype here
    Fold k/masks/foldk/masks.npy     (N, H, W, 6)   a channel per class: ids of nuclei, 0 = none; 5 is background
    Fold k/images/foldk/types.npy    (N,)           texts: the tissue of each image; may be missing

or `foldk/` with all three. A fold is 4 GB, so the arrays are memory-mapped: a scene knows its row, and each process
maps the files for itself when it opens one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .planes import allotted, stacked
from .records import DataError, Scene, SceneSet, SemanticClass, Split

# Noun phrases that are true of one of the classes alone and share no word with its name.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "neoplastic cell": (
        "the nuclei of the tumour",
        "the nuclei that multiply without control",
        "the enlarged, crowded nuclei of irregular shape and uneven chromatin",
        "what makes a pathologist report a cancer",
        "the abnormal nuclei of an uncontrolled growth",
        "the pleomorphic nuclei that invade their surroundings",
    ),
    "inflammatory cell": (
        "the nuclei of the immune system",
        "the small, round, dark nuclei of lymphocytes and their kin",
        "the leukocytes that have moved out of the blood",
        "the lymphocytes, plasma and other defenders of the body",
        "what gathers where the body reacts to an injury or infection",
        "the white blood corpuscles between the other nuclei",
    ),
    "connective tissue cell": (
        "the spindle-shaped nuclei of the stroma",
        "the nuclei of fibroblasts, muscle and vessel walls",
        "the long thin nuclei that lie along the fibres",
        "the elongated nuclei of the supporting framework",
        "the nuclei that hold the organ together between its glands",
        "the fibroblasts and their spindle-shaped neighbours",
    ),
    "dead cell": (
        "the nuclei that are no longer alive",
        "the shrunken nuclei of apoptosis or necrosis",
        "the broken remains of nuclei",
        "the necrotic debris",
        "the condensed fragments of nuclei that have perished",
        "what remains of nuclei after apoptosis",
    ),
    "epithelial cell": (
        "the healthy nuclei that line glands and ducts",
        "the regular nuclei of a normal lining",
        "the orderly row of benign nuclei along a gland's wall",
        "the benign nuclei that cover an inner or outer surface",
        "the nuclei of normal glands and crypts",
        "the evenly spaced nuclei of a healthy mucous surface",
    ),
}

_NOUNS = {
    "neoplastic cell": "tumour nucleus",
    "inflammatory cell": "immune nucleus",
    "connective tissue cell": "stromal nucleus",
    "dead cell": "perished nucleus",
    "epithelial cell": "nucleus of a healthy lining",
}

CLASSES = (
    *(SemanticClass(index, name, phrases, _NOUNS[name]) for index, (name, phrases) in enumerate(_ATTRIBUTES.items())),
    SemanticClass(len(_ATTRIBUTES), "background", asked=False),
)
"""A class's id is its channel."""

BACKGROUND = CLASSES[-1].id
CHANNELS = len(CLASSES)
NUCLEI_PER_CHANNEL = 10_000
"""Instance id = channel * this + id of the nucleus in its channel: 49,999 at most, which 16 bits hold. A nucleus keeps
its class by it where others lie on it (`SceneSet.ids_per_class`)."""

FOLDS = (1, 2, 3)
VAL_FOLD = 2
Part = Literal["image", "label map", "instance map"]


@dataclass(frozen=True)
class ArrayRow:
    """The image of one row of `images.npy`, or a map of one row of `masks.npy` (see `nuclei_maps`)."""

    path: Path
    row: int
    part: Part

    def __str__(self) -> str:
        return f"{self.path}[{self.row}]"

    def open(self) -> Image.Image:
        row = np.asarray(open_array(self.path)[self.row])
        if self.part == "image":
            return Image.fromarray(_pixels(row))
        labels, instances = nuclei_maps(row, str(self))
        return Image.fromarray(labels if self.part == "label map" else stacked(instances))


def open_array(path: Path) -> np.ndarray:
    """A memory-mapped `.npy`, one mapping for each process and version of the file.

    Raises:
        DataError: missing, truncated, no `.npy`, or Python objects (which are a pickle, and never loaded).
    """
    try:
        state = path.stat()
        return _mapped(path, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy array ({error})") from None


@functools.lru_cache(maxsize=16)
def _mapped(path: Path, changed: int, size: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _pixels(row: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of an image of any dtype.

    Raises:
        ValueError: values outside of 0..255, or fractions of 1.
    """
    low, high = float(row.min(initial=0)), float(row.max(initial=0))
    if not (low >= 0 and high <= 255):
        raise ValueError(f"pixel values {low:g}..{high:g}; 0..255 would be right")
    if 0 < high <= 1 and row.dtype.kind == "f":
        raise ValueError(f"pixel values {low:g}..{high:g} are fractions; 0..255 would be right")
    return np.rint(row).astype(np.uint8)


def nuclei_maps(masks: np.ndarray, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Label map uint8 (H, W) and instance map uint16 (P, H, W) of one image.

    A pixel in no nucleus is background, whatever channel 5 says. Where channels overlap, the later one gives the label,
    as in `binarize` of the authors' own metrics (PanNuke-metrics, `utils.py`), while both nuclei keep all their pixels
    in the instance map, on planes of their own: P is 1 where nothing overlaps.

    Args:
        masks: (H, W, 6) of any number type.
        place: what errors name.

    Raises:
        DataError: an id is negative, no whole number, or not below `NUCLEI_PER_CHANNEL`.
    """
    nuclei = np.moveaxis(masks[..., :BACKGROUND], -1, 0)
    with np.errstate(invalid="ignore"):  # what is no number is told below
        ids = np.ascontiguousarray(nuclei, np.int32)
    if not (nuclei.min(initial=0) >= 0 and nuclei.max(initial=0) < NUCLEI_PER_CHANNEL) or (ids != nuclei).any():
        wrong = nuclei[(ids != nuclei) | (ids < 0) | (ids >= NUCLEI_PER_CHANNEL)][0]
        raise DataError(
            f"{place}: id {wrong} of a nucleus; whole numbers of 0..{NUCLEI_PER_CHANNEL - 1} would be right"
        )
    labels = np.full(ids.shape[1:], BACKGROUND, np.uint8)
    for channel, own in enumerate(ids):
        labels[own > 0] = channel
    maps = (np.where(own > 0, own + channel * NUCLEI_PER_CHANNEL, 0) for channel, own in enumerate(ids))
    return labels, allotted(maps, *labels.shape)


def read_pannuke(root: str | Path) -> SceneSet:
    """Scenes `fold1_000000`... of the folds that are there; only the arrays' headers are read.

    As in the CORA paper, folds 1 and 3 are for training and fold 2 for validation; a fold that is alone is for
    training. Which images come from one slide is not published, so no scene has a group. A tissue, where `types.npy`
    tells it, is `scene.facts[0]["tissue"]`.

    Args:
        root: holds `Fold 1` or `fold1`, and so on.

    Raises:
        DataError: no fold, a file is missing or damaged, or arrays of one fold do not fit each other.
    """
    root = Path(root)
    folds = {fold: files for fold in FOLDS if (files := fold_files(root, fold)) is not None}
    if not folds:
        raise DataError(f"{root}: has no 'Fold 1/images/fold1/images.npy' and no 'fold1/images.npy'")
    scenes: list[Scene] = []
    for fold, files in folds.items():
        split: Split = "val" if fold == VAL_FOLD and len(folds) > 1 else "train"
        scenes += _scenes_of_fold(fold, files, split)
    return SceneSet(CLASSES, tuple(scenes), ids_per_class=NUCLEI_PER_CHANNEL)


@dataclass(frozen=True)
class FoldFiles:
    images: Path
    masks: Path
    types: Path


def fold_files(root: Path, fold: int) -> FoldFiles | None:
    """Where the arrays of a fold lie, in either layout; None if the fold has no folder."""
    name = f"fold{fold}"
    if (long := root / f"Fold {fold}").is_dir():
        images = long / "images" / name
        return FoldFiles(images / "images.npy", long / "masks" / name / "masks.npy", images / "types.npy")
    if (short := root / name).is_dir():
        return FoldFiles(short / "images.npy", short / "masks.npy", short / "types.npy")
    return None


def _scenes_of_fold(fold: int, files: FoldFiles, split: Split) -> list[Scene]:
    images, masks = _checked(files.images, 3), _checked(files.masks, CHANNELS)
    if images.shape[:3] != masks.shape[:3]:
        raise DataError(
            f"{files.masks}: {_size(masks)} do not fit the {_size(images)} of {files.images}; equal ones would be right"
        )
    tissues = _tissues(files.types, len(images))
    return [
        Scene(
            image_id=f"fold{fold}_{row:06d}",
            image=ArrayRow(files.images, row, "image"),
            label_map=ArrayRow(files.masks, row, "label map"),
            instance_map=ArrayRow(files.masks, row, "instance map"),
            split=split,
            facts={0: {"tissue": tissues[row]}} if tissues else {},
        )
        for row in range(len(images))
    ]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} arrays of {array.shape[2]}x{array.shape[1]}"


def _checked(path: Path, channels: int) -> np.ndarray:
    array = open_array(path)
    if array.ndim != 4 or array.shape[3] != channels:
        raise DataError(f"{path}: shape {array.shape}; (N, height, width, {channels}) would be right")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: dtype {array.dtype}; float64 or a whole-number type would be right")
    return array


def _tissues(path: Path, count: int) -> list[str]:
    """One tissue for each image, or none where there is no file."""
    if not path.exists():
        return []
    types = open_array(path)
    if types.dtype.kind != "U" or types.shape != (count,):
        raise DataError(f"{path}: {types.dtype} of shape {types.shape}; {count} texts or no file would be right")
    return types.tolist()
