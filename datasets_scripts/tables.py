"""Scenes and instructions as Parquet tables: a folder that `datasets.load_dataset` reads, streams and pushes.

DIR/README.md                           data set card; its front matter names the two tables
DIR/classes.json                        as for own data, see `own_folder.py`
DIR/scenes/{split}-00000-of-00008.parquet          a row for each image, with its maps
DIR/instructions/{split}-00000-of-00008.parquet    a row for each instruction, joined by `image_id`
DIR/queries.json                        {"car": {"semantic": [...], "attribute": [...]}}: queries for images
                                        without labels
DIR/splits/1_30/{labeled,unlabeled}.txt            which training images are labelled, see `splits.py`

load_dataset(DIR, "scenes", streaming=True), load_dataset(DIR, "instructions", split="train")
"""

from __future__ import annotations

import dataclasses
import glob
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image

from .files import write_bytes
from .own_folder import read_classes
from .records import SPLITS, DataError, ImageSource, Instruction, Scene, SceneSet, open_image

SCENE_FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("string"),
        "image": datasets.Image(),
        "label_map": datasets.Image(),
        "instance_map": datasets.Image(),
        "labelled": datasets.Value("bool"),
        "group": datasets.Value("string"),
        "facts": datasets.Value("string"),
    }
)
"""`label_map`: 8-bit PNG of class ids, 255 = ignored; `instance_map`: 16-bit PNG, planes one below the other; both null
for an unlabelled image. `facts`: JSON, by instance id."""

_IDS = datasets.List(datasets.Value("int32"))
INSTRUCTION_FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("string"),
        "kind": datasets.Value("string"),
        "class_name": datasets.Value("string"),
        "query": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "instance_ids": _IDS,
        "rephrasings": datasets.List(datasets.Value("string")),
        "claim": datasets.Value("string"),
        "anchors": datasets.List(
            {
                "class_name": datasets.Value("string"),
                "instance_ids": _IDS,
                "box": datasets.List(datasets.Value("int32"), length=4),
            }
        ),
        "facts": datasets.Value("string"),
        "source": datasets.Value("string"),
    }
)
"""The fields of `Instruction`; `facts` is JSON."""

CARD_CONFIGS = {
    table: [{"split": split, "path": f"{table}/{split}-*.parquet"} for split in SPLITS]
    for table in ("scenes", "instructions")
}


@dataclass(frozen=True)
class TableImage:
    """An image in a cell of a table (a `StoredImage`); the table is mapped from disk, not held in memory."""

    table: datasets.Dataset
    row: int
    column: str
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self) -> Image.Image:
        return Image.open(io.BytesIO(self.table[self.row][self.column]["bytes"]))


def scene_row(scene_set: SceneSet, scene: Scene) -> dict[str, Any]:
    """A row of the scenes table. Image files are taken over byte by byte; maps are checked and written as PNG.

    Raises:
        DataError: the image or a map does not open, or they do not belong together.
    """
    facts = scene.facts
    row: dict[str, Any] = {
        "image_id": scene.image_id,
        "image": {"bytes": _image_bytes(scene.image), "path": None},
        "label_map": None,
        "instance_map": None,
        "labelled": scene.labelled,
        "group": scene.group,
    }
    if scene.labelled:
        labels, instances = scene_set.read_maps(scene)
        row["label_map"] = {"bytes": _png(labels), "path": None}
        if instances is not None:
            if instances.max(initial=0) > np.iinfo(np.uint16).max:
                raise DataError(f"{scene.instance_map}: instance id {instances.max()} is above 65535")
            row["instance_map"] = {
                "bytes": _png(instances.reshape(-1, labels.shape[1]).astype(np.uint16)),
                "path": None,
            }
            facts = scene_set.facts_of(scene, instances)
    row["facts"] = json.dumps({str(key): value for key, value in facts.items()}, ensure_ascii=False)
    return row


def stored_bytes(source: ImageSource) -> int:
    """How many bytes an image takes where it is stored; 0 where that is no file and no cell of its own."""
    if isinstance(source, TableImage):
        return source.table.data.column(source.column)[source.row]["bytes"].as_buffer().size  # without a copy
    return source.stat().st_size if isinstance(source, Path) and source.is_file() else 0


def _image_bytes(source: ImageSource) -> bytes:
    """As the file has it; pixels that are stored in no file become a PNG."""
    with open_image(source) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{source}: not a readable image ({error})") from None
        if isinstance(source, Path):
            return source.read_bytes()
        if isinstance(source, TableImage):
            return source.table[source.row][source.column]["bytes"]
        content = io.BytesIO()
        image.save(content, "PNG")
    return content.getvalue()


def _png(ids: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(ids).save(content, "PNG", compress_level=6)
    return content.getvalue()


def instruction_row(instruction: Instruction) -> dict[str, Any]:
    """A row of the instructions table."""
    row = dataclasses.asdict(instruction)
    return {**row, "facts": json.dumps(row["facts"], ensure_ascii=False)}


def write_table(path: Path, rows: Sequence[dict[str, Any]], features: datasets.Features) -> None:
    """One Parquet file, whole or not there; the same rows give the same bytes."""
    columns = {name: [row[name] for row in rows] for name in features}
    table = datasets.Dataset.from_dict(columns, features=features)
    content = io.BytesIO()
    table.to_parquet(content)
    write_bytes(path, content.getvalue())


def read_tables(root: str | Path) -> tuple[SceneSet, list[Instruction]]:
    """A folder of tables as scenes and the instructions about them.

    Raises:
        DataError: a table or `classes.json` is missing or damaged, or has other columns.
    """
    root = Path(root)
    scenes = [scene for split in SPLITS for scene in _read_scenes(root, split)]
    classes, _ = read_classes(root / "classes.json")
    return SceneSet(classes, tuple(scenes)), read_instruction_tables(root)


def read_instruction_tables(root: str | Path) -> list[Instruction]:
    """The instructions of a folder of tables, without its scenes.

    Raises:
        DataError: a table is damaged or has other columns.
    """
    instructions = []
    for path in _instruction_tables(root):
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
            instructions += [Instruction.from_dict({**row, "facts": json.loads(row["facts"])}) for row in rows]
        except Exception as error:  # pyarrow raises many kinds for damaged files
            raise DataError(f"{path}: not a table of instructions ({type(error).__name__}: {error})") from None
    return instructions


def _instruction_tables(root: str | Path) -> list[Path]:
    return [path for split in SPLITS for path in sorted((Path(root) / "instructions").glob(f"{split}-*.parquet"))]


def keep_instructions(root: str | Path, keep: Sequence[bool]) -> None:
    """Writes the instructions again without some of them, table by table, each whole.

    Args:
        keep: for each instruction, in the order of `read_tables`.
    """
    datasets.disable_progress_bars()
    rest = iter(keep)
    for path in _instruction_tables(root):
        rows = pyarrow.parquet.read_table(path).to_pylist()  # `datasets` refuses a table without rows
        chosen = [row for row in rows if next(rest)]
        if len(chosen) < len(rows):
            write_table(path, chosen, INSTRUCTION_FEATURES)


def _load(root: Path, split: str) -> datasets.Dataset | None:
    """The scenes of a split; None where there is no row: `datasets` refuses files without any."""
    try:
        paths = sorted((root / "scenes").glob(f"{split}-*.parquet"))
        # `datasets` takes names for patterns
        files = [glob.escape(str(path)) for path in paths if pyarrow.parquet.read_metadata(path).num_rows]
        if not files:
            return None
        loaded = datasets.load_dataset("parquet", data_files=files, split="train")
    except Exception as error:  # pyarrow and datasets raise many kinds for damaged files
        raise DataError(f"{root / 'scenes'}/{split}-*.parquet: not readable ({error.__cause__ or error})") from None
    if missing := set(SCENE_FEATURES) - set(loaded.column_names):
        raise DataError(f"{root / 'scenes'}/{split}-*.parquet: has no column {min(missing)!r}")
    return loaded


def _read_scenes(root: Path, split: str) -> Iterable[Scene]:
    table = _load(root, split)
    if table is None:
        return
    plain = table.select_columns(["image_id", "labelled", "group", "facts"])
    with_instances = table.data.column("instance_map").is_valid().to_pylist()
    for column in ("image", "label_map", "instance_map"):
        table = table.cast_column(column, datasets.Image(decode=False))
    for row, known in enumerate(plain):
        label, instances = (
            TableImage(table, row, column, f"{root / 'scenes'}/{split}: {known['image_id']} ({column})")
            for column in ("label_map", "instance_map")
        )
        yield Scene(
            known["image_id"],
            TableImage(table, row, "image", f"{root / 'scenes'}/{split}: {known['image_id']}"),
            label if known["labelled"] else None,
            instances if with_instances[row] else None,
            split,
            {int(key): value for key, value in json.loads(known["facts"]).items()},
            known["group"],
        )
