"""Asking a saved model: pictures from any file, one line for what cannot be used, nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.folder import read_data
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.records import DataError, read_image
from datasets_scripts.scenes import write_scenes
from metrics.ciou.ciou import intersection_and_union
from modeling_cora.segmentation import segment
from trainers.evaluate import main as evaluate
from trainers.loading import load_trained
from trainers.predict import main as predict
from trainers.summary import summarise_records

from .conftest import noise_image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=2, unlabelled=0, val=3, size=(48, 64), progress=False)
    return folder


def fails(capsys, program, argv) -> str:
    with pytest.raises(SystemExit) as exit_info:
        program([str(a) for a in argv])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert exit_info.value.code == 2 and len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def stored_formats(folder: Path) -> list[Path]:
    rgb = noise_image(37, 23)
    pictures = {
        "rgba.png": rgb.convert("RGBA"),
        "grey.png": rgb.convert("L"),
        "palette.png": rgb.convert("P"),
        "grey_alpha.png": rgb.convert("LA"),
        "bilevel.png": rgb.convert("1"),
        "sixteen.png": Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
        "cmyk.jpg": rgb.convert("CMYK"),
        "thin.png": noise_image(1, 40),
        "one.png": noise_image(1, 1),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    return [folder / name for name in pictures]


def test_every_kind_of_image_file_is_answered(saved, tmp_path):
    (tmp_path / "in").mkdir()
    files = stored_formats(tmp_path / "in")
    (tmp_path / "in/._photo.jpg").write_bytes(b"macOS writes such files beside photo.jpg")
    (tmp_path / "in/of_others.png").mkdir()
    argv = ["--model", saved, "--image", tmp_path / "in", "--query", "the road", "--out", tmp_path / "out", "--masks"]
    predict([str(a) for a in argv])
    for file in files:
        with Image.open(tmp_path / "out" / f"{file.stem}_mask0.png") as mask:
            assert mask.size == Image.open(file).size and set(np.unique(mask)) <= {0, 255}
    assert not list((tmp_path / "out").glob("*partial*"))


def test_sixteen_bit_images_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.abs(np.asarray(read_image(tmp_path / "ramp.png"))[..., 0] - ramp / 257.0).max() <= 0.5


def test_masks_on_disk_are_those_of_the_model_for_any_query_text(saved, tmp_path):
    noise_image(40, 30).save(tmp_path / "image.png")
    queries = ["the road", "[SEG] <image> </s>", "the road"]
    argv = ["--model", saved, "--image", tmp_path / "image.png", "--out", tmp_path / "o.png", "--masks"]
    predict([str(a) for a in argv] + [text for q in queries for text in ("--query", q)])
    model, processor = load_trained(str(saved))
    masks = segment(model, processor, noise_image(40, 30), queries).masks.numpy()
    for index in range(3):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"o_mask{index}.png")) == 255, masks[index])
    assert np.array_equal(masks[0], masks[2])
    assert Image.open(tmp_path / "o.png").width >= 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--image": "no_such.png"}, "no_such.png: no such file"),
        ({"--image": "cut.png"}, "cut.png: not a readable image"),
        ({"--image": "text.png"}, "text.png: not a readable image"),
        ({"--image": "empty"}, "without images"),
        ({"--image": "thread.png"}, "thread.png: image of 1x2000 pixels"),
        ({"--query": "w " * 5000}, "tokens"),
        ({"--query": " "}, "empty"),
        ({"--model": "nowhere"}, "nowhere"),
        ({"--out": "o.xyz"}, "o.xyz"),
        ({"--device": "toaster"}, "--device toaster: not to be had here"),
        ({"--device": "cuda:77"}, "--device cuda:77: not to be had here"),
    ],
)
def test_bad_input_gets_one_line(saved, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the Hub is asked again and again
    good = noise_image(20, 20)
    good.save("image.png")
    Path("cut.png").write_bytes(Path("image.png").read_bytes()[:200])
    Path("text.png").write_text("no image")
    noise_image(1, 2000).save("thread.png")
    Path("empty").mkdir()
    before = set(tmp_path.iterdir())
    options = {"--model": str(saved), "--image": "image.png", "--query": "the road", "--out": "o.png", **change}
    assert message in fails(capsys, predict, [text for pair in options.items() for text in pair])
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("image", "out", "more", "message"),
    [
        ("photos", "photos", [], "photos/a.png is an image that is asked about"),
        ("photos", "../{here}/photos", [], "photos/a.png is an image that is asked about"),
        ("photos/a.png", "photos/a.png", [], "photos/a.png is an image that is asked about"),
        ("photos", "linked", [], "linked/a.png is an image that is asked about"),
        ("photos/a_mask2.png", "photos/a.png", ["--masks"], "photos/a_mask2.png is an image that is asked about"),
        ("photos/a_mask0.png", "photos/a.png", ["--uncertainty"], None),
        ("twice", "out", [], "a.jpg and a.png would both be written to out/a.png"),
        ("photos", "out", ["--masks"], "a.png and a_mask0.png would both be written to out/a_mask0.png"),
        ("photos", "out", [], None),
    ],
)
def test_nothing_is_written_over_an_image_or_twice(saved, tmp_path, monkeypatch, capsys, image, out, more, message):
    monkeypatch.chdir(tmp_path)
    for folder, names in (("photos", ("a.png", "a_mask0.png", "a_mask2.png")), ("twice", ("a.jpg", "a.png"))):
        Path(folder).mkdir()
        for name in names:
            noise_image(9, 9).save(Path(folder) / name)
    Path("linked").symlink_to("photos")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("trainers.predict.load_trained", lambda model: pytest.fail("nothing was refused"))
    asked = ["--query", "one", "--query", "two", "--query", "three"]
    argv = ["--model", saved, "--image", image, "--out", out.format(here=tmp_path.name), *asked, *more]
    if message is None:
        with pytest.raises(pytest.fail.Exception):
            predict([str(a) for a in argv])
    else:
        assert message in fails(capsys, predict, argv)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["cut", "renamed", "resized"])
def test_a_damaged_checkpoint_gets_one_line(saved, street, tmp_path, capsys, damage):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    if damage == "cut":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "renamed":
        config = json.loads((folder / "config.json").read_text())
        config["sam_config"]["vision_config"]["num_hidden_layers"] = 5
        (folder / "config.json").write_text(json.dumps(config))
    else:
        config = json.loads((folder / "config.json").read_text())
        config["sam_config"]["vision_config"]["mlp_dim"] = 96
        (folder / "config.json").write_text(json.dumps(config))
    error = fails(capsys, evaluate, ["--model", folder, "--data", street, "--out", tmp_path / "out"])
    assert str(folder) in error
    assert not (tmp_path / "out").exists()


def test_the_exit_code_and_the_line_of_a_real_process(saved, tmp_path):
    command = [sys.executable, "trainers/predict.py", "--model", saved, "--image", "x.png", "--query", "a"]
    command += ["--out", tmp_path / "o.png"]
    result = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: x.png: no such file"


def test_evaluation_counts_what_a_slow_second_look_counts(saved, street, tmp_path):
    evaluate(["--model", str(saved), "--data", str(street), "--out", str(tmp_path)])
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    scene_set, _ = read_data(street, components=True)
    scenes = scene_set.split("val", labelled=True)
    every = build_instructions(scene_set, scenes, ("semantic", "attribute"), 0)
    # of several descriptions of one target one, each target in its turn
    targets = [(i.image_id, i.kind, i.class_name, i.instance_ids, i.claim) for i in every]
    groups = [[i for i, own in zip(every, targets, strict=True) if own == t] for t in dict.fromkeys(targets)]
    assert len(groups) < len(every)
    instructions = [
        next(i for i in group if i.query == record["query"]) for record, group in zip(records, groups, strict=True)
    ]
    assert any(i is not group[0] for i, group in zip(instructions, groups, strict=True))
    model, processor = load_trained(str(saved))
    paths = {s.image_id: s for s in scenes}
    for record, instruction in list(zip(records, instructions, strict=True))[::7]:
        scene = paths[instruction.image_id]
        labels, instances = scene_set.read_maps(scene)
        target = instruction.target_mask(scene_set.class_named(instruction.class_name).id, labels, instances)
        mask = segment(model, processor, read_image(scene.image), [instruction.query]).masks[0].numpy()
        expected = intersection_and_union(mask, target)
        # packed with others or alone: the same but for pixels whose logit is 0 to the last digit
        assert record["intersection"] == pytest.approx(int(expected[0]), abs=2)
        assert record["union"] == pytest.approx(int(expected[1]), abs=2)
    summary = json.loads((tmp_path / "metrics.json").read_text())
    total = sum(r["intersection"] for r in records) / sum(r["union"] for r in records)
    assert summary["all"]["ciou"] == pytest.approx(total)
    assert summary["all"]["queries"] == len(records)
    assert (tmp_path / "overlays.png").stat().st_size > 1000


def test_two_processes_count_every_query_once(saved, street, tmp_path):
    evaluate(["--model", str(saved), "--data", str(street), "--out", str(tmp_path / "one"), "--examples", "0"])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", "1", "trainers/evaluate.py", "--examples", "0"]
    command += ["--model", saved, "--data", street, "--out", tmp_path / "two"]
    result = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = ((tmp_path / name / "samples.jsonl").read_text().splitlines() for name in ("one", "two"))
    assert [json.loads(line)["query"] for line in one] == [json.loads(line)["query"] for line in two]
    for a, b in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert a["intersection"] == pytest.approx(b["intersection"], abs=2)


def test_nothing_to_evaluate_is_an_error(saved, street, tmp_path, capsys):
    assert "split 'test'" in fails(capsys, evaluate, ["--model", saved, "--data", street, "--split", "test"])
    line = fails(capsys, evaluate, ["--model", saved, "--data", street, "--kinds", "reasoning"])
    assert f"{street}: kinds: none of the instructions is reasoning; there are attribute, conditional, semantic" in line
    with pytest.raises(DataError, match="nothing to evaluate"):
        summarise_records([])


def test_uncertainty_is_written_beside_the_picture(saved, tmp_path):
    noise_image(40, 30).save(tmp_path / "a.png")
    argv = ["--model", saved, "--image", tmp_path / "a.png", "--query", "the road", "--query", "the sky"]
    predict([str(a) for a in [*argv, "--out", tmp_path / "b.png", "--uncertainty"]])
    model, processor = load_trained(str(saved))
    expected = segment(model, processor, noise_image(40, 30), ["the road", "the sky"], uncertainty=True).uncertainty
    for index in range(2):
        with Image.open(tmp_path / f"b_uncertainty{index}.png") as file:
            assert np.abs(np.asarray(file) / 255 - 4 * expected[index].numpy()).max() < 0.01
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.width > 3 * 384  # the masks and two maps
