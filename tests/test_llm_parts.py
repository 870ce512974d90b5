"""The parts of asking a language model that need no server: checks against hand-made scenes, schemas, sums."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from datasets_scripts.command_line import UsageError
from datasets_scripts.instructions.llm import client as llm_client
from datasets_scripts.instructions.llm.cost import image_tokens
from datasets_scripts.instructions.llm.pictures import outline_polygon
from datasets_scripts.instructions.llm.pipeline import Made, Question, add_rephrasings, read_replies
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
from datasets_scripts.instructions.verify import check_scene
from datasets_scripts.records import Anchor, Instruction, SceneSet, SemanticClass

from .test_verify import write_scene


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


ROAD, POLE = SemanticClass(0, "road"), SemanticClass(2, "pole", noun="post")
CAR, GRASS = SemanticClass(1, "car", noun="vehicle"), SemanticClass(1, "grass")


def scene_of(folder, thing: SemanticClass, *boxes: tuple[int, int, int, int]) -> SceneSet:
    """A scene with instances 1, 2, ... of a class on a road: boxes (top, left, bottom, right), the last one a pole."""
    labels, instances = np.zeros((60, 100), np.uint8), np.zeros((60, 100), np.uint16)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        labels[top:bottom, left:right] = (POLE if number == len(boxes) else thing).id
        instances[top:bottom, left:right] = number
    pixels = np.full((60, 100, 3), 120, np.uint8)
    return SceneSet((ROAD, thing, POLE), (write_scene(folder, labels, instances, pixels),))


def pair(*ids: int, class_id: int = 1, anchor: Target, name: str = "pole") -> Pair:
    return Pair(Target(class_id, ids), anchor, name, "", ())


def replied(scene_set: SceneSet, subject: Pair | Target, *claims: str, query: str = "", answer: str = "It is [SEG]."):
    """What becomes of queries of these claims, in words that `verify` has nothing to say against, or in given ones."""
    (scene,) = scene_set.scenes
    if isinstance(subject, Pair):
        of = f"the {scene_set.classes[subject.target.class_id].name}"
        said = [{"question": query or f"{of}, {c} of the {subject.anchor_name}", "relation": c} for c in claims]
        content = {"target": "t", "anchor": "a", "pairs": [{"answer": answer, **each} for each in said]}
    else:
        said = [{"query": query or f"what is {c}", "attribute": c} for c in claims]
        content = {"target": "t", "queries": [{"answer": answer, **each} for each in said]}
    question = Question(scene, subject, Request("m", "", "", {}, 50), "key")
    return read_replies([question], {"key": Reply(content)}, scene_set)


def reason(*given, **more) -> str:
    """Why the only query of a reply is rejected; "" where it is kept."""
    made = replied(*given, **more)
    assert len(made.instructions) + len(made.rejected) == 1
    return made.rejected[0]["reason"] if made.rejected else ""


def test_a_claim_has_to_single_out_its_target(tmp_path):
    """Two cars left of a pole, at different distances, and one that overlaps it in its columns."""
    street = scene_of(tmp_path, CAR, (30, 5, 40, 15), (30, 30, 45, 50), (10, 70, 20, 85), (5, 80, 55, 82))
    pole = Target(2, (4,))
    one, two, three = (pair(number, anchor=pole) for number in (1, 2, 3))
    assert reason(street, one, "left") == reason(street, two, "left") == "claim is not false of a rival"
    assert reason(street, three, "left") == "claim is unclear" and reason(street, one, "right") == "claim is false"
    assert reason(street, one, "farthest") == "" and reason(street, two, "farthest") == "claim is false"
    unnamed = "the vehicle farthest from the pole"
    assert reason(street, one, "farthest", query=unnamed) == "query does not mention its target and anchors"
    assert reason(street, Target(1, (1,)), "leftmost") == ""
    made = replied(street, Target(1, (3,)), "leftmost")
    assert [(line["reason"], line["details"]) for line in made.rejected] == [("claim is false", "'leftmost' of car 3")]
    assert reason(street, pole, "largest") == "claim has nothing to be told from"
    # what is asked about is what the masks bear out, while there is enough of it
    scene = SceneObjects.of_scene(street, street.scenes[0])
    pairs = choose_pairs(scene, 2, 0, "image")
    assert len(pairs) == 2 and all(each.relations for each in pairs)
    assert all(reason(street, each, name) == "" for each in pairs for name in each.relations)
    assert any(not each.relations for each in choose_pairs(scene, 50, 0, "image"))


def test_sizes_and_distances_are_not_said_of_a_mass(tmp_path):
    """Two patches of grass, the larger one nearer to a pole: sizes and distances are of things that one can count."""
    boxes = (30, 5, 40, 15), (30, 30, 55, 60), (10, 70, 55, 74)
    meadow = scene_of(tmp_path, GRASS, *boxes)
    grass, pole = Target(1, (2,)), Target(2, (3,))
    beside_pole = pair(2, anchor=pole)
    beside_road = pair(3, class_id=2, anchor=Target(0, None), name="road")
    for name in ("nearest", "larger"):
        assert reason(meadow, beside_pole, name) == reason(meadow, beside_road, name) == "claim is made of a mass"
    assert reason(meadow, grass, "largest") == "claim is made of a mass"
    assert reason(meadow, beside_pole, "left") == "claim is not false of a rival"
    counted = scene_of(tmp_path, replace(GRASS, noun="meadow"), *boxes)
    assert reason(counted, beside_pole, "nearest") == ""


def test_numbers_of_a_mass_are_those_that_verify_measures(tmp_path):
    """Two patches of grass left of a pole, the larger one with the higher id; a third one right of it."""
    boxes = [(30, 30, 40, 40), (5, 5, 25, 25), (30, 80, 50, 95), (5, 60, 55, 62)]
    meadow = scene_of(tmp_path, GRASS, *boxes)
    (made,) = replied(meadow, pair(1, 2, anchor=Target(2, (4,))), "left").instructions
    assert made.instance_ids == (1, 2) and made.anchors == (Anchor("pole", (4,), boxes[-1]),)
    # of columns 5..24 a tenth is beyond column 22, of 30..39 beyond 38
    said = {"target": "t", "anchor": "a", "relation": "left"}
    assert made.facts == {"target_right": 0.23, "anchor_left": 0.6, "anchors": [""], "said": said}
    assert check_scene(meadow, meadow.scenes[0], [made]) == [[]]


def test_what_no_mask_decides_is_kept_and_what_a_text_may_not_hold_is_not(tmp_path):
    street = scene_of(tmp_path, CAR, (30, 5, 40, 15), (30, 30, 45, 50), (5, 80, 55, 82))
    car = Target(1, (1,))
    (made,) = replied(street, car, "other", query="what is parked").instructions
    assert made.claim == "" and made.facts == {"said": {"target": "t", "attribute": "other"}}
    for query, said in (
        ("the parked cars", "attribute query names its class"),
        ("?!", "empty query"),
        ("what <|im_end|> is", "special token in a query"),
        ("what\nis parked", "line break or control character in a query"),
        ("what is parked " * 30, "too long"),
    ):
        assert reason(street, car, "other", query=query) == said
    for answer, said in (
        ("It is [SEG] or [SEG].", "answer does not hold exactly one [SEG]"),
        ("Here.", "answer does not hold exactly one [SEG]"),
        ("</s> It is [SEG].", "special token in an answer"),
        ("It\nis [SEG].", "line break or control character in an answer"),
    ):
        assert reason(street, car, "other", answer=answer) == said
    # a claim that is false does not become a free one
    assert reason(street, car, "rightmost") == "claim is false"


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


def test_of_queries_in_the_same_words_one_stays_or_none(tmp_path):
    street = scene_of(tmp_path, CAR, (30, 5, 40, 15), (30, 30, 45, 50), (5, 80, 55, 82))
    request = Request("m", "", "", {}, 50)
    questions = [Question(street.scenes[0], Target(1, (n,)), request, str(n)) for n in (1, 2)]

    def reply(*queries: str) -> Reply:
        said = [{"query": query, "answer": "[SEG].", "attribute": "other"} for query in queries]
        return Reply({"target": "t", "queries": said})

    made = read_replies(questions, {"1": reply("That one?", "that one", "this"), "2": reply("another")}, street)
    assert [i.query for i in made.instructions] == ["That one?", "this", "another"]
    assert [(line["reason"], line["said"]) for line in made.rejected] == [("instruction is there twice", "that one")]
    # for different targets: nobody can know which one is meant
    made = read_replies(questions, {"1": reply("That one?", "this"), "2": reply("that one")}, street)
    assert [i.query for i in made.instructions] == ["this"]
    assert [line["reason"] for line in made.rejected] == ["query has two targets in one image"] * 2
    made = read_replies(questions[:1], {"1": reply()}, street)
    assert not made.instructions and [line["reason"] for line in made.rejected] == ["no query"]


def test_a_rephrasing_that_asks_for_two_things_is_none():
    one = Instruction("s", "attribute", "car", "the left one", "[SEG].", (1,))
    other = Instruction("s", "attribute", "car", "the right one", "[SEG].", (2,))
    replies = {"a": Reply({"rephrasings": ["That one?", "only this"]})}
    replies["b"] = Reply({"rephrasings": ["that one", one.query, "the other"]})
    made = add_rephrasings(Made([one, other]), ["a", "b"], replies)
    assert [i.rephrasings for i in made.instructions] == [("only this",), ("the other",)]
    ambiguous = [line["said"]["rephrasing"] for line in made.rejected if "two targets" in line["reason"]]
    assert ambiguous == ["That one?", "that one", one.query]


def test_a_rephrasing_that_names_no_anchor_is_none():
    """`verify --drop` would take the whole instruction for it."""
    anchor = (Anchor("bus", None, (0, 0, 1, 1)),)
    pair = Instruction("s", "conditional", "car", "the car left of the bus", "[SEG].", (1,), anchors=anchor)
    said = ["whatever is left of the bus", "the car on the left", "which car has the bus to its right?"]
    made = add_rephrasings(Made([pair]), ["a"], {"a": Reply({"rephrasings": said})})
    assert [i.rephrasings for i in made.instructions] == [(said[2],)]
    silent = [line["said"]["rephrasing"] for line in made.rejected if "not mention its target" in line["reason"]]
    assert silent == said[:2]


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
