"""Pseudo-labels as steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.steps import RESUMES, Step

from .audit import AuditArguments
from .predict import PredictionArguments
from .train import ARGUMENTS


def pseudo_label_steps(
    data: Step | Path,
    truth: Path,
    fields: Mapping[str, Any],
    recipe: Path | None,
    split_lists: Path | None = None,
    prediction: Mapping[str, Any] | None = None,
) -> tuple[Step, Step, Step]:
    """Training, prediction and audit.

    Args:
        data: what is trained on.
        truth: a folder that may have the label maps of images that `data` calls unlabelled, for the audit alone.
        fields: of `train.py`, which override its recipe.
        split_lists: see `read_folder`.
        prediction: fields of `predict.py`.
    """
    given = {"data": data, "split_lists": split_lists}
    train = Step(
        "segmenter",
        "trainers.pseudo_labels.train",
        {**fields, **given},
        "output_dir",
        recipe,
        ARGUMENTS,
        resumes=RESUMES,
    )
    predict = Step(
        "pseudo_labels",
        "trainers.pseudo_labels.predict",
        {**(prediction or {}), **given, "model": train},
        arguments=(PredictionArguments,),
    )
    audit = {"predictions": predict, "data": truth}
    return (
        train,
        predict,
        Step("audit", "trainers.pseudo_labels.audit", audit, arguments=(AuditArguments,), launched=False),
    )
