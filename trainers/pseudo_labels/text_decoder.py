"""SemiVL's network (arXiv 2311.16241): maps of image-text similarity, one for each class, decoded side by side.

After `model/decode_heads/vlg_head.py` of the public code. The decoder sees similarities and no class identities, so
what it learns of one class holds for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone, CLIPVisionModelWithProjection, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .clip import best_of_class, dense_features
from .networks import AtrousPyramid, conv_norm, read_config

SKIPS = (0, 4)
"""Layers whose own values (`dense_features`) join the decoder on its way up, the later one first. A skip encoder stands
in for the first."""


class SimilarityNetwork(nn.Module):
    """CLIP ViT of which attention and positions train (see `trained_in_clip`), and for the finer skip features a whole
    ResNet stage beside it, where the configuration has one."""

    model_type, decoder_channels = "clip_vision_model", 128
    align_corners = False

    @staticmethod
    def prepare(own: PreTrainedConfig) -> None:
        """`dense_features` sees every layer."""

    def __init__(self, config):
        super().__init__()
        own = read_config(config.backbone_config)
        self.backbone = CLIPVisionModelWithProjection(own)
        self.patch_size = own.patch_size
        self.skips = tuple(min(skip, own.num_hidden_layers - 1) for skip in SKIPS)
        skip_widths = [own.hidden_size] * len(SKIPS)
        self.skip_encoder = None
        if config.skip_encoder_config is not None:
            self.skip_encoder = AutoBackbone.from_config(read_config(config.skip_encoder_config))
            self.skips, skip_widths[0] = self.skips[1:], self.skip_encoder.channels[0]
            # from CLIP's normalisation, which the segmenter applies, to that of a ResNet
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
            new_mean, new_std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
            self.skip_scale, self.skip_shift = nn.Buffer(std / new_std), nn.Buffer((mean - new_mean) / new_std)
        self.channels = [*skip_widths, own.projection_dim]
        # a row for each similarity map; which class a map is of
        maps = [1] * len(config.concepts) if config.decoder_concepts == "average" else list(map(len, config.concepts))
        self.text_embeddings = nn.Buffer(torch.zeros(sum(maps), own.projection_dim))
        self.concepts_of_class = maps
        self.decoder = SimilarityDecoder(
            config.decoder_channels, own.projection_dim, skip_widths, finer_skip=8 if self.skip_encoder is None else 4
        )

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """Skip features (B, width, h, w), the finer ones first, and dense CLIP embeddings (B, D, h, w)."""
        embeddings, hidden = dense_features(self.backbone, pixels, self.skips)
        if self.skip_encoder is not None:
            hidden = [*self.skip_encoder(pixels * self.skip_scale + self.skip_shift).feature_maps, *hidden]
        return [*hidden, embeddings]

    def decode(self, features: list[Tensor]) -> Tensor:
        *skips, embeddings = features
        maps = self.decoder(embeddings, self.text_embeddings, skips)
        return best_of_class(maps, self.concepts_of_class)


def trained_in_clip(network: SimilarityNetwork) -> None:
    """Freezes the CLIP ViT except for attention and positions (SemiVL: spatial fine-tuning).

    Queries and keys of the last layer go nowhere in dense features, so they stay frozen too.
    """
    last = f"layers.{network.backbone.config.num_hidden_layers - 1}."
    for name, parameter in network.backbone.named_parameters():
        unused = last in name and (".q_proj." in name or ".k_proj." in name)
        parameter.requires_grad = ("self_attn" in name or "position_embedding" in name) and not unused


class SimilarityDecoder(nn.Module):
    """Spatial reasoning on each map, semantic reasoning between the maps, then up by 4 with the skips.

    Args:
        channels: width; a multiple of 16 (groups of normalisation). SemiVL 128, up 64 and 32, skips 32 and 16.
        skip_widths: of the skip features, the finer ones first.
        finer_skip: what part of `channels` the finer ones become; SemiVL 8, and 4 where they are a ResNet's.
    """

    def __init__(
        self,
        channels: int,
        text_width: int,
        skip_widths: Sequence[int],
        finer_skip: int = 8,
        layers: int = 2,
        heads: int = 4,
    ):
        super().__init__()
        self.embed = nn.Conv2d(1, channels, 7, padding=3)
        self.aspp = AtrousPyramid(channels, channels, [6, 12, 18], group_norm)
        self.text = nn.Sequential(nn.Linear(text_width, channels), nn.ReLU())
        self.between = nn.ModuleList(BetweenClasses(channels, heads) for _ in range(layers))
        widths, skips = (channels // 2, channels // 4), (channels // 4, channels // finer_skip)
        self.skips = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, skip, 3, padding=1), nn.ReLU())
            for width, skip in zip(reversed(skip_widths), skips, strict=True)
        )
        self.up = nn.ModuleList([UpWithSkip(channels, widths[0], skips[0]), UpWithSkip(widths[0], widths[1], skips[1])])
        self.head = nn.Conv2d(widths[1], 1, 3, padding=1)

    def forward(self, embeddings: Tensor, text: Tensor, skips: list[Tensor]) -> Tensor:
        """Args:
            embeddings: (B, D, h, w).
            text: (N, D).
            skips: the finer ones (of the earliest layer) first.

        Returns:
            (B, N, 4h, 4w).
        """
        batch, count = len(embeddings), len(text)
        similarity = torch.einsum("bdhw,nd->bnhw", F.normalize(embeddings, dim=1), F.normalize(text, dim=-1))
        x = self.embed(similarity.flatten(0, 1)[:, None])
        x = x + self.aspp(x)
        words = self.text(F.normalize(text, dim=-1))
        for layer in self.between:
            x = layer(x, words, batch)
        for up, project, skip in zip(self.up, self.skips, reversed(skips), strict=True):
            x = up(x, project(skip), count)
        return self.head(x).reshape(batch, count, *x.shape[-2:])


class BetweenClasses(nn.Module):
    """At each place of a coarse grid, the classes attend to one another, told apart by their words.

    Args:
        pool: side of the grid's cells, in features; SemiVL 4.
    """

    def __init__(self, channels: int, heads: int, pool: int = 4):
        super().__init__()
        self.pool = pool
        self.transformer = nn.TransformerEncoderLayer(
            2 * channels, heads, 4 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, x: Tensor, words: Tensor, batch: int) -> Tensor:
        """Args:
        x: (B * N, C, h, w).
        words: (N, C).
        """
        count, channels, (height, width) = len(words), x.shape[1], x.shape[-2:]
        pooled = F.avg_pool2d(x, (min(self.pool, height), min(self.pool, width)))
        rows, columns = pooled.shape[-2:]
        tokens = pooled.reshape(batch, count, channels, rows * columns).permute(0, 3, 1, 2).flatten(0, 1)
        tokens = torch.cat([tokens, words.expand(len(tokens), -1, -1)], -1)
        tokens = self.transformer(tokens)[..., :channels]
        pooled = tokens.reshape(batch, rows * columns, count, channels).permute(0, 2, 3, 1)
        pooled = pooled.reshape(batch * count, channels, rows, columns)
        return x + F.interpolate(pooled, size=(height, width), mode="bilinear", align_corners=True)


class UpWithSkip(nn.Module):
    """Twice the size; the image's skip features join every class's map."""

    def __init__(self, channels: int, width: int, skip: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels - skip, 2, stride=2)
        self.convs = nn.Sequential(
            conv_norm(channels, width, 3, group_norm, padding=1), conv_norm(width, width, 3, group_norm, padding=1)
        )

    def forward(self, x: Tensor, skip: Tensor, count: int) -> Tensor:
        x = self.up(x)
        skip = F.interpolate(skip, size=x.shape[-2:], mode="bilinear", align_corners=True)
        return self.convs(torch.cat([x, skip.repeat_interleave(count, 0)], 1))


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // 16), width)
