"""What keeps its precision where weights are cast or quantised."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

UNQUANTISED = ("sam", "seg_projector", "anchor_encoder", "vlm.lm_head")
FREQUENCIES = ("inv_freq", "original_inv_freq")
"""Buffers of rotary positions, in transformers' models."""


class KeepsPrecision:
    """For a `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """As in transformers; bitsandbytes' configuration spares `UNQUANTISED` where it names nothing itself: SAM's
        encoder has activations of four dimensions, which 8 bits refuse, and with 4 bits the masks are other ones."""
        if quantization_config is not None:
            if getattr(quantization_config, "llm_int8_skip_modules", ()) is None:
                quantization_config = copy.copy(quantization_config)
                quantization_config.llm_int8_skip_modules = list(UNQUANTISED)
            kwargs["quantization_config"] = quantization_config
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Behind `to`, `half` and `bfloat16`, DeepSpeed's too: rotary frequencies stay fp32, as they are in a model
        that is loaded at half precision. Rounded, positions a few hundred tokens away are turned by other angles, and a
        model that is trained with these is not the one that is loaded afterwards."""
        before = [
            (module, name, module._buffers[name])
            for module in self.modules()  # type: ignore[attr-defined]
            for name in FREQUENCIES
            if module._buffers.get(name) is not None
        ]
        super()._apply(fn, recurse)  # type: ignore[misc]
        for module, name, exact in before:
            if (cast := module._buffers[name]).dtype != exact.dtype:
                setattr(module, name, exact.to(cast.device))
        return self


__all__ = ["KeepsPrecision"]
