"""How good pseudo-labels are: a page for people and `audit.json` for programs.

    python trainers/pseudo_labels/audit.py --predictions runs/unimatch/pseudo_labels --data DIR

Where the data set has a label map for an image that the split calls unlabelled (as in CamVid or Cityscapes), the
pseudo-labels are scored against it: mIoU, and accuracy in each tenth of the pixels from the least to the most
confident. This reads truth that no training may see, and writes nothing that training reads. Coverage of the classes
and the least certain images need no truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: this folder has modules with names of libraries, and `import evaluate` would find another's file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.folder import read_folder
from datasets_scripts.records import IGNORE_INDEX, DataError, Scene, SceneSet
from trainers.argument_checks import check_least
from trainers.arguments import parse_recipe
from trainers.pseudo_labels.arguments import Share, check_fields
from trainers.pseudo_labels.audit_page import write_page
from trainers.pseudo_labels.evaluation import confusion_matrix, scores
from trainers.pseudo_labels.predictions import check_classes, mask_path, read_meta, read_prediction, write_json

LEVELS, TENTHS = 256, 10
CONFIDENCES = np.arange(LEVELS) / 255


@dataclass
class AuditArguments:
    predictions: str = field(default="", metadata={"help": "Folder that predict.py or import_masks.py wrote."})
    data: str = field(default="", metadata={"help": "The data set, with the label maps that are to be compared."})
    out: str = field(default="", metadata={"help": "Folder for audit.html and audit.json; the predictions' own."})
    threshold: Share = field(default=0.95, metadata={"help": "Confidence from which a pixel counts as covered."})
    pictures: int = field(default=20, metadata={"help": "Least certain images to show."})

    def __post_init__(self):
        check_fields(self)
        check_least(self, pictures=0)


class Audit:
    """Sums over images; `summary` says what they come to."""

    def __init__(self, scene_set: SceneSet, threshold: float):
        self.classes, self.threshold = scene_set.classes, threshold
        self.confusion = np.zeros((len(self.classes),) * 2, np.int64)
        self.pixels_at = np.zeros(LEVELS, np.int64)
        self.correct_at = np.zeros(LEVELS, np.int64)
        self.predicted = np.zeros(LEVELS, np.int64)
        self.covered = np.zeros(LEVELS, np.int64)
        self.mean_confidence: dict[str, float] = {}
        self.images_with_truth = 0

    def add(self, image_id: str, mask: np.ndarray, confidence: np.ndarray | None, truth: np.ndarray | None) -> None:
        """All uint8 (H, W); 255 in the mask is no answer, in the truth it is unknown."""
        self.predicted += np.bincount(mask.ravel(), minlength=LEVELS)
        if confidence is not None:
            self.covered += np.bincount(mask[confidence >= self.threshold * 255], minlength=LEVELS)
            self.mean_confidence[image_id] = float(confidence.mean() / 255)
        if truth is None:
            return
        self.images_with_truth += 1
        counted = (truth != IGNORE_INDEX) & (mask != IGNORE_INDEX)
        self.confusion += confusion_matrix(truth[counted], mask[counted], self.classes)
        if confidence is not None:
            right = confidence[counted & (mask == truth)]
            self.pixels_at += np.bincount(confidence[counted], minlength=LEVELS)
            self.correct_at += np.bincount(right, minlength=LEVELS)

    def summary(self) -> dict:
        total, known = int(self.predicted.sum()), int(self.confusion.sum())
        truth = self.confusion.sum(1)
        coverage = {
            one.name: {
                "predicted_share": float(self.predicted[one.id] / total),
                "confident_share": float(self.covered[one.id] / max(1, self.predicted[one.id])),
                "truth_share": float(truth[k] / known) if known else None,
            }
            for k, one in enumerate(self.classes)
        }
        if not self.mean_confidence:
            for entry in coverage.values():
                entry["confident_share"] = None
        return {
            "images": len(self.mean_confidence),
            "images_with_truth": self.images_with_truth,
            "threshold": self.threshold,
            **scores(self.confusion, self.classes),
            "deciles": deciles(self.pixels_at, self.correct_at),
            "coverage": coverage,
        }


def deciles(pixels_at: np.ndarray, correct_at: np.ndarray, values: np.ndarray = CONFIDENCES) -> list[dict]:
    """Ten groups of equally many pixels, from the least to the most confident.

    Pixels of one confidence level are alike; where a border falls into a level, each side gets its share of them.

    Args:
        pixels_at, correct_at: int (256,), how many pixels have a confidence, and how many of these are right.
        values: (256,), ascending, what the levels stand for.

    Returns:
        a dict each of lowest and highest value, pixels, accuracy; [] without pixels.
    """
    total = pixels_at.sum()
    if not total:
        return []
    ends = np.cumsum(pixels_at)
    groups = []
    for k in range(TENTHS):
        low, high = total * k / TENTHS, total * (k + 1) / TENTHS
        share = np.clip(np.minimum(ends, high) - np.maximum(ends - pixels_at, low), 0, None)
        levels = np.flatnonzero(share > 0)
        correct = (share[levels] * correct_at[levels] / pixels_at[levels]).sum()
        groups.append(
            {
                "lowest": float(values[levels[0]]),
                "highest": float(values[levels[-1]]),
                "pixels": float(share.sum()),
                "accuracy": float(correct / share.sum()),
            }
        )
    return groups


def audited_scenes(scene_set: SceneSet, predictions: Path) -> list[Scene]:
    """The training scenes that have a pseudo-label.

    Raises:
        DataError: none has.
    """
    found = [scene for scene in scene_set.split("train") if mask_path(predictions, scene.image_id).exists()]
    if not found:
        raise DataError(f"{predictions}: no mask of one of the data set's {len(scene_set.split('train'))} images")
    return found


def read_audited(
    scene_set: SceneSet, scene: Scene, predictions: Path
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Pseudo-label, confidence and truth of a scene, uint8 (H, W); None for what there is not.

    Raises:
        DataError: a file is missing or damaged, holds an unknown class id, or sizes differ.
    """
    mask, confidence = read_prediction(predictions, scene.image_id, {c.id for c in scene_set.classes})
    truth = scene_set.read_maps(scene)[0] if scene.labelled else None
    if truth is not None and truth.shape != mask.shape:
        raise DataError(f"{mask_path(predictions, scene.image_id)}: size differs from {scene.label_map}")
    return mask, confidence, truth


def run_audit(arguments: AuditArguments) -> dict:
    """Audits and writes `audit.json` and `audit.html`; returns the summary."""
    if not arguments.predictions:
        raise UsageError("--predictions: not given; a folder that predict.py wrote")
    predictions = Path(arguments.predictions)
    meta = read_meta(predictions)
    scene_set = read_folder(arguments.data)
    check_classes({int(number): name for number, name in meta["classes"].items()}, scene_set, arguments.data)
    scenes = audited_scenes(scene_set, predictions)
    audit = Audit(scene_set, arguments.threshold)
    for scene in tqdm(scenes, desc="auditing", unit="image"):
        audit.add(scene.image_id, *read_audited(scene_set, scene, predictions))
    summary = audit.summary() | {"images": len(scenes), "method": meta["method"], "val_miou": meta["val_miou"]}
    uncertain = sorted(scenes, key=lambda scene: audit.mean_confidence.get(scene.image_id, 1.0))
    shown = uncertain[: arguments.pictures] if audit.mean_confidence else []
    summary["least_certain"] = {s.image_id: round(audit.mean_confidence[s.image_id], 4) for s in shown}
    out = Path(arguments.out or predictions)
    write_json(out, "audit.json", summary)
    write_page(out / "audit.html", summary, shown, predictions, scene_set)
    return summary


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_recipe((AuditArguments,), argv)
    summary = run_audit(arguments)
    print(
        f"{summary['images']} images, {summary['images_with_truth']} with truth: mIoU {summary['miou']}, "
        f"accuracy {summary['accuracy']}; {Path(arguments.out or arguments.predictions) / 'audit.html'}"
    )


if __name__ == "__main__":
    main()
