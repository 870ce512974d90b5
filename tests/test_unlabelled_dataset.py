"""Unlabelled images asked about classes and parts of them: every claim holds in the pseudo-label, weights lie where
masks lie, and stage 3 trains on them."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_scripts.command_line import UsageError
from datasets_scripts.components import ComponentMap
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import class_queries
from datasets_scripts.instructions.verify import check_scene
from datasets_scripts.records import DataError, SceneSet
from datasets_scripts.scenes import write_scenes
from modeling_cora.consistency import mask_variance
from modeling_cora.masks import resize_mask_logits
from trainers.arguments import DataArguments, UnlabelledArguments
from trainers.consistency_maps import packed_variances
from trainers.loading import load_trained
from trainers.stage3 import Stage3Trainer
from trainers.stage3 import main as stage3
from trainers.token_bank import TokenBank
from trainers.unlabelled_dataset import PairedCollator, UnlabelledDataset

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


def unlabelled(street, pseudo, kinds=KINDS, queries=99, view=None, scene_set=None, **changes) -> UnlabelledDataset:
    given = {"consistency": "none", "unlabelled_parts": True, **changes}
    options = UnlabelledArguments(pseudo_labels=str(pseudo), unlabelled_queries=queries, **given)
    scene_set = scene_set or read_folder(street)
    scenes = scene_set.split("train", labelled=False)
    return UnlabelledDataset(scene_set, scenes, options, DataArguments(kinds=kinds, **(view or {})), 40, seed=3)


def test_ids_that_mean_other_classes_are_refused(street, pseudo, tmp_path):
    shutil.copytree(pseudo, tmp_path / "pseudo")
    named = {c.id: c.name for c in read_folder(street).classes}
    for first, second, fits in ((0, 1, True), (1, 0, False)):
        names = {**named, 0: named[first], 1: named[second]}
        (tmp_path / "pseudo/meta.json").write_text(json.dumps({"classes": names}))
        refused = nullcontext() if fits else pytest.raises(DataError, match="class 0 is 'road', for the pseudo-labels")
        with refused:
            unlabelled(street, tmp_path / "pseudo")
    for wrong in ('{"classes": ["road"]}', '{"classes": {"road": 0}}', "{}"):
        (tmp_path / "pseudo/meta.json").write_text(wrong)
        with pytest.raises(DataError, match=r'meta.json: classes: .*; {"0": "road", ...} would be right'):
            unlabelled(street, tmp_path / "pseudo")


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
        item, asked, _ = items.drawn(number)
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


@pytest.mark.parametrize("parts", [True, False])
def test_rephrasings_mean_the_same_and_are_other_words(street, pseudo, parts):
    items = unlabelled(street, pseudo, consistency="online", rephrasings=6, unlabelled_parts=parts)
    of_class = {c.name: {q for kind in KINDS for q in class_queries(c, kind)} for c in read_folder(street).classes}
    for number in range(4):
        item, (_, asked, _) = items[number], items.drawn(number)
        for query, others, instruction in zip(item["queries"], item["rephrasings"], asked, strict=True):
            same = {instruction.query, *instruction.rephrasings} if parts else of_class[instruction.class_name]
            assert len(others) == 6 and set(others) <= same and query in same
            assert query not in others or len(same) == 1
            assert len(set(others)) == min(6, max(1, len(same) - 1))


def test_a_whole_class_is_asked_once_by_any_of_its_queries(street, pseudo):
    """As the pseudo-label shows it, and each time by another draw from all of them, whatever their kind."""
    items, scene_set = unlabelled(street, pseudo, unlabelled_parts=False), read_folder(street)
    by_id, used, kinds = {c.id: c for c in scene_set.classes}, {}, set()
    for number in range(40):
        item, asked, _ = items.drawn(number)
        labels = np.asarray(Image.open(pseudo / "masks" / f"{asked[0].image_id}.png"))
        assert "anchors" not in item and len(set(item["classes"])) == len(item["classes"])
        # 3 pixels of 144 x 192 are enough of a class
        shown = {c for c in np.unique(labels[labels < 255]).tolist() if (labels == c).sum() >= 3 and by_id[c].asked}
        assert set(item["classes"]) == shown
        for query, answer, class_id, mask in zip(
            item["queries"], item["answers"], item["classes"], item["masks"], strict=True
        ):
            own = {kind: class_queries(by_id[class_id], kind) for kind in ("semantic", "attribute")}
            kinds |= {kind for kind, queries in own.items() if query in queries}
            pool = [*own["semantic"], *own["attribute"]]
            assert query in pool and answer.count("[SEG]") == 1
            assert np.array_equal(mask == 1, labels == class_id) and np.array_equal(mask == 255, labels == 255)
            used.setdefault(class_id, []).append((pool.index(query) + 0.5) / len(pool))
    assert kinds == {"semantic", "attribute"}
    often = [np.mean(places) for places in used.values() if len(places) == 40]  # of classes that every scene shows
    assert often and np.allclose(often, 0.5, atol=4 * np.sqrt(1 / 12 / 40))  # four standard errors of a uniform draw


def test_weights_lie_where_their_masks_lie(street, pseudo, tmp_path):
    """A variance of 1/4 on a class and 0 elsewhere makes lambda 0 on its mask and 1 elsewhere, in every view. What has
    no variance is not asked for."""
    known = {}
    for number, scene in enumerate(read_folder(street).split("train", labelled=False)):
        labels = np.asarray(Image.open(pseudo / "masks" / f"{scene.image_id}.png"))
        chosen = known[scene.image_id] = np.unique(labels[labels < 255]).tolist()[: 3 * number]
        variances = {c: (labels == c) / 4 for c in chosen}
        (tmp_path / f"{scene.image_id}.safetensors").write_bytes(packed_variances(variances))
    given = dict(unlabelled_parts=False, consistency="ahead", consistency_weights=str(tmp_path))
    items = unlabelled(street, pseudo, view=dict(flip=0.5, crop=0.5), **given)
    sizes, without = set(), next(image_id for image_id, classes in known.items() if not classes)
    for number in range(24):
        item, asked, _ = items.drawn(number)
        assert items[number]["weights"].dtype == np.float32
        assert np.array_equal(items[number]["weights"], item["masks"] != 1)
        assert asked[0].image_id != without and set(item["classes"]) <= set(known[asked[0].image_id])
        sizes.add(item["image"].size)
    assert (192, 144) in sizes and len(sizes) > 2


def test_a_class_of_one_side_is_left_out_where_left_is_right(street, pseudo):
    scene_set = read_folder(street)
    plain = unlabelled(street, pseudo, unlabelled_parts=False)
    first = plain[0]["classes"][0]
    classes = tuple(replace(c, attributes=("the left one",)) if c.id == first else c for c in scene_set.classes)
    given = dict(unlabelled_parts=False, scene_set=replace(scene_set, classes=classes))
    for flip in (0.0, 1.0):
        items = unlabelled(street, pseudo, view=dict(flip=flip), **given)
        picture = np.asarray(plain[0]["image"])
        assert np.array_equal(np.asarray(items[0]["image"]), picture[:, ::-1] if flip else picture)
        assert set(plain[0]["classes"]) - set(items[0]["classes"]) == ({first} if flip else set())


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


@pytest.mark.parametrize("queries", ["all", "classes"])
def test_alignment_of_whole_classes_leaves_parts_alone(street, pseudo, second_stage, tmp_path, monkeypatch, queries):
    """Neither pulled nor kept in the bank; what is a part is told by comparing the masks."""
    items = unlabelled(street, pseudo, queries=12)
    item, labels = items[0], items.scene_of(0).labels
    parts = [not np.array_equal(m == 1, labels == c) for m, c in zip(item["masks"], item["classes"], strict=True)]
    assert 0 < sum(parts) < len(parts)

    trainer = Stage3Trainer.__new__(Stage3Trainer)
    trainer.args, trainer.record_terms = SimpleNamespace(seed=0), lambda terms: None
    trainer.unlabelled = UnlabelledArguments(aligned_queries=queries)
    trainer.bank = TokenBank(64, 19)
    trainer.bank.push(torch.randn(19, 8, generator=torch.Generator().manual_seed(1)), torch.arange(19))
    _, processor = load_trained(str(second_stage))
    batch = PairedCollator(processor)([{"labelled": item, "unlabelled": [item]}])
    embeddings = torch.randn(len(parts), 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    trainer._contrast(embeddings, batch).backward()
    assert (embeddings.grad.abs().sum(1) > 0).tolist() == [queries == "all" or not part for part in parts]

    asked, kept, collate, push = [], [], PairedCollator.__call__, TokenBank.push
    monkeypatch.setattr(PairedCollator, "__call__", lambda self, items: asked.extend(items) or collate(self, items))
    monkeypatch.setattr(TokenBank, "push", lambda self, t, c: kept.append((len(t), len(c))) or push(self, t, c))
    given = dict(pseudo_labels=pseudo, consistency="none", unlabelled_parts=True, queries_per_image=20, max_steps=2)
    given |= dict(flip=0, crop=0)
    argv = stage3_options(street, second_stage, tmp_path / "run", aligned_queries=queries, **given)
    stage3([*argv, "--kinds", *KINDS])
    first_step = [one["labelled"]["whole"] for one in asked[:2]]
    whole, every = sum(map(sum, first_step)), sum(map(len, first_step))
    assert 0 < whole < every and kept[0] == ((every, every) if queries == "all" else (whole, whole))


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
