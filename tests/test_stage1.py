"""Stage 1 as a user runs it: recipes, resumption, accumulation, two processes, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.records import DataError, Instruction, read_image
from datasets_scripts.scenes import write_scenes
from modeling_cora import CoraForReasoningSegmentation
from modeling_cora.presets import cora_tiny
from trainers.arguments import QueryPretrainingArguments, TrainedPartsArguments
from trainers.loading import half_with_trained_parts, load_trained
from trainers.nouns import names_a_whole_class, nouns
from trainers.query_pretraining import pretrain_queries
from trainers.stage1 import main
from trainers.trained_parts import select_trained_parts

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"clip_image_size": 28, "sam_image_size": 128, "max_label_size": 64, "logging_steps": 1, "warmup_steps": 1}


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=3, unlabelled=1, val=1, size=(48, 64), progress=False)
    return folder


def options(street: Path, out: Path, **changes) -> list[str]:
    fields = {
        "data": street,
        "output_dir": out,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **SMALL,
        **changes,
    }
    return [text for name, value in fields.items() for text in (f"--{name}", str(value))]


def history(out: Path) -> list[dict]:
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


def largest_difference(first: Path, second: Path) -> float:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_a_resumed_run_equals_an_uninterrupted_one(street, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main(options(street, whole, save_strategy="steps", save_steps=2, query_pretraining_steps=2))
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    changes = dict(save_strategy="steps", save_steps=2, resume_from_checkpoint=True, query_pretraining_steps=2)
    main(options(street, resumed, **changes))
    assert largest_difference(whole, resumed) == 0.0
    assert largest_difference(whole / "checkpoint-2", whole) > 1e-4  # the last two steps did something
    steps = [entry["step"] for entry in history(resumed) if "loss" in entry]
    assert steps == [1, 2, 3, 4]
    # false is no checkpoint; a folder's name is that checkpoint, also for a folder that is new
    shutil.copytree(whole / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    main(options(street, tmp_path / "again", max_steps=1, resume_from_checkpoint=False))
    assert [entry["step"] for entry in history(tmp_path / "again") if "loss" in entry] == [1]
    main(options(street, tmp_path / "new", resume_from_checkpoint=whole / "checkpoint-2"))
    assert largest_difference(whole, tmp_path / "new") == 0.0


def test_each_loss_term_is_logged_and_their_weighted_sum_is_the_loss(street, tmp_path):
    weights = {"lm_loss": 0.5, "bce_loss": 2.0, "dice_loss": 3.0, "iou_loss": 0.25}
    main(options(street, tmp_path, **{f"{name}_weight": value for name, value in weights.items()}))
    logged = [entry for entry in history(tmp_path) if "loss" in entry]
    assert len(logged) == 4
    for entry in logged:
        assert entry["loss"] == pytest.approx(sum(w * entry[name] for name, w in weights.items()), abs=1e-3)


def test_accumulation_changes_nothing(street, tmp_path):
    """1 x 2 and 2 x 1 images: same loss (not twice), same weights, though the images have 2 to 5 queries each."""
    main(options(street, tmp_path / "batch", queries_per_image=40))
    split = dict(per_device_train_batch_size=1, gradient_accumulation_steps=2, queries_per_image=40)
    main(options(street, tmp_path / "split", **split))
    for batch, accumulated in zip(history(tmp_path / "batch")[:4], history(tmp_path / "split")[:4], strict=True):
        for name in ("loss", "lm_loss", "bce_loss", "dice_loss", "iou_loss"):
            assert accumulated[name] == pytest.approx(batch[name], rel=2e-3), name
    assert largest_difference(tmp_path / "batch", tmp_path / "split") < 2e-4


def on_two_processes(program, argv):
    """Runs a training program as `accelerate launch` does for two processes without a GPU."""
    # `--cpu --num_processes 2` would start one process without a word
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0"]
    command += ["--num_cpu_threads_per_process", "1", "--dynamo_backend", "no", program, *argv]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_processes_equal_one(street, tmp_path):
    given = dict(queries_per_image=40, query_pretraining_steps=3)
    main(options(street, tmp_path / "one", **given))
    on_two_processes("trainers/stage1.py", options(street, tmp_path / "two", per_device_train_batch_size=1, **given))
    for one, two in zip(history(tmp_path / "one")[:4], history(tmp_path / "two")[:4], strict=True):
        for name in ("loss", "lm_loss", "bce_loss", "dice_loss", "iou_loss"):
            assert two[name] == pytest.approx(one[name], rel=2e-3), name
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 2e-4


LEAVES = """
import atexit, sys
from torch import distributed
atexit.register(lambda: print("open" if distributed.is_initialized() else "left"))  # the first one is called last
import trainers
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
"""


def test_a_program_leaves_its_process_group(tmp_path):
    result = subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path / "group")], cwd=ROOT, capture_output=True)
    assert (result.returncode, result.stdout) == (0, b"left\n"), result.stderr


@pytest.fixture(scope="module")
def words(street, tmp_path_factory) -> Path:
    """A stage 1 of query pretraining alone."""
    out = tmp_path_factory.mktemp("words")
    main(options(street, out, max_steps=1, query_pretraining_steps=140, learning_rate=1e-9))
    return out


@pytest.mark.slow
def test_query_pretraining_separates_the_classes(street, words):
    model, processor = load_trained(str(words))
    image = read_image(next((street / "images").rglob("*.png")))
    queries = ["Segment the road.", "Where is the road?", "Segment the sky.", "Where is the sky?"]
    with torch.no_grad():
        embeddings = model(**processor(image, queries)).seg_embeddings
    same = torch.cosine_similarity(embeddings[[0, 2]], embeddings[[1, 3]]).min()
    other = torch.cosine_similarity(embeddings[:2], embeddings[2:]).max()
    assert same > 0.8 and other < 0.5, (same, other)


@pytest.mark.slow
def test_query_pretraining_tells_whom_conditional_queries_are_about(street, words):
    """The car left of the bus is a car, though stage 1 itself asks no such thing."""
    scene_set = read_folder(street)
    scenes = scene_set.split("train", labelled=True)
    asked = build_instructions(scene_set, scenes, ("semantic", "conditional"), 0)
    conditional = [i for i in asked if i.kind == "conditional"][::7]
    whole = [i for i in asked if names_a_whole_class(i)]
    found = nouns(*load_trained(str(words)), scene_set, scenes, whole + conditional)
    assert found["target"] > 0.85, found


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_query_pretraining_tells_claims_apart_where_they_count(street, scale):
    """What "red" adds to a car it adds to a bus; at scale 0 it adds nothing."""
    queries = [f"Segment the {colour} {thing}." for thing in ("car", "bus") for colour in ("red", "blue")]
    instructions = [
        Instruction("any", "attribute", query.split()[-1][:-1], query, "It is [SEG].", claim=query.split()[2])
        for query in queries
    ]
    model, processor = cora_tiny(queries, clip_image_size=28, sam_image_size=128)
    scenes = read_folder(street).split("train", labelled=True)
    steps = QueryPretrainingArguments(
        query_pretraining_steps=80, query_pretraining_queries=8, query_pretraining_claim_scale=scale
    )
    error = pretrain_queries(model, processor, scenes, instructions, steps, 0, progress=False)
    model.eval()
    with torch.no_grad():
        car, bus = model(**processor(read_image(scenes[0].image), queries)).seg_embeddings.unflatten(0, (2, 2))
    red_of_car, red_of_bus = car[0] - car[1], bus[0] - bus[1]
    of_classes = (car - bus).norm(dim=1).mean()
    assert error < 0.05
    if scale:
        assert torch.cosine_similarity(red_of_car, red_of_bus, dim=0) > 0.8
        assert red_of_car.norm() / of_classes == pytest.approx(scale, abs=0.15)
    else:
        assert red_of_car.norm() < 0.1 * of_classes


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_query_pretraining_of_a_model_that_is_stored_in_two_types(street, autocast):
    """Under DeepSpeed accelerate's autocast does nothing; older GPUs have no bfloat16."""
    scene_set = read_folder(street)
    scenes = scene_set.split("train", labelled=True)
    instructions = build_instructions(scene_set, scenes, ("semantic",), 0)
    model, processor = cora_tiny([i.query for i in instructions], clip_image_size=28, sam_image_size=128)
    model.to(autocast)
    model = select_trained_parts(model, TrainedPartsArguments(lora_r=0, trained_parts=["language_model"]))
    before = model.vlm.get_decoder().layers[0].mlp.up_proj.weight.clone()
    steps = QueryPretrainingArguments(query_pretraining_steps=2)
    types = set()
    model.seg_projector.linear_1.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
    error = pretrain_queries(model, processor, scenes, instructions, steps, 0, False, autocast)
    assert types == {autocast} and 0 < error < 2
    assert not torch.equal(before, model.vlm.get_decoder().layers[0].mlp.up_proj.weight)


def test_query_pretraining_of_free_text_alone_would_make_all_queries_one(street):
    queries = ["what drives", "what grows"]
    texts = [Instruction("any", "reasoning", "target", query, "It is [SEG].") for query in queries]
    model, processor = cora_tiny(queries, clip_image_size=28, sam_image_size=128)
    scenes = read_folder(street).split("train", labelled=True)
    steps = QueryPretrainingArguments(query_pretraining_steps=2)
    with pytest.raises(DataError, match="all queries are about target"):
        pretrain_queries(model, processor, scenes, texts, steps, 0, progress=False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("query_pretraining_kinds", "reasoning", "no labelled image has an instruction of reasoning"),
        ("query_pretraining_kinds", "colour", "'colour' is not one of"),
        ("query_pretraining_claim_scale", "-1", "-1.0 is less than 0"),
    ],
)
def test_query_pretraining_of_nothing_takes_one_line(street, tmp_path, capsys, name, value, message):
    with pytest.raises(SystemExit) as ended:
        main([*options(street, tmp_path, query_pretraining_steps=2), f"--{name}", value])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and line.startswith(f"error: {name}: {message}"), line


def test_query_pretraining_of_a_model_stored_in_bfloat16(street, tmp_path):
    """Its frozen parts stay so under `bf16`, and the trained ones are fp32."""
    main(options(street, tmp_path / "first", max_steps=1))
    (tmp_path / "first" / "training.json").unlink()  # else it counts as trained
    half = CoraForReasoningSegmentation.from_pretrained(tmp_path / "first", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "first")
    given = dict(max_steps=1, query_pretraining_steps=2, lora_r=0, bf16=True, model=tmp_path / "first")
    main([*options(street, tmp_path / "out", **given), "--trained_parts", "embeddings", "seg_projector"])
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("shard", ["1GB", "5MB"])
def test_trained_parts_beside_half_ones_are_known_on_the_hub_too(tiny, tmp_path, hub, shard):
    """Loaded in bfloat16, what an earlier stage has trained would be rounded."""
    tiny[0].vlm.bfloat16()
    tiny[0].save_pretrained(tmp_path / "model", max_shard_size=shard)
    assert len([*(tmp_path / "model").glob("*.safetensors")]) > (shard != "1GB")
    hub.serve("models", "org/half", tmp_path / "model")
    for model in (str(tmp_path / "model"), "org/half"):
        assert half_with_trained_parts(model) is torch.bfloat16
    tiny[0].bfloat16().save_pretrained(tmp_path / "whole", max_shard_size=shard)
    hub.serve("models", "org/whole", tmp_path / "whole")
    for model in ("org/whole", "org/nowhere", "cora-tiny", str(tmp_path / "nowhere")):
        assert half_with_trained_parts(model) is None


def test_a_trained_model_gets_no_query_pretraining(street, tmp_path, capsys):
    main(options(street, tmp_path / "first", max_steps=1, lora_r=0))
    given = dict(max_steps=1, lora_r=0, learning_rate=1e-9, query_pretraining_steps=3)
    capsys.readouterr()
    main(options(street, tmp_path / "again", model=str(tmp_path / "first"), **given))
    assert "query_pretraining_steps: left out" in capsys.readouterr().out
    assert largest_difference(tmp_path / "first", tmp_path / "again") < 1e-6
    (tmp_path / "first" / "training.json").unlink()  # a model of which nothing says that it was trained
    main(options(street, tmp_path / "new", model=str(tmp_path / "first"), **given))
    assert largest_difference(tmp_path / "first", tmp_path / "new") > 1e-4


def test_a_model_that_cannot_be_loaded_gets_one_line(street, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options(street, tmp_path / "out", model="/nowhere", query_pretraining_steps=2))
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and line.startswith("error: /nowhere: cannot be loaded"), line


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("learning_rat: 1e-3", "learning_rate"),
        ("- a\n- b", "mapping"),
        ("learning_rate: fast", "'fast'"),
        ("a: [", "not YAML"),
    ],
)
def test_bad_recipes_get_one_line(tmp_path, capsys, recipe, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(SystemExit) as exit_info:
        main([str(path)])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error and "recipe.yaml" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rte", "1"], "learning_rate"),
        (["--max_steps", "many"], "'many'"),
        (["no_such.yaml"], "no_such.yaml"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        ([], "data"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1, "num_train_epochs": 3}, "max_steps: -1 is no number of steps"),
        ({"max_steps": 0}, "max_steps: 0 is no number of steps"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy: steps: a stage evaluates nothing"),
        ({"resume_from_checkpoint": "no/such"}, "resume_from_checkpoint: no/such is no whole checkpoint"),
    ],
)
def test_what_a_training_does_not_do_gets_one_line(street, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as exit_info:
        main(options(street, tmp_path / "out", **changes))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert exit_info.value.code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_bad_data_leaves_no_output(street, tmp_path, capsys):
    copy = tmp_path / "street"
    shutil.copytree(street, copy)
    mask = sorted((copy / "masks").rglob("*.png"))[0]
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(SystemExit) as exit_info:
        main(options(copy, tmp_path / "out"))
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.count("\n") == 1 and mask.name in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [("mask_loss_at", "poitns", "'points'"), ("embedding_pooling", "3", "4"), ("embedding_pooling", "4", "6x6")],
)
def test_a_choice_that_the_model_does_not_know_gets_one_line(street, tmp_path, capsys, name, value, right):
    with pytest.raises(SystemExit) as exit_info:
        main([*options(street, tmp_path / "out", sam_image_size=96), f"--{name}", value])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert exit_info.value.code == 2
    assert len(errors) == 1 and name in errors[0] and right in errors[0]
    assert not (tmp_path / "out").exists()
