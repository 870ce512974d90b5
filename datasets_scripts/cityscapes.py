"""The Cityscapes layout (Cityscapes itself, CamVid, and whatever else is stored like it).

    leftImg8bit/{train,val,test}/{city}/{city}_{seq}_{frame}_leftImg8bit.{png,jpg}
    gtFine/{train,val,test}/{city}/{city}_{seq}_{frame}_gtFine_labelIds.png   and, where there are any, _instanceIds.png

Label ids become the 19 train ids (cityscapesscripts, `helpers/labels.py`); every other id is ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .bad_items import listed, refuse
from .records import IGNORE_INDEX, SPLITS, DataError, Scene, SceneSet, SemanticClass
from .splits import image_id_of

TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
"""Label id -> train id."""

HIGHEST_LABEL_ID = 33

# Noun phrases that are true of one of the 19 classes alone and name none.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "road": (
        "the paved surface made for vehicles",
        "the flat asphalt between the kerbs",
        "the surface with painted lane markings",
        "the ground that carries the traffic",
        "the part of the ground where driving is allowed",
        "the grey surface under the wheels of the traffic",
    ),
    "sidewalk": (
        "the raised paved strip meant for pedestrians",
        "the ground beside the kerb where people go on foot",
        "the paved area that separates the traffic from the houses",
        "the pavement along the edge of the street",
        "the surface reserved for those who travel on foot",
        "the strip of paving stones next to the lanes",
    ),
    "building": (
        "the large structures with windows, doors and a roof",
        "the architecture that houses homes and offices",
        "the houses and shops along the street",
        "the tall facades with rows of windows",
        "what has storeys, windows and an entrance",
        "the man-made structures that people can inhabit",
    ),
    "wall": (
        "the free-standing upright slab of brick or concrete without a roof",
        "the solid masonry barrier that encloses a plot",
        "the long closed barrier of stone that belongs to no house",
        "the solid vertical barrier that hides what is behind",
        "the bare masonry that holds back the ground or encloses a yard",
        "the upright stone barrier without windows",
    ),
    "fence": (
        "the light barrier of posts and rails or wire",
        "the barrier whose gaps show what is behind",
        "the railings that mark off a plot",
        "the see-through barrier of bars, mesh or wooden slats",
        "the row of upright bars that keeps people out",
        "the thin barrier made of slats or wire",
    ),
    "pole": (
        "the thin vertical post that carries lamps or signs",
        "the slender upright column of metal or wood",
        "the narrow posts standing beside the street",
        "what holds up the lamps and wires",
        "the long thin upright objects fixed in the ground",
        "the lamp posts and other thin uprights",
    ),
    "traffic light": (
        "the device that shows red, amber and green",
        "the signal that tells drivers when to stop and when to go",
        "the box with coloured lamps over a junction",
        "the lamps that change colour to control a crossing",
        "the electric signal drivers wait for at a junction",
        "what turns green when one may go",
    ),
    "traffic sign": (
        "the plate with a symbol that gives drivers a rule",
        "the flat panel that shows a speed limit or a warning",
        "the metal plates with pictograms for drivers",
        "the board that tells drivers a direction or a rule",
        "the round, triangular or square plate with a printed symbol",
        "what announces a rule by a printed symbol",
    ),
    "vegetation": (
        "the green leaves and branches above the ground",
        "the trees, bushes and hedges",
        "the plants that rise above the ground",
        "the foliage along the street",
        "what grows leaves on branches",
        "the leafy crowns and hedges",
    ),
    "terrain": (
        "the grass, soil or sand that lies flat beside the street",
        "the unpaved flat ground",
        "the lawn and bare earth",
        "the natural ground that is not paved",
        "the horizontal patch of grass or soil",
        "the ground covered with grass or earth",
    ),
    "sky": (
        "the open space above everything",
        "what is blue or cloudy at the top of the picture",
        "where the clouds and the sun are",
        "the bright area above the roofs",
        "the farthest region, above the horizon",
        "the air overhead",
    ),
    "person": (
        "the human being on foot",
        "the pedestrians",
        "whoever is walking or standing on two legs",
        "the people who travel without any vehicle",
        "the men, women and children on foot",
        "those who could step onto the crossing on their own feet",
    ),
    "rider": (
        "the human being sitting on a two-wheeler",
        "whoever is cycling or steering a two-wheeler",
        "the people in the saddle",
        "the human being who pedals or holds handlebars",
        "those who travel in the saddle of a two-wheeler",
        "the ones who balance on two wheels",
    ),
    "car": (
        "the small vehicle with four wheels for a few passengers",
        "the passenger vehicles that a family drives",
        "the low enclosed vehicle with a boot and a bonnet",
        "the private automobiles",
        "the sedans, hatchbacks and estates",
        "the vehicle with four wheels and about five seats",
    ),
    "truck": (
        "the heavy vehicle that carries goods",
        "the lorry with a cargo area behind the cab",
        "the large vehicle built to haul freight",
        "the vehicle with a separate cab and a load bed",
        "the vehicle that delivers goods in bulk",
        "the haulage vehicle",
    ),
    "bus": (
        "the long vehicle that carries many passengers along a fixed route",
        "the public transport vehicle with rows of windows and no rails",
        "the large vehicle that picks people up at stops",
        "the coach with many seats",
        "the passenger vehicle with room for dozens of people on tyres",
        "the long high vehicle with a row of side windows and a route number",
    ),
    "train": (
        "the vehicle that runs on rails",
        "the tram or railway carriages",
        "the linked carriages guided by a track",
        "the vehicle that cannot leave its track",
        "what moves on steel rails",
        "the rail vehicle",
    ),
    "motorcycle": (
        "the two-wheeler with an engine",
        "the motorised two-wheeled vehicle",
        "the scooter or moped",
        "the two-wheeled machine with a fuel tank and an exhaust",
        "the vehicle with two wheels and a motor",
        "the engine-driven two-wheeler",
    ),
    "bicycle": (
        "the two-wheeler moved by pedals",
        "the human-powered vehicle with two wheels",
        "the light two-wheeler without an engine",
        "the vehicle with pedals, a chain and handlebars",
        "the two thin wheels joined by a light frame",
        "what is pedalled",
    ),
}

_NOUNS = {
    "person": "human being on foot",
    "rider": "human being in the saddle",
    "car": "passenger vehicle with four wheels",
    "truck": "lorry",
    "bus": "coach for many passengers",
    "train": "vehicle on rails",
    "motorcycle": "two-wheeler with an engine",
    "bicycle": "two-wheeler with pedals",
}

_GROUND = frozenset({"road", "sidewalk", "terrain"})
# Their masks end where they touch the ground. A rider's ends on the bicycle; poles, signs and lights have no instances
# here, and the lowest point of several says nothing about any one of them.
_STANDS = frozenset({"person", "car", "truck", "bus", "train", "motorcycle", "bicycle"})

CLASSES = tuple(
    SemanticClass(index, name, attributes, _NOUNS.get(name, ""), ground=name in _GROUND, stands=name in _STANDS)
    for index, (name, attributes) in enumerate(_ATTRIBUTES.items())
)


def label_lookup() -> np.ndarray:
    """uint8 (256,): label id -> train id, 255 for ids that are not trained."""
    lookup = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for label_id, train_id in TRAIN_IDS.items():
        lookup[label_id] = train_id
    return lookup


def read_cityscapes(root: str | Path) -> SceneSet:
    """Scenes of a folder in the Cityscapes layout; nothing is decoded.

    Args:
        root: holds `leftImg8bit` and `gtFine`.

    Raises:
        DataError: no images, or two images with one id.
    """
    root = Path(root)
    scenes: list[Scene] = []
    for split in SPLITS:
        scenes += _scenes_of_split(root, split)
    if not scenes:
        raise DataError(f"{root}: no leftImg8bit/SPLIT/CITY/*_leftImg8bit.png or .jpg")
    return SceneSet(
        classes=CLASSES,
        scenes=tuple(scenes),
        label_lookup=label_lookup(),
        unknown_labels=frozenset(range(HIGHEST_LABEL_ID + 1, IGNORE_INDEX)),
        raw_labels=f"Cityscapes id (0..{HIGHEST_LABEL_ID}, -1)",
        instance_lookup="cityscapes",
    )


def _scenes_of_split(root: Path, split: str) -> list[Scene]:
    scenes: dict[str, Scene] = {}
    folder = root / "leftImg8bit" / split
    images = (path for path in folder.glob("*/*_leftImg8bit.*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    for image in listed(images):
        image_id = image_id_of(image)
        if image_id in scenes:
            refuse(DataError(f"{image}: {scenes[image_id].image.name} has the same image id {image_id}"))
            continue
        truth = root / "gtFine" / split / image.parent.name
        # not of the id, in which accents may be spelt in another way than on disk
        stem = image.stem.removesuffix("_leftImg8bit")
        labels, instances = (truth / f"{stem}_gtFine_{kind}.png" for kind in ("labelIds", "instanceIds"))
        scenes[image_id] = Scene(
            image_id,
            image,
            label_map=labels if labels.exists() else None,
            instance_map=instances if instances.exists() else None,
            split=split,
        )
    return list(scenes.values())
