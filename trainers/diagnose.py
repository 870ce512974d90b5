"""What stage 3 has to work with: is lambda informative, are `[SEG]` embeddings separated by class, is sigma in scale?

    python trainers/diagnose.py trainers/recipes/demo_stage3.yaml --model runs/stage2 --data DIR --pseudo_labels DIR
        --consistency_weights DIR --out DIR
    python trainers/diagnose.py --stage3 runs/stage3 --model runs/stage3 --data DIR --pseudo_labels DIR --out DIR

Takes the fields of stage 3, from its recipe or, without one, from the record of the run that `--stage3` names, so that
gradients are those of its training. Without `--consistency_weights` lambda is asked of the model now.

Where the data set has a label map for an image that the split calls unlabelled (as in CamVid or Cityscapes), lambda is
compared with it. This reads truth that no training may see, and writes nothing that training reads: `diagnosis.json`,
`diagnosis.png` and `report.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice

import numpy as np
from peft import PeftModel
from transformers.trainer_utils import set_seed

from datasets_scripts.command_line import UsageError, one_line_errors
from datasets_scripts.files import write_json, write_text
from datasets_scripts.folder import read_data
from datasets_scripts.records import DataError, Scene, SceneSet
from modeling_cora.hub.run_folder import TRAINING
from trainers.argument_checks import check_least
from trainers.arguments import DataArguments, ModelArguments, StageSetup, TrainedPartsArguments, UnlabelledArguments
from trainers.base_trainer import last_checkpoint
from trainers.comparison import require_matplotlib
from trainers.consistency_maps import ConsistencyMaps
from trainers.consistency_weights import ConsistencyArguments, asked_of, scene_variances
from trainers.diagnosis.gradients import TermTrainer, measure_gradients
from trainers.diagnosis.picture import draw_diagnosis
from trainers.diagnosis.reliability import measure_reliability
from trainers.diagnosis.report import diagnosis_report
from trainers.diagnosis.separation import Embeddings, agreement, ask_embeddings, projected, separation
from trainers.recipe_parser import parse_recipe, read_recipe
from trainers.report import read_history
from trainers.stage import ARGUMENTS, prepare_training
from trainers.token_bank import BANK_FILE
from trainers.training_record import read_record


@dataclass
class DiagnosisArguments:
    out: str = field(default="", metadata={"help": "Folder for diagnosis.json, diagnosis.png and report.md."})
    stage3: str | None = field(
        default=None,
        metadata={"help": "Folder of a run of stage 3: the bank of its last checkpoint and its log are shown, and its "
                  "settings are taken where no recipe is given."},
    )  # fmt: skip
    limit: int | None = field(default=None, metadata={"help": "Lambda of the first so many unlabelled images only."})
    embedding_batches: int = field(default=32, metadata={"help": "Training batches whose embeddings are asked for."})
    gradient_batches: int = field(default=8, metadata={"help": "Training batches whose gradients are measured."})

    def __post_init__(self):
        check_least(self, limit=1, embedding_batches=1, gradient_batches=1)


TYPES = (*ARGUMENTS, UnlabelledArguments, DiagnosisArguments)
OF_A_RECORD = {
    *(f.name for group in (ModelArguments, TrainedPartsArguments, DataArguments, UnlabelledArguments)
      for f in fields(group)),
    "seed", "data_seed", "per_device_train_batch_size",
}  # fmt: skip
"""Settings of `training.json` that decide what a batch is and which parameters are trained on it."""


def parse_diagnosis(argv: Sequence[str] | None = None) -> list:
    """One instance of each of `TYPES`; see the head of this file.

    Raises:
        DataError, UsageError: see `parse_recipe`; `--stage3` is no run of stage 3.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parsed = parse_recipe(TYPES, argv)
    if parsed[-1].stage3 is None:
        return parsed
    folder = Path(parsed[-1].stage3)
    settings = _stage3_settings(folder)
    if not argv[0].startswith("-"):
        return parsed
    # a record leaves out what it does not use
    chosen = {"lora_r": 0} | {name: value for name, value in settings.items() if name in OF_A_RECORD}
    return parse_recipe(TYPES, argv, read_recipe(folder / TRAINING, TYPES, chosen))


def _stage3_settings(folder: Path) -> dict:
    if not (folder / TRAINING).is_file():
        raise DataError(f"stage3: {folder / TRAINING}: no such file; a folder that trainers/stage3.py wrote")
    record = read_record(str(folder))
    if (stage := record.get("stage")) != "stage3":
        raise UsageError(f"stage3: {folder} was trained by {stage}; a folder that trainers/stage3.py wrote")
    return record["settings"]


@dataclass(frozen=True)
class Diagnosed:
    """What is diagnosed: a training of stage 3 that is ready to begin.

    Attributes:
        name: of the model.
        scene_set: as it is trained on.
        with_truth: the images with the label maps that training must not see.
    """

    trainer: TermTrainer
    name: str
    scene_set: SceneSet
    with_truth: SceneSet
    arguments: DiagnosisArguments


def prepare(argv: Sequence[str] | None = None) -> Diagnosed:
    """Raises:
    DataError, UsageError: bad input.
    """
    *stage, arguments = parse_diagnosis(argv)
    given = StageSetup(*stage)
    if not arguments.out:
        raise UsageError("--out: not given; a folder for the diagnosis")
    if given.model.model == ModelArguments.model:
        raise UsageError("--model: not given; a folder or Hub id with a trained model, such as runs/stage2")
    if not given.unlabelled.unlabelled_weight:
        raise UsageError("sigma: 0 leaves the unlabelled losses out; another value, or none for the default")
    if given.unlabelled.consistency == "ahead" and not given.unlabelled.consistency_weights:
        given = given._replace(unlabelled=replace(given.unlabelled, consistency="online"))
    given.training.output_dir = arguments.out
    batches = max(arguments.embedding_batches, arguments.gradient_batches)
    trainer, scene_set, *_ = prepare_training(TermTrainer, given, batches)
    with_truth, _ = read_data(given.data.data)
    # as `train` does: forward passes, and nothing else, are under autocast where the precision asks for it
    trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
    if arguments.stage3 and (checkpoint := last_checkpoint(arguments.stage3)):
        width = trainer.model.config.sam_config.prompt_encoder_config.hidden_size
        _load_bank(trainer, Path(checkpoint), width, {c.id for c in scene_set.classes})
    name = Path(given.model.model).resolve().name if Path(given.model.model).is_dir() else given.model.model
    return Diagnosed(trainer, name, scene_set, with_truth, arguments)


def _load_bank(trainer: TermTrainer, checkpoint: Path, width: int, known: set[int]) -> None:
    try:
        trainer.bank.load(checkpoint)
    except FileNotFoundError:
        raise DataError(f"{checkpoint}: has no {BANK_FILE}; is it of stage 3?") from None
    if foreign := set(trainer.bank.classes.tolist()) - known:
        raise DataError(f"{checkpoint / BANK_FILE}: {min(foreign)} is not a class id of the data set")
    if len(trainer.bank) and trainer.bank.tokens.shape[1] != width:
        found = trainer.bank.tokens.shape[1]
        raise DataError(f"{checkpoint / BANK_FILE}: embeddings of length {found}; the model's have {width}")


def diagnose(one: Diagnosed) -> dict:
    """Answers to all three questions, as `diagnosis.json` has them."""
    trainer, arguments = one.trainer, one.arguments
    reliability = _reliability(one)
    loader, total = trainer.get_train_dataloader(), arguments.embedding_batches
    labelled, pseudo = ask_embeddings(trainer, islice(loader, total), total)
    if source := ("bank" if len(trainer.bank) else ""):
        labelled = Embeddings(trainer.bank.tokens, trainer.bank.classes)
    else:
        trainer.bank.push(labelled.tokens, labelled.classes)  # what eq. 8 would compare with
    set_seed(trainer.args.seed)
    total = arguments.gradient_batches
    gradients = measure_gradients(trainer, islice(trainer.get_train_dataloader(), total), total)
    names = {c.id: c.name for c in one.scene_set.classes}
    (first, second), share = projected(labelled, pseudo)
    return {
        "model": one.name,
        "lambda": reliability,
        "embeddings": {
            "source": source or "now",
            "labelled": _named(separation(labelled), names),
            "pseudo": _named(separation(pseudo), names),
            "agreement": agreement(pseudo, labelled),
            "plane_share": share,
            "points": {
                group: [[x, y, names[class_id]] for x, y, class_id in points]
                for group, points in (("labelled", first), ("pseudo", second))
            },
        },
        "gradients": gradients,
        "log": [e for e in read_history(Path(arguments.stage3)) if "loss" in e] if arguments.stage3 else [],
    }


def _named(found: dict, names: Mapping[int, str]) -> dict:
    return {**found, "classes": [names[class_id] for class_id in found["classes"]]}


def _reliability(one: Diagnosed) -> dict:
    trainer, options = one.trainer, one.trainer.unlabelled
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = (model.get_base_model() if isinstance(model, PeftModel) else model).eval()
    asking = ConsistencyArguments(rephrasings=options.rephrasings, kinds=options.unlabelled_kinds)
    stored = ConsistencyMaps(options.consistency_weights) if options.consistency_weights else None

    def variances(scene: Scene, labels: np.ndarray) -> Mapping[int, np.ndarray]:
        if stored is not None:
            return stored.read(scene.image_id)
        asked = asked_of(one.scene_set, scene, labels, asking)
        with trainer.accelerator.autocast():
            return scene_variances(model, trainer.processing_class, scene, asked, asking)

    unlabelled, kind = trainer.train_dataset.unlabelled, options.weight_kind
    scenes, labels = unlabelled.scenes[: one.arguments.limit], unlabelled.pseudo_labels
    found = measure_reliability(
        one.scene_set, one.with_truth, scenes, labels, variances, kind, options.weight_temperature
    )
    return {"source": "now" if stored is None else "ahead", "kind": kind, **found}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    require_matplotlib()
    one = prepare(argv)
    diagnosis, out = diagnose(one), Path(one.arguments.out)
    report = diagnosis_report(diagnosis)
    write_json(out / "diagnosis.json", diagnosis, allow_nan=False)
    write_text(out / "report.md", report)
    draw_diagnosis(out / "diagnosis.png", diagnosis)
    print(report)


if __name__ == "__main__":
    main()
