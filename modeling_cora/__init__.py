"""CORA: semi-supervised reasoning segmentation with transformers."""

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_cora import SEG_TOKEN, TASK, CoraConfig
from .modeling_cora import CoraForReasoningSegmentation, CoraOutput, CoraPreTrainedModel
from .named_models import ModelNotFoundError
from .pipeline import ReasoningSegmentationPipeline
from .processing_cora import CoraProcessor

# With the package at hand the auto classes know `cora`, and take it from here. `AutoModelForImageTextToText` does not:
# its models take `input_ids` and an attention mask and generate text; a CORA model takes packed branches and gives
# masks, so whatever builds on that class (the image-text-to-text pipeline, for one) would load it and then fail.
AutoConfig.register("cora", CoraConfig, exist_ok=True)
AutoModel.register(CoraConfig, CoraForReasoningSegmentation, exist_ok=True)
AutoProcessor.register(CoraConfig, CoraProcessor, exist_ok=True)
if TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=ReasoningSegmentationPipeline, pt_model=AutoModel, type="multimodal"
    )

# Without the package: `save_pretrained` writes these modules and what they import beside the weights, and `auto_map`
# into the configurations, for `trust_remote_code=True`.
CoraConfig.register_for_auto_class("AutoConfig")
CoraForReasoningSegmentation.register_for_auto_class("AutoModel")
CoraProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "SEG_TOKEN",
    "TASK",
    "CoraConfig",
    "CoraForReasoningSegmentation",
    "CoraOutput",
    "CoraPreTrainedModel",
    "CoraProcessor",
    "ModelNotFoundError",
    "ReasoningSegmentationPipeline",
]
