"""BatchNorm over the images of all processes, also on CPUs, where `torch.nn.SyncBatchNorm` does not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed.nn.functional as collective
from torch import Tensor, distributed, nn


class CrossProcessBatchNorm2d(nn.BatchNorm2d):
    """In training, mean and variance are those of all processes' batches, which must be of equal size."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return super().forward(x)
        kind, x = x.dtype, x.float()  # under autocast x may be of 16 bits, and sums of it would be too
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = collective.all_reduce(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = collective.all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / torch.sqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(kind)


@contextmanager
def kept_statistics(model: nn.Module, kept: bool = True) -> Iterator[None]:
    """BatchNorms normalise by the batch as in any training pass, and their running statistics stay as they are."""
    norms = [m for m in model.modules() if kept and isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, whose BatchNorms see all processes from now on; same parameters, same names.

    Args:
        device: that it is trained on, which may be a CPU beside a GPU.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CrossProcessBatchNorm2d
    return model
