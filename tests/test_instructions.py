"""Instructions: deterministic, no class name in attribute queries, and claims that a slow second look confirms."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_scripts import cityscapes, pannuke
from datasets_scripts import scenes as drawn
from datasets_scripts.instructions.attribute import (
    SIDE_MARGIN,
    SIZE_MARGIN,
    attribute_claims,
    attribute_queries,
    names_class,
)
from datasets_scripts.instructions.build import build_instructions, class_queries, read_instructions, write_instructions
from datasets_scripts.instructions.claims import single_out
from datasets_scripts.instructions.objects import MIN_AREA, SceneObjects
from datasets_scripts.instructions.semantic import ANSWERS
from datasets_scripts.records import DataError, Instruction, Scene, SceneSet, SemanticClass

from .conftest import noise_image

CAR = SemanticClass(2, "car", ("the vehicle with four wheels", "the red car"), "vehicle with four wheels")
ROAD = SemanticClass(0, "road")


@pytest.fixture
def scene_set(tmp_path):
    labels = np.zeros((40, 60), np.uint8)
    instances = np.zeros((40, 60), np.uint8)
    for number, (x, y, size) in enumerate([(5, 10, 6), (30, 10, 12), (50, 20, 5)], start=1):
        labels[y : y + size, x : x + size], instances[y : y + size, x : x + size] = 2, number
    for name, array in (("labels", labels), ("instances", instances)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    noise_image(60, 40).save(tmp_path / "image.png")
    facts = {1: {"colour": "red"}, 2: {"colour": "blue"}, 3: {"colour": "red"}}
    scene = Scene("s", tmp_path / "image.png", tmp_path / "labels.png", tmp_path / "instances.png", facts=facts)
    return SceneSet((ROAD, CAR), (scene,))


def test_a_car_most_of_which_is_ignored_is_still_a_car():
    """Two are seen, so that nothing can be called "the car"."""
    labels, instances = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.int32)
    for number, left in ((1, 5), (2, 35)):
        labels[10:30, left : left + 20], instances[10:30, left : left + 20] = CAR.id, number
    both = SceneObjects((ROAD, CAR), labels, instances)
    assert [o.id for o in both.of_class(CAR.id)] == [1, 2]
    labels[10:24, 35:55] = 255
    assert SceneObjects((ROAD, CAR), labels, instances).of_class(CAR.id) == ()
    labels[10:30, 35:55] = 255
    assert [o.id for o in SceneObjects((ROAD, CAR), labels, instances).of_class(CAR.id)] == [1]


def test_every_kind_is_built_and_targets_are_right(scene_set):
    instructions = build_instructions(scene_set, scene_set.scenes)
    labels, instances = scene_set.read_maps(scene_set.scenes[0])
    found = {(i.kind, i.class_name, i.instance_ids) for i in instructions}
    assert found == {
        ("semantic", "road", None),
        ("semantic", "car", None),
        ("semantic", "car", (1,)),  # alone in the left half
        ("attribute", "car", None),
        ("attribute", "car", (1,)),
        ("attribute", "car", (2,)),
        ("attribute", "car", (3,)),
    }
    for instruction in instructions:
        target = instruction.target_mask(2 if instruction.class_name == "car" else 0, labels, instances)
        if instruction.instance_ids:
            assert (target == 1).sum() == (instances == instruction.instance_ids[0]).sum()
    said = {i.claim: (i.instance_ids, i.query) for i in instructions if i.instance_ids}
    for claim, number in (("leftmost", 1), ("rightmost", 3), ("left half", 1), ("largest", 2), ("blue", 2)):
        ids, query = said[claim]
        assert ids == (number,) and ("left" in query) == ("left" in claim) and ("right" in query) == ("right" in claim)


def test_rephrasings_are_many_and_distinct_and_answers_hold_one_seg(scene_set):
    for instruction in build_instructions(scene_set, scene_set.scenes):
        phrasings = [instruction.query, *instruction.rephrasings]
        assert len(phrasings) == len(set(phrasings)) >= 7
        assert instruction.answer.count("[SEG]") == 1
    assert all(answer.count("[SEG]") == 1 for answer in ANSWERS)


def test_no_attribute_query_names_its_class(scene_set):
    for instruction in build_instructions(scene_set, scene_set.scenes, kinds=("attribute",)):
        for text in (instruction.query, *instruction.rephrasings):
            assert "car" not in text.lower().replace(".", " ").split()


@pytest.mark.parametrize("semantic_class", cityscapes.CLASSES, ids=lambda c: c.name)
def test_cityscapes_attributes_are_many_and_name_no_class(semantic_class):
    assert len(attribute_queries(semantic_class)) >= 47
    assert len(class_queries(semantic_class, "semantic")) >= 12
    stems = semantic_class.name.split()
    forms = [f for s in stems for f in (s, s + "s", s + "es", s[:-1] + "ies", "people" if s == "person" else s)]
    words = {w.strip(".,?") for phrase in semantic_class.attributes for w in phrase.lower().split()}
    leaks = words & set(forms)
    # "traffic" alone names no class; "the people" may describe persons, "train" nothing but trains
    assert leaks <= {"traffic", "people"}, leaks
    assert not names_class(semantic_class.noun, semantic_class.name)


@pytest.mark.parametrize("classes", [cityscapes.CLASSES, drawn.CLASSES, pannuke.CLASSES])
def test_descriptions_can_be_followed_by_a_place_and_are_of_one_class(classes):
    """ "the structures people live in in the left half of the picture" """
    described = [(text, c.name) for c in classes for text in {*c.attributes, *([c.noun] if c.noun else [])}]
    assert len({text for text, _ in described}) == len(described)
    prepositions = {"about", "along", "at", "for", "from", "in", "inside", "of", "on", "over", "through", "to", "with"}
    assert not [text for text, _ in described if text.split()[-1] in prepositions]


def test_the_class_name_is_found_in_any_number_but_not_inside_words():
    assert names_class("two red cars", "car") and names_class("the buses", "bus") and names_class("a city", "cities")
    assert not names_class("the dark rim of it", "border of the tumour") and names_class("a border", "border of a lump")
    assert not names_class("the carpet", "car") and not names_class("the sunlight", "traffic light")


@pytest.mark.parametrize(
    ("phrase", "class_name", "named"),
    [
        ("асфальтовая дорога", "Дорога", True),
        ("асфальт", "дорога", False),
        ("灰色的道路", "道路", True),
        ("灰色的地面", "道路", False),
        ("灯が光るLED灯", "led灯", True),
        ("ถนนสีเทา", "ถนน", True),
        ("लाल गाड़ी", "गाड़ी", True),
        ("लाल घोड़ा", "गाड़ी", False),
        ("the red one in c", "cône", False),
        ("the CO\u0302NE of plastic", "cône", True),
        ("die STRASSE", "Straße", True),
    ],
)
def test_the_class_name_is_found_in_every_script(phrase, class_name, named):
    assert names_class(phrase, class_name) is named
    kept = attribute_queries(SemanticClass(0, class_name, (phrase,)))
    assert bool(kept) is not named


def test_same_seed_same_set_and_other_scenes_do_not_matter(scene_set):
    (scene,) = scene_set.scenes
    twin = Scene("t", scene.image, scene.label_map, scene.instance_map, facts=scene.facts)
    alone = build_instructions(scene_set, [scene], seed=5)
    together = build_instructions(scene_set, [twin, scene], seed=5)
    assert alone == [i for i in together if i.image_id == "s"]
    assert [i.query for i in alone] != [i.query for i in build_instructions(scene_set, [scene], seed=6)]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_attributes_hold_for_exactly_one_instance_and_mirror_with_the_image(seed, known):
    rng = np.random.default_rng(seed)
    instances = np.zeros((30, 48), np.int32)
    for number in range(1, int(rng.integers(2, 7))):
        y, x, h, w = rng.integers(0, 24), rng.integers(0, 40), rng.integers(1, 12), rng.integers(1, 16)
        instances[y : y + h, x : x + w] = number
    labels = np.where(instances > 0, 2, 0).astype(np.uint8)
    colours = {n: {"colour": str(rng.choice(["red", "blue"]))} for n in range(1, 8)} if known else {}
    claims = attributes_of(labels, instances, colours)
    pixels = {n: np.argwhere(instances == n) for n in np.unique(instances[instances > 0])}
    for instance_id, attribute in claims:
        own = pixels[instance_id]
        others = [p for n, p in pixels.items() if n != instance_id]
        assert others and len(own) >= MIN_AREA * instances.size
        if attribute == "largest":
            assert all(len(own) >= SIZE_MARGIN * len(p) for p in others)
        elif attribute == "smallest":
            assert all(len(p) >= SIZE_MARGIN * len(own) for p in others)
        elif attribute in ("leftmost", "rightmost"):
            sign = 1 if attribute == "leftmost" else -1
            assert all(sign * (p[:, 1].mean() - own[:, 1].mean()) >= SIDE_MARGIN * 48 - 1e-9 for p in others)
        else:
            holders = [n for n in pixels if colours[n]["colour"] == attribute]
            assert holders == [instance_id]
    swap = {"leftmost": "rightmost", "rightmost": "leftmost"}
    assert {(n, swap.get(attribute, attribute)) for n, attribute in claims} == attributes_of(
        labels[:, ::-1], instances[:, ::-1], colours
    )


def attributes_of(labels, instances, facts):
    """{(instance id, attribute)} of the cars."""
    objects = SceneObjects((ROAD, CAR), labels, instances, facts=facts)
    found = [(c.name, single_out(c, objects.of_class(2), (), objects)) for c in attribute_claims(objects, CAR)]
    return {(picked[0][0].id, name) for name, picked in found if picked}


def test_json_lines_round_trip_and_name_the_bad_line(scene_set, tmp_path):
    instructions = build_instructions(scene_set, scene_set.scenes)
    path = tmp_path / "set" / "instructions.jsonl"
    write_instructions(path, instructions)
    assert read_instructions(path) == instructions
    assert not list(path.parent.glob("*.partial"))
    lines = path.read_text().splitlines()
    for bad in (
        "{",
        json.dumps({"image_id": "x"}),
        "[1]",
        json.dumps(asdict(replace(instructions[1], query="\ud800"))),
    ):
        path.write_text("\n".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(DataError, match=r"instructions\.jsonl:2: ") as error:
            read_instructions(path)
        assert "\n" not in str(error.value)


def test_instance_targets_need_an_instance_map():
    instruction = Instruction("s", "attribute", "car", "the red one", "[SEG].", instance_ids=(1,))
    with pytest.raises(DataError, match="instance map"):
        instruction.target_mask(2, np.zeros((2, 2), np.uint8))
