"""Unlabelled images with what stands in for their truth: pseudo-labels, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets_scripts.instructions.build import class_queries, shown_classes
from datasets_scripts.instructions.mirror import sided_classes
from datasets_scripts.instructions.semantic import ANSWERS
from datasets_scripts.records import IGNORE_INDEX, DataError, Scene, SceneSet, read_image
from modeling_cora import CoraProcessor
from modeling_cora.consistency import consistency_weight

from .arguments import DataArguments, UnlabelledArguments
from .augmentation import View, at_size, jitter, shrink
from .consistency_maps import ConsistencyMaps
from .instruction_dataset import anchor_noise
from .pseudo_labels.predictions import mask_path, read_prediction
from .scene_turns import SceneTurns


class PseudoLabels:
    """Class maps and confidences of unlabelled images, a folder as in `pseudo_labels/predictions.py`.

    Args:
        folder: made by `trainers/pseudo_labels/predict.py` or `import_masks.py`.
        min_confidence: in [0, 1]; pixels below it become 255.
    """

    def __init__(self, folder: str | Path, min_confidence: float = 0.0):
        self.folder, self.min_confidence = Path(folder), min_confidence
        if not (self.folder / "masks").is_dir():
            raise DataError(f"pseudo_labels: {folder or 'not given'} has no masks/; see trainers/pseudo_labels")

    def exists(self, image_id: str) -> bool:
        return mask_path(self.folder, image_id).exists()

    def read(self, image_id: str, known: frozenset[int], size: tuple[int, int]) -> np.ndarray:
        """uint8 (H, W).

        Args:
            known: class ids that may occur.
            size: (height, width) of the image.

        Raises:
            DataError: a file is missing or damaged, holds an unknown class id, or is not of its image's size.
        """
        labels, confidence = read_prediction(self.folder, image_id, known)
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
        found = [scene for scene in scenes if self.exists(scene.image_id)]
        if not found:
            raise DataError(f"{self.folder}/masks: has a map for none of the {len(scenes)} unlabelled images")
        return found


class UnlabelledDataset(SceneTurns):
    """Unlabelled scenes that are asked about whole classes of their pseudo-labels, in random views.

    Items: {"image": PIL RGB, "queries": n str, "answers": n str, "masks": uint8 (n, H, W) from the pseudo-label,
    "weights": fp32 (n, H, W) lambda or None, "classes": n class ids, "rephrasings": n lists of k - 1 str or None,
    "number": k}, n >= 1.
    """

    order_stream, item_stream = 3, 4

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
        super().__init__(self.pseudo_labels.of_scenes(scenes), data.cache_scenes, length, seed)
        self.consistency = ConsistencyMaps(arguments.consistency_weights) if arguments.consistency == "ahead" else None
        self.scene_set, self.arguments, self.data = scene_set, arguments, data
        self.known = frozenset(c.id for c in scene_set.classes)
        self.by_id = {c.id: c for c in scene_set.classes}
        self.sided = sided_classes(scene_set.classes)

    def nothing_to_ask(self) -> DataError:
        return self.pseudo_labels.nothing_to_ask()

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng((self.seed, self.item_stream, index))
        image, labels, variances, shown = self.scene_of(index)
        classes = [shown[i] for i in rng.permutation(len(shown))[: self.arguments.unlabelled_queries]]
        maps = [labels] if variances is None else [labels, *(variances[c] for c in classes)]
        view = View(self.data, rng)
        view.flipped = view.flipped and self.sided.isdisjoint(self.by_id[c].name for c in classes)
        image, (labels, *own) = view.apply(image, maps)
        image = jitter(image, self.data.colour_jitter, rng)
        asked = [self._ask(c, rng) for c in classes]
        masks = [np.where(labels == IGNORE_INDEX, IGNORE_INDEX, labels == c).astype(np.uint8) for c in classes]
        weights = None
        if variances is not None:
            weights = np.stack([self._weight(v, labels.shape) for v in own])
        return {
            "image": image,
            "queries": [query for query, _ in asked],
            "answers": [ANSWERS[int(rng.integers(len(ANSWERS)))] for _ in classes],
            "masks": np.stack(masks),
            "weights": weights,
            "classes": classes,
            "rephrasings": [others for _, others in asked] if self.arguments.consistency == "online" else None,
            "number": index,
        }

    def _ask(self, class_id: int, rng: np.random.Generator) -> tuple[str, list[str]]:
        """A query for the class, and k - 1 others that mean the same (again from the start where there are fewer)."""
        queries = self._queries(class_id)
        order = [queries[i] for i in rng.permutation(len(queries))]
        others = order[1:] or order
        return order[0], list(islice(cycle(others), self.arguments.rephrasings))

    def _queries(self, class_id: int) -> tuple[str, ...]:
        kinds = self.arguments.unlabelled_kinds
        return tuple(q for kind in kinds for q in class_queries(self.by_id[class_id], kind))

    def _weight(self, variance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """lambda at the label map's size."""
        resized = torch.from_numpy(at_size(variance, shape))
        return consistency_weight(resized, self.arguments.weight_kind, self.arguments.weight_temperature).numpy()

    def read_scene(self, index: int) -> tuple[Image.Image, np.ndarray, dict[int, np.ndarray] | None, list[int]]:
        """Image, pseudo-label, variances by class, and the classes that can be asked for."""
        scene = self.scenes[index]
        image = read_image(scene.image)
        labels = self.pseudo_labels.read(scene.image_id, self.known, (image.height, image.width))
        variances = self.consistency.read(scene.image_id) if self.consistency else None
        labels = shrink(labels, self.data.max_label_size)
        shown = [c.id for c in shown_classes(self.scene_set.classes, labels) if self._queries(c.id)]
        return image, labels, variances, [c for c in shown if variances is None or c in variances]


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
    "classes": (N,) of all masks; "labelled": number of labelled images; "weights": a tensor for each unlabelled image,
    or None; "rephrasings": `query_inputs` of the unlabelled images with all their rephrasings, or None; "numbers":
    (item, place) of each unlabelled mask}.
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
            "labelled": len(labelled),
            "weights": weights,
            "rephrasings": rephrasings,
            "numbers": [(item["number"], place) for item in others for place in range(len(item["classes"]))],
        }
