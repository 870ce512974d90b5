"""Words before pixels: a start for a language model that knows none.

CORA's language model is pretrained and tells "road" from "sky" before it sees the first mask. One with random weights
gives nearly the same `[SEG]` embedding for every query; SAM's decoder then learns to ignore its prompt, and both stay
there for long. So each class gets a random prompt at the scale of SAM's own, and the language model learns to say it
for every query of that class: seconds, since SAM is not run. Only texts and class names of the training instructions
are used, no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from datasets_scripts.records import Instruction, Scene, read_image
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
    prompts = torch.from_numpy(rng.normal(0, PROMPT_STD, (len(names), width))).float().to(model.device)
    parameters = [p for part in (model.vlm, model.seg_projector) for p in part.parameters() if p.requires_grad]
    steps = arguments.query_pretraining_steps
    optimizer = torch.optim.AdamW(parameters, arguments.query_pretraining_learning_rate, (0.9, 0.95), weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    error = float("nan")
    bar = tqdm(range(steps), desc="query pretraining", unit="step", disable=not progress)
    for _ in bar:
        classes = rng.integers(len(names), size=arguments.query_pretraining_queries)
        chosen = [by_class[names[c]][rng.integers(len(by_class[names[c]]))] for c in classes]
        inputs = processor(
            [read_image(scenes[rng.integers(len(scenes))].image)],
            [[rng.choice([i.query, *i.rephrasings]).item() for i in chosen]],
            answers=[[i.answer for i in chosen]],
        ).to(model.device)
        del inputs["sam_pixel_values"]
        with autocast():
            output = model(**inputs)
        loss = torch.nn.functional.mse_loss(output.seg_embeddings.float(), prompts[torch.from_numpy(classes)])
        optimizer.zero_grad()
        (loss + 0.1 * output.lm_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        error = loss.item()
        bar.set_postfix(error=f"{error:.3f}")
    return error
