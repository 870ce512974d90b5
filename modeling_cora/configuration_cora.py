"""Configuration of CORA: a vision-language model, a SAM, and how a `[SEG]` state becomes a prompt."""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, SamConfig
from transformers.configuration_utils import SubConfigSpec

SEG_TOKEN = "[SEG]"


@strict
class CoraConfig(PreTrainedConfig):
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
    seg_token_id: int = 32001
    seg_state: Literal["before", "at"] = "before"
    seg_projector_dropout: float | int = 0.0
    lm_loss_weight: float | int = 1.0
    bce_loss_weight: float | int = 1.0
    dice_loss_weight: float | int = 1.0
    iou_loss_weight: float | int = 0.0
    lm_classes: int | None = None
    initializer_range: float | int = 0.02

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)


__all__ = ["SEG_TOKEN", "CoraConfig"]
