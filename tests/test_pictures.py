"""Pictures, pixel by pixel where that can be said, by their sizes and their text boxes elsewhere."""

import numpy as np
import pytest
from PIL import Image

from modeling_cora import pictures
from modeling_cora.pictures import (
    BLUE,
    GREEN,
    GREY,
    MIN_SIDE,
    VERMILLION,
    WHITE,
    captioned,
    comparison,
    grid,
    heat_map,
    overlay,
    palette,
)

SIZE = (400, 300)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))


@pytest.fixture
def mask():
    mask = np.zeros((SIZE[1], SIZE[0]), bool)
    mask[50:150, 100:250] = True
    return mask


def blend(pixel, colour, alpha):
    return np.asarray(pixel) * (1 - alpha) + np.asarray(colour) * alpha


def test_inside_is_the_blend_and_outside_is_untouched(image, mask):
    before = np.array(image)
    after = np.array(overlay(image, mask[None], colours=[(10, 200, 30)], alpha=0.25, outline=False))
    assert np.array_equal(after[~mask], before[~mask])
    assert np.abs(after[mask] - blend(before[mask], (10, 200, 30), 0.25)).max() <= 0.5
    assert np.array_equal(np.array(image), before)


def test_outline_is_full_colour_inside_the_mask_and_two_pixels_wide(image, mask):
    before, after = np.array(image), np.array(overlay(image, [mask], alpha=0.0))
    changed = (after != before).any(-1)
    inner = np.zeros_like(mask)
    inner[52:148, 102:248] = True
    assert not changed[~mask | inner].any()
    assert (after[mask & ~inner] == palette(1)[0]).all()


def test_outline_closes_at_the_frame(image):
    after = np.array(overlay(image, np.ones((1, 300, 400), bool), alpha=0.0))
    assert (after[[0, -1]] == palette(1)[0]).all() and (after[:, [0, -1]] == palette(1)[0]).all()


def test_later_masks_lie_over_earlier_ones(image, mask):
    after = np.array(overlay(image, [mask, mask], colours=[(255, 0, 0), (0, 0, 255)], alpha=1.0))
    assert (after[mask] == (0, 0, 255)).all()


def test_first_colours_are_distinct_and_long_lists_go_on():
    colours = palette(50)
    assert len(set(colours)) == 21 and colours[21] == colours[0]
    first = np.array(colours[:7], int)
    distances = np.abs(first[:, None] - first[None]).sum(-1)[~np.eye(7, dtype=bool)]
    assert distances.min() > 80


@pytest.mark.parametrize("masks", [[], np.zeros((0, 300, 400), bool)])
def test_no_mask_gives_the_image_back(image, masks):
    assert np.array_equal(np.array(overlay(image, masks, labels=[])), np.array(image))


@pytest.mark.parametrize(("size", "factor"), [((1, 40), 10), ((40, 1), 10), ((96, 96), 4), ((1, 1), 384), (SIZE, 1)])
def test_small_images_grow_by_a_whole_factor(size, factor):
    width, height = size
    mask = np.arange(width * height).reshape(1, height, width) % 2 == 0
    picture = overlay(Image.new("RGB", size, (9, 9, 9)), mask, colours=[(255, 0, 0)], alpha=1.0)
    assert picture.size == (width * factor, height * factor)
    expected = mask[0].repeat(factor, 0).repeat(factor, 1)
    assert np.array_equal(np.array(picture)[..., 0] == 255, expected)


def test_legend_lies_under_the_picture_and_holds_the_colours(image, mask):
    plain = overlay(image, [mask, ~mask])
    picture = overlay(image, [mask, ~mask], labels=["nuclei", "stroma"])
    assert picture.width == plain.width and picture.height > plain.height
    assert np.array_equal(np.array(picture)[:300], np.array(plain))
    strip = np.array(picture)[300:]
    for colour in palette(2):
        assert (strip == colour).all(-1).sum() > 100
    assert (strip[[0, -1]] == WHITE).all() and (strip[:, [0, -1]] == WHITE).all(), "nothing touches the border"


def test_narrow_pictures_are_centred_over_a_readable_legend():
    picture = np.array(overlay(Image.new("RGB", (1, 40)), np.zeros((1, 40, 1)), labels=["a"]))
    assert picture.shape[1] == MIN_SIDE
    dark = (picture[:400] == 0).all(-1).any(0).nonzero()[0]
    assert (dark.min(), dark.max()) == (187, 196)


@pytest.mark.parametrize("text", ["word " * 2000, "x" * 10_000, "W" * 10_000, "漢字" * 5000])
def test_long_texts_are_wrapped_and_cut_with_an_ellipsis(text):
    font = pictures._font(16)
    lines = pictures._wrap(text, font, 200)
    assert len(lines) == pictures.MAX_LINES and lines[-1].endswith("…")
    assert all(0 < font.getlength(line) <= 200 for line in lines)


def test_wrapping_keeps_every_word_of_a_text_that_fits():
    font, text = pictures._font(16), "which nuclei are small, dark and close to the vessel"
    lines = pictures._wrap(text, font, 170)
    assert len(lines) > 1 and " ".join(lines) == text
    assert all(font.getlength(line) <= 170 for line in lines)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("two\nlines\tand\x00more", "two lines and more"),
        ("\u202eright to left\u202c", "right to left"),
        ("Ärger, épithélium", "Arger, epithelium"),
        ("漢🙂", "\ufffd\ufffd"),
        ("<b>50% {x} \\n</b>", "<b>50% {x} \\n</b>"),
        ("", ""),
    ],
)
def test_unusual_text_becomes_plain_text(image, mask, text, drawn):
    assert pictures._plain(text) == drawn
    overlay(image, [mask], labels=[text])


def test_legend_entries_never_overlap():
    font = pictures._font(15)
    colours, texts = [(k, 0, 0) for k in range(9)], ["query " * (1 + 5 * (k % 4)) for k in range(9)]
    width = 384 - 2 * (font.size // 2)
    blocks = [pictures._entry(*entry, font, width) for entry in zip(colours, texts, strict=True)]
    strip = np.array(pictures._legend(colours, texts, 384))
    # Blocks on top of each other would hide ink: all of it must be in the strip.
    assert (strip != 255).any(-1).sum() == sum((np.array(block) != 255).any(-1).sum() for block in blocks)


def test_comparison_colours(image):
    target, prediction = np.zeros((2, 300, 400), np.uint8)
    target[:100, :], target[250:] = 1, 255
    prediction[50:150], prediction[250:] = 1, 1
    grey = np.array(image.convert("L").convert("RGB"))
    after = np.array(comparison(image, target, prediction))
    for rows, colour in ((slice(0, 50), BLUE), (slice(50, 100), GREEN), (slice(100, 150), VERMILLION)):
        assert np.abs(after[rows] - blend(grey[rows], colour, 0.6)).max() <= 0.5
    assert np.array_equal(after[150:250], grey[150:250])
    ignored = after[250:300]
    hatch = (np.abs(ignored.astype(int) - GREY).max(-1) <= 18).mean()
    assert 0.3 < hatch < 0.6 and (ignored.max(-1).astype(int) - ignored.min(-1)).max() <= 1, "grey stripes, no colour"


def test_grid_scales_cells_to_one_height_and_keeps_their_colours():
    cells = [
        [Image.new("RGB", (40, 80), (255, 0, 0)), Image.new("L", (100, 160), 7)],
        [Image.new("RGB", (60, 20), GREEN)],
    ]
    sheet = np.array(grid(cells))
    margin = round(14 * 0.75)
    assert sheet.shape == (margin + 2 * (160 + margin), margin + (480 + margin) + (100 + margin), 3)
    assert (sheet == (255, 0, 0)).all(-1).sum() == 80 * 160
    assert (sheet == GREEN).all(-1).sum() == 480 * 160
    assert (sheet == 7).all(-1).sum() == 100 * 160
    gaps = [slice(0, margin), slice(margin + 480, 2 * margin + 480), slice(2 * margin + 580, None)]
    assert all((sheet[:, gap] == WHITE).all() for gap in gaps)
    assert (sheet[[0, -1]] == WHITE).all() and (sheet[:, [0, -1]] == WHITE).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image, mask: overlay(image, [mask.T]), r"mask 0 is \(400, 300\).*\(300, 400\)"),
        (lambda image, mask: overlay(image, [mask], labels=["a", "b"]), "2 labels for 1 masks"),
        (lambda image, mask: comparison(image, mask.T, mask), r"target is \(400, 300\)"),
        (lambda image, mask: comparison(image, mask, mask[:5]), r"prediction is \(5, 400\)"),
        (lambda image, mask: grid([[], []]), "no picture"),
    ],
)
def test_wrong_inputs_are_named(image, mask, call, message):
    with pytest.raises(ValueError, match=message):
        call(image, mask)


def test_captions_leave_the_picture_alone_and_align():
    picture = Image.new("RGB", (400, 100), (10, 200, 30))
    short, long = captioned(picture, "IoU 0.50  road"), captioned(picture, "word " * 200)
    assert short.size == long.size and short.width == 400
    assert np.array_equal(np.asarray(short)[:100], np.asarray(picture))
    assert (np.asarray(long)[100:] < 100).sum() > (np.asarray(short)[100:] < 100).sum() > 0


def test_heat_map_is_the_colour_where_the_value_is_one():
    values = np.zeros((400, 500))
    values[:, 250:] = 1.0
    picture = np.asarray(heat_map(Image.new("RGB", (500, 400), (100, 100, 100)), values))
    assert (picture[:, 250:] == VERMILLION).all()
    assert (picture[:, :250] == 60).all()
    with pytest.raises(ValueError, match="values"):
        heat_map(Image.new("RGB", (5, 4)), np.zeros((5, 4)))
