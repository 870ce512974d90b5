"""Pseudo-labels on disk: predicted, imported, audited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_scripts.cityscapes import TRAIN_IDS
from datasets_scripts.folder import read_folder
from datasets_scripts.records import DataError, read_image, read_map
from datasets_scripts.scenes import write_scenes
from trainers.pseudo_labels import audit, import_masks, predict
from trainers.pseudo_labels.augmentation import pixels
from trainers.pseudo_labels.backbones import load_segmenter
from trainers.pseudo_labels.evaluation import predict_probabilities
from trainers.pseudo_labels.import_masks import image_id_of_mask
from trainers.pseudo_labels.predictions import PseudoLabels
from trainers.pseudo_labels.segmenter import SemanticSegmenter
from trainers.pseudo_labels.train import main as train

from . import small_backbones
from .conftest import noise_image


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=2, unlabelled=3, val=1, size=(48, 64), progress=False)
    return folder


def one_step(street: Path, folder: Path, *more: str) -> Path:
    backbone = small_backbones.save_segformer(folder / "backbone")
    fields = f"--data {street} --backbone {backbone} --decoder_channels 16 --method supervised --crop_height 28 "
    fields += f"--crop_width 40 --output_dir {folder} --max_steps 1 --save_strategy no --use_cpu True "
    train([*(fields + "--report_to none --disable_tqdm True").split(), *more])
    return folder


@pytest.fixture(scope="module")
def model(street, tmp_path_factory) -> Path:
    return one_step(street, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predicted(street, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("predicted")
    predict.main(["--model", str(model), "--data", str(street), "--out", str(out)])
    return out


def error_line(main, argv, capsys) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main([str(one) for one in argv])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert exit_info.value.code == 2 and len(errors) == 1
    return errors[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- predict.py --------------------------------------------------------------------------------------------------------


def test_every_unlabelled_image_gets_a_class_map_and_a_confidence(street, model, predicted):
    segmenter = SemanticSegmenter.from_pretrained(model).eval()
    images = sorted((street / "unlabelled").iterdir())
    assert sorted(p.stem for p in (predicted / "masks").iterdir()) == [p.stem for p in images]
    for path in images:
        image = torch.from_numpy(pixels(read_image(path)))
        confidence, index = predict_probabilities(segmenter, image, (28, 40), 2 / 3).max(0)
        ids = np.array(segmenter.config.class_ids)[index.numpy()]
        assert np.array_equal(read_map(predicted / "masks" / f"{path.stem}.png"), ids)
        written = read_map(predicted / "confidence" / f"{path.stem}.png")
        assert np.abs(written / 255 - confidence.numpy()).max() <= 0.5 / 255 + 1e-6
    with Image.open(predicted / "confidence" / f"{images[0].stem}.png") as file:
        assert file.mode == "L" and file.size == (64, 48)


def test_a_segmenter_of_smaller_images_answers_at_their_size(street, tmp_path):
    folder = one_step(street, tmp_path / "model", "--image_scale=0.5", "--crop_height=24", "--crop_width=32")
    predict.main(["--model", str(folder), "--data", str(street), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["image_scale"] == 0.5
    for path in (tmp_path / "out" / "masks").iterdir():
        assert read_map(path).shape == (48, 64)


def test_meta_says_where_the_pseudo_labels_come_from(model, predicted):
    import hashlib

    meta = json.loads((predicted / "meta.json").read_text())
    record = json.loads((model / "training.json").read_text())
    assert meta["method"] == "supervised" and meta["images"] == 3 and meta["window"] == [28, 40]
    assert meta["val_miou"] == record["val"]["miou"] and meta["classes"] == record["classes"]
    assert meta["identity"]["weights_sha256"] == hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def test_an_interrupted_prediction_goes_on(street, model, predicted, tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = []
    whole = predict.predict_scene

    def interrupted(segmenter, scene, stride):
        asked.append(scene.image_id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(segmenter, scene, stride)

    monkeypatch.setattr(predict, "predict_scene", interrupted)
    argv = ["--model", str(model), "--data", str(street), "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        predict.main(argv)
    assert (out / "source.json").exists() and not (out / "meta.json").exists()
    with pytest.raises(DataError, match=r"out: unfinished; run predict.py again \(meta.json is missing\)"):
        PseudoLabels(out, read_folder(street))
    # by another name of the same folder
    (tmp_path / "street").symlink_to(street)
    predict.main([*argv[:3], str(tmp_path / "street"), *argv[4:]])
    assert len(asked) == 4 and asked[3] == asked[2]  # only the one that was missing
    predict.main(argv)
    assert len(asked) == 4 and contents(out) == contents(predicted)


def test_several_processes_share_the_images(street, model, predicted, tmp_path):
    class Turn:
        """One of two processes, one after the other."""

        num_processes, device = 2, torch.device("cpu")

        def __init__(self, process_index):
            self.process_index, self.is_main_process = process_index, process_index == 0

    segmenter = load_segmenter(str(model), "--model")
    scenes = predict.read_folder(street).split("train", labelled=False)
    predict._predict_own(segmenter, scenes, tmp_path, 2 / 3, Turn(1))
    assert len(list((tmp_path / "masks").iterdir())) == 1
    predict._predict_own(segmenter, scenes, tmp_path, 2 / 3, Turn(0))
    for name, content in contents(tmp_path).items():
        assert content == (predicted / name).read_bytes()
    assert len(contents(tmp_path)) == 6


def test_bad_input_of_prediction(street, model, predicted, tmp_path, capsys):
    empty = tmp_path / "street"
    shutil.copytree(street, empty)
    shutil.rmtree(empty / "unlabelled")
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(predicted, other)
    backbone, unfinished = small_backbones.save_segformer(tmp_path / "backbone"), tmp_path / "unfinished"
    shutil.copytree(model, unfinished)
    (unfinished / "training.json").unlink()
    newer = shutil.copytree(model, tmp_path / "newer")
    (newer / "config.json").write_text((newer / "config.json").read_text().replace('"segformer",', '"another",', 1))
    base = ["--data", street, "--out", out]
    for argv, message in (
        (base, "--model not given"),
        (["--model", unfinished, *base], "has its training ended?"),
        (["--model", newer, *base], f"--model {newer}: is no trained segmenter (Validation error for field"),
        (["--model", backbone, *base], f"--model {backbone}: is no trained segmenter (its config.json names no "),
        (["--model", model, "--data", empty, "--out", out], "no unlabelled training image"),
        (
            ["--model", model, "--data", street, "--out", other, "--window_stride", "0.5"],
            "source.json: was made with window_stride",
        ),
        (["--model", model, *base, "--window_stride", "0"], "window_stride: 0.0 is not above 0"),
    ):
        assert message in error_line(predict.main, argv, capsys)
    assert not out.exists() and contents(other) == contents(predicted)


# -- audit.py ----------------------------------------------------------------------------------------------------------


def test_deciles_by_sorting_every_pixel():
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 256, 5000)
    right = rng.random(5000) < confidence / 255
    at, correct = np.bincount(confidence, minlength=256), np.bincount(confidence[right], minlength=256)
    order = np.argsort(confidence, kind="stable")
    for k, group in enumerate(audit.deciles(at, correct)):
        own = order[500 * k : 500 * (k + 1)]
        assert group["pixels"] == pytest.approx(500)
        assert group["lowest"] * 255 == pytest.approx(confidence[own].min())
        assert group["highest"] * 255 == pytest.approx(confidence[own].max())
        assert group["accuracy"] == pytest.approx(right[own].mean(), abs=0.02)  # ties at a border are shared
    one_level = audit.deciles(np.eye(256, dtype=int)[200] * 30, np.eye(256, dtype=int)[200] * 21)
    assert [round(g["accuracy"], 6) for g in one_level] == [0.7] * 10
    assert audit.deciles(np.zeros(256, int), np.zeros(256, int)) == []


def make_audited(tmp_path: Path) -> tuple[Path, Path]:
    """Two images with truth and one without; predictions that are right in the left half, and sure there."""
    data, predictions = tmp_path / "data", tmp_path / "predictions"
    for folder in ("images", "masks", "unlabelled"):
        (data / folder).mkdir(parents=True)
    (data / "classes.json").write_text('{"0": "road", "1": "car"}')
    for number, name in enumerate(("a", "b", "c")):
        noise_image(40, 20, number).save(data / ("unlabelled" if name == "c" else "images") / f"{name}.png")
        if name != "c":
            truth = np.zeros((20, 40), np.uint8)
            truth[:2] = 255
            Image.fromarray(truth).save(data / "masks" / f"{name}.png")
        mask, confidence = np.zeros((20, 40), np.uint8), np.full((20, 40), 250 - 10 * number, np.uint8)
        mask[:, 20:], confidence[:, 20:] = 1, 100
        for kind, values in (("masks", mask), ("confidence", confidence)):
            (predictions / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(predictions / kind / f"{name}.png")
    meta = {"method": "unimatch", "val_miou": 0.5, "identity": {}, "classes": {"0": "road", "1": "car"}}
    (predictions / "meta.json").write_text(json.dumps(meta))
    return data, predictions


def test_an_audit_scores_what_has_a_truth(tmp_path):
    data, predictions = make_audited(tmp_path)
    audit.main(["--predictions", str(predictions), "--data", str(data), "--pictures", "2"])
    found = json.loads((predictions / "audit.json").read_text())
    assert (found["images"], found["images_with_truth"]) == (3, 2)
    assert found["accuracy"] == 0.5 and found["iou"] == {"road": 0.5} and found["miou"] == 0.5
    assert [g["accuracy"] for g in found["deciles"]] == [0.0] * 5 + [1.0] * 5
    road = found["coverage"]["road"]
    assert road["predicted_share"] == 0.5 and road["truth_share"] == 1.0
    assert road["confident_share"] == pytest.approx(1 / 3)  # 250 is above .95, 240 and 230 are not
    assert list(found["least_certain"]) == ["c", "b"]
    page = (predictions / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 and "mIoU 0.500" in page and "http" not in page.split("<h1>")[1]


def test_an_audit_without_confidence_or_truth(tmp_path):
    data, predictions = make_audited(tmp_path)
    shutil.rmtree(predictions / "confidence")
    for name in ("a", "b"):
        (predictions / "masks" / f"{name}.png").unlink()
    audit.main(["--predictions", str(predictions), "--data", str(data)])
    found = json.loads((predictions / "audit.json").read_text())
    assert found["miou"] is None and found["deciles"] == [] and found["coverage"]["car"]["predicted_share"] == 0.5
    assert "None of the 1 images has a truth" in (predictions / "audit.html").read_text()


def test_bad_input_of_an_audit(street, tmp_path, capsys):
    data, predictions = make_audited(tmp_path)
    assert "no pseudo-labels" in error_line(audit.main, ["--predictions", tmp_path, "--data", data], capsys)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (other / "classes.json").write_text('{"0": "car", "1": "road"}')
    line = error_line(audit.main, ["--predictions", predictions, "--data", other], capsys)
    assert f"{predictions / 'meta.json'}: class 0 is 'car', for the pseudo-labels 'road'" in line
    shutil.copy(data / "classes.json", other)
    for path in other.rglob("*.png"):
        path.rename(path.with_stem(f"other_{path.stem}"))
    assert "has a map for none of" in error_line(audit.main, ["--predictions", predictions, "--data", other], capsys)
    for values, message in ((7, "7 is not a class id"), (300, "300 is not a class id")):
        mask = Image.fromarray(np.full((20, 40), values, np.uint8 if values < 256 else np.uint16))
        mask.save(predictions / "masks" / "c.png")
        line = error_line(audit.main, ["--predictions", predictions, "--data", data], capsys)
        assert f"c.png: {message}" in line
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(predictions / "masks" / "a.png")
    assert "a.png: size" in error_line(audit.main, ["--predictions", predictions, "--data", data], capsys)
    for option, value, message in (
        ("threshold", 95, "95.0 is outside of [0, 1]"),
        ("pictures", -1, "-1 is less than 0"),
    ):
        argv = ["--predictions", predictions, "--data", data, f"--{option}", value]
        assert f"{option}: {message}" in error_line(audit.main, argv, capsys)
    assert not (predictions / "audit.json").exists()


# -- import_masks.py ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "aachen_000000_000019.png",
        "aachen_000000_000019_leftImg8bit.png",
        "aachen_000000_000019_gtFine_labelTrainIds.png",
        "aachen_000000_000019_gtFine_labelIds.png",
    ],
)
def test_masks_are_found_by_their_image(name):
    assert image_id_of_mask(Path("masks/aachen") / name) == "aachen_000000_000019"


def cityscapes(tmp_path: Path, values: str) -> tuple[Path, Path, Path]:
    """One labelled and two unlabelled images, and masks of the latter as train ids or label ids."""
    data, lists, masks = tmp_path / "data", tmp_path / "lists", tmp_path / "masks"
    (data / "gtFine" / "train" / "ulm").mkdir(parents=True)
    (data / "leftImg8bit" / "train" / "ulm").mkdir(parents=True)
    (masks / "ulm").mkdir(parents=True)
    lists.mkdir()
    lines, on_its_side = [], Image.Exif()
    on_its_side[0x0112] = 6
    for number in range(3):
        image_id = f"ulm_000000_00000{number}"
        photo = noise_image(16, 32, number)  # of a camera that was held on its side: 32 wide when it is upright
        photo.save(data / "leftImg8bit" / "train" / "ulm" / f"{image_id}_leftImg8bit.png", exif=on_its_side)
        Image.fromarray(np.full((16, 32), 7, np.uint8)).save(
            data / "gtFine" / "train" / "ulm" / f"{image_id}_gtFine_labelIds.png"
        )
        lines.append(f"leftImg8bit/train/ulm/{image_id}_leftImg8bit.png gtFine/{image_id}_gtFine_labelTrainIds.png\n")
        mask = np.zeros((16, 32), np.uint8)
        mask[:, 16:] = 13
        if values == "raw":
            mask = np.array([7, *[0] * 12, 26], np.uint8)[mask]
        if number:
            Image.fromarray(mask).save(masks / "ulm" / f"{image_id}_gtFine_labelTrainIds.png")
    (lists / "labeled.txt").write_text(lines[0])
    (lists / "unlabeled.txt").write_text("".join(lines[1:]))
    return data, lists, masks


@pytest.mark.parametrize("values", ["class_ids", "raw"])
def test_masks_of_the_original_codes_are_taken_over(tmp_path, values):
    assert (TRAIN_IDS[7], TRAIN_IDS[26]) == (0, 13)
    data, lists, masks = cityscapes(tmp_path, values)
    out = tmp_path / "out"
    argv = ["--masks", masks, "--data", data, "--split_lists", lists, "--out", out, "--values", values]
    import_masks.main([str(one) for one in [*argv, "--method", "unimatch"]])
    mask = read_map(out / "masks" / "ulm_000000_000002.png")
    assert (mask[:, :16] == 0).all() and (mask[:, 16:] == 13).all()
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["method"], meta["images"], meta["confidence"]) == ("unimatch", 2, None)
    audit.main(["--predictions", str(out), "--data", str(data)])
    assert json.loads((out / "audit.json").read_text())["accuracy"] == 0.5


def test_a_bad_mask_is_told_and_nothing_is_written(tmp_path, capsys):
    data, lists, masks = cityscapes(tmp_path, "class_ids")
    out, last = tmp_path / "out", masks / "ulm" / "ulm_000000_000002_gtFine_labelTrainIds.png"
    argv = ["--masks", masks, "--data", data, "--split_lists", lists, "--out", out]
    good = last.read_bytes()
    for mask, message in (
        (np.full((16, 32), 33, np.uint8), "value 33 is not a class id (0..18, 255); --values raw"),
        (np.zeros((8, 32), np.uint8), "size 32x8 differs from its image's 32x16"),
        (np.zeros((16, 32, 3), np.uint8), "3 channels"),
    ):
        Image.fromarray(mask).save(last)
        assert message in error_line(import_masks.main, argv, capsys)
        assert not out.exists()
    last.unlink()
    assert "no mask for 1 of 2 images (ulm_000000_000002)" in error_line(import_masks.main, argv, capsys)
    last.with_suffix(".PNG").write_bytes(good)
    (tmp_path / "sure").mkdir()
    (tmp_path / "sure/ulm_000000_000001.png").write_bytes(good)
    error = error_line(import_masks.main, [*argv, "--confidence", tmp_path / "sure"], capsys)
    assert f"{tmp_path / 'sure'}: no confidence for" in error
    (masks / "ulm_000000_000002.png").write_bytes(good)
    assert "is for the same image" in error_line(import_masks.main, argv, capsys)
    assert "no such folder" in error_line(import_masks.main, ["--data", data, "--out", out], capsys)
