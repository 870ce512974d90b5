"""A run on the Hub: what goes up, and the push of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from publishing.hub import HubError, address, make_repository, reason, upload

from ..checkpoint_shards import ConversionError
from ..merging import merge_adapter
from .model_card import model_card
from .run_folder import (
    REPLACED,
    TRAINING,
    Run,
    adapter_base,
    base_models,
    evaluation_files,
    model_files,
    read_run,
    refuse_places,
)

MESSAGE = "Weights, processor, code and card"
Files = dict[str, Path | bytes]


def push_model(
    run_dir: Path,
    name: str,
    private: bool = False,
    merge: bool = False,
    licence: str | None = None,
    bases: Sequence[str] | None = None,
    pictures: bool = True,
    message: str | None = None,
) -> str:
    """Pushes a run: weights, processor, code, card and results, in one commit.

    Args:
        run_dir: see `read_run`.
        name: of the repository; made where there is none.
        private: of a new repository.
        merge: an adapter goes up merged with its base.
        licence: of the weights; by default "apache-2.0" where they come from a random start, and needed else.
        bases: Hub ids of what the weights descend from, where the run does not say; the first is an adapter's base.
        pictures: publish the grids of the evaluations.
        message: of the commit.

    Returns:
        the address of the model.

    Raises:
        HubError: the run or the Hub does not allow it; told in one line.
    """
    run = read_run(run_dir)
    if merge and not run.adapter:
        raise HubError(f"--merge: {run.folder} holds no adapter")
    if licence is None and (known := _known(run, bases)) != []:
        of = " and ".join(known) if known else "models that the run does not name"
        raise HubError(f"--license: not given, and the weights descend from {of}, whose licence binds them")
    if not merge:
        publication(run, name, licence, bases, pictures)  # what it refuses comes before anything is made on the Hub
    repo_id = make_repository(name, "model", private)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=run_dir) if merge else nullcontext() as place:
        going_up = _merged(run, Path(place) / "model") if place else run
        files = publication(going_up, repo_id, licence, bases, pictures, merge)
        upload(files, repo_id, "model", message or MESSAGE, REPLACED)
    return address(repo_id, "model")


def publication(
    run: Run,
    repo_id: str,
    licence: str | None = None,
    bases: Sequence[str] | None = None,
    pictures: bool = True,
    merged: bool = False,
) -> Files:
    """Everything that goes up, by its path in the repository; the card names a licence where one is known.

    Args:
        merged: the folder of `run` is its adapter merged with the base.

    Raises:
        HubError: an adapter's base or a text is of this machine.
    """
    known = [adapter_base(run, bases)] if run.adapter else _known(run, bases)
    files = model_files(run, bases)
    for evaluation in run.evaluations:
        files |= evaluation_files(evaluation, pictures)
    licence = licence or ("apache-2.0" if known == [] else None)
    files["README.md"] = str(model_card(run, repo_id, licence, known, merged, files)).encode()
    refuse_places(files)
    return files


def _known(run: Run, bases: Sequence[str] | None) -> list[str] | None:
    """What the weights descend from: as given, or as the run says."""
    return list(bases) if bases else run.training.get("base_models") if run.training else base_models(run.folder)


def _merged(run: Run, folder: Path) -> Run:
    """The run with the merged model, which is written to `folder`."""
    try:
        merge_adapter(run.folder, folder, record=run.folder / TRAINING if run.training else None)
    except (ConversionError, SafetensorError, OSError) as error:
        raise HubError(f"--merge: {reason(error)}") from None
    return replace(run, folder=folder)


__all__ = ["publication", "push_model"]
