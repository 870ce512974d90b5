"""Adapter + base -> one plain CORA folder that needs neither peft nor the base.

python trainers/merge_adapter.py --adapter runs/mine --out runs/mine-merged [--dtype bfloat16]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil

import torch
from peft import PeftConfig, PeftModel

from datasets_scripts.command_line import ArgumentParser, UsageError, one_line_errors
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge_adapter(adapter: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> None:
    """W + (alpha / r) B A; peft adds the product, which it has in the adapter's precision, and rounds once.

    Args:
        dtype: of the result; the base's own where not given.

    Raises:
        UsageError: no adapter, its base cannot be loaded, or `out` exists.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out}: is not empty; a new folder would be right")
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise UsageError(f"--adapter {adapter}: holds no adapter ({str(error).splitlines()[0]})") from None
    try:
        base = CoraForReasoningSegmentation.from_pretrained(config.base_model_name_or_path, dtype=dtype or "auto")
        processor = CoraProcessor.from_pretrained(str(adapter))
    except (OSError, ValueError) as error:
        raise UsageError(f"--adapter {adapter}: {str(error).splitlines()[0]}") from None
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(progressbar=True).to(base.dtype)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    processor.save_pretrained(partial)
    if out.exists():
        out.rmdir()
    partial.rename(out)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description="Merges a LoRA adapter into its base.")
    parser.add_argument("--adapter", required=True, help="folder or Hub id that a LoRA training wrote")
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="of the weights; default: the base's")
    arguments = parser.parse_args(argv)
    merge_adapter(arguments.adapter, arguments.out, DTYPES.get(arguments.dtype))


if __name__ == "__main__":
    main()
