"""Queries of a mirrored picture: held against what `verify` decides from its mirrored maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_scripts.components import with_components
from datasets_scripts.instructions.build import KINDS, build_instructions
from datasets_scripts.instructions.mirror import can_be_mirrored, mirrored_text, names_side, sided_classes
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.instructions.verify import check_instruction
from datasets_scripts.records import Instruction, SceneSet, SemanticClass, read_image
from trainers.evaluate import evaluate_scenes, mirrored

from .test_relations import random_scene
from .test_verify import SET, write_scene

MEASURED = ("facts are not", "anchor's box")
"""Reasons that name numbers, which another picture has others of."""


def mirrored_reasons(scene_set: SceneSet, instruction: Instruction) -> list[str]:
    """What `verify` has against the mirrored words about the mirrored maps."""
    (scene,) = scene_set.scenes
    labels, instances = scene_set.read_maps(scene)
    pixels = np.asarray(read_image(scene.image))[:, ::-1]
    objects = SceneObjects(scene_set.classes, labels[:, ::-1], instances[..., ::-1], lambda: pixels, scene.facts)
    facts = dict(instruction.facts)
    if "anchors" in facts:
        facts["anchors"] = [mirrored_text(claim) for claim in facts["anchors"]]
    swapped = replace(
        instruction,
        query=mirrored_text(instruction.query),
        rephrasings=tuple(map(mirrored_text, instruction.rephrasings)),
        claim=mirrored_text(instruction.claim),
        facts=facts,
    )
    return [r for r in check_instruction(scene_set, scene, objects, swapped) if not r.startswith(MEASURED)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_swapped_words_are_true_of_the_mirrored_picture(tmp_path_factory, seed, known):
    labels, planes, pixels = random_scene(seed)
    facts = {n: {"colour": "red" if n % 3 else "blue"} for n in range(1, 8)} if known else None
    scene = write_scene(tmp_path_factory.mktemp("scene"), labels, planes, pixels, facts=facts)
    scene_set = with_components(SceneSet(SET, (scene,)))
    instructions = build_instructions(scene_set, scene_set.scenes, KINDS, seed)
    assert instructions
    for instruction in instructions:
        assert can_be_mirrored(instruction)
        assert not mirrored_reasons(scene_set, instruction), instruction


def test_words_with_a_side_and_without():
    pairs = {
        "the leftmost car": "the rightmost car",
        "the car on the right-hand side of the van, left of the tree": (
            "the car on the left-hand side of the van, right of the tree"
        ),
        "Left of it": "Right of it",
        "the upright bars": "the upright bars",
        "the brightest lamp": "the brightest lamp",
    }
    for one, other in pairs.items():
        assert mirrored_text(one) == other and mirrored_text(other) == one
        assert names_side(one) == (one != other)


def test_free_text_with_a_side_and_classes_of_one_side_are_never_mirrored():
    rule = Instruction(
        "a", "semantic", "car", "the car in the left half of the picture", "It is [SEG].", claim="left half"
    )
    assert can_be_mirrored(rule)
    assert not can_be_mirrored(replace(rule, source="people", query="the man who left"))
    assert not can_be_mirrored(replace(rule, source="people", query="the man", rephrasings=("right behind it",)))
    assert can_be_mirrored(replace(rule, source="people", query="the man", rephrasings=("him",)))
    kidneys = (
        SemanticClass(0, "left kidney"),
        SemanticClass(1, "spleen"),
        SemanticClass(2, "liver", ("the organ on the right",)),
    )
    sided = sided_classes(kidneys)
    assert sided == {"left kidney", "liver"}
    assert not can_be_mirrored(replace(rule, class_name="liver"), sided)
    assert can_be_mirrored(replace(rule, class_name="spleen"), sided)


def test_mirrored_evaluation_is_one_of_mirrored_files(tiny, tmp_path):
    """Scores are those of files that are mirrored on disk, with the same words, whatever the model answers."""
    model, processor = tiny
    labels, planes, pixels = random_scene(3)
    sets = []
    for name, step in (("plain", 1), ("mirrored", -1)):
        folder = tmp_path / name
        folder.mkdir()
        scene = write_scene(folder, labels[:, ::step], planes[:, :, ::step].copy(), pixels[:, ::step])
        sets.append(SceneSet(SET, (scene,)))
    plain, on_disk = sets
    free = Instruction("street", "reasoning", "car", "what has just left?", "It is [SEG].", source="people")
    instructions = mirrored([*build_instructions(plain, plain.scenes, KINDS), free], plain)
    assert any(names_side(i.query) for i in instructions) and not any(i.source == "people" for i in instructions)
    found = evaluate_scenes(model, processor, plain, plain.scenes, instructions, mirror=True)
    assert found == evaluate_scenes(model, processor, on_disk, on_disk.scenes, instructions)
    assert found != evaluate_scenes(model, processor, plain, plain.scenes, instructions)
