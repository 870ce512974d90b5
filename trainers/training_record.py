"""`training.json`: how a folder was trained, for its model card. It names no place of this machine, and no token."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer
from transformers.utils import cached_file

from datasets_scripts.command_line import UsageError
from datasets_scripts.files import write_json
from datasets_scripts.records import SceneSet
from modeling_cora.hub.run_folder import TRAINING, base_models
from modeling_cora.named_models import resolve_name

from .arguments import StageSetup
from .trained_parts import parameter_counts
from .unlabelled_dataset import PairedDataset

LEFT_OUT = {
    "model", "data", "data_name", "split_lists", "pseudo_labels", "consistency_weights", "scene_cache_gigabytes",
    "embedding_cache", "embedding_cache_gigabytes",
}  # fmt: skip
"""Fields that name places, are told in other words, or change nothing."""
OF_THE_TRAINER = (
    "seed", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "sam_learning_rate", "projector_learning_rate", "warmup_steps", "lr_scheduler_type", "weight_decay", "adam_beta1",
    "adam_beta2", "max_grad_norm", "data_seed",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "peft", "accelerate")


def record_path(model: str) -> str | None:
    """`training.json` of a model that a stage has trained, a folder or Hub id; None where there is none."""
    try:
        return None if model == "cora-tiny" else cached_file(resolve_name(model), TRAINING)
    except OSError:
        return None  # if it is no model at all, whoever loads it says so


def read_record(model: str) -> dict[str, Any]:
    """`{}` for a model without one.

    Raises:
        UsageError: it cannot be read.
    """
    if (path := record_path(model)) is None:
        return {}
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record["settings"], dict):
            raise TypeError(f"settings: {record['settings']!r} is no mapping")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"model {model}: {TRAINING}: no record of a training ({error})") from None
    return record


def has_learned_anchors(model: str) -> bool:
    """Whether a model's anchor encoder, if it has one, has been trained; where no record says, it is taken to be."""
    return read_record(model).get("anchors", True)


def write_training_record(trainer: Trainer, scene_set: SceneSet, base: str, given: StageSetup) -> None:
    """Writes the record to `output_dir`.

    Args:
        trainer: with the model as it is trained, and the items that it is trained on. Its precision is accelerate's,
            whoever told that to accelerate.
        base: of an adapter that is trained further; else the model that the training starts from.
        given: `pretraining` as it is done.
    """
    model, arguments = trainer.model, trainer.args
    start, items = _name_of(given.model.model), trainer.train_dataset
    labelled, unlabelled = (items.labelled, items.unlabelled) if isinstance(items, PairedDataset) else (items, None)
    chosen = [given.model, given.data, given.parts, given.pretraining, given.caching]
    if given.unlabelled is not None:
        chosen.append(given.unlabelled)
    settings = {f.name: getattr(group, f.name) for group in chosen for f in fields(group) if f.name not in LEFT_OUT}
    unused = [
        *(["lora_"] if not isinstance(model, PeftModel) else []),
        *(["clip_image_size", "sam_image_size"] if given.model.model != "cora-tiny" else []),
        *(["query_pretraining_"] if not settings["query_pretraining_steps"] else []),
        *(["embedding_cache_"] if not given.caching.embedding_cache else []),
    ]
    settings = {name: value for name, value in settings.items() if not name.startswith(tuple(unused))}
    record = {
        "stage": type(trainer).__name__.removesuffix("Trainer").lower(),
        "model": start if base == given.model.model else f"{start}, an adapter of {_name_of(base)}",
        "base_models": base_models(base),
        "anchors": labelled.anchors or read_record(given.model.model).get("anchors", False),
        "data": {
            "name": given.data.data_name or Path(given.data.data).resolve().name,
            "labelled_images": len(scene_set.split("train", labelled=True)),
            "unlabelled_images": len(unlabelled.scenes) if unlabelled is not None else 0,
            "instructions": sum(map(len, labelled.by_image.values())),
            "sources": sorted({i.source for about in labelled.by_image.values() for i in about}),
            "classes": [c.name for c in scene_set.classes if c.asked],
        },
        "images_per_step": (arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size),
        "settings": {
            **settings,
            **{name: getattr(arguments, name) for name in OF_THE_TRAINER},
            "mixed_precision": trainer.accelerator.mixed_precision,
        },
        "parameters": {part: row[:2] for part, row in parameter_counts(model).items()},
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_json(Path(arguments.output_dir) / TRAINING, record, ensure_ascii=False)


def _name_of(model: str) -> str:
    """Without the place of a folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model
