"""Whether `[SEG]` embeddings lie by class: those of labelled objects (the bank of eq. 8), and how far those of
pseudo-labelled ones lie with their class. Every similarity is a cosine, as in eq. 8."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from trainers.stage3 import Stage3Trainer


@dataclass(frozen=True)
class Embeddings:
    """Attributes:
    tokens: fp32 (n, C), on the CPU.
    classes: (n,), ids.
    """

    tokens: torch.Tensor
    classes: torch.Tensor


@torch.no_grad()
def ask_embeddings(trainer: Stage3Trainer, batches: Iterable[dict], total: int) -> tuple[Embeddings, Embeddings]:
    """Of the labelled and of the pseudo-labelled objects of batches that eq. 8 takes, by the trainer's model, without
    dropout."""
    tokens: tuple[list, list] = ([], [])
    classes: tuple[list, list] = ([], [])
    trainer.model.eval()
    for batch in tqdm(batches, desc="embeddings", unit="batch", total=total):
        inputs = trainer._prepare_inputs(batch)
        embeddings = trainer.model(**inputs["inputs"]).seg_embeddings.float().cpu()
        labelled = trainer.counts(inputs)["masks"]
        aligned = trainer.aligned(inputs).cpu()
        for place, part in enumerate((slice(0, labelled), slice(labelled, None))):
            tokens[place].append(embeddings[part][aligned[part]])
            classes[place].append(inputs["classes"][part].cpu()[aligned[part]])
    first, second = (Embeddings(torch.cat(t), torch.cat(c)) for t, c in zip(tokens, classes, strict=True))
    return first, second


def separation(embeddings: Embeddings) -> dict:
    """How far classes lie apart.

    Returns:
        `classes` (ids) and `counts` of each; `cosine`, the mean over pairs of each two classes (a token is no pair with
        itself); `within` and `between`, the means of its diagonal and of the rest, each class counting the same;
        `silhouette`, the mean over tokens, by cosine distance, in [-1, 1], 0 for the only token of a class;
        `nearest_mean`, the share of tokens that are nearest to their own class's mean, which is taken without them,
        and the same for each class. None for what too few tokens leave open.
    """
    if not len(embeddings.tokens):
        open_questions = dict.fromkeys(("within", "between", "silhouette", "nearest_mean"))
        return {"classes": [], "counts": [], "cosine": [], "nearest_mean_by_class": [], **open_questions}
    x = normalize(embeddings.tokens.double(), dim=1)
    ids, own = embeddings.classes.unique(return_inverse=True)
    sums = torch.zeros(len(ids), x.shape[1], dtype=x.dtype).index_add_(0, own, x)
    counts = own.bincount(minlength=len(ids)).double()
    pairs = counts[:, None] * counts - torch.diag(counts)
    # one token is no pair, and its sum less 1 is 0 only about
    cosine = ((sums @ sums.T - torch.diag(counts)) / pairs).masked_fill(pairs == 0, torch.nan)
    others = cosine[~torch.eye(len(ids), dtype=torch.bool)]
    scored = counts[own] > 1
    nearest = _nearest_without_oneself(x, own, sums) == own
    return {
        "classes": ids.tolist(),
        "counts": counts.long().tolist(),
        "cosine": [[None if v != v else v for v in row] for row in cosine.tolist()],
        "within": _mean(cosine.diagonal()[counts > 1]),
        "between": _mean(others),
        "silhouette": _mean(_silhouettes(x, own, sums, counts)) if len(ids) > 1 else None,
        "nearest_mean": _mean(nearest[scored]) if len(ids) > 1 else None,
        "nearest_mean_by_class": [_mean(nearest[scored & (own == k)]) for k in range(len(ids))],
    }


def _silhouettes(x: torch.Tensor, own: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    similar = x @ sums.T
    self_pair = torch.nn.functional.one_hot(own, len(sums)).double()
    distance = 1 - (similar - self_pair) / (counts - self_pair).clamp(min=1)
    inside = distance.gather(1, own[:, None])[:, 0]
    outside = distance.masked_fill(self_pair.bool(), torch.inf).min(1).values
    values = (outside - inside) / torch.maximum(inside, outside).clamp(min=1e-12)
    return torch.where(counts[own] > 1, values, 0.0)


def _nearest_without_oneself(x: torch.Tensor, own: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    similar = x @ normalize(sums, dim=1).T
    alone = (x * normalize(sums[own] - x, dim=1)).sum(1)
    return similar.scatter(1, own[:, None], alone[:, None]).argmax(1)


def agreement(pseudo: Embeddings, labelled: Embeddings) -> dict:
    """How far embeddings of pseudo-labelled objects lie with the labelled ones of their class.

    Returns:
        `nearest_mean`, the share that is nearest to its class's labelled mean, of those `tokens` whose class has
        labelled ones; `own` and `other`, the mean cosine to labelled tokens of the class and of the others.
    """
    ids, of_labelled = labelled.classes.unique(return_inverse=True)
    keep = torch.isin(pseudo.classes, ids)
    x, own = normalize(pseudo.tokens[keep].double(), dim=1), torch.searchsorted(ids, pseudo.classes[keep])
    y = normalize(labelled.tokens.double(), dim=1)
    sums = torch.zeros(len(ids), y.shape[1], dtype=y.dtype).index_add_(0, of_labelled, y)
    similar, same = x @ y.T, own[:, None] == of_labelled
    nearest = (x @ normalize(sums, dim=1).T).argmax(1) == own if len(x) else own == -1
    return {
        "tokens": len(x),
        "nearest_mean": _mean(nearest),
        "own": _mean(similar[same]),
        "other": _mean(similar[~same]),
    }


def projected(*groups: Embeddings) -> tuple[list[list[list[float]]], float]:
    """Each group's tokens on the plane that holds most of the first one's variance (principal components of tokens of
    length 1): lists of [x, y, class id]; and the share of that variance on the plane."""
    x = normalize(groups[0].tokens.double(), dim=1)
    mean = x.mean(0)
    _, sizes, directions = torch.linalg.svd(x - mean, full_matrices=False)
    plane = directions[:2].T
    # a sign of a principal component is nobody's choice; ours is that its largest entry is positive
    plane = plane * plane.gather(0, plane.abs().argmax(0, keepdim=True)).sign()
    points = []
    for group in groups:
        on_plane = (normalize(group.tokens.double(), dim=1) - mean) @ plane
        points.append([[round(v, 4) for v in xy] + [c] for xy, c in zip(on_plane.tolist(), group.classes.tolist(),
                                                                        strict=True)])  # fmt: skip
    total = (sizes**2).sum()
    return points, float((sizes[:2] ** 2).sum() / total) if total else 0.0


def _mean(values: torch.Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
