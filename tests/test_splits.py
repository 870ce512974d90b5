"""Which training images are labelled: lists that are read with any layout, and drawn."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.folder import read_folder
from datasets_scripts.records import DataError
from datasets_scripts.splits import draw_split, split_line, write_split

from .conftest import SHARED, noise_image

CAMVID = SHARED / "data" / "camvid"
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason="../shared/data/camvid is not here")


@pytest.fixture
def folder(tmp_path):
    """Two labelled images and one without a mask."""
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
    for name in ("a.jpg", "b.png", "c.png"):
        noise_image(12, 8).save(tmp_path / "images" / name)
    labels = np.zeros((8, 12), np.uint8)
    labels[:, 6:] = 3
    for name in ("a.png", "b.png"):
        Image.fromarray(labels).save(tmp_path / "masks" / name)
    (tmp_path / "classes.json").write_text('{"0": "road", "3": "car"}')
    return tmp_path


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 300


def test_split_lists_choose_among_the_images_of_any_layout(folder):
    write_split(folder / "lists", ["images/b.png masks/b.png"], ["images/a.jpg"])
    train = read_folder(folder, folder / "lists").split("train")
    assert [(s.image_id, s.labelled) for s in train] == [("b", True), ("a", False)]


def test_names_with_spaces_in_split_lists(folder):
    shutil.move(folder / "images/b.png", folder / "images/b 2.png")
    shutil.move(folder / "masks/b.png", folder / "masks/b 2.png")
    lines = [split_line("b 2.png", "b 2_labelTrainIds.png")], [split_line("a.png", "a_labelTrainIds.png")]
    assert lines == (["b 2.png\tb 2_labelTrainIds.png"], ["a.png a_labelTrainIds.png"])
    write_split(folder / "lists", *lines)
    train = read_folder(folder, folder / "lists").split("train")
    assert [(s.image_id, s.labelled) for s in train] == [("b 2", True), ("a", False)]


def test_split_lists_of_files_that_are_called_as_cityscapes_are_or_begin_with_a_mark(folder):
    for place in ("images", "masks"):
        shutil.move(folder / place / "b.png", folder / place / "b_leftImg8bit.png")
    write_split(folder / "lists", ["b_leftImg8bit.png m.png"], ["a.png m.png"])
    labeled = folder / "lists/labeled.txt"
    labeled.write_text(labeled.read_text(), encoding="utf-8-sig")  # Notepad
    train = read_folder(folder, folder / "lists").split("train")
    assert [(s.image_id, s.labelled) for s in train] == [("b_leftImg8bit", True), ("a", False)]


def test_names_with_dots_in_split_lists(folder):
    """The stem of a stem is another name: that of no image, or of another one."""
    for old, new in (("a.jpg", "frame.bmp"), ("b.png", "frame.left.bmp"), ("c.png", "img.v1.png")):
        shutil.move(folder / "images" / old, folder / "images" / new)
    for old, new in (("a", "frame"), ("b", "frame.left")):
        shutil.move(folder / f"masks/{old}.png", folder / f"masks/{new}.png")
    noise_image(12, 8).save(folder / "images/img.v2.png")
    write_split(folder / "lists", ["frame.bmp m", "frame.left.bmp m"], ["img.v2.png", "img.v1.png"])
    train = read_folder(folder, folder / "lists").split("train")
    assert [(s.image_id, s.image.name, s.labelled) for s in train] == [
        ("frame", "frame.bmp", True),
        ("frame.left", "frame.left.bmp", True),
        ("img.v2", "img.v2.png", False),
        ("img.v1", "img.v1.png", False),
    ]


def test_split_lists_that_cannot_be_read(folder):
    write_split(folder / "lists", ["b.png b.png"], [])
    for place in (folder / "lists/labeled.txt", folder / "nowhere"):
        with pytest.raises(DataError, match=r"labeled\.txt: no such file; a split is a folder with") as error:
            read_folder(folder, place)
        assert one_line(error)
    shutil.rmtree(folder / "lists")
    (folder / "lists/labeled.txt").mkdir(parents=True)
    with pytest.raises(DataError, match=r"labeled\.txt: Is a directory; a split is a folder with"):
        read_folder(folder, folder / "lists")
    (folder / "lists/labeled.txt").rmdir()
    write_split(folder / "lists", ["b.png b.png"], [])
    (folder / "lists/unlabeled.txt").write_bytes("caf\u00e9.png x\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"unlabeled\.txt: not UTF-8") as error:
        read_folder(folder, folder / "lists")
    assert one_line(error)


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


def test_names_that_look_the_same_are_the_same(folder):
    """macOS writes the accent of a name as a letter of its own."""
    composed, decomposed = "stra\u00dfe_\u00e9", "stra\u00dfe_e\u0301"
    shutil.move(folder / "images/b.png", folder / f"images/{composed}.png")
    shutil.move(folder / "masks/b.png", folder / f"masks/{decomposed}.png")
    write_split(folder / "lists", [f"{decomposed}.png x.png"], ["a.png x.png"])
    assert [s.image_id for s in read_folder(folder).split("train", labelled=True)] == ["a", composed]
    assert [s.image_id for s in read_folder(folder, folder / "lists").split("train", labelled=True)] == [composed]
