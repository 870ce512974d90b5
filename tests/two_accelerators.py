"""Two accelerators for machines that have none: tensors on the CPU that say of themselves that they lie elsewhere.

Inside `two_accelerators()` an operation is done on the CPU and refused where accelerators would refuse it: its tensors
lie on several devices. On the CPU may be what real ones take from there, indices and single numbers. No gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FIRST, SECOND = torch.device("meta:0"), torch.device("meta:1")  # the only kind that every build of torch has two of
CPU = torch.device("cpu")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class PlacedTensor(torch.Tensor):
    """`inner`, a tensor on the CPU, with another device."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device | None = None, requires_grad: bool = False) -> Any:
        if isinstance(inner, PlacedTensor):  # accelerate makes parameters so
            inner, device = inner.inner, inner.device
        placed = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device, requires_grad=requires_grad
        )
        placed.inner = inner
        return placed

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner} on {self.device}"

    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def tolist(self) -> list[Any]:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        return _run(operation, arguments, options or {})


class _Placing(TorchDispatchMode):
    """For operations without a `PlacedTensor` among their arguments: those that make or move one."""

    def __torch_dispatch__(self, operation: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        return _run(operation, arguments, options or {})


class _Making(TorchFunctionMode):
    """`torch.tensor` makes no values for a device of this kind, and asks no operation."""

    def __torch_function__(self, function: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function is torch.tensor and options.get("device") is not None:
            return torch.tensor(*arguments, **{**options, "device": CPU}).to(options["device"])
        return function(*arguments, **options)


def _run(operation: Any, arguments: Any, options: dict[str, Any]) -> Any:
    device = _device(operation, arguments, options)
    if "device" in options:
        options = {**options, "device": CPU}
    bare = tree_map(lambda one: one.inner if isinstance(one, PlacedTensor) else one, (arguments, options))
    result = operation(*bare[0], **bare[1])
    if operation._schema.is_mutable:
        return arguments[0]
    if device == CPU:
        return result
    return tree_map(lambda one: PlacedTensor(one, device) if isinstance(one, torch.Tensor) else one, result)


def _device(operation: Any, arguments: Any, options: dict[str, Any]) -> torch.device:
    """Of the result."""
    if options.get("device") is not None:
        return torch.device(options["device"])
    tensors = [value for value in tree_leaves((arguments, options)) if isinstance(value, torch.Tensor)]
    if tensors and operation in COPIES:
        return tensors[0].device
    places = set()
    for position, tensor in enumerate(tensors):
        movable = position > 0 if operation in INDEXING else not tensor.ndim
        if tensor.device != CPU or not movable:
            places.add(tensor.device)
    if len(places) > 1:
        raise RuntimeError(f"{operation}: tensors on {sorted(map(str, places))}")
    return places.pop() if places else CPU


@contextmanager
def two_accelerators() -> Iterator[None]:
    with torch.no_grad(), _Making(), _Placing():
        yield


def place(model: nn.Module, device_map: dict[str, torch.device]) -> None:
    """As accelerate's `dispatch_model` does; `device_map` names parts that together hold all weights."""
    places = {"": next(iter(device_map.values())), **device_map}
    attach_align_device_hook_on_blocks(model.requires_grad_(False), places, dict.fromkeys(device_map, False))
