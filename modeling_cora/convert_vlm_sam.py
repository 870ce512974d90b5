"""Puts a vision-language model and a SAM together: a CORA model whose only untrained part is the projection between
them.

    python -m modeling_cora.convert_vlm_sam --vlm llava-hf/llava-1.5-7b-hf --sam sam_vit_h_4b8939.pth --output cora-7b
    python -m modeling_cora.convert_vlm_sam --vlm Qwen/Qwen2.5-VL-3B-Instruct --sam sam_vit_h_4b8939.pth \\
        --max-pixels 602112 --output cora-qwen-3b

`--vlm` is a folder or Hub id of a model of `branches.PACKED_FAMILIES`: LLaVA in any layout that it was ever saved in;
the others as transformers loads them. `--sam` is segment-anything's own `.pth`, or a folder or Hub id of `SamModel`.

The tokenizer gets `[SEG]`. Where the tables have a row for it already (LLaVA-1.5's have 64 rows more than tokens), that
row stays as it is; otherwise one is added to embedding and language head, the mean of the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, LlavaConfig

from publishing.command_line import one_line_errors

from .branches import PACKED_FAMILIES
from .checkpoint_keys import DROPPABLE, LLAVA
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
from .processing_cora import VICUNA_CHAT_TEMPLATE, CoraProcessor
from .sam_checkpoint import encoder_of, read_sam


@dataclass
class _Vlm:
    """What a folder holds.

    Attributes:
        tensors: under CORA's names.
        input_table: name of the embedding's among them.
        image_processor: of the vision tower.
        num_image_tokens: of one image, or of one tile; unused by grids.
    """

    config: Any
    tokenizer: Any
    tensors: dict[str, torch.Tensor]
    input_table: str
    image_processor: Any
    image_token: str
    num_image_tokens: int
    chat_template: str


def convert(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        ConversionError: anything that is wrong with the input.
    """
    parser = ConversionParser("Puts a VLM and a SAM together as a CORA model.", clip_preprocessing="letterbox")
    parser.add_argument("--vlm", required=True, help="folder or Hub id of a LLaVA, Idefics3, SmolVLM or Qwen-VL")
    parser.add_argument("--sam", required=True, help=SAM_HELP)
    parser.add_argument(
        "--max-pixels", type=int, help="Qwen-VL: an image is shown with at most so many (default: the model's own)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the projection, the only new weights (default: 0)")
    options = parser.parse_args(arguments)
    folder = find_checkpoint(options.vlm)
    values = read_json((folder if folder.is_dir() else folder.parent) / "config.json")
    if (family := values.get("model_type")) not in PACKED_FAMILIES:
        known = ", ".join(sorted(PACKED_FAMILIES))
        raise ConversionError(f"{folder}: config.json is of model_type {family!r}; known are {known}")
    vlm = _llava(folder, values, options) if family == "llava" else _of_transformers(folder)
    _limit_pixels(vlm.image_processor, options.max_pixels)
    add_special_tokens(vlm.tokenizer, [SEG_TOKEN, vlm.image_token])
    seg_id = vlm.tokenizer.convert_tokens_to_ids(SEG_TOKEN)
    if grow_rows(vlm.tensors, len(vlm.tokenizer), vlm.input_table):
        print(f"{SEG_TOKEN} is token {seg_id}, a new row: the mean of the others")
    else:
        print(f"{SEG_TOKEN} is token {seg_id}, a row that the tables had")
    vlm.config.get_text_config().vocab_size = vlm.tensors[vlm.input_table].shape[0]
    sam_config, sam_tensors = read_sam(find_checkpoint(options.sam), options.sam_decoder_heads)
    config = CoraConfig(
        vlm_config=vlm.config, sam_config=sam_config, sam_encoder=encoder_of(sam_tensors), seg_token_id=seg_id
    )
    processor = CoraProcessor(
        image_processor=vlm.image_processor,
        sam_image_processor=sam_image_processor(sam_config.vision_config.image_size),
        tokenizer=vlm.tokenizer,
        num_image_tokens=vlm.num_image_tokens,
        image_token=vlm.image_token,
        chat_template=vlm.chat_template,
    )
    new = new_weights(config, options.seed, state_scale(vlm.tensors, vlm.input_table))
    write_model_folder(options, config, vlm.tensors | sam_tensors | new, processor, vlm.input_table)


def _llava(folder: Path, values: dict[str, Any], options: argparse.Namespace) -> _Vlm:
    if "text_config" not in values:
        raise ConversionError(f"{folder}: config.json is not of transformers' LlavaForConditionalGeneration")
    config = parse_config(LlavaConfig, values, f"{folder}: config.json")
    if (tower := config.vision_config.model_type) != "clip_vision_model":
        raise ConversionError(f"{folder}: config.json: the vision tower is {tower!r}; only CLIP's are known")
    tokenizer = load_tokenizer(folder)
    if (image_id := tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) != config.image_token_id:
        raise ConversionError(
            f"{folder}: {IMAGE_TOKEN} is token {image_id} of the tokenizer, {config.image_token_id} of config.json"
        )
    tensors = renamed(read_checkpoint(folder), LLAVA, DROPPABLE, str(folder))
    if INPUT_TABLE not in tensors:
        raise ConversionError(f"{folder}: has no embed_tokens.weight; is it a whole LLaVA?")
    size = config.vision_config.image_size
    # patches, and the class token where the strategy keeps it
    count = (size // config.vision_config.patch_size) ** 2 + (config.vision_feature_select_strategy == "full")
    return _Vlm(
        config,
        tokenizer,
        tensors,
        INPUT_TABLE,
        clip_image_processor(size, options.clip_preprocessing, **normalisation(folder)),
        IMAGE_TOKEN,
        count,
        VICUNA_CHAT_TEMPLATE.replace("</s>", tokenizer.eos_token),
    )


def _of_transformers(folder: Path) -> _Vlm:
    """Another family, as the library loads it."""
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
        image_processor = AutoImageProcessor.from_pretrained(folder)
    except Exception as error:  # the library raises what its readers of weights and configurations raise
        raise ConversionError(f"{folder}: transformers cannot load it ({error})") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(map(str, info[kind])):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ConversionError(f"{folder}: {kind.replace('_', ' ')}: {found[0]}{more}")
    config, vision = model.config, model.config.vision_config
    table = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    count = 1
    if hasattr(config, "scale_factor"):  # tiles
        count = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
    tokenizer = load_tokenizer(folder)
    return _Vlm(
        config,
        tokenizer,
        {f"vlm.{name}": tensor for name, tensor in model.state_dict().items()},
        f"vlm.{table}.weight",
        image_processor,
        tokenizer.convert_ids_to_tokens(config.image_token_id),
        count,
        _chat_template(folder, tokenizer),
    )


def _chat_template(folder: Path, tokenizer: Any) -> str:
    """The processor's, which knows images; where it has none the tokenizer's, which may know them too."""
    if (jinja := folder / "chat_template.jinja").is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file() and (template := read_json(folder / name).get("chat_template")):
            return template
    if not tokenizer.chat_template:
        raise ConversionError(f"{folder}: no chat_template.jinja, nor any other chat template")
    return tokenizer.chat_template


def _limit_pixels(image_processor: Any, most: int | None) -> None:
    if most is None:
        return
    if not hasattr(image_processor, "merge_size"):
        raise ConversionError(f"--max-pixels {most}: this VLM shows images at sizes of its own; only Qwen-VL takes it")
    least = image_processor.size["shortest_edge"]  # a number of pixels, whatever its name says
    if most < least:
        raise ConversionError(f"--max-pixels {most}: is less than {least}, the least that this model takes")
    image_processor.size = {"shortest_edge": least, "longest_edge": most}


if __name__ == "__main__":
    one_line_errors(convert)()
