"""The card of a built set: front matter that `load_dataset` follows, numbers, and a grid of pictures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import DatasetCardData

from publishing.markdown import plain_text

from .files import write_bytes, write_text
from .instructions.preview import choose, instruction_picture, read_labels
from .instructions.statistics import statistics, statistics_table
from .records import Instruction, SceneSet, read_image
from .tables import CARD_CONFIGS

SHOWN = 6
"""Pictures in the grid, about as many of each kind; a file is some 60 kB."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def write_card(
    out: Path,
    name: str,
    scene_set: SceneSet,
    instructions: Sequence[Instruction],
    licence: str | None = None,
) -> None:
    """Writes preview/*.jpg and, last, README.md.

    Args:
        scene_set: what the tables hold.
        licence: of the images and labels, for the front matter.

    Raises:
        DataError: an image or a map that is to be shown cannot be read.
    """
    scenes = {scene.image_id: scene for scene in scene_set.scenes}
    pictures, captions = [], []
    shutil.rmtree(out / "preview", ignore_errors=True)  # of a set that had more
    for instruction in _shown([i for i in instructions if i.image_id in scenes]):
        scene = scenes[instruction.image_id]
        maps = read_labels(scene_set, scene)
        path = f"preview/{len(pictures)}.jpg"
        write_bytes(out / path, instruction_picture(scene_set, instruction, read_image(scene.image), *maps))
        pictures.append(f"![{plain_text(instruction.image_id)}]({path})")
        claim = f"{instruction.kind} {instruction.claim}".strip()
        captions.append(f"{plain_text(instruction.query)} ({claim})")
    write_text(out / "README.md", card(name, scene_set, instructions, licence, pictures, captions))


def card(
    name: str,
    scene_set: SceneSet,
    instructions: Sequence[Instruction],
    licence: str | None = None,
    pictures: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> str:
    """The text of the card.

    Args:
        pictures, captions: Markdown, one for each cell of the grid.
    """
    asked = {instruction.image_id for instruction in instructions}
    with_rows = {
        "scenes": {scene.split for scene in scene_set.scenes},
        "instructions": {scene.split for scene in scene_set.scenes if scene.image_id in asked},
    }
    # `load_dataset` refuses a split whose files have no row, as those of instructions about unlabelled images
    configs = [
        {"config_name": table, "data_files": [f for f in files if f["split"] in with_rows[table]]}
        for table, files in CARD_CONFIGS.items()
        if with_rows[table]
    ]
    data = DatasetCardData(
        language="en",
        license=licence,
        pretty_name=f"{name}: scenes and instructions",
        size_categories=next((size for limit, size in SIZES if len(instructions) < limit), "n>1M"),
        task_categories=["image-segmentation"],
        tags=["reasoning-segmentation", "cora"],
        configs=configs,
    )
    labelled = sum(scene.labelled for scene in scene_set.scenes)
    numbers = statistics(instructions, labelled)
    for names in ("kinds", "classes", "claims"):
        # the table itself takes care of its bars
        numbers[names] = {plain_text(name).replace(r"\|", "|"): count for name, count in numbers[names].items()}
    classes = ", ".join(plain_text(c.name) for c in scene_set.classes if c.asked)
    grid = [
        line
        for k in range(0, len(pictures), 2)
        for line in (_row(pictures[k : k + 2]), *(["| --- | --- |"] if k == 0 else []), _row(captions[k : k + 2]))
    ]
    return f"""---
{data.to_yaml()}
---

# {plain_text(name)}: scenes and instructions

{len(scene_set.scenes)} images and {len(instructions)} instructions about {classes}.

`scenes` has a row for each image with its label map (8-bit PNG of class ids, 255 = ignored) and instance
map (16-bit PNG, 0 = none); `instructions` a row for each instruction, joined by `image_id`: which pixels
it is about, the query, its rephrasings, what it claims, and the numbers that make the claim true.

## Preview

Targets are orange; what a query refers to them by is outlined with dashes, blue or yellow.

{chr(10).join(grid) or "There is nothing to show."}

## Statistics

{statistics_table(numbers)}
## Limits

Queries are filled into templates from class names, descriptions and what the masks measure, unless their kind is
`reasoning` (written by people) or their `source` names a language model: people ask in more ways than these. A claim
is as true as the masks. What no class names is never asked for. Images and masks keep the licence of the data set
they come from; no diagnosis, treatment or driving should rest on them.
"""


def _shown(instructions: Sequence[Instruction]) -> list[Instruction]:
    """About as many of each kind, with different claims."""
    kinds = list(dict.fromkeys(i.kind for i in instructions))
    shown = []
    for kind in kinds:
        own = [i for i in instructions if i.kind == kind]
        shown += [own[index] for index in choose(own, -(-SHOWN // len(kinds)), seed=0)]
    return shown[:SHOWN]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join([*cells, ''][:2])} |"


__all__ = ["card", "write_card"]
