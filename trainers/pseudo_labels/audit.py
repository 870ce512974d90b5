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
    # run as a file: the packages lie two folders up, and `import clip` would find this folder's file, not the library
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import write_json
from datasets_scripts.folder import read_folder
from datasets_scripts.records import IGNORE_INDEX, DataError, Scene, SceneSet
from trainers.argument_checks import Share, check_least, check_types
from trainers.pseudo_labels.audit_page import write_page
from trainers.pseudo_labels.evaluation import scores
from trainers.pseudo_labels.predictions import PseudoLabels, mask_path, read_meta, read_prediction
from trainers.pseudo_labels.scenes import class_index_lookup
from trainers.recipe_parser import parse_recipe

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
        check_types(self)
        check_least(self, pictures=0)


class Audit:
    """How many pixels have which truth, pseudo-label and confidence; `summary` says what they come to.

    Attributes:
        joint: (classes + 1, classes + 1, LEVELS + 1), the last of each for what is not known.
        mean_confidence: of each image that has one.
    """

    def __init__(self, scene_set: SceneSet, threshold: float):
        self.classes, self.threshold = scene_set.classes, threshold
        unknown = len(self.classes)
        self.joint = np.zeros((unknown + 1, unknown + 1, LEVELS + 1), np.int64)
        self._index_of = np.minimum(class_index_lookup(self.classes), unknown)
        self.mean_confidence: dict[str, float] = {}
        self.images_with_truth = 0

    def add(self, image_id: str, mask: np.ndarray, confidence: np.ndarray | None, truth: np.ndarray | None) -> None:
        """All uint8 (H, W); 255 in the mask is no answer, in the truth it is unknown."""
        if confidence is not None:
            self.mean_confidence[image_id] = float(confidence.mean() / 255)
        self.images_with_truth += truth is not None
        truth = np.full_like(mask, IGNORE_INDEX) if truth is None else truth
        levels = np.full(mask.shape, LEVELS) if confidence is None else confidence
        places = np.ravel_multi_index((self._index_of[truth], self._index_of[mask], levels), self.joint.shape)
        self.joint += np.bincount(places.ravel(), minlength=self.joint.size).reshape(self.joint.shape)

    def summary(self) -> dict:
        known = self.joint[:-1, :-1]
        confusion = known.sum(2)
        predicted = self.joint.sum((0, 2))
        covered = self.joint[:, :, :-1][:, :, np.arange(LEVELS) >= self.threshold * 255].sum((0, 2))
        truth_share = confusion.sum(1) / max(1, confusion.sum())
        coverage = {
            one.name: {
                "predicted_share": float(predicted[k] / predicted.sum()),
                "confident_share": float(covered[k] / max(1, predicted[k])) if self.mean_confidence else None,
                "truth_share": float(truth_share[k]) if confusion.any() else None,
            }
            for k, one in enumerate(self.classes)
        }
        return {
            "images": len(self.mean_confidence),
            "images_with_truth": self.images_with_truth,
            "threshold": self.threshold,
            **scores(confusion, self.classes),
            "deciles": deciles(known.sum((0, 1))[:-1], known.trace()[:-1]),
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


def read_audited(
    scene_set: SceneSet, scene: Scene, predictions: Path
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Pseudo-label, confidence and truth of a scene, uint8 (H, W); None for what there is not.

    Raises:
        DataError: a file is missing or damaged, holds an unknown class id, or sizes differ.
    """
    mask, confidence = read_prediction(predictions, scene.image_id, {c.id for c in scene_set.classes})
    truth = scene_set.read_labels(scene) if scene.labelled else None
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
    scenes = PseudoLabels(predictions, scene_set).of_scenes(scene_set.split("train"))
    audit = Audit(scene_set, arguments.threshold)
    for scene in tqdm(scenes, desc="auditing", unit="image"):
        audit.add(scene.image_id, *read_audited(scene_set, scene, predictions))
    summary = audit.summary() | {"images": len(scenes), "method": meta["method"], "val_miou": meta["val_miou"]}
    uncertain = sorted(scenes, key=lambda scene: audit.mean_confidence.get(scene.image_id, 1.0))
    shown = uncertain[: arguments.pictures] if audit.mean_confidence else []
    summary["least_certain"] = {s.image_id: round(audit.mean_confidence[s.image_id], 4) for s in shown}
    out = Path(arguments.out or predictions)
    write_json(out / "audit.json", summary)
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
