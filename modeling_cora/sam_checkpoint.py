"""SAM's weights, from segment-anything's own files or transformers' folders, under CORA's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

from .checkpoint_keys import DROPPABLE, DROPPABLE_OF_MOBILE_SAM, MOBILE_SAM, SAM_ORIGINAL, SAM_TRANSFORMERS
from .checkpoint_shards import ConversionError, read_checkpoint, read_json
from .conversion import parse_config, renamed

# segment_anything/build_sam.py: of every published SAM; the weights do not tell it
DECODER_HEADS = 8


def read_sam(path: Path, decoder_heads: int = DECODER_HEADS) -> tuple[SamConfig, dict[str, torch.Tensor]]:
    """
    Args:
        path: segment-anything's or MobileSAM's `.pth`, or the folder of a `SamModel`.
        decoder_heads: attention heads of the mask decoder; a folder's `config.json` knows them itself.

    Returns:
        the configuration, and the tensors under CORA's names.

    Raises:
        ConversionError: not a SAM, a file that cannot be read, or a key that belongs to no SAM.
    """
    tensors = read_checkpoint(path)
    if any(name.startswith("image_encoder.patch_embed.seq.") for name in tensors):
        droppable = (*DROPPABLE, *DROPPABLE_OF_MOBILE_SAM)
        sam = renamed(fold_batch_norms(tensors), MOBILE_SAM, droppable, str(path))
        return sam_config_of(sam, decoder_heads, str(path)), sam
    if any(name.startswith("image_encoder.") for name in tensors):
        sam = renamed(tensors, SAM_ORIGINAL, DROPPABLE, str(path))
        return sam_config_of(sam, decoder_heads, str(path)), sam
    if not any(name.startswith("vision_encoder.") for name in tensors):
        raise ConversionError(f"{path}: is no SAM; it has neither image_encoder.* nor vision_encoder.* weights")
    config = read_json((path if path.is_dir() else path.parent) / "config.json")
    if config.get("model_type") != "sam":
        raise ConversionError(f"{path}: config.json is of model_type {config.get('model_type')!r}, not 'sam'")
    return parse_config(SamConfig, config, f"{path}: config.json"), renamed(
        tensors, SAM_TRANSFORMERS, DROPPABLE, str(path)
    )


def encoder_of(tensors: Mapping[str, torch.Tensor]) -> Literal["sam_vit", "tiny_vit"]:
    """`CoraConfig.sam_encoder` of tensors under CORA's names."""
    return "tiny_vit" if "sam.vision_encoder.stem.0.weight" in tensors else "sam_vit"


def fold_batch_norms(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each `X.c.weight` and its batch norm `X.bn.*` become one convolution `X.weight`, `X.bias`, as in inference."""
    folded = {name: tensor for name, tensor in tensors.items() if not re.search(r"\.(?:c|bn)\.[a-z_]+$", name)}
    for name, weight in tensors.items():
        if not name.endswith(".c.weight"):
            continue
        place = name.removesuffix(".c.weight")
        try:
            norm = [tensors[f"{place}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        except KeyError as error:
            raise ConversionError(f"{place}: a convolution whose batch norm lacks {error}") from None
        mean, variance, scale, shift = norm
        one = fuse_conv_bn_weights(weight, None, mean, variance, 1e-5, scale, shift)
        folded[f"{place}.weight"], folded[f"{place}.bias"] = (tensor.detach() for tensor in one)
    return folded


def sam_config_of(tensors: Mapping[str, torch.Tensor], decoder_heads: int, where: str) -> SamConfig:
    """Reads the sizes of an original SAM off its shapes.

    Args:
        tensors: under CORA's names.
        decoder_heads: of the mask decoder, the one size that no shape shows.

    Raises:
        ConversionError: a part that a size is read off is missing or of another form.
    """

    def shape(name: str, rank: int = 2) -> tuple[int, ...]:
        if f"sam.{name}" not in tensors:
            raise ConversionError(f"{where}: has no sam.{name}; is it a whole SAM?")
        found = tuple(tensors[f"sam.{name}"].shape)
        if len(found) != rank or 0 in found:
            raise ConversionError(f"{where}: sam.{name} is of shape {list(found)}, not of {rank} dimensions")
        return found

    def layers(prefix: str) -> int:
        return len({name.split(".")[prefix.count(".") + 2] for name in tensors if name.startswith(f"sam.{prefix}.")})

    if encoder_of(tensors) == "tiny_vit":
        # of the ViT, only what the rest has to know: TinyViT was trained at SAM's size and stride
        grid, patch = 64, 16
        vision = SamVisionConfig(
            num_hidden_layers=0, hidden_size=16, num_attention_heads=1, mlp_dim=16, image_size=grid * patch,
            patch_size=patch, output_channels=shape("vision_encoder.neck.conv1.weight", 4)[0],
            num_pos_feats=shape("shared_image_embedding.positional_embedding")[1],
        )  # fmt: skip
    else:
        vision = _vit_config(shape, layers, where)
        grid, patch = vision.image_size // vision.patch_size, vision.patch_size
    prompt_width = shape("prompt_encoder.no_mask_embed.weight")[1]
    prompt = SamPromptEncoderConfig(
        hidden_size=prompt_width,
        image_size=grid * patch,
        patch_size=patch,
        mask_input_channels=shape("prompt_encoder.mask_embed.conv3.weight", 4)[1],
        num_point_embeddings=layers("prompt_encoder.point_embed"),
    )
    narrow = shape("mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight")[0]
    decoder = SamMaskDecoderConfig(
        hidden_size=prompt_width,
        mlp_dim=shape("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
        num_hidden_layers=layers("mask_decoder.transformer.layers"),
        num_attention_heads=decoder_heads,
        attention_downsample_rate=prompt_width // narrow,
        num_multimask_outputs=shape("mask_decoder.mask_tokens.weight")[0] - 1,
        iou_head_hidden_dim=shape("mask_decoder.iou_prediction_head.proj_in.weight")[0],
        # torch's nn.LayerNorm in the original two-way transformer; transformers' default of 1e-6 moves masks by 6e-5
        layer_norm_eps=1e-5,
    )
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def _vit_config(shape: Callable[..., tuple[int, ...]], layers: Callable[[str], int], where: str) -> SamVisionConfig:
    """Of SAM's ViT; `shape` and `layers` look into the checkpoint."""
    width, _, patch, _ = shape("vision_encoder.patch_embed.projection.weight", 4)
    grid = shape("vision_encoder.pos_embed", 4)[1]
    depth = layers("vision_encoder.layers")
    # a block's relative positions reach over its window: 2 * window - 1 rows, or 2 * grid - 1 in a global block
    reach = [(shape(f"vision_encoder.layers.{index}.attn.rel_pos_h")[0] + 1) // 2 for index in range(depth)]
    windows = sorted({side for side in reach if side != grid})
    if len(windows) > 1:
        raise ConversionError(f"{where}: blocks with windows of {windows}; SamModel has one size of window")
    return SamVisionConfig(
        hidden_size=width,
        output_channels=shape("vision_encoder.neck.conv1.weight", 4)[0],
        num_hidden_layers=depth,
        num_attention_heads=width // shape("vision_encoder.layers.0.attn.rel_pos_h")[1],
        image_size=grid * patch,
        patch_size=patch,
        window_size=windows[0] if windows else grid,
        global_attn_indexes=[index for index, side in enumerate(reach) if side == grid],
        num_pos_feats=shape("shared_image_embedding.positional_embedding")[1],
        mlp_dim=shape("vision_encoder.layers.0.mlp.lin1.weight")[0],
    )
