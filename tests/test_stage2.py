"""Stage 2 as a user runs it: on top of stage 1, with anchors, resumed, by two processes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datasets_scripts.command_line import UsageError
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import build_instructions, read_instructions
from datasets_scripts.records import read_image, region_mask
from datasets_scripts.scenes import write_scenes
from trainers.arguments import DataArguments
from trainers.evaluate import EvaluationArguments, run_evaluation
from trainers.instruction_dataset import InstructionDataset
from trainers.loading import load_trained
from trainers.stage1 import main as stage1
from trainers.stage2 import main as stage2

from .test_stage1 import ROOT, history, largest_difference, on_two_processes, options

RECIPE = str(ROOT / "trainers/recipes/demo_stage2.yaml")


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=3, unlabelled=1, val=1, size=(96, 128), progress=False)
    return folder


@pytest.fixture(scope="module")
def first_stage(street, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stage1")
    stage1(options(street, out, max_steps=1))
    return out


def stage2_options(street, first_stage, out, **changes):
    changes = {"save_total_limit": 9, **changes}
    argv = options(street, out, model=first_stage, **changes)
    for name in ("--clip_image_size", "--sam_image_size"):  # of cora-tiny alone
        place = argv.index(name)
        del argv[place : place + 2]
    return [RECIPE, *argv]


def test_it_trains_on_conditional_queries_and_resumes_to_the_bit(street, first_stage, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    stage2(stage2_options(street, first_stage, whole, save_strategy="steps", save_steps=2))
    assert {i.kind for i in read_instructions(whole / "instructions.jsonl")} == {"conditional"}
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    changes = dict(save_strategy="steps", save_steps=2, resume_from_checkpoint=True)
    stage2(stage2_options(street, first_stage, resumed, **changes))
    assert largest_difference(whole, resumed) == 0.0
    before, after = load_file(whole / "checkpoint-2" / "model.safetensors"), load_file(whole / "model.safetensors")
    assert (before["anchor_encoder.box.weight"] - after["anchor_encoder.box.weight"]).abs().max() > 1e-4
    model, processor = load_trained(str(whole))
    assert model.config.anchor_token_id == processor.add_anchor_token()


def test_sharded_weights_take_one_line(street, first_stage, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainers.cora_trainer.gradients_are_sharded", lambda trainer: True)
    with pytest.raises(SystemExit) as stopped:
        stage2(stage2_options(street, first_stage, tmp_path / "out"))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and "ddp_4.yaml or deepspeed_zero1_4.yaml" in errors[0]
    assert not (tmp_path / "out" / "training.json").exists()


@pytest.mark.slow  # as stages 1 and 3, which are tested each time
def test_two_processes_equal_one(street, first_stage, tmp_path):
    stage2(stage2_options(street, first_stage, tmp_path / "one", queries_per_image=20))
    on_two_processes(
        "trainers/stage2.py",
        stage2_options(street, first_stage, tmp_path / "two", per_device_train_batch_size=1, queries_per_image=20),
    )
    for one, two in zip(history(tmp_path / "one")[:4], history(tmp_path / "two")[:4], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 2e-4


def test_items_bring_the_anchors_of_their_queries(street):
    scene_set = read_folder(street)
    scenes = scene_set.split("train", labelled=True)
    instructions = build_instructions(scene_set, scenes, ("semantic", "conditional"))
    items, small = (
        InstructionDataset(
            scene_set,
            scenes,
            instructions,
            DataArguments(queries_per_image=30, max_label_size=longest),
            length=6,
            seed=0,
            anchors=True,
        )
        for longest in (None, 64)
    )
    by_query = {text: i for i in instructions for text in (i.query, *i.rephrasings)}
    pictures = {read_image(s.image).tobytes(): s for s in scenes}
    numbers = set()
    for index in range(3):
        item = items[index]
        scene = pictures[item["image"].tobytes()]
        labels, instances = scene_set.read_maps(scene)
        own = {text: i for text, i in by_query.items() if i.image_id == scene.image_id}
        for query, masks in zip(item["queries"], item["anchors"], strict=True):
            numbers.add(len(masks))
            instruction = own.get(query)
            if instruction is None:
                continue  # the same words about two scenes
            assert len(masks) == len(instruction.anchors)
            for anchor, mask in zip(instruction.anchors, masks, strict=True):
                class_id = scene_set.class_named(anchor.class_name).id
                exact = region_mask(class_id, anchor.instance_ids, labels, instances) == 1
                assert np.array_equal(mask, exact)
                rows, columns = np.nonzero(exact)
                assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == anchor.box
        # where the labels are smaller, the anchors still are of the image's size
        assert {mask.shape for masks in small[index]["anchors"] for mask in masks} == {(96, 128)}
    assert numbers >= {0, 1}


def test_an_anchor_changes_the_answer(street, first_stage, tmp_path):
    stage2(stage2_options(street, first_stage, tmp_path, max_steps=1))
    model, processor = load_trained(str(tmp_path))
    image = read_image(next((street / "images").glob("*.png")))
    left, right = np.zeros((2, 96, 128), bool)
    left[20:60, :40], right[20:60, 90:] = True, True
    with torch.no_grad():
        states = [
            model(**processor([image], [["the car next to this"]], anchors=[[[mask]]])).seg_embeddings
            for mask in (left, right)
        ]
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_evaluation_gives_conditional_queries_their_anchors(street, first_stage, tmp_path):
    stage2(stage2_options(street, first_stage, tmp_path / "model", max_steps=1))
    kinds = ["semantic", "conditional"]
    summaries, records = {}, {}
    for anchors in ("learned", "none"):
        out = tmp_path / anchors
        arguments = EvaluationArguments(
            model=str(tmp_path / "model"), data=str(street), split="train", kinds=kinds, out=str(out), examples=0,
            anchors=anchors,
        )  # fmt: skip
        summaries[anchors] = run_evaluation(arguments)
        records[anchors] = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    by_claim = summaries["learned"]["by_claim"]
    asked = Counter(f"{r['kind']}, {r['claim']}" for r in records["learned"] if r["claim"])
    assert {name: s["queries"] for name, s in by_claim.items()} == asked and "conditional, left" in asked
    scores = {
        anchors: {kind: [r["score"] for r in of if r["kind"] == kind] for kind in kinds}
        for anchors, of in records.items()
    }
    assert scores["learned"]["semantic"] == pytest.approx(scores["none"]["semantic"], abs=2e-4)
    assert np.abs(np.subtract(scores["learned"]["conditional"], scores["none"]["conditional"])).max() > 1e-3
    shown = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())["evaluation"]["anchors"] for name in records
    }
    assert shown == {"learned": "given", "none": "none"}
    with pytest.raises(UsageError, match="anchors: 'some'"):
        run_evaluation(EvaluationArguments(model="x", data=str(street), anchors="some"))
