"""What a training and its evaluations left on disk, read from their files alone, and what of it goes to the Hub."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from PIL import Image
from transformers.utils import CONFIG_NAME

from publishing.hub import HubError

from ..checkpoint_shards import read_json
from ..named_models import NAMED_MODELS

TRAINING, METRICS, PICTURE = "training.json", "metrics.json", "overlays.png"
WEIGHTS = "*.safetensors"
REPLACED = (WEIGHTS, "*.safetensors.index.json", "adapter_config.json", "config.json", "evaluation*/*")
"""Files of a repository that an earlier push may have left: other shards, or an adapter where there is none now."""
PUBLISHED = (
    WEIGHTS, "*.safetensors.index.json", "adapter_config.json", "config.json", "generation_config.json",
    "processor_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "chat_template.*", "*.py", TRAINING,
)  # fmt: skip
"""What loading needs, by name: optimizer states, checkpoints and training_args.bin, which holds paths and may hold a
token, are not among them."""
PICTURE_WIDTH = 1600
"""Of the published grid, in pixels."""


@dataclass(frozen=True)
class Evaluation:
    """One folder that trainers/evaluate.py wrote.

    Attributes:
        folder: the folder.
        metrics: its metrics.json: scores, and under `evaluation` what was measured.
    """

    folder: Path
    metrics: dict[str, Any]

    @property
    def measured(self) -> dict[str, Any]:
        """`weights`, `data`, `split`, `images`, `kinds`, `anchors`, `limit`, `queries_per_kind`, `protocol`."""
        return self.metrics["evaluation"]


@dataclass(frozen=True)
class Run:
    """A trained folder.

    Attributes:
        folder: with the weights.
        training: training.json, `{}` where there is none.
        history: the log lines of the training.
        evaluations: those of these weights.
    """

    folder: Path
    training: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def adapter(self) -> bool:
        return (self.folder / ADAPTER_CONFIG).is_file()


def read_run(run_dir: str | Path, only_its_own: bool = False) -> Run:
    """Reads RUN_DIR (as trainers/stageN.py write it, with evaluation*/ inside) or RUN_DIR/model (trainers/run.py).

    Args:
        only_its_own: leave out evaluations of other weights, such as of an earlier training in the same folder.

    Raises:
        HubError: there is no model, or (without `only_its_own`) an evaluation is of other weights.
        ConversionError: a file is not JSON.
    """
    run_dir = Path(run_dir)
    folder = _model_folder(run_dir)
    if not any(folder.glob(WEIGHTS)):
        raise HubError(f"{folder}: has no weights ({WEIGHTS}); the folder that a training wrote would be right")
    state, training = folder / "trainer_state.json", folder / TRAINING
    evaluations = []
    found = sorted(run_dir.glob(f"evaluation*/{METRICS}"))
    weights = weights_digest(folder) if found else {}
    for path in found:
        metrics = read_json(path)
        if metrics.get("evaluation", {}).get("weights") == weights:
            evaluations.append(Evaluation(path.parent, metrics))
        elif not only_its_own:
            raise HubError(
                f"{path}: measured on other weights than those of {folder}, or by an earlier version, which did not "
                "say; run trainers/evaluate.py again, or take the folder away"
            )
    return Run(
        folder,
        read_json(training) if training.is_file() else {},
        tuple(read_json(state).get("log_history", ())) if state.is_file() else (),
        tuple(evaluations),
    )


def _model_folder(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise HubError(f"{run_dir}: no such folder")
    for folder in (run_dir / "model", run_dir):
        if (folder / ADAPTER_CONFIG).is_file():
            return folder
        if (folder / CONFIG_NAME).is_file():
            if (kind := read_json(folder / CONFIG_NAME).get("model_type")) != "cora":
                raise HubError(f"{folder / CONFIG_NAME}: model_type {kind!r}; only 'cora' is pushed from here")
            return folder
    raise HubError(f"{run_dir}: has no {CONFIG_NAME}, {ADAPTER_CONFIG} or model/; what a training wrote would be right")


def weights_digest(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each weights file by its name, as the Hub shows it on the file's page; `{}` for what is no folder."""
    digests = {}
    for path in sorted(Path(folder).glob(WEIGHTS)):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def base_models(model: str | Path) -> list[str] | None:
    """Hub ids of the public models that a model descends from.

    Args:
        model: folder, Hub id, a name of `NAMED_MODELS`, or "cora-tiny".

    Returns:
        `[]` for a random start, None where nothing says.
    """
    folder = Path(model)
    if not folder.is_dir():
        if str(model) in NAMED_MODELS:
            return [NAMED_MODELS[str(model)].vlm, NAMED_MODELS[str(model)].sam]
        return [] if str(model) == "cora-tiny" else [str(model)]
    if (folder / TRAINING).is_file():
        return read_json(folder / TRAINING).get("base_models")
    if (folder / "README.md").is_file():
        found = RepoCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("base_model")
        return [found] if isinstance(found, str) else found
    return None


def published(folder: str | Path) -> list[Path]:
    """The files of a folder that belong to its model."""
    files = (path for path in sorted(Path(folder).iterdir()) if path.is_file())
    return [path for path in files if any(fnmatch(path.name, pattern) for pattern in PUBLISHED)]


def adapter_base(run: Run, bases: Sequence[str] | None = None) -> str:
    """Hub id of an adapter's base: the first of `bases`, else what the adapter's configuration says.

    Raises:
        HubError: that is a folder of this machine.
    """
    found = (bases or [""])[0] or read_json(run.folder / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    if not found or os.path.isabs(found) or os.path.isdir(found):
        raise HubError(
            f"{run.folder / ADAPTER_CONFIG}: base_model_name_or_path {found!r} is a folder of this machine; push it "
            "first and name it with --base_model, or push with --merge"
        )
    return found


def model_files(run: Run, bases: Sequence[str] | None = None) -> dict[str, Path | bytes]:
    """The files of the model, by their path in the repository.

    Args:
        bases: see `adapter_base`.

    Raises:
        HubError: an adapter's base is a folder of this machine.
    """
    files: dict[str, Path | bytes] = {path.name: path for path in published(run.folder)}
    if run.adapter:
        config = read_json(run.folder / ADAPTER_CONFIG)
        files[ADAPTER_CONFIG] = _as_json({**config, "base_model_name_or_path": adapter_base(run, bases)})
    else:
        config = read_json(run.folder / CONFIG_NAME)
        if "auto_map" not in config:
            raise HubError(f"{run.folder / CONFIG_NAME}: has no auto_map, so the code is missing; save the model again")
        files[CONFIG_NAME] = _as_json(_without_places(config))
    return files


def evaluation_files(evaluation: Evaluation, pictures: bool) -> dict[str, Path | bytes]:
    """metrics.json, and the grid as a JPEG that a page can show."""
    name = evaluation.folder.name
    files: dict[str, Path | bytes] = {f"{name}/{METRICS}": evaluation.folder / METRICS}
    if pictures and (evaluation.folder / PICTURE).is_file():
        with Image.open(evaluation.folder / PICTURE) as file:
            picture = file.convert("RGB")
        picture.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=85)
        files[f"{name}/overlays.jpg"] = content.getvalue()
    return files


def refuse_places(files: Mapping[str, Path | bytes]) -> None:
    """
    Raises:
        HubError: a text names a folder of this machine (home, working or temporary folder).
    """
    folders = (Path.home(), Path.cwd(), Path(tempfile.gettempdir()))
    places = [f"{folder}{os.sep}" for folder in folders if folder != folder.parent]
    for name, content in files.items():
        # a vocabulary may hold any word
        if name.endswith((".json", ".jinja", ".md", ".txt")) and not name.startswith(("tokenizer.", "vocab", "merges")):
            text = (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8", "replace")
            for place in places:
                if place in text:
                    raise HubError(f"{name}: names {place}, a folder of this machine; a name without it would be right")


def _as_json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _without_places(values: Any) -> Any:
    """A configuration whose parts do not say from which folder they were loaded."""
    if isinstance(values, list):
        return [_without_places(value) for value in values]
    if not isinstance(values, dict):
        return values
    clean = {key: _without_places(value) for key, value in values.items()}
    if isinstance(place := clean.get("_name_or_path"), str) and Path(place).exists():
        clean["_name_or_path"] = ""
    return clean
