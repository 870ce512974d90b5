"""10 queries about one image: packed behind it as branches, against one forward pass for each.

    python benchmarks/queries.py

One run on one model (`cora-tiny` with 256 image tokens, random weights). Both ways take the same inputs through the
same code; the separate way is what LISA, SegLLM and Sa2VA do. Speed: the medians of alternating runs. Memory: the peak
of each way above the loaded model, each in a process of its own (on a GPU: of the allocator).

The last line is `ratio: N`, separate time / packed time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from modeling_cora.presets import cora_tiny

QUERIES = [
    "Can you segment the road in this image?",
    "the vehicle with four wheels",
    "Where is the sky?",
    "Please outline every tree.",
    "the living being that walks on two legs",
    "Segment the traffic light.",
    "Which part of the picture is a building?",
    "the sign that tells drivers what to do",
    "Show me the sidewalk.",
    "the large vehicle that carries many passengers",
]


def build(device: str) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Two functions that give the low-resolution masks (10, 64, 64): packed, and one by one."""
    model, processor = cora_tiny(QUERIES, seed=0, clip_image_size=224)
    model.eval().to(device)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    packed_inputs = processor(image, QUERIES).to(device)
    separate_inputs = [processor(image, query).to(device) for query in QUERIES]
    for inputs in (packed_inputs, *separate_inputs):
        del inputs["labels"]

    @torch.no_grad()
    def packed() -> torch.Tensor:
        return model(**packed_inputs).pred_masks

    @torch.no_grad()
    def separate() -> torch.Tensor:
        return torch.cat([model(**inputs).pred_masks for inputs in separate_inputs])

    return packed, separate


def seconds(function: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory_and_seconds(function: Callable[[], object], repeats: int, device: str) -> tuple[float, float]:
    """Peak memory of the first call above what lay there before, in MiB, and the median time of `repeats` more. To be
    asked once in a process: of the CPU's memory only the process's highest peak is known."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    return memory, statistics.median(seconds(function) for _ in range(repeats))


def peak_memory(which: int, device: str) -> float:
    """MiB above the loaded model while one way runs once."""
    if device == "cuda":
        function = build(device)[which]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function = build(device)[which]
    loaded = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = [pool.apply(peak_memory, (which, arguments.device)) for which in (0, 1)]
    packed, separate = build(arguments.device)
    difference = (packed() - separate()).abs().max().item() / separate().abs().max().item()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(arguments.repeats):
        times[0].append(seconds(packed))
        times[1].append(seconds(separate))
    medians = [statistics.median(t) for t in times]
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"cora-tiny, 256 image tokens, 10 queries on one image, {arguments.repeats} runs, {where}")
    print(f"largest relative difference of the masks: {difference:.1e}")
    print(f"peak memory above the model: packed {memory[0]:.0f} MiB, one by one {memory[1]:.0f} MiB")
    if arguments.device == "cuda":
        print(f"median time: packed {1e3 * medians[0]:.1f} ms, one by one {1e3 * medians[1]:.1f} ms")
    print(f"ratio: {medians[1] / medians[0]:.2f}")


if __name__ == "__main__":
    main()
