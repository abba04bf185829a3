"""Draw the embedded data sets: small folders of JPEG pictures that need no download."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from uuid import uuid4

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from helpers.paint import (
    DARK,
    WHITE,
    Canvas,
    Colour,
    colour,
    curve,
    ellipse,
    finish,
    leaf,
    limb,
    mirror,
    mix,
    move,
    pick,
    scenery,
    strew,
)

PI = math.pi
SIDES = (-1, 1)


def draw_frog(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    skin = pick(rng, "#4f8f2f #6fa83a #8a9a3a #7a6238 #3f7f5a #c8862a #3a78a8 #a8b048")
    belly, spot = mix(skin, colour("#f4ecc0"), 0.7), mix(skin, DARK, u(0.3, 0.6))
    iris = pick(rng, "#d8a82a #c8502a #d8d060")
    spots = [(ellipse(u(-0.6, 0.6), u(-0.6, 0.6), u(0.04, 0.11), u(0.04, 0.11)), spot) for _ in range(rng.randint(0, 12))]
    if rng.random() < 0.5:  # seen from above
        for side in SIDES:
            hind = [(0.2, 0.5), (0.75, u(0.1, 0.35)), (0.5, 0.75), (0.95, u(0.85, 1.0))]
            fore = [(0.3, -0.2), (0.72, u(-0.2, 0.0)), (0.8, u(-0.6, -0.4))]
            for joints, widths in ((hind, [0.34, 0.3, 0.2, 0.12]), (fore, [0.22, 0.17, 0.1])):
                for toe in (-0.5, 0, 0.5):
                    foot = np.array(joints[-1])
                    tip = foot + np.array([math.sin(toe + 0.5), 0.4 * toe + (-0.9 if joints is fore else 0.5)]) * 0.2
                    c.line(mirror([foot, tip], side), 0.07, mix(skin, DARK, 0.25))
                    c.dot(tip[0] * side, tip[1], 0.055, skin)
                c.shape(mirror(limb(joints, widths), side), skin)
        stripe = [(limb([(s * 0.12, -0.7), (s * 0.3, 0), (s * 0.12, 0.7)], [0.05, 0.08, 0.02]), belly) for s in SIDES]
        half = [(0.0, -0.88), (0.24, -0.72), (0.42, -0.35), (0.46, 0.1), (0.3, 0.6), (0.1, 0.75)]
        body = curve(half + [(-x, y) for x, y in half[:0:-1]])
        c.shape(body, skin, spots + (stripe if rng.random() < 0.5 else []))
        for side in SIDES:
            c.shape(ellipse(side * 0.3, -0.52, 0.15, 0.17), skin)
            c.eye(side * 0.33, -0.54, 0.11, iris, (0.3, 0.8))
        return
    for side in SIDES:
        c.shape(ellipse(side * 0.68, 0.42, 0.34, 0.42, side * 0.5), skin, spots)
        for toe in (-0.15, 0.05, 0.25):
            c.shape(limb([(side * 0.7, 0.74), (side * (0.85 + toe), 0.9)], [0.16, 0.09]), skin, lift=0.2)
    half = [(0.5, -0.2), (0.62, 0.3), (0.42, 0.75), (0, 0.82)]
    c.shape(curve(half + [(-x, y) for x, y in half[-2::-1]]), skin)
    c.shape(ellipse(0, 0.36, 0.4, 0.4), belly, lift=0)
    for side in SIDES:
        for toe in (-0.14, 0, 0.14):
            c.line([(side * 0.38, 0.78), (side * 0.38 + toe, 0.95)], 0.07, mix(skin, DARK, 0.15))
        c.shape(limb([(side * 0.52, 0.15), (side * 0.5, 0.5), (side * 0.38, 0.82)], [0.26, 0.19, 0.13]), skin)
        c.shape(ellipse(side * 0.42, -0.62, 0.24, 0.24), skin)
    lip = [(limb([(-0.8, -0.05), (0, 0.16), (0.8, -0.05)], [0.3, 0.24, 0.3]), belly)]
    c.shape(ellipse(0, -0.26, 0.72, 0.4), skin, lip + spots)
    c.line([(-0.62, -0.18), (-0.3, -0.05), (0, -0.01), (0.3, -0.05), (0.62, -0.18)], 0.04, mix(skin, DARK, 0.7))
    for side in SIDES:
        c.eye(side * 0.43, -0.64, 0.17, iris, (0.75, 0.4))
        c.dot(side * 0.09, -0.3, 0.025, mix(skin, DARK, 0.6))


def draw_starfish(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    skin = pick(rng, "#d8622a #c83a3a #d89a3a #8a4a9a #4a6ab0 #d8b890 #a84a6a #b86a4a")
    knob = mix(skin, rng.choice([WHITE, DARK]), u(0.35, 0.7))
    arms, inner, bend = rng.choice([5, 5, 5, 5, 6]), u(0.26, 0.4), u(-0.5, 0.5)
    power = u(1.5, 2.6)
    t = np.linspace(0, 2 * PI, 180, endpoint=False)
    lengths = np.array([u(0.85, 1.08) for _ in range(arms)])
    reach = lengths[np.rint(t * arms / (2 * PI)).astype(int) % arms]
    radius = inner + (reach - inner) * ((1 + np.cos(arms * t)) / 2) ** power
    turned = t + bend * radius**2
    c.shape(np.stack([radius * np.cos(turned), radius * np.sin(turned)], 1), skin, gloss=0.35, grain=0.25)
    for arm in range(arms):
        for row in (-1, 0, 1):
            for r in np.linspace(0.12, lengths[arm] * (0.88 if row == 0 else 0.6), 8 if row == 0 else 5):
                a = 2 * PI * arm / arms + bend * r**2
                x, y = move([(r, row * 0.13 * (1 - r))], angle=a)[0]
                size = 0.045 * (1.15 - r) + 0.012
                c.dot(x + 0.015, y + 0.02, size, mix(skin, DARK, 0.45))
                c.dot(x, y, size * 0.9, knob)


def draw_spider(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    skin = pick(rng, "#3a2c26 #5a4030 #8a6a42 #2a2a30 #a87a3a #6a3a2a #9a8a6a #7a8a3a")
    other = mix(pick(rng, "#f0d8a0 #d83a2a #f0f0e0 #e8b030"), skin, u(0, 0.4))
    banded = rng.random() < 0.5
    if rng.random() < 0.35:  # a web behind
        silk = (226, 228, 226)
        spokes = [2 * PI * k / 11 + u(-0.1, 0.1) for k in range(11)]
        for r in (0.45, 0.8, 1.15, 1.5, 1.85):
            ring = [(r * math.cos(a), r * math.sin(a)) for a in spokes]
            for start, end in zip(ring, ring[1:] + ring[:1]):
                c.line([start, (np.add(start, end)) * 0.47, end], 0.018, silk)
        for a in spokes:
            c.line([(0, 0), (2.2 * math.cos(a), 2.2 * math.sin(a))], 0.018, silk)
    for side in SIDES:
        for a, length in zip((-1.05, -0.4, 0.3, 0.95), (1.1, 0.95, 0.9, 1.15)):
            a += u(-0.13, 0.13)
            hip = np.array([0.2, -0.18 + 0.14 * a])
            knee = hip + length * 0.5 * np.array([math.cos(a - 0.25 * np.sign(a)), math.sin(a) - 0.15])
            tip = hip + length * np.array([math.cos(a) * 0.88, math.sin(a) * 0.95 + 0.1 * np.sign(a)])
            path = mirror([hip, knee, tip], side)
            c.shape(limb(path, [0.13, 0.1, 0.045]), skin, lift=0.2)
            if banded:
                for t in (0.35, 0.8):
                    b = path[1] + (path[2] - path[1]) * t
                    c.line([b, b + (path[2] - path[1]) * 0.1], 0.07, other)
    style = rng.randrange(3)
    if style == 0:
        marks = [(limb([(-0.3, y - 0.12), (0, y), (0.3, y - 0.12)], [0.02, 0.08, 0.02]), other) for y in (0.3, 0.5, 0.7)]
    elif style == 1:
        marks = [(ellipse(s * 0.15, y, 0.07, 0.06), other) for s in SIDES for y in (0.28, 0.48, 0.68)]
    else:
        marks = [(curve([(0, 0.15), (0.13, 0.4), (0.05, 0.55), (0.12, 0.75), (0, 0.9), (-0.12, 0.75), (-0.05, 0.55), (-0.13, 0.4)]), other)]
    c.shape(ellipse(0, -0.22, 0.27, 0.3), skin)
    c.shape(ellipse(0, 0.44, u(0.34, 0.44), 0.5), mix(skin, other, 0.12), marks)
    for side in SIDES:
        c.line([(side * 0.08, -0.48), (side * 0.13, -0.62)], 0.08, skin)
        c.eye(side * 0.08, -0.42, 0.065, DARK)
        c.dot(side * 0.18, -0.36, 0.03, DARK)


def draw_bird(
    c: Canvas,
    rng: Random,
    beak: str = "",
    crest: str = "",
    bars: int | None = None,
    tail: str = "",
    mask: bool | None = None,
    crown: Colour | None = None,
) -> None:
    """Paint a bird on its twig; features that are not given are drawn by lot."""
    u = rng.uniform
    beak = beak or rng.choice(["long", "cone", "thin", "hook"])
    crest = crest or rng.choice(["none", "none", "none", "point", "fan"])
    tail = tail or rng.choice(["short", "long", "fork"])
    bars = rng.randrange(3) if bars is None else bars
    mask = rng.random() < 0.3 if mask is None else mask
    back = pick(rng, "#3f6fa8 #8a6a48 #6a7a3a #5a5f6a #a84a32 #3a7a70 #b08a3a #484450")
    chest = mix(pick(rng, "#e8d8b0 #d88a3a #e8e4da #d8b048 #c8624a"), back, u(0, 0.2))
    crown = crown or mix(back, rng.choice([DARK, WHITE, chest]), u(0, 0.5))
    horn = pick(rng, "#3a3430 #d89030 #8a8078 #c8582a")
    bark = pick(rng, "#5a4230 #6a5a48 #4a4038")
    nod = np.array([u(-0.05, 0.05), u(-0.05, 0.06)])
    c.shape(limb([(-1.6, 0.84 + u(-0.2, 0.2)), (-0.4, 0.78), (0.5, 0.8), (1.6, 0.78 + u(-0.25, 0.25))], [0.1, 0.14, 0.13, 0.09]), bark, grain=0.3)
    dark = mix(back, DARK, 0.35)
    if tail == "fork":
        for spread in (0.12, -0.14):
            c.shape(limb([(0.45, 0.35), (0.85, 0.68 + spread), (1.2, 0.9 + 2.2 * spread)], [0.2, 0.15, 0.04]), dark)
    else:
        end = (0.95, 0.68) if tail == "short" else (1.3, 1.0)
        c.shape(limb([(0.4, 0.3), end], [0.26, 0.22 if tail == "short" else 0.16]), dark)
    for x in (-0.08, 0.12):
        c.line([(x, 0.5), (x - 0.04, 0.74)], 0.05, horn)
        for toe in (-0.1, 0.0, 0.08):
            c.line([(x - 0.04, 0.72), (x - 0.04 + toe, 0.82)], 0.045, horn)
    head = np.array([-0.42, -0.42]) + nod
    body = curve([head + (-0.22, 0.2), (-0.6, 0.15), (-0.38, 0.52), (0.05, 0.62), (0.5, 0.42), (0.55, 0.28), (0.25, -0.05), head + (0.25, 0.1)])
    c.shape(body, back, [(curve([(-0.7, -0.2), (-0.3, -0.05), (-0.05, 0.3), (0.35, 0.5), (0, 0.8), (-0.8, 0.5)]), chest)])
    tilt = u(-0.12, 0.12)
    feather = mix(back, WHITE, 0.75)
    marks = [(limb([(0.25 * k - 0.22, -0.1), (0.25 * k - 0.3, 0.5)], [0.09, 0.09]), feather) for k in range(bars)]
    marks += [(limb([(0.0, y), (0.9, y + 0.12)], [0.01, 0.04]), dark) for y in (0.12, 0.22, 0.32)]
    wing = move(curve([(-0.3, 0.0), (-0.05, -0.08), (0.4, 0.12), (0.86, 0.44), (0.4, 0.42), (-0.05, 0.36), (-0.28, 0.2)]), angle=tilt)
    c.shape(wing, mix(back, DARK, 0.15), [(move(p, angle=tilt), m) for p, m in marks])
    x, y = head
    if crest == "point":
        c.shape(curve([(x - 0.2, y - 0.2), (x + 0.05, y - 0.34), (x + 0.42, y - 0.62), (x + 0.3, y - 0.2), (x + 0.2, y)]), crown)
    if crest == "fan":
        for k in range(5):
            c.shape(limb([(x, y - 0.1), move([(0, -0.52)], x, y, -0.55 + 0.32 * k)[0]], [0.1, 0.13]), crown, lift=0.25)
    bill = {
        "long": [(-0.22, -0.09), (-0.95, 0.12), (-0.22, 0.08)],
        "cone": [(-0.2, -0.17), (-0.52, 0.05), (-0.2, 0.16)],
        "thin": [(-0.24, -0.06), (-0.5, 0.02), (-0.24, 0.06)],
        "hook": [(-0.2, -0.15), (-0.42, -0.12), (-0.56, 0.05), (-0.53, 0.2), (-0.42, 0.08), (-0.2, 0.12)],
    }[beak]
    c.shape(move(bill, x, y), horn, grain=0)
    hood = [(curve([(x - 0.35, y - 0.14), (x, y - 0.06), (x + 0.35, y - 0.02), (x + 0.3, y - 0.4), (x - 0.3, y - 0.4)]), crown)]
    if mask:
        hood.append((limb([(x - 0.34, y), (x + 0.2, y + 0.02)], [0.16, 0.1]), DARK))
    c.shape(ellipse(x, y, 0.29, 0.28), mix(back, chest, 0.25), hood, lift=0.15)
    c.eye(x - 0.1, y - 0.03, 0.07, pick(rng, "#6a3a1a #2a2020 #c89030"), (0.6, 0.6))


def draw_mushroom(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    skin = pick(rng, "#c0302a #a8703a #d8a050 #7a4a30 #e0d0b0 #c86a2a #8a6a8a #d8c040")
    stem, dots = pick(rng, "#ece0c4 #d8c49a #f0ece0"), rng.random() < 0.55
    flat, cone = u(0.45, 0.75), u(0, 0.3)
    for k in range(rng.choice([1, 1, 2, 3])):
        size = 1.0 if k == 0 else u(0.4, 0.65)
        x, y = (0.0, 0.0) if k == 0 else (rng.choice(SIDES) * u(0.55, 0.9), 0.85 - 0.85 * size)
        lean, wide = u(-0.15, 0.15), u(0.18, 0.32)

        def at(points):
            return move(points, x, y, lean * size, size)

        c.shape(at(limb([(0, -0.15), (0.02, 0.4), (0, 0.78)], [wide, wide * 1.1, wide * 1.6])), stem, grain=0.25)
        c.shape(at(ellipse(0, -0.06, 0.7, 0.17)), mix(stem, DARK, 0.2))
        for gill in np.linspace(-0.6, 0.6, 11):
            c.line(at([(gill * 0.25, -0.02), (gill, 0.07 - 0.1 * gill**2)]), 0.015 * size, mix(stem, DARK, 0.5))
        half = [(0.8, 0.0), (0.74, -0.28), (0.42 - 0.4 * cone, -0.2 - 0.75 * flat - 0.1 * cone), (0, -0.25 - flat - cone)]
        rim = [(-0.45, -0.06), (0, -0.02), (0.45, -0.06)]
        cap = curve(half + [(-a, b) for a, b in half[-2::-1]] + rim)
        warts = []
        if dots:
            for _ in range(13):
                a, r = u(-1.3, 1.3), u(0.05, 1)
                warts.append((at(ellipse(0.75 * math.sin(a) * r, -0.06 - (0.2 + 0.75 * flat) * math.cos(a) * r, u(0.05, 0.1), u(0.04, 0.08))), mix(WHITE, stem, 0.4)))
        c.shape(at(cap), mix(skin, DARK, 0 if k == 0 else u(0, 0.2)), warts, gloss=0.6)


def draw_butterfly(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    base = pick(rng, "#e8862a #3a78c8 #e8d040 #e8e4d0 #c83a3a #8a5ab8 #4aa890 #d88ab0")
    edge, second = mix(base, DARK, u(0.6, 0.95)), mix(pick(rng, "#f0d060 #f08a3a #f0f0f0 #60b0e0"), base, 0.3)
    open_, drop, style = u(0.6, 1.05), u(-0.1, 0.15), rng.randrange(3)
    upper = curve([(0.03, -0.12), (0.4, -0.7), (0.92, -0.92 + drop), (1.05, -0.55 + drop), (0.72, -0.05), (0.3, 0.08), (0.03, 0.05)])
    lower = curve([(0.03, 0.0), (0.4, 0.05), (0.8, 0.22), (0.78, 0.58), (0.45, 0.86 + u(-0.1, 0.1)), (0.2, 0.6), (0.03, 0.25)])
    for side in SIDES:
        for wing, root, spot in ((lower, (0.1, 0.15), (0.52, 0.48)), (upper, (0.1, -0.08), (0.72, -0.52 + drop))):
            mid = wing.mean(0)
            marks = [(root + (wing - root) * 0.84, base), (root + (wing - root) * 0.45, mix(base, second, 0.5))]
            if style == 0:
                marks += [(ellipse(*spot, 0.16, 0.16), edge), (ellipse(*spot, 0.1, 0.1), second), (ellipse(*spot, 0.04, 0.04), WHITE)]
            for t in np.linspace(0.25, 0.7, 6):
                point = wing[int(t * len(wing))]
                if style:
                    marks.append((limb([root, root + (point - root) * 1.0], [0.015, 0.03]), edge))
                inward = point + (mid - point) * 0.14
                marks.append((ellipse(*inward, 0.035, 0.035), second if style else WHITE))
            c.shape(mirror(wing, side) * (open_, 1), edge, [(mirror(p, side) * (open_, 1), m) for p, m in marks], gloss=0.3, grain=0.2)
        c.line(mirror([(0.02, -0.3), (0.12, -0.62), (0.26, -0.85)], side), 0.025, DARK)
        c.dot(side * 0.26, -0.86, 0.04, DARK)
    c.shape(limb([(0, -0.12), (0, 0.5)], [0.14, 0.07]), mix(edge, DARK, 0.4))
    c.shape(ellipse(0, -0.12, 0.09, 0.17), mix(edge, DARK, 0.3))
    c.shape(ellipse(0, -0.33, 0.075, 0.075), mix(edge, DARK, 0.5))


def draw_cat(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    fur = pick(rng, "#c8823a #6a6460 #e8e0d0 #3a3434 #a88a68 #8a8a90 #d8b080 #7a5a40")
    tabby, pale = rng.random() < 0.6, mix(fur, WHITE, u(0.3, 0.8))
    stripe = mix(fur, DARK, 0.45)
    iris = pick(rng, "#8ab83a #d8b02a #5aa0c8 #c88a2a")
    style = rng.randrange(3)  # sitting, lying, face
    x, y, size = ((0, -0.42, 0.47), (-0.6, 0.0, 0.42), (0, 0.08, 0.85))[style]
    if style == 0:
        c.shape(limb([(0.3, 0.75), (0.85, 0.78), (0.95, 0.3), (0.8, 0.0)], [0.16, 0.17, 0.15, 0.1]), fur)
        rings = [(limb([(s * 0.6, t), (s * 0.25, t + 0.06)], [0.08, 0.02]), stripe) for s in SIDES for t in (0.1, 0.3, 0.5)]
        half = [(0.26, -0.2), (0.4, 0.2), (0.52, 0.65), (0.35, 0.88)]
        c.shape(curve(half + [(-a, b) for a, b in half[::-1]]), fur, rings if tabby else [])
        c.shape(ellipse(0, 0.1, 0.2, 0.32), pale, lift=0)
        for side in SIDES:
            c.shape(limb([(side * 0.16, 0.25), (side * 0.17, 0.82)], [0.22, 0.2]), fur)
            c.shape(ellipse(side * 0.18, 0.87, 0.15, 0.1), pale)
    if style == 1:
        c.shape(limb([(0.85, 0.45), (1.1, 0.6), (0.7, 0.78), (0.2, 0.74)], [0.2, 0.18, 0.15, 0.1]), fur)
        rings = [(limb([(t, -0.5), (t + 0.08, 0.35)], [0.09, 0.03]), stripe) for t in (-0.1, 0.12, 0.34, 0.56, 0.78)]
        c.shape(curve([(-0.65, 0.2), (-0.3, -0.12), (0.3, -0.22), (0.85, 0.0), (1.0, 0.5), (0.7, 0.72), (-0.4, 0.74), (-0.75, 0.6)]), fur, rings if tabby else [])
        c.shape(ellipse(0.62, 0.5, 0.32, 0.26), fur)
        for dx in (-0.55, -0.3):
            c.shape(limb([(dx + 0.2, 0.6), (dx, 0.74)], [0.2, 0.17]), pale)

    def at(points):
        return move(points, x, y, tilt, size)

    tilt = u(-0.15, 0.15)
    for side in SIDES:
        c.shape(at(mirror([(0.22, -0.68), (0.72, -1.22), (0.9, -0.35)], side)), fur)
        c.shape(at(mirror([(0.4, -0.72), (0.68, -1.02), (0.78, -0.5)], side)), mix(fur, (226, 150, 140), 0.65), lift=0)
    half = [(0, -0.8), (0.5, -0.72), (0.88, -0.25), (0.95, 0.22), (0.55, 0.66), (0, 0.78)]
    marks = []
    if tabby:
        marks += [(at(limb([(t, -0.95), (t * 0.7, -0.42)], [0.12, 0.05])), stripe) for t in (-0.34, 0, 0.34)]
        marks += [(at(limb([(s * 1.05, t), (s * 0.66, t + 0.04)], [0.11, 0.03])), stripe) for s in SIDES for t in (0.02, 0.26)]
    c.shape(at(curve(half + [(-a, b) for a, b in half[-2:0:-1]])), fur, marks)
    for side in SIDES:
        c.shape(at(ellipse(side * 0.2, 0.38, 0.27, 0.22)), pale, lift=0.1)
    for side in SIDES:
        ex, ey = at([(side * 0.42, -0.08)])[0]
        c.eye(ex, ey, 0.2 * size, iris, (u(0.2, 0.6), 0.85))
        for t in (-0.16, 0.0, 0.16):
            c.line(at([(side * 0.3, 0.4 + t * 0.4), (side * 0.8, 0.34 + t), (side * 1.25, 0.4 + 1.7 * t)]), 0.02, WHITE)
        c.line(at([(0, 0.36), (side * 0.1, 0.5), (side * 0.26, 0.5)]), 0.045 * size, mix(fur, DARK, 0.7))
    c.flat(at([(-0.13, 0.2), (0.13, 0.2), (0, 0.35)]), (208, 112, 108))


def draw_snail(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    shell = pick(rng, "#b8763a #d8b070 #8a5a3a #c8a04a #a86a5a #9a8a70 #d8c8a0 #7a6a8a")
    flesh = pick(rng, "#b8a078 #8a7a68 #6a6258 #c8b090 #a8a080")
    band = mix(shell, rng.choice([DARK, WHITE]), u(0.35, 0.65))
    raised = u(-0.2, 0.15)
    for dx, lean in ((-0.12, -0.2), (0.08, 0.1)):
        base = (-0.82 + dx * 0.5, 0.2 + raised)
        tip = (-0.9 + dx + lean * 0.5, -0.32 + raised + u(-0.08, 0.08))
        c.shape(limb([base, tip], [0.09, 0.06]), flesh, lift=0.2)
        c.shape(ellipse(*tip, 0.075, 0.075), flesh)
        c.dot(tip[0] - 0.02, tip[1] - 0.01, 0.04, DARK)
    body = limb([(-0.84, 0.25 + raised), (-0.72, 0.55), (-0.3, 0.68), (0.5, 0.72), (1.1, 0.8)], [0.28, 0.34, 0.32, 0.26, 0.05])
    c.shape(body, flesh, [(limb([(-1, 0.84), (1.2, 0.86)], [0.12, 0.1]), mix(flesh, DARK, 0.35))], grain=0.35)
    c.line([(-0.98, 0.36 + raised), (-0.86, 0.4 + raised)], 0.03, mix(flesh, DARK, 0.6))
    x, y, r, turns = 0.16, 0.06, u(0.56, 0.66), u(2.3, 3.2)
    t = np.linspace(0, 1, 70)
    radius, angle = r * 1.03 * (1 - t) ** 0.85, 0.9 - 2 * PI * turns * t
    path = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle) * 0.96], 1)
    gap = r / turns
    marks = []
    if rng.random() < 0.6:
        marks.append((limb(path[::3] * 1.0 + (path[::3] - (x, y)) * -gap * 0.45 / np.maximum(radius[::3, None], 0.1), gap * 0.3 * (1 - t[::3] * 0.8)), band))
    marks.append((limb(path[::2], 0.07 * (1 - 0.7 * t[::2])), mix(shell, DARK, 0.6)))
    lip = curve([(x - 0.5, y + 0.2), (x - 0.62, y + 0.52), (x - 0.3, y + 0.62), (x + 0.1, y + 0.55)])
    c.shape(lip, mix(shell, DARK, 0.2))
    c.shape(ellipse(x, y, r, r * 0.96), shell, marks, gloss=0.7, grain=0.2)


def draw_flower(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    tone = pick(rng, "#e85a8a #f0c830 #f4f0e8 #9a5ac8 #e8503a #5a7ae0 #f09a4a #f0b0c8")
    green = pick(rng, "#4f8a3a #6a9a3a #3f7048")
    heart = pick(rng, "#e8b020 #8a5a20 #f0e070 #5a3a20")
    bend = u(-0.35, 0.35)
    c.shape(limb([(0, 0), (bend, 0.8), (bend * 0.6, 1.9)], [0.1, 0.1, 0.12]), green)
    for side in SIDES:
        blade = leaf(u(0.6, 0.8), u(0.14, 0.24))
        vein = [(limb([(0, 0), (0, -0.8)], [0.03, 0.01]), mix(green, WHITE, 0.4))]
        turn = side * u(0.8, 1.5)
        c.shape(move(blade, bend * 0.9, 0.95, turn), green, [(move(p, bend * 0.9, 0.95, turn), m) for p, m in vein])
    count, tip = rng.choice([(5, "round"), (6, "round"), (8, "point"), (12, "point"), (16, "point"), (5, "notch")])
    width, rings = 2.3 / (count + 1) + 0.05, rng.choice([1, 1, 2])
    y = -0.2
    shapes = {
        "round": [(0, 0), (0.5, -0.25), (1, -0.7), (0.6, -1), (0, -1.06)],
        "point": [(0, 0), (0.7, -0.3), (1, -0.6), (0.6, -0.88), (0, -1.06)],
        "notch": [(0, 0), (0.5, -0.3), (1, -0.75), (0.6, -1.04), (0, -0.88)],
    }
    half = np.array(shapes[tip]) * (width, 0.78)
    petal = curve(np.concatenate([half, mirror(half, -1)[-2:0:-1]]))
    throat = mix(tone, rng.choice([DARK, WHITE, heart]), u(0.2, 0.6))
    squash = np.array([1, u(0.7, 1.0)])
    for ring in range(rings):
        scale, shift = 1 - 0.32 * ring, u(0, 1) if ring == 0 else PI / count
        for k in range(count):
            a = shift + 2 * PI * k / count + u(-0.05, 0.05)
            marks = [(petal * (0.6, 0.5), throat), (limb([(0, 0), (0, -0.6)], [0.05, 0.01]), throat)]
            c.shape(move(petal, 0, 0, a, scale) * squash + (0, y), mix(tone, WHITE, 0.15 * ring), [(move(p, 0, 0, a, scale) * squash + (0, y), m) for p, m in marks], gloss=0.3, lift=0.3)
    size = u(0.16, 0.28)
    c.shape(ellipse(0, y, size, size * squash[1]), heart, grain=0.3)
    for k in range(30):
        r, a = size * 0.9 * math.sqrt(k / 30), 2.4 * k
        c.dot(r * math.cos(a), y + r * math.sin(a) * squash[1], 0.022, mix(heart, DARK if k % 2 else WHITE, 0.5))


def draw_turtle(c: Canvas, rng: Random) -> None:
    u = rng.uniform
    skin = pick(rng, "#6a8a4a #8a9a5a #5a7a68 #9a8a58 #4a6a4a")
    shell = pick(rng, "#6a4a2a #4a5a2a #8a6a34 #3f4a34 #7a5a48 #5a6a5a")
    plate = mix(shell, pick(rng, "#d8b060 #b8c070 #c89a5a"), u(0.35, 0.7))
    spot = mix(skin, DARK, 0.4)
    if rng.random() < 0.6:  # seen from above
        flippers, swing = rng.random() < 0.5, u(-0.2, 0.2)
        for side in SIDES:
            if flippers:
                fore = [(0.35, -0.4), (0.85, -0.6 + swing), (1.15, -0.1 + swing)]
                hind = [(0.3, 0.5), (0.6, 0.85 - swing)]
                widths = [0.24, 0.32, 0.08]
            else:
                fore, hind, widths = [(0.4, -0.4), (0.72, -0.62 + swing)], [(0.4, 0.5), (0.7, 0.75 - swing)], [0.26, 0.24]
            for joints, wide in ((fore, widths), (hind, [0.24, 0.2])):
                path = mirror(joints, side)
                marks = [(ellipse(*(path[-1] + (u(-0.12, 0.12), u(-0.12, 0.12))), 0.05, 0.04), spot) for _ in range(4)]
                c.shape(limb(path, wide), skin, marks)
        c.shape(limb([(0, 0.7), (u(-0.1, 0.1), 1.0)], [0.14, 0.03]), skin)
        nod = u(-0.1, 0.1)
        c.shape(limb([(0, -0.6), (nod, -0.95)], [0.24, 0.32]), skin, [(ellipse(nod, -0.92, 0.06, 0.08), spot)])
        for side in SIDES:
            c.eye(nod + side * 0.12, -1.0, 0.045, DARK)
        half = [(0, -0.8), (0.35, -0.7), (0.6, -0.3), (0.62, 0.2), (0.4, 0.68), (0, 0.84)]
        rim = curve(half + [(-a, b) for a, b in half[-2:0:-1]])
        marks = [(rim * 0.86, mix(shell, DARK, 0.4))]
        for row, (yy, wide) in enumerate([(-0.5, 0.18), (-0.17, 0.21), (0.17, 0.21), (0.5, 0.17)]):
            scute = move(ellipse(0, 0, wide, 0.17, n=6), 0, yy)
            marks += [(scute * (0.92, 1), plate), (move(ellipse(0, 0, wide * 0.5, 0.08, n=6), 0, yy), mix(plate, shell, 0.6))]
            for side in SIDES if row < 3 else ():
                scute = curve([(0.22, yy + 0.02), (0.3, yy + 0.32), (0.52, yy + 0.3 + 0.05 * row), (0.53, yy + 0.02)], n=2)
                if row == 2:
                    scute = curve([(0.22, yy + 0.03), (0.22, yy + 0.3), (0.32, yy + 0.36), (0.47, yy + 0.05)], n=2)
                marks += [(mirror(scute, side), plate)]
        for t in range(24):
            a = 2 * PI * t / 24
            marks.append((limb([(0.5 * math.cos(a), 0.72 * math.sin(a)), (0.8 * math.cos(a), math.sin(a))], [0.02, 0.02]), mix(shell, DARK, 0.5)) if t < 0 else (rim[:0], DARK))
        c.shape(rim, shell, [m for m in marks if len(m[0])], gloss=0.6)
        return
    for x0, far in ((-0.32, True), (0.48, True), (-0.48, False), (0.34, False)):
        step = u(-0.1, 0.1)
        c.shape(limb([(x0, 0.3), (x0 + step, 0.72)], [0.28, 0.24]), mix(skin, DARK, 0.35 if far else 0))
    c.shape(limb([(0.7, 0.35), (1.05, 0.5)], [0.16, 0.02]), skin)
    up = u(-0.35, 0.1)
    c.shape(limb([(-0.5, 0.3), (-0.85, 0.15 + up * 0.5), (-1.0, up)], [0.26, 0.22, 0.24]), skin)
    c.shape(ellipse(-1.06, up, 0.22, 0.17, -0.1), skin, [(ellipse(-1 + u(-0.1, 0.1), up + u(-0.1, 0.1), 0.04, 0.03), spot) for _ in range(4)])
    c.eye(-1.1, up - 0.04, 0.055, pick(rng, "#c89030 #6a3a1a"), (0.7, 0.7))
    c.line([(-1.26, up + 0.06), (-1.08, up + 0.07)], 0.022, mix(skin, DARK, 0.7))
    marks = []
    for k, x0 in enumerate((-0.5, -0.02, 0.46)):
        top = move(ellipse(0, 0, 0.25, 0.2, n=6), x0, -0.2 + 0.28 * (x0 * x0))
        marks += [(top, plate), (move(ellipse(0, 0, 0.12, 0.1, n=6), x0, -0.2 + 0.28 * (x0 * x0)), mix(plate, shell, 0.6))]
    marks += [(move(ellipse(0, 0, 0.2, 0.15, n=6), x0, 0.18), mix(plate, shell, 0.2)) for x0 in (-0.72, -0.26, 0.22, 0.7)]
    marks += [(limb([(-1, 0.38), (1, 0.38)], [0.1, 0.1]), mix(shell, plate, 0.4))]
    dome = curve([(-0.82, 0.36), (-0.66, -0.08), (-0.3, -0.42), (0.15, -0.48), (0.58, -0.2), (0.84, 0.34), (0.4, 0.46), (-0.4, 0.46)])
    c.shape(dome, shell, marks, gloss=0.6)


# kind: (how to draw it, largest turn from upright in radians, size)
NATURE = {
    "frog": (draw_frog, 0.45, 0.34),
    "starfish": (draw_starfish, PI, 0.36),
    "spider": (draw_spider, PI, 0.34),
    "bird": (draw_bird, 0.3, 0.34),
    "mushroom": (draw_mushroom, 0.25, 0.36),
    "butterfly": (draw_butterfly, PI, 0.36),
    "cat": (draw_cat, 0.3, 0.34),
    "snail": (draw_snail, 0.35, 0.34),
    "flower": (draw_flower, 0.4, 0.36),
    "turtle": (draw_turtle, 0.6, 0.33),
}
RED, BLUE, GOLD = (200, 52, 40), (58, 108, 190), (226, 178, 52)
SPECIES = {
    "red_crested_longbill": dict(beak="long", crest="point", bars=0, tail="short", mask=False, crown=RED),
    "red_capped_forktail": dict(beak="thin", crest="none", bars=2, tail="fork", mask=False, crown=RED),
    "blue_fan_grosbeak": dict(beak="cone", crest="fan", bars=1, tail="short", mask=False, crown=BLUE),
    "blue_capped_hookbill": dict(beak="hook", crest="none", bars=0, tail="long", mask=True, crown=BLUE),
    "golden_fan_longbill": dict(beak="long", crest="fan", bars=2, tail="long", mask=False, crown=GOLD),
    "golden_crested_finch": dict(beak="cone", crest="point", bars=1, tail="fork", mask=True, crown=GOLD),
}
Kinds = dict[str, tuple[Callable[[Canvas, Random], None], float, float]]
SETS: dict[str, tuple[Kinds, int, dict[str, int]]] = {  # kinds, pixels, images a class
    "tiny_nature": (NATURE, 96, {"train": 150, "test": 40}),
    "tiny_species": (
        {name: (partial(draw_bird, **features), 0.3, 0.36) for name, features in SPECIES.items()},
        128,
        {"train": 20, "test": 30},
    ),
}


def paint_picture(dataset: str, name: str):
    """Paint one picture; its name, such as "train/frog/0007.jpg", is its seed."""
    kinds, pixels, _ = SETS[dataset]
    kind, turn, scale = kinds[name.split("/")[1]]
    rng = Random(f"{dataset}/{name}")
    u = rng.uniform
    size, light = 3 * pixels, u(-0.85 * PI, -0.15 * PI)
    tint = rng.choice([(255, 252, 246), (255, 240, 214), (236, 244, 255), (255, 250, 232)])
    picture = scenery(rng, size, light, tint)
    figure = Canvas(rng, Image.new("RGB", (size, size)), light, tint)
    figure.pose(
        u(0.42, 0.58), u(0.42, 0.58), scale * u(0.75, 1.15), u(-turn, turn), rng.choice(SIDES)
    )
    kind(figure, rng)
    picture.put(figure, u(0.04, 0.14))
    return finish(picture, pixels)


def write_picture(dataset: str, folder: Path, name: str) -> None:
    paint_picture(dataset, name).save(folder / name, quality=90)


def draw(dataset: str, folder: Path) -> None:
    """Draw an embedded data set into `folder`/{train,test}/CLASS/NNNN.jpg, in parallel.

    `dataset` is "tiny_nature" (10 classes, 150 + 40 RGB images each, 96 x 96) or "tiny_species"
    (6 classes, 20 + 30 images each, 128 x 128). An image's seed is its name, so every machine with
    the same Pillow gets the same bytes. The folder appears only when it is complete; one that
    holds train and test already is left as it is. Raises ValueError for another data set and
    FileExistsError where `folder` holds something else.
    """
    if dataset not in SETS:
        raise ValueError(f"{dataset!r} is not drawn here, choose one of {', '.join(SETS)}")
    folder = Path(folder)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return
    kinds, _, counts = SETS[dataset]
    names = [
        f"{split}/{kind}/{number:04}.jpg"
        for split, count in counts.items()
        for kind in kinds
        for number in range(count)
    ]
    drawing = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        for name in names:
            (drawing / name).parent.mkdir(parents=True, exist_ok=True)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(os.cpu_count() or 1, 8), spawn) as pool:
            done = pool.map(partial(write_picture, dataset, drawing), names, chunksize=20)
            try:
                list(tqdm(done, f"drawing {dataset}", len(names), unit=" images", disable=None))
            finally:
                pool.shutdown(cancel_futures=True)
        try:
            drawing.rename(folder)
        except OSError:  # not empty: another process was faster, or it is somebody's folder
            if not (folder / "test").is_dir():
                raise FileExistsError(
                    f"{folder} exists and is not a drawn data set: move it or choose another folder"
                ) from None
    finally:
        shutil.rmtree(drawing, ignore_errors=True)
