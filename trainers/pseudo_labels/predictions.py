"""A folder of pseudo-labels, whoever made them.

DIR/masks/IMAGE_ID.png        class ids, uint8 of the image's size; 255 = no answer
DIR/confidence/IMAGE_ID.png   255 times the probability of that class, uint8 (absent where nobody knows it)
DIR/source.json               what predict.py makes them from; written first
DIR/meta.json                 who made them: method, weights, split, classes, mIoU on val; written last
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_scripts.files import write_image
from datasets_scripts.json_files import read_json
from datasets_scripts.records import IGNORE_INDEX, DataError, Scene, SceneSet, read_map

META, SOURCE = "meta.json", "source.json"


def mask_path(folder: Path, image_id: str) -> Path:
    return folder / "masks" / f"{image_id}.png"


def confidence_path(folder: Path, image_id: str) -> Path:
    return folder / "confidence" / f"{image_id}.png"


def write_prediction(folder: Path, image_id: str, mask: np.ndarray, confidence: np.ndarray | None) -> None:
    """Both uint8 (H, W). The mask comes last, so that an image with a mask is finished."""
    if confidence is not None:
        # of smooth noise a higher level takes seven times as long, and an eighth less room
        write_image(confidence_path(folder, image_id), Image.fromarray(confidence), compress_level=1)
    write_image(mask_path(folder, image_id), Image.fromarray(mask))


def read_prediction(folder: Path, image_id: str, known: Collection[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Mask and confidence, uint8 (H, W).

    Args:
        known: class ids that may occur.

    Raises:
        DataError: a file is missing or no map of ids, holds an unknown class id, or the two differ in size.
    """
    mask, path = read_map(mask_path(folder, image_id)), confidence_path(folder, image_id)
    if unknown := set(np.unique(mask).tolist()) - {*known, IGNORE_INDEX}:
        raise DataError(f"{mask_path(folder, image_id)}: {min(unknown)} is not a class id of the data set")
    confidence = read_map(path) if path.exists() else None
    if confidence is not None and confidence.shape != mask.shape:
        raise DataError(f"{path}: size {confidence.shape[::-1]} differs from its mask's {mask.shape[::-1]}")
    return mask.astype(np.uint8), None if confidence is None else confidence.astype(np.uint8)


def read_meta(folder: Path) -> dict:
    """Raises:
    DataError: the folder has no complete pseudo-labels.
    """
    path = folder / META
    if not path.exists():
        unfinished = (folder / SOURCE).exists()
        hint = "unfinished; run predict.py again" if unfinished else "no pseudo-labels; predict.py writes them"
        raise DataError(f"{folder}: {hint} ({META} is missing)")
    return read_json(path)


def check_classes(classes: Mapping[int, str], scene_set: SceneSet, place: str) -> None:
    """Args:
        classes: name by id, of pseudo-labels or of what makes them.
        place: of the data set.

    Raises:
        DataError: the data set calls one of them something else.
    """
    own = {c.id: c.name for c in scene_set.classes}
    for number, name in classes.items():
        if own.get(number) != name:
            raise DataError(f"{place}: class {number} is {own.get(number)!r}, for the pseudo-labels {name!r}")


class PseudoLabels:
    """Class maps and confidences of a data set's images, from a folder as above.

    Args:
        folder: made by `trainers/pseudo_labels/predict.py` or `import_masks.py`, or by hand, without meta.json.
        min_confidence: in [0, 1]; pixels below it become 255.

    Raises:
        DataError: the folder has no masks, was not predicted to the end, or says in meta.json that an id is another
            class than the data set's.
    """

    def __init__(self, folder: str | Path, scene_set: SceneSet, min_confidence: float = 0.0):
        self.folder, self.min_confidence = Path(folder), min_confidence
        if not (self.folder / "masks").is_dir():
            raise DataError(f"pseudo_labels: {folder or 'not given'} has no masks/; see trainers/pseudo_labels")
        path = self.folder / META
        if path.exists() or (self.folder / SOURCE).exists():
            named = read_meta(self.folder).get("classes")
            try:
                named = {int(number): name for number, name in named.items()}
            except (AttributeError, ValueError):
                raise DataError(f'{path}: classes: {named!r:.60}; {{"0": "road", ...}} would be right') from None
            check_classes(named, scene_set, str(path))
        self.known = frozenset(c.id for c in scene_set.classes)

    def read(self, image_id: str, size: tuple[int, int]) -> np.ndarray:
        """uint8 (H, W).

        Args:
            size: (height, width) of the image.

        Raises:
            DataError: a file is missing or damaged, holds an unknown class id, or is not of its image's size.
        """
        labels, confidence = read_prediction(self.folder, image_id, self.known)
        if labels.shape != size:
            raise DataError(
                f"{mask_path(self.folder, image_id)}: size {labels.shape[1]}x{labels.shape[0]} differs from its "
                f"image's {size[1]}x{size[0]}"
            )
        if self.min_confidence:
            if confidence is None:
                raise DataError(f"{self.folder}: has no confidence of {image_id}; pseudo_confidence 0 needs none")
            labels = np.where(confidence < 255 * self.min_confidence, IGNORE_INDEX, labels)
        return labels.astype(np.uint8)

    def nothing_to_ask(self) -> DataError:
        """What is wrong where no map shows anything that can be asked for."""
        least = self.min_confidence
        where = f" where the confidence is at least pseudo_confidence, {least}; 0 counts all pixels" if least else ""
        return DataError(f"{self.folder}/masks: no map shows any class that is asked for{where}")

    def of_scenes(self, scenes: Sequence[Scene]) -> list[Scene]:
        """Those that have a pseudo-label.

        Raises:
            DataError: none has.
        """
        found = [scene for scene in scenes if mask_path(self.folder, scene.image_id).exists()]
        if not found:
            raise DataError(f"{self.folder}/masks: has a map for none of the {len(scenes)} images")
        return found
