"""`pipeline("reasoning-segmentation")`: images and queries in any of the usual forms -> masks at image size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import Pipeline, pipeline

from .configuration_cora import TASK
from .images import load_image
from .named_models import find_name
from .processing_cora import CoraProcessor
from .segmentation import answer_batch, segment_batch

# What `config.json` says of this file, so that transformers finds the task in a saved folder. The model class is an
# auto class: `pipeline` looks it up in transformers.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline.ReasoningSegmentationPipeline", "pt": ["AutoModel"], "type": "multimodal"}}


class ReasoningSegmentationPipeline(Pipeline):
    """Masks for queries about images.

        pipe = pipeline("reasoning-segmentation", model=folder)
        pipe("street.jpg", "the road")
        pipe("street.jpg", ["the road", "the vehicle with four wheels"])
        pipe({"image": "https://example.org/street.jpg", "queries": ["the road"]})
        pipe(["a.jpg", "b.jpg"], "the road", batch_size=2)
        for result in pipe(dataset_of_such_dicts): ...

    Args:
        model: a [`CoraForReasoningSegmentation`], used in the mode (train or eval) that it is in.
        processor: its [`CoraProcessor`]; where not given, that of the folder or repository that the model is from.
        kwargs: as for any pipeline, and defaults for what `__call__` takes.
    """

    # None: `pipeline` may come without one (model=an object), and the constructor then finds it
    _load_processor = None
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        if processor is None:
            if not model.name_or_path:
                raise ValueError("processor: not given, and the model was not loaded from a place that has one")
            processor = CoraProcessor.from_pretrained(model.name_or_path)
        kwargs.pop("local_files_only", None)  # `pipeline` hands it on after use
        super().__init__(model=model, processor=processor, **kwargs)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> Any:
        """`pipeline(TASK, model=name)` that knows the names of `named_models.py` ("cora-7b"), as transformers does not.

        Args:
            kwargs: go to `transformers.pipeline`.

        Raises:
            ModelNotFoundError: see `named_models.find_name`.
        """
        source = find_name(name, **{**(kwargs.get("model_kwargs") or {}), **kwargs})
        return pipeline(TASK, model=str(source), pipeline_class=cls, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Model and processor; the base class would take the processor apart and lose SAM's half."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def __call__(self, images: Any, queries: str | Sequence[str] | None = None, **kwargs: Any) -> Any:
        """
        Args:
            images: a file, an http(s) URL, an image of Pillow, or a dict `{"image": one of these, "queries": text or
                list of texts}` (other keys are left alone); or a list, an iterator or a data set of such.
            queries: text or texts, asked about every image that does not bring its own.
            threshold (`float`, *optional*, defaults to 0.0): of the mask logits.
            queries_per_pass (`int`, *optional*, defaults to 32): queries of an image that share a forward pass; with
                `generate` rows that each repeat their image, and 8 by default.
            generate (`bool`, *optional*, defaults to `False`): let the model answer in its own words. By default the
                answer is "It is [SEG]." and all queries of an image share one forward pass.
            max_new_tokens (`int`, *optional*, defaults to 64): with `generate`.
            generate_kwargs (`dict`, *optional*): go to `model.generate`.
            timeout (`float`, *optional*, defaults to 30): of the download of an image, in seconds.
            batch_size (`int`, *optional*, defaults to 1): images that share a forward pass, where there are several.
            num_workers (`int`, *optional*, defaults to 0): processes that read images.

        Returns:
            For one image a list of dicts, in the order of the queries:

            - query (`str`)
            - mask (bool array of NumPy, H x W): at the size of the image (upright, see `images.py`)
            - score (`float` in [0, 1]): the model's estimate of the mask's IoU
            - text (`str`): the answer

            With `generate` there is one dict for every mask of an answer (they share query and text); an answer
            without a mask is one dict whose mask and score are None. For a list of images a list of such lists, for
            an iterator or a data set an iterator of them; nothing is read ahead of what is asked for but a batch.

        Raises:
            ImageError, TypeError: see `images.load_image`.
            ValueError: no query for an image, or one that the processor refuses.
        """
        if queries is not None:
            kwargs["queries"] = queries
        single = isinstance(images, str | os.PathLike | Image.Image | Mapping)
        if not single and not isinstance(images, Dataset):
            if isinstance(images, Sequence):
                images = list(images)
                if not images:
                    return []
            elif isinstance(images, np.ndarray | torch.Tensor):
                load_image(images)  # type: ignore[arg-type]  # says what would be right, now and not at the first answer
            elif isinstance(images, Iterable):
                images = (image for image in images)  # the base class knows generators, not iterables
        return super().__call__(images, **kwargs)

    def _sanitize_parameters(
        self,
        queries: str | Sequence[str] | None = None,
        timeout: float | None = None,
        threshold: float | None = None,
        queries_per_pass: int | None = None,
        generate: bool | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before: dict[str, Any] = {"queries": queries, "timeout": timeout}
        within: dict[str, Any] = {
            "threshold": threshold,
            "queries_per_pass": queries_per_pass,
            "generate": generate,
            "max_new_tokens": max_new_tokens,
            "generate_kwargs": generate_kwargs,
        }
        # only what is given: the rest may have been given to the constructor
        return (
            {key: value for key, value in before.items() if value is not None},
            {key: value for key, value in within.items() if value is not None},
            {},
        )

    def preprocess(
        self, inputs: Any, queries: str | Sequence[str] | None = None, timeout: float = 30.0
    ) -> dict[str, Any]:
        """The image and its queries, a tuple of str. Pixels become tensors with the rest of the batch, since images of
        different sizes may take different numbers of tiles or patches."""
        image = inputs
        if isinstance(inputs, Mapping):
            if "image" not in inputs:
                raise ValueError(f"inputs: {sorted(map(str, inputs))}; {{'image': ..., 'queries': [...]}} is needed")
            image, queries = inputs["image"], inputs.get("queries", queries)
        queries = (queries,) if isinstance(queries, str) else tuple(queries or ())
        if not queries or not all(isinstance(query, str) for query in queries):
            raise ValueError(f"queries: a text or a list of texts is needed, not {queries or 'nothing'!r}")
        return {"queries": queries, "image": load_image(image, timeout)}

    def _forward(
        self,
        inputs: dict[str, Any],
        generate: bool = False,
        max_new_tokens: int = 64,
        generate_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Of one image, or of a batch, whose queries are a list of tuples; the results are then a list too."""
        batched = isinstance(inputs["queries"], list)
        images, queries = (inputs[name] if batched else [inputs[name]] for name in ("image", "queries"))
        if generate:
            options |= {"max_new_tokens": max_new_tokens, **(generate_kwargs or {})}
        answer = answer_batch if generate else segment_batch
        answers = answer(self.model, self.processor, images, queries, **options)
        results = [list(zip(*pair, strict=True)) for pair in zip(queries, answers, strict=True)]
        return {"results": results if batched else results[0]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """(query, answer) pairs of one image -> a dict for each mask, and one for each answer without."""
        rows: list[dict[str, Any]] = []
        for query, answer in model_outputs["results"]:
            found: list[tuple[torch.Tensor | None, float | None]] = list(
                zip(answer.masks, answer.scores.tolist(), strict=True)
            )
            for mask, score in found or [(None, None)]:
                array = None if mask is None else mask.numpy()
                rows.append({"query": query, "mask": array, "score": score, "text": answer.text})
        return rows


__all__ = ["CUSTOM_PIPELINES", "TASK", "ReasoningSegmentationPipeline"]
