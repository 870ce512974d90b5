"""Polygons as OpenCV and COCO's toolbox paint them, and COCO's run lengths."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from datasets_scripts.coco import run_length_mask, text_run_lengths
from datasets_scripts.polygons import coco_polygon, paint_polygon

# CRC-32 of the packed masks of polygon(0), polygon(1), ... as painted by opencv-python-headless 4.8.1.78
# (cv2.polylines and cv2.fillPoly) and by pycocotools 2.0.11 (frPyObjects, merge, decode).
OPENCV = """
a9fdd664 56f8ff8a 5983e1da f4024686 11a70227 c3de0017 3598e229 4bf51871 91007732 bf4400b6 57fdfc35 e76c6c64
2e8a9d41 67d45fb3 b4ed4b87 2be7472c ec394fd2 22d59d90 1be584d1 c21b76cc 0b4c72aa fdb72e83 57a42841 985726ed
24a026d8 fe9a3904 08085093 3b6f73b7 bbbc2b28 4e6bc88b 3ac31166 4f5b3ad5 d1bf47ff 78b84ed9 c6c04ff9 a1aa819f
a97c0589 fd13d174 ca38508d 19df7e46 3c8c28f3 325f916c 82133a00 9cd0bf82 665b16b2 1ea38597 dc8e7250 8c2bad6e
"""
PYCOCOTOOLS = """
5428f929 e143865b 165a9997 3ae23b31 c58a13c6 00237106 480a4cec 6a437daf 512350b9 c3270d93 2cc4f284 2c8a4dd6
4f82ab5d b334fb5d 5f3d687e 372e76f7 71618303 d00a65a3 3de68419 c062170a 10b57f14 e13a202e b839a099 b0a08da9
859db811 2748e903 35624b17 85ec23b5 3a2d3790 ead9162b 718de4e3 096c03c1 4f7f441f d6d64a60 704e1303 3e8e9bc4
6940a0bb fd6be726 5bf1f03e 453f568f 2d2c1cba 05606c0c 6a7d33a0 15c330c1 088b67d4 ae68806c a3930b4c 5953c0d8
"""


def polygon(k):
    """Height, width and points of the k-th polygon: crossing sides, fractions, and corners outside of the image."""
    height, width = 20 + 7 * k % 50, 20 + 11 * k % 60
    points = [
        (
            ((k + 1) * 7919 * (i + 1) + 104729 * (i + 3) ** 2) % (32 * width) / 16 - width / 2,
            ((k + 3) * 6007 * (i + 2) + 15485863 * (i + 1) ** 2) % (32 * height) / 16 - height / 2,
        )
        for i in range(3 + k % 6)
    ]
    return height, width, points


def painted(height, width, points):
    mask = np.zeros((height, width), np.uint8)
    paint_polygon(mask, points, 1)
    return mask.astype(bool)


def crc(mask):
    return f"{zlib.crc32(np.packbits(mask).tobytes()):08x}"


@pytest.mark.parametrize(("truth", "fill"), [(OPENCV, painted), (PYCOCOTOOLS, lambda h, w, p: coco_polygon(p, h, w))])
def test_polygons_are_those_of_the_public_code(truth, fill):
    cases = [polygon(k) for k in range(48)]
    assert [crc(fill(*case)) for case in cases] == truth.split()


def inside_and_far(x, y, points):
    """Even-odd rule by counting crossings of a ray, and whether the point is more than 1.5 pixels from every side."""
    inside, far = False, True
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            inside = not inside
        length = (x2 - x1) ** 2 + (y2 - y1) ** 2
        t = min(1, max(0, ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length)) if length else 0
        far &= (x - x1 - t * (x2 - x1)) ** 2 + (y - y1 - t * (y2 - y1)) ** 2 > 1.5**2
    return inside, far


@pytest.mark.parametrize(("fill", "centre"), [(painted, 0.0), (lambda h, w, p: coco_polygon(p, h, w), 0.5)])
def test_pixels_far_from_the_outline_follow_the_even_odd_rule(fill, centre):
    checked = 0
    for k in range(1, 48, 9):
        height, width, points = polygon(k)
        points = [(float(int(x)), float(int(y))) for x, y in points]
        mask = fill(height, width, points)
        for row in range(0, height, 2):
            for column in range(0, width, 2):
                inside, far = inside_and_far(column + centre, row + centre, points)
                if far:
                    assert mask[row, column] == inside, (k, row, column)
                    checked += 1
    assert checked > 1000


def test_degenerate_polygons_paint_what_there_is():
    assert painted(5, 5, [(2, 3)]).nonzero() == (np.array([3]), np.array([2]))
    assert not painted(5, 5, []).any() and not painted(5, 5, [(-9, -9), (-5, 7), (-1, -2)]).any()
    assert not coco_polygon([], 5, 5).any() and not coco_polygon([(1, 1), (4, 4)], 5, 5).any()
    assert coco_polygon([(1, 0), (4, 0), (4, 2), (1, 2)], 3, 5).tolist() == [[0, 1, 1, 1, 0]] * 2 + [[0] * 5]


def run_lengths(mask):
    """Pixel by pixel, down the columns."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def as_text(runs):
    """COCO's text, from its description: signed numbers of 5 bits to a character, differences from the fourth on."""
    text = ""
    for index, run in enumerate(runs):
        number = run - runs[index - 2] if index > 2 else run
        bits = next(n for n in range(5, 60, 5) if -(2 ** (n - 1)) <= number < 2 ** (n - 1))
        number %= 2**bits
        for k in range(0, bits, 5):
            text += chr(48 + (number >> k & 31) + (32 if k + 5 < bits else 0))
    return text


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_run_lengths_in_both_forms_give_the_mask_back(share):
    mask = np.random.default_rng(0).random((37, 61)) < share
    mask[5:30, 10:40] ^= True
    runs = run_lengths(mask)
    assert np.array_equal(run_length_mask(runs, 37, 61), mask)
    assert text_run_lengths(as_text(runs)) == runs


def test_known_run_length_texts():
    # pycocotools 2.0.11: encode of zeros, ones, and a 100x90 array with [20:70, 30:33] and [5, 40] set
    assert text_run_lengths("Xi8") == [9000] and text_run_lengths("0Xi8") == [0, 9000]
    mask = np.zeros((100, 90), bool)
    mask[20:70, 30:33] = mask[5, 40] = True
    counts = r"\n2b1b1000]e0_NSU4"
    assert np.array_equal(run_length_mask(text_run_lengths(counts), 100, 90), mask)


@pytest.mark.parametrize(
    ("text", "message"), [("a", "ends within"), ("5 ", "character ' '"), ("5p", "character 'p'"), ("é", "character")]
)
def test_damaged_run_length_texts(text, message):
    with pytest.raises(ValueError, match=message):
        text_run_lengths(text)


@pytest.mark.parametrize("runs", [[], [11], [5, -1, 8], [10**12]])
def test_run_lengths_of_another_size(runs):
    with pytest.raises(ValueError, match="12 would be right"):
        run_length_mask(runs, 3, 4)
