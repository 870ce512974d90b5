"""The demo Space over HTTP: many visitors at once, and those who mean harm."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from modeling_cora.loading import load_trained
from modeling_cora.segmentation import segment

from .conftest import TEXTS, noise_image
from .space_server import Visitor, file_data, save_small_model, space_server

ROOT = Path(__file__).resolve().parents[1]
QUEUE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, anchors=False)
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with space_server(folder, port, tmp_path_factory.mktemp("files"), max_megabytes=0.2, queue_size=QUEUE) as server:
        yield server


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def ask(visitor: Visitor, photo: object, queries: str, uncertainty: bool = False) -> str:
    """All that the answer says, as JSON."""
    return json.dumps(visitor.send("on_ask", [photo, queries, uncertainty, 0.5, 0.5]))


def test_twenty_visitors_at_once_get_their_own_answers(server, folder):
    model, processor = load_trained(str(folder))
    before = dict(server.runs)

    def visit(number: int) -> str:
        visitor = Visitor(server.address)
        photo = visitor.photo(png(noise_image(60, 40, seed=number % 10)))
        visitor.send("on_photo", [photo])
        answer = ask(visitor, photo, f"{TEXTS[number % 5]} {number}\nthe sky")
        # a slider moves: the answer is this visitor's, out of the session
        moved = visitor.send("on_slider", [None, 0.2, 0.9])
        return answer + json.dumps(moved)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(visit, range(20)))
    assert server.runs == {"encoded": before["encoded"] + 10, "answered": before["answered"] + 20}
    for number, answer in enumerate(answers):
        queries = [f"{TEXTS[number % 5]} {number}", "the sky"]
        expected = segment(model, processor, noise_image(60, 40, seed=number % 10), queries).scores.tolist()
        scores = [float(score) for score in re.findall(r"confidence <b>([\d.]+)</b>", answer)]
        assert scores == pytest.approx(2 * expected, abs=0.0051), number
        assert answer.count(f'cora-query\\">{queries[0]}<') == 2


def test_requests_beyond_the_queue_are_turned_away(server):
    visitor = Visitor(server.address)
    photo = visitor.photo(png(noise_image(60, 40)))
    ask(visitor, photo, "the road")
    before = server.runs["answered"]
    server.open.clear()
    try:
        answers = [visitor.join("on_ask", [photo, "the road", False, 0.5, 0.5]) for _ in range(QUEUE + 5)]
    finally:
        server.open.set()
    turned_away = [answer.json()["detail"] for answer in answers if answer.status_code == 503]
    assert 2 <= len(turned_away) <= 5 and "full" in turned_away[0]
    deadline = time.monotonic() + 60
    while server.runs["answered"] < before + len(answers) - len(turned_away) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "confidence" in ask(Visitor(server.address), photo, "the road")


def test_only_uploaded_files_are_read(server, folder, monkeypatch):
    """Neither files of the server, nor addresses, nor pictures in an address."""
    fetched = []

    async def fetch(url, **_):
        fetched.append(url)
        raise AssertionError("fetched")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    visitor = Visitor(server.address)
    inline = "data:image/png;base64," + base64.b64encode(png(noise_image(9, 9))).decode()
    files = ("/etc/passwd", str(ROOT / "spaces/app.py"), str(folder / "config.json"))
    photos = [*map(file_data, files), file_data("http://example.org/a.png"), {**file_data(""), "url": inline}]
    photos.append({**visitor.photo(b"no picture"), "url": inline})
    runs = dict(server.runs)
    for photo in photos:
        for event, data in (("on_photo", [photo]), ("on_ask", [photo, "the road", False, 0.5, 0.5])):
            message = visitor.send(event, data)
            said = json.dumps(message["output"])
            assert not message["success"] or "cora-alert" in said, said
            assert "url" not in photo or photo["path"] == "" or "cannot be read as a picture" in said
            assert not any(told in said for told in ("Traceback", "confidence", str(ROOT), "root:")), said
    assert server.runs == runs and fetched == []
    for file in files:
        assert visitor.client.get(f"/gradio_api/file={file}").status_code in (403, 404)


def test_too_many_bytes_do_not_come_in(server):
    visitor = Visitor(server.address)
    assert visitor.upload(b"\0" * 150_000).status_code == 200
    assert visitor.upload(b"\0" * 250_000).status_code == 413


def test_the_queue_cannot_be_passed_by(server):
    visitor = Visitor(server.address)
    runs = dict(server.runs)
    photo = visitor.photo(png(noise_image(60, 40)))
    data = {"data": [photo, "the road", False, 0.5, 0.5], "fn_index": visitor.events["on_ask"]["id"]}
    for path in ("run/on_ask", "api/on_ask", "run/predict", "call/on_ask"):
        visitor.client.post(f"/gradio_api/{path}", json={**data, "session_hash": "another"})
    assert server.runs["answered"] == runs["answered"]
    assert visitor.client.get("/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ("", "There is no query yet."),
        ("\n".join("abcdefgh"), "8 queries at once are too many"),
        ("z" * 301, "Query 1 has 301 characters"),
    ],
)
def test_what_cannot_be_answered_is_told(server, queries, said):
    visitor = Visitor(server.address)
    assert said in ask(visitor, visitor.photo(png(noise_image(60, 40))), queries)
    assert "There is no picture yet." in ask(visitor, None, queries)
    assert "cannot be read as a picture" in ask(visitor, visitor.photo(b"no picture"), "the road")


def test_errors_of_the_server_tell_nothing(server):
    visitor = Visitor(server.address)
    photo = visitor.photo(png(noise_image(60, 40)))
    server.broken.set()
    try:
        said = ask(visitor, photo, "the road")
    finally:
        server.broken.clear()
    assert "Something went wrong on our side" in said and "secret" not in said and "Traceback" not in said
    assert "confidence" in ask(visitor, photo, "the road")


def test_a_model_without_anchors_offers_none_and_says_why(server):
    components = Visitor(server.address).config["components"]
    assert not any(component["type"] == "imageeditor" for component in components)
    notes = [str(component["props"].get("value")) for component in components if component["type"] == "html"]
    assert any("trained\nwithout anchors" in note or "trained without anchors" in note for note in notes)


def test_sliders_without_an_answer_say_so(server):
    said = json.dumps(Visitor(server.address).send("on_slider", [None, 0.5, 0.5]))
    assert "no longer here" in said


def test_a_port_that_is_taken_is_named(server, folder, tmp_path):
    from cora_space.settings import SettingsError

    port = int(server.address.rsplit(":", 1)[1])
    with (
        pytest.raises(SettingsError, match=f"--port {port}: cannot be listened on"),
        space_server(folder, port, tmp_path),
    ):
        pass
