"""SAM's decoder on embeddings averaged over squares (`CoraConfig.embedding_pooling`): time and memory of a query.

    python benchmarks/embedding_pooling.py [--queries 8]

Forward and backward of `decode_masks` at SAM's real sizes (64x64 embeddings of width 256), random weights. Memory: the
peak above the model, each way in a process of its own (on a GPU: of the allocator). Time: the median, as a part of the
first way's.

The last line is `ratio: N`, time without pooling / time of squares of 4x4.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import SamConfig, SamModel

from benchmarks.queries import memory_and_seconds
from modeling_cora import CoraForReasoningSegmentation

WAYS = (1, 2, 4)


def measure(pooling: int, queries: int, repeats: int, device: str) -> tuple[float, float]:
    """(MiB, seconds) of one way."""
    torch.manual_seed(0)
    model = CoraForReasoningSegmentation.__new__(CoraForReasoningSegmentation)
    torch.nn.Module.__init__(model)
    model.config = SimpleNamespace(embedding_pooling=pooling)
    # the encoder is not run
    model.sam = SamModel(SamConfig(vision_config={"num_hidden_layers": 1})).to(device)
    embeddings = torch.randn(1, 256, 64, 64, device=device)
    prompts = torch.randn(queries, 256, device=device).requires_grad_()
    owner = torch.zeros(queries, dtype=torch.long, device=device)

    def once() -> None:
        model.decode_masks(embeddings, prompts, owner)[0].square().mean().backward()

    return memory_and_seconds(once, repeats, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    results = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[way] = pool.apply(measure, (way, given.queries, given.repeats, given.device))
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{given.queries} queries, {where}")
    for way, (memory, median) in results.items():
        print(f"squares of {way}x{way}  {memory:8.0f} MiB   time x {median / results[1][1]:.3f}")
    print(f"ratio: {results[1][1] / results[4][1]:.2f}")


if __name__ == "__main__":
    main()
