"""Adapter + base -> one plain CORA folder that needs neither peft nor the base."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError

from .checkpoint_shards import ConversionError
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
        record: see `save_whole`.

    Raises:
        ConversionError: no adapter, or a damaged one; its base cannot be loaded whole; `out` holds something.
    """
    out = Path(out)
    refuse_filled(out)
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise ConversionError(f"--adapter {adapter}: holds no adapter ({str(error).splitlines()[0]})") from None
    if not config.base_model_name_or_path:
        raise ConversionError(f"--adapter {adapter}: adapter_config.json names no base_model_name_or_path")
    try:
        base = load_model(config.base_model_name_or_path, dtype=dtype or "auto")
        processor = CoraProcessor.from_pretrained(str(adapter))
        wrapped = PeftModel.from_pretrained(base, str(adapter))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConversionError(f"--adapter {adapter}: {' '.join(str(error).split())[:500]}") from None
    merged = wrapped.merge_and_unload(progressbar=True).to(base.dtype)
    save_whole(merged, processor, out, record)


def refuse_filled(out: Path) -> None:
    """Raises:
    ConversionError: it is a file, or a folder that holds something.
    """
    if out.is_file():
        raise ConversionError(f"--out {out}: is a file; a new folder would be right")
    if out.exists() and any(out.iterdir()):
        raise ConversionError(f"--out {out}: is not empty; a new folder would be right")


def save_whole(
    model: CoraForReasoningSegmentation, processor: CoraProcessor, out: Path, record: str | Path | None = None
) -> None:
    """Model and processor in a new or empty folder, which appears whole or not at all.

    Args:
        record: a file that goes with them, `training.json` of what they are made of.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    if record is not None:
        shutil.copyfile(record, partial / Path(record).name)
    if out.exists():
        out.rmdir()
    partial.rename(out)


__all__ = ["merge_adapter", "refuse_filled", "save_whole"]
