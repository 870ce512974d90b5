"""Unlabelled images that are asked about parts of classes too, as labelled ones are: instructions from pseudo-labels.

The paper asks about whole classes of an unlabelled image, from a database of queries, so places and relations are
learned from the few labelled ones alone. What the same rules say about a pseudo-label's patches brings them to every
image; a claim is as true as the pseudo-label. What that brings: results/camvid_small.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from datasets_scripts.components import completed_instances
from datasets_scripts.instructions.build import object_instructions
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.records import DataError, Instruction, Kind, Scene, SceneSet, read_image

from .arguments import DataArguments, UnlabelledArguments
from .augmentation import shrink
from .instruction_dataset import AskedScene, AskedScenes
from .unlabelled_dataset import PseudoLabels


class PseudoInstructionDataset(AskedScenes):
    """Items as in `AskedScenes`, with anchors, and what `UnlabelledDataset` adds: {"weights": None, "rephrasings": n
    lists of k - 1 str or None, "number": k}.

    Instructions are made when a scene is read, from its maps as the loss sees them (`max_label_size`), of
    `unlabelled_kinds`, and conditional ones where the labelled images have some. Objects are patches of masses: a
    pseudo-label does not tell one car from the next, so nothing is said of single things that can be counted.
    """

    order_stream, query_stream, view_stream, rephrasing_stream = 3, 4, 6, 7

    def __init__(
        self,
        scene_set: SceneSet,
        scenes: Sequence[Scene],
        arguments: UnlabelledArguments,
        data: DataArguments,
        length: int,
        seed: int,
    ):
        self.pseudo_labels = PseudoLabels(arguments.pseudo_labels, arguments.pseudo_confidence)
        scenes = self.pseudo_labels.of_scenes(scenes)
        data = replace(data, queries_per_image=arguments.unlabelled_queries)
        super().__init__(scene_set.classes, scenes, data, length, seed, anchors=True)
        self.classes, self.unlabelled = scene_set.classes, arguments
        conditional: list[Kind] = ["conditional"] if "conditional" in data.kinds else []
        self.kinds = [*arguments.unlabelled_kinds, *conditional]

    def __getitem__(self, index: int) -> dict:
        item, asked = self.drawn(index)
        rephrasings = None
        if self.unlabelled.consistency == "online":
            rng = np.random.default_rng((self.seed, self.rephrasing_stream, index))
            rephrasings = [self._others(i, query, rng) for i, query in zip(asked, item["queries"], strict=True)]
        return {**item, "weights": None, "rephrasings": rephrasings, "number": index}

    def nothing_to_ask(self) -> DataError:
        return self.pseudo_labels.nothing_to_ask()

    def read_scene(self, index: int) -> AskedScene:
        scene = self.scenes[index]
        image = read_image(scene.image)
        labels = self.pseudo_labels.read(
            scene.image_id, frozenset(self.class_ids.values()), (image.height, image.width)
        )
        labels = shrink(labels, self.arguments.max_label_size)
        instances = completed_instances(self.classes, labels)
        objects = SceneObjects(self.classes, labels, instances)
        instructions = object_instructions(scene.image_id, objects, self.kinds, self.seed)
        return AskedScene(image, labels, instances, instructions)

    def _others(self, instruction: Instruction, query: str, rng: np.random.Generator) -> list[str]:
        """k - 1 queries that mean the same (again from the start where there are fewer)."""
        known = [text for text in (instruction.query, *instruction.rephrasings) if text != query] or [query]
        return list(islice(cycle(rng.permutation(known).tolist()), self.unlabelled.rephrasings))
