"""Reading files of every sort people have."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from datasets_scripts.components import with_components
from datasets_scripts.records import DataError, Scene, SceneSet, SemanticClass, image_size, read_image, read_map

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


def with_chunk(content: bytes, kind: bytes, data: bytes, last: bool) -> bytes:
    """A PNG with one chunk more, before its pixels or behind them."""
    at = content.index(b"IEND" if last else b"IDAT") - 4
    return content[:at] + len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) + content[at:]


ORIENTATION_6 = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
RAW = b"Raw profile type exif\0\nexif\n      32\n" + (b"Exif\0\0" + ORIENTATION_6).hex().encode()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("kind", "data"), [(b"eXIf", ORIENTATION_6), (b"iTXt", XMP), (b"tEXt", RAW), (b"tEXt", b"Software\0x"), (b"", b"")]
)
def test_sizes_are_those_of_the_pictures_and_no_pixels_are_decoded(tmp_path, monkeypatch, kind, data, last):
    """Unless an orientation may stand behind them: a map of the pixels as they lie is not one of the picture."""
    scene_set, scene = scene_of(tmp_path, np.zeros((10, 20)), np.zeros((10, 20)))
    if kind:
        scene.image.write_bytes(with_chunk(scene.image.read_bytes(), kind, data, last))
    turned = data in (ORIENTATION_6, XMP, RAW)
    assert read_image(scene.image).size == ((10, 20) if turned else (20, 10))
    if turned:
        with pytest.raises(DataError, match="size 20x10 differs from its image's 10x20"):
            scene_set.read_maps(scene)
    if not turned or (kind == b"eXIf" and not last):
        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert image_size(scene.image) == ((20, 10) if turned else (10, 20))


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


@pytest.mark.parametrize("reader", [read_image, read_map, image_size])
def test_an_image_of_too_many_pixels_is_told_the_limit(tmp_path, monkeypatch, reader):
    noise_image(40, 40).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # Pillow refuses what has more than twice as many
    with pytest.raises(DataError) as error:
        reader(tmp_path / "a.png")
    told = "Image size (1600 pixels) exceeds limit of 1400 pixels; cutting it into tiles would be right"
    assert str(error.value) == f"{tmp_path}/a.png: {told}"


def test_maps_keep_their_ids(tmp_path):
    ids = np.array([[0, 300], [65535, 7]], np.uint16)
    Image.fromarray(ids).save(tmp_path / "a.png")
    assert np.array_equal(read_map(tmp_path / "a.png"), ids)
    noise_image(4, 4).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match="3 channels"):
        read_map(tmp_path / "rgb.png")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_pngs_of_few_bits_would_come_scaled(tmp_path, bits):
    """Pillow gives 17 for the 1 of 4 bits, and 255, "ignored", for the highest."""
    header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0\1")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(read_map(tmp_path / "a.png", greys=True) != 0, [[False] * (8 // bits - 1) + [True]])
    if bits in (1, 8):
        assert read_map(tmp_path / "a.png").tolist() == [[0] * (8 // bits - 1) + [1]]
    else:
        with pytest.raises(DataError, match="a grey PNG of 2 or 4 bits, read as scaled greys; 8 or 16 would be right"):
            read_map(tmp_path / "a.png")


def test_ids_that_no_map_has_are_refused_with_their_value(tmp_path):
    """They would be cut to whole numbers, or wrap."""
    scene_set, scene = scene_of(tmp_path, np.zeros((8, 12)), np.zeros((8, 12)))
    wrong = np.zeros((8, 12), np.int32)
    wrong[2, 3:5] = -1, 1
    scene = replace(scene, label_map=tmp_path / "labels.tif", instance_map=tmp_path / "instances.tif")
    for part, array, message in (
        ("instances", wrong, "instance id -1 is negative; 0 for no instance would be right"),
        ("labels", wrong, "label -1 is outside of 0..255"),
        ("labels", wrong + 256, "label 257 is outside of 0..255"),
        ("labels", wrong.astype(np.float32) / 2, "ids are floats; whole numbers of 8 or 16 bits would be right"),
    ):
        for name in ("labels", "instances"):
            Image.fromarray(array if name == part else np.zeros((8, 12), np.uint8)).save(tmp_path / f"{name}.tif")
        built = with_components(replace(scene_set, scenes=(scene,)))
        for read in (lambda: scene_set.read_maps(scene), lambda built=built: built.read_maps(built.scenes[0])):
            with pytest.raises(DataError) as error:
                read()
            assert str(error.value) == f"{tmp_path / part}.tif: {message}"


def scene_of(folder, labels, instances, facts=None):
    """A set of a road (0), a car (3) and a person (4), with one scene."""
    for name, array in (("labels", labels), ("instances", instances)):
        Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}.png")
    noise_image(labels.shape[1], labels.shape[0]).save(folder / "image.png")
    paths = (folder / f"{name}.png" for name in ("image", "labels", "instances"))
    classes = (SemanticClass(0, "road"), SemanticClass(3, "car"), SemanticClass(4, "person"))
    scene = Scene("s", *paths, facts=facts or {})
    return SceneSet(classes, (scene,)), scene


def test_ids_that_were_counted_for_each_class_are_refused(tmp_path):
    """Car 1 and person 1: a claim about the car would have the pixels of both as its target."""
    labels, instances = np.zeros((8, 12)), np.zeros((8, 12))
    for class_id, number, place in ((3, 1, np.s_[2:6, 8:11]), (3, 2, np.s_[6:8, 0:2]), (4, 1, np.s_[2:5, 1:4])):
        labels[place], instances[place] = class_id, number
    labels[2, 8] = 255
    scene_set, scene = scene_of(tmp_path, labels, instances)
    with pytest.raises(DataError) as error:
        scene_set.read_maps(scene)
    assert str(error.value) == (
        f"{scene.instance_map}: instance 1 is of car (11 pixels) and of person (9 pixels); one id for each object, "
        "whatever its class, would be right, or facts that name the class"
    )
    # another id for each; or a class that is told, as where one thing lies on another
    other = np.where(labels == 4, 3, instances)
    for ids, facts in ((other, None), (instances, {1: {"class": "car"}})):
        scene_set, scene = scene_of(tmp_path, labels, ids, facts)
        assert np.array_equal(scene_set.read_maps(scene)[1], ids)
    scene_set, scene = scene_of(
        tmp_path, labels, instances, {0: {"tissue": "x"}, 1: {"colour": "red"}, 2: {"class": "car"}}
    )
    with pytest.raises(DataError, match="instance 1 is of car"):
        scene_set.read_maps(scene)
    planes = np.concatenate([instances, np.zeros_like(instances)])  # overlapping instances
    scene_set, scene = scene_of(tmp_path, labels, planes)
    assert scene_set.read_maps(scene)[1].shape == (2, 8, 12)


@pytest.mark.parametrize(("astray", "refused"), [(0, False), (4, False), (5, True)])
def test_a_twentieth_of_an_instance_may_be_of_a_second_class(tmp_path, astray, refused):
    """Of the 80 pixels whose label is known, beside one instance that is in order."""
    labels, instances = np.zeros((8, 12)), np.full((8, 12), 7)
    labels[0, :8], labels.flat[20 : 20 + astray] = 255, 3
    instances[7, :8] = 6
    scene_set, scene = scene_of(tmp_path, labels, instances)
    if refused:
        with pytest.raises(DataError, match=r"instance 7 is of road \(75 pixels\) and of car \(5 pixels\)"):
            scene_set.read_maps(scene)
    else:
        assert np.array_equal(scene_set.read_maps(scene)[1], instances)
