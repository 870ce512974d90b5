"""cIoU and gIoU of binary masks, as reasoning segmentation reports them.

Only two numbers of each mask matter, its intersection and its union, so that is all the metric keeps: every mask is
counted when it is added and its pixels are forgotten. Two protocols circulate and disagree on published numbers:

`lisa`
    `validate()` of LISA: pixels of the reference that are 255 do not count at all; a mask with an empty union is a
    success (IoU 1).
`segzero`
    the evaluation script of Seg-Zero: whatever is not 0 in the reference is target, 255 included; a mask with an empty
    union is skipped; an answer that cannot be parsed is a failure (IoU 0) even where there was nothing to find.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

IGNORE_INDEX = 255
PROTOCOLS = ("lisa", "segzero")

_DESCRIPTION = """\
cIoU (sum of the intersections over sum of the unions) and gIoU (mean of the IoU of every mask), the two measures of
reasoning segmentation. Masks are counted as they are added; no pixel is stored.
"""

_KWARGS_DESCRIPTION = """
Args of the config "masks" (default):
    predictions: masks (H, W) of 0/1 or bool: arrays, torch tensors or nested lists, each of its own size; None for an
        answer that could not be parsed into a mask.
    references: masks (H, W) of the same sizes with values 0, 1 and 255 (ignored).
Args of the config "stats":
    intersections, unions: pixel counts of every mask, see `intersection_and_union`.
Args of `compute`:
    protocol: "lisa" (default) or "segzero".

Returns:
    ciou, giou: floats in [0, 1]; nan where no mask counts.
    count: number of masks in the gIoU. skipped: number of masks left out of it (always 0 with "lisa").

Example:
    >>> ciou = evaluate.load("metrics/ciou")
    >>> ciou.compute(predictions=[[[1, 1], [0, 0]]], references=[[[1, 0], [0, 255]]])
    {'ciou': 0.499999999975, 'giou': 0.49999750001249993, 'count': 1, 'skipped': 0}
"""

_CITATION = """\
@inproceedings{lai2024lisa,
  title     = {{LISA}: Reasoning Segmentation via Large Language Model},
  author    = {Lai, Xin and Tian, Zhuotao and Chen, Yukang and Li, Yanwei and Yuan, Yuhui and Liu, Shu and Jia, Jiaya},
  booktitle = {CVPR},
  year      = {2024}
}
"""


def intersection_and_union(
    prediction: Any, reference: Any, ignore_index: int = IGNORE_INDEX, protocol: str = "lisa"
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of the intersection and of the union of masks.

    Args:
        prediction: (..., H, W), values 0/1 or bool; array, torch tensor or nested list.
        reference: (..., H, W), values 0, 1 and `ignore_index`.
        ignore_index: the value of pixels that "lisa" leaves out and "segzero" takes as target.
        protocol: "lisa" or "segzero".

    Returns:
        intersections and unions, int64, of the leading shape (scalars for one mask).

    Raises:
        ValueError: shapes differ, have fewer than two axes, or hold other values.
    """
    _check_protocol(protocol)
    prediction, reference = _as_array(prediction), _as_array(reference)
    if prediction.ndim < 2 or prediction.shape != reference.shape:
        raise ValueError(
            f"prediction is {_shape(prediction)} and reference {_shape(reference)}; both must be (height, width)"
        )
    predicted = _as_bool(prediction)
    target = reference == 1
    ignored = reference == ignore_index
    if not (target | ignored | (reference == 0)).all():
        raise ValueError(f"reference holds {_strangers(reference, ignore_index)}; it may hold 0, 1 and {ignore_index}")
    if protocol == "segzero":
        target |= ignored
    elif ignored.any():
        predicted = predicted & ~ignored
    axes = (-2, -1)
    intersections = np.count_nonzero(predicted & target, axis=axes)
    unions = np.count_nonzero(predicted | target, axis=axes)
    return np.asarray(intersections, np.int64)[()], np.asarray(unions, np.int64)[()]


def summarize(
    intersections: Iterable[int],
    unions: Iterable[int],
    protocol: str = "lisa",
    failed: Iterable[bool] | None = None,
) -> dict[str, float | int]:
    """Turn the counts of n masks into cIoU and gIoU.

    Args:
        intersections, unions: n pixel counts, from `intersection_and_union` with the same protocol.
        protocol: "lisa" or "segzero".
        failed: n flags of answers that could not be parsed into a mask; "segzero" counts them with IoU 0 where it would
            otherwise skip an empty union. "lisa", whose answers are teacher-forced, sees an empty mask.

    Returns:
        ciou and giou (floats in [0, 1], nan if no mask counts), count (masks in the gIoU), skipped (masks left out).
    """
    _check_protocol(protocol)
    intersection = np.asarray(list(intersections), np.int64)
    union = np.asarray(list(unions), np.int64)
    _check_counts(intersection, union)
    if protocol == "lisa":
        kept = np.ones(len(union), bool)
        iou = np.where(union == 0, 1.0, intersection / (union + 1e-5))
    else:
        kept = union > 0 if failed is None else (union > 0) | np.asarray(list(failed), bool)
        iou = intersection / np.maximum(union, 1)
    count = int(kept.sum())
    return {
        "ciou": float(intersection.sum() / (union.sum() + 1e-10)) if count else float("nan"),
        "giou": float(iou[kept].mean()) if count else float("nan"),
        "count": count,
        "skipped": len(kept) - count,
    }


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; it is one of {', '.join(PROTOCOLS)}")


def _check_counts(intersection: np.ndarray, union: np.ndarray, first: int = 0) -> None:
    """Raise for columns of unequal length and for the first mask whose counts no pair of masks can have."""
    if intersection.ndim != 1 or intersection.shape != union.shape:
        raise ValueError(f"intersections are {_shape(intersection)} and unions {_shape(union)}; one of each per mask")
    impossible = np.flatnonzero((intersection < 0) | (intersection > union))
    if len(impossible):
        k = impossible[0]
        counts = f"intersection {intersection[k]}, union {union[k]}"
        raise ValueError(f"mask {first + k}: {counts}; 0 <= intersection <= union must hold")


def _as_array(mask: Any) -> np.ndarray:
    """An array of the mask, without importing torch: a tensor on a GPU or in a graph says so by its methods."""
    if hasattr(mask, "detach"):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask  # numpy has no bfloat16
    try:
        return np.asarray(mask)
    except ValueError:
        raise ValueError("the rows of a mask differ in length; a mask is a rectangle (height, width)") from None


def _as_bool(prediction: np.ndarray) -> np.ndarray:
    if prediction.dtype == bool:
        return prediction
    predicted = prediction == 1
    if not (predicted | (prediction == 0)).all():
        strangers = _strangers(prediction)
        raise ValueError(f"prediction holds {strangers}; it must be binary, 0/1 or bool (threshold the logits first)")
    return predicted


def _strangers(mask: np.ndarray, ignore_index: int | None = None) -> str:
    """The first few values that a mask should not hold, for a message."""
    allowed = [0, 1] if ignore_index is None else [0, 1, ignore_index]
    values = np.unique(mask[~np.isin(mask, allowed)])
    return ", ".join(str(value) for value in values[:3]) + (", ..." if len(values) > 3 else "")


def _shape(array: np.ndarray) -> str:
    return "(" + ", ".join(map(str, array.shape)) + ")"


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Ciou(evaluate.Metric):
    """The metric as an `evaluate` module; `intersection_and_union` and `summarize` do the same without it.

    The protocol is chosen when the result is computed, but decides how pixels are counted. So each mask is counted
    under every protocol when it is added, and the column of the predictions holds its intersections, the column of
    the references its unions.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "default":
            self.config_name = "masks"
        count = datasets.Value("int64")
        per_protocol = dict.fromkeys(PROTOCOLS, count)
        if self.config_name == "masks":
            columns = {"predictions": {**per_protocol, "failed": datasets.Value("bool")}, "references": per_protocol}
        elif self.config_name == "stats":
            columns = {"intersections": count, "unions": count}
        else:
            raise ValueError(f"config {self.config_name!r} is unknown; it is one of masks, stats")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(columns),
            reference_urls=["https://github.com/dvlab-research/LISA", "https://github.com/dvlab-research/Seg-Zero"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **counts: Any) -> None:
        """Count n masks; nothing is added if one of them is wrong.

        Raises:
            ValueError: naming the mask by its index since the last `compute`.
        """
        if self.config_name == "stats":
            super().add_batch(predictions=predictions, references=references, **self._checked(counts))
            return
        if predictions is None or references is None:
            raise ValueError("predictions and references are needed, one mask of each; None is a failed answer's mask")
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions and {len(references)} references; one of each per mask")
        first = len(self)
        rows = [self._count(first + k, *pair) for k, pair in enumerate(zip(predictions, references, strict=True))]
        intersections, unions = [row[0] for row in rows], [row[1] for row in rows]
        super().add_batch(predictions=intersections, references=unions, **counts)

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Count one mask, see `add_batch`; `evaluate.combine` calls the two inputs by their plural names."""
        if self.config_name == "stats":
            self.add_batch(**{name: [value] for name, value in inputs.items()})
            return
        prediction = inputs.pop("predictions", prediction)
        reference = inputs.pop("references", reference)
        self.add_batch(predictions=[prediction], references=[reference], **inputs)

    def compute(
        self, *, predictions: Any = None, references: Any = None, protocol: str = "lisa", **inputs: Any
    ) -> dict[str, float | int] | None:
        """The result over all masks of all processes; None where `process_id` is not 0."""
        # Before the files are closed and unlocked: a typing error must not cost an evaluation.
        _check_protocol(protocol)
        if self.writer is None and self.num_process > 1 and predictions is None and not inputs:
            # A process without a single mask must still meet the others at their locks.
            super().add_batch(**{name: [] for name in self._feature_names()})
        return super().compute(predictions=predictions, references=references, protocol=protocol, **inputs)

    def _count(self, index: int, prediction: Any, reference: Any) -> tuple[dict[str, Any], dict[str, int]]:
        """The two rows of one mask: its intersections and its unions under every protocol."""
        failed = prediction is None
        try:
            reference = _as_array(reference)
            prediction = np.zeros(reference.shape, bool) if failed else _as_array(prediction)
            if reference.ndim != 2:
                raise ValueError(
                    f"the reference is {_shape(reference)}; a mask is (height, width), one alone goes to add"
                )
            counts = {name: intersection_and_union(prediction, reference, protocol=name) for name in PROTOCOLS}
        except ValueError as error:
            raise ValueError(f"mask {index}: {error}") from None
        intersections = {name: int(intersection) for name, (intersection, _) in counts.items()}
        unions = {name: int(union) for name, (_, union) in counts.items()}
        return {**intersections, "failed": failed}, unions

    def _checked(self, counts: dict[str, Any]) -> dict[str, Any]:
        """The columns of the config "stats" as int64, after a look at their values."""
        columns = {name: _as_array(counts.get(name, [])) for name in self._feature_names()}
        for name, column in columns.items():
            if len(column) and not np.issubdtype(column.dtype, np.integer):
                raise ValueError(f"{name} are {column.dtype}; pixel counts are integers")
        columns = {name: column.astype(np.int64) for name, column in columns.items()}
        _check_counts(columns["intersections"], columns["unions"], first=len(self))
        return {**counts, **columns}

    def _compute(self, *, protocol: str = "lisa", **columns: Sequence[Any]) -> dict[str, float | int]:
        if self.config_name == "stats":
            return summarize(columns["intersections"], columns["unions"], protocol)
        intersections, unions = columns["predictions"], columns["references"]
        return summarize(
            [row[protocol] for row in intersections],
            [row[protocol] for row in unions],
            protocol,
            failed=[row["failed"] for row in intersections],
        )
