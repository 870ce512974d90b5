"""Built tables: what goes in comes out, to the byte, whatever interrupts or shares the work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from datasets_scripts.build import _files_of, build, main, renew_card
from datasets_scripts.builders import CoraTables
from datasets_scripts.coco import CocoImage, CocoMap
from datasets_scripts.components import ComponentMap, with_components
from datasets_scripts.folder import read_data, read_folder
from datasets_scripts.instructions.build import build_instructions
from datasets_scripts.own_folder import BinaryMasks
from datasets_scripts.records import DataError, Instruction, Scene, SceneSet, read_image
from datasets_scripts.scenes import write_scenes
from datasets_scripts.splits import draw_split, read_split
from datasets_scripts.tables import INSTRUCTION_FEATURES, read_tables, write_table
from datasets_scripts.verify import main as verify

from .conftest import noise_image


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with 5 labelled, 2 unlabelled and 2 validation scenes."""
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, 5, 2, 2, seed=3, size=(64, 96))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".partial"
    }


def build_in_process(root, out, *more):
    return subprocess.run(
        [sys.executable, "-m", "datasets_scripts.build", "drawn", "--root", root, "--out", out, *map(str, more)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )


def test_tables_hold_what_the_folder_holds(drawn, tmp_path):
    result = build(with_components(read_folder(drawn)), tmp_path / "built", shard_size=2, fractions=["1/2"])
    source, (built, instructions) = read_folder(drawn), read_tables(tmp_path / "built")
    assert result["scenes"] == len(source.scenes) == len(built.scenes) == 9 and not result["skipped"]
    assert built.classes == source.classes
    completed = with_components(source)
    for old, new in zip(completed.scenes, built.scenes, strict=True):
        assert (old.image_id, old.split, old.labelled, old.facts) == (new.image_id, new.split, new.labelled, new.facts)
        assert np.array_equal(read_image(old.image), read_image(new.image))
        if old.labelled:
            for before, after in zip(completed.read_maps(old), built.read_maps(new), strict=True):
                assert np.array_equal(before, after)
    labelled = [s for s in completed.scenes if s.labelled]
    assert instructions == build_instructions(completed, labelled, ("semantic", "attribute", "conditional"))
    assert {i.kind for i in instructions} == {"semantic", "attribute", "conditional"}
    lists = read_split(tmp_path / "built" / "splits" / "1_2")
    chosen, of_chosen = read_data(tmp_path / "built", tmp_path / "built" / "splits" / "1_2", components=True)
    ids = {image_id for image_id, _ in lists["labeled.txt"]}
    assert {s.image_id for s in chosen.split("train", labelled=True)} == ids
    val = {s.image_id for s in chosen.split("val")}
    assert {i.image_id for i in of_chosen} == ids | val and len(of_chosen) < len(instructions)


def test_the_folder_is_a_data_set_for_the_library(drawn, tmp_path):
    build(with_components(read_folder(drawn)), tmp_path / "built", shard_size=2)
    scenes = datasets.load_dataset(str(tmp_path / "built"), "scenes")
    assert {split: len(table) for split, table in scenes.items()} == {"train": 7, "val": 2}
    assert scenes["train"][0]["label_map"].size == scenes["train"][0]["image"].size == (96, 64)
    whole = datasets.load_dataset(str(tmp_path / "built"), "instructions", split="val")
    stream = datasets.load_dataset(str(tmp_path / "built"), "instructions", split="val", streaming=True)
    assert list(stream) == list(whole) and len(whole) > 20


def test_a_folder_may_be_called_like_a_pattern(drawn, tmp_path):
    out = tmp_path / "own [1-3]*"
    build(with_components(read_folder(drawn)), out, shard_size=4)
    assert len(read_tables(out)[0].scenes) == 9


def test_a_split_without_instructions_does_not_cost_the_others(tmp_path, capsys):
    """An unlabelled test image has none, and `datasets` refuses files without a row; nor has a split all of whose
    scenes are skipped any row."""
    write_scenes(tmp_path / "data", 2, 1, 1, seed=0, size=(64, 96))
    (tmp_path / "data" / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (96, 64)).save(tmp_path / "data" / "test" / "images" / "t.png")
    (mask,) = (tmp_path / "data" / "val" / "masks").iterdir()
    mask.write_bytes(mask.read_bytes()[:80])
    arguments = ["own", "--root", str(tmp_path / "data"), "--shard_size", "1", "--workers", "1", "--skip_bad"]
    main([*arguments, "--out", str(tmp_path / "built")])
    scene_set, instructions = read_tables(tmp_path / "built")
    assert [(s.split, s.labelled) for s in scene_set.scenes] == [
        ("train", True),
        ("train", True),
        ("train", False),
        ("test", False),
    ]
    asked = datasets.load_dataset(str(tmp_path / "built"), "instructions")
    assert {split: len(table) for split, table in asked.items()} == {"train": len(instructions)}
    scenes = datasets.load_dataset(str(tmp_path / "built"), "scenes")
    assert {split: len(table) for split, table in scenes.items()} == {"train": 3, "test": 1}


def test_a_set_without_instructions_has_one_table(drawn, tmp_path, capsys):
    scene_set = read_folder(drawn)
    build(replace(scene_set, scenes=scene_set.split("train", labelled=False)), tmp_path / "built")
    assert datasets.get_dataset_config_names(str(tmp_path / "built")) == ["scenes"]
    assert read_tables(tmp_path / "built")[1] == []
    with pytest.raises(SystemExit):
        verify([str(tmp_path / "built")])
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path}/built: holds no instruction"


def test_interrupted_repeated_and_shared_work_give_the_same_bytes(drawn, tmp_path):
    """Killed while it writes; run again with another number of processes; run again when all is done."""
    assert build_in_process(drawn, tmp_path / "whole", "--shard_size", 1, "--workers", 1).returncode == 0
    command = [sys.executable, "-m", "datasets_scripts.build", "drawn", "--root", drawn, "--out", tmp_path / "killed"]
    command += ["--shard_size", "1", "--workers", "1"]
    process = subprocess.Popen(list(map(str, command)), cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
    progress = tmp_path / "killed" / ".progress"
    while not list(progress.glob("train-*.json")) and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed" / "scenes").glob("train-00000*")}
    assert done and len(list(progress.iterdir())) < 9 and not (tmp_path / "killed" / "README.md").exists()
    assert build_in_process(drawn, tmp_path / "killed", "--shard_size", 1, "--workers", 2).returncode == 0
    assert {name: (tmp_path / "killed" / "scenes" / name).stat().st_mtime_ns for name in done} == done
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    again = build_in_process(drawn, tmp_path / "whole", "--shard_size", 1, "--workers", 1)
    assert again.returncode == 0 and content(tmp_path / "killed") == content(tmp_path / "whole")


def test_builder_classes_give_the_same_rows(drawn, tmp_path):
    build(with_components(read_folder(drawn)), tmp_path / "built")
    builder = CoraTables(config_name="instructions", data_dir=str(drawn), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    table = datasets.load_dataset(str(tmp_path / "built"), "instructions", split="train")
    assert list(builder.as_dataset(split="train")) == list(table)
    assert next(iter(builder.as_streaming_dataset(split="train"))) == table[0]
    scenes = CoraTables(config_name="scenes", data_dir=str(drawn), cache_dir=str(tmp_path / "cache"))
    scenes.download_and_prepare(num_proc=2)
    ids = [row["image_id"] for row in datasets.load_dataset(str(tmp_path / "built"), "scenes", split="train")]
    assert sorted(scenes.as_dataset(split="train")["image_id"]) == sorted(ids)


def test_large_images_make_smaller_shards(drawn, tmp_path, monkeypatch):
    """A column of a table cannot hold 2 GiB. From files and from tables; a folder of other shards is not continued."""
    scene_set = with_components(read_folder(drawn))
    build(scene_set, tmp_path / "whole")
    sizes = {s.image_id: s.image.stat().st_size for s in scene_set.scenes}
    most = max(sizes.values()) + min(sizes.values())
    monkeypatch.setattr("datasets_scripts.build.MOST_BYTES", most, raising=False)
    for source, out in ((scene_set, "cut"), (read_tables(tmp_path / "whole")[0], "again")):
        build(source, tmp_path / out)
        held = [
            [sizes[image_id] for image_id in datasets.Dataset.from_parquet(str(path))["image_id"]]
            for path in sorted((tmp_path / out / "scenes").glob("train-*.parquet"))
        ]
        assert all(sum(shard) <= most for shard in held) and sum(map(len, held)) == 7 and len(held) > 2
        assert all(sum(one) + two[0] > most for one, two in pairwise(held))  # none is smaller than need be
    assert [s.image_id for s in read_tables(tmp_path / "cut")[0].scenes] == [s.image_id for s in scene_set.scenes]
    with pytest.raises(DataError, match="was made without bytes in a shard"):
        build(scene_set, tmp_path / "whole")


def test_builder_classes_see_that_the_data_have_changed(tmp_path):
    masks_of(tmp_path / "data", (0, 1))

    def rows(name):
        builder = CoraTables(config_name=name, data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        return builder.as_dataset(split="train")

    assert set(rows("instructions")["class_name"]) == {"tumour"} and len(rows("scenes")) == 4
    noise_image(24, 16).save(tmp_path / "data/unlabelled/e.png")
    (tmp_path / "data/classes.json").write_text('{"0": "background", "1": "neoplasm"}')
    assert set(rows("instructions")["class_name"]) == {"neoplasm"} and len(rows("scenes")) == 5


@pytest.fixture
def damaged(tmp_path):
    """Three labelled scenes, of which one mask has another size, and one is a truncated PNG."""
    write_scenes(tmp_path / "data", 3, 0, 1, seed=0, size=(64, 96))
    masks = sorted((tmp_path / "data" / "masks").glob("*.png"))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(masks[0])
    masks[1].write_bytes(masks[1].read_bytes()[:80])
    return tmp_path / "data", masks


def test_a_bad_scene_stops_or_is_skipped_and_listed(damaged, tmp_path, capsys):
    root, masks = damaged
    arguments = ["own", "--root", str(root), "--workers", "1", "--out"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, str(tmp_path / "strict")])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and str(masks[0]) in error and "size 9x9" in error
    assert not (tmp_path / "strict" / "README.md").exists()
    main([*arguments, str(tmp_path / "lenient"), "--skip_bad"])
    told = capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "lenient" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["image_id"] for entry in listed] == [m.stem for m in masks[:2]]
    assert str(masks[1]) in listed[1]["reason"] and all(entry["reason"] in told for entry in listed)
    assert len(read_tables(tmp_path / "lenient")[0].scenes) == 2


def test_work_goes_on_with_data_that_were_mended_before_anything_was_made(damaged, tmp_path, capsys):
    """Of another state of the data no shard may stay; the line then says what to do."""
    root, masks = damaged
    write_scenes(tmp_path / "whole", 3, 0, 1, seed=0, size=(64, 96))
    out = tmp_path / "built"
    arguments = ["own", "--root", str(root), "--workers", "1", "--shard_size", "1", "--out", str(out)]
    for seed, mask, message in (
        ("0", masks[0], "size 9x9"),
        ("1", masks[0], "was made with seed 0, not 1; choose another folder"),
        ("0", masks[1], "not a readable image"),
        ("0", masks[1], "source files"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--seed", seed])
        line = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 2 and message in line
        shutil.copy(tmp_path / "whole/masks" / mask.name, mask)
    assert line.endswith(f": the data have changed since; remove {out}, or choose another folder")
    shutil.rmtree(out)
    main(arguments)
    assert len(read_tables(out)[0].scenes) == 4


def test_what_the_reader_refuses_is_skipped_and_listed(tmp_path, capsys):
    """A duplicate id, and a split that names a missing image."""
    write_scenes(tmp_path / "data", 2, 0, 1, seed=0, size=(64, 96))
    first, second = sorted((tmp_path / "data" / "images").glob("*.png"))
    first.with_suffix(".jpg").write_bytes(first.read_bytes())
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "labeled.txt").write_text(f"{second.name} x\nscene_999999.png x\n")
    (tmp_path / "lists" / "unlabeled.txt").write_text("")
    arguments = ["own", "--root", str(tmp_path / "data"), "--split_lists", str(tmp_path / "lists"), "--workers", "1"]
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "strict")])
    assert "has the same stem" in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "strict").exists()
    main([*arguments, "--out", str(tmp_path / "out"), "--skip_bad"])
    listed = [json.loads(line)["reason"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert len(listed) == 2 and "has the same stem" in listed[0]
    assert "labeled.txt:2: scene_999999 is not among the 2 training images" in listed[1]
    scene_set, _ = read_tables(tmp_path / "out")
    assert [s.image_id for s in scene_set.split("train")] == [second.stem]


def masks_of(folder, values):
    """Three labelled images, an unlabelled one; what is tumour has the last of the values."""
    for name in ("images", "masks", "unlabelled"):
        (folder / name).mkdir(parents=True)
    for stem in "abc":
        noise_image(24, 16).save(folder / f"images/{stem}.png")
        labels = np.full((16, 24), values[0], np.uint8)
        labels[4:12, 6:18] = values[1]
        Image.fromarray(labels).save(folder / f"masks/{stem}.png")
    noise_image(24, 16).save(folder / "unlabelled/d.png")
    (folder / "classes.json").write_text('{"0": "background", "1": "tumour", "2": "lymphocytes"}')


def test_masks_of_0_and_255_are_told_of(tmp_path, capsys):
    """255 means ignored, so they say nothing of any class that is asked for."""
    masks_of(tmp_path / "wrong", (0, 255))
    with pytest.raises(SystemExit) as stopped:
        main(["own", "--root", str(tmp_path / "wrong"), "--out", str(tmp_path / "out"), "--workers", "1"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "no labelled training image shows tumour or lymphocytes on 0.01% of" in line
    assert "masks/CLASS/STEM.png" in line and not (tmp_path / "out/README.md").exists()


def test_classes_that_no_labelled_image_shows_are_named(tmp_path, capsys):
    masks_of(tmp_path / "data", (0, 1))
    main(["own", "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert "no labelled training image shows lymphocytes (0.01% of the pixels or more)" in capsys.readouterr().out
    assert {
        row["class_name"] for row in datasets.load_dataset(str(tmp_path / "out"), "instructions", split="train")
    } == {"tumour"}


@pytest.mark.parametrize(("noun", "instances"), [("", True), ("growth", False), ("growth", True)])
def test_where_no_query_can_describe_one_thing_this_is_told(noun, instances, tmp_path, capsys):
    masks_of(tmp_path / "data", (0, 1))
    two = np.pad(np.repeat([[1, 1, 0, 2]], 8, 0).repeat(3, 1), ((4, 4), (6, 6))).astype(np.uint8)
    for name, pixels in (("masks", np.minimum(two, 1)), ("instances", two))[: 1 + instances]:
        (tmp_path / "data" / name).mkdir(exist_ok=True)
        for stem in "abc":
            Image.fromarray(pixels).save(tmp_path / f"data/{name}/{stem}.png")
    classes = [{"id": 0, "name": "background"}, {"id": 1, "name": "tumour", "noun": noun}]
    (tmp_path / "data/classes.json").write_text(json.dumps({"classes": classes}))
    main(["own", "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--workers", "1"])
    told = "no query describes one thing among others" in capsys.readouterr().out
    rows = datasets.load_dataset(str(tmp_path / "out"), "instructions", split="train")
    assert told != any(row["kind"] == "attribute" for row in rows) == bool(noun and instances)


def test_kinds_do_not_change_what_an_image_shows(tmp_path, capsys):
    """Six images with a class each and one with all; classes without attributes, and one that is shown too little."""
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(8):
        noise_image(200, 100).save(tmp_path / f"data/images/{number}.png")
        labels = np.full((100, 200), 255, np.uint8)
        labels[:, : 20 + number] = min(number, 6) % 3
        labels[0, 199] = 3  # a pixel: two would be enough
        Image.fromarray(labels).save(tmp_path / f"data/masks/{number}.png")
    (tmp_path / "data/classes.json").write_text('{"0": "road", "1": "sky", "2": "tree", "3": "mote"}')
    arguments = ["own", "--root", str(tmp_path / "data"), "--workers", "1", "--fractions", "1/8", "1/2"]
    lists = {}
    for kinds in (["semantic", "attribute", "conditional"], ["semantic"], ["attribute"]):
        out = tmp_path / kinds[-1] / str(len(kinds))
        main([*arguments, "--out", str(out), "--kinds", *kinds])
        assert "no labelled training image shows mote (0.01% of the pixels or more): nothing" in capsys.readouterr().out
        lists[out] = content(out / "splits")
    assert len({str(found) for found in lists.values()}) == 1
    drawn_ids = {image_id for image_id, _ in read_split(out / "splits/1_8")["labeled.txt"]}
    assert {min(int(i), 6) % 3 for i in drawn_ids} == {0, 1, 2} and len(drawn_ids) == 3


def test_the_licence_can_be_corrected_in_the_card_alone(tmp_path):
    masks_of(tmp_path / "data", (0, 1))
    scene_set, out = with_components(read_folder(tmp_path / "data")), tmp_path / "out"

    def licence_of(path):
        return DatasetCard((path / "README.md").read_text()).data.license

    build(scene_set, out, name="own", licence="mit")
    before, tables = content(out), {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    for given, held in (("cc-by-4.0", "cc-by-4.0"), (None, "cc-by-4.0"), ("mit", "mit")):
        build(scene_set, out, name="own", licence=given)
        assert licence_of(out) == held
        changed = {name for name, bytes_ in content(out).items() if before[name] != bytes_}
        assert changed == ({"README.md", "result.json"} if held != "mit" else set())
    assert tables == {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")} and len(tables) > 1
    renew_card(out, *read_tables(out))
    assert licence_of(out) == "mit"
    build(scene_set, tmp_path / "none", name="own")
    assert licence_of(tmp_path / "none") is None
    build(scene_set, tmp_path / "none", name="own", licence="mit")
    assert content(tmp_path / "none") == before


def test_reasons_name_folders_that_are_not_utf8(tmp_path, capsys):
    root = tmp_path / "t\udce9"
    try:
        masks_of(root, (0, 1))
    except OSError:
        pytest.skip("this file system takes no such names")
    (root / "masks/b.png").write_bytes(b"no image")
    main(["own", "--root", str(root), "--out", str(tmp_path / "out"), "--workers", "1", "--skip_bad"])
    (listed,) = (tmp_path / "out/skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert r"t\udce9/masks/b.png: not a readable image" in json.loads(listed)["reason"]


def test_drawn_splits_keep_the_unlabelled_images(tmp_path):
    masks_of(tmp_path / "data", (0, 1))
    main(["own", "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--workers", "1",
          "--fractions", "1/3"])  # fmt: skip
    for read in (read_folder(tmp_path / "data", tmp_path / "out/splits/1_3"),
                 read_data(tmp_path / "out", tmp_path / "out/splits/1_3")[0]):  # fmt: skip
        assert sorted(s.image_id for s in read.split("train")) == ["a", "b", "c", "d"]
        assert len(read.split("train", labelled=True)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "funny"], "--kinds: invalid choice: 'funny'"),
        (["--fractions", "1/0"], "--fractions: '1/0': a fraction above 0"),
        (["--fractions", "2"], "--fractions: '2': a fraction above 0"),
        (["--shard_size", "0"], "--shard_size: '0': 1 or more would be right"),
        (["--workers", "-3"], "--workers: '-3': 1 or more would be right"),
        (["--seed", "-1"], "--seed: '-1': 0 or more would be right"),
        (["--out", "FULL/mine.txt"], "mine.txt: is a file; a new or empty folder would be right"),
        (["--out", "FULL/mine.txt/out", "--workers", "1"], "mine.txt/out: cannot be read or written (Not a directory)"),
        (["--split_lists", "FULL/mine.txt"], "labeled.txt: no such file; a split is a folder with"),
        (["--root", "/nowhere"], "/nowhere: no such folder"),
        (["--seed", "1", "--out", "OTHER"], "was made with seed 0, not 1"),
        (["--fractions", "1/2", "--out", "OTHER"], "was made with fractions []"),
        (["--out", "FULL"], "holds mine.txt and no build.json"),
    ],
)
def test_wrong_arguments_get_one_line(drawn, tmp_path, capsys, arguments, message):
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine.txt").write_text("mine")
    if "OTHER" in arguments:
        build(with_components(read_folder(drawn)), tmp_path / "OTHER", name="x")
    arguments = [str(tmp_path / a) if a.startswith(("FULL", "OTHER")) else a for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["x", "--root", str(drawn), "--out", str(tmp_path / "out"), *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and message in lines[-1] and not (tmp_path / "out" / "README.md").exists()
    assert (tmp_path / "FULL" / "mine.txt").read_text() == "mine" and len(list((tmp_path / "FULL").iterdir())) == 1


def test_a_folder_that_was_built_from_something_else_is_not_taken_for_this(tmp_path):
    """Its finished tables would be handed out as if they were of the new data."""
    write_scenes(tmp_path / "data", 2, 0, 1, seed=3, size=(64, 96))
    scene_set, _ = read_data(tmp_path / "data", components=True)
    scene = scene_set.scenes[0]
    build(scene_set, tmp_path / "built")
    before = content(tmp_path / "built")
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    build(read_data(tmp_path / "moved", components=True)[0], tmp_path / "built")  # the same, in another place

    def refused(scenes, brought=()):
        with pytest.raises(DataError, match="choose another folder") as error:
            build(scenes, tmp_path / "built", brought=brought)
        assert content(tmp_path / "built") == before
        return str(error.value).partition(" was made with ")[2].partition(", not ")[0].rsplit(" ", 1)[0]

    renamed = (replace(scene_set.classes[0], attributes=("the grey one",)), *scene_set.classes[1:])
    assert refused(replace(scene_set, classes=renamed)) == "classes"
    told = (replace(scene, facts={1: {"colour": "green"}}), *scene_set.scenes[1:])
    assert refused(replace(scene_set, scenes=told)) == "facts"
    asked = Instruction(scene.image_id, "reasoning", "car", "what drives", "It is [SEG].", source="people")
    assert refused(scene_set, [asked]) == "instructions that the data set brings"
    for folder, maps in (("images", scene.image), ("masks", scene.label_map), ("instances", scene.instance_map.scene)):
        path = tmp_path / "data" / folder / f"{scene.image_id}.png"
        assert maps is not None
        original = path.read_bytes()
        path.write_bytes(original + b"x")
        assert refused(scene_set) == "source files", folder
        path.write_bytes(original)
    build(scene_set, tmp_path / "built")


def test_files_of_masks_that_are_put_together_are_known(tmp_path):
    maps = BinaryMasks(((3, tmp_path / "a.png"), (4, tmp_path / "b.png")), 0)
    scene = Scene("s", tmp_path / "s.jpg", maps)
    coco = CocoMap(tmp_path / "c.json", CocoImage(1, "s.jpg", 8, 8), {1: 1}, 0, "label map")
    empty = SceneSet((), ())
    found = [p.name for p in _files_of((scene.image, maps, ComponentMap(empty, replace(scene, instance_map=coco))))]
    assert found == ["s.jpg", "a.png", "b.png", "s.jpg", "a.png", "b.png", "c.json"]


def test_damaged_tables_are_named(drawn, tmp_path):
    build(with_components(read_folder(drawn)), tmp_path / "built")
    (shard,) = (tmp_path / "built" / "instructions").glob("val-*.parquet")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match="instructions/val") as error:
        read_tables(tmp_path / "built")
    assert "\n" not in str(error.value)


def test_verify_takes_false_instructions_out_of_the_tables(drawn, tmp_path):
    """And the card tells the new number; the true ones keep their bytes' meaning and order."""
    out = tmp_path / "built"
    build(with_components(read_folder(drawn)), out, shard_size=2, name="drawn")
    _, before = read_tables(out)
    assert verify([str(out)]) == 0
    (shard, *_) = sorted((out / "instructions").glob("train-*.parquet"))
    rows = datasets.Dataset.from_parquet(str(shard)).to_list()
    rows[0]["answer"], rows[3]["query"] = "no token", "[SEG] here"
    write_table(shard, rows, INSTRUCTION_FEATURES)
    assert verify([str(out)]) == 1 and verify([str(out), "--drop"]) == 0 and verify([str(out)]) == 0
    _, after = read_tables(out)
    assert after == [i for n, i in enumerate(before) if n not in (0, 3)]
    assert f"{len(after)} instructions" in (out / "README.md").read_text()
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 2


def test_groups_stay_on_one_side_and_every_class_is_drawn():
    rng = np.random.default_rng(0)
    for seed in range(30):
        groups = {f"i{k}": f"g{rng.integers(12)}" for k in range(60)}
        classes = {image_id: rng.integers(0, 9, rng.integers(1, 4)).tolist() for image_id in groups}
        labelled, unlabelled = draw_split(classes, Fraction(1, 4), seed, groups)
        assert sorted([*labelled, *unlabelled]) == sorted(groups)
        assert not {groups[i] for i in labelled} & {groups[i] for i in unlabelled}
        assert {c for i in labelled for c in classes[i]} == {c for ids in classes.values() for c in ids}
        assert (labelled, unlabelled) == draw_split(classes, Fraction(1, 4), seed, groups)
