"""Own folders: what lies where nobody would look for it, and what the fields of `classes.json` mean for pixels."""

from __future__ import annotations

import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from datasets_scripts.bad_items import skipping
from datasets_scripts.build import build
from datasets_scripts.folder import read_data, read_folder
from datasets_scripts.records import DataError
from datasets_scripts.tables import read_tables

from .conftest import noise_image


@pytest.fixture
def own(tmp_path):
    """Two labelled images and one without a mask; the label is 0, but for a corner of 3 and one of 7."""
    tmp_path = tmp_path / "own"
    for place in ("images", "unlabelled", "masks"):
        (tmp_path / place).mkdir(parents=True)
    for name in ("images/a.png", "images/b.png", "unlabelled/c.png"):
        noise_image(12, 8).save(tmp_path / name)
    labels = Image.new("L", (12, 8))
    labels.paste(3, (0, 0, 4, 4))
    labels.paste(7, (8, 4, 12, 8))
    for stem in "ab":
        labels.save(tmp_path / f"masks/{stem}.png")
    (tmp_path / "classes.json").write_text('{"0": "road", "3": "car", "7": "smudge"}')
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("instances/a_inst.png", "images has no image of this stem"),
        ("facts/c.json", "images has no image of this stem"),
        ("images/2024/may/d.png", "is in a folder of its own; images directly in {own}/images would be right"),
        ("unlabelled/2024/d.JPG", "is in a folder of its own; images directly in {own}/unlabelled would be right"),
        ("instances/a/1.png", "is in a folder of its own; images directly in {own}/instances would be right"),
    ],
)
def test_what_would_be_missed_is_refused(own, name, message):
    path = own / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    # other programs leave these behind
    for hidden in (path.parent / ".ipynb_checkpoints" / path.name, path.with_name(f"._{path.name}")):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_text("")
    with pytest.raises(DataError) as error:
        read_folder(own)
    assert str(error.value).startswith(f"{path}: ") and str(error.value).endswith(message.format(own=own))
    with skipping() as skipped:
        assert [scene.image_id for scene in read_folder(own).scenes] == ["a", "b", "c"]
    assert len(skipped) == 1
    path.unlink()
    read_folder(own)


def test_a_binary_mask_with_a_palette_of_greys_is_a_grey_picture(own):
    """Whatever order its greys have; other palettes' colours say nothing, as those of a map of ids."""
    marked = np.zeros((8, 12), bool)
    marked[:3, 4:] = True
    white_first, red_on_blue = Image.fromarray((~marked).astype(np.uint8)), Image.fromarray(marked.astype(np.uint8))
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    red_on_blue.putpalette([0, 0, 255, 255, 0, 0])
    shutil.rmtree(own / "masks")
    (own / "masks/car").mkdir(parents=True)
    for written in (white_first, red_on_blue, Image.fromarray(marked.astype(np.uint8) * 255).quantize(2)):
        assert written.mode == "P"
        written.save(own / "masks/car/a.png")
        scene_set = read_folder(own)
        assert np.array_equal(scene_set.read_maps(scene_set.scenes[0])[0] == 3, marked)


def test_an_ignored_class_is_255_everywhere(own, tmp_path, monkeypatch):
    """As a data set's "void": never asked for, never a target, never counted."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    entries = [{"id": 0, "name": "road"}, {"id": 3, "name": "car"}, {"id": 7, "name": "smudge", "ignored": True}]
    (own / "classes.json").write_text(json.dumps(entries))
    scene_set, _ = read_data(own, components=True)
    build(scene_set, tmp_path / "built")
    built, instructions = read_tables(tmp_path / "built")
    truth = np.zeros((8, 12), np.uint8)
    truth[:4, :4], truth[4:, 8:] = 3, 255
    for each in (scene_set, built):
        assert [c.name for c in each.classes] == ["road", "car"]
        labels, instances = each.read_maps(each.scenes[0])
        assert np.array_equal(labels, truth) and np.array_equal(instances > 0, truth != 255)
    assert {i.class_name for i in instructions} == {"road", "car"}
    Image.new("L", (12, 8), 8).save(own / "masks/a.png")
    with pytest.raises(DataError, match=r"a\.png: label 8 is not a known class id \(0 road, 3 car, 255 ignore\)"):
        scene_set.read_labels(scene_set.scenes[0])


def test_a_mask_of_an_ignored_class_ignores_its_pixels(own):
    for stem in "ab":
        (own / f"masks/{stem}.png").unlink()
    entries = [{"id": 0, "name": "smudge", "ignored": True}, {"id": 3, "name": "car"}]
    (own / "classes.json").write_text(json.dumps(entries))
    (own / "masks/a").mkdir()
    for name, box in (("car", (0, 0, 6, 8)), ("smudge", (4, 0, 8, 8))):
        mask = Image.new("L", (12, 8))
        mask.paste(255, box)
        mask.save(own / f"masks/a/{name}.png")
    scene_set = read_folder(own)
    assert [(c.id, c.name) for c in scene_set.classes] == [(3, "car"), (1, "background")]
    assert scene_set.read_labels(scene_set.scenes[0])[0].tolist() == [3] * 6 + [255] * 2 + [1] * 4


@pytest.mark.parametrize(
    ("ignored", "message"),
    [("yes", 'class 0: ignored "yes" is not true or false'), (True, "ignored is true of all classes; one to learn")],
)
def test_wrong_ignored_classes(own, ignored, message):
    (own / "classes.json").write_text(json.dumps([{"id": 0, "name": "road", "ignored": ignored}]))
    with pytest.raises(DataError, match=message) as error:
        read_folder(own)
    assert str(error.value).startswith(f"{own}/classes.json: ")


def test_what_is_put_into_sentences_has_no_full_stop(own):
    (own / "classes.json").write_text(
        '{"classes": [{"id": 0, "name": "road", "attributes": ["the dark band."], "noun": "band. "}, '
        '{"id": 3, "name": "car"}, {"id": 7, "name": "smudge", "attributes": ["."]}]}'
    )
    with pytest.raises(DataError, match=r'attributes \["\."\] is not a list of texts'):
        read_folder(own)
    path = own / "classes.json"
    path.write_text(path.read_text().replace('["."]', "[]"))
    road = read_folder(own).class_named("road")
    assert (road.attributes, road.noun) == (("the dark band",), "band")


@pytest.mark.parametrize(
    ("field", "one", "other", "message"),
    [
        ("noun", "cell", "cell", "noun 'cell' describes 'lymphocyte' and 'tumour'; words of one alone"),
        ("noun", "Cell", "cell", "noun 'cell' describes 'lymphocyte' and 'tumour'; words of one alone"),
        ("attributes", ["the dark ones"], ["the dark ones"], "attributes 'the dark ones' describes 'lymphocyte' and"),
        ("attributes", ["the lymphocytes"], [], "attributes 'the lymphocytes' names its class 'lymphocyte'; other"),
        ("attributes", ["the dark ones", "the dark ones"], [], None),
        ("attributes", ["the Tumour"], [], "attributes 'the Tumour' describes 'tumour' and 'lymphocyte'; words of one"),
        ("noun", "tumour", "cell", "noun 'tumour' describes 'tumour' and 'lymphocyte'; words of one alone"),
        ("noun", "lymphocyte", "cell", None),
    ],
)
def test_one_description_is_of_one_class(own, field, one, other, message):
    """Else one query had two answers, or none of its words were ever asked."""
    entries = [{"id": 0, "name": "lymphocyte", field: one}, {"id": 3, "name": "tumour", field: other}]
    path = own / "classes.json"
    path.write_text(json.dumps([*entries, {"id": 7, "name": "smudge", field: one, "ignored": True}]))
    if message is None:
        read_folder(own)
        return
    with pytest.raises(DataError) as error:
        read_folder(own)
    assert str(error.value).startswith(f"{path}: {message}")
    path.write_text(json.dumps([*entries, {"id": 7, "name": "smudge"}]).replace("lymphocyte", "background"))
    read_folder(own)  # nobody asks for it


def test_a_list_of_classes_from_windows_and_one_with_an_id_twice(own):
    """A byte-order mark says nothing; of a key that stands twice Python would take the last."""
    path = own / "classes.json"
    text = path.read_text(encoding="utf-8")
    expected = read_folder(own).classes
    path.write_text(text, encoding="utf-8-sig")
    assert read_folder(own).classes == expected
    path.write_text('{"0": "road", "3": "car", "7": "smudge", "3": "bus"}')
    with pytest.raises(DataError) as error:
        read_folder(own)
    assert str(error.value) == f'{path}: key "3" stands twice; once would be right'
