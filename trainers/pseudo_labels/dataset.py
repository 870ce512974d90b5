"""Training items: a labelled crop, an unlabelled one in its views, and what is pasted into these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from datasets_scripts.records import read_image
from trainers.picklable_cache import PicklableCache, gigabytes

from .arguments import SegmentationDataArguments, StrongViewArguments
from .augmentation import pixels, random_crop, scaled, strong_view
from .cutmix import cutmix_box
from .perturbation import draws_dropout
from .scenes import TrainingScenes, class_index_lookup

LABELLED, UNLABELLED, MIX, FEATURES, PAIR = range(5)
"""What a stream of random numbers is for."""


@dataclass(frozen=True)
class Views:
    """What a method asks of the data.

    Attributes:
        unlabelled: a weak and two strong views of an unlabelled crop.
        mix: the same of a second unlabelled crop, from which CutMix boxes are filled.
    """

    unlabelled: bool
    mix: bool


class SemiSupervisedDataset(torch.utils.data.Dataset):
    """`length` items; item k depends on (seed, k) and on nothing else. Read it in order.

    Labelled and unlabelled images each come in passes, every pass in its own order; there are as many of one as of the
    other, so labelled images come round more often.

    Items, all tensors: images uint8 (3, H, W), `labels` (class indices and 255) and `ignore` (255 = padding) uint8
    (H, W), `box1` and `box2` (top, left, bottom, right) of the strong views, `feature_seed` and `dropped` of the
    feature perturbation, `mix_*` of the partner. The first `labelled_alone` items hold the labelled crop alone.
    """

    def __init__(
        self,
        scenes: TrainingScenes,
        views: Views,
        data_arguments: SegmentationDataArguments,
        strong_arguments: StrongViewArguments,
        length: int,
        seed: int,
        labelled_alone: int = 0,
    ):
        self.scenes, self.views, self.length, self.seed = scenes, views, length, seed
        self.labelled_alone = labelled_alone
        self.data_arguments, self.strong_arguments = data_arguments, strong_arguments
        self._index_of = class_index_lookup(scenes.classes)
        self._read = PicklableCache(self._read_scene, data_arguments.scene_cache_gigabytes, gigabytes)
        self._order = PicklableCache(self._shuffled, 6)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        item = self._labelled(index)
        if self.views.unlabelled and index >= self.labelled_alone:
            item |= self._unlabelled(index)
            if self.views.mix:
                item |= self._mix(index)
        return {name: torch.as_tensor(value) for name, value in item.items()}

    def _labelled(self, index: int) -> dict:
        image, labels = self._scene(LABELLED, index)
        image, labels, _ = random_crop(image, labels, self.data_arguments, self._rng(LABELLED, index))
        return {"labelled": pixels(image), "labels": labels}

    def _unlabelled(self, index: int) -> dict:
        rng = self._rng(UNLABELLED, index)
        item = self._views(self._scene(UNLABELLED, index)[0], rng)
        crop = self.data_arguments.crop_height, self.data_arguments.crop_width
        for name in ("box1", "box2"):
            item[name] = np.array(cutmix_box(*crop, self.strong_arguments, rng))
        item["feature_seed"] = self._rng(FEATURES, index).integers(0, 2**31)
        item["dropped"] = draws_dropout(index, int(self._rng(PAIR, index // 2).integers(0, 2)))
        return item

    def _mix(self, index: int) -> dict:
        stream = UNLABELLED if self.strong_arguments.mix_partner == "same_image" else MIX
        image = self._scene(stream, index)[0]
        return {f"mix_{name}": value for name, value in self._views(image, self._rng(MIX, index)).items()}

    def _views(self, image: Image.Image, rng: np.random.Generator) -> dict:
        weak, _, ignore = random_crop(image, None, self.data_arguments, rng)
        scale = self.data_arguments.image_scale
        strong = [strong_view(weak, self.strong_arguments, rng, scale) for _ in range(2)]
        return {"weak": pixels(weak), "strong1": pixels(strong[0]), "strong2": pixels(strong[1]), "ignore": ignore}

    def _scene(self, stream: int, index: int) -> tuple[Image.Image, np.ndarray | None]:
        labelled = stream == LABELLED
        count = len(self.scenes.labelled if labelled else self.scenes.unlabelled)
        epoch, place = divmod(index, count)
        return self._read(labelled, self._order(stream, epoch, count)[place])

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, 1, stream, index))

    def _shuffled(self, stream: int, epoch: int, count: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 0, stream, epoch)).permutation(count)

    def _read_scene(self, labelled: bool, place: int) -> tuple[Image.Image, np.ndarray | None]:
        scene = (self.scenes.labelled if labelled else self.scenes.unlabelled)[place]
        scale, labels = self.data_arguments.image_scale, None
        if labelled:
            labels = self._index_of[self.scenes.scene_set.read_labels(scene)]
            labels = np.asarray(scaled(Image.fromarray(labels), scale, Image.Resampling.NEAREST))
        return scaled(read_image(scene.image), scale), labels


def collate(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Items of `SemiSupervisedDataset` -> a batch of the same names."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
