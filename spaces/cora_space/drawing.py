"""What a visitor sees of an answer: the picture with its masks, a legend, and maps of uncertainty."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from modeling_cora.consistency import MAX_VARIANCE
from modeling_cora.pictures import Colour, heat_map, overlay, palette

from .answering import Answer

LEAST_SIDE, MOST_SIDE = 768, 1024
"""The longer side of a shown picture lies between them, in pixels."""

ANCHOR_COLOUR: Colour = (255, 255, 255)


def shown_picture(image: Image.Image) -> Image.Image:
    """The image at the size at which it is shown."""
    scale = min(max(1.0, LEAST_SIDE / max(image.size)), MOST_SIDE / max(image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def shown_masks(answer: Answer, threshold: float) -> np.ndarray:
    """bool (n, H', W') at the size of the shown picture.

    Args:
        threshold: of the probability, in (0, 1).
    """
    return answer.masks(threshold, (answer.picture.height, answer.picture.width))


def draw(answer: Answer, masks: np.ndarray, opacity: float) -> Image.Image:
    """The shown picture with masks, their numbers in the legend, and what was pointed at.

    Args:
        masks: of `shown_masks`.
        opacity: of their areas, in [0, 1].
    """
    colours = palette(len(masks))
    picture = overlay(answer.picture, masks, colours=colours, alpha=opacity)
    if answer.anchor is not None:
        anchor = np.asarray(Image.fromarray(answer.anchor).resize(picture.size, Image.Resampling.NEAREST))
        picture = overlay(picture, [anchor], colours=[ANCHOR_COLOUR], alpha=0.15)
    for number, (mask, colour) in enumerate(zip(masks, colours, strict=True), start=1):
        if mask.any():
            _number(picture, str(number), _inside(mask), colour)
    return picture


def _inside(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel far from the mask's edge and from the frame, to one part in a hundred of the picture."""
    step = max(1, max(mask.shape) // 100)
    small = np.pad(mask[::step, ::step], 1)
    if not small.any():  # thinner than the step
        y, x = np.argwhere(mask)[len(np.argwhere(mask)) // 2]
        return int(x), int(y)
    y, x = np.unravel_index(distance_transform_edt(small).argmax(), small.shape)
    return (int(x) - 1) * step, (int(y) - 1) * step


def _number(picture: Image.Image, text: str, place: tuple[int, int], colour: Colour) -> None:
    radius = max(picture.size) // 45
    (x, y), draw = place, ImageDraw.Draw(picture)
    # whole within the picture
    x, y = (min(max(at, radius + 1), side - radius - 2) for at, side in zip((x, y), picture.size, strict=True))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=ink_on(colour), width=2)
    font = ImageFont.load_default(size=round(1.4 * radius))
    draw.text((x, y), text, font=font, fill=ink_on(colour), anchor="mm")


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more (the relative luminance of WCAG 2 at which they are equal)."""
    linear = [(c / 255) / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def legend(answer: Answer, masks: np.ndarray) -> str:
    """HTML: for each query its number in its colour, its text, the confidence and how much of the picture it covers."""
    rows = []
    scores = answer.logits.scores.tolist()
    for number, (query, score, mask, colour) in enumerate(
        zip(answer.queries, scores, masks, palette(len(masks)), strict=True), start=1
    ):
        covered = float(mask.mean())
        area = f"{_percent(covered)} of the picture" if mask.any() else "nothing above this threshold"
        back, ink = ("#{:02x}{:02x}{:02x}".format(*one) for one in (colour, ink_on(colour)))
        rows.append(
            f'<li><span class="cora-swatch" style="background:{back};color:{ink}">{number}</span>'
            f'<span class="cora-query">{html.escape(query)}</span>'
            f'<span class="cora-score">confidence <b>{score:.2f}</b> · {area}</span></li>'
        )
    return f'<ol class="cora-legend">{"".join(rows)}</ol>'


def _percent(share: float) -> str:
    return "under 1%" if share < 0.01 else f"{share:.0%}"


def uncertainty_maps(answer: Answer) -> list[tuple[Image.Image, str]]:
    """For each query a map and its caption; [] where no rephrasings were asked.

    Shown is the standard deviation, as a part of the largest there can be, since variances are small and hard to see.
    """
    variances = answer.logits.uncertainty((answer.picture.height, answer.picture.width))
    if variances is None:
        return []
    maps = [heat_map(answer.picture, one) for one in (variances / MAX_VARIANCE).sqrt().numpy()]
    return list(zip(maps, numbered(answer.queries), strict=True))


def numbered(queries: Sequence[str]) -> list[str]:
    return [f"{number}  {query}" for number, query in enumerate(queries, start=1)]


def mask_at(masks: np.ndarray, place: Sequence[int]) -> np.ndarray:
    """What a click at (x, y) means: the smallest mask there; else a spot around it, a twentieth of the picture wide.

    Args:
        masks: bool (n, H, W), n may be 0.

    Returns:
        bool (H, W).
    """
    height, width = masks.shape[1:]
    x, y = min(max(int(place[0]), 0), width - 1), min(max(int(place[1]), 0), height - 1)
    hit = [mask for mask in masks if mask[y, x]]
    if hit:
        return min(hit, key=np.count_nonzero)
    rows, columns = np.ogrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= (max(height, width) / 40) ** 2
