"""Built tables on the Hub: pushed by the command, read in other processes, over real HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard, constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from datasets_scripts.build import build, main
from datasets_scripts.components import with_components
from datasets_scripts.dataset_card import card
from datasets_scripts.folder import read_folder
from datasets_scripts.push import push
from datasets_scripts.records import Instruction, Scene, SceneSet, SemanticClass
from datasets_scripts.scenes import write_scenes
from datasets_scripts.tables import SCENE_FEATURES, read_tables, write_table
from publishing.hub import HubError

from .local_hub import RIGHT, LocalHub, environment

ROOT = Path(__file__).parents[1]

READ = "import json, sys; from tests.test_push import rows_of; print(json.dumps(rows_of(sys.argv[1])))"


def plain(row: dict) -> dict:
    """A row with its pictures as their pixels, so that it can be told to another process."""
    return {
        key: [value.mode, hashlib.sha256(value.tobytes()).hexdigest()] if hasattr(value, "tobytes") else value
        for key, value in row.items()
    }


def rows_of(where: str) -> dict[str, list[dict]]:
    load = datasets.load_dataset
    return {
        **{split: list(map(plain, table)) for split, table in load(where, "scenes").items()},
        "train, streamed": list(map(plain, load(where, "scenes", split="train", streaming=True))),
        "instructions": list(load(where, "instructions", split="train")),
        "instructions, streamed": list(load(where, "instructions", split="val", streaming=True)),
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with 3 labelled, 1 unlabelled and 1 validation scenes, and its tables, a scene in each."""
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder / "data", 3, 1, 1, seed=3, size=(64, 96))
    build(with_components(read_folder(folder / "data")), folder / "built", shard_size=1, fractions=["1/2"], name="own")
    return folder


def command(drawn: Path, name: str, *more: str) -> list[str]:
    """Goes on with the folder that is built already, so that little but the upload is left to do."""
    given = ["own", "--root", str(drawn / "data"), "--out", str(drawn / "built"), "--fractions", "1/2"]
    options = ["--shard_size", "1", "--workers", "1", "--push_to_hub", name, *more]
    return [sys.executable, "-m", "datasets_scripts.build", *given, *options]


def run(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True)


def rows(where: str, env: dict[str, str]) -> dict:
    """`rows_of` in another process."""
    result = run([sys.executable, "-c", READ, where], env)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_what_is_pushed_is_what_is_read(drawn, tmp_path, monkeypatch):
    with LocalHub(RIGHT) as hub:
        env = environment(hub.address, tmp_path / "home", RIGHT)
        # as a set of more shards left it; the other folder is not ours
        hub.serve("datasets", "org/streets", tmp_path)
        stale = {"scenes/train-00004-of-00005.parquet": drawn / "data/classes.json", "notes/own.txt": ROOT / "LICENSE"}
        next(iter(hub.repositories["datasets", "org/streets"].commits.values())).update(stale)
        out = tmp_path / "new"
        arguments = [*command(drawn, "org/streets"), "--out", str(out)]
        result = run(arguments, env)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"pushed: {hub.address}/datasets/org/streets" in result.stdout
        files = hub.repositories["datasets", "org/streets"].content()
        local = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert files.pop("notes/own.txt") and files.items() <= local.items()
        assert local.keys() - files.keys() == {"build.json", "result.json"}
        assert not any(str(drawn).encode() in content for content in files.values())
        found = rows("org/streets", environment(hub.address, tmp_path / "reader", None))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert found == rows_of(str(drawn / "built"))
    assert len(found["train"]) == 4 and len(found["instructions, streamed"]) > 5
    assert found["train"] == found["train, streamed"]


def test_an_upload_goes_on_where_it_was_broken_off(drawn, tmp_path):
    """Killed while it sends the fourth table; then a connection that drops once; then nothing is left to do."""
    with LocalHub(RIGHT, stall_after=3) as hub:
        env = environment(hub.address, tmp_path, RIGHT)
        process = subprocess.Popen(command(drawn, "own"), cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
        assert hub.stalled.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(hub.uploads) == 3 and not hub.repositories["datasets", "someone/own"].content()
        hub.stall_after, hub.drop_after = None, 1000
        assert run(command(drawn, "own"), env).returncode == 0
        tables = list(drawn.joinpath("built").rglob("*.parquet"))
        assert sorted(hub.uploads) == sorted({p.read_bytes(): p.stat().st_size for p in tables}.values())
        assert hub.drop_after is None
        repository = hub.repositories["datasets", "someone/own"]
        assert len(repository.commits) == 2 and len(repository.at("main")[1]) == len(tables) + 5 + 6
        assert run(command(drawn, "own"), env).returncode == 0
        assert len(repository.commits) == 2 and len(hub.uploads) == len({p.read_bytes() for p in tables})


def test_a_private_set_is_for_its_owners_and_as_good_as_the_folder(drawn, hub, tmp_path):
    main([*command(drawn, "org/secret", "--private")[3:]])
    whole = {"repo_id": "org/secret", "repo_type": "dataset", "cache_dir": tmp_path / "hub"}
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download(**whole, token=False)
    downloaded, instructions = read_tables(snapshot_download(**whole))
    local, same = read_tables(drawn / "built")
    assert instructions == same and downloaded.classes == local.classes
    assert [s.image_id for s in downloaded.scenes] == [s.image_id for s in local.scenes]


PUSH = """
import json, sys
from datasets_scripts.builders import CoraTables
from tests.test_push import rows_of
for name in ("scenes", "instructions"):
    builder = CoraTables(config_name=name, data_dir=sys.argv[1])
    builder.download_and_prepare()
    builder.as_dataset().push_to_hub("org/ours", config_name=name)
print(json.dumps(rows_of("org/ours")))
"""


def test_what_the_builder_makes_goes_up_by_the_library_alone(drawn, hub, tmp_path):
    result = run([sys.executable, "-c", PUSH, str(drawn / "data")], environment(hub.address, tmp_path / "home", RIGHT))
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == rows_of(str(drawn / "built"))


def test_the_card_has_statistics_a_licence_and_pictures_that_load(drawn, hub, tmp_path):
    """Numbers counted again from the rows; pictures as the Hub shows them."""
    out = tmp_path / "licensed"
    main([*command(drawn, "org/shown", "--license", "cc-by-4.0", "--out", str(out))[3:]])
    files = hub.repositories["datasets", "org/shown"].content()
    card_ = DatasetCard(files["README.md"].decode())
    assert (card_.data.license, card_.data.language, card_.data.task_categories) == (
        "cc-by-4.0", "en", ["image-segmentation"],
    )  # fmt: skip
    _, instructions = read_tables(out)
    assert f"| instructions | {len(instructions)} |" in re.sub(" +", " ", card_.text)
    for kind in {i.kind for i in instructions}:
        count = sum(i.kind == kind for i in instructions)
        assert f"| kind: {kind} | {count} |" in re.sub(" +", " ", card_.text)
    shown = re.findall(r"!\[[^]]*\]\((preview/\d+\.jpg)\)", card_.text)
    assert len(shown) == 6 and set(shown) == {name for name in files if name.startswith("preview/")}
    orange = 0
    for name in shown:
        pixels = np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")).astype(int)
        orange += bool((abs(pixels - (213, 94, 0)).sum(-1) < 60).any())
    assert orange == 6  # each has its target's outline
    queries = {i.query for i in instructions}
    captions = re.findall(r"\| ([^|]+?) \((?:semantic|attribute|conditional)[^)]*\)", card_.text)
    assert captions and set(captions) <= queries
    assert {i.kind for i in instructions} == set(re.findall(r"\((semantic|attribute|conditional)\b", card_.text))


def test_class_names_are_never_html_in_the_card(tmp_path):
    name = "<script>x</script> | ![p](http://there/p.png)"
    scenes = SceneSet((SemanticClass(0, name),), (Scene("a", tmp_path, None, None, "train"),))
    text = card(name, scenes, [Instruction("a", "semantic", name, name, "It is [SEG].")])
    assert not re.search(r"<script|(?<!\\)!\[", DatasetCard(text).text)
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (0, 3) for line in DatasetCard(text).text.splitlines())


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("", "org/a", "org/a: no token; set HF_TOKEN"),
        ("hf_wrong", "org/a", "org/a: the Hub does not accept the token"),
        (RIGHT, "else/a", "else/a: the token may not write there (You don't have the rights"),
        (RIGHT, "a b", "a b: not a name such as organisation/name"),
        (RIGHT, "NOWHERE", "org/a: no connection to http://127.0.0.1:9"),
    ],
)
def test_refusals_take_one_line_and_come_before_the_work(
    drawn, hub, tmp_path, monkeypatch, capsys, token, name, message
):
    monkeypatch.setenv("HF_TOKEN", token)
    if name == "NOWHERE":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stopped:
        main([*command(drawn, name.replace("NOWHERE", "org/a"))[3:], "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and not hub.repositories
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}") and not (tmp_path / "out").exists()


def test_an_upload_that_fails_says_how_to_go_on(drawn, hub):
    with pytest.raises(HubError, match=r"someone/gone: .*no such repository.*built is whole, the same command goes on"):
        push(drawn / "built", "someone/gone")


def test_nobody_ever_loads_tables_of_two_sets(drawn, hub, monkeypatch):
    """Where hf_xet is there, `upload_folder` cuts an upload into commits, with old tables beside new ones."""

    def in_parts(*arguments, **options):
        raise AssertionError("several commits")

    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: True)
    monkeypatch.setattr("huggingface_hub._upload_pipeline.pipelined_upload", in_parts)
    main([*command(drawn, "org/whole")[3:]])
    assert len(hub.repositories["datasets", "org/whole"].commits) == 2


STREAM = """
import json
import datasets, numpy, psutil
resident = psutil.Process().memory_info
start, most, seen = None, 0, []
for row in datasets.load_dataset("org/large", "scenes", split="train", streaming=True):
    start = start or resident().rss
    most = max(most, resident().rss)
    seen.append([row["image_id"], int(numpy.asarray(row["image"]).sum())])
print(json.dumps({"growth": most - start, "rows": seen}))
"""


def test_streaming_needs_memory_for_a_few_rows_only(tmp_path):
    """40 tables of 4 MB each: what is held at a time is a small part of them."""
    rng, expected = np.random.default_rng(0), []
    folder = tmp_path / "large"
    for shard in range(40):
        table = []
        for row in range(2):
            pixels, content = rng.integers(0, 256, (832, 832, 3), dtype=np.uint8), io.BytesIO()
            Image.fromarray(pixels).save(content, "BMP")
            expected.append([f"{shard}-{row}", int(pixels.sum())])
            image = {"bytes": content.getvalue(), "path": None}
            empty = dict.fromkeys(SCENE_FEATURES)
            table.append({**empty, "image_id": expected[-1][0], "image": image, "labelled": False, "facts": "{}"})
        write_table(folder / "scenes" / f"train-{shard:05d}-of-00040.parquet", table, SCENE_FEATURES)
    scenes = SceneSet((), tuple(Scene(name, folder, None, None, "train") for name, _ in expected))
    (folder / "README.md").write_text(card("large", scenes, []))
    total = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    with LocalHub() as hub:
        hub.serve("datasets", "org/large", folder)
        result = run([sys.executable, "-c", STREAM], environment(hub.address, tmp_path / "home", None))
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["rows"] == expected and total > 160e6
    assert found["growth"] < total / 4
