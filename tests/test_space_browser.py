"""The demo Space in a browser: headless Chromium, driven by Playwright. Every test leaves screenshots in its folder.

The pictures in `results/` are made by

    CORA_SCREENSHOTS=results python -m pytest tests/test_space_browser.py -k results
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.scenes import draw_scene
from modeling_cora.loading import load_trained
from modeling_cora.segmentation import query_logits

from .space_server import save_small_model, space_server, unused_port

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
SCREENSHOTS = os.environ.get("CORA_SCREENSHOTS")
QUIET = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
CLOCK = "#cora-picture [data-testid=status-tracker] >> text=/[0-9.]+s/"
QUERIES = ["the road", "<img src=x onerror=alert(1)> [SEG]", "the sky"]
SCENE = draw_scene(5, (96, 128)).image

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install chromium, or say where it is with CHROMIUM=FILE"
)


PATIENCE = 180_000
"""Milliseconds. The first page of a browser that was just installed takes half a minute of a busy core."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, anchors=True)
    return folder


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with space_server(model, unused_port(), tmp_path_factory.mktemp("files"), max_megabytes=1) as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server, tmp_path):
    """Opens the page; when the test is over, nothing was asked of other servers, and no script of a visitor ran."""
    contexts, complaints = [], []

    def opened(viewport: dict = DESKTOP, address: str = server.address, **options):
        contexts.append(chromium.new_context(viewport=viewport, accept_downloads=True, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: complain_about(request.url))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#cora-ask")
        return page

    def complain_about(url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            complaints.append(f"request to {url}")

    yield opened
    for number, context in enumerate(contexts):
        context.pages[0].screenshot(path=tmp_path / f"last_{number}.png", full_page=True)
        context.close()
    assert complaints == []


def upload(page, image: Image.Image, folder: Path) -> None:
    image.save(folder / "street.png")
    page.set_input_files("#cora-photo input[type=file]", folder / "street.png")
    page.wait_for_selector("#cora-picture img")


def type_and_ask(page, queries: list[str]) -> None:
    page.fill("#cora-queries textarea", "\n".join(queries))
    page.click("#cora-ask")
    legend_says(page, queries)


def legend_says(page, queries: list[str]) -> None:
    page.wait_for_function(
        "queries => JSON.stringify([...document.querySelectorAll('.cora-query')].map(q => q.textContent))"
        " === JSON.stringify(queries)",
        arg=queries,
    )


def rows(page) -> list[str]:
    return page.locator(".cora-score").all_inner_texts()


def until(page, holds: Callable[[], bool]) -> None:
    """Waits for what must come to hold."""
    for _ in range(PATIENCE // 100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it never held")


def changed(page, action: Callable[[], object], read: Callable[[], object]) -> None:
    """Does something, and waits until what is read is another."""
    before = read()
    action()
    until(page, lambda: read() != before)


def picture_address(page) -> str:
    return page.locator("#cora-picture img").get_attribute("src")


def download(page, button: str) -> bytes:
    with page.expect_download() as event:
        page.click(button)
    return Path(event.value.path()).read_bytes()


def files_of(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: np.asarray(Image.open(archive.open(name))) > 0 for name in archive.namelist()}


@pytest.fixture(scope="module")
def expected(model):
    """The answer to QUERIES, by the library."""
    return query_logits(*load_trained(str(model)), SCENE, QUERIES)


def test_three_queries_are_answered_and_taken_home(visit, server, expected, tmp_path):
    page = visit()
    page.screenshot(path=tmp_path / "empty.png", full_page=True)
    upload(page, SCENE, tmp_path)
    runs = dict(server.runs)
    type_and_ask(page, QUERIES)
    assert server.runs == {**runs, "answered": runs["answered"] + 1}
    for row, score in zip(rows(page), expected.scores.tolist(), strict=True):
        assert f"confidence {score:.2f}" in row
    masks = files_of(download(page, "#cora-get-masks"))
    assert list(masks) == ["mask_1.png", "mask_2.png", "mask_3.png"]
    for found, mask in zip(masks.values(), expected.masks().numpy(), strict=True):
        assert (found != mask).mean() < 1e-3  # half precision
    coco = json.loads(download(page, "#cora-get-coco"))
    assert [one["query"] for one in coco["annotations"]] == QUERIES
    page.click("text=Repeat this in Python")
    page.wait_for_selector("#cora-code .cm-content")
    assert "'street.png'" in page.locator("#cora-code").inner_text()


def test_sliders_need_no_pass_of_the_model(visit, server, expected, tmp_path):
    page = visit()
    upload(page, SCENE, tmp_path)
    type_and_ask(page, QUERIES)
    runs = dict(server.runs)
    page.focus("#cora-threshold input[type=range]")
    masks = expected.masks(np.log(0.95 / 0.05)).numpy()

    def shares_are_theirs() -> bool:
        shares = [re.search(r"(\d+)% of the picture|nothing above", row) for row in rows(page)]
        return len(shares) == len(masks) and all(
            share and abs(float(share[1] or 0) / 100 - mask.mean()) < 0.02
            for share, mask in zip(shares, masks, strict=True)
        )

    changed(page, lambda: page.keyboard.press("End"), lambda: rows(page))
    until(page, shares_are_theirs)  # the slider passes other values on its way
    page.focus("#cora-opacity input[type=range]")
    changed(page, lambda: page.keyboard.press("Home"), lambda: picture_address(page))
    assert server.runs == runs


def test_waiting_is_shown(visit, server, tmp_path):
    page = visit()
    upload(page, SCENE, tmp_path)
    page.fill("#cora-queries textarea", "the road")
    server.open.clear()
    answered = server.runs["answered"]
    try:
        page.click("#cora-ask")
        earlier = page.wait_for_selector(CLOCK).inner_text()
        until(page, lambda: page.inner_text(CLOCK) != earlier)  # it runs
        assert page.locator(CLOCK).is_visible() and server.runs["answered"] == answered
        page.screenshot(path=tmp_path / "waiting.png")
    finally:
        server.open.set()
    legend_says(page, ["the road"])
    page.wait_for_selector(CLOCK, state="hidden")
    assert server.runs["answered"] == answered + 1


def test_uncertainty_is_shown_where_it_is_asked_for(visit, server, tmp_path):
    page = visit()
    upload(page, SCENE, tmp_path)
    page.check("label:has-text('Show uncertainty') input")
    type_and_ask(page, QUERIES)
    page.wait_for_function("document.querySelectorAll('#cora-maps img').length >= 3")
    assert QUERIES[1] in page.locator("#cora-maps").inner_text()
    page.uncheck("label:has-text('Show uncertainty') input")
    type_and_ask(page, QUERIES[:2])
    page.wait_for_selector("#cora-maps", state="hidden")


def seen_in_editor(page) -> np.ndarray:
    """uint8 (H, W, 3): the editor's canvas, as a visitor sees it."""
    content = page.locator("#cora-editor canvas").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def painted_in_editor(page) -> np.ndarray:
    """bool (96, 128): what is white on the picture in the editor."""
    white = (seen_in_editor(page) > 245).all(-1)
    # the picture lies on white; and no row or column of it is white for the most part
    rows, columns = (np.flatnonzero(white.mean(axis) < 0.65) for axis in (1, 0))
    if not len(rows) or not len(columns):  # not drawn yet
        return np.zeros((96, 128), bool)
    inside = white[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(inside).resize((128, 96), Image.Resampling.NEAREST))


def click_on_result(page, x: int, y: int) -> None:
    """At a pixel of a picture of 128 x 96."""
    page.wait_for_timeout(500)
    box = page.locator("#cora-picture img").bounding_box()
    page.mouse.click(box["x"] + (x + 0.5) / 128 * box["width"], box["y"] + (y + 0.5) / 96 * box["height"])
    page.wait_for_selector("#cora-editor canvas")


def paint(page) -> None:
    """A line through the middle of the picture in the editor."""
    page.locator("#cora-forget").scroll_into_view_if_needed()
    page.wait_for_timeout(2500)
    canvas = page.locator("#cora-editor canvas").first.bounding_box()
    middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.mouse.move(middle[0] - 60, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1], steps=6)
    page.mouse.up()
    page.wait_for_timeout(500)


def test_things_are_pointed_at_by_click_and_paint(visit, expected, tmp_path):
    page = visit()
    upload(page, SCENE, tmp_path)
    type_and_ask(page, QUERIES)
    mask = min((m for m in expected.masks().numpy() if m.any()), key=np.count_nonzero)
    y, x = np.argwhere(mask)[mask.sum() // 2]
    click_on_result(page, x, y)

    def marked_where_it_was_clicked() -> bool:
        shown = painted_in_editor(page)
        return (shown & mask).sum() / (shown | mask).sum() > 0.5

    until(page, marked_where_it_was_clicked)
    type_and_ask(page, ["the car left of this", "the sky"])
    clicked = files_of(download(page, "#cora-get-masks"))["anchor.png"]
    assert (clicked & mask).sum() / (clicked | mask).sum() > 0.8

    page.locator("#cora-forget").scroll_into_view_if_needed()
    page.click("#cora-forget")
    until(page, lambda: not marked_where_it_was_clicked())
    paint(page)
    type_and_ask(page, ["the sky", "the tree above this"])
    painted = files_of(download(page, "#cora-get-masks"))["anchor.png"]
    assert painted[48, 64] and not painted[:24].any() and not painted[72:].any()
    assert np.ptp(np.flatnonzero(painted.any(0))) > 3 * np.ptp(np.flatnonzero(painted.any(1)))

    page.fill("#cora-queries textarea", "the sky")
    page.click("#cora-ask")
    page.wait_for_selector("text=no query says “this”")


@pytest.mark.parametrize("scale", [1, 2])
def test_paint_comes_as_one_uploaded_layer(visit, tmp_path, scale):
    """What `Editor` takes is what browsers send, whatever their screens."""
    page, called, layers = visit(device_scale_factor=scale), [], []

    def look(request) -> None:
        if "component_server" in request.url:
            called.append(request.url)
        if "queue/join" in request.url:
            values = [one for one in request.post_data_json["data"] if isinstance(one, dict) and "layers" in one]
            layers.extend([layer["path"] for layer in value["layers"]] for value in values)

    upload(page, SCENE, tmp_path)
    type_and_ask(page, ["the road"])
    page.on("request", look)
    click_on_result(page, 64, 48)
    page.wait_for_timeout(2500)
    for queries, format in ((["the car left of this"], "WEBP"), (["the tree above this"], "PNG")):
        if format == "PNG":
            paint(page)
        layers.clear()
        type_and_ask(page, queries)
        (((path,),),) = (layers,)
        with Image.open(path) as layer:
            assert layer.format == format and layer.size == (768, 576)
    assert called == []


def test_paint_does_not_outlive_its_picture(visit, server, tmp_path):
    """Not even while the next picture waits for the model: "this" is nothing then."""
    page = visit()
    upload(page, SCENE, tmp_path)
    click_on_result(page, 64, 48)
    paint(page)
    assert painted_in_editor(page).any()
    before = picture_address(page)
    server.open.clear()
    try:
        SCENE.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "another.png")
        page.set_input_files("#cora-photo input[type=file]", tmp_path / "another.png")
        until(page, lambda: seen_in_editor(page).min(-1).mean() > 245)  # neither picture nor paint
        page.fill("#cora-queries textarea", "the car left of this")
        page.click("#cora-ask")
        page.wait_for_timeout(1000)
    finally:
        server.open.set()
    legend_says(page, ["the car left of this"])
    assert picture_address(page) != before
    assert list(files_of(download(page, "#cora-get-masks"))) == ["mask_1.png"]
    paint(page)  # on the new one
    type_and_ask(page, ["the tree above this"])
    assert list(files_of(download(page, "#cora-get-masks"))) == ["mask_1.png", "anchor.png"]


def test_bad_files_are_told_and_do_no_harm(visit, tmp_path):
    page = visit()
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#cora-photo input[type=file]", tmp_path / "text.png")
    page.wait_for_selector("[role=alert] >> text=cannot be read as a picture")
    page.screenshot(path=tmp_path / "alert.png", full_page=True)
    assert page.locator("#cora-picture").is_hidden() and page.locator(".cora-empty").is_visible()
    page.wait_for_selector("#cora-photo >> text=Drop a picture here")
    (tmp_path / "large.png").write_bytes(b"\0" * 1_200_000)
    page.set_input_files("#cora-photo input[type=file]", tmp_path / "large.png")
    page.wait_for_selector("text=/exceeds|too large|size/i")
    page.screenshot(path=tmp_path / "too_large.png", full_page=True)
    page.reload(wait_until="domcontentloaded")
    page.click("#cora-ask")
    page.wait_for_selector("[role=alert] >> text=There is no picture yet.")
    upload(page, SCENE, tmp_path)
    page.click("#cora-ask")
    page.wait_for_selector("[role=alert] >> text=There is no query yet.")
    type_and_ask(page, ["the road"])
    page.wait_for_selector("[role=alert]", state="detached")


def test_the_keyboard_is_enough(visit, server):
    page = visit()
    page.focus("#cora-examples button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#cora-picture img")
    page.focus("#cora-queries textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("the road")
    page.keyboard.press("Shift+Enter")
    legend_says(page, ["the road"])
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id === 'cora-ask'"):
            break
    assert page.evaluate("document.activeElement.id") == "cora-ask"
    runs = server.runs["answered"]
    changed(page, lambda: page.keyboard.press("Enter"), lambda: server.runs["answered"])
    assert server.runs["answered"] == runs + 1


def test_a_phone_is_wide_enough(visit, tmp_path):
    page = visit(PHONE, has_touch=True, is_mobile=True)
    narrow = "document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(narrow)
    page.screenshot(path=tmp_path / "phone_empty.png", full_page=True)
    page.tap("#cora-ask")
    page.wait_for_function(
        "() => { const box = document.querySelector('[role=alert]')?.getBoundingClientRect();"
        " return box && box.top > 0 && box.bottom < window.innerHeight }"
    )
    page.screenshot(path=tmp_path / "phone_alert.png")
    page.tap("#cora-examples button >> nth=0")
    page.wait_for_selector("#cora-picture img")
    page.tap("#cora-ask")
    legend_says(page, ["the road", "the sky", "the structures in which people live or work"])
    assert page.evaluate(narrow)
    page.wait_for_function("document.querySelector('#cora-result').getBoundingClientRect().top < 200")
    page.screenshot(path=tmp_path / "phone.png")


@pytest.mark.skipif(not SCREENSHOTS, reason="makes pictures for results/ where CORA_SCREENSHOTS names the folder")
@pytest.mark.parametrize(("name", "viewport"), [("space", DESKTOP), ("space_phone", PHONE)])
def test_pictures_for_the_results(visit, tmp_path, name, viewport):
    """With the model of `make demo`."""
    with space_server(ROOT / "runs/demo/model", unused_port(), tmp_path / "files") as demo:
        page = visit(viewport, demo.address, device_scale_factor=1 if name == "space" else 2)
        page.click("#cora-examples button >> nth=0")
        page.wait_for_selector("#cora-picture img")
        page.check("label:has-text('Show uncertainty') input")
        page.click("#cora-ask")
        page.wait_for_function("document.querySelectorAll('#cora-maps img').length >= 3")
        page.wait_for_timeout(1500)
        page.mouse.move(0, 0)
        content = page.screenshot(full_page=name == "space")
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    assert picture.width >= viewport["width"] and len(set(picture.resize((32, 32)).getdata())) > 100  # not a blank page
    picture.save(ROOT / SCREENSHOTS / f"{name}.jpg", quality=80)
