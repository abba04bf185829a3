"""Draw the embedded data sets: folders of JPEG pictures that need no download."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from helpers.data.drawn import creatures as c
from helpers.data.drawn import garden as g
from helpers.data.drawn.paint import DARK, WHITE, Canvas, Colour, curve, leaf, mix, noise, pick
from helpers.runs.files import lock, making
from helpers.runs.progress import tqdm

View = tuple[Callable[[Canvas, Random], None], float]  # how to draw, largest turn (radians)


class Drawn(NamedTuple):
    """Describe a data set: views of each kind, pixels a side, images a kind, range of sizes."""

    kinds: dict[str, list[View]]
    pixels: int
    counts: dict[str, int]
    sizes: tuple[float, float]


NATURE: dict[str, list[View]] = {  # after the ten taxa of iNaturalist-12K
    "frog": [(c.frog_front, 0.5), (c.frog_above, math.pi)],
    "starfish": [(c.starfish, math.pi)],
    "spider": [(c.spider, math.pi)],
    "bird": [(g.bird_perched, 0.4), (g.bird_flying, 0.7)],
    "mushroom": [(g.mushrooms, 0.4)],
    "butterfly": [(g.butterfly_open, math.pi), (g.butterfly_closed, 0.6)],
    "cat": [(c.cat_sitting, 0.4), (c.cat_lying, 0.4), (c.cat_portrait, 0.5)],
    "snail": [(g.snail, 0.6)],
    "flower": [(g.flower_side, 0.6), (g.flower_above, math.pi)],
    "turtle": [(c.turtle_above, math.pi), (c.turtle_side, 0.5)],
}
RED, BLUE, GOLD = (200, 52, 40), (58, 108, 190), (226, 178, 52)
PLUMES = {  # two species each, so colour alone does not tell them apart
    "red_crested": dict(crest="point", crown=RED),
    "blue_fan": dict(crest="fan", crown=BLUE),
    "golden_capped": dict(crest="none", crown=GOLD),
}
SPECIES = {  # invented
    "red_crested_longbill": dict(beak="long", bars=0, tail="short", mask=False),
    "red_crested_grosbeak": dict(beak="cone", bars=2, tail="short", mask=False),
    "blue_fan_longbill": dict(beak="long", bars=2, tail="long", mask=False),
    "blue_fan_hookbill": dict(beak="hook", bars=0, tail="long", mask=False),
    "golden_capped_forktail": dict(beak="thin", bars=1, tail="fork", mask=True),
    "golden_capped_finch": dict(beak="cone", bars=1, tail="short", mask=True),
}


def _bird_views(name: str) -> list[View]:
    """List the adult twice and once the young bird, whose crown is as dull as its back."""
    plume, looks = PLUMES[name.rpartition("_")[0]], SPECIES[name]
    adult = partial(g.bird_perched, **plume, **looks)
    young = partial(g.bird_perched, crest=plume["crest"], **looks)
    return [(adult, 0.4), (adult, 0.4), (young, 0.4)]


SETS = {
    "tiny_nature": Drawn(NATURE, 96, {"train": 120, "test": 40}, (0.23, 0.42)),
    "tiny_species": Drawn(
        {name: _bird_views(name) for name in SPECIES},
        128,
        {"train": 20, "test": 30},
        (0.24, 0.4),
    ),
}
TINTS = [WHITE, (255, 240, 214), (236, 244, 255), (255, 232, 200)]  # of sunlight


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
            tone = mix(stones, pick(rng, "#c8c0b0 #3f3a36"), u(0, 0.6))
            canvas.shape(curve(wobble), tone, lift=0.5)
        elif what == "leaves":
            tone = pick(rng, FOLIAGE)
            blade, vein = leaf(2.4, u(0.4, 0.8)), mix(tone, DARK, 0.45)
            half = blade[: len(blade) // 2], mix(tone, WHITE, 0.15)
            midrib = [(-0.05, 0.5), (0.05, 0.5), (0, -2.2)]
            canvas.flat(midrib, vein)
            canvas.shape(blade, tone, [half, (midrib, vein)], gloss=0.2, lift=0.5)
        elif what == "blades":
            canvas.pose(u(0, 1), u(0.1, 1.3), size * u(0.6, 1.2), u(-0.5, 0.5))
            tone = mix(greens, rng.choice([DARK, (214, 220, 120)]), u(0, 0.6))
            bend = u(-0.7, 0.7)
            middle = 0.2 * bend
            left, right = [(-0.17, 0), (middle - 0.13, -2)], [(middle + 0.13, -2), (0.17, 0)]
            canvas.flat([*left, (bend, -3.6), *right], tone)
        else:
            radius = round(canvas.unit)
            disc = Image.new("L", (2 * radius + 1, 2 * radius + 1))
            glow = rng.randrange(30, 110)
            ImageDraw.Draw(disc).ellipse((0, 0, 2 * radius, 2 * radius), fill=glow)
            corner = tuple((canvas.offset - radius).astype(int).tolist())
            canvas.image.paste(pick(rng, "#fff0c0 #c8e0a0 #f8c8d0 #d0e8f0"), corner, disc)


def scenery(rng: Random, size: int, light: float, tint: Colour) -> Canvas:
    """Paint a random natural ground, soft as if a little out of focus."""
    scene = rng.choice(list(SCENES))
    dark, bright, thing = SCENES[scene]
    cells = {"bark": (16, 3), "pool": (4, 12), "sand": (3, 9)}.get(scene, (5, 5))
    cells = cells if rng.random() < 0.5 else cells[::-1]
    cloud = noise(rng, (size // 2, size // 2), cells, 4)
    low, high = np.array(pick(rng, dark)), np.array(pick(rng, bright))
    shades = low + (high - low) * np.linspace(0, 1, 256)[:, None]
    cloud.putpalette(np.rint(shades).astype(np.uint8).tobytes())
    small = Canvas(rng, cloud.convert("RGB"), light, tint)
    counts = {"pebbles": 9, "leaves": 11, "blades": 60, "lights": 12}
    strew(small, thing, rng.randint(counts[thing] // 3, counts[thing]), 0.08)
    soft = small.image.resize((size, size), Image.Resampling.NEAREST)
    ground = Canvas(rng, soft, light, tint)
    strew(ground, rng.choice(["pebbles", "leaves"]), rng.choice([0, 1, 3]), rng.uniform(0.1, 0.2))
    return ground


def finish(canvas: Canvas, size: int) -> Image.Image:
    """Shrink the picture to `size` pixels: uneven, dappled light, exposure, at times soft focus."""
    rng = canvas.rng
    image = canvas.image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=1.5)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.8)))
    ramp = np.linspace(-1, 1, size)
    x, y = canvas.light * rng.uniform(0, 0.25)
    exposure = min(max(rng.uniform(85, 140) / np.asarray(image).mean(), 0.85), 1.6)
    level = exposure + x * ramp[None] + y * ramp[:, None]
    clouds = np.asarray(noise(rng, (size, size), (4, 4), 2), float)
    level *= 1 - rng.uniform(0, 0.5) * np.clip((clouds - 110) / 50, 0, 1)
    level = level[..., None] * np.array(canvas.tint) / 250
    return Image.fromarray(np.clip(np.asarray(image) * level, 0, 255).astype(np.uint8))


def draw_picture(dataset: str, name: str) -> Image.Image:
    """Draw one RGB picture; its name, such as "train/frog/0007.jpg", is its seed."""
    kinds, pixels, _, sizes = SETS[dataset]
    rng = Random(f"{dataset}/{name}")  # the same numbers on every machine and Python version
    u = rng.uniform
    view, turn = rng.choice(kinds[name.split("/")[1]])
    side, light, tint = 3 * pixels, u(-0.85, -0.15) * math.pi, rng.choice(TINTS)
    picture = scenery(rng, side, light, tint)
    figure = Canvas(rng, Image.new("RGB", (side, side)), light, tint)
    figure.pose(u(0.34, 0.66), u(0.34, 0.66), u(*sizes), u(-turn, turn), rng.choice((-1, 1)))
    view(figure, rng)
    picture.put(figure, u(0.04, 0.14), camouflage=u(0, 0.25))
    strew(picture, rng.choice(["blades", "leaves"]), rng.choice([0, 0, 2, 5]), 0.08)
    return finish(picture, pixels)


def draw(dataset: str, folder: Path) -> None:
    """Draw an embedded data set into `folder`/{train,test}/CLASS/NNNN.jpg.

    `dataset` is "tiny_nature" (10 classes, 120 + 40 RGB images each, 96 x 96) or "tiny_species"
    (6 classes, 20 + 30 images each, 128 x 128). An image's seed is its name, so every machine with
    the same Pillow gets the same bytes. The folder appears only when it is complete; one that is
    there already is left as it is.
    """
    with lock(folder, f"drawing {dataset}"):
        if folder.exists():  # another process drew it
            return
        with making(folder) as unfinished:
            for name in tqdm(_names(dataset), f"drawing {dataset}", unit=" images", disable=None):
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                draw_picture(dataset, name).save(unfinished / name, quality=90)


def _names(dataset: str) -> list[str]:
    drawn = SETS[dataset]
    return [
        f"{split}/{kind}/{number:04}.jpg"
        for split, count in drawn.counts.items()
        for kind in drawn.kinds
        for number in range(count)
    ]
