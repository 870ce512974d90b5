"""CORA: semi-supervised reasoning segmentation with transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_cora import SEG_TOKEN, CoraConfig
from .modeling_cora import CoraForReasoningSegmentation, CoraOutput, CoraPreTrainedModel
from .processing_cora import CoraProcessor

AutoConfig.register("cora", CoraConfig, exist_ok=True)
AutoModel.register(CoraConfig, CoraForReasoningSegmentation, exist_ok=True)
AutoModelForImageTextToText.register(CoraConfig, CoraForReasoningSegmentation, exist_ok=True)
AutoProcessor.register(CoraConfig, CoraProcessor, exist_ok=True)

__all__ = [
    "SEG_TOKEN",
    "CoraConfig",
    "CoraForReasoningSegmentation",
    "CoraOutput",
    "CoraPreTrainedModel",
    "CoraProcessor",
]
