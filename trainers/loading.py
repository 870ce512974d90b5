"""Trained models, checked as they are loaded."""

from __future__ import annotations

from safetensors import SafetensorError

from datasets_scripts.command_line import UsageError
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor, ModelNotFoundError
from publishing.hub import cause, reason


def load_trained(model: str) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """Model (in eval mode) and processor of a folder or Hub id.

    Raises:
        UsageError: no such model, a file cut short, or weights that do not fit their configuration.
    """
    if not model:
        raise UsageError("--model: not given; a folder or Hub id with a CORA model, such as runs/demo/model")
    try:
        loaded, info = CoraForReasoningSegmentation.from_pretrained(model, output_loading_info=True)
        processor = CoraProcessor.from_pretrained(model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, ModelNotFoundError):
            why = ". ".join(lines)  # the second line says how to make the model
        else:
            why = reason(found) if (found := cause(error)) else lines[0]
        raise UsageError(f"{model}: cannot be loaded as a CORA model: {why}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise UsageError(f"{model}: {problem.replace('_', ' ')}: {', '.join(map(str, sorted(info[problem])[:5]))}")
    return loaded.eval(), processor
