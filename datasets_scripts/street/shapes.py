"""Flat pieces of solid bodies, seen through a pinhole camera, and the paints they come in.

World coordinates are metres relative to the camera's foot: x to the right, y up from the ground, z ahead. A `Thing` is
a list of flat `Part`s in picture coordinates (pixels), painted in order. No random choice depends on the size of the
picture, so one seed gives the same street at every size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Point = tuple[float, float]
Point3 = tuple[float, float, float]
Colour = tuple[int, int, int]

PAINTS: dict[str, Colour] = {
    "red": (196, 32, 34),
    "blue": (36, 78, 186),
    "green": (34, 128, 62),
    "yellow": (232, 196, 36),
    "orange": (232, 118, 26),
    "white": (236, 236, 232),
    "black": (30, 30, 34),
    "grey": (126, 129, 133),
    "brown": (104, 66, 40),
}
"""Colour words of vehicles, clothes and signs, each far from all others."""
RUBBER = (24, 24, 26)
GLASS = (42, 54, 66)
NEAREST = 1.2  # metres; what comes closer is cut off here, outside of the picture
FAR = 95.0  # metres to the end of the street
CIRCLE = tuple((math.cos(2 * math.pi * k / 14), math.sin(2 * math.pi * k / 14)) for k in range(14))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along z.

    Attributes:
        focal: pixels.
        vanishing: (column, row) of the point at infinity straight ahead, pixels.
        height: of the camera above the ground, metres.
    """

    focal: float
    vanishing: Point
    height: float

    def project(self, point: Point3) -> Point:
        x, y, z = point
        scale = self.focal / max(z, NEAREST)
        return self.vanishing[0] + x * scale, self.vanishing[1] + (self.height - y) * scale

    def polygon(self, points: Iterable[Point3]) -> list[Point]:
        return [self.project(point) for point in points]


class Part(NamedTuple):
    """A filled polygon, or a polyline where `width` is given.

    Attributes:
        points: (column, row) in pixels.
        width: of the polyline, pixels; 0 = filled.
        glows: gives light of its own.
        inside: lies within earlier parts of the same thing, so it does not change whose the pixels are.
    """

    points: list[Point]
    colour: Colour
    width: float = 0.0
    glows: bool = False
    inside: bool = False


@dataclass
class Thing:
    """One object of the scene.

    Attributes:
        class_name: of `scenes.CLASSES`.
        depth: metres from the camera to its nearest point; decides its fog.
        order: metres; things are painted from the largest to the smallest.
        colour: colour word, or "" where it has none that people would agree on.
        parts: painted in this order.
        footprint: its outline on the ground (x, z) in metres, for its shadow.
        height: metres, for its shadow.
        wall: x of a wall along the street, metres; its depth then changes along the picture, up to `far_depth`.
    """

    class_name: str
    depth: float
    order: float
    colour: str = ""
    parts: list[Part] = field(default_factory=list)
    footprint: tuple[Point, ...] = ()
    height: float = 0.0
    wall: float = 0.0
    far_depth: float = 0.0


class Face:
    """A flat four-sided piece of a body; u runs along its foot and v up, both 0..1."""

    def __init__(self, camera: Camera, foot: tuple[Point3, Point3], top: tuple[Point3, Point3]):
        self.camera, self.foot, self.top = camera, foot, top
        # x, y and z are each a + u*b + v*c + u*v*d
        self._terms = [(p, q - p, r - p, s - q - r + p) for p, q, r, s in zip(*foot, *top, strict=True)]

    def at(self, u: float, v: float) -> Point:
        uv = u * v
        x, y, z = [a + u * b + v * c + uv * d for a, b, c, d in self._terms]
        return self.camera.project((x, y, z))

    def pane(self, u0: float, u1: float, v0: float, v1: float, colour: Colour, glows: bool = False) -> Part:
        """A rectangle of the face."""
        corners = [self.at(u0, v0), self.at(u1, v0), self.at(u1, v1), self.at(u0, v1)]
        return Part(corners, colour, glows=glows, inside=min(u0, v0) >= 0 and max(u1, v1) <= 1)

    def panes(self, rectangles: np.ndarray) -> list[list[Point]]:
        """The corners of many rectangles (n, 4: u0, u1, v0, v1) at once, in the order of `pane`."""
        u, v = rectangles[:, (0, 1, 1, 0)], rectangles[:, (2, 2, 3, 3)]
        x, y, z = (a + u * b + v * c + u * v * d for a, b, c, d in self._terms)
        scale = self.camera.focal / np.maximum(z, NEAREST)
        column, row = self.camera.vanishing
        points = np.stack([column + x * scale, row + (self.camera.height - y) * scale], axis=-1)
        return points.tolist()

    def filled(self, colour: Colour) -> Part:
        return self.pane(0, 1, 0, 1, colour)._replace(inside=False)

    def disc(self, u: float, v: float, radius_u: float, radius_v: float, colour: Colour, glows: bool = False) -> Part:
        return Part([self.at(u + radius_u * c, v + radius_v * s) for c, s in CIRCLE], colour, glows=glows)

    @property
    def length(self) -> float:
        return math.dist(*self.foot)

    @property
    def height(self) -> float:
        return math.dist(self.foot[0], self.top[0])

    @property
    def pixels(self) -> float:
        """Its extent in the picture, the smaller of width and height."""
        corners = [self.at(0, 0), self.at(1, 0), self.at(0, 1), self.at(1, 1)]
        return min(max(values) - min(values) for values in zip(*corners, strict=True))


@dataclass(frozen=True)
class Rect:
    """A rectangle on the ground or parallel to it, metres."""

    x0: float
    x1: float
    z0: float
    z1: float

    def shrunk(self, x: float, z_near: float, z_far: float) -> Rect:
        return Rect(self.x0 + x, self.x1 - x, self.z0 + z_near, self.z1 - z_far)

    @property
    def corners(self) -> tuple[Point, ...]:
        return ((self.x0, self.z0), (self.x1, self.z0), (self.x1, self.z1), (self.x0, self.z1))


@dataclass(frozen=True)
class Body:
    """The faces of a box or frustum that the camera sees: near always, side and top where they face it."""

    near: Face
    side: Face | None
    top: Face | None

    def painted(self, colour: Colour, side_light: float = 0.8) -> list[Part]:
        parts = [self.side.filled(shade(colour, side_light))] if self.side else []
        parts += [self.top.filled(shade(colour, 1.12))] if self.top else []
        return [*parts, self.near.filled(colour)]


def body(camera: Camera, base: Rect, y0: float, y1: float, roof: Rect | None = None) -> Body:
    roof = roof or base
    near = Face(
        camera, ((base.x0, y0, base.z0), (base.x1, y0, base.z0)), ((roof.x0, y1, roof.z0), (roof.x1, y1, roof.z0))
    )
    side = top = None
    if base.x0 > 0 or base.x1 < 0:
        x, x_roof = (base.x0, roof.x0) if base.x0 > 0 else (base.x1, roof.x1)
        side = Face(camera, ((x, y0, base.z0), (x, y0, base.z1)), ((x_roof, y1, roof.z0), (x_roof, y1, roof.z1)))
    if y1 < camera.height:
        top = Face(
            camera, ((roof.x0, y1, roof.z0), (roof.x1, y1, roof.z0)), ((roof.x0, y1, roof.z1), (roof.x1, y1, roof.z1))
        )
    return Body(near, side, top)


def upright(camera: Camera, x: float, z: float, points: Sequence[Point], colour: Colour, glows: bool = False) -> Part:
    """A polygon of (metres to the right of x, metres above the ground) that faces the camera."""
    return Part(camera.polygon((x + dx, y, z) for dx, y in points), colour, glows=glows)


def disc(camera: Camera, x: float, z: float, centre: Point, radius: float, colour: Colour, glows: bool = False) -> Part:
    points = [(centre[0] + radius * c, centre[1] + radius * s) for c, s in CIRCLE]
    return upright(camera, x, z, points, colour, glows)


def stroke(camera: Camera, x: float, z: float, points: Sequence[Point], width: float, colour: Colour) -> Part:
    """A polyline facing the camera, at least one pixel wide so that its maps have it too."""
    line = camera.polygon((x + dx, y, z) for dx, y in points)
    return Part(line, colour, max(1.0, width * camera.focal / max(z, NEAREST)))


def shade(colour: Sequence[float], factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def varied(rng: np.random.Generator, colour: Colour, amount: int = 12) -> Colour:
    """The colour, a little lighter or darker and a little off its hue."""
    shift = int(rng.integers(-amount, amount + 1))
    red, green, blue = (min(255, max(0, c + shift + int(rng.integers(-5, 6)))) for c in colour)
    return red, green, blue


def pick(rng: np.random.Generator, options: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """One of the options; without `Generator.choice`, whose stream is not promised to stay the same."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    mark = float(rng.random()) * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        mark -= weight
        if mark < 0:
            return option
    return options[-1]
