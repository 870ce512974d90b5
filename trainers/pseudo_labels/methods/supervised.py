"""The labelled images alone: the first row of every table."""

from __future__ import annotations

from ..losses import Mean
from . import Method, Step


class Supervised(Method):
    def weights(self, progress: float) -> dict[str, float]:
        return {"labelled_loss": 1.0}

    def terms(self, step: Step) -> dict[str, Mean]:
        (logits,) = step.model([self.clean(step.batch["labelled"])])
        return {"labelled_loss": self.labelled_loss(logits, step)}
