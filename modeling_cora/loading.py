"""Trained models, checked as they are loaded."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from publishing.hub import cause, reason

from .modeling_cora import CoraForReasoningSegmentation
from .named_models import ModelNotFoundError
from .processing_cora import CoraProcessor


class ModelLoadError(ValueError):
    """A model that cannot be used, told in one line that names it."""


def load_trained(model: str, **kwargs: Any) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """Model (in eval mode) and processor of a folder or Hub id.

    Args:
        kwargs: go to the model's `from_pretrained`.

    Raises:
        ModelLoadError: no such model, a file cut short, or weights that do not fit their configuration.
    """
    try:
        loaded, info = CoraForReasoningSegmentation.from_pretrained(model, output_loading_info=True, **kwargs)
        processor = CoraProcessor.from_pretrained(model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, ModelNotFoundError):
            why = ". ".join(lines)  # the second line says how to make the model
        else:
            why = reason(found) if (found := cause(error)) else lines[0]
        raise ModelLoadError(f"{model}: cannot be loaded as a CORA model: {why}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            keys = ", ".join(map(str, sorted(info[problem])[:5]))
            raise ModelLoadError(f"{model}: {problem.replace('_', ' ')}: {keys}")
    return loaded.eval(), processor


__all__ = ["ModelLoadError", "load_trained"]
