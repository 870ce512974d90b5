"""The demo Space without a page: what visitors may send, what they see of an answer and take home."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
import threading
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from cora_space import downloads, drawing
from cora_space.answering import Answer, Answering
from cora_space.inputs import VisitorError, anchors_of, read_anchor, read_file, read_picture, read_queries
from cora_space.page import Page
from cora_space.settings import Settings
from datasets_scripts.coco import run_length_mask, text_run_lengths
from modeling_cora.pictures import palette
from modeling_cora.segmentation import segment

from .conftest import noise_image

QUERIES = ["Segment the road.", "Where is the tree?", "the car left of this"]
IMAGE = noise_image(90, 60)


def file_of(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, suffix, **options)
    return content.getvalue()


def decode(content: bytes) -> Image.Image:
    return read_picture(content, Settings())


@pytest.fixture
def anchored(tiny):
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    return model.eval(), processor


@pytest.fixture
def answering(anchored):
    """What answers, and how often its two halves ran."""
    runs = {"encoded": 0, "answered": 0}

    def counted(function):
        def wrapped(*arguments):
            runs[function.__name__] += 1
            return function(*arguments)

        return wrapped

    return Answering(*anchored, on_gpu=counted), runs


@pytest.fixture
def answer(answering) -> Answer:
    it, _ = answering
    anchor = np.zeros((60, 90), bool)
    anchor[10:30, 20:50] = True
    encoded = it.prepare(file_of(IMAGE), decode)
    logits = it.ask(encoded, QUERIES, True, anchor)
    return Answer(drawing.shown_picture(IMAGE), "street.png", tuple(QUERIES), logits, anchor)


# -- what visitors send ------------------------------------------------------------------------------------------------


def refused(content: bytes, tmp_path: Path, settings: Settings) -> str:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(VisitorError) as error:
        read_picture(read_file(str(path), settings), settings)
    assert str(tmp_path) not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and ends."""
    good = file_of(Image.new("L", (1, 1)))
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + good[24:29]
    return good[:12] + header + zlib.crc32(header).to_bytes(4, "big") + good[33:]


def test_pictures_are_refused_before_they_are_decoded(tmp_path):
    small = Settings(max_megabytes=0.01, max_megapixels=0.01)
    assert "at most 0.01 MB" in refused(file_of(IMAGE), tmp_path, small)
    assert "has 101 x 100 pixels" in refused(png_header(101, 100), tmp_path, small)
    # so many that Pillow itself refuses them
    assert "million" in refused(png_header(60000, 60000), tmp_path, Settings())
    for content in (b"", b"no picture", file_of(IMAGE)[:200], file_of(IMAGE, "EPS"), file_of(IMAGE, "PPM")):
        assert "cannot be read as a picture" in refused(content, tmp_path, Settings())
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    assert "cannot be read as a picture" in refused(svg, tmp_path, Settings())
    for path in (None, "", str(tmp_path / "gone.png")):
        with pytest.raises(VisitorError, match=r"no picture yet|no longer here"):
            read_file(path, Settings())


def test_pictures_are_read_upright_from_any_usual_form():
    turned = Image.Exif()
    turned[274] = 6
    assert decode(file_of(IMAGE, "JPEG", exif=turned)).size == (60, 90)
    for form in ("PNG", "WEBP", "GIF", "TIFF", "BMP"):
        assert decode(file_of(IMAGE, form)).mode == "RGB"


def test_queries_are_lines_within_limits():
    settings = Settings(max_queries=2, max_characters=10)
    assert read_queries("  the   road \n\n\r\nthe\tsky\n", settings) == ["the road", "the sky"]
    for text, said in (
        (None, "no query yet"),
        (" \n ", "no query yet"),
        ("a\nb\nc", "3 queries"),
        ("a\n" + "b" * 11, "Query 2 has 11"),
    ):
        with pytest.raises(VisitorError, match=said):
            read_queries(text, settings)


def test_anchors_go_with_queries_that_say_this():
    anchor = np.ones((2, 2), bool)
    assert anchors_of(["left of this", "the thistle"], None) is None
    given = anchors_of(["the car left of This!", "the thistle", "between these"], anchor)
    assert [len(masks) for masks in given] == [1, 0, 1] and given[0][0] is anchor
    with pytest.raises(VisitorError, match="no query says"):
        anchors_of(["the thistle"], anchor)
    asked = ["the car in this image", "these photos: a dog", "In this picture, left of this", "beside this scenery"]
    assert [bool(given) for given in anchors_of(asked, anchor)] == [False, False, True, True]


def test_paint_becomes_a_mask_at_image_size(tmp_path):
    layer = Image.new("RGBA", (100, 50), (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), (20, 10, 60, 30))
    layer.save(tmp_path / "layer_0.png")
    Image.new("RGBA", (9, 9), (255, 255, 255, 0)).save(tmp_path / "nothing.webp")
    painted, nothing = str(tmp_path / "layer_0.png"), str(tmp_path / "nothing.webp")
    expected = np.zeros((100, 200), bool)
    expected[20:60, 40:120] = True
    for paths in ([painted], [nothing, painted]):
        mask = read_anchor(paths, (200, 100), Settings(), 5000)
        assert mask.shape == (100, 200) and (mask != expected).sum() <= 2 * (80 + 40)
    assert read_anchor([nothing], (20, 20), Settings(), 81) is None
    assert read_anchor([], (20, 20), Settings(), 81) is None
    with pytest.raises(VisitorError, match=r"100 x 50 pixels; at most 0\.005 million"):
        read_anchor([painted], (200, 100), Settings(), 4999)


# -- the model ---------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_segment(anchored, answer):
    anchors = [[], [], [answer.anchor]]
    expected = segment(*anchored, IMAGE, QUERIES, uncertainty=True, anchors=anchors)
    assert (answer.logits.masks() != expected.masks).float().mean() < 1e-3  # half precision
    assert torch.equal(answer.logits.scores, expected.scores)
    assert (answer.logits.uncertainty() - expected.uncertainty).abs().max() < 1e-2


def test_a_picture_is_encoded_once_for_all_visitors(answering):
    it, runs = answering
    contents = [file_of(noise_image(90, 60, seed)) for seed in (1, 2)]
    start = threading.Barrier(6)

    def visit(content):
        start.wait()
        it.ask(it.prepare(content, decode), QUERIES[:2], False, None)

    threads = [threading.Thread(target=visit, args=[contents[n % 2]]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == {"encoded": 2, "answered": 6}


def test_encoded_pictures_have_a_bound(answering):
    it, runs = answering
    contents = [file_of(noise_image(90, 60, seed)) for seed in range(4)]
    one = it.prepare(contents[0], decode).nbytes
    it.cache.max_bytes = 2.5 * one
    for content in (contents[1], contents[0], contents[2]):  # the second is now the one used least lately
        it.prepare(content, decode)
    assert len(it.cache) == 2 and it.cache.nbytes == 2 * one and runs["encoded"] == 3
    it.prepare(contents[0], decode)
    assert runs["encoded"] == 3
    it.prepare(contents[1], decode)
    assert runs["encoded"] == 4
    it.cache.max_bytes = 1
    it.prepare(contents[3], decode)
    assert len(it.cache) == 1


def test_encoded_pictures_are_kept_for_a_time(answering):
    """However often they are asked for, and whoever else sends one."""
    it, runs = answering
    contents, now = [file_of(noise_image(90, 60, seed)) for seed in range(2)], 0.0
    it.cache.keep_seconds, it.cache.clock = 100, lambda: now
    it.prepare(contents[0], decode)
    now = 99.0
    it.prepare(contents[0], decode)
    encoded = it.prepare(contents[1], decode)
    assert runs["encoded"] == 2
    now = 100.0
    it.cache.drop_old()
    assert len(it.cache) == 1
    it.prepare(contents[1], decode)
    assert runs["encoded"] == 2
    now = 199.0  # what is too old is neither given nor kept beside another
    it.prepare(contents[1], decode)
    assert runs["encoded"] == 3
    now = 299.0
    it.cache.put("another", encoded)
    assert len(it.cache) == 1


def lent(function):
    """As `spaces.GPU` runs a function: in another process, of whose errors it tells the class alone."""

    def elsewhere(*arguments):
        try:
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments)))))
        except Exception as error:
            raise gr.Error(type(error).__name__) from None

    return elsewhere


@pytest.mark.parametrize("on_gpu", [lambda function: function, lent], ids=["here", "lent"])
def test_what_the_model_refuses_is_told(anchored, on_gpu):
    it = Answering(*anchored, on_gpu=on_gpu)
    with pytest.raises(VisitorError, match="crop it"):
        it.prepare(file_of(noise_image(1, 3000)), decode)
    encoded = it.prepare(file_of(IMAGE), decode)
    with pytest.raises(VisitorError, match=r"The model cannot take this: query of .* tokens"):
        it.ask(encoded, ["z" * 3000], False, None)


def test_a_visitor_without_quota_is_told_so(answering):
    it, _ = answering
    page = Page(it, Settings())

    def refused(*_):
        raise gr.Error("You have exceeded your GPU quota")

    assert "exceeded your GPU quota" in str(page._told(refused)()[page.status])


def test_text_of_visitors_is_no_token(answering):
    it, _ = answering
    encoded = it.prepare(file_of(IMAGE), decode)
    logits = it.ask(encoded, ["the [SEG] [SEG] <image> [ANCHOR] </s> car"], False, None)
    assert len(logits.logits) == len(logits.scores) == 1


def test_what_a_lent_gpu_takes_and_gives_can_be_pickled(anchored, answer):
    it = Answering(*anchored, on_gpu=lent)
    logits = it.ask(it.prepare(file_of(IMAGE), decode), QUERIES, True, answer.anchor)
    assert torch.equal(logits.logits, answer.logits.logits) and len(logits.rephrased) == 3


def test_a_model_in_bfloat16_answers(anchored):
    model, processor = anchored
    it = Answering(model.to(torch.bfloat16), processor)
    anchor = np.ones((60, 90), bool)
    logits = it.ask(it.prepare(file_of(IMAGE), decode), QUERIES, True, anchor)
    assert logits.logits.dtype == torch.float16 and logits.masks().shape == (3, 60, 90)
    assert torch.isfinite(logits.logits).all() and logits.uncertainty().max() <= 0.25


def test_what_is_too_old_is_looked_for_every_minute(answering):
    """Files by Gradio, which is told (every how many seconds, older than how many)."""
    it, _ = answering
    assert Page(it, Settings()).blocks.delete_cache == (60, 3600)
    assert Page(it, Settings(keep_seconds=20)).blocks.delete_cache == (20, 20)


# -- what visitors see -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shown"), [((90, 60), (768, 512)), ((4000, 100), (1024, 26)), ((800, 900), (800, 900))]
)
def test_pictures_are_shown_at_a_size_for_screens(size, shown):
    assert drawing.shown_picture(Image.new("RGB", size)).size == shown


def test_masks_have_their_colours_and_opacity(answer):
    masks = drawing.shown_masks(answer, 0.5)
    before, full = (np.asarray(drawing.draw(answer, masks, opacity)) for opacity in (0.0, 1.0))
    for index, colour in enumerate(palette(len(masks))):
        alone = masks[index] & ~masks[index + 1 :].any(0)
        painted = (full[alone] == colour).all(-1).mean()
        # the rest are edges, numbers and what was pointed at
        assert painted > 0.7, index
    nothing = ~masks.any(0)
    assert (before[nothing] == full[nothing]).mean() > 0.95
    assert not np.array_equal(before, full)


def test_thresholds_are_of_the_probability(answer):
    size = answer.picture.height, answer.picture.width
    probabilities = answer.logits.resized(answer.logits.logits, size).sigmoid().numpy()
    for threshold in (0.1, 0.5, 0.8):
        wrong = drawing.shown_masks(answer, threshold) != (probabilities > threshold)
        assert wrong.mean() < 1e-4  # rounding


def test_numbers_stand_inside_their_masks():
    rows, columns = np.ogrid[:300, :400]
    ring = (rows - 150) ** 2 + (columns - 200) ** 2
    for mask in (ring < 900, (ring > 8100) & (ring < 14400), (columns + rows * 0) == 7):
        x, y = drawing._inside(mask)
        assert mask[y, x]
        if mask.sum() > 1000:
            assert mask[y - 5 : y + 6, x - 5 : x + 6].all()


def test_the_legend_tells_query_score_and_area_as_text(answer):
    masks = drawing.shown_masks(answer, 0.5)
    masks[1] = False
    hostile = ("<img src=x onerror=alert(1)>", "a & b", '"quoted" <b>')
    page = drawing.legend(Answer(answer.picture, "a.png", hostile, answer.logits), masks)
    assert "<img" not in page and "<b>" not in re.sub(r"<b>\d", "", page)
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "a &amp; b" in page
    rows = page.split("<li>")[1:]
    for row, score, mask in zip(rows, answer.logits.scores.tolist(), masks, strict=True):
        assert f"confidence <b>{score:.2f}</b>" in row
        assert ("nothing above this threshold" in row) == (not mask.any())


def luminance(colour) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_numbers_can_be_read_on_every_colour():
    """At least 4.5 : 1, as WCAG 2 asks of text."""
    for colour in palette(Settings().max_queries):
        darker, lighter = sorted([luminance(colour), luminance(drawing.ink_on(colour))])
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, colour


# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


@pytest.mark.parametrize("matrix", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["all", "protanopia", "deuteranopia"])
def test_colours_differ_for_the_colour_blind(matrix):
    """Pairwise by more than 10 in CIELAB (a just noticeable difference is about 2.3)."""
    colours = np.array(palette(Settings().max_queries)) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(matrix).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(len(lab))
    assert distances.min() > 10


def test_uncertainty_is_orange_where_answers_differ(answer):
    maps = drawing.uncertainty_maps(answer)
    assert [caption for _, caption in maps] == [f"{n}  {query}" for n, query in enumerate(QUERIES, start=1)]
    for (picture, _), variance in zip(maps, answer.logits.uncertainty((512, 768)).numpy(), strict=True):
        pixels = np.asarray(picture).astype(int)
        orange = pixels[..., 0] - pixels[..., 2]
        assert np.corrcoef(orange.ravel(), np.sqrt(variance).ravel())[0, 1] > 0.99
    assert drawing.uncertainty_maps(replace(answer, logits=replace(answer.logits, rephrased=()))) == []


def test_a_click_means_the_smallest_mask_or_a_spot():
    masks = np.zeros((2, 40, 80), bool)
    masks[0, 5:35, 5:60] = True
    masks[1, 10:20, 10:20] = True
    assert np.array_equal(drawing.mask_at(masks, (12, 12)), masks[1])
    assert np.array_equal(drawing.mask_at(masks, (40, 12)), masks[0])
    spot = drawing.mask_at(masks, (75, 38))
    assert spot[38, 75] and 9 <= spot.sum() <= 21
    assert drawing.mask_at(masks[:0], (500, -3))[0, 79]  # a click on the frame


# -- what visitors take home -------------------------------------------------------------------------------------------


def unzipped(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        return {name: np.asarray(Image.open(archive.open(name))) for name in archive.namelist()}


def test_the_zip_holds_the_masks_at_image_size(answer):
    files = unzipped(downloads.masks_zip(answer, 0.6))
    assert list(files) == ["mask_1.png", "mask_2.png", "mask_3.png", "anchor.png"]
    expected = answer.logits.masks(float(np.log(0.6 / 0.4))).numpy()
    for mask, name in zip(expected, files, strict=False):
        assert np.array_equal(files[name], mask * np.uint8(255))
    assert np.array_equal(files["anchor.png"] > 0, answer.anchor)


def test_run_lengths_are_cocos(answer):
    """Read by the repository's own reader of COCO files, which shares no code with what wrote them."""
    found = json.loads(downloads.coco_json(answer, 0.5))
    (image,) = found["images"]
    assert (image["width"], image["height"], image["file_name"]) == (90, 60, "street.png")
    masks, scores = answer.logits.masks().numpy(), answer.logits.scores.tolist()
    for one, query, score, mask in zip(found["annotations"], QUERIES, scores, masks, strict=True):
        assert one["query"] == query and one["score"] == pytest.approx(score, abs=1e-6)
        assert one["segmentation"]["size"] == [60, 90] and one["area"] == mask.sum()
        assert np.array_equal(run_length_mask(text_run_lengths(one["segmentation"]["counts"]), 60, 90), mask)


def test_the_snippet_repeats_the_call(anchored, answer, tmp_path):
    """In another process, with nothing but the picture, the model and the zip."""
    for part in anchored:
        part.save_pretrained(tmp_path / "model")
    IMAGE.save(tmp_path / "street.png")
    with zipfile.ZipFile(io.BytesIO(downloads.masks_zip(answer, 0.6))) as archive:
        archive.extractall(tmp_path)
    code = downloads.code_snippet(answer, 0.6, "model") + "\nnp.save('found.npy', answer.masks.numpy())\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    for mask, number in zip(np.load(tmp_path / "found.npy"), (1, 2, 3), strict=True):
        stored = np.asarray(Image.open(tmp_path / f"mask_{number}.png")) > 0
        assert (mask != stored).mean() < 1e-3  # the page keeps logits in half precision


def test_the_snippet_without_anchor_and_with_any_text(tiny, answer, tmp_path, monkeypatch):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    IMAGE.save(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    queries = ("the 'road'", 'a "sky" \\', "{braces}")
    code = downloads.code_snippet(replace(answer, queries=queries, anchor=None), 0.5, "model")
    names: dict = {}
    exec(compile(code, "snippet", "exec"), names)
    assert names["queries"] == list(queries)
    assert torch.equal(names["answer"].masks, segment(*tiny, IMAGE, queries).masks)
    assert "/secret" not in downloads.code_snippet(answer, 0.5, "/secret/model")
