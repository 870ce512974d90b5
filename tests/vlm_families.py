"""One tiny random model of each family of vision-language models, with a tokenizer and its family's chat template."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SmolVLMConfig,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from modeling_cora import SEG_TOKEN, CoraConfig, CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.image_processors import clip_image_processor, sam_image_processor
from modeling_cora.processing_cora import VICUNA_CHAT_TEMPLATE

from .conftest import TEXTS

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{% if m.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}"
)
TEXT = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, tie_word_embeddings=False,
)  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def tokenizer(special: list[str], bos: str | None, eos: str, seg: bool = True) -> PreTrainedTokenizerFast:
    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", *special, *([SEG_TOKEN] if seg else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    text.train_from_iterator([f"user\n{t} assistant\nIt is ." for t in TEXTS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=text,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=[s for s in specials if s not in ("<pad>", bos, eos)],
        clean_up_tokenization_spaces=False,
    )


def _llava(ids: Callable[[str], int], size: int) -> PreTrainedConfig:
    return LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": size, "pad_token_id": 0, **TEXT},
        vision_config={"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
                       "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
        image_token_id=ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=16,
    )  # fmt: skip


def _idefics(kind: type[PreTrainedConfig]) -> Callable[[Callable[[str], int], int], PreTrainedConfig]:
    def config(ids: Callable[[str], int], size: int) -> PreTrainedConfig:
        vision_type = "idefics3_vision" if kind is Idefics3Config else "smolvlm_vision"
        return kind(
            text_config={"model_type": "llama", "vocab_size": size, "pad_token_id": 0, **TEXT},
            vision_config={"model_type": vision_type, "hidden_size": 32, "intermediate_size": 64,
                           "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 4},
            image_token_id=ids("<image>"),
            scale_factor=2,
            tie_word_embeddings=False,
            pad_token_id=0,
        )  # fmt: skip

    return config


def _qwen(kind: type[PreTrainedConfig]) -> Callable[[Callable[[str], int], int], PreTrainedConfig]:
    def config(ids: Callable[[str], int], size: int) -> PreTrainedConfig:
        vision = {
            Qwen2VLConfig: dict(embed_dim=32, hidden_size=64, num_heads=2, depth=2, mlp_ratio=2),
            Qwen2_5_VLConfig: dict(hidden_size=32, out_hidden_size=64, num_heads=2, depth=2, intermediate_size=64,
                                   fullatt_block_indexes=[1], window_size=56),
            Qwen3VLConfig: dict(hidden_size=32, out_hidden_size=64, num_heads=2, depth=2, intermediate_size=64,
                                deepstack_visual_indexes=[0], num_position_embeddings=64),
        }[kind]  # fmt: skip
        text = {**TEXT, "vocab_size": size, "pad_token_id": 0, "rope_parameters": MROPE}
        if kind is Qwen3VLConfig:
            text["head_dim"] = 16
        return kind(
            text_config=text,
            vision_config={"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
            tie_word_embeddings=False,
        )

    return config


_QWEN = (
    ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    None,
    "<|im_end|>",
    "<|image_pad|>",
    QWEN_TEMPLATE,
)
_TILES = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
_SMOLVLM = (
    ["<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>", *_TILES],
    None,
    "<end_of_utterance>",
    "<image>",
    SMOLVLM_TEMPLATE,
)
_TILE_SIZES = dict(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})

FAMILIES: dict[str, tuple] = {
    "llava": (
        (["<s>", "</s>", "<image>"], "<s>", "</s>", "<image>", VICUNA_CHAT_TEMPLATE),
        _llava,
        lambda: clip_image_processor(28),
    ),
    "idefics3": (_SMOLVLM, _idefics(Idefics3Config), lambda: Idefics3ImageProcessorPil(**_TILE_SIZES)),
    "smolvlm": (_SMOLVLM, _idefics(SmolVLMConfig), lambda: SmolVLMImageProcessorPil(**_TILE_SIZES)),
    "qwen2_vl": (_QWEN, _qwen(Qwen2VLConfig), lambda: Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)),
    "qwen2_5_vl": (
        _QWEN, _qwen(Qwen2_5_VLConfig), lambda: Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)
    ),
    "qwen3_vl": (
        _QWEN, _qwen(Qwen3VLConfig), lambda: Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)
    ),
}  # fmt: skip


def build(family: str) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """A tiny random CORA around a model of the family, in eval mode."""
    (special, bos, eos, image_token, template), vlm_config, image_processor = FAMILIES[family]
    words = tokenizer(special, bos, eos)
    sam = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=32, output_channels=32, num_hidden_layers=1, num_attention_heads=2, image_size=64,
            patch_size=16, window_size=0, global_attn_indexes=[0], num_pos_feats=16, mlp_dim=64, initializer_range=0.02,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32, layer_norm_eps=1e-5,
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    model = CoraForReasoningSegmentation(
        CoraConfig(
            vlm_config=vlm_config(words.convert_tokens_to_ids, len(words)),
            sam_config=sam,
            seg_token_id=words.convert_tokens_to_ids(SEG_TOKEN),
        )
    )
    for parameter in model.parameters():  # at the libraries' scale all differences between tiny models drown
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    processor = CoraProcessor(
        image_processor=image_processor(),
        sam_image_processor=sam_image_processor(64),
        tokenizer=words,
        num_image_tokens=16,
        image_token=image_token,
        chat_template=template,
    )  # fmt: skip
    return model.eval(), processor
