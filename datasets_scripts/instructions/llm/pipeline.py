"""Instructions by a language model (arXiv 2511.17755): it proposes, the masks decide.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...records import Anchor, Instruction, Scene, SceneSet, read_image
from ..attribute import names_class
from ..objects import SceneObjects
from .checks import answer_problem, attribute_problem, query_problem, relation_problem, words
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

Accept = Callable[[Instruction], str | None]
"""Why an instruction is rejected, or None. Called in the order of the scenes; once more when rephrasings are added,
and then a reason takes these away again."""


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


def read_replies(
    questions: Sequence[Question],
    replies: Mapping[str, Reply | Unanswered],
    scene_set: SceneSet,
    accept: Accept | None = None,
) -> Made:
    """Instructions from what a model replied, each checked against the masks; everything else in `rejected`.

    Args:
        replies: by key, one for each question.
        accept: further checks.
    """
    made = Made()
    for _, of_scene in groupby(questions, key=lambda question: question.scene.image_id):
        found: list[Instruction] = []
        objects: SceneObjects | None = None
        for question in of_scene:
            objects = objects or SceneObjects.of_scene(scene_set, question.scene)
            found += _instructions(question, replies[question.key], objects, made)
        made.instructions += [each for each in _told_apart(found, made) if _accepted(each, accept, made)]
    return made


def _instructions(
    question: Question, reply: Reply | Unanswered, objects: SceneObjects, made: Made
) -> Iterator[Instruction]:
    """Those of one reply that pass all checks on their own."""
    conditional = isinstance(question.subject, Pair)
    kind, image_id = "conditional" if conditional else "attribute", question.scene.image_id
    if isinstance(reply, Unanswered) or reply.content is None:
        reason = str(reply) if isinstance(reply, Unanswered) else f"refused: {reply.refusal}"
        made.reject(image_id, kind, reason)
        return
    content = reply.content
    proposed = content["pairs" if conditional else "queries"]
    if not proposed:
        made.reject(image_id, kind, "no query", content)
    for said in proposed:
        query, answer = (said["question" if conditional else "query"].strip(), said["answer"].strip())
        problem, fields = query_problem(query) or answer_problem(answer), {}
        if not problem:
            problem, fields = (_conditional if conditional else _attribute)(question.subject, content, said, objects)
        if problem:
            made.reject(image_id, kind, problem, said)
            continue
        target = question.subject.target if conditional else question.subject
        yield Instruction(
            image_id,
            kind,
            objects.classes[target.class_id].name,
            query,
            answer,
            target.instance_ids,
            source=question.request.model,
            **fields,
        )


def _conditional(
    pair: Pair, content: dict[str, Any], said: dict[str, Any], objects: SceneObjects
) -> tuple[str, dict[str, Any]]:
    """What is wrong, or the fields of the instruction."""
    problem, numbers = relation_problem(said["relation"], pair, objects)
    anchors = pair.anchor.objects(objects)
    anchor = Anchor(objects.classes[pair.anchor.class_id].name, pair.anchor.instance_ids, anchors[0].box)
    descriptions = {"target": content["target"], "anchor": content["anchor"], "relation": said["relation"]}
    facts = {**numbers, "anchors": [pair.anchor_claim], "said": descriptions}
    return problem, {"claim": said["relation"], "anchors": (anchor,), "facts": facts}


def _attribute(
    target: Target, content: dict[str, Any], said: dict[str, Any], objects: SceneObjects
) -> tuple[str, dict[str, Any]]:
    """As `_conditional`. A claim that masks cannot decide is none: `claim` stays empty, `facts` keep the words."""
    name = objects.classes[target.class_id].name
    if names_class(said["query"], name):
        return f"names its class: {name}", {}
    facts: dict[str, Any] = {"said": {"target": content["target"]}}
    attribute = said.get("attribute", OTHER)
    if target.instance_ids is not None:
        facts["said"]["attribute"] = attribute
    if attribute == OTHER:
        return "", {"facts": facts}
    problem, numbers = attribute_problem(attribute, target, objects)
    return problem, {"claim": attribute, "facts": {**numbers, **facts}}


def _told_apart(found: Sequence[Instruction], made: Made) -> list[Instruction]:
    """Without queries that a scene has twice: one stays where both ask for the same, none where they do not."""
    targets: dict[str, set] = {}
    for each in found:
        targets.setdefault(words(each.query), set()).add((each.class_name, each.instance_ids))
    kept: list[Instruction] = []
    seen: set[str] = set()
    for each in found:
        query = words(each.query)
        if len(targets[query]) > 1:
            made.reject(each.image_id, each.kind, "same query for different targets", each.query)
        elif query in seen:
            made.reject(each.image_id, each.kind, "same query again", each.query)
        else:
            kept.append(each)
        seen.add(query)
    return kept


def _accepted(instruction: Instruction, accept: Accept | None, made: Made) -> bool:
    reason = accept(instruction) if accept else None
    if reason:
        said = {"query": instruction.query, "rephrasings": list(instruction.rephrasings), "claim": instruction.claim}
        made.reject(instruction.image_id, instruction.kind, reason, said)
    return not reason


def rephrasing_requests(instructions: Sequence[Instruction], scene_set: SceneSet, model: str) -> list[Request]:
    """One for each instruction, in their order; equal ones where queries are.

    Raises:
        DataError: a class is none of the scene set's.
    """
    return [rephrasing_request(model, each, scene_set.class_named(each.class_name)) for each in instructions]


def add_rephrasings(
    made: Made,
    keys: Sequence[str],
    replies: Mapping[str, Reply | Unanswered],
    accept: Accept | None = None,
) -> Made:
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
        result.instructions.append(changed if _accepted(changed, accept, result) else instruction)
    return result


_Targets = dict[tuple[str, str], set[tuple[str, tuple[int, ...] | None]]]
"""(image_id, words of a query) -> what it asks for."""


def _targets_of_queries(
    instructions: Sequence[Instruction], keys: Sequence[str], replies: Mapping[str, Reply | Unanswered]
) -> _Targets:
    targets: _Targets = {}
    for instruction, key in zip(instructions, keys, strict=True):
        reply = replies[key]
        proposed = reply.content["rephrasings"] if isinstance(reply, Reply) and reply.content else ()
        for query in (instruction.query, *instruction.rephrasings, *proposed):
            asked = targets.setdefault((instruction.image_id, words(query)), set())
            asked.add((instruction.class_name, instruction.instance_ids))
    return targets


def _usable_rephrasings(instruction: Instruction, proposed: Sequence[str], targets: _Targets, made: Made) -> list[str]:
    kept: list[str] = []
    seen = {words(query) for query in (instruction.query, *instruction.rephrasings)}
    for query in map(str.strip, proposed):
        problem = query_problem(query)
        if not problem and instruction.kind == "attribute" and names_class(query, instruction.class_name):
            problem = f"names its class: {instruction.class_name}"
        if not problem and words(query) in seen:
            problem = "same query again"
        if not problem and len(targets[instruction.image_id, words(query)]) > 1:
            problem = "same query for different targets"
        if problem:
            made.reject(instruction.image_id, "rephrasings", problem, {"query": instruction.query, "rephrasing": query})
        else:
            kept.append(query)
            seen.add(words(query))
    return kept
