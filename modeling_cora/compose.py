"""Puts a SAM, a vision tower and a language model together: a CORA model of pretrained parts that never met.

    python -m modeling_cora.compose --sam mobile_sam.pt --vision facebook/dinov2-small --vision-size 224 \\
        --language HuggingFaceTB/SmolLM2-135M-Instruct --language-layers 6 --output cora-small
    python -m modeling_cora.compose --sam mobile_sam.pt --vision facebook/dinov2-small --texts BUILT --output cora-small

The VLM is a LLaVA of the tower, a new connector and the language model. Without `--language`, that is a small LLaMA
with random weights (`cora-tiny`'s), whose tokenizer is made from `--texts`: a file of queries, or the tables of
`datasets_scripts.build`. New are, besides, the projection to SAM's prompts, and rows of the tables for `[SEG]` and
`<image>`. So no part knows the others, and the model segments nothing that was asked for before it is trained. A new
language model begins with query pretraining; a pretrained one needs more steps than a CPU takes (400 of them teach 6
layers of SmolLM2 next to nothing: results/camvid_small.md). Where a LLaVA is at hand, `convert_vlm_sam` keeps its
connector.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, Dinov2Config, LlamaConfig, LlamaForCausalLM, LlavaConfig

from publishing.command_line import one_line_errors

from .checkpoint_keys import CLIP_VISION, DINOV2, DROPPABLE, DROPPABLE_OF_CLIP, LLAMA
from .checkpoint_shards import ConversionError, read_checkpoint, read_json
from .configuration_cora import SEG_TOKEN, CoraConfig
from .conversion import (
    IMAGE_TOKEN,
    INPUT_TABLE,
    SAM_HELP,
    ConversionParser,
    add_special_tokens,
    find_checkpoint,
    grow_rows,
    load_tokenizer,
    new_weights,
    normalisation,
    parse_config,
    renamed,
    state_scale,
    write_model_folder,
)
from .image_processors import clip_image_processor, sam_image_processor
from .presets import initialise_language_model, small_text_config, train_query_tokenizer
from .processing_cora import VICUNA_CHAT_TEMPLATE, CoraProcessor
from .sam_checkpoint import encoder_of, read_sam

_TOWERS: dict[str, tuple[Any, Any]] = {
    "clip_vision_model": (CLIPVisionConfig, CLIP_VISION),
    "dinov2": (Dinov2Config, DINOV2),
}


def convert(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        ConversionError: anything that is wrong with the input.
    """
    parser = ConversionParser("Composes a CORA model of a SAM, a vision tower and a language model.", "letterbox")
    parser.add_argument("--sam", required=True, help=SAM_HELP)
    parser.add_argument("--vision", required=True, help="folder or Hub id of a Dinov2Model or a CLIPVisionModel")
    parser.add_argument(
        "--vision-layer",
        type=int,
        default=-2,
        help="the hidden state that the language model sees: n is behind layer n, -1 behind the last "
        "(default: -2, LLaVA's)",
    )
    parser.add_argument(
        "--vision-size", type=int, help="side of the tower's input; a DINOv2 takes any multiple of its patches' side"
    )
    parser.add_argument("--language", help="folder or Hub id of a LlamaForCausalLM with its tokenizer; or a new one")
    parser.add_argument(
        "--language-layers", type=int, help="the first so many of its layers (default: all; of a new one 4)"
    )
    parser.add_argument(
        "--texts",
        type=Path,
        help="without --language, for the new tokenizer: a UTF-8 file, one query a line, or a folder with "
        "instructions/train-*.parquet",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all new weights (default: 0)")
    options = parser.parse_args(arguments)
    if options.language_layers is not None and options.language_layers < 1:
        raise ConversionError(f"--language-layers {options.language_layers}: is less than 1")
    text_config, tokenizer, tensors = _language_model(options)
    add_special_tokens(tokenizer, [SEG_TOKEN, IMAGE_TOKEN])
    grow_rows(tensors, len(tokenizer))
    text_config.vocab_size = tensors[INPUT_TABLE].shape[0]
    vision_config, vision_size, tower = _vision_tower(options)
    sam_config, sam = read_sam(find_checkpoint(options.sam), options.sam_decoder_heads)
    image_tokens = (vision_size // vision_config.patch_size) ** 2
    config = CoraConfig(
        vlm_config=LlavaConfig(
            text_config=text_config,
            vision_config=vision_config,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=image_tokens,
            vision_feature_layer=vision_config.num_hidden_layers,
        ),
        sam_config=sam_config,
        sam_encoder=encoder_of(sam),
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
    )
    processor = CoraProcessor(
        image_processor=clip_image_processor(
            vision_size, options.clip_preprocessing, **normalisation(find_checkpoint(options.vision))
        ),
        sam_image_processor=sam_image_processor(sam_config.vision_config.image_size),
        tokenizer=tokenizer,
        num_image_tokens=image_tokens,
        chat_template=VICUNA_CHAT_TEMPLATE.replace("</s>", tokenizer.eos_token),
    )
    new = new_weights(config, options.seed, state_scale(tensors), connector=True)
    write_model_folder(options, config, tensors | tower | sam | new, processor)


def _language_model(options: argparse.Namespace) -> tuple[LlamaConfig, Any, dict[str, torch.Tensor]]:
    """Its configuration, tokenizer and tensors, under CORA's names: read, or new."""
    if not options.language:
        return _new_language_model(options)
    if options.texts:
        raise ConversionError(f"--texts {options.texts}: --language brings its own tokenizer; leave one of them out")
    folder = find_checkpoint(options.language)
    values = read_json(folder / "config.json")
    if (kind := values.get("model_type")) != "llama":
        raise ConversionError(f"{folder}: config.json is of model_type {kind!r}; only 'llama' is known")
    config = parse_config(LlamaConfig, values, f"{folder}: config.json")
    layers = options.language_layers or config.num_hidden_layers
    if layers > config.num_hidden_layers:
        raise ConversionError(f"--language-layers {layers}: {folder} has {config.num_hidden_layers}")
    left_out = tuple(f"model.layers.{index}." for index in range(layers, config.num_hidden_layers))
    kept = {name: t for name, t in read_checkpoint(folder).items() if not name.startswith(left_out)}
    tensors = renamed(kept, LLAMA, DROPPABLE, str(folder))
    if INPUT_TABLE not in tensors:
        raise ConversionError(f"{folder}: has no embed_tokens.weight; is it a whole LLaMA?")
    config.num_hidden_layers = layers
    tokenizer = load_tokenizer(folder)
    return config, tokenizer, tensors


def _new_language_model(options: argparse.Namespace) -> tuple[LlamaConfig, Any, dict[str, torch.Tensor]]:
    if not options.texts:
        raise ConversionError(
            "--texts: not given, and --language neither; a new language model needs queries for its tokenizer"
        )
    queries = _read_queries(options.texts)
    tokenizer = train_query_tokenizer(queries)
    config = small_text_config(tokenizer, options.language_layers or 4)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = LlamaForCausalLM(config)
        initialise_language_model(model.model)
    return config, tokenizer, renamed(model.state_dict(), LLAMA, DROPPABLE, "the new language model")


def _read_queries(path: Path) -> list[str]:
    """The lines of a file, or the queries and rephrasings of the training instructions in a folder of tables."""
    if path.is_dir():
        import pyarrow.parquet  # here alone: nothing that a saved folder brings needs tables

        shards = sorted(path.glob("instructions/train-*.parquet"))
        try:
            tables = [pyarrow.parquet.read_table(shard, columns=["query", "rephrasings"]) for shard in shards]
            queries = [q for table in tables for row in table.to_pylist() for q in (row["query"], *row["rephrasings"])]
        except (OSError, ValueError, KeyError) as error:
            raise ConversionError(f"--texts {path}: holds no tables of instructions ({error})") from None
        if not queries:
            raise ConversionError(f"--texts {path}: holds no instructions/train-*.parquet with a query")
        return queries
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"--texts {path}: cannot be read as UTF-8 text ({error})") from None
    if not (queries := [line.strip() for line in lines if line.strip()]):
        raise ConversionError(f"--texts {path}: holds no line of text")
    return queries


def _vision_tower(options: argparse.Namespace) -> tuple[Any, int, dict[str, torch.Tensor]]:
    """Its configuration, the side of its input in pixels, and its tensors under CORA's names."""
    folder = find_checkpoint(options.vision)
    values = read_json(folder / "config.json")
    if values.get("model_type") == "clip":
        values = {"model_type": "clip_vision_model", **values.get("vision_config", {})}
    if (kind := values.get("model_type")) not in _TOWERS:
        raise ConversionError(f"{folder}: config.json is of model_type {kind!r}; known are {', '.join(_TOWERS)}")
    config_class, rules = _TOWERS[kind]
    config = parse_config(config_class, values, f"{folder}: config.json")
    size = options.vision_size or config.image_size
    if size < config.patch_size or size % config.patch_size:
        raise ConversionError(f"--vision-size {size}: is not a multiple of {config.patch_size}, the side of a patch")
    if size != config.image_size and kind != "dinov2":
        raise ConversionError(f"--vision-size {size}: a {kind} takes its own {config.image_size} alone")
    layers = config.num_hidden_layers
    # the embeddings (0) cannot be had: transformers takes output_hidden_states=0 for "none of them"
    if not 1 <= abs(options.vision_layer) <= layers:
        raise ConversionError(f"--vision-layer {options.vision_layer}: is none of 1 to {layers} or -{layers} to -1")
    tensors = renamed(read_checkpoint(folder), rules, (*DROPPABLE, *DROPPABLE_OF_CLIP), str(folder))
    # what lies behind the layer that is looked at would be computed for nobody
    seen = options.vision_layer if options.vision_layer > 0 else layers + 1 + options.vision_layer
    own = {k: v for k, v in values.items() if k not in ("out_features", "out_indices", "stage_names")}
    config = parse_config(config_class, {**own, "num_hidden_layers": seen}, f"{folder}: config.json")
    number = re.compile(r"\.layers?\.(\d+)\.")
    kept = {name: t for name, t in tensors.items() if not (found := number.search(name)) or int(found[1]) < seen}
    return config, size, kept


if __name__ == "__main__":
    one_line_errors(convert)()
