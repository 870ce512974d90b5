"""Pseudo-labels for every unlabelled training image of a split.

    python trainers/pseudo_labels/predict.py --model runs/unimatch --data DIR --split_lists DIR/splits/camvid/1_30 \
        --out runs/unimatch/pseudo_labels
    accelerate launch trainers/pseudo_labels/predict.py ...                 several processes share the images

Writes class maps, confidences and `meta.json` (see `predictions.py`). Run again after an interruption with the same
arguments: finished images are kept. An `--out` that holds another model's pseudo-labels is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: the packages lie two folders up, and `import clip` would find this folder's file, not the library
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from datasets_scripts.build import images_digest
from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import claim_folder, write_json
from datasets_scripts.folder import read_folder
from datasets_scripts.json_files import read_json
from datasets_scripts.records import DataError, Scene
from modeling_cora.hub.run_folder import TRAINING, weights_digest
from trainers.argument_checks import Share, check_above_zero, check_types
from trainers.loading import inference_accelerator
from trainers.pseudo_labels.backbones import load_segmenter
from trainers.pseudo_labels.evaluation import predict_scene
from trainers.pseudo_labels.predictions import META, SOURCE, check_classes, mask_path, write_prediction
from trainers.pseudo_labels.segmenter import SemanticSegmenter
from trainers.recipe_parser import parse_recipe


@dataclass
class PredictionArguments:
    model: str = field(default="", metadata={"help": "Folder that train.py wrote."})
    data: str = field(default="", metadata={"help": "The data set; see datasets_scripts/folder.py."})
    split_lists: str | None = field(
        default=None, metadata={"help": "Folder with labeled.txt and unlabeled.txt, the same as in training."}
    )
    out: str = field(default="", metadata={"help": "Folder for the pseudo-labels."})
    window_stride: Share = field(
        default=2 / 3, metadata={"help": "Of the sliding window, as a share of the training crop; UniMatch 2/3."}
    )

    def __post_init__(self):
        check_types(self)
        check_above_zero(self, "window_stride")


def run_prediction(arguments: PredictionArguments) -> dict:
    """Predicts what is missing; returns what `meta.json` says."""
    if not arguments.out:
        raise UsageError("--out: not given; a folder for the pseudo-labels")
    folder = Path(arguments.model)
    if not (folder / "model.safetensors").is_file():
        raise UsageError(f"--model {arguments.model or 'not given'}: a folder that train.py wrote would be right")
    accelerator = inference_accelerator()
    segmenter = load_segmenter(arguments.model, "--model")
    if not (folder / TRAINING).is_file():
        raise UsageError(f"--model {folder}: has no {TRAINING}; has its training ended?")
    record = read_json(folder / TRAINING)
    scene_set = read_folder(arguments.data, arguments.split_lists)
    scenes = scene_set.split("train", labelled=False)
    if not scenes:
        raise DataError(f"{arguments.split_lists or arguments.data}: no unlabelled training image")
    check_classes(dict(zip(segmenter.config.class_ids, segmenter.classes, strict=True)), scene_set, arguments.data)
    out = Path(arguments.out)
    identity = {
        "weights_sha256": weights_digest(folder)["model.safetensors"],
        # by ids, names and sizes, not by where they lie
        "images": images_digest(scenes),
        "window_stride": arguments.window_stride,
    }
    with accelerator.main_process_first():
        claim_folder(out, SOURCE, identity)
    _predict_own(segmenter.to(accelerator.device), scenes, out, arguments.window_stride, accelerator)
    accelerator.wait_for_everyone()
    meta = {
        "identity": identity,
        "data": str(arguments.data),
        "split_lists": arguments.split_lists,
        "method": record["method"],
        "seed": record["seed"],
        "classes": record["classes"],
        "absent_classes": record["absent_classes"],
        "val_miou": (record.get("val") or {}).get("miou"),
        "images": len(scenes),
        "window": segmenter.config.window,
        "image_scale": segmenter.config.image_scale,
        "confidence": "uint8, 255 times the probability of the class",
    }
    if accelerator.is_main_process:
        write_json(out / META, meta)
    return meta


def _predict_own(
    segmenter: SemanticSegmenter, scenes: tuple[Scene, ...], out: Path, stride: float, accelerator: Accelerator
) -> None:
    own = scenes[accelerator.process_index :: accelerator.num_processes]
    for scene in tqdm(own, desc="predicting", unit="image", disable=not accelerator.is_main_process):
        if not mask_path(out, scene.image_id).exists():
            mask, confidence = predict_scene(segmenter, scene, stride)
            write_prediction(out, scene.image_id, mask, confidence)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_recipe((PredictionArguments,), argv)
    meta = run_prediction(arguments)
    print(f"{meta['images']} images in {arguments.out}, {meta['method']}, mIoU on val: {meta['val_miou']}")


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
