"""Words before pixels: a start for a language model that knows none.

CORA's language model is pretrained and tells "road" from "sky" before it sees the first mask. One with random weights
gives nearly the same `[SEG]` embedding for every query; SAM's decoder then learns to ignore its prompt, and both stay
there for long. So each class gets a random prompt at the scale of SAM's own, and the language model learns to say it
for every query of that class: seconds, since SAM is not run. Only texts and class names of the training instructions
are used, no masks.

When such a model meets its first conditional queries, in stage 2, it takes the wrong one of the two nouns in half of
them ("the sidewalk right of the rider" for a rider), and masks teach it slowly which one is meant. With
`conditional_pretraining_steps` it first learns to say of them what it says of their target's class, while of other
queries it goes on to say what it said. results/camvid_small.md has what that brings and costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from datasets_scripts.records import Instruction, Scene, SceneSet, read_image
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor

from .arguments import CLASS_KINDS, DataArguments, QueryPretrainingArguments
from .instruction_dataset import InstructionCollator, InstructionDataset

PROMPT_STD = 0.7  # of SAM's point and box prompts


class Batch(NamedTuple):
    """
    Attributes:
        inputs: of the model, without masks and without SAM's image.
        targets: (N, C), what the `[SEG]` embeddings shall be.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor


def pretrain_queries(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scenes: Sequence[Scene],
    instructions: Sequence[Instruction],
    arguments: QueryPretrainingArguments,
    seed: int,
    progress: bool = True,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> float:
    """Regresses (mean squared error) `[SEG]` embeddings onto a random prompt per class; the answers are learned too.

    Trains the VLM and the projection in place. Classes are drawn uniformly, then an instruction of the class.

    Args:
        autocast: of the forward passes, as in the training that follows; a model whose frozen parts are stored in
            bfloat16 cannot do without.

    Returns:
        the mean squared error of the last step; `PROMPT_STD` ** 2 = 0.49 is the error of an embedding of 0.
    """
    rng = np.random.default_rng((seed, 2))
    by_class: dict[str, list[Instruction]] = {}
    for instruction in instructions:
        by_class.setdefault(instruction.class_name, []).append(instruction)
    names = sorted(by_class)
    width = model.config.sam_config.prompt_encoder_config.hidden_size
    prompts = torch.from_numpy(rng.normal(0, PROMPT_STD, (len(names), width))).float()

    def batches() -> Iterator[Batch]:
        for _ in range(arguments.query_pretraining_steps):
            classes = rng.integers(len(names), size=arguments.query_pretraining_queries)
            chosen = [by_class[names[c]][rng.integers(len(by_class[names[c]]))] for c in classes]
            inputs = processor(
                [read_image(scenes[rng.integers(len(scenes))].image)],
                [[rng.choice([i.query, *i.rephrasings]).item() for i in chosen]],
                answers=[[i.answer for i in chosen]],
            )
            yield Batch(_without_masks(inputs), prompts[torch.from_numpy(classes)])

    return _regress(
        model,
        batches(),
        arguments.query_pretraining_steps,
        arguments.query_pretraining_learning_rate,
        progress,
        autocast,
    )


def pretrain_conditional_queries(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scene_set: SceneSet,
    scenes: Sequence[Scene],
    every_kind: Sequence[Instruction],
    data: DataArguments,
    arguments: QueryPretrainingArguments,
    seed: int,
    progress: bool = True,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> float:
    """Regresses `[SEG]` embeddings of conditional queries, asked with their anchors, onto what the model says of their
    target's class in the same image (of all images where no query is about the whole class there), and those of other
    queries onto what the model says of them.

    Trains the VLM, the projection and the anchor encoder in place, on whole images as they are. Items are drawn as in
    the stages, of the stage's kinds.

    Args:
        every_kind: instructions about the scenes, of kinds that the stage does not train on as well.
        data: of the stage.
        autocast: as above.

    Returns:
        the mean squared error of the last step; nan where there is no conditional query.
    """
    own = _own_embeddings(model, processor, scenes, every_kind, arguments.query_pretraining_queries, autocast)
    classes = _class_embeddings(every_kind, own)

    def target(i: Instruction) -> torch.Tensor | None:
        if i.kind == "conditional":
            return classes.get((i.image_id, i.class_name), classes.get(("", i.class_name)))
        return own[i.image_id, i.query]

    known = [i for i in every_kind if i.kind in data.kinds and target(i) is not None]
    if not any(i.kind == "conditional" for i in known):
        return float("nan")
    dataset = InstructionDataset(
        scene_set,
        scenes,
        known,
        replace(data, queries_per_image=arguments.query_pretraining_queries, flip=0.0, crop=0.0, colour_jitter=0.0),
        length=arguments.conditional_pretraining_steps,
        # other images and queries than those that the stage begins with
        seed=int(np.random.default_rng((seed, 6)).integers(2**31)),
        anchors=True,
    )
    collator = InstructionCollator(processor)

    def batches() -> Iterator[Batch]:
        for index in range(len(dataset)):
            item, chosen = dataset.drawn(index)
            yield Batch(_without_masks(collator([item])), torch.stack([target(i) for i in chosen]))

    return _regress(
        model,
        batches(),
        arguments.conditional_pretraining_steps,
        arguments.conditional_pretraining_learning_rate,
        progress,
        autocast,
    )


def _regress(
    model: CoraForReasoningSegmentation,
    batches: Iterable[Batch],
    steps: int,
    learning_rate: float,
    progress: bool,
    autocast: Callable[[], AbstractContextManager],
) -> float:
    """Mean squared error and a tenth of the answers' cross-entropy; returns the former, of the last batch."""
    parts = [model.vlm, model.seg_projector]
    if model.config.anchor_token_id is not None:
        parts.append(model.anchor_encoder)
    parameters = [p for part in parts for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, (0.9, 0.95), weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    error = float("nan")
    bar = tqdm(batches, desc="query pretraining", unit="step", total=steps, disable=not progress)
    for inputs, targets in bar:
        with autocast():
            output = model(**_on(model.device, inputs))
        loss = torch.nn.functional.mse_loss(output.seg_embeddings.float(), targets.to(model.device))
        optimizer.zero_grad()
        (loss + 0.1 * output.lm_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        error = loss.item()
        bar.set_postfix(error=f"{error:.3f}")
    return error


def _without_masks(inputs: dict) -> dict[str, torch.Tensor]:
    """What the language side needs: SAM is not run."""
    left_out = ("sam_pixel_values", "mask_labels", "reshaped_input_sizes", "original_sizes")
    return {name: value for name, value in inputs.items() if name not in left_out}


def _on(device: torch.device, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


@torch.no_grad()
def _own_embeddings(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scenes: Sequence[Scene],
    instructions: Sequence[Instruction],
    most: int,
    autocast: Callable[[], AbstractContextManager],
) -> dict[tuple[str, str], torch.Tensor]:
    """What the model says now of all queries but conditional ones, by image id and query: fp32 (C,), on the CPU.

    Args:
        most: queries in a pass.
    """
    by_image: dict[str, dict[str, Instruction]] = defaultdict(dict)
    for i in instructions:
        if i.kind != "conditional":
            by_image[i.image_id][i.query] = i
    model.eval()
    found = {}
    for scene in scenes:
        asked = list(by_image[scene.image_id].values())
        image = read_image(scene.image) if asked else None
        for first in range(0, len(asked), most):
            some = asked[first : first + most]
            inputs = processor([image], [[i.query for i in some]], answers=[[i.answer for i in some]])
            with autocast():
                embeddings = model(**_on(model.device, _without_masks(inputs))).seg_embeddings
            found |= {(i.image_id, i.query): e for i, e in zip(some, embeddings.float().cpu(), strict=True)}
    return found


def _class_embeddings(
    instructions: Sequence[Instruction], own: dict[tuple[str, str], torch.Tensor]
) -> dict[tuple[str, str], torch.Tensor]:
    """The mean over queries about whole classes, by image id and class name; under "", over all images."""
    groups: dict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)
    for i in instructions:
        if i.kind in CLASS_KINDS and i.instance_ids is None and not i.claim:
            for image_id in (i.image_id, ""):
                groups[image_id, i.class_name].append(own[i.image_id, i.query])
    return {key: torch.stack(embeddings).mean(0) for key, embeddings in groups.items()}
