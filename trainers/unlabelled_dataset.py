"""Unlabelled images with what stands in for their truth: pseudo-labels, and how far to trust them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import torch

from datasets_scripts.components import completed_instances
from datasets_scripts.instructions.build import class_queries, object_instructions, shown_classes
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.instructions.semantic import ANSWERS
from datasets_scripts.records import DataError, Instruction, Kind, Scene, SceneSet, read_image
from modeling_cora import CoraProcessor
from modeling_cora.consistency import consistency_weight

from .arguments import DataArguments, UnlabelledArguments
from .augmentation import at_size, shrink
from .consistency_maps import ConsistencyMaps
from .instruction_dataset import AskedScene, AskedScenes, anchor_noise
from .pseudo_labels.predictions import PseudoLabels


class UnlabelledDataset(AskedScenes):
    """Unlabelled scenes and instructions about their pseudo-labels, made when a scene is read, from its map as the loss
    sees it (`max_label_size`).

    The paper asks for whole classes, from a database of queries: here, all of `unlabelled_kinds`. With
    `unlabelled_parts` the same rules as for labelled images bring places to every image, and relations with their
    anchors where the labelled images have some (results/camvid_small.md); a claim is as true as the pseudo-label.
    Objects are then patches of masses: a pseudo-label does not tell one car from the next, so nothing is said of single
    things that can be counted.

    Items: as of `AskedScenes`, with anchors where parts are asked for, and {"weights": fp32 (n, H, W) lambda or None,
    "rephrasings": n lists of k - 1 str or None, "number": k}.
    """

    # other numbers than those of the labelled images
    order_stream, query_stream, view_stream, rephrasing_stream = 3, 4, 6, 7

    def __init__(
        self,
        scene_set: SceneSet,
        scenes: Sequence[Scene],
        options: UnlabelledArguments,
        data: DataArguments,
        length: int,
        seed: int,
    ):
        self.pseudo_labels = PseudoLabels(options.pseudo_labels, scene_set, options.pseudo_confidence)
        scenes = self.pseudo_labels.of_scenes(scenes)
        self.consistency = ConsistencyMaps(options.consistency_weights) if options.consistency == "ahead" else None
        if self.consistency is not None:
            self.consistency.require(scene.image_id for scene in scenes)  # now, and not when its turn comes
        data = replace(data, queries_per_image=options.unlabelled_queries)
        super().__init__(scene_set.classes, scenes, data, length, seed, anchors=options.unlabelled_parts)
        self.classes, self.options = scene_set.classes, options

    def nothing_to_ask(self) -> DataError:
        return self.pseudo_labels.nothing_to_ask()

    def __getitem__(self, index: int) -> dict:
        item, asked, variances = self.drawn(index)
        weights = rephrasings = None
        if self.consistency is not None:
            weights = np.stack([self._weight(variance, item["masks"].shape[1:]) for variance in variances])
        if self.options.consistency == "online":
            rng = np.random.default_rng((self.seed, self.rephrasing_stream, index))
            rephrasings = [self._others(i, query, rng) for i, query in zip(asked, item["queries"], strict=True)]
        return {**item, "weights": weights, "rephrasings": rephrasings, "number": index}

    def read_scene(self, index: int) -> AskedScene:
        scene = self.scenes[index]
        image = read_image(scene.image)
        labels = self.pseudo_labels.read(scene.image_id, (image.height, image.width))
        labels = shrink(labels, self.arguments.max_label_size)
        if not self.options.unlabelled_parts:
            variances = None if self.consistency is None else self.consistency.read(scene.image_id)
            return AskedScene(image, labels, None, self._of_classes(scene.image_id, labels, variances), variances)
        kinds: list[Kind] = [*self.options.unlabelled_kinds]
        if "conditional" in self.arguments.kinds:
            kinds.append("conditional")
        instances = completed_instances(self.classes, labels)
        objects = SceneObjects(self.classes, labels, instances)
        return AskedScene(image, labels, instances, object_instructions(scene.image_id, objects, kinds, self.seed))

    def _of_classes(
        self, image_id: str, labels: np.ndarray, variances: Mapping[int, np.ndarray] | None
    ) -> list[Instruction]:
        """One for each class that is shown and, where there are variances, has one. All of its queries, of whatever
        kind, mean the same."""
        made = []
        for c in shown_classes(self.classes, labels):
            queries = class_queries(c, *self.options.unlabelled_kinds)
            if queries and (variances is None or c.id in variances):
                # fixed, as that of an instruction about a labelled image is
                answer = ANSWERS[zlib.crc32(f"{image_id}/{c.name}".encode()) % len(ANSWERS)]
                made.append(Instruction(image_id, "semantic", c.name, queries[0], answer, rephrasings=queries[1:]))
        return made

    def _others(self, instruction: Instruction, query: str, rng: np.random.Generator) -> list[str]:
        """k - 1 queries that mean the same (again from the start where there are fewer)."""
        known = [text for text in (instruction.query, *instruction.rephrasings) if text != query] or [query]
        return list(islice(cycle(rng.permutation(known).tolist()), self.options.rephrasings))

    def _weight(self, variance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """lambda at the masks' size."""
        resized = torch.from_numpy(at_size(variance, shape))
        return consistency_weight(resized, self.options.weight_kind, self.options.weight_temperature).numpy()


class PairedDataset(torch.utils.data.Dataset):
    """Item k: a labelled item k and `ratio` unlabelled ones; none where there is no unlabelled data set."""

    def __init__(self, labelled: torch.utils.data.Dataset, unlabelled: UnlabelledDataset | None, ratio: int):
        self.labelled, self.unlabelled, self.ratio = labelled, unlabelled, ratio

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> dict:
        numbers = range(index * self.ratio, (index + 1) * self.ratio) if self.unlabelled is not None else ()
        return {"labelled": self.labelled[index], "unlabelled": [self.unlabelled[number] for number in numbers]}


class PairedCollator:
    """Items of `PairedDataset` -> one packed batch, the labelled images first.

    One batch and not two, since with several processes a model may run forward only once for each backward.

    Batches: {"inputs": of all images, `labels` only where they are labelled; "masks": a tensor for each image;
    "classes", "whole": (N,) of all masks; "labelled": number of labelled images; "weights": a tensor for each
    unlabelled image, or None; "rephrasings": `query_inputs` of the unlabelled images with all their rephrasings, or
    None; "numbers": (item, place) of each unlabelled mask}.
    """

    def __init__(self, processor: CoraProcessor):
        self.processor = processor

    def __call__(self, items: Sequence[dict]) -> dict:
        labelled = [item["labelled"] for item in items]
        others = [other for item in items for other in item["unlabelled"]]
        every = [*labelled, *others]
        images = [item["image"] for item in every]
        anchors = [item.get("anchors") or [[] for _ in item["queries"]] for item in every]
        inputs = self.processor.image_inputs(images)
        texts = inputs.pop("image_texts")
        inputs |= self.processor.query_inputs(
            [item["queries"] for item in every],
            texts,
            [item["answers"] for item in every],
            anchor_counts=[[len(masks) for masks in of_image] for of_image in anchors],
        )
        inputs |= self.processor.anchor_inputs(images, anchors) | anchor_noise(every)
        inputs["labels"][len(labelled) :] = -100
        weights = rephrasings = None
        if others and others[0]["weights"] is not None:
            weights = [torch.from_numpy(np.ascontiguousarray(item["weights"])) for item in others]
        if others and others[0]["rephrasings"] is not None:
            asked = [[text for group in item["rephrasings"] for text in group] for item in others]
            # every rephrasing of a query points at what the query points at
            pointed = [
                [of_query for of_query, group in zip(of_image, item["rephrasings"], strict=True) for _ in group]
                for of_image, item in zip(anchors[len(labelled) :], others, strict=True)
            ]
            rephrasings = self.processor.query_inputs(
                asked,
                texts[len(labelled) :],
                anchor_counts=[[len(masks) for masks in of_image] for of_image in pointed],
            )
            rephrasings |= self.processor.anchor_inputs(images[len(labelled) :], pointed)
            del rephrasings["labels"]
        return {
            "inputs": inputs,
            "masks": [torch.from_numpy(np.ascontiguousarray(item["masks"])) for item in every],
            "classes": torch.tensor([c for item in every for c in item["classes"]]),
            "whole": torch.tensor([whole for item in every for whole in item["whole"]]),
            "labelled": len(labelled),
            "weights": weights,
            "rephrasings": rephrasings,
            "numbers": [(item["number"], place) for item in others for place in range(len(item["classes"]))],
        }
