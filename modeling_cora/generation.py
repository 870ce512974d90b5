"""Answers in the model's own words, with a mask for every `[SEG]` in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from .branches import PADDING, PREFIX, SegPositions

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens")
"""Ways to generate several tokens at once. The language model then sees its prompt in parts, the image does not."""


class MaskGenerationMixin(GenerationMixin):
    """`generate` of [`CoraForReasoningSegmentation`]."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        branch_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        sam_pixel_values: torch.Tensor | None = None,
        sam_image_embeddings: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        anchor_pixel_values: torch.Tensor | None = None,
        anchor_boxes: torch.Tensor | None = None,
        anchor_index: torch.Tensor | None = None,
        reshaped_input_sizes: torch.Tensor | None = None,
        original_sizes: torch.Tensor | None = None,
        **generate_kwargs: Any,
    ) -> ModelOutput:
        """Free text by `self.vlm.generate` (with its KV cache), and a mask for every `[SEG]` that appears in it.

        Args:
            input_ids, branch_ids, pixel_values, sam_pixel_values, pixel_attention_mask, image_grid_thw,
            anchor_pixel_values, anchor_boxes, anchor_index: as in `forward`, one branch per row, left-padded
                (`processor(..., generate=True)`).
            reshaped_input_sizes, original_sizes: unused here; the processor needs them afterwards.
            generate_kwargs: go to `self.vlm.generate`, over `generation_config` (the model's own where not given).

        Returns:
            `sequences`, and masks, scores and embeddings as in `forward`; `seg_branch_index` is 0 throughout. With
            `seg_state` "at", a `[SEG]` that `max_new_tokens` cuts off behind has no state yet, and no mask.

        Raises:
            ValueError: several branches in a row, a row that has its answer already, several answers to a row, assisted
                generation, or anchors without their tensors.
        """
        if bool((branch_ids > 1).any()):
            raise ValueError("branch_ids: generate takes one branch per row; repeat the image for each query")
        if "labels" in generate_kwargs or bool((branch_ids[:, -1] == PADDING).any()):
            raise ValueError("input_ids: a training batch; processor(..., generate=True) makes rows to go on from")
        config, generate_kwargs = self._generation_config(generate_kwargs)
        vision = self._vision_inputs(pixel_values, pixel_attention_mask, image_grid_thw)
        types = self._image_token_types(input_ids) if image_grid_thw is not None else {}
        with self._anchored(input_ids, anchor_pixel_values, anchor_boxes, anchor_index, beams=config.num_beams or 1):
            with self._record_states() as steps:
                sequences = self.vlm.generate(
                    input_ids=input_ids,
                    attention_mask=(branch_ids >= PREFIX).long(),
                    generation_config=config,
                    **vision,
                    **types,
                    **generate_kwargs,
                )
            # The last token was never fed back, so it has no state; predicted tokens have the state before them.
            fed = sequences.shape[0], sequences.shape[1] - 1
            owner = nn.functional.pad(branch_ids, (0, sequences.shape[1] - branch_ids.shape[1]), value=1)
            states = torch.cat(steps, 1) if all(len(step) == fed[0] for step in steps) else None
            if states is None or states.shape[:2] != fed:
                # beams, no cache, a stop that is seen late: steps are not the answer's tokens
                states = self._hidden_states(sequences[:, :-1], owner[:, :-1], vision)
        if self.config.seg_state == "at":
            sequences_with_state, owner = sequences[:, :-1], owner[:, :-1]
        else:
            sequences_with_state = sequences
        seg = SegPositions.find(sequences_with_state, owner, self.config.seg_token_id, self.config.seg_state)
        output = self._masks_of(states, seg, sam_pixel_values, sam_image_embeddings)
        output.sequences = sequences
        return output

    def _generation_config(self, given: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
        """What decides how is generated, and the rest of `generate`'s options."""
        config = deepcopy(given.pop("generation_config", None) or self.generation_config)
        # A language model's folder may say `use_cache: false`, which is for its training. Checkpointing drops the cache
        # without a word, and the next step would see one token alone.
        cached = given.get("use_cache", True) and not (self.training and self.vlm.is_activation_checkpointing)
        # compiled steps would give states in memory that the next step writes to (CUDA graphs of a static cache)
        decided = {"use_cache": cached, "return_dict_in_generate": False, "disable_compile": True}
        rest = config.update(**{**given, **decided})
        if suppressed := self._never_said():
            config.suppress_tokens = [*(config.suppress_tokens or []), *suppressed]
        if (count := config.num_return_sequences or 1) != 1:
            raise ValueError(f"num_return_sequences: {count}; generate gives one answer to a row; repeat the row")
        for name in ASSISTED:
            if rest.get(name) or getattr(config, name, None):
                raise ValueError(f"{name}: generate takes no assisted decoding")
        return config, rest

    def _never_said(self) -> list[int]:
        """Ids that are no tokens of an answer: rows of the language head without a token, and places of images and
        anchors, which a VLM that sees the whole sequence again would want to fill."""
        classes, rows = self.config.lm_classes, self.config.get_text_config().vocab_size
        places = (getattr(self.config.vlm_config, "image_token_id", None), self.config.anchor_token_id)
        return [*range(rows if classes is None else classes, rows), *(place for place in places if place is not None)]

    @contextmanager
    def _record_states(self) -> Iterator[list[torch.Tensor]]:
        """Collects the last-layer states of every step of `generate`, and only those."""
        states: list[torch.Tensor] = []
        hook = self.vlm.base_model.register_forward_hook(lambda _m, _a, output: states.append(output.last_hidden_state))
        try:
            yield states
        finally:
            hook.remove()


__all__ = ["MaskGenerationMixin"]
