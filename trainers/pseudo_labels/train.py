"""Trains a semi-supervised segmenter.

    accelerate launch trainers/pseudo_labels/train.py trainers/pseudo_labels/recipes/camvid_cpu.yaml --data DIR \
        --split_lists DIR/splits/camvid/1_30 --method unimatch --output_dir runs/unimatch
    torchrun --nproc-per-node 2 trainers/pseudo_labels/train.py RECIPE --use_cpu True     two processes without a GPU

Writes the segmenter (`config.json`, `model.safetensors`) and `training.json` (method, split, classes, scores on val) to
`output_dir`. Run again after an interruption with `--resume_from_checkpoint true`: it goes on from the last checkpoint
and ends at the same weights. A folder in place of `true` is the checkpoint to go on from. The last weights count, not
the best on val as in the public codes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: the packages lie two folders up, and `import clip` would find this folder's file, not the library
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dataclasses import asdict

import torch
from transformers.trainer_utils import set_seed

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import write_json
from modeling_cora.hub.run_folder import TRAINING
from trainers.base_trainer import checkpoint_to_resume, refuse_evaluation
from trainers.pseudo_labels.arguments import (
    MethodArguments,
    SegmentationDataArguments,
    SegmenterArguments,
    SemiSupervisedTrainingArguments,
    StrongViewArguments,
    check_cutmix,
)
from trainers.pseudo_labels.backbones import build_segmenter, frozen_clip
from trainers.pseudo_labels.dataset import SemiSupervisedDataset
from trainers.pseudo_labels.methods import Method
from trainers.pseudo_labels.methods.semivl import SemiVL
from trainers.pseudo_labels.methods.supervised import Supervised
from trainers.pseudo_labels.methods.unimatch import UniMatch
from trainers.pseudo_labels.methods.unimatch_v2 import UniMatchV2
from trainers.pseudo_labels.scenes import TrainingScenes, read_training_scenes
from trainers.pseudo_labels.segmenter import SemanticSegmenter
from trainers.pseudo_labels.trainer import SemiSupervisedSegmentationTrainer
from trainers.recipe_parser import parse_recipe

ARGUMENTS = (
    SegmenterArguments,
    MethodArguments,
    SegmentationDataArguments,
    StrongViewArguments,
    SemiSupervisedTrainingArguments,
)


def check_together(
    segmenter: SegmenterArguments, method: MethodArguments, arguments: SemiSupervisedTrainingArguments
) -> None:
    """Raises:
    UsageError: too few images in a batch for the network, or an odd number for the method; or activation checkpointing
        of a backbone that has none.
    """
    if arguments.activation_checkpointing and segmenter.architecture == "deeplabv3plus":
        raise UsageError("activation_checkpointing: deeplabv3plus's ResNet has none; false would be right")
    # UniMatch's perturbed features may be decoded apart from all others
    apart = method.method == "unimatch" and method.batch_norm_statistics == "clean"
    alone = method.method == "supervised" or method.burn_in > 0 or apart
    if segmenter.architecture == "deeplabv3plus" and alone and arguments.train_batch_size * arguments.world_size == 1:
        raise UsageError(
            "per_device_train_batch_size: 1 is too few; deeplabv3plus normalises the images' means by each other"
        )
    if method.method == "unimatch_v2" and arguments.train_batch_size % 2:
        raise UsageError(
            f"per_device_train_batch_size: {arguments.train_batch_size} is odd; unimatch_v2 pastes between pairs"
        )


def build_method(
    method_arguments: MethodArguments, segmenter_arguments: SegmenterArguments, segmenter: SemanticSegmenter
) -> Method:
    """Raises:
    UsageError: a method that does not go with the architecture.
    """
    name = method_arguments.method
    if name == "semivl":
        if segmenter_arguments.architecture != "semivl":
            raise UsageError(f"method semivl: architecture {segmenter_arguments.architecture} has no CLIP; give semivl")
        guided = method_arguments.guidance_weight > 0
        return SemiVL(method_arguments, frozen_clip(segmenter_arguments, segmenter) if guided else None)
    if name == "unimatch_v2":
        return UniMatchV2(method_arguments, segmenter)
    return {"supervised": Supervised, "unimatch": UniMatch}[name](method_arguments)


def training_record(
    trainer: SemiSupervisedSegmentationTrainer, scenes: TrainingScenes, method_arguments, data_arguments, start_from
) -> dict:
    """What `predict.py` and tables want to know of a training run."""
    config = trainer.model.config
    return {
        "method": method_arguments.method,
        "architecture": config.architecture,
        "data": data_arguments.data,
        "split_lists": data_arguments.split_lists,
        "start_from": start_from,
        "labelled_images": len(scenes.labelled),
        "unlabelled_images": len(scenes.unlabelled),
        "seed": trainer.args.seed,
        "steps": trainer.state.global_step,
        "batch": trainer.args.train_batch_size * trainer.args.world_size * trainer.args.gradient_accumulation_steps,
        "classes": dict(zip(map(str, config.class_ids), config.class_names, strict=True)),
        "absent_classes": list(scenes.absent),
        "val": getattr(trainer, "val_scores", None),
        "options": asdict(method_arguments),
    }


def announce_absent(scenes: TrainingScenes, absent_classes: str) -> None:
    if scenes.absent:
        what = "they are left out" if absent_classes == "leave_out" else "nothing trains their outputs"
        print(
            f"note: {len(scenes.absent)} of {len(scenes.scene_set.classes)} classes are in none of the "
            f"{len(scenes.labelled)} labelled images ({', '.join(scenes.absent)}); {what} (absent_classes)",
            file=sys.stderr,
            flush=True,
        )


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    segmenter_arguments, method_arguments, data_arguments, strong_arguments, arguments = parse_recipe(ARGUMENTS, argv)
    check_cutmix(data_arguments, strong_arguments)
    check_together(segmenter_arguments, method_arguments, arguments)
    checkpoint = checkpoint_to_resume(arguments.resume_from_checkpoint, arguments.output_dir)
    set_seed(arguments.seed)
    main_process = arguments.process_index == 0
    scenes = read_training_scenes(
        data_arguments, method_arguments.method != "supervised", main_process and not arguments.disable_tqdm
    )
    if not scenes.val:
        refuse_evaluation(arguments, f"{data_arguments.data} has no labelled images of split val; no would be right")
    if main_process:
        announce_absent(scenes, data_arguments.absent_classes)
    window = (data_arguments.crop_height, data_arguments.crop_width)
    segmenter = build_segmenter(segmenter_arguments, scenes.classes, window, arguments.seed, data_arguments.image_scale)
    method = build_method(method_arguments, segmenter_arguments, segmenter)
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    dataset = SemiSupervisedDataset(
        scenes,
        method.views,
        data_arguments,
        strong_arguments,
        arguments.max_steps * batch,
        arguments.seed,
        labelled_alone=int(method_arguments.burn_in * arguments.max_steps) * batch,
    )
    trainer = SemiSupervisedSegmentationTrainer(segmenter, method, arguments, dataset, scenes.scene_set, scenes.val)
    trainer.train(resume_from_checkpoint=checkpoint)
    if scenes.val:
        trainer.evaluate()
    if main_process:
        trained = method.trained(trainer.accelerator.unwrap_model(trainer.model))
        trained.save_pretrained(arguments.output_dir)
        record = training_record(trainer, scenes, method_arguments, data_arguments, segmenter_arguments.start_from)
        write_json(Path(arguments.output_dir) / TRAINING, record)
    trainer.save_state()


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
