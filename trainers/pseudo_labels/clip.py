"""What SemiVL needs of CLIP: dense image embeddings, word embeddings, and a frozen CLIP's opinion of each pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from datasets_scripts.records import IGNORE_INDEX

TEMPLATE = "a photo of a {}"
LOGIT_SCALE = 100.0
"""What CLIP multiplies similarities by before a softmax."""


def dense_features(
    model: CLIPVisionModelWithProjection, pixels: Tensor, skips: Sequence[int] = ()
) -> tuple[Tensor, list[Tensor]]:
    """An embedding in CLIP's image-text space for every patch (MaskCLIP, arXiv 2112.01071).

    The last layer attends to nothing: each place keeps its own value, as SemiVL's `MaskClipVisionTransformer` does. So
    do the features of the layers in `skips` (its `return_qkv`), while the layers after them see ordinary outputs.

    Args:
        pixels: (B, 3, H, W), normalised, sides multiples of the patch size.
        skips: layers whose own values are wanted too, counted from 0.

    Returns:
        (B, D, h, w), and for each skip (B, width, h, w).
    """
    vision = model.vision_model
    size = [side // model.config.patch_size for side in pixels.shape[-2:]]
    x = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    own = {}
    last = len(vision.encoder.layers) - 1
    for number, layer in enumerate(vision.encoder.layers):
        if number in skips or number == last:
            own[number] = _own_values(layer, x)
        if number < last:
            x = layer(x, None)
    embeddings = model.visual_projection(vision.post_layernorm(own[last]))
    return _as_map(embeddings, size), [_as_map(own[skip], size) for skip in skips]


def _own_values(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer gives where each place attends to itself alone."""
    attention = layer.self_attn
    x = x + attention.out_proj(attention.v_proj(layer.layer_norm1(x)))
    return x + layer.mlp(layer.layer_norm2(x))


def _as_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, 1 + h * w, C) -> (B, C, h, w), without the class token."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, tuple(size))


@torch.no_grad()
def word_embeddings(model: nn.Module, tokenizer, words: Sequence[str]) -> Tensor:
    """(n, D), each of length 1, of "a photo of a WORD".

    Args:
        model: a `CLIPModel`.
    """
    tokens = tokenizer([TEMPLATE.format(word) for word in words], padding=True, return_tensors="pt")
    features = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    return F.normalize(features.float(), dim=-1)


def mean_of_concepts(embeddings: Tensor, concepts_of_class: Sequence[int]) -> Tensor:
    """(concepts, D) -> (classes, D): the mean direction of each class's concepts."""
    parts = embeddings.split(list(concepts_of_class))
    return F.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


def best_of_class(maps: Tensor, concepts_of_class: list[int]) -> Tensor:
    """(B, concepts, h, w) -> (B, classes, h, w): the highest of each class's concepts, which follow one another."""
    if len(concepts_of_class) == maps.shape[1]:
        return maps
    return torch.stack([part.amax(1) for part in maps.split(concepts_of_class, dim=1)], 1)


def normalised(images: Tensor, mean: Tensor, std: Tensor, patch_size: int) -> Tensor:
    """float (B, 3, H', W') of uint8 images, filled up on the right and below to whole patches.

    Args:
        mean, std: (3, 1, 1), of pixels in 0..1.
    """
    pixels = (images.to(mean.dtype) / 255 - mean) / std
    right, below = -images.shape[-1] % patch_size, -images.shape[-2] % patch_size
    return F.pad(pixels, (0, right, 0, below), mode="replicate") if right or below else pixels


class FrozenClip(nn.Module):
    """CLIP as it was trained, asked about every pixel (SemiVL: dense CLIP guidance). It never trains.

    Args:
        embeddings: of all concepts, (n, D).
        concepts_of_class: how many of them each class has.
    """

    def __init__(
        self,
        model: CLIPVisionModelWithProjection,
        embeddings: Tensor,
        concepts_of_class: Sequence[int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
    ):
        super().__init__()
        self.model, self.concepts_of_class = model.eval().requires_grad_(False), list(concepts_of_class)
        self.embeddings = nn.Buffer(embeddings)
        self.mean = nn.Buffer(torch.tensor(image_mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(image_std).view(3, 1, 1))

    @torch.no_grad()
    def labels(self, images: Tensor, threshold: float) -> Tensor:
        """(B, H, W) class indices; 255 where the softmax over classes is below the threshold.

        Args:
            images: uint8 (B, 3, H, W).
        """
        pixels = normalised(images, self.mean, self.std, self.model.config.patch_size)
        dense, _ = dense_features(self.model, pixels)
        similarity = torch.einsum("bdhw,nd->bnhw", F.normalize(dense, dim=1), self.embeddings)
        of_class = best_of_class(similarity, self.concepts_of_class)
        whole = F.interpolate(of_class, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        whole = whole[..., : images.shape[-2], : images.shape[-1]]
        confidence, labels = (LOGIT_SCALE * whole).softmax(1).max(1)
        return torch.where(confidence >= threshold, labels, IGNORE_INDEX)
