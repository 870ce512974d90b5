"""Painting: from far to near, once in colour and once, with the same corners on the same raster, as owners of pixels.

The owner of a pixel is the thing seen there. Light, fog, texture and noise then change colours only, so maps made of
the owners are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import layout
from .shapes import FAR, Camera, Colour, Part, Point, Thing
from .weather import Weather, depths, draw_weather, in_weather, sensed, textured

OVERSAMPLING = 2
"""Colours are drawn this many times finer than the picture and averaged."""
MIN_VISIBLE = 12
"""Pixels; a thing of which less would be seen is left out of the scene."""


@dataclass(frozen=True)
class Drawing:
    """A drawn street.

    Attributes:
        image: RGB.
        owners: int32 (H, W), index into `things` of what is seen in each pixel.
        things: sky, sidewalk, road, then all objects; each object has at least `MIN_VISIBLE` pixels in `owners`.
        weather: the light it is seen in.
    """

    image: Image.Image
    owners: np.ndarray
    things: tuple[Thing, ...]
    weather: Weather


def draw_street(rng: np.random.Generator, height: int, width: int) -> Drawing:
    camera, street, weather = layout.plan_camera(rng, height, width), layout.plan_street(rng), draw_weather(rng)
    sky = Thing("sky", FAR * 10, math.inf, parts=[Part(_frame(height, width), weather.sky[1])])
    base = (sky, *layout.ground(camera, rng, street))
    objects = layout.place_buildings(camera, rng, street, weather)
    objects += layout.place_plants_and_posts(camera, rng, street, weather)
    objects += layout.place_vehicles(camera, rng, street, weather)
    objects += layout.place_people(camera, rng, street)
    objects.sort(key=lambda thing: -thing.order)
    owners, _ = paint_owners((*base, *objects), height, width)
    visible = np.bincount(owners.ravel(), minlength=len(base) + len(objects))[len(base) :]
    # leaving hardly visible things out can only show more of the others, so one pass is enough
    everything = (*base, *(thing for thing, area in zip(objects, visible, strict=True) if area >= MIN_VISIBLE))
    owners, glows = paint_owners(everything, height, width)
    colours = paint_colours(everything, camera, weather, height, width)
    pixels = textured(rng, colours, owners, everything)
    pixels = in_weather(rng, pixels, depths(owners, everything, camera), glows, weather)
    return Drawing(sensed(rng, pixels, weather), owners, everything, weather)


def _frame(height: int, width: int) -> list[tuple[float, float]]:
    return [(0, 0), (width, 0), (width, height), (0, height)]


def paint_owners(everything: tuple[Thing, ...], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 (H, W) index of the thing seen, and bool (H, W) whether it gives light there; nearest, never mixed."""
    canvas = Image.new("I", (width * OVERSAMPLING, height * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for index, thing in enumerate(everything):
        for part in thing.parts:
            if part.inside and not part.glows:
                continue
            _paint(draw, part, 2 * index + part.glows)
    codes = np.asarray(canvas)[::OVERSAMPLING, ::OVERSAMPLING]
    return codes >> 1, (codes & 1).astype(bool)


def paint_colours(
    everything: tuple[Thing, ...], camera: Camera, weather: Weather, height: int, width: int
) -> np.ndarray:
    """float32 (H, W, 3) in 0..255: sky gradient, ground, its shadows, then all objects; edges averaged."""
    size = (width * OVERSAMPLING, height * OVERSAMPLING)
    rows = np.clip(np.arange(size[1]) / max(1.0, camera.vanishing[1] * OVERSAMPLING), 0, 1)[:, None]
    gradient = np.asarray(weather.sky[0]) * (1 - rows) + np.asarray(weather.sky[1]) * rows
    column = Image.fromarray(gradient.round().astype(np.uint8)[:, None, :])
    canvas = column.resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for thing in everything[1:3]:
        for part in thing.parts:
            _paint(draw, part, part.colour)
    canvas = Image.composite(
        canvas.point(lambda level: round(level * (1 - weather.shadow))),
        canvas,
        shadows(everything[3:], camera, weather, size),
    )
    draw = ImageDraw.Draw(canvas)
    for thing in everything[3:]:
        for part in thing.parts:
            _paint(draw, part, part.colour)
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32)


def _paint(draw: ImageDraw.ImageDraw, part: Part, ink: int | Colour) -> None:
    # whole numbers, so that the raster does not depend on a platform's rounding
    points = [(round(x * OVERSAMPLING), round(y * OVERSAMPLING)) for x, y in part.points]
    if part.width:
        draw.line(points, ink, max(1, round(part.width * OVERSAMPLING)), joint="curve")
    else:
        draw.polygon(points, ink)


def shadows(objects: tuple[Thing, ...], camera: Camera, weather: Weather, size: tuple[int, int]) -> Image.Image:
    """Greyscale image, 255 where the ground lies in shadow."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for thing in objects:
        if thing.footprint:
            reach = weather.sun * thing.height
            moved = [(x + reach, z + 0.2 * abs(reach)) for x, z in thing.footprint]
            for outline in (thing.footprint, moved, *_swept(thing.footprint, moved)):
                _paint(draw, Part(camera.polygon((x, 0, z) for x, z in outline), (255, 255, 255)), 255)
    return mask.filter(ImageFilter.BoxBlur(1.5))


def _swept(outline: tuple[Point, ...], moved: list[Point]) -> list[list[Point]]:
    """The quads that each edge of an outline passes over on its way to `moved`."""
    after = [*range(1, len(outline)), 0]
    return [[outline[k], outline[j], moved[j], moved[k]] for k, j in enumerate(after)]
