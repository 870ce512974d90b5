"""CORA: a vision-language model whose `[SEG]` states prompt SAM's mask decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, SamModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .anchors import AnchorEncoder, added_to_placeholders, anchor_appearance
from .branches import (
    PACKED_ATTENTION,
    PACKED_FAMILIES,
    PREFIX,
    SegPositions,
    branch_attention_mask,
    branch_position_ids,
)
from .configuration_cora import CoraConfig
from .generation import MaskGenerationMixin
from .image_layouts import VISION_INPUTS, inputs_of_squares, select_images
from .losses import LOSS_TERMS, mask_losses, next_token_loss
from .masks import pool_squares
from .named_models import FromNamedModel
from .precision import KeepsPrecision
from .tiny_vit import TinyVitEncoder

logger = logging.get_logger(__name__)


@dataclass
class CoraOutput(ModelOutput):
    """
    Output of [`CoraForReasoningSegmentation`]. N is the number of `[SEG]` tokens of the batch, in reading order.

    Args:
        loss (`torch.FloatTensor` of shape `()`, returned with `labels` or `mask_labels`): eq. 5, the weighted sum.
        lm_loss (`torch.FloatTensor` of shape `()`): next-token cross-entropy, the mean over answer tokens.
        bce_loss, dice_loss (`torch.FloatTensor` of shape `()`): eq. 4, the means over masks.
        iou_loss (`torch.FloatTensor` of shape `()`): squared error of `iou_scores`.
        pred_masks (`torch.FloatTensor` of shape `(N, 4h, 4w)`): low-resolution logits; h, w of SAM's pooled embedding.
        iou_scores (`torch.FloatTensor` of shape `(N,)`): SAM's estimate of each mask's IoU.
        seg_embeddings (`torch.FloatTensor` of shape `(N, C)`): projected `[SEG]` states, C = SAM's prompt width.
        seg_batch_index, seg_branch_index (`torch.LongTensor` of shape `(N,)`): the image and the query of each mask.
        sam_image_embeddings (`torch.FloatTensor` of shape `(B, C, h, w)`): of SAM's encoder, to ask again without it.
        logits (`torch.FloatTensor` of shape `(B, L, V)`, only with `output_logits=True`).
        sequences (`torch.LongTensor` of shape `(B, L)`, only from `generate`): prompt and generated tokens.
    """

    loss: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None
    bce_loss: torch.Tensor | None = None
    dice_loss: torch.Tensor | None = None
    iou_loss: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    iou_scores: torch.Tensor | None = None
    seg_embeddings: torch.Tensor | None = None
    seg_batch_index: torch.Tensor | None = None
    seg_branch_index: torch.Tensor | None = None
    sam_image_embeddings: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    sequences: torch.Tensor | None = None


class CoraSegProjectorLinear(nn.Linear):
    """A `Linear` that `_init_weights` tells from the others."""


class CoraSegProjector(nn.Module):
    """Linear(d, d) - ReLU - Linear(d, C): from a `[SEG]` state to a sparse prompt (LISA: text_hidden_fcs)."""

    def __init__(self, config: CoraConfig):
        super().__init__()
        width = config.get_text_config().hidden_size
        self.linear_1 = CoraSegProjectorLinear(width, width)
        self.activation = nn.ReLU()
        self.linear_2 = CoraSegProjectorLinear(width, config.sam_config.prompt_encoder_config.hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, C)."""
        return self.linear_2(self.activation(self.linear_1(states)))


class CoraPreTrainedModel(KeepsPrecision, FromNamedModel, PreTrainedModel):
    config: CoraConfig
    config_class = CoraConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)
    _no_split_modules = ["TinyVitBlock", "TinyVitBottleneck"]  # their residuals; the parts' own are added to these
    # Trainer would otherwise take the loss for one already divided by the items of the whole accumulated batch, and
    # multiply it by accumulation steps and processes.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CoraSegProjectorLinear):
            # Weights of variance 1/d keep the scale of a normalised state (0.7 behind the ReLU), the standard deviation
            # of SAM's own prompts: a random start speaks to the decoder at the volume it listens to.
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)

    def enable_input_require_grads(self) -> None:
        """Of the text's embeddings alone, for activation checkpointing below adapters. Called for the whole model, it
        makes each part's inputs require gradients, and a frozen vision tower is differentiated for nothing."""
        self.vlm.get_decoder().enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        self.vlm.get_decoder().disable_input_require_grads()

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """As in the base class, but in the layout that `load_state_dict` reads.

        The default layout of transformers renames LLaVA's and CLIP's keys on saving; `Trainer` loads checkpoints with
        `load_state_dict(strict=False)`, finds none of them, and goes on with random weights.
        """
        if type(self).__module__.startswith("torch."):
            # FSDP2's class for ours: its files would be saved as the model's code; the configuration saves ours
            type(self)._auto_class = None
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)


class CoraForReasoningSegmentation(CoraPreTrainedModel, MaskGenerationMixin):
    """Answers queries about an image with text and, for every `[SEG]` in it, a mask.

    `self.vlm` is any image-text-to-text model, `self.sam` transformers' `SamModel`. Queries of one image are branches
    of one sequence (see `branches.py`); inputs come from [`CoraProcessor`].
    """

    _tied_weights_keys: dict[str, str] = {}  # peft looks for those of the VLM only where this is a mapping
    embedding_cache: Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor] | None = None
    """Asked for the embedding of an image (3, S, S) wherever no gradient is wanted, with the function that computes it;
    training programs put one here (`trainers/embedding_cache.py`)."""

    def __init__(self, config: CoraConfig):
        super().__init__(config)
        # a configuration of other weights may say another type, which SAM and the projection would not have
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config, dtype=torch.get_default_dtype())
        self.sam = SamModel(config.sam_config)
        if config.sam_encoder == "tiny_vit":
            self.sam.vision_encoder = TinyVitEncoder(config.sam_config.prompt_encoder_config.hidden_size)
        self.seg_projector = CoraSegProjector(config)
        if config.anchor_token_id is not None:
            self.anchor_encoder = AnchorEncoder(config)
        self.post_init()

    @property
    def device(self) -> torch.device:
        """Where inputs go. An offloaded part (`device_map`) has its weights on `meta` between two passes; SAM, which
        may not be offloaded, says where the others are brought to."""
        device = super().device
        return self.sam.prompt_encoder.no_mask_embed.weight.device if device.type == "meta" else device

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.vlm.set_output_embeddings(new_embeddings)

    def get_image_embeddings(self, sam_pixel_values: torch.Tensor) -> torch.Tensor:
        """SAM's encoder: (B, 3, S, S) -> (B, C, h, w).

        A frozen encoder has no graph. In training, as with a cache, it sees images one by one: kernels choose their
        order of summation by the batch's size, so an image's last bits would depend on which others share its batch.
        Else a batch is one pass, in which each layer takes half a gigabyte an image (ViT-H, bf16).
        """
        pixels = sam_pixel_values.to(self.sam.dtype)
        training = torch.is_grad_enabled()
        if training and any(p.requires_grad for p in self.sam.vision_encoder.parameters()):
            return self.sam.vision_encoder(pixels)[0]
        with torch.no_grad():
            if self.embedding_cache is None and not training:
                return self.sam.vision_encoder(pixels)[0].contiguous()
            look_up = self.embedding_cache or (lambda image, encode: encode(image))
            return torch.stack([look_up(image, self._image_embedding) for image in pixels])

    def _image_embedding(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, S, S) -> (C, h, w), in the one layout that a stored embedding has too."""
        return self.sam.vision_encoder(pixels[None])[0][0].contiguous()

    def forward(
        self,
        input_ids: torch.Tensor,
        branch_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        sam_pixel_values: torch.Tensor | None = None,
        sam_image_embeddings: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_labels: list[torch.Tensor] | None = None,
        reshaped_input_sizes: torch.Tensor | None = None,
        original_sizes: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        anchor_pixel_values: torch.Tensor | None = None,
        anchor_boxes: torch.Tensor | None = None,
        anchor_index: torch.Tensor | None = None,
        anchor_noise: torch.Tensor | None = None,
        output_logits: bool = False,
        **others: Any,
    ) -> CoraOutput:
        """
        Args:
            input_ids: (B, L) from [`CoraProcessor`], one image per row.
            branch_ids: (B, L), -1 padding, 0 shared prefix, k >= 1 branch k.
            pixel_values: (B, 3, s, s) for the vision tower, or what the VLM's own image processor makes.
            sam_pixel_values: (B, 3, S, S), the image in the top left corner; or
            sam_image_embeddings: (B, C, h, w), computed before. With neither there are no masks, only
                `seg_embeddings`.
            labels: (B, L), -100 where nothing is learned.
            mask_labels: per image (n, H, W): 1 target, 0 other, 255 ignored, one for each of its `[SEG]` tokens, in
                order; they cover the whole image at any resolution, and the loss is taken at that resolution.
            reshaped_input_sizes: (B, 2), (height, width) of the image inside SAM's input; needed with `mask_labels`.
            original_sizes: (B, 2), unused here; the processor needs it afterwards.
            pixel_attention_mask, image_grid_thw: of the VLM's image processor, where it makes them (Idefics3 and
                SmolVLM, Qwen-VL).
            anchor_pixel_values, anchor_boxes: of the A anchors of all queries, in reading order; (A, 3, s, s), or what
                `square_inputs` makes for other layouts, and (A, 4).
            anchor_index: (A,), where several anchors look the same: the place of each one's look among the
                U <= A of `anchor_pixel_values`.
            anchor_noise: (A, 2) for the dropout of their tokens; see [`AnchorEncoder`].
            output_logits: run the language head on every position.
            others: peft gives a model every argument that a language model takes (`attention_mask`); None is ignored,
                and so is `return_dict=True`.

        Raises:
            ValueError: an image has more or fewer masks than `[SEG]` tokens; anchors without their tensors.
            TypeError: one of the `others` has a value.
        """
        for name, value in others.items():
            if value is not None and (name, value) != ("return_dict", True):
                raise TypeError(f"forward() got an unexpected keyword argument '{name}'")
        vision = self._vision_inputs(pixel_values, pixel_attention_mask, image_grid_thw)
        with self._anchored(input_ids, anchor_pixel_values, anchor_boxes, anchor_index, anchor_noise):
            states = self._hidden_states(input_ids, branch_ids, vision)
        seg = SegPositions.find(input_ids, branch_ids, self.config.seg_token_id, self.config.seg_state)
        output = self._masks_of(states, seg, sam_pixel_values, sam_image_embeddings)
        if output_logits:
            output.logits = self._logits(states)
        if labels is not None:
            output.lm_loss = self._lm_loss(states, labels, branch_ids)
        if mask_labels is not None:
            if reshaped_input_sizes is None:
                raise ValueError("reshaped_input_sizes: not given; mask_labels need them")
            if output.pred_masks is None:
                raise ValueError("sam_pixel_values: not given, and sam_image_embeddings neither; mask_labels need one")
            for name, term in mask_losses(self.config, output, mask_labels, reshaped_input_sizes).items():
                output[name] = term
        output.loss = self.weighted_sum(output)
        return output

    @contextmanager
    def _anchored(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        boxes: torch.Tensor | None,
        index: torch.Tensor | None,
        noise: torch.Tensor | None = None,
        beams: int = 1,
    ) -> Iterator[None]:
        """Puts the anchors' tokens where their placeholders are; with beams `generate` repeats each row so often."""
        if (pixel_values is None) != (boxes is None):
            raise ValueError(f"anchor_{'boxes' if boxes is None else 'pixel_values'}: not given; anchors have both")
        token_id = self.config.anchor_token_id
        if pixel_values is None or boxes is None or not len(boxes):
            if token_id is not None and bool((input_ids == token_id).any()):
                raise ValueError("anchor_boxes, anchor_pixel_values: not given; there are [ANCHOR] tokens in input_ids")
            yield
            return
        if token_id is None:
            raise ValueError("anchors: this model has no anchor encoder; see add_anchors (stage 2)")
        appearances = self.anchor_appearances(pixel_values)
        appearances = appearances if index is None else appearances[index]
        tokens = self.anchor_encoder(appearances, boxes, noise)
        table = self.get_input_embeddings()
        with added_to_placeholders(table, token_id, tokens.flatten(0, 1), beams):
            yield

    def anchor_appearances(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """How anchors look: pixels of `square_inputs` -> (A, d), by the image's own vision tower and connector."""
        pixel_values = pixel_values.to(self.vlm.dtype)
        if anchor_appearance(self.config) == "mean":
            features = self.vlm.get_image_features(**inputs_of_squares(pixel_values))
            return torch.stack([tokens.mean(0) for tokens in getattr(features, "pooler_output", features)])
        base = self.vlm.base_model
        states = base.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        return base.multi_modal_projector(states[self.config.vlm_config.vision_feature_layer][:, 0])

    def _vision_inputs(self, pixel_values: torch.Tensor, *others: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """By the names in `VISION_INPUTS`, those that are given."""
        tensors = (pixel_values.to(self.vlm.dtype), *others)
        return {name: tensor for name, tensor in zip(VISION_INPUTS, tensors, strict=True) if tensor is not None}

    def _hidden_states(
        self, input_ids: torch.Tensor, branch_ids: torch.Tensor, vision: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Last-layer (post-norm) states (B, L, d) of the packed sequence."""
        family, packing = self.config.vlm_config.model_type, self.config.branch_packing
        attention = self.config.get_text_config()._attn_implementation
        if attention not in PACKED_ATTENTION or not (family in PACKED_FAMILIES if packing is None else packing):
            return self._hidden_states_one_by_one(input_ids, branch_ids, vision)
        attention_mask = branch_attention_mask(branch_ids)
        if attention == "eager":
            # eager attention adds the mask to the scores
            lowest = torch.finfo(self.vlm.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=self.vlm.dtype).masked_fill(~attention_mask, lowest)
        return self.vlm.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=self._position_ids(input_ids, branch_ids, vision),
            use_cache=False,
            **vision,
        ).last_hidden_state

    def _position_ids(
        self, input_ids: torch.Tensor, branch_ids: torch.Tensor, vision: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """(B, L), or (3, B, L) where the VLM rotates by time, height and width (Qwen-VL)."""
        positions = branch_position_ids(branch_ids)
        if "image_grid_thw" not in vision:
            return positions
        # The VLM knows the positions of image, prefix and one text behind it; every branch starts where that one does.
        first = (branch_ids == PREFIX) | (branch_ids == 1)
        axes, _ = self.vlm.base_model.get_rope_index(
            input_ids,
            attention_mask=first.long(),
            **self._image_token_types(input_ids),
            image_grid_thw=vision["image_grid_thw"],
        )
        prefix_length = (branch_ids == PREFIX).sum(1)
        order = (branch_ids == 1).int().argmax(1)  # of the first branch's first token
        start = axes[:, torch.arange(len(order)), order]
        behind = start[..., None] + (positions - prefix_length[:, None])[None]
        return torch.where((branch_ids > PREFIX)[None], behind, axes)

    def _image_token_types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (input_ids == self.config.vlm_config.image_token_id).int()}

    def _hidden_states_one_by_one(
        self, input_ids: torch.Tensor, branch_ids: torch.Tensor, vision: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The same states from one sequence for each query: for VLMs and attention functions that take no mask of their
        callers."""
        attention = self.config.get_text_config()._attn_implementation
        logger.warning_once(
            f"no branch packing: a {self.config.vlm_config.model_type} with {attention} attention runs once for each "
            "query, image included (CoraConfig.branch_packing)"
        )
        rows = [
            (image, ((owner == PREFIX) | (owner == branch)).nonzero()[:, 0])
            for image, owner in enumerate(branch_ids)
            for branch in range(1, int(owner.max()) + 1)
        ]
        length = max(len(places) for _, places in rows)
        ids = input_ids.new_full((len(rows), length), self.config.get_text_config().pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, (image, places) in enumerate(rows):
            ids[row, : len(places)] = input_ids[image, places]
            mask[row, : len(places)] = 1
        image_of = torch.tensor([image for image, _ in rows], device=ids.device)
        types = self._image_token_types(ids) if "image_grid_thw" in vision else {}
        states = self.vlm.base_model(
            input_ids=ids, attention_mask=mask, use_cache=False, **types, **select_images(vision, image_of)
        ).last_hidden_state
        packed = states.new_zeros(*input_ids.shape, states.shape[-1])
        written = torch.zeros_like(branch_ids, dtype=torch.bool, device=states.device)
        for row, (image, places) in enumerate(rows):
            places = places.to(states.device)
            new = ~written[image, places]  # the prefix comes from the first branch alone
            packed[image, places[new]] = states[row, : len(places)][new]
            written[image, places] = True
        return packed

    def _masks_of(
        self,
        states: torch.Tensor,
        seg: SegPositions,
        sam_pixel_values: torch.Tensor | None,
        sam_image_embeddings: torch.Tensor | None,
    ) -> CoraOutput:
        """The masks of `[SEG]` states: project them, encode the image where that is not done yet, decode."""
        # with a `device_map` states and SAM may lie elsewhere; what is known of each `[SEG]` is put where the ids are
        home = seg.batch_index.device
        places = [index.to(states.device) for index in (seg.batch_index, seg.state_position)]
        seg_embeddings = self.seg_projector(states[places[0], places[1]])
        output = CoraOutput(
            seg_embeddings=seg_embeddings.to(home),
            seg_batch_index=seg.batch_index,
            seg_branch_index=seg.branch_index,
        )
        if sam_image_embeddings is None and sam_pixel_values is not None:
            sam_image_embeddings = self.get_image_embeddings(sam_pixel_values)
        output.sam_image_embeddings = sam_image_embeddings
        if sam_image_embeddings is not None:
            decoded = self.decode_masks(sam_image_embeddings, seg_embeddings, seg.batch_index)
            output.pred_masks, output.iou_scores = (tensor.to(home) for tensor in decoded)
        return output

    def decode_masks(
        self, sam_image_embeddings: torch.Tensor, seg_embeddings: torch.Tensor, batch_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """SAM's decoder with each `[SEG]` embedding as the only sparse prompt.

        Args:
            sam_image_embeddings: (B, C, h, w).
            seg_embeddings, batch_index: (N, C), and (N,), the image of each.

        Returns:
            logits (N, 4h / k, 4w / k) with k = `config.embedding_pooling`, and IoU estimates (N,).

        Raises:
            ValueError: SAM was offloaded (`device_map`).
        """
        if self.sam.prompt_encoder.no_mask_embed.weight.is_meta:
            raise ValueError(
                "device_map: SAM's decoder reads tables past the hooks that would load them, so it cannot be "
                "offloaded; a device for 'sam' would be right"
            )
        sam_image_embeddings = sam_image_embeddings.to(self.sam.dtype)  # of a cache, perhaps
        position = pool_squares(self.sam.get_image_wide_positional_embeddings(), self.config.embedding_pooling)
        sam_image_embeddings = pool_squares(sam_image_embeddings, self.config.embedding_pooling)
        height, width = sam_image_embeddings.shape[-2:]
        if not len(seg_embeddings):  # the decoder raises on zero prompts
            return seg_embeddings.new_zeros(0, 4 * height, 4 * width), seg_embeddings.new_zeros(0)
        dense = self.sam.prompt_encoder.no_mask_embed.weight[:, :, None, None].expand(-1, -1, height, width)
        masks, iou_scores = self.sam.mask_decoder(
            image_embeddings=sam_image_embeddings[batch_index.to(sam_image_embeddings.device)],
            image_positional_embeddings=position.expand(len(seg_embeddings), -1, -1, -1),
            sparse_prompt_embeddings=seg_embeddings[:, None, None].to(self.sam.dtype),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks[:, 0, 0], iou_scores[:, 0, 0]

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., V): the language head without the rows that are no classes."""
        return self.get_output_embeddings()(states)[..., : self.config.lm_classes]

    def _lm_loss(self, states: torch.Tensor, labels: torch.Tensor, branch_ids: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the answers, where the labels lie; the language head runs on no other position."""
        # A label belongs to the state before it, which is of the same branch: a branch's first token is never a label.
        batch, position = (labels != -100).nonzero(as_tuple=True)
        if bool((branch_ids[batch, position - 1] != branch_ids[batch, position]).any()):
            raise ValueError("labels: the first token of a branch is a label; the state before it is another branch's")
        logits = self._logits(states[batch.to(states.device), (position - 1).to(states.device)])
        return next_token_loss(logits, labels[batch, position].to(logits.device)).to(labels.device)

    def weighted_sum(self, terms: Mapping[str, torch.Tensor | None]) -> torch.Tensor | None:
        """Eq. 5 from those of its terms (`LOSS_TERMS`) that are given; None where none is."""
        given = [
            getattr(self.config, f"{name}_weight") * terms[name] for name in LOSS_TERMS if terms.get(name) is not None
        ]
        return torch.stack(given).sum() if given else None

    def add_anchors(self, anchor_token_id: int) -> None:
        """Gives the model an anchor encoder (stage 2), with initial weights; nothing where it has one.

        Args:
            anchor_token_id: of `[ANCHOR]` in the tokenizer; `processor.add_anchor_token()` returns it. The embedding
                table grows where it has no such row.
        """
        if self.config.anchor_token_id is not None:
            return
        if anchor_token_id >= self.config.get_text_config().vocab_size:
            self.resize_token_embeddings(anchor_token_id + 1)
        self.config.anchor_token_id = anchor_token_id
        reference = self.seg_projector.linear_1.weight
        self.anchor_encoder = AnchorEncoder(self.config).to(reference)
        self.anchor_encoder.train(self.training)


__all__ = ["CoraForReasoningSegmentation", "CoraOutput", "CoraPreTrainedModel"]
