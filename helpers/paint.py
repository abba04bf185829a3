"""Paint soft, shaded shapes and natural scenery with Pillow: the brushes of `helpers.draw`."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
DARK, WHITE = (24, 20, 26), (255, 252, 244)


# Colours


def colour(code: str) -> Colour:
    """Read a colour such as "#c8a060"."""
    return ImageColor.getrgb(code)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours; `share` 0..1 is the part of the second one."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second))


def pick(rng: Random, codes: str, spread: float = 1.0) -> Colour:
    """Choose one of the blank-separated colour codes and vary its hue, saturation and value."""
    hue, saturation, value = colorsys.rgb_to_hsv(
        *(c / 255 for c in colour(rng.choice(codes.split())))
    )
    hue = (hue + spread * rng.uniform(-0.025, 0.025)) % 1
    saturation = min(1, saturation * (1 + spread * rng.uniform(-0.2, 0.2)))
    value = min(1, value * (1 + spread * rng.uniform(-0.15, 0.12)))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


# Outlines: arrays of points (n, 2); x to the right, y down, a figure fills about -1..1


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0, n: int = 36) -> np.ndarray:
    """Outline an ellipse turned by `angle` (radians)."""
    t = np.linspace(0, 2 * math.pi, n, endpoint=False)
    return move(np.stack([rx * np.cos(t), ry * np.sin(t)], 1), x, y, angle)


def move(points, x: float = 0, y: float = 0, angle: float = 0, scale: float = 1) -> np.ndarray:
    """Scale, turn (radians, clockwise on the picture), then shift points."""
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    return np.asarray(points, float) @ np.array([[c, s], [-s, c]]) + (x, y)


def mirror(points, side: int) -> np.ndarray:
    """Reflect points at the vertical axis when `side` is -1."""
    return np.asarray(points, float) * (side, 1)


def curve(points, closed: bool = True, n: int = 6) -> np.ndarray:
    """Draw a smooth Catmull-Rom curve through the points, `n` steps between neighbours."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    path = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    path = path.reshape(-1, p.shape[1])
    return path if closed else np.concatenate([path, p[-1:]])


def limb(points, widths: Sequence[float]) -> np.ndarray:
    """Outline a smooth, tapering, round-ended stroke through points; a width for each of them."""
    path = curve(np.column_stack([points, widths]), closed=False)
    xy, half = path[:, :2], path[:, 2:] / 2
    along = np.gradient(xy, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    across = along[:, ::-1] * (-1, 1)
    t = np.linspace(-math.pi / 2, math.pi / 2, 7)[1:-1, None]
    head = xy[-1] + half[-1] * (np.cos(t) * along[-1] + np.sin(t) * across[-1])
    tail = xy[0] - half[0] * (np.cos(t) * along[0] + np.sin(t) * across[0])
    return np.concatenate([(xy - half * across), head, (xy + half * across)[::-1], tail])


# Shading


@lru_cache(maxsize=256)
def _ramps(tint: Colour, gloss: float) -> tuple[list[int], list[int]]:
    """Tables from brightness 0..255 to the factors (RGB) and to the added highlight (RGB)."""
    level = np.linspace(0, 1, 256)
    shadow = 255 * np.interp(level, [0.1, 0.75], [0.0, 1.0])
    factors, highlights = [], []
    for channel, floor in zip(tint, (0.30, 0.30, 0.42)):
        factors += np.rint((floor + (1 - floor) * shadow / 255) * 255).astype(int).tolist()
        highlight = gloss * channel * np.clip((level - 0.7) / 0.3, 0, 1) ** 1.5
        highlights += np.rint(highlight).astype(int).tolist()
    return factors, highlights


def noise(rng: Random, size: tuple[int, int], cells: tuple[int, int], octaves: int = 3):
    """Make cloudy noise, an "L" image; `cells` across and down in the coarsest octave."""
    cloud = None
    for octave in range(octaves):
        grid = tuple(min(c << octave, s) for c, s in zip(cells, size))
        layer = Image.frombytes("L", grid, rng.randbytes(grid[0] * grid[1]))
        layer = layer.resize(size, Image.Resampling.BICUBIC)
        cloud = layer if cloud is None else Image.blend(cloud, layer, 0.36)
    return cloud


class Canvas:
    """A square picture with coverage (`alpha`), one direction of light and a current pose."""

    def __init__(self, rng: Random, size: int, light: float, tint: Colour = WHITE):
        self.rng, self.size, self.tint = rng, size, tint
        self.light = np.array([math.cos(light), math.sin(light)])
        self.image = Image.new("RGB", (size, size))
        self.alpha = Image.new("L", (size, size))
        self.grain = noise(rng, (size, size), (size // 10, size // 10), 2)
        self.pose()

    def pose(self, x=0.5, y=0.5, scale=0.4, angle=0.0, side=1) -> None:
        """Place what follows: centre and scale as shares of the side, `side` -1 mirrors it."""
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        self.matrix = self.size * scale * np.diag([side, 1]) @ turn
        self.offset = self.size * np.array([x, y])
        self.unit = self.size * scale

    def pixels(self, points) -> np.ndarray:
        """Turn figure coordinates into pixels."""
        return np.asarray(points, float) @ self.matrix + self.offset

    def shape(self, points, fill: Colour, marks=(), gloss=0.45, grain=0.14, lift=0.4) -> None:
        """Paint a rounded, lit shape.

        `marks` are (points, colour) painted on its surface, clipped and lit with it; `gloss` and
        `grain` 0..1 are the strength of highlight and texture, `lift` of the shadow around it.
        """
        path = self.pixels(points)
        step = np.roll(path, -1, 0) - path
        area = abs(np.sum(path[:, 0] * step[:, 1] - path[:, 1] * step[:, 0])) / 2
        depth = float(max(1.5, 2 * area / np.hypot(*step.T).sum()))  # a disc's radius
        pad = 4 * math.ceil(depth * 0.3)
        low = np.floor(path.min(0)).astype(int) - pad
        width, height = (int(4 * math.ceil(e / 4)) for e in path.max(0) - low + pad + 1)
        if max(width, height) > 4 * self.size:
            return
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon((path - low).ravel().tolist(), fill=255)

        zoom = 4 if depth > 10 else 2
        dome = mask.reduce(zoom).filter(ImageFilter.GaussianBlur(0.5 * depth / zoom))
        corner = tuple(low.tolist())
        if lift:
            around = dome.point([round(v * lift) for v in range(256)]).resize((width, height), 2)
            self.image.paste(DARK, corner, around)
        dx, dy = (self.light * 0.42 * depth / zoom).tolist()
        sides = (-dx, -dy, width / zoom - dx, height / zoom - dy)
        level = dome.transform((width, height), Image.Transform.EXTENT, sides, 2)
        if grain:
            across, down = min(width, self.size), min(height, self.size)
            left = self.rng.randrange(self.size - across + 1)
            top = self.rng.randrange(self.size - down + 1)
            part = (left, top, left + across, top + down)
            texture = self.grain.resize((width, height), Image.Resampling.NEAREST, part)
            level = Image.blend(level, texture, grain)
        surface = Image.new("RGB", (width, height), fill)
        pen = ImageDraw.Draw(surface)
        for outline, mark in marks:
            pen.polygon((self.pixels(outline) - low).ravel().tolist(), fill=mark)
        factors, highlights = _ramps(self.tint, gloss)
        level = Image.merge("RGB", (level, level, level))
        surface = ImageChops.multiply(surface, level.point(factors))
        surface = ImageChops.screen(surface, level.point(highlights))
        self.image.paste(surface, corner, mask)
        self.alpha.paste(255, corner, mask)

    def flat(self, points, fill: Colour) -> None:
        """Paint a small detail without shading."""
        path = self.pixels(points).ravel().tolist()
        ImageDraw.Draw(self.image).polygon(path, fill=fill)
        ImageDraw.Draw(self.alpha).polygon(path, fill=255)

    def dot(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Paint a small flat disc."""
        self.flat(ellipse(x, y, radius, radius, n=16), fill)

    def line(self, points, width: float, fill: Colour) -> None:
        """Paint a thin smooth line through the points."""
        self.flat(limb(points, [width] * len(points)), fill)

    def eye(self, x: float, y: float, radius: float, iris: Colour, slit=(0.55, 0.55)) -> None:
        """Paint a shining eye; `slit` is the pupil's half width and height in radii."""
        self.dot(x, y, radius * 1.12, DARK)
        self.shape(ellipse(x, y, radius, radius), iris, gloss=0.2, grain=0, lift=0)
        self.flat(ellipse(x, y, radius * slit[0], radius * slit[1], n=20), DARK)
        self.dot(x - radius * 0.32, y - radius * 0.36, radius * 0.26, WHITE)

    def put(self, figure: Canvas, height: float) -> None:
        """Lay a figure on this picture with its soft shadow, `height` (share of the side) above."""
        small = figure.alpha.reduce(4).filter(ImageFilter.GaussianBlur(self.size * height / 9))
        dx, dy = (figure.light * self.size * height / 4).tolist()
        extent = (dx, dy, small.width + dx, small.height + dy)
        shadow = small.transform(self.image.size, Image.Transform.EXTENT, extent, 2)
        self.image.paste(DARK, (0, 0), shadow.point([round(0.6 * v) for v in range(256)]))
        self.image.paste(figure.image, (0, 0), figure.alpha)


# Scenery

SCENES = {  # dark and light colours of the ground, and what lies on it
    "sand": ("#a9854f #b8956a #9a8a70", "#e3cfa2 #dcc19a #d8cdb4", "pebbles"),
    "meadow": ("#27451c #35521f #4a5a24", "#7d9c45 #93a850 #6b9448", "blades"),
    "moss": ("#2c3a17 #1f3d22 #3f4a1c", "#8f9c3c #5f8f45 #a0a050", "blades"),
    "litter": ("#3a2517 #46301d #2f2620", "#8a6440 #9a7448 #7a6450", "leaves"),
    "soil": ("#2a1f1a #3b2c24 #33302e", "#7c6250 #8b7462 #77706a", "pebbles"),
    "stone": ("#4a4c50 #5a544c #44505a", "#a6a8a6 #b4a894 #94a2aa", "pebbles"),
    "bark": ("#33241a #40352b #2d2c2a", "#97775a #8a8070 #a08868", "leaves"),
    "pool": ("#12424f #1d4a63 #1c5247", "#5fb0b4 #6ba6c8 #74b89a", "pebbles"),
    "snow": ("#8ea3b8 #9aa6b4 #a39fb0", "#eef3f8 #f2efec #e6eef4", "leaves"),
    "garden": ("#22402a #4a3a52 #5a4630", "#8cb878 #c8a0b8 #d8b878", "lights"),
}
FOLIAGE = "#b5502a #c98a2c #d9b23c #7a8a34 #4f7a36 #8a4a2a #a83a2e #6a5a34"


def leaf(length: float, width: float) -> np.ndarray:
    """Outline a pointed leaf from (0, 0) upward."""
    half = curve([(0, 0), (width, -0.35 * length), (0.6 * width, -0.75 * length), (0, -length)], False)
    return np.concatenate([half, mirror(half, -1)[::-1]])


def strew(canvas: Canvas, what: str, count: int, size: float) -> None:
    """Scatter pebbles, leaves, blades of grass or lights; sizes as shares of the side."""
    rng = canvas.rng
    u = rng.uniform
    greens = mix(pick(rng, "#4f7a2c #6f8f34 #3f6f3a #93964a"), pick(rng, FOLIAGE), u(0, 0.35))
    stones = pick(rng, "#8c8880 #a08a70 #6f747a #b8a68c #75624f")
    for _ in range(count):
        canvas.pose(u(0, 1), u(0, 1), size * u(0.5, 1.3), u(-math.pi, math.pi))
        if what == "pebbles":
            wobble = [(math.cos(t) * u(0.8, 1.1), math.sin(t) * u(0.55, 0.8)) for t in range(6)]
            canvas.shape(curve(wobble), mix(stones, pick(rng, "#c8c0b0 #3f3a36"), u(0, 0.6)), lift=0.5)
        elif what == "leaves":
            tone = pick(rng, FOLIAGE)
            half = leaf(2.4, u(0.4, 0.8))
            canvas.flat(half + 0.15, mix(tone, DARK, 0.75))
            canvas.flat(half, tone)
            canvas.flat(half[: len(half) // 2], mix(tone, WHITE, 0.15))
            canvas.line([(0, 0.5), (0, -2.2)], 0.07, mix(tone, DARK, 0.45))
        elif what == "blades":
            canvas.pose(u(0, 1), u(0.1, 1.3), size * u(0.6, 1.2), u(-0.5, 0.5))
            tone = mix(greens, rng.choice([DARK, (214, 220, 120)]), u(0, 0.6))
            bend = u(-0.7, 0.7)
            canvas.flat(limb([(0, 0), (0.2 * bend, -2), (bend, -3.6)], [0.34, 0.26, 0.03]), tone)
        else:
            x, y, radius = (round(v * canvas.size) for v in (u(0, 1), u(0, 1), size * u(0.5, 1.6)))
            disc = Image.new("L", (2 * radius + 1, 2 * radius + 1))
            ImageDraw.Draw(disc).ellipse((0, 0, 2 * radius, 2 * radius), fill=rng.randrange(30, 110))
            canvas.image.paste(pick(rng, "#fff0c0 #c8e0a0 #f8c8d0 #d0e8f0"), (x - radius, y - radius), disc)


def scenery(rng: Random, size: int, light: float, tint: Colour) -> Canvas:
    """Paint a random natural ground, soft as if a little out of focus."""
    scene = rng.choice(list(SCENES))
    dark, bright, thing = SCENES[scene]
    small = Canvas(rng, size // 2, light, tint)
    cells = {"bark": (16, 3), "pool": (4, 12), "sand": (3, 9)}.get(scene, (5, 5))
    cloud = noise(rng, (size // 2, size // 2), cells if rng.random() < 0.5 else cells[::-1], 4)
    low, high = pick(rng, dark), pick(rng, bright)
    table = [round(a + (b - a) * v / 255) for a, b in zip(low, high) for v in range(256)]
    small.image = Image.merge("RGB", (cloud, cloud, cloud)).point(table)
    counts = {"pebbles": 9, "leaves": 14, "blades": 60, "lights": 12}
    strew(small, thing, rng.randint(counts[thing] // 3, counts[thing]), 0.08)
    ground = Canvas(rng, size, light, tint)
    ground.image = small.image.resize((size, size), Image.Resampling.BICUBIC)
    return ground


def finish(canvas: Canvas, size: int) -> Image.Image:
    """Light the picture unevenly and colour it warm or cool, then shrink it to `size` pixels."""
    rng = canvas.rng
    image = canvas.image.resize((size, size), Image.Resampling.LANCZOS)
    falloff = np.linspace(-1, 1, size)
    x, y = canvas.light * rng.uniform(0, 0.22)
    level = rng.uniform(0.82, 1.14) + x * falloff[None] + y * falloff[:, None]
    level = level[..., None] * np.array(canvas.tint) / 250
    return Image.fromarray(np.clip(np.asarray(image) * level, 0, 255).astype(np.uint8))
