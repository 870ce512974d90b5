"""Adapter + base -> one plain CORA folder that needs neither peft nor the base."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError

from publishing.command_line import first_line

from .checkpoint_shards import ConversionError
from .conversion import whole_folder
from .loading import load_model
from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import CoraProcessor


def merge_adapter(
    adapter: str | Path, out: str | Path, dtype: torch.dtype | None = None, record: str | Path | None = None
) -> None:
    """W + (alpha / r) B A; peft adds the product, which it has in the adapter's precision, and rounds once.

    Args:
        adapter: folder or Hub id that a LoRA training wrote.
        out: new folder, whole or not there.
        dtype: of the result; the base's own where not given.
        record: a file that goes with it, `training.json` of what it is made of.

    Raises:
        ConversionError: no adapter, or a damaged one; its base cannot be loaded whole; `out` holds something.
    """
    with whole_folder(out, "--out") as folder:
        merged, processor = _merged(str(adapter), dtype)
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)
        if record is not None:
            shutil.copy(record, folder)


def _merged(adapter: str, dtype: torch.dtype | None) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise ConversionError(f"--adapter {adapter}: holds no adapter ({first_line(error)})") from None
    if not config.base_model_name_or_path:
        raise ConversionError(f"--adapter {adapter}: adapter_config.json names no base_model_name_or_path")
    try:
        base = load_model(config.base_model_name_or_path, dtype=dtype or "auto")
        processor = CoraProcessor.from_pretrained(adapter)
        wrapped = PeftModel.from_pretrained(base, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConversionError(f"--adapter {adapter}: {' '.join(str(error).split())[:500]}") from None
    return wrapped.merge_and_unload(progressbar=True).to(base.dtype), processor


__all__ = ["merge_adapter"]
