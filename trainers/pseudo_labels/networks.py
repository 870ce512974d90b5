"""Encoder and decoder pairs. Each has `encode` (images -> levels of features, (B, C, h, w) each) and `decode` (those ->
logits, (B, classes, h', w')), so that features can be perturbed in between.

Attributes of every network:
    model_type: of its backbone.
    decoder_channels: where none are given.
    channels: of each level.
    patch_size: the images' sides are whole multiples of it.
    align_corners: how its logits are enlarged to the image.
    backbone: the part that trains at the backbone's learning rate.

`prepare` tells the configuration of a backbone which layers the decoder sees.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, DPTConfig, PreTrainedConfig, SegformerConfig, SegformerModel
from transformers.models.dpt.modeling_dpt import DPTFeatureFusionLayer, DPTNeck
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead


def read_config(values: dict) -> PreTrainedConfig:
    """Of a backbone, from a dict in a `SegmenterConfig`."""
    fields = dict(values)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


class SegformerNetwork(nn.Module):
    """SegFormer (arXiv 2105.15203): Mix Transformer and all-MLP decoder."""

    model_type, decoder_channels = "segformer", 256
    patch_size, align_corners = 1, False

    @staticmethod
    def prepare(own: PreTrainedConfig) -> None:
        own.reshape_last_stage = True

    def __init__(self, config):
        super().__init__()
        own: SegformerConfig = read_config(config.backbone_config)
        own.decoder_hidden_size, own.num_labels = config.decoder_channels, len(config.class_ids)
        self.backbone = SegformerModel(own)
        self.decoder = SegformerDecodeHead(own)
        self.channels = list(own.hidden_sizes)

    def encode(self, pixels: Tensor) -> list[Tensor]:
        features = []
        for stage in self.backbone.stages:
            pixels = stage(pixels)
            features.append(pixels)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        return self.decoder(features)


class DptNetwork(nn.Module):
    """DINOv2 and DPT as in UniMatch V2 (`model/semseg/dpt.py`): four levels, no class token, no BatchNorm."""

    model_type, decoder_channels = "dinov2", 128
    align_corners = True

    @staticmethod
    def prepare(own: PreTrainedConfig) -> None:
        # UniMatch V2 counts layers from 0: 2 5 8 11 of 12, 4 11 17 23 of 24
        known = {12: [3, 6, 9, 12], 24: [5, 12, 18, 24], 40: [10, 20, 30, 40]}
        layers = own.num_hidden_layers
        own.out_indices = known.get(layers) or [max(1, layers * k // 4) for k in range(1, 5)]
        own.apply_layernorm, own.reshape_hidden_states = True, True

    def __init__(self, config):
        super().__init__()
        own = read_config(config.backbone_config)
        self.backbone = AutoBackbone.from_config(own)
        width, levels = own.hidden_size, len(own.out_indices)
        # UniMatch V2's 96 192 384 768 for the width 128
        hidden = [config.decoder_channels * 3 * 2**level // 4 for level in range(levels)]
        neck = DPTConfig(
            backbone_config=copy.deepcopy(own),  # it would unset the backbone's choice of attention
            neck_hidden_sizes=hidden,
            fusion_hidden_size=config.decoder_channels,
            readout_type="ignore",
            reassemble_factors=[4, 2, 1, 0.5],
            neck_ignore_stages=[],
            use_batch_norm_in_fusion_residual=False,
        )
        self.neck = DPTNeck(neck)
        self.head = nn.Sequential(
            nn.Conv2d(config.decoder_channels, config.decoder_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.decoder_channels, len(config.class_ids), 1),
        )
        self.channels, self.patch_size = [width] * levels, own.patch_size
        # these take part in nothing; processes that share a model would wait for their gradients
        if self.backbone.embeddings.mask_token is not None:
            self.backbone.embeddings.mask_token.requires_grad_(False)
        self.neck.fusion_stage.layers[0].residual_layer1.requires_grad_(False)

    def encode(self, pixels: Tensor) -> list[Tensor]:
        return list(self.backbone(pixels).feature_maps)

    def decode(self, features: list[Tensor]) -> Tensor:
        # the neck itself takes token sequences with a class token; its parts take maps
        layers = zip(self.neck.reassemble_stage.layers, self.neck.convs, features, strict=True)
        *finer, x = [conv(layer(one)) for layer, conv, one in layers]
        first, *others = self.neck.fusion_stage.layers
        x = fused(first, x, finer[-1].shape[-2:])
        for layer in others:
            skip = finer.pop()
            x = x + layer.residual_layer1(skip)
            x = fused(layer, x, finer[-1].shape[-2:] if finer else [2 * side for side in skip.shape[-2:]])
        return self.head(x)


def fused(layer: DPTFeatureFusionLayer, x: Tensor, size: Sequence[int]) -> Tensor:
    """A fusion layer's way up to the size of the next level. transformers' own doubles the size, and resamples the next
    level where that is not twice as large, as on an odd grid; so it would blur what is fine."""
    x = F.interpolate(layer.residual_layer2(x), size=tuple(size), mode="bilinear", align_corners=True)
    return layer.projection(x)


class DeepLabV3PlusNetwork(nn.Module):
    """ResNet and DeepLabV3+ (arXiv 1802.02611) as in UniMatch (`model/semseg/deeplabv3plus.py`)."""

    model_type, decoder_channels = "resnet", 256
    patch_size, align_corners = 1, True

    @staticmethod
    def prepare(own: PreTrainedConfig) -> None:
        own.out_indices = [1, 4]

    def __init__(self, config):
        super().__init__()
        own = read_config(config.backbone_config)
        self.backbone = AutoBackbone.from_config(own)
        if config.output_stride == 16:
            dilate_last_stage(self.backbone)
        low, high = self.backbone.channels[0], self.backbone.channels[-1]
        width = config.decoder_channels
        self.aspp = AtrousPyramid(high, width, config.atrous_rates)
        self.reduce = conv_norm(low, max(8, width * 48 // 256), 1)
        self.fuse = nn.Sequential(
            conv_norm(width + max(8, width * 48 // 256), width, 3, padding=1), conv_norm(width, width, 3, padding=1)
        )
        self.classifier = nn.Conv2d(width, len(config.class_ids), 1)
        self.channels = [low, high]

    def encode(self, pixels: Tensor) -> list[Tensor]:
        return list(self.backbone(pixels).feature_maps)

    def decode(self, features: list[Tensor]) -> Tensor:
        low, high = features
        high = F.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear", align_corners=True)
        return self.classifier(self.fuse(torch.cat([self.reduce(low), high], 1)))


class AtrousPyramid(nn.Module):
    """Parallel dilated convolutions and the image's mean (ASPP).

    Args:
        rates: of the dilations, beside a 1x1 convolution.
        norm: a layer for a number of channels.
    """

    def __init__(
        self, channels: int, width: int, rates: Sequence[int], norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ):
        super().__init__()
        self.branches = nn.ModuleList([conv_norm(channels, width, 1, norm)])
        self.branches.extend(conv_norm(channels, width, 3, norm, padding=rate, dilation=rate) for rate in rates)
        self.pool = conv_norm(channels, width, 1, norm)
        self.project = conv_norm((len(rates) + 2) * width, width, 1, norm)

    def forward(self, features: Tensor) -> Tensor:
        mean = self.pool(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[-2:])
        return self.project(torch.cat([*(branch(features) for branch in self.branches), mean], 1))


def dilate_last_stage(backbone: nn.Module) -> None:
    """Stride 2 of a ResNet's last stage becomes dilation 2, so that its features have a 16th of the image's size."""
    for name, module in backbone.encoder.stages[-1].named_modules():
        if isinstance(module, nn.Conv2d):
            first_of_stage = module.stride == (2, 2)
            module.stride = (1, 1)
            # the block that loses its stride is not dilated itself, as in torchvision's `replace_stride_with_dilation`
            if module.kernel_size == (3, 3) and not first_of_stage and not name.startswith("layers.0."):
                module.dilation = module.padding = (2, 2)


def conv_norm(
    channels: int, width: int, size: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, **options: int
) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, size, bias=False, **options), norm(width), nn.ReLU())
