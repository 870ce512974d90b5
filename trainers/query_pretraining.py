"""Words before pixels: a start for a language model that knows none.

CORA's language model is pretrained and tells "road" from "sky" before it sees the first mask, and in "the sidewalk
right of the rider" which of the two nouns is meant. One with random weights gives nearly the same `[SEG]` embedding for
every query; SAM's decoder then learns to ignore its prompt, and both stay there for long. So each class gets a random
prompt at the scale of SAM's own, and each claim ("left half", "touching") a smaller one, and the language model learns
to say their sum for every query about that class, those of later stages among them: a minute or two, since SAM is not
run. Only texts, class names and claims of the training instructions are used, no masks. results/camvid_small.md has
what it brings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from datasets_scripts.records import DataError, Instruction, Scene, read_image
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor

from .arguments import QueryPretrainingArguments

PROMPT_STD = 0.7  # of SAM's point and box prompts


def pretrain_queries(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    scenes: Sequence[Scene],
    instructions: Sequence[Instruction],
    arguments: QueryPretrainingArguments,
    seed: int,
    progress: bool = True,
    autocast: torch.dtype | None = None,
) -> float:
    """Regresses (mean squared error) `[SEG]` embeddings onto a random prompt of the class and one of the claim; a tenth
    of the answers' cross-entropy is added. Trains the VLM and the projection in place.

    Classes are drawn uniformly, then a kind of instruction that asks for the class, then one of that kind: conditional
    ones are few, and count as much as others. Nobody's anchors are shown, so the words alone have to do.

    Args:
        autocast: the type of forward passes; a model whose frozen parts are stored in bfloat16 cannot do without.
            Accelerate's own does nothing under DeepSpeed, which brings another that is not there yet.

    Returns:
        the mean squared error of the last step; `PROMPT_STD` ** 2 = 0.49, and what claims add, is the error of an
        embedding of 0.

    Raises:
        DataError: none of the instructions is of `query_pretraining_kinds`, or they have nothing to tell apart.
    """
    rng = np.random.default_rng((seed, 2))
    kinds = arguments.query_pretraining_kinds
    by_class: dict[str, dict[str, list[Instruction]]] = {}
    for instruction in (i for i in instructions if kinds is None or i.kind in kinds):
        by_class.setdefault(instruction.class_name, {}).setdefault(instruction.kind, []).append(instruction)
    if not by_class:
        raise DataError(f"query_pretraining_kinds: no labelled image has an instruction of {', '.join(kinds or [])}")
    width = model.config.sam_config.prompt_encoder_config.hidden_size
    of_class, of_claim = _prompts(by_class, width, arguments.query_pretraining_claim_scale, rng)
    parameters = [p for part in (model.vlm, model.seg_projector) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, arguments.query_pretraining_learning_rate, betas=(0.9, 0.95), weight_decay=0
    )
    steps = arguments.query_pretraining_steps
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)

    def draw() -> Instruction:
        of_one_class = by_class[rng.choice(sorted(by_class)).item()]
        of_one_kind = of_one_class[rng.choice(sorted(of_one_class)).item()]
        return of_one_kind[rng.integers(len(of_one_kind))]

    model.train()
    error = float("nan")
    bar = tqdm(range(steps), desc="query pretraining", unit="step", disable=not progress)
    for _ in bar:
        chosen = [draw() for _ in range(arguments.query_pretraining_queries)]
        inputs = processor(
            [read_image(scenes[rng.integers(len(scenes))].image)],
            [[rng.choice([i.query, *i.rephrasings]).item() for i in chosen]],
            answers=[[i.answer for i in chosen]],
        )
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            output = model(**send_to_device(without_masks(inputs), model.device))
        targets = torch.stack([of_class[i.class_name] + of_claim[i.claim] for i in chosen])
        loss = torch.nn.functional.mse_loss(output.seg_embeddings.float(), targets.to(model.device))
        optimizer.zero_grad()
        (loss + 0.1 * output.lm_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        error = loss.item()
        bar.set_postfix(error=f"{error:.3f}")
    return error


def _prompts(
    by_class: dict[str, dict[str, list[Instruction]]], width: int, claim_scale: float, rng: np.random.Generator
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What is to be said of each class, and what each claim adds to it; each (width,)."""
    claims = sorted({i.claim for of_class in by_class.values() for of_kind in of_class.values() for i in of_kind})
    if len(by_class) == 1 and claims == [""]:
        raise DataError(
            f"query_pretraining_steps: all queries are about {next(iter(by_class))} and claim nothing more, so they "
            "would learn to say the same; 0 would be right"
        )
    of_class, of_claim = (
        {key: torch.from_numpy(rng.normal(0, std, width)).float() for key in keys}
        for keys, std in ((sorted(by_class), PROMPT_STD), (claims, PROMPT_STD * claim_scale))
    )
    return of_class, of_claim | {"": torch.zeros(width)}  # nothing but the class


def without_masks(inputs: dict) -> dict[str, torch.Tensor]:
    """What the language side needs: SAM is not run."""
    left_out = ("sam_pixel_values", "mask_labels", "reshaped_input_sizes", "original_sizes")
    return {name: value for name, value in inputs.items() if name not in left_out}
