"""Draw birds, butterflies, mushrooms, flowers and snails; one function a view.

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
    leaf,
    limb,
    mirror,
    mix,
    move,
    pick,
    whole,
)

PI, SIDES = math.pi, (-1, 1)


def _bird_colours(rng: Random) -> tuple[Colour, Colour, Colour]:
    """Choose back, chest and horn."""
    back = pick(rng, "#3f6fa8 #8a6a48 #6a7a3a #5a5f6a #a84a32 #3a7a70 #b08a3a #484450")
    chest = pick(rng, "#e8d8b0 #d88a3a #e8e4da #d8b048 #c8624a")
    return back, mix(chest, back, rng.uniform(0, 0.2)), pick(rng, "#3a3430 #d89030 #8a8078 #c8582a")


BEAKS = {
    "long": [(-0.22, -0.09), (-0.6, 0.0), (-1.0, 0.14), (-0.6, 0.07), (-0.22, 0.08)],
    "cone": [(-0.2, -0.17), (-0.52, 0.05), (-0.2, 0.16)],
    "thin": [(-0.24, -0.06), (-0.5, 0.02), (-0.24, 0.06)],
    "hook": [(-0.2, -0.16), (-0.44, -0.13), (-0.58, 0.05), (-0.53, 0.2), (-0.4, 0.1), (-0.2, 0.1)],
}


def bird_perched(c: Canvas, rng: Random, **features) -> None:
    """Draw a bird on a twig.

    `features` left out are drawn by lot: `beak` long, cone, thin or hook; `crest` none, point or
    fan; `bars` 0..2 on the wing; `tail` short, long or fork; `mask` yes or no; `crown` a colour.
    """
    u, choose = rng.uniform, rng.choice
    back, chest, horn = _bird_colours(rng)
    looks = {
        "beak": choose(list(BEAKS)),
        "crest": choose(["none", "none", "point", "fan"]),
        "bars": choose([0, 1, 2]),
        "tail": choose(["short", "long", "fork"]),
        "mask": choose([False, False, True]),
        "crown": mix(back, choose([DARK, WHITE, chest]), u(0, 0.5)),
    } | features
    crown, dark = looks["crown"], mix(back, DARK, 0.35)
    x, y = -0.42 + u(-0.06, 0.06), -0.42 + u(-0.06, 0.08)
    twig = [(-1.7, 0.84 + u(-0.2, 0.2)), (-0.4, 0.78), (0.5, 0.8), (1.7, 0.78 + u(-0.25, 0.25))]
    bark = pick(rng, "#5a4230 #6a5a48 #4a4038")
    c.shape(limb(twig, [0.1, 0.14, 0.13, 0.09]), bark, grain=0.3)
    if looks["tail"] == "fork":
        for spread in (0.12, -0.14):
            feather = [(0.45, 0.35), (0.85, 0.68 + spread), (1.2, 0.9 + 2.2 * spread)]
            c.shape(limb(feather, [0.2, 0.15, 0.04]), dark)
    else:
        end, width = ((0.9, 0.64), 0.24) if looks["tail"] == "short" else ((1.35, 1.02), 0.17)
        c.shape(limb([(0.4, 0.3), end], [0.26, width]), dark)
    for foot in (-0.12, 0.08):
        c.line([(foot + 0.04, 0.5), (foot, 0.74)], 0.05, horn)
        for toe in (-0.1, 0.0, 0.08):
            c.line([(foot, 0.72), (foot + toe, 0.82)], 0.045, horn)
    body = [(-0.6, 0.15), (-0.38, 0.52), (0.05, 0.62), (0.5, 0.42), (0.55, 0.28), (0.25, -0.05)]
    body = curve([(x - 0.22, y + 0.2), *body, (x + 0.25, y + 0.1)])
    front = curve([(-0.8, -0.2), (-0.3, -0.05), (-0.05, 0.3), (0.35, 0.5), (0, 0.8), (-0.8, 0.5)])
    c.shape(body, back, [(front, chest)])
    wing = [(-0.05, -0.08), (0.4, 0.12), (0.86, 0.44), (0.4, 0.42), (-0.05, 0.36), (-0.28, 0.2)]
    wing = curve([(-0.3, 0), *wing])
    quills = [limb([(0, row), (0.9, row + 0.12)], [0.01, 0.04]) for row in (0.12, 0.22, 0.32)]
    marks = [(quill, dark) for quill in quills]
    for bar in range(looks["bars"]):
        line = limb([(0.24 * bar - 0.2, -0.1), (0.24 * bar - 0.28, 0.5)], [0.1, 0.1])
        marks.append((line, mix(back, WHITE, 0.8)))
    turn = u(-0.12, 0.12)
    marks = [(move(mark, angle=turn), ink) for mark, ink in marks]
    c.shape(move(wing, angle=turn), mix(back, DARK, 0.15), marks)
    feathers = {
        "none": [],
        "point": [(0.5, 0.75, 0.14), (0.8, 0.62, 0.15), (1.1, 0.48, 0.16)],
        "fan": [(angle, 0.56, 0.13) for angle in (-0.6, -0.28, 0.04, 0.36, 0.68)],
    }[looks["crest"]]
    for angle, length, width in feathers:
        path = move([(0, -0.12), (0.04, -0.6 * length), (0, -length)], x, y, angle)
        tip = 0.02 if looks["crest"] == "point" else 1.1 * width
        c.shape(limb(path, [width, width, tip]), crown, lift=0.25)
    c.shape(move(curve(BEAKS[looks["beak"]], n=3), x, y), horn, grain=0)
    cap = [(-0.35, -0.14), (0, -0.06), (0.35, -0.02), (0.3, -0.4), (-0.3, -0.4)]
    hood = [(move(curve(cap), x, y), crown)]
    if looks["mask"]:
        hood.append((limb([(x - 0.34, y), (x + 0.22, y + 0.02)], [0.18, 0.1]), DARK))
    c.shape(ellipse(x, y, 0.29, 0.28), mix(back, chest, 0.25), hood, lift=0.15)
    c.eye(x - 0.1, y - 0.03, 0.075, pick(rng, "#6a3a1a #2a2020 #c89030"), (0.6, 0.6))


def bird_flying(c: Canvas, rng: Random) -> None:
    """Draw a bird that flies to the left with raised wings."""
    u = rng.uniform
    back, chest, horn = _bird_colours(rng)
    dark, lift = mix(back, DARK, 0.45), u(-0.25, 0.25)
    for spread in (-0.1, 0.1):
        tail = [(0.4, 0.1), (0.8, 0.2 + spread), (1.15, 0.28 + 2 * spread)]
        c.shape(limb(tail, [0.18, 0.17, 0.06]), dark)
    for near in (False, True):
        root = np.array([-0.05 if near else -0.2, 0.0])
        tone = mix(back, DARK, 0.1 if near else 0.3)
        for k in range(6):
            angle = (0.15 + 0.2 * k if near else -0.45 + 0.13 * k) + lift
            tip = move([(0, -1.0 + 0.07 * k)], *root, angle)[0]
            start = root + ((0.06 * k if near else 0.04 * k), 0)
            c.shape(limb([start, (start + tip) / 2, tip], [0.2, 0.2, 0.07]), dark, lift=0.25)
        path = [root + (-0.06, 0.02), *move([(-0.08, -0.3), (-0.04, -0.62)], *root, 0.1 + lift)]
        c.shape(limb(path, [0.3, 0.26, 0.12]), tone, lift=0.2)
    front = curve([(-1, 0.05), (-0.3, 0.05), (0.3, 0.15), (0.2, 0.5), (-0.9, 0.5)])
    body = [(-0.3, -0.13), (0.2, -0.02), (0.55, 0.1), (0.1, 0.3), (-0.4, 0.27), (-0.75, 0.12)]
    c.shape(curve([(-0.75, -0.1), *body]), back, [(front, chest)])
    beak = BEAKS[rng.choice(["long", "cone", "thin"])]
    c.shape(move(beak, -0.74, -0.05, scale=0.8), horn, grain=0)
    c.shape(ellipse(-0.74, -0.05, 0.24, 0.21), mix(back, chest, 0.25), lift=0.1)
    c.eye(-0.82, -0.08, 0.06, pick(rng, "#6a3a1a #2a2020"), (0.6, 0.6))


def mushrooms(c: Canvas, rng: Random) -> None:
    """Draw one to three mushrooms."""
    u = rng.uniform
    skin = pick(rng, "#c0302a #a8703a #d8a050 #7a4a30 #e0d0b0 #c86a2a #8a6a8a #d8c040 #6a7a6a")
    stem = pick(rng, "#ece0c4 #d8c49a #f0ece0 #a88a68")
    warts, tall, peak = rng.random() < 0.5, u(0.4, 0.75), u(0, 0.3)
    sizes = [1.0] + [u(0.4, 0.7) for _ in range(rng.choice([0, 0, 1, 2]))]
    for size in sizes:
        x = 0 if size == 1 else rng.choice(SIDES) * u(0.5, 0.9)
        place = (x, 0.85 - 0.85 * size, u(-0.25, 0.25) * size, size)
        wide, span = u(0.16, 0.34), u(0.6, 0.9)
        foot = limb([(0, -0.15), (u(-0.1, 0.1), 0.4), (0, 0.78)], [wide, wide * 1.1, wide * 1.6])
        c.shape(move(foot, *place), stem, grain=0.25)
        c.shape(move(ellipse(0, -0.06, span * 0.88, 0.17), *place), mix(stem, DARK, 0.2))
        for gill in np.linspace(-0.75, 0.75, 11) * span:
            line = [(gill * 0.25, -0.02), (gill, 0.07 - 0.1 * gill**2)]
            c.line(move(line, *place), 0.015 * size, mix(stem, DARK, 0.5))
        top = (span * (0.55 - 0.5 * peak), -0.2 - 0.75 * tall - 0.1 * peak)
        edge = [(span * 0.93, -0.28), (span, 0), (span * 0.56, -0.06), (0, -0.02)]
        spots = []
        for _ in range(13 * warts):
            a, r = u(-1.3, 1.3), u(0.05, 1)
            spot = (0.75 * math.sin(a) * r, -0.06 - (0.2 + 0.75 * tall) * math.cos(a) * r)
            wart = ellipse(*spot, u(0.05, 0.1), u(0.04, 0.08))
            spots.append((move(wart, *place), mix(WHITE, stem, 0.4)))
        c.shape(move(whole([(0, -0.25 - tall - peak), top, *edge]), *place), skin, spots, gloss=0.6)


def _butterfly_colours(rng: Random) -> tuple[Colour, Colour, Colour]:
    """Choose ground colour, edge and a second colour."""
    base = pick(rng, "#e8862a #3a78c8 #e8d040 #e8e4d0 #c83a3a #8a5ab8 #4aa890 #d88ab0 #8a6a48")
    second = mix(pick(rng, "#f0d060 #f08a3a #f0f0f0 #60b0e0"), base, 0.3)
    return base, mix(base, DARK, rng.uniform(0.6, 0.95)), second


def _butterfly_wing(c, wing, root, spot, style, colours) -> None:
    """Draw one wing: border, veins or an eye, a row of dots."""
    base, edge, second = colours
    root, inner = np.array(root), wing - root
    marks = [(root + inner * 0.84, base), (root + inner * 0.45, mix(base, second, 0.5))]
    if style == 0:
        for size, ink in ((0.16, edge), (0.1, second), (0.04, WHITE)):
            marks.append((ellipse(*spot, size, size), ink))
    points = wing[(np.linspace(0.25, 0.7, 6) * len(wing)).astype(int)]
    if style:
        marks += [(limb([root, point], [0.015, 0.03]), edge) for point in points]
    rim = points + (wing.mean(0) - points) * 0.14
    marks += [(ellipse(*point, 0.035, 0.035), second if style == 1 else WHITE) for point in rim]
    c.shape(wing, edge, marks, gloss=0.3, grain=0.2)


def butterfly_open(c: Canvas, rng: Random) -> None:
    """Draw a butterfly with spread wings, seen from above."""
    u = rng.uniform
    colours = _butterfly_colours(rng)
    style, drop, body = rng.randrange(3), u(-0.1, 0.15), mix(colours[1], DARK, 0.4)
    upper = [(0.4, -0.7), (0.92, drop - 0.92), (1.05, drop - 0.55), (0.72, -0.05), (0.3, 0.08)]
    lower = [(0.4, 0.05), (0.8, 0.22), (0.78, 0.58), (0.45, 0.86 + u(-0.1, 0.1)), (0.2, 0.6)]
    wings = (
        (curve([(0.03, 0), *lower, (0.03, 0.25)]), (0.1, 0.15), (0.52, 0.48)),
        (curve([(0.03, -0.12), *upper, (0.03, 0.05)]), (0.1, -0.08), (0.72, drop - 0.52)),
    )
    for side in SIDES:
        fold = np.array([side * u(0.55, 1.05), 1])
        for wing, root, spot in wings:
            _butterfly_wing(c, wing * fold, root * fold, spot * fold, style, colours)
        c.line(mirror([(0.02, -0.3), (0.12, -0.62), (0.26, -0.85)], side), 0.025, DARK)
        c.dot(side * 0.26, -0.86, 0.04, DARK)
    c.shape(limb([(0, -0.12), (0, 0.5)], [0.14, 0.07]), body)
    c.shape(ellipse(0, -0.12, 0.09, 0.17), body)
    c.shape(ellipse(0, -0.33, 0.075, 0.075), body)


def butterfly_closed(c: Canvas, rng: Random) -> None:
    """Draw a butterfly that sits on a stalk with its wings closed above it."""
    u = rng.uniform
    base, edge, second = _butterfly_colours(rng)
    style, lean, body = rng.randrange(3), u(-0.15, 0.15), mix(edge, DARK, 0.4)
    stalk = limb([(-1.2, 0.75 + u(-0.2, 0.2)), (0.1, 0.72), (1.3, 0.7)], [0.07, 0.08, 0.06])
    c.shape(stalk, pick(rng, "#6a8a42 #8a7048"))
    for x in (-0.25, -0.1, 0.05):
        c.line([(x, 0.45), (x - 0.06, 0.7)], 0.03, body)
    upper = [(-0.5, -0.1), (-0.55, -0.8), (-0.15, -0.95), (0.3, -0.45), (0.35, 0.1), (0.05, 0.4)]
    lower = [(0.1, 0.05), (0.5, -0.2), (0.85, 0.0), (0.85, 0.35), (0.5, 0.55), (0.1, 0.5)]
    for wing, root, spot, tint in (
        (curve([(-0.15, 0.4), *upper]), (-0.1, 0.3), (-0.2, -0.6), base),
        (curve([(-0.1, 0.42), *lower]), (0, 0.4), (0.55, 0.15), mix(base, second, 0.35)),
    ):
        wing, root, spot = (move(part, angle=lean) for part in (wing, root, spot))
        _butterfly_wing(c, wing, root, spot, style, (tint, edge, second))
    c.shape(limb([(-0.42, 0.36), (0.0, 0.48), (0.45, 0.6)], [0.12, 0.13, 0.05]), body)
    c.shape(ellipse(-0.5, 0.32, 0.1, 0.1), body)
    c.dot(-0.54, 0.3, 0.035, WHITE)
    for tip in ((-0.8, -0.12), (-0.98, 0.0)):
        c.line([(-0.52, 0.26), (-0.68, 0.0), tip], 0.025, DARK)
        c.dot(*tip, 0.04, DARK)


def _blossom(c: Canvas, rng: Random, y: float, squash: float, size: float) -> None:
    """Draw rings of petals and a heart."""
    u = rng.uniform
    tone = pick(rng, "#e85a8a #f0c830 #f4f0e8 #9a5ac8 #e8503a #5a7ae0 #f09a4a #f0b0c8 #a03050")
    heart = pick(rng, "#e8b020 #8a5a20 #f0e070 #5a3a20 #b8c840")
    throat = mix(tone, rng.choice([DARK, WHITE, heart]), u(0.2, 0.6))
    count, tip = rng.choice([(5, 0), (6, 0), (8, 1), (12, 1), (16, 1), (5, 2), (7, 2)])
    width = 2.3 / (count + 1) + 0.05
    half = [
        [(0.5, -0.25), (1, -0.7), (0.6, -1), (0, -1.06)],
        [(0.7, -0.3), (1, -0.6), (0.6, -0.88), (0, -1.06)],
        [(0.5, -0.3), (1, -0.75), (0.6, -1.04), (0, -0.88)],
    ][tip]
    petal = whole([(0, 0), *half]) * (width, 0.78 * size)
    vein = limb([(0, 0), (0, -0.6 * size)], [0.05, 0.01])
    for ring in range(rng.choice([1, 1, 2, 3])):
        turn = u(0, 1) + ring * PI / count
        for k in range(count):
            place = (0, 0, turn + 2 * PI * k / count + u(-0.05, 0.05), 1 - 0.27 * ring)
            outline, *marks = (
                move(path, *place) * (1, squash) + (0, y)
                for path in (petal, petal * (0.6, 0.5), vein)
            )
            tint = mix(tone, WHITE, 0.12 * ring)
            c.shape(outline, tint, [(mark, throat) for mark in marks], gloss=0.3, lift=0.35)
    r = u(0.14, 0.3) * size
    c.shape(ellipse(0, y, r, r * squash), heart, grain=0.3)
    for k in range(34):
        distance, a = r * 0.92 * math.sqrt((k + 0.5) / 34), 2.39996 * k
        ink = mix(heart, DARK if k < 20 else WHITE, 0.45)
        c.dot(distance * math.cos(a), y + distance * math.sin(a) * squash, 0.09 * r, ink)


def flower_side(c: Canvas, rng: Random) -> None:
    """Draw a flower on its stalk with two leaves."""
    u = rng.uniform
    green, bend = pick(rng, "#4f8a3a #6a9a3a #3f7048"), u(-0.35, 0.35)
    c.shape(limb([(0, 0), (bend, 0.8), (bend * 0.6, 1.9)], [0.1, 0.1, 0.12]), green)
    for side in SIDES:
        place = (bend * 0.9, 0.95, side * u(0.8, 1.5))
        vein = move(limb([(0, 0), (0, -0.8)], [0.03, 0.01]), *place)
        blade = move(leaf(u(0.6, 0.8), u(0.14, 0.24)), *place)
        c.shape(blade, green, [(vein, mix(green, WHITE, 0.4))])
    _blossom(c, rng, -0.2, u(0.5, 1.0), 1.0)


def flower_above(c: Canvas, rng: Random) -> None:
    """Draw a flower on its leaves, seen from above."""
    u = rng.uniform
    green, turn = pick(rng, "#4f8a3a #6a9a3a #3f7048"), u(0, 6)
    for k in range(rng.randint(0, 4)):
        place = (0, 0, turn + k * u(1.0, 2.0))
        vein = move(limb([(0, 0), (0, -1.0)], [0.03, 0.01]), *place)
        c.shape(move(leaf(1.15, 0.26), *place), green, [(vein, mix(green, WHITE, 0.4))])
    _blossom(c, rng, 0, u(0.7, 1.0), 1.1)


def snail(c: Canvas, rng: Random) -> None:
    """Draw a crawling snail with a coiled shell."""
    u = rng.uniform
    shell = pick(rng, "#b8763a #d8b070 #8a5a3a #c8a04a #a86a5a #9a8a70 #d8c8a0 #7a6a8a #6a8a6a")
    flesh = pick(rng, "#b8a078 #8a7a68 #6a6258 #c8b090 #a8a080")
    band, raised = mix(shell, rng.choice([DARK, WHITE]), u(0.35, 0.65)), u(-0.25, 0.2)
    for x in (-0.12, 0.08):
        tip = (-0.92 + 1.6 * x + u(-0.08, 0.08), -0.32 + raised + u(-0.1, 0.1))
        c.shape(limb([(-0.82 + x * 0.5, 0.2 + raised), tip], [0.09, 0.06]), flesh, lift=0.2)
        c.shape(ellipse(*tip, 0.075, 0.075), flesh)
        c.dot(tip[0] - 0.02, tip[1] - 0.01, 0.04, DARK)
    body = [(-0.84, 0.25 + raised), (-0.72, 0.55), (-0.3, 0.68), (0.5, 0.72), (1.1, 0.8)]
    sole = (limb([(-1, 0.84), (1.2, 0.86)], [0.12, 0.1]), mix(flesh, DARK, 0.35))
    c.shape(limb(body, [0.28, 0.34, 0.32, 0.26, 0.05]), flesh, [sole], grain=0.35)
    c.line([(-0.98, 0.36 + raised), (-0.86, 0.4 + raised)], 0.03, mix(flesh, DARK, 0.6))
    r, turns = u(0.5, 0.66), u(2.2, 3.2)
    x, y, t = 0.16 + u(-0.08, 0.08), 0.66 - r, np.linspace(0, 1, 36)
    angle, radius = 0.9 - 2 * PI * turns * t, r * 1.03 * (1 - t) ** 0.85
    spiral = np.stack([np.cos(angle), np.sin(angle)], 1)
    seam = (x, y) + spiral * radius[:, None]
    marks = [(limb(seam, 0.07 * (1 - 0.7 * t)), mix(shell, DARK, 0.6))]
    if rng.random() < 0.6:
        middle = seam - spiral * 0.45 * r / turns
        marks.insert(0, (limb(middle, 0.3 * r / turns * (1 - 0.8 * t)), band))
    lip = [(x - 0.5, y + 0.2), (x - 0.62, y + 0.52), (x - 0.3, y + 0.62), (x + 0.1, y + 0.55)]
    c.shape(curve(lip), mix(shell, DARK, 0.2))
    c.shape(ellipse(x, y, r, r * 0.96), shell, marks, gloss=0.7, grain=0.2)
