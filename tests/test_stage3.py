"""Stage 3: eqs. 6 to 9 against slow obvious versions, and as a user runs it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Trainer

from datasets_scripts.command_line import UsageError
from datasets_scripts.folder import read_folder
from datasets_scripts.records import image_size
from datasets_scripts.scenes import write_scenes
from modeling_cora.losses import bce_per_mask, dice_per_mask, mask_losses, token_contrast
from trainers.arguments import DataArguments, UnlabelledArguments
from trainers.consistency_weights import ConsistencyArguments, equivalent_queries
from trainers.consistency_weights import main as consistency_main
from trainers.evaluate import EvaluationArguments, run_evaluation
from trainers.loading import load_trained
from trainers.pseudo_labels.predictions import PseudoLabels
from trainers.stage1 import main as stage1
from trainers.stage2 import main as stage2
from trainers.stage3 import Stage3Trainer
from trainers.stage3 import main as stage3
from trainers.token_bank import TokenBank
from trainers.unlabelled_dataset import UnlabelledDataset

from .conftest import SHARED
from .test_stage1 import ROOT, history, largest_difference, on_two_processes, options
from .test_stage2 import RECIPE as STAGE2_RECIPE
from .vlm_families import build as build_family

RECIPE = str(ROOT / "trainers/recipes/demo_stage3.yaml")


def slow_weighted_losses(logits, targets, weights):
    """Eqs. 4 and 7 pixel by pixel, for one mask."""
    bce, pixels, both, predicted, wanted = 0.0, 0, 0.0, 0.0, 0.0
    for row in range(logits.shape[0]):
        for column in range(logits.shape[1]):
            target = int(targets[row, column])
            if target == 255:
                continue
            weight, p = float(weights[row, column]), 1 / (1 + np.exp(-float(logits[row, column])))
            bce -= weight * np.log(p if target == 1 else 1 - p)
            pixels += 1
            both += weight * p * target
            predicted += weight * p
            wanted += weight * target
    dice = 1 - (2 * both / 1000 + 1e-6) / (predicted / 1000 + wanted / 1000 + 1e-6)
    return bce, pixels, dice


@pytest.mark.parametrize("seed", range(4))
def test_weighted_losses_equal_the_slow_ones(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, 9, generator=generator) * 3
    targets = torch.tensor([0, 1, 255])[torch.randint(3, (3, 7, 9), generator=generator)]
    weights = torch.rand(3, 7, 9, generator=generator)
    bce, total = bce_per_mask(logits, targets, weights), bce_per_mask(logits, targets, weights, "sum")
    dice = dice_per_mask(logits, targets, weights=weights)
    for k in range(3):
        expected, pixels, expected_dice = slow_weighted_losses(logits[k], targets[k], weights[k])
        assert total[k].item() == pytest.approx(expected, rel=1e-5)
        assert bce[k].item() == pytest.approx(expected / pixels, rel=1e-5)
        assert dice[k].item() == pytest.approx(expected_dice, rel=1e-4)


def test_weights_of_one_change_nothing_and_get_no_gradient():
    logits, targets = torch.randn(2, 6, 6, requires_grad=True), torch.randint(2, (2, 6, 6))
    weights = torch.ones(2, 6, 6, requires_grad=True)
    assert torch.equal(bce_per_mask(logits, targets, weights), bce_per_mask(logits, targets))
    assert torch.equal(dice_per_mask(logits, targets, weights=weights), dice_per_mask(logits, targets))
    (bce_per_mask(logits, targets, weights) + dice_per_mask(logits, targets, weights=weights)).sum().backward()
    assert weights.grad is None and logits.grad.abs().sum() > 0


def test_a_pixel_of_weight_zero_is_as_good_as_ignored_in_dice():
    logits, targets = torch.randn(1, 6, 6), torch.randint(2, (1, 6, 6))
    weights = torch.ones(1, 6, 6)
    weights[0, :3] = 0
    ignored = targets.clone()
    ignored[0, :3] = 255
    assert torch.allclose(dice_per_mask(logits, targets, weights=weights), dice_per_mask(logits, ignored))


def test_mask_losses_take_weights_wherever_they_are_compared(tiny):
    """Weights of 1 equal none; a sum over pixels is the mean times their number (BCE), or Dice times it."""
    model, _ = tiny
    generator = torch.Generator().manual_seed(0)
    output = {
        "pred_masks": torch.randn(3, 32, 32, generator=generator),
        "iou_scores": torch.rand(3, generator=generator),
        "seg_embeddings": torch.zeros(3, 4),
        "seg_batch_index": torch.tensor([0, 0, 1]),
    }
    labels = [torch.randint(2, (2, 40, 60), generator=generator), torch.randint(2, (1, 30, 30), generator=generator)]
    sizes = torch.tensor([[85, 128], [128, 128]])
    halves = [torch.full(m.shape, 0.5) for m in labels]
    for where in ("labels", "low_res", "points"):
        model.config.mask_loss_at = where
        terms = []
        for weights in (None, [torch.ones(m.shape) for m in labels], halves):
            torch.manual_seed(0)
            terms.append(mask_losses(model.config, output, labels, sizes, weights))
        assert terms[0]["bce_loss"] == terms[1]["bce_loss"] and terms[0]["dice_loss"] == terms[1]["dice_loss"]
        torch.testing.assert_close(terms[2]["bce_loss"], terms[0]["bce_loss"] / 2)
        torch.testing.assert_close(terms[2]["dice_loss"], terms[0]["dice_loss"] / 2, atol=1e-3, rtol=0)
    model.config.mask_loss_at = "labels"
    summed = mask_losses(model.config, output, labels, sizes, halves, "sum")
    pixels = [2400.0, 2400.0, 900.0]
    each = [mask_losses(model.config, one_mask(output, k), [(labels[0][k : k + 1] if k < 2 else labels[1])],
                              sizes[[0 if k < 2 else 1]]) for k in range(3)]  # fmt: skip
    for name in ("bce_loss", "dice_loss"):
        expected = sum(0.5 * n * e[name].item() for n, e in zip(pixels, each, strict=True)) / 3
        assert summed[name].item() == pytest.approx(expected, rel=1e-3)
    labels[0][0, :9], some = 255, [torch.rand(1, 40, 60, generator=generator)]
    given = model.config, one_mask(output, 0), [labels[0][:1]], sizes[:1], some
    mean, total = mask_losses(*given), mask_losses(*given, "sum")
    for name in ("bce_loss", "dice_loss"):  # 31 of the 40 rows count
        assert total[name].item() == pytest.approx(1860 * mean[name].item(), rel=1e-4)


def one_mask(output, k):
    chosen = {name: tensor[k : k + 1] for name, tensor in output.items()}
    return {**chosen, "seg_batch_index": torch.zeros(1, dtype=torch.long)}


def test_contrast_equals_the_formula_and_the_public_code():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, generator=generator, requires_grad=True)
    near, far = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 7, 5, generator=generator)
    losses = token_contrast(tokens, near, far, 0.2)

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    for n in range(2):
        v = tokens[n].detach()
        against = sum(np.exp(cosine(v, k) / 0.2) for k in far[n])
        each = [np.exp(cosine(v, k) / 0.2) for k in near[n]]
        assert losses[n].item() == pytest.approx(np.mean([-np.log(e / (e + against)) for e in each]), rel=1e-5)


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="../shared/golden is not here")
def test_contrast_reproduces_glus():
    golden = load_file(SHARED / "golden/losses/glus_contrastive.safetensors")
    query = golden["glus.in.query"].clone().requires_grad_()
    pushed = golden["glus.in.pushed_vectors"]
    near, far = pushed[golden["glus.sampled.positive_index"]][:, None], pushed[golden["glus.sampled.negative_index"]]
    losses = token_contrast(query, near, far, 0.07)
    torch.testing.assert_close(losses, golden["glus.out.loss"], atol=2e-6, rtol=1e-5)


def test_the_bank_is_first_in_first_out_for_each_class():
    balanced, single = TokenBank(6, 3), TokenBank(6, 3, balanced=False)
    order = [0, 0, 0, 1, 0, 2, 0, 1]
    for bank in (balanced, single):
        for number, class_id in enumerate(order):
            bank.push(torch.full((1, 2), float(number)), torch.tensor([class_id]))
    assert single.tokens[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    kept = {c: balanced.tokens[balanced.classes == c, 0].tolist() for c in (0, 1, 2)}
    assert kept == {0: [4, 6], 1: [3, 7], 2: [5]}


def test_the_bank_skips_what_it_cannot_compare_and_survives_a_checkpoint(tmp_path):
    bank = TokenBank(10, 2)
    token, generators = torch.randn(1, 4, requires_grad=True), [torch.Generator().manual_seed(0)]
    losses, skipped = bank.contrast(token, torch.tensor([0]), 0.07, 4, generators)
    assert skipped == 1 and losses.tolist() == [0.0]
    losses.sum().backward()  # a graph, so that several processes agree on what has gradients
    bank.push(torch.randn(3, 4), torch.tensor([0, 1, 1]))
    bank.save(tmp_path)
    again = TokenBank(10, 2)
    again.load(tmp_path)
    for chosen in (4, None):
        first, second = (
            b.contrast(token, torch.tensor([0]), 0.07, chosen, [torch.Generator().manual_seed(0)])
            for b in (bank, again)
        )
        assert torch.equal(first[0], second[0]) and first[1] == 0 and first[0].item() > 0
    every = bank.contrast(token, torch.tensor([1]), 0.07, None, generators)[0]
    near, far = bank.tokens[bank.classes == 1], bank.tokens[bank.classes == 0]
    torch.testing.assert_close(every, token_contrast(token, near[None], far[None], 0.07))


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=3, unlabelled=4, val=1, size=(48, 64), progress=False)
    return folder


@pytest.fixture(scope="module")
def pseudo(street, tmp_path_factory) -> Path:
    """Pseudo-labels for three of the four unlabelled scenes: blocks of classes."""
    folder = tmp_path_factory.mktemp("pseudo")
    for kind in ("masks", "confidence"):
        (folder / kind).mkdir()
    for number, scene in enumerate(read_folder(street).split("train", labelled=False)[:3]):
        labels = np.zeros((48, 64), np.uint8)
        labels[:20, 32:], labels[20:, 32:], labels[:20, :32] = 3 + number, 9, 255
        confidence = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
        Image.fromarray(labels).save(folder / "masks" / f"{scene.image_id}.png")
        Image.fromarray(confidence).save(folder / "confidence" / f"{scene.image_id}.png")
    return folder


@pytest.fixture(scope="module")
def second_stage(street, tmp_path_factory) -> Path:
    return two_stages(street, tmp_path_factory.mktemp("stage"))


def two_stages(street: Path, out: Path) -> Path:
    """A model that has had a step of stages 1 and 2."""
    stage1(options(street, out / "1", max_steps=1))
    stage2([STAGE2_RECIPE, *without_sizes(options(street, out / "2", model=out / "1", max_steps=1))])
    return out / "2"


@pytest.fixture(scope="module")
def weights(street, pseudo, second_stage, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("weights")
    consistency_main(["--model", str(second_stage), "--data", str(street), "--pseudo_labels", str(pseudo),
                      "--out", str(out)])  # fmt: skip
    return out


def without_sizes(argv):
    for name in ("--clip_image_size", "--sam_image_size"):  # of cora-tiny's random start alone
        place = argv.index(name)
        del argv[place : place + 2]
    return argv


def stage3_options(street, second_stage, out, **changes):
    changes = {"model": second_stage, "save_total_limit": 9, "flip": 0.5, "crop": 0.5, **changes}
    return [RECIPE, *without_sizes(options(street, out, **changes))]


def test_sigma_zero_is_supervised_training_to_the_bit(street, pseudo, weights, second_stage, tmp_path):
    kinds = ["--kinds", "conditional"]
    supervised = without_sizes(options(street, tmp_path / "a", model=second_stage, colour_jitter=0.3))
    stage2([STAGE2_RECIPE, *supervised, *kinds])
    argv = stage3_options(street, second_stage, tmp_path / "b", sigma=0, pseudo_labels=pseudo, flip=0, crop=0,
                          consistency_weights=weights)  # fmt: skip
    stage3([*argv, *kinds])
    assert largest_difference(tmp_path / "a", tmp_path / "b") == 0.0
    argv = stage3_options(street, second_stage, tmp_path / "c", pseudo_labels=pseudo, flip=0, crop=0,
                          consistency_weights=weights)  # fmt: skip
    stage3([*argv, *kinds])
    assert largest_difference(tmp_path / "a", tmp_path / "c") > 1e-5


def test_each_node_that_saves_has_the_bank(street, pseudo, weights, second_stage, tmp_path, monkeypatch):
    """`save_on_each_node`: there rank 0 of the world is on another machine."""
    monkeypatch.setattr(Stage3Trainer, "is_world_process_zero", lambda self: False)
    given = dict(pseudo_labels=pseudo, consistency_weights=weights, save_strategy="steps", save_steps=1, max_steps=1)
    stage3(stage3_options(street, second_stage, tmp_path, **given))
    assert (tmp_path / "checkpoint-1/token_bank.safetensors").exists()


@pytest.mark.parametrize("consistency", ["ahead", "online"])
def test_it_resumes_to_the_bit_with_its_bank(street, pseudo, weights, second_stage, tmp_path, monkeypatch, consistency):
    # as under DeepSpeed, which loads a model's weights itself and asks no subclass
    monkeypatch.setattr(Stage3Trainer, "_load_from_checkpoint", Trainer._load_from_checkpoint)
    loaded, load = [], TokenBank.load
    monkeypatch.setattr(TokenBank, "load", lambda self, folder: loaded.append(folder.name) or load(self, folder))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    given = dict(pseudo_labels=pseudo, consistency_weights=weights, save_strategy="steps", save_steps=2)
    given |= dict(alignment_weight=0.125, consistency=consistency, unlabelled_parts=consistency == "online")
    stage3(stage3_options(street, second_stage, whole, **given))
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    stage3(stage3_options(street, second_stage, resumed, resume_from_checkpoint=True, **given))
    assert largest_difference(whole, resumed) == 0.0 and loaded == ["checkpoint-2"]
    logged = [entry for entry in history(whole) if "loss" in entry]
    names = ("pseudo_bce_loss", "pseudo_dice_loss", "contrast_loss", "contrast_skipped", "mean_weight")
    assert all(name in logged[-1] for name in names) and 0 < logged[-1]["mean_weight"] <= 1
    assert logged[0]["contrast_loss"] == 0 and logged[0]["contrast_skipped"] > 0  # the bank starts empty
    for entry in logged:
        labelled = entry["lm_loss"] + entry["bce_loss"] + 2 * entry["dice_loss"] + entry["iou_loss"]
        unlabelled = 0.5 * (entry["pseudo_bce_loss"] + entry["pseudo_dice_loss"]) + 0.125 * entry["contrast_loss"]
        assert entry["loss"] == pytest.approx(labelled + unlabelled, rel=1e-3)


@pytest.mark.slow  # fast, and with anchors and parts: tests/test_unlabelled_dataset.py
@pytest.mark.parametrize("consistency", ["ahead", "online"])
def test_two_processes_equal_one(street, pseudo, weights, second_stage, tmp_path, consistency):
    given = dict(pseudo_labels=pseudo, consistency_weights=weights, consistency=consistency, queries_per_image=20)
    stage3(stage3_options(street, second_stage, tmp_path / "one", **given))
    on_two_processes(
        "trainers/stage3.py",
        stage3_options(street, second_stage, tmp_path / "two", per_device_train_batch_size=1, **given),
    )
    for one, two in zip(history(tmp_path / "one")[:4], history(tmp_path / "two")[:4], strict=True):
        for name in ("loss", "pseudo_bce_loss", "contrast_loss"):
            assert two[name] == pytest.approx(one[name], rel=5e-3, abs=1e-4), name
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 3e-4


def test_consistency_weights_are_the_variance_over_six_queries(street, pseudo, weights, second_stage, tmp_path):
    scene_set = read_folder(street)
    scene = scene_set.split("train", labelled=False)[0]
    stored = load_file(weights / f"{scene.image_id}.safetensors")
    assert stored["classes"].tolist() == [0, 3, 9]
    model, processor = load_trained(str(second_stage))
    for class_id, plane in zip(stored["classes"].tolist(), stored["variance_levels"], strict=True):
        (own,) = (c for c in scene_set.classes if c.id == class_id)
        queries = equivalent_queries(own, scene.image_id, ConsistencyArguments())
        assert len(set(queries)) == 6
        masks = []
        for query in queries:  # one by one, and at the image's size
            inputs = processor([Image.open(scene.image).convert("RGB")], [[query]])
            with torch.no_grad():
                output = model(**inputs)
            sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
            (logits,) = processor.post_process_masks(output.pred_masks, output.seg_batch_index, *sizes, None)
            masks.append(logits[0].sigmoid().numpy())
        expected = np.mean((np.stack(masks) - np.mean(masks, 0)) ** 2, 0)
        assert np.abs(plane.numpy() - 255 * (4 * expected) ** 0.25).max() < 0.6
    before = {p.name: p.stat().st_mtime_ns for p in weights.glob("*.safetensors")}
    argv = ["--model", str(second_stage), "--data", str(street), "--pseudo_labels", str(pseudo), "--out", str(weights)]
    consistency_main(argv)
    assert {p.name: p.stat().st_mtime_ns for p in weights.glob("*.safetensors")} == before
    with pytest.raises(SystemExit):  # another seed's queries must not be mixed in
        consistency_main([*argv, "--seed", "1"])
    shutil.copytree(pseudo, tmp_path / "pseudo")
    argv[5] = str(tmp_path / "pseudo")
    consistency_main(argv)  # the same maps
    path = tmp_path / "pseudo" / "masks" / f"{scene.image_id}.png"
    Image.fromarray(np.full((48, 64), 4, np.uint8)).save(path)
    with pytest.raises(SystemExit):  # of the class that is there now, nothing was asked
        consistency_main(argv)


def test_a_class_with_one_query_agrees_with_itself_and_one_with_none_is_named(
    street, pseudo, second_stage, tmp_path, monkeypatch, capsys
):
    shutil.copytree(street, tmp_path / "street")
    path = tmp_path / "street" / "classes.json"
    content = json.loads(path.read_text())
    nameless = next(c for c in content["classes"] if c["id"] == 9)
    nameless["attributes"] = []
    path.write_text(json.dumps(content))
    given = dict(pseudo_labels=pseudo, unlabelled_kinds="attribute", consistency="online", max_steps=1)
    stage3(stage3_options(tmp_path / "street", second_stage, tmp_path / "out", **given))
    said = capsys.readouterr().out
    assert f"1 classes have no attribute query and are not asked for in unlabelled images: {nameless['name']}" in said
    (own,) = (c for c in read_folder(tmp_path / "street").classes if c.id == 9)
    asking = ConsistencyArguments(kinds=["attribute"])
    assert equivalent_queries(own, "a", asking) is None
    monkeypatch.setattr("trainers.consistency_weights.class_queries", lambda c, kind: ("what it is for",))
    assert equivalent_queries(own, "a", asking) == ["what it is for"] * 6


def test_who_is_shown_no_anchor_is_never_asked_with_one(street, pseudo, tmp_path):
    """LISA's stage 3 has no conditional queries; an encoder of anchors that nothing trains would speak in its answers
    to them."""
    stage1(options(street, tmp_path / "1", max_steps=1))
    given = dict(pseudo_labels=pseudo, consistency="none", max_steps=1, flip=0, crop=0)
    for out, kinds in (("lisa", ["semantic", "attribute"]), ("cora", ["semantic", "conditional"])):
        stage3([*stage3_options(street, tmp_path / "1", tmp_path / out, **given), "--kinds", *kinds])
        model, _ = load_trained(str(tmp_path / out))
        assert (model.config.anchor_token_id is not None) == (out == "cora")
        record = json.loads((tmp_path / out / "training.json").read_text())["data"]
        assert record["unlabelled_images"] == 3  # of four, one has no pseudo-label


@pytest.mark.parametrize("family", ["smolvlm", "qwen3_vl"])
def test_other_families_pass_through_all_stages(street, pseudo, tmp_path, family):
    """Tiles and grids: anchors, rephrasings, alignment and parts of unlabelled images as with LLaVA."""
    for part in build_family(family):
        part.save_pretrained(tmp_path / "0")
    stage1(without_sizes(options(street, tmp_path / "1", model=tmp_path / "0", max_steps=1, lora_r=0)))
    stage2([STAGE2_RECIPE, *without_sizes(options(street, tmp_path / "2", model=tmp_path / "1", max_steps=1))])
    argv = stage3_options(
        street, tmp_path / "2", tmp_path / "3", pseudo_labels=pseudo, consistency="online", max_steps=2
    )
    stage3([*argv, "--unlabelled_parts", "true", "--kinds", "conditional"])
    box = "anchor_encoder.box.weight"
    before, after = (load_file(tmp_path / n / "model.safetensors")[box] for n in "23")
    assert (before - after).abs().max() > 0
    summary = run_evaluation(EvaluationArguments(model=str(tmp_path / "3"), data=str(street), examples=0))
    assert summary["all"]["queries"] > 0


def test_items_travel_together_and_depend_on_their_number_alone(street, pseudo, weights):
    """Mask, weight and picture are cut and mirrored alike."""
    scene_set = read_folder(street)
    arguments = UnlabelledArguments(pseudo_labels=str(pseudo), consistency_weights=str(weights), unlabelled_queries=9)
    scenes = scene_set.split("train", labelled=False)
    data = DataArguments(flip=0.5, crop=0.5)
    items, again = (UnlabelledDataset(scene_set, scenes, arguments, data, 20, seed=1) for _ in range(2))
    plain = UnlabelledDataset(scene_set, scenes, arguments, DataArguments(), 20, seed=1)
    assert len(items.scenes) == len(scenes) - 1
    last = again[7]
    assert all(np.array_equal(last[k], items[7][k]) for k in ("image", "masks", "weights", "queries"))
    for number in range(6):
        whole = plain[number]
        labels = np.full((48, 64), 254)
        for class_id, mask in zip(whole["classes"], whole["masks"], strict=True):
            labels[mask == 1] = class_id
            assert ((mask == 255) == (whole["masks"][0] == 255)).all()
        assert sorted(set(whole["classes"])) == sorted(set(labels[labels < 254].tolist()))
        assert whole["weights"].shape == whole["masks"].shape and whole["weights"].max() <= 1
        item = items[number]
        assert item["masks"].shape[1:] == item["image"].size[::-1] == item["weights"].shape[1:]


def test_a_class_of_one_side_is_not_mirrored(street, pseudo):
    scene_set = read_folder(street)
    sided = replace(scene_set, classes=tuple(replace(c, attributes=("the left one",)) for c in scene_set.classes))
    arguments = UnlabelledArguments(pseudo_labels=str(pseudo), consistency="none", unlabelled_queries=9)
    scenes = scene_set.split("train", labelled=False)
    plain, mirrored, kept = (
        UnlabelledDataset(classes, scenes, arguments, DataArguments(flip=flip), 4, seed=1)[0]
        for classes, flip in ((scene_set, 0.0), (scene_set, 1.0), (sided, 1.0))
    )
    assert np.array_equal(np.asarray(mirrored["image"]), np.asarray(plain["image"])[:, ::-1])
    assert np.array_equal(mirrored["masks"], plain["masks"][..., ::-1])
    assert np.array_equal(kept["image"], plain["image"]) and np.array_equal(kept["masks"], plain["masks"])


def test_deepspeed_casts_what_floats_but_not_the_weights():
    """In bfloat16 the weights of 1 - 4 var for variances of 1e-4 would all be 1."""
    trainer = Stage3Trainer.__new__(Stage3Trainer)
    trainer.args = SimpleNamespace(device=torch.device("cpu"))
    configuration = SimpleNamespace(dtype=lambda: torch.bfloat16)
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=configuration))
    trainer.accelerator, trainer.is_deepspeed_enabled = SimpleNamespace(state=state), True
    weights = [torch.tensor([0.9996, 1.0])]
    prepared = trainer._prepare_inputs({"inputs": {"pixel_values": torch.ones(2)}, "weights": weights})
    assert prepared["inputs"]["pixel_values"].dtype == torch.bfloat16
    assert prepared["weights"][0].dtype == torch.float32 and torch.equal(prepared["weights"][0], weights[0])
    assert trainer._prepare_inputs({"inputs": {}, "weights": None})["weights"] is None


def test_low_confidence_is_ignored(pseudo, street):
    scene = (scene_set := read_folder(street)).split("train", labelled=False)[0]
    size = image_size(scene.image)
    labels, confident = (PseudoLabels(pseudo, scene_set, least).read(scene.image_id, size) for least in (0.0, 0.5))
    assert (confident[:23] == 255).all() and np.array_equal(confident[25:], labels[25:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "pseudo_labels: not given has no masks/"),
        ({"pseudo_labels": "PSEUDO"}, "consistency_weights: not given is no folder"),
        ({"pseudo_labels": "PSEUDO", "consistency": "sometimes"}, "--consistency: invalid choice: 'sometimes'"),
        ({"pseudo_labels": "PSEUDO", "weight_kind": "odd"}, "--weight-kind: invalid choice: 'odd'"),
        ({"pseudo_labels": "PSEUDO", "pseudo_confidence": 2}, "pseudo_confidence: 2.0"),
        ({"pseudo_labels": "PSEUDO", "kinds": "reasoning"}, "kinds: none of the instructions is reasoning; there are"),
        ({"pseudo_labels": "EMPTY", "consistency": "none"}, "has a map for none of the 4"),
        (
            {"pseudo_labels": "UNSURE", "consistency": "none", "pseudo_confidence": 0.9},
            "pseudo_confidence, 0.9; 0 counts",
        ),
        ({"pseudo_labels": "WRONG", "consistency": "none"}, "77 is not a class id"),
        ({"pseudo_labels": "SMALL", "consistency": "none"}, "size 9x9 differs from its image's 64x48"),
    ],
)
def test_bad_input_gets_one_line(street, pseudo, second_stage, tmp_path, capsys, changes, message):
    for name, value in (("EMPTY", None), ("WRONG", np.full((48, 64), 77)), ("SMALL", np.zeros((9, 9)))):
        (tmp_path / name / "masks").mkdir(parents=True)
        for scene in read_folder(street).split("train", labelled=False):
            if value is not None:
                Image.fromarray(value.astype(np.uint8)).save(tmp_path / name / "masks" / f"{scene.image_id}.png")
    shutil.copytree(pseudo, tmp_path / "UNSURE")
    for path in (tmp_path / "UNSURE" / "confidence").glob("*.png"):
        Image.fromarray(np.full((48, 64), 200, np.uint8)).save(path)
    places = {"PSEUDO": pseudo, **{name: tmp_path / name for name in ("EMPTY", "WRONG", "SMALL", "UNSURE")}}
    changes = {key: places.get(value, value) for key, value in changes.items()}
    with pytest.raises(SystemExit) as stopped:
        stage3(stage3_options(street, second_stage, tmp_path / "out", **changes))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_recipe_holds_the_papers_values():
    paper = UnlabelledArguments(pixel_reduction="sum")
    assert paper.unlabelled_weight == 0.001 and paper.rephrasings == 6
    assert (paper.alignment_temperature, paper.bank_size, paper.bank_negatives) == (0.07, 512, 128)


def test_eq_8_has_the_weight_of_eq_9_where_it_has_none_of_its_own():
    assert UnlabelledArguments().contrast_weight == UnlabelledArguments().unlabelled_weight == 0.5
    assert UnlabelledArguments(sigma=0.3).contrast_weight == 0.3
    assert UnlabelledArguments(sigma=0.3, alignment_weight=0).contrast_weight == 0
    with pytest.raises(UsageError, match="alignment_weight: -1"):
        UnlabelledArguments(alignment_weight=-1)
