"""The variances of eq. 6, computed once by a frozen model (that of stage 2), so that a step of stage 3 costs one query.

    python trainers/consistency_weights.py --model runs/stage2 --data DIR --pseudo_labels DIR --out DIR
    accelerate launch trainers/consistency_weights.py ...

For every unlabelled image and every class that its pseudo-label shows, K - 1 = 6 equivalent queries are asked, all
classes of an image in one packed pass. Writes OUT/ID.safetensors (see `ConsistencyMaps`) and OUT/meta.json. Images that
are done are kept: interrupt it and run it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from datasets_scripts.build import images_digest
from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import claim_folder, write_bytes
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.build import class_queries, shown_classes
from datasets_scripts.records import Scene, SceneSet, SemanticClass, image_size, read_image
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.consistency import mask_variance
from modeling_cora.segmentation import query_logits
from trainers.argument_checks import check_kinds, check_least
from trainers.arguments import CLASS_KINDS, EmbeddingCacheArguments
from trainers.consistency_maps import packed_variances
from trainers.embedding_cache import add_embedding_cache, weights_hash
from trainers.file_hashes import FileHashes
from trainers.loading import inference_accelerator, load_trained
from trainers.pseudo_labels.predictions import PseudoLabels
from trainers.recipe_parser import parse_recipe


@dataclass
class ConsistencyArguments:
    model: str = field(default="", metadata={"help": "Folder or Hub id of the model of stage 2."})
    data: str = field(default="", metadata={"help": "Folder with the data, as for training."})
    split_lists: str | None = field(default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt."})
    pseudo_labels: str = field(default="", metadata={"help": "Folder of class maps; says which classes are asked for."})
    out: str = field(default="", metadata={"help": "Folder for the variances."})
    rephrasings: int = field(default=6, metadata={"help": "k - 1 of eq. 6; paper 6 (K = 7)."})
    kinds: list[str] = field(
        default_factory=lambda: ["semantic", "attribute"], metadata={"help": "Kinds of the queries."}
    )
    longest_side: int = field(default=256, metadata={"help": "Of the stored maps, in pixels."})
    queries_per_pass: int = field(default=32, metadata={"help": "Branches in one forward pass."})
    seed: int = field(default=0, metadata={"help": "Of the choice of queries."})

    def __post_init__(self):
        check_kinds("kinds", self.kinds, CLASS_KINDS)
        check_least(self, rephrasings=2, longest_side=1, queries_per_pass=1, seed=0)


def equivalent_queries(
    semantic_class: SemanticClass, image_id: str, arguments: ConsistencyArguments
) -> list[str] | None:
    """K - 1 queries for a class; they depend on the seed, the image and the class alone. None where the class has none;
    a single one agrees with itself, so that lambda is 1."""
    queries = class_queries(semantic_class, *arguments.kinds)
    if not queries:
        return None
    rng = np.random.default_rng((arguments.seed, zlib.crc32(f"{image_id}/{semantic_class.name}".encode())))
    order = rng.permutation(len(queries))
    return [queries[order[k % len(order)]] for k in range(arguments.rephrasings)]


def asked_of(
    scene_set: SceneSet, scene: Scene, labels: np.ndarray, arguments: ConsistencyArguments
) -> dict[int, list[str]]:
    """By class id, the queries about each class that a pseudo-label (H, W) shows and that has queries enough."""
    shown = shown_classes(scene_set.classes, labels)
    return {c.id: q for c in shown if (q := equivalent_queries(c, scene.image_id, arguments))}


@torch.no_grad()
def scene_variances(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scene: Scene,
    asked: dict[int, list[str]],
    arguments: ConsistencyArguments,
) -> dict[int, np.ndarray]:
    """By class id: fp32 (h, w) in [0, 1/4], at most `longest_side` long; {} where nothing is asked."""
    if not asked:
        return {}
    image = read_image(scene.image)
    scale = min(1.0, arguments.longest_side / max(image.size))
    size = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    queries = [text for texts in asked.values() for text in texts]
    answer = query_logits(model, processor, image, queries, arguments.queries_per_pass)
    groups = answer.logits.split([len(texts) for texts in asked.values()])
    return {
        class_id: mask_variance(answer.resized(own, size)).cpu().numpy()
        for class_id, own in zip(asked, groups, strict=True)
    }


def write_weights(arguments: ConsistencyArguments, caching: EmbeddingCacheArguments | None = None) -> int:
    """Writes what is missing; returns the number of images that have weights now."""
    if not arguments.out:
        raise UsageError("--out: not given; a folder for the weights")
    accelerator = inference_accelerator()
    scene_set, _ = read_data(arguments.data, arguments.split_lists)
    pseudo_labels = PseudoLabels(arguments.pseudo_labels, scene_set)
    scenes = pseudo_labels.of_scenes(scene_set.split("train", labelled=False))
    model, processor = load_trained(arguments.model)
    model.to(accelerator.device)
    add_embedding_cache(model, caching)
    out = Path(arguments.out)
    with accelerator.main_process_first():
        # weights and masks by content, images by ids, names and sizes; not by where they lie
        places = dict.fromkeys(("out", "model", "data", "split_lists"), "")
        made_by = {**asdict(arguments), **places, "weights": weights_hash(model), "levels": "255 (4 variance)^(1/4)"}
        made_by["images"] = images_digest(scenes)
        config = model.config
        made_by |= {"seg_state": config.seg_state, "embedding_pooling": config.embedding_pooling}
        # by content: a class that they show, or that has queries, only now would have no weights and not be asked for
        queries = {c.name: class_queries(c, *arguments.kinds) for c in scene_set.classes}
        made_by["queries"] = hashlib.sha256(json.dumps(queries).encode()).hexdigest()
        made_by["pseudo_labels"] = FileHashes().content(pseudo_labels.folder / "masks")
        claim_folder(out, "meta.json", made_by)
    own = scenes[accelerator.process_index :: accelerator.num_processes]
    for scene in tqdm(own, desc="consistency", unit="image", disable=not accelerator.is_main_process):
        path = out / f"{scene.image_id}.safetensors"
        if path.exists():
            continue
        labels = pseudo_labels.read(scene.image_id, image_size(scene.image))
        found = scene_variances(model, processor, scene, asked_of(scene_set, scene, labels, arguments), arguments)
        write_bytes(path, packed_variances(found))
    accelerator.wait_for_everyone()
    return len(scenes)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    arguments, caching = parse_recipe((ConsistencyArguments, EmbeddingCacheArguments), argv)
    count = write_weights(arguments, caching)
    print(f"{arguments.out}: weights of {count} images")


if __name__ == "__main__":
    main()
