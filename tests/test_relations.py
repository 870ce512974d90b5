"""Relations and attributes: decided twice, mirrored, moved, and on tiny pictures where a person sees the answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets_scripts import scenes as drawn
from datasets_scripts.components import patches, with_components
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.attribute import attribute_claims
from datasets_scripts.instructions.claims import Verdict, single_out
from datasets_scripts.instructions.conditional import conditional_claims
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.instructions.places import PLACES
from datasets_scripts.instructions.relations import RELATIONS
from datasets_scripts.records import SemanticClass

from .conftest import SHARED
from .slow_claims import SlowScene

ROAD = SemanticClass(0, "road", ground=True)
SKY = SemanticClass(1, "sky")
TREE = SemanticClass(2, "tree")
CAR = SemanticClass(3, "car", noun="vehicle", stands=True)
PERSON = SemanticClass(4, "person", noun="human being", stands=True)
LAMP = SemanticClass(5, "lamp", noun="light")
VOID = SemanticClass(6, "background", asked=False)
CLASSES = (ROAD, SKY, TREE, CAR, PERSON, LAMP, VOID)
STANDS = {"person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"}
OPPOSITES = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}


def random_scene(seed: int, height: int = 30, width: int = 44):
    """Labels, planes of instances and pixels: sky over road, trees in patches, countable things that may overlap."""
    rng = np.random.default_rng(seed)
    labels = np.full((height, width), ROAD.id, np.uint8)
    labels[: rng.integers(5, 16)] = SKY.id
    for _ in range(rng.integers(0, 4)):
        labels[_some(rng, labels.shape)] = rng.choice([TREE.id, TREE.id, VOID.id, 255])
    planes = np.zeros((2, height, width), np.int32)
    pixels = rng.integers(90, 150, (height, width, 3), dtype=np.uint8)
    for number in range(1, int(rng.integers(3, 9))):
        place = _some(rng, labels.shape)
        class_id = rng.choice([CAR.id, CAR.id, PERSON.id, LAMP.id])
        plane = int((planes[0][place] > 0).any())
        planes[1][place] = 0
        planes[plane][place] = number
        labels[place] = class_id
        pixels[place] = [(210, 20, 20), (20, 40, 200), (240, 240, 240), (5, 5, 5)][rng.integers(4)]
    last = 20
    for semantic_class in (ROAD, SKY, TREE):
        found, count = patches((labels == semantic_class.id) & (planes == 0).all(0))
        planes[0][found > 0] = found[found > 0] + last
        last += count
    return labels, planes, pixels


def _some(rng, shape) -> tuple[slice, slice]:
    top, left = rng.integers(0, shape[0] - 3), rng.integers(0, shape[1] - 3)
    return slice(top, top + rng.integers(2, 13)), slice(left, left + rng.integers(2, 16))


def fast(classes, labels, instances, pixels=None, facts=None):
    """(attributes, conditional) of the code under test, as `SlowScene` has them."""
    scene = SceneObjects(classes, labels, instances, (lambda: pixels) if pixels is not None else None, facts)
    attributes = {}
    for kind in (c for c in classes if c.noun):
        for claim in attribute_claims(scene, kind):
            if picked := single_out(claim, scene.of_class(kind.id), (), scene):
                attributes[kind.name, claim.name] = picked[0][0].id
    conditional = {
        (
            scene.classes[found.targets[0].class_id].name,
            found.relation.name,
            frozenset(t.id for t in found.targets),
            frozenset((scene.classes[n.object.class_id].name, n.object.id) for n in found.anchors),
        )
        for found in conditional_claims(scene)
    }
    return attributes, conditional


def fast_places(labels, instances):
    scene = SceneObjects(CLASSES, labels, instances)
    found = {
        (kind.name, claim.name): single_out(claim, scene.of_class(kind.id), (), scene)
        for kind in CLASSES
        for claim in PLACES.values()
    }
    return {key: frozenset(t.id for t in picked[0]) for key, picked in found.items() if picked}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_places_are_decided_alike_and_mirror(seed):
    labels, planes, _ = random_scene(seed)
    found = fast_places(labels, planes)
    scene = SlowScene(CLASSES, labels, planes)
    assert found == {(c.name, n): ids for c in CLASSES for n, ids in scene.places(c).items()}
    swap = {"left": "right", "right": "left"}
    mirrored = {(c, " ".join(swap.get(word, word) for word in n.split())): ids for (c, n), ids in found.items()}
    assert fast_places(labels[:, ::-1], planes[:, :, ::-1]) == mirrored
    for side, other in (("left half", "right half"), ("upper half", "lower half")):
        for kind in CLASSES:
            assert not found.get((kind.name, side), frozenset()) & found.get((kind.name, other), frozenset())


def test_every_place_occurs():
    assert {n for seed in range(60) for _, n in fast_places(*random_scene(seed)[:2])} == set(PLACES)


def slow(classes, labels, instances, pixels=None, facts=None):
    scene = SlowScene(classes, labels, instances, pixels, facts)
    attributes = {(c.name, n): i for c in classes if c.noun for n, i in scene.attributes(c).items()}
    return attributes, scene.conditional()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_random_scenes_are_decided_alike(seed, known):
    labels, planes, pixels = random_scene(seed)
    facts = {n: {"colour": "red" if (seed + n) % 3 else "blue"} for n in range(1, 8)} if known else None
    assert fast(CLASSES, labels, planes, pixels, facts) == slow(CLASSES, labels, planes, pixels, facts)


def test_random_scenes_show_every_claim():
    """Otherwise their agreement would say nothing of the claims that are never true."""
    seen: set[str] = set()
    for seed in range(120):
        attributes, conditional = fast(CLASSES, *random_scene(seed))
        seen |= {name for _, name in attributes} | {name for _, name, _, _ in conditional}
    assert seen >= {*RELATIONS, "largest", "smallest", "leftmost", "rightmost", "closest", "red", "white", "black"}


@pytest.mark.parametrize("seed", range(2))
def test_drawn_scenes_are_decided_alike(seed):
    grounds = {"road", "sidewalk"}
    classes = tuple(replace(c, stands=c.name in STANDS, ground=c.name in grounds) for c in drawn.CLASSES)
    scene = drawn.draw_scene(seed, (64, 96))
    maps = scene.label_map, scene.instance_map.astype(np.int32)
    found = fast(classes, *maps, facts=scene.facts)
    assert found == slow(classes, *maps, facts=scene.facts) and all(found)


def assert_camvid_agrees(count: int | None, step: int):
    """Every `step`-th row and column, which keeps the shapes and saves the slow second look its time."""
    root = SHARED / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("no CamVid photos on this machine")
    scene_set = read_folder(root, root / "splits" / "camvid" / "1_30")
    grounds = {"road", "sidewalk", "terrain"}
    classes = tuple(replace(c, stands=c.name in STANDS, ground=c.name in grounds) for c in scene_set.classes)
    scene_set = with_components(replace(scene_set, classes=classes))
    relations = 0
    for scene in scene_set.split("train", labelled=True)[:count]:
        labels, instances = (ids[::step, ::step] for ids in scene_set.read_maps(scene))
        found = fast(scene_set.classes, labels, instances)
        assert found == slow(scene_set.classes, labels, instances), scene.image_id
        relations += len(found[1])
    assert relations


def test_camvid_photos_are_decided_alike():
    assert_camvid_agrees(3, step=4)


@pytest.mark.slow
def test_all_labelled_camvid_photos_are_decided_alike():
    assert_camvid_agrees(None, step=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
@example(434)  # a car exactly on the margin
def test_a_mirrored_image_swaps_left_and_right_and_nothing_else(seed):
    labels, planes, pixels = random_scene(seed)
    attributes, conditional = fast(CLASSES, labels, planes, pixels)
    mirrored = fast(CLASSES, labels[:, ::-1], planes[:, :, ::-1], pixels[:, ::-1])
    assert mirrored[0] == {(c, OPPOSITES.get(n, n)): i for (c, n), i in attributes.items()}
    # an anchor that is leftmost here is rightmost there, and named by either; the set of anchors stays
    assert mirrored[1] == {(c, OPPOSITES.get(n, n), ids, anchors) for c, n, ids, anchors in conditional}


def verdicts(name, scene, kind, anchor, number=None):
    """Decision for every candidate of a class, by id."""
    rivals = [o for o in scene.of_class(kind.id) if o is not anchor]
    decide = RELATIONS[name].decide
    return {o.id: decide(o, [r for r in rivals if r is not o], [anchor], scene)[0] for o in rivals}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_opposites_are_never_both_true(seed):
    labels, planes, _ = random_scene(seed)
    scene = SceneObjects(CLASSES, labels, planes)
    anchors = [o for c in (CAR, PERSON, LAMP) for o in scene.of_class(c.id)]
    anchors += [w for c in (SKY, TREE) if (w := scene.whole(c.id))]
    pairs = [("left", "right"), ("higher", "lower"), ("above", "below"), ("front", "behind"), ("larger", "smaller")]
    for anchor in anchors:
        for kind in (CAR, PERSON, TREE):
            for one, other in (*pairs, ("nearest", "farthest")):
                first, second = (verdicts(name, scene, kind, anchor) for name in (one, other))
                assert not [i for i in first if first[i] is second[i] is Verdict.TRUE], (one, other)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(-6, 6), st.integers(-6, 6))
def test_target_and_anchor_moved_together_keep_their_relation(seed, down, aside):
    rng = np.random.default_rng(seed)

    def scene(down, aside, boxes):
        planes = np.zeros((60, 80), np.int32)
        for number, (top, left, height, width) in enumerate(boxes, start=1):
            planes[top + down : top + down + height, left + aside : left + aside + width] = number
        labels = np.select([planes == 1, planes > 1], [CAR.id, PERSON.id], ROAD.id).astype(np.uint8)
        return SceneObjects(CLASSES, labels, planes)

    boxes = [(rng.integers(8, 40), rng.integers(8, 55), rng.integers(3, 12), rng.integers(3, 16)) for _ in range(2)]
    results = []
    for moved in (scene(0, 0, boxes), scene(down, aside, boxes)):
        target, anchor = moved.instance(CAR.id, 1), moved.instance(PERSON.id, 2)
        results.append(target and anchor and {n: c.decide(target, [], [anchor], moved)[0] for n, c in RELATIONS.items()
                                              if c.anchors == 1})  # fmt: skip
    assert results[0] == results[1]


# -- tiny pictures -----------------------------------------------------------------------------------------------------

LETTERS = {"r": ROAD, "s": SKY, "t": TREE, **dict.fromkeys("CDE", CAR), **dict.fromkeys("PQ", PERSON), "L": LAMP}


def picture(*rows: str, scale: int = 4) -> SceneObjects:
    """One letter for `scale` x `scale` pixels; a capital is an instance, a mass is cut into its patches."""
    letters = np.array([list(row) for row in rows]).repeat(scale, 0).repeat(scale, 1)
    labels = np.zeros(letters.shape, np.uint8)
    instances = np.zeros(letters.shape, np.int32)
    for letter, kind in LETTERS.items():
        labels[letters == letter] = kind.id
        instances[letters == letter] = ord(letter) if letter.isupper() else 0
    last = 200
    for kind in (ROAD, SKY, TREE):
        found, count = patches(labels == kind.id)
        instances[found > 0] = found[found > 0] + last
        last += count
    return SceneObjects(CLASSES, labels, instances)


def picks(name: str, scene: SceneObjects, target: SemanticClass, *anchors: str) -> str | None:
    """The letters (or the ids of patches) that "the TARGET left of the ANCHOR" picks; None where it is not clear."""
    places = [scene.whole(LETTERS[n].id) if n.islower() else scene.instance(LETTERS[n].id, ord(n)) for n in anchors]
    picked = single_out(RELATIONS[name], scene.of_class(target.id), places, scene)
    return picked and "".join(chr(t.id) for t in picked[0])


ROW = picture("ssssssssssss", "rrrrrrrrrrrr", "rCCrrPPrrDDr", "rCCrrPPrrDDr", "rrrrrrrrrrrr")
DEEP = picture(
    "ssssssssssss", "rrrrrrrrrrrr", "rrrrCCCrrrrr", "rrrrCCCrrrrr", "rrrrrrrrrrrr", "rrrrPPPrrrrr", "rrrrPPPrrrrr",
    "rrrrrrrrrrrr", "rrrrDDDrrrrr", "rrrrDDDrrrrr", "rrrrrrrrrrrr",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "scene", "anchor", "expected"),
    [
        ("left", ROW, "P", "C"),
        ("right", ROW, "P", "D"),
        ("left", ROW, "s", None),  # a mass as wide as the picture has no left
        ("nearest", ROW, "P", None),  # one is as near as the other
        ("higher", ROW, "P", None),  # side by side
        ("front", ROW, "P", None),
        ("touching", ROW, "P", None),  # both stand apart
        ("higher", DEEP, "P", "C"),
        ("lower", DEEP, "P", "D"),
        ("behind", DEEP, "P", "C"),
        ("front", DEEP, "P", "D"),
        ("above", DEEP, "P", None),  # on the ground that is depth
        ("below", DEEP, "P", None),
        ("left", DEEP, "P", None),
    ],
)
def test_two_cars_and_a_person(name, scene, anchor, expected):
    assert picks(name, scene, CAR, anchor) == expected


def test_lamps_hang_above_what_stands():
    scene = picture("ssssssssss", "ssLLssssss", "ssssssssss", "ssCCssssss", "rrrrrrrrrr")
    assert picks("above", scene, LAMP, "C") == "L" and picks("below", scene, CAR, "L") == "C"
    aside = picture("ssssssssss", "ssssssLLss", "ssssssssss", "ssCCssssss", "rrrrrrrrrr")
    assert picks("above", aside, LAMP, "C") is None and picks("higher", aside, LAMP, "C") == "L"


def test_a_second_car_to_the_left_takes_the_claim_away_and_one_half_behind_makes_it_unclear():
    assert picks("left", picture("rrrrrrrrrrrr", "rCCrDDrrPPrr", "rrrrrrrrrrrr"), CAR, "P") is None
    reaching = picture("rrrrrrrrrrrrr", "rCCrrrrPPPPrr", "rCCrrDDDPPPrr", "rrrrrrrrrrrrr")
    assert picks("left", reaching, CAR, "P") is None
    assert picks("left", picture("rrrrrrrrrrrr", "rCCrrrrrPPrr", "rrrrrrrrrrrr"), CAR, "P") == "C"


def test_nearest_and_farthest_need_a_clear_difference():
    clear = picture("rrrrrrrrrrrrrr", "rCCrrrrrrPPrDD", "rrrrrrrrrrrrrr")
    assert (picks("nearest", clear, CAR, "P"), picks("farthest", clear, CAR, "P")) == ("D", "C")
    close = picture("rrrrrrrrrrrrrrrr", "CCrrrrrPPrrrrDDr", "rrrrrrrrrrrrrrrr")
    assert picks("nearest", close, CAR, "P") is picks("farthest", close, CAR, "P") is None


def test_larger_and_smaller_than_the_person():
    scene = picture("rrrrrrrrrrrr", "rCCCCrPPrDrr", "rCCCCrPPrrrr", "rrrrrrrrrrrr")
    assert (picks("larger", scene, CAR, "P"), picks("smaller", scene, CAR, "P")) == ("C", "D")
    alike = picture("rrrrrrrrrrrr", "rCCCCrPPrDDr", "rCCCCrPPrDDD", "rrrrrrrrrrrr")
    assert picks("larger", alike, CAR, "P") is None  # D is a little larger too


def test_between_two_people():
    scene = picture("rrrrrrrrrrrrr", "PPrrrCCrrrrQQ", "PPrrrCCrrrrQQ", "rrrrrrrrrrrrr", "rrrrDDrrrrrrr")
    assert picks("between", picture("rrrrrrrrrrrrr", "PPrrrCCrrrrQQ", "rrrrrrrrrrrrr"), CAR, "P", "Q") == "C"
    assert picks("between", scene, CAR, "P", "Q") is None  # D is almost between them
    beyond = picture("rrrrrrrrrrrrr", "CCrPPrDDrrrQQ", "rrrrrrrrrrrrr")
    assert picks("between", beyond, CAR, "P", "Q") == "D"


def test_what_stands_in_front_of_an_anchor_is_not_between_it_and_another():
    """A person wholly in front of a bus, whose centroid lies between those of the bus and a car; and turned."""
    for turned in (False, True):
        labels, instances = np.zeros((100, 300), np.uint8), np.zeros((100, 300), np.int32)
        for number, (kind, top, bottom, left, right) in enumerate(
            [(LAMP, 20, 70, 20, 181), (CAR, 45, 70, 240, 281), (PERSON, 40, 80, 135, 151), (PERSON, 40, 80, 200, 216)],
            start=1,
        ):
            labels[top:bottom, left:right], instances[top:bottom, left:right] = kind.id, number
        if turned:
            labels, instances = labels.T, instances.T
        scene, second = SceneObjects(CLASSES, labels, instances), SlowScene(CLASSES, labels, instances)
        bus, car = scene.instance(LAMP.id, 1), scene.instance(CAR.id, 2)
        for anchors in ([bus, car], [car, bus]):
            decided = [RELATIONS["between"].decide(o, [], anchors, scene)[0] for o in scene.of_class(PERSON.id)]
            assert decided == [Verdict.UNCLEAR, Verdict.TRUE]
        one, two, *people = second.things
        assert [second.between(t, one, two) for t in people] == ["unclear", "yes"]


def test_what_another_reaches_beyond_is_not_the_leftmost():
    """A short car whose centre is far to the left, and a long one that begins farther to the left still."""
    labels, instances = np.zeros((60, 200), np.uint8), np.zeros((60, 200), np.int32)
    for number, (left, right) in enumerate([(20, 40), (10, 120), (150, 170)], start=1):
        labels[20 * number - 20 : 20 * number, left:right] = CAR.id
        instances[20 * number - 20 : 20 * number, left:right] = number
    for name, flip in (("leftmost", 1), ("rightmost", -1)):
        maps = labels[:, ::flip], instances[:, ::flip]
        assert ("car", name) not in fast(CLASSES, *maps)[0]
        assert name not in SlowScene(CLASSES, *maps).attributes(CAR)
        moved = tuple(np.where(maps[1] == 2, 0, each) for each in maps)
        assert fast(CLASSES, *moved)[0]["car", name] == SlowScene(CLASSES, *moved).attributes(CAR)[name] == 1


def test_inside_is_all_around_and_not_at_the_border():
    scene = picture("ssssssssss", "ssttttttss", "ssttLLttss", "ssttttttss", "rrrrrrrrrr")
    assert picks("inside", scene, LAMP, "t") == "L"
    assert picks("inside", picture("ttLLtttt", "tttttttt", "ssssssss", "rrrrrrrr"), LAMP, "t") is None


def test_touching():
    scene = picture("rrrrrrrrrrrr", "rCCPPrrrrDDr", "rCCPPrrrrDDr", "rrrrrrrrrrrr")
    assert picks("touching", scene, CAR, "P") == "C"
    # D touches with a corner alone: neither touching nor clearly apart
    corner = picture(
        "rrrrrrrrrrrr", "rCCPPrrrrrrr", "rCCPPrrrrrrr", "rrrrrDDDDDrr", "rrrrrDDDDDrr", "rrrrrrrrrrrr", scale=8
    )
    assert picks("touching", corner, CAR, "P") is None


def test_patches_of_a_mass():
    """All trees on the left are "the tree left of the person"; but not where one reaches to both sides."""
    scene = picture("ssssssssssss", "ttsttsPPsttt", "ttsttsPPsttt", "rrrrrrrrrrrr")
    labels = {t.id: t.centre[1] for t in scene.of_class(TREE.id)}
    picked = single_out(RELATIONS["left"], scene.of_class(TREE.id), [scene.instance(PERSON.id, ord("P"))], scene)
    assert picked is not None and sorted(labels[t.id] for t in picked[0]) == sorted(labels.values())[:2]
    around = picture("ttttttttttts", "ttsssssssstt", "ttsssPPsssst", "rrrrrrrrrrrr")
    assert picks("left", around, TREE, "P") is None
    everything = picture("ssssssssssss", "ttsttsPPssss", "ttsttsPPssss", "rrrrrrrrrrrr")
    assert picks("left", everything, TREE, "P") is None  # "the tree" says as much


def test_houses_on_both_sides_are_no_anchor_and_a_pole_cuts_nothing():
    both = picture("ssssssssssss", "ttssssssCstt", "rrrrrrrrrrrr")
    assert not both.one_piece(TREE.id) and both.one_piece(SKY.id)
    labels = np.zeros((60, 80), bool)
    labels[10:30, 10:60] = True
    labels[:, 30] = False
    assert patches(labels)[1] == 1 and patches(np.pad(labels[:, :31], ((0, 0), (0, 40))))[1] == 1
    labels[:, 28:33] = False
    assert patches(labels)[1] == 2
