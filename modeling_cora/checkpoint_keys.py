"""What the weights of public checkpoints are called, and what CORA calls them.

A table is a list of rules `(pattern, name)`; the first pattern that matches a whole key renames it. A key that matches
no rule is unexpected, unless it matches a pattern of the table of what may be dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Rules = Sequence[tuple[str, str]]

_LLAMA_LAYER = (
    r"layers\.(\d+)\.((?:input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj"
    r"|mlp\.(?:gate|up|down)_proj)\.(?:weight|bias))"
)
_CLIP = r"((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)"
_ATTENTION = r"self_attn|cross_attn_token_to_image|cross_attn_image_to_token"

# segment_anything.modeling.Sam -> transformers.SamModel
SAM_ORIGINAL: Rules = (
    (r"image_encoder\.pos_embed", r"sam.vision_encoder.pos_embed"),
    (r"image_encoder\.patch_embed\.proj\.(.+)", r"sam.vision_encoder.patch_embed.projection.\1"),
    (r"image_encoder\.blocks\.(\d+)\.norm([12])\.(.+)", r"sam.vision_encoder.layers.\1.layer_norm\2.\3"),
    (r"image_encoder\.blocks\.(\d+)\.((?:attn|mlp)\..+)", r"sam.vision_encoder.layers.\1.\2"),
    (r"image_encoder\.neck\.0\.(.+)", r"sam.vision_encoder.neck.conv1.\1"),
    (r"image_encoder\.neck\.1\.(.+)", r"sam.vision_encoder.neck.layer_norm1.\1"),
    (r"image_encoder\.neck\.2\.(.+)", r"sam.vision_encoder.neck.conv2.\1"),
    (r"image_encoder\.neck\.3\.(.+)", r"sam.vision_encoder.neck.layer_norm2.\1"),
    # SamModel holds it twice, tied; this is the one of the two that is written
    (
        r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
        r"sam.shared_image_embedding.positional_embedding",
    ),
    (r"prompt_encoder\.point_embeddings\.(\d+)\.weight", r"sam.prompt_encoder.point_embed.\1.weight"),
    (r"prompt_encoder\.(not_a_point_embed|no_mask_embed)\.weight", r"sam.prompt_encoder.\1.weight"),
    (r"prompt_encoder\.mask_downscaling\.0\.(.+)", r"sam.prompt_encoder.mask_embed.conv1.\1"),
    (r"prompt_encoder\.mask_downscaling\.1\.(.+)", r"sam.prompt_encoder.mask_embed.layer_norm1.\1"),
    (r"prompt_encoder\.mask_downscaling\.3\.(.+)", r"sam.prompt_encoder.mask_embed.conv2.\1"),
    (r"prompt_encoder\.mask_downscaling\.4\.(.+)", r"sam.prompt_encoder.mask_embed.layer_norm2.\1"),
    (r"prompt_encoder\.mask_downscaling\.6\.(.+)", r"sam.prompt_encoder.mask_embed.conv3.\1"),
    (r"mask_decoder\.(iou_token|mask_tokens)\.weight", r"sam.mask_decoder.\1.weight"),
    (r"mask_decoder\.output_upscaling\.0\.(.+)", r"sam.mask_decoder.upscale_conv1.\1"),
    (r"mask_decoder\.output_upscaling\.1\.(.+)", r"sam.mask_decoder.upscale_layer_norm.\1"),
    (r"mask_decoder\.output_upscaling\.3\.(.+)", r"sam.mask_decoder.upscale_conv2.\1"),
    (
        r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.0\.(.+)",
        r"sam.mask_decoder.\1.proj_in.\2",
    ),
    (
        r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.1\.(.+)",
        r"sam.mask_decoder.\1.layers.0.\2",
    ),
    (
        r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.2\.(.+)",
        r"sam.mask_decoder.\1.proj_out.\2",
    ),
    (
        r"mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.(.+)",
        r"sam.mask_decoder.transformer.layers.\1.layer_norm\2.\3",
    ),
    (
        rf"mask_decoder\.transformer\.layers\.(\d+)\.((?:{_ATTENTION}|mlp)\..+)",
        r"sam.mask_decoder.transformer.layers.\1.\2",
    ),
    (
        r"mask_decoder\.transformer\.final_attn_token_to_image\.(.+)",
        r"sam.mask_decoder.transformer.final_attn_token_to_image.\1",
    ),
    (r"mask_decoder\.transformer\.norm_final_attn\.(.+)", r"sam.mask_decoder.transformer.layer_norm_final_attn.\1"),
)

# MobileSAM (mobile_sam/modeling/tiny_vit_sam.py) with its batch norms folded: a TinyViT before SAM's prompt and decoder
MOBILE_SAM: Rules = (
    (r"image_encoder\.patch_embed\.seq\.0\.(.+)", r"sam.vision_encoder.stem.0.\1"),
    (r"image_encoder\.patch_embed\.seq\.2\.(.+)", r"sam.vision_encoder.stem.1.\1"),
    (r"image_encoder\.layers\.(\d+)\.blocks\.(.+)", r"sam.vision_encoder.stages.\1.\2"),
    (r"image_encoder\.layers\.(\d+)\.downsample\.(.+)", r"sam.vision_encoder.downsamples.\1.\2"),
    *SAM_ORIGINAL,
)

# transformers.SamModel as it is saved; where both copies of the tied matrix were written, they are compared
SAM_TRANSFORMERS: Rules = ((r"((?:shared_image_embedding|vision_encoder|prompt_encoder|mask_decoder)\..+)", r"sam.\1"),)

# transformers.LlavaForConditionalGeneration on disk, in every layout that it was ever saved in
LLAVA: Rules = (
    (r"(?:language_model\.)?lm_head\.weight", r"vlm.lm_head.weight"),
    (r"(?:model\.)?language_model\.(?:model\.)?(embed_tokens|norm)\.weight", r"vlm.model.language_model.\1.weight"),
    (rf"(?:model\.)?language_model\.(?:model\.)?{_LLAMA_LAYER}", r"vlm.model.language_model.layers.\1.\2"),
    (rf"(?:model\.)?vision_tower\.(?:vision_model\.)?{_CLIP}", r"vlm.model.vision_tower.\1"),
    (
        r"(?:model\.)?multi_modal_projector\.(linear_[12]\.(?:weight|bias))",
        r"vlm.model.multi_modal_projector.\1",
    ),
)

# transformers.CLIPVisionModel, or the vision half of a CLIPModel
CLIP_VISION: Rules = ((rf"(?:vision_model\.)?{_CLIP}", r"vlm.model.vision_tower.\1"),)

# transformers.Dinov2Model on disk: `attention.attention.query` as on the Hub, `attention.q_proj` as 5.x names it
DINOV2: Rules = (
    (
        r"(encoder\.layer\.\d+\.attention)\.attention\.([qkv])(?:uery|ey|alue)\.(weight|bias)",
        r"vlm.model.vision_tower.\1.\2_proj.\3",
    ),
    (r"(encoder\.layer\.\d+\.attention)\.output\.dense\.(weight|bias)", r"vlm.model.vision_tower.\1.o_proj.\2"),
    (
        r"(encoder\.layer\.\d+\.(?:norm[12]|layer_scale[12]|mlp|attention\.[qkvo]_proj)\..+)",
        r"vlm.model.vision_tower.\1",
    ),
    (r"((?:embeddings|layernorm)\..+)", r"vlm.model.vision_tower.\1"),
)

# transformers.LlamaForCausalLM
LLAMA: Rules = (
    (r"lm_head\.weight", r"vlm.lm_head.weight"),
    (r"model\.(embed_tokens|norm)\.weight", r"vlm.model.language_model.\1.weight"),
    (rf"model\.{_LLAMA_LAYER}", r"vlm.model.language_model.layers.\1.\2"),
)

# LISA (model/LISA.py, LISAForCausalLM): LLaVA's first layout with SAM and the projection inside
LISA: Rules = (
    *LLAMA,
    # one Linear (LLaVA-1), or Linear - GELU - Linear (LLaVA-1.5, "mlp2x_gelu")
    (r"model\.mm_projector\.(?:0\.)?(weight|bias)", r"vlm.model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(weight|bias)", r"vlm.model.multi_modal_projector.linear_2.\1"),
    (rf"model\.vision_tower\.vision_tower\.(?:vision_model\.)?{_CLIP}", r"vlm.model.vision_tower.\1"),
    (r"model\.text_hidden_fcs\.0\.0\.(weight|bias)", r"seg_projector.linear_1.\1"),
    (r"model\.text_hidden_fcs\.0\.2\.(weight|bias)", r"seg_projector.linear_2.\1"),
    *((rf"model\.visual_model\.{pattern}", name) for pattern, name in SAM_ORIGINAL),
)

# What carries nothing that was learned, or belongs to no part of CORA
DROPPABLE: Sequence[str] = (
    r".*\.rotary_emb\.inv_freq",  # a function of the configuration
    r"(?:.*\.)?position_ids",  # 0, 1, 2, ...
    r"(?:.*\.)?pixel_(?:mean|std)",  # the image processor has them
)
DROPPABLE_OF_MOBILE_SAM: Sequence[str] = (
    r"image_encoder\.(?:norm_head|head)\..+",  # TinyViT's classifier
    r".*\.attention_bias_idxs",  # a function of the window
    r".*\.num_batches_tracked",
)
DROPPABLE_OF_CLIP: Sequence[str] = (
    r"text_model\..+",
    r"(?:text|visual)_projection\.weight",
    r"logit_scale",
)


def rename(key: str, rules: Rules) -> str | None:
    """The name of `key` by the first rule that matches it whole; None where none does."""
    for pattern, name in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return None


def is_droppable(key: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)
