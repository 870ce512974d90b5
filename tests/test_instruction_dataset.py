"""Training items: a function of (seed, number) alone, with masks that fit the picture they come with."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.instructions.mirror import mirrored_text
from datasets_scripts.records import DataError, Instruction
from datasets_scripts.scenes import write_scenes
from trainers.arguments import DataArguments
from trainers.baselines import MeanMask, _best_level, trivial_counts
from trainers.instruction_dataset import InstructionDataset


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=4, unlabelled=0, val=1, size=(72, 96), progress=False)
    scene_set = read_folder(str(folder))
    scenes = scene_set.split("train", labelled=True)
    return scene_set, scenes, build_instructions(scene_set, scenes, ("semantic", "attribute"), 0)


def dataset(street, seed=0, **fields):
    scene_set, scenes, instructions = street
    return InstructionDataset(scene_set, scenes, instructions, DataArguments(**fields), length=40, seed=seed)


def same(first: dict, second: dict) -> bool:
    return (
        first["queries"] == second["queries"]
        and np.array_equal(first["image"], second["image"])
        and np.array_equal(first["masks"], second["masks"])
    )


def test_an_item_depends_on_seed_and_number_alone(street):
    augmented = dict(flip=0.5, crop=0.5, colour_jitter=0.3)
    forwards, backwards = dataset(street, **augmented), dataset(street, **augmented)
    last_to_first = {k: backwards[k] for k in reversed(range(12))}
    assert all(same(forwards[k], last_to_first[k]) for k in range(12))
    assert not all(same(forwards[k], dataset(street, seed=1, **augmented)[k]) for k in range(12))


def test_workers_that_are_not_forked_give_the_same_items(street):
    """As on macOS and Windows, and everywhere from Python 3.14 on: the data set is pickled."""
    here = dataset(street, flip=0.5)
    loader = DataLoader(here, batch_size=None, num_workers=1, multiprocessing_context="spawn", collate_fn=identity)
    there = list(islice(loader, 5))
    assert all(same(here[k], there[k]) for k in range(5))


def identity(item):
    return item


def test_every_pass_takes_every_scene_once(street):
    items = dataset(street, queries_per_image=1)
    for start in (0, 4, 8):
        pictures = {items[k]["image"].tobytes() for k in range(start, start + 4)}
        assert len(pictures) == 4


def test_masks_are_those_of_the_queries(street):
    scene_set, scenes, instructions = street
    item = dataset(street, queries_per_image=50)[0]
    by_query = {}
    pictures = {}
    for scene in scenes:
        labels, instances = scene_set.read_maps(scene)
        pictures[scene.image_id] = (labels, instances)
    for i in instructions:
        for query in (i.query, *i.rephrasings):
            by_query.setdefault((i.image_id, query), i)
    owners = {image_id for (image_id, query) in by_query if query == item["queries"][0]}
    matches = []
    for image_id in owners:
        masks = []
        for query in item["queries"]:
            instruction = by_query.get((image_id, query))
            if instruction is None:
                break
            class_id = scene_set.class_named(instruction.class_name).id
            masks.append(instruction.target_mask(class_id, *pictures[image_id]))
        matches.append(len(masks) == len(item["masks"]) and np.array_equal(masks, item["masks"]))
    assert any(matches)


def test_a_target_comes_twice_only_after_every_target_came_once(street):
    class_level = [i for i in street[2] if i.instance_ids is None]
    names = {i.class_name for i in class_level if i.image_id == class_level[0].image_id}
    few = dataset((*street[:2], class_level), queries_per_image=4)
    for k in range(12):
        masks = few[k]["masks"]
        assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) == 4
    everything = dataset((*street[:2], class_level), queries_per_image=100)
    assert len(everything[0]["queries"]) in {sum(i.image_id == s.image_id for i in class_level) for s in street[1]}
    assert len(names) > 4


def test_a_flip_flips_image_and_masks_together(street):
    class_level = [i for i in street[2] if i.instance_ids is None]
    plain = dataset((*street[:2], class_level))
    flipped = dataset((*street[:2], class_level), flip=1.0)
    a, b = plain[0], flipped[0]
    assert np.array_equal(np.asarray(a["image"])[:, ::-1], np.asarray(b["image"]))
    assert np.array_equal(a["masks"][..., ::-1], b["masks"])


def test_a_flip_swaps_the_sides_that_queries_name(street):
    instance_level = [i for i in street[2] if i.instance_ids is not None]
    every = dict(flipped_queries="all")
    plain, flipped = (dataset((*street[:2], instance_level), flip=flip, **every) for flip in (0.0, 1.0))
    changed = 0
    for k in range(12):
        a, b = plain[k], flipped[k]
        assert np.array_equal(np.asarray(a["image"])[:, ::-1], np.asarray(b["image"]))
        assert np.array_equal(a["masks"][..., ::-1], b["masks"])
        assert b["queries"] == [mirrored_text(query) for query in a["queries"]]
        changed += a["queries"] != b["queries"]
    assert changed


def test_what_would_not_be_true_any_more_is_not_asked_of_a_view(street):
    """Cropped, "the largest" may be another; mirrored, free text with a side is no longer true."""
    instance_level = [i for i in street[2] if i.instance_ids is not None]
    free = [replace(i, source="people", query=f"what is left: {i.query}") for i in street[2]]
    every = dict(flip=1.0, flipped_queries="all")
    views = ((instance_level, dict(flip=1.0)), (instance_level, dict(every, crop=1.0)), (free, every))
    for instructions, view in views:
        fixed, plain = dataset((*street[:2], instructions), **view), dataset((*street[:2], instructions))
        assert instructions and all(same(fixed[k], plain[k]) for k in range(6))
    mixed = dataset((*street[:2], [*free, *street[2]]), queries_per_image=50, **every)
    assert not any("what is" in query for k in range(6) for query in mixed[k]["queries"])


def test_free_text_is_not_asked_of_a_crop(street):
    """Of a whole class, too, it may say what is true of the whole picture alone: "the largest dog"."""
    class_level = [i for i in street[2] if i.instance_ids is None and not i.claim]
    free = [replace(i, source="people", query=f"the largest: {i.query}", rephrasings=()) for i in class_level]
    fixed, plain = dataset((*street[:2], free), crop=1.0), dataset((*street[:2], free))
    assert free and all(same(fixed[k], plain[k]) for k in range(6))
    mixed = dataset((*street[:2], [*free, *class_level]), queries_per_image=50, crop=1.0, crop_scale=0.5)
    for k in range(6):
        assert mixed[k]["image"].size != (96, 72) and not any("largest" in query for query in mixed[k]["queries"])


def test_a_crop_keeps_what_lies_in_it(street):
    item = dataset(street, crop=1.0, crop_scale=0.5)
    for k in range(8):
        sample = item[k]
        width, height = sample["image"].size
        assert sample["masks"].shape[1:] == (height, width)
        assert 36 <= height <= 72 and 48 <= width <= 96


@pytest.mark.parametrize("view", [dict(crop=1.0, crop_scale=0.3), dict(max_label_size=12)])
def test_what_a_view_shows_nothing_of_is_not_asked_for(street, view):
    """It would be learned as a thing that is not there. Of the whole picture everything is asked."""
    asked, whole = dataset(street, queries_per_image=50, **view), dataset(street, queries_per_image=50)
    assert all((asked[k]["masks"] == 1).any((1, 2)).all() for k in range(12))
    assert any(set(asked[k]["classes"]) < set(whole[k]["classes"]) for k in range(12))


def test_an_answer_of_nothing_stays_one(street):
    """An image of ReasonSeg without the target, its map made smaller."""
    scene_set, scenes, _ = street
    absent = next(c.name for c in scene_set.classes if c.id not in scene_set.read_labels(scenes[0]))
    query = Instruction(scenes[0].image_id, "reasoning", absent, "what is not here", "[SEG]", source="people")
    item = dataset((scene_set, scenes, [query]), max_label_size=48)[0]
    assert item["queries"] == ["what is not here"] and not (item["masks"] == 1).any()


def test_label_maps_shrink_without_moving(street):
    small = dataset(street, max_label_size=48)[0]["masks"]
    full = dataset(street)[0]["masks"]
    assert small.shape[1:] == (36, 48)
    agreement = (full[:, ::2, ::2][:, : small.shape[1]] == small).mean()
    assert agreement > 0.9


def test_no_instruction_is_an_error(street):
    scene_set, scenes, _ = street
    with pytest.raises(DataError, match="no labelled image"):
        InstructionDataset(scene_set, scenes, [], DataArguments(), 1, 0)


def test_the_mean_mask_of_one_image_is_that_image(street, tmp_path):
    """Its instances, which may take a second to find, are not looked for."""
    scene_set, scenes, _ = street
    labels = scene_set.read_labels(scenes[0])
    mean = MeanMask(scene_set, [replace(scenes[0], instance_map=tmp_path / "not read.png")])
    road = scene_set.class_named("road").id
    predicted = mean("road", labels.shape)
    assert (predicted & (labels == road)).sum() / (predicted | (labels == road)).sum() > 0.9
    assert not mean("no such class", (3, 4)).any()


def test_trivial_counts_by_hand():
    target = np.array([[1, 1, 0, 255]], np.uint8)
    counts = trivial_counts(target, "road", None)
    assert counts == {"whole image": (2, 3)}
    target = np.array([[1, 0, 0, 255]], np.uint8)  # one of two road pixels; the third is unknown
    counts = trivial_counts(target, "road", None, whole_class=np.array([[True, True, False, True]]))
    assert counts == {"whole image": (1, 3), "whole class": (1, 2)}
    assert Instruction("a", "semantic", "road", "q", "[SEG]").target_mask(
        1, np.array([[1, 2, 255]], np.uint8)
    ).tolist() == [[1, 0, 255]]


def test_many_small_things_have_a_mean_mask():
    """A hundred, each in a place of its own: the mean is .01 everywhere, and nothing marked would find none of them."""
    masks = torch.eye(100).view(100, 10, 10)
    assert (masks.mean(0) >= _best_level(masks)).all()
