"""The mask loss at label size (LISA), on the decoder's grid, or at 12,544 points (Sa2VA): memory and time.

    python benchmarks/mask_loss.py [--masks 8 --height 1024 --width 2048]

Forward and backward of `mask_losses` alone, at SAM's real sizes (logits of 256x256, input of 1024, a Cityscapes label
map). Memory: the peak above the inputs, each way in a process of its own (on a GPU: of the allocator). Time: the
median, as a multiple of the first way's.

The last line is `ratio: N`, memory at label size / memory at points.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.queries import memory_and_seconds
from modeling_cora.losses import mask_losses
from modeling_cora.modeling_cora import CoraOutput

WAYS = ("labels", "low_res", "points")


def measure(way: str, masks: int, height: int, width: int, repeats: int, device: str) -> tuple[float, float]:
    """(MiB, seconds) of one way."""
    torch.manual_seed(0)
    config = SimpleNamespace(
        sam_config=SimpleNamespace(vision_config=SimpleNamespace(image_size=1024)), mask_loss_at=way,
        mask_loss_points=12544, mask_loss_oversampling=3.0, mask_loss_importance=0.75,
    )  # fmt: skip
    logits = torch.randn(masks, 256, 256, device=device).requires_grad_()
    labels = [(torch.rand(masks, height, width, device=device) < 0.3).to(torch.uint8)]
    scale = 1024 / max(height, width)
    reshaped = torch.tensor([[round(height * scale), round(width * scale)]])
    output = CoraOutput(
        pred_masks=logits, iou_scores=torch.zeros(masks, device=device), seg_embeddings=logits,
        seg_batch_index=torch.zeros(masks, dtype=torch.long, device=device),
    )  # fmt: skip

    def once() -> None:
        sum(mask_losses(config, output, labels, reshaped).values()).backward()

    return memory_and_seconds(once, repeats, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=8)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    results = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = (way, given.masks, given.height, given.width, given.repeats, given.device)
            results[way] = pool.apply(measure, arguments)
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{given.masks} masks of {given.width}x{given.height}, {where}")
    for way, (memory, median) in results.items():
        print(f"{way:<8} {memory:8.0f} MiB   time x {median / results['labels'][1]:.2f}")
    print(f"ratio: {results['labels'][0] / results['points'][0]:.2f}")


if __name__ == "__main__":
    main()
