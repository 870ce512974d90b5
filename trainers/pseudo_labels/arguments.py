"""Every hyper-parameter of the semi-supervised segmenters. A recipe is a YAML file of these fields.

    accelerate launch trainers/pseudo_labels/train.py trainers/pseudo_labels/recipes/camvid_cpu.yaml --data DIR

Field texts name the paper, or the public code a default comes from: UniMatch (arXiv 2208.09910), UniMatch V2
(2410.10777), SemiVL (2311.16241). Where a field's name does not say for whom it is, it is for every method.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from datasets_scripts.command_line import UsageError
from trainers.argument_checks import Share, check_above_zero, check_least, check_types
from trainers.base_trainer import BaseTrainingArguments

from .segmenter import NETWORKS

METHODS = ("supervised", "unimatch", "unimatch_v2", "semivl")


def _check_range(arguments: Any, name: str) -> None:
    low, high = (getattr(arguments, f"{name}_{end}") for end in ("min", "max"))
    if not 0 <= low <= high:
        raise UsageError(f"{name}_min, {name}_max: {low} to {high} is no range; 0 <= min <= max would be right")


@dataclass
class SegmenterArguments:
    architecture: Literal[tuple(NETWORKS)] = field(
        default="segformer",
        metadata={"help": "dpt takes a DINOv2 backbone (UniMatch V2), deeplabv3plus a ResNet (UniMatch)."},
    )
    backbone: str = field(
        default="mit-b0",
        metadata={
            "help": "Folder or Hub id with pretrained weights; or, for a random start, the name of a size: mit-b0, "
            "mit-xs, dinov2-small, dinov2-base, resnet-xs, resnet-18, resnet-50, resnet-101, clip-vit-base-patch16, "
            "clip-vit-tiny."
        },
    )
    start_from: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a trained segmenter of the same kind, all of whose weights are taken: those "
            "of a supervised run give unimatch_v2 a teacher that has learned the labelled images."
        },
    )
    decoder_channels: int | None = field(
        default=None,
        metadata={"help": "Width of the decoder; where not given segformer and deeplabv3plus 256, the others 128."},
    )
    output_stride: Literal[16, 32] = field(
        default=16,
        metadata={"help": "deeplabv3plus only: 32, or 16 by a dilated last stage (UniMatch on Cityscapes: 16)."},
    )
    atrous_rates: list[int] = field(
        default_factory=lambda: [6, 12, 18], metadata={"help": "deeplabv3plus only; UniMatch 6 12 18."}
    )
    dropout: bool = field(
        default=False,
        metadata={
            "help": "The network's own dropout and stochastic depth. SemiVL switches them off, since they make the "
            "pseudo-labels of a training pass noisy; with them two processes are no longer exactly one."
        },
    )
    skip_encoder: str | None = field(
        default=None,
        metadata={
            "help": "semivl only: a ResNet (folder, Hub id or size) whose stem and first stage give the decoder its "
            "finer skip features, as SemiVL has it on Cityscapes (ResNet-101; here without the deep stem of V1c). "
            "Where not given they are those of the ViT's first layer, as on SemiVL's other data sets."
        },
    )
    concepts: str | None = field(
        default=None,
        metadata={
            "help": 'semivl only: a JSON file {"car": ["car", "van"]}; where not given, SemiVL\'s words for the '
            "Cityscapes classes and the plain name of any other class."
        },
    )
    decoder_concepts: Literal["average", "each"] = field(
        default="average",
        metadata={
            "help": "semivl only: one similarity map per class, of its concepts' mean (SemiVL on Cityscapes), or one "
            "per concept, the class being its best concept."
        },
    )

    def __post_init__(self):
        check_types(self)
        check_least(self, decoder_channels=1)
        if not self.atrous_rates or min(self.atrous_rates) < 1:
            raise UsageError(f"atrous_rates: {self.atrous_rates} is no list of rates of 1 or more")


@dataclass
class SegmentationDataArguments:
    data: str = field(
        default="",
        metadata={"help": "Folder with the data; see datasets_scripts/folder.py."},
    )
    split_lists: str | None = field(
        default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt (UniMatch's format)."}
    )
    image_scale: float = field(
        default=1.0,
        metadata={
            "help": "Sides of images are multiplied by this before all else, and answers brought back: .5 = half as "
            "wide and high, which trains some three times faster. Crops are pixels after it. Scores are those of whole "
            "images. The papers 1."
        },
    )
    crop_height: int = field(default=801, metadata={"help": "Pixels. Cityscapes: UniMatch 801, V2 798 = 57 x 14."})
    crop_width: int = field(default=801, metadata={"help": "Pixels, as above."})
    scale_min: float = field(default=0.5, metadata={"help": "Smallest random resize; UniMatch 0.5."})
    scale_max: float = field(default=2.0, metadata={"help": "Largest random resize; UniMatch 2.0."})
    flip: Share = field(default=0.5, metadata={"help": "Probability of a mirrored crop; UniMatch 0.5."})
    absent_classes: Literal["leave_out", "keep", "error"] = field(
        default="leave_out",
        metadata={
            "help": "Classes that no labelled image shows: leave_out = the segmenter does not know them, keep = as in "
            "the public codes it has an output for them that nothing trains (SemiVL's words can still find them), "
            "error = stop."
        },
    )
    small_images: Literal["error", "pad"] = field(
        default="error",
        metadata={
            "help": "An image that is smaller than the crop before any resize: error = stop, pad = fill it up with "
            "ignored pixels (the public codes, without a word)."
        },
    )
    scene_cache_gigabytes: float = field(
        default=2.0,
        metadata={"help": "Decoded images that each process and each dataloader worker keeps in memory, at most."},
    )

    def __post_init__(self):
        check_types(self)
        check_least(self, crop_height=1, crop_width=1, scene_cache_gigabytes=0)
        check_above_zero(self, "image_scale", "scale_min")
        _check_range(self, "scale")


@dataclass
class StrongViewArguments:
    """The strong views; all defaults are UniMatch's."""

    jitter_probability: Share = field(default=0.8, metadata={"help": "Of the colour jitter."})
    brightness: float = field(default=0.5, metadata={"help": "Half-width of the factor around 1."})
    contrast: float = field(default=0.5, metadata={"help": "Half-width of the factor around 1."})
    saturation: float = field(default=0.5, metadata={"help": "Half-width of the factor around 1."})
    hue: float = field(default=0.25, metadata={"help": "Largest turn of the hue, as a share of the full circle."})
    grey_probability: Share = field(default=0.2, metadata={"help": "Of a grey view."})
    blur_probability: Share = field(default=0.5, metadata={"help": "Of a Gaussian blur."})
    blur_sigma_min: float = field(
        default=0.1, metadata={"help": "Pixels at image_scale 1; at .5 half as many, which blur the picture as much."}
    )
    blur_sigma_max: float = field(default=2.0, metadata={"help": "Likewise."})
    cutmix_probability: Share = field(default=0.5, metadata={"help": "Of a CutMix box in a strong view."})
    cutmix_area_min: Share = field(default=0.02, metadata={"help": "Of the box, as a share of the crop."})
    cutmix_area_max: Share = field(default=0.4, metadata={"help": "Of the box, as a share of the crop."})
    cutmix_aspect_min: Share = field(default=0.3, metadata={"help": "Height / width of the box; at most 1 / this."})
    mix_partner: Literal["other_image", "same_image"] = field(
        default="other_image",
        metadata={
            "help": "unimatch and semivl: where a box is filled from. The paper says another unlabelled batch; the "
            "public codes go through two loaders in the same order, so that it is another crop of the same image."
        },
    )

    def __post_init__(self):
        check_types(self)
        check_least(self, brightness=0, contrast=0, saturation=0, hue=0)
        check_above_zero(self, "cutmix_area_min", "cutmix_aspect_min")
        for name in ("blur_sigma", "cutmix_area"):
            _check_range(self, name)


@dataclass
class MethodArguments:
    method: Literal[METHODS] = field(default="unimatch", metadata={"help": "supervised: the labelled images alone."})
    labelled_loss: Literal["cross_entropy", "ohem"] = field(
        default="cross_entropy", metadata={"help": "Cityscapes: ohem in UniMatch and V2, cross_entropy in SemiVL."}
    )
    ohem_threshold: Share = field(default=0.7, metadata={"help": "UniMatch 0.7: surer pixels are left out."})
    ohem_min_kept: int = field(
        default=100_000, metadata={"help": "Pixels kept in any case, per image; UniMatch 200,000 for 2 crops of 801."}
    )
    confidence: Literal["pixel", "image_mean", "image_ratio"] | None = field(
        default=None,
        metadata={
            "help": "pixel = pixels of at least confidence_threshold; image_mean, image_ratio = every pixel, weighted "
            "by its image's mean confidence or share of confident pixels. Where not given: semivl image_mean, the "
            "others pixel."
        },
    )
    confidence_threshold: Share = field(
        default=0.95, metadata={"help": "UniMatch 0.95 (Pascal, COCO), 0 on Cityscapes; V2 0.95."}
    )
    strong_loss_weight: float = field(
        default=0.25, metadata={"help": "Of each strong view beside 1 for the labelled loss; unimatch, semivl 0.25."}
    )
    feature_loss_weight: float = field(
        default=0.5, metadata={"help": "Of the perturbed features, likewise; unimatch, semivl 0.5."}
    )
    feature_dropout: Share = field(
        default=0.5, metadata={"help": "Share of channels that feature perturbation drops; unimatch, semivl 0.5."}
    )
    batch_norm_statistics: Literal["all", "clean"] = field(
        default="all",
        metadata={
            "help": "unimatch, semivl, unimatch_v2: which passes move BatchNorm's running statistics, by which it "
            "predicts. all = every one, as in the public codes, perturbed features and strong views too; clean = "
            "labelled and weak images alone, of unimatch_v2 the labelled ones, since its teacher sees the weak ones. "
            "In a short training with BatchNorm in the decoder all cost 8 points of mIoU (results/pseudo_labels.md)."
        },
    )
    burn_in: Share = field(
        default=0.0,
        metadata={
            "help": "Share of the steps, the first ones, that are those of method supervised. The papers have none, "
            "but a pretrained backbone: from a random start early pseudo-labels show the frequent classes alone."
        },
    )
    ema_ratio: Share = field(
        default=0.996, metadata={"help": "unimatch_v2: highest share of itself that the teacher keeps in a step."}
    )
    guidance_weight: float = field(
        default=0.1,
        metadata={"help": "semivl: of the frozen CLIP at the first step, decaying linearly to 0 at the last; 0.1."},
    )
    guidance_threshold: Share = field(default=0.9, metadata={"help": "semivl: CLIP's least confidence; 0.9."})
    guidance_over: Literal["all", "sure"] = field(
        default="all", metadata={"help": "semivl: what the guidance loss is divided by; all = SemiVL's `mean_all`."}
    )

    def __post_init__(self):
        check_types(self)
        check_least(self, ohem_min_kept=0, strong_loss_weight=0, feature_loss_weight=0, guidance_weight=0)
        if self.feature_dropout == 1:
            raise UsageError("feature_dropout: 1 drops every channel; a share in [0, 1) would be right")


@dataclass
class SemiSupervisedTrainingArguments(BaseTrainingArguments):
    """transformers' arguments with UniMatch's defaults on Cityscapes."""

    optimizer: Literal["sgd", "adamw"] = field(default="sgd", metadata={"help": "UniMatch sgd; V2 and SemiVL adamw."})
    learning_rate: float = field(default=5e-3, metadata={"help": "Of the backbone. UniMatch 5e-3, V2 and SemiVL 5e-6."})
    head_learning_rate_multiplier: float = field(
        default=1.0, metadata={"help": "Decoder / backbone. UniMatch 1 on Cityscapes, V2 40, SemiVL 100."}
    )
    momentum: float = field(default=0.9, metadata={"help": "sgd only; UniMatch 0.9."})
    weight_decay: float = field(default=1e-4, metadata={"help": "UniMatch 1e-4; V2 and SemiVL 0.01."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: no clipping, as in the public codes."})
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "UniMatch: (1 - step / steps) ^ 0.9."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"power": 0.9, "lr_end": 0.0}, metadata={"help": "Of the schedule."}
    )
    per_device_train_batch_size: int = field(
        default=2, metadata={"help": "Labelled images, and as many unlabelled ones; UniMatch 8 in all."}
    )
    max_steps: int = field(
        default=83_760, metadata={"help": "UniMatch: 240 passes over the unlabelled images of 1/16, 8 at a time."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between log lines."})
    window_stride: Share = field(
        default=2 / 3, metadata={"help": "Of the sliding window on val, as a share of the crop; UniMatch 2/3."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Running statistics are those of all processes already."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_types(self)
        # windows further apart than their length would leave pixels that none of them sees
        check_above_zero(self, "window_stride")
        check_least(self, learning_rate=0, head_learning_rate_multiplier=0, momentum=0, weight_decay=0)
        if self.optim != BaseTrainingArguments.optim:
            raise UsageError(f"optim: {self.optim.value} has no effect here; optimizer sgd or adamw would be right")
        if self.load_best_model_at_end:
            raise UsageError(
                "load_best_model_at_end: true would choose by val, and a teacher's weights not at all; false would be "
                "right"
            )
        if self.push_to_hub:
            raise UsageError(
                "push_to_hub: true would publish all of output_dir, training_args.bin and pseudo-labels in it too, and "
                "a teacher's student in its place; false would be right"
            )


def check_cutmix(data: SegmentationDataArguments, strong: StrongViewArguments) -> None:
    """The largest box must fit into the crop at some aspect, or `cutmix_box` would draw for ever.

    Raises:
        UsageError: it does not.
    """
    longest = max(data.crop_height / data.crop_width, data.crop_width / data.crop_height)
    if strong.cutmix_probability and longest * strong.cutmix_aspect_min * strong.cutmix_area_max > 1:
        raise UsageError(
            f"crop_height, crop_width: no box of {strong.cutmix_area_max:g} of a crop of {data.crop_height} x "
            f"{data.crop_width} has an aspect of {strong.cutmix_aspect_min:g} or more; a smaller cutmix_area_max or "
            "cutmix_aspect_min would be right"
        )
