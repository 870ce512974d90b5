"""The checker of instruction sets: every corruption is found with its reason, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_scripts import scenes as drawn
from datasets_scripts import verify as program
from datasets_scripts.components import with_components
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.attribute import ATTRIBUTES
from datasets_scripts.instructions.build import KINDS, build_instructions, read_instructions, write_instructions
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.instructions.verify import check_instruction, check_scene, contradictions, folded, mentions
from datasets_scripts.records import Anchor, DataError, Scene, SceneSet

from .test_relations import CAR, CLASSES, LAMP, PERSON, ROAD, random_scene

NAMED = replace(CAR, attributes=("the vehicle with four wheels",), noun="vehicle with four wheels")
SET = (ROAD, NAMED, PERSON, LAMP, *[c for c in CLASSES if c.name not in ("road", "car", "person", "lamp")])


def write_scene(folder, labels, planes, pixels, image_id="street", facts=None) -> Scene:
    maps = {"labels": labels, "instances": planes.reshape(-1, labels.shape[1]).astype(np.uint16), "image": pixels}
    for name, array in maps.items():
        Image.fromarray(array).save(folder / f"{image_id}_{name}.png")
    image, label_map, instance_map = (folder / f"{image_id}_{name}.png" for name in ("image", "labels", "instances"))
    return Scene(image_id, image, label_map, instance_map, facts=facts or {})


@pytest.fixture
def street(tmp_path) -> SceneSet:
    """Three cars, the middle one behind a person, and a lamp."""
    labels, instances = np.zeros((60, 90), np.uint8), np.zeros((60, 90), np.int32)
    things = [(CAR, 30, 5, 10, 16), (CAR, 26, 40, 12, 22), (CAR, 32, 75, 6, 8), (PERSON, 44, 45, 12, 6)]
    for number, (kind, top, left, height, width) in enumerate([*things, (LAMP, 2, 70, 6, 6)], start=1):
        place = slice(top, top + height), slice(left, left + width)
        labels[place], instances[place] = kind.id, number
    pixels = np.full((60, 90, 3), 120, np.uint8)
    facts = {1: {"colour": "red"}, 2: {"colour": "blue"}, 3: {"colour": "blue"}}
    return SceneSet(SET, (write_scene(tmp_path, labels, instances, pixels, facts=facts),))


def check(street, instruction) -> list[str]:
    (scene,) = street.scenes
    return check_instruction(street, scene, SceneObjects.of_scene(street, scene), instruction)


def made(street, **wanted):
    """The first built instruction with these fields."""
    for instruction in build_instructions(street, street.scenes, KINDS):
        if all(getattr(instruction, name) == value for name, value in wanted.items()):
            return instruction
    raise AssertionError(f"no instruction with {wanted}")


def test_a_built_set_is_true(street):
    instructions = build_instructions(street, street.scenes, KINDS)
    assert {i.claim for i in instructions} > {"left", "front", "largest", "red", "nearest", "between", ""}
    assert check_scene(street, street.scenes[0], instructions) == [[] for _ in instructions]


def random_set(folder, seed, known) -> tuple[SceneSet, list]:
    """One random scene, with known colours or without, and every instruction that is built for it."""
    labels, planes, pixels = random_scene(seed)
    facts = {n: {"colour": "red" if n % 3 else "blue"} for n in range(1, 8)} if known else None
    scene_set = with_components(SceneSet(SET, (write_scene(folder, labels, planes, pixels, facts=facts),)))
    return scene_set, build_instructions(scene_set, scene_set.scenes, KINDS, seed)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_no_false_alarm_on_random_scenes(tmp_path_factory, seed, known):
    scene_set, instructions = random_set(tmp_path_factory.mktemp("scene"), seed, known)
    assert not any(check_scene(scene_set, scene_set.scenes[0], instructions))


def test_no_false_alarm_on_drawn_scenes(tmp_path):
    drawn.write_scenes(tmp_path, 2, 0, 0, size=(96, 128), progress=False)
    scene_set = with_components(read_folder(tmp_path))
    instructions = build_instructions(scene_set, scene_set.scenes, KINDS)
    assert len({i.claim for i in instructions}) > 8
    assert not any(map(any, program.check_set(scene_set, instructions)))


def leaking(text: str) -> str:
    return text + " It is a car."


# (fields of a true instruction, what is done to it, the reason)
CORRUPTIONS = {
    "unknown class": (dict(kind="semantic"), lambda i: replace(i, class_name="lorry"), "class is unknown"),
    "background": (dict(kind="semantic"), lambda i: replace(i, class_name="background"), "class is not asked for"),
    "absent class": (dict(kind="semantic"), lambda i: replace(i, class_name="tree"), "target is not in the image"),
    "two [SEG]": (dict(claim="left"), lambda i: replace(i, answer="[SEG] or [SEG]."), "answer does not hold"),
    "no [SEG]": (dict(claim="left"), lambda i: replace(i, answer="It is here."), "answer does not hold"),
    "image in answer": (dict(claim="left"), lambda i: replace(i, answer="<image> [SEG]"), "answer holds <image>"),
    "[seg] in query": (dict(claim="left"), lambda i: replace(i, query=i.query + " [SEG]"), "query holds a special"),
    "<image> in rephrasing": (
        dict(claim="left"),
        lambda i: replace(i, rephrasings=(*i.rephrasings, "<image> " + i.query)),
        "query holds a special",
    ),
    "empty query": (dict(claim="left"), lambda i: replace(i, query=" ?!"), "query is empty"),
    "few": (dict(claim="left"), lambda i: replace(i, rephrasings=i.rephrasings[:5]), "queries are too few"),
    "twice": (
        dict(claim="left"),
        lambda i: replace(i, rephrasings=(*i.rephrasings, i.query.upper() + " ...")),
        "query is there twice",
    ),
    "leak": (dict(claim="red"), lambda i: replace(i, query=leaking(i.query)), "attribute query names its class"),
    "leak in a rephrasing": (
        dict(claim="red"),
        lambda i: replace(i, rephrasings=(*i.rephrasings, leaking(i.query))),
        "attribute query names its class",
    ),
    "class-level leak": (
        dict(kind="attribute", claim="", class_name="car"),
        lambda i: replace(i, query="the cars"),
        "attribute query names its class",
    ),
    "another instance": (dict(claim="largest"), lambda i: replace(i, instance_ids=(1,)), "claim is false"),
    "instance of another class": (
        dict(claim="largest"),
        lambda i: replace(i, instance_ids=(4,)),
        "target is no instance of its class",
    ),
    "unknown instance": (dict(claim="largest"), lambda i: replace(i, instance_ids=(99,)), "target is no instance"),
    "no instance": (dict(claim="largest"), lambda i: replace(i, instance_ids=()), "target's instances are none"),
    "two instances": (dict(claim="red"), lambda i: replace(i, instance_ids=(1, 2)), "target is more than one object"),
    "semantic of an instance": (
        dict(kind="semantic", class_name="car"),
        lambda i: replace(i, instance_ids=(1,)),
        "target is not the whole class",
    ),
    "claim of a class": (dict(claim="left"), lambda i: replace(i, instance_ids=None), "claim is made of a whole class"),
    "another claim": (dict(claim="largest"), lambda i: replace(i, claim="smallest"), "claim is false"),
    "opposite relation": (dict(claim="left"), lambda i: replace(i, claim="right"), "claim is false"),
    "unknown claim": (dict(claim="left"), lambda i: replace(i, claim="opposite"), "claim is unknown"),
    "empty claim": (dict(claim="left"), lambda i: replace(i, claim=""), "claim is empty"),
    "rivals": (dict(claim="red"), lambda i: replace(i, claim="blue", instance_ids=(2,)), "claim is not false of a"),
    "one anchor": (
        dict(claim="between"),
        lambda i: replace(i, anchors=i.anchors[:1], facts={**i.facts, "anchors": i.facts["anchors"][:1]}),
        "anchors are not as many",
    ),
    "no anchor": (dict(claim="left"), lambda i: replace(i, anchors=()), "anchors are not as many"),
    "anchors of an attribute": (
        dict(claim="left"),
        lambda i: replace(i, kind="attribute"),
        "anchors are of no use",
    ),
    "swapped anchors": (
        dict(claim="between"),
        lambda i: replace(i, anchors=i.anchors[::-1]),
        "anchor is not the only one of its name",
    ),
    "anchor's box": (
        dict(claim="left"),
        lambda i: replace(i, anchors=(replace(i.anchors[0], box=(0, 0, 5, 5)),)),
        "anchor's box is wrong",
    ),
    "anchor's class": (
        dict(claim="front", class_name="person"),
        lambda i: replace(i, anchors=(replace(i.anchors[0], class_name="lamp"),)),
        "anchor is no instance of its class",
    ),
    "anchor of an unknown class": (
        dict(claim="left"),
        lambda i: replace(i, anchors=(replace(i.anchors[0], class_name="lorry"),)),
        "class is unknown",
    ),
    "anchor is a class that one can count": (
        dict(claim="left", class_name="person"),
        lambda i: replace(i, anchors=(Anchor("car", None, (26, 5, 40, 83)),), facts={**i.facts, "anchors": [""]}),
        "anchor is not the only one of its name",
    ),
    "anchor called only by its class": (
        dict(claim="front", class_name="person"),
        lambda i: replace(i, facts={**i.facts, "anchors": [""]}),
        "anchor is not the only one of its name",
    ),
    "anchor without a name": (dict(claim="left"), lambda i: replace(i, facts={}), "facts do not name the anchors"),
    "anchor is the target": (
        dict(claim="smaller", class_name="car"),
        lambda i: replace(i, instance_ids=i.anchors[0].instance_ids),
        "anchor is the target",
    ),
    "wrong fact": (
        dict(claim="largest"),
        lambda i: replace(i, facts={"area_ratio": 9.0}),
        "facts are not the measured",
    ),
    "missing fact": (dict(claim="largest"), lambda i: replace(i, facts={}), "facts are not the measured"),
    "wrong colour": (dict(claim="red"), lambda i: replace(i, facts={"colour": "blue"}), "facts are not the measured"),
    "another relation's words": (
        dict(claim="left"),
        lambda i: replace(i, query=i.query.replace("left", "right")),
        "query is not the rule's",
    ),
    "anchor not named": (
        dict(claim="front", class_name="person"),
        lambda i: replace(i, source="a model", query="the person in front"),
        "query does not mention",
    ),
    "target not named": (
        dict(claim="front", class_name="person"),
        lambda i: replace(i, source="a model", rephrasings=(*i.rephrasings, "what hides the largest car")),
        "query does not mention",
    ),
    "class not named": (
        dict(kind="semantic"),
        lambda i: replace(i, source="a model", query="the grey thing"),
        "query does not mention",
    ),
    "unknown kind": (dict(kind="semantic"), lambda i: replace(i, kind="guess"), "kind is unknown"),
    "another image": (dict(kind="semantic"), lambda i: replace(i, image_id="avenue"), "image is another one"),
    "query is a number": (dict(kind="semantic"), lambda i: replace(i, query=7), "field is not of its type"),
    "instance is a text": (dict(claim="red"), lambda i: replace(i, instance_ids=("1",)), "field is not of its type"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_found_with_its_reason(street, name):
    wanted, corrupt, reason = CORRUPTIONS[name]
    true = made(street, **wanted)
    assert check(street, true) == []
    found = check(street, corrupt(true))
    assert any(why.startswith(reason) for why in found), found


@pytest.mark.parametrize("claim", [*ATTRIBUTES, "red", "left half"])
def test_nothing_tells_the_only_one_of_a_class_from_others(street, claim):
    """As somebody who writes instructions by hand may say it."""
    only = replace(made(street, claim="largest"), class_name="person", instance_ids=(4,), source="people")
    assert check(street, replace(only, claim=claim)) == ["claim has nothing to be told from: the only person"]


def test_texts_of_a_model_are_free_but_for_what_they_must_name(street):
    true = made(street, claim="front", class_name="person")
    texts = [f"{start} people who hide the largest car" for start in "abcdefgh"]
    assert check(street, replace(true, source="a model", query=texts[0], rephrasings=tuple(texts[1:]))) == []


def test_changed_masks_make_true_instructions_false(street):
    true = made(street, claim="left", class_name="car")
    (scene,) = street.scenes
    maps = [np.array(Image.open(path)) for path in (scene.label_map, scene.instance_map)]
    for ids in maps:
        ids[50:55, 2:12] = 0
    maps[0][50:56, 0:14], maps[1][50:56, 0:14] = CAR.id, 9
    for ids, path in zip(maps, (scene.label_map, scene.instance_map), strict=True):
        Image.fromarray(ids).save(path)
    assert any("rival" in reason or "claim" in reason for reason in check(street, true))


def test_too_small_targets_are_found(street):
    scene = street.scenes[0]
    ids = np.array(Image.open(scene.instance_map))
    ids[ids == 1] = 0
    ids[30, 5:7] = 1
    labels = np.array(Image.open(scene.label_map))
    labels[30:40, 5:21] = 0
    labels[30, 5:7] = CAR.id
    true = made(street, claim="leftmost")
    for array, path in ((ids, scene.instance_map), (labels, scene.label_map)):
        Image.fromarray(array).save(path)
    assert check(street, true)[0].startswith("target is too small: 2 pixels")


def test_one_query_with_two_targets_and_one_instruction_twice(street):
    red, largest = made(street, claim="red"), made(street, claim="largest")
    assert contradictions([red, largest]) == [[], []]
    assert contradictions([red, replace(largest, query=red.query.upper())])[1][0].startswith("query has two targets")
    assert contradictions([red, red])[1] == [f"instruction is there twice: {red.query!r}"]


def test_words_are_compared_without_case_and_punctuation():
    assert folded("  The car,  LEFT of it?") == "the car left of it"
    assert mentions("The Cars left of the largest car.", "car") == 2 and mentions("a carpet", "car") == 0
    assert mentions("buses and people", "bus") == 1 == mentions("buses and people", "person")
    assert mentions("two traffic lights", "traffic light") == 1 and mentions("two cities", "city") == 1


# -- the program -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A set of drawn scenes with two false instructions; its folder and the true ones."""
    drawn.write_scenes(tmp_path, 2, 1, 0, size=(64, 96), progress=False)
    scene_set = with_components(read_folder(tmp_path))
    true = build_instructions(scene_set, scene_set.split("train", labelled=True), KINDS)
    nowhere = replace(true[0], image_id="nowhere")
    silent = replace(true[1], answer="I do not know.")
    write_instructions(tmp_path / "instructions.jsonl", [nowhere, silent, *true[2:]])
    return tmp_path, true[2:]


def test_exit_codes_table_and_page(folder, capsys):
    path, true = folder
    assert program.main([str(path)]) == 1
    table = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert ["all", str(len(true) + 2), str(len(true)), "2"] in cells
    assert ["image is unknown", "1"] in cells and ["answer does not hold exactly one [SEG]", "1"] in cells
    assert (path / "preview.html").read_text().startswith("<!doctype html>")
    assert len(read_instructions(path / "instructions.jsonl")) == len(true) + 2


def test_drop_writes_the_set_again_and_keeps_what_it_rejected(folder, capsys):
    path, true = folder
    for _ in range(2):  # a second time there is nothing to drop, and nothing is lost
        assert program.main([str(path), "--drop"]) == 0
        assert read_instructions(path / "instructions.jsonl") == true
        lines = [json.loads(line) for line in (path / "rejected.jsonl").read_text().splitlines()]
        assert [line["reasons"][0].split(":")[0] for line in lines] == [
            "image is unknown",
            "answer does not hold exactly one [SEG]",
        ]
        assert lines[0]["instruction"]["image_id"] == "nowhere"
    assert not list(path.glob("*.partial"))
    assert program.main([str(path)]) == 0


def test_workers_change_nothing(folder):
    path, _ = folder
    scene_set, instructions = program.read_set(path)
    assert program.check_set(scene_set, instructions, 2) == program.check_set(scene_set, instructions, 1)


def test_unlabelled_scenes_bear_nothing_out(folder):
    path, true = folder
    scene_set, _ = program.read_set(path)
    (unlabelled,) = scene_set.split("train", labelled=False)
    moved = replace(true[0], image_id=unlabelled.image_id)
    assert program.check_set(scene_set, [moved]) == [[f"image is not labelled: {unlabelled.image_id}"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([], "directory|DIR"),
        (["{set}", "--workers", "0"], "workers: '0': 1 or more"),
        (["{set}", "--data", "nowhere"], "nowhere: no such folder"),
        (["{empty}", "--data", "{set}"], "instructions.jsonl: no such file"),
        (["{tables}", "--data", "nowhere"], "--data: goes with instructions.jsonl; the tables of"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, tmp_path_factory, capsys, arguments, message):
    places = {"set": folder[0], "empty": tmp_path_factory.mktemp("empty"), "tables": tmp_path_factory.mktemp("built")}
    (places["tables"] / "scenes").mkdir()
    (places["tables"] / "scenes/train-00000-of-00001.parquet").touch()
    with pytest.raises(SystemExit) as stop:
        program.main([argument.format(**places) for argument in arguments])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1
    assert any(part in error[0] for part in message.split("|"))


def test_a_set_without_instructions_and_a_broken_map_are_bad_input(folder, capsys):
    path, true = folder
    write_instructions(path / "instructions.jsonl", [])
    with pytest.raises(SystemExit) as stop:
        program.main([str(path)])
    assert stop.value.code == 2
    write_instructions(path / "instructions.jsonl", true)
    next((path / "masks").iterdir()).write_bytes(b"no image")
    scene_set, _ = program.read_set(path)
    with pytest.raises(DataError, match="not a readable image"):
        program.check_set(scene_set, true, workers=2)


def test_rejected_instructions_can_be_read_again_and_add_up(folder):
    path, true = folder
    for first in (0, 1):
        left = true[first:]
        assert program.drop(path, left, [["claim is false: x"], *[[] for _ in left[1:]]]) == left[1:]
    lines = (path / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["instruction"] for line in lines] == json.loads(json.dumps([asdict(i) for i in true[:2]]))


def test_a_target_and_an_anchor_of_one_class_are_both_named(street):
    true = made(street, claim="smaller", class_name="car")
    assert true.anchors[0].class_name == "car"
    texts = [f"{start} car that is smaller than the largest car" for start in "abcdefgh"]
    asked = replace(true, source="a model", query=texts[0], rephrasings=tuple(texts[1:]))
    assert check(street, asked) == []
    found = check(street, replace(asked, query="what is smaller than the largest car"))
    assert [reason.split(":")[0] for reason in found] == ["query does not mention its target and anchors"]


def test_people_and_models_may_ask_in_one_way_alone(street):
    """`few` above is of a rule; a data set's one sentence, or what is left of a model's, is no reason to drop it."""
    true = made(street, claim="largest")
    text = "what would carry the most people"
    asked = {source: replace(true, source=source, query=text, rephrasings=()) for source in ("people", "a model")}
    asked["people"] = replace(asked["people"], kind="reasoning", claim="", facts={})
    assert [check(street, each) for each in asked.values()] == [[], []]


def test_a_field_of_the_wrong_type_is_bad_input_and_named(folder):
    path, true = folder
    write_instructions(path / "instructions.jsonl", [true[0], replace(true[1], rephrasings=(5,))])
    with pytest.raises(
        DataError, match=r"instructions\.jsonl:2: not an instruction \(rephrasings is not of its type\)"
    ):
        program.read_set(path)
    write_instructions(path / "instructions.jsonl", [true[0], replace(true[1], rephrasings=None)])
    with pytest.raises(
        DataError, match=r"instructions\.jsonl:2: not an instruction \(rephrasings is not of its type\)"
    ):
        program.read_set(path)
