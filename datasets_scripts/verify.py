"""Checks an instruction set against its masks.

    python -m datasets_scripts.verify DIR [--data ROOT] [--split_lists LISTS] [--drop] [--workers N]

DIR holds the tables that `datasets_scripts.build` writes, or `instructions.jsonl`, whose images and maps lie in ROOT
(or in DIR as well). Prints how many instructions are true and why others are not, and writes `DIR/preview.html`. With
`--drop` the set is written again without the false ones, which are added to `DIR/rejected.jsonl` with the reasons. Exit
code 0: all are true (or the others dropped); 1: some are false; 2: bad input.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .build import renew_card
from .command_line import ArgumentParser, UsageError, not_negative, one_line_errors, positive
from .files import write_text
from .folder import READERS, read_data
from .instructions.build import read_instructions, write_instructions
from .instructions.preview import write_preview
from .instructions.statistics import markdown_table, statistics, statistics_table
from .instructions.verify import check_set
from .records import DataError, Instruction, SceneSet
from .tables import keep_instructions

_INSTRUCTIONS, _REJECTED = "instructions.jsonl", "rejected.jsonl"


def read_set(
    directory: Path, data: Path | None = None, split_lists: Path | None = None
) -> tuple[SceneSet, list[Instruction]]:
    """The scenes and instructions of a set, stored as tables or as `instructions.jsonl` beside its data.

    Masses are cut into patches as they are where sets are built; given instances are kept.

    Raises:
        DataError: a file is missing or wrong.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    if READERS["tables"].recognises(directory):
        return read_data(directory, split_lists)
    instructions = read_instructions(directory / _INSTRUCTIONS)
    scene_set, _ = read_data(data or directory, split_lists, components=True)
    return scene_set, instructions


def write_set(directory: Path, instructions: Sequence[Instruction], keep: Sequence[bool]) -> None:
    """The instructions of a set written again without some of them; the counterpart of `read_set`."""
    if READERS["tables"].recognises(directory):
        keep_instructions(directory, keep)
    else:
        write_instructions(directory / _INSTRUCTIONS, [i for i, kept in zip(instructions, keep, strict=True) if kept])


def summary(instructions: Sequence[Instruction], reasons: Sequence[Sequence[str]]) -> str:
    """Two markdown tables: true and false by kind and claim, and the reasons with how many instructions each is of."""
    checked = Counter((i.kind, i.claim) for i in instructions)
    false = Counter((i.kind, i.claim) for i, mine in zip(instructions, reasons, strict=True) if mine)
    rows = [
        (f"{kind} {claim}".strip(), n, n - false[kind, claim], false[kind, claim])
        for (kind, claim), n in sorted(checked.items())
    ]
    rows.append(("all", len(instructions), len(instructions) - false.total(), false.total()))
    text = markdown_table(("kind and claim", "checked", "true", "false"), rows)
    why = Counter(what for mine in reasons for what in {reason.partition(":")[0] for reason in mine})
    return text + ("\n" + markdown_table(("false because", "instructions"), why.most_common()) if why else "")


def drop(directory: Path, instructions: Sequence[Instruction], reasons: Sequence[Sequence[str]]) -> list[Instruction]:
    """Writes the set without its false instructions and adds these to `rejected.jsonl`; gives what is left.

    The rejected ones are written first, so none is lost if the program ends in between.
    """
    path = directory / _REJECTED
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    new = [
        json.dumps({"reasons": list(mine), "instruction": dataclasses.asdict(instruction)}, ensure_ascii=False)
        for instruction, mine in zip(instructions, reasons, strict=True)
        if mine
    ]
    write_text(path, "".join(f"{line}\n" for line in dict.fromkeys([*before, *new])))
    write_set(directory, instructions, [not mine for mine in reasons])
    return [instruction for instruction, mine in zip(instructions, reasons, strict=True) if not mine]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 where instructions are false and are kept."""
    parser = ArgumentParser(
        prog="python -m datasets_scripts.verify", description="Checks an instruction set against its masks."
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help=f"folder with tables or {_INSTRUCTIONS}")
    parser.add_argument("--data", type=Path, help=f"folder of the images and maps of {_INSTRUCTIONS} (default: DIR)")
    parser.add_argument("--split_lists", type=Path, help="folder with labeled.txt and unlabeled.txt")
    parser.add_argument("--drop", action="store_true", help=f"take false instructions out, into {_REJECTED}")
    parser.add_argument("--workers", type=positive, default=1, help="processes (default: 1)")
    parser.add_argument("--shown", type=positive, default=40, help="instructions in preview.html (default: 40)")
    parser.add_argument(
        "--seed", type=not_negative, default=0, help="another seed, other instructions in it (default: 0)"
    )
    given = parser.parse_args(argv)
    if given.drop and given.split_lists:
        raise UsageError("--drop: goes with the whole set, not with --split_lists")
    if given.data and READERS["tables"].recognises(given.directory):
        raise UsageError(f"--data: goes with {_INSTRUCTIONS}; the tables of {given.directory} hold their images")
    scene_set, instructions = read_set(given.directory, given.data, given.split_lists)
    if not instructions:
        raise DataError(f"{given.directory}: holds no instruction")
    reasons: list[list[str]] = check_set(scene_set, instructions, given.workers, progress=True)
    print(summary(instructions, reasons))
    false = sum(map(bool, reasons))
    if given.drop:
        if false:
            instructions, reasons = drop(given.directory, instructions, reasons), []
        if (given.directory / "result.json").exists():
            renew_card(given.directory, scene_set, instructions)  # also after a drop that was killed
    preview = given.directory / "preview.html"
    title = f"Instructions of {given.directory.resolve().name}"
    write_preview(preview, scene_set, instructions, reasons, given.shown, given.seed, title)
    labelled = sum(scene.labelled for scene in scene_set.scenes)
    print(statistics_table(statistics(instructions, labelled)))
    print(f"{f'{false} dropped, see {given.directory / _REJECTED}; ' if given.drop and false else ''}page: {preview}")
    return 1 if false and not given.drop else 0


if __name__ == "__main__":
    sys.exit(main())
