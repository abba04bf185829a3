"""Paint soft, shaded shapes with Pillow: the brushes of `helpers.data.drawn.sets`."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from random import Random

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
DARK, WHITE = (24, 20, 26), (255, 252, 244)


# Colours


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours; `share` 0..1 is the part of the second one."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def pick(rng: Random, codes: str) -> Colour:
    """Choose one of the colours, as "#c8a060 #4f8f2f", and vary its hue, saturation and value."""
    chosen = ImageColor.getrgb(rng.choice(codes.split()))
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in chosen))
    hue = (hue + rng.uniform(-0.025, 0.025)) % 1
    saturation = min(1, saturation * (1 + rng.uniform(-0.2, 0.2)))
    value = min(1, value * (1 + rng.uniform(-0.15, 0.12)))
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


def whole(half) -> np.ndarray:
    """Close a smooth outline that is symmetric to the vertical axis, given its right half."""
    return curve([*half, *((-x, y) for x, y in reversed(half) if x)])


@lru_cache
def _weights(n: int) -> np.ndarray:
    """Catmull-Rom weights (n, 4) of four neighbouring points at n steps from second to third."""
    t = np.linspace(0, 1, n, endpoint=False)
    weights = [2 * t**2 - t - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    return np.stack(weights, 1) / 2


def curve(points, closed: bool = True, n: int = 6) -> np.ndarray:
    """Draw a smooth Catmull-Rom curve through the points, `n` steps between neighbours."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    neighbours = np.stack([p[i : len(p) - 3 + i] for i in range(4)], 1)  # (segments, 4, columns)
    path = (_weights(n) @ neighbours).reshape(-1, p.shape[1])
    return path if closed else np.concatenate([path, p[-2:-1]])


def limb(points, widths: Sequence[float]) -> np.ndarray:
    """Outline a smooth, tapering, round-ended stroke through points; a width for each of them."""
    path = curve(np.column_stack([points, widths]), closed=False)
    xy, half = path[:, :2], path[:, 2:] / 2
    along = np.empty_like(xy)
    along[1:-1], along[0], along[-1] = xy[2:] - xy[:-2], xy[1] - xy[0], xy[-1] - xy[-2]
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    across = along[:, ::-1] * (-1, 1)
    head = xy[-1] + half[-1] * (_ROUND @ np.stack([along[-1], across[-1]]))
    tail = xy[0] - half[0] * (_ROUND @ np.stack([along[0], across[0]]))
    return np.concatenate([xy - half * across, head, (xy + half * across)[::-1], tail])


_ROUND = np.array([(math.cos(t), math.sin(t)) for t in (-1.2, -0.7, 0, 0.7, 1.2)])  # a half disc


def leaf(length: float, width: float) -> np.ndarray:
    """Outline a pointed leaf from (0, 0) upward."""
    half = [(0, 0), (width, -0.35 * length), (0.6 * width, -0.75 * length), (0, -length)]
    half = curve(half, closed=False)
    return np.concatenate([half, mirror(half, -1)[::-1]])


# Shading


@lru_cache
def _palette(fill: Colour, tint: Colour, gloss: float) -> bytes:
    """Tabulate the colour (RGB) of a surface for each brightness 0..255."""
    diffuse = _DIFFUSE * fill
    shine = _SHINE * [gloss * channel / 255 for channel in tint]
    return np.rint(diffuse + (255 - diffuse) * shine).astype(np.uint8).tobytes()


_LEVEL = np.linspace(0, 1, 256)[:, None]
_DIFFUSE = np.maximum([0.30, 0.30, 0.42], 1 - (0.75 - _LEVEL).clip(0) * [1.08, 1.08, 0.89])
_SHINE = ((_LEVEL - 0.7) / 0.3).clip(0) ** 1.5


def noise(rng: Random, size: tuple[int, int], cells: tuple[int, int], octaves: int):
    """Make cloudy noise, an "L" image; `cells` across and down in the coarsest octave."""
    cloud = None
    for octave in range(octaves):
        grid = tuple(min(c << octave, s) for c, s in zip(cells, size, strict=True))
        layer = Image.frombytes("L", grid, rng.randbytes(grid[0] * grid[1]))
        layer = layer.resize(size, Image.Resampling.BICUBIC)
        cloud = layer if cloud is None else Image.blend(cloud, layer, 0.36)
    return cloud


@lru_cache
def _grain(size: int) -> Image.Image:
    """Make the fine texture that shapes take their pieces from."""
    return noise(Random("grain"), (2 * size, 2 * size), (size // 5, size // 5), 2)


class Canvas:
    """A square picture with coverage (`alpha`), one direction of light and a current pose."""

    def __init__(self, rng: Random, image: Image.Image, light: float, tint: Colour):
        self.rng, self.image, self.size, self.tint = rng, image, image.width, tint
        self.alpha = Image.new("L", image.size)
        self.pens = ImageDraw.Draw(self.image), ImageDraw.Draw(self.alpha)
        self.light = np.array([math.cos(light), math.sin(light)])
        self.pose()

    def pose(self, x=0.5, y=0.5, scale=0.4, angle=0.0, side=1) -> None:
        """Place what follows: centre and scale as shares of the side, `side` -1 mirrors it."""
        self.unit = self.size * scale
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        self.matrix = self.unit * turn * np.array([[side], [1]])
        self.offset = self.size * np.array([x, y])

    def pixels(self, points) -> np.ndarray:
        """Turn figure coordinates into pixels."""
        return np.asarray(points, float) @ self.matrix + self.offset

    def shape(self, points, fill: Colour, marks=(), gloss=0.45, grain=0.14, lift=0.4) -> None:
        """Paint a rounded, lit shape.

        `marks` are (points, colour) painted on its surface, clipped and lit with it; `gloss` and
        `grain` 0..1 are the strength of highlight and texture, `lift` of the shadow around it.
        """
        path = self.pixels(points)
        step = np.diff(path, axis=0, append=path[:1])
        area = abs(np.sum(path[:, 0] * step[:, 1] - path[:, 1] * step[:, 0])) / 2
        depth = float(max(1.5, 2 * area / np.hypot(*step.T).sum()))  # the radius if it is a disc
        zoom = 4 if depth > 10 else 2
        pad = zoom * math.ceil(0.5 * depth / zoom)
        low = np.floor(path.min(0)).astype(int)
        width, height = (zoom * math.ceil(e / zoom) for e in (path.max(0) - low + 1).tolist())
        mask = Image.new("L", (width + 2 * pad, height + 2 * pad))
        ImageDraw.Draw(mask).polygon((path - low + pad).ravel().tolist(), fill=255)
        dome = mask.reduce(zoom).filter(ImageFilter.GaussianBlur(0.5 * depth / zoom))
        mask = mask.crop((pad, pad, pad + width, pad + height))
        x, y = low.tolist()
        if lift:
            around = Image.blend(Image.new("L", dome.size), dome, lift)
            around = around.resize((width + 2 * pad, height + 2 * pad), Image.Resampling.BILINEAR)
            self.image.paste(DARK, (x - pad, y - pad), around)
        dx, dy = ((pad - 0.42 * depth * self.light) / zoom).tolist()
        part = (dx, dy, dx + width / zoom, dy + height / zoom)
        level = dome.resize((width, height), Image.Resampling.BILINEAR, part)
        if grain:
            texture = _grain(self.size)
            left = self.rng.randrange(max(1, texture.width - width))
            top = self.rng.randrange(max(1, texture.height - height))
            texture = texture.crop((left, top, left + width, top + height))
            level = Image.blend(level, texture, grain)
        level.putpalette(_palette(fill, self.tint, gloss))
        surface = level.convert("RGB")
        for mark, group in groupby(marks, itemgetter(1)):
            area = Image.new("L", (width, height))
            for outline, _ in group:
                path = self.pixels(outline) - low
                ImageDraw.Draw(area).polygon(path.ravel().tolist(), fill=255)
            level.putpalette(_palette(mark, self.tint, gloss))
            surface.paste(level.convert("RGB"), (0, 0), area)
        self.image.paste(surface, (x, y), mask)
        self.alpha.paste(255, (x, y), mask)

    def flat(self, points, fill: Colour) -> None:
        """Paint a small detail without shading."""
        path = self.pixels(points).ravel().tolist()
        for pen, ink in zip(self.pens, (fill, 255), strict=True):
            pen.polygon(path, fill=ink)

    def dot(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Paint a small flat disc."""
        x, y = self.pixels((x, y)).tolist()
        r = radius * self.unit
        for pen, ink in zip(self.pens, (fill, 255), strict=True):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)

    def line(self, points, width: float, fill: Colour) -> None:
        """Paint a thin smooth line through the points."""
        path = [tuple(p) for p in self.pixels(curve(points, closed=False)).tolist()]
        for pen, ink in zip(self.pens, (fill, 255), strict=True):
            pen.line(path, fill=ink, width=max(1, round(width * self.unit)), joint="curve")

    def eye(self, x: float, y: float, radius: float, iris: Colour, slit=(0.55, 0.55)) -> None:
        """Paint a shining eye; `slit` is the pupil's half width and height in radii."""
        self.dot(x, y, radius * 1.12, DARK)
        self.shape(ellipse(x, y, radius, radius), iris, gloss=0.2, grain=0, lift=0)
        self.flat(ellipse(x, y, radius * slit[0], radius * slit[1], n=20), DARK)
        self.dot(x - radius * 0.32, y - radius * 0.36, radius * 0.26, WHITE)

    def put(self, figure: Canvas, height: float, camouflage: float) -> None:
        """Lay a figure on this picture with its soft shadow, `height` (share of the side) above.

        `camouflage` 0..1 blends the figure's colours with the mean colour of the picture.
        """
        mean = self.image.reduce(self.size).getpixel((0, 0))
        mean = Image.new("RGB", self.image.size, mean)
        figure.image.paste(Image.blend(figure.image, mean, camouflage))
        small = figure.alpha.reduce(4).filter(ImageFilter.GaussianBlur(self.size * height / 9))
        dx, dy = (-figure.light * small.width * height).astype(int).tolist()
        shadow = Image.new("L", small.size)
        shadow.paste(small.point([round(0.6 * v) for v in range(256)]), (dx, dy))
        shadow = shadow.resize(self.image.size, Image.Resampling.BILINEAR)
        self.image.paste(DARK, (0, 0), shadow)
        self.image.paste(figure.image, (0, 0), figure.alpha)
