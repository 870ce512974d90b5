"""RefCOCO's files, written here from known masks: instances, splits, and a pickle that runs nothing."""

from __future__ import annotations

import json
import os
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from datasets_scripts.build import build
from datasets_scripts.folder import read_data
from datasets_scripts.instructions.objects import SceneObjects
from datasets_scripts.records import DataError
from datasets_scripts.refcoco import read_plain_pickle, read_refcoco

from .conftest import noise_image
from .test_polygons import as_text, run_lengths

HEIGHT, WIDTH = 20, 30


def rectangle(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


# A table, a cup on it, a book of two parts that the table's leg divides, and a crowd of cups.
MASKS = {
    11: rectangle(8, 2, 18, 28),
    12: rectangle(5, 4, 12, 9),
    13: rectangle(2, 12, 5, 15) | rectangle(2, 20, 5, 23),
    14: rectangle(0, 0, 3, 3),
}
SEGMENTATIONS = {
    11: polygon(8, 2, 18, 28),
    12: {"size": [HEIGHT, WIDTH], "counts": as_text(run_lengths(MASKS[12]))},
    13: polygon(2, 12, 5, 15) + polygon(2, 20, 5, 23),
    14: {"size": [HEIGHT, WIDTH], "counts": run_lengths(MASKS[14])},
}
CATEGORIES = {11: 67, 12: 47, 13: 84, 14: 47}


def instances():
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": CATEGORIES[i],
            "segmentation": SEGMENTATIONS[i],
            "iscrowd": int(i == 14),
        }
        for i in MASKS
    ]
    annotations.append(annotations[0] | {"id": 21, "image_id": 2})
    return {
        "images": [{"id": i, "file_name": f"COCO_{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)],
        "categories": [{"id": 47, "name": "cup"}, {"id": 67, "name": "dining table"}, {"id": 84, "name": "book"}],
        "annotations": annotations,
    }


def reference(ref_id, image_id, annotation_id, split, *sentences):
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": annotation_id,
        "split": split,
        "file_name": f"COCO_{image_id}_{annotation_id}.jpg",
        "sentences": [
            {"sent": s, "raw": s.upper(), "tokens": s.split(), "sent_id": k} for k, s in enumerate(sentences)
        ],
    }


REFERENCES = [
    reference(1, 1, 12, "train", "the mug", "cup on the left"),
    reference(2, 1, 13, "train", "the novel"),
    reference(3, 2, 21, "testA", "furniture"),
]


def write(tmp_path, references=REFERENCES, content=None, author="unc", protocol=2):
    root = tmp_path / "refcoco"
    for folder in (root, tmp_path / "train2014"):
        folder.mkdir(exist_ok=True)
    for image_id in (1, 2, 3):
        noise_image(WIDTH, HEIGHT).save(tmp_path / "train2014" / f"COCO_{image_id}.jpg")
    (root / "instances.json").write_text(json.dumps(instances() if content is None else content))
    (root / f"refs({author}).p").write_bytes(pickle.dumps(references, protocol=protocol))
    return root


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_references_become_instructions_about_one_instance(tmp_path, protocol):
    scene_set, instructions = read_data(write(tmp_path, protocol=protocol))
    assert [(s.image_id, s.split) for s in scene_set.scenes] == [("COCO_1", "train"), ("COCO_2", "test")]
    mug, novel, furniture = instructions
    assert (mug.query, mug.rephrasings, mug.class_name) == ("the mug", ("cup on the left",), "cup")
    assert (mug.kind, mug.source, mug.facts) == ("reasoning", "people", {"ref_id": 1, "split": "train"})
    class_ids = {c.name: c.id for c in scene_set.classes}
    scenes = {s.image_id: s for s in scene_set.scenes}
    for instruction, annotation_id in ((mug, 12), (novel, 13), (furniture, 11)):
        labels, planes = scene_set.read_maps(scenes[instruction.image_id])
        mask = instruction.target_mask(class_ids[instruction.class_name], labels, planes)
        assert np.array_equal(mask, MASKS[annotation_id])


def test_overlapping_objects_lie_on_planes_and_smaller_ones_on_top(tmp_path):
    scene_set, _ = read_refcoco(write(tmp_path))
    labels, planes = scene_set.read_maps(scene_set.scenes[0])
    assert planes.shape == (2, HEIGHT, WIDTH) and set(np.unique(planes)) == {0, 1, 2, 3}
    for number, annotation_id in enumerate((11, 12, 13), start=1):  # the crowd is no instance
        assert np.array_equal((planes == number).any(0), MASKS[annotation_id])
        assert (planes == number).any((1, 2)).sum() == 1
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for annotation_id in (11, 12, 13, 14):  # from the largest to the smallest
        expected[MASKS[annotation_id]] = CATEGORIES[annotation_id]
    assert np.array_equal(labels, expected)
    assert [(c.id, c.name) for c in scene_set.classes if not c.asked] == [(0, "background")]


def test_an_instance_is_of_its_category_whatever_lies_on_it(tmp_path):
    """A table under a large cup is still a table: its own mask is mostly cup in the label map."""
    content = instances()
    content["annotations"][1]["segmentation"] = polygon(8, 2, 16, 27)
    scene_set, _ = read_refcoco(write(tmp_path, content=content))
    objects = SceneObjects.of_scene(scene_set, scene_set.scenes[0])
    assert all(objects.instance(kind, number) for number, kind in ((1, 67), (2, 47), (3, 84)))
    assert [o.id for o in objects.of_class(67)] == [1]
    assert scene_set.scenes[0].facts[1] == {"class": "dining table"}


def test_parts_of_the_test_split_are_scored_apart(tmp_path, monkeypatch):
    """By the names that papers report them by, from the folder and from tables of it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = instances()
    content["annotations"].append(content["annotations"][0] | {"id": 31, "image_id": 3})
    references = [reference(1, 1, 12, "train", "a"), reference(2, 3, 31, "testB", "b"), *REFERENCES[2:]]
    scene_set, instructions = read_data(write(tmp_path, references, content), components=True)
    build(scene_set, tmp_path / "built", brought=instructions)
    for found in (scene_set, read_data(tmp_path / "built")[0]):
        parts = {name: [s.image_id for s in found.split(name)] for name in ("train", "test", "testA", "testB", "testC")}
        expected = {"train": ["COCO_1"], "test": ["COCO_3", "COCO_2"], "testA": ["COCO_2"], "testB": ["COCO_3"]}
        assert parts == {**expected, "testC": []}


def test_an_image_in_two_splits_becomes_two_scenes_of_one_group(tmp_path):
    references = [reference(1, 1, 12, "train", "a"), reference(2, 1, 13, "val", "b"), reference(3, 1, 11, "val", "c")]
    root = write(tmp_path, references, author="google")
    scene_set, instructions = read_refcoco(root)
    assert [(s.image_id, s.split, s.group) for s in scene_set.scenes] == [
        ("COCO_1", "train", "COCO_1"),
        ("COCO_1_val", "val", "COCO_1"),
    ]
    assert [i.image_id for i in instructions] == ["COCO_1", "COCO_1_val", "COCO_1_val"]


def test_authors_of_splits_and_places_of_images(tmp_path):
    root = write(tmp_path, REFERENCES[:1], author="google")
    write(tmp_path, REFERENCES[1:2], author="umd")
    assert [i.query for i in read_refcoco(root)[1]] == ["the novel"]
    (root / "refs(umd).p").unlink()
    assert [i.query for i in read_refcoco(root)[1]] == ["the mug"]
    (tmp_path / "train2014").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="COCO's images are not there; train2014"):
        read_refcoco(root)
    (root / "refs(google).p").unlink()
    with pytest.raises(DataError, match=r"has no refs\(unc\)\.p or refs\(umd\)\.p"):
        read_refcoco(root)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path, [*REFERENCES, Evil()], protocol=protocol)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: not a plain pickle \(asks for (posix|nt|os)\.mkdir") as error:
        read_refcoco(root)
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
    pickle.loads((root / "refs(unc).p").read_bytes())
    assert (tmp_path / "ran").exists()  # the file was no dud


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps(REFERENCES)[:-9], pickle.dumps(np.ones(2)), b"\x80\x02}."]
)
def test_other_pickles_get_one_line(tmp_path, content):
    root = write(tmp_path)
    (root / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: (not a plain pickle|holds \{\}; a list)") as error:
        read_refcoco(root)
    assert "\n" not in str(error.value)


def test_texts_of_python_2(tmp_path):
    path = tmp_path / "a.p"
    path.write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\naI7\naL8L\na.")
    assert read_plain_pickle(path) == ["café", 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, r"ref 1: image_id 9 is none of the 3 images"),
        ({"image_id": 2}, r"ref 1: ann_id 12 is no object of image 2"),
        ({"ann_id": 14}, r"ref 1: annotation 14 is a crowd"),
        ({"ann_id": "12"}, r'ref 1: ann_id "12" is not a whole number'),
        ({"split": "valid"}, r'ref 1: split "valid" is none of train, val, test, testA, testB'),
        ({"sentences": []}, r"ref 1: sentences \[\] is not a list"),
        ({"sentences": [{"raw": "x"}]}, r"ref 1: sentences .* is not a list"),
        ({"sentences": [{"sent": "half \ud800"}]}, r"ref 1: sentences .*half \\ud800.* is not a list"),
    ],
)
def test_wrong_references_get_one_line(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as error:
        read_refcoco(write(tmp_path, [REFERENCES[0] | change]))
    assert "\n" not in str(error.value) and "refs(unc).p" in str(error.value)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("annotations", {"image_id": 9}, r"annotations: id 11: image_id 9 is none of the 3 images"),
        ("annotations", {"category_id": 9}, r"annotations: id 11: category_id 9 is none of the 3 categories"),
        ("annotations", {"id": 12}, r"annotations: id 12 stands twice"),
        ("annotations", {"id": None}, r"annotations: .* has no whole number as id"),
        ("annotations", {"segmentation": [[1, 2, 3]]}, r"id 11: segmentation \[\[1, 2, 3\]\] is neither"),
        ("annotations", {"segmentation": {"counts": [1]}}, r"id 11: segmentation .* is neither"),
        ("annotations", {"segmentation": {"size": [20, 30], "counts": [7]}}, r"annotation 11: run lengths of 7 pixels"),
        ("annotations", {"segmentation": {"size": [2, 3], "counts": [6]}}, r"annotation 11: size \[2, 3\]"),
        (
            "annotations",
            {"segmentation": {"size": [20, 30], "counts": "5 "}},
            r"annotation 11: counts has the character",
        ),
        ("images", {"height": 0}, r"images: id 1: height 0 is not a number of pixels"),
        ("images", {"file_name": 7}, r"images: id 1: file_name 7 is no text"),
        ("categories", {"name": "book"}, r"categories: name 'book' stands twice"),
        ("categories", {"id": 300}, r"category_id 47 is none|id 300 \(cup\) is outside of 0\.\.254"),
        ("images", {"height": 10}, r"size 30x10 differs from its image's 30x20|annotation 12: size"),
    ],
)
def test_wrong_instances_get_one_line(tmp_path, table, change, message):
    content = instances()
    content[table][0] |= change
    with pytest.raises(DataError, match=message) as error:
        scene_set, _ = read_refcoco(write(tmp_path, content=content))
        scene_set.read_maps(scene_set.scenes[0])
    assert "\n" not in str(error.value) and "instances.json" in str(error.value)


def test_nothing_is_painted_before_it_is_needed(tmp_path, monkeypatch):
    root = write(tmp_path)
    monkeypatch.setattr("datasets_scripts.coco.object_mask", None)
    monkeypatch.setattr(Image, "open", None)
    scene_set, _ = read_refcoco(root)
    assert len(pickle.dumps(scene_set)) < 5000
