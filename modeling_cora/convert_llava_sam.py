"""Puts a LLaVA and a SAM together: a CORA model whose only untrained part is the projection between them.

    python -m modeling_cora.convert_llava_sam --vlm llava-hf/llava-1.5-7b-hf --sam sam_vit_h_4b8939.pth --output cora-7b

`--vlm` is a folder or Hub id of `LlavaForConditionalGeneration`, in any layout that it was ever saved in; `--sam`
segment-anything's own `.pth`, or a folder or Hub id of `SamModel`. Weights pass through memory one by one.

The tokenizer gets `[SEG]`. Where the tables have a row for it already (LLaVA-1.5's have 64 rows more than tokens), that
row stays as it is; otherwise one is added to embedding and language head, the mean of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlavaConfig

from .checkpoint_keys import DROPPABLE, LLAVA
from .checkpoint_shards import ConversionError, StoredTensor, read_checkpoint, read_json
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
    normalisation,
    parse_config,
    renamed,
    run,
    write_model_folder,
)
from .image_processors import clip_image_processor, sam_image_processor
from .modeling_cora import CoraForReasoningSegmentation, CoraSegProjector
from .processing_cora import VICUNA_CHAT_TEMPLATE, CoraProcessor
from .sam_checkpoint import encoder_of, read_sam


def convert(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        ConversionError: anything that is wrong with the input.
    """
    parser = ConversionParser("Puts a LLaVA and a SAM together as a CORA model.", clip_preprocessing="letterbox")
    parser.add_argument("--vlm", required=True, help="folder or Hub id of a LLaVA")
    parser.add_argument("--sam", required=True, help=SAM_HELP)
    parser.add_argument("--seed", type=int, default=0, help="of the projection, the only new weights (default: 0)")
    options = parser.parse_args(arguments)
    folder = find_checkpoint(options.vlm)
    vlm_config = _llava_config(folder)
    tokenizer = load_tokenizer(folder)
    if (image_id := tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) != vlm_config.image_token_id:
        raise ConversionError(
            f"{folder}: {IMAGE_TOKEN} is token {image_id} of the tokenizer, {vlm_config.image_token_id} of config.json"
        )
    add_special_tokens(tokenizer, [SEG_TOKEN, IMAGE_TOKEN])
    seg_id = tokenizer.convert_tokens_to_ids(SEG_TOKEN)
    tensors = renamed(read_checkpoint(folder), LLAVA, DROPPABLE, str(folder))
    if INPUT_TABLE not in tensors:
        raise ConversionError(f"{folder}: has no embed_tokens.weight; is it a whole LLaVA?")
    if grow_rows(tensors, len(tokenizer)):
        print(f"{SEG_TOKEN} is token {seg_id}, a new row: the mean of the others")
    else:
        print(f"{SEG_TOKEN} is token {seg_id}, a row that the tables had")
    vlm_config.text_config.vocab_size = tensors[INPUT_TABLE].shape[0]
    sam_config, sam_tensors = read_sam(find_checkpoint(options.sam), options.sam_decoder_heads)
    config = CoraConfig(
        vlm_config=vlm_config, sam_config=sam_config, sam_encoder=encoder_of(sam_tensors), seg_token_id=seg_id
    )
    processor = CoraProcessor(
        image_processor=clip_image_processor(
            vlm_config.vision_config.image_size, options.clip_preprocessing, **normalisation(folder)
        ),
        sam_image_processor=sam_image_processor(sam_config.vision_config.image_size),
        tokenizer=tokenizer,
        num_image_tokens=_image_tokens(vlm_config),
        chat_template=VICUNA_CHAT_TEMPLATE.replace("</s>", tokenizer.eos_token),
    )
    write_model_folder(
        options, config, tensors | sam_tensors, processor, lambda model: _new_projection(model, options.seed)
    )


def _llava_config(folder: Path) -> LlavaConfig:
    values = read_json((folder if folder.is_dir() else folder.parent) / "config.json")
    if values.get("model_type") != "llava" or "text_config" not in values:
        raise ConversionError(
            f"{folder}: config.json is not of transformers' LlavaForConditionalGeneration "
            f"(model_type {values.get('model_type')!r})"
        )
    config = parse_config(LlavaConfig, values, f"{folder}: config.json")
    if (tower := config.vision_config.model_type) != "clip_vision_model":
        raise ConversionError(f"{folder}: config.json: the vision tower is {tower!r}; only CLIP's are known")
    return config


def _image_tokens(config: LlavaConfig) -> int:
    """Patches, and the class token where the strategy keeps it."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side * side + (config.vision_feature_select_strategy == "full")


def _new_projection(model: CoraForReasoningSegmentation, seed: int) -> dict[str, StoredTensor]:
    """The projection as a new model has it, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        projection = CoraSegProjector(model.config).to(torch.float32)
        for module in projection.modules():
            model._init_weights(module)
    return {f"seg_projector.{name}": StoredTensor.of(tensor) for name, tensor in projection.state_dict().items()}


if __name__ == "__main__":
    run(convert)
