"""Small random LLaVA, SAM and CLIP checkpoints on disk, in the layouts that public ones have."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from publishing.command_line import one_line_errors

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<unk>", "<s>", "</s>"]


@torch.no_grad()
def randomised(model: torch.nn.Module, seed: int, std: float = 0.2) -> torch.nn.Module:
    """All that is saved redrawn, what starts as 0 or 1 too, so that nothing can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(std=std, generator=generator)
    return model.eval()


def tokenizer(extra: list[str]) -> PreTrainedTokenizerFast:
    """Bytes, then `extra` as special tokens: 259 + len(extra) tokens."""
    words = {token: index for index, token in enumerate([*SPECIAL, *ALPHABET])}
    bytes_alone = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=extra,
        clean_up_tokenization_spaces=False,
    )


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        projection_dim=16,
    )


def llava(rows: int, image_id: int = 259) -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
    )
    config = LlavaConfig(text_config=text, vision_config=clip_config(), image_token_id=image_id, image_seq_length=4)
    return randomised(LlavaForConditionalGeneration(config), 1)


def llava_folder(
    folder: Path, rows: int = 259 + 1, old_layout: bool = True, shard: str = "5GB"
) -> LlavaForConditionalGeneration:
    """A folder as on the Hub; 260 tokens, the last of them `<image>`."""
    model = llava(rows)
    model.save_pretrained(folder, save_original_format=old_layout, max_shard_size=shard)
    tokenizer(["<image>"]).save_pretrained(folder)
    return model


def sam_config() -> SamConfig:
    return SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=32,
            output_channels=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            window_size=3,
            global_attn_indexes=[1],
            num_pos_feats=8,
            mlp_dim=128,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=24, num_attention_heads=8, iou_head_hidden_dim=20, layer_norm_eps=1e-5
        ),
    )


def sam_folder(folder: Path) -> SamModel:
    model = randomised(SamModel(sam_config()), 2)
    model.prompt_encoder.shared_embedding.positional_embedding = model.shared_image_embedding.positional_embedding
    model.save_pretrained(folder)
    return model


def original_sam() -> torch.nn.Module:
    """segment-anything's own classes; its package imports torchvision, the modules of the network do not."""
    spec = importlib.util.find_spec("segment_anything")
    if spec is None:
        pytest.skip("segment-anything is not installed (pip install segment-anything)")
    if "segment_anything" not in sys.modules:
        package = types.ModuleType("segment_anything")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["segment_anything"] = package
    modeling = importlib.import_module("segment_anything.modeling")
    return randomised(
        modeling.Sam(
            image_encoder=modeling.ImageEncoderViT(
                img_size=64,
                patch_size=8,
                embed_dim=32,
                depth=3,
                num_heads=4,
                out_chans=16,
                norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
                use_rel_pos=True,
                window_size=3,
                global_attn_indexes=(1,),
            ),
            prompt_encoder=modeling.PromptEncoder(
                embed_dim=16, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=16
            ),
            mask_decoder=modeling.MaskDecoder(
                transformer_dim=16,
                transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=24, num_heads=8),
                iou_head_depth=3,
                iou_head_hidden_dim=20,
            ),
        ),
        3,
    )


def refused(convert, capsys, output: Path, *arguments: object) -> str:
    """The one line with which a conversion is refused; nothing may stay behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(SystemExit) as stopped:
        one_line_errors(convert)([*map(str, arguments), "--output", str(output)])
    assert stopped.value.code == 2
    line = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(line) == 1
    assert sorted(output.parent.iterdir()) == before
    return line[0]
