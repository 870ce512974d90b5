"""The paper's method and what it is compared with, as overrides of the three stages.

All methods start from the same weights, see the same labelled images and take the same number of steps; they differ in
which of the three components they have (the paper's table 4):

    cvi   conditional queries with anchors, in stages 2 and 3
    ocpl  a pixel of a pseudo-label counts as much as the answers to rephrased queries agree (eqs. 6 and 7)
    tfca  `[SEG]` embeddings of labelled and pseudo-labelled objects of a class are pulled together (eq. 8)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from datasets_scripts.command_line import UsageError

from .arguments import UnlabelledArguments

COMPONENTS = ("cvi", "ocpl", "tfca")
LISA_CONFIDENCE = 0.95
"""Without `ocpl`, pixels of a pseudo-label that are less confident are ignored; the threshold of UniMatch."""
OF_COMPONENT = {
    "ocpl": {"weight_kind", "weight_temperature", "rephrasings"},
    "tfca": {
        "alignment_weight", "alignment_temperature", "aligned_queries", "bank_size", "bank_balanced", "bank_negatives",
    },
}  # fmt: skip
"""Fields of stage 3 that count only with a component."""


@dataclass(frozen=True)
class Method:
    """Attributes:
    components: of `COMPONENTS`.
    unlabelled: whether stage 3 sees unlabelled images.
    """

    components: frozenset[str]
    unlabelled: bool = True

    def stage2(self) -> dict[str, Any]:
        """Fields of stage 2 that override its recipe."""
        return {} if "cvi" in self.components else {"kinds": ["semantic", "attribute"]}

    def stage3(self) -> dict[str, Any]:
        """Fields of stage 3 that override its recipe."""
        decided: dict[str, Any] = {"alignment": "tfca" in self.components}
        if "cvi" not in self.components:
            decided["kinds"] = ["semantic", "attribute"]
        if not self.unlabelled:
            return {**decided, "sigma": 0, "consistency": "none"}
        if "ocpl" in self.components:
            return {**decided, "pseudo_confidence": 0}
        return {**decided, "consistency": "none"}

    def idle(self) -> frozenset[str]:
        """Fields of stage 3 that change nothing of it: options of images that it does not see, and of components that
        it does not have."""
        if not self.unlabelled:
            return frozenset(field.name for field in fields(UnlabelledArguments))
        return frozenset().union(*(of for name, of in OF_COMPONENT.items() if name not in self.components))


BASELINES = {
    "supervised": Method(frozenset(), unlabelled=False),  # labelled images alone
    "lisa": Method(frozenset()),  # LISA's training, and pseudo-labels cut at a confidence
    "segllm": Method(frozenset({"cvi"}), unlabelled=False),  # anchors, labelled images alone, one round
    "cora": Method(frozenset(COMPONENTS)),
}
"""By name. Any components joined by + are a method too: "cvi+ocpl"."""


def method_named(name: str) -> Method:
    """Raises:
    UsageError: neither a name of `BASELINES` nor components joined by +.
    """
    if name in BASELINES:
        return BASELINES[name]
    parts = name.split("+")
    if unknown := [part for part in parts if part not in COMPONENTS]:
        known = f"{', '.join(BASELINES)}, nor components ({', '.join(COMPONENTS)}) joined by +"
        raise UsageError(f"method {name!r}: {unknown[0]!r} is none of {known}")
    return Method(frozenset(parts))
