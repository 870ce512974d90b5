"""Whom does a model take a conditional query to be about? "the sidewalk right of the rider": sidewalk, or rider?

    python trainers/nouns.py --model DIR --data DIR --split_lists results/splits/camvid/1_30 --every 2

The class whose own `[SEG]` embedding is nearest (cosine) to that of the query, as the diagnosis of stage 3 has it
(`diagnosis/separation.py`): the mean over the images' queries that name or describe a class as a whole. Masks are not
asked for, so what is seen of a thing plays no part. Anchors are given to a model that has learned them, as
`evaluate.py` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image
from tqdm.auto import tqdm

from datasets_scripts.command_line import one_line_errors
from datasets_scripts.folder import read_data
from datasets_scripts.records import DataError, Instruction, Scene, SceneSet, by_image, read_image
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from trainers.argument_checks import check_least
from trainers.arguments import CLASS_KINDS
from trainers.diagnosis.separation import Embeddings, agreement
from trainers.evaluate import each_once, some_of_each
from trainers.instruction_dataset import anchor_masks
from trainers.loading import load_trained
from trainers.query_pretraining import without_masks
from trainers.recipe_parser import parse_recipe
from trainers.stage import labelled_instructions
from trainers.training_record import has_learned_anchors


@dataclass
class NounArguments:
    model: str = field(default="", metadata={"help": "Folder or Hub id of a CORA model."})
    data: str = field(default="", metadata={"help": "Folder with labelled images."})
    split_lists: str | None = field(default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt."})
    split: str = field(default="val", metadata={"help": "train, val or test."})
    every: int = field(default=1, metadata={"help": "Of the split's images every so many."})
    queries: int = field(default=24, metadata={"help": "Conditional queries about an image, at most."})

    def __post_init__(self):
        check_least(self, every=1, queries=1)


def names_a_whole_class(instruction: Instruction) -> bool:
    """Or describes it; not a part of it, and not by way of another thing."""
    return instruction.kind in CLASS_KINDS and instruction.instance_ids is None and not instruction.claim


@torch.no_grad()
def seg_embeddings(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image,
    instructions: Sequence[Instruction],
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
) -> torch.Tensor:
    """What the model, without dropout, says of queries about an image: fp32 (n, C), on the CPU; SAM is not run.

    Args:
        anchors: masks of each query, as the processor takes them.
    """
    model.eval()
    inputs = processor(
        [image],
        [[i.query for i in instructions]],
        answers=[[i.answer for i in instructions]],
        anchors=None if anchors is None else [anchors],
    )
    return model(**send_to_device(without_masks(inputs), model.device)).seg_embeddings.float().cpu()


def nouns(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scene_set: SceneSet,
    scenes: Sequence[Scene],
    instructions: Sequence[Instruction],
    anchors: bool = True,
) -> dict[str, float]:
    """Of the conditional ones among the instructions: how many `queries`, and which share of them is nearest to the
    class of their `target` and of their first `anchor`.

    Args:
        anchors: give conditional queries their anchors' true masks, if the model has an anchor encoder.

    Raises:
        DataError: there are none, or none about a class that is asked for as a whole.
    """
    ids = {c.name: c.id for c in scene_set.classes}
    said: dict[str, list[torch.Tensor]] = {"whole": [], "conditional": []}
    classes: dict[str, list[int]] = {"whole": [], "target": [], "anchor": []}
    about = by_image(instructions)
    for scene in tqdm(scenes, desc="nouns", unit="image"):
        own = about.get(scene.image_id, [])
        whole = [i for i in own if names_a_whole_class(i)]
        conditional = [i for i in own if i.kind == "conditional"]
        image, (labels, instances) = read_image(scene.image), scene_set.read_maps(scene)
        given = None
        if anchors and model.config.anchor_token_id is not None:
            given = [anchor_masks(i, ids, labels, instances, image.size) for i in whole + conditional]
        if whole + conditional:
            embeddings = seg_embeddings(model, processor, image, whole + conditional, given)
            said["whole"].append(embeddings[: len(whole)])
            said["conditional"].append(embeddings[len(whole) :])
        classes["whole"] += [ids[i.class_name] for i in whole]
        classes["target"] += [ids[i.class_name] for i in conditional]
        classes["anchor"] += [ids[i.anchors[0].class_name] for i in conditional]
    known = set(classes["whole"])
    asked = torch.tensor([c in known for c in classes["target"]], dtype=torch.bool)
    if not asked.any():
        raise DataError("no labelled image of the split has a conditional query about a class that is asked for alone")
    tokens = torch.cat(said["conditional"])[asked]
    of_classes = Embeddings(torch.cat(said["whole"]), torch.tensor(classes["whole"]))
    target, anchor = (torch.tensor(classes[name])[asked] for name in ("target", "anchor"))
    # of anchors' classes that nobody asks for alone none is nearest
    beside = agreement(Embeddings(tokens, anchor), of_classes)
    return {
        "queries": len(tokens),
        "target": agreement(Embeddings(tokens, target), of_classes)["nearest_mean"],
        "anchor": (beside["nearest_mean"] or 0.0) * beside["tokens"] / len(tokens),
    }


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_recipe((NounArguments,), argv)
    scene_set, built = read_data(arguments.data, arguments.split_lists, components=True)
    scenes = scene_set.split(arguments.split, labelled=True)[:: arguments.every]
    model, processor = load_trained(arguments.model)
    instructions = each_once(labelled_instructions(scene_set, scenes, built, seed=0))
    conditional = some_of_each([i for i in instructions if i.kind == "conditional"], arguments.queries)
    whole = [i for i in instructions if names_a_whole_class(i)]
    anchors = has_learned_anchors(arguments.model)
    found = nouns(model, processor, scene_set, scenes, whole + conditional, anchors)
    print(f"{found['queries']} conditional queries about {len(scenes)} images")
    print(f"nearest to their target's class {found['target']:.3f}, to their anchor's {found['anchor']:.3f}")


if __name__ == "__main__":
    main()
