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
        vlm, sam: Hub ids of the public weights that it is made of.
    """

    vlm: str
    sam: str


# `cora-tiny` is no name of the Hub: it starts from random weights (see presets.py).
NAMED_MODELS = {
    "cora-7b": NamedModel("llava-hf/llava-1.5-7b-hf", "facebook/sam-vit-huge"),
    "cora-13b": NamedModel("llava-hf/llava-1.5-13b-hf", "facebook/sam-vit-huge"),
}


class ModelNotFoundError(OSError):
    """A named model is neither a folder nor to be had from the Hub; two lines that say what to do."""


def resolve_name(name: Any) -> Any:
    """What `name` stands for: a folder of that name; else, for a key of `NAMED_MODELS`, the repository of that name on
    the Hub, of the organisation that the environment variable `CORA_HUB_ORGANISATION` names, else "cora-segmentation";
    else `name` itself.
    """
    if not isinstance(name, str | os.PathLike) or os.path.isdir(name) or str(name) not in NAMED_MODELS:
        return name
    return f"{os.environ.get(ORGANISATION_VARIABLE) or DEFAULT_ORGANISATION}/{name}"


def find_name(name: Any, **kwargs: Any) -> Any:
    """`resolve_name`, where the Hub has that repository.

    One request decides; left to themselves, the loaders try a dozen files, and retry each for half a minute.

    Args:
        kwargs: of `from_pretrained`; those that say where a repository lies are used.

    Raises:
        ModelNotFoundError: a name that is no folder and that the Hub does not give.
    """
    source = resolve_name(name)
    if source is not name:
        try:
            cached_file(source, CONFIG_NAME, **{key: kwargs[key] for key in _WHERE if key in kwargs})
        except OSError as error:
            raise _not_found(str(name), source, error) from error
    return source


def _not_found(name: str, repository: str, reason: Exception) -> ModelNotFoundError:
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
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers.

        Args:
            pretrained_model_name_or_path: folder, Hub id, or a name as in `resolve_name`.

        Raises:
            ModelNotFoundError: a name that is no folder and that the Hub does not give.
            OSError: anything else that cannot be loaded.
        """
        source = find_name(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(source, *args, **kwargs)  # type: ignore[misc]


__all__ = ["NAMED_MODELS", "FromNamedModel", "ModelNotFoundError", "NamedModel", "find_name", "resolve_name"]
