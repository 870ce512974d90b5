"""Reading files of every sort people have."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.records import DataError, read_image, read_map

from .conftest import noise_image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(1, 30), (30, 1), (9, 7)])
def test_every_mode_becomes_rgb(tmp_path, mode, size):
    suffix = "jpg" if mode == "CMYK" else "png"
    noise_image(*size).convert(mode).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB" and image.size == size


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 0.5, 1]], np.float32), "pixels are floats of unknown range"),
        (np.array([[0, 245720]], np.int32), "pixels of 0 to 245720; 16 bits would be right"),
        (np.array([[-1, 0]], np.int32), "pixels of -1 to 0"),
    ],
)
def test_pixels_that_no_image_has_are_refused(tmp_path, values, message):
    """Pillow would make them black, or wrap."""
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "a.tif")


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise_image(20, 10).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (10, 20)


@pytest.mark.parametrize("reader", [read_image, read_map])
def test_what_is_no_image_gets_one_line(tmp_path, reader):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    noise_image(50, 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    noise_image(50, 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    for name in ("text.png", "empty.png", "cut.png", "cut.jpg", "missing.png"):
        with pytest.raises(DataError, match=name) as error:
            reader(tmp_path / name)
        assert "\n" not in str(error.value)


def test_maps_keep_their_ids(tmp_path):
    ids = np.array([[0, 300], [65535, 7]], np.uint16)
    Image.fromarray(ids).save(tmp_path / "a.png")
    assert np.array_equal(read_map(tmp_path / "a.png"), ids)
    noise_image(4, 4).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match="3 channels"):
        read_map(tmp_path / "rgb.png")
