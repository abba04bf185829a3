"""Draw frogs, starfish, spiders, cats and turtles; one function a view.

A figure fills about -1..1 (x to the right, y down) and looks to the left or at the viewer.
"""

import math
from random import Random

import numpy as np

from helpers.data.drawn.paint import (
    DARK,
    WHITE,
    Canvas,
    Colour,
    curve,
    ellipse,
    limb,
    mirror,
    mix,
    move,
    pick,
    whole,
)

PI, SIDES = math.pi, (-1, 1)


def _frog_colours(rng: Random) -> tuple[Colour, Colour, Colour, list]:
    """Choose skin, belly, iris and spots."""
    u = rng.uniform
    skin = pick(rng, "#4f8f2f #6fa83a #8a9a3a #7a6238 #3f7f5a #c8862a #3a78a8 #a8b048 #a05038")
    spot = mix(skin, DARK, u(0.3, 0.6))
    places = [(u(-0.6, 0.6), u(-0.6, 0.6)) for _ in range(rng.randint(0, 12))]
    spots = [(ellipse(*place, u(0.04, 0.11), u(0.04, 0.11)), spot) for place in places]
    belly = mix(skin, (244, 236, 192), 0.7)
    return skin, belly, pick(rng, "#d8a82a #c8502a #d8d060"), spots


def frog_front(c: Canvas, rng: Random) -> None:
    """Draw a sitting frog that looks at the viewer."""
    skin, belly, iris, spots = _frog_colours(rng)
    for side in SIDES:
        c.shape(ellipse(side * 0.68, 0.42, 0.34, 0.42, side * 0.5), skin, spots)
        for toe in (0.7, 0.9, 1.1):
            c.shape(limb([(side * 0.7, 0.74), (side * toe, 0.9)], [0.16, 0.09]), skin, lift=0.2)
    c.shape(whole([(0.5, -0.2), (0.62, 0.3), (0.42, 0.75), (0, 0.82)]), skin)
    c.shape(ellipse(0, 0.36, 0.4, 0.4), belly, lift=0)
    for side in SIDES:
        for toe in (0.24, 0.38, 0.52):
            c.line([(side * 0.38, 0.78), (side * toe, 0.95)], 0.07, mix(skin, DARK, 0.15))
        arm = [(side * 0.52, 0.15), (side * 0.5, 0.5), (side * 0.38, 0.82)]
        c.shape(limb(arm, [0.26, 0.19, 0.13]), skin)
        c.shape(ellipse(side * 0.42, -0.62, 0.24, 0.24), skin)
    lip = (limb([(-0.8, -0.05), (0, 0.16), (0.8, -0.05)], [0.3, 0.24, 0.3]), belly)
    c.shape(ellipse(0, -0.26, 0.72, 0.4), skin, [lip, *spots])
    mouth = [(-0.62, -0.18), (-0.3, -0.05), (0, -0.01), (0.3, -0.05), (0.62, -0.18)]
    c.line(mouth, 0.04, mix(skin, DARK, 0.7))
    for side in SIDES:
        c.eye(side * 0.43, -0.64, 0.17, iris, (0.75, 0.4))
        c.dot(side * 0.09, -0.3, 0.025, mix(skin, DARK, 0.6))


def frog_above(c: Canvas, rng: Random) -> None:
    """Draw a frog with spread legs, seen from above."""
    u = rng.uniform
    skin, belly, iris, spots = _frog_colours(rng)
    for side in SIDES:
        hind = [(0.2, 0.5), (0.75, u(0.1, 0.35)), (0.5, 0.75), (0.95, u(0.85, 1.0))]
        fore = [(0.3, -0.2), (0.72, u(-0.2, 0.0)), (0.8, u(-0.6, -0.4))]
        for joints, widths, ahead in (
            (hind, [0.34, 0.3, 0.2, 0.12], 0.5),
            (fore, [0.22, 0.17, 0.1], -0.9),
        ):
            x, y = joints[-1]
            for toe in (-0.5, 0, 0.5):
                tip = (x + 0.2 * math.sin(toe + 0.5), y + 0.2 * (ahead + 0.4 * toe))
                c.line(mirror([(x, y), tip], side), 0.07, mix(skin, DARK, 0.25))
                c.dot(tip[0] * side, tip[1], 0.055, skin)
            c.shape(mirror(limb(joints, widths), side), skin)
    stripe = limb([(0.12, -0.7), (0.3, 0), (0.12, 0.7)], [0.05, 0.08, 0.02])
    stripes = [(mirror(stripe, side), belly) for side in SIDES if len(spots) < 6]
    half = [(0, -0.88), (0.24, -0.72), (0.42, -0.35), (0.46, 0.1), (0.3, 0.6), (0.1, 0.75)]
    c.shape(whole(half), skin, spots + stripes)
    for side in SIDES:
        c.shape(ellipse(side * 0.3, -0.52, 0.15, 0.17), skin)
        c.eye(side * 0.33, -0.54, 0.11, iris, (0.3, 0.8))


def starfish(c: Canvas, rng: Random) -> None:
    """Draw a starfish with rows of knobs on its bent arms."""
    u = rng.uniform
    skin = pick(rng, "#d8622a #c83a3a #d89a3a #8a4a9a #4a6ab0 #d8b890 #a84a6a #5a8a5a #6a5a50")
    knob = mix(skin, rng.choice([WHITE, DARK]), u(0.35, 0.7))
    arms, inner, bend = rng.choice([5, 5, 5, 6]), u(0.26, 0.4), u(-0.5, 0.5)
    t = np.linspace(0, 2 * PI, 180, endpoint=False)
    lengths = np.array([u(0.75, 1.08) for _ in range(arms)])
    reach = lengths[np.rint(t * arms / (2 * PI)).astype(int) % arms]
    radius = inner + (reach - inner) * ((1 + np.cos(arms * t)) / 2) ** u(1.5, 2.6)
    turned = t + bend * radius**2
    outline = np.stack([radius * np.cos(turned), radius * np.sin(turned)], 1)
    c.shape(outline, skin, gloss=0.35, grain=0.25)
    for arm in range(arms):
        for row, end, count in ((-0.13, 0.6, 5), (0, 0.88, 8), (0.13, 0.6, 5)):
            for r in np.linspace(0.12, lengths[arm] * end, count).tolist():
                turn = 2 * PI * arm / arms + bend * r**2
                x, y = move([(r, row * (1 - r))], angle=turn)[0].tolist()
                size = 0.06 - 0.04 * r
                c.dot(x + 0.015, y + 0.02, size, mix(skin, DARK, 0.45))
                c.dot(x, y, size * 0.9, knob)


def spider(c: Canvas, rng: Random) -> None:
    """Draw a spider from above, sometimes in its web."""
    u = rng.uniform
    skin = pick(rng, "#3a2c26 #5a4030 #8a6a42 #2a2a30 #a87a3a #6a3a2a #9a8a6a #7a8a3a #b8a890")
    other = mix(pick(rng, "#f0d8a0 #d83a2a #f0f0e0 #e8b030"), skin, u(0, 0.4))
    banded, turn = rng.random() < 0.5, u(0, 1)
    if rng.random() < 0.3:
        silk, count = (222, 226, 226), 11
        spokes = [move([(1, 0)], angle=2 * PI * k / count + turn)[0] for k in range(count)]
        for r in (0.45, 0.8, 1.15, 1.5, 1.85):
            for k, a in enumerate(spokes):
                b = spokes[k - 1]
                c.line([r * a, r * 0.47 * (a + b), r * b], 0.016, silk)
        for a in spokes:
            c.line([0 * a, 2.2 * a], 0.016, silk)
    for side in SIDES:
        for base, length in ((-1.05, 1.1), (-0.4, 0.95), (0.3, 0.9), (0.95, 1.15)):
            a, outward = base + u(-0.16, 0.16), math.copysign(1, base)
            hip = np.array([0.2, -0.18 + 0.14 * a])
            knee = (math.cos(a - 0.25 * outward) / 2, math.sin(a) / 2 - 0.08)
            tip = (math.cos(a) * 0.88, math.sin(a) * 0.95 + 0.1 * outward)
            leg = mirror([hip, hip + length * np.array(knee), hip + length * np.array(tip)], side)
            c.shape(limb(leg, [0.13, 0.1, 0.045]), skin, lift=0.2)
            for t in (0.35, 0.8) if banded else ():
                ring = leg[1] + (leg[2] - leg[1]) * np.array([[t], [t + 0.1]])
                c.line(ring, 0.07, other)
    zigzag = [(0, 0.15), (0.13, 0.4), (0.05, 0.55), (0.12, 0.75), (0, 0.9)]
    rows = (0.28, 0.48, 0.68)
    marks = rng.choice(
        [
            [limb([(-0.3, y - 0.1), (0, y), (0.3, y - 0.1)], [0.02, 0.08, 0.02]) for y in rows],
            [ellipse(side * 0.15, y, 0.07, 0.06) for side in SIDES for y in rows],
            [whole(zigzag)],
            [],
        ]
    )
    c.shape(ellipse(0, -0.22, 0.27, 0.3), skin)
    abdomen = ellipse(0, 0.44, u(0.32, 0.44), 0.5)
    c.shape(abdomen, mix(skin, other, 0.12), [(mark, other) for mark in marks])
    for side in SIDES:
        c.line([(side * 0.08, -0.48), (side * 0.13, -0.62)], 0.08, skin)
        c.eye(side * 0.08, -0.42, 0.065, DARK)
        c.dot(side * 0.18, -0.36, 0.03, DARK)


def _cat_colours(rng: Random) -> tuple[Colour, Colour, Colour | None]:
    """Choose fur, the pale fur of chest and paws, and stripes or none."""
    fur = pick(rng, "#c8823a #6a6460 #e8e0d0 #3a3434 #a88a68 #8a8a90 #d8b080 #7a5a40")
    stripe = mix(fur, DARK, 0.45) if rng.random() < 0.6 else None
    return fur, mix(fur, WHITE, rng.uniform(0.3, 0.8)), stripe


def _stripes(paths, widths, stripe: Colour | None) -> list:
    return [(limb(path, widths), stripe) for path in paths] if stripe else []


def _cat_head(c: Canvas, rng: Random, x: float, y: float, size: float, colours) -> None:
    """Draw a cat's face."""
    u = rng.uniform
    fur, pale, stripe = colours
    place = (x, y, u(-0.2, 0.2), size)
    for side in SIDES:
        ear = mirror([(0.22, -0.68), (0.5, -0.98), (0.72, -1.22), (0.85, -0.8), (0.9, -0.35)], side)
        c.shape(move(ear, *place), fur)
        inner = mirror([(0.4, -0.72), (0.68, -1.02), (0.78, -0.5)], side)
        c.shape(move(inner, *place), mix(fur, (226, 150, 140), 0.65), lift=0)
    brow = [[(t, -0.95), (t * 0.7, -0.42)] for t in (-0.34, 0, 0.34)]
    cheek = [[(s * 1.05, t), (s * 0.66, t + 0.04)] for s in SIDES for t in (0.02, 0.26)]
    paths = [move(path, *place) for path in brow + cheek]
    marks = _stripes(paths, [0.12 * size, 0.04 * size], stripe)
    half = [(0, -0.8), (0.5, -0.72), (0.88, -0.25), (0.95, 0.22), (0.55, 0.66), (0, 0.78)]
    c.shape(move(whole(half), *place), fur, marks)
    for side in SIDES:
        c.shape(move(ellipse(side * 0.2, 0.38, 0.27, 0.22), *place), pale, lift=0.1)
    iris, slit = pick(rng, "#8ab83a #d8b02a #5aa0c8 #c88a2a"), (u(0.2, 0.6), 0.85)
    for side in SIDES:
        c.eye(*move([(side * 0.42, -0.08)], *place)[0].tolist(), 0.2 * size, iris, slit)
        for t in (-0.16, 0.0, 0.16):
            whisker = mirror([(0.3, 0.4 + t * 0.4), (0.8, 0.34 + t), (1.25, 0.4 + 1.7 * t)], side)
            c.line(move(whisker, *place), 0.02, WHITE)
        mouth = [(0, 0.36), (side * 0.1, 0.5), (side * 0.26, 0.5)]
        c.line(move(mouth, *place), 0.045 * size, mix(fur, DARK, 0.7))
    c.flat(move([(-0.13, 0.2), (0.13, 0.2), (0, 0.35)], *place), (208, 112, 108))


def cat_sitting(c: Canvas, rng: Random) -> None:
    """Draw a sitting cat that looks at the viewer."""
    fur, pale, stripe = colours = _cat_colours(rng)
    tail = [(0.3, 0.75), (0.85, 0.78), (0.95, 0.3), (0.8 + rng.uniform(-0.15, 0.2), 0.0)]
    c.shape(limb(tail, [0.16, 0.17, 0.15, 0.1]), fur)
    rings = [[(s * 0.6, t), (s * 0.25, t + 0.06)] for s in SIDES for t in (0.1, 0.3, 0.5)]
    body = whole([(0.26, -0.2), (0.4, 0.2), (0.52, 0.65), (0.35, 0.88)])
    c.shape(body, fur, _stripes(rings, [0.08, 0.02], stripe))
    c.shape(ellipse(0, 0.1, 0.2, 0.32), pale, lift=0)
    for side in SIDES:
        c.shape(limb([(side * 0.16, 0.25), (side * 0.17, 0.82)], [0.22, 0.2]), fur)
        c.shape(ellipse(side * 0.18, 0.87, 0.15, 0.1), pale)
    _cat_head(c, rng, 0, -0.42, 0.47, colours)


def cat_lying(c: Canvas, rng: Random) -> None:
    """Draw a cat that lies on its side."""
    fur, pale, stripe = colours = _cat_colours(rng)
    tail = [(0.85, 0.45), (1.1, 0.6), (0.7, 0.78), (0.2, 0.74)]
    c.shape(limb(tail, [0.2, 0.18, 0.15, 0.1]), fur)
    back = [(-0.65, 0.2), (-0.3, -0.12), (0.3, -0.22), (0.85, 0.0), (1.0, 0.5), (0.7, 0.72)]
    rings = [[(t, -0.5), (t + 0.08, 0.35)] for t in (-0.1, 0.12, 0.34, 0.56, 0.78)]
    body = curve([*back, (-0.4, 0.74), (-0.75, 0.6)])
    c.shape(body, fur, _stripes(rings, [0.09, 0.03], stripe))
    c.shape(ellipse(0.62, 0.5, 0.32, 0.26), fur)
    for x in (-0.55, -0.3):
        c.shape(limb([(x + 0.2, 0.6), (x, 0.74)], [0.2, 0.17]), pale)
    _cat_head(c, rng, -0.6 + rng.uniform(0, 0.15), rng.uniform(-0.1, 0.15), 0.42, colours)


def cat_portrait(c: Canvas, rng: Random) -> None:
    """Draw a cat's head and chest."""
    fur, pale, stripe = colours = _cat_colours(rng)
    rings = [[(s * 0.8, t), (s * 0.3, t + 0.1)] for s in SIDES for t in (0.6, 0.85, 1.1)]
    chest = whole([(0.4, 0.1), (0.62, 0.6), (0.78, 1.3), (0.4, 1.6)])
    c.shape(chest, fur, _stripes(rings, [0.1, 0.02], stripe))
    c.shape(whole([(0.2, 0.35), (0.36, 0.8), (0.25, 1.5)]), pale, lift=0)
    _cat_head(c, rng, 0, -0.08, 0.74, colours)


def _turtle_colours(rng: Random) -> tuple[Colour, Colour, Colour, Colour]:
    """Choose skin, its spots, shell and plates."""
    skin = pick(rng, "#6a8a4a #8a9a5a #5a7a68 #9a8a58 #4a6a4a #7a6a58")
    shell = pick(rng, "#6a4a2a #4a5a2a #8a6a34 #3f4a34 #7a5a48 #5a6a5a")
    plate = mix(shell, pick(rng, "#d8b060 #b8c070 #c89a5a"), rng.uniform(0.25, 0.7))
    return skin, mix(skin, DARK, 0.4), shell, plate


def turtle_above(c: Canvas, rng: Random) -> None:
    """Draw a turtle or a sea turtle from above."""
    u = rng.uniform
    skin, spot, shell, plate = _turtle_colours(rng)
    swing, nod = u(-0.2, 0.2), u(-0.12, 0.12)
    fore, wide = [(0.4, -0.4), (0.72, -0.62 + swing)], [0.26, 0.24]
    if rng.random() < 0.5:
        fore, wide = [(0.35, -0.4), (0.85, -0.6 + swing), (1.15, swing - 0.1)], [0.24, 0.32, 0.08]
    for side in SIDES:
        for joints, widths in ((fore, wide), ([(0.4, 0.5), (0.68, 0.8 - swing)], [0.24, 0.2])):
            path = mirror(joints, side)
            places = [path[-1] + (u(-0.12, 0.12), u(-0.12, 0.12)) for _ in range(4)]
            spots = [(ellipse(*place, 0.05, 0.04), spot) for place in places]
            c.shape(limb(path, widths), skin, spots)
    c.shape(limb([(0, 0.7), (u(-0.1, 0.1), 1.0)], [0.14, 0.03]), skin)
    brow = (ellipse(nod, -0.92, 0.06, 0.08), spot)
    c.shape(limb([(0, -0.6), (nod, -0.95)], [0.24, 0.32]), skin, [brow])
    for side in SIDES:
        c.eye(nod + side * 0.12, -1.0, 0.045, DARK)
    rim = whole([(0, -0.8), (0.35, -0.7), (0.6, -0.3), (0.62, 0.2), (0.4, 0.68), (0, 0.84)])
    groove, pale = mix(shell, DARK, 0.4), mix(plate, shell, 0.6)
    rows = ((-0.5, 0.17), (-0.17, 0.19), (0.17, 0.19), (0.5, 0.16))
    plates = [ellipse(0, row, width, 0.17, n=6) for row, width in rows]
    for row in (-0.5, -0.17, 0.17):
        outer = 0.53 if row < 0.1 else 0.46
        scute = [(0.22, 0.03), (0.22, 0.29), (0.34, 0.32), (outer, 0.24), (outer, 0.03)]
        plates += [mirror(move(scute, 0, row), side) for side in SIDES]
    marks = [(rim * 0.86, groove)] + [(scute, plate) for scute in plates]
    marks += [(scute.mean(0) + (scute - scute.mean(0)) * 0.5, pale) for scute in plates]
    c.shape(rim, shell, marks, gloss=0.6)


def turtle_side(c: Canvas, rng: Random) -> None:
    """Draw a walking turtle from the side."""
    u = rng.uniform
    skin, spot, shell, plate = _turtle_colours(rng)
    for x, shade in ((-0.32, 0.35), (0.48, 0.35), (-0.48, 0), (0.34, 0)):
        c.shape(limb([(x, 0.3), (x + u(-0.1, 0.1), 0.72)], [0.28, 0.24]), mix(skin, DARK, shade))
    c.shape(limb([(0.7, 0.35), (1.05, 0.5)], [0.16, 0.02]), skin)
    up = u(-0.4, 0.15)
    c.shape(limb([(-0.5, 0.3), (-0.85, 0.15 + up * 0.5), (-1.0, up)], [0.26, 0.22, 0.24]), skin)
    spots = [(ellipse(u(-1.1, -0.9), up + u(-0.1, 0.1), 0.04, 0.03), spot) for _ in range(4)]
    c.shape(ellipse(-1.06, up, 0.22, 0.17, -0.1), skin, spots)
    c.eye(-1.1, up - 0.04, 0.055, pick(rng, "#c89030 #6a3a1a"), (0.7, 0.7))
    c.line([(-1.26, up + 0.06), (-1.08, up + 0.07)], 0.022, mix(skin, DARK, 0.7))
    tops = [(x, -0.2 + 0.28 * x * x) for x in (-0.5, -0.02, 0.46)]
    marks = [(ellipse(*top, 0.25, 0.2, n=6), plate) for top in tops]
    marks += [(ellipse(*top, 0.12, 0.1, n=6), mix(plate, shell, 0.6)) for top in tops]
    lows = [ellipse(x, 0.18, 0.2, 0.15, n=6) for x in (-0.72, -0.26, 0.22, 0.7)]
    marks += [(low, mix(plate, shell, 0.2)) for low in lows]
    marks += [(limb([(-1, 0.38), (1, 0.38)], [0.1, 0.1]), mix(shell, plate, 0.4))]
    dome = [(-0.82, 0.36), (-0.66, -0.08), (-0.3, -0.42), (0.15, -0.48), (0.58, -0.2), (0.84, 0.34)]
    c.shape(curve([*dome, (0.4, 0.46), (-0.4, 0.46)]), shell, marks, gloss=0.6)
