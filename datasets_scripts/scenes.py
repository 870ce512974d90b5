"""Drawn street scenes: a data set that needs no download, with exact label and instance maps.

    python -m datasets_scripts.scenes --out DIR --labelled 8 --unlabelled 64 --val 40 --seed 0 --height 192 --width 256

Written in the layout of `own_folder.py`; `street` draws. The number in a file name decides the scene (with the seed):
0... labelled, 100000... unlabelled, 200000... val, so the parts never share a scene, and a smaller set is the beginning
of a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .command_line import ArgumentParser, one_line_errors
from .files import claim_folder, write_image, write_json
from .records import DataError, SemanticClass
from .street import draw_street

DRAWING = 1
"""Raised whenever one seed would give another picture than before; folders of another number are not continued."""
PART_SIZE = 100_000
"""Scenes that one part (labelled, unlabelled, val) can have; its numbers start at a multiple of this."""
SMALLEST, LARGEST = 32, 4096  # pixels

COUNTABLE = frozenset(
    {"building", "pole", "traffic sign", "traffic light", "tree", "person", "car", "bicycle", "bus", "truck"}
)

# Each phrase is true of its class alone and does not name it.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "road": (
        "the paved surface made for vehicles",
        "the flat asphalt between the kerbs",
        "the surface with painted lane markings",
        "the part of the ground where driving is allowed",
        "the ground under the wheels of the moving vehicles",
    ),
    "sidewalk": (
        "the paved strip reserved for pedestrians",
        "the ground between the kerb and the houses",
        "the paving stones next to the lanes",
        "the ground beyond the kerb where people go on foot",
        "the paved area between the asphalt and the house fronts",
    ),
    "building": (
        "the structures in which people live or work",
        "the tall facades with rows of windows",
        "the houses and shops along the street",
        "what has storeys, a roof and an entrance",
        "the architecture beside the street",
    ),
    "pole": (
        "the thin vertical post",
        "the slender upright column of metal",
        "what holds up the lamps and the plates",
        "the lamp posts and other thin uprights",
        "the long narrow metal shaft fixed in the ground",
    ),
    "traffic sign": (
        "the plate with a symbol that gives drivers a rule",
        "the metal plate with a pictogram",
        "the board that shows a warning or a prohibition",
        "the round, triangular or square panel on a post",
        "what announces a rule by a printed symbol",
    ),
    "traffic light": (
        "the box with red, amber and green lamps",
        "the device that tells drivers when to stop and when to go",
        "the lamps that change colour at a junction",
        "what turns green when one may go",
        "the electric signal that makes drivers wait",
    ),
    "tree": (
        "the tall plant with a trunk and leaves",
        "the leafy crown and the trunk below it",
        "what grows leaves on branches",
        "the foliage above the ground",
        "the living thing with roots and bark",
    ),
    "sky": (
        "the open space above everything",
        "where the clouds and the sun are",
        "the air above the roofs",
        "the farthest region, above the horizon",
        "the part of the picture where clouds drift",
    ),
    "person": (
        "the living being that walks on two legs",
        "the human being on foot",
        "the pedestrian",
        "the one who wears clothes and shoes",
        "whoever travels without any vehicle",
        "the man, woman or child on foot",
    ),
    "car": (
        "the small vehicle with four wheels",
        "the vehicle that a family drives",
        "the low enclosed vehicle with a boot and a bonnet",
        "the private automobile",
        "the motor vehicle with about five seats",
    ),
    "bicycle": (
        "the two-wheeler moved by pedals",
        "the human-powered vehicle",
        "the vehicle with pedals, a chain and handlebars",
        "the two thin wheels joined by a light frame",
        "the vehicle without an engine",
    ),
    "bus": (
        "the long vehicle that takes many passengers along a fixed route",
        "the public transport vehicle with rows of windows",
        "the large vehicle that picks people up at stops",
        "the coach with many seats",
        "the passenger vehicle with room for dozens of people",
    ),
    "truck": (
        "the heavy vehicle that hauls goods",
        "the lorry with a closed cargo box",
        "the vehicle with a separate cab and a load box",
        "the vehicle that delivers goods in bulk",
        "the large vehicle made to move freight",
    ),
}

_NOUNS = {
    "building": "house",
    "pole": "upright post",
    "traffic sign": "plate with a symbol",
    "traffic light": "electric signal",
    "tree": "plant with a trunk",
    "person": "pedestrian",
    "car": "automobile",
    "bicycle": "two-wheeler with pedals",
    "bus": "coach",
    "truck": "lorry",
}

_GROUND = frozenset({"road", "sidewalk"})
# Drawn down to the ground. Not so signs and signals, which are plates and boxes on poles.
_STANDS = frozenset({"building", "pole", "tree", "person", "car", "bicycle", "bus", "truck"})

CLASSES: tuple[SemanticClass, ...] = tuple(
    SemanticClass(index, name, attributes, _NOUNS.get(name, ""), ground=name in _GROUND, stands=name in _STANDS)
    for index, (name, attributes) in enumerate(_ATTRIBUTES.items())
)
_CLASS_IDS = {semantic_class.name: semantic_class.id for semantic_class in CLASSES}


@dataclass(frozen=True)
class DrawnScene:
    """One scene and its truth.

    Attributes:
        image: RGB, width x height.
        label_map: uint8 (H, W), a class id in every pixel; nothing is ignored, since who owns a pixel is known exactly.
        instance_map: uint16 (H, W), 0 = no instance, else 1..n; of countable classes only.
        facts: of every instance in `instance_map`: its "class", and its "colour" where people would agree on one word.
    """

    image: Image.Image
    label_map: np.ndarray
    instance_map: np.ndarray
    facts: dict[int, dict[str, str]]


def draw_scene(seed: int, size: tuple[int, int] = (192, 256)) -> DrawnScene:
    """The scene of a seed; always the same one, whatever was drawn before.

    Args:
        seed: any whole number >= 0.
        size: (height, width) in pixels, each 32..4096. One seed shows the same street at every size of one format.

    Raises:
        DataError: a seed or size outside of these ranges.
    """
    height, width = size
    _check_size(height, width)
    if seed < 0:
        raise DataError(f"seed {seed}: is negative; 0 or more would be right")
    drawing = draw_street(np.random.Generator(np.random.PCG64(seed)), height, width)
    class_of = np.array([_CLASS_IDS[thing.class_name] for thing in drawing.things], dtype=np.uint8)
    countable = np.array([thing.class_name in COUNTABLE for thing in drawing.things])
    instance_of = np.where(countable, np.cumsum(countable), 0).astype(np.uint16)
    facts = {}
    for thing, instance_id in zip(drawing.things, instance_of.tolist(), strict=True):
        if instance_id:
            colour = {"colour": thing.colour} if thing.colour else {}
            facts[instance_id] = {"class": thing.class_name, **colour}
    return DrawnScene(drawing.image, class_of[drawing.owners], instance_of[drawing.owners], facts)


def write_scenes(
    directory: str | Path,
    labelled: int,
    unlabelled: int,
    val: int,
    seed: int = 0,
    size: tuple[int, int] = (192, 256),
    progress: bool = True,
) -> None:
    """Writes a data set in the own-folder layout; called again after an interruption, it goes on where it stopped.

    Every file is written whole or not at all, and `classes.json`, without which the folder cannot be read, comes last.

    Args:
        directory: new, empty, or written by this function with the same settings (`scenes.json`).
        labelled, unlabelled, val: how many scenes of each part.
        size: (height, width), pixels.
        progress: show a progress bar.

    Raises:
        DataError: a count, seed or size is out of range, or the folder holds something else.
    """
    directory = Path(directory)
    counts = {"labelled": labelled, "unlabelled": unlabelled, "val": val}
    for name, count in counts.items():
        if not (lowest := int(name == "labelled")) <= count <= PART_SIZE:
            raise DataError(f"{name} {count}: {lowest}..{PART_SIZE} would be right")
    if seed < 0:
        raise DataError(f"seed {seed}: is negative; 0 or more would be right")
    _check_size(*size)
    settings = {"drawing": DRAWING, "seed": seed, "height": size[0], "width": size[1], **counts}
    claim_folder(directory, "scenes.json", settings)
    numbers = [part * PART_SIZE + k for part, count in enumerate(counts.values()) for k in range(count)]
    for number in tqdm(numbers, desc="drawing scenes", unit="scene", disable=not progress):
        _write_scene(directory, number, seed, size)
    write_json(directory / "classes.json", {"classes": [_class_entry(c) for c in CLASSES]})


def _check_size(height: int, width: int) -> None:
    for name, value in (("height", height), ("width", width)):
        if not SMALLEST <= value <= LARGEST:
            raise DataError(f"{name} {value}: {SMALLEST}..{LARGEST} pixels would be right")


def _write_scene(directory: Path, number: int, seed: int, size: tuple[int, int]) -> None:
    """The files of one scene; those of a scene that is complete are kept."""
    part, stem = number // PART_SIZE, f"scene_{number:06d}"
    folder = directory / "val" if part == 2 else directory
    image = folder / ("unlabelled" if part == 1 else "images") / f"{stem}.png"
    truth = [folder / "masks" / f"{stem}.png", folder / "instances" / f"{stem}.png", folder / "facts" / f"{stem}.json"]
    files = [image] if part == 1 else [image, *truth]
    if all(file.exists() for file in files):
        return
    scene = draw_scene(seed * 10 * PART_SIZE + number, size)
    write_image(image, scene.image)
    if part != 1:
        write_image(truth[0], Image.fromarray(scene.label_map))
        write_image(truth[1], Image.fromarray(scene.instance_map))
        write_json(truth[2], {str(instance_id): known for instance_id, known in scene.facts.items()})


def _class_entry(semantic_class: SemanticClass) -> dict[str, object]:
    entry: dict[str, object] = {"id": semantic_class.id, "name": semantic_class.name}
    entry["attributes"] = list(semantic_class.attributes)
    if semantic_class.noun:
        entry["noun"] = semantic_class.noun
    # what differs from the usual only
    return entry | {name: True for name in ("ground", "stands") if getattr(semantic_class, name)}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m datasets_scripts.scenes", description="Draws street scenes into a folder.")
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder, or one to be continued")
    parser.add_argument("--labelled", type=int, default=8, help="training scenes with maps (default: 8)")
    parser.add_argument("--unlabelled", type=int, default=64, help="training scenes without (default: 64)")
    parser.add_argument("--val", type=int, default=40, help="validation scenes (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (default: 0)")
    parser.add_argument("--height", type=int, default=192, help="pixels (default: 192)")
    parser.add_argument("--width", type=int, default=256, help="pixels (default: 256)")
    given = parser.parse_args(argv)
    size = (given.height, given.width)
    write_scenes(given.out, given.labelled, given.unlabelled, given.val, given.seed, size)


if __name__ == "__main__":
    main()
