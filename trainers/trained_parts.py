"""What trains: which parts in full, which by LoRA, which not at all; and the table that says so."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from datasets_scripts.command_line import UsageError
from modeling_cora import CoraForReasoningSegmentation

from .arguments import TrainedPartsArguments

PARTS = (
    "vision_tower", "connector", "embeddings", "language_model", "lm_head",
    "seg_projector", "anchor_encoder", "sam_encoder", "prompt_encoder", "mask_decoder",
)  # fmt: skip
LISA_PARTS = ("embeddings", "lm_head", "seg_projector", "anchor_encoder", "mask_decoder")
"""Trained in full by LISA (`train_ds.py`), beside LoRA on the language model's q_proj and v_proj; and the anchor
encoder, which LISA has not, where the model has one."""


def select_trained_parts(
    model: CoraForReasoningSegmentation, arguments: TrainedPartsArguments, random_start: bool = False
) -> CoraForReasoningSegmentation | PeftModel:
    """Freezes every parameter that is not to be trained; with LoRA, wraps the model.

    What trains becomes fp32, whatever the model is stored in: bfloat16 has 8 significant bits, so a step of 2e-5 would
    leave a weight of 0.02 as it is, without a word.

    Args:
        random_start: nothing is pretrained, so everything trains where the arguments leave it open; LISA's choice
            else.

    Raises:
        UsageError: an unknown part, no linear layer of the named ones, or a combination that makes no sense, such as
            one of two names of a table that are tied.
    """
    rank = arguments.lora_r if arguments.lora_r is not None else (0 if random_start else 8)
    parts = arguments.trained_parts or (PARTS if random_start else LISA_PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UsageError(f"trained_parts: {unknown[0]!r} is not one of {', '.join(PARTS)}")
    if model.config.anchor_token_id is None:
        parts = tuple(part for part in parts if part != "anchor_encoder")
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if tied and "lm_head" in parts and "embeddings" not in parts:
        raise UsageError("trained_parts: lm_head is one table with embeddings in this model; both would be right")
    if not rank:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_part_of(model, name) in parts)
        return _trained_in_fp32(model)
    if random_start:
        raise UsageError(f"lora_r {rank}: an adapter needs a saved base; a random start takes --lora_r 0")
    if "language_model" in parts:
        raise UsageError(f"trained_parts: language_model is trained by LoRA (lora_r {rank}) already; leave one out")
    decoder = _name_of(model, model.vlm.get_decoder())
    targets = rf"{re.escape(decoder)}\..*\b({'|'.join(map(re.escape, sorted(arguments.lora_target_modules)))})"
    found = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and re.fullmatch(targets, n)]
    if not found:
        names = sorted({n.rpartition(".")[2] for n, m in model.vlm.get_decoder().named_modules()
                        if isinstance(m, torch.nn.Linear)})  # fmt: skip
        raise UsageError(f"lora_target_modules: {arguments.lora_target_modules} fit no layer; there are {names}")
    config = LoraConfig(
        r=rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        modules_to_save=[
            name for part in parts if not (tied and part == "lm_head") for name in _modules_of(model, part)
        ],
        ensure_weight_tying=tied,
    )
    return _trained_in_fp32(get_peft_model(model, config))


def parameter_counts(model: torch.nn.Module) -> dict[str, list[int]]:
    """Parameters, how many of them train, and bytes of their weights, for each part and for "all".

    The parts are disjoint; an adapter's frozen originals of the parts that it trains in full are one of their own,
    since they take memory.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    rows: dict[str, list[int]] = {}
    for name, parameter in base.named_parameters():
        row = rows.setdefault(_row_of(base, name), [0, 0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() * parameter.requires_grad
        row[2] += parameter.numel() * parameter.element_size()
    order = {part: place for place, part in enumerate(PARTS)}
    rows = dict(sorted(rows.items(), key=lambda item: order.get(item[0], len(order))))
    return {**rows, "all": [sum(row[column] for row in rows.values()) for column in range(3)]}


def parameter_table(model: torch.nn.Module) -> str:
    """`parameter_counts` as text, with MiB."""
    rows = parameter_counts(model)
    lines = [f"{'part':<16}{'parameters':>16}{'trained':>16}{'MiB':>10}"]
    lines += [f"{name:<16}{row[0]:>16,}{row[1]:>16,}{row[2] / 2**20:>10,.1f}" for name, row in rows.items()]
    return "\n".join(lines)


def _trained_in_fp32(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def frozen_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Frozen parameters in a type, in place; trained ones stay as they are."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _row_of(model: CoraForReasoningSegmentation, name: str) -> str:
    if "lora_" in name:
        return "LoRA"
    if ".original_module." in name:
        return "frozen originals"
    return _part_of(model, re.sub(r"\.base_layer|\.modules_to_save\.[^.]+", "", name))


def _part_of(model: CoraForReasoningSegmentation, name: str) -> str:
    """The part that a parameter of the unwrapped model belongs to."""
    for part, prefix in _prefixes(model).items():
        if name.startswith(prefix + "."):
            return part
    if name.startswith("vlm."):
        # whatever else the VLM has is on the way from the image to the language model
        return "connector" if re.search(r"connector|projector|merger", name) else "vision_tower"
    return "prompt_encoder"  # SAM's shared positional embedding


def _prefixes(model: CoraForReasoningSegmentation) -> dict[str, str]:
    """Module names of the parts that are one module, the innermost first."""
    return {
        "embeddings": _name_of(model, model.get_input_embeddings()),
        "lm_head": _name_of(model, model.get_output_embeddings()),
        "language_model": _name_of(model, model.vlm.get_decoder()),
        "seg_projector": "seg_projector",
        "anchor_encoder": "anchor_encoder",
        "sam_encoder": "sam.vision_encoder",
        "prompt_encoder": "sam.prompt_encoder",
        "mask_decoder": "sam.mask_decoder",
    }


def _modules_of(model: CoraForReasoningSegmentation, part: str) -> Sequence[str]:
    prefixes = _prefixes(model)
    if part in prefixes:
        return [prefixes[part]]
    # the outermost modules of which every parameter belongs to the part
    found: list[str] = []
    for name, module in model.named_modules():
        owned = [f"{name}.{p}" for p, _ in module.named_parameters()]
        inside = any(name.startswith(outer + ".") for outer in found)
        if name and owned and not inside and all(_part_of(model, p) == part for p in owned):
            found.append(name)
    return found


def _name_of(model: torch.nn.Module, module: torch.nn.Module) -> str:
    """The name of a module; an adapter's wrappers around it are not part of the name."""
    name = next(name for name, candidate in model.named_modules() if candidate is module)
    return re.sub(r"\.modules_to_save\.[^.]+$|\.original_module$", "", name)
