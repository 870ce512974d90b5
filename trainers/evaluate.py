"""Scores a model on labelled images: cIoU and gIoU in all, per kind of query, per class, beside trivial answers.

    python trainers/evaluate.py --model runs/demo/model --data runs/demo/scenes --out runs/demo/evaluation
    accelerate launch trainers/evaluate.py --model DIR --data DIR --split val --out DIR

`--protocol` says how answers are got and counted (`protocols.py`): `lisa`, the default, is teacher-forced and counts as
LISA's `validate()` does, `lisa_prompts` asks as it does too, `generated` and `segzero` let the model answer freely.
Asked is every instruction of the split, but of several descriptions of one target only one, another in each image.

Writes `samples.jsonl` (one line per query), `metrics.json`, `metrics.md` and `overlays.png`. `metrics.json` also says
which weights were measured, by their SHA-256, and on what: a model card takes its numbers from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find this file in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from datasets_scripts.command_line import one_line_errors
from datasets_scripts.files import write_image, write_json, write_text
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.mirror import mirrored
from datasets_scripts.records import DataError, Instruction, Kind, Scene, SceneSet, by_image, read_image
from datasets_scripts.splits import HELD_OUT_FROM
from metrics.ciou.ciou import intersection_and_union
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.hub.run_folder import weights_digest
from modeling_cora.pictures import captioned, comparison, grid
from trainers.argument_checks import check_kinds, check_least, check_types
from trainers.arguments import EmbeddingCacheArguments
from trainers.baselines import MeanMask, part_counts, trivial_counts
from trainers.embedding_cache import add_embedding_cache
from trainers.instruction_dataset import anchor_masks
from trainers.loading import inference_accelerator, load_trained
from trainers.protocols import PROTOCOLS, Protocol, ask
from trainers.recipe_parser import parse_recipe
from trainers.stage import labelled_instructions, of_kinds
from trainers.summary import markdown, summarise_records, summary_table
from trainers.training_record import has_learned_anchors


@dataclass
class EvaluationArguments:
    model: str = field(default="", metadata={"help": "Folder or Hub id of a CORA model."})
    data: str = field(default="", metadata={"help": "Folder with labelled images; see datasets_scripts/folder.py."})
    split_lists: str | None = field(default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt."})
    data_name: str | None = field(
        default=None, metadata={"help": "What a model card calls the data: a Hub id, or the folder's name by default."}
    )
    split: str = field(default="val", metadata={"help": "train, val, test, or a part of one such as testA."})
    kinds: list[str] = field(
        default_factory=lambda: ["semantic", "attribute"], metadata={"help": "Kinds of instructions to ask."}
    )
    protocol: Literal[tuple(PROTOCOLS)] = field(default="lisa", metadata={"help": "See trainers/protocols.py."})
    anchors: Literal["learned", "given", "none"] = field(
        default="learned",
        metadata={"help": "Of conditional queries: `given` (their true masks, to a model with an anchor encoder), "
                  "`none` (words alone), or `learned`: given to a model whose encoder a stage has trained, as its "
                  "training.json says, and to one that has no such record."},
    )  # fmt: skip
    mirror: bool = field(
        default=False,
        metadata={"help": "Ask about mirrored images, left and right swapped in the queries: whoever understands sides "
                  "is as good there, whoever knows by heart what is left in this data is not. The mean training mask "
                  "beside it stays that of the images as they are."},
    )  # fmt: skip
    limit: int | None = field(default=None, metadata={"help": "Only the first so many images."})
    queries_per_kind: int | None = field(
        default=None,
        metadata={"help": "At most so many of each kind about each image, drawn by its id; all where not given."},
    )
    out: str = field(default="", metadata={"help": "Folder for the results."})
    examples: int = field(default=6, metadata={"help": "Images in overlays.png; 0: no such file."})

    def __post_init__(self):
        check_types(self)
        check_kinds("kinds", self.kinds, get_args(Kind))
        check_least(self, limit=1, queries_per_kind=1, examples=0)


def evaluate_scenes(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scene_set: SceneSet,
    scenes: Sequence[Scene],
    instructions: Sequence[Instruction],
    mean_mask: MeanMask | None = None,
    accelerator: Accelerator | None = None,
    anchors: bool = True,
    protocol: Protocol = PROTOCOLS["lisa"],
) -> list[dict]:
    """One record for each instruction, in the order of `instructions`; every process gets all of them.

    Each process takes every n-th scene; none is taken twice, so no sample is counted twice.

    Args:
        anchors: give conditional queries their anchors' true masks, if the model has an anchor encoder.

    Returns:
        dicts of image_id, kind, claim, target ("class" or "instance"), class_name, query, intersection, union (pixels),
        score, `failed` (the answer had no mask), and `trivial`: the counts of each trivial answer; of a query about a
        part of its class, `inside` (`baselines.part_counts`) too.
    """
    accelerator = accelerator or Accelerator()
    about: dict[str, list[tuple[int, Instruction]]] = {}
    for order, instruction in enumerate(instructions):
        about.setdefault(instruction.image_id, []).append((order, instruction))
    asked = [scene for scene in scenes if scene.image_id in about]
    own = asked[accelerator.process_index :: accelerator.num_processes]
    model.eval()
    records = []
    for scene in tqdm(own, desc="evaluating", unit="image", disable=not accelerator.is_main_process):
        orders, own_instructions = zip(*about[scene.image_id], strict=True)
        _, labels, targets, answers = _ask_scene(
            model, processor, scene_set, scene, own_instructions, anchors, protocol
        )
        scored = _scored(scene_set, own_instructions, mean_mask, protocol, labels, targets, answers)
        records += [
            {"order": order, "image_id": scene.image_id, **record} for order, record in zip(orders, scored, strict=True)
        ]
    records = gather_object(records) if accelerator.num_processes > 1 else records
    records.sort(key=lambda record: record["order"])
    for record in records:
        del record["order"]
    return records


def _ask_scene(model, processor, scene_set, scene, instructions, anchors, protocol):
    """The image and its labels, the target (H, W) of each instruction, and the answers."""
    labels, instances = scene_set.read_maps(scene)
    image = read_image(scene.image)
    class_ids = {c.name: c.id for c in scene_set.classes}
    pointed = None
    if anchors and model.config.anchor_token_id is not None:
        pointed = [anchor_masks(i, class_ids, labels, instances, image.size) for i in instructions]
    targets = [i.target_mask(class_ids[i.class_name], labels, instances) for i in instructions]
    queries = [protocol.query(i) for i in instructions]
    return image, labels, targets, ask(protocol, model, processor, image, queries, pointed)


def _scored(scene_set, instructions, mean_mask, protocol, labels, targets, answers) -> list[dict]:
    records = []
    for instruction, target, mask, score, failed in zip(
        instructions, targets, answers.masks, answers.scores, answers.failed, strict=True
    ):
        part = instruction.instance_ids is not None
        whole_class = labels == scene_set.class_named(instruction.class_name).id if part else None
        intersection, union = intersection_and_union(mask, target, protocol=protocol.counting)
        inside = {} if whole_class is None else {"inside": part_counts(mask, target, whole_class)}
        records.append(
            {
                "kind": instruction.kind,
                "claim": instruction.claim,
                "target": "class" if instruction.instance_ids is None else "instance",
                "class_name": instruction.class_name,
                "query": instruction.query,
                "intersection": int(intersection),
                "union": int(union),
                "score": round(score, 4),
                "failed": failed,
                "trivial": trivial_counts(target, instruction.class_name, mean_mask, protocol.counting, whole_class),
                **inside,
            }
        )
    return records


def overlay_grid(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scene_set: SceneSet,
    scenes: Sequence[Scene],
    instructions: Sequence[Instruction],
    images: int,
    queries: int = 5,
    anchors: bool = True,
    protocol: Protocol = PROTOCOLS["lisa"],
) -> Image.Image:
    """Rows: scenes spread over the split; columns: queries, from the largest target to the smallest, answered as in
    `evaluate_scenes`."""
    rows, about = [], by_image(instructions)
    asked = [scene for scene in scenes if scene.image_id in about]
    for scene in asked[:: max(1, len(asked) // images)][:images]:
        labels, instances = scene_set.read_maps(scene)  # of areas alone
        areas = [
            (i.target_mask(scene_set.class_named(i.class_name).id, labels, instances) == 1).sum()
            for i in about[scene.image_id]
        ]
        order = np.argsort(-np.array(areas), kind="stable")
        places = [round(k * (len(order) - 1) / max(1, queries - 1)) for k in range(min(queries, len(order)))]
        chosen = [about[scene.image_id][order[place]] for place in places]
        image, _, targets, answers = _ask_scene(model, processor, scene_set, scene, chosen, anchors, protocol)
        rows.append(
            [captioned(image, scene.image_id)]
            + [
                _captioned_comparison(image, target, mask, instruction.query, protocol.counting)
                for instruction, target, mask in zip(chosen, targets, answers.masks, strict=True)
            ]
        )
    return grid(rows)


def _captioned_comparison(image: Image.Image, target, mask, query: str, counting: str) -> Image.Image:
    intersection, union = intersection_and_union(mask, target, protocol=counting)
    iou = intersection / union if union else 1.0
    return captioned(comparison(image, target, mask), f"IoU {iou:.2f}  {query}")


def each_once(instructions: Iterable[Instruction]) -> list[Instruction]:
    """One of those that say the same of the same target: a class has many descriptions, and which one is asked depends
    on the image, the class and the claim alone."""
    found: dict[tuple, list[Instruction]] = {}
    for i in instructions:
        # free text says something else each time
        said = i.query if i.kind == "reasoning" else (i.claim, tuple((a.class_name, a.instance_ids) for a in i.anchors))
        found.setdefault((i.image_id, i.kind, i.class_name, i.instance_ids, said), []).append(i)
    return [
        same[zlib.crc32(f"{same[0].image_id}/{same[0].class_name}/{same[0].claim}".encode()) % len(same)]
        for same in found.values()
    ]


def _measured(arguments: EvaluationArguments, scenes: Sequence[Scene], images: int) -> dict:
    """What the numbers beside it are of: a model card takes them for these weights only, and names nothing local.

    `held_out_from` is the data set's own split of the images, where split lists made another of it; else None.
    """
    model = Path(arguments.model)
    held_out_from = {scene.facts.get(0, {}).get(HELD_OUT_FROM) for scene in scenes}
    return {
        "model": model.resolve().name if model.is_dir() else arguments.model,
        "weights": weights_digest(model),
        "data": arguments.data_name or Path(arguments.data).resolve().name,
        "split": arguments.split,
        "split_lists": arguments.split_lists is not None,
        "held_out_from": held_out_from.pop() if len(held_out_from) == 1 else None,
        "images": images,
        "kinds": arguments.kinds,
        "anchors": arguments.anchors,
        "mirror": arguments.mirror,
        "limit": arguments.limit,
        "queries_per_kind": arguments.queries_per_kind,
        "protocol": arguments.protocol,
        "protocol_means": str(PROTOCOLS[arguments.protocol]),
    }


def some_of_each(instructions: Sequence[Instruction], most: int) -> list[Instruction]:
    """At most so many of each kind about each image, in their order; which ones depends on the image's id alone."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, i in enumerate(instructions):
        groups.setdefault((i.image_id, i.kind), []).append(number)
    chosen = []
    for (image_id, kind), numbers in groups.items():
        order = np.random.default_rng(zlib.crc32(f"{image_id}/{kind}".encode())).permutation(len(numbers))
        chosen += [numbers[k] for k in order[:most]]
    return [instructions[number] for number in sorted(chosen)]


def run_evaluation(arguments: EvaluationArguments, caching: EmbeddingCacheArguments | None = None) -> dict:
    """Evaluates and writes the results; returns the summary."""
    protocol = PROTOCOLS[arguments.protocol]
    accelerator = inference_accelerator()
    scene_set, built = read_data(arguments.data, arguments.split_lists, components=True)
    scenes = scene_set.split(arguments.split, labelled=True)[: arguments.limit]
    if not scenes:
        raise DataError(f"{arguments.data}: split {arguments.split!r} has no labelled image")
    model, processor = load_trained(arguments.model)
    model.to(accelerator.device)
    add_embedding_cache(model, caching)
    every_kind = labelled_instructions(scene_set, scenes, built, seed=0)
    instructions = each_once(of_kinds(every_kind, arguments.kinds, arguments.data))
    if arguments.queries_per_kind is not None:
        instructions = some_of_each(instructions, arguments.queries_per_kind)
    if arguments.mirror:
        scenes, instructions = mirrored(scene_set, scenes, instructions)
    mean_mask = MeanMask(scene_set, scene_set.split("train", labelled=True))
    anchors = arguments.anchors == "given" or (arguments.anchors == "learned" and has_learned_anchors(arguments.model))
    shows = anchors and not protocol.generated and model.config.anchor_token_id is not None
    shown = "given" if shows else "none"
    records = evaluate_scenes(
        model, processor, scene_set, scenes, instructions, mean_mask, accelerator, anchors, protocol
    )
    summary = summarise_records(records, protocol.counting)
    if accelerator.is_main_process and arguments.out:
        out = Path(arguments.out)
        write_text(out / "samples.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        images = len({instruction.image_id for instruction in instructions})
        measured = _measured(replace(arguments, anchors=shown), scenes, images)
        write_json(out / "metrics.json", {"evaluation": measured, **summary})
        write_text(out / "metrics.md", markdown(summary_table(summary)))
        if arguments.examples:
            asked = (model, processor, scene_set, scenes, instructions)
            picture = overlay_grid(*asked, arguments.examples, anchors=anchors, protocol=protocol)
            write_image(out / "overlays.png", picture)
    return summary


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    arguments, caching = parse_recipe((EvaluationArguments, EmbeddingCacheArguments), argv)
    print(markdown(summary_table(run_evaluation(arguments, caching))))


if __name__ == "__main__":
    main()
