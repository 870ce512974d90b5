"""Words before pixels: the start of a language model that knows none, and of its first conditional queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.records import read_image
from datasets_scripts.scenes import write_scenes
from modeling_cora import CoraForReasoningSegmentation
from trainers.arguments import DataArguments, QueryPretrainingArguments
from trainers.instruction_dataset import anchor_masks
from trainers.loading import load_trained
from trainers.query_pretraining import pretrain_conditional_queries
from trainers.stage1 import main
from trainers.stage2 import main as stage2

from .test_stage1 import largest_difference, options
from .test_stage2 import stage2_options


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=3, unlabelled=1, val=1, size=(96, 128), progress=False)
    return folder


@pytest.fixture(scope="module")
def words(street, tmp_path_factory) -> Path:
    """A stage 1 of words alone: it says for each class what nobody else says."""
    out = tmp_path_factory.mktemp("words")
    main(options(street, out, max_steps=1, query_pretraining_steps=140, learning_rate=1e-9))
    return out


def test_it_separates_the_classes(street, words):
    model, processor = load_trained(str(words))
    image = read_image(next((street / "images").rglob("*.png")))
    queries = ["Segment the road.", "Where is the road?", "Segment the sky.", "Where is the sky?"]
    with torch.no_grad():
        embeddings = model(**processor(image, queries)).seg_embeddings
    same = torch.cosine_similarity(embeddings[[0, 2]], embeddings[[1, 3]]).min()
    other = torch.cosine_similarity(embeddings[:2], embeddings[2:]).max()
    assert same > 0.8 and other < 0.5, (same, other)


def test_a_model_stored_in_bfloat16(street, tmp_path):
    """Its frozen parts stay so under `bf16`, and the trained ones are fp32."""
    main(options(street, tmp_path / "first", max_steps=1))
    (tmp_path / "first" / "training.json").unlink()  # else it counts as trained
    half = CoraForReasoningSegmentation.from_pretrained(tmp_path / "first", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "first")
    given = dict(max_steps=1, query_pretraining_steps=2, lora_r=0, bf16=True, model=tmp_path / "first")
    main([*options(street, tmp_path / "out", **given), "--trained_parts", "embeddings", "seg_projector"])
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_trained_model_gets_none(street, tmp_path, capsys):
    main(options(street, tmp_path / "first", max_steps=1, lora_r=0))
    given = dict(max_steps=1, lora_r=0, learning_rate=1e-9, query_pretraining_steps=3)
    capsys.readouterr()
    main(options(street, tmp_path / "again", model=str(tmp_path / "first"), **given))
    assert "query_pretraining_steps: left out" in capsys.readouterr().out
    assert largest_difference(tmp_path / "first", tmp_path / "again") < 1e-6
    (tmp_path / "first" / "training.json").unlink()  # a model of which nothing says that it was trained
    main(options(street, tmp_path / "new", model=str(tmp_path / "first"), **given))
    assert largest_difference(tmp_path / "first", tmp_path / "new") > 1e-4


class Nouns:
    """What a model says of conditional queries, told by what it says of whole classes in the same image."""

    def __init__(self, street, model, processor):
        self.scene_set = read_folder(street)
        self.scenes = self.scene_set.split("train", labelled=True)
        self.every = build_instructions(self.scene_set, self.scenes, ("semantic", "attribute", "conditional"), 0)
        self.model, self.processor = model, processor
        self.ids = {c.name: c.id for c in self.scene_set.classes}

    def embeddings(self, scene, asked):
        labels, instances = self.scene_set.read_maps(scene)
        image = read_image(scene.image)
        anchors = [[anchor_masks(i, self.ids, labels, instances, image.size) for i in asked]]
        inputs = self.processor([image], [[i.query for i in asked]], [[i.answer for i in asked]], anchors=anchors)
        del inputs["sam_pixel_values"]
        with torch.no_grad():
            return self.model.eval()(**inputs).seg_embeddings

    def whole(self, scene):
        asked = [i for i in self.every if i.image_id == scene.image_id and i.instance_ids is None and not i.claim]
        return [i.class_name for i in asked], self.embeddings(scene, asked)

    def right(self) -> float:
        """The share of conditional queries whose embedding is nearest to one of their target's class."""
        found = []
        for scene in self.scenes:
            names, plain = self.whole(scene)
            asked = [i for i in self.every if i.image_id == scene.image_id and i.kind == "conditional"]
            asked = [i for i in asked if i.class_name in names][::7]
            nearest = torch.cdist(self.embeddings(scene, asked), plain).argmin(1)
            found += [names[k] == i.class_name for k, i in zip(nearest.tolist(), asked, strict=True)]
        return float(np.mean(found))


def test_conditional_queries_learn_whom_they_are_about(street, words):
    """And queries that name a class stay what they were."""
    model, processor = load_trained(str(words))
    model.add_anchors(processor.add_anchor_token())
    nouns = Nouns(street, model, processor)
    right_before, before = nouns.right(), nouns.whole(nouns.scenes[0])[1]
    data = DataArguments(kinds=["semantic", "attribute", "conditional"])
    arguments = QueryPretrainingArguments(conditional_pretraining_steps=60, conditional_pretraining_learning_rate=2e-3)
    error = pretrain_conditional_queries(
        model, processor, nouns.scene_set, nouns.scenes, nouns.every, data, arguments, seed=0, progress=False
    )
    right, after = nouns.right(), nouns.whole(nouns.scenes[0])[1]
    assert right_before < 0.6 and right > 0.85, (right_before, right)
    assert (after - before).pow(2).mean() < 0.1 * before.var(0).mean(), "what it said of classes is forgotten"
    assert error < 0.15


def test_without_conditional_queries_there_is_nothing_to_learn(street, words):
    model, processor = load_trained(str(words))
    model.add_anchors(processor.add_anchor_token())
    nouns = Nouns(street, model, processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data, arguments = DataArguments(kinds=["semantic"]), QueryPretrainingArguments(conditional_pretraining_steps=2)
    error = pretrain_conditional_queries(
        model, processor, nouns.scene_set, nouns.scenes, nouns.every, data, arguments, seed=0, progress=False
    )
    assert np.isnan(error) and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_stage_2_begins_with_it_where_it_asks_conditional_queries(street, words, tmp_path, capsys):
    stage2(stage2_options(street, words, tmp_path / "without", max_steps=1, learning_rate=1e-9))
    given = dict(max_steps=1, learning_rate=1e-9, conditional_pretraining_steps=3)
    stage2(stage2_options(street, words, tmp_path / "with", **given))
    assert "left out" not in capsys.readouterr().out
    assert largest_difference(tmp_path / "without", tmp_path / "with") > 1e-4
    stage2(stage2_options(street, words, tmp_path / "plain", kinds="semantic", **given))
    assert "conditional_pretraining_steps: left out" in capsys.readouterr().out
