"""Own folders and the Cityscapes layout: what is read, and that every mistake gets one line naming file and reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.cityscapes import CLASSES, TRAIN_IDS, read_cityscapes
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.records import DataError
from datasets_scripts.splits import draw_split, read_split, write_split

from .conftest import SHARED, noise_image

CAMVID = SHARED / "data" / "camvid"
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason="../shared/data/camvid is not here")


def save_mask(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two labelled images (one of them a palette PNG), one without a mask, one unlabelled, one for validation."""
    for place in ("images", "unlabelled", "val/images"):
        (tmp_path / place).mkdir(parents=True)
    for name in ("images/a.jpg", "images/b.png", "images/c.png", "unlabelled/d.png", "val/images/e.png"):
        noise_image(12, 8).save(tmp_path / name)
    labels = np.zeros((8, 12), np.uint8)
    labels[:, 6:], labels[0, 0] = 3, 255
    save_mask(tmp_path / "masks/a.png", labels)
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette([7] * 768)
    palette.save(tmp_path / "masks/b.png")
    save_mask(tmp_path / "val/masks/e.png", labels)
    classes = {"classes": [{"id": 0, "name": "road", "attributes": ["the flat surface"]}, {"id": 3, "name": "car"}]}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    return tmp_path


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 300


def test_labelled_unlabelled_and_validation_scenes(folder):
    scene_set = read_folder(folder)
    assert [s.image_id for s in scene_set.split("train", labelled=True)] == ["a", "b"]
    assert [s.image_id for s in scene_set.split("train", labelled=False)] == ["c", "d"]
    assert [s.image_id for s in scene_set.split("val")] == ["e"]
    for scene in scene_set.split("train", labelled=True):
        labels, instances = scene_set.read_maps(scene)
        assert labels[0, 0] == 255 and labels[1, 0] == 0 and labels[1, 11] == 3 and instances is None
    instructions = build_instructions(scene_set, scene_set.split("train", labelled=True))
    assert {(i.image_id, i.kind, i.class_name) for i in instructions} == {
        ("a", "semantic", "road"),
        ("a", "semantic", "car"),
        ("a", "attribute", "road"),
        ("b", "semantic", "road"),
        ("b", "semantic", "car"),
        ("b", "attribute", "road"),
    }


def test_short_classes_json(folder):
    (folder / "classes.json").write_text('{"0": "road", "3": "car"}')
    assert [(c.id, c.name) for c in read_folder(folder).classes] == [(0, "road"), (3, "car")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("{}", "lists no classes"),
        ('{"0": "road", "00": "car"}', "id 0 stands for two"),
        ('{"0": "road", "1": "road"}', "name 'road' stands for two"),
        ('{"255": "road"}', "'255' is not a whole number of 0..254"),
        ('{"x": "road"}', "'x' is not"),
        ('{"0": ""}', "name '' is no text"),
        ('{"classes": [{"id": 0}]}', "no id and name"),
        ('{"classes": [{"id": 0, "name": "a", "attributes": "b"}]}', "not a list of texts"),
    ],
)
def test_bad_classes_json(folder, content, message):
    path = folder / "classes.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_folder(folder)
    assert one_line(error) and "classes.json" in str(error.value)


def test_missing_and_empty_folders(folder, tmp_path):
    for data, message in (
        ("", "not given"),
        (tmp_path / "nowhere", "no such folder"),
        (folder / "masks", "no images/"),
    ):
        with pytest.raises(DataError, match=message) as error:
            read_folder(data)
        assert one_line(error)
    for file in (folder / "masks").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no training image has a mask"):
        read_folder(folder)
    for place in ("images", "unlabelled"):
        for file in (folder / place).iterdir():
            file.unlink()
    with pytest.raises(DataError, match="images: no image"):
        read_folder(folder)


def test_masks_without_image_and_equal_stems(folder):
    noise_image(12, 8).save(folder / "images/a.png")
    with pytest.raises(DataError, match=r"a\.png: a\.jpg has the same stem"):
        read_folder(folder)
    (folder / "images/a.png").unlink()
    save_mask(folder / "masks/z.png", np.zeros((8, 12)))
    with pytest.raises(DataError, match=r"z\.png: .*no image of this stem"):
        read_folder(folder)


def test_unknown_label_and_wrong_size(folder):
    scene_set = read_folder(folder)
    scene = scene_set.split("train", labelled=True)[0]
    save_mask(folder / "masks/a.png", np.full((8, 12), 9))
    with pytest.raises(DataError, match=r"a\.png: label 9 is not a known class id \(0 road, 3 car, 255 ignore\)"):
        scene_set.read_maps(scene)
    save_mask(folder / "masks/a.png", np.zeros((12, 8)))
    with pytest.raises(DataError, match=r"size 8x12 differs from its image's 12x8") as error:
        scene_set.read_maps(scene)
    assert one_line(error)


def make_cityscapes(root, label=7, names=("aachen_000000_000019", "aachen_000001_000019")):
    for image_id in names:
        image = root / "leftImg8bit/train/aachen" / f"{image_id}_leftImg8bit.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        noise_image(8, 4).save(image)
        labels = np.full((4, 8), label, np.uint8)
        labels[0], labels[1, 0] = 26, 255
        save_mask(root / "gtFine/train/aachen" / f"{image_id}_gtFine_labelIds.png", labels)
        instances = np.where(labels == 26, 26001, labels.astype(np.uint16))
        path = root / "gtFine/train/aachen" / f"{image_id}_gtFine_instanceIds.png"
        Image.fromarray(instances).save(path)


def test_cityscapes_label_ids_become_train_ids(tmp_path):
    make_cityscapes(tmp_path)
    scene_set = read_folder(tmp_path)
    labels, instances = scene_set.read_maps(scene_set.scenes[0])
    assert labels[0].tolist() == [13] * 8 and labels[3].tolist() == [0] * 8 and labels[1, 0] == 255
    assert instances[0].tolist() == [26001] * 8 and not instances[1:].any()
    assert [c.name for c in scene_set.classes][13] == "car" and len(TRAIN_IDS) == len(CLASSES) == 19
    make_cityscapes(tmp_path, label=77)
    with pytest.raises(DataError, match="label 77 is not a known"):
        scene_set.read_maps(scene_set.scenes[0])


def test_split_lists_choose_the_labelled_images(tmp_path):
    make_cityscapes(tmp_path)
    lists = tmp_path / "lists"
    line = "leftImg8bit/train/aachen/{0}_leftImg8bit.png gtFine/train/aachen/{0}_gtFine_labelTrainIds.png"
    write_split(lists, [line.format("aachen_000001_000019")], [line.format("aachen_000000_000019")])
    assert [i for i, _ in read_split(lists)["labeled.txt"]] == ["aachen_000001_000019"]
    scene_set = read_cityscapes(tmp_path, lists)
    assert [(s.image_id, s.labelled) for s in scene_set.scenes] == [
        ("aachen_000001_000019", True),
        ("aachen_000000_000019", False),
    ]
    write_split(lists, [line.format("aachen_000009_000019")], [])
    with pytest.raises(DataError, match=r"labeled\.txt:1: aachen_000009_000019 is not among the 2 training images"):
        read_cityscapes(tmp_path, lists)
    write_split(lists, [line.format("aachen_000001_000019")], [line.format("aachen_000001_000019")])
    with pytest.raises(DataError, match=r"unlabeled\.txt:1: aachen_000001_000019 stands in .*labeled\.txt:1 already"):
        read_split(lists)
    write_split(lists, [], ["x"])
    with pytest.raises(DataError, match="names no image"):
        read_split(lists)


def test_drawn_splits_cover_every_class_and_follow_the_seed():
    rng = np.random.default_rng(0)
    classes = {f"i{k}": set(rng.choice(5, 2).tolist()) for k in range(60)}
    classes["rare"] = {9}
    for fraction, size in ((1 / 30, 3), (1 / 8, 8), (1.0, 61)):
        labelled, unlabelled = draw_split(classes, fraction, seed=1)
        assert len(labelled) >= size and set(labelled) | set(unlabelled) == set(classes)
        assert not set(labelled) & set(unlabelled)
        assert set().union(*(classes[i] for i in labelled)) == {0, 1, 2, 3, 4, 9}
        assert (labelled, unlabelled) == draw_split(dict(reversed(classes.items())), fraction, seed=1)
    assert draw_split(classes, 0.5, seed=1) != draw_split(classes, 0.5, seed=2)
    with pytest.raises(DataError, match="fraction"):
        draw_split(classes, 0, seed=0)


@needs_camvid
def test_camvid_partitions():
    everything = read_folder(CAMVID)
    assert len(everything.split("train", labelled=True)) == 367 and len(everything.split("val")) == 101
    scene_set = read_folder(CAMVID, CAMVID / "splits/camvid/1_30")
    labelled = scene_set.split("train", labelled=True)
    assert len(labelled) == 13 and len(scene_set.split("train", labelled=False)) == 354
    seen = set()
    for scene in labelled:
        seen |= set(np.unique(scene_set.read_maps(scene)[0]).tolist())
    assert len(seen - {255}) == 11
