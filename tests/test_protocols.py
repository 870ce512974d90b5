"""Protocols of evaluation: how answers are got, and what is counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import trainers.evaluate as evaluate_module
from datasets_scripts.instructions.free_text import free_text_instruction
from datasets_scripts.records import Instruction
from datasets_scripts.scenes import write_scenes
from metrics.ciou.ciou import intersection_and_union
from modeling_cora.segmentation import segment
from trainers.baselines import part_counts
from trainers.evaluate import each_once
from trainers.evaluate import main as evaluate
from trainers.protocols import PROTOCOLS, ask
from trainers.summary import class_found, summarise_records, told_apart

from .conftest import noise_image
from .test_pipeline import says


@pytest.fixture
def pointing(tiny, tmp_path):
    """The folder of a small model that takes anchors."""
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


QUERIES = ["the road", "the sky", "the tree"]


def test_the_answer_of_lisa_is_the_templates(tiny):
    model, processor = tiny
    image = noise_image(40, 30)
    answers, expected = ask(PROTOCOLS["lisa"], model, processor, image, QUERIES), segment(*tiny, image, QUERIES)
    assert (answers.masks == expected.masks.numpy()).all() and answers.scores == expected.scores.tolist()
    assert answers.failed == [False] * 3


def test_lisas_prompts_are_those_of_its_validation(tiny):
    """`ValDataset` of LISA's utils/dataset.py, written out; one query in a sequence of its own."""
    model, processor = tiny
    protocol, image = PROTOCOLS["lisa_prompts"], noise_image(40, 30)
    sentence, phrase = (
        free_text_instruction("a", "target", [text], facts={"is_sentence": is_sentence})
        for text, is_sentence in (("Where can one sit?", True), ("the red car", False))
    )
    queries = [protocol.query(i) for i in (sentence, phrase)]
    assert queries == [
        " Where can one sit? Please output segmentation mask.",
        " What is the red car in this image? Please output segmentation mask.",
    ]
    assert protocol.query(replace(phrase, kind="semantic")) == PROTOCOLS["lisa"].query(phrase) == "the red car"
    masks = ask(protocol, model, processor, image, queries).masks
    for query, mask in zip(queries, masks, strict=True):
        inputs = processor([image], [[query]], answers=[["[SEG]."]])
        with torch.no_grad():
            output = model(**inputs)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        (expected,) = processor.post_process_masks(output.pred_masks, output.seg_batch_index, *sizes)
        assert (mask == expected[0].numpy()).all()
    assert (masks != ask(PROTOCOLS["lisa"], model, processor, image, queries).masks).any()


@pytest.mark.parametrize("name", ["generated", "segzero"])
def test_generated_masks_of_one_answer_are_one_and_none_is_a_failure(tiny, name):
    model, processor = tiny
    seg = model.config.seg_token_id
    words = processor.tokenizer.encode(" road", add_special_tokens=False)
    image = noise_image(40, 30)

    def answer(texts):
        return ask(PROTOCOLS[name], model, processor, image, QUERIES[: len(texts)], **says(processor, texts))

    both, none, one = [*words, seg, *words, seg], words, [*words, seg]
    together = answer([both, none, one])
    assert together.masks.shape == (3, 30, 40) and together.failed == [False, True, False]
    assert not together.masks[1].any() and together.scores[1] == 0
    first = answer([one]).masks[0]  # the first [SEG] of the longer answer comes after the same words
    assert (together.masks[0] | first == together.masks[0]).all() and together.masks[0].sum() > first.sum()


def record(intersection: int, union: int, failed: bool = False) -> dict:
    return {"kind": "semantic", "target": "class", "class_name": "car", "claim": "", "intersection": intersection,
            "union": union, "failed": failed, "trivial": {}}  # fmt: skip


def test_what_was_not_to_be_found_counts_as_each_protocol_says():
    records = [record(5, 10), record(0, 0), record(0, 0, failed=True)]
    assert summarise_records(records, "lisa")["all"]["giou"] == pytest.approx((0.5 + 1 + 1) / 3, abs=1e-5)
    assert summarise_records(records, "segzero")["all"]["giou"] == pytest.approx((0.5 + 0) / 2)


def test_parts_are_told_apart_by_found_and_marked_pixels_of_the_class_alone():
    whole = np.zeros((4, 8), bool)
    whole[:, 2:6] = True
    target = whole.astype(np.uint8)
    target[:, 4:] = 0  # the left half of the class
    target[3] = 255
    everything, nothing = np.ones((4, 8), bool), np.zeros((4, 8), bool)
    right, opposite = target == 1, whole & (target == 0)
    missing = right & (np.arange(4) == 0)[:, None]  # one of its three rows
    some = whole & (np.cumsum(whole).reshape(whole.shape) == 3)  # one of the 12 pixels that count
    for mask, expected, found in (
        (everything, 0, 1), (nothing, 0, 0), (whole, 0, 1), (~whole, 0, 0), (right, 1, 1), (right | ~whole, 1, 1),
        (opposite, -1, 1), (missing, 1 / 3, 1), (missing | opposite, -2 / 3, 1), (some, -1 / 6, 0),
    ):  # fmt: skip
        one = {"inside": part_counts(mask, target, whole)}
        alone = {"inside": part_counts(mask, right.astype(np.uint8), right)}  # the part is all of the class
        assert told_apart([one, alone, {}]) == pytest.approx(expected)
        assert class_found([one, alone, {}]) == found
        assert class_found([one, {"inside": part_counts(right, target, whole)}, alone]) == (found + 1) / 2
        assert told_apart([one, {"inside": part_counts(right, target, whole)}]) == pytest.approx((expected + 1) / 2)
    assert told_apart([alone, {}]) is class_found([alone, {}]) is None
    assert summarise_records([record(1, 2)])["all"]["told apart"] is None
    assert summarise_records([record(1, 2) | one])["by_kind"]["semantic, class"]["told apart"] == pytest.approx(-1 / 6)


def test_evaluation_by_name(saved, tmp_path, capsys):
    street = tmp_path / "street"
    write_scenes(street, labelled=1, unlabelled=0, val=1, size=(48, 64), progress=False)
    samples = {}
    for name in PROTOCOLS:
        out = tmp_path / name
        evaluate(["--model", str(saved), "--data", str(street), "--out", str(out), "--protocol", name,
                  "--queries_per_kind", "3", "--examples", "0"])  # fmt: skip
        samples[name] = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
        assert json.loads((out / "metrics.json").read_text())["evaluation"]["protocol"] == name
    asked = [[(s["image_id"], s["query"]) for s in of_name] for of_name in samples.values()]
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) == 6
    for sample in samples["lisa"]:
        trivial = sample["trivial"]
        assert ("whole class" in trivial) == (sample["target"] == "instance")
        if sample["target"] == "instance":  # a part of the class: all of it is found, and maybe more
            found, union = trivial["whole class"]
            assert found == trivial["whole image"][0] <= union <= trivial["whole image"][1]
            inside = sample["inside"]
            assert inside["part"] == found and inside["rest"] == union - found
            assert inside["found"] == sample["intersection"] <= sample["union"] - inside["marked"]
    # ignored pixels belong to the target in one protocol only, so unions of "everything" differ by them alone
    whole = {name: np.array([s["trivial"]["whole image"] for s in of_name]) for name, of_name in samples.items()}
    assert (whole["lisa"] == whole["generated"]).all()
    assert (whole["segzero"][:, 1] == 48 * 64).all() and (whole["segzero"] >= whole["lisa"]).all()
    with pytest.raises(SystemExit):
        evaluate(["--model", str(saved), "--data", str(street), "--protocol", "lisaa"])
    assert "--protocol: invalid choice: 'lisaa' (choose from 'lisa', 'lisa_prompts'," in capsys.readouterr().err


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("anchors", ["given", "none"])
def test_pictures_show_the_answers_that_were_scored(pointing, tmp_path, monkeypatch, name, anchors):
    street, out = tmp_path / "street", tmp_path / "out"
    write_scenes(street, labelled=1, unlabelled=0, val=1, size=(48, 64), progress=False)
    shown = {}

    def look(image, target, mask, query, counting):
        shown[query] = [int(n) for n in intersection_and_union(mask, target, protocol=counting)]
        return image

    monkeypatch.setattr(evaluate_module, "_captioned_comparison", look)
    evaluate(["--model", str(pointing), "--data", str(street), "--out", str(out), "--protocol", name, "--anchors",
              anchors, "--kinds", "conditional", "--queries_per_kind", "5", "--examples", "1"])  # fmt: skip
    measured = json.loads((out / "metrics.json").read_text())["evaluation"]
    assert measured["anchors"] == ("none" if PROTOCOLS[name].generated else anchors)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert shown and shown == {s["query"]: [s["intersection"], s["union"]] for s in samples}


def test_each_description_of_a_class_is_asked_about_some_images():
    """Not the first one of each class in every image; the same ones in every order, and of free text each."""
    told = [f"description {k}" for k in range(6)]
    of_class = [Instruction(str(n), "attribute", "car", t, "It is [SEG].") for n in range(200) for t in told]
    asked = each_once(of_class)
    assert [i.image_id for i in asked] == [str(n) for n in range(200)] and asked == each_once(of_class)
    counts = Counter(i.query for i in asked)
    assert set(counts) == set(told) and min(counts.values()) > 15
    assert asked[:7] == each_once(i for i in of_class if int(i.image_id) < 7)
    free = [replace(i, kind="reasoning") for i in of_class[:6]]
    assert each_once(free) == free
