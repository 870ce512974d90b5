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
from accelerate.utils import send_to_device
from PIL import Image
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
    """Regresses `[SEG]` embeddings of conditional queries, asked with their anchors, onto the mean of what the model
    says of their target's class in the same image, and those of other queries onto what the model says of them.

    Trains the VLM, the projection and the anchor encoder in place, on whole images as they are. Items are drawn as in
    the stages, of the stage's kinds; a conditional query whose class nobody asks for as a whole is left out.

    Args:
        every_kind: instructions about the scenes, of kinds that the stage does not train on as well.
        data: of the stage.
        autocast: as above.

    Returns:
        the mean squared error of the last step.

    Raises:
        DataError: nothing can be asked.
    """
    targets = _targets(model, processor, scenes, every_kind, autocast)
    dataset = InstructionDataset(
        scene_set,
        scenes,
        [i for i in every_kind if i.kind in data.kinds and _asks(i) in targets],
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
            yield Batch(_without_masks(collator([item])), torch.stack([targets[_asks(i)] for i in chosen]))

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
            output = model(**send_to_device(inputs, model.device))
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


@torch.no_grad()
def seg_embeddings(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image,
    instructions: Sequence[Instruction],
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
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
    with autocast():
        output = model(**send_to_device(_without_masks(inputs), model.device))
    return output.seg_embeddings.float().cpu()


def names_a_whole_class(instruction: Instruction) -> bool:
    """Or describes it; not a part of it, and not by way of another thing."""
    return instruction.kind in CLASS_KINDS and instruction.instance_ids is None and not instruction.claim


def _asks(instruction: Instruction) -> tuple[str, str, str]:
    """What a target belongs to: an image's class for a conditional query, an image's query for others."""
    conditional = instruction.kind == "conditional"
    return (instruction.image_id, *((instruction.class_name, "") if conditional else ("", instruction.query)))


def _targets(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scenes: Sequence[Scene],
    instructions: Sequence[Instruction],
    autocast: Callable[[], AbstractContextManager],
) -> dict[tuple[str, str, str], torch.Tensor]:
    """By `_asks`: each (C,)."""
    by_image: dict[str, list[Instruction]] = defaultdict(list)
    for i in instructions:
        if i.kind != "conditional":
            by_image[i.image_id].append(i)
    targets = {}
    for scene in scenes:
        asked = by_image[scene.image_id]
        if not asked:
            continue
        said = seg_embeddings(model, processor, read_image(scene.image), asked, autocast=autocast)
        targets |= {_asks(i): embedding for i, embedding in zip(asked, said, strict=True)}
        for name in {i.class_name for i in asked if names_a_whole_class(i)}:
            whole = [names_a_whole_class(i) and i.class_name == name for i in asked]
            targets[scene.image_id, name, ""] = said[torch.tensor(whole)].mean(0)
    return targets
