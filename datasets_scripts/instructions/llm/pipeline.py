"""Instructions by a language model (arXiv 2511.17755): it proposes, the masks decide, as they do for `verify`.

    questions = plan_questions(scene_set, scenes, options)                      what to ask about which scene
    replies = ask_all(endpoint, {q.key: q.request for q in questions}, cache)
    made = read_replies(questions, replies, scene_set)                          instructions, what is rejected and why
    requests = rephrasing_requests(made.instructions, scene_set, model)         other ways to ask the same
    keys = [request.key() for request in requests]
    made = add_rephrasings(made, keys, ask_all(endpoint, dict(zip(keys, requests)), cache))

`python -m datasets_scripts.ask_llm` does this. The order of all results follows the scenes, not the replies.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...records import Anchor, Instruction, Scene, SceneSet, read_image
from ..attribute import attribute_claims, names_class
from ..claims import Claim, single_out
from ..objects import SceneObjects
from ..relations import RELATIONS
from ..verify import UNDECIDED, check_instruction, contradictions, folded, queries_of, unmentioned
from .checks import answer_problem, query_problem
from .client import Unanswered
from .pictures import ANCHOR_COLOUR, TARGET_COLOUR, outlined_jpeg
from .prompts import OTHER, attribute_request, conditional_request, rephrasing_request
from .requests import Reply, Request
from .subjects import Pair, Target, choose_pairs, choose_targets

MODEL_KINDS = ("attribute", "conditional", "rephrasings")
"""What a language model can be asked for."""
LEAST_REPHRASINGS = 6
"""With the query itself the paper's K = 7; fewer are kept and reported."""
SCENES_IN_MEMORY = 8


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        model: its name at the endpoint; becomes `Instruction.source`.
        per_scene: pairs, and targets of attribute queries, that are asked about in each scene.
        image_size: longest side of the pictures sent, pixels.
    """

    model: str
    kinds: tuple[str, ...] = MODEL_KINDS
    per_scene: int = 4
    image_size: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A request about a scene, and what its reply is to be checked against."""

    scene: Scene
    subject: Pair | Target
    request: Request
    key: str


@dataclass
class Made:
    """
    Attributes:
        rejected: what could not be used: image_id, kind, reason, details, and under "said" the model's words.
    """

    instructions: list[Instruction] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, image_id: str, kind: str, reason: str, said: Any = None) -> None:
        reason, _, details = reason.partition(": ")
        line = {"image_id": image_id, "kind": kind, "reason": reason, "details": details, "said": said}
        self.rejected.append(line)


class _LoadedScenes:
    """Objects and shrunken picture of a scene; the last few stay in memory. For several threads."""

    def __init__(self, scene_set: SceneSet, image_size: int):
        self._scene_set, self._image_size = scene_set, image_size
        self._loaded: OrderedDict[str, tuple[SceneObjects, Image.Image]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, scene: Scene) -> tuple[SceneObjects, Image.Image]:
        with self._lock:
            if scene.image_id not in self._loaded:
                objects = SceneObjects.of_scene(self._scene_set, scene)
                picture = read_image(scene.image)
                picture.thumbnail((self._image_size,) * 2, Image.Resampling.LANCZOS, reducing_gap=None)
                self._loaded[scene.image_id] = objects, picture
                if len(self._loaded) > SCENES_IN_MEMORY:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(scene.image_id)
            return self._loaded[scene.image_id]

    def jpeg(self, scene: Scene, subject: Pair | Target) -> bytes:
        """The picture with what it is asked about outlined."""
        objects, picture = self(scene)
        shown = [(subject, TARGET_COLOUR)]
        if isinstance(subject, Pair):
            shown = [(subject.anchor, ANCHOR_COLOUR), (subject.target, TARGET_COLOUR)]
        return outlined_jpeg(picture, objects, [(target.objects(objects), colour) for target, colour in shown])


def plan_questions(
    scene_set: SceneSet, scenes: Sequence[Scene], options: Options, progress: bool = False
) -> list[Question]:
    """What is asked about labelled scenes; it depends on the scenes and the options alone.

    Raises:
        DataError: a scene has no label map, or a file of it is wrong.
    """
    loaded = _LoadedScenes(scene_set, options.image_size)
    questions = []
    for scene in tqdm(scenes, desc="choosing targets", unit="scene", disable=not progress):
        objects, picture = loaded(scene)
        wanted = options.per_scene, options.seed, scene.image_id
        subjects: list[Pair | Target] = []
        if "attribute" in options.kinds:
            subjects += choose_targets(objects, *wanted)
        if "conditional" in options.kinds:
            subjects += choose_pairs(objects, *wanted)
        for subject in subjects:
            new = conditional_request if isinstance(subject, Pair) else attribute_request
            # a picture is drawn when it is sent: those of thousands of requests do not fit into memory
            jpeg = partial(loaded.jpeg, scene, subject)
            request = new(options.model, objects, picture.size, subject, jpeg)
            questions.append(Question(scene, subject, request, request.key()))
    return questions


def read_replies(questions: Sequence[Question], replies: Mapping[str, Reply | Unanswered], scene_set: SceneSet) -> Made:
    """Instructions from what a model replied, each checked against the masks; everything else in `rejected`.

    Args:
        replies: by key, one for each question.
    """
    made = Made()
    for _, of_scene in groupby(questions, key=lambda question: question.scene.image_id):
        found: list[Instruction] = []
        objects: SceneObjects | None = None
        for question in of_scene:
            objects = objects or SceneObjects.of_scene(scene_set, question.scene)
            found += _instructions(question, replies[question.key], objects, scene_set, made)
        for instruction, reasons in zip(found, contradictions(found), strict=True):
            if reasons:
                made.reject(instruction.image_id, instruction.kind, reasons[0], instruction.query)
            else:
                made.instructions.append(instruction)
    return made


def _instructions(
    question: Question, reply: Reply | Unanswered, objects: SceneObjects, scene_set: SceneSet, made: Made
) -> Iterator[Instruction]:
    """Those of one reply that pass all checks on their own; no mask needs to decide what an attribute query says."""
    conditional = isinstance(question.subject, Pair)
    kind, image_id = "conditional" if conditional else "attribute", question.scene.image_id
    if isinstance(reply, Unanswered) or reply.content is None:
        reason = str(reply) if isinstance(reply, Unanswered) else f"refused: {reply.refusal}"
        made.reject(image_id, kind, reason)
        return
    proposed = reply.content["pairs" if conditional else "queries"]
    if not proposed:
        made.reject(image_id, kind, "no query", reply.content)
    for said in proposed:
        instruction = _proposed(question, reply.content, said, objects)
        reasons = [query_problem(instruction.query), answer_problem(instruction.answer)]
        reasons += check_instruction(scene_set, question.scene, objects, instruction)
        if problem := next((reason for reason in reasons if reason not in ("", UNDECIDED)), ""):
            made.reject(image_id, kind, problem, said)
        else:
            yield instruction


def _proposed(question: Question, content: dict[str, Any], said: dict[str, Any], objects: SceneObjects) -> Instruction:
    """What a model said, true or not, with the numbers that its claim rests on where they can be measured.

    A claim that masks cannot decide is none: `claim` stays empty, `facts` keep the words.
    """
    subject, model = question.subject, question.request.model
    known: Mapping[str, Claim]
    if isinstance(subject, Pair):
        target, query, claim, known = subject.target, said["question"], said["relation"], RELATIONS
        beside = subject.anchor.objects(objects)
        anchor = Anchor(objects.classes[beside[0].class_id].name, subject.anchor.instance_ids, beside[0].box)
        words = {"target": content["target"], "anchor": content["anchor"], "relation": claim}
        kind, anchors, facts = "conditional", (anchor,), {"anchors": [subject.anchor_claim], "said": words}
    else:
        target, query, claim, beside = subject, said["query"], said.get("attribute", ""), ()
        known = {each.name: each for each in attribute_claims(objects, objects.classes[target.class_id])}
        words = {"target": content["target"]} | ({"attribute": claim} if claim else {})
        kind, anchors, facts = "attribute", (), {"said": words}
        claim = "" if claim == OTHER else claim
    picked = claim in known and single_out(known[claim], objects.of_class(target.class_id), beside, objects)
    return Instruction(
        question.scene.image_id,
        kind,
        objects.classes[target.class_id].name,
        query.strip(),
        said["answer"].strip(),
        target.instance_ids,
        claim=claim,
        anchors=anchors,
        facts={**(picked[1] if picked else {}), **facts},
        source=model,
    )


def rephrasing_requests(instructions: Sequence[Instruction], scene_set: SceneSet, model: str) -> list[Request]:
    """One for each instruction, in their order; equal ones where queries are.

    Raises:
        DataError: a class is none of the scene set's.
    """
    return [rephrasing_request(model, each, scene_set.class_named(each.class_name)) for each in instructions]


def add_rephrasings(made: Made, keys: Sequence[str], replies: Mapping[str, Reply | Unanswered]) -> Made:
    """The instructions with those rephrasings that can be used; one whose rephrasings cannot keeps what it had.

    Args:
        keys: of the requests, one for each instruction.
    """
    result = Made([], list(made.rejected))
    targets = _targets_of_queries(made.instructions, keys, replies)
    for instruction, key in zip(made.instructions, keys, strict=True):
        reply = replies[key]
        if isinstance(reply, Unanswered) or reply.content is None:
            reason = str(reply) if isinstance(reply, Unanswered) else f"refused: {reply.refusal}"
            result.reject(instruction.image_id, "rephrasings", reason, instruction.query)
            result.instructions.append(instruction)
            continue
        kept = _usable_rephrasings(instruction, reply.content["rephrasings"], targets, result)
        changed = replace(instruction, rephrasings=(*instruction.rephrasings, *kept))
        if len(changed.rephrasings) < LEAST_REPHRASINGS:
            count = f"fewer than {1 + LEAST_REPHRASINGS} ways to ask: {1 + len(changed.rephrasings)}"
            result.reject(instruction.image_id, "rephrasings", count, instruction.query)
        result.instructions.append(changed)
    return result


_Targets = dict[tuple[str, str], set[tuple[str, tuple[int, ...] | None]]]
"""(image_id, folded query) -> what it asks for."""


def _targets_of_queries(
    instructions: Sequence[Instruction], keys: Sequence[str], replies: Mapping[str, Reply | Unanswered]
) -> _Targets:
    targets: _Targets = {}
    for instruction, key in zip(instructions, keys, strict=True):
        reply = replies[key]
        proposed = reply.content["rephrasings"] if isinstance(reply, Reply) and reply.content else ()
        for query in (*queries_of(instruction), *proposed):
            asked = targets.setdefault((instruction.image_id, folded(query)), set())
            asked.add((instruction.class_name, instruction.instance_ids))
    return targets


def _usable_rephrasings(instruction: Instruction, proposed: Sequence[str], targets: _Targets, made: Made) -> list[str]:
    kept: list[str] = []
    seen = set(map(folded, queries_of(instruction)))
    for query in map(str.strip, proposed):
        problem = query_problem(query)
        if not problem and instruction.kind == "attribute" and names_class(query, instruction.class_name):
            problem = f"attribute query names its class: {instruction.class_name}"
        if not problem and instruction.kind == "conditional":
            problem = unmentioned(instruction, query)
        if not problem and folded(query) in seen:
            problem = "query is there twice"
        if not problem and len(targets[instruction.image_id, folded(query)]) > 1:
            problem = "query has two targets in one image"
        if problem:
            made.reject(instruction.image_id, "rephrasings", problem, {"query": instruction.query, "rephrasing": query})
        else:
            kept.append(query)
            seen.add(folded(query))
    return kept
