"""Sizes by name: `cora-tiny`, which needs no download and trains on a CPU, and `cora-7b`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from .configuration_cora import SEG_TOKEN, CoraConfig
from .image_processors import clip_image_processor, sam_image_processor
from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import DEFAULT_ANSWER, CoraProcessor

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>", SEG_TOKEN]


def train_query_tokenizer(queries: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of queries as the model reads them: small, and no text is unknown to it. The frame of the chat
    template belongs to its texts, or it would cost a token for each letter."""
    texts = {f"USER: \n{query} ASSISTANT: {DEFAULT_ANSWER}" for query in queries}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Merges are learned from counts; sorted unique texts make them independent of the order of the data.
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", SEG_TOKEN],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def small_text_config(tokenizer: PreTrainedTokenizerFast, layers: int = 4) -> LlamaConfig:
    """LLaMA 4 x 192: 1.8M parameters and two tables."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def cora_tiny_config(
    tokenizer: PreTrainedTokenizerFast, clip_image_size: int = 112, sam_image_size: int = 256
) -> CoraConfig:
    """About 5M parameters: LLaMA 4 x 192, CLIP 3 x 128 (patch 14), SAM ViT 4 x 128 (patch 16) and its decoder."""
    text = small_text_config(tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=clip_image_size,
        patch_size=14,
        projection_dim=128,
    )
    llava = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=(clip_image_size // 14) ** 2,
    )
    sam = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=128,
            output_channels=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=sam_image_size,
            patch_size=16,
            window_size=8,
            global_attn_indexes=[1, 3],
            num_pos_feats=64,
            mlp_dim=512,
            initializer_range=0.02,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=128, image_size=sam_image_size, patch_size=16, mask_input_channels=16
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=128,
            mlp_dim=512,
            num_attention_heads=4,
            iou_head_hidden_dim=128,
            layer_norm_eps=1e-5,
            num_multimask_outputs=0,
        ),
        initializer_range=0.02,
    )
    return CoraConfig(
        vlm_config=llava,
        sam_config=sam,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        iou_loss_weight=1.0,
    )


def cora_7b_config() -> CoraConfig:
    """LLaVA-1.5-7B (as `llava-hf/llava-1.5-7b-hf` has it) and SAM ViT-H: what `convert_vlm_sam` makes of the two.

    7.7 billion weights. LLaVA's tokenizer has 32,002 tokens and its tables 32,064 rows, so `[SEG]` needs no new one.
    """
    # what is not named here is transformers' default: LLaMA-7B's sizes, CLIP-L/14-336 and how LLaVA-1.5 joins the two
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, pad_token_id=32001)
    sam = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=1280,
            num_hidden_layers=32,
            num_attention_heads=16,
            global_attn_indexes=[7, 15, 23, 31],
            mlp_dim=5120,
        ),
        mask_decoder_config=SamMaskDecoderConfig(layer_norm_eps=1e-5),
    )
    return CoraConfig(vlm_config=LlavaConfig(text_config=text), sam_config=sam, seg_token_id=32002)


def processor_of(config: CoraConfig, tokenizer: PreTrainedTokenizerFast) -> CoraProcessor:
    """Of a LLaVA with a CLIP, such as the two above."""
    tower = config.vlm_config.vision_config
    return CoraProcessor(
        image_processor=clip_image_processor(tower.image_size),
        sam_image_processor=sam_image_processor(config.sam_config.vision_config.image_size),
        tokenizer=tokenizer,
        num_image_tokens=(tower.image_size // tower.patch_size) ** 2,
    )


@torch.no_grad()
def _keep_scale(part: nn.Module) -> None:
    """Weights with which every layer keeps the scale of its input: variance 1 / fan-in.

    The libraries' standard deviation of 0.02 suits widths in the thousands; at 128 to 192 it makes every layer shrink
    its input.
    """
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.ConvTranspose2d):  # kernel = stride: one input pixel for each output pixel
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)


@torch.no_grad()
def initialise_language_model(language_model: nn.Module) -> None:
    """Weights from which a small language model learns within minutes to tell queries apart: layers keep the scale of
    their input, and what attention carries is doubled, since it averages a query's few tokens with about a hundred
    others."""
    _keep_scale(language_model)
    for name, module in language_model.named_modules():
        if name.endswith(("v_proj", "o_proj")):
            module.weight.mul_(2.0)


@torch.no_grad()
def _initialise_from_scratch(model: CoraForReasoningSegmentation) -> None:
    """Weights from which a small model learns to segment within minutes.

    With the libraries' own, SAM's masks start at 1e-3 and all queries reach the decoder as one prompt, for which
    "background everywhere" is the best answer; training stays there.
    """
    initialise_language_model(model.vlm.base_model.language_model)
    _keep_scale(model.sam)
    nn.init.normal_(model.sam.vision_encoder.pos_embed, std=0.02)
    for module in (model.seg_projector.linear_1, model.seg_projector.linear_2):
        module.weight.mul_(2.0**0.5)


def cora_tiny(
    texts: Iterable[str], seed: int = 0, clip_image_size: int = 112, sam_image_size: int = 256
) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """A randomly initialised `cora-tiny` and its processor.

    Args:
        texts: queries and answers that the tokenizer is trained on.
        seed: of the initial weights.
        clip_image_size: side of the vision tower's input, a multiple of 14; (side / 14)^2 image tokens.
        sam_image_size: side of SAM's input, a multiple of 128.
    """
    tokenizer = train_query_tokenizer(texts)
    config = cora_tiny_config(tokenizer, clip_image_size, sam_image_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CoraForReasoningSegmentation(config)
        _initialise_from_scratch(model)
    return model, processor_of(config, tokenizer)


__all__ = [
    "cora_7b_config",
    "cora_tiny",
    "cora_tiny_config",
    "initialise_language_model",
    "processor_of",
    "small_text_config",
    "train_query_tokenizer",
]
