"""A semantic segmenter: a backbone of transformers and a decoder. Saved and loaded like any model of transformers."""

# no `from __future__ import annotations`: @strict checks no field whose type is a string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .batch_norm import kept_statistics
from .clip import normalised
from .networks import DeepLabV3PlusNetwork, DptNetwork, SegformerNetwork
from .text_decoder import SimilarityNetwork

NETWORKS = {
    "segformer": SegformerNetwork,
    "dpt": DptNetwork,
    "deeplabv3plus": DeepLabV3PlusNetwork,
    "semivl": SimilarityNetwork,
}


@strict
class SegmenterConfig(PreTrainedConfig):
    r"""
    Args:
        architecture: `segformer`, `dpt` (DINOv2), `deeplabv3plus` (ResNet) or `semivl` (CLIP).
        backbone_config: of the backbone, as a dict.
        skip_encoder_config: `semivl`: of the ResNet that gives the finer skip features, as a dict; None: the ViT does.
        class_ids, class_names: in the order of the outputs; ids are those of label maps.
        decoder_channels: width of the decoder.
        window: (height, width) in pixels of the crops it was trained on, and of its sliding window.
        image_scale: images' sides are multiplied by this before they are cut into windows.
        image_mean, image_std: of pixels in 0..1, by which images are normalised inside of the model.
        concepts: `semivl`: for each class the words that stand for it.
        decoder_concepts: `semivl`: `average` or `each`.
    """

    model_type = "semantic_segmenter"

    architecture: Literal[tuple(NETWORKS)] = "segformer"
    backbone_config: Any = None
    skip_encoder_config: Any = None
    class_ids: list[int] | None = None
    class_names: list[str] | None = None
    decoder_channels: int = 256
    output_stride: int = 16
    atrous_rates: list[int] | None = None
    window: list[int] | None = None
    image_scale: float = 1.0
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)
    concepts: list[list[str]] | None = None
    decoder_concepts: Literal["average", "each"] = "average"


@dataclass(frozen=True)
class View:
    """Images for one pass, and how their features are perturbed.

    Attributes:
        images: uint8 (B, 3, H, W).
        masks: for each level of features (b, channels), factors of whole channels.
        beside: False: the features are multiplied by the masks, b = B (UniMatch V2). True: the last b images are
            decoded a second time, so perturbed, and these logits come after the B clean ones (UniMatch). The public
            code decodes the labelled images a second time too and drops the result; that only moves BatchNorm's
            statistics.
        statistics: which passes move BatchNorm's running statistics: `all`, `none`, or `clean`, the pass without
            perturbed features, which are then decoded on their own.
    """

    images: Tensor
    masks: list[Tensor] | None = None
    beside: bool = False
    statistics: Literal["all", "clean", "none"] = "all"


class SemanticSegmenter(PreTrainedModel):
    config_class = SegmenterConfig
    base_model_prefix = "network"
    main_input_name = "views"
    # the layers of its backbone do, but for a ResNet's
    supports_gradient_checkpointing = True
    # `forward` takes no loss arguments; see Trainer's `model_accepts_loss_kwargs`
    accepts_loss_kwargs = False

    def __init__(self, config: SegmenterConfig):
        super().__init__(config)
        self.network = NETWORKS[config.architecture](config)
        self.register_buffer("image_mean", torch.tensor(config.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(config.image_std).view(3, 1, 1), persistent=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Decoders keep torch's own start; backbones have theirs. Only what is derived from the configuration is set,
        since `from_pretrained` builds a model without values."""
        if module is self:
            self.image_mean.copy_(torch.tensor(self.config.image_mean).view(3, 1, 1))
            self.image_std.copy_(torch.tensor(self.config.image_std).view(3, 1, 1))

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """Keys as the model has them: Trainer loads checkpoints by plain `load_state_dict`."""
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def forward(self, views: Sequence[View]) -> list[Tensor]:
        """float logits (B, classes, H, W) of each view, at its images' size.

        All passes of a step are one call, since a model that is spread over processes may be called only once before
        the backward pass.
        """
        return [self._logits(view) for view in views]

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes, H, W) of uint8 images (B, 3, H, W)."""
        return self._logits(View(images))

    @property
    def classes(self) -> list[str]:
        return list(self.config.class_names)

    def normalised(self, images: Tensor) -> Tensor:
        """float (B, 3, H', W'), see `clip.normalised`."""
        return normalised(images, self.image_mean, self.image_std, self.network.patch_size)

    def _logits(self, view: View) -> Tensor:
        pixels = self.normalised(view.images)
        with kept_statistics(self, view.statistics == "none"):
            logits = self._decoded(view, self.network.encode(pixels))
        corners = self.network.align_corners
        logits = F.interpolate(logits.float(), size=pixels.shape[-2:], mode="bilinear", align_corners=corners)
        return logits[..., : view.images.shape[-2], : view.images.shape[-1]]

    def _decoded(self, view: View, features: list[Tensor]) -> Tensor:
        if view.masks is None:
            return self.network.decode(features)
        perturbed = [one[-len(m) :] * m.to(one)[:, :, None, None] for one, m in zip(features, view.masks, strict=True)]
        if not view.beside:
            return self.network.decode(perturbed)
        if view.statistics == "clean":
            clean = self.network.decode(features)
            with kept_statistics(self):
                return torch.cat([clean, self.network.decode(perturbed)])
        return self.network.decode([torch.cat(pair) for pair in zip(features, perturbed, strict=True)])
