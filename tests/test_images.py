"""Images from files, from Pillow, and from a real web server that behaves well or badly."""

from __future__ import annotations

import io
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets_scripts.records import read_image
from modeling_cora.images import ImageError, load_image

from .conftest import noise_image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


PICTURE = noise_image(37, 23)


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Address of a server: /picture.png, /moved, /to-file, /to-ftp, /slow, /endless, /text, /stra%C3%9Fe.png."""
    secret = tmp_path_factory.mktemp("secret") / "secret.png"
    PICTURE.save(secret)
    moved = {
        "/moved": "/picture.png",
        "/to-file": secret.as_uri(),
        "/to-ftp": "ftp://localhost/a.png",
        "/loop": "/loop",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in moved:
                self.send_response(302)
                self.send_header("Location", moved[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path in ("/slow", "/endless"):  # neither says how much will come
                self.send_response(200)
                self.end_headers()
                try:
                    for _ in range(500):
                        self.wfile.write(b"\x89" if self.path == "/slow" else bytes(100_000))
                        time.sleep(0.02 if self.path == "/slow" else 0)
                except OSError:  # the reader has left
                    pass
                return
            found = {"/picture.png": png(PICTURE), "/stra%C3%9Fe.png": png(PICTURE), "/text": b"<html>no image</html>"}
            body = found.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/picture.png", "/moved", "/straße.png", "/stra%C3%9Fe.png"])
def test_urls_are_fetched(web, path):
    assert np.array_equal(load_image(web + path), PICTURE)
    assert np.array_equal(load_image(web.replace("http", "HTTP") + path), PICTURE)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing.png", "404"),
        ("/text", "not a readable image"),
        ("/to-file", "protocol"),
        ("/to-ftp", "protocol"),
        ("/loop", "redirect"),
    ],
)
def test_bad_addresses_get_one_line(web, path, message):
    with pytest.raises(ImageError, match=message) as caught:
        load_image(web + path)
    assert str(caught.value).startswith(web + path)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://localhost/a.png", "data://a", "gopher://localhost/"])
def test_other_schemes_are_refused(url):
    with pytest.raises(ImageError, match="only http:// and https://"):
        load_image(url)


def test_nobody_listens():
    with pytest.raises(ImageError, match="not to be had"):
        load_image("http://127.0.0.1:9/a.png")


def test_a_download_ends_at_the_size_limit(web):
    with pytest.raises(ImageError, match=r"more than 0\.3 MB"):
        load_image(web + "/endless", max_bytes=300_000)


def test_a_download_ends_at_the_timeout_however_steadily_it_drips(web):
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"not complete after 0\.3 seconds"):
        load_image(web + "/slow", timeout=0.3)
    assert time.monotonic() - start < 8  # it would drip for 10


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "RGB"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    picture = PICTURE.convert(mode)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(file)
    for source in (file, str(file), picture):
        image = load_image(source)
        assert image.mode == "RGB" and np.array_equal(image, picture.convert("RGB"))


def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    for source in (tmp_path / "ramp.png", Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        assert np.abs(np.asarray(load_image(source))[..., 1] - ramp / 257.0).max() <= 0.5


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_stand_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    # what a camera that was turned by so many quarters stores is turned back
    quarters = {3: 2, 6: 3, 8: 1}[orientation]
    assert np.array_equal(load_image(tmp_path / "turned.png"), np.rot90(np.asarray(PICTURE), quarters))
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(load_image(opened), np.rot90(np.asarray(PICTURE), quarters))


def test_more_pixels_than_pillow_allows_are_refused_and_not_only_warned_of(tmp_path, monkeypatch):
    noise_image(40, 40).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="40x40 pixels; the limit is 1000"),
    ):
        load_image(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # above twice the limit Pillow raises by itself
    with pytest.raises(ImageError, match="not a readable image"):
        load_image(tmp_path / "big.png")


def test_what_is_no_image_gets_one_line(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name, message in (
        ("cut.png", "not a readable image"),
        ("text.png", "not a readable image"),
        ("float.tif", "floating point"),
        ("missing.png", "no such file"),
        (".", "not a readable image"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="image: not a readable image"):
        load_image(Image.open(tmp_path / "cut.png"))  # Pillow reads the pixels only now
    with pytest.raises(TypeError, match="not int"):
        load_image(3)


def test_broken_exif_gets_one_line(monkeypatch):
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image: struct.unpack("<L", b""))
    with pytest.raises(ImageError, match="not a readable image"):
        load_image(PICTURE)


def test_the_data_readers_see_the_same_pixels(tmp_path):
    """`datasets_scripts` must not need torch and so has a reader of its own; the two may not drift apart."""
    rgb = noise_image(31, 17)
    rotated = rgb.getexif()
    rotated[0x0112] = 6
    rgb.save(tmp_path / "rotated.jpg", exif=rotated)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1", "RGB"):
        rgb.convert(mode).save(tmp_path / f"{mode}.tif")
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    for file in sorted(tmp_path.iterdir()):
        assert np.array_equal(load_image(file), read_image(file)), file.name
