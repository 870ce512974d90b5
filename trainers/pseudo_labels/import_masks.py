"""Takes over masks that the original UniMatch or SemiVL wrote, as pseudo-labels.

    python trainers/pseudo_labels/import_masks.py --masks DIR --data CITYSCAPES --split_lists splits/cityscapes/1_30 \
        --out runs/unimatch_original --method unimatch

Masks are found anywhere under `--masks` by the image's name, with any of the endings that Cityscapes and these codes
use: `CITY_SEQ_FRAME{,_leftImg8bit,_gtFine_labelTrainIds,_gtFine_labelIds,_pred}.png`. (A module called `import` could
not be imported: the word belongs to Python.)

Everything is read and checked before anything is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: the packages lie two folders up, and `import clip` would find this folder's file, not the library
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import write_json
from datasets_scripts.folder import read_folder
from datasets_scripts.records import IGNORE_INDEX, DataError, Scene, SceneSet, image_size, read_map
from trainers.argument_checks import check_types
from trainers.pseudo_labels.predictions import META, SOURCE, write_prediction
from trainers.recipe_parser import parse_recipe

ENDINGS = ("_leftImg8bit", "_gtFine_labelTrainIds", "_gtFine_labelIds", "_pred")


@dataclass
class ImportArguments:
    masks: str = field(default="", metadata={"help": "Folder with the masks, PNG, in any sub-folders."})
    confidence: str | None = field(
        default=None, metadata={"help": "Folder with confidences of the same names, uint8 PNG: 255 x probability."}
    )
    data: str = field(default="", metadata={"help": "The data set; see datasets_scripts/folder.py."})
    split_lists: str | None = field(default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt."})
    values: Literal["class_ids", "raw"] = field(
        default="class_ids",
        metadata={
            "help": "class_ids (Cityscapes: train ids, as UniMatch and SemiVL predict) | raw (as in the data set's own "
            "label maps; Cityscapes: label ids)."
        },
    )
    method: str = field(default="imported", metadata={"help": "What to call them in meta.json."})
    out: str = field(default="", metadata={"help": "Folder for the pseudo-labels; new."})

    def __post_init__(self):
        check_types(self)


def image_id_of_mask(path: Path) -> str:
    """`aachen_000000_000019_gtFine_labelTrainIds.png` -> `aachen_000000_000019`."""
    for ending in ENDINGS:
        if path.stem.endswith(ending):
            return path.stem.removesuffix(ending)
    return path.stem


def find_maps(folder: str, option: str) -> dict[str, Path]:
    """Image id -> file.

    Raises:
        DataError: no PNG there, or two for one image.
    """
    if not folder or not Path(folder).is_dir():
        raise UsageError(f"--{option} {folder or 'not given'}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() == ".png"):
        image_id = image_id_of_mask(path)
        if image_id in found:
            raise DataError(f"{path}: {found[image_id]} is for the same image {image_id}")
        found[image_id] = path
    if not found:
        raise DataError(f"{folder}: no PNG in it")
    return found


def read_mask(path: Path, scene: Scene, scene_set: SceneSet, values: str) -> np.ndarray:
    """Class ids and 255, uint8 of the image's size.

    Raises:
        DataError: another size, or a value that is no class.
    """
    mask = read_map(path)
    _check_size(path, mask, scene)
    known = {c.id for c in scene_set.classes} | {IGNORE_INDEX}
    if values == "raw" and scene_set.label_lookup is not None and mask.max(initial=0) <= 255:
        mask = scene_set.label_lookup[mask]
    unknown = sorted(set(np.unique(mask).tolist()) - known)
    if unknown:
        raise DataError(
            f"{path}: value {unknown[0]} is not a class id (0..{max(known - {IGNORE_INDEX})}, 255); --values raw reads "
            "the data set's own label ids"
        )
    return mask.astype(np.uint8)


def _check_size(path: Path, values: np.ndarray, scene: Scene) -> None:
    height, width = image_size(scene.image)
    if values.shape != (height, width):
        raise DataError(f"{path}: size {values.shape[1]}x{values.shape[0]} differs from its image's {width}x{height}")


def run_import(arguments: ImportArguments) -> dict:
    """Checks and copies; returns what `meta.json` says."""
    if not arguments.out:
        raise UsageError("--out: not given; a folder for the pseudo-labels")
    out = Path(arguments.out)
    if (out / META).exists() or (out / SOURCE).exists():
        raise UsageError(f"--out {out}: holds pseudo-labels already")
    masks = find_maps(arguments.masks, "masks")
    confidences = find_maps(arguments.confidence, "confidence") if arguments.confidence else None
    scene_set = read_folder(arguments.data, arguments.split_lists)
    scenes = scene_set.split("train", labelled=False)
    for folder, kind, found in (
        (arguments.masks, "mask", masks), (arguments.confidence, "confidence", confidences),
    ):  # fmt: skip
        missing = [] if found is None else [s.image_id for s in scenes if s.image_id not in found]
        if missing:
            raise DataError(f"{folder}: no {kind} for {len(missing)} of {len(scenes)} images ({missing[0]})")
    if not scenes:
        raise DataError(f"{arguments.split_lists or arguments.data}: no unlabelled training image")

    def prediction_of(scene: Scene) -> tuple[np.ndarray, np.ndarray | None]:
        mask = read_mask(masks[scene.image_id], scene, scene_set, arguments.values)
        if confidences is None:
            return mask, None
        path = confidences[scene.image_id]
        confidence = read_map(path)
        _check_size(path, confidence, scene)
        if confidence.max(initial=0) > 255:
            raise DataError(f"{path}: value {confidence.max()} is above 255")
        return mask, confidence.astype(np.uint8)

    for scene in tqdm(scenes, desc="checking", unit="image"):
        prediction_of(scene)
    for scene in tqdm(scenes, desc="writing", unit="image"):
        write_prediction(out, scene.image_id, *prediction_of(scene))
    meta = {
        "identity": {"masks": arguments.masks, "data": arguments.data, "split_lists": arguments.split_lists},
        "method": arguments.method,
        "classes": {str(c.id): c.name for c in scene_set.classes},
        "val_miou": None,
        "images": len(scenes),
        "confidence": None if confidences is None else "uint8, 255 times the probability of the class",
    }
    write_json(out / META, meta)
    return meta


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_recipe((ImportArguments,), argv)
    meta = run_import(arguments)
    print(f"{meta['images']} images in {arguments.out}")


if __name__ == "__main__":
    main()
