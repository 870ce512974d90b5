"""Adapter + base -> one plain CORA folder that needs neither peft nor the base."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel

from .checkpoint_shards import ConversionError
from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import CoraProcessor


def merge_adapter(adapter: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> None:
    """W + (alpha / r) B A; peft adds the product, which it has in the adapter's precision, and rounds once.

    Args:
        adapter: folder or Hub id that a LoRA training wrote.
        out: new folder, whole or not there.
        dtype: of the result; the base's own where not given.

    Raises:
        ConversionError: no adapter, its base cannot be loaded, or `out` holds something.
    """
    out = Path(out)
    refuse_filled(out)
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise ConversionError(f"--adapter {adapter}: holds no adapter ({str(error).splitlines()[0]})") from None
    try:
        base = CoraForReasoningSegmentation.from_pretrained(config.base_model_name_or_path, dtype=dtype or "auto")
        processor = CoraProcessor.from_pretrained(str(adapter))
    except (OSError, ValueError) as error:
        raise ConversionError(f"--adapter {adapter}: {str(error).splitlines()[0]}") from None
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(progressbar=True).to(base.dtype)
    save_whole(merged, processor, out)


def refuse_filled(out: Path) -> None:
    """Raises:
    ConversionError: the folder holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise ConversionError(f"--out {out}: is not empty; a new folder would be right")


def save_whole(model: CoraForReasoningSegmentation, processor: CoraProcessor, out: Path) -> None:
    """Model and processor in a new or empty folder, which appears whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    if out.exists():
        out.rmdir()
    partial.rename(out)


__all__ = ["merge_adapter", "refuse_filled", "save_whole"]
