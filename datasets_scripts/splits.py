"""Which training images are labelled: lists in UniMatch's format, read, drawn and written.

`labeled.txt` and `unlabeled.txt` hold a line per image, "IMAGE MASK" (paths relative to the data set). Only the image
id is taken from a line, `<city>_<seq>_<frame>` in the Cityscapes layout, the file's stem elsewhere: the official lists
name `_labelTrainIds.png` files that no download contains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from .bad_items import refuse
from .files import write_text
from .records import DataError

LISTS = ("labeled.txt", "unlabeled.txt")


def image_id_of(path: str | Path) -> str:
    """`leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png` -> `aachen_000000_000019`."""
    return Path(path).stem.removesuffix("_leftImg8bit")


def read_split(folder: str | Path) -> dict[str, list[tuple[str, str]]]:
    """Image ids of `labeled.txt` and `unlabeled.txt` (keys), each with where it stands ("labeled.txt:12").

    Raises:
        DataError: a list is missing, names an image twice, or both name the same one; no image is labelled.
    """
    lists: dict[str, list[tuple[str, str]]] = {}
    seen: dict[str, str] = {}
    for name in LISTS:
        path = Path(folder) / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; a split has {' and '.join(LISTS)}") from None
        lists[name] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            image_id, place = image_id_of(line.split()[0]), f"{path}:{number}"
            if image_id in seen:
                refuse(DataError(f"{place}: {image_id} stands in {seen[image_id]} already"))
                continue
            seen[image_id] = place
            lists[name].append((image_id, place))
    if not lists["labeled.txt"]:
        raise DataError(f"{Path(folder) / 'labeled.txt'}: names no image")
    return lists


def draw_split(
    classes: Mapping[str, Iterable[int | str]],
    fraction: float | Fraction,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Draws the labelled images so that they show every class that any image shows.

    Images that bring the most missing classes come first (ties by lot), the rest are drawn at random.

    Args:
        classes: image id -> the classes it shows.
        fraction: of the images, in (0, 1]; `ceil(fraction * n)` are drawn, more only for the sake of classes or groups.
        seed: the same seed and images give the same split.
        groups: image id -> group; images of one group (overlapping tiles, say) are drawn together. Without it every
            image is drawn alone.

    Returns:
        labelled and unlabelled image ids, sorted.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"fraction: {fraction} is outside of (0, 1]")
    members: dict[str, list[str]] = {}
    for image_id in sorted(classes):
        members.setdefault(groups[image_id] if groups else image_id, []).append(image_id)
    shows = {group: frozenset(c for i in ids for c in classes[i]) for group, ids in members.items()}
    order = sorted(shows)
    np.random.default_rng(seed).shuffle(order)
    missing = frozenset().union(*shows.values()) if shows else frozenset()
    drawn: list[str] = []
    while missing:
        best = max(order, key=lambda group: len(shows[group] & missing))
        drawn.append(best)
        order.remove(best)
        missing -= shows[best]
    wanted = math.ceil(fraction * len(classes))
    while order and sum(len(members[group]) for group in drawn) < wanted:
        drawn.append(order.pop(0))
    labelled = {image_id for group in drawn for image_id in members[group]}
    return sorted(labelled), sorted(set(classes) - labelled)


def write_split(folder: str | Path, labelled: Sequence[str], unlabelled: Sequence[str]) -> None:
    """Writes both lists, each whole or not at all; `labelled` and `unlabelled` are lines as described above."""
    for name, lines in zip(LISTS, (labelled, unlabelled), strict=True):
        write_text(Path(folder) / name, "".join(f"{line}\n" for line in lines))
