"""The real size on this machine: `cora-7b` with random bf16 weights answers queries and trains.

    python benchmarks/full_size.py --size cora-7b                 one answer on a CPU needs about 19 GiB and minutes
    python benchmarks/full_size.py --size cora-7b --train         on a GPU: LoRA at batch 2 with gradient checkpointing
    python benchmarks/full_size.py                                the same code at the size of a laptop, in seconds

Reports seconds and peak memory for 1 query, for several packed ones, and for the same ones one by one; with `--train` a
training step (LISA's recipe), and with `--four_bit` its memory with a 4-bit language model (bitsandbytes). Weights are
random, so answers mean nothing and times are those of the real model.

The last line is `ratio: N`, seconds one by one / seconds packed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from accelerate.hooks import LayerwiseCastingHook, add_hook_to_module
from accelerate.utils.constants import SUPPORTED_PYTORCH_LAYERS_FOR_UPCASTING
from PIL import Image
from transformers.initialization import no_init_weights

from benchmarks.queries import seconds
from modeling_cora import SEG_TOKEN, CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.presets import cora_7b_config, cora_tiny_config, processor_of, train_query_tokenizer
from trainers.arguments import TrainedPartsArguments
from trainers.trained_parts import parameter_table, select_trained_parts

QUERIES = [f"Can you segment the {name} on the {side}?" for name in ("car", "tree", "house", "sign", "person")
           for side in ("left", "right")]  # fmt: skip


def build(size: str, device: str) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """Random weights in bf16; every tensor is made once, in its place."""
    tokenizer = train_query_tokenizer(QUERIES)
    config = cora_7b_config() if size == "cora-7b" else cora_tiny_config(tokenizer)
    config.vlm_config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config.seg_token_id = tokenizer.convert_tokens_to_ids(SEG_TOKEN)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device), no_init_weights():
            model = CoraForReasoningSegmentation(config)
    finally:
        torch.set_default_dtype(default)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1.0)
    return model.eval(), processor_of(config, tokenizer)


class ComputeInSingle(LayerwiseCastingHook):
    """Weights in bf16, arithmetic in fp32: a CPU without bf16 instructions takes ten times as long in bf16."""

    def pre_forward(self, module: torch.nn.Module, *args, **kwargs):
        args, kwargs = super().pre_forward(module, *args, **kwargs)
        return tuple(a.to(self.compute_dtype) for a in args), kwargs


def compute_in_single(model: torch.nn.Module) -> None:
    """The large matrices stay in bf16; what else there is (norms, embeddings, positions: 1 GiB) becomes fp32."""
    for module in list(model.modules()):
        if isinstance(module, SUPPORTED_PYTORCH_LAYERS_FOR_UPCASTING):
            add_hook_to_module(module, ComputeInSingle(torch.bfloat16, torch.float32, non_blocking=False))
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


def peak_gib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median seconds; on a GPU after a first run that does not count."""
    if torch.cuda.is_available():
        seconds(function)
    return statistics.median(seconds(function) for _ in range(repeats))


def answer_times(model, processor, image, queries: list[str], repeats: int, device: str) -> tuple[float, float, float]:
    """Seconds for one query, for all packed, and for all one by one (estimated from the first on a CPU)."""

    def inputs_of(asked: list[str]) -> dict:
        inputs = processor(image, asked).to(device)
        del inputs["labels"]
        return dict(inputs)

    @torch.no_grad()
    def ask(inputs: dict) -> None:
        masks = model(**inputs).pred_masks
        if not bool(torch.isfinite(masks).all()):
            raise ArithmeticError("masks that are not finite")

    single, packed = inputs_of(queries[:1]), inputs_of(queries)
    separate = [inputs_of([query]) for query in queries]
    one = timed(lambda: ask(single), repeats)
    together = timed(lambda: ask(packed), repeats)
    if device == "cuda" or one < 5:
        return one, together, timed(lambda: [ask(inputs) for inputs in separate], repeats)
    return one, together, one * len(queries)


def training_step(model, processor, image, repeats: int, device: str, autocast: bool) -> float:
    """Seconds of forward, backward and AdamW, two images with three queries each, gradient checkpointing.

    Args:
        autocast: to bf16; trained weights are fp32, frozen ones bf16.
    """
    wrapped = select_trained_parts(model, TrainedPartsArguments())
    print(parameter_table(wrapped))
    wrapped.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    masks = [np.zeros((3, image.height, image.width), np.uint8)] * 2
    inputs = dict(processor([image, image], [QUERIES[:3], QUERIES[3:6]], mask_labels=masks).to(device))
    inputs["mask_labels"] = [m.to(device) for m in inputs["mask_labels"]]
    optimizer = torch.optim.AdamW((p for p in wrapped.parameters() if p.requires_grad), 1e-5)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = wrapped(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, repeats)


def four_bit(model: CoraForReasoningSegmentation) -> CoraForReasoningSegmentation:
    """The language model's linear layers in NF4, everything else as it is (QLoRA)."""
    import bitsandbytes
    from transformers import BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    decoder = model.vlm.get_decoder()
    weights = {name: p.data for name, p in decoder.named_parameters()}
    replace_with_bnb_linear(decoder, quantization_config=settings)
    for name, module in decoder.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.nn.Params4bit(weights[f"{name}.weight"].cpu(), requires_grad=False, quant_type="nf4")
            module.weight = weight.to(model.device)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["cora-tiny", "cora-7b"], default="cora-tiny")
    parser.add_argument("--queries", type=int, default=None, help="packed ones (default: 10; 2 for cora-7b on a CPU)")
    parser.add_argument("--train", action="store_true", help="time a LoRA step too")
    parser.add_argument("--four_bit", action="store_true", help="language model in 4 bits (needs bitsandbytes)")
    parser.add_argument("--repeats", type=int, default=None, help="default: 10 on a GPU, 3, or 1 for cora-7b on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    slow = given.size == "cora-7b" and given.device == "cpu"
    repeats = given.repeats or (10 if given.device == "cuda" else 1 if slow else 3)
    queries = QUERIES[: given.queries or (2 if slow else 10)]
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    start = time.perf_counter()
    model, processor = build(given.size, given.device)
    if given.four_bit:
        model = four_bit(model)
    print(f"{given.size}, {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion weights in bf16, {where}")
    print(f"built in {time.perf_counter() - start:.0f} s, peak memory {peak_gib(given.device):.1f} GiB", flush=True)
    if slow:
        compute_in_single(model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8))
    one, packed, separate = answer_times(model, processor, image, queries, repeats, given.device)
    how = "" if given.device == "cuda" or one < 5 else f", estimated as {len(queries)} times one"
    print(f"1 query: {one:.3f} s;  {len(queries)} packed: {packed:.3f} s;  one by one: {separate:.3f} s{how}")
    print(f"peak memory {peak_gib(given.device):.1f} GiB", flush=True)
    if given.train:
        if given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step = training_step(model, processor, image, repeats, given.device, autocast=not slow)
        print(f"training step, batch 2, LoRA, gradient checkpointing: {step:.3f} s, {peak_gib(given.device):.1f} GiB")
    print(f"ratio: {separate / packed:.2f}")


if __name__ == "__main__":
    main()
