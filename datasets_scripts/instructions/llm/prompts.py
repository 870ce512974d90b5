"""The requests themselves: what a language model is told and in which form it replies (arXiv 2511.17755)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ...records import Instruction, SemanticClass
from ..attribute import ATTRIBUTES
from ..colours import COLOURS
from ..objects import SceneObject, SceneObjects
from .pictures import place
from .requests import Request, list_schema, object_schema, text_schema
from .subjects import PAIR_RELATIONS, Pair, Target

QUERIES = 3
"""Asked for in each request about a picture."""
REPHRASINGS = 9
"""Asked for besides the query; the paper's K = 7 ways to ask need six that can be used."""
MOST_OBJECTS = 40
"""Listed in a request, the largest ones."""
OTHER = "other"
"""An attribute that masks cannot decide ("with a roof rack", "parked")."""
ATTRIBUTE_NAMES = (*ATTRIBUTES, *COLOURS, OTHER)

SYSTEM = (
    "You write queries for a data set of segmentation. A query asks for one target in a picture; whoever knows only "
    "the picture and the query must find exactly that target and nothing else. The camera is the frame of reference: "
    "left and right are those of the picture, in front means closer to the camera. Boxes are [left, top, right, "
    "bottom] and polygons [[x, y], ...], in pixels of the picture. Coloured outlines were drawn into the picture to "
    "show you what is meant; never mention outlines, boxes, polygons or coordinates. Write plain English sentences "
    "or phrases without markup. Reply in JSON of the given form and with nothing else."
)

RELATION_MEANINGS = {
    "left": "lies entirely left of the anchor",
    "right": "lies entirely right of the anchor",
    "above": "lies entirely higher in the picture and over the anchor; not for things that both stand on the ground",
    "below": "lies entirely lower in the picture and under the anchor; not for things that both stand on the ground",
    "higher": "lies entirely higher in the picture than the anchor",
    "lower": "lies entirely lower in the picture than the anchor",
    "front": "stands in front of the anchor, closer to the camera",
    "behind": "stands behind the anchor, farther from the camera",
    "nearest": "is of its class the one nearest to the anchor",
    "farthest": "is of its class the one farthest from the anchor",
    "larger": "covers at least 1.5 times the anchor's area in the picture",
    "smaller": "covers at most two thirds of the anchor's area in the picture",
    "inside": "is surrounded by the anchor on every side",
    "touching": "borders on the anchor in the picture",
}
"""What `relations.RELATIONS` decides by, in words."""

_ANSWER = "one sentence that answers the query, with the marker [SEG] exactly once in place of the mask"


def conditional_request(
    model: str, scene: SceneObjects, size: tuple[int, int], pair: Pair, picture: Callable[[], bytes]
) -> Request:
    """Asks for descriptions of target and anchor and for questions that find the target by its relation to the anchor.

    Args:
        size: (width, height) of the picture.
        picture: gives it as a JPEG, with the target outlined in magenta and the anchor in cyan.
    """
    targets, anchors = pair.target.objects(scene), pair.anchor.objects(scene)
    facts = {
        "target": _described(pair.target, targets, scene, size),
        "anchor": {**_described(pair.anchor, anchors, scene, size), "can_be_called": f"the {pair.anchor_name}"},
        "measured_relations": list(pair.relations),
    }
    text = "\n".join(
        [
            "The target is outlined in magenta, the anchor in cyan.",
            json.dumps(facts),
            "First describe the target and the anchor by what the picture shows. Then write "
            f"{QUERIES} question-answer pairs. Each question asks for the target by exactly one spatial relation to "
            "the anchor, names both, and fits no other object of the target's class. State the relation:",
            *(f"- {name}: the target {RELATION_MEANINGS[name]}" for name in PAIR_RELATIONS),
            "The relations under measured_relations are known to be true; prefer them, and use another only where it "
            "is beyond doubt.",
        ]
    )
    schema = object_schema(
        target=text_schema("description of the target"),
        anchor=text_schema("description of the anchor"),
        pairs=list_schema(
            object_schema(
                question=text_schema("asks for the target by its relation to the anchor"),
                answer=text_schema(_ANSWER),
                relation=text_schema("of the target to the anchor", list(PAIR_RELATIONS)),
            )
        ),
    )
    return Request(model, SYSTEM, text, schema, 200 + 150 * QUERIES, picture, size)


def attribute_request(
    model: str, scene: SceneObjects, size: tuple[int, int], target: Target, picture: Callable[[], bytes]
) -> Request:
    """Asks for queries that describe a class or an instance without any class name. Arguments as above."""
    targets = target.objects(scene)
    semantic_class = scene.classes[target.class_id]
    whole = target.instance_ids is None
    facts: dict[str, Any] = {"target": _described(target, targets, scene, size), "objects": _listed(scene, size)}
    if whole:
        facts["target"]["means"] = "everything of this class"
    lines = [
        "The target is outlined in magenta." + (" It is everything of its class." if whole else ""),
        json.dumps(facts),
        f"Describe the target. Then write {QUERIES} queries that ask for it by its attributes: what it looks like, "
        "what it is made of, what it is for, where it is. A query fits none of the other objects of the picture. It "
        f"must not contain the word {semantic_class.name!r} or any form of it, nor the name of another class; use a "
        "description instead.",
    ]
    fields = {"query": text_schema("asks for the target by its attributes"), "answer": text_schema(_ANSWER)}
    if not whole:
        lines.append(
            "State the attribute by which the query tells the target from the other objects of its class: "
            f"{', '.join(ATTRIBUTES)} (closest and farthest: to or from the camera), a colour, or {OTHER!r}."
        )
        fields["attribute"] = text_schema("what singles the target out", list(ATTRIBUTE_NAMES))
    schema = object_schema(target=text_schema("description"), queries=list_schema(object_schema(**fields)))
    return Request(model, SYSTEM, "\n".join(lines), schema, 100 + 120 * QUERIES, picture, size)


def rephrasing_request(model: str, instruction: Instruction, semantic_class: SemanticClass) -> Request:
    """Asks for other ways to ask what an instruction asks; no picture is needed for that."""
    facts = {"query": instruction.query}
    if instruction.kind == "attribute":
        facts["not_to_be_named"] = semantic_class.name
    text = "\n".join(
        [
            json.dumps(facts),
            f"Write {REPHRASINGS} other ways to ask exactly the same: questions, requests and noun phrases, each "
            "different from the others. All of them ask for the same target by the same relation or attribute; nothing "
            "is added and nothing left out."
            + (" None contains the word under not_to_be_named." if "not_to_be_named" in facts else ""),
        ]
    )
    schema = object_schema(rephrasings=list_schema(text_schema("asks the same in other words")))
    return Request(model, SYSTEM, text, schema, 60 * REPHRASINGS)


def _scale(scene: SceneObjects, size: tuple[int, int]) -> tuple[float, float]:
    return size[0] / scene.width, size[1] / scene.height


def _described(
    target: Target, objects: tuple[SceneObject, ...], scene: SceneObjects, size: tuple[int, int]
) -> dict[str, Any]:
    largest = sorted(objects, key=lambda each: -each.area)[:3]
    return {
        "class": scene.classes[target.class_id].name,
        "places": [place(each, _scale(scene, size), polygon=target.instance_ids is not None) for each in largest],
    }


def _listed(scene: SceneObjects, size: tuple[int, int]) -> list[dict[str, Any]]:
    """What the picture shows, instances where there are any and whole classes elsewhere."""
    shown: list[SceneObject] = []
    for class_id, semantic_class in scene.classes.items():
        if semantic_class.asked:
            whole = scene.whole(class_id)
            shown += (scene.of_class(class_id) if semantic_class.noun else ()) or ([whole] if whole else [])
    shown = sorted(shown, key=lambda each: (-each.area, each.class_id, each.id or 0))[:MOST_OBJECTS]
    return [
        {"class": scene.classes[each.class_id].name, **place(each, _scale(scene, size), polygon=False)}
        for each in shown
    ]
