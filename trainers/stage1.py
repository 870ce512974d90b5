"""Stage 1: labelled images with semantic and attribute queries.

    accelerate launch trainers/stage1.py trainers/recipes/demo.yaml
    accelerate launch trainers/stage1.py trainers/recipes/camvid.yaml --data DIR --max_steps 2000

Writes the model, the processor and `instructions.jsonl` to `output_dir`. Run again after an interruption with
`--resume_from_checkpoint true`: it goes on from the last checkpoint and ends at the same weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from transformers.trainer_utils import get_last_checkpoint, set_seed

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import build_instructions, write_instructions
from datasets_scripts.records import Instruction
from modeling_cora import CoraConfig, CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.presets import cora_tiny
from trainers.arguments import (
    CoraTrainingArguments,
    DataArguments,
    ModelArguments,
    QueryPretrainingArguments,
    TrainedPartsArguments,
    parse_recipe,
)
from trainers.cora_trainer import CoraTrainer
from trainers.instruction_dataset import InstructionCollator, InstructionDataset
from trainers.query_pretraining import pretrain_queries
from trainers.trained_parts import parameter_table, select_trained_parts

CONFIG_FIELDS = (
    "seg_state", "lm_loss_weight", "bce_loss_weight", "dice_loss_weight", "iou_loss_weight", "mask_loss_at",
)  # fmt: skip
"""Of `ModelArguments`, what overrides the model's configuration."""
ARGUMENTS = (ModelArguments, TrainedPartsArguments, DataArguments, QueryPretrainingArguments, CoraTrainingArguments)


class Stage1Trainer(CoraTrainer):
    """Eq. 5: L = alpha * L_ce + BCE + Dice on labelled masks."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        terms = {name: output[name] for name in ("lm_loss", "bce_loss", "dice_loss", "iou_loss")}
        terms = self.global_means(terms, inputs, num_items_in_batch)
        self.record_terms(terms)
        loss = self.accelerator.unwrap_model(model).weighted_sum(terms)
        return (loss, output) if return_outputs else loss


def load_model(
    arguments: ModelArguments, instructions: list[Instruction], seed: int
) -> tuple[CoraForReasoningSegmentation, CoraProcessor]:
    """The model to start from; options that the recipe leaves open stay as the model has them."""
    if arguments.model == "cora-tiny":
        texts = [text for i in instructions for text in (i.query, *i.rephrasings, i.answer)]
        model, processor = cora_tiny(texts, seed, arguments.clip_image_size, arguments.sam_image_size)
    else:
        if (Path(arguments.model) / ADAPTER_CONFIG).exists():
            raise UsageError(f"model {arguments.model}: is an adapter; merge it first (trainers/merge_adapter.py)")
        model = CoraForReasoningSegmentation.from_pretrained(arguments.model)
        processor = CoraProcessor.from_pretrained(arguments.model)
    for name in CONFIG_FIELDS:
        if (value := getattr(arguments, name)) is not None:
            try:
                setattr(model.config, name, value)
            except StrictDataclassFieldValidationError as error:
                raise UsageError(str(error.__cause__)) from None
    return model, processor


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    model_arguments, parts, data_arguments, pretraining, arguments = parse_recipe(ARGUMENTS, argv)
    set_seed(arguments.seed)
    scene_set = read_folder(data_arguments.data, data_arguments.split_lists)
    scenes = scene_set.split("train", labelled=True)
    instructions = build_instructions(scene_set, scenes, tuple(data_arguments.kinds), arguments.seed)
    model, processor = load_model(model_arguments, instructions, arguments.seed)
    model = select_trained_parts(model, parts, random_start=model_arguments.model == "cora-tiny")
    if arguments.process_index == 0:
        print(parameter_table(model), flush=True)
    if isinstance(model, PeftModel):
        base = CoraConfig.from_pretrained(model_arguments.model)
        if base.seg_state != model.config.seg_state:
            raise UsageError(f"seg_state {model.config.seg_state}: an adapter uses its base's, {base.seg_state}")
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    dataset = InstructionDataset(
        scene_set, scenes, instructions, data_arguments, length=arguments.max_steps * batch, seed=arguments.seed
    )
    trainer = Stage1Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=InstructionCollator(processor),
        processing_class=processor,
    )
    checkpoint = get_last_checkpoint(arguments.output_dir) if arguments.resume_from_checkpoint else None
    if pretraining.query_pretraining_steps and checkpoint is None:
        pretrain_queries(
            model, processor, scenes, instructions, pretraining, arguments.seed, trainer.is_world_process_zero()
        )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_instructions(Path(arguments.output_dir) / "instructions.jsonl", instructions)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
