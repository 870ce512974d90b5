"""Instructions of other origin than the rules, as `ask_llm` writes them: checked, built into tables, trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from datasets_scripts.build import main as build
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.build import build_instructions, read_instructions, write_instructions
from datasets_scripts.scenes import write_scenes
from datasets_scripts.verify import main as verify
from trainers.arguments import DataArguments
from trainers.instruction_dataset import InstructionDataset
from trainers.stage import labelled_instructions


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder with two labelled scenes, and asked/instructions.jsonl: true ones in words of their own, one false."""
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder / "data", 2, 0, 1, seed=1, size=(96, 128), progress=False)
    scene_set, _ = read_data(folder / "data", components=True)
    rules = build_instructions(scene_set, scene_set.split("train"), ("attribute", "conditional"))
    asked = [replace(i, query=f"I look for this: {i.query}", rephrasings=(), source="gpt-4o") for i in rules]
    few = [i for i in asked if i.instance_ids is not None][::9]
    false = next(replace(i, claim="right") for i in asked if i.claim == "left")
    write_instructions(folder / "asked/instructions.jsonl", [*few, false])
    return folder


def test_they_are_trained_on(drawn, tmp_path, capsys, monkeypatch):
    """The commands of README in their order."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data, file, out = drawn / "data", drawn / "asked/instructions.jsonl", tmp_path / "built"
    count = len(read_instructions(file))
    assert verify([str(file.parent), "--data", str(data), "--drop"]) == 0
    written, given = read_instructions(file), ["folder", "--root", str(data), "--workers", "1"]
    assert len(written) == count - 1 > 5
    build([*given, "--out", str(out), "--instructions", str(file)])
    build([*given, "--out", str(tmp_path / "rules")])
    scene_set, held = read_data(out)
    assert [i for i in held if i.source == "gpt-4o"] == written
    assert [i for i in held if i.source == "rules"] == read_data(tmp_path / "rules")[1]
    scenes = scene_set.split("train", labelled=True)
    chosen = labelled_instructions(scene_set, scenes, held, 0)
    dataset = InstructionDataset(scene_set, scenes, chosen, DataArguments(queries_per_image=1000), len(scenes), 0)
    items = [dataset[k] for k in range(len(scenes))]
    answers = {query: mask for item in items for query, mask in zip(item["queries"], item["masks"], strict=True)}
    for each in written:
        instances = np.asarray(Image.open(data / "instances" / f"{each.image_id}.png"))
        if set(each.instance_ids) <= set(np.unique(instances)):  # and no patches
            assert np.array_equal(answers[each.query] == 1, np.isin(instances, each.instance_ids))
    with pytest.raises(SystemExit) as stop:  # others make another set
        build([*given, "--out", str(tmp_path / "rules"), "--instructions", str(file)])
    assert stop.value.code == 2 and "was made without added instructions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "nowhere"}, "image is unknown: nowhere"),
        ({"class_name": "lorry"}, "class is unknown: 'lorry'"),
        ({"instance_ids": [9999]}, "target is no instance of its class: 9999"),
        ({"query": 7}, "not an instruction (query is not of its type)"),
    ],
)
def test_those_of_other_data_are_not_built(drawn, tmp_path, capsys, change, message):
    lines = [json.loads(line) for line in (drawn / "asked/instructions.jsonl").read_text().splitlines()]
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[1] | change)))
    arguments = ["own", "--root", str(drawn / "data"), "--out", str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(SystemExit) as stop:
        build([*arguments, "--instructions", str(file)])
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and line.startswith(f"error: {file}:2: {message}") and not (tmp_path / "out").exists()
