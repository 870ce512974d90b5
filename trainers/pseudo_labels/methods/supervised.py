"""The labelled images alone: the first row of every table."""

from __future__ import annotations

from ..losses import Mean
from . import Method, Step


class Supervised(Method):
    def weights(self, progress: float) -> dict[str, float]:
        return {"labelled_loss": 1.0}

    def terms(self, step: Step) -> dict[str, Mean]:
        return self.labelled_terms(step)
