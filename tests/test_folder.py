"""Own folders, the Cityscapes layout, the table of readers; every mistake gets one line naming file and reason."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.bad_items import skipping
from datasets_scripts.cityscapes import CLASSES, TRAIN_IDS
from datasets_scripts.folder import READERS, read_data, read_folder
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.records import DataError
from datasets_scripts.splits import read_split, write_split

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
        ('{"classes": [{"id": 1.9, "name": "road"}]}', r"id 1\.9 is not a whole number of 0\.\.254"),
        ('{"classes": [{"id": 1e999, "name": "road"}]}', "id inf is not a whole number"),
        ('{"0": ""}', "name '' is no text"),
        (r'{"0": "\ud83d\ude97 \ud800"}', r'0: "\\ud83d\\ude97 \\ud800" has half a character; whole ones would be'),
        (r'[{"id": 0, "name": "a", "x\udfff": 1}]', r'0: key "x\\udfff" has half a character'),
        ('{"classes": [{"id": 0}]}', "no id and name"),
        ('{"classes": [{"id": 0, "name": "a", "attributes": "b"}]}', "not a list of texts"),
        ('{"classes": [{"id": 0, "name": "a", "ground": 1}]}', "class 0: ground 1 is not true or false"),
        ('{"classes": [{"id": 0, "name": "a", "asked": "no"}]}', 'class 0: asked "no" is not true or false'),
        ('{"classes": [{"id": 0, "name": "a", "stand": true}]}', "'stand' is no field of a class; those are id, name"),
    ],
)
def test_bad_classes_json(folder, content, message):
    path = folder / "classes.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_folder(folder)
    assert one_line(error) and "classes.json" in str(error.value)


def test_what_classes_are_good_for_is_read(folder):
    entries = [{"id": 0, "name": "road", "ground": True}, {"id": 3, "name": "car", "stands": True, "asked": False}]
    (folder / "classes.json").write_text(json.dumps(entries))
    road, car = read_folder(folder).classes
    assert (road.ground, road.stands, road.asked) == (True, False, True)
    assert (car.ground, car.stands, car.asked) == (False, True, False)


def test_nobody_asks_for_the_background_unless_told_so(folder):
    for content, asked in (
        ('{"0": "background", "3": "tumour"}', False),
        ('{"0": " Background", "3": "tumour"}', False),
        ('{"0": "_background_", "3": "tumour"}', False),
        ('[{"id": 0, "name": "background", "asked": true}, {"id": 3, "name": "tumour"}]', True),
    ):
        (folder / "classes.json").write_text(content)
        assert [c.asked for c in read_folder(folder).classes] == [asked, True]


def test_file_names_that_are_not_utf8_are_refused(folder):
    name = b"t\xe9.png".decode("utf-8", "surrogateescape")
    try:
        shutil.copy(folder / "images/b.png", folder / "images" / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(DataError, match=r"the file name 't\\udce9\.png' is not UTF-8") as error:
        read_folder(folder)
    str(error.value).encode()


def test_folders_of_masks_that_are_not_utf8_are_refused(binary):
    try:
        (binary / "masks/a").rename(binary / "masks/\udce9")
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(DataError, match=r"masks: the file name '\\udce9' is not UTF-8") as error:
        read_folder(binary)
    str(error.value).encode()


def test_missing_and_empty_folders(folder, tmp_path):
    for data, message in (
        ("", "not given"),
        (tmp_path / "nowhere", "no such folder"),
        (folder / "masks", r"masks: of no known layout: has no .* no leftImg8bit/, .* no images/"),
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


@pytest.fixture
def binary(folder):
    """As `folder`, with masks of a road and a car on it instead; their files are named in the two possible ways."""
    shutil.rmtree(folder / "masks")
    shutil.rmtree(folder / "val")
    road, car = np.zeros((8, 12)), np.zeros((8, 12))
    road[4:], car[3:6, 2:5] = 255, 1
    save_mask(folder / "masks/a/road.png", road)
    save_mask(folder / "masks/a/car.png", car)
    save_mask(folder / "masks/car/b.png", car)
    return folder


def test_binary_masks_of_classes(binary):
    scene_set = read_folder(binary)
    assert [(c.id, c.name, c.asked) for c in scene_set.classes] == [
        (0, "road", True),
        (3, "car", True),
        (1, "background", False),
    ]
    a, b = scene_set.split("train", labelled=True)
    assert [s.image_id for s in scene_set.split("train", labelled=False)] == ["c", "d"]
    expected = np.ones((8, 12))
    expected[3:6, 2:5] = 3
    assert np.array_equal(scene_set.read_maps(b)[0], expected)
    expected[4:] = 0
    expected[3:6, 2:5] = 3  # the class that comes later in classes.json lies on top
    assert np.array_equal(scene_set.read_maps(a)[0], expected)
    asked = {i.class_name for i in build_instructions(scene_set, [a])}
    assert asked == {"road", "car"}  # nobody asks for the background
    (binary / "classes.json").write_text('{"3": "car", "7": "Background", "0": "road"}')
    scene_set = read_folder(binary)
    labels = scene_set.read_maps(scene_set.scenes[0])[0]
    assert labels[0, 0] == 7 and (labels[4:] == 0).all() and len(scene_set.classes) == 3


def test_wrong_binary_masks(binary):
    scene = read_folder(binary).scenes[0]
    save_mask(binary / "masks/a/car.png", np.zeros((8, 11)))
    with pytest.raises(DataError, match=r"car\.png: size 11x8 differs from the 12x8 of .*road\.png") as error:
        read_folder(binary).read_maps(scene)
    assert one_line(error)
    path = binary / "masks/a/car.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"car\.png: not a readable image") as error:
        read_folder(binary).read_maps(scene)
    assert one_line(error)
    for name, message in (
        ("masks/a/cat.png", r"a/cat\.png: neither 'a' nor 'cat' is a class of road, car"),
        ("masks/car/a.png", r"car/a\.png: .*a/car\.png is the same class of the same image|a/car\.png: .*car/a\.png"),
        ("masks/z/car.png", r"z/car\.png: .*images has no image of this stem"),
        ("masks/a.png", r"a/road\.png: .*masks/a\.png is a mask of the same image"),
    ):
        save_mask(binary / name, np.zeros((8, 12)))
        with pytest.raises(DataError, match=message) as error:
            read_folder(binary)
        assert one_line(error)
        (binary / name).unlink()
        if not any((binary / name).parent.iterdir()):
            (binary / name).parent.rmdir()


def coco_json(**changes):
    """A table (5) with a cup (2) on it in a.jpg, nothing in b.png."""
    boxes = {31: (5, 0, 2, 12, 8), 32: (2, 3, 1, 6, 5)}  # category, left, top, right, bottom
    return {
        "images": [{"id": k, "file_name": name, "height": 8, "width": 12} for k, name in enumerate(("a.jpg", "b.png"))],
        "categories": [{"id": 5, "name": "table"}, {"id": 2, "name": "cup"}],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": c, "segmentation": [[x, y, r, y, r, b, x, b]]}
            for i, (c, x, y, r, b) in boxes.items()
        ],
    } | changes


@pytest.fixture
def coco(folder):
    for name in ("masks", "val"):
        shutil.rmtree(folder / name)
    (folder / "classes.json").unlink()
    (folder / "annotations.json").write_text(json.dumps(coco_json()))
    return folder


def test_coco_json_beside_the_images(coco):
    scene_set = read_folder(coco)
    assert [(c.id, c.name, c.asked) for c in scene_set.classes] == [
        (2, "cup", True),
        (5, "table", True),
        (0, "background", False),
    ]
    a, b = scene_set.split("train", labelled=True)
    table, cup = np.zeros((8, 12), bool), np.zeros((8, 12), bool)
    table[2:8], cup[1:5, 3:6] = True, True
    labels, planes = scene_set.read_maps(a)
    assert np.array_equal(labels, np.where(cup, 2, np.where(table, 5, 0)))
    assert np.array_equal(planes, [table * 1, cup * 2])
    labels, planes = scene_set.read_maps(b)
    assert not labels.any() and not planes.any() and planes.shape == (8, 12)
    (coco / "annotations.json").write_text((coco / "annotations.json").read_text().replace("cup", "_Background_"))
    assert [(c.name, c.asked) for c in read_folder(coco).classes] == [("_Background_", False), ("table", True)]
    (coco / "annotations.json").write_text(json.dumps(coco_json()))
    (coco / "classes.json").write_text('{"0": "table", "1": "cup", "2": "background"}')
    scene_set = read_folder(coco)
    labels, _ = scene_set.read_maps(scene_set.scenes[0])
    assert np.array_equal(labels, np.where(cup, 1, np.where(table, 0, 2))) and len(scene_set.classes) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, r"images \[\] is not a list with entries"),
        ({"categories": None}, r"categories null is not a list with entries"),
        ({"annotations": {}}, r"annotations {} is not a list"),
        ({"annotations": [{"id": 1, "image_id": 7}]}, r"annotations: id 1: image_id 7 is none of the 2 images"),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 7}]},
            r"annotations: id 1: category_id 7 is none of the 2 categories",
        ),
        *(
            ({"annotations": [{"id": 1, "image_id": 0, "category_id": 5, "segmentation": s}]}, "three points or more")
            for s in ([], [[]], [[1, 1, 2, 2]], None)
        ),
        ({"images": [{"id": 0, "file_name": "q.jpg", "height": 8, "width": 12}]}, r"images: id 0: .* has no q\.jpg"),
        (
            {"images": [{"id": k, "file_name": "a.jpg", "height": 8, "width": 12} for k in (0, 1)]},
            r"images: id 1: a\.jpg stands twice",
        ),
    ],
)
def test_wrong_coco_json(coco, changes, message):
    (coco / "annotations.json").write_text(json.dumps(coco_json(**changes)))
    with pytest.raises(DataError, match=message) as error:
        read_folder(coco)
    assert one_line(error) and "annotations.json" in str(error.value)


def test_coco_json_that_contradicts_other_files(coco):
    (coco / "classes.json").write_text('{"0": "table"}')
    with pytest.raises(DataError, match=r"annotations\.json: category 'cup' is not one of the classes table"):
        read_folder(coco)
    (coco / "classes.json").unlink()
    shutil.copytree(coco / "images", coco / "val/images")
    (coco / "val/annotations.json").write_text(
        json.dumps(coco_json(categories=[{"id": 5, "name": "x"}], annotations=[]))
    )
    with pytest.raises(DataError, match=r"val/annotations\.json: its categories differ from .*annotations\.json"):
        read_folder(coco)
    shutil.rmtree(coco / "val")
    save_mask(coco / "masks/a.png", np.zeros((8, 12)))
    with pytest.raises(DataError, match=r"annotations\.json: .*masks is there too"):
        read_folder(coco)
    shutil.rmtree(coco / "masks")
    content = (coco / "annotations.json").read_text().replace("table", "caf\u00e9")
    (coco / "annotations.json").write_bytes(content.encode("cp1252"))
    with pytest.raises(DataError, match=r"annotations\.json: not JSON in utf-8") as error:
        read_folder(coco)
    assert one_line(error)


def test_a_coco_object_keeps_its_class_under_what_lies_on_it(coco):
    """Most of the table's pixels are the cup's in the label map; `facts/` add to what the annotations say, and win."""
    content = coco_json()
    content["annotations"][1]["segmentation"] = [[0, 1, 12, 1, 12, 6, 0, 6]]
    (coco / "annotations.json").write_text(json.dumps(content))
    scene_set = read_folder(coco)
    assert scene_set.scenes[0].facts == {1: {"class": "table"}, 2: {"class": "cup"}}
    objects = SceneObjects.of_scene(scene_set, scene_set.scenes[0])
    assert [o.id for o in objects.of_class(5)] == [1] and [o.id for o in objects.of_class(2)] == [2]
    (coco / "facts").mkdir()
    (coco / "facts/a.json").write_text('{"1": {"colour": "red"}, "2": {"class": "table"}}')
    assert read_folder(coco).scenes[0].facts == {1: {"class": "table", "colour": "red"}, 2: {"class": "table"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"7": {"class": "kar"}}', "instance 7: class 'kar' is not one of road, car"),
        ('{"7": {"class": null}}', "instance 7: class null is no text"),
        ('{"7": {"colour": ["red"]}}', r'instance 7: colour \["red"\] is no text'),
        ('{"seven": {"class": "car"}}', '"seven" is no instance id'),
        ('{"7": "car"}', 'is not of the form {"7": {"class": "car", "colour": "red"}}'),
        ("[]", "is not of the form"),
        ("{", "not JSON"),
    ],
)
def test_wrong_facts(folder, content, message):
    (folder / "facts").mkdir()
    (folder / "facts/a.json").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_folder(folder)
    assert one_line(error) and str(folder / "facts/a.json") in str(error.value)
    with skipping() as skipped:
        assert [s.image_id for s in read_folder(folder).scenes] == ["b", "c", "d", "e"]
    assert len(skipped) == 1


@pytest.mark.parametrize("name", ["masks/a.jpg", "masks/a.JPEG", "instances/a.jpg", "masks/c/car.jpg"])
def test_maps_as_jpeg_are_refused(folder, name):
    """Noise of the compression is not zero, and would be other classes, instances, or the object."""
    for old in folder.glob("masks/a.*"):
        old.unlink()
    save_mask(folder / name, np.zeros((8, 12)))
    with pytest.raises(DataError, match="JPEG changes values; PNG would be right") as error:
        read_folder(folder)
    assert one_line(error) and str(error.value).startswith(str(folder / name))
    with skipping() as skipped:
        assert [s.image_id for s in read_folder(folder).split("train", labelled=True)] == ["b"]
    assert len(skipped) == 1


def test_an_id_in_two_splits_is_refused(folder):
    """Instructions are joined by it: those about one scene would be taken for ones about the other."""
    shutil.copy(folder / "images/b.png", folder / "val/images/b.png")
    with pytest.raises(DataError, match=r"val/images/b\.png: .*images/b\.png has the same id 'b'") as error:
        read_folder(folder)
    assert one_line(error)
    with skipping() as skipped:
        assert [(s.image_id, s.split) for s in read_data(folder)[0].scenes] == [
            *((name, "train") for name in "abcd"),
            ("e", "val"),
        ]
    assert len(skipped) == 1


def test_readers_by_name(folder):
    assert set(READERS) >= {"cityscapes", "camvid", "pannuke", "consep", "reasonseg", "refcoco", "folder"}
    assert read_data(folder, name="folder") == (read_folder(folder), [])
    with pytest.raises(DataError, match="data set 'kitti' is not one of tables, cityscapes, camvid"):
        read_data(folder, name="kitti")
    with pytest.raises(DataError, match=r"no leftImg8bit/SPLIT"):
        read_data(folder, name="camvid")


def test_cityscapes_names_with_accents_that_stand_alone(tmp_path):
    """As macOS writes them; ids have them composed, files on disk do not."""
    decomposed = "orle\u0301ans_000000_000019"
    make_cityscapes(tmp_path, names=(decomposed,))
    (scene,) = read_folder(tmp_path).scenes
    assert scene.image_id == "orl\u00e9ans_000000_000019" and scene.labelled and scene.instance_map is not None


def test_files_that_macos_leaves_beside_those_of_cityscapes_are_no_images(tmp_path):
    make_cityscapes(tmp_path)
    for path in list(tmp_path.glob("*/train/aachen/*")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    ids = [scene.image_id for scene in read_folder(tmp_path).scenes]
    assert ids == ["aachen_000000_000019", "aachen_000001_000019"]


def test_cityscapes_names_that_are_not_utf8_are_refused(tmp_path):
    make_cityscapes(tmp_path)
    (first, _) = sorted(tmp_path.glob("leftImg8bit/train/aachen/*"))
    try:
        first.rename(first.with_name(b"caf\xe9_leftImg8bit.png".decode("utf-8", "surrogateescape")))
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(DataError, match=r"the file name 'caf\\udce9_leftImg8bit\.png' is not UTF-8") as error:
        read_folder(tmp_path)
    str(error.value).encode()


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
    assert {c.name for c in CLASSES if c.ground} == {"road", "sidewalk", "terrain"}
    make_cityscapes(tmp_path, label=77)
    with pytest.raises(DataError, match=r"label 77 is not a Cityscapes id \(0\.\.33, -1\)"):
        scene_set.read_maps(scene_set.scenes[0])


def test_split_lists_choose_the_labelled_images(tmp_path):
    make_cityscapes(tmp_path)
    lists = tmp_path / "lists"
    line = "leftImg8bit/train/aachen/{0}_leftImg8bit.png gtFine/train/aachen/{0}_gtFine_labelTrainIds.png"
    write_split(lists, [line.format("aachen_000001_000019")], [line.format("aachen_000000_000019")])
    assert [i for i, _ in read_split(lists)["labeled.txt"]] == ["aachen_000001_000019"]
    scene_set = read_folder(tmp_path, lists)
    assert [(s.image_id, s.labelled) for s in scene_set.scenes] == [
        ("aachen_000001_000019", True),
        ("aachen_000000_000019", False),
    ]
    write_split(lists, [line.format("aachen_000009_000019")], [])
    with pytest.raises(DataError, match=r"labeled\.txt:1: aachen_000009_000019 is not among the 2 training images"):
        read_folder(tmp_path, lists)
    write_split(lists, [line.format("aachen_000001_000019")], [line.format("aachen_000001_000019")])
    with pytest.raises(DataError, match=r"unlabeled\.txt:1: aachen_000001_000019 stands in .*labeled\.txt:1 already"):
        read_split(lists)
    write_split(lists, [], ["x"])
    with pytest.raises(DataError, match="names no image"):
        read_split(lists)
