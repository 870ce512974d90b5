"""RefCOCO, RefCOCO+ and RefCOCOg (Yu et al. 2016, Mao et al. 2016): phrases that single out one object of a COCO image.

    ROOT/instances.json            COCO's annotations of the images
    ROOT/refs(unc).p               a list of references; RefCOCOg has refs(umd).p or refs(google).p
    train2014/                     COCO's images, in ROOT, beside it, or as images/mscoco/images/train2014 beside it

The references come as a pickle of Python 2, and a pickle can run any code. This one is read by an unpickler that knows
lists, dicts, texts and numbers, and refuses a file that asks for anything else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .coco import CocoFile, CocoImage, CocoMap, category_classes, classes_with_background, read_coco
from .instructions.free_text import free_text_instruction
from .json_files import excerpt, is_text, is_whole
from .records import PART, DataError, Instruction, Scene, SceneSet, Split

REFERENCES = ("refs(unc).p", "refs(umd).p", "refs(google).p")
"""Named after who drew the splits; the first one that is there is read."""

SPLITS: dict[str, Split] = {"train": "train", "val": "val", "test": "test", "testA": "test", "testB": "test"}
"""testA asks for people, testB for all else."""

IMAGE_FOLDERS = ("train2014", "../train2014", "../images/mscoco/images/train2014", "../images/train2014")


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, texts and numbers; no class or function is ever looked up, so none is called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"asks for {module}.{name}; lists, dicts, texts and numbers would be right")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("asks for a persistent object; lists, dicts, texts and numbers would be right")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle of lists, dicts, texts and numbers.

    Raises:
        DataError: missing, damaged, or a pickle of anything else; nothing of it has been run.
    """
    try:
        with path.open("rb") as file:
            # texts of Python 2 are bytes; one odd letter in a field that nobody reads must not cost the whole file
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    # what a damaged pickle raises is not specified
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a plain pickle ({reason})") from None


@dataclass(frozen=True)
class _Reference:
    ref_id: int
    image: CocoImage
    annotation_id: int
    category_id: int
    split: str
    sentences: tuple[str, ...]


def read_refcoco(root: str | Path) -> tuple[SceneSet, list[Instruction]]:
    """Scenes with COCO's categories as classes, and an instruction of the kind "reasoning" for each reference.

    The first sentence is the query, the others of the same reference rephrase it; the target is one instance, with all
    pixels that COCO's toolbox gives it. `instruction.facts` holds "ref_id" and the "split" by its own name; `testA` and
    `testB` are parts of "test" (see `Scene.facts`). In the label map, pixels of no object are "background" (not asked
    for).

    Images without a reference are left out. Google's split of RefCOCOg is one of references: an image that comes in two
    of its splits becomes two scenes, of one group.

    Args:
        root: one data set's folder.

    Raises:
        DataError: a file is missing or damaged, or a reference names what is not there.
    """
    root = Path(root)
    path = next((root / name for name in REFERENCES if (root / name).exists()), None)
    if path is None:
        raise DataError(f"{root}: has no {' or '.join(REFERENCES)}")
    coco = read_coco(root / "instances.json")
    folder = _image_folder(root)
    classes, background = classes_with_background(category_classes(coco), coco.path)
    class_ids = {category_id: category_id for category_id in coco.categories}
    references = list(_references(path, coco))
    names = _scene_names(references)
    scenes: dict[str, Scene] = {}
    instructions = []
    for reference in references:
        image, split = reference.image, SPLITS[reference.split]
        image_id = names[image.id, reference.split]
        if image_id not in scenes:
            scenes[image_id] = Scene(
                image_id,
                folder / image.file_name,
                label_map=CocoMap(coco.path, image, class_ids, background, "label map"),
                instance_map=CocoMap(coco.path, image, class_ids, background, "instance map"),
                split=split,
                facts=coco.facts(image.id) | ({0: {PART: reference.split}} if reference.split != split else {}),
                group=Path(image.file_name).stem,
            )
        instance_id = image.instance_ids().get(reference.annotation_id)
        if instance_id is None:
            raise DataError(f"{path}: ref {reference.ref_id}: annotation {reference.annotation_id} is a crowd")
        instructions.append(
            free_text_instruction(
                image_id,
                coco.categories[reference.category_id],
                reference.sentences,
                instance_ids=(instance_id,),
                facts={"ref_id": reference.ref_id, "split": reference.split},
            )
        )
    if not scenes:
        raise DataError(f"{path}: holds no reference")
    return SceneSet(classes, tuple(scenes.values())), instructions


def _image_folder(root: Path) -> Path:
    for name in IMAGE_FOLDERS:
        if (folder := root / name).is_dir():
            return folder
    raise DataError(f"{root}: COCO's images are not there; {' or '.join(IMAGE_FOLDERS)} would be right")


def _scene_names(references: list[_Reference]) -> dict[tuple[int, str], str]:
    """(COCO's image id, split) -> image id: the file's stem, with the split behind it in all splits but the first."""
    names: dict[tuple[int, str], str] = {}
    seen: set[int] = set()
    for reference in references:
        key = (reference.image.id, reference.split)
        if key not in names:
            stem = Path(reference.image.file_name).stem
            names[key] = f"{stem}_{key[1]}" if key[0] in seen else stem
            seen.add(key[0])
    return names


def _references(path: Path, coco: CocoFile) -> Iterator[_Reference]:
    content = read_plain_pickle(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: holds {excerpt(content)}; a list of references would be right")
    objects = {i: {o.id: o.category_id for o in image.objects} for i, image in coco.images.items()}
    for index, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: reference {index}: {excerpt(entry)} is not a dict")
        where = f"{path}: ref {entry.get('ref_id', f'number {index}')}"
        for name in ("ref_id", "image_id", "ann_id"):
            if not is_whole(entry.get(name)):
                raise DataError(f"{where}: {name} {excerpt(entry.get(name))} is not a whole number")
        image_id, annotation_id, split = entry["image_id"], entry["ann_id"], entry.get("split")
        if image_id not in coco.images:
            raise DataError(f"{where}: image_id {image_id} is none of the {len(coco.images)} images of {coco.path}")
        if annotation_id not in objects[image_id]:
            raise DataError(f"{where}: ann_id {annotation_id} is no object of image {image_id} in {coco.path}")
        if split not in SPLITS:
            raise DataError(f"{where}: split {excerpt(split)} is none of {', '.join(SPLITS)}")
        yield _Reference(
            entry["ref_id"],
            coco.images[image_id],
            annotation_id,
            objects[image_id][annotation_id],
            split,
            _sentences(where, entry.get("sentences")),
        )


def _sentences(where: str, sentences: Any) -> tuple[str, ...]:
    texts = [s.get("sent") if isinstance(s, dict) else None for s in sentences] if isinstance(sentences, list) else []
    if not all(is_text(text) for text in texts) or not any(text.strip() for text in texts):
        raise DataError(f"{where}: sentences {excerpt(sentences)} is not a list of {{'sent': TEXT}}")
    return tuple(texts)
