"""Polygons painted as the public code of their data sets paints them, pixel for pixel.

ReasonSeg's masks were painted by OpenCV 4.8 (`paint_polygon`), COCO's by its own toolbox (`coco_polygon`); the two
differ by about a pixel along the outline, and a target mask that is off by it is another target mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_ONE = 1 << 16
"""One pixel in OpenCV's fixed-point numbers (`XY_ONE` of `imgproc/src/drawing.cpp`)."""

_COCO_SCALE = 5
"""Boundary points that COCO's toolbox takes in each pixel (`scale` of `rleFrPoly`)."""

Points = Sequence[Sequence[float]] | np.ndarray


def paint_polygon(mask: np.ndarray, points: Points, value: int) -> None:
    """Paints a polygon with its outline of one pixel in place, as `cv2.polylines` and `cv2.fillPoly` of OpenCV 4.8 do.

    Args:
        mask: (H, W), any integer dtype.
        points: (N, 2), x and y in pixels, truncated to whole numbers; may lie outside of the mask. An outline that
            crosses itself is filled by the even-odd rule.
        value: what its pixels become.
    """
    height, width = mask.shape
    corners = [(int(x), int(y)) for x, y in points]
    edges = []
    for start, end in zip(corners[-1:] + corners[:-1], corners, strict=True):
        clipped = _clip_line(width, height, start, end)
        visible = all(0 <= x < width and 0 <= y < height for x, y in clipped)
        if visible:
            _paint_line(mask, *clipped, value)
        if start[1] != end[1]:
            edges.append(_edge(start, end, clipped, whole=visible and clipped == (start, end)))
    for row, left, right in _spans(np.array(edges, np.int64).reshape(-1, 4), height):
        mask[row, max(left, 0) : max(right + 1, 0)] = value


def _quotient(dividend: int, divisor: int) -> int:
    """Division as C does it: rounded towards zero."""
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


Corner = tuple[int, int]


def _clip_line(width: int, height: int, start: Corner, end: Corner) -> tuple[Corner, Corner]:
    """The ends of the part of a line inside of the image, as OpenCV's `clipLine` finds them.

    Where no part is inside, an end stays outside; the other may have moved, and `_edge` goes by where it is then.
    """
    (x1, y1), (x2, y2) = start, end
    right, bottom = width - 1, height - 1
    if max(x1, x2) < 0 or min(x1, x2) > right or max(y1, y2) < 0 or min(y1, y2) > bottom:
        return start, end
    # each end is clipped with the other one as it is by then, and the order decides which pixels rounding takes
    if not 0 <= y1 <= bottom:
        border = 0 if y1 < 0 else bottom
        x1, y1 = x1 + _quotient((border - y1) * (x2 - x1), y2 - y1), border
    if not 0 <= y2 <= bottom:
        border = 0 if y2 < 0 else bottom
        x2, y2 = x2 + _quotient((border - y2) * (x2 - x1), y2 - y1), border
    if max(x1, x2) < 0 or min(x1, x2) > right:
        return (x1, y1), (x2, y2)
    if not 0 <= x1 <= right:
        border = 0 if x1 < 0 else right
        x1, y1 = border, y1 + _quotient((border - x1) * (y2 - y1), x2 - x1)
    if not 0 <= x2 <= right:
        border = 0 if x2 < 0 else right
        x2, y2 = border, y2 + _quotient((border - x2) * (y2 - y1), x2 - x1)
    return (x1, y1), (x2, y2)


def _paint_line(mask: np.ndarray, start: Corner, end: Corner, value: int) -> None:
    """An 8-connected line from left to right; where it lies halfway between two pixels, the one nearer its start."""
    (x1, y1), (x2, y2) = sorted((start, end), key=lambda corner: corner[0])
    steps, rise = max(abs(x2 - x1), abs(y2 - y1)), min(abs(x2 - x1), abs(y2 - y1))
    along = np.arange(steps + 1)
    across = -((steps - 2 * rise * along) // max(2 * steps, 1))
    if abs(y2 - y1) > abs(x2 - x1):
        across, along = along, across
    mask[y1 + (across if y2 >= y1 else -across), x1 + along] = value


def _edge(start: Corner, end: Corner, clipped: tuple[Corner, Corner], whole: bool) -> tuple[int, int, int, int]:
    """First row, row after the last, x in the first row and x per row of a polygon's side (x in fixed point)."""
    (x1, y1), (x2, y2) = clipped if clipped[0][1] != clipped[1][1] else (start, end)
    slope = _quotient((x2 - x1) * _ONE, y2 - y1)
    # OpenCV rounds the x of sides that lie in the image whole, and cuts off the fraction of all others
    rounding = _ONE // 2 if whole else 0
    top, bottom = min(start[1], end[1]), max(start[1], end[1])
    x, y = (x1, y1) if start[1] < end[1] else (x2, y2)
    return top, bottom, x * _ONE + rounding + (top - y) * slope, slope


def _spans(edges: np.ndarray, height: int) -> Iterator[tuple[int, int, int]]:
    """Row, first and last column of every run of pixels between two neighbouring sides."""
    if not len(edges):
        return
    tops, bottoms, starts, slopes = edges.T
    for row in range(max(int(tops.min()), 0), min(int(bottoms.max()), height)):
        crossing = (tops <= row) & (row < bottoms)
        columns = np.sort(starts[crossing] + (row - tops[crossing]) * slopes[crossing]) // _ONE
        yield from ((row, left, right) for left, right in columns.reshape(-1, 2).tolist())


def coco_polygon(points: Points, height: int, width: int) -> np.ndarray:
    """bool (H, W): a polygon as COCO's toolbox fills it (`rleFrPoly` of `maskApi.c`, which pycocotools runs).

    The outline is walked in fifths of a pixel. Where it steps over the middle of a column of pixels, the column changes
    sides from the next pixel centre below on.

    Args:
        points: (N, 2), x and y in pixels (the centre of the first pixel is 0.5, 0.5).
    """
    # int() of C, as astype, rounds towards zero
    corners = (_COCO_SCALE * np.asarray(points, np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    if not len(corners):
        return np.zeros((height, width), bool)
    path = np.concatenate([_dense(a, b) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)])
    (u, v), (u_before, v_before) = path[1:].T, path[:-1].T
    x = (np.minimum(u, u_before) + 0.5) / _COCO_SCALE - 0.5
    y = (np.minimum(v, v_before) + 0.5) / _COCO_SCALE - 0.5
    counted = (u != u_before) & (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    mask = np.zeros((height, width), bool)
    columns = x[counted].astype(np.int64)
    if not len(columns):
        return mask
    # no other column is touched: a closed outline changes sides an even number of times in each
    first, last = columns.min(), columns.max() + 1
    turns = (columns - first) * height + np.ceil(np.clip(y[counted], 0, height)).astype(np.int64)
    pixels = (last - first) * height
    inside = np.cumsum(np.bincount(turns, minlength=pixels + 1)[:pixels]) % 2 == 1
    mask[:, first:last] = inside.reshape(-1, height).T
    return mask


def _dense(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Points (N, 2) of a side, one for each unit of its longer direction, in the order of the walk."""
    size = np.abs(end - start)
    major = 0 if size[0] >= size[1] else 1
    first, last = (end, start) if start[major] > end[major] else (start, end)
    steps = np.arange(size[major] + 1)
    slope = (last[1 - major] - first[1 - major]) / max(size[major], 1)
    points = np.empty((len(steps), 2), np.int64)
    points[:, major] = first[major] + steps
    points[:, 1 - major] = (first[1 - major] + slope * steps + 0.5).astype(np.int64)
    return points if first is start else points[::-1]
