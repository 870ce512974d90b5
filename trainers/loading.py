"""What commands begin with: their `--model`, their processes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from datasets_scripts.command_line import UsageError
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor, loading
from modeling_cora.named_models import resolve_name

from .adapters import check_record

HALF = {"BF16": torch.bfloat16, "F16": torch.float16}
"""By their names in safetensors."""


def inference_accelerator() -> Accelerator:
    """For programs that share images out and meet at the end: one that is done waits for the others a day, and not the
    ten minutes after which NCCL stops all of them. fp32 products may use tensor cores (TF32), as in training."""
    torch.set_float32_matmul_precision("high")
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])


def half_with_trained_parts(model: str) -> torch.dtype | None:
    """The half type of a model's frozen parts, where others are fp32, as after a training without LoRA; else None.

    Args:
        model: folder, Hub id or `cora-tiny`.
    """
    types: set[str] = set()
    try:
        for path in [] if model == "cora-tiny" else _weights(resolve_name(model)):
            with safe_open(path, "pt") as file:  # its head alone
                types |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError):
        return None  # whoever loads it says what is wrong
    return next((dtype for name, dtype in HALF.items() if {"F32", name} <= types), None)


def _weights(model: str) -> list[str]:
    """The files that `from_pretrained` loads."""
    try:
        return [cached_file(model, SAFE_WEIGHTS_NAME)]
    except OSError:
        return get_checkpoint_shard_files(model, cached_file(model, SAFE_WEIGHTS_INDEX_NAME))[0]


def load_trained(model: str, **kwargs: Any) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """Model (in eval mode) and processor of a folder or Hub id.

    Args:
        kwargs: go to the model's `from_pretrained`.

    Raises:
        UsageError: none is named; see `check_record` for an adapter.
        ModelLoadError: see `modeling_cora.loading`.
    """
    if not model:
        raise UsageError("--model: not given; a folder or Hub id with a CORA model, such as runs/demo/model")
    loaded, processor = loading.load_trained(model, **kwargs)
    if getattr(loaded, "_hf_peft_config_loaded", False):
        check_record(model, loaded.config)
    return loaded, processor
