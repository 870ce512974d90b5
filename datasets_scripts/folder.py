"""Every data set that can be read, by name, and how its folder is recognised.

A new one is a module with a function `root -> SceneSet` and a line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .bad_items import refuse
from .cityscapes import read_cityscapes
from .components import with_components
from .consep import ARRAYS, read_consep
from .own_folder import read_own_folder
from .pannuke import FOLDS, fold_files, read_pannuke
from .reasonseg import read_reasonseg
from .records import DataError, Instruction, Scene, SceneSet
from .refcoco import read_refcoco
from .splits import apply_split


def _read_tables(root: Path) -> tuple[SceneSet, list[Instruction]]:
    from .tables import read_tables  # here, since it brings the library `datasets` along

    return read_tables(root)


@dataclass(frozen=True)
class Reader:
    """How one data set is read.

    Attributes:
        layout: what its folder holds, for messages.
        recognises: whether a folder looks like it.
        read: the folder's scenes; with instructions where the data set brings queries.
    """

    layout: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], SceneSet | tuple[SceneSet, list[Instruction]]]


# The first one that recognises a folder reads it.
READERS: dict[str, Reader] = {
    "tables": Reader("scenes/*.parquet (built)", lambda root: any(root.glob("scenes/*.parquet")), _read_tables),
    "cityscapes": Reader("leftImg8bit/", lambda root: (root / "leftImg8bit").is_dir(), read_cityscapes),
    "camvid": Reader("leftImg8bit/", lambda root: (root / "leftImg8bit").is_dir(), read_cityscapes),
    "pannuke": Reader("'Fold 1/' or fold1/", lambda root: any(fold_files(root, fold) for fold in FOLDS), read_pannuke),
    "consep": Reader(ARRAYS, lambda root: (root / ARRAYS).is_file(), read_consep),
    "refcoco": Reader("refs(*).p", lambda root: any(root.glob("refs(*).p")), read_refcoco),
    "folder": Reader("images/ (own data)", lambda root: (root / "images").is_dir(), read_own_folder),
    "reasonseg": Reader(
        "train/*.json, val/*.json or test/*.json", lambda root: any(root.glob("[tv]*/*.json")), read_reasonseg
    ),
}


def read_data(
    root: str | Path,
    split_lists: str | Path | None = None,
    name: str | None = None,
    components: bool = False,
) -> tuple[SceneSet, list[Instruction]]:
    """The scenes of a folder, and the instructions about labelled ones that the data set brings (most bring none).

    Args:
        root: the folder.
        split_lists: folder with `labeled.txt`, `unlabeled.txt` and perhaps `val.txt`; see `splits.py`.
        name: which of `READERS`; None = the first one that recognises the folder.
        components: complete the instances, see `with_components`; built tables are complete.

    Raises:
        DataError: the folder is missing or of no known layout, two scenes have one id, or what its reader says.
    """
    if not str(root):
        raise DataError("data: not given; a folder with images/ masks/ classes.json, or another layout of README.md")
    if name is not None and name not in READERS:
        raise DataError(f"data set {name!r} is not one of {', '.join(READERS)}")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    name = name or next((known for known, reader in READERS.items() if reader.recognises(root)), None)
    if name is None:
        layouts = dict.fromkeys(reader.layout for reader in READERS.values())
        raise DataError(f"{root}: of no known layout: has no {', no '.join(layouts)}")
    result = READERS[name].read(root)
    scene_set, instructions = (result, []) if isinstance(result, SceneSet) else result
    scene_set = replace(scene_set, scenes=tuple(_of_own_ids(scene_set.scenes)))
    if split_lists is not None:
        scene_set = replace(scene_set, scenes=tuple(apply_split(scene_set.scenes, split_lists)))
        labelled = {scene.image_id for scene in scene_set.scenes if scene.labelled}
        instructions = [instruction for instruction in instructions if instruction.image_id in labelled]
    if components and name != "tables":
        scene_set = with_components(scene_set)
    return scene_set, instructions


def _of_own_ids(scenes: Iterable[Scene]) -> Iterator[Scene]:
    """The scenes; refuses one whose id an earlier one has, perhaps in another split: instructions are joined by it."""
    seen: dict[str, Scene] = {}
    for scene in scenes:
        first = seen.setdefault(scene.image_id, scene)
        if first is scene:
            yield scene
        else:
            refuse(
                DataError(f"{scene.image}: {first.image} has the same id {scene.image_id!r}; another would be right")
            )


def read_folder(root: str | Path, split_lists: str | Path | None = None, name: str | None = None) -> SceneSet:
    """The scenes of `read_data`, for training: at least one training image is labelled.

    Raises:
        DataError: as `read_data`; no training image is labelled.
    """
    scene_set, _ = read_data(root, split_lists, name)
    if not scene_set.split("train", labelled=True):
        raise DataError(f"{root}: none of its {len(scene_set.split('train'))} training images is labelled")
    return scene_set
