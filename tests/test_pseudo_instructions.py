"""Unlabelled images asked about parts of classes: every claim holds in the pseudo-label, and stage 3 trains on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_scripts.command_line import UsageError
from datasets_scripts.components import ComponentMap
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.verify import check_scene
from datasets_scripts.records import SceneSet
from datasets_scripts.scenes import write_scenes
from modeling_cora.consistency import mask_variance
from modeling_cora.masks import resize_mask_logits
from trainers.arguments import DataArguments, UnlabelledArguments
from trainers.loading import load_trained
from trainers.pseudo_instructions import PseudoInstructionDataset
from trainers.stage3 import Stage3Trainer
from trainers.stage3 import main as stage3
from trainers.unlabelled_dataset import PairedCollator

from .test_stage1 import history, largest_difference, on_two_processes
from .test_stage3 import stage3_options, two_stages

KINDS = ["semantic", "attribute", "conditional"]


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=4, unlabelled=4, val=1, size=(144, 192), progress=False)
    return folder


@pytest.fixture(scope="module")
def pseudo(street, tmp_path_factory) -> Path:
    """For each unlabelled scene the true map of a labelled one, as a segmenter without faults would give it."""
    folder, scene_set = tmp_path_factory.mktemp("pseudo"), read_folder(street)
    (folder / "masks").mkdir()
    labelled, unlabelled = (scene_set.split("train", labelled=given) for given in (True, False))
    for known, scene in zip(labelled, unlabelled, strict=True):
        Image.fromarray(scene_set.read_maps(known)[0]).save(folder / "masks" / f"{scene.image_id}.png")
    return folder


@pytest.fixture(scope="module")
def second_stage(street, tmp_path_factory) -> Path:
    return two_stages(street, tmp_path_factory.mktemp("stage"))


def unlabelled(street, pseudo, kinds=KINDS, queries=99, **changes) -> PseudoInstructionDataset:
    options = UnlabelledArguments(
        pseudo_labels=str(pseudo),
        unlabelled_parts=True,
        unlabelled_queries=queries,
        **{"consistency": "none", **changes},
    )
    scene_set = read_folder(street)
    scenes = scene_set.split("train", labelled=False)
    return PseudoInstructionDataset(scene_set, scenes, options, DataArguments(kinds=kinds), 40, seed=3)


def test_every_claim_holds_in_the_pseudo_label(street, pseudo):
    """`verify` measures each of them again, on scenes that have the pseudo-labels as their truth."""
    items, scene_set = unlabelled(street, pseudo), read_folder(street)
    empty = SceneSet(scene_set.classes, ())
    kinds = set()
    for index, scene in enumerate(items.scenes):
        shown = replace(scene, label_map=pseudo / "masks" / f"{scene.image_id}.png")
        shown = replace(shown, instance_map=ComponentMap(empty, shown))
        instructions = items.read_scene(index).instructions
        assert [faults for faults in check_scene(replace(empty, scenes=(shown,)), shown, instructions) if faults] == []
        kinds |= {(i.kind, bool(i.claim)) for i in instructions}
    expected = {("semantic", False), ("semantic", True), ("attribute", False), ("attribute", True)}
    assert kinds == {*expected, ("conditional", True)}


def test_masks_and_anchors_are_parts_of_the_pseudo_label(street, pseudo):
    items, pointed = unlabelled(street, pseudo), 0
    for number in range(4):
        item, asked = items.drawn(number)
        labels = np.asarray(Image.open(pseudo / "masks" / f"{asked[0].image_id}.png"))
        assert items[number]["number"] == number and items[number]["queries"] == item["queries"]
        for mask, class_id, instruction, anchors in zip(
            item["masks"], item["classes"], asked, item["anchors"], strict=True
        ):
            assert (labels[mask == 1] == class_id).all() and (mask == 1).any()
            whole = (labels == class_id).sum() == (mask == 1).sum()
            assert whole or instruction.instance_ids is not None
            assert len(anchors) == len(instruction.anchors) and (instruction.kind == "conditional") == bool(anchors)
            for anchor, record in zip(anchors, instruction.anchors, strict=True):
                pointed += 1
                assert set(labels[anchor].tolist()) == {items.class_ids[record.class_name]}
    assert pointed > 2


def test_no_relations_where_the_labelled_images_have_none(street, pseudo):
    items = unlabelled(street, pseudo, kinds=["semantic", "attribute"])
    assert {i.kind for index in range(4) for i in items.read_scene(index).instructions} == {"semantic", "attribute"}


def test_rephrasings_mean_the_same_and_are_other_words(street, pseudo):
    items = unlabelled(street, pseudo, consistency="online", rephrasings=6)
    for number in range(4):
        item, (_, asked) = items[number], items.drawn(number)
        for query, others, instruction in zip(item["queries"], item["rephrasings"], asked, strict=True):
            same = {instruction.query, *instruction.rephrasings}
            assert len(others) == 6 and set(others) <= same and query in same
            assert query not in others or len(same) == 1
            assert len(set(others)) == min(6, max(1, len(same) - 1))


def test_a_batch_asks_rephrasings_with_their_anchors(street, pseudo, second_stage):
    """The variance of eq. 6 from one packed pass equals that of one pass for each rephrasing."""
    model, processor = load_trained(str(second_stage))
    items = unlabelled(street, pseudo, queries=8, consistency="online", rephrasings=2)
    item = next(items[n] for n in range(40) if any(items[n]["anchors"]))
    batch = PairedCollator(processor)([{"labelled": items[0], "unlabelled": [item]}])
    model.eval()
    with torch.no_grad():
        output = model(**batch["inputs"])
        trainer = Stage3Trainer.__new__(Stage3Trainer)
        found = trainer._variances(model, batch, output.sam_image_embeddings)[0]
        for place, (others, anchors) in enumerate(zip(item["rephrasings"], item["anchors"], strict=True)):
            logits = []
            for query in others:
                one = processor([item["image"]], [[query]], anchors=[[anchors]])
                answer, sizes = model(**one), one["reshaped_input_sizes"][0].tolist()
                side = model.config.sam_config.vision_config.image_size
                logits.append(resize_mask_logits(answer.pred_masks, side, sizes, item["masks"].shape[1:]))
            torch.testing.assert_close(found[place], mask_variance(torch.stack(logits))[0], atol=1e-6, rtol=1e-3)


def test_ahead_has_no_weights_of_parts():
    with pytest.raises(UsageError, match=r"^unlabelled_parts: consistency ahead has weights of whole classes alone"):
        UnlabelledArguments(unlabelled_parts=True)


def test_two_processes_equal_one(street, pseudo, second_stage, tmp_path):
    given = dict(pseudo_labels=pseudo, consistency="online", unlabelled_parts=True, queries_per_image=6)
    given["unlabelled_queries"] = 6
    kinds = ["--kinds", *KINDS]
    stage3([*stage3_options(street, second_stage, tmp_path / "one", **given), *kinds])
    logged = [entry for entry in history(tmp_path / "one") if "loss" in entry]
    assert 0 < logged[-1]["mean_weight"] <= 1 and logged[-1]["pseudo_dice_loss"] > 0
    on_two_processes(
        "trainers/stage3.py",
        [*stage3_options(street, second_stage, tmp_path / "two", per_device_train_batch_size=1, **given), *kinds],
    )
    of_two = [entry for entry in history(tmp_path / "two") if "loss" in entry]
    for one, two in zip(logged, of_two, strict=True):
        for name in ("loss", "pseudo_bce_loss", "contrast_loss"):
            assert two[name] == pytest.approx(one[name], rel=5e-3, abs=1e-4), name
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 3e-4
