"""Training items: an image and some instructions about it, drawn by item number alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets_scripts.instructions.mirror import can_be_mirrored, mirrored_instruction, sided_classes
from datasets_scripts.records import (
    DataError,
    Instruction,
    Scene,
    SceneSet,
    SemanticClass,
    by_image,
    read_image,
    region_mask,
)
from modeling_cora import CoraProcessor

from .arguments import DataArguments
from .augmentation import View, jitter, shrink
from .picklable_cache import PicklableCache, gigabytes


class AskedScene(NamedTuple):
    """A scene with its maps no larger than the loss needs them, and what can be asked about it.

    Attributes:
        labels: class ids (H, W), 255 = ignored.
        instances: instance ids (H, W) or (P, H, W), or None.
        variances: of eq. 6, fp32 (h, w) by class id, or None.
    """

    image: Image.Image
    labels: np.ndarray
    instances: np.ndarray | None
    instructions: Sequence[Instruction]
    variances: Mapping[int, np.ndarray] | None = None


class AskedScenes(torch.utils.data.Dataset):
    """Scenes and instructions about them, in random views: `length` items, of which item k depends on (seed, k) alone.

    So the order of the data is the same after a resume, with more workers, and with several processes; passes over the
    scenes follow one another, each in its own order. Read it sequentially. A scene about which nothing can be asked
    gives its turn to the next.

    Items: {"image": PIL RGB, "queries": n str, "answers": n str, "masks": uint8 (n, H, W), "classes": n class ids,
    "whole": n bool, whether all of its class is asked for}, 1 <= n <= `queries_per_image`; with `anchors`, "anchors": n
    lists of bool (H, W) of the image's size, A in all, and "anchor_noise": fp32 (A, 2) in [0, 1).
    """

    order_stream, query_stream, view_stream = 0, 1, 5
    """Of random numbers."""

    def __init__(
        self,
        classes: Sequence[SemanticClass],
        scenes: Sequence[Scene],
        arguments: DataArguments,
        length: int,
        seed: int,
        anchors: bool = False,
    ):
        self.scenes, self.arguments, self.length, self.seed = scenes, arguments, length, seed
        self.anchors = anchors
        self.class_ids = {c.name: c.id for c in classes}
        self.sided = sided_classes(classes)
        self._read = PicklableCache(self.read_scene, arguments.scene_cache_gigabytes, gigabytes)
        self._order = PicklableCache(self._shuffled, 2)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return self.drawn(index)[0]

    def read_scene(self, index: int) -> AskedScene:
        """Scene `index` of `scenes`, from disk."""
        raise NotImplementedError

    def nothing_to_ask(self) -> DataError:
        """What is wrong where no scene at all can be asked about."""
        raise NotImplementedError

    def scene_of(self, index: int) -> AskedScene:
        """The scene whose turn item `index` is."""
        epoch, place = divmod(index, len(self.scenes))
        order = self._order(epoch)
        for turn in range(len(order)):
            scene = self._read(order[(place + turn) % len(order)])
            if scene.instructions:
                return scene
        raise self.nothing_to_ask()

    def drawn(self, index: int) -> tuple[dict, list[Instruction], list[np.ndarray]]:
        """An item, the instructions that it asks, and the variances of their classes, each in its view; [] for none."""
        rng = np.random.default_rng((self.seed, self.query_stream, index))
        image, labels, instances, every, by_class = self.scene_of(index)
        view = View(self.arguments, np.random.default_rng((self.seed, self.view_stream, index)))
        candidates = [i for i in every if self._is_true_in(view, i)]
        if view.crop is not None:
            shown = self._shown(candidates, view.of_map(labels))
            candidates = [i for i in candidates if _target(i) in shown]
        chosen = self._draw(candidates or every, rng)
        classes = [self.class_ids[i.class_name] for i in chosen]
        variances = [] if by_class is None else [by_class[c] for c in classes]
        if candidates:
            if view.flipped:
                chosen = [mirrored_instruction(i, image.width) for i in chosen]
            image, labels = view.of_image(image), view.of_map(labels)
            instances = None if instances is None else view.of_map(instances)
            variances = [view.of_map(variance) for variance in variances]
        image = jitter(image, self.arguments.colour_jitter, rng)
        masks = [i.target_mask(c, labels, instances) for i, c in zip(chosen, classes, strict=True)]
        item = {
            "image": image,
            "queries": [rng.choice([i.query, *i.rephrasings]).item() for i in chosen],
            "answers": [i.answer for i in chosen],
            "masks": np.stack(masks),
            "classes": classes,
            "whole": [i.instance_ids is None for i in chosen],
        }
        if self.anchors:
            item["anchors"] = [anchor_masks(i, self.class_ids, labels, instances, image.size) for i in chosen]
            # of the item, not of the process that happens to train on it
            item["anchor_noise"] = rng.random((sum(map(len, item["anchors"])), 2), dtype=np.float32)
        return item, chosen, variances

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, self.order_stream, epoch)).permutation(len(self.scenes))

    def _is_true_in(self, view: View, instruction: Instruction) -> bool:
        """Sides are swapped with the picture; in a crop another thing may be the largest, or in the right half, and
        nobody knows whether free text ("the largest dog") says such a thing."""
        if view.crop is not None and instruction.source != "rules":
            return False
        classes_alone = view.crop is not None or (view.flipped and self.arguments.flipped_queries == "classes")
        if classes_alone and (instruction.instance_ids is not None or instruction.claim):
            return False
        return not view.flipped or can_be_mirrored(instruction, self.sided)

    def _shown(
        self, instructions: Sequence[Instruction], labels: np.ndarray, instances: np.ndarray | None = None
    ) -> set[tuple]:
        """The targets of which the maps have a pixel: another would be learned as a thing that is not there."""
        targets = {_target(i): i for i in instructions}
        ids = self.class_ids
        return {t for t, i in targets.items() if (i.target_mask(ids[i.class_name], labels, instances) == 1).any()}

    def _draw(self, candidates: Sequence[Instruction], rng: np.random.Generator) -> list[Instruction]:
        """`queries_per_image` of them; a target comes a second time only when every target has come once, since a
        second query for the same mask teaches SAM nothing. A target's kinds take turns, however many queries each has:
        a class has one name and many descriptions."""
        shuffled = [candidates[i] for i in rng.permutation(len(candidates))]
        of_target: dict[tuple, dict[str, list[Instruction]]] = {}
        for instruction in shuffled:
            of_target.setdefault(_target(instruction), {}).setdefault(instruction.kind, []).append(instruction)
        turns: list[tuple[int, Instruction]] = []
        for kinds in of_target.values():
            order = [kinds[kind] for kind in rng.permutation(sorted(kinds)).tolist()]
            mixed = [i for row in zip_longest(*order) for i in row if i is not None]
            turns += enumerate(mixed)
        chosen = sorted(turns, key=lambda turn: turn[0])[: self.arguments.queries_per_image]
        return [instruction for _, instruction in chosen]


def _target(instruction: Instruction) -> tuple:
    return instruction.class_name, instruction.instance_ids


class InstructionDataset(AskedScenes):
    """Labelled scenes and the instructions that there are about them."""

    def __init__(
        self,
        scene_set: SceneSet,
        scenes: Sequence[Scene],
        instructions: Sequence[Instruction],
        arguments: DataArguments,
        length: int,
        seed: int,
        anchors: bool = False,
    ):
        about = by_image(instructions)
        scenes = [scene for scene in scenes if scene.image_id in about]
        super().__init__(scene_set.classes, scenes, arguments, length, seed, anchors)
        self.scene_set, self.by_image = scene_set, about
        if not scenes:
            raise self.nothing_to_ask()

    def nothing_to_ask(self) -> DataError:
        return DataError("no labelled image has an instruction; are all label maps empty or of ignored pixels?")

    def read_scene(self, index: int) -> AskedScene:
        scene, size = self.scenes[index], self.arguments.max_label_size
        labels, instances = self.scene_set.read_maps(scene)
        about = self.by_image[scene.image_id]
        smaller, fewer = shrink(labels, size), None if instances is None else shrink(instances, size)
        if smaller.shape != labels.shape:
            kept = self._shown(about, smaller, fewer)
            # of those that are gone; where the picture shows nothing of what is asked for, nothing is the answer
            lost = self._shown([i for i in about if _target(i) not in kept], labels, instances)
            about = [i for i in about if _target(i) not in lost]
        return AskedScene(read_image(scene.image), smaller, fewer, about)


def anchor_masks(
    instruction: Instruction,
    class_ids: Mapping[str, int],
    labels: np.ndarray,
    instances: np.ndarray | None,
    size: tuple[int, int],
) -> list[np.ndarray]:
    """What a query points at: bool (H, W) for each of its anchors, at an image size (width, height).

    An anchor of which a smaller map shows nothing any more is left out.
    """
    masks = [region_mask(class_ids[a.class_name], a.instance_ids, labels, instances) == 1 for a in instruction.anchors]
    return [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in masks if mask.any()]


class InstructionCollator:
    """Items of `InstructionDataset` -> one branch-packed batch."""

    def __init__(self, processor: CoraProcessor):
        self.processor = processor

    def __call__(self, items: Sequence[dict]) -> dict:
        inputs = self.processor(
            [item["image"] for item in items],
            [item["queries"] for item in items],
            answers=[item["answers"] for item in items],
            mask_labels=[item["masks"] for item in items],
            anchors=[item["anchors"] for item in items] if "anchors" in items[0] else None,
        )
        return {**inputs, **anchor_noise(items)}


def anchor_noise(items: Sequence[dict]) -> dict[str, torch.Tensor]:
    """The model's input `anchor_noise` (A, 2) of a batch; {} for no anchors."""
    found = [item["anchor_noise"] for item in items if len(item.get("anchor_noise", ()))]
    return {"anchor_noise": torch.from_numpy(np.concatenate(found))} if found else {}
