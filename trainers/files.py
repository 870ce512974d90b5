"""Files that are whole or absent: atomic text, and trained models."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor

from .command_line import UsageError


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file that readers see whole or not at all; makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


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
        raise UsageError(f"{model}: cannot be loaded as a CORA model ({str(error).splitlines()[0]})") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise UsageError(f"{model}: {problem.replace('_', ' ')}: {', '.join(map(str, sorted(info[problem])[:5]))}")
    return loaded.eval(), processor
