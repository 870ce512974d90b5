"""CoraProcessor: images and queries -> branch-packed tensors; low-resolution logits -> masks at image size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .anchors import ANCHOR_TOKEN, TOKENS_PER_ANCHOR, anchor_box, anchor_crop
from .branches import Branch, pack_branches
from .configuration_cora import SEG_TOKEN
from .image_layouts import VISION_INPUTS, image_texts, square_inputs, vision_inputs
from .masks import resize_mask_logits
from .named_models import FromNamedModel

DEFAULT_ANSWER = f"It is {SEG_TOKEN}."

# Vicuna v1 as LLaVA-1.5 uses it, without a system text.
VICUNA_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% else %} ASSISTANT: {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)

# Stand-ins while the chat template is rendered; private-use characters, so that no template contains them.
_QUERY, _ANSWER = "\ue000", "\ue001"


class _PromptFrame(NamedTuple):
    """What the chat template puts around a query and its answer; `prefix` is what all queries of an image share.
    `special` matches every special token."""

    prefix: str
    before_query: str
    between: str
    after_answer: str
    special: re.Pattern[str]


class _Piece(NamedTuple):
    """A part of a branch's text. Special tokens are tokens in what the template and the answer say, and characters in
    what the user says."""

    text: str
    is_query: bool = False
    learned: bool = False


class CoraProcessor(FromNamedModel, ProcessorMixin):
    r"""
    Two image processors (vision tower, SAM) and a tokenizer.

    Args:
        image_processor: of the vision tower, e.g. `LlavaImageProcessor(do_pad=True)` (letterbox).
        sam_image_processor: a `SamImageProcessor`.
        tokenizer: knows `[SEG]` and the image token as special tokens.
        num_image_tokens (`int`): tokens of one image in the sequence (Idefics3, SmolVLM: of one tile; Qwen-VL: unused,
            an image's size decides).
        image_token (`str`): what the chat template writes where the image goes.
        chat_template (`str`): Jinja; a user turn with one image and one text, and the assistant's answer.
        max_query_tokens (`int`): longer queries are refused.
    """

    def __init__(
        self,
        image_processor: Any = None,
        sam_image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 576,
        image_token: str = "<image>",
        chat_template: str | None = VICUNA_CHAT_TEMPLATE,
        max_query_tokens: int = 512,
        **kwargs: Any,
    ):
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.max_query_tokens = max_query_tokens
        super().__init__(image_processor, sam_image_processor, tokenizer, chat_template=chat_template, **kwargs)
        for token in (SEG_TOKEN, image_token):
            if tokenizer is not None and len(tokenizer.encode(token, add_special_tokens=False)) != 1:
                raise ValueError(f"tokenizer: {token!r} is not one token; add it as a special token first")

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "branch_ids",
            *VISION_INPUTS,
            "sam_pixel_values",
            "original_sizes",
            "reshaped_input_sizes",
            "anchor_pixel_values",
            "anchor_boxes",
            "anchor_index",
            "labels",
            "mask_labels",
        ]

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image],
        queries: str | Sequence[str] | Sequence[Sequence[str]],
        answers: Sequence[Sequence[str]] | None = None,
        mask_labels: Sequence[np.ndarray] | None = None,
        generate: bool = False,
        anchors: Sequence[Sequence[Sequence[np.ndarray]]] | None = None,
        return_tensors: Literal["pt"] = "pt",
    ) -> BatchFeature:
        """Packs the queries of each image into one sequence.

        Args:
            images: one image, or B images (RGB).
            queries: one query, the queries of one image, or B lists of queries. Plain text: `[SEG]`, `<image>` and
                every other special token in it stay characters.
            answers: B lists like `queries`; "It is [SEG]." where not given. `[SEG]` in an answer is the token.
            mask_labels: B uint8 arrays (n, H, W), passed on as tensors.
            generate: leave the answers out and pad on the left; one query per image.
            anchors: B lists like `queries`; for each query the masks, bool (H, W) of the image's size, that it points
                at ("the car left of this"), most often one or none.
            return_tensors: there are no others.

        Returns:
            `input_ids`, `branch_ids` (and `labels` unless `generate`) (B, L), `pixel_values` (B, 3, s, s) or what the
            VLM's image processor makes (with `image_grid_thw` or `pixel_attention_mask`), `sam_pixel_values`
            (B, 3, S, S), `original_sizes` and `reshaped_input_sizes` (B, 2), `mask_labels`; for A anchors
            `anchor_boxes` (A, 4), `anchor_index` (A,) and, of the looks that differ, `anchor_pixel_values` (U, 3, s, s;
            in other layouts as `square_inputs` makes them).

        Raises:
            ValueError: no query for an image, a query that is empty or longer than `max_query_tokens`, an image so
                narrow that nothing of it would be left at SAM's input size, an anchor that is empty or of another size,
                answers or anchors that are not as many as the queries.
            TypeError: an image that is not Pillow's.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors: {return_tensors!r}; there are PyTorch's alone, 'pt'")
        images = [images] if isinstance(images, Image.Image) else list(images)
        for image in images:
            if not isinstance(image, Image.Image):
                raise TypeError(f"images: {type(image).__name__} is no Pillow image; Image.fromarray makes one")
        nested = self._nested(queries, len(images))
        asked = [*map(len, nested)]
        for name, lists in (("answers", answers), ("anchors", anchors)):
            if lists is not None and (given := [*map(len, lists)]) != asked:
                raise ValueError(f"{name}: lists of {given} for {asked} queries")
        data = self.image_inputs(images)
        counts = None if anchors is None else [[len(masks) for masks in of_image] for of_image in anchors]
        data.update(self.query_inputs(nested, data.pop("image_texts"), answers, generate, counts))
        if anchors is not None:
            data.update(self.anchor_inputs(images, anchors))
        if mask_labels is not None:
            data["mask_labels"] = [torch.as_tensor(masks) for masks in mask_labels]
        return BatchFeature(data)

    def query_inputs(
        self,
        queries: Sequence[Sequence[str]],
        image_texts: Sequence[str],
        answers: Sequence[Sequence[str]] | None = None,
        generate: bool = False,
        anchor_counts: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The part of the inputs that depends on the queries.

        Args:
            queries: B lists.
            image_texts: of `image_inputs`, one for each list.
            answers, generate: as in `__call__`.
            anchor_counts: B lists, the number of each query's anchors.
        """
        for index, image_queries in enumerate(queries):
            if not image_queries:
                raise ValueError(f"queries: image {index} has none")
        if answers is None:
            answers = [[DEFAULT_ANSWER] * len(image_queries) for image_queries in queries]
        if anchor_counts is None:
            anchor_counts = [[0] * len(image_queries) for image_queries in queries]
        frame = self._frame()
        branches = [
            [
                self._branch(frame, query, None if generate else answer, count)
                for query, answer, count in zip(*of_image, strict=True)
            ]
            for of_image in zip(queries, answers, anchor_counts, strict=True)
        ]
        side: Literal["left", "right"] = "left" if generate else "right"
        prefixes = {text: self._prefix(frame, text) for text in set(image_texts)}
        data = pack_branches([prefixes[text] for text in image_texts], branches, self.pad_token_id, side)
        if generate:
            del data["labels"]
        return data

    def image_inputs(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """The part of the inputs that depends on the images alone, for the vision tower and for SAM; and `image_texts`,
        what stands in the prompt for each image (`query_inputs` needs it)."""
        longest = self.sam_image_processor.size["longest_edge"]
        for image in images:
            if min(image.size) * longest < 0.5 * max(image.size):
                raise ValueError(
                    f"image of {image.width}x{image.height} pixels: its short side vanishes when the long one becomes "
                    f"{longest}; crop it to a ratio under {2 * longest}:1"
                )
        sam = self.sam_image_processor(images, return_tensors="pt")
        vision = vision_inputs(self.image_processor, images)
        return {
            **{name: vision[name] for name in VISION_INPUTS if name in vision},
            "image_texts": image_texts(self.image_processor, vision, self.image_token, self.num_image_tokens),
            "sam_pixel_values": sam["pixel_values"],
            "original_sizes": torch.as_tensor(np.asarray(sam["original_sizes"])),
            "reshaped_input_sizes": torch.as_tensor(np.asarray(sam["reshaped_input_sizes"])),
        }

    def anchor_inputs(
        self, images: Sequence[Image.Image], anchors: Sequence[Sequence[Sequence[np.ndarray]]]
    ) -> dict[str, torch.Tensor]:
        """`anchor_boxes` (A, 4) of all anchors, in reading order, and `anchor_index` (A,), their places in
        `anchor_pixel_values` (U, ...; see `square_inputs`): many queries point at one thing, which is looked at once.
        {} for no anchors.

        Args:
            anchors: as in `__call__`.
        """
        pairs = [
            (image, np.asarray(mask, dtype=bool))
            for image, of_image in zip(images, anchors, strict=True)
            for of_query in of_image
            for mask in of_query
        ]
        if not pairs:
            return {}
        crops = [anchor_crop(image, mask) for image, mask in pairs]
        looks = [(crop.size, crop.tobytes()) for crop in crops]
        different = dict(zip(looks, crops, strict=True))
        places = {look: place for place, look in enumerate(different)}
        return {
            "anchor_pixel_values": square_inputs(self.image_processor, list(different.values())),
            "anchor_boxes": torch.tensor([anchor_box(mask) for _, mask in pairs]),
            "anchor_index": torch.tensor([places[look] for look in looks]),
        }

    def add_anchor_token(self) -> int:
        """The id of `[ANCHOR]`, which the tokenizer gets where it has none; for `model.add_anchors`."""
        if ANCHOR_TOKEN not in self.tokenizer.all_special_tokens:
            self.tokenizer.add_special_tokens(
                {"additional_special_tokens": [ANCHOR_TOKEN]}, replace_extra_special_tokens=False
            )
        return self.tokenizer.convert_tokens_to_ids(ANCHOR_TOKEN)

    def post_process_masks(
        self,
        pred_masks: torch.Tensor,
        seg_batch_index: torch.Tensor,
        original_sizes: torch.Tensor,
        reshaped_input_sizes: torch.Tensor,
        threshold: float | None = 0.0,
    ) -> list[torch.Tensor]:
        """Low-resolution logits (N, h, w) -> per image, masks at its own size.

        Args:
            threshold: of the logit; None returns the logits themselves.

        Returns:
            B tensors (n, H, W), bool, or fp32 for `threshold=None`.
        """
        input_size = self.sam_image_processor.pad_size["height"]
        result = []
        for index, (original, reshaped) in enumerate(
            zip(original_sizes.tolist(), reshaped_input_sizes.tolist(), strict=True)
        ):
            # one mask at a time: at image size, logits take four times the room of masks
            dtype = torch.bool if threshold is not None else torch.float32
            masks = [torch.zeros(0, *original, device=pred_masks.device, dtype=dtype)]
            for low_res in pred_masks[seg_batch_index == index]:
                logits = resize_mask_logits(low_res[None], input_size, reshaped, original)
                masks.append(logits if threshold is None else logits > threshold)
            result.append(torch.cat(masks))
        return result

    def _nested(self, queries: str | Sequence[Any], images: int) -> list[list[str]]:
        if isinstance(queries, str):
            queries = [[queries]]
        elif queries and isinstance(queries[0], str):
            queries = [queries]
        if len(queries) != images:
            raise ValueError(f"queries: {len(queries)} lists of queries for {images} images")
        return [list(image_queries) for image_queries in queries]

    def _frame(self) -> _PromptFrame:
        """The chat template around a query, split where the image ends: before it lies what all queries share.

        Never kept: a template may be set and tokens may be added between two calls.
        """
        # `all_special_tokens` are those with a role; tokenizer.json marks others (Llama 3: `<|start_header_id|>`)
        marked = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        tokens = {*self.tokenizer.all_special_tokens, *marked, SEG_TOKEN, self.image_token}
        special = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUERY}]},
            {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]},
        ]
        rendered = self.apply_chat_template(messages, tokenize=False)
        head, _, rest = rendered.partition(_QUERY)
        between, _, after = rest.partition(_ANSWER)
        pieces = special.split(head)
        if self.image_token not in pieces or not rest:
            raise ValueError(f"chat_template: writes no {self.image_token!r} or no query into {rendered!r}")
        last_special = max(index for index, piece in enumerate(pieces) if special.fullmatch(piece))
        prefix, before = "".join(pieces[: last_special + 1]), "".join(pieces[last_special + 1 :])
        gap = between[len(between.rstrip(" ")) :]
        return _PromptFrame(prefix, before, between.rstrip(" "), gap + after.rstrip(), special)

    def _prefix(self, frame: _PromptFrame, image_text: str) -> list[int]:
        """Token ids up to the last special token before the query, with the image's tokens in their place."""
        text, bos = frame.prefix.replace(self.image_token, image_text, 1), self.tokenizer.bos_token
        # a template that writes the first token itself has it already
        ids = self.tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
        eos, eos_id = self.tokenizer.eos_token, self.tokenizer.eos_token_id
        if eos_id is not None and ids[-1] == eos_id and not frame.prefix.endswith(eos):
            ids = ids[:-1]  # of a tokenizer that ends every text with it
        return ids

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def end_token_id(self) -> int:
        """Of the token that ends an answer: the first special one that the chat template writes behind it, which is not
        always the tokenizer's `eos_token` (Idefics3); that where it writes none."""
        frame = self._frame()
        behind = frame.special.search(frame.after_answer)
        return self.tokenizer.eos_token_id if behind is None else self.tokenizer.convert_tokens_to_ids(behind[0])

    def _branch(self, frame: _PromptFrame, query: str, answer: str | None, anchors: int = 0) -> Branch:
        """Tokens behind the prefix, the placeholders of its anchors first. Text is tokenised in one piece up to the
        next special token, as a tokenizer does with the whole prompt."""
        query = query.strip()
        if not query:
            raise ValueError("queries: an empty query asks for nothing")
        pieces = [_Piece(frame.before_query), _Piece(query, is_query=True), _Piece(frame.between)]
        if answer is not None:
            gap = frame.after_answer[: len(frame.after_answer) - len(frame.after_answer.lstrip(" "))]
            pieces.append(_Piece(gap + answer + frame.after_answer[len(gap) :], learned=True))
        if anchors and not frame.special.fullmatch(ANCHOR_TOKEN):
            raise ValueError(f"anchors: the tokenizer has no {ANCHOR_TOKEN}; see add_anchor_token (stage 2)")
        ids = [self.tokenizer.convert_tokens_to_ids(ANCHOR_TOKEN)] * (TOKENS_PER_ANCHOR * anchors)
        labels = [-100] * len(ids)
        for run in _runs(frame.special, pieces):
            if not run[0].is_query and frame.special.fullmatch(run[0].text):
                ids.append(self.tokenizer.convert_tokens_to_ids(run[0].text))
                labels.append(ids[-1] if run[0].learned else -100)
                continue
            tokens, ends = self._encode_plain("".join(piece.text for piece in run))
            start, first_learned = 0, float("inf")
            for piece in run:
                if piece.is_query:
                    self._check_length(query, sum(start < end <= start + len(query) for end in ends))
                if piece.learned:
                    first_learned = min(first_learned, start)
                start += len(piece.text)
            ids += tokens
            labels += [token if end > first_learned else -100 for token, end in zip(tokens, ends, strict=True)]
        return Branch(ids, labels)

    def _check_length(self, query: str, length: int) -> None:
        if length > self.max_query_tokens:
            raise ValueError(
                f"query of {length} tokens ({query[:40]!r}...): the limit is {self.max_query_tokens}; shorten it"
            )

    def _encode_plain(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids and, for each, where it ends in the text; special tokens in the text are plain characters."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]


def _runs(special: re.Pattern[str], pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that are tokenised together, and every special token by itself."""
    run: list[_Piece] = []
    for piece in pieces:
        for text in [piece.text] if piece.is_query else filter(None, special.split(piece.text)):
            part = piece._replace(text=text)
            if piece.is_query or not special.fullmatch(text):
                run.append(part)
                continue
            if run:
                yield run
            run = []
            yield [part]
    if run:
        yield run


__all__ = ["DEFAULT_ANSWER", "VICUNA_CHAT_TEMPLATE", "CoraProcessor"]
