"""Pictures for people: masks on an image, prediction against target, contact sheets. Pillow and numpy, no font files.

    overlay(image, masks, labels=["the nuclei left of the vessel"]).save("overlay.png")
    comparison(image, target, prediction).save("comparison.png")
    grid([[a, b], [c, d]]).save("sheet.png")

Colours are those of Okabe and Ito (2008), which most colour-blind readers can tell apart.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .masks import IGNORE_INDEX

Colour = tuple[int, int, int]

VERMILLION, SKY, GREEN = (213, 94, 0), (86, 180, 233), (0, 158, 115)
YELLOW, PURPLE, BLUE, ORANGE = (240, 228, 66), (204, 121, 167), (0, 114, 178), (230, 159, 0)
PALETTE: tuple[Colour, ...] = (VERMILLION, SKY, YELLOW, PURPLE, GREEN, BLUE, ORANGE)
WHITE, INK, GREY = (255, 255, 255), (34, 34, 34), (128, 128, 128)

MIN_SIDE = 384  # the longer side of a picture, and the least width of a legend, in pixels
MAX_LINES = 3  # of one text, before it is cut
ELLIPSIS = "…"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # not in the font either: drawn as its box for missing glyphs


def overlay(
    image: Image.Image,
    masks: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    alpha: float = 0.5,
    outline: bool = True,
) -> Image.Image:
    """Paint masks on an image, with a legend under it where there are labels.

    Args:
        image: any mode, W x H pixels. Enlarged by a whole factor if its longer side is under `MIN_SIDE` pixels.
        masks: (n, H, W), bool or 0/1; n may be 0. Later masks lie over earlier ones, all outlines over all areas.
        labels: n texts, drawn as they are and cut after `MAX_LINES` lines.
        colours: n colours (red, green, blue) in 0..255; by default those of `palette`.
        alpha: opacity of the areas in [0, 1].
        outline: draw the edge of each mask in full colour.

    Raises:
        ValueError: a mask is not (H, W), or labels or colours are not one per mask.
    """
    masks = [_mask_of(mask, image, f"mask {k}") for k, mask in enumerate(masks)]
    colours = palette(len(masks)) if colours is None else colours
    for name, values in (("labels", labels), ("colours", colours)):
        if values is not None and len(values) != len(masks):
            raise ValueError(f"{len(values)} {name} for {len(masks)} masks; one per mask is needed")
    canvas, factor = _enlarged(image)
    masks = [_enlarged_mask(mask != 0, factor) for mask in masks]
    for mask, colour in zip(masks, colours, strict=True):
        _blend(canvas, mask, colour, alpha)
    if outline:
        for mask, colour in zip(masks, colours, strict=True):
            canvas[_edge(mask, _line_width(canvas))] = colour
    picture = Image.fromarray(canvas)
    return _with_legend(picture, colours, labels) if labels else picture


def comparison(image: Image.Image, target: np.ndarray, prediction: np.ndarray) -> Image.Image:
    """Show where a prediction is right: green = both, red = only predicted, blue = only target, grey hatch = ignored.

    Args:
        image: any mode, W x H pixels; enlarged like in `overlay` and shown in grey, so that all colour means something.
        target: (H, W), values 0, 1 and 255 (ignored).
        prediction: (H, W), bool or 0/1.

    Raises:
        ValueError: a mask is not (H, W).
    """
    target, prediction = _mask_of(target, image, "target"), _mask_of(prediction, image, "prediction")
    canvas, factor = _enlarged(image.convert("RGB").convert("L"))
    target, predicted = _enlarged_mask(target, factor), _enlarged_mask(prediction, factor) != 0
    wanted, ignored = target == 1, target == IGNORE_INDEX
    parts = (
        (GREEN, wanted & predicted),
        (VERMILLION, predicted & ~wanted & ~ignored),
        (BLUE, wanted & ~predicted),
    )
    for colour, part in parts:
        _blend(canvas, part, colour, 0.6)
    _blend(canvas, ignored, WHITE, 0.6)
    _blend(canvas, ignored & _stripes(canvas.shape[:2], 2 * _line_width(canvas)), GREY, 0.9)
    return Image.fromarray(canvas)


def heat_map(image: Image.Image, values: np.ndarray) -> Image.Image:
    """The image in grey, and the values as the opacity of vermillion.

    Args:
        image: any mode, W x H pixels; enlarged like in `overlay`.
        values: (H, W) in [0, 1].

    Raises:
        ValueError: the values are not (H, W).
    """
    opacity = np.clip(_mask_of(values, image, "values"), 0, 1)
    canvas, factor = _enlarged(image.convert("RGB").convert("L"))
    opacity = _enlarged_mask(opacity, factor)[..., None]
    # darkened, so that a bright sky does not look like a value
    mixed = 0.6 * canvas * (1 - opacity) + np.asarray(VERMILLION) * opacity
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """The picture over a strip for two lines of text, however many the text fills, so that a row of them aligns.

    Args:
        picture: enlarged like in `overlay` where it is small.
        text: drawn as it is, cut with an ellipsis.
    """
    canvas, _ = _enlarged(picture.convert("RGB"))
    font = _font(max(15, min(48, canvas.shape[1] // 24)))
    line = _line_height(font)
    whole = Image.new("RGB", (canvas.shape[1], canvas.shape[0] + 2 * line + line // 2), WHITE)
    whole.paste(Image.fromarray(canvas), (0, 0))
    wrapped = _wrap(text, font, whole.width - font.size, 2)
    _draw_lines(ImageDraw.Draw(whole), wrapped, font, canvas.shape[0] + line // 4, font.size // 2)
    return whole


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Lay pictures out as a contact sheet on white.

    Args:
        rows: pictures of any sizes, all scaled to the height of the highest; rows may differ in length.

    Raises:
        ValueError: there is no picture.
    """
    if not any(rows):
        raise ValueError("the grid has no picture; at least one is needed")
    height = max(cell.height for row in rows for cell in row)
    cells = [[_at_height(cell, height) for cell in row] for row in rows]
    widths = [max(cell.width for cell in column if cell) for column in zip_longest(*cells)]
    margin = round(max(14, min(48, height // 18)) * 0.75)
    sheet = Image.new(
        "RGB", (margin + sum(widths) + margin * len(widths), margin + (height + margin) * len(rows)), WHITE
    )
    for k, row in enumerate(cells):
        x = margin
        for width, cell in zip(widths, row, strict=False):
            sheet.paste(cell, (x + (width - cell.width) // 2, margin + (height + margin) * k))
            x += width + margin
    return sheet


def palette(count: int) -> list[Colour]:
    """`count` colours: the palette, then darker, then lighter shades of it (21 in all), then from the start again."""
    towards = (None, (0, 0, 0), WHITE)
    shades = [colour if end is None else _mix(colour, end) for end in towards for colour in PALETTE]
    return [shades[k % len(shades)] for k in range(count)]


def _mix(colour: Colour, end: Colour) -> Colour:
    red, green, blue = (round(0.55 * a + 0.45 * b) for a, b in zip(colour, end, strict=True))
    return red, green, blue


# -- pixels ------------------------------------------------------------------------------------------------------------


def _mask_of(mask: np.ndarray, image: Image.Image, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != (image.height, image.width):
        raise ValueError(f"{name} is {mask.shape}; the image needs (height, width) = {(image.height, image.width)}")
    return mask


def _enlarged(image: Image.Image) -> tuple[np.ndarray, int]:
    """A copy of the pixels (H', W', 3), uint8, and the whole factor by which they grew."""
    image = image.convert("RGB")
    factor = -(-MIN_SIDE // max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    return np.array(image), factor


def _enlarged_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    return mask.repeat(factor, axis=0).repeat(factor, axis=1)


def _blend(canvas: np.ndarray, mask: np.ndarray, colour: Colour, alpha: float) -> None:
    """Mix the colour into the masked pixels of the canvas, in place."""
    canvas[mask] = np.rint((1 - alpha) * canvas[mask] + alpha * np.asarray(colour)).astype(np.uint8)


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of the mask within `width` steps (left, right, up, down) of its outside; the frame is outside."""
    inner = np.pad(mask, width)
    for _ in range(width):
        shrunk = inner.copy()
        for axis in (0, 1):
            shrunk &= np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
        inner = shrunk
    return mask & ~inner[width:-width, width:-width]


def _line_width(canvas: np.ndarray) -> int:
    """2 pixels on a small picture, more on a large one, so that lines survive its reduction to a column's width."""
    return max(2, round(max(canvas.shape[:2]) / 400))


def _stripes(shape: tuple[int, int], width: int) -> np.ndarray:
    """Diagonal stripes (H, W), bool; every third is set."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows + columns) // width % 3 == 0


def _at_height(picture: Image.Image, height: int) -> Image.Image:
    picture = picture.convert("RGB")
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.BICUBIC)


# -- text --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # what Pillow gives where it is built with FreeType
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(1.3 * font.size)


@lru_cache(maxsize=4096)
def _drawable(character: str) -> str:
    """What can be drawn of a character: itself, a space, its letter without accents, a box, or nothing."""
    category = unicodedata.category(character)
    if character.isspace() or category == "Cc":
        return " "
    if category in ("Cf", "Mn", "Me"):
        # Marks and direction overrides have no width of their own and could reorder the line.
        return ""
    if _in_font(character):
        return character
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if unicodedata.category(c) != "Mn")
    return plain if plain and all(map(_in_font, plain)) else REPLACEMENT


def _in_font(character: str) -> bool:
    font = _font(16)
    return bytes(font.getmask(character)) != bytes(font.getmask(REPLACEMENT))


def _plain(text: str) -> str:
    """The text on one line, with single spaces, in characters that the font can draw."""
    return " ".join("".join(map(_drawable, text)).split())


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many leading characters fit into the width, at least one; no character is narrower than a pixel."""
    lengths = range(1, min(len(text), int(width)) + 1)
    return max(1, bisect_right(lengths, width, key=lambda count: font.getlength(text[:count])))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int = MAX_LINES) -> list[str]:
    """Break a text into lines of at most `width` pixels, at spaces where there are some; the rest is cut with "…"."""
    rest = _plain(text)
    lines: list[str] = []
    while rest and len(lines) < max_lines:
        count = _fitting(rest, font, width)
        if count < len(rest):
            space = rest.rfind(" ", 0, count + 1)
            count = space if space > 0 else count
        lines.append(rest[:count])
        rest = rest[count:].lstrip()
    if rest:
        last = lines[-1]
        lines[-1] = last[: _fitting(last, font, width - font.getlength(ELLIPSIS))].rstrip() + ELLIPSIS
    return lines or [""]


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], font: ImageFont.FreeTypeFont, y: float, x: float
) -> None:
    """Write lines downwards from y."""
    for k, text in enumerate(lines):
        draw.text((x, y + (k + 0.5) * _line_height(font)), text, font=font, fill=INK, anchor="lm")


# -- the legend --------------------------------------------------------------------------------------------------------


def _with_legend(picture: Image.Image, colours: Sequence[Colour], texts: Sequence[str]) -> Image.Image:
    """The picture with its legend under it; narrow pictures are centred over the legend."""
    legend = _legend(colours, texts, max(picture.width, MIN_SIDE))
    whole = Image.new("RGB", (legend.width, picture.height + legend.height), WHITE)
    whole.paste(picture, ((legend.width - picture.width) // 2, 0))
    whole.paste(legend, (0, picture.height))
    return whole


def _legend(colours: Sequence[Colour], texts: Sequence[str], width: int) -> Image.Image:
    """A white strip with a swatch and a text for each colour: side by side while they fit, else on a new line."""
    font = _font(max(15, min(48, width // 40)))
    gap = round(font.size) // 2
    blocks = [_entry(colour, text, font, width - 2 * gap) for colour, text in zip(colours, texts, strict=True)]
    x = y = gap
    bottom, places = gap, []
    for block in blocks:
        if x > gap and x + block.width > width - gap:
            x, y = gap, bottom + gap // 2
        places.append((x, y))
        x, bottom = x + block.width + 3 * gap, max(bottom, y + block.height)
    strip = Image.new("RGB", (width, bottom + gap), WHITE)
    for block, place in zip(blocks, places, strict=True):
        strip.paste(block, place)
    return strip


def _entry(colour: Colour, text: str, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """One entry on white, no wider than `width` pixels."""
    side, line = round(font.size), _line_height(font)
    gap = side // 2
    lines = _wrap(text, font, width - side - gap)
    text_width = max(int(np.ceil(font.getlength(text))) for text in lines)
    block = Image.new("RGB", (side + gap + text_width, line * len(lines)), WHITE)
    swatch = Image.new("RGB", (side, side), _mix(colour, (0, 0, 0)))
    swatch.paste(colour, (1, 1, side - 1, side - 1))
    block.paste(swatch, (0, (line - side) // 2))
    _draw_lines(ImageDraw.Draw(block), lines, font, 0, side + gap)
    return block
