"""Configuration of CORA: a vision-language model, a SAM, and how a `[SEG]` state becomes a prompt."""

from __future__ import annotations

import copy
import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, SamConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.pipelines import PIPELINE_REGISTRY

from .hub import FromNamedModel

SEG_TOKEN = "[SEG]"
TASK = "reasoning-segmentation"


@strict
class CoraConfig(FromNamedModel, PreTrainedConfig):
    r"""
    Configuration of [`CoraForReasoningSegmentation`].

    Args:
        vlm_config (`dict` or `PreTrainedConfig`, *optional*):
            Any image-text-to-text configuration. Defaults to LLaVA-1.5.
        sam_config (`dict` or `SamConfig`, *optional*):
            The segmenter. Defaults to SAM ViT-B.
        seg_token_id (`int`, *optional*, defaults to 32001):
            Token id of `[SEG]`.
        seg_state (`"before"` or `"at"`, *optional*, defaults to `"before"`):
            Which last-layer state is projected: the one that predicts `[SEG]` (LISA, `model/LISA.py`) or the one at
            `[SEG]` itself (Sa2VA).
        seg_projector_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the projection (LISA: 0).
        lm_loss_weight (`float`, *optional*, defaults to 1.0):
            alpha of eq. 5, the weight of the next-token cross-entropy.
        bce_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the binary cross-entropy of eq. 4. LISA: 2.0.
        dice_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the Dice loss of eq. 4. LISA: 0.5.
        iou_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the squared error of SAM's IoU prediction, as in SAM's own training. Neither the paper nor LISA
            trains it (0); from a random start `iou_scores` mean nothing without it.
    """

    model_type = "cora"
    sub_configs_defaults = {
        "vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="llava"),
        "sam_config": SubConfigSpec(config_class=SamConfig),
    }

    vlm_config: Any = None
    sam_config: Any = None
    seg_token_id: int = 32001
    seg_state: Literal["before", "at"] = "before"
    seg_projector_dropout: float | int = 0.0
    lm_loss_weight: float | int = 1.0
    bce_loss_weight: float | int = 1.0
    dice_loss_weight: float | int = 1.0
    iou_loss_weight: float | int = 0.0
    initializer_range: float | int = 0.02

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if TASK in PIPELINE_REGISTRY.supported_tasks:
            # `pipeline` takes a task that a folder brings code for from there, and wants that code to be trusted, even
            # where the task is registered; this package is here, so the folder's copy of it is not needed.
            config_dict = {key: value for key, value in config_dict.items() if key != "custom_pipelines"}
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """As in the base class; the code that the folder needs where this package is missing goes with it.

        transformers copies what a class's module reaches by relative imports: through the one below, every file.
        """
        from .pipeline import CUSTOM_PIPELINES

        self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        super().save_pretrained(save_directory, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)


__all__ = ["SEG_TOKEN", "TASK", "CoraConfig"]
