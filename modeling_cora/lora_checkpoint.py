"""Adapters of peft: their names, and merging them into the weights that they adapt."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from .checkpoint_shards import ConversionError, read_json

# LISA: train_ds.py, --lora_alpha
LISA_ALPHA = 16.0

_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")


def lora_alpha(folder: Path) -> tuple[float, bool]:
    """(lora_alpha, whether it is divided by the root of the rank) of an adapter's folder.

    Raises:
        ConversionError: no `adapter_config.json`, or a kind of adapter that is more than `W + scale * B @ A`.
    """
    config = read_json(folder / "adapter_config.json")
    for field in ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern", "lora_bias"):
        if config.get(field):
            raise ConversionError(f"{folder}/adapter_config.json: {field} is set; only plain LoRA can be merged")
    if config.get("bias", "none") != "none":
        raise ConversionError(f"{folder}/adapter_config.json: bias is {config['bias']!r}; only 'none' can be merged")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise ConversionError(f"{folder}/adapter_config.json: has no lora_alpha")
    return float(config["lora_alpha"]), bool(config.get("use_rslora"))


def merge_lora(
    tensors: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor], alpha: float, rslora: bool, where: str
) -> dict[str, torch.Tensor]:
    """The weights without peft: adapted ones as W + scale * B @ A in fp32, trained copies instead of the originals.

    Args:
        tensors: of the model, under its own names or peft's (`base_model.model.*`).
        adapter: of the adapter; empty where the factors lie among `tensors`.
        alpha: scale = alpha / rank, or alpha / sqrt(rank) with `rslora`.

    Raises:
        ConversionError: half a pair of factors, factors of other shapes, or of a weight that is not there.
    """
    weights: dict[str, torch.Tensor] = {}
    trained: dict[str, torch.Tensor] = {}
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for of_adapter, source in ((False, tensors), (True, adapter)):
        for key, tensor in source.items():
            name = key.removeprefix("base_model.model.")
            if match := _FACTOR.fullmatch(name):
                factors.setdefault(match[1], {})[match[2]] = tensor
            elif ".modules_to_save." in name:
                trained[re.sub(r"\.modules_to_save\.\w+\.", ".", name)] = tensor
            elif of_adapter:
                trained[name] = tensor
            else:
                weights[name.replace(".original_module.", ".").replace(".base_layer.", ".")] = tensor
    weights |= trained
    for module, pair in factors.items():
        name = f"{module}.weight"
        if set(pair) != {"A", "B"}:
            raise ConversionError(f"{where}: {module} has lora_{min(pair)} alone")
        if name not in weights:
            raise ConversionError(f"{where}: an adapter of {name}, which the checkpoint does not have")
        a, b, weight = pair["A"].shape, pair["B"].shape, weights[name].shape
        if not len(a) == len(b) == len(weight) == 2 or (b[0], a[1]) != weight or b[1] != a[0]:
            raise ConversionError(
                f"{where}: {module}: lora_A {list(a)} and lora_B {list(b)} do not adapt {list(weight)}"
            )
        rank = math.sqrt(a[0]) if rslora else a[0]
        weights[name] = weights[name].float() + alpha / rank * (pair["B"].float() @ pair["A"].float())
    return weights
