"""Checkpoints on disk: their files are mapped, so that a weight takes memory of its own only where it is changed."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from publishing.command_line import OneLineError, first_line


class ConversionError(OneLineError):
    """A checkpoint or an option that cannot be used, told in one line."""


# Which files of a folder hold a model, best first; each with the index that lists its shards.
_LAYOUTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("adapter_model*.safetensors", None),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ("adapter_model*.bin", None),
    ("*.safetensors", None),
    ("*.pth", None),
    ("*.pt", None),
)


def checkpoint_files(path: str | Path) -> list[Path]:
    """The weight files of a folder, or the file itself.

    Raises:
        ConversionError: there is no such path, no weights in it, or a shard that its index names is missing.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConversionError(f"{path}: no such file or folder")
    for pattern, index in _LAYOUTS:
        if index and (path / index).is_file():
            listed = read_json(path / index).get("weight_map", {})
            files = [path / name for name in sorted(set(listed.values()))]
            for file in files:
                if not file.is_file():
                    raise ConversionError(f"{file}: missing, though {index} lists it")
            return files
        if files := sorted(path.glob(pattern)):
            return files
    raise ConversionError(f"{path}: holds no model*.safetensors, pytorch_model*.bin, *.pth or *.pt")


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        ConversionError: no such file, or it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file") from None
    except ValueError as error:
        raise ConversionError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: holds no JSON object")
    return content


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a file or folder by their own names, mapped from the files.

    Raises:
        ConversionError: a file is cut short, holds anything but tensors, or repeats a name of another file; a type of
            fewer than 16 bits, which means nothing without its scales.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint_files(path):
        for name, tensor in (_load_safetensors if file.suffix == ".safetensors" else _load_pickle)(file).items():
            if name in tensors:
                raise ConversionError(f"{file}: {name} is in another file of the checkpoint too")
            if tensor.is_floating_point() and tensor.dtype.itemsize < 2:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ConversionError(f"{file}: {name} is {kind}; 16 bits or more would be right")
            tensors[name] = tensor
    return tensors


def _load_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file}: cannot be read; is it cut short? ({error})") from None


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Nothing but tensors and plain containers is ever unpickled."""
    try:
        # torch before 1.6 wrote no zip files, and only these can be mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises whatever its reader or the unpickler came upon
        if found := re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class|operand)[^.]*", str(error)):
            raise ConversionError(
                f"{file}: holds more than tensors ({found.group(0)}), which would run as code; refused"
            ) from None
        raise ConversionError(f"{file}: cannot be read; is it cut short? ({first_line(error)})") from None
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"{file}: holds no tensors by name")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ConversionError(f"{file}: {name!r} is {type(value).__name__}, not a tensor")
    return {name: value.detach() for name, value in content.items()}


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, max_shard_size: str) -> None:
    """Writes safetensors files as `save_pretrained` names them, with their index where there are several.

    Args:
        folder: exists.
        dtype: of all floating-point tensors.
        max_shard_size: of a file, such as "5GB" or "500MB"; a larger tensor has a file of its own.

    Raises:
        ConversionError: not such a size.
    """
    written: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tqdm(tensors.items(), desc="Reading weights", unit="tensor", delay=2):
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        memory = tensor.untyped_storage()
        # the library writes only one of several tensors in the same memory, and refuses views; nothing here is tied
        alone = memory.data_ptr() not in places and memory.nbytes() == tensor.nbytes
        written[name] = tensor if alone else tensor.clone()
        places.add(memory.data_ptr())
    try:
        save_torch_state_dict(written, folder, max_shard_size=max_shard_size)
    except ValueError as error:
        raise ConversionError(f"--max-shard-size {max_shard_size!r}: {error}") from None
