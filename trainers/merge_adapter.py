"""Adapter + base -> one plain CORA folder that needs neither peft nor the base, with the record of its training.

python trainers/merge_adapter.py --adapter runs/mine --out runs/mine-merged [--dtype bfloat16]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets_scripts.command_line import ArgumentParser, one_line_errors
from modeling_cora.conversion import DTYPES
from modeling_cora.merging import merge_adapter
from trainers.training_record import record_path


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description="Merges a LoRA adapter into its base.")
    parser.add_argument("--adapter", required=True, help="folder or Hub id that a LoRA training wrote")
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="of the weights; default: the base's")
    arguments = parser.parse_args(argv)
    merge_adapter(arguments.adapter, arguments.out, DTYPES.get(arguments.dtype), record_path(arguments.adapter))


if __name__ == "__main__":
    main()
