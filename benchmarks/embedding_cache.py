"""A training step whose images SAM has encoded before, against one that encodes them again.

    python benchmarks/embedding_cache.py
    python benchmarks/embedding_cache.py --sam mobile_sam.pt

Stage 1 of `cora-tiny`'s language side on MobileSAM at 1024 pixels, whose encoder is frozen, the smallest SAM there is
(random weights without `--sam`), on drawn scenes. Three copies of one model take the same batches in turn: without a
cache, with a warm one, and with a warm one in float16. A step is everything from item to optimizer. Speed: medians over
the steps. Beside it what encoding images one by one costs, which makes an embedding independent of its batch.

The last line is `ratio: N`, time of a step without the cache / with it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

from benchmarks.queries import seconds
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.build import KINDS, build_instructions
from datasets_scripts.scenes import write_scenes
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.conversion import find_checkpoint
from modeling_cora.presets import cora_tiny_config, processor_of, train_query_tokenizer
from modeling_cora.sam_checkpoint import encoder_of, read_sam
from trainers.arguments import DataArguments, EmbeddingCacheArguments, TrainedPartsArguments
from trainers.embedding_cache import add_embedding_cache
from trainers.instruction_dataset import InstructionCollator, InstructionDataset
from trainers.trained_parts import PARTS, select_trained_parts

WAYS = ("without", "exact", "float16")


def build(texts: list[str], sam: str | None) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """A small language side, and a SAM as it is or MobileSAM with random weights."""
    tokenizer = train_query_tokenizer(texts)
    config = cora_tiny_config(tokenizer)
    tensors = {}
    if sam:
        config.sam_config, tensors = read_sam(find_checkpoint(sam))
        config.sam_encoder = encoder_of(tensors)
    else:
        config.sam_encoder = "tiny_vit"
        config.sam_config = SamConfig(
            vision_config=SamVisionConfig(num_hidden_layers=0, hidden_size=16, num_attention_heads=1, mlp_dim=16),
            prompt_encoder_config=SamPromptEncoderConfig(),
            mask_decoder_config=SamMaskDecoderConfig(layer_norm_eps=1e-5),
        )
    torch.manual_seed(0)
    model = CoraForReasoningSegmentation(config)
    _, unexpected = model.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
    assert not unexpected, unexpected
    parts = [part for part in PARTS if part not in ("vision_tower", "connector", "sam_encoder")]
    model = select_trained_parts(model, TrainedPartsArguments(trained_parts=parts, lora_r=0))
    return model, processor_of(config, tokenizer)


class Training:
    """One of the copies; `step` returns the loss."""

    def __init__(self, model: CoraForReasoningSegmentation, dataset: InstructionDataset, processor, batch: int):
        self.model, self.dataset, self.collator, self.batch = (
            model.train(),
            dataset,
            InstructionCollator(processor),
            batch,
        )
        self.optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-4)

    def inputs(self, number: int) -> dict:
        inputs = self.collator([self.dataset[number * self.batch + k] for k in range(self.batch)])
        device = self.model.device
        moved = {name: [t.to(device) for t in v] if isinstance(v, list) else v.to(device) for name, v in inputs.items()}
        return moved

    def step(self, number: int) -> float:
        torch.manual_seed(number)  # of dropout, the same for all copies
        loss = self.model(**self.inputs(number)).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def measure(arguments: argparse.Namespace, folder: Path) -> float:
    write_scenes(folder / "scenes", labelled=arguments.images, unlabelled=0, val=1, progress=False)
    scene_set, _ = read_data(str(folder / "scenes"))
    scenes = scene_set.split("train", labelled=True)
    instructions = build_instructions(scene_set, scenes, KINDS[:2], seed=0)
    first, processor = build([t for i in instructions for t in (i.query, *i.rephrasings)], arguments.sam)
    data = DataArguments(max_label_size=256)
    warming = -(-len(scenes) // arguments.batch)
    length = (warming + arguments.steps) * arguments.batch
    dataset = InstructionDataset(scene_set, scenes, instructions, data, length, seed=0)
    trainings, caches = {}, {}
    for way in WAYS:
        model = copy.deepcopy(first).to(arguments.device)
        if way != "without":
            own = EmbeddingCacheArguments(str(folder / "cache"), embedding_cache_precision=way)
            caches[way] = add_embedding_cache(model, own, training=True)
        trainings[way] = Training(model, dataset, processor, arguments.batch)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(warming + arguments.steps):
        for way, training in trainings.items():
            taken = seconds(lambda t=training, n=number, w=way: losses[w].append(t.step(n)))
            if number >= warming:
                times[way].append(taken)
    pixels = trainings["without"].inputs(0)["sam_pixel_values"]
    model, cache = trainings["without"].model, caches["exact"]
    together = torch.no_grad()(lambda: model.sam.vision_encoder(pixels)[0])
    alone = [
        statistics.median(seconds(f) for _ in range(5)) for f in (together, lambda: model.get_image_embeddings(pixels))
    ]
    warm = statistics.median(seconds(lambda: [cache(image, None) for image in pixels]) for _ in range(5))
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    sizes = {path.stat().st_size for path in (folder / "cache").iterdir()}
    medians = {way: statistics.median(times[way]) for way in WAYS}
    print(f"{arguments.batch} images a step, {arguments.images} images, {arguments.steps} steps, {where}")
    print(f"bytes of an embedding: exact {max(sizes)}, float16 {min(sizes)}")
    print(f"median step: without {medians['without']:.3f} s, exact x {medians['without'] / medians['exact']:.2f}, "
          f"float16 x {medians['without'] / medians['float16']:.2f}")  # fmt: skip
    for way in WAYS[1:]:
        pairs = list(zip(losses["without"], losses[way], strict=True))
        print(f"{way}: {caches[way].encoded} encoded, {caches[way].found} found; largest difference of "
              f"{len(pairs)} losses {max(abs(a - b) for a, b in pairs):.1e}, of about {pairs[0][0]:.2f}")  # fmt: skip
    print(
        f"encoding a batch: together {alone[0]:.3f} s, one by one x {alone[1] / alone[0]:.2f}; "
        f"found x {warm / alone[0]:.3f}"
    )
    return medians["without"] / medians["exact"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", default=None, help="a SamModel's folder, or segment-anything's or MobileSAM's .pth")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="that are timed, once the cache is warm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratio = measure(arguments, Path(folder))
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
