"""SAM's embeddings on disk: the same losses, a budget that holds, processes that share a folder, broken files."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import SamConfig, SamModel, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from datasets_scripts.command_line import UsageError
from trainers.arguments import EmbeddingCacheArguments
from trainers.consistency_weights import ConsistencyArguments, write_weights
from trainers.embedding_cache import EmbeddingCache, add_embedding_cache, refuse_sharded_weights
from trainers.evaluate import EvaluationArguments, run_evaluation
from trainers.stage1 import main as stage1
from trainers.stage3 import main as stage3
from trainers.steps import Step, StepFolders
from trainers.trained_parts import PARTS

from .test_stage1 import history, largest_difference, options
from .test_stage3 import RECIPE, pseudo, second_stage, street, weights, without_sizes  # noqa: F401  (fixtures)

FROZEN = ["--lora_r", "0", "--trained_parts", *(part for part in PARTS if part != "sam_encoder")]


class SmallSam(SamModel):
    """A SAM whose encoder has few weights."""

    def __init__(self, **changes):
        vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 8, "image_size": 32,
                  "output_channels": 8, "global_attn_indexes": [0], **changes}  # fmt: skip
        torch.manual_seed(0)
        super().__init__(SamConfig(vision_config=SamVisionConfig(**vision)))


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """What the caches of these tests hold: any function will do that is not the same for two images."""
    return (pixels[:2] * 3 + pixels.mean()).contiguous()


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 8, 8, generator=generator) for _ in range(count)]


def files(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.safetensors")}


def bytes_of_one(folder: Path) -> int:
    cache = EmbeddingCache(folder, SmallSam(), 10**9)
    cache(images(1)[0], encode)
    (path,) = folder.iterdir()
    return path.stat().st_size


@pytest.fixture
def passes() -> Iterator[list[int]]:
    """As many entries as images have gone through SAM's encoder."""
    found: list[int] = []

    def count(module, args, output):
        if isinstance(module, SamVisionEncoder):
            found.extend([1] * len(output[0]))

    handle = register_module_forward_hook(count)
    yield found
    handle.remove()


def same_trainings(train, tmp_path: Path, passes: list[int]) -> list[int]:
    """Without, cold and warm: equal to the bit. Returns how often each encoded."""
    counts = []
    for name in ("without", "cold", "warm"):
        passes.clear()
        train(tmp_path / name, [] if name == "without" else ["--embedding_cache", str(tmp_path / "cache")])
        counts.append(len(passes))
    logs = [[{k: v for k, v in entry.items() if "loss" in k} for entry in history(tmp_path / name)[:4]]
            for name in ("without", "cold", "warm")]  # fmt: skip
    assert len(logs[0]) == 4 and logs[0] == logs[1] == logs[2]
    for name in ("cold", "warm"):
        assert largest_difference(tmp_path / "without", tmp_path / name) == 0.0
    return counts


def test_stage_1_is_the_same_to_the_bit(street, tmp_path, passes, capsys):  # noqa: F811
    def train(out, cache):
        stage1([*options(street, out), *FROZEN, *cache])

    # 4 steps of 2 images, of 3 scenes
    assert same_trainings(train, tmp_path, passes) == [8, 3, 0]
    found = re.findall(r"embedding_cache: (\d+) embeddings found, (\d+) computed", capsys.readouterr().out)
    assert found == [("5", "3"), ("8", "0")]
    assert not list((tmp_path / "cache").glob("*.partial")) and len(files(tmp_path / "cache")) == 3


@pytest.mark.parametrize("hidden", [False, True], ids=["readable", "not readable"])
def test_a_file_of_another_user_is_used_where_it_can_be_read(tmp_path, monkeypatch, hidden):
    """Its time cannot be set, and whether it can be read depends on their umask."""
    image = images(1)[0]
    expected = EmbeddingCache(tmp_path, SmallSam(), 10**9)(image, encode)
    cache = EmbeddingCache(tmp_path, SmallSam(), 10**9)

    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    if hidden:
        monkeypatch.setattr(Path, "read_bytes", refuse)
    assert torch.equal(cache(image, encode), expected)
    assert (cache.found, cache.encoded) == ((0, 1) if hidden else (1, 0))


@pytest.mark.slow
def test_stage_3_is_the_same_to_the_bit(street, pseudo, weights, second_stage, tmp_path, passes):  # noqa: F811
    def train(out, cache):
        given = dict(model=second_stage, pseudo_labels=pseudo, consistency_weights=weights, flip=0.5, crop=0,
                     colour_jitter=0, consistency="online", save_total_limit=9)  # fmt: skip
        stage3([RECIPE, *without_sizes(options(street, out, **given)), *FROZEN, *cache])

    without, cold, warm = same_trainings(train, tmp_path, passes)
    # 4 steps of 2 labelled and 2 unlabelled images; 3 scenes of each kind, seen from two sides
    assert without == 16 and cold == len(files(tmp_path / "cache")) and 6 <= cold <= 12 and warm == 0


def test_evaluation_and_consistency_weights_encode_once(street, pseudo, second_stage, tmp_path, passes):  # noqa: F811
    caching = EmbeddingCacheArguments(embedding_cache=str(tmp_path / "cache"))
    summaries, variances = [], []
    for number, own in enumerate((None, caching, caching)):
        passes.clear()
        summaries.append(run_evaluation(EvaluationArguments(model=str(second_stage), data=str(street)), own))
        out = tmp_path / f"weights{number}"
        write_weights(
            ConsistencyArguments(
                model=str(second_stage), data=str(street), pseudo_labels=str(pseudo), out=str(out), rephrasings=2
            ),
            own,
        )
        variances.append({path.name: load_file(path)["variance_levels"] for path in sorted(out.glob("*.safetensors"))})
        assert len(passes) == (0 if number == 2 else 1 + 3)
    assert summaries[0] == summaries[1] == summaries[2]
    for name, variance in variances[0].items():
        assert torch.equal(variance, variances[1][name]) and torch.equal(variance, variances[2][name])
    assert all("cache" not in (tmp_path / f"weights{k}" / "meta.json").read_text() for k in (1, 2))


def test_an_embedding_does_not_depend_on_its_batch(tiny):
    model = tiny[0].requires_grad_(False)
    pixels = torch.randn(3, 3, 128, 128)
    together = model.get_image_embeddings(pixels)
    assert all(torch.equal(together[k], model.get_image_embeddings(pixels[k : k + 1])[0]) for k in range(3))
    torch.testing.assert_close(together, model.sam.vision_encoder(pixels)[0], rtol=1e-4, atol=1e-4)


def test_float16_halves_the_room_and_is_the_same_cold_and_warm(tmp_path):
    sam, (image,) = SmallSam(), images(1)
    exact, half = (EmbeddingCache(tmp_path / name, sam, 10**9, name == "half") for name in ("exact", "half"))
    given = [exact(image, encode), half(image, encode)]
    assert torch.equal(given[0], encode(image)) and torch.equal(given[1], encode(image).half().float())
    for cache, first in ((exact, given[0]), (half, given[1])):
        again = cache(image, lambda _: pytest.fail("encoded again"))
        assert torch.equal(again, first) and again.dtype == torch.float32
    sizes = [next((tmp_path / name).iterdir()).stat().st_size for name in ("exact", "half")]
    assert sizes[0] - sizes[1] == encode(image).numel() * 2
    # whoever wants it exact never gets the rounded one
    assert exact.key(image) != half.key(image)


def test_the_key_is_of_all_that_an_embedding_depends_on(tmp_path):
    def key(sam: SamModel, pixels: torch.Tensor) -> str:
        return EmbeddingCache(tmp_path, sam, 10**9).key(pixels)

    image = images(1)[0]
    first = key(SmallSam(), image)
    assert first == key(SmallSam(), image.clone()) and re.fullmatch("[0-9a-f]{64}", first)
    other = image.clone()
    other[2, 7, 7] = torch.nextafter(other[2, 7, 7], torch.tensor(9.0))
    changed = SmallSam()
    changed.vision_encoder.neck.conv2.weight.data[0, 0, 0, 0] += 1e-6
    decoder = SmallSam()
    decoder.mask_decoder.iou_token.weight.data += 1
    assert key(decoder, image) == first
    with torch.autocast("cpu", torch.bfloat16):
        autocast = key(SmallSam(), image)
    keys = [first, autocast, key(SmallSam(), other), key(changed, image), key(SmallSam(window_size=2), image),
            key(SmallSam(), image.bfloat16()), key(SmallSam(), image.view(3, 4, 16))]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_the_least_recently_used_make_room(tmp_path):
    """Against a list of names in the order of their last use."""
    size = bytes_of_one(tmp_path / "one")
    folder, sam, room = tmp_path / "cache", SmallSam(), 5
    cache = EmbeddingCache(folder, sam, int((room + 0.5) * size))
    for name in ("model.safetensors", "notes.txt"):
        (folder / name).write_text("mine")
    pictures, expected, encoded = images(9), OrderedDict(), 0
    for which in np.random.default_rng(0).integers(9, size=150).tolist():
        key = cache.key(pictures[which])
        assert torch.equal(cache(pictures[which], encode), encode(pictures[which]))
        encoded += key not in expected
        expected[key] = None
        expected.move_to_end(key)
        while len(expected) > room:
            expected.popitem(last=False)
        assert files(folder) - {"model"} == set(expected)
    assert cache.encoded == encoded and cache.found == 150 - encoded and 20 < encoded < 130
    assert (folder / "notes.txt").exists() and (folder / "model.safetensors").read_text() == "mine"


def test_a_large_budget_is_kept_without_looking_at_every_file_each_time(tmp_path, monkeypatch):
    size = bytes_of_one(tmp_path / "one")
    looks = []
    original = EmbeddingCache._files
    monkeypatch.setattr(EmbeddingCache, "_files", lambda self: looks.append(1) or original(self))
    cache = EmbeddingCache(tmp_path / "cache", SmallSam(), 301 * size)
    for picture in images(400):
        cache(picture, encode)
        assert len(files(cache.folder)) <= 301
    # 3 files are a hundredth of the budget
    assert len(looks) == pytest.approx(400 / 3, abs=1) and 297 <= len(files(cache.folder)) <= 300


def test_a_budget_below_one_embedding_is_told(tmp_path):
    with pytest.raises(UsageError, match="embedding_cache_gigabytes: 1e-07 is less than one embedding"):
        EmbeddingCache(tmp_path, SmallSam(), 100)(images(1)[0], encode)


def test_what_a_killed_process_left_goes_first(tmp_path):
    size = bytes_of_one(tmp_path / "one")
    cache = EmbeddingCache(tmp_path / "cache", SmallSam(), int(2.5 * size))
    old, new = (cache.folder / f"{'ab' * 32}.{digit * 32}.partial" for digit in "01")
    for path in (old, new):
        path.write_bytes(bytes(size))
    os.utime(old, (1, 1))
    pictures = images(2)
    for picture in pictures:
        cache(picture, encode)
    assert not old.exists() and new.exists()  # which somebody may be writing
    assert files(cache.folder) == {cache.key(picture) for picture in pictures}


def test_whatever_is_no_whole_file_of_that_key_is_written_anew(tmp_path):
    cache, (image, other) = EmbeddingCache(tmp_path, SmallSam(), 10**9), images(2)
    for picture in (image, other):
        cache(picture, encode)
    path, foreign = (tmp_path / f"{cache.key(picture)}.safetensors" for picture in (image, other))
    whole = path.read_bytes()
    for broken in (b"", whole[:5], whole[:40], whole[:-1], whole[:-100], b"\xff" * len(whole), foreign.read_bytes()):
        path.write_bytes(broken)
        before = cache.encoded
        assert torch.equal(cache(image, encode), encode(image)) and cache.encoded == before + 1
        assert path.read_bytes() == whole
    assert torch.equal(cache(image, lambda _: pytest.fail("encoded again")), encode(image))


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    cache, image = EmbeddingCache(tmp_path, SmallSam(), 10**9), images(1)[0]

    def full(self, content):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert torch.equal(cache(image, encode), encode(image)) and not list(tmp_path.iterdir())


def share(folder: str, budget: int, seed: int, barrier, failures) -> None:
    """One of the processes that use a folder at once, in an order of its own."""
    torch.set_num_threads(1)
    cache, pictures = EmbeddingCache(folder, SmallSam(), budget), images(12)
    barrier.wait()
    for which in np.random.default_rng(seed).integers(12, size=200).tolist():
        if not torch.equal(cache(pictures[which], encode), encode(pictures[which])):
            failures.put(which)
    failures.put(("encoded", cache.encoded))


@pytest.mark.slow
def test_two_processes_share_a_folder(tmp_path):
    """Room for half of the images, so that they write, read and remove the same files all the time."""
    size, folder = bytes_of_one(tmp_path / "one"), tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(2), context.Queue()
    budget = int(6.5 * size)
    processes = [context.Process(target=share, args=(str(folder), budget, k, barrier, failures)) for k in range(2)]
    for process in processes:
        process.start()
    told = [failures.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0] and failures.empty()
    assert all(name == "encoded" and 12 < count < 200 for name, count in told), told
    names = [path.name for path in folder.iterdir()]
    assert all(name.endswith(".safetensors") for name in names) and 1 <= len(names) <= 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--embedding_cache", "CACHE"], "SAM's encoder is trained"),
        (["--embedding_cache", "FILE", *FROZEN], "no folder can be made there"),
        (["--embedding_cache", "CACHE", "--embedding_cache_gigabytes", "0"], "embedding_cache_gigabytes: 0.0"),
        (
            ["--embedding_cache", "CACHE", "--embedding_cache_precision", "int8"],
            "invalid choice: 'int8' (choose from 'exact', 'float16')",
        ),
    ],
)
def test_bad_input_gets_one_line(street, tmp_path, capsys, changes, message):  # noqa: F811
    (tmp_path / "file").write_text("")
    places = {"CACHE": str(tmp_path / "cache"), "FILE": str(tmp_path / "file")}
    with pytest.raises(SystemExit) as stopped:
        stage1([*options(street, tmp_path / "out"), *(places.get(word, word) for word in changes)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_sharded_weights_are_refused(sharded):
    trainer = SimpleNamespace(is_fsdp_enabled=sharded)
    with pytest.raises(UsageError, match="FSDP") if sharded else nullcontext():
        refuse_sharded_weights(trainer)


def test_views_that_are_never_seen_again_are_told_once(street, tmp_path, capsys):  # noqa: F811
    cache = ["--embedding_cache", str(tmp_path / "cache")]
    stage1([*options(street, tmp_path / "out", colour_jitter=0.3, max_steps=1), *FROZEN, *cache])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "embedding_cache" in line]
    assert len(warnings) == 1 and "colour_jitter 0.3" in warnings[0]
    record = (tmp_path / "out" / "training.json").read_text()
    assert str(tmp_path) not in record and '"embedding_cache_precision": "exact"' in record


def test_none_is_asked_for_by_default(tiny, tmp_path):
    assert add_embedding_cache(tiny[0], EmbeddingCacheArguments()) is None and tiny[0].embedding_cache is None
    # and a run's steps are the same steps with one
    given = {"embedding_cache": str(tmp_path), "embedding_cache_gigabytes": 3}
    folders, plain = StepFolders(tmp_path), Step("one", "any", {})
    assert folders.folder(Step("one", "any", given)) == folders.folder(plain)
    assert folders.folder(Step("one", "any", {"embedding_cache_precision": "float16"})) != folders.folder(plain)
