"""From a recipe to a trained folder: what the programs of all stages share.

Writes the model, the processor, `instructions.jsonl` and `training.json` (how it was trained, for the model card) to
`output_dir`. Run again after an interruption with `--resume_from_checkpoint true`: it goes on from the last checkpoint
and ends at the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from transformers.trainer_utils import set_seed

from datasets_scripts.command_line import UsageError
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.build import KINDS, build_instructions, write_instructions
from datasets_scripts.records import Instruction, Scene, SceneSet
from modeling_cora import CoraConfig, CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.presets import cora_tiny

from .arguments import (
    CoraTrainingArguments,
    DataArguments,
    EmbeddingCacheArguments,
    ModelArguments,
    QueryPretrainingArguments,
    TrainedPartsArguments,
    UnlabelledArguments,
    parse_recipe,
)
from .base_trainer import last_checkpoint
from .cora_trainer import CoraTrainer
from .embedding_cache import add_embedding_cache, refuse_sharded_weights, warn_of_new_images
from .instruction_dataset import InstructionCollator, InstructionDataset
from .query_pretraining import pretrain_queries
from .trained_parts import parameter_table, select_trained_parts, train_in_fp32
from .training_record import write_training_record
from .unlabelled_dataset import PairedCollator, PairedDataset, UnlabelledDataset

CONFIG_FIELDS = (
    "seg_state", "lm_loss_weight", "bce_loss_weight", "dice_loss_weight", "iou_loss_weight", "mask_loss_at",
)  # fmt: skip
"""Of `ModelArguments`, what overrides the model's configuration."""
ARGUMENTS = (
    ModelArguments, TrainedPartsArguments, DataArguments, QueryPretrainingArguments, EmbeddingCacheArguments,
    CoraTrainingArguments,
)  # fmt: skip


def labelled_instructions(
    scene_set: SceneSet, scenes: Sequence[Scene], built: Sequence[Instruction], seed: int
) -> list[Instruction]:
    """Instructions of all kinds about labelled scenes: those that the data brings, or new ones where it brings none."""
    if not built:
        return build_instructions(scene_set, scenes, KINDS, seed)
    wanted = {scene.image_id for scene in scenes}
    return [instruction for instruction in built if instruction.image_id in wanted]


def load_model(
    arguments: ModelArguments, instructions: list[Instruction], seed: int
) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """The model to start from; options that the recipe leaves open stay as the model has them."""
    if arguments.model == "cora-tiny":
        texts = [text for i in instructions for text in (i.query, *i.rephrasings, i.answer)]
        model, processor = cora_tiny(texts, seed, arguments.clip_image_size, arguments.sam_image_size)
    else:
        refuse_adapter(arguments.model)
        model = CoraForReasoningSegmentation.from_pretrained(arguments.model)
        processor = CoraProcessor.from_pretrained(arguments.model)
    override_config(model.config, arguments)
    return model, processor


def refuse_adapter(model: str) -> None:
    """Raises:
    UsageError: the folder is an adapter, which cannot be trained further.
    """
    if (Path(model) / ADAPTER_CONFIG).exists():
        raise UsageError(f"model {model}: is an adapter; merge it first (trainers/merge_adapter.py)")


def override_config(config: CoraConfig, arguments: ModelArguments) -> None:
    """Sets what the arguments name and leaves the rest as the model has it.

    Raises:
        UsageError: a value that the configuration does not take.
    """
    for name in CONFIG_FIELDS:
        if (value := getattr(arguments, name)) is not None:
            try:
                setattr(config, name, value)
            except StrictDataclassFieldValidationError as error:
                raise UsageError(str(error.__cause__)) from None


def train_stage(trainer_class: type[CoraTrainer], argv: Sequence[str] | None = None) -> None:
    """Trains one stage.

    Args:
        trainer_class: of the stage; `uses_anchors` says whether its conditional queries come with their anchors.
        argv: `[recipe.yaml] [--field value ...]`.

    Raises:
        DataError, UsageError: bad input.
    """
    types = (*ARGUMENTS, UnlabelledArguments) if trainer_class.uses_unlabelled else ARGUMENTS
    model_arguments, parts, data_arguments, pretraining, caching, arguments, *rest = parse_recipe(types, argv)
    set_seed(arguments.seed)
    scene_set, built = read_data(data_arguments.data, data_arguments.split_lists, components=True)
    scenes = scene_set.split("train", labelled=True)
    every_kind = labelled_instructions(scene_set, scenes, built, arguments.seed)
    if unknown := set(data_arguments.kinds) - {*KINDS, "reasoning"}:
        raise UsageError(f"kinds: {min(unknown)!r} is not one of {', '.join(KINDS)}, reasoning")
    instructions = [i for i in every_kind if i.kind in data_arguments.kinds]
    # the words of later stages, too, belong to a vocabulary that is made now
    model, processor = load_model(model_arguments, every_kind, arguments.seed)
    if trainer_class.uses_anchors:
        model.add_anchors(processor.add_anchor_token())
    model = select_trained_parts(model, parts, random_start=model_arguments.model == "cora-tiny")
    cache = add_embedding_cache(model, caching, training=True)
    if arguments.process_index == 0:
        print(parameter_table(model), flush=True)
        if cache is not None:
            warn_of_new_images(data_arguments)
    if isinstance(model, PeftModel):
        base = CoraConfig.from_pretrained(model_arguments.model)
        if base.seg_state != model.config.seg_state:
            raise UsageError(f"seg_state {model.config.seg_state}: an adapter uses its base's, {base.seg_state}")
        if arguments.push_to_hub and Path(model_arguments.model).is_dir():
            raise UsageError(
                f"push_to_hub: the adapter's base, model {model_arguments.model}, is a folder of this machine; push it "
                "first (python -m modeling_cora.hub push) and give its name, or push with --merge after the training"
            )
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    dataset = InstructionDataset(
        scene_set,
        scenes,
        instructions,
        data_arguments,
        length=arguments.max_steps * batch,
        seed=arguments.seed,
        anchors=trainer_class.uses_anchors,
    )
    collator, more = InstructionCollator(processor), {}
    if trainer_class.uses_unlabelled:
        (unlabelled,) = rest
        dataset = _paired(dataset, scene_set, unlabelled, data_arguments, arguments)
        collator = PairedCollator(processor)
        more = {"unlabelled": unlabelled, "num_classes": len(scene_set.classes)}
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=processor,
        **more,
    )
    train_in_fp32(model, mixed_precision=trainer.accelerator.mixed_precision != "no")
    if cache is not None:
        refuse_sharded_weights(trainer)
    if trainer.is_world_process_zero():
        stage, others = trainer_class.__name__.removesuffix("Trainer").lower(), [parts, pretraining, caching, *rest]
        write_training_record(stage, model, scene_set, instructions, arguments, model_arguments, data_arguments, others)
    checkpoint = last_checkpoint(arguments.output_dir) if arguments.resume_from_checkpoint else None
    if pretraining.query_pretraining_steps and checkpoint is None:
        pretrain_queries(
            model, processor, scenes, instructions, pretraining, arguments.seed, trainer.is_world_process_zero()
        )
    trainer.train(resume_from_checkpoint=checkpoint)
    if cache is not None and trainer.is_world_process_zero():
        print(cache.summary(), flush=True)
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_instructions(Path(arguments.output_dir) / "instructions.jsonl", instructions)
    trainer.save_model()  # with push_to_hub the upload as well, which may fail


def _paired(
    labelled: InstructionDataset,
    scene_set: SceneSet,
    unlabelled: UnlabelledArguments,
    data_arguments: DataArguments,
    arguments: CoraTrainingArguments,
) -> PairedDataset:
    """Labelled items and the unlabelled ones that go with them; none, and none is read, for sigma = 0."""
    ratio, others = unlabelled.unlabelled_per_labelled, None
    if unlabelled.unlabelled_weight:
        scenes = scene_set.split("train", labelled=False)
        length = len(labelled) * ratio
        others = UnlabelledDataset(scene_set, scenes, unlabelled, data_arguments, length, arguments.seed)
        if others.without and arguments.process_index == 0:
            print(f"{others.without} unlabelled images have no pseudo-label and are left out", flush=True)
    return PairedDataset(labelled, others, ratio)
