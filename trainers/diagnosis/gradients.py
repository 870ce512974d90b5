"""How hard each term of eq. 9 pulls at the trained parameters: L^l, L_seg^u and L_t^u, each on its own."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import torch
from tqdm.auto import tqdm

from trainers.stage3 import Stage3Trainer

TERMS = ("labelled", "pseudo", "contrast")
"""L^l, L_seg^u and L_t^u; the latter two as they are before sigma."""


class TermTrainer(Stage3Trainer):
    """Stage 3, that keeps the terms of its last loss with their graphs."""

    def record_terms(self, terms: Mapping[str, torch.Tensor]) -> None:
        self.logged.update(terms)

    def terms(self, inputs: dict) -> dict[str, torch.Tensor]:
        """By `TERMS`, the terms of eq. 9 on a batch; without `contrast` where eq. 8 does not count."""
        self.logged: dict[str, torch.Tensor] = {}
        self.compute_loss(self.model, inputs)
        labelled = self.accelerator.unwrap_model(self.model).weighted_sum(self.logged)
        terms = {"labelled": labelled, "pseudo": self.logged["pseudo_bce_loss"] + self.logged["pseudo_dice_loss"]}
        return terms | ({"contrast": self.logged["contrast_loss"]} if "contrast_loss" in self.logged else {})


def gradient_norms(terms: Mapping[str, torch.Tensor], parameters: Sequence[torch.Tensor]) -> dict[str, float]:
    """Of losses that may share a graph, which is free afterwards: the 2-norm of the gradient of each, and the cosine
    of the first one's with each other's (`cosine_NAME`; 0 for a gradient of 0)."""
    norms: dict[str, float] = {}
    first: Sequence[torch.Tensor | None] = ()
    for number, (name, loss) in enumerate(terms.items()):
        last = number == len(terms) - 1
        own = torch.autograd.grad(loss, parameters, retain_graph=not last, allow_unused=True)
        norms[name] = _dot(own, own) ** 0.5
        if not number:
            first = own
        else:
            length = norms[name] * norms[next(iter(terms))]
            norms[f"cosine_{name}"] = _dot(first, own) / length if length else 0.0
    return norms


def _dot(first: Iterable[torch.Tensor | None], second: Iterable[torch.Tensor | None]) -> float:
    found = [(a.float() * b.float()).sum().double() for a, b in zip(first, second, strict=True)
             if a is not None and b is not None]  # fmt: skip
    return float(torch.stack(found).sum()) if found else 0.0


def measure_gradients(trainer: TermTrainer, batches: Iterable[dict], total: int) -> dict:
    """Over batches, with dropout as in training; nothing is updated.

    Returns:
        see `summarise`.
    """
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    trainer.model.train()
    norms = []
    for batch in tqdm(batches, desc="gradients", unit="batch", total=total):
        norms.append(gradient_norms(trainer.terms(trainer._prepare_inputs(batch)), parameters))
    options = trainer.unlabelled
    return summarise(norms, {"pseudo": options.unlabelled_weight, "contrast": options.contrast_weight})


def summarise(norms: Sequence[Mapping[str, float]], sigmas: Mapping[str, float]) -> dict:
    """Means and spreads over batches.

    Args:
        norms: of `gradient_norms` for each batch.
        sigmas: the weight of each unlabelled term.

    Returns:
        `batches`; for each term `mean` and `std` of the norm, `each` batch's; and for the unlabelled ones its `sigma`,
        `weighted` (sigma times the mean), `ratio` (of `weighted` to the mean of L^l), `equal_sigma` (at which that is
        1; None for a gradient of 0) and the mean `cosine` with the gradient of L^l.
    """
    found: dict = {"batches": len(norms)}
    for name in TERMS:
        if name not in norms[0]:
            continue
        each = [of_batch[name] for of_batch in norms]
        term = {"mean": statistics.fmean(each), "std": statistics.stdev(each) if len(each) > 1 else 0.0, "each": each}
        if name != "labelled":
            reference = found["labelled"]["mean"]
            term["sigma"] = sigmas[name]
            term["weighted"] = sigmas[name] * term["mean"]
            term["ratio"] = term["weighted"] / reference if reference else None
            term["equal_sigma"] = reference / term["mean"] if term["mean"] else None
            term["cosine"] = statistics.fmean(of_batch[f"cosine_{name}"] for of_batch in norms)
        found[name] = term
    return found
