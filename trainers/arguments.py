"""Every hyper-parameter, in one place. A recipe is a YAML file of these fields; the command line overrides it.

    accelerate launch trainers/stage1.py trainers/recipes/demo.yaml --data DIR --max_steps 100

Field texts name the equation or table of the paper (arXiv 2511.17755), or the public code a default comes from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from transformers.trainer_utils import HubStrategy

from datasets_scripts.command_line import UsageError
from datasets_scripts.records import Kind
from modeling_cora.consistency import WeightKind

from .argument_checks import Share, check_above_zero, check_kinds, check_least, check_types
from .base_trainer import BaseTrainingArguments

CLASS_KINDS = ("semantic", "attribute")
"""Kinds of queries that a class has without a label map."""


@dataclass
class ModelArguments:
    model: str = field(
        default="cora-tiny",
        metadata={
            "help": "`cora-tiny` (random start, no download), or a folder or Hub id with a CORA model, or with an "
            "adapter of one, which is then trained further."
        },
    )
    clip_image_size: int = field(
        default=112, metadata={"help": "cora-tiny only: side of the vision tower's input; (side / 14)^2 image tokens."}
    )
    sam_image_size: int = field(
        default=256, metadata={"help": "cora-tiny only: side of SAM's input, a multiple of 128. SAM: 1024."}
    )
    seg_state: str | None = field(
        default=None, metadata={"help": "`before` (LISA) or `at` (Sa2VA) [SEG]; the model's own where not given."}
    )
    lm_loss_weight: float | None = field(
        default=None, metadata={"help": "alpha of eq. 5; paper 1.0. The model's own where not given, as below."}
    )
    bce_loss_weight: float | None = field(default=None, metadata={"help": "Eq. 4: 1.0. LISA: 2.0."})
    dice_loss_weight: float | None = field(default=None, metadata={"help": "Eq. 4: 1.0. LISA: 0.5."})
    iou_loss_weight: float | None = field(
        default=None, metadata={"help": "SAM's IoU head; 0 in the paper and LISA, 1 for cora-tiny's random start."}
    )
    mask_loss_at: str | None = field(
        default=None, metadata={"help": "Mask loss at `labels` (LISA), `low_res` or `points` (Sa2VA: 12,544)."}
    )
    embedding_pooling: int | None = field(
        default=None,
        metadata={"help": "Side of the squares over which SAM's embeddings are averaged: coarse masks of many queries "
                  "for a first part of a training on a CPU. SAM and the papers: 1."},
    )  # fmt: skip


@dataclass
class TrainedPartsArguments:
    """What trains; see trainers/trained_parts.py. The defaults are LISA's, or everything for cora-tiny's random start.

    The vision tower, the connector and SAM's encoder stay frozen in LISA and in the paper.
    """

    trained_parts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Trained in full: vision_tower connector embeddings language_model lm_head seg_projector "
            "anchor_encoder sam_encoder prompt_encoder mask_decoder. LISA: embeddings lm_head seg_projector "
            "mask_decoder."
        },
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Rank of the LoRA on the language model; LISA and the paper 8; 0: no LoRA."}
    )
    lora_alpha: int = field(default=16, metadata={"help": "LISA: 16."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LISA: 0.05."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"],
        metadata={"help": "Linear layers of the language model (of no other part). LISA: q_proj v_proj."},
    )


@dataclass
class QueryPretrainingArguments:
    """For a language model with a random start; see trainers/query_pretraining.py. A pretrained one needs none."""

    query_pretraining_steps: int = field(
        default=0,
        metadata={
            "help": "Steps before stage 1 on the words of the queries alone; 250 suit cora-tiny and cora-small. A "
            "model that a stage has trained (it has a training.json) gets none."
        },
    )
    query_pretraining_kinds: list[str] | None = field(
        default=None,
        metadata={
            "help": "Kinds of instructions whose words are learned then. Default: all that there are, those of later "
            "stages too, as a pretrained language model knows them."
        },
    )
    query_pretraining_claim_scale: float = field(
        default=0.5,
        metadata={
            "help": "What a query says beyond its class (a place, a relation) has a prompt of its own, at this scale "
            "of the class's. 0: all queries about a class mean the same (250 steps of it, and one of two models tells "
            "no sides)."
        },
    )
    query_pretraining_queries: int = field(default=32, metadata={"help": "Queries per step, packed behind one image."})
    query_pretraining_learning_rate: float = field(
        default=2e-3, metadata={"help": "AdamW, with a linear warm-up over the first tenth and a linear decay to 0."}
    )

    def __post_init__(self):
        check_least(self, query_pretraining_steps=0, query_pretraining_queries=1, query_pretraining_claim_scale=0)
        check_above_zero(self, "query_pretraining_learning_rate")
        if self.query_pretraining_kinds is not None:
            check_kinds("query_pretraining_kinds", self.query_pretraining_kinds, get_args(Kind))


@dataclass
class DataArguments:
    data: str = field(
        default="",
        metadata={"help": "Folder with images and masks in a layout of datasets_scripts/folder.py, or built tables."},
    )
    split_lists: str | None = field(
        default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt (UniMatch's format)."}
    )
    data_name: str | None = field(
        default=None, metadata={"help": "What a model card calls the data: a Hub id, or the folder's name by default."}
    )
    kinds: list[str] = field(
        default_factory=lambda: ["semantic", "attribute"],
        metadata={"help": "Kinds of instructions; stage 1 of the paper: semantic attribute."},
    )
    queries_per_image: int = field(
        default=3, metadata={"help": "Branches packed behind each image. LISA: up to 3 classes per image."}
    )
    max_label_size: int | None = field(
        default=None,
        metadata={"help": "Longest side at which the mask loss is taken; the image's own size where not given (LISA)."},
    )
    flip: Share = field(
        default=0.0,
        metadata={"help": "Probability of a mirrored image; never of classes that name a side (left kidney)."},
    )
    flipped_queries: Literal["classes", "all"] = field(
        default="classes",
        metadata={
            "help": "What is asked about a mirrored image. classes: whole classes alone; all: parts and relations too, "
            "left and right swapped, but no free text that names a side. In 850 steps on 13 photos all unlearned sides "
            "(results/camvid_small_recipe.md)."
        },
    )
    crop: Share = field(
        default=0.0,
        metadata={
            "help": "Probability of a random crop of `crop_scale` to all of each side (only with class-level queries, "
            "and no free text; what it shows nothing of is not asked for)."
        },
    )
    crop_scale: Share = field(default=0.5, metadata={"help": "Smallest crop, as a fraction of each side, in (0, 1]."})
    colour_jitter: float = field(
        default=0.0, metadata={"help": "Half-width of brightness, contrast and saturation factors around 1, in [0, 1)."}
    )
    scene_cache_gigabytes: float = field(
        default=2.0,
        metadata={
            "help": "Decoded scenes that each process and dataloader worker keeps in memory, at most; labelled "
            "and unlabelled ones each so many."
        },
    )

    def __post_init__(self):
        check_types(self)
        check_kinds("kinds", self.kinds, get_args(Kind))
        check_least(self, queries_per_image=1, max_label_size=1, scene_cache_gigabytes=0)
        check_above_zero(self, "crop_scale")
        if not 0 <= self.colour_jitter < 1:
            raise UsageError(f"colour_jitter: {self.colour_jitter} is outside of [0, 1)")


@dataclass
class EmbeddingCacheArguments:
    """SAM's image embeddings kept on disk; see trainers/embedding_cache.py. For a frozen encoder alone."""

    embedding_cache: str | None = field(
        default=None,
        metadata={"help": "Folder for the embeddings, which stages, evaluations and processes may share; none: every "
                  "image is encoded each time. Random crops, and colour_jitter above all, make images new."},
    )  # fmt: skip
    embedding_cache_gigabytes: float = field(
        default=20.0,
        metadata={"help": "10^9 bytes that the folder may hold; the least recently used embeddings make room. SAM's: "
                  "4.2 MB an image in fp32, 2.1 in 16 bits."},
    )  # fmt: skip
    embedding_cache_precision: Literal["exact", "float16"] = field(
        default="exact",
        metadata={"help": "`exact`: as the encoder gives them, and losses are those without a cache to the bit; "
                  "`float16`: half the room of fp32, and losses differ a little."},
    )  # fmt: skip

    def __post_init__(self):
        check_types(self)
        check_above_zero(self, "embedding_cache_gigabytes")


@dataclass
class UnlabelledArguments:
    """Stage 3: what unlabelled images teach, eqs. 6 to 9. Where the paper is open or contradicts itself, the help says
    what it prints and what the default is."""

    pseudo_labels: str = field(
        default="", metadata={"help": "Folder of class maps that trainers/pseudo_labels/predict.py wrote."}
    )
    pseudo_confidence: Share = field(
        default=0.0,
        metadata={"help": "Pixels whose confidence is lower are ignored, in [0, 1]. CORA 0; the LISA baseline .95."},
    )
    sigma: float | None = field(
        default=None,
        metadata={"help": "Eq. 9: weight of both unlabelled losses; 0 leaves them out. Paper .001, the default with "
                  "`sum`; with `mean` the default is 0.5."},
    )  # fmt: skip
    pixel_reduction: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "Over the pixels of a mask in eq. 7: `mean`, or `sum` as printed."}
    )
    consistency: Literal["ahead", "online", "none"] = field(
        default="ahead",
        metadata={"help": "Where lambda comes from: `ahead` (a frozen model's, written by "
                  "trainers/consistency_weights.py), `online` (the current weights), `none` (lambda = 1)."},
    )  # fmt: skip
    consistency_weights: str = field(default="", metadata={"help": "Folder for `ahead`."})
    weight_kind: WeightKind = field(
        default="inverse",
        metadata={"help": "Eq. 6: `inverse` 1 - 4 var, `exp` exp(-var / temperature), `literal` var as printed, which "
                  "the paper's prose contradicts."},
    )  # fmt: skip
    weight_temperature: float = field(
        default=0.05,
        metadata={"help": "Of `exp`. Variances may be small; trainers/diagnose.py tells what others would weigh."},
    )
    rephrasings: int = field(default=6, metadata={"help": "k - 1 of eq. 6; paper 6 (K = 7)."})
    alignment: bool = field(default=True, metadata={"help": "Whether eq. 8 counts (the paper's TFCA)."})
    alignment_weight: float | None = field(
        default=None,
        metadata={"help": "Of eq. 8 in place of sigma, which the paper's eq. 9 has for both unlabelled losses; their "
                  "gradients may differ widely, see trainers/diagnose.py. Without effect where sigma is 0."},
    )  # fmt: skip
    aligned_queries: Literal["all", "classes"] = field(
        default="all",
        metadata={"help": "Which `[SEG]` embeddings eq. 8 takes, and keeps: `all`, as printed, or `classes`, those of "
                  "queries about a whole class; one that asks for a part has to tell the part from the class too."},
    )  # fmt: skip
    alignment_temperature: float = field(default=0.07, metadata={"help": "tau of eq. 8; not given. GLUS: 0.07."})
    bank_size: int = field(default=512, metadata={"help": "Tokens in the bank of eq. 8; not given. GLUS: 512."})
    bank_balanced: bool = field(
        default=True, metadata={"help": "A queue of bank_size / classes for each class; false: one queue (GLUS)."}
    )
    bank_negatives: int | None = field(
        default=128, metadata={"help": "Drawn with one positive (GLUS: 128); null: all negatives, all positives."}
    )
    unlabelled_per_labelled: int = field(default=1, metadata={"help": "Unlabelled images for each labelled one."})
    unlabelled_queries: int = field(default=3, metadata={"help": "Branches behind an unlabelled image, at most."})
    unlabelled_kinds: list[str] = field(
        default_factory=lambda: ["semantic", "attribute"], metadata={"help": "Kinds of their queries."}
    )
    unlabelled_parts: bool = field(
        default=False,
        metadata={"help": "Whether they are also asked about parts of classes, as labelled images are: places, and "
                  "conditional queries with their anchors where `kinds` has them, made from the pseudo-labels. The "
                  "paper asks about whole classes, from a database of queries. Not with `ahead`."},
    )  # fmt: skip

    def __post_init__(self):
        check_types(self)
        check_least(self, rephrasings=2, bank_size=1, unlabelled_per_labelled=1, unlabelled_queries=1)
        check_least(self, bank_negatives=1, alignment_weight=0, sigma=0)
        check_above_zero(self, "weight_temperature", "alignment_temperature")
        check_kinds("unlabelled_kinds", self.unlabelled_kinds, CLASS_KINDS)
        if self.unlabelled_parts and self.consistency == "ahead":
            raise UsageError(
                "unlabelled_parts: consistency ahead has weights of whole classes alone; online or none would be right"
            )

    @property
    def unlabelled_weight(self) -> float:
        """sigma of eq. 9, tied to the reduction where it is not given."""
        if self.sigma is not None:
            return self.sigma
        return 0.001 if self.pixel_reduction == "sum" else 0.5

    @property
    def contrast_weight(self) -> float:
        """Of eq. 8."""
        return self.unlabelled_weight if self.alignment_weight is None else self.alignment_weight


@dataclass
class CoraTrainingArguments(BaseTrainingArguments):
    """transformers' arguments with the paper's defaults, and learning rates by part."""

    learning_rate: float = field(default=2e-5, metadata={"help": "AdamW; paper 2e-5, LISA 3e-4."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Images; paper 8 in all, 2 per GPU."})
    weight_decay: float = field(default=0.0, metadata={"help": "LISA: 0."})
    adam_beta2: float = field(default=0.95, metadata={"help": "LISA: 0.95."})
    warmup_steps: float = field(default=100, metadata={"help": "LISA: 100."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "LISA: linear decay (WarmupDecayLR)."})
    max_steps: int = field(default=5000, metadata={"help": "LISA: 10 x 500. Stages of the paper are of equal length."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between log lines."})
    sam_learning_rate: float | None = field(
        default=None, metadata={"help": "Of SAM (encoder where trained, decoder); learning_rate where not given."}
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the [SEG] projection; learning_rate where not given."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise UsageError(
                f"hub_strategy {self.hub_strategy.value}: optimizer states and training_args.bin name places of this "
                "machine and stay there; end or every_save would be right"
            )
        # an answer without [SEG] leaves SAM's decoder without gradients on one process, a batch without anchors their
        # encoder; Trainer's own choice is false with activation checkpointing, and DDP then waits or fails
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True


class StageSetup(NamedTuple):
    """All hyper-parameters of a training: stages 1 and 2 have nothing unlabelled."""

    model: ModelArguments
    parts: TrainedPartsArguments
    data: DataArguments
    pretraining: QueryPretrainingArguments
    caching: EmbeddingCacheArguments
    training: CoraTrainingArguments
    unlabelled: UnlabelledArguments | None = None
