"""Backbone folders with random weights, each a few thousand parameters, saved as a user's would be."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerModel,
)


def save_segformer(folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = dict(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2])
    config = SegformerConfig(sr_ratios=[4, 2, 1, 1], **sizes)
    SegformerModel(config).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    torch.manual_seed(1)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def save_resnet(folder: Path) -> Path:
    torch.manual_seed(1)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 2], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    return folder


def save_clip(folder: Path, words: tuple[str, ...] = ("road", "street", "sky", "car", "a", "photo", "of")) -> Path:
    """A CLIP with both towers and a tokenizer of whole words."""
    torch.manual_seed(1)
    vocabulary = {token: index for index, token in enumerate(("<pad>", "<end>", "<unk>", *words))}
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    config = CLIPConfig(
        text_config=text | dict(vocab_size=len(vocabulary), eos_token_id=1, max_position_embeddings=24),
        vision_config=vision | dict(image_size=32, patch_size=8),
        projection_dim=12,
    )
    model = CLIPModel(config)
    # a random tower gives all words nearly one direction
    torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=1.0)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
