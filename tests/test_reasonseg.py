"""ReasonSeg's files: masks against those of LISA's own code, and every mistake in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from datasets_scripts import reasonseg
from datasets_scripts.bad_items import skipping
from datasets_scripts.folder import read_data, read_folder
from datasets_scripts.reasonseg import read_reasonseg
from datasets_scripts.records import DataError

from .conftest import SHARED

GOLDEN = SHARED / "golden" / "reasonseg"
SQUARE = {"label": "target", "points": [[2, 2], [6.9, 2], [6, 5], [2, 5.5]]}


def write(root, image_id="7", split="train", size=(12, 9), encoding="utf-8", **fields):
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / f"{image_id}.jpg")
    content = {"text": ["what drives?", "the mover"], "is_sentence": True, "shapes": [SQUARE]} | fields
    text = content["raw"] if "raw" in content else json.dumps(content, ensure_ascii=False)
    (folder / f"{image_id}.json").write_bytes(text.encode(encoding))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/reasonseg is not here")
def test_masks_are_those_of_lisas_code(tmp_path):
    masks = load_file(GOLDEN / "masks.safetensors")
    annotations = json.loads((GOLDEN / "annotations.json").read_text())
    assert len(annotations) == 6
    for index, case in annotations.items():
        write(tmp_path, index, "val", (case["width"], case["height"]), **case["json"])
    scene_set, _ = read_reasonseg(tmp_path)
    for scene in scene_set.scenes:
        labels, instances = scene_set.read_maps(scene)
        assert np.array_equal(labels, masks[f"{scene.image_id}.out.mask"]) and instances is None


def test_labels_and_the_order_of_painting(tmp_path):
    """A large target, an ignored square on it, a small target on that; the flag does not count."""

    def square(label, low, high):
        return {"label": label, "points": [[low, low], [high, low], [high, high], [low, high]]}

    shapes = [
        square("target", 4, 5),
        square("Ignore_this", 3, 6),
        square("FLAG", 0, 8),
        square("anything", 1, 7),
    ]
    write(tmp_path, shapes=shapes)
    scene_set, _ = read_reasonseg(tmp_path)
    labels, _ = scene_set.read_maps(scene_set.scenes[0])
    expected = np.zeros((9, 12), np.uint8)
    expected[1:8, 1:8], expected[3:7, 3:7], expected[4:6, 4:6] = 1, 255, 1
    assert np.array_equal(labels, expected)
    assert [(c.id, c.name, c.asked) for c in scene_set.classes] == [(0, "background", False), (1, "target", True)]


def test_texts_become_one_instruction_of_each_image(tmp_path):
    write(tmp_path, "a", text=["what drives?", "the mover", " the mover ", ""], is_sentence=False)
    write(tmp_path, "b", "test", shapes=[])
    scene_set, (first, second) = read_data(tmp_path)
    assert [(s.image_id, s.split) for s in scene_set.scenes] == [("a", "train"), ("b", "test")]
    assert (first.query, first.rephrasings, first.kind) == ("what drives?", ("the mover",), "reasoning")
    assert first.facts == {"is_sentence": False} and second.facts == {"is_sentence": True}
    assert first.answer.count("[SEG]") == 1 and first.source == "people"
    mask = first.target_mask(1, *scene_set.read_maps(scene_set.scenes[0]))
    assert mask[3, 3] == 1 and mask[0, 0] == 0
    assert not second.target_mask(1, *scene_set.read_maps(scene_set.scenes[1])).any()
    assert read_folder(tmp_path).scenes == scene_set.scenes


def test_files_that_macos_leaves_are_no_annotations(tmp_path):
    write(tmp_path, "7")
    for suffix in (".json", ".jpg"):
        (tmp_path / f"train/._7{suffix}").write_bytes(b"\0\5\26\7")
    scene_set, _ = read_reasonseg(tmp_path)
    assert [scene.image_id for scene in scene_set.scenes] == ["7"]


def test_cp1252_is_read_where_utf_8_does_not_fit(tmp_path):
    for encoding in ("utf-8", "cp1252"):
        write(tmp_path, encoding, encoding=encoding, text=["the café’s door"])
    assert [i.query for i in read_reasonseg(tmp_path)[1]] == ["the café’s door"] * 2


def test_nothing_is_painted_before_it_is_needed(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(reasonseg, "painted", None)
    monkeypatch.setattr(Image, "open", None)
    assert len(read_reasonseg(tmp_path)[0].scenes) == 1


def test_phone_photos_are_painted_upright(tmp_path):
    write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 12)).save(tmp_path / "train/7.jpg", exif=exif)
    scene_set, _ = read_reasonseg(tmp_path)
    assert scene_set.read_maps(scene_set.scenes[0])[0].shape == (9, 12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"raw": "{"}, r"not JSON"),
        ({"raw": "[]"}, r"text null is not a list of texts"),
        ({"raw": '{"text": "\x81"}', "encoding": "latin-1"}, r"not JSON in utf-8 or cp1252"),
        ({"text": []}, r"text \[\] is not a list of texts"),
        ({"text": ["  "]}, r"text .* is not a list of texts"),
        ({"raw": r'{"text": ["a", "half \ud800"]}'}, r'7\.json: text: 1: "half \\ud800" has half a character'),
        ({"text": "query"}, r'text "query" is not a list of texts'),
        ({"is_sentence": "yes"}, r'is_sentence "yes" is not true or false'),
        ({"shapes": None}, r"shapes null is not a list"),
        ({"shapes": [{"points": []}]}, r"shape 0 .* has no label"),
        ({"shapes": [SQUARE, {"label": "target", "points": []}]}, r"shape 1: points \[\] is not a list of \[x, y\]"),
        ({"shapes": [{"label": "target", "points": [[1, 2, 3]]}]}, r"shape 0: points"),
        ({"shapes": [{"label": "target", "points": [[1, 1e12]]}]}, r"shape 0: points"),
        ({"shapes": [{"label": "target", "points": [[1, float("nan")]]}]}, r"shape 0: points"),
    ],
)
def test_wrong_annotations_get_one_line(tmp_path, fields, message):
    write(tmp_path, **fields)
    with pytest.raises(DataError, match=message) as error:
        read_reasonseg(tmp_path)
    assert "\n" not in str(error.value) and "7.json" in str(error.value)


@pytest.mark.parametrize("suffix", ["jpg", "json"])
def test_file_names_that_are_not_utf8_are_refused(tmp_path, suffix):
    write(tmp_path)
    name = f"t\udce9.{suffix}"
    try:
        (tmp_path / "train" / name).write_bytes((tmp_path / f"train/7.{suffix}").read_bytes())
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(DataError, match=rf"train: the file name 't\\udce9\.{suffix}' is not UTF-8") as error:
        read_reasonseg(tmp_path)
    str(error.value).encode()
    with skipping() as skipped:
        assert [s.image_id for s in read_reasonseg(tmp_path)[0].scenes] == ["7"]
    assert len(skipped) == 1


def test_files_that_are_missing_or_double(tmp_path):
    with pytest.raises(DataError, match=r"has no train/\*\.jpg"):
        read_reasonseg(tmp_path)
    write(tmp_path)
    write(tmp_path, split="val")
    with pytest.raises(DataError, match=r"val/7\.jpg: .*train/7\.jpg has the same id"):
        read_reasonseg(tmp_path)
    (tmp_path / "val/7.jpg").unlink()
    with pytest.raises(DataError, match=r"val/7\.json: 7\.jpg is not beside it"):
        read_reasonseg(tmp_path)
    (tmp_path / "train/7.json").unlink()
    with pytest.raises(DataError, match=r"train/7\.json: no such file"):
        read_reasonseg(tmp_path)
