"""The plan of a street, in metres: the ground, and where buildings, plants, posts, vehicles and people stand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import figures, vehicles
from .shapes import FAR, NEAREST, Camera, Colour, Part, Rect, Thing, pick, shade, varied
from .weather import Weather


@dataclass(frozen=True)
class Street:
    """The ground plan, metres; x is relative to the camera.

    Attributes:
        road: left and right edge.
        houses: x of the left and of the right row of facades.
        crossing: near and far edge of the road that crosses, or None.
        lanes: how many, across both directions.
        traffic_on: side of the road ("left" or "right") that cars ahead of the camera drive on.
    """

    road: tuple[float, float]
    houses: tuple[float, float]
    crossing: tuple[float, float] | None
    lanes: int
    traffic_on: str

    def crosses(self, z0: float, z1: float, margin: float = 1.0) -> bool:
        return self.crossing is not None and z0 < self.crossing[1] + margin and z1 > self.crossing[0] - margin


def plan_street(rng: np.random.Generator) -> Street:
    width = float(rng.uniform(5.8, 11.5))
    left = -width * float(rng.uniform(0.2, 0.8))
    pavements = [float(rng.uniform(2.6, 5.6)) for _ in range(2)]
    crossing_at, crossing_width = float(rng.uniform(13, 30)), float(rng.uniform(6.5, 9))
    return Street(
        road=(left, left + width),
        houses=(left - pavements[0], left + width + pavements[1]),
        crossing=(crossing_at, crossing_at + crossing_width) if rng.random() < 0.45 else None,
        lanes=2 if width < 9 else 3,
        traffic_on="right" if rng.random() < 0.8 else "left",
    )


def plan_camera(rng: np.random.Generator, height: int, width: int) -> Camera:
    """The vanishing point and the field of view vary; the shorter side of odd formats decides the scale."""
    focal = float(rng.uniform(0.72, 1.05)) * min(width, 1.5 * height)
    column, row = float(rng.uniform(0.3, 0.7)) * width, float(rng.uniform(0.36, 0.54)) * height
    return Camera(focal, (column, row), float(rng.uniform(1.45, 2.8)))


def ground(camera: Camera, rng: np.random.Generator, street: Street) -> tuple[Thing, Thing]:
    """The sidewalk (all ground beside the road, to the horizon) and the road with its markings."""
    level = int(rng.integers(62, 142))
    asphalt = varied(rng, (level, level, level + int(rng.integers(-6, 8))), 4)
    stones = ((178, 168, 152), (150, 150, 152), (172, 134, 116), (198, 194, 184), (128, 122, 112))[int(rng.integers(5))]
    stone = varied(rng, stones, 16)
    near = NEAREST

    def quad(x0: float, x1: float, z0: float, z1: float, colour: Colour) -> Part:
        return Part(camera.polygon(((x0, 0, max(z0, near)), (x1, 0, max(z0, near)), (x1, 0, z1), (x0, 0, z1))), colour)

    left, right = street.road
    walk = Thing("sidewalk", near, math.inf, far_depth=400)
    walk.parts.append(quad(-4000, 4000, near, 4000, stone))
    spacing, seam = float(rng.uniform(0.8, 2.0)), shade(stone, float(rng.uniform(0.78, 0.9)))
    for step in range(1, 36):
        z = 2 + step * spacing
        walk.parts.append(quad(left - 12, right + 12, z, z + 0.05 + z * 0.003, seam))
    for side, edge in ((-1, left), (1, right)):
        for step in range(1, 5):
            x = edge + side * step * spacing
            walk.parts.append(quad(x, x + 0.06, near, 60, seam))
        walk.parts.append(
            quad(min(edge, edge + side * 0.3), max(edge, edge + side * 0.3), near, 4000, shade(stone, 1.16))
        )
    road = Thing("road", near, math.inf, far_depth=400)
    road.parts.append(quad(left, right, near, 4000, asphalt))
    if street.crossing:
        road.parts.append(quad(-400, 400, *street.crossing, asphalt))
    road.parts += [quad(*area, colour) for area, colour in _markings(rng, street, asphalt)]
    return walk, road


def _markings(
    rng: np.random.Generator, street: Street, asphalt: Colour
) -> list[tuple[tuple[float, float, float, float], Colour]]:
    """Rectangles (x0, x1, z0, z1) painted on the road: lanes, edges, zebra crossing, patches."""
    left, right = street.road
    paint = varied(rng, ((226, 224, 216), (214, 178, 66))[rng.random() < 0.2], 14)
    marks = []
    for _ in range(int(rng.integers(1, 5))):  # repairs
        x, z = float(rng.uniform(left, right - 1)), float(rng.uniform(4, 30))
        area = (x, min(right, x + float(rng.uniform(0.6, 2.5))), z, z + float(rng.uniform(1, 6)))
        marks.append((area, shade(asphalt, float(rng.uniform(0.78, 1.16)))))
    dash, period = float(rng.uniform(1.5, 3.5)), float(rng.uniform(5, 9))
    edges, zebra = rng.random() < 0.4, rng.random() < 0.75
    for lane in range(1, street.lanes):
        x = left + lane * (right - left) / street.lanes
        for step in range(10):
            if not street.crosses(step * period + 1, step * period + 1 + dash):
                marks.append(((x - 0.09, x + 0.09, step * period + 1, step * period + 1 + dash), paint))
    if edges:
        marks += [((x - 0.07, x + 0.07, 0, 50), paint) for x in (left + 0.35, right - 0.35)]
    if street.crossing and zebra:
        z, count = street.crossing[0] - 3.4, int((right - left) / 0.95)
        marks += [((left + 0.3 + k * 0.95, left + 0.8 + k * 0.95, z, z + 2.6), paint) for k in range(count)]
    return marks


def place_buildings(camera: Camera, rng: np.random.Generator, street: Street, weather: Weather) -> list[Thing]:
    tall, palette = (
        float(rng.uniform(6, 17)),
        tuple(pick(rng, tuple(figures.FACADES)) for _ in range(int(rng.integers(2, 6)))),
    )
    placed = []
    for side, wall in zip((-1, 1), street.houses, strict=True):
        z, gaps = float(rng.uniform(-8, 3)), float(rng.uniform(0.05, 0.5))
        open_until = float(rng.uniform(15, 45)) if rng.random() < 0.22 else -math.inf
        while z < FAR:
            length, height = float(rng.uniform(7, 18)), tall * float(rng.uniform(0.65, 1.5))
            setback, depth = float(rng.uniform(0, 0.8)), float(rng.uniform(8, 12))
            house_rng = np.random.Generator(np.random.PCG64(int(rng.integers(2**62))))
            if z + length > 2 and z > open_until and not street.crosses(z, z + length, 2.0):
                near, far = wall + side * setback, wall + side * (setback + depth)
                plot = Rect(min(near, far), max(near, far), z, z + length)
                placed.append(figures.building(camera, house_rng, plot, height, palette, weather.lit))
            z += length + (float(rng.uniform(1.5, 6)) if rng.random() < gaps else 0.0)
    return placed + _skyline(camera, rng, palette)


def _skyline(camera: Camera, rng: np.random.Generator, palette: tuple[str, ...]) -> list[Thing]:
    """What closes the view at the end of the street: houses, trees, or nothing but sky."""
    style = pick(rng, ("houses", "trees", "open"), (0.4, 0.35, 0.25))
    placed: list[Thing] = []
    x = -100.0
    hue = figures.FOLIAGE["green"]
    while x < 100 and style != "open":
        size, height, part_rng = float(rng.uniform(9, 26)), float(rng.uniform(4, 15)), int(rng.integers(2**62))
        own = np.random.Generator(np.random.PCG64(part_rng))
        if style == "houses":
            plot = Rect(x, x + size, FAR + 5, FAR + 12)
            placed.append(figures.building(camera, own, plot, height, palette, 0.1))
        else:
            for k in range(2):
                placed.append(figures.tree(camera, own, x + k * size / 2, FAR + 5 + k, "green", hue, clumps=3))
        x += size
    return placed


def place_plants_and_posts(camera: Camera, rng: np.random.Generator, street: Street, weather: Weather) -> list[Thing]:
    night = weather.name in ("night", "dusk") and bool(rng.random() < 0.8)
    foliage = pick(rng, tuple(figures.FOLIAGE), (0.78, 0.12, 0.1))
    hue = varied(rng, figures.FOLIAGE[foliage], 26)
    placed: list[Thing] = []
    for side, edge in zip((-1, 1), street.road, strict=True):
        trees, lamps = rng.random() < 0.62, rng.random() < 0.65
        z, spacing = float(rng.uniform(6, 14)), float(rng.uniform(7, 15))
        for step in range(7):
            x = edge + side * float(rng.uniform(0.7, 1.3))
            at = z + step * spacing + float(rng.uniform(-1, 1))
            own = np.random.Generator(np.random.PCG64(int(rng.integers(2**62))))
            word = foliage if rng.random() < 0.85 else "green"
            if trees and not street.crosses(at, at):
                placed.append(
                    figures.tree(camera, own, x, at, word, hue if word == foliage else figures.FOLIAGE["green"])
                )
            if lamps and not street.crosses(at, at) and (step % 2 == 0 or not trees):
                placed += figures.lamp_post(camera, own, x - side * 0.2, at + spacing * 0.45, night)
        for _ in range(int(rng.integers(0, 3))):
            placed += figures.sign_post(
                camera, rng, edge + side * float(rng.uniform(0.3, 0.8)), float(rng.uniform(6, 24))
            )
        signal_at = street.crossing[0] - 4.2 if street.crossing else float(rng.uniform(8, 20))
        if rng.random() < (0.85 if street.crossing else 0.35):
            placed += figures.signal_post(camera, rng, edge + side * 0.5, signal_at)
    return placed


def place_vehicles(camera: Camera, rng: np.random.Generator, street: Street, weather: Weather) -> list[Thing]:
    """Traffic in both directions, parked cars, and vehicles on the crossing road seen from their side."""
    night = weather.name in ("night", "dusk")
    left, right = street.road
    lane = (right - left) / street.lanes
    makers = {"car": vehicles.car, "bus": vehicles.bus, "truck": vehicles.truck}
    busy = float(rng.uniform(0.25, 0.95))
    placed: list[Thing] = []
    for index in range(street.lanes):
        x, oncoming = left + (index + 0.5) * lane, (index < street.lanes / 2) == (street.traffic_on == "right")
        parked = index in (0, street.lanes - 1) and rng.random() < 0.5
        x += 0 if not parked else (-0.5 if index == 0 else 0.5) * (lane - 2.2)
        z = float(rng.uniform(6, 16))
        while z < 75:
            kind = "car" if parked and rng.random() < 0.9 else pick(rng, ("car", "bus", "truck"), (0.62, 0.19, 0.19))
            z = max(z, 9.0 + float(rng.uniform(0, 4))) if kind != "car" else z
            present, gap = (
                rng.random() < (0.9 if parked else busy),
                float(rng.uniform(1.0, 3.5) if parked else rng.uniform(5, 18)),
            )
            length = 5.0 if kind == "car" else 13.0
            if present and not street.crosses(z, z + length, 4.0):
                wobble = float(rng.uniform(-0.2, 0.2))
                placed.append(makers[kind](camera, rng, x + wobble, z, oncoming, night))
            z += length + gap
    if street.crossing:
        for row, heading in ((0.12, False), (0.58, True)):
            z = street.crossing[0] + row * (street.crossing[1] - street.crossing[0])
            for _ in range(int(rng.integers(0, 2)) + (rng.random() < 0.3)):
                kind = pick(rng, ("car", "bus", "truck"), (0.5, 0.25, 0.25))
                x = float(rng.uniform(-16, 16))
                placed.append(makers[kind](camera, rng, x, z, heading, night, lengthwise=False))
    return placed


def place_people(camera: Camera, rng: np.random.Generator, street: Street) -> list[Thing]:
    placed: list[Thing] = []
    for side, edge, wall in zip((-1, 1), street.road, street.houses, strict=True):
        for _ in range(int(rng.integers(0, 6))):
            x = edge + side * float(rng.uniform(0.5, max(0.8, abs(wall - edge) - 0.5)))
            z = float(rng.uniform(5.0, 9.0) if rng.random() < 0.45 else rng.uniform(8.0, 30.0))
            placed.append(figures.person(camera, rng, x, z))
        for _ in range(int(rng.integers(0, 3))):
            if rng.random() < 0.75:
                x = edge + side * float(rng.uniform(0.5, max(0.8, abs(wall - edge) - 0.6)))
                placed.append(figures.bicycle(camera, rng, x, float(rng.uniform(5.0, 14.0))))
    if street.crossing and rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            x, z = float(rng.uniform(*street.road)), street.crossing[0] - float(rng.uniform(1.0, 3.2))
            placed.append(figures.person(camera, rng, x, z))
    return placed
