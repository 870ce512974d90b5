"""The short way from an image and queries to masks: by the template's answer in one pass, or by generated text.

    segment(model, processor, image, queries).masks

To ask about one image again and again, encode it once; to move a threshold without asking again, keep the logits:

    encoded = encode(model, processor, [image])
    answer = query_logits(model, processor, encoded, queries)
    answer.masks(threshold=0.5)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .consistency import mask_variance, rephrase
from .image_layouts import VISION_INPUTS, select_images
from .images import load_image
from .masks import resize_mask_logits
from .modeling_cora import CoraForReasoningSegmentation
from .processing_cora import DEFAULT_ANSWER, CoraProcessor


@dataclass(frozen=True)
class EncodedImages:
    """B images behind SAM's encoder and the image processors, made by `encode`, to be asked any number of times.

    The vision tower is not behind them: it runs inside the language model's forward pass, once for each pass.

    Attributes:
        images: B, RGB.
        texts: B, what stands in the prompt for each image.
        vision: inputs of the vision tower, by the names in `VISION_INPUTS`.
        embeddings: (B, C, h, w), of SAM's encoder.
        sizes: B (height, width), the images' own.
        reshaped_sizes: B (height, width), of the images inside SAM's input.
        input_size: side of SAM's padded square input.
    """

    images: tuple[Image.Image, ...]
    texts: tuple[str, ...]
    vision: dict[str, torch.Tensor]
    embeddings: torch.Tensor
    sizes: tuple[tuple[int, int], ...]
    reshaped_sizes: tuple[tuple[int, int], ...]
    input_size: int

    def to(self, device: torch.device | str) -> EncodedImages:
        vision = {name: tensor.to(device) for name, tensor in self.vision.items()}
        return replace(self, vision=vision, embeddings=self.embeddings.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes of pixels and tensors."""
        tensors = [self.embeddings, *self.vision.values()]
        return sum(t.nbytes for t in tensors) + sum(3 * image.width * image.height for image in self.images)


@dataclass(frozen=True)
class MaskLogits:
    """Answers about one image before a threshold: masks at any size, without another pass of the model.

    Attributes:
        logits: (n, 4h, 4w), of SAM's decoder, one for each query.
        scores: fp32 (n,) in [0, 1], the model's estimate of each mask's IoU (at threshold 0), on the CPU.
        rephrased: n times (k, 4h, 4w), of equivalent queries; () where none were asked.
        size: (height, width) of the image.
        reshaped_size: (height, width) of the image inside SAM's input.
        input_size: side of SAM's padded square input.
    """

    logits: torch.Tensor
    scores: torch.Tensor
    rephrased: tuple[torch.Tensor, ...]
    size: tuple[int, int]
    reshaped_size: tuple[int, int]
    input_size: int

    def resized(self, logits: torch.Tensor, size: Sequence[int] | None = None) -> torch.Tensor:
        """Some of the logits, (n, 4h, 4w), at `size`, (height, width), by default the image's: fp32 (n, *size)."""
        return resize_mask_logits(logits, self.input_size, self.reshaped_size, size or self.size)

    def masks(self, threshold: float = 0.0, size: Sequence[int] | None = None) -> torch.Tensor:
        """bool (n, *size) on the CPU: where the logits at `size`, by default the image's, exceed the threshold."""
        # one mask at a time: at image size, logits take four times the room of masks
        masks = [(self.resized(one[None], size) > threshold).cpu() for one in self.logits]
        return torch.cat([torch.zeros(0, *(size or self.size), dtype=torch.bool), *masks])

    def uncertainty(self, size: Sequence[int] | None = None) -> torch.Tensor | None:
        """fp32 (n, *size) in [0, 1/4] on the CPU: the variance over equivalent queries (eq. 6); None without any."""
        if not self.rephrased:
            return None
        return torch.stack([mask_variance(self.resized(one, size)).cpu() for one in self.rephrased])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> MaskLogits:
        """The logits elsewhere, or at another precision."""
        rephrased = tuple(one.to(device, dtype) for one in self.rephrased)
        return replace(self, logits=self.logits.to(device, dtype), rephrased=rephrased)


@dataclass(frozen=True)
class Segmentation:
    """Masks of one image, one per query; or of one generated answer, one per `[SEG]` in it.

    Attributes:
        masks: bool (n, H, W) at image size.
        scores: fp32 (n,) in [0, 1], the model's estimate of each mask's IoU.
        uncertainty: fp32 (n, H, W) in [0, 1/4], the variance over equivalent queries (eq. 6); None unless asked for.
        text: the generated answer; where none was generated the template's, or empty for masks of several queries.
    """

    masks: torch.Tensor
    scores: torch.Tensor
    uncertainty: torch.Tensor | None = None
    text: str = ""


@torch.no_grad()
def encode(
    model: CoraForReasoningSegmentation, processor: CoraProcessor, images: Sequence[Image.Image]
) -> EncodedImages:
    """Images behind SAM's encoder, on the model's device.

    Args:
        images: as Pillow opens them; what is not upright, RGB and of 8 bits becomes it (`images.load_image`).

    Raises:
        ValueError: see `images.load_image` and `processor.image_inputs`.
    """
    images = [load_image(image) for image in images]
    inputs = processor.image_inputs(images)
    embeddings = model.get_image_embeddings(inputs["sam_pixel_values"].to(model.device))
    return EncodedImages(
        images=tuple(images),
        texts=tuple(inputs["image_texts"]),
        vision={name: inputs[name].to(model.device) for name in VISION_INPUTS if name in inputs},
        embeddings=embeddings,
        sizes=tuple((height, width) for height, width in inputs["original_sizes"].tolist()),
        reshaped_sizes=tuple((height, width) for height, width in inputs["reshaped_input_sizes"].tolist()),
        input_size=processor.sam_image_processor.pad_size["height"],
    )


def query_logits(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image | EncodedImages,
    queries: str | Sequence[str],
    queries_per_pass: int = 32,
    uncertainty: bool = False,
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
    answer: str = DEFAULT_ANSWER,
) -> MaskLogits:
    """Asks all queries about one image; up to `queries_per_pass` of them share one forward pass.

    SAM's encoder runs once whatever their number, and not at all for an image that `encode` has seen. The model is
    used in the mode (train or eval) that it is in.

    Args:
        image: as for `encode`; or one image, encoded, wherever its tensors lie.
        uncertainty: also ask equivalent queries for each (`rephrase`), to tell where the answers differ.
        anchors: for each query the masks (H, W) that it points at, of the upright image, most often one or none; see
            [`CoraProcessor`].
        answer: the words that the model is taken to answer with; `[SEG]` in them is the token.

    Raises:
        ValueError: see [`CoraProcessor`]; several encoded images.
    """
    if isinstance(image, EncodedImages) and len(image.images) != 1:
        raise ValueError(f"image: {len(image.images)} encoded images; queries are about one, so encode it by itself")
    queries = [queries] if isinstance(queries, str) else queries
    groups = [rephrase(query) for query in queries] if uncertainty else []
    encoded = image.to(model.device) if isinstance(image, EncodedImages) else encode(model, processor, [image])
    asked = [*queries, *(text for group in groups for text in group)]
    if anchors is not None:
        pointed = zip(anchors, groups, strict=True) if groups else ()
        anchors = [*anchors, *(masks for masks, group in pointed for _ in group)]
    (found,) = _ask(model, processor, encoded, [asked], queries_per_pass, anchors, answer)
    own, *others = found.logits.split([len(queries), *map(len, groups)])
    return replace(found, logits=own, scores=found.scores[: len(queries)], rephrased=tuple(others))


def segment(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    image: Image.Image | EncodedImages,
    queries: str | Sequence[str],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
    uncertainty: bool = False,
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
    answer: str = DEFAULT_ANSWER,
) -> Segmentation:
    """As `query_logits`, with masks at image size.

    Args:
        threshold: of the mask logits.

    Raises:
        ValueError: as there.
    """
    found = query_logits(model, processor, image, queries, queries_per_pass, uncertainty, anchors, answer)
    return Segmentation(found.masks(threshold), found.scores, found.uncertainty())


def segment_batch(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    images: Sequence[Image.Image],
    queries: Sequence[Sequence[str]],
    threshold: float = 0.0,
    queries_per_pass: int = 32,
) -> list[list[Segmentation]]:
    """As `segment`, for B images and B lists of queries; up to `queries_per_pass` of each list share one pass.

    Returns:
        B lists, the template's answer to each query, with its one mask.

    Raises:
        ValueError: not one list of queries for each image; see [`CoraProcessor`].
    """
    _check_lists(images, queries)
    if not images:
        return []
    answers = _ask(model, processor, encode(model, processor, images), queries, queries_per_pass)
    return [
        [
            Segmentation(mask[None], score[None], text=DEFAULT_ANSWER)
            for mask, score in zip(answer.masks(threshold), answer.scores, strict=True)
        ]
        for answer in answers
    ]


@torch.no_grad()
def answer_batch(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    images: Sequence[Image.Image],
    queries: Sequence[Sequence[str]],
    threshold: float = 0.0,
    queries_per_pass: int = 8,
    **generate_kwargs: Any,
) -> list[list[Segmentation]]:
    """Lets the model answer in its own words: no, one or several masks per query.

    Args:
        images, queries: B images and B lists.
        queries_per_pass: rows that are generated together; each repeats its image, a third of a gigabyte of a 7B
            model's cache.
        generate_kwargs: go to `model.generate`; by default it is greedy, for up to 64 tokens, and stops where the chat
            template ends an answer.

    Returns:
        B lists, one answer per query.

    Raises:
        ValueError: as `segment_batch`.
    """
    _check_lists(images, queries)
    if not images:
        return []
    end = processor.end_token_id
    options: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False}
    options |= {"eos_token_id": end, "pad_token_id": processor.pad_token_id, **generate_kwargs}
    encoded = encode(model, processor, images)
    rows = [(index, query) for index, given in enumerate(queries) for query in given]
    answers: list[list[Segmentation]] = [[] for _ in queries]
    for start in range(0, len(rows), queries_per_pass):
        part = rows[start : start + queries_per_pass]
        owners = [index for index, _ in part]
        inputs = _inputs(processor, encoded, owners, [[query] for _, query in part], generate=True)
        output: Any = model.generate(**inputs, **options)
        generated = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        for row, (index, ids) in enumerate(zip(owners, generated, strict=True)):
            owned = output.seg_batch_index == row
            answer = _answer(encoded, index, output.pred_masks[owned], output.iou_scores[owned])
            ids = ids[: ids.index(end)] if end in ids else ids
            text = str(processor.tokenizer.decode(ids, skip_special_tokens=False)).strip()
            answers[index].append(Segmentation(answer.masks(threshold), answer.scores, text=text))
    return answers


def _check_lists(images: Sequence[Image.Image], queries: Sequence[Sequence[str]]) -> None:
    if len(images) != len(queries):
        raise ValueError(f"queries: {len(queries)} lists of queries for {len(images)} images")
    for index, given in enumerate(queries):
        if isinstance(given, str):
            raise ValueError(f"queries: image {index} has the text {given!r}; a list of texts would be right")


@torch.no_grad()
def _ask(
    model: CoraForReasoningSegmentation,
    processor: CoraProcessor,
    encoded: EncodedImages,
    queries: Sequence[Sequence[str]],
    queries_per_pass: int,
    anchors: Sequence[Sequence[np.ndarray]] | None = None,
    answer: str = DEFAULT_ANSWER,
) -> list[MaskLogits]:
    """The answers about each image.

    Args:
        anchors: of the queries about the one image of a batch.
    """
    logits: list[list[torch.Tensor]] = [[] for _ in queries]
    scores: list[list[torch.Tensor]] = [[] for _ in queries]
    for start in range(0, max(1, *map(len, queries)), queries_per_pass):
        # an image whose queries have all been asked sits out; one without any reaches the processor, which refuses it
        images = [index for index, given in enumerate(queries) if not start or len(given) > start]
        parts = [list(queries[index][start : start + queries_per_pass]) for index in images]
        own = None if anchors is None else [anchors[start : start + queries_per_pass]]
        output = model(**_inputs(processor, encoded, images, parts, anchors=own, answer=answer))
        for row, index in enumerate(images):
            owned = output.seg_batch_index == row
            logits[index].append(output.pred_masks[owned])
            scores[index].append(output.iou_scores[owned])
    return [
        _answer(encoded, index, torch.cat(pair[0]), torch.cat(pair[1]))
        for index, pair in enumerate(zip(logits, scores, strict=True))
    ]


def _answer(encoded: EncodedImages, index: int, logits: torch.Tensor, scores: torch.Tensor) -> MaskLogits:
    """What the model made of image `index`."""
    size, reshaped = encoded.sizes[index], encoded.reshaped_sizes[index]
    return MaskLogits(logits, scores.float().clamp(0, 1).cpu(), (), size, reshaped, encoded.input_size)


def _inputs(
    processor: CoraProcessor,
    encoded: EncodedImages,
    images: list[int],
    queries: Sequence[Sequence[str]],
    generate: bool = False,
    anchors: Sequence[Sequence[Sequence[np.ndarray]]] | None = None,
    answer: str = DEFAULT_ANSWER,
) -> dict[str, torch.Tensor]:
    """What the model needs to be asked `queries[k]`, with `anchors[k]`, about image `images[k]` of the batch."""
    device = next(iter(encoded.vision.values())).device
    counts = None if anchors is None else [[len(masks) for masks in of_image] for of_image in anchors]
    texts = [encoded.texts[index] for index in images]
    answers = None if generate else [[answer] * len(of_image) for of_image in queries]
    tokens = processor.query_inputs(queries, texts, answers, generate, counts)
    pointed = {} if anchors is None else processor.anchor_inputs([encoded.images[index] for index in images], anchors)
    return {
        "input_ids": tokens["input_ids"].to(device),
        "branch_ids": tokens["branch_ids"].to(device),
        "sam_image_embeddings": encoded.embeddings[images],
        **select_images(encoded.vision, torch.tensor(images, device=device)),
        **{name: tensor.to(device) for name, tensor in pointed.items()},
    }


__all__ = [
    "EncodedImages",
    "MaskLogits",
    "Segmentation",
    "answer_batch",
    "encode",
    "query_logits",
    "segment",
    "segment_batch",
]
