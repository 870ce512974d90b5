"""Drawn scenes: the same for ever, exact in their maps, varied in their looks, and safely written."""

from __future__ import annotations

import colorsys
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.attribute import names_class
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.records import DataError
from datasets_scripts.scenes import CLASSES, COUNTABLE, draw_scene, main, write_scenes
from datasets_scripts.street.picture import MIN_VISIBLE, draw_street, paint_owners

NAMES = [c.name for c in CLASSES]
SMALL = (48, 64)
HUES = {"red": 0, "orange": 25, "yellow": 50, "green": 140, "blue": 222}  # degrees, as people use the words
STEMS = {
    "sidewalk": ("walk", "side"),
    "building": ("build", "built"),
    "bicycle": ("cycl", "bike"),
    "person": ("person",),
}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed) for seed in range(30)]


def digest(scene):
    content = scene.image.tobytes() + scene.label_map.tobytes() + scene.instance_map.tobytes()
    return hashlib.sha256(content + json.dumps(scene.facts).encode()).hexdigest()


def test_a_seed_gives_the_same_scene_in_any_order_and_any_process(scenes):
    assert digest(draw_scene(3)) == digest(scenes[3]) and digest(draw_scene(0)) == digest(scenes[0])
    assert len({digest(scene) for scene in scenes}) == len(scenes)
    code = "from tests.test_scenes import *; print(digest(draw_scene(3)))"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == digest(scenes[3]), run.stderr


def test_every_class_is_common_enough_to_learn_and_to_score(scenes):
    pixels = sum(np.bincount(s.label_map.ravel(), minlength=len(CLASSES)) for s in scenes)
    shares = pixels / pixels.sum()
    for c in CLASSES:
        seen = sum(int((s.label_map == c.id).sum() >= 30) for s in scenes)
        assert seen >= 7, f"{c.name} is in {seen} of 30 scenes only"
        assert 0.001 < shares[c.id] < 0.5, f"{c.name} fills {shares[c.id]:.2%}"
    several = [sum(f["class"] == "car" for f in s.facts.values()) > 1 for s in scenes]
    assert sum(several) > 20


def test_maps_and_facts_tell_the_same(scenes):
    for scene in scenes:
        assert scene.label_map.dtype == np.uint8 and scene.instance_map.dtype == np.uint16
        assert scene.label_map.max() < len(CLASSES)  # nothing is left unlabelled
        ids, areas = np.unique(scene.instance_map, return_counts=True)
        assert set(ids.tolist()) - {0} == set(scene.facts)
        assert areas[ids > 0].min() >= MIN_VISIBLE
        for instance_id, known in scene.facts.items():
            classes = np.unique(scene.label_map[scene.instance_map == instance_id])
            assert [NAMES[k] for k in classes] == [known["class"]] and known["class"] in COUNTABLE
        uncounted = np.unique(scene.label_map[scene.instance_map == 0])
        assert {NAMES[k] for k in uncounted} <= set(NAMES) - COUNTABLE


def test_label_edges_lie_on_image_edges(scenes):
    def edge_strength(scene, down, right):
        grey = np.asarray(scene.image.convert("L"), np.float64)
        steps = np.abs(np.diff(grey, axis=1))[10:-10, 10:-10]
        labels = np.roll(scene.label_map.astype(int), (down, right), (0, 1))
        return steps[(np.diff(labels, axis=1) != 0)[10:-10, 10:-10]].mean()

    aligned = np.mean([edge_strength(s, 0, 0) for s in scenes])
    for shift in ((0, 2), (0, -2), (3, 0), (-3, 0)):
        assert aligned > 1.25 * np.mean([edge_strength(s, *shift) for s in scenes])


def test_colour_words_agree_with_pixels(scenes):
    right, total = 0, 0
    for scene in scenes:
        pixels = np.asarray(scene.image, np.float64) / 255
        if pixels.mean() < 0.38:
            continue  # at dusk and night all colours are pulled to one side
        for instance_id, known in scene.facts.items():
            own = pixels[scene.instance_map == instance_id]
            if known["class"] not in ("car", "bus") or known.get("colour") not in HUES or len(own) < 250:
                continue
            spread = own.max(1) - own.min(1)
            painted = own[spread >= np.quantile(spread, 0.7)].mean(0)
            hue = 360 * colorsys.rgb_to_hsv(*painted)[0]
            distances = {word: abs((hue - other + 180) % 360 - 180) for word, other in HUES.items()}
            right, total = right + (min(distances, key=distances.get) == known["colour"]), total + 1
    assert total >= 15 and right >= 0.9 * total, f"{right} of {total}"


def test_the_nearest_thing_covers_the_others():
    covered, things = 0, 0
    for seed in range(4):
        drawing = draw_street(np.random.Generator(np.random.PCG64(seed)), 96, 128)
        expected = np.zeros((96, 128), int)
        # slow and obvious: each thing painted alone, then laid over all that are farther away
        for index, thing in sorted(enumerate(drawing.things), key=lambda pair: (-pair[1].order, pair[0])):
            blank = drawing.things[0]
            alone = paint_owners((blank, thing), 96, 128)[0] == 1
            expected[alone] = index
            things, covered = things + 1, covered + bool((alone & (drawing.owners != index)).any())
        assert np.array_equal(drawing.owners, expected)
        in_scene = np.bincount(drawing.owners.ravel(), minlength=len(drawing.things))
        assert in_scene[3:].min() >= MIN_VISIBLE
    assert covered > 0.4 * things


def test_things_grow_towards_the_viewer(scenes):
    for name, least_pairs in (("car", 100), ("person", 20)):
        right, total = 0, 0
        for scene in scenes:
            boxes = []
            for instance_id, known in scene.facts.items():
                rows, columns = np.nonzero(scene.instance_map == instance_id)
                inside = rows.max() < 191 and columns.min() > 0 and columns.max() < 255
                if known["class"] == name and inside:
                    boxes.append((rows.max(), rows.max() - rows.min() + 1))
            for foot, height in boxes:
                for other_foot, other_height in boxes:
                    if foot >= other_foot + 10:
                        right, total = right + (height > other_height), total + 1
        assert total >= least_pairs and right >= 0.93 * total, f"{name}: {right} of {total}"


def test_looks_differ_between_scenes(scenes):
    for name, least in (("road", 18), ("sky", 30), ("building", 18), ("tree", 12)):
        means = [np.asarray(s.image)[m].mean(0) for s in scenes if (m := s.label_map == NAMES.index(name)).sum() > 200]
        assert np.std(means, axis=0).mean() > least, name
    horizons = [int(np.nonzero(s.label_map == 0)[0].min()) for s in scenes]
    assert np.ptp(horizons) > 25


def test_attributes_describe_without_naming():
    assert [c.id for c in CLASSES] == list(range(len(CLASSES))) and len(CLASSES) >= 11
    phrases = [phrase for c in CLASSES for phrase in c.attributes]
    assert len(set(phrases)) == len(phrases)  # none serves two classes
    for c in CLASSES:
        assert 4 <= len(c.attributes) <= 8
        for phrase in (*c.attributes, *([c.noun] if c.noun else [])):
            assert not names_class(phrase, c.name), phrase
            words = re.findall(r"[a-z]+", phrase.lower())
            stems = STEMS.get(c.name, c.name.split())
            assert not any(w == stem or (len(stem) > 3 and w.startswith(stem)) for w in words for stem in stems), phrase
    assert {c.name for c in CLASSES if c.noun} == COUNTABLE


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 64), (100, 40), (40, 300), (360, 480)])
def test_any_size(size):
    scene = draw_scene(5, size)
    assert scene.image.size == size[::-1] and scene.image.mode == "RGB"
    assert scene.label_map.shape == scene.instance_map.shape == size
    assert {"road", "sky"} <= {NAMES[k] for k in np.unique(scene.label_map)}


def test_a_seed_shows_the_same_street_at_every_size(scenes):
    for seed in range(5):
        small = draw_scene(seed, (96, 128)).label_map
        assert (small == scenes[seed].label_map[::2, ::2]).mean() > 0.95


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (64, 5000)])
def test_sizes_out_of_range(size):
    with pytest.raises(DataError, match="pixels would be right"):
        draw_scene(0, size)


def test_a_larger_set_begins_with_the_smaller_one(tmp_path):
    write_scenes(tmp_path / "a", 2, 3, 2, seed=4, size=SMALL, progress=False)
    write_scenes(tmp_path / "b", 4, 1, 2, seed=4, size=SMALL, progress=False)
    write_scenes(tmp_path / "c", 2, 3, 2, seed=5, size=SMALL, progress=False)
    files = {folder: contents(tmp_path / folder) for folder in "abc"}
    del files["a"]["scenes.json"], files["b"]["scenes.json"]
    shared = files["a"].keys() & files["b"].keys()
    assert len(shared) == 1 + 2 * 4 + 1 + 2 * 4
    assert all(files["a"][name] == files["b"][name] for name in shared)
    pictures = [
        content
        for written in files.values()
        for name, content in written.items()
        if "images" in name or "unlabelled" in name
    ]
    assert len(set(pictures)) == len(pictures) - 2 - 1 - 2  # only what a and b share is there twice


def contents(folder):
    """Of whole files: what a killed program left of one stays, and is nobody's."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_written_scenes_read_back(tmp_path):
    write_scenes(tmp_path, 2, 2, 1, size=SMALL, progress=False)
    scene_set = read_folder(tmp_path)
    assert scene_set.classes == CLASSES
    assert [len(scene_set.split("train", labelled=True)), len(scene_set.split("train", labelled=False))] == [2, 2]
    assert len({s.image_id for s in scene_set.scenes}) == len(scene_set.scenes) == 5
    for scene in (*scene_set.split("train", labelled=True), *scene_set.split("val")):
        drawn = draw_scene(int(scene.image_id.removeprefix("scene_")), SMALL)
        labels, instances = scene_set.read_maps(scene)
        assert np.array_equal(labels, drawn.label_map) and np.array_equal(instances, drawn.instance_map)
        assert scene.facts == drawn.facts
        assert np.array_equal(np.asarray(Image.open(scene.image)), np.asarray(drawn.image))
    with Image.open(tmp_path / "instances/scene_000000.png") as file:
        assert file.mode.startswith("I")  # 16 bits
    assert build_instructions(scene_set, scene_set.split("train", labelled=True))


def test_interrupted_writing_goes_on(tmp_path):
    write_scenes(tmp_path, 2, 1, 1, size=SMALL, progress=False)
    whole = contents(tmp_path)
    kept = tmp_path / "images/scene_000000.png"
    os.utime(kept, (1, 1))
    for name in (
        "masks/scene_000001.png",
        "unlabelled/scene_100000.png",
        "val/facts/scene_200000.json",
        "classes.json",
    ):
        (tmp_path / name).unlink()
    (tmp_path / "masks/scene_000001.png.partial").write_bytes(b"cut short")
    with pytest.raises(DataError):
        read_folder(tmp_path)  # an unfinished folder is not taken for a finished one
    write_scenes(tmp_path, 2, 1, 1, size=SMALL, progress=False)
    assert contents(tmp_path) == whole
    assert kept.stat().st_mtime == 1  # not drawn again


def test_folders_with_something_else_are_left_alone(tmp_path):
    write_scenes(tmp_path / "a", 1, 0, 0, size=SMALL, progress=False)
    for change in (dict(labelled=2), dict(seed=1), dict(size=(64, 48))):
        with pytest.raises(DataError, match=r"scenes\.json: was made with .* choose another folder"):
            write_scenes(tmp_path / "a", **{**dict(labelled=1, unlabelled=0, val=0, size=SMALL), **change})
    (tmp_path / "a/scenes.json").write_text("{")
    with pytest.raises(DataError, match=r"scenes\.json: not JSON"):
        write_scenes(tmp_path / "a", 1, 0, 0, size=SMALL)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/classes.json").write_text("mine")
    with pytest.raises(DataError, match=r"holds classes\.json and no scenes\.json"):
        write_scenes(tmp_path / "own", 1, 0, 0, size=SMALL)
    assert (tmp_path / "own/classes.json").read_text() == "mine"


def test_command_line(tmp_path, capsys):
    out = str(tmp_path / "out")
    main(["--out", out, "--labelled", "1", "--unlabelled", "1", "--val", "1", "--height", "48", "--width", "64"])
    assert len(read_folder(out).scenes) == 3
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    for arguments in (
        [],
        ["--out", out, "--labelled", "x"],
        ["--out", out, "--labelled", "0"],
        ["--out", out, "--val", "-1"],
        ["--out", out, "--height", "10"],
        ["--out", out, "--seed", "-1"],
        ["--out", out, "--seed", "9"],
        ["--out", str(tmp_path / "file")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        printed = capsys.readouterr()
        assert stop.value.code == 2 and printed.err.count("\n") == 1 and printed.err.startswith("error: "), arguments
