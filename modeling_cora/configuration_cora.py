"""Configuration of CORA: a vision-language model, a SAM, and how a `[SEG]` state becomes a prompt."""

# no `from __future__ import annotations`: @strict checks no field whose type is a string
import copy
import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, SamConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.pipelines import PIPELINE_REGISTRY

from .named_models import FromNamedModel

SEG_TOKEN = "[SEG]"
TASK = "reasoning-segmentation"
MODEL_CLASS = "modeling_cora.CoraForReasoningSegmentation"  # as `auto_map` writes it: file, class


@strict
class CoraConfig(FromNamedModel, PreTrainedConfig):
    r"""
    Configuration of [`CoraForReasoningSegmentation`].

    Args:
        vlm_config (`dict` or `PreTrainedConfig`, *optional*):
            Any image-text-to-text configuration. Defaults to LLaVA-1.5.
        sam_config (`dict` or `SamConfig`, *optional*):
            The segmenter. Defaults to SAM ViT-B.
        sam_encoder (`"sam_vit"` or `"tiny_vit"`, *optional*, defaults to `"sam_vit"`):
            SAM's own ViT as `sam_config.vision_config` describes it, or MobileSAM's TinyViT-5M, for which
            `sam_config.vision_config` gives the input size alone.
        seg_token_id (`int`, *optional*, defaults to 32001):
            Token id of `[SEG]`.
        seg_state (`"before"` or `"at"`, *optional*, defaults to `"before"`):
            Which last-layer state is projected: the one that predicts `[SEG]` (LISA, `model/LISA.py`) or the one at
            `[SEG]` itself (Sa2VA).
        branch_packing (`bool`, *optional*):
            Lay the queries of an image behind it in one sequence. `False` runs one sequence for each query, correct and
            slower, for a VLM whose attention takes no mask of its caller. None: where the family is one of
            `branches.PACKED_FAMILIES`, which are tested to give the same either way.
        lm_loss_weight (`float`, *optional*, defaults to 1.0):
            alpha of eq. 5, the weight of the next-token cross-entropy.
        bce_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the binary cross-entropy of eq. 4. LISA: 2.0.
        dice_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the Dice loss of eq. 4. LISA: 0.5.
        iou_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the squared error of SAM's IoU prediction, as in SAM's own training. Neither the paper nor LISA
            trains it (0); from a random start `iou_scores` mean nothing without it.
        mask_loss_at (`"labels"`, `"low_res"` or `"points"`, *optional*, defaults to `"labels"`):
            Where the mask loss is taken: at the size of the label map (LISA), on the decoder's own grid (a quarter of
            SAM's input, labels shrunk to it), or at sampled points (Sa2VA). The last two need far less memory.
        mask_loss_points (`int`, *optional*, defaults to 12544):
            Points for each mask with `mask_loss_at="points"` (Sa2VA, Mask2Former: 12,544).
        mask_loss_oversampling (`float`, *optional*, defaults to 3.0), mask_loss_importance (`float`, defaults to 0.75):
            Of three times as many uniform points, the least decided ones make up three quarters (Sa2VA, PointRend).
        embedding_pooling (1, 2, 4 or 8, *optional*, defaults to 1):
            SAM's image embeddings are averaged over squares of this side before its decoder. k gives masks k times
            coarser for a k * k-th of the decoder's work, so that a training on a CPU can ask many queries at first, and
            few fine ones then. SAM and the papers: 1.
        anchor_token_id (`int`, *optional*):
            Token id of `[ANCHOR]`, the placeholder of anchors of conditional queries. None: the model has no anchor
            encoder; `add_anchors` gives it one (stage 2).
        anchor_appearance (`"cls"` or `"mean"`, *optional*):
            What the vision tower's states of an anchor become one token by: the class state (SegLLM; LLaVA alone has
            one), or the mean of the connector's image tokens. None: the class state where there is one.
        anchor_dropout (`float`, *optional*, defaults to 0.5), anchor_dropout_scaling (`"segllm"` or `"inverted"`):
            Probability with which an anchor's token is dropped in training, and whether evaluation multiplies by what
            is kept (SegLLM, the default) or training divides by it.
        lm_classes (`int`, *optional*):
            Token ids that the language head chooses from, `0 ... lm_classes - 1`; larger ids are inputs alone, such as
            the `<image>` that a LISA checkpoint has no row for. None: every row of the table.
    """

    model_type = "cora"
    sub_configs_defaults = {
        "vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="llava"),
        "sam_config": SubConfigSpec(config_class=SamConfig),
    }

    vlm_config: Any = None
    sam_config: Any = None
    sam_encoder: Literal["sam_vit", "tiny_vit"] = "sam_vit"
    seg_token_id: int = 32001
    seg_state: Literal["before", "at"] = "before"
    branch_packing: bool | None = None
    lm_loss_weight: float | int = 1.0
    bce_loss_weight: float | int = 1.0
    dice_loss_weight: float | int = 1.0
    iou_loss_weight: float | int = 0.0
    mask_loss_at: Literal["labels", "low_res", "points"] = "labels"
    mask_loss_points: int = 12544
    mask_loss_oversampling: float | int = 3.0
    mask_loss_importance: float | int = 0.75
    embedding_pooling: Literal[1, 2, 4, 8] = 1
    anchor_token_id: int | None = None
    anchor_appearance: Literal["cls", "mean"] | None = None
    anchor_dropout: float | int = 0.5
    anchor_dropout_scaling: Literal["segllm", "inverted"] = "segllm"
    lm_classes: int | None = None
    initializer_range: float | int = 0.02

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class, which warns of another kind of model and makes up all that this one has besides: of a
        segmenter's folder, billions of random weights.

        Raises:
            ValueError: `model_type` is another.
        """
        if (kind := config_dict.get("model_type", cls.model_type)) != cls.model_type:
            raise ValueError(f"config.json is of a model of type {kind!r}; {cls.model_type!r} would be right")
        if TASK in PIPELINE_REGISTRY.supported_tasks:
            # `pipeline` takes a task that a folder brings code for from there, and wants that code to be trusted, even
            # where the task is registered; this package is here, so the folder's copy of it is not needed.
            config_dict = {key: value for key, value in config_dict.items() if key != "custom_pipelines"}
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """As in the base class; the code that the folder needs where this package is missing goes with it.

        transformers copies what a class's module reaches by relative imports: through the one below, every file. The
        model's own `save_pretrained` names its class too; a converter, which writes the weights itself, never calls it.
        """
        from .pipeline import CUSTOM_PIPELINES

        self.auto_map = {**(getattr(self, "auto_map", None) or {}), "AutoModel": MODEL_CLASS}
        self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            del self.custom_pipelines  # of the file, not of the object: see `from_dict`

    @property
    def tie_word_embeddings(self) -> bool:
        """Of the VLM; peft asks the outermost configuration."""
        return bool(getattr(self.vlm_config, "tie_word_embeddings", False))

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        for config in (self.vlm_config, self.get_text_config()):
            config.tie_word_embeddings = value

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)


__all__ = ["SEG_TOKEN", "TASK", "CoraConfig"]
