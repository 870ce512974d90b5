"""Which training images are labelled: lists in UniMatch's format, read, drawn and written.

`labeled.txt` and `unlabeled.txt` hold a line per image, "IMAGE MASK" (paths relative to the data set), with a tab
between the two where a name has a space. Only the image id is taken from a line, `<city>_<seq>_<frame>` in the
Cityscapes layout, the file's stem elsewhere: the official lists name `_labelTrainIds.png` files that no download
contains.

`val.txt`, which UniMatch has not, names training images to choose settings on: they are the split "val" of whoever
reads with these lists, and the data set's own images of it, which are for reporting, are not read at all. A score on
them must not pass for one on these: each says so in its facts, `facts[0][HELD_OUT_FROM]`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from .bad_items import refuse
from .files import write_text
from .json_files import os_reason
from .records import DataError, Scene

LISTS = ("labeled.txt", "unlabeled.txt")
VAL_LIST = "val.txt"
HELD_OUT_FROM = "held_out_from"
"""The data set's own split of a scene that `val.txt` names, among `Scene.facts[0]`; evaluations record it."""


def image_id_of(path: str | Path) -> str:
    """`leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png` -> `aachen_000000_000019`."""
    return _listed_id(Path(path).stem)


def _listed_id(stem: str) -> str:
    """What lists call the image of this stem, which may have dots of its own."""
    return composed(stem).removesuffix("_leftImg8bit")


def composed(name: str) -> str:
    """The same for names that look the same: macOS writes an accent as a letter of its own."""
    return unicodedata.normalize("NFC", name)


def read_split(folder: str | Path) -> dict[str, list[tuple[str, str]]]:
    """Image ids of `labeled.txt`, `unlabeled.txt` and, where there is one, `val.txt` (keys), each with where it stands
    ("labeled.txt:12").

    Raises:
        DataError: a list is missing, not UTF-8 or names no image, or an image is named twice. Only `unlabeled.txt` may
            be empty.
    """
    lists: dict[str, list[tuple[str, str]]] = {}
    seen: dict[str, str] = {}
    for name in (*LISTS, VAL_LIST):
        path = Path(folder) / name
        if name == VAL_LIST and not path.exists():
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors of Windows begin a file with a mark
        except OSError as error:
            raise DataError(f"{path}: {os_reason(error)}; a split is a folder with {' and '.join(LISTS)}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error})") from None
        lists[name] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            image_id, place = image_id_of(_first_name(line)), f"{path}:{number}"
            if image_id in seen:
                refuse(DataError(f"{place}: {image_id} stands in {seen[image_id]} already"))
                continue
            seen[image_id] = place
            lists[name].append((image_id, place))
    for name, entries in lists.items():
        if not entries and name != "unlabeled.txt":
            raise DataError(f"{Path(folder) / name}: names no image")
    return lists


def _first_name(line: str) -> str:
    return line.split("\t")[0].rstrip() if "\t" in line else line.split()[0]


def split_line(image: str, mask: str) -> str:
    """A line of a list. UniMatch's own code splits at a space, so there is a tab only where a name has white space."""
    return f"{image}\t{mask}" if len(f"{image} {mask}".split()) > 2 else f"{image} {mask}"


def apply_split(scenes: Sequence[Scene], folder: str | Path) -> list[Scene]:
    """The training scenes that the lists name, in their order, unlabelled ones without their maps; then the scenes of
    the other splits, except those of "val" where `val.txt` names training scenes for it.

    Raises:
        DataError: what `read_split` says; a list names an image that is no training image, or one without a label map
            where it needs one; a group of overlapping images is on both sides of `val.txt`.
    """
    lists = read_split(folder)
    # a folder of one's own may have files that are called as Cityscapes' are
    train = {_listed_id(scene.image_id): scene for scene in scenes if scene.split == "train"}
    chosen: list[Scene] = []
    for name, entries in lists.items():
        for image_id, place in entries:
            scene = train.get(image_id)
            if scene is None:
                refuse(DataError(f"{place}: {image_id} is not among the {len(train)} training images"))
            elif name == "unlabeled.txt":
                chosen.append(replace(scene, label_map=None, instance_map=None))
            elif not scene.labelled:
                refuse(DataError(f"{place}: {image_id} has no label map"))
            else:
                chosen.append(_held_out(scene) if name == VAL_LIST else scene)
    if VAL_LIST not in lists:
        return chosen + [scene for scene in scenes if scene.split != "train"]
    trained_on = {scene.group for scene in chosen if scene.group and scene.split == "train"}
    for scene in chosen:
        if scene.split == "val" and scene.group in trained_on:
            raise DataError(
                f"{Path(folder) / VAL_LIST}: {scene.image_id} is of {scene.group}, of which others are trained on; "
                "a whole group on one side would be right"
            )
    return chosen + [scene for scene in scenes if scene.split not in ("train", "val")]


def _held_out(scene: Scene) -> Scene:
    return replace(scene, split="val", facts={**scene.facts, 0: {**scene.facts.get(0, {}), HELD_OUT_FROM: scene.split}})


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
