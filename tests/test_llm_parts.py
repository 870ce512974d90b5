"""The parts of asking a language model that need no server: checks against hand-made scenes, schemas, sums."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from datasets_scripts.command_line import UsageError
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.llm import client as llm_client
from datasets_scripts.instructions.llm.checks import attribute_problem, relation_problem
from datasets_scripts.instructions.llm.cost import image_tokens
from datasets_scripts.instructions.llm.pictures import outline_polygon
from datasets_scripts.instructions.llm.pipeline import Made, Options, add_rephrasings, plan_questions, read_replies
from datasets_scripts.instructions.llm.prompts import RELATION_MEANINGS
from datasets_scripts.instructions.llm.requests import (
    Reply,
    Request,
    list_schema,
    object_schema,
    schema_problem,
    text_schema,
)
from datasets_scripts.instructions.llm.subjects import PAIR_RELATIONS, Pair, Target, choose_pairs
from datasets_scripts.instructions.objects import SceneObject, SceneObjects
from datasets_scripts.instructions.relations import RELATIONS
from datasets_scripts.instructions.verify import check_instruction
from datasets_scripts.records import Anchor, Instruction, Scene, SceneSet, SemanticClass
from datasets_scripts.scenes import write_scenes


def test_what_a_request_is_known_by():
    request = Request("m", "system", "text", object_schema(a=text_schema("")), 50, lambda: b"picture", (8, 8))
    others = [
        Request("n", "system", "text", request.schema, 50, request.picture, (8, 8)),
        Request("m", "system", "text", object_schema(b=text_schema("")), 50, request.picture, (8, 8)),
        Request("m", "system", "text", request.schema, 50, lambda: b"another", (8, 8)),
        Request("m", "system", "other", request.schema, 50, request.picture, (8, 8)),
    ]
    assert len({each.key() for each in (request, *others)}) == 5
    assert request.key() == Request("m", "system", "text", request.schema, 50, lambda: b"picture", (8, 8)).key()


@pytest.mark.parametrize(
    "model, width, height, tokens",
    # the examples of OpenAI's guide, one tile, and what was billed for the last
    [
        ("gpt-4o", 1024, 1024, 765),
        ("gpt-4o", 2048, 4096, 1105),
        ("gpt-4o-mini", 512, 512, 8500),
        ("x", 100, 50, 255),
        ("gpt-4.1-mini", 4000, 1474, 2488),
    ],
)
def test_image_tokens(model, width, height, tokens):
    assert image_tokens(model, width, height) == tokens


def test_a_claim_has_to_single_out_its_target():
    """Two cars left of a pole, at different distances, and one that overlaps it in its columns."""
    labels = np.zeros((60, 100), np.uint8)
    instances = np.zeros((60, 100), np.uint8)
    boxes = {1: (30, 5, 40, 15), 2: (30, 30, 45, 50), 3: (10, 70, 20, 85), 4: (5, 80, 55, 82)}
    for number, (top, left, bottom, right) in boxes.items():
        labels[top:bottom, left:right], instances[top:bottom, left:right] = 2 if number == 4 else 1, number
    classes = (SemanticClass(0, "road"), SemanticClass(1, "car", noun="vehicle"), SemanticClass(2, "pole", noun="post"))
    scene = SceneObjects(classes, labels, instances)

    def problem(relation, target):
        pair = Pair(Target(1, (target,)), Target(2, (4,)), "pole", "", ())
        return relation_problem(relation, pair, scene)[0].partition(":")[0]

    assert problem("left", 1) == problem("left", 2) == "claim does not single out its target"
    assert problem("left", 3) == "claim is unclear" and problem("right", 1) == "claim is false"
    assert problem("farthest", 1) == "" and problem("farthest", 2) == "claim is false"
    assert attribute_problem("leftmost", Target(1, (1,)), scene)[0] == ""
    assert attribute_problem("leftmost", Target(1, (3,)), scene)[0] == "claim is false: leftmost"
    assert attribute_problem("largest", Target(2, (4,)), scene)[0].startswith("nothing to be told from")
    # what is asked about is what the masks bear out, while there is enough of it
    pairs = choose_pairs(scene, 2, 0, "image")
    assert len(pairs) == 2 and all(pair.relations for pair in pairs)
    assert all(relation_problem(name, pair, scene)[0] == "" for pair in pairs for name in pair.relations)
    assert any(not pair.relations for pair in choose_pairs(scene, 50, 0, "image"))


def test_of_a_mass_nothing_is_accepted_that_verify_rejects():
    """Two patches of grass, the larger one nearer to a pole: sizes and distances are of things that one can count."""
    labels, instances = np.zeros((60, 100), np.uint8), np.zeros((60, 100), np.uint8)
    for number, (top, left, bottom, right) in enumerate([(30, 5, 40, 15), (30, 30, 55, 60), (10, 70, 55, 74)], start=1):
        labels[top:bottom, left:right], instances[top:bottom, left:right] = 1 + number // 3, number
    classes = (SemanticClass(0, "road"), SemanticClass(1, "grass"), SemanticClass(2, "pole", noun="post"))
    scene = SceneObjects(classes, labels, instances)
    grass, pole = Target(1, (2,)), Target(2, (3,))
    for name in ("nearest", "larger"):
        assert relation_problem(name, Pair(grass, pole, "pole", "", ()), scene) == (
            f"claim is made of a mass: {name}",
            {},
        )
        whole = Target(1, None)
        assert relation_problem(name, Pair(pole, whole, "grass", "", ()), scene)[0].startswith(
            "claim is made of a mass"
        )
    assert attribute_problem("largest", grass, scene) == ("claim is made of a mass: largest", {})
    assert "mass" not in relation_problem("left", Pair(grass, pole, "pole", "", ()), scene)[0]
    counted = SceneObjects((classes[0], SemanticClass(1, "grass", noun="meadow"), classes[2]), labels, instances)
    assert relation_problem("nearest", Pair(grass, pole, "pole", "", ()), counted)[0] == ""


def test_numbers_of_a_mass_are_those_that_verify_measures():
    """Two patches of grass left of a pole, the larger one with the higher id; a third one right of it."""
    labels, instances = np.zeros((60, 100), np.uint8), np.zeros((60, 100), np.uint8)
    boxes = [(30, 30, 40, 40), (5, 5, 25, 25), (30, 80, 50, 95), (5, 60, 55, 62)]
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        labels[top:bottom, left:right], instances[top:bottom, left:right] = 1 + number // 4, number
    classes = (SemanticClass(0, "road"), SemanticClass(1, "grass"), SemanticClass(2, "pole", noun="post"))
    scene = SceneObjects(classes, labels, instances)
    pair = Pair(Target(1, (1, 2)), Target(2, (4,)), "pole", "", ())
    problem, numbers = relation_problem("left", pair, scene)
    # of columns 5..24 a tenth is beyond column 22, of 30..39 beyond 38
    assert problem == "" and numbers == {"target_right": 0.23, "anchor_left": 0.6}
    anchor = Anchor("pole", (4,), (5, 60, 55, 62))
    facts = {**numbers, "anchors": [""]}
    said = Instruction("s", "conditional", "grass", "the grass left of the pole", "[SEG].", (1, 2), claim="left",
                       anchors=(anchor,), facts=facts, source="m")  # fmt: skip
    assert check_instruction(SceneSet(classes, ()), Scene("s", "s.png", "s.png"), scene, said) == []


@pytest.mark.parametrize(
    ("key", "kept"), [("x", "exit {a}"), ("none", "exit {a}"), ("exit {a}", "***"), ("sk-secret-key", "exit {a}")]
)
def test_what_stands_in_place_of_a_key_is_left_in_replies(key, kept, monkeypatch):
    """Servers that need none take any value, and letters and words are no secret."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert llm_client.Endpoint("http://127.0.0.1:9/v1").scrub("exit {a}") == kept


def test_without_the_client_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"pip install -c constraints\.txt -e '\.\[llm\]'$"):
        llm_client.Endpoint()


def test_a_further_check_decides_what_is_accepted(tmp_path):
    write_scenes(tmp_path, 1, 0, 0, size=(96, 128), progress=False)
    scene_set = read_folder(tmp_path)
    questions = plan_questions(scene_set, scene_set.split("train"), Options("m", ("attribute",)))
    said = {"target": "t", "queries": [{"query": "what is wanted", "answer": "[SEG]."}]}
    for query in said["queries"]:
        query["attribute"] = "other"
    replies = {q.key: Reply(said) for q in questions}
    made = read_replies(questions[:1], replies, scene_set, lambda each: None)
    assert len(made.instructions) == 1 and not made.rejected
    made = read_replies(questions[:1], replies, scene_set, lambda each: "too dull: really")
    assert not made.instructions and [line["reason"] for line in made.rejected] == ["too dull"]
    replies[questions[0].key] = Reply({"target": "t", "queries": []})
    assert [line["reason"] for line in read_replies(questions[:1], replies, scene_set).rejected] == ["no query"]
    replies[questions[0].key] = Reply(said)
    # the same words for every target of a scene: nobody can know which one is meant
    made = read_replies(questions, replies, scene_set)
    assert not made.instructions and {line["reason"] for line in made.rejected} == {"same query for different targets"}


def test_a_rephrasing_that_asks_for_two_things_is_none():
    one = Instruction("s", "attribute", "car", "the left one", "[SEG].", (1,))
    other = Instruction("s", "attribute", "car", "the right one", "[SEG].", (2,))
    replies = {"a": Reply({"rephrasings": ["That one?", "only this"]})}
    replies["b"] = Reply({"rephrasings": ["that one", one.query, "the other"]})
    made = add_rephrasings(Made([one, other]), ["a", "b"], replies)
    assert [i.rephrasings for i in made.instructions] == [("only this",), ("the other",)]
    ambiguous = [line["said"]["rephrasing"] for line in made.rejected if "different targets" in line["reason"]]
    assert ambiguous == ["That one?", "that one", one.query]
    # a further check that finds something wrong takes the rephrasings away, and not the instruction
    made = add_rephrasings(Made([one]), ["a"], replies, lambda each: "wrong" if each.rephrasings else None)
    assert made.instructions == [one] and made.rejected[-1]["reason"] == "wrong"


def test_replies_are_held_to_the_schema():
    schema = object_schema(a=text_schema("", ["x", "y"]), b=list_schema(object_schema(c=text_schema(""))))
    good = {"a": "x", "b": [{"c": "1"}, {"c": "2"}]}
    assert schema_problem(good, schema) == "" and schema_problem({"a": "y", "b": []}, schema) == ""
    wrong = [None, [], "x", {"a": "x"}, {**good, "d": 1}, {**good, "a": "z"}, {**good, "a": ["x"]}, {**good, "b": {}}]
    wrong += [{**good, "b": [{"c": 1}]}, {**good, "b": ["c"]}, {**good, "b": [{"c": "1"}, {}]}]
    for value in wrong:
        assert schema_problem(value, schema), value


def test_a_polygon_of_a_shape_without_dents_covers_it():
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 40) ** 2 <= 25**2
    polygon = outline_polygon(SceneObject(1, 0, (100, 200, 160, 280), disc))
    y, x = np.array(polygon, float).T
    area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))  # shoelace
    assert 0.85 * disc.sum() < area < 1.05 * disc.sum() and len(polygon) == 16
    assert y.min() == 105 and y.max() == 155 and x.min() >= 215 and x.max() <= 266
    assert outline_polygon(SceneObject(1, 0, (5, 7, 6, 9), np.ones((1, 2), bool))) == [(5, 7), (5, 9)]


def test_every_relation_of_a_pair_is_explained():
    assert set(RELATION_MEANINGS) == set(PAIR_RELATIONS) == {name for name, r in RELATIONS.items() if r.anchors == 1}


@pytest.mark.parametrize(
    "headers, least, most",
    [
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after-ms": "1500"}, 1.5, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0),
        ({"retry-after": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3000))}, 2000, 3000),
        ({"retry-after": "soon"}, 0, 0),
        ({"retry-after": "-5"}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_when_to_come_again(headers, least, most):
    assert least <= llm_client._retry_after(headers) <= most
