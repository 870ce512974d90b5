"""Does the language model cost anything? CORA against one learned prompt per class, in equal time on one machine.

    python benchmarks/class_vector.py
    python benchmarks/class_vector.py trainers/recipes/camvid_13.yaml --data DIR --split_lists DIR/splits/camvid/1_30

Trains stage 1 with the recipe (any field can be overridden; drawn scenes and 60 steps where none is given), then, for
as many seconds as that took, the bare alternative: the same SAM, random start, items, losses and SAM learning rate,
but a vector per class as the prompt, so it understands a list of names and no query. Both are asked for every class of
every image of the split `val`. The class vectors may be given settings of their own: `--bare_learning_rate`,
`--bare_bce_loss_weight`, `--bare_dice_loss_weight`, and (for a model that is trained already and only resumed) their
`--seconds`.

The last line is `ratio: N`, CORA's cIoU / the class vectors' cIoU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm.auto import tqdm

from datasets_scripts.command_line import one_line_errors
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.build import MIN_CLASS_AREA, build_instructions
from datasets_scripts.records import Instruction, SceneSet, read_image
from datasets_scripts.scenes import write_scenes
from metrics.ciou.ciou import intersection_and_union, summarize
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.losses import mask_losses
from modeling_cora.modeling_cora import CoraOutput
from trainers import stage, stage1
from trainers.arguments import CoraTrainingArguments
from trainers.evaluate import evaluate_scenes
from trainers.instruction_dataset import InstructionDataset
from trainers.loading import load_trained
from trainers.recipe_parser import parse_recipe

DEFAULTS = Path(__file__).resolve().parents[1] / "trainers/recipes/demo.yaml"


class ClassVectors:
    """A SAM whose only prompts are one vector per class."""

    def __init__(self, model: CoraForReasoningSegmentation, processor: CoraProcessor, names: list[str], seed: int):
        self.model, self.sam_image_processor, self.processor = model, processor.sam_image_processor, processor
        self.names = names
        width = model.config.sam_config.prompt_encoder_config.hidden_size
        generator = torch.Generator().manual_seed(seed)
        self.vectors = torch.nn.Parameter(0.7 * torch.randn(len(names), width, generator=generator))

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.model.sam.parameters(), self.vectors]

    def __call__(self, images: list, classes: list[list[str]]) -> tuple[CoraOutput, dict]:
        inputs = self.sam_image_processor(images, return_tensors="pt")
        ids = torch.tensor([self.names.index(name) for image_classes in classes for name in image_classes])
        batch_index = torch.tensor([k for k, image_classes in enumerate(classes) for _ in image_classes])
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"])
        masks, scores = self.model.decode_masks(embeddings, self.vectors[ids], batch_index)
        output = CoraOutput(
            pred_masks=masks, iou_scores=scores, seg_embeddings=self.vectors[ids], seg_batch_index=batch_index
        )
        return output, inputs


def warmed_up(step: int, warmup_steps: float) -> float:
    """Fraction of the learning rate at a step, from 0 on; `warmup_steps` 0: all of it."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def train_class_vectors(
    bare: ClassVectors, dataset: InstructionDataset, class_of: dict[str, str], learning_rate: float, seconds: float,
    arguments: CoraTrainingArguments,
) -> int:  # fmt: skip
    """AdamW with warm-up and a linear decay that ends when the time is over; returns the steps that fitted in."""
    optimizer = torch.optim.AdamW(
        bare.parameters(), learning_rate, (arguments.adam_beta1, arguments.adam_beta2), weight_decay=0, fused=True
    )
    start, step, size = time.monotonic(), 0, arguments.per_device_train_batch_size
    bar = tqdm(total=round(seconds), desc="class vectors", unit="s")
    while (spent := time.monotonic() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warmed_up(step, arguments.warmup_steps) * (1 - spent / seconds)
        items = [dataset[step * size + k] for k in range(size)]
        output, inputs = bare([i["image"] for i in items], [[class_of[q] for q in i["queries"]] for i in items])
        masks = [torch.from_numpy(item["masks"]) for item in items]
        sizes = torch.as_tensor(np.asarray(inputs["reshaped_input_sizes"]))
        loss = bare.model.weighted_sum(mask_losses(bare.model.config, output, masks, sizes))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), arguments.max_grad_norm)
        optimizer.step()
        step += 1
        bar.update(min(round(seconds), int(time.monotonic() - start)) - bar.n)
    return step


@torch.no_grad()
def class_scores(bare: ClassVectors, scene_set: SceneSet, split: str) -> tuple[float, float]:
    """(cIoU, mIoU) over the classes that each image shows."""
    counts: dict[str, list[tuple[int, int]]] = {}
    for scene in scene_set.split(split, labelled=True):
        labels = scene_set.read_labels(scene)
        shown = [c for c in scene_set.classes if (labels == c.id).sum() >= max(1, MIN_CLASS_AREA * labels.size)]
        if not shown:
            continue
        output, inputs = bare([read_image(scene.image)], [[c.name for c in shown]])
        sizes = [torch.as_tensor(np.asarray(inputs[name])) for name in ("original_sizes", "reshaped_input_sizes")]
        (masks,) = bare.processor.post_process_masks(output.pred_masks, output.seg_batch_index, *sizes)
        for semantic_class, mask in zip(shown, masks.numpy(), strict=True):
            target = Instruction(scene.image_id, "semantic", semantic_class.name, "", "").target_mask(
                semantic_class.id, labels
            )
            intersection, union = intersection_and_union(mask, target)
            counts.setdefault(semantic_class.name, []).append((int(intersection), int(union)))
    return scores_by_class(counts)


def scores_by_class(counts: dict[str, list[tuple[int, int]]]) -> tuple[float, float]:
    def ciou(pairs: list[tuple[int, int]]) -> float:
        return summarize([p[0] for p in pairs], [p[1] for p in pairs])["ciou"]

    everything = [pair for pairs in counts.values() for pair in pairs]
    return ciou(everything), sum(ciou(pairs) for pairs in counts.values()) / len(counts)


@one_line_errors
def main() -> None:
    argv = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if not argv:
            write_scenes(f"{folder}/scenes", labelled=8, unlabelled=0, val=8)
            argv = [str(DEFAULTS), "--data", f"{folder}/scenes", "--output_dir", f"{folder}/model"]
            argv += ["--max_steps", "60", "--save_strategy", "no"]
        run(argv)


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("bce_loss_weight", "dice_loss_weight", "learning_rate"):
        parser.add_argument(f"--bare_{name}", type=float, default=None)
    parser.add_argument("--seconds", type=float, default=None)
    bare_arguments, argv = parser.parse_known_args(argv)
    model_arguments, _, data, *_, arguments = parse_recipe(stage.ARGUMENTS, argv)
    start = time.monotonic()
    stage1.main(argv)
    seconds = bare_arguments.seconds or time.monotonic() - start

    scene_set, built = read_data(data.data, data.split_lists, components=True)
    scenes = scene_set.split("train", labelled=True)
    every_kind = stage.labelled_instructions(scene_set, scenes, built, arguments.seed)
    instructions = [i for i in every_kind if i.kind in data.kinds]
    model, processor = stage.load_model(model_arguments, every_kind, arguments.seed)
    for name in ("bce_loss_weight", "dice_loss_weight"):
        if (value := getattr(bare_arguments, f"bare_{name}")) is not None:
            setattr(model.config, name, value)
    bare = ClassVectors(model, processor, [c.name for c in scene_set.classes], arguments.seed)
    class_of = {query: i.class_name for i in instructions for query in (i.query, *i.rephrasings)}
    dataset = InstructionDataset(scene_set, scenes, instructions, data, length=10**9, seed=arguments.seed)
    rate = bare_arguments.bare_learning_rate or arguments.sam_learning_rate or arguments.learning_rate
    steps = train_class_vectors(bare, dataset, class_of, rate, seconds, arguments)
    bare_ciou, bare_miou = class_scores(bare, scene_set, "val")

    cora, cora_processor = load_trained(str(arguments.output_dir))
    val = scene_set.split("val", labelled=True)
    asked = build_instructions(scene_set, val, ("semantic",), seed=0)
    counts: dict[str, list[tuple[int, int]]] = {}
    for record in evaluate_scenes(cora, cora_processor, scene_set, val, asked):
        counts.setdefault(record["class_name"], []).append((record["intersection"], record["union"]))
    ciou, miou = scores_by_class(counts)
    print(f"{len(scenes)} labelled images, {seconds:.0f} s each, CPU threads: {torch.get_num_threads()}")
    print(f"CORA stage 1:   {arguments.max_steps} steps, cIoU {ciou:.3f}, mIoU {miou:.3f} (asked in sentences)")
    print(f"class vectors:  {steps} steps, cIoU {bare_ciou:.3f}, mIoU {bare_miou:.3f}")
    print(f"ratio: {ciou / bare_ciou:.2f}")


if __name__ == "__main__":
    main()
