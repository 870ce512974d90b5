"""What stands beside the road: buildings, people, bicycles, trees, lamps, signs and signals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .shapes import (
    CIRCLE,
    NEAREST,
    PAINTS,
    RUBBER,
    Camera,
    Colour,
    Face,
    Part,
    Rect,
    Thing,
    body,
    disc,
    pick,
    shade,
    stroke,
    upright,
    varied,
)

FACADES: dict[str, Colour] = {
    "red": (158, 66, 52),
    "yellow": (218, 186, 104),
    "white": (226, 222, 212),
    "grey": (134, 134, 136),
    "brown": (114, 82, 60),
    "blue": (104, 138, 182),
    "green": (118, 156, 120),
    "orange": (214, 140, 88),
}


FOLIAGE: dict[str, Colour] = {"green": (62, 112, 46), "orange": (196, 104, 32), "yellow": (204, 172, 48)}


LAMPLIGHT = (238, 206, 130)
SKIN = ((242, 204, 172), (214, 164, 124), (152, 104, 72), (96, 64, 46))


def building(
    camera: Camera, rng: np.random.Generator, plot: Rect, height: float, palette: Sequence[str], lit: float
) -> Thing:
    """A house on its plot, which lies left or right of the camera. `lit`: fraction of windows with light in them."""
    word = pick(rng, palette)
    colour = varied(rng, FACADES[word], 16)
    house = body(camera, plot, 0.0, height)
    wall = plot.x0 if plot.x0 > 0 else plot.x1
    thing = Thing("building", max(plot.z0, NEAREST), plot.z1, word, wall=wall, far_depth=plot.z1)
    thing.footprint, thing.height = plot.corners, height
    sides = [(house.side, float(rng.uniform(0.68, 1.0))), (house.near, float(rng.uniform(0.8, 1.06)))]
    storey, spacing = float(rng.uniform(2.7, 3.6)), float(rng.uniform(1.9, 3.6))
    style = pick(rng, ("tall", "wide", "shop"))
    glass = varied(rng, (58, 72, 88) if rng.random() < 0.7 else (120, 140, 160), 18)
    for face, light in sides:
        if face is not None:
            thing.parts.append(face.filled(shade(colour, light)))
            thing.parts += _facade(rng, face, shade(colour, light), (storey, spacing), style, glass, lit)
    return thing


def _facade(
    rng: np.random.Generator,
    face: Face,
    wall: Colour,
    grid: tuple[float, float],
    style: str,
    glass: Colour,
    lit: float,
) -> list[Part]:
    """Roof edge, windows and door (or shop windows) of a wall; `grid`: metres of a storey and between windows."""
    rows, columns = max(1, int(face.height / grid[0])), max(1, min(9, int(face.length / grid[1])))
    parts = [face.pane(0, 1, 0.975, 1, shade(wall, 0.75)), face.pane(0, 1, 0, 0.02, shade(wall, 0.6))]
    lights, door = rng.random((rows, columns)) < lit, float(rng.uniform(0.15, 0.85))
    fascia = varied(rng, shade(wall, 0.7), 30)
    if face.pixels < 1.5 * max(rows, columns):
        return parts  # too far away for windows to be seen
    half, bottom, top = {"tall": (0.22, 0.18, 0.85), "wide": (0.38, 0.35, 0.8), "shop": (0.3, 0.25, 0.8)}[style]
    windows = np.empty((rows, columns, 4))
    windows[..., :2] = np.arange(columns)[None, :, None] + (0.5 - half, 0.5 + half)
    windows[..., 2:] = np.arange(rows)[:, None, None] + (bottom, top)
    if style == "shop":
        windows[0] += (half - 0.44, 0.44 - half, 0.06 - bottom, 0.72 - top)
    windows /= (columns, columns, rows, rows)
    for corners, glows in zip(face.panes(windows.reshape(-1, 4)), lights.ravel().tolist(), strict=True):
        parts.append(Part(corners, LAMPLIGHT if glows else glass, glows=glows, inside=True))
    if style == "shop":
        parts.append(face.pane(0.02, 0.98, 0.76 / rows, 0.98 / rows, fascia))
    else:
        parts.append(face.pane(door - 0.05, door + 0.05, 0, 0.8 / rows, shade(wall, 0.45)))
    return parts


def person(camera: Camera, rng: np.random.Generator, x: float, z: float) -> Thing:
    word = pick(rng, tuple(PAINTS))
    top = varied(rng, PAINTS[word])
    dressed_alike = rng.random() < 0.5
    legs = shade(top, 0.82) if dressed_alike else varied(rng, pick_trousers(rng))
    height, stride = float(rng.uniform(1.5, 1.95)), float(rng.uniform(0.02, 0.3))
    skin, hair = (
        varied(rng, SKIN[int(rng.integers(4))], 8),
        varied(rng, ((40, 28, 20), (120, 84, 40))[rng.random() < 0.3]),
    )
    k = height / 1.75
    build = float(rng.uniform(0.2, 0.27)) * k
    coat_end = float(rng.uniform(0.55, 0.85)) * k
    thing = Thing(
        "person", z, z, word, [], ((x - 0.3, z), (x + 0.3, z), (x + 0.3, z + 0.3), (x - 0.3, z + 0.3)), height
    )
    for side in (-1, 1):
        foot = side * (stride + 0.06)
        leg = [
            (side * 0.02, 0.9 * k),
            (side * 0.19 * k, 0.9 * k),
            (foot + side * 0.08, 0.05),
            (foot - side * 0.07, 0.05),
        ]
        thing.parts.append(upright(camera, x, z, leg, legs))
        shoe = [(foot - 0.11, 0), (foot + 0.11, 0), (foot + 0.09, 0.09), (foot - 0.09, 0.09)]
        thing.parts.append(upright(camera, x, z, shoe, RUBBER))
        arm = [
            (side * build, 1.42 * k),
            (side * (build + 0.1 + stride * 0.4), 0.98 * k),
            (side * (build + stride * 0.4), 0.86 * k),
        ]
        thing.parts.append(stroke(camera, x, z, arm, 0.12 * k, shade(top, 0.85)))
    coat = [
        (-build * 1.08, coat_end),
        (build * 1.08, coat_end),
        (build * 1.1, 1.4 * k),
        (0, 1.5 * k),
        (-build * 1.1, 1.4 * k),
    ]
    thing.parts.append(upright(camera, x, z, coat, top))
    thing.parts.append(disc(camera, x, z, (0, 1.62 * k), 0.15 * k, hair))
    thing.parts.append(disc(camera, x, z, (0, 1.59 * k), 0.115 * k, skin))
    return thing


def pick_trousers(rng: np.random.Generator) -> Colour:
    return ((44, 52, 84), (38, 38, 40), (96, 92, 84), (128, 106, 74))[int(rng.integers(4))]


def bicycle(camera: Camera, rng: np.random.Generator, x: float, z: float) -> Thing:
    """A parked bicycle, seen from its side or, foreshortened, partly from its end."""
    frame = varied(rng, PAINTS[pick(rng, ("red", "blue", "green", "yellow", "orange", "white"))])
    turn, radius = float(rng.uniform(0.55, 1.0)) * (1 if rng.random() < 0.5 else -1), 0.36
    thing = Thing("bicycle", z, z, "", [], ((x - 0.8, z), (x + 0.8, z), (x + 0.8, z + 0.2), (x - 0.8, z + 0.2)), 1.0)
    for hub in (-0.55, 0.55):
        ring = [((hub + radius * c) * turn, radius + radius * s) for c, s in (*CIRCLE, CIRCLE[0])]
        thing.parts.append(stroke(camera, x, z, ring, 0.075, RUBBER))
    bars = (
        [(-0.55, radius), (-0.22, 0.86), (0.36, 0.84), (-0.04, 0.34), (-0.55, radius)],
        [(-0.22, 0.86), (-0.04, 0.34)],
        [(0.55, radius), (0.36, 0.84), (0.33, 1.02)],
    )
    for bar in bars:
        thing.parts.append(stroke(camera, x, z, [(dx * turn, y) for dx, y in bar], 0.075, frame))
    for bar in ([(-0.36, 0.95), (-0.12, 0.95)], [(0.22, 1.05), (0.44, 1.02)]):
        thing.parts.append(stroke(camera, x, z, [(dx * turn, y) for dx, y in bar], 0.09, RUBBER))
    return thing


def tree(
    camera: Camera, rng: np.random.Generator, x: float, z: float, word: str, hue: Colour, clumps: int = 16
) -> Thing:
    """A tree with a round crown of `clumps` of leaves in the hue of the season, or a conifer, which stays green."""
    height, conifer = float(rng.uniform(4.0, 8.5)), rng.random() < 0.25
    if conifer and word != "green":
        word, hue = "green", FOLIAGE["green"]
    leaves, bark = varied(rng, hue, 18), varied(rng, (92, 70, 52), 22)
    trunk = float(rng.uniform(0.13, 0.28))
    crown_y, crown_r = 0.66 * height, float(rng.uniform(0.24, 0.34)) * height
    thing = Thing("tree", z, z, word, [], ((x - 1, z), (x + 1, z), (x + 1, z + 1.5), (x - 1, z + 1.5)), height)
    trunk_points = [(-trunk, 0), (trunk, 0), (trunk * 0.6, crown_y), (-trunk * 0.6, crown_y)]
    thing.parts.append(upright(camera, x, z, trunk_points, bark))
    if conifer:
        for k in range(4):
            low, high, half = (0.18 + 0.19 * k) * height, (0.48 + 0.175 * k) * height, crown_r * (1 - 0.2 * k)
            tier = [(-half, low), (half, low), (0, high)]
            thing.parts.append(upright(camera, x, z, tier, shade(leaves, 0.8 + 0.1 * k)))
        return thing
    thing.parts.append(disc(camera, x, z, (0, crown_y), crown_r * 0.86, shade(leaves, 0.78)))
    for angle, distance, size, light in rng.random((clumps, 4)).tolist():
        distance = 0.75 * math.sqrt(distance) * crown_r
        dx, dy = distance * math.cos(2 * math.pi * angle), distance * math.sin(2 * math.pi * angle)
        tone = 0.72 + 0.3 * light + 0.22 * dy / crown_r
        thing.parts.append(disc(camera, x, z, (dx, crown_y + dy), (0.2 + 0.26 * size) * crown_r, shade(leaves, tone)))
    return thing


def lamp_post(camera: Camera, rng: np.random.Generator, x: float, z: float, night: bool) -> list[Thing]:
    height, reach = float(rng.uniform(4.5, 7.0)), -1.4 if x > 0 else 1.4
    mast = _mast(camera, rng, x, z, height)
    colour = mast.parts[0].colour
    mast.parts.append(
        stroke(camera, x, z, [(0, height), (reach * 0.5, height + 0.3), (reach, height + 0.3)], 0.12, colour)
    )
    head = [
        (reach * 0.8, height + 0.2),
        (reach * 1.25, height + 0.2),
        (reach * 1.2, height + 0.42),
        (reach * 0.8, height + 0.42),
    ]
    mast.parts.append(upright(camera, x, z, head, (255, 236, 180) if night else shade(colour, 1.2), glows=night))
    return [mast]


def sign_post(camera: Camera, rng: np.random.Generator, x: float, z: float) -> list[Thing]:
    """A pole and the plate on it, two things. Plates with a coloured rim around another colour have no colour word."""
    height, size = float(rng.uniform(2.3, 3.0)), float(rng.uniform(0.42, 0.58))
    mast = _mast(camera, rng, x, z, height)
    style = pick(rng, ("disc", "stop", "diamond", "square", "warning", "limit"))
    word = {"disc": pick(rng, ("blue", "red")), "stop": "red", "diamond": "yellow", "square": "blue"}.get(style, "")
    colour = varied(rng, PAINTS[word or "red"], 8)
    white, black = PAINTS["white"], PAINTS["black"]
    plate = Thing("traffic sign", z, z - 0.05, word)
    centre = (0.0, height)
    if style in ("diamond", "square"):
        half = size * (1.2 if style == "diamond" else 0.9)
        square = [(-half, height - half), (half, height - half), (half, height + half), (-half, height + half)]
        diamond = [(-half, height), (0, height - half), (half, height), (0, height + half)]
        plate.parts.append(upright(camera, x, z, diamond if style == "diamond" else square, colour))
        mark = [(-0.1, height - 0.25), (0.1, height - 0.25), (0.1, height + 0.2), (-0.1, height + 0.2)]
        plate.parts.append(upright(camera, x, z, mark, black if style == "diamond" else white))
    elif style == "warning":
        for factor, fill in ((1.0, colour), (0.58, white)):
            points = [
                (-size * 1.15 * factor, height - size * 0.75 * factor),
                (size * 1.15 * factor, height - size * 0.75 * factor),
            ]
            plate.parts.append(upright(camera, x, z, [*points, (0, height + size * 1.25 * factor)], fill))
    else:
        plate.parts.append(disc(camera, x, z, centre, size, colour))
        if style == "limit":
            plate.parts.append(disc(camera, x, z, centre, size * 0.68, white))
        bar = [
            (-size * 0.6, height - 0.07),
            (size * 0.6, height - 0.07),
            (size * 0.6, height + 0.07),
            (-size * 0.6, height + 0.07),
        ]
        plate.parts.append(upright(camera, x, z, bar, black if style == "limit" else white))
    return [mast, plate]


def signal_post(camera: Camera, rng: np.random.Generator, x: float, z: float) -> list[Thing]:
    """A pole and the traffic light on it, two things."""
    height, lit = float(rng.uniform(2.8, 3.8)), int(rng.integers(3))
    mast = _mast(camera, rng, x, z, height)
    signal = Thing("traffic light", z, z - 0.05)
    half, tall = 0.27, 0.72
    housing = [(-half, height - tall), (half, height - tall), (half, height + tall), (-half, height + tall)]
    signal.parts.append(upright(camera, x, z, housing, varied(rng, (30, 34, 32), 8)))
    lamps = ((248, 44, 36), (252, 190, 40), (44, 226, 104))
    for k, colour in enumerate(lamps):
        centre = (0.0, height + 0.46 * (1 - k))
        signal.parts.append(disc(camera, x, z, centre, 0.19, colour if k == lit else shade(colour, 0.3), k == lit))
    return [mast, signal]


def _mast(camera: Camera, rng: np.random.Generator, x: float, z: float, height: float) -> Thing:
    word = pick(rng, ("grey", "black"))
    thing = Thing(
        "pole", z, z, word, [], ((x - 0.06, z), (x + 0.06, z), (x + 0.06, z + 0.1), (x - 0.06, z + 0.1)), height
    )
    thing.parts.append(stroke(camera, x, z, [(0, 0), (0, height)], 0.13, varied(rng, PAINTS[word], 20)))
    return thing
