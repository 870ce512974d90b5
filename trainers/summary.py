"""What an evaluation's records say: scores in all, by kind of query, by claim and by class, as tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence

from datasets_scripts.instructions.statistics import markdown_table
from datasets_scripts.records import DataError
from metrics.ciou.ciou import summarize

from .baselines import MEAN_MASK, TRIVIAL, WHOLE_CLASS

TOLD_APART = "told apart"
"""Column of `told_apart`."""
CLASS_FOUND = "class found"
"""Column of `class_found`."""
FOUND_SHARE = 0.1
"""Of a class's pixels in an image that an answer must mark to have found the class."""


def told_apart(records: Iterable[dict]) -> float | None:
    """How well parts of a class are told from the rest of it, -1 to 1, whatever is marked beside the class.

    Mean over queries of the share of the part that is found less the share of the class's other pixels that is marked
    (informedness, Youden's J, inside of the class). Whoever answers with the whole class, with another one, with
    nothing or by chance has 0. Queries whose part is all of the class in this image do not count; None where there are
    no others.
    """
    each = [c["found"] / c["part"] - c["marked"] / c["rest"] for c in _counted(records)]
    return sum(each) / len(each) if each else None


def class_found(records: Iterable[dict]) -> float | None:
    """Share of the queries that `told_apart` counts whose answer marks `FOUND_SHARE` of their class's pixels or more.

    Whoever finds a small part alone is not among them, and understood the noun all the same. None where there are no
    such queries.
    """
    each = [c["found"] + c["marked"] >= FOUND_SHARE * (c["part"] + c["rest"]) for c in _counted(records)]
    return sum(each) / len(each) if each else None


def _counted(records: Iterable[dict]) -> list[dict[str, int]]:
    return [c for r in records if (c := r.get("inside")) and c["part"] and c["rest"]]


def summarise_records(records: Sequence[dict], counting: str = "lisa") -> dict:
    """cIoU and gIoU in all, by kind, by claim ("left", "largest"), and by class (semantic queries for all of it), with
    `class_found`, `told_apart` and the cIoU of those trivial answers that all of these queries have beside them.

    Args:
        counting: protocol of `metrics/ciou`.
    """

    def scores(chosen: Iterable[dict]) -> dict:
        chosen = list(chosen)
        columns = ([r[name] for r in chosen] for name in ("intersection", "union"))
        summary = summarize(*columns, counting, [r["failed"] for r in chosen])
        trivial = {}
        for name in TRIVIAL:
            counts = [r["trivial"][name] for r in chosen if name in r["trivial"]]
            if counts and len(counts) == len(chosen):
                trivial[name] = summarize([c[0] for c in counts], [c[1] for c in counts], counting)["ciou"]
        return {
            "ciou": summary["ciou"],
            "giou": summary["giou"],
            "queries": len(chosen),
            CLASS_FOUND: class_found(chosen),
            TOLD_APART: told_apart(chosen),
            "trivial": trivial,
        }

    if not records:
        raise DataError("nothing to evaluate: no labelled image of this split has an instruction")
    semantic = [r for r in records if r["kind"] == "semantic" and r["target"] == "class"]
    classes = sorted({r["class_name"] for r in semantic})
    by_class = {name: scores(r for r in semantic if r["class_name"] == name) for name in classes}
    kinds = sorted({(r["kind"], r["target"]) for r in records})
    claims = sorted({(r["kind"], r["claim"]) for r in records if r["claim"]})
    return {
        "all": scores(records),
        "by_kind": {f"{k}, {t}": scores(r for r in records if (r["kind"], r["target"]) == (k, t)) for k, t in kinds},
        "by_claim": {f"{k}, {c}": scores(r for r in records if (r["kind"], r["claim"]) == (k, c)) for k, c in claims},
        "by_class": by_class,
        "miou": sum(s["ciou"] for s in by_class.values()) / len(by_class) if by_class else None,
    }


COLUMNS = ("queries", "number", "cIoU", "gIoU", CLASS_FOUND, TOLD_APART, *TRIVIAL)


def _rows(summary: dict) -> Iterator[tuple[str, ...]]:
    """Cells of the table, a row each: all queries, kinds, classes from the best to the worst, and their mean."""

    def row(name: str, scores: dict) -> tuple[str, ...]:
        trivial = [scores["trivial"].get(column) for column in TRIVIAL]
        numbers = (scores["ciou"], scores["giou"], scores.get(CLASS_FOUND), scores.get(TOLD_APART), *trivial)
        return name, str(scores["queries"]), *map(_number, numbers)

    yield row("all", summary["all"])
    for name, scores in summary["by_kind"].items():
        yield row(name, scores)
    for name, scores in sorted(summary["by_class"].items(), key=lambda item: -item[1]["ciou"]):
        yield row(f"class: {name}", scores)
    for name, scores in summary["by_claim"].items():
        yield row(f"claim: {name}", scores)
    if summary["miou"] is not None:
        yield "mean over classes", "", _number(summary["miou"]), *[""] * (len(COLUMNS) - 3)


Table = list[tuple[str, ...]]
"""A head and rows."""


def summary_table(summary: dict) -> Table:
    """One evaluation: a head, then a row for all queries, each kind, class and claim."""
    return [COLUMNS, *_rows(summary)]


def stage_table(summaries: Mapping[str, dict]) -> Table:
    """Evaluations of several models on the same queries, a row each: cIoU by kind, and `told_apart` of all."""
    last = [*summaries.values()][-1]
    kinds = list(last["by_kind"])
    trivial = {
        name: [last["by_kind"][kind]["trivial"].get(name) for kind in kinds] for name in (MEAN_MASK, WHOLE_CLASS)
    }
    rows = [
        (
            name,
            *(f"{summary['by_kind'][kind]['ciou']:.3f}" for kind in kinds),
            _number(summary["miou"]),
            _number(summary["all"].get(TOLD_APART)),
        )
        for name, summary in summaries.items()
    ]
    rows += [(name, *map(_number, values), "", "") for name, values in trivial.items()]
    return [("cIoU", *kinds, "mean over classes", TOLD_APART), *rows]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def markdown(table: Table) -> str:
    return markdown_table(table[0], table[1:])


def html_table(table: Table) -> str:
    head, *rows = (tuple(map(html.escape, cells)) for cells in table)
    lines = [f"<tr><td>{'<td>'.join(cells)}" for cells in rows]
    return f"<table><tr><th>{'<th>'.join(head)}{''.join(lines)}</table>"
