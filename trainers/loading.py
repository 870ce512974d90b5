"""What commands begin with: their `--model`, their processes."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from datasets_scripts.command_line import UsageError
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor, loading

from .adapters import check_record


def inference_accelerator() -> Accelerator:
    """For programs that share images out and meet at the end: one that is done waits for the others a day, and not the
    ten minutes after which NCCL stops all of them."""
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])


def load_trained(model: str) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """Model (in eval mode) and processor of a folder or Hub id.

    Raises:
        UsageError: none is named, or see `modeling_cora.loading`, or `check_record` for an adapter.
    """
    if not model:
        raise UsageError("--model: not given; a folder or Hub id with a CORA model, such as runs/demo/model")
    try:
        loaded, processor = loading.load_trained(model)
    except loading.ModelLoadError as error:
        raise UsageError(str(error)) from None
    if getattr(loaded, "_hf_peft_config_loaded", False):
        check_record(model, loaded.config)
    return loaded, processor
