"""What a segmenter is trained on: the scenes of a data set, checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from datasets_scripts.folder import read_folder
from datasets_scripts.records import IGNORE_INDEX, DataError, Scene, SceneSet, SemanticClass, image_size

from .arguments import SegmentationDataArguments
from .augmentation import scaled_size


@dataclass(frozen=True)
class TrainingScenes:
    """Attributes:
    classes: those that the segmenter knows, in the order of its outputs.
    absent: names of classes of the data set that no labelled image shows.
    """

    scene_set: SceneSet
    labelled: tuple[Scene, ...]
    unlabelled: tuple[Scene, ...]
    val: tuple[Scene, ...]
    classes: tuple[SemanticClass, ...]
    absent: tuple[str, ...]


def read_training_scenes(
    arguments: SegmentationDataArguments, unlabelled_needed: bool, progress: bool = True
) -> TrainingScenes:
    """Reads a folder, and every label map and image size of its training scenes once.

    Raises:
        DataError: nothing unlabelled where it is needed, no class or a class (see `absent_classes`) that no labelled
            image shows, an image smaller than the crop (see `small_images`), or a file that cannot be read.
    """
    scene_set = read_folder(arguments.data, arguments.split_lists)
    labelled = scene_set.split("train", labelled=True)
    unlabelled = scene_set.split("train", labelled=False)
    if unlabelled_needed and not unlabelled:
        where = f"{arguments.split_lists}/unlabeled.txt" if arguments.split_lists else arguments.data
        raise DataError(f"{where}: no unlabelled training image; only method supervised can do without")
    if arguments.small_images == "error":
        _check_sizes((*labelled, *(unlabelled if unlabelled_needed else ())), arguments, progress)
    shown: set[int] = set()
    for scene in tqdm(labelled, desc="reading label maps", unit="map", disable=not progress, leave=False):
        shown |= set(np.unique(scene_set.read_labels(scene)).tolist()) - {IGNORE_INDEX}
    if not shown:
        raise DataError(f"{arguments.data}: every pixel of the {len(labelled)} labelled images is ignored (255)")
    absent = tuple(c.name for c in scene_set.classes if c.id not in shown)
    if absent and arguments.absent_classes == "error":
        raise DataError(f"{arguments.data}: none of the {len(labelled)} labelled images shows {', '.join(absent)}")
    keep = arguments.absent_classes == "keep"
    classes = tuple(c for c in scene_set.classes if keep or c.id in shown)
    return TrainingScenes(scene_set, labelled, unlabelled, scene_set.split("val", labelled=True), classes, absent)


def _check_sizes(scenes: Sequence[Scene], arguments: SegmentationDataArguments, progress: bool) -> None:
    scale = "" if arguments.image_scale == 1 else f" (image_scale {arguments.image_scale})"
    for scene in tqdm(scenes, desc="reading image sizes", unit="image", disable=not progress, leave=False):
        height, width = scaled_size(*image_size(scene.image), arguments.image_scale)
        if height < arguments.crop_height or width < arguments.crop_width:
            raise DataError(
                f"{scene.image}: {width}x{height}{scale} is smaller than the crop {arguments.crop_width}x"
                f"{arguments.crop_height}; give smaller crops, or small_images: pad"
            )


def class_index_lookup(classes: Sequence[SemanticClass]) -> np.ndarray:
    """uint8 (256,): class id -> index of the segmenter's output; 255 for ids that it does not know."""
    lookup = np.full(256, IGNORE_INDEX, np.uint8)
    for index, one in enumerate(classes):
        lookup[one.id] = index
    return lookup
