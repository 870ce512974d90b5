"""The EMA teacher of UniMatch V2: the average of the student's past weights."""

from __future__ import annotations

import torch
from torch import nn


def ema_ratio(step: int, highest: float = 0.996) -> float:
    """min(1 - 1 / (step + 1), highest): what is kept of the teacher after optimizer step 0, 1, 2, ...

    0 at step 0 (the teacher becomes the student), then the plain average of all students so far until `highest`.
    """
    return min(1 - 1 / (step + 1), highest)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, ratio: float) -> None:
    """teacher = ratio * teacher + (1 - ratio) * student; running statistics too. Counters are copied."""
    theirs = student.state_dict()
    for name, own in teacher.state_dict().items():
        if own.is_floating_point():
            own.mul_(ratio).add_(theirs[name].to(own), alpha=1 - ratio)
        else:
            own.copy_(theirs[name])
