"""Training as a user runs it: resumption, two processes, the logged terms, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from datasets_scripts.scenes import write_scenes
from trainers.pseudo_labels.dataset import SemiSupervisedDataset
from trainers.pseudo_labels.segmenter import SemanticSegmenter
from trainers.pseudo_labels.train import main
from trainers.pseudo_labels.trainer import SemiSupervisedSegmentationTrainer

from . import small_backbones

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "trainers" / "pseudo_labels" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=3, unlabelled=5, val=2, size=(48, 64), progress=False)
    return folder


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, Path]:
    return {
        "segformer": small_backbones.save_segformer(tmp_path_factory.mktemp("segformer")),
        "dpt": small_backbones.save_dinov2(tmp_path_factory.mktemp("dinov2")),
        "semivl": small_backbones.save_clip(tmp_path_factory.mktemp("clip")),
        "resnet": small_backbones.save_resnet(tmp_path_factory.mktemp("resnet")),
    }


def options(street: Path, backbones, out: Path, architecture="segformer", **changes) -> list[str]:
    fields = {
        "data": street,
        "architecture": architecture,
        "backbone": backbones.get(architecture),
        "decoder_channels": 16,
        "method": "unimatch",
        "crop_height": 28,
        "crop_width": 40,
        "confidence_threshold": 0.1,
        "output_dir": out,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return [text for name, value in fields.items() for text in (f"--{name}", str(value))]


def history(out: Path) -> list[dict]:
    return [e for e in json.loads((out / "trainer_state.json").read_text())["log_history"] if "loss" in e]


def largest_difference(first: Path, second: Path) -> float:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def assert_resumes(street, backbones, tmp_path, **method):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    changes = dict(save_strategy="steps", save_steps=2, **method)
    main(options(street, backbones, whole, **changes))
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    main(options(street, backbones, resumed, resume_from_checkpoint=True, **changes))
    assert largest_difference(whole, resumed) == 0.0
    assert largest_difference(whole / "checkpoint-2", whole) > 1e-4  # the last two steps did something
    assert [entry["step"] for entry in history(resumed)] == [1, 2, 3, 4]


def test_a_resumed_run_equals_an_uninterrupted_one(street, backbones, tmp_path):
    assert_resumes(street, backbones, tmp_path)


def test_a_resumed_run_keeps_its_teacher(street, backbones, tmp_path, monkeypatch):
    """Also with levels of features of one width (DPT); what is saved in the end is the teacher."""
    # as under DeepSpeed, which loads a model's weights itself and asks no subclass
    monkeypatch.setattr(SemiSupervisedSegmentationTrainer, "_load_from_checkpoint", Trainer._load_from_checkpoint)
    assert_resumes(street, backbones, tmp_path, method="unimatch_v2", architecture="dpt")
    student = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    teacher = load_file(tmp_path / "whole" / "checkpoint-4" / "teacher" / "model.safetensors")
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    name = "network.head.0.weight"
    assert saved[name].equal(teacher[name]) and not saved[name].equal(student[name])


def test_only_a_checkpoint_of_the_method_is_gone_on_from(street, backbones, tmp_path, capsys):
    saved = dict(save_strategy="steps", save_steps=1, max_steps=1)
    main(options(street, backbones, tmp_path / "one", **saved))
    main(options(street, backbones, tmp_path / "one", resume_from_checkpoint=False, **saved))
    assert [entry["step"] for entry in history(tmp_path / "one")] == [1]
    checkpoint = tmp_path / "one" / "checkpoint-1"
    argv = options(street, backbones, tmp_path / "two", resume_from_checkpoint=checkpoint, method="unimatch_v2")
    assert f"{checkpoint}: has no teacher; is it of another method?" in error_line(argv, capsys)
    argv = options(street, backbones, tmp_path / "three", resume_from_checkpoint=tmp_path / "one")
    assert f"resume_from_checkpoint: {tmp_path / 'one'} is no whole checkpoint" in error_line(argv, capsys)
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("method", ["unimatch", "unimatch_v2"])
def test_pseudo_labels_have_the_precision_of_what_learns_from_them(street, backbones, tmp_path, method, monkeypatch):
    """accelerate's autocast reaches `forward`; the mixed image and the teacher are asked beside it."""
    seen, inside = [], []
    decoded, compute_loss = SemanticSegmenter._decoded, SemiSupervisedSegmentationTrainer.compute_loss

    def seen_decoded(self, *given):
        result = decoded(self, *given)
        if inside:
            seen.append(result.dtype)
        return result

    def inside_compute_loss(self, *arguments, **more):
        inside.append(True)
        try:
            return compute_loss(self, *arguments, **more)
        finally:
            inside.clear()

    monkeypatch.setattr(SemanticSegmenter, "_decoded", seen_decoded)
    monkeypatch.setattr(SemiSupervisedSegmentationTrainer, "compute_loss", inside_compute_loss)
    main(options(street, backbones, tmp_path, method=method, max_steps=1, bf16=True))
    assert seen == [torch.bfloat16] * 3


def test_items_are_read_once_and_in_order(street, backbones, tmp_path, monkeypatch):
    asked = []
    own = SemiSupervisedDataset.__getitem__
    monkeypatch.setattr(SemiSupervisedDataset, "__getitem__", lambda self, k: asked.append(k) or own(self, k))
    main(options(street, backbones, tmp_path, max_steps=3, method="supervised"))
    assert asked == list(range(6))


def assert_two_processes_equal_one(street, backbones, tmp_path, batch: int, **method):
    main(options(street, backbones, tmp_path / "one", per_device_train_batch_size=batch, **method))
    # `accelerate launch --cpu --num_processes 2` starts one process without a word
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0"]
    command += ["--num_cpu_threads_per_process", "1", "--dynamo_backend", "no", "trainers/pseudo_labels/train.py"]
    command += options(street, backbones, tmp_path / "two", per_device_train_batch_size=batch // 2, **method)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        for name in ("loss", *(name for name in first if name.endswith("_loss"))):
            assert second[name] == pytest.approx(first[name], abs=1e-4), (first["step"], name)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 2e-4
    scores = [json.loads((tmp_path / run / "training.json").read_text())["val"] for run in ("one", "two")]
    assert scores[1]["miou"] == pytest.approx(scores[0]["miou"], abs=1e-2)


def test_two_processes_equal_one_with_twice_the_batch(street, backbones, tmp_path):
    """With BatchNorm (SegFormer's decoder), hardest pixels of all processes, and images that are partly padding."""
    ohem = dict(labelled_loss="ohem", ohem_threshold=0.05, ohem_min_kept=300)
    sgd = dict(optimizer="sgd", learning_rate=0.05, scale_min=0.4)
    assert_two_processes_equal_one(street, backbones, tmp_path, batch=4, **ohem, **sgd)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "architecture"), [("unimatch_v2", "segformer"), ("semivl", "semivl")])
def test_two_processes_equal_one_for_the_other_methods(street, backbones, tmp_path, method, architecture):
    more = {"skip_encoder": backbones["resnet"]} if architecture == "semivl" else {}
    assert_two_processes_equal_one(
        street, backbones, tmp_path, batch=4, method=method, architecture=architecture, optimizer="sgd", **more
    )


WEIGHTS = {
    "supervised": {"labelled_loss": 1.0},
    "unimatch": {"labelled_loss": 0.5, "strong1_loss": 0.125, "strong2_loss": 0.125, "feature_loss": 0.25},
    "unimatch_v2": {"labelled_loss": 0.5, "strong1_loss": 0.25, "strong2_loss": 0.25},
}


@pytest.mark.parametrize("method", WEIGHTS)
def test_the_logged_terms_make_the_loss_and_the_folder_says_what_it_is(street, backbones, tmp_path, method):
    main(options(street, backbones, tmp_path, method=method, seed=3))
    logged = history(tmp_path)
    assert len(logged) == 4
    for entry in logged:
        assert {name for name in entry if name.endswith("_loss")} == set(WEIGHTS[method])
        assert entry["loss"] == pytest.approx(sum(w * entry[n] for n, w in WEIGHTS[method].items()), abs=1e-3)
        assert entry["labelled_loss"] > 0.5
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["method"], record["seed"], record["steps"], record["batch"]) == (method, 3, 4, 2)
    assert record["labelled_images"] == 3 and 0 <= record["val"]["miou"] <= 1
    segmenter = SemanticSegmenter.from_pretrained(tmp_path)
    assert {str(i): name for i, name in zip(segmenter.config.class_ids, segmenter.classes, strict=True)} == record[
        "classes"
    ]


@pytest.mark.parametrize(
    ("method", "architecture"), [("unimatch", "segformer"), ("unimatch_v2", "segformer"), ("semivl", "semivl")]
)
def test_burn_in_is_supervised_training(street, backbones, tmp_path, method, architecture):
    saved = dict(save_strategy="steps", save_steps=2, batch_norm_statistics="clean", architecture=architecture)
    main(options(street, backbones, tmp_path / "burnt_in", method=method, burn_in=0.5, **saved))
    main(options(street, backbones, tmp_path / "supervised", method="supervised", **saved))
    assert largest_difference(*(tmp_path / run / "checkpoint-2" for run in ("burnt_in", "supervised"))) == 0.0
    assert largest_difference(*(tmp_path / run / "checkpoint-4" for run in ("burnt_in", "supervised"))) > 1e-4
    terms = [{name for name in entry if name.endswith("_loss")} for entry in history(tmp_path / "burnt_in")]
    assert terms[:2] == [{"labelled_loss"}] * 2 and terms[2] == terms[3] > {"labelled_loss"}


def test_a_run_starts_from_a_trained_segmenter(street, backbones, tmp_path, capsys):
    """Student and teacher: with a learning rate of 0 both keep the weights, whatever the seed and the backbone."""
    main(options(street, backbones, tmp_path / "first", method="supervised", max_steps=3))
    given = dict(start_from=tmp_path / "first", backbone="mit-xs", seed=7)
    lacking, cut_short = tmp_path / "lacking", tmp_path / "cut_short"
    for folder in (lacking, cut_short):
        shutil.copytree(tmp_path / "first", folder)
    weights = load_file(lacking / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, lacking / "model.safetensors")
    os.truncate(cut_short / "model.safetensors", 1000)
    wrong = [
        (given, "has other layers, network.backbone."),
        (given | dict(output_stride=32), "output_stride is 16; this run's is 32"),
        (given | dict(start_from=street), "is no trained segmenter ("),
        (given | dict(start_from=backbones["segformer"]), "is no trained segmenter (its config.json names no classes)"),
        (given | dict(start_from=lacking), f"start_from {lacking}: its weights lack"),
        (given | dict(start_from=cut_short), f"start_from {cut_short}: is no trained segmenter ("),
        (given | dict(architecture="dpt", backbone=backbones["dpt"]), "architecture is segformer; this run's is dpt"),
    ]
    for changes, message in wrong:
        assert message in error_line(options(street, backbones, tmp_path / "second", **changes), capsys)
    assert not (tmp_path / "second").exists()
    given["backbone"] = backbones["segformer"]
    for name, rate in (("second", 0.0), ("third", 1e-3)):
        changes = dict(
            method="unimatch_v2",
            learning_rate=rate,
            lr_scheduler_type="constant",
            lr_scheduler_kwargs="null",
            save_strategy="steps",
            save_steps=2,
        )
        main(options(street, backbones, tmp_path / name, **given, **changes))
    for name, started in (("first", None), ("second", str(tmp_path / "first"))):
        assert json.loads((tmp_path / name / "training.json").read_text())["start_from"] == started
    first, teacher, student, moved = (
        load_file(tmp_path / run / "model.safetensors")
        for run in ("first", "second", "second/checkpoint-2", "third/checkpoint-2")
    )
    learned = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all((first[name] == student[name]).all() for name in learned)
    # the teacher is a weighted mean of equal numbers, of which the last bit may differ
    assert all((first[name] - teacher[name]).abs().max() < 1e-6 for name in learned)
    assert any((first[name] - moved[name]).abs().max() > 1e-4 for name in learned)


def test_activation_checkpointing_changes_no_step(street, backbones, tmp_path):
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        main(options(street, backbones, tmp_path / name, activation_checkpointing=checkpointed))
    assert largest_difference(tmp_path / "plain", tmp_path / "checkpointed") < 1e-6


def test_training_learns(street, backbones, tmp_path):
    """From chance to far below it on the labelled crops."""
    main(options(street, backbones, tmp_path, max_steps=40, learning_rate=1e-2, logging_steps=10, method="supervised"))
    losses = [entry["labelled_loss"] for entry in history(tmp_path)]
    assert losses[0] > 1.5 and losses[-1] < 0.85 * losses[0]


def test_accumulation_does_not_double_the_loss(street, backbones, tmp_path):
    main(options(street, backbones, tmp_path / "one", method="supervised", max_steps=1))
    changes = dict(per_device_train_batch_size=1, gradient_accumulation_steps=2, method="supervised", max_steps=1)
    main(options(street, backbones, tmp_path / "two", **changes))
    one, two = history(tmp_path / "one")[0]["loss"], history(tmp_path / "two")[0]["loss"]
    assert two == pytest.approx(one, rel=0.3)


# -- bad input ---------------------------------------------------------------------------------------------------------


def add_class(folder: Path, name: str) -> None:
    classes = json.loads((folder / "classes.json").read_text())
    classes["classes"].append({"id": 99, "name": name})
    (folder / "classes.json").write_text(json.dumps(classes))


def error_line(argv: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert exit_info.value.code == 2 and len(errors) == 1
    return errors[0]


def test_bad_input_gets_one_line_and_leaves_nothing(street, backbones, tmp_path, capsys):
    lonely = tmp_path / "lonely"
    shutil.copytree(street, lonely)
    shutil.rmtree(lonely / "unlabelled")
    add_class(lonely, "unicorn")
    without_val = tmp_path / "without val"
    write_scenes(without_val, labelled=3, unlabelled=2, val=0, size=(48, 64), progress=False)
    out = tmp_path / "out"
    one_image = dict(architecture="deeplabv3plus", backbone=backbones["resnet"], per_device_train_batch_size=1)
    bad = [
        (options(lonely, backbones, out), "no unlabelled training image"),
        (options(street, backbones, out, crop_height=49), "smaller than the crop 40x49"),
        (options(lonely, backbones, out, absent_classes="error", method="supervised"), "labelled images shows unicorn"),
        (options(street, backbones, out, method="unimach"), "unimach"),
        (options(street, backbones, out, method="semivl"), "architecture segformer has no CLIP"),
        (options(street, backbones, out, method="unimatch_v2", per_device_train_batch_size=3), "3 is odd"),
        (options(street, backbones, out, confidence_threshold=1.5), "outside of [0, 1]"),
        (options(street, backbones, out, cutmix_area_min=0.6), "is no range"),
        (options(street, backbones, out, crop_height=4, crop_width=40), "no box of 0.4 of a crop of 4 x 40 has"),
        (options(street, backbones, out, load_best_model_at_end=True, eval_strategy="no"), "load_best_model_at_end: "),
        (options(street, backbones, out, optim="adafactor"), "optim: adafactor has no effect here; optimizer sgd or"),
        (options(street, backbones, out, push_to_hub=True), "push_to_hub: true would publish all of output_dir"),
        (options(street, backbones, out, method="supervised", **one_image), "1 is too few"),
        (
            options(street, backbones, out, activation_checkpointing=True, **one_image),
            "deeplabv3plus's ResNet has none",
        ),
        (options(street, backbones, out, burn_in=0.5, **one_image), "1 is too few"),
        (options(street, backbones, out, batch_norm_statistics="clean", **one_image), "1 is too few"),
        (options(street, backbones, out, burn_in=2), "burn_in: 2.0 is outside of [0, 1]"),
        (options(street, backbones, out, ema_ratio=99), "ema_ratio: 99.0 is outside of [0, 1]"),
        (
            options(street, backbones, out, output_stride=8),
            "output_stride/--output-stride: invalid choice: '8' (choose from 16, 32)",
        ),
        (options(street, backbones, out, window_stride=1.5), "window_stride: 1.5 is outside of [0, 1]"),
        (options(street, backbones, out, image_scale=0), "image_scale: 0.0 is not above 0"),
        (options(street, backbones, out, image_scale=0.5), "32x24 (image_scale 0.5) is smaller than the crop 40x28"),
        (options(street, backbones, out, window_stride=0), "window_stride: 0.0 is not above 0"),
        (options(street, backbones, out, feature_dropout=1), "feature_dropout: 1 drops every channel"),
        (options(street, backbones, out, blur_sigma_min=3), "blur_sigma_min, blur_sigma_max: 3.0 to 2.0 is no range"),
        (options(street, backbones, out, decoder_channels=0), "decoder_channels: 0 is less than 1"),
        (options(street, backbones, out, max_steps=-1), "max_steps: -1 is no number of steps"),
        (
            options(street, backbones, out, max_steps=4, warmup_steps=4),
            "warmup_steps: 4 are all of max_steps, 4",
        ),
        (options(without_val, backbones, out, eval_strategy="steps", eval_steps=1), "no labelled images of split val"),
    ]
    for argv, message in bad:
        assert message in error_line(argv, capsys)
        assert not out.exists()


def test_sharded_weights_take_one_line(street, backbones, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainers.base_trainer.is_deepspeed_zero3_enabled", lambda: True)
    line = error_line(options(street, backbones, tmp_path / "out", method="unimatch_v2"), capsys)
    assert "distributed_type: segmenters do not run with sharded weights (FSDP, ZeRO-3); trainers/accelerate/" in line
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_wrong_choice_in_a_recipe_is_told(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("labelled_loss: focal\n")
    line = error_line([str(recipe)], capsys)
    assert f"{recipe}: labelled_loss: invalid choice: 'focal' (choose from 'cross_entropy', 'ohem')" in line


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(street, backbones, tmp_path, capsys):
    argv = options(street, backbones, tmp_path / "out", optimizer="sgd", learning_rate=1e20, max_steps=20)
    line = error_line(argv, capsys)
    assert "_loss is " in line and "step " in line and "learning_rate" in line


def test_classes_that_are_left_out_are_named_once(street, backbones, tmp_path, capsys):
    copy = tmp_path / "street"
    shutil.copytree(street, copy)
    add_class(copy, "unicorn")
    main(options(copy, backbones, tmp_path / "out", method="supervised", max_steps=1))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "unicorn" in notes[0]
    assert "unicorn" not in SemanticSegmenter.from_pretrained(tmp_path / "out").classes


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "trainers/pseudo_labels/recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_recipe_is_readable(recipe):
    from trainers.pseudo_labels.arguments import check_cutmix
    from trainers.pseudo_labels.train import ARGUMENTS
    from trainers.recipe_parser import parse_recipe

    groups = parse_recipe(ARGUMENTS, [str(recipe), "--use_cpu", "true", "--bf16", "false"])
    segmenter, method, data, strong, _ = groups
    check_cutmix(data, strong)
    assert (method.method == "semivl") <= (segmenter.architecture == "semivl")
    assert data.crop_height % 14 == 0 or segmenter.architecture != "dpt"
