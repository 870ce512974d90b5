"""What an instruction set consists of, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from ..records import Instruction


def statistics(instructions: Sequence[Instruction], labelled_images: int | None = None) -> dict[str, Any]:
    """Counts of a set; every mean over nothing is 0.

    Args:
        labelled_images: how many there are, also those of which nothing is asked; without it, those that are named.

    Returns:
        instructions, queries (rephrasings included), images: counts.
        kinds, classes, claims: counts by name, the most frequent first; claims as "conditional left".
        query_words: min, median, mean and max number of words of all queries.
        rephrasings: min, mean and max for one instruction.
        per_image, per_image_without_conditional: mean number of instructions for a labelled image.
        semantic_pairs: how many pairs of image and class are asked about, which is the size of a set of one semantic
            query for each class that an image shows.
        ratio, ratio_without_conditional: of the instructions to these.
    """
    images = len({i.image_id for i in instructions}) if labelled_images is None else labelled_images
    pairs = len({(i.image_id, i.class_name) for i in instructions})
    plain = sum(i.kind != "conditional" for i in instructions)
    rephrasings = [len(i.rephrasings) for i in instructions]
    words = [len(query.split()) for i in instructions for query in (i.query, *i.rephrasings)]
    return {
        "instructions": len(instructions),
        "queries": len(words),
        "images": images,
        "kinds": _counts(i.kind for i in instructions),
        "classes": _counts(i.class_name for i in instructions),
        "claims": _counts(f"{i.kind} {i.claim}" for i in instructions if i.claim),
        "query_words": {**_range(words), "median": float(median(words)) if words else 0.0},
        "rephrasings": _range(rephrasings),
        "per_image": _over(len(instructions), images),
        "per_image_without_conditional": _over(plain, images),
        "semantic_pairs": pairs,
        "ratio": _over(len(instructions), pairs),
        "ratio_without_conditional": _over(plain, pairs),
    }


def statistics_table(found: dict[str, Any]) -> str:
    """The dict of `statistics` as a markdown table, a line for each number."""
    words, rephrasings = found["query_words"], found["rephrasings"]
    rows: list[tuple[str, Any]] = [
        ("instructions", found["instructions"]),
        ("queries, rephrasings included", found["queries"]),
        ("labelled images", found["images"]),
        ("instructions per labelled image", f"{found['per_image']:.1f}"),
        ("the same without conditional ones", f"{found['per_image_without_conditional']:.1f}"),
        ("one semantic query per image and class would be", found["semantic_pairs"]),
        ("ratio to these", f"{found['ratio']:.2f}"),
        ("the same without conditional ones", f"{found['ratio_without_conditional']:.2f}"),
        ("words of a query", f"{words['min']} to {words['max']}, median {words['median']:g}, mean {words['mean']:.1f}"),
        (
            "rephrasings of an instruction",
            f"{rephrasings['min']} to {rephrasings['max']}, mean {rephrasings['mean']:.1f}",
        ),
    ]
    for title, name in (("kind", "kinds"), ("class", "classes"), ("claim", "claims")):
        rows += [(f"{title}: {value}", count) for value, count in found[name].items()]
    return markdown_table(("", "number"), rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns padded to one width, so that it reads well as plain text too; the first is text, the others numbers."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w if k == 0 else "-" * (w - 1) + ":") for k, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])]) + "\n"


def _counts(names: Iterable[str]) -> dict[str, int]:
    """The most frequent first, then by name."""
    return dict(sorted(Counter(names).items(), key=lambda entry: (-entry[1], entry[0])))


def _range(numbers: Sequence[int]) -> dict[str, float]:
    return {"min": min(numbers, default=0), "mean": fmean(numbers) if numbers else 0.0, "max": max(numbers, default=0)}


def _over(number: int, whole: int) -> float:
    return number / whole if whole else 0.0
