"""Checkpoints as they lie on disk: read one tensor at a time, written one tensor at a time.

A model of 30 GB passes through memory in pieces: two or three copies of one tensor (safetensors), or a file (`.bin`,
`.pth`, whose pages stay mapped while the file is in use).
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from publishing.command_line import OneLineError


class ConversionError(OneLineError):
    """A checkpoint or an option that cannot be used, told in one line."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not in memory.

    Attributes:
        shape: as it will be loaded.
        dtype: as it will be loaded.
        load: reads or computes it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> StoredTensor:
        """One that is in memory after all."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)


# safetensors' names of types: its public format, https://github.com/huggingface/safetensors#format
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

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
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: holds no JSON object")
    return content


def read_checkpoint(path: str | Path) -> dict[str, StoredTensor]:
    """All tensors of a file or folder by their own names, in the order of the files.

    Raises:
        ConversionError: a file is cut short, holds anything but tensors, or repeats a name of another file.
    """
    tensors: dict[str, StoredTensor] = {}
    mapped = _MappedFile()
    for file in checkpoint_files(path):
        of_file = _of_safetensors(file) if file.suffix == ".safetensors" else _of_pickle(file, mapped)
        for name, tensor in of_file:
            if name in tensors:
                raise ConversionError(f"{file}: {name} is in another file of the checkpoint too")
            tensors[name] = tensor
    return tensors


def _of_safetensors(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    def loader(name: str) -> Callable[[], torch.Tensor]:
        def load() -> torch.Tensor:
            # opened anew for each tensor: pages that were read belong to the process while the file is open
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name).clone()

        return load

    try:
        with safe_open(file, framework="pt") as opened:
            # in the order of the bytes
            for name in opened.offset_keys():
                piece = opened.get_slice(name)
                if piece.get_dtype() not in _DTYPES:
                    raise ConversionError(f"{file}: {name} is {piece.get_dtype()}, which is not a plain type")
                yield name, StoredTensor(tuple(piece.get_shape()), _DTYPES[piece.get_dtype()], loader(name))
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file}: cannot be read; is it cut short? ({error})") from None


class _MappedFile:
    """The `.bin` or `.pth` file that is in use, and no other."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._content: dict[str, Any] = {}

    def content(self, file: Path) -> dict[str, Any]:
        if self._file != file:
            self._content = {}  # frees the other file's pages first
            self._content, self._file = _load_pickle(file), file
        return self._content


def _load_pickle(file: Path) -> dict[str, Any]:
    """Tensors by name, mapped from the file; nothing but tensors and plain containers is ever unpickled."""
    try:
        # torch before 1.6 wrote no zip files, and only these can be mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises whatever its reader or the unpickler came upon
        if found := re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class|operand)[^.]*", str(error)):
            raise ConversionError(
                f"{file}: holds more than tensors ({found.group(0)}), which would run as code; refused"
            ) from None
        raise ConversionError(f"{file}: cannot be read; is it cut short? ({str(error).splitlines()[0]})") from None
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"{file}: holds no tensors by name")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ConversionError(f"{file}: {name!r} is {type(value).__name__}, not a tensor")
    return dict(content)


def _of_pickle(file: Path, mapped: _MappedFile) -> Iterator[tuple[str, StoredTensor]]:
    def loader(name: str) -> Callable[[], torch.Tensor]:
        return lambda: mapped.content(file)[name]

    for name, tensor in mapped.content(file).items():
        yield name, StoredTensor(tuple(tensor.shape), tensor.dtype, loader(name))


def write_shards(
    folder: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None, max_shard_size: str
) -> None:
    """Writes safetensors files as `save_pretrained` names them, with their index where there are several.

    Args:
        folder: exists.
        dtype: of all floating-point tensors; None keeps each one's own.
        max_shard_size: of a file, such as "5GB" or "500MB"; a larger tensor has a file of its own.

    Raises:
        ConversionError: not such a size.
    """
    try:
        split = split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=lambda tensor: _bytes_of(tensor, dtype),
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConversionError(f"--max-shard-size {max_shard_size!r}: {error}") from None
    for name, keys in tqdm(split.filename_to_tensors.items(), desc="Writing shards", unit="shard"):
        _write_shard(folder / name, {key: tensors[key] for key in keys}, dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _target_dtype(tensor: StoredTensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def _bytes_of(tensor: StoredTensor, dtype: torch.dtype | None) -> int:
    return math.prod(tensor.shape) * _target_dtype(tensor, dtype).itemsize


def _write_shard(file: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None) -> None:
    """The header needs only shapes, so each tensor is freed before the next is read; the library's own writer takes
    them all at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _bytes_of(tensor, dtype)
        kind = _DTYPE_NAMES[_target_dtype(tensor, dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            loaded = tensor.load()
            if tuple(loaded.shape) != tensor.shape:
                raise ConversionError(f"{name}: {tuple(loaded.shape)} when read, {tensor.shape} before")
            loaded = loaded.detach().to(_target_dtype(tensor, dtype)).contiguous()
            out.write(loaded.reshape(-1).view(torch.uint8).numpy().data)
            del loaded  # or it would still be there while the next one is read
