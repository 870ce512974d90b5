"""The demo Space over HTTP: many visitors at once, and those who mean harm."""

from __future__ import annotations

import base64
import gc
import io
import json
import re
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from cora_space import downloads, drawing
from modeling_cora.loading import load_trained
from modeling_cora.segmentation import segment

from .conftest import TEXTS, noise_image
from .space_server import Visitor, file_data, save_small_model, space_server, unused_port

ROOT = Path(__file__).resolve().parents[1]
QUEUE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, anchors=False)
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    with space_server(folder, unused_port(), files, max_megabytes=0.2, queue_size=QUEUE) as server:
        yield server


@pytest.fixture(scope="module")
def pointing(tmp_path_factory):
    """The page of a model that takes anchors."""
    save_small_model(folder := tmp_path_factory.mktemp("anchored"), anchors=True)
    files = tmp_path_factory.mktemp("files")
    with space_server(folder, unused_port(), files, max_megabytes=0.2, max_megapixels=0.01, drawings=2) as server:
        yield server


def file_of(image: Image.Image, suffix: str) -> bytes:
    content = io.BytesIO()
    image.save(content, suffix)
    return content.getvalue()


def png(image: Image.Image) -> bytes:
    return file_of(image, "PNG")


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


# -- what was painted --------------------------------------------------------------------------------------------------

THIS = "the car left of this"
PAINTED = np.zeros((40, 60), bool)
PAINTED[10:30, 20:50] = True


def layer_of(mask: np.ndarray) -> Image.Image:
    """White where the mask is, clear elsewhere."""
    layer = Image.new("RGBA", mask.shape[::-1], (255, 255, 255, 0))
    layer.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    return layer


def painted(*layers: object, **more: object) -> dict:
    return {"background": None, "layers": list(layers), "composite": None, **more}


def ask_pointing(visitor: Visitor, photo: object, editor: object) -> str:
    return json.dumps(visitor.send("on_ask", [photo, THIS, False, 0.5, 0.5, editor])["output"])


@pytest.mark.parametrize("suffix", ["PNG", "WEBP"])
def test_paint_is_the_anchor_and_nothing_else_of_the_editor_is_opened(pointing, suffix):
    visitor = Visitor(pointing.address)
    photo = visitor.photo(png(noise_image(60, 40)))
    layer, other = visitor.photo(file_of(layer_of(PAINTED), suffix)), visitor.photo(b"no picture")
    assert "confidence" in ask_pointing(visitor, photo, painted(layer, background=other, composite=other))
    (file,) = (d for d in visitor.send("on_get_masks", [None, 0.5])["output"]["data"] if "masks.zip" in json.dumps(d))
    content = visitor.client.get(f"/gradio_api/file={file['path']}").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert np.array_equal(np.asarray(Image.open(archive.open("anchor.png"))) > 0, PAINTED)


def test_no_function_of_a_component_can_be_called(pointing):
    """Gradio's editor has one that takes blobs, makes a list of as many as it is told, and keeps them."""
    visitor = Visitor(pointing.address)
    for component in visitor.config["components"]:
        assert not component["props"].get("server_fns"), component["type"]
        about = {"session_hash": visitor.session, "component_id": component["id"], "fn_name": "accept_blobs"}
        data = {**about, "type": "layer", "index": "5000000", "id": "mine"}
        answer = visitor.client.post("/gradio_api/component_server", data=data, files={"file": ("a.png", b"\0")})
        assert answer.status_code == 404, component["type"]


def test_layers_that_no_editor_sends_are_told(pointing, monkeypatch):
    """No program is started, nothing is decoded that is too large, and the model is not asked."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: started.append(arguments))
    visitor = Visitor(pointing.address)
    photo = visitor.photo(png(noise_image(60, 40)))
    visitor.send("on_photo", [photo])
    layer = visitor.photo(png(layer_of(PAINTED)))
    gone = visitor.photo(png(layer_of(~PAINTED)))
    Path(gone["path"]).unlink()
    said = {
        "cannot be read as a picture": [
            painted(visitor.upload(content, "layer_0.png").json()[0])
            for content in (
                *(file_of(noise_image(9, 9), suffix) for suffix in ("EPS", "JPEG", "GIF", "TIFF", "PPM")),
                png(layer_of(PAINTED))[:80],
                b"no picture",
            )
        ],
        "1025 x 1024 pixels; at most 1.05 million": [painted(visitor.photo(png(Image.new("RGBA", (1025, 1024)))))],
        "too many pixels; at most 1.05 million": [painted(visitor.photo(png(Image.new("RGBA", (2048, 2048)))))],
        "5 layers are painted on": [painted(*[layer] * 5)],
        "What was painted is no longer here": [painted(gone), painted(id="mine")],
        "": [
            painted(file_data("/etc/passwd")),
            painted({"path": "/etc/passwd"}),
            painted(file_data("http://example.org/a.png")),
        ],
    }
    runs = dict(pointing.runs)
    for sentence, editors in said.items():
        for editor in editors:
            editor["layers"] = [file_data(one) if isinstance(one, str) else one for one in editor["layers"]]
            answer = ask_pointing(visitor, photo, editor)
            assert sentence in answer and "confidence" not in answer and "root:" not in answer, (sentence, answer)
            click = [None, photo, 0.5, editor], {"event_data": {"index": [9, 9], "value": None}}
            assert sentence in json.dumps(visitor.send("on_click", click[0], **click[1])["output"])
    assert started == [] and pointing.runs == runs


def test_what_is_shown_of_another_picture_is_no_anchor(pointing):
    """While a new picture waits for the model, the page still shows the old one, which can be clicked."""
    visitor = Visitor(pointing.address)
    old, new = (visitor.photo(png(noise_image(60, 40, seed))) for seed in (1, 2))
    visitor.send("on_photo", [old])
    for photo, held in ((old, False), (new, True)):
        click = visitor.send("on_click", [None, photo, 0.5, painted()], event_data={"index": [9, 9], "value": None})
        forget = visitor.send("on_forget", [None, photo])
        for message in (click, forget):
            answer = json.dumps(message["output"])
            assert ("The new picture is not ready yet" in answer) == held and ("background" in answer) != held, answer


def test_a_page_without_a_picture_has_no_paint(pointing):
    visitor = Visitor(pointing.address)
    for photo in (None, visitor.photo(b"no picture")):
        data = visitor.send("on_photo", [photo])["output"]["data"]
        outputs = visitor.events["on_photo"]["outputs"]
        kinds = {component["id"]: component["type"] for component in visitor.config["components"]}
        (editor,) = (value for value, output in zip(data, outputs, strict=True) if kinds[output] == "imageeditor")
        assert editor is None


# -- limits ------------------------------------------------------------------------------------------------------------


def test_requests_have_a_bound_whatever_they_hold(server):
    """300 kB with these settings: Gradio itself bounds a file, not how many there are, and no JSON."""
    visitor = Visitor(server.address)
    files = [("files", (f"{number}.png", b"\0" * 150_000)) for number in range(4)]
    about = {"session_hash": visitor.session, "component_id": "1", "fn_name": "accept_blobs"}
    assert visitor.client.post("/gradio_api/component_server", data=about, files=files[:1]).status_code == 404
    assert visitor.client.post("/gradio_api/component_server", data=about, files=files).status_code == 413
    assert visitor.client.post("/gradio_api/upload", files=files).status_code == 413
    assert visitor.join("on_ask", [None, "z" * 400_000, False, 0.5, 0.5]).status_code == 413
    assert visitor.client.post("/gradio_api/component_server", json={"data": "z" * 400_000}).status_code == 400
    assert visitor.join("on_ask", [None, "z" * 1000, False, 0.5, 0.5]).status_code == 200


def test_pictures_are_drawn_a_few_at_once_whatever_for(pointing, monkeypatch):
    """Of four events, with `drawings=2`."""
    lock, running, peak = threading.Lock(), 0, 0

    def counted(function):
        def wrapped(*arguments):
            nonlocal running, peak
            with lock:
                running += 1
                peak = max(peak, running)
            time.sleep(0.1)
            with lock:
                running -= 1
            return function(*arguments)

        return wrapped

    for module, name in ((drawing, "draw"), (downloads, "masks_zip"), (downloads, "coco_json")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    drawn, taken = [None, 0.5, 0.5], [None, 0.5]
    events = 3 * [("on_slider", drawn), ("on_slider_1", drawn), ("on_get_masks", taken), ("on_get_coco", taken)]
    visitors = [Visitor(pointing.address) for _ in events]
    for visitor in visitors:
        visitor.send("on_photo", [visitor.photo(png(noise_image(60, 40)))])
    with ThreadPoolExecutor(len(events)) as pool:
        messages = list(pool.map(lambda visitor, event: visitor.send(*event), visitors, events))
    assert all(message["success"] for message in messages) and peak == 2


def test_nothing_of_a_visitor_outlives_its_time(folder, tmp_path):
    """Neither on disk nor in memory, though nobody asks any more; what the page itself shows stays."""
    with space_server(folder, unused_port(), tmp_path, keep_seconds=4) as server:
        size = 61, 43  # of no other test's picture
        sizes = size, drawing.shown_picture(Image.new("L", size)).size
        before = set(tmp_path.rglob("*.*"))

        def kept() -> list[object]:
            """Pictures of these sizes, whoever has them: the cache, an answer, a request that is over; and files."""
            gc.collect()
            objects = gc.get_objects()
            pictures = [one.size for one in objects if issubclass(type(one), Image.Image) and one.size in sizes]
            return [*pictures, *(set(tmp_path.rglob("*.*")) - before)]

        visitor = Visitor(server.address)
        # what tells the server that a tab is open; when it ends, the tab was closed
        with visitor.client.stream("GET", f"/gradio_api/heartbeat/{visitor.session}"):
            photo = visitor.photo(png(noise_image(*size)))
            visitor.send("on_photo", [photo])
            assert "confidence" in ask(visitor, photo, "the road")
            visitor.send("on_get_masks", [None, 0.5])
        assert {*sizes} <= {*kept()} and any("masks.zip" in str(one) for one in kept())
        deadline = time.monotonic() + 20
        while kept() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert kept() == [] and before <= set(tmp_path.rglob("*.*"))


def test_examples_can_be_picked_wherever_the_server_was_started(folder, tmp_path, monkeypatch):
    """Not only in the repository, in whose folders Gradio would look for them."""
    monkeypatch.chdir(tmp_path)
    with space_server(folder, unused_port(), tmp_path / "files") as server:
        visitor = Visitor(server.address)
        for index in range(3):
            message = visitor.send("on_example", [index])
            assert message["success"], message
            (photo,) = (one for one in message["output"]["data"] if isinstance(one, dict))
            assert visitor.client.get(f"/gradio_api/file={photo['path']}").headers["content-type"] == "image/jpeg"
            assert "confidence" in ask(visitor, photo, "the road")
        assert visitor.client.get(f"/gradio_api/file={ROOT / 'spaces/app.py'}").status_code == 403
