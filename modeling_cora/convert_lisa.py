"""Turns a LISA checkpoint into a CORA model that computes the same.

    python -m modeling_cora.convert_lisa --checkpoint LISA-7B-v1 --tokenizer LISA-7B-v1 \\
        --vision-tower openai/clip-vit-large-patch14 --output cora-lisa-7b

`--checkpoint` is a merged folder, or a training checkpoint (with peft's names and LoRA factors in it); its
`config.json`, LLaMA's and LLaVA's fields, lies beside it or in the tokenizer's folder. `--lora` adds the folder of an
adapter. Merged checkpoints hold no vision tower (LISA's `merge_lora_weights_and_save_hf_model.py` drops it), so
`--vision-tower` names a `CLIPVisionModel` or `CLIPModel`; its `config.json` is needed in any case. `--sam` fills the
parts of SAM that the checkpoint lacks.

LISA's one-layer `mm_projector` becomes LLaVA's two-layer one with the identity as second layer. LISA writes -200 where
an image goes and has no token for it; the tokenizer gets `<image>`, and where the tables have no row left for its id,
they get one that `lm_classes` keeps out of the softmax: the loss is LISA's to the digit.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig

from publishing.command_line import one_line_errors

from .checkpoint_keys import CLIP_VISION, DROPPABLE, DROPPABLE_OF_CLIP, LISA
from .checkpoint_shards import ConversionError, read_checkpoint, read_json
from .configuration_cora import SEG_TOKEN, CoraConfig
from .conversion import (
    IMAGE_TOKEN,
    INPUT_TABLE,
    OUTPUT_TABLE,
    ConversionParser,
    add_special_tokens,
    find_checkpoint,
    grow_rows,
    load_tokenizer,
    parse_config,
    renamed,
    write_model_folder,
)
from .image_processors import clip_image_processor, sam_image_processor
from .lora_checkpoint import LISA_ALPHA, lora_alpha, merge_lora
from .processing_cora import CoraProcessor
from .sam_checkpoint import read_sam, sam_config_of

IMAGE_FRAME = ("<im_start>", "<im_end>")

# model/llava/conversation.py, conv_llava_v1 (its sentences are joined without spaces), as LISA trains and asks
_SYSTEM = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab."
    "You are able to understand the visual content that the user provides, and assist the user with a variety of tasks "
    "using natural language."
    "Follow the instructions carefully and explain your answers in detail."
)
_TEMPLATE = (
    _SYSTEM + " {% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% else %} ASSISTANT: {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)

# What config.json says of LLaMA; the rest of it is LLaVA's or LISA's.
_LLAMA_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)

# Parts that another source may fill where the checkpoint has nothing of them.
_SAM_PARTS = ("sam.vision_encoder.", "sam.prompt_encoder.", "sam.mask_decoder.", "sam.shared_image_embedding.")
_TOWER = "vlm.model.vision_tower."
_PROJECTOR = "vlm.model.multi_modal_projector."


def convert(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        ConversionError: anything that is wrong with the input.
    """
    # LISA learned from centre crops
    parser = ConversionParser("Turns a LISA checkpoint into a CORA model.", clip_preprocessing="centre_crop")
    parser.add_argument("--checkpoint", required=True, help="folder, file or Hub id in LISA's key names")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id of LISA's tokenizer; knows [SEG]")
    parser.add_argument("--vision-tower", help="folder or Hub id of the CLIPVisionModel or CLIPModel")
    parser.add_argument("--sam", help="folder, Hub id or .pth, for the parts of SAM that the checkpoint lacks")
    parser.add_argument("--lora", help="folder of a peft adapter to merge")
    parser.add_argument(
        "--lora-alpha",
        type=float,
        default=LISA_ALPHA,
        help="of LoRA factors inside the checkpoint (default: 16, LISA's); an adapter's folder knows its own",
    )
    options = parser.parse_args(arguments)
    checkpoint, tokenizer_folder = find_checkpoint(options.checkpoint), find_checkpoint(options.tokenizer)
    values = _lisa_config(checkpoint, tokenizer_folder)
    tokenizer = load_tokenizer(tokenizer_folder)
    tensors = renamed(_lisa_tensors(checkpoint, options), LISA, DROPPABLE, str(checkpoint))
    for name in (INPUT_TABLE, OUTPUT_TABLE):
        if name not in tensors:
            raise ConversionError(f"{checkpoint}: has no {name.split('.')[-2]}.weight; is it a whole LISA?")
    classes = tensors[OUTPUT_TABLE].shape[0]
    seg_id, image_id = _token_ids(tokenizer, classes, tokenizer_folder)
    grow_rows(tensors, image_id + 1)
    vision_config = _add_vision_tower(tensors, options)
    sam_config = _add_sam(tensors, options, str(checkpoint))
    vlm_config = _vlm_config(values, tensors, vision_config, image_id, str(checkpoint))
    config = CoraConfig(
        vlm_config=vlm_config,
        sam_config=sam_config,
        seg_token_id=seg_id,
        lm_classes=classes if tensors[OUTPUT_TABLE].shape[0] > classes else None,
        bce_loss_weight=2.0,
        dice_loss_weight=0.5,
    )
    processor = CoraProcessor(
        image_processor=clip_image_processor(vision_config.image_size, options.clip_preprocessing),
        sam_image_processor=sam_image_processor(sam_config.vision_config.image_size),
        tokenizer=tokenizer,
        num_image_tokens=vlm_config.image_seq_length,
        chat_template=_chat_template(tokenizer),
    )
    write_model_folder(options, config, tensors, processor)


def _lisa_config(checkpoint: Path, tokenizer: Path) -> dict[str, Any]:
    for folder in (checkpoint if checkpoint.is_dir() else checkpoint.parent, tokenizer):
        if (folder / "config.json").is_file():
            return read_json(folder / "config.json")
    raise ConversionError(f"{checkpoint}: config.json is neither beside it nor in {tokenizer}")


def _lisa_tensors(checkpoint: Path, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Under LISA's own names, adapters merged."""
    alpha, rslora, adapter = options.lora_alpha, False, {}
    if options.lora:
        folder = find_checkpoint(options.lora)
        alpha, rslora = lora_alpha(folder)
        adapter = read_checkpoint(folder)
    return merge_lora(read_checkpoint(checkpoint), adapter, alpha, rslora, options.lora or str(checkpoint))


def _token_ids(tokenizer: Any, classes: int, folder: Path) -> tuple[int, int]:
    """Ids of `[SEG]` and `<image>`; makes both special, and `<image>` a token."""
    known = tokenizer.get_vocab()
    if SEG_TOKEN not in known:
        raise ConversionError(f"{folder}: its tokenizer knows no {SEG_TOKEN}; name the one that LISA saved")
    last = max(index for token, index in known.items() if token != IMAGE_TOKEN)
    if last >= classes:
        raise ConversionError(
            f"{folder}: token ids up to {last}, but {classes} rows in the checkpoint; it belongs to another model"
        )
    add_special_tokens(tokenizer, [SEG_TOKEN, *(token for token in IMAGE_FRAME if token in known), IMAGE_TOKEN])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token  # as LISA does
    return tokenizer.convert_tokens_to_ids(SEG_TOKEN), tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


def _chat_template(tokenizer: Any) -> str:
    start, end = IMAGE_FRAME if all(token in tokenizer.get_vocab() for token in IMAGE_FRAME) else ("", "")
    return _TEMPLATE.replace("IMAGE", start + IMAGE_TOKEN + end, 1)


def _add_vision_tower(tensors: dict[str, torch.Tensor], options: argparse.Namespace) -> CLIPVisionConfig:
    """Adds the tower's weights where the checkpoint has none."""
    inside = any(name.startswith(_TOWER) for name in tensors)
    if not options.vision_tower:
        need = "its config.json is needed" if inside else "the checkpoint holds none (LISA drops it when it merges)"
        raise ConversionError(f"--vision-tower: not given; {need}: a folder or Hub id of the CLIP that LISA used")
    folder = find_checkpoint(options.vision_tower)
    values = read_json(folder / "config.json")
    if values.get("model_type") == "clip":
        values = values.get("vision_config", {})
    elif values.get("model_type") != "clip_vision_model":
        raise ConversionError(f"{folder}: config.json is of model_type {values.get('model_type')!r}, not a CLIP")
    if not inside:
        droppable = (*DROPPABLE, *DROPPABLE_OF_CLIP)
        tensors |= renamed(read_checkpoint(folder), CLIP_VISION, droppable, str(folder))
    return parse_config(CLIPVisionConfig, values, f"{folder}: config.json")


def _add_sam(tensors: dict[str, torch.Tensor], options: argparse.Namespace, where: str) -> SamConfig:
    """Adds the parts of SAM that the checkpoint has nothing of."""
    missing = [part for part in _SAM_PARTS if not any(name.startswith(part) for name in tensors)]
    if not options.sam:
        if missing:
            raise ConversionError(
                f"{where}: has no weights of {', '.join(part[:-1] for part in missing)}; name a SAM with --sam"
            )
        return sam_config_of(tensors, options.sam_decoder_heads, where)
    config, sam = read_sam(find_checkpoint(options.sam), options.sam_decoder_heads)
    for name, tensor in sam.items():
        if name.startswith(tuple(missing)):
            tensors[name] = tensor
    print(f"from {options.sam}: {', '.join(part[:-1] for part in missing) or 'its configuration alone'}")
    return config


def _vlm_config(
    values: Mapping[str, Any],
    tensors: dict[str, torch.Tensor],
    vision: CLIPVisionConfig,
    image_id: int,
    where: str,
) -> LlavaConfig:
    """Of LLaVA as transformers has it; adds the second layer of a one-layer projector."""
    width = tensors[INPUT_TABLE].shape[1]
    one_layer = f"{_PROJECTOR}linear_2.weight" not in tensors
    if one_layer:
        tensors[f"{_PROJECTOR}linear_2.weight"] = torch.eye(width)
        tensors[f"{_PROJECTOR}linear_2.bias"] = torch.zeros(width)
    text = {field: values[field] for field in _LLAMA_FIELDS if field in values}
    text["vocab_size"] = tensors[INPUT_TABLE].shape[0]
    return LlavaConfig(
        text_config=parse_config(LlamaConfig, text, f"{where}: config.json"),
        vision_config=vision,
        image_token_id=image_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="linear" if one_layer else "gelu",
        vision_feature_layer=values.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
    )


if __name__ == "__main__":
    one_line_errors(convert)()
