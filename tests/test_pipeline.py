"""`pipeline("reasoning-segmentation")`: every form of input gives what `segment` gives, in as few passes as it says."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import pipeline

from modeling_cora import CoraForReasoningSegmentation, CoraProcessor, ReasoningSegmentationPipeline
from modeling_cora.images import ImageError
from modeling_cora.segmentation import segment

from .conftest import noise_image
from .vlm_families import FAMILIES, build

QUERIES = ["the road", "the vehicle with four wheels", "the tree"]


@pytest.fixture
def pipe(tiny):
    model, processor = tiny
    return pipeline("reasoning-segmentation", model=model, processor=processor, device="cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images a.png, b.png, c.png of three sizes."""
    for index, name in enumerate("abc"):
        noise_image(40 + 10 * index, 30, index).save(tmp_path / f"{name}.png")
    return tmp_path


def check(rows, pipe, image, queries):
    """One dict per query, and what `segment` says."""
    expected = segment(pipe.model, pipe.processor, image, queries)
    assert [list(row) for row in rows] == [["query", "mask", "score", "text"]] * len(queries)
    assert [row["query"] for row in rows] == queries
    for row, mask, score in zip(rows, expected.masks.numpy(), expected.scores.tolist(), strict=True):
        assert isinstance(row["mask"], np.ndarray) and row["mask"].dtype == bool
        assert row["mask"].shape == (image.height, image.width)
        # alone or beside larger images: the same but for pixels whose logit is 0 to the last digit
        assert (row["mask"] != mask).mean() < 1e-3
        assert isinstance(row["score"], float) and row["score"] == pytest.approx(score, abs=1e-5)
        assert row["text"] == "It is [SEG]."


def test_one_image_in_every_form(pipe, folder):
    image = noise_image(40, 30, 0)
    assert isinstance(pipe, ReasoningSegmentationPipeline)
    for source in (image, folder / "a.png", str(folder / "a.png")):
        check(pipe(source, "the road"), pipe, image, ["the road"])
        check(pipe(source, QUERIES), pipe, image, QUERIES)
        check(pipe({"image": source, "queries": QUERIES}), pipe, image, QUERIES)
        check(pipe({"image": source, "queries": "the road", "scene": 7}), pipe, image, ["the road"])


def test_an_image_by_its_url(pipe, folder):
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        check(pipe(f"{address}/b.png", QUERIES), pipe, noise_image(50, 30, 1), QUERIES)
        with pytest.raises(ImageError, match="404"):
            pipe(f"{address}/d.png", QUERIES)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_images_in_every_form(pipe, folder, batch_size):
    items = [
        {"image": str(folder / f"{name}.png"), "queries": QUERIES[:n]} for name, n in zip("abc", (2, 3, 1), strict=True)
    ]
    images = [noise_image(40 + 10 * k, 30, k) for k in range(3)]

    class Scenes(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return items[index]

    for source in (items, tuple(items), iter(items), (item for item in items), map(dict, items), Scenes()):
        results = pipe(source, batch_size=batch_size)
        assert isinstance(results, list) == isinstance(source, list | tuple)
        for rows, image, item in zip(results, images, items, strict=True):
            check(rows, pipe, image, item["queries"])
    same_queries = pipe([item["image"] for item in items], QUERIES[:2], batch_size=batch_size)
    for rows, image in zip(same_queries, images, strict=True):
        check(rows, pipe, image, QUERIES[:2])
    assert pipe([], "the road", batch_size=batch_size) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_batches(family):
    """Their vision inputs are batched in different ways."""
    model, processor = build(family)
    pipe = pipeline("reasoning-segmentation", model=model, processor=processor, device="cpu")
    items = [{"image": noise_image(40 + 30 * k, 60, k), "queries": QUERIES[: k + 1]} for k in range(2)]
    for rows, item in zip(pipe(items, batch_size=2), items, strict=True):
        check(rows, pipe, item["image"], item["queries"])
    answers = pipe(items, batch_size=2, generate=True, max_new_tokens=3)
    assert [{row["query"] for row in rows} for rows in answers] == [set(QUERIES[:1]), set(QUERIES[:2])]


@pytest.mark.parametrize(("batch_size", "passes"), [(1, 4), (2, 2), (4, 1)])
def test_a_batch_is_one_pass(pipe, batch_size, passes):
    calls = {"language": 0, "sam": 0}

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    pipe.model.vlm.base_model.language_model.register_forward_hook(count("language"))
    pipe.model.sam.vision_encoder.register_forward_hook(count("sam"))
    items = [{"image": noise_image(40, 30, k), "queries": QUERIES} for k in range(4)]
    assert len(pipe(items, batch_size=batch_size)) == 4
    assert calls == {"language": passes, "sam": passes}


def test_many_queries_are_split_over_passes(pipe):
    calls = []
    pipe.model.vlm.base_model.language_model.register_forward_hook(lambda *_: calls.append(1))
    items = [{"image": noise_image(40, 30, k), "queries": QUERIES[: k + 1]} for k in range(3)]
    for rows, item in zip(pipe(items, batch_size=3, queries_per_pass=2), items, strict=True):
        check(rows, pipe, item["image"], item["queries"])
    assert len(calls) == 2 + 3  # of the pipeline, and of `check`


def test_streams_read_no_further_than_needed(pipe):
    read = []

    def scenes():
        for k in range(100):
            read.append(k)
            yield {"image": noise_image(40, 30, k), "queries": "the road"}

    results = pipe(scenes(), batch_size=2)
    next(iter(results))
    assert len(read) <= 6


def test_threshold_is_of_the_logit_and_options_may_be_given_once(tiny):
    model, processor = tiny
    image = noise_image(40, 30)
    pipe = pipeline("reasoning-segmentation", model=model, processor=processor, threshold=1e9, device="cpu")
    assert not pipe(image, "the road")[0]["mask"].any()
    assert pipe(image, "the road", threshold=-1e9)[0]["mask"].all()
    check(pipe(image, "the road", threshold=0.0), pipe, image, ["the road"])
    with pytest.raises(TypeError, match="treshold"):
        pipe(image, "the road", treshold=0.0)


def says(processor, answers):
    """Makes `generate` say `answers` (token ids), one for each row."""
    length = []

    def allowed(row, ids):
        length.append(len(ids))
        answer = answers[row]
        said = len(ids) - length[0]
        return [answer[said] if said < len(answer) else processor.tokenizer.convert_tokens_to_ids("</s>")]

    return {"prefix_allowed_tokens_fn": allowed}


def test_generated_answers_have_none_one_or_several_masks(pipe):
    seg = pipe.model.config.seg_token_id
    words = pipe.processor.tokenizer.encode(" road", add_special_tokens=False)
    answers = [[*words, seg, *words, seg], words, [*words, seg]]
    image = noise_image(40, 30)
    rows = pipe(image, QUERIES, generate=True, max_new_tokens=12, generate_kwargs=says(pipe.processor, answers))
    text = "".join(["road", "[SEG]", " road", "[SEG]"])
    assert [row["query"] for row in rows] == [QUERIES[0], QUERIES[0], QUERIES[1], QUERIES[2]]
    assert [row["text"].replace(" ", "") for row in rows] == [text.replace(" ", "")] * 2 + ["road", "road[SEG]"]
    assert rows[2]["mask"] is None and rows[2]["score"] is None
    # the second look: the same tokens through `forward`
    processor, k = pipe.processor, 0
    for query, answer in zip(QUERIES, answers, strict=True):
        inputs = processor(image, [[query]], generate=True)
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
        owner = torch.cat([inputs["branch_ids"], torch.ones(1, len(answer), dtype=torch.int64)], 1)
        with torch.no_grad():
            out = pipe.model(ids, owner, inputs["pixel_values"], inputs["sam_pixel_values"])
        (masks,) = processor.post_process_masks(
            out.pred_masks, out.seg_batch_index, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        for mask, score in zip(masks.numpy(), out.iou_scores.clamp(0, 1).tolist(), strict=True):
            assert rows[k]["mask"].shape == (30, 40) and (rows[k]["mask"] != mask).mean() < 1e-3
            assert rows[k]["score"] == pytest.approx(score, abs=1e-5)
            k += 1
        k += not len(masks)
    assert k == len(rows)


def test_answers_end_where_the_template_ends_them(pipe):
    """The tokenizer and the model may name another token as their last."""
    processor, other = pipe.processor, "<unk>"
    seg, words = pipe.model.config.seg_token_id, processor.tokenizer.encode(" road", add_special_tokens=False)
    learned = processor(noise_image(40, 30), "the road")["labels"]
    assert learned[0, -1] == processor.tokenizer.convert_tokens_to_ids("</s>")
    processor.tokenizer.eos_token = other
    pipe.model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(other)
    (row,) = pipe(noise_image(40, 30), "the road", generate=True, generate_kwargs=says(processor, [[*words, seg]]))
    assert row["text"].replace(" ", "") == "road[SEG]"


def test_generated_answers_of_a_batch(pipe):
    seg = pipe.model.config.seg_token_id
    words = pipe.processor.tokenizer.encode(" road", add_special_tokens=False)
    items = [{"image": noise_image(40 + k, 30, k), "queries": QUERIES[: k + 1]} for k in range(2)]
    answers = says(pipe.processor, [words, [*words, seg], [*words, seg, seg]])
    results = pipe(items, batch_size=2, generate=True, generate_kwargs=answers)
    assert [[row["mask"] is None for row in rows] for rows in results] == [[True], [False, False, False]]
    assert [row["query"] for row in results[1]] == [QUERIES[0], QUERIES[1], QUERIES[1]]
    alone = says(pipe.processor, [[*words, seg], [*words, seg, seg]])
    for row, expected in zip(results[1], pipe(items[1], generate=True, generate_kwargs=alone), strict=True):
        assert row["mask"].shape == (30, 41) and (row["mask"] != expected["mask"]).mean() < 1e-3
        assert row["score"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("inputs", "queries", "error", "message"),
    [
        ({"image": "a.png"}, None, ValueError, "queries: a text or a list"),
        ({"queries": "the road"}, None, ValueError, "'image': ..., 'queries'"),
        ("a.png", [], ValueError, "queries: a text or a list"),
        ("a.png", [["the road"]], ValueError, "queries: a text or a list"),
        ("a.png", ["the road", " "], ValueError, "empty query"),
        ("no.png", "the road", ImageError, "no such file"),
        ([3], "the road", TypeError, "not int"),
        (3, "the road", TypeError, "not int"),
    ],
)
def test_bad_input_gets_one_line(pipe, folder, monkeypatch, inputs, queries, error, message):
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=message) as caught:
        pipe(inputs, queries)
    assert "\n" not in str(caught.value)


def test_from_folders_names_and_objects(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = noise_image(40, 30)
    made = pipeline("reasoning-segmentation", model=tiny[0], processor=tiny[1], device="cpu")
    made.save_pretrained("cora-7b")
    loaded = CoraForReasoningSegmentation.from_pretrained("cora-7b")
    for pipe in (
        pipeline("reasoning-segmentation", model="cora-7b"),
        pipeline("reasoning-segmentation", model=loaded),
        pipeline(model="cora-7b", task="reasoning-segmentation", local_files_only=True),
        ReasoningSegmentationPipeline.from_pretrained("cora-7b", device="cpu"),
    ):
        assert type(pipe) is ReasoningSegmentationPipeline and type(pipe.processor) is CoraProcessor
        assert np.array_equal(pipe(image, "the road")[0]["mask"], made(image, "the road")[0]["mask"])
    with pytest.raises(ValueError, match="processor: not given"):
        pipeline("reasoning-segmentation", model=tiny[0])
