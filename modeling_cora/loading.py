"""Trained models, checked as they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from publishing.command_line import OneLineError
from publishing.hub import cause, reason

from .modeling_cora import CoraForReasoningSegmentation
from .named_models import ModelNotFoundError
from .processing_cora import CoraProcessor


class ModelLoadError(OneLineError):
    """A model that cannot be used, told in one line that names it."""


def load_trained(model: str, **kwargs: Any) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """Model (in eval mode) and processor of a folder or Hub id.

    Args:
        kwargs: go to the model's `from_pretrained`.

    Raises:
        ModelLoadError: no such model, a file cut short, or weights that do not fit their configuration.
    """
    loaded = load_model(model, **kwargs)
    with _one_line(model, "processor or tokenizer"):
        return loaded, CoraProcessor.from_pretrained(model)


def load_model(model: str, **kwargs: Any) -> CoraForReasoningSegmentation:
    """As `load_trained`, for a folder that may hold no processor."""
    with _one_line(model, "config.json or weights"):
        _refuse_what_is_no_model(model)
        loaded, info = CoraForReasoningSegmentation.from_pretrained(model, output_loading_info=True, **kwargs)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            keys = ", ".join(map(str, sorted(info[problem])[:5]))
            raise ModelLoadError(f"{model}: {problem.replace('_', ' ')}: {keys}")
    return loaded.eval()


def _refuse_what_is_no_model(model: str) -> None:
    """transformers would take a folder that is not there for a Hub id, and one without a config.json for a model."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith("."):
            raise OSError("no such folder")
    elif not any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
        instead = f"; {folder / 'model'} would be right" if (folder / "model").is_dir() else ""
        raise OSError(f"has no {CONFIG_NAME}{instead}")


def pick_device(name: str | None = None) -> torch.device:
    """By default a GPU where there is one.

    Raises:
        ModelLoadError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # torch asserts that it was built for CUDA
        raise ModelLoadError(f"--device {name}: not to be had here; cpu and cuda are the usual ones") from None


@contextmanager
def _one_line(model: str, files: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # configurations and tokenizers check every value in their own way, or not at all
        lines = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, ModelNotFoundError):
            why = ". ".join(lines)  # the second line says how to make the model
        elif isinstance(error, OSError | ValueError | RuntimeError):
            why = reason(found) if (found := cause(error)) else lines[0][:300]
        else:
            why = f"{files}: {' '.join(' '.join(lines).split())[:300]}"
        raise ModelLoadError(f"{model}: cannot be loaded as a CORA model: {why}") from None


__all__ = ["ModelLoadError", "load_model", "load_trained", "pick_device"]
