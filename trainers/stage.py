"""From a recipe to a trained folder: what the programs of all stages share.

Writes the model, the processor, `instructions.jsonl` and `training.json` (how it was trained, for the model card) to
`output_dir`. Run again after an interruption with `--resume_from_checkpoint true`: it goes on from the last checkpoint
and ends at the same weights. A folder in place of `true` is the checkpoint to go on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import PeftModel
from transformers.trainer_utils import set_seed

from datasets_scripts.command_line import UsageError
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.build import KINDS, build_instructions, class_queries, write_instructions
from datasets_scripts.records import DataError, Instruction, Scene, SceneSet
from modeling_cora import CoraConfig, CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.presets import cora_tiny

from .adapters import OF_THE_BASE, anchors_needed, base_of, check_record, load_adapter
from .arguments import (
    CoraTrainingArguments,
    ModelArguments,
    QueryPretrainingArguments,
    StageSetup,
    TrainedPartsArguments,
    UnlabelledArguments,
)
from .base_trainer import checkpoint_to_resume, refuse_evaluation
from .cora_trainer import CoraTrainer, freeze_idle_anchors, refuse_sharded_anchors
from .embedding_cache import EmbeddingCache, add_embedding_cache, refuse_sharded_weights, warn_of_new_images
from .instruction_dataset import InstructionCollator, InstructionDataset
from .loading import half_with_trained_parts, load_trained
from .query_pretraining import pretrain_queries
from .recipe_parser import parse_recipe
from .trained_parts import frozen_in, parameter_table, select_trained_parts
from .training_record import record_path, write_training_record
from .unlabelled_dataset import PairedCollator, PairedDataset, UnlabelledDataset

CONFIG_FIELDS = tuple(f.name for f in fields(ModelArguments) if hasattr(CoraConfig, f.name))
"""Of `ModelArguments`, what overrides the model's configuration."""
EVALUATED_AFTERWARDS = "a stage evaluates nothing; no would be right, and trainers/evaluate.py for what it has written"
ARGUMENTS = tuple(get_type_hints(StageSetup).values())[:-1]
"""Of every stage; stage 3 has `UnlabelledArguments` too."""


def labelled_instructions(
    scene_set: SceneSet, scenes: Sequence[Scene], built: Sequence[Instruction], seed: int
) -> list[Instruction]:
    """Instructions of all kinds about labelled scenes: those that the data brings, or new ones where it brings none."""
    if not built:
        return build_instructions(scene_set, scenes, KINDS, seed)
    wanted = {scene.image_id for scene in scenes}
    return [instruction for instruction in built if instruction.image_id in wanted]


def of_kinds(instructions: Sequence[Instruction], kinds: Sequence[str], data: str) -> list[Instruction]:
    """Those of the kinds that are asked for.

    Args:
        data: where they are from.

    Raises:
        DataError: there are some, and none of these kinds.
    """
    chosen = [i for i in instructions if i.kind in kinds]
    if instructions and not chosen:
        there = ", ".join(sorted({i.kind for i in instructions}))
        raise DataError(f"{data}: kinds: none of the instructions is {' or '.join(kinds)}; there are {there}")
    return chosen


def load_model(
    arguments: ModelArguments, instructions: list[Instruction], seed: int, **loading: Any
) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """The model to start from, which is no adapter; options that the recipe leaves open stay as the model has them.

    Args:
        loading: goes to the model's `from_pretrained`.

    Raises:
        UsageError: it cannot be loaded.
    """
    if arguments.model == "cora-tiny":
        texts = [text for i in instructions for text in (i.query, *i.rephrasings, i.answer)]
        model, processor = cora_tiny(texts, seed, arguments.clip_image_size, arguments.sam_image_size)
    else:
        model, processor = load_trained(arguments.model, **loading)
    override_config(model.config, arguments)
    return model, processor


def load_for_training(
    arguments: ModelArguments, parts: TrainedPartsArguments, instructions: list[Instruction], seed: int, anchors: bool
) -> tuple[CoraForReasoningSegmentation | PeftModel, CoraProcessor]:
    """The model to start from, and what trains of it. An adapter is trained further, on the same base.

    Args:
        anchors: the model gets an anchor encoder where it has none.

    Raises:
        UsageError: it cannot be loaded, or the parts are not those of the adapter.
    """
    base = base_of(arguments.model)
    further = base != arguments.model
    # in the folder's own type, what an earlier stage has trained would be rounded
    half = half_with_trained_parts(base)
    loading = {} if half is None else {"dtype": torch.float32}
    model, processor = load_model(replace(arguments, model=base), instructions, seed, **loading)
    if further:
        check_record(arguments.model, CoraConfig.from_pretrained(base))
        processor = CoraProcessor.from_pretrained(arguments.model)
    if anchors:
        if further and model.config.anchor_token_id is None:
            raise UsageError(anchors_needed(arguments.model))
        model.add_anchors(processor.add_anchor_token())
    model = select_trained_parts(model, parts, random_start=arguments.model == "cora-tiny")
    if half is not None:
        frozen_in(model, half)
    if further:
        if not isinstance(model, PeftModel):
            raise UsageError(
                f"lora_r 0: model {arguments.model} is an adapter; its own rank, or a model that it is merged into "
                "(trainers/merge_adapter.py), would be right"
            )
        load_adapter(model, arguments.model)
    return model, processor


def override_config(config: CoraConfig, arguments: ModelArguments) -> None:
    """Sets what the arguments name and leaves the rest as the model has it.

    Raises:
        UsageError: a value that the configuration does not take, or that does not go with SAM's size.
    """
    for name in CONFIG_FIELDS:
        if (value := getattr(arguments, name)) is not None:
            try:
                setattr(config, name, value)
            except StrictDataclassFieldValidationError as error:
                raise UsageError(str(error.__cause__)) from None
    places = config.sam_config.prompt_encoder_config.image_embedding_size
    if places % config.embedding_pooling:
        raise UsageError(
            f"embedding_pooling: {config.embedding_pooling} does not divide the {places}x{places} places of SAM's "
            "embeddings; 1 would be right, or a divisor of them"
        )


def prepare_training(
    trainer_class: type[CoraTrainer], given: StageSetup, steps: int
) -> tuple[CoraTrainer, SceneSet, list[Instruction], EmbeddingCache | None]:
    """A training that is ready to begin.

    Args:
        trainer_class: of the stage; `uses_anchors` says whether its conditional queries come with their anchors.
        given: with `unlabelled` where the stage's `uses_unlabelled` says so.
        steps: for which there are items.

    Returns:
        the trainer, the data, instructions of all kinds about its labelled scenes, the cache of SAM's embeddings.

    Raises:
        DataError, UsageError: bad input.
    """
    arguments = given.training
    refuse_evaluation(arguments, EVALUATED_AFTERWARDS)
    torch.set_float32_matmul_precision("high")
    set_seed(arguments.seed)
    scene_set, built = read_data(given.data.data, given.data.split_lists, components=True)
    scenes = scene_set.split("train", labelled=True)
    every_kind = labelled_instructions(scene_set, scenes, built, arguments.seed)
    instructions = of_kinds(every_kind, given.data.kinds, given.data.data)
    # who is never shown an anchor gets no encoder of them
    anchors = trainer_class.uses_anchors and "conditional" in given.data.kinds
    # the words of later stages, too, belong to a vocabulary that is made now
    model, processor = load_for_training(given.model, given.parts, every_kind, arguments.seed, anchors)
    if isinstance(model, PeftModel):
        _check_base(base_of(given.model.model), model.config, anchors, arguments)
    cache = add_embedding_cache(model, given.caching, training=True)
    length = steps * arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    # of images, their views and their queries
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    dataset = InstructionDataset(scene_set, scenes, instructions, given.data, length, seed, anchors)
    collator, more = InstructionCollator(processor), {}
    if given.unlabelled is not None:
        dataset, collator = _paired(dataset, given.unlabelled, arguments), PairedCollator(processor)
        more = {"unlabelled": given.unlabelled, "num_classes": len(scene_set.classes)}
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=dataset, data_collator=collator, processing_class=processor, **more
    )
    return trainer, scene_set, every_kind, cache


def train_stage(trainer_class: type[CoraTrainer], argv: Sequence[str] | None = None) -> None:
    """Trains one stage.

    Args:
        trainer_class: see `prepare_training`.
        argv: `[recipe.yaml] [--field value ...]`.

    Raises:
        DataError, UsageError: bad input.
    """
    types = (*ARGUMENTS, UnlabelledArguments) if trainer_class.uses_unlabelled else ARGUMENTS
    given = StageSetup(*parse_recipe(types, argv))
    arguments = given.training
    checkpoint = checkpoint_to_resume(arguments.resume_from_checkpoint, arguments.output_dir)
    trainer, scene_set, every_kind, cache = prepare_training(trainer_class, given, arguments.max_steps)
    given = given._replace(pretraining=_for_new_models(given.pretraining, given.model.model, arguments))
    refuse_sharded_anchors(trainer)
    freeze_idle_anchors(trainer)
    if cache is not None:
        refuse_sharded_weights(trainer)
    main_process = trainer.is_world_process_zero()
    if main_process:
        print(parameter_table(trainer.model), flush=True)
        if cache is not None:
            warn_of_new_images(given.data)
        write_training_record(trainer, scene_set, base_of(given.model.model), given)
    if given.pretraining.query_pretraining_steps and checkpoint is None:
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
        placed = next(trainer.model.parameters()).device  # DeepSpeed and FSDP bring the model to the GPU later
        pretrain_queries(
            trainer.model.to(arguments.device), trainer.processing_class, scene_set.split("train", labelled=True),
            every_kind, given.pretraining, arguments.seed, main_process, autocast,
        )  # fmt: skip
        trainer.model.to(placed)
    trainer.train(resume_from_checkpoint=checkpoint)
    if cache is not None and main_process:
        print(cache.summary(), flush=True)
    trainer.save_state()
    if main_process:
        write_instructions(
            Path(arguments.output_dir) / "instructions.jsonl",
            of_kinds(every_kind, given.data.kinds, given.data.data),
        )
    trainer.save_model()  # with push_to_hub the upload as well, which may fail


def _for_new_models(
    pretraining: QueryPretrainingArguments, model: str, arguments: CoraTrainingArguments
) -> QueryPretrainingArguments:
    """Without steps for a model that a stage has trained: it would forget what it has learned, and later stages take
    the recipe of the first one too."""
    if not (pretraining.query_pretraining_steps and record_path(model)):
        return pretraining
    if arguments.process_index == 0:
        print(f"query_pretraining_steps: left out, a stage has trained {model}", flush=True)
    return replace(pretraining, query_pretraining_steps=0)


def _check_base(base: str, config: CoraConfig, anchors: bool, arguments: CoraTrainingArguments) -> None:
    """What an adapter is loaded on later must be what it is trained on now.

    Args:
        base: of the adapter.
        config: of the model as it is trained.
        anchors: whether the stage needs an anchor encoder.

    Raises:
        UsageError: it is not, or it is pushed without a base that others could load.
    """
    saved = CoraConfig.from_pretrained(base)
    for name in OF_THE_BASE:
        if (wanted := getattr(config, name)) != (has := getattr(saved, name)):
            raise UsageError(f"{name} {wanted}: an adapter uses its base's, {has}")
    if saved.anchor_token_id is None:
        if anchors:
            raise UsageError(anchors_needed(base))
        if arguments.process_index == 0:
            print(f"For stages 2 and 3: {anchors_needed(base)}", flush=True)
    if arguments.push_to_hub and Path(base).is_dir():
        raise UsageError(
            f"push_to_hub: the adapter's base, model {base}, is a folder of this machine; push it "
            "first (python -m modeling_cora.hub push) and give its name, or push with --merge after the training"
        )


def _paired(
    labelled: InstructionDataset, unlabelled: UnlabelledArguments, arguments: CoraTrainingArguments
) -> PairedDataset:
    """Labelled items and the unlabelled ones that go with them; none, and none is read, for sigma = 0."""
    ratio, others = unlabelled.unlabelled_per_labelled, None
    if unlabelled.unlabelled_weight:
        scene_set = labelled.scene_set
        scenes = scene_set.split("train", labelled=False)
        length = len(labelled) * ratio
        others = UnlabelledDataset(scene_set, scenes, unlabelled, labelled.arguments, length, labelled.seed)
        without = len(scenes) - len(others.scenes)
        if without and arguments.process_index == 0:
            print(f"{without} unlabelled images have no pseudo-label and are left out", flush=True)
        kinds = unlabelled.unlabelled_kinds
        silent = [c.name for c in scene_set.classes if c.asked and not class_queries(c, *kinds)]
        if silent and arguments.process_index == 0:
            named = f"{len(silent)} classes have no {' or '.join(kinds)} query"
            print(f"{named} and are not asked for in unlabelled images: {', '.join(silent)}", flush=True)
    return PairedDataset(labelled, others, ratio)
