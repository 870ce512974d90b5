"""PanNuke's arrays in both layouts and CoNSeP's archive, against arrays that the tests wrote themselves."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from datasets_scripts import pannuke
from datasets_scripts.build import build
from datasets_scripts.consep import read_consep
from datasets_scripts.folder import read_data, read_folder
from datasets_scripts.instructions.attribute import names_class
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.pannuke import BACKGROUND, CLASSES, NUCLEI_PER_CHANNEL, read_pannuke
from datasets_scripts.records import DataError, read_image
from datasets_scripts.splits import write_split

from .conftest import SHARED

CONSEP = SHARED / "data" / "consep"
needs_consep = pytest.mark.skipif(not CONSEP.is_dir(), reason="../shared/data/consep is not here")

COUNT, HEIGHT, WIDTH = 3, 12, 10


def nuclei(seed=0, overlap=False):
    """Masks (N, H, W, 6): rectangles, nucleus 1 of channel 0, 2 of channel 2, and where asked 1 of channel 4 on top."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((COUNT, HEIGHT, WIDTH, 6), np.uint16)
    for tile in masks:
        top = int(rng.integers(0, 4))
        tile[top : top + 4, 1:4, 0] = 1
        tile[top : top + 3, 6:9, 2] = 2
        if overlap:
            tile[top + 2 : top + 6, 3:7, 4] = 1
        tile[..., 5] = (tile[..., :5] == 0).all(-1)
    return masks


def write_fold(root, fold, layout="long", masks=None, images=None, types=None, dtype=np.float64):
    name = f"fold{fold}"
    long = layout == "long"
    image_folder = root / f"Fold {fold}" / "images" / name if long else root / name
    mask_folder = root / f"Fold {fold}" / "masks" / name if long else root / name
    if images is None:
        images = np.random.default_rng(fold).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3))
    for folder in (image_folder, mask_folder):
        folder.mkdir(parents=True, exist_ok=True)
    np.save(image_folder / "images.npy", images.astype(dtype))
    np.save(mask_folder / "masks.npy", (nuclei(fold) if masks is None else masks).astype(dtype))
    if types is not None:
        np.save(image_folder / "types.npy", np.array(types))
    return images


@pytest.mark.parametrize("layout", ["long", "short"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint16, np.int64])
def test_rows_become_images_and_maps(tmp_path, layout, dtype):
    pixels = write_fold(tmp_path, 1, layout, types=["Colon", "Breast", "Colon"], dtype=dtype)
    scene_set, instructions = read_data(tmp_path)
    assert [s.image_id for s in scene_set.scenes] == ["fold1_000000", "fold1_000001", "fold1_000002"]
    assert instructions == [] and scene_set.scenes[1].facts == {0: {"tissue": "Breast"}}
    for row, scene in enumerate(pickle.loads(pickle.dumps(scene_set.scenes))):
        assert np.array_equal(np.asarray(read_image(scene.image)), pixels[row])
        labels, instances = scene_set.read_maps(scene)
        masks = nuclei(1)[row]
        for y in range(HEIGHT):
            for x in range(WIDTH):
                channel = next((c for c in range(5) if masks[y, x, c]), None)
                assert labels[y, x] == (BACKGROUND if channel is None else channel)
                assert instances[y, x] == (
                    0 if channel is None else channel * NUCLEI_PER_CHANNEL + masks[y, x, channel]
                )


def test_folds_1_and_3_are_for_training_and_a_lone_fold_too(tmp_path):
    write_fold(tmp_path, 2)
    assert {s.split for s in read_pannuke(tmp_path).scenes} == {"train"}
    write_fold(tmp_path, 1)
    write_fold(tmp_path, 3, "short")
    splits = {s.image_id[:5]: s.split for s in read_pannuke(tmp_path).scenes}
    assert splits == {"fold1": "train", "fold2": "val", "fold3": "train"}


def test_overlapping_nuclei_keep_their_pixels_on_planes(tmp_path):
    masks = nuclei(overlap=True)
    write_fold(tmp_path, 1, masks=masks)
    scene_set = read_pannuke(tmp_path)
    labels, instances = scene_set.read_maps(scene_set.scenes[0])
    assert instances.shape == (2, HEIGHT, WIDTH)
    for channel, nucleus in ((0, 1), (2, 2), (4, 1)):
        found = (instances == channel * NUCLEI_PER_CHANNEL + nucleus).any(0)
        assert np.array_equal(found, masks[0, ..., channel] == nucleus)
    assert np.array_equal(labels == 4, masks[0, ..., 4] > 0)  # the later channel
    assert np.array_equal(labels == 0, (masks[0, ..., 0] > 0) & (masks[0, ..., 4] == 0))


@pytest.mark.parametrize("reader", ["pannuke", "consep"])
def test_a_nucleus_keeps_its_class_under_what_lies_on_it(tmp_path, monkeypatch, reader):
    """The epithelial nucleus hides all but a column of one tumour nucleus, and all of another; as it is read, with
    patches of the background beside the nuclei, and from tables."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    masks = nuclei()
    masks[..., :5] = 0
    masks[:, 1:6, 1:6, 0], masks[:, 7:10, 3:5, 0] = 1, 2
    masks[:, 1:11, 2:8, 4] = 3
    masks[:, 8:11, 8:10, 1] = 9999
    if reader == "pannuke":
        write_fold(tmp_path / "data", 1, masks=masks)
    else:
        write_consep(tmp_path / "data", ["train_1_r0c0", "train_1_r0c1"], {"masks": masks[:2]})
    true = {1: 0, 2: 0, 40_003: 4, 19_999: 1}
    whole, _ = read_data(tmp_path / "data", components=True)
    build(whole, tmp_path / "built")
    built, _ = read_data(tmp_path / "built")
    for scene_set, completed in ((read_folder(tmp_path / "data"), False), (whole, True), (built, True)):
        objects = SceneObjects.of_scene(scene_set, scene_set.scenes[1])
        found = {c: {o.id: o.area for o in objects.of_class(c)} for c in range(5)}
        for number, class_id in true.items():
            assert found[class_id].pop(number) == (masks[0, ..., class_id] == number % NUCLEI_PER_CHANNEL).sum()
        assert not any(found.values())
        patches = objects.of_class(BACKGROUND)
        assert sum(o.area for o in patches) == completed * (masks[0, ..., :5] == 0).all(-1).sum()


def test_scenes_hold_no_pixels_and_reading_decodes_none(tmp_path, monkeypatch):
    write_fold(tmp_path, 1)
    monkeypatch.setattr(pannuke, "nuclei_maps", None)
    monkeypatch.setattr(Image, "fromarray", None)
    assert len(pickle.dumps(read_pannuke(tmp_path))) < 8000


def test_a_file_written_anew_is_read_anew(tmp_path):
    write_fold(tmp_path, 1)
    scene = read_pannuke(tmp_path).scenes[0]
    before = np.asarray(read_image(scene.image))
    (tmp_path / "Fold 1/images/fold1/images.npy").unlink()
    write_fold(tmp_path, 1, images=np.full((COUNT, HEIGHT, WIDTH, 3), 7))
    assert before.max() > 7 and (np.asarray(read_image(scene.image)) == 7).all()


def bad_pannuke(tmp_path, what):
    """Writes a fold with one thing wrong and does what should tell it."""
    images, masks, types = np.ones((COUNT, HEIGHT, WIDTH, 3)) * 9, nuclei().astype(np.float64), None
    if what == "count":
        masks = masks[:2]
    elif what == "size":
        masks = masks[:, :5]
    elif what == "channels":
        masks = masks[..., :5]
    elif what == "types":
        types = ["Colon"]
    elif what == "objects":
        types = np.array([["Colon"], 2, None], object)
    elif what in ("fraction", "negative", "large"):
        masks[0, 0, 0, 1] = {"fraction": 1.5, "negative": -1, "large": 10_000}[what]
    elif what == "range":
        images /= 9
    write_fold(tmp_path, 1, masks=masks, images=images, types=types)
    folder = tmp_path / "Fold 1/masks/fold1"
    path = folder / "masks.npy"
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif what == "header":
        path.write_bytes(path.read_bytes()[:20])
    elif what == "text":
        path.write_text("hello")
    elif what == "missing":
        path.unlink()
    elif what == "dtype":
        np.save(path, masks.astype(str))
    elif what == "empty":
        shutil.rmtree(tmp_path / "Fold 1")
    scene_set = read_pannuke(tmp_path)
    scene_set.read_maps(scene_set.scenes[0])
    read_image(scene_set.scenes[0].image)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("count", r"masks\.npy: 2 arrays of 10x12 do not fit the 3 arrays of 10x12 of .*images\.npy"),
        ("size", r"masks\.npy: 3 arrays of 10x5 do not fit"),
        ("channels", r"masks\.npy: shape \(3, 12, 10, 5\); \(N, height, width, 6\) would be right"),
        ("types", r"types\.npy: <U5 of shape \(1,\); 3 texts or no file would be right"),
        ("objects", r"types\.npy: not a readable \.npy array .*[Oo]bject"),
        ("fraction", r"masks\.npy\[0\]: id 1\.5 of a nucleus; whole numbers of 0\.\.9999 would be right"),
        ("negative", r"masks\.npy\[0\]: id -1"),
        ("large", r"masks\.npy\[0\]: id 10000"),
        ("range", r"images\.npy\[0\]: .*0\.\.1 are fractions; 0\.\.255 would be right"),
        ("cut", r"masks\.npy: not a readable \.npy array"),
        ("header", r"masks\.npy: not a readable \.npy array"),
        ("text", r"masks\.npy: not a readable \.npy array"),
        ("missing", r"masks\.npy: no such file"),
        ("dtype", r"masks\.npy: dtype <U\d+; float64 or a whole-number type would be right"),
        ("empty", r"has no 'Fold 1/images/fold1/images\.npy'"),
    ],
)
def test_wrong_arrays_get_one_line(tmp_path, what, message):
    with pytest.raises(DataError, match=message) as error:
        bad_pannuke(tmp_path, what)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_phrases_describe_a_class_without_naming_it():
    phrases = [p for c in CLASSES for p in c.attributes]
    assert len(set(phrases)) == len(phrases)
    for semantic_class in CLASSES[:-1]:
        assert len(semantic_class.attributes) >= 6 and semantic_class.noun
        for phrase in (*semantic_class.attributes, semantic_class.noun):
            assert not names_class(phrase, semantic_class.name), phrase
    assert [c.name for c in CLASSES if not c.asked] == ["background"]


def write_consep(root, ids, arrays=None):
    (root / "tiles").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (len(ids), HEIGHT, WIDTH, 3), np.uint8)
    for image_id, tile in zip(ids, pixels, strict=True):
        Image.fromarray(tile).save(root / "tiles" / f"{image_id}.jpg")
    masks = nuclei(overlap=True)[: len(ids)]
    written = {"masks": masks, "ids": np.array(ids), "types": np.array(["Colon"] * len(ids))}
    np.savez(root / "fold1.npz", **(written | (arrays or {})))


@pytest.mark.parametrize(
    ("ids", "arrays", "message"),
    [
        (["train_1_r0c0", "train_1_r0c0"], {}, r"id train_1_r0c0 stands for two tiles"),
        (["tile7"], {}, r"ids\[0\] is 'tile7'; train_1_r0c0 would be right"),
        (["train_1_r0c0"], {"types": np.array([], str)}, r"1 ids and 0 types"),
        (["train_1_r0c0", "train_1_r0c1"], {"masks": nuclei()[:1]}, r"masks has 1 rows and ids more"),
        (["train_1_r0c0"], {"masks": nuclei()[0]}, r"masks is uint16 \(12, 10, 6\)"),
        (["train_1_r0c0"], {"ids": np.array([{}], object)}, r"ids is not readable"),
    ],
)
def test_wrong_archives_get_one_line(tmp_path, ids, arrays, message):
    write_consep(tmp_path, ids, arrays)
    with pytest.raises(DataError, match=message) as error:
        scene_set = read_consep(tmp_path)
        scene_set.read_maps(scene_set.scenes[-1])
    assert "\n" not in str(error.value) and "fold1.npz" in str(error.value)


def test_damaged_archives_get_one_line(tmp_path):
    write_consep(tmp_path, ["train_1_r0c0"])
    path = tmp_path / "fold1.npz"
    whole = path.read_bytes()
    for content, message in ((whole[:900], "not readable"), (b"", "not readable"), (b"text", "not readable")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            read_consep(tmp_path)
        assert "\n" not in str(error.value)
    np.savez(path, ids=np.array(["train_1_r0c0"]))
    with pytest.raises(DataError, match="has no array 'types'"):
        read_consep(tmp_path)
    path.write_bytes(whole)
    (tmp_path / "tiles/train_1_r0c0.jpg").unlink()
    with pytest.raises(DataError, match=r"train_1_r0c0\.jpg: no such file"):
        read_consep(tmp_path)


def test_val_list_holds_training_images_out_for_choices(tmp_path):
    write_consep(tmp_path, [f"train_{name}" for name in ("1_r0c0", "1_r0c1", "2_r0c0", "3_r0c0", "4_r0c0")])
    lists = tmp_path / "lists"
    write_split(lists, ["train_1_r0c0.png"], ["train_2_r0c0.png"])
    assert [s.image_id for s in read_folder(tmp_path, lists).split("val")] == ["train_4_r0c0"]
    (lists / "val.txt").write_text("train_3_r0c0.png\n")
    held_out = read_folder(tmp_path, lists)
    assert {s.image_id: (s.split, s.labelled) for s in held_out.scenes} == {
        "train_1_r0c0": ("train", True),
        "train_2_r0c0": ("train", False),
        "train_3_r0c0": ("val", True),
    }
    for content, message in (
        ("train_1_r0c1.png\n", r"val\.txt: train_1_r0c1 is of train_1, of which others are trained on"),
        ("train_4_r0c0.png\n", r"val\.txt:1: train_4_r0c0 is not among the 4 training images"),
        ("train_2_r0c0.png\n", r"val\.txt:1: train_2_r0c0 stands in .*unlabeled\.txt:1 already"),
        ("\n", r"val\.txt: names no image"),
    ):
        (lists / "val.txt").write_text(content)
        with pytest.raises(DataError, match=message):
            read_folder(tmp_path, lists)


@needs_consep
def test_consep_tiles_of_one_image_stay_together():
    scene_set = read_consep(CONSEP)
    sources = {split: {s.group for s in scene_set.split(split)} for split in ("train", "val")}
    assert len(scene_set.scenes) == 432 and sources["val"] == {f"train_{k}" for k in (4, 8, 12, 16, 20, 24)}
    assert len(sources["train"]) == 21 and not sources["train"] & sources["val"]
    assert all(s.image_id.startswith(s.group + "_r") for s in scene_set.scenes)


@needs_consep
def test_real_tiles_in_pannukes_layout_give_the_same_maps(tmp_path):
    """The first tiles only: the whole archive takes seconds to unpack."""
    count = 5
    with zipfile.ZipFile(CONSEP / "fold1.npz") as archive, archive.open("masks.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        row = int(np.prod(shape[1:]))
        masks = np.frombuffer(file.read(count * row * dtype.itemsize), dtype).reshape(count, *shape[1:])
    with np.load(CONSEP / "fold1.npz") as archive:
        ids, types = archive["ids"][:count], archive["types"][:count]
    np.savez(tmp_path / "fold1.npz", masks=masks, ids=ids, types=types)
    (tmp_path / "tiles").symlink_to(CONSEP / "tiles")
    shutil.copy(CONSEP / "unpack.py", tmp_path)
    command = [sys.executable, "unpack.py", "arrays", "--dtype", "float64"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    archived, arrays = read_consep(tmp_path), read_pannuke(tmp_path / "arrays")
    for row, (one, other) in enumerate(zip(archived.scenes, arrays.scenes, strict=True)):
        assert np.array_equal(read_image(one.image), read_image(other.image))
        (labels, instances), (labels2, instances2) = archived.read_maps(one), arrays.read_maps(other)
        assert np.array_equal(labels, labels2) and np.array_equal(instances, instances2)
        for channel in range(6):  # in CoNSeP nothing overlaps and every pixel is in a channel
            assert np.array_equal(labels == channel, masks[row, ..., channel] > 0)
        assert len(np.unique(instances)) - 1 == sum(len(np.unique(masks[row, ..., c])) - 1 for c in range(5))
