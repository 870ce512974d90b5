"""The diagnosis of stage 3: its numbers against slow obvious versions, and as a user runs it."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_scripts.folder import read_folder
from datasets_scripts.records import DataError, read_map
from datasets_scripts.scenes import write_scenes
from datasets_scripts.splits import write_split
from modeling_cora import CoraForReasoningSegmentation
from modeling_cora.consistency import consistency_weight
from trainers.consistency_maps import ConsistencyMaps, packed_variances
from trainers.consistency_weights import main as consistency_main
from trainers.diagnose import main, parse_diagnosis, prepare
from trainers.diagnosis.gradients import gradient_norms, summarise
from trainers.diagnosis.reliability import (
    Reliability,
    auroc,
    auroc_within,
    kept_accuracy,
    measure_reliability,
    weight_levels,
    weighted_accuracy,
)
from trainers.diagnosis.separation import Embeddings, agreement, ask_embeddings, projected, separation
from trainers.pseudo_labels.predictions import PseudoLabels
from trainers.stage1 import main as stage1
from trainers.stage2 import main as stage2
from trainers.stage3 import main as stage3

from .test_pseudo_labels import error_line
from .test_stage1 import history, options
from .test_stage2 import RECIPE as STAGE2_RECIPE
from .test_stage3 import RECIPE, without_sizes

# -- lambda ------------------------------------------------------------------------------------------------------------


def histograms(levels: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(levels[right], minlength=256), np.bincount(levels[~right], minlength=256)


def slow_auroc(levels: np.ndarray, right: np.ndarray) -> float:
    """Every pair of a right and a wrong pixel."""
    pairs = [(a > b) + 0.5 * (a == b) for a in levels[right] for b in levels[~right]]
    return float(np.mean(pairs))


@pytest.mark.parametrize("most", [256, 6])
def test_auroc_is_the_share_of_ordered_pairs(most):
    rng = np.random.default_rng(most)
    levels = rng.integers(0, most, 200)
    right = rng.random(200) < 0.2 + 0.6 * levels / most
    assert auroc(*histograms(levels, right)) == pytest.approx(slow_auroc(levels, right), abs=1e-12)
    assert auroc(*histograms(255 - levels, right)) == pytest.approx(1 - slow_auroc(levels, right), abs=1e-12)
    assert auroc(*histograms(levels, np.ones(200, bool))) is None


def test_auroc_beyond_another_score_is_over_pairs_that_are_alike_in_it():
    rng = np.random.default_rng(0)
    other, levels = rng.integers(0, 4, 150), rng.integers(0, 20, 150)
    right = rng.random(150) < 0.5
    pairs = [(levels[i] > levels[j]) + 0.5 * (levels[i] == levels[j]) for i in np.flatnonzero(right)
             for j in np.flatnonzero(~right) if other[i] == other[j]]  # fmt: skip
    tables = [np.zeros((256, 256), int) for _ in range(2)]
    for wrong_or_right, table in zip((right, ~right), tables, strict=True):
        np.add.at(table, (other[wrong_or_right], levels[wrong_or_right]), 1)
    assert auroc_within(*tables) == pytest.approx(np.mean(pairs), abs=1e-12)
    # the same through the sums: a score that repeats the other says nothing beyond it
    repeated = Reliability(["road"], {"lambda": np.arange(256) / 255, "confidence": np.arange(256) / 255})
    repeated.add(np.zeros(150, int), {"lambda": levels, "confidence": levels}, right.astype(np.uint8))
    assert repeated.summary()["beyond"] == {"lambda": 0.5, "confidence": 0.5}
    both = Reliability(["road"], {"lambda": np.arange(256) / 255, "confidence": np.arange(256) / 255})
    both.add(np.zeros(150, int), {"lambda": levels, "confidence": other}, right.astype(np.uint8))
    assert both.summary()["beyond"]["lambda"] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_kept_pixels_by_listing_every_pixel():
    rng = np.random.default_rng(0)
    levels, right = rng.permutation(256)[:200], rng.random(200) < 0.6
    order = np.argsort(-levels)
    for point in kept_accuracy(*histograms(levels, right)):
        kept = order[: round(200 * point["share"])]
        assert point["accuracy"] == pytest.approx(right[kept].mean(), abs=1e-12)


@pytest.mark.parametrize("kind", ["inverse", "exp", "literal"])
def test_levels_stand_for_lambda_of_a_stored_variance(kind):
    values, level_of = weight_levels(kind, 0.05)
    assert (np.diff(values) >= 0).all() and len(set(level_of.tolist())) == 256
    for stored in (0, 1, 100, 255):
        expected = consistency_weight(torch.tensor((stored / 255) ** 4 / 4), kind, 0.05).item()
        assert values[level_of[stored]] == pytest.approx(expected, abs=1e-6)


def test_a_lambda_too_small_for_its_type_still_ranks_by_variance():
    values, level_of = weight_levels("exp", 1e-5)
    assert values[0] == values[1] == 0 and level_of[255] == 0 and (np.diff(level_of.astype(int)) == -1).all()


def test_accuracy_of_weighted_pixels_by_listing_every_pixel():
    rng = np.random.default_rng(0)
    levels, right, weights = rng.integers(0, 256, 200), rng.random(200) < 0.6, rng.random(256)
    expected = np.average(right, weights=weights[levels])
    assert weighted_accuracy(weights, *histograms(levels, right)) == pytest.approx(expected, abs=1e-12)
    assert weighted_accuracy(0 * weights, *histograms(levels, right)) is None


def made_up(folder: Path) -> tuple[Path, Path, Path]:
    """A labelled and two unlabelled images of 4 x 8; of one the lists hide the truth, class 0 with an ignored row. Its
    pseudo-label is 1 in the right half. Variance of class 0 is 0, of class 1 it is 1/4 above and 1/8 below."""
    data, pseudo, lists = folder / "data", folder / "pseudo", folder / "lists"
    for name in ("images", "masks", "unlabelled"):
        (data / name).mkdir(parents=True)
    (data / "classes.json").write_text('{"0": "road", "1": "car"}')
    truth = np.zeros((4, 8), np.uint8)
    truth[0] = 255
    for name, where in (("a", "images"), ("b", "images"), ("c", "unlabelled")):
        Image.new("RGB", (8, 4)).save(data / where / f"{name}.png")
        if where == "images":
            Image.fromarray(truth).save(data / "masks" / f"{name}.png")
    write_split(lists, ["a.png a.png"], ["b.png b.png"])
    labels = np.zeros((4, 8), np.uint8)
    labels[:, 4:] = 1
    confidence = np.where(labels == 0, 100, 200).astype(np.uint8)  # sure where it is wrong
    for kind, plane in (("masks", labels), ("confidence", confidence)):
        (pseudo / kind).mkdir(parents=True)
        Image.fromarray(plane).save(pseudo / kind / "b.png")
    variance = np.zeros((2, 2, 2))
    variance[1, 0], variance[1, 1] = 1 / 4, 1 / 8
    (folder / "weights").mkdir()
    (folder / "weights" / "b.safetensors").write_bytes(packed_variances(dict(enumerate(variance))))
    return data, pseudo, lists


def test_lambda_meets_the_hidden_truth(tmp_path):
    data, pseudo, lists = made_up(tmp_path)
    scene_set, maps = read_folder(data, lists), ConsistencyMaps(tmp_path / "weights")
    assert not any(scene.labelled for scene in scene_set.split("train")[1:])
    unlabelled = scene_set.split("train", labelled=False)
    found = measure_reliability(
        scene_set,
        read_folder(data),
        unlabelled,
        PseudoLabels(pseudo, scene_set),
        lambda s, _: maps.read(s.image_id),
        "inverse",
        0.05,
    )
    assert (found["images"], found["images_with_truth"]) == (1, 1)
    own, confidence = found["labels"]["lambda"], found["labels"]["confidence"]
    half = 1 - (214 / 255) ** 4  # lambda of 1/8, to its level
    # below the ignored row 12 pixels of "road" are right with lambda 1, 12 of "car" wrong with 0 (4) and 1/2 (8)
    assert (own["pixels"], own["pixels_with_truth"], own["accuracy"]) == (32, 24, 0.5)
    assert (own["auroc"], confidence["auroc"]) == (1.0, 0.0)
    assert own["mean"] == pytest.approx((16 + 8 * half) / 32)
    assert own["mean_right"] == 1 and own["mean_wrong"] == pytest.approx(8 * half / 12)
    assert [g["accuracy"] for g in own["deciles"]] == pytest.approx([0.0] * 5 + [1.0] * 5)
    assert [g["accuracy"] for g in confidence["deciles"]] == pytest.approx([1.0] * 5 + [0.0] * 5)
    assert own["deciles"][0]["lowest"] == 0 and own["deciles"][9]["lowest"] == 1
    above = next(point for point in own["kept"] if point["share"] == 0.5)
    assert above["accuracy"] == 1.0
    assert own["by_class"]["car"]["auroc"] is None and own["by_class"]["car"]["accuracy"] == 0
    assert own["by_class"]["road"]["pixels"] == 16 and found["labels"]["beyond"]["lambda"] is None
    # as masks: "road" is 1 everywhere in lambda, and "car" is right in the left half
    masks = found["masks"]["lambda"]
    assert masks["pixels"] == 64 and masks["accuracy"] == 0.5
    # exp(-variance / 0.05) of 1/4 and 1/8 to its level: 4 and 8 of the 24 pixels of "car" that have a truth
    scale, low, high = found["scales"][-1], np.exp(-5), np.exp(-5 * (214 / 255) ** 4)
    assert scale["temperature"] == 0.05
    assert scale["labels"]["accuracy"] == pytest.approx(12 / (12 + 4 * low + 8 * high), abs=1e-6)
    assert scale["labels"]["mean"] == pytest.approx((16 + 8 * low + 8 * high) / 32, abs=1e-6)
    assert scale["masks"]["mean"] == pytest.approx((32 + 16 * low + 16 * high) / 64, abs=1e-6)
    assert masks["by_class"]["road"]["auroc"] == 0.5 and masks["by_class"]["car"]["auroc"] == 0.5


# -- embeddings --------------------------------------------------------------------------------------------------------


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_separation_equals_the_slow_one():
    generator = torch.Generator().manual_seed(0)
    tokens, classes = torch.randn(12, 5, generator=generator), torch.tensor([3, 7, 3, 3, 9, 7, 7, 3, 3, 7, 7, 3])
    tokens[classes == 3] += 1.0
    found = separation(Embeddings(tokens, classes))
    assert found["classes"] == [3, 7, 9] and found["counts"] == [6, 5, 1]
    of = {c: [t for t, k in zip(tokens, classes.tolist(), strict=True) if k == c] for c in (3, 7, 9)}
    for row, first in enumerate(of):
        for column, second in enumerate(of):
            same = combinations(of[first], 2)
            pairs = list(same) if first == second else [(a, b) for a in of[first] for b in of[second]]
            expected = np.mean([cosine(a, b) for a, b in pairs]) if pairs else None
            assert found["cosine"][row][column] == (expected if expected is None else pytest.approx(expected, abs=1e-6))
    assert found["within"] == pytest.approx((found["cosine"][0][0] + found["cosine"][1][1]) / 2)
    silhouettes, nearest = [], []
    for k, (token, own) in enumerate(zip(tokens, classes.tolist(), strict=True)):
        others = {c: [t for j, t in enumerate(tokens) if classes[j] == c and j != k] for c in of}
        if not others[own]:
            silhouettes.append(0.0)
            continue
        distances = {c: np.mean([1 - cosine(token, t) for t in group]) for c, group in others.items()}
        inside, outside = distances.pop(own), min(distances.values())
        silhouettes.append((outside - inside) / max(inside, outside))
        means = {c: cosine(token, sum(t / t.norm() for t in group)) for c, group in others.items()}
        nearest.append(max(means, key=means.get) == own)
    assert found["silhouette"] == pytest.approx(np.mean(silhouettes), abs=1e-6)
    assert found["nearest_mean"] == pytest.approx(np.mean(nearest), abs=1e-9)


def test_classes_on_axes_of_their_own_are_separated():
    tokens = torch.eye(3).repeat(4, 1) * torch.arange(1, 13)[:, None]  # lengths do not count
    labelled = Embeddings(tokens, torch.tensor([0, 1, 2] * 4))
    found = separation(labelled)
    assert (found["within"], found["between"]) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert found["silhouette"] == pytest.approx(1) and found["nearest_mean"] == 1
    # of three pseudo-labelled tokens one is of class 1 and lies with 2, one is of a class that nothing labelled has
    pseudo = Embeddings(torch.eye(3)[[0, 2, 2]], torch.tensor([0, 1, 5]))
    near = agreement(pseudo, labelled)
    assert near == {"tokens": 2, "nearest_mean": 0.5, "own": 0.5, "other": pytest.approx(0.25)}
    (first, _), share = projected(labelled, pseudo)
    assert share == pytest.approx(1) and len({tuple(point) for point in first}) == 3


def test_one_class_or_no_token_leaves_questions_open():
    one = separation(Embeddings(torch.randn(3, 4), torch.zeros(3, dtype=torch.long)))
    assert one["between"] is None and one["silhouette"] is None and one["nearest_mean"] is None
    none = Embeddings(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert agreement(none, none)["nearest_mean"] is None and separation(none)["classes"] == []


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_each_term_alone():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    unused = torch.nn.Parameter(torch.ones(2))
    parameters, inputs = [*layers.parameters(), unused], torch.randn(5, 3)

    def terms() -> dict[str, torch.Tensor]:
        out = layers(inputs)
        return {"labelled": out.square().mean(), "pseudo": out.abs().sum(), "contrast": out.sum() * 0}

    alone = {}
    for name in terms():
        layers.zero_grad()
        terms()[name].backward()
        alone[name] = torch.cat([p.grad.flatten() for p in layers.parameters()])
    found = gradient_norms(terms(), parameters)
    for name, gradient in alone.items():
        assert found[name] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert found["cosine_pseudo"] == pytest.approx(cosine(alone["labelled"], alone["pseudo"]), abs=1e-5)
    assert found["contrast"] == found["cosine_contrast"] == 0


def test_equal_sigma_makes_the_norms_equal():
    norms = [
        {"labelled": 3.0, "pseudo": 1.0, "cosine_pseudo": 0.5},
        {"labelled": 5.0, "pseudo": 3.0, "cosine_pseudo": 0},
    ]
    found = summarise(norms, {"pseudo": 0.5})
    assert found["labelled"]["mean"] == 4 and found["labelled"]["std"] == pytest.approx(2**0.5)
    assert found["pseudo"]["weighted"] == 1 and found["pseudo"]["ratio"] == 0.25
    assert found["pseudo"]["equal_sigma"] * found["pseudo"]["mean"] == found["labelled"]["mean"]
    assert found["pseudo"]["cosine"] == 0.25 and "contrast" not in found
    zero = summarise([{"labelled": 1.0, "pseudo": 0.0, "cosine_pseudo": 0.0}], {"pseudo": 0.5})
    assert zero["pseudo"]["equal_sigma"] is None


# -- as a user runs it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict[str, Path]:
    """Six drawn scenes, three of them unlabelled by lists, whose pseudo-labels are the truth but for a wrong quarter;
    and a model of each stage."""
    root = tmp_path_factory.mktemp("run")
    data, pseudo = root / "data", root / "pseudo"
    write_scenes(data, labelled=6, unlabelled=0, val=1, size=(48, 64), progress=False)
    scenes = read_folder(data).split("train")
    rows = [f"{scene.image_id}.png {scene.image_id}.png" for scene in scenes]
    write_split(root / "lists", rows[:3], rows[3:])
    for kind in ("masks", "confidence"):
        (pseudo / kind).mkdir(parents=True)
    for scene in scenes[3:]:
        labels = read_map(scene.label_map).astype(np.uint8)
        labels[24:, :32] = 10
        confidence = np.full((48, 64), 230, np.uint8)
        confidence[24:, :40] = 90
        Image.fromarray(labels).save(pseudo / "masks" / f"{scene.image_id}.png")
        Image.fromarray(confidence).save(pseudo / "confidence" / f"{scene.image_id}.png")
    common = {"split_lists": root / "lists", "max_steps": 2}
    stage1(options(data, root / "stage1", **common))
    stage2([STAGE2_RECIPE, *without_sizes(options(data, root / "stage2", model=root / "stage1", **common))])
    consistency_main(["--model", str(root / "stage2"), "--data", str(data), "--split_lists", str(root / "lists"),
                      "--pseudo_labels", str(pseudo), "--out", str(root / "weights")])  # fmt: skip
    more = {"pseudo_labels": pseudo, "consistency_weights": root / "weights", "model": root / "stage2"}
    last = options(data, root / "stage3", **common, **more, save_strategy="steps", save_steps=2)
    stage3([RECIPE, *without_sizes(last)])
    return {name: root / name for name in ("data", "lists", "pseudo", "weights", "stage1", "stage2", "stage3")}


def arguments(run: dict[str, Path], out: Path, **changes) -> list[str]:
    fields = {"model": run["stage3"], "data": run["data"], "split_lists": run["lists"], "pseudo_labels": run["pseudo"],
              "out": out, "embedding_batches": 3, "gradient_batches": 2, "use_cpu": True, "report_to": "none",
              "disable_tqdm": True, **changes}  # fmt: skip
    return [text for name, value in fields.items() if value is not None for text in (f"--{name}", str(value))]


def test_a_run_of_stage_3_is_diagnosed(run, tmp_path):
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for root in run.values() for path in root.rglob("*")}
    main(arguments(run, out, stage3=run["stage3"], consistency_weights=run["weights"]))
    assert sorted(p.name for p in out.iterdir()) == ["diagnosis.json", "diagnosis.png", "report.md"]
    found = json.loads((out / "diagnosis.json").read_text())
    of_lambda, labels = found["lambda"], found["lambda"]["labels"]
    assert (of_lambda["source"], of_lambda["images"], of_lambda["images_with_truth"]) == ("ahead", 3, 3)
    assert 0 < labels["lambda"]["mean"] <= 1 and 0 <= labels["lambda"]["auroc"] <= 1
    assert labels["confidence"]["auroc"] > 0.8  # by construction
    assert found["embeddings"]["source"] == "bank" and sum(found["embeddings"]["labelled"]["counts"]) > 0
    assert found["embeddings"]["agreement"]["tokens"] > 0
    gradients = found["gradients"]
    assert gradients["pseudo"]["sigma"] == gradients["contrast"]["sigma"] == 0.5 and gradients["batches"] == 2
    assert all(gradients[name]["mean"] > 0 for name in ("labelled", "pseudo", "contrast"))
    assert [entry["step"] for entry in found["log"]] == [1, 2]
    report = (out / "report.md").read_text()
    assert report.count("\n## ") == 3 and f"{labels['lambda']['auroc']:.3f}" in report
    with Image.open(out / "diagnosis.png") as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("L")).std() > 10
    assert before == {path: path.stat().st_mtime_ns for root in run.values() for path in root.rglob("*")}


def test_a_model_of_stage_2_needs_neither_weights_nor_truth_nor_a_bank(run, tmp_path):
    data = tmp_path / "data"
    write_scenes(data, labelled=3, unlabelled=1, val=1, size=(48, 64), progress=False)
    (scene,) = read_folder(data).split("train", labelled=False)
    labels = np.full((48, 64), 3, np.uint8)
    labels[24:] = 0
    (tmp_path / "pseudo/masks").mkdir(parents=True)
    Image.fromarray(labels).save(tmp_path / "pseudo/masks" / f"{scene.image_id}.png")
    changes = {"data": data, "pseudo_labels": tmp_path / "pseudo", "split_lists": None, "model": run["stage2"]}
    main([RECIPE, *arguments(run, tmp_path / "out", **changes)])
    found = json.loads((tmp_path / "out/diagnosis.json").read_text())
    own = found["lambda"]["labels"]["lambda"]
    assert found["lambda"]["source"] == "now" and own["auroc"] is None and own["deciles"] == []
    assert own["mean"] > 0 and "confidence" not in found["lambda"]["labels"]
    assert found["embeddings"]["source"] == "now" and found["log"] == []
    assert found["gradients"]["contrast"]["mean"] > 0  # towards embeddings that were asked for
    assert "no image has a truth" in (tmp_path / "out/report.md").read_text()


@pytest.mark.slow
def test_lambda_asked_now_is_lambda_written_ahead(run, tmp_path):
    found = []
    for changes in ({}, {"consistency_weights": run["weights"]}):
        out = tmp_path / str(len(found))
        main([RECIPE, *arguments(run, out, model=run["stage2"], limit=2, **changes)])
        found.append(json.loads((out / "diagnosis.json").read_text())["lambda"])
    assert [one.pop("source") for one in found] == ["now", "ahead"]
    assert found[0] == found[1] and found[0]["images"] == 2


@pytest.mark.parametrize("asked", [{}, {"unlabelled_parts": True, "consistency": "online"}], ids=["classes", "parts"])
def test_the_terms_are_those_of_the_loss_that_is_trained(run, tmp_path, asked):
    given = {"stage3": run["stage3"], "consistency_weights": run["weights"], "unlabelled_queries": 2, **asked}
    trainer = prepare(arguments(run, tmp_path, **given)).trainer
    batches = list(trainer.get_train_dataloader())
    for kind in ("classes", "all"):  # the embeddings that are told of are those that eq. 8 takes
        trainer.unlabelled.aligned_queries = kind
        whole = torch.cat([batch["whole"] for batch in batches])
        found = ask_embeddings(trainer, batches, len(batches))
        assert sum(len(part.tokens) for part in found) == (whole.sum() if kind == "classes" else len(whole))
    trainer.model.eval()
    for batch in trainer.get_train_dataloader():
        terms = trainer.terms(batch)
        loss = trainer.compute_loss(trainer.model, batch)
        assert terms.keys() == {"labelled", "pseudo", "contrast"}
        assert (batch["rephrasings"] is not None) == bool(asked)
        expected = terms["labelled"] + 0.5 * (terms["pseudo"] + terms["contrast"])
        torch.testing.assert_close(loss, expected)
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        whole = torch.autograd.grad(loss, parameters, allow_unused=True)
        length = sum(float(g.square().sum()) for g in whole if g is not None) ** 0.5
        own = torch.autograd.grad(expected, parameters, allow_unused=True)
        assert sum(float(g.square().sum()) for g in own if g is not None) ** 0.5 == pytest.approx(length, rel=1e-4)


def test_terms_are_those_that_the_training_logs_in_its_precision(run, tmp_path):
    """In bfloat16 only forward passes are under autocast. Of the first step, before anything is learned."""
    given = {"split_lists": run["lists"], "max_steps": 1, "model": run["stage2"], "bf16": True,
             "pseudo_labels": run["pseudo"], "consistency_weights": run["weights"]}  # fmt: skip
    stage3([RECIPE, *without_sizes(options(run["data"], tmp_path / "stage3", **given))])
    (logged,) = (entry for entry in history(tmp_path / "stage3") if "loss" in entry)
    of_model = {"model": run["stage2"], "consistency_weights": run["weights"], "max_label_size": 64}
    found = {}
    for bf16 in (True, False):
        argv = [RECIPE, *arguments(run, tmp_path / "out", per_device_train_batch_size=2, bf16=bf16, **of_model)]
        trainer = prepare(argv).trainer
        trainer.model.train()
        trainer.terms(trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))
        found[bf16] = {name: term.item() for name, term in trainer.logged.items()}
    names = ("lm_loss", "bce_loss", "dice_loss", "iou_loss", "pseudo_bce_loss", "pseudo_dice_loss")
    assert {name: found[True][name] for name in names} == pytest.approx({n: logged[n] for n in names}, abs=2e-5)
    assert any(abs(found[False][name] - logged[name]) > 1e-4 for name in names)


def test_a_base_stored_in_bfloat16_is_diagnosed(run, tmp_path):
    """Its frozen parts stay so under `bf16`, and the trained ones are fp32."""
    half = tmp_path / "half"
    shutil.copytree(run["stage2"], half)
    CoraForReasoningSegmentation.from_pretrained(half, dtype=torch.bfloat16).save_pretrained(half)
    changes = {"model": half, "bf16": True, "embedding_batches": 1, "gradient_batches": 1, "limit": 1}
    parts = ["--lora_r", "4", "--trained_parts", "embeddings", "lm_head", "seg_projector", "mask_decoder"]
    main([RECIPE, *arguments(run, tmp_path / "out", **changes), *parts])
    found = json.loads((tmp_path / "out/diagnosis.json").read_text())
    assert found["lambda"]["source"] == found["embeddings"]["source"] == "now"
    assert found["gradients"]["labelled"]["mean"] > 0


def test_settings_are_those_of_the_run_unless_others_are_given(run, tmp_path):
    given = arguments(run, tmp_path, stage3=run["stage3"])
    of_run = parse_diagnosis(given)
    assert of_run[2].kinds == ["semantic", "attribute", "conditional"] and of_run[2].max_label_size == 64
    assert of_run[2].flip == 0.5 and of_run[6].unlabelled_queries == 5 and of_run[5].train_batch_size == 2
    assert parse_diagnosis([*given, "--flip", "0.25"])[2].flip == 0.25
    assert parse_diagnosis([STAGE2_RECIPE, *given])[2].kinds == ["conditional"]


def test_a_stage_3_that_shows_no_anchors_needs_no_encoder(run, tmp_path):
    kinds = ["--kinds", "semantic", "attribute"]
    trainer = prepare([RECIPE, *arguments(run, tmp_path, model=run["stage1"]), *kinds]).trainer
    assert trainer.model.config.anchor_token_id is None and "anchors" not in trainer.train_dataset[0]["labelled"]


def test_a_damaged_record_gets_one_line(tmp_path):
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"stage": "stage3", "settings": {"flip": "often"}}))
    with pytest.raises(DataError, match=f"^{path}: flip: invalid float value: 'often'$"):
        parse_diagnosis(["--stage3", str(tmp_path)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": None}, "--out: not given"),
        ({"model": None}, "--model: not given"),
        ({"model": "nothing/here/at/all"}, "nothing/here/at/all: cannot be loaded"),
        ({"pseudo_labels": None}, "pseudo_labels: not given has no masks/"),
        ({"consistency_weights": "nowhere"}, "consistency_weights: nowhere is no folder"),
        ({"limit": 0}, "limit: 0 is less than 1"),
        ({"gradient_batches": 0}, "gradient_batches: 0 is less than 1"),
        ({"sigma": 0}, "sigma: 0 leaves the unlabelled losses out"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy: steps: a stage evaluates nothing"),
        ({"stage3": "nowhere"}, "nowhere/training.json: no such file"),
        ({"stage3": "stage2"}, "was trained by stage2"),
        ({"nothing": 1}, "unknown argument '--nothing'"),
    ],
)
def test_bad_input_gets_one_line(run, tmp_path, capsys, changes, message):
    changes = {name: run.get(value, value) for name, value in changes.items()}
    given = arguments(run, **{"out": tmp_path / "out", **changes})
    line = error_line(main, given, capsys)
    assert message in line
    assert not (tmp_path / "out" / "diagnosis.json").exists()
