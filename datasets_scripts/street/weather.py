"""Light, air and sensor: what changes the colours of a drawn street and never its maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .shapes import FAR, Camera, Colour, Thing, pick, varied

TEXTURE = {
    "road": (0.16, 0.1),
    "sidewalk": (0.1, 0.1),
    "tree": (0.34, 0.3),
    "building": (0.08, 0.12),
    "sky": (0.0, 0.1),
}
"""Relative amplitude of fine and of coarse texture, by class."""


@dataclass(frozen=True)
class Weather:
    """Light and air of one scene.

    Attributes:
        sky: colours at the top and at the horizon.
        cast: gain of each channel.
        contrast: 1 = as drawn.
        shadow: darkness of cast shadows, 0..1.
        sun: metres that the shadow of 1 metre of height reaches to the right (negative: left).
        lit: fraction of windows with light in them.
        fog: share of the horizon's colour that 1 metre of air adds, 1/metres.
        noise: standard deviation of the sensor's noise, grey levels.
        blur: radius, as a fraction of the picture's width.
    """

    name: str
    sky: tuple[Colour, Colour]
    cast: tuple[float, float, float]
    contrast: float
    shadow: float
    sun: float
    lit: float
    fog: float
    noise: float
    blur: float


SKIES: dict[str, tuple[tuple[Colour, Colour], ...]] = {
    "day": (((70, 130, 214), (186, 212, 236)), ((112, 168, 230), (222, 230, 236)), ((60, 110, 180), (206, 204, 190))),
    "overcast": (
        ((168, 174, 182), (206, 208, 210)),
        ((128, 134, 142), (190, 190, 186)),
        ((204, 206, 210), (228, 226, 220)),
    ),
    "dusk": (((92, 84, 130), (240, 158, 96)), ((146, 98, 110), (248, 196, 128)), ((58, 74, 120), (226, 148, 132))),
    "night": (((16, 22, 46), (54, 56, 84)), ((30, 30, 36), (84, 70, 62)), ((8, 12, 30), (36, 52, 84))),
}


def draw_weather(rng: np.random.Generator) -> Weather:
    name = pick(rng, ("day", "overcast", "dusk", "night"), (0.45, 0.27, 0.16, 0.12))
    top, horizon = SKIES[name][int(rng.integers(3))]
    gain = {"day": (0.88, 1.14), "overcast": (0.72, 1.0), "dusk": (0.6, 0.85), "night": (0.48, 0.66)}[name]
    warmth = {"day": (-0.06, 0.1), "overcast": (-0.1, 0.04), "dusk": (0.06, 0.24), "night": (-0.16, 0.12)}[name]
    level, warm = float(rng.uniform(*gain)), float(rng.uniform(*warmth))
    shadow = float(
        rng.uniform(*{"day": (0.35, 0.6), "overcast": (0.08, 0.2), "dusk": (0.2, 0.45), "night": (0, 0.2)}[name])
    )
    reach = float(rng.uniform(0.2, 1.1)) * (1 if rng.random() < 0.5 else -1)
    foggy, thickness = rng.random() < 0.22, float(rng.uniform(0.012, 0.035))
    noise = {"day": (2.0, 5.0), "overcast": (2.5, 6.0), "dusk": (4.0, 8.0), "night": (5.0, 10.0)}[name]
    return Weather(
        name=name,
        sky=(varied(rng, top, 18), varied(rng, horizon, 14)),
        cast=(level * (1 + warm), level, level * (1 - warm)),
        contrast=float(rng.uniform(0.82, 1.12)),
        shadow=shadow,
        sun=reach,
        lit={"day": 0.02, "overcast": 0.06, "dusk": 0.3, "night": 0.45}[name],
        fog=thickness if foggy else 0.0022,
        noise=float(rng.uniform(*noise)),
        blur=float(rng.uniform(0.0006, 0.0026)),
    )


def depths(owners: np.ndarray, everything: tuple[Thing, ...], camera: Camera) -> np.ndarray:
    """float32 (H, W), metres to what is seen."""
    near = np.array([thing.depth for thing in everything], np.float32)[owners]
    far = np.array([max(thing.depth, thing.far_depth) for thing in everything], np.float32)[owners]
    wall = np.array([abs(thing.wall) for thing in everything], np.float32)[owners]
    height, width = owners.shape
    columns = np.abs(np.arange(width, dtype=np.float32) - camera.vanishing[0])[None, :]
    rows = np.maximum(np.arange(height, dtype=np.float32) - camera.vanishing[1], 0)[:, None]
    along = np.where(wall > 0, camera.focal * wall / (columns + 0.5), camera.focal * camera.height / (rows + 0.5))
    return np.clip(along, near, far)


def textured(
    rng: np.random.Generator, colours: np.ndarray, owners: np.ndarray, everything: tuple[Thing, ...]
) -> np.ndarray:
    height, width = owners.shape
    amplitude = np.array([TEXTURE.get(thing.class_name, (0.03, 0.06)) for thing in everything], np.float32)
    fine = _noise(rng, height, width, max(2, width * 2 // 3))
    coarse = _noise(rng, height, width, 14) + 0.6 * _noise(rng, height, width, 40)
    factor = 1 + amplitude[:, 0][owners] * fine + amplitude[:, 1][owners] * coarse
    return colours * factor[..., None]


def in_weather(
    rng: np.random.Generator, pixels: np.ndarray, depth: np.ndarray, glows: np.ndarray, weather: Weather
) -> np.ndarray:
    """Global light, a gradient across the picture, contrast, and fog; the sky is drawn in its weather already."""
    height, width = depth.shape
    slope_x, slope_y = rng.uniform(-0.12, 0.12, 2)
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    gradient = 1 + np.float32(slope_x) * across[None, :] + np.float32(slope_y) * down[:, None]
    is_sky = (depth >= FAR * 10)[..., None]
    cast = np.where(glows[..., None] | is_sky, np.float32(1), np.asarray(weather.cast, np.float32))
    lit = pixels * cast
    if weather.name != "night":  # its darkness is no lack of contrast
        lit = (lit - 110) * np.float32(weather.contrast) + 110
    lit = lit * gradient[..., None]
    fog = 1 - np.exp(-np.float32(weather.fog) * np.minimum(depth, 300))[..., None]
    return lit + np.where(is_sky, np.float32(0), fog) * (np.asarray(weather.sky[1], np.float32) - lit)


def sensed(rng: np.random.Generator, pixels: np.ndarray, weather: Weather) -> Image.Image:
    """Lens blur, then noise: the sum of two uniform numbers, whose bits are the same everywhere."""
    height, width, _ = pixels.shape
    image = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(weather.blur * width))
    draws = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    centred = draws.sum(0, dtype=np.int16) - 255
    noise = centred * np.float32(weather.noise / 104.5)  # 104.5: standard deviation of the sum
    return Image.fromarray(np.clip(np.round(np.asarray(image) + noise), 0, 255).astype(np.uint8))


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """float32 (H, W) in -1..1: random values on a grid of `cells` across, smoothly enlarged."""
    grid = rng.integers(0, 256, (max(2, cells * height // width), cells), dtype=np.uint8)
    smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / 127.5 - 1
