"""Cars, buses and trucks: boxes and frustums with windows, wheels and lamps, seen from an end or from a side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .shapes import GLASS, PAINTS, RUBBER, Body, Camera, Colour, Face, Part, Rect, Thing, body, pick, shade, varied


def car(
    camera: Camera, rng: np.random.Generator, x: float, z: float, oncoming: bool, night: bool, lengthwise: bool = True
) -> Thing:
    """A car whose nearest point is z ahead; `lengthwise`: seen from its end, else from its side."""
    word = pick(rng, tuple(PAINTS), (5, 4, 2, 2, 1.5, 4, 3, 3.5, 1))
    paint = varied(rng, PAINTS[word])
    width, length, height = (float(rng.uniform(*r)) for r in ((1.7, 1.95), (3.7, 4.7), (1.42, 1.8)))
    plot = _plot(x, z, width, length, lengthwise)
    belt, sill = 0.56 * height, 0.3
    hull = body(camera, plot, sill, belt)
    front, back = float(rng.uniform(0.2, 0.28)) * length, float(rng.uniform(0.05, 0.22)) * length
    if lengthwise:
        near_gap, far_gap = (front, back) if oncoming else (back, front)
        cabin, roof = plot.shrunk(0.04, near_gap, far_gap), plot.shrunk(0.2, near_gap + 0.45, far_gap + 0.5)
    else:
        left_gap, right_gap = (front, back) if oncoming else (back, front)
        cabin = Rect(plot.x0 + left_gap, plot.x1 - right_gap, plot.z0 + 0.04, plot.z1 - 0.04)
        roof = Rect(cabin.x0 + 0.5, cabin.x1 - 0.45, plot.z0 + 0.2, plot.z1 - 0.2)
    top = body(camera, cabin, belt, height, roof)
    parts = _wheels(hull.side if lengthwise else hull.near, hull.near, lengthwise, (0.2, 0.8), 0.34)
    tyres = parts if lengthwise else []
    thing = Thing("car", z, z, word, [*tyres, *hull.painted(paint), *top.painted(paint)], plot.corners, height)
    for face, panes in ((top.side, 2 if lengthwise else 1), (top.near, 1 if lengthwise else 2)):
        if face is not None:
            for k in range(panes):
                thing.parts.append(face.pane(k / panes + 0.06, (k + 1) / panes - 0.06, 0.1, 0.86, GLASS))
    if lengthwise:
        thing.parts += _lamps(hull.near, oncoming, 0.45, night, 0.16)
        thing.parts.append(hull.near.pane(0.36, 0.64, 0.12, 0.32, (222, 222, 206)))
        thing.parts.append(hull.near.pane(0, 1, 0, 0.08, shade(paint, 0.4)))
        thing.parts += [] if hull.side is None else _wheels(hull.side, hull.near, False, (0.2, 0.8), 0.34)
    else:
        thing.parts += parts
    return thing


def bus(
    camera: Camera, rng: np.random.Generator, x: float, z: float, oncoming: bool, night: bool, lengthwise: bool = True
) -> Thing:
    word = pick(rng, ("red", "yellow", "blue", "green", "white", "orange"))
    paint = varied(rng, PAINTS[word])
    width, length, height = 2.5, float(rng.uniform(9.5, 12.5)), float(rng.uniform(2.9, 3.3))
    plot = _plot(x, z, width, length, lengthwise)
    hull = body(camera, plot, 0.45, height)
    long_face = hull.side if lengthwise else hull.near
    thing = Thing("bus", z, z, word, [], plot.corners, height)
    if lengthwise:
        thing.parts += _wheels(None, hull.near, True, (), 0.45)
    thing.parts += hull.painted(paint)
    if long_face is not None:
        glass = (226, 206, 150) if night else GLASS
        thing.parts += [long_face.pane(k / 7 + 0.012, (k + 1) / 7 - 0.012, 0.42, 0.82, glass, night) for k in range(7)]
        thing.parts += _wheels(long_face, hull.near, False, (0.2, 0.78), 0.48)
    if lengthwise:
        thing.parts.append(hull.near.pane(0.07, 0.93, 0.4, 0.8, GLASS))
        thing.parts.append(
            hull.near.pane(0.22, 0.78, 0.85, 0.97, (250, 176, 44) if oncoming else shade(paint, 0.6), oncoming)
        )
        thing.parts += _lamps(hull.near, oncoming, 0.12, night)
        thing.parts.append(hull.near.pane(0, 1, 0, 0.06, shade(paint, 0.4)))
    return thing


def truck(
    camera: Camera, rng: np.random.Generator, x: float, z: float, oncoming: bool, night: bool, lengthwise: bool = True
) -> Thing:
    """A cab and a higher cargo box behind it; the cab comes first when it is oncoming."""
    word = pick(rng, ("white", "grey", "blue", "red", "green", "brown", "orange"))
    paint = varied(rng, PAINTS[word])
    one_colour = rng.random() < 0.7
    cab_paint = shade(paint, 0.92) if one_colour else varied(rng, PAINTS[pick(rng, ("red", "blue", "green", "white"))])
    width, length, height = 2.5, float(rng.uniform(6.5, 8.5)), float(rng.uniform(3.2, 3.8))
    cab_length, cab_height = 1.9, 0.74 * height
    plot = _plot(x, z, width, length, lengthwise)
    if lengthwise:
        cut = plot.z0 + cab_length if oncoming else plot.z1 - cab_length
        near, far = Rect(plot.x0, plot.x1, plot.z0, cut - 0.1), Rect(plot.x0, plot.x1, cut + 0.1, plot.z1)
        cab_plot, box_plot = (near, far) if oncoming else (far, near)
    else:
        cut = plot.x0 + cab_length if oncoming else plot.x1 - cab_length
        left, right = Rect(plot.x0, cut - 0.1, plot.z0, plot.z1), Rect(cut + 0.1, plot.x1, plot.z0, plot.z1)
        cab_plot, box_plot = (left, right) if oncoming else (right, left)
    cab, box = body(camera, cab_plot, 0.5, cab_height), body(camera, box_plot, 0.85, height)
    chassis = body(camera, plot.shrunk(0.15, 0.1, 0.1), 0.45, 0.86)
    cab_parts = [*cab.painted(cab_paint), *_cab_details(cab, lengthwise, oncoming, night)]
    box_parts = [*box.painted(paint), *_cargo_details(box, paint, lengthwise, oncoming, night)]
    thing = Thing("truck", z, z, word if one_colour else "", [], plot.corners, height)
    if lengthwise:
        thing.parts += _wheels(None, (cab if oncoming else chassis).near, True, (), 0.5)
    thing.parts += chassis.painted((58, 58, 62))
    thing.parts += box_parts + cab_parts if oncoming or not lengthwise else cab_parts + box_parts
    thing.parts += _wheels(chassis.side if lengthwise else chassis.near, chassis.near, False, (0.14, 0.68, 0.86), 0.5)
    return thing


def _cab_details(cab: Body, lengthwise: bool, oncoming: bool, night: bool) -> list[Part]:
    parts = []
    long_face = cab.side if lengthwise else cab.near
    if long_face is not None:
        parts.append(long_face.pane(0.15, 0.75, 0.5, 0.86, GLASS))
    if lengthwise and oncoming:
        parts += [cab.near.pane(0.07, 0.93, 0.5, 0.88, GLASS), cab.near.pane(0.25, 0.75, 0.1, 0.36, (70, 70, 74))]
        parts += _lamps(cab.near, True, 0.08, night)
    return parts


def _cargo_details(box: Body, paint: Colour, lengthwise: bool, oncoming: bool, night: bool) -> list[Part]:
    parts = []
    if lengthwise and not oncoming:  # rear doors
        parts += [
            box.near.pane(u - 0.012, u + 0.012, 0.04, 0.96, shade(paint, 0.55)) for u in (0.04, 0.3, 0.5, 0.7, 0.96)
        ]
        parts.append(box.near.pane(0.04, 0.96, 0.0, 0.05, (60, 60, 62)))
        parts += _lamps(box.near, False, 0.0, night, 0.1)
    long_face = box.side if lengthwise else box.near
    if long_face is not None:
        parts += [long_face.pane(k / 6 - 0.006, k / 6 + 0.006, 0, 1, shade(paint, 0.66)) for k in range(1, 6)]
    return parts


def _wheels(
    long_face: Face | None, near: Face, lengthwise: bool, positions: Sequence[float], radius: float
) -> list[Part]:
    """Wheels of a body whose faces start at `radius` above the ground, metres along its length."""
    parts = []
    if lengthwise:  # seen from its end: two upright tyres under the near face
        u, v = 0.13, radius / near.height
        parts += [near.pane(0.02, 0.02 + u, -v, 0.1, RUBBER), near.pane(0.98 - u, 0.98, -v, 0.1, RUBBER)]
    if long_face is not None:
        radius_u, radius_v = radius / long_face.length, radius / long_face.height
        for position in positions:
            parts.append(long_face.disc(position, 0, radius_u, radius_v, RUBBER))
            parts.append(long_face.disc(position, 0, radius_u * 0.5, radius_v * 0.5, (150, 150, 154)))
    return parts


def _lamps(end: Face, oncoming: bool, v: float, night: bool, size: float = 0.12) -> list[Part]:
    colour = (255, 248, 214) if oncoming else (214, 20, 24)
    height = size * 0.8 * end.length / end.height
    return [end.pane(u, u + size, v, v + height, colour, glows=night) for u in (0.05, 0.95 - size)]


def _plot(x: float, z: float, width: float, length: float, lengthwise: bool) -> Rect:
    if lengthwise:
        return Rect(x - width / 2, x + width / 2, z, z + length)
    return Rect(x - length / 2, x + length / 2, z, z + width)
