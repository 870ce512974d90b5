"""Models by name: `from_pretrained("cora-7b")` finds the folder, the Hub repository, or says how to get either."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from transformers.utils import CONFIG_NAME, cached_file

DEFAULT_ORGANISATION = "cora-segmentation"
ORGANISATION_VARIABLE = "CORA_HUB_ORGANISATION"

# arguments of `from_pretrained` that say where a repository lies
_WHERE = ("cache_dir", "local_files_only", "proxies", "revision", "token")


@dataclass(frozen=True)
class NamedModel:
    """What a name stands for.

    Attributes:
        repository: its name on the Hub, within an organisation.
        vlm, sam: Hub ids of the public weights that it is made of.
    """

    repository: str
    vlm: str
    sam: str


# `cora-tiny` is no name of the Hub: it starts from random weights (see presets.py).
NAMED_MODELS = {
    "cora-7b": NamedModel("cora-7b", "llava-hf/llava-1.5-7b-hf", "facebook/sam-vit-huge"),
    "cora-13b": NamedModel("cora-13b", "llava-hf/llava-1.5-13b-hf", "facebook/sam-vit-huge"),
}


class ModelNotFoundError(OSError):
    """A named model is neither a folder nor to be had from the Hub; two lines that say what to do."""


def resolve_name(name: Any, organisation: str | None = None) -> Any:
    """What `name` stands for: a folder of that name, else the Hub repository of `NAMED_MODELS`, else `name` itself.

    Args:
        name: folder, Hub id or a key of `NAMED_MODELS`; anything else (None) is handed back.
        organisation: on the Hub; where not given, that of the environment variable `CORA_HUB_ORGANISATION`, else
            "cora-segmentation".
    """
    if not isinstance(name, str | os.PathLike) or os.path.isdir(name) or str(name) not in NAMED_MODELS:
        return name
    organisation = organisation or os.environ.get(ORGANISATION_VARIABLE) or DEFAULT_ORGANISATION
    return f"{organisation}/{NAMED_MODELS[str(name)].repository}"


def not_found(name: str, repository: str, reason: Exception) -> ModelNotFoundError:
    """The error that says which repository was tried and how the model is made without it."""
    model = NAMED_MODELS[name]
    why = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    return ModelNotFoundError(
        f"{name}: no folder of that name here, and the Hub repository {repository} cannot be loaded ({why})\n"
        f"To make it from public weights: python -m modeling_cora.convert_vlm_sam "
        f"--vlm {model.vlm} --sam {model.sam} --output {name}"
    )


class FromNamedModel:
    """For classes with a `from_pretrained` of transformers: it takes the names of `NAMED_MODELS` too."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, organisation: str | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers.

        Args:
            pretrained_model_name_or_path: folder, Hub id, or a name as in `resolve_name`.
            organisation: see `resolve_name`; without effect on folders and full Hub ids.

        Raises:
            ModelNotFoundError: a name that is no folder and that the Hub does not give.
            OSError: anything else that cannot be loaded.
        """
        name, source = pretrained_model_name_or_path, resolve_name(pretrained_model_name_or_path, organisation)
        if source is not name:
            # One request decides; left to themselves, the loaders try a dozen files, and retry each for half a minute.
            try:
                cached_file(source, CONFIG_NAME, **{key: kwargs[key] for key in _WHERE if key in kwargs})
            except OSError as error:
                raise not_found(str(name), source, error) from error
        return super().from_pretrained(source, *args, **kwargs)  # type: ignore[misc]


__all__ = ["NAMED_MODELS", "FromNamedModel", "ModelNotFoundError", "NamedModel", "resolve_name"]
