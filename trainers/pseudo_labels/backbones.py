"""A segmenter to start from: a pretrained backbone from a folder or the Hub, or a random start of a known size."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    PreTrainedConfig,
    ResNetBackbone,
    ResNetConfig,
    SegformerConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from datasets_scripts.command_line import UsageError
from datasets_scripts.records import SemanticClass
from publishing.command_line import first_line

from .arguments import SegmenterArguments
from .clip import FrozenClip, mean_of_concepts, word_embeddings
from .concepts import concepts_of
from .segmenter import NETWORKS, SegmenterConfig, SemanticSegmenter
from .text_decoder import trained_in_clip

SAME_AT_A_START = (
    "architecture",
    "class_names",
    "class_ids",
    "output_stride",
    "atrous_rates",
    "concepts",
    "decoder_concepts",
    "image_mean",
    "image_std",
)
"""What weights are trained for and their shapes do not show; window and image_scale may be others."""


def random_start(size: str) -> PreTrainedConfig | None:
    """The configuration that a size's name stands for; None for any other name."""
    sizes = {
        "mit-b0": lambda: SegformerConfig(),
        "mit-xs": lambda: SegformerConfig(hidden_sizes=[16, 32, 80, 128], num_attention_heads=[1, 2, 5, 8]),
        "dinov2-small": lambda: Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6),
        "dinov2-base": lambda: Dinov2Config(),
        "resnet-xs": lambda: ResNetConfig(
            embedding_size=32, depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 128, 256], layer_type="basic"
        ),
        "resnet-18": lambda: ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
        "resnet-50": lambda: ResNetConfig(),
        "resnet-101": lambda: ResNetConfig(depths=[3, 4, 23, 3]),
        "clip-vit-base-patch16": lambda: CLIPVisionConfig(patch_size=16),
        "clip-vit-tiny": lambda: CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=224,
            patch_size=16,
            projection_dim=64,
        ),
    }
    return sizes[size]() if size in sizes else None


def build_segmenter(
    arguments: SegmenterArguments,
    classes: Sequence[SemanticClass],
    window: tuple[int, int],
    seed: int,
    image_scale: float = 1.0,
) -> SemanticSegmenter:
    """The segmenter before its first step; the decoder, and a backbone without weights, depend on the seed alone.

    Args:
        window: (height, width) of the crops.
        image_scale: see `SegmentationDataArguments`.

    Raises:
        UsageError: no such backbone, one of another family, or weights that do not fit.
    """
    own, pretrained = _known_or_read("backbone", arguments.backbone)
    if own.model_type == "clip":
        # the vision tower's own idea of the joint width is a default that nothing keeps true
        own.vision_config.projection_dim = own.projection_dim
        own = own.vision_config
    network = NETWORKS[arguments.architecture]
    if own.model_type != network.model_type:
        raise UsageError(
            f"backbone {arguments.backbone}: is a {own.model_type}; architecture {arguments.architecture} needs a "
            f"{network.model_type}"
        )
    _prepare(own, arguments)
    is_clip = arguments.architecture == "semivl"
    concepts = concepts_of(classes, arguments.concepts) if is_clip else None
    skip_encoder, skips_pretrained = _skip_encoder(arguments)
    config = SegmenterConfig(
        architecture=arguments.architecture,
        backbone_config=own.to_dict(),
        skip_encoder_config=None if skip_encoder is None else skip_encoder.to_dict(),
        class_ids=[c.id for c in classes],
        class_names=[c.name for c in classes],
        decoder_channels=arguments.decoder_channels or network.decoder_channels,
        output_stride=arguments.output_stride,
        atrous_rates=list(arguments.atrous_rates),
        window=list(window),
        image_scale=image_scale,
        image_mean=list(OPENAI_CLIP_MEAN if is_clip else IMAGENET_DEFAULT_MEAN),
        image_std=list(OPENAI_CLIP_STD if is_clip else IMAGENET_DEFAULT_STD),
        concepts=concepts,
        decoder_concepts=arguments.decoder_concepts,
    )
    torch.manual_seed(seed)
    segmenter = SemanticSegmenter(config)
    if pretrained:
        _load_backbone(segmenter, arguments)
    if skips_pretrained:
        encoder = _from_pretrained(ResNetBackbone, arguments.skip_encoder, skip_encoder, "skip_encoder")
        segmenter.network.skip_encoder.load_state_dict(encoder.state_dict())
    if is_clip:
        embeddings = concept_embeddings(arguments.backbone, concepts, own.projection_dim)
        if arguments.decoder_concepts == "average":
            embeddings = mean_of_concepts(embeddings, list(map(len, concepts)))
        segmenter.network.text_embeddings.copy_(embeddings)
        if pretrained:
            trained_in_clip(segmenter.network)
    if arguments.start_from is not None:
        _take_weights(segmenter, arguments.start_from)
    if not arguments.dropout:
        switch_off_dropout(segmenter)
    return segmenter


def load_segmenter(name: str, field: str) -> SemanticSegmenter:
    """A trained segmenter, from a folder or the Hub, in evaluation mode.

    Args:
        field: that named it.

    Raises:
        UsageError: it is none, or its weights are not all there.
    """
    try:
        config = SegmenterConfig.from_pretrained(name)
        if config.class_ids is None:  # of a backbone, say, which would load with nothing in its place
            raise ValueError("its config.json names no classes")
        segmenter, info = SemanticSegmenter.from_pretrained(name, config=config, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise UsageError(f"{field} {name}: is no trained segmenter ({first_line(error)})") from None
    _refuse_missing(info, f"{field} {name}")
    return segmenter


def _take_weights(segmenter: SemanticSegmenter, folder: str) -> None:
    """All of another segmenter's.

    Raises:
        UsageError: it does not load, or has other classes or parts.
    """
    trained = load_segmenter(folder, "start_from")
    for name in SAME_AT_A_START:
        theirs, own = getattr(trained.config, name), getattr(segmenter.config, name)
        if theirs != own:
            raise UsageError(f"start_from {folder}: {name} is {theirs}; this run's is {own}")
    # one at a time and in one line, where `load_state_dict` tells of all
    shapes, own_shapes = ({k: list(v.shape) for k, v in one.state_dict().items()} for one in (trained, segmenter))
    for name in sorted(shapes | own_shapes):
        if (theirs := shapes.get(name, "none")) != (own := own_shapes.get(name, "none")):
            raise UsageError(f"start_from {folder}: has other layers, {name} is {theirs}; this run's is {own}")
    segmenter.load_state_dict(trained.state_dict())


def frozen_clip(arguments: SegmenterArguments, segmenter: SemanticSegmenter) -> FrozenClip:
    """The CLIP that guides SemiVL; it knows all concepts, also where the decoder knows their means alone.

    Raises:
        UsageError: the segmenter has a random start, so that there is no CLIP that could guide it.
    """
    if random_start(arguments.backbone) is not None:
        raise UsageError(
            f"guidance_weight: backbone {arguments.backbone} is a random start, which has nothing to guide by; give a "
            "pretrained CLIP, or guidance_weight 0"
        )
    config = segmenter.config
    model = CLIPVisionModelWithProjection(copy.deepcopy(segmenter.network.backbone.config))
    model.load_state_dict(_vision_weights(arguments.backbone))
    embeddings = concept_embeddings(arguments.backbone, config.concepts, model.config.projection_dim)
    sizes = list(map(len, config.concepts))
    return FrozenClip(model, embeddings, sizes, config.image_mean, config.image_std)


def concept_embeddings(backbone: str, concepts: list[list[str]], width: int) -> torch.Tensor:
    """(concepts, D) of CLIP's text tower; for a random start random directions, the same for the same word."""
    words = [word for of_class in concepts for word in of_class]
    if random_start(backbone) is not None:
        return F.normalize(torch.stack([_direction(word, width) for word in words]), dim=-1)
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        raise UsageError(f"backbone {backbone}: has no tokenizer for the words ({first_line(error)})") from None
    return word_embeddings(_clip(backbone), tokenizer, words)


def switch_off_dropout(model: torch.nn.Module) -> None:
    """The network's own dropout and stochastic depth; feature perturbation is not among them."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("drop_prob", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _direction(word: str, width: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def _prepare(own: PreTrainedConfig, arguments: SegmenterArguments) -> None:
    """Which layers the decoder sees; trained in fp32, whatever the weights are stored in."""
    own.dtype = torch.float32
    NETWORKS[arguments.architecture].prepare(own)


def _skip_encoder(arguments: SegmenterArguments) -> tuple[PreTrainedConfig | None, bool]:
    """The stem and the first stage of a ResNet, and whether there are pretrained weights for them."""
    if arguments.skip_encoder is None:
        return None, False
    if arguments.architecture != "semivl":
        raise UsageError(f"skip_encoder {arguments.skip_encoder}: architecture {arguments.architecture} has none")
    own, pretrained = _known_or_read("skip_encoder", arguments.skip_encoder)
    if own.model_type != "resnet":
        raise UsageError(f"skip_encoder {arguments.skip_encoder}: is a {own.model_type}; a resnet is needed")
    values = own.to_dict() | {"depths": own.depths[:1], "hidden_sizes": own.hidden_sizes[:1], "dtype": "float32"}
    for name in ("stage_names", "out_features", "out_indices"):
        values.pop(name, None)
    return type(own)(**values, out_indices=[1]), pretrained


def _known_or_read(field: str, name: str) -> tuple[PreTrainedConfig, bool]:
    """A configuration, and whether there are pretrained weights for it."""
    own = random_start(name)
    if own is not None:
        return own, False
    if not name:
        raise UsageError(f"{field}: not given; a folder, a Hub id, or a size such as mit-b0")
    if (Path(name) / "config.json").is_file() or not Path(name).is_dir():
        try:
            return AutoConfig.from_pretrained(name), True
        except (OSError, ValueError, json.JSONDecodeError) as error:
            raise UsageError(f"{field} {name}: no size, folder or Hub id ({first_line(error)})") from None
    raise UsageError(f"{field} {name}: a folder without config.json")


def _load_backbone(segmenter: SemanticSegmenter, arguments: SegmenterArguments) -> None:
    own = segmenter.network.backbone
    if arguments.architecture == "semivl":
        own.load_state_dict(_vision_weights(arguments.backbone))
        return
    own.load_state_dict(_from_pretrained(type(own), arguments.backbone, own.config).state_dict())


def _clip(backbone: str) -> CLIPModel:
    return _from_pretrained(CLIPModel, backbone, None).eval()


def _vision_weights(backbone: str) -> dict[str, torch.Tensor]:
    weights = _clip(backbone).state_dict()
    return {name: value for name, value in weights.items() if name.startswith(("vision_model.", "visual_projection."))}


def _from_pretrained(
    kind: type, backbone: str, config: PreTrainedConfig | None, field: str = "backbone"
) -> torch.nn.Module:
    options = {} if config is None else {"config": config}
    try:
        model, info = kind.from_pretrained(backbone, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{field} {backbone}: cannot be loaded ({first_line(error)})") from None
    _refuse_missing(info, f"{field} {backbone}")
    return model


def _refuse_missing(info: dict, model: str) -> None:
    if wrong := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise UsageError(f"{model}: its weights lack, or have in another shape, {', '.join(wrong[:3])}")
