"""Draw a road scene as a camera on a mast sees it: roads, houses, trees and vehicles.

A motorway with two carriageways runs beside a one-way residential street where trucks are
forbidden; a link road joins them. Everything is a shaded solid on a ground plane in metres
(x right, y away from the camera, z up) under a pinhole camera, so every box is known exactly.
"""

from itertools import pairwise

import numpy as np
from matplotlib.path import Path as Polygon
from matplotlib.transforms import Bbox
from PIL import Image, ImageChops, ImageDraw
from scipy.spatial import ConvexHull

SIZE = (640, 384)  # width and height of a drawn frame in pixels
OVERSAMPLING = 2  # drawn twice as large, then averaged: smooth edges
RING = np.stack([np.cos(np.arange(14) * np.pi / 7), np.sin(np.arange(14) * np.pi / 7)], 1)
NEAR, FAR = -10.0, 130.0  # the ends of the roads along y, in metres
ZONES = {"main road": (-9.2, 9.2, []), "residential street": (15.0, 21.0, ["truck"])}
LANES = {"southbound": (-9.2, -0.7, -1), "northbound": (0.7, 9.2, 1),
         "one-way street": (15.0, 21.0, 1)}  # x from, x to, direction along y
GLASS, TYRE, STEEL = (52, 66, 82), (28, 28, 30), (150, 154, 158)
ASPHALT, KERB, WHITE = (92, 94, 99), (168, 164, 150), (232, 232, 226, 235)
PAINTS = [(214, 216, 218), (45, 48, 54), (146, 150, 156), (178, 34, 40), (36, 78, 150),
          (62, 110, 84), (214, 176, 62), (238, 238, 236), (120, 70, 52), (70, 130, 170)]


class Camera:
    """Project points of the world (metres) to pixels of a SIZE frame; angles in degrees."""

    def __init__(self, x: float = 4.5, height: float = 20.0, yaw: float = -4.0,
                 pitch: float = 34.0, focal: float = 640.0):
        self.position = np.array([x, -6.0, height])
        self.focal = focal
        turn, dip = np.radians([yaw, pitch])
        forward = np.array([-np.sin(turn) * np.cos(dip), np.cos(turn) * np.cos(dip), -np.sin(dip)])
        right = np.array([np.cos(turn), np.sin(turn), 0])
        self.axes = np.stack([right, np.cross(forward, right), forward])

    @classmethod
    def near_default(cls, rng: np.random.Generator) -> "Camera":
        """Return a camera that stands and looks a little differently from the default one."""
        usual = np.array([4.5, 20.0, -4.0, 34.0, 640.0])
        return cls(*(usual + rng.uniform(-1, 1, 5) * [1.0, 1.0, 2.0, 1.5, 25.0]))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the pixels (N, 2) of world points (N, 3), which must lie before the camera."""
        seen = (points - self.position) @ self.axes.T
        return seen[:, :2] * (self.focal / seen[:, 2:]) + np.array(SIZE) / 2

    def strip(self, x0: float, x1: float) -> list[tuple[float, float]]:
        """Return the road between two x as a polygon in fractions of the frame, clipped to it."""
        corners = [(x0, 0, 0), (x1, 0, 0), (x1, FAR, 0), (x0, FAR, 0), (x0, 0, 0)]
        outline = Polygon(self.project(np.array(corners, float)) / SIZE, closed=True)
        points = outline.clip_to_bbox(Bbox.unit()).vertices.round(3).tolist()
        return [tuple(p) for p, q in pairwise(points) if p != q]


class Model:
    """Build a thing from convex parts with painted patches; x is forward, z up, in metres."""

    def __init__(self):
        self.faces, self.colours, self.parts = [], [], []
        self.levels, self.middles = [], []

    def prism(self, profile: list, colour: tuple, sides: tuple | None = None,
              top: tuple | None = None, level: int = 0) -> None:
        """Add a part: a convex outline of (x, z, half width) extruded across the thing."""
        left = np.array(profile, float)[:, [0, 2, 1]]
        right = left * [1, -1, 1]
        self.levels.append(level)  # parts on a higher level are painted later
        self.middles.append(np.concatenate([left, right]).mean(0))
        self.patch(left, sides or colour)
        self.patch(right, sides or colour)
        for i in range(len(left)):
            j = (i + 1) % len(left)
            is_top = top and left[i, 2] == left[j, 2] > self.middles[-1][2]
            self.patch([left[i], right[i], right[j], left[j]], top if is_top else colour)

    def box(self, x0: float, x1: float, z0: float, z1: float, half: float, colour: tuple,
            **more) -> None:
        """Add a part: an upright box."""
        self.prism([(x0, z0, half), (x1, z0, half), (x1, z1, half), (x0, z1, half)], colour, **more)

    def patch(self, corners: list | np.ndarray, colour: tuple) -> None:
        """Paint a flat face on the last part; it is seen from outside only."""
        self.faces.append(np.array(corners, float))
        self.colours.append(colour)
        self.parts.append(len(self.middles) - 1)

    def sides(self, outline: list, half: float, colour: tuple) -> None:
        """Paint an outline of (x, z) on both sides of the last part."""
        for y in (-half - .01, half + .01):
            self.patch([(x, y, z) for x, z in outline], colour)

    def end(self, x: float, z0: float, z1: float, y0: float, y1: float, colour: tuple,
            lean: float = 0.0) -> None:
        """Paint a rectangle across the last part at x, its upper edge `lean` behind."""
        x += .01 * np.sign(x)
        self.patch([(x, y0, z0), (x, y1, z0), (x - lean, y1, z1), (x - lean, y0, z1)], colour)

    def wheels(self, places: list[float], radius: float, half: float) -> None:
        """Paint wheels with hubs on both sides."""
        for share, colour in ((1.0, TYRE), (0.5, STEEL)):
            for x in places:
                self.sides(share * radius * RING + [x, radius], half, colour)

    def lights(self, x: float, z: float, half: float, colour: tuple) -> None:
        """Paint a pair of lamps at one end."""
        for side in (-1, 1):
            self.end(x, z, z + .2, side * (half - .45), side * (half - .05), colour)

    def finish(self) -> "Model":
        """Lay the faces out as arrays, ready to be drawn many times."""
        self.vertices = np.concatenate(self.faces)
        self.starts = np.cumsum([0] + [len(face) for face in self.faces])
        self.colours, self.parts = np.array(self.colours), np.array(self.parts)
        self.levels, self.middles = np.array(self.levels), np.array(self.middles)
        sides = np.array([face[1:3] - face[0] for face in self.faces])
        normals = np.cross(sides[:, 0], sides[:, 1])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        away = np.array([face.mean(0) for face in self.faces]) - self.middles[self.parts]
        self.normals = normals * np.sign((normals * away).sum(1, keepdims=True))  # outwards
        self.length = np.ptp(self.vertices[:, 0])
        return self


def build_car(rng: np.random.Generator) -> Model:
    """Return a saloon or a hatchback."""
    car, colour, half = Model(), PAINTS[rng.integers(len(PAINTS))], rng.uniform(.85, .95)
    car.prism([(-2.1, .28, half), (2.1, .28, half), (2.18, .68, half), (1.2, .92, half * .97),
               (-2.1, .95, half * .97)], colour)
    car.wheels([-1.3, 1.35], .34, half)
    car.lights(2.13, .5, half, (255, 250, 215))
    car.lights(-2.1, .6, half, (205, 32, 30))
    rear, height = rng.choice([-2.0, -1.5]), rng.uniform(1.4, 1.55)
    car.prism([(rear, .93, half * .92), (1.05, .92, half * .92), (.35, height, half * .74),
               (rear + .45, height, half * .74)], GLASS, top=colour, level=1)
    return car.finish()


def build_truck(rng: np.random.Generator) -> Model:
    """Return a lorry with a closed box or an open load."""
    truck, colour, half = Model(), PAINTS[rng.integers(len(PAINTS))], 1.25
    front = rng.uniform(3.7, 5.2)
    back, step, height, load = -front, front - 2.0, rng.uniform(3.0, 3.7), PAINTS[rng.integers(10)]
    truck.box(back, front - .1, .45, .95, half * .9, (58, 60, 64))
    truck.wheels([back + 1.0, back + 2.2, front - 1.1], .5, half * .97)
    truck.lights(back, .55, half * .9, (205, 32, 30))
    if rng.random() < .3:
        sand = [(168, 132, 88), (112, 104, 98), (196, 178, 130)][rng.integers(3)]
        truck.box(back, step - .3, .95, height * .6, half, load, top=sand, level=1)
    else:
        truck.box(back, step - .3, .95, height, half, tuple(200 + c // 5 for c in load), level=1)
        stripe = [(back + .1, 1.5), (step - .4, 1.5), (step - .4, 2.0), (back + .1, 2.0)]
        truck.sides(stripe, half, load)
        truck.end(back, 1.1, height - .2, -.04, .04, (110, 110, 110))
    truck.prism([(step, .5, half), (front, .5, half), (front, 1.6, half),
                 (front - .3, 2.75, half * .94), (step, 2.75, half * .94)], colour, level=1)
    truck.end(front, 1.65, 2.6, -1.1, 1.1, GLASS, lean=.26)
    truck.sides(np.array([(-.15, 1.6), (-1.2, 1.6), (-1.2, 2.4), (-.4, 2.4)]) + [front, 0], half,
                GLASS)
    truck.lights(front, .7, half, (255, 250, 215))
    return truck.finish()


def build_bus(rng: np.random.Generator) -> Model:
    """Return a city bus."""
    bright = [(226, 120, 40), (200, 44, 48), (40, 110, 178), (90, 160, 70), (232, 196, 60)]
    bus, front, half, colour = Model(), rng.uniform(5.0, 6.0), 1.25, bright[rng.integers(5)]
    bus.box(-front, front, .35, 3.05, half, colour, top=tuple(60 + c * 3 // 4 for c in colour))
    for a, b in pairwise(np.linspace(-front + .3, front - .2, 8)):
        bus.sides([(a + .07, 1.5), (b - .07, 1.5), (b - .07, 2.6), (a + .07, 2.6)], half, GLASS)
    bus.end(front, 1.2, 2.6, -1.1, 1.1, GLASS)
    bus.end(front, 2.7, 2.95, -.8, .8, (250, 200, 90))
    bus.end(-front, 1.6, 2.6, -1.0, 1.0, GLASS)
    bus.wheels([-front + 2.6, front - 2.4], .48, half)
    bus.lights(front, .6, half, (255, 250, 215))
    bus.lights(-front, .6, half, (205, 32, 30))
    bus.box(-1.5, 1.2, 3.05, 3.3, .8, (206, 208, 208), level=1)
    return bus.finish()


def build_house(rng: np.random.Generator) -> Model:
    """Return a house with a pitched roof."""
    wall = [(226, 214, 190), (214, 196, 176), (232, 230, 222), (200, 206, 206)][rng.integers(4)]
    roof = [(160, 78, 60), (132, 70, 62), (96, 92, 98), (150, 98, 70)][rng.integers(4)]
    house = Model()
    house.box(-4, 4, 0, 3, 3.6, wall)
    for x in (-2.5, .9):
        house.sides([(x, 1), (x + 1.3, 1), (x + 1.3, 2.2), (x, 2.2)], 3.6, GLASS)
        house.end(-4, 1, 2.2, x, x + 1.3, GLASS)
    house.prism([(-4.4, 3, 3.9), (4.4, 3, 3.9), (0, 5.6, 3.9)], roof, sides=wall, level=1)
    return house.finish()


class Scene:
    """The empty roads under one camera and one light, onto which things are drawn."""

    def __init__(self, rng: np.random.Generator, camera: Camera):
        self.camera = camera
        sun = np.array([rng.uniform(-.8, -.3), rng.uniform(-.6, .2), 1.0])
        self.sun = sun / np.linalg.norm(sun)
        tint = [(1, 1, 1), (1.04, .97, .84), (.86, .92, 1.0), (.76, .78, .9)][rng.integers(4)]
        self.light = [min(255, int(v * c)) for c in tint for v in range(256)]
        self.image = self._draw_ground(rng)
        draw = ImageDraw.Draw(self.image, "RGBA")
        houses = [(29.5, y, True) for y in np.arange(rng.uniform(8, 16), 110, 13)]
        trees = [(25.0, y + 6.5, False) for _, y, _ in houses]
        trees += [(-12.5 - 40 * rng.random() ** 1.5, y, False) for y in rng.uniform(4, 115, 34)]
        trees += [(rng.uniform(37, 70), y, False) for y in rng.uniform(10, 120, 24)]
        for x, y, is_house in sorted(houses + trees, key=lambda thing: -thing[1]):
            if is_house:
                house = build_house(rng)
                self.draw_shadow(draw, house, np.array([x, y]), np.pi / 2)
                self.draw_model(draw, house, np.array([x, y]), np.pi / 2)
            else:
                self._draw_tree(draw, rng, x, y, rng.uniform(1.1, 1.5 if x == 25.0 else 2.6))

    def pixels(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Return the pixels of ground points (N, 2) in the oversampled picture."""
        flat = np.c_[points, np.zeros(len(points))]
        return [tuple(p) for p in self.camera.project(flat) * OVERSAMPLING]

    def _draw_ground(self, rng: np.random.Generator) -> Image.Image:
        width, height = (side * OVERSAMPLING for side in SIZE)
        grass = tuple(int(v) for v in rng.uniform((96, 138, 70), (118, 158, 86)))
        image = Image.new("RGB", (width, height), grass)
        draw = ImageDraw.Draw(image, "RGBA")
        for _ in range(160):  # meadow patches
            place, radius = rng.uniform((-70, 0), (90, 130)), rng.uniform(.6, 4)
            shade = int(rng.choice([30, 255]))
            draw.polygon(self.pixels(place + radius * RING), fill=(shade, shade, 40, 14))

        def strip(x0: float, x1: float, colour: tuple, y0: float = 0, y1: float = FAR) -> None:
            draw.polygon(self.pixels(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])), colour)

        strip(13.3, 14.5, (186, 182, 174))  # pavements
        strip(21.5, 23.0, (186, 182, 174))
        link = link_path()
        along = np.gradient(link, axis=0)
        across = along[:, ::-1] * [-1, 1] / np.hypot(*along.T)[:, None]
        for margin, colour in ((.5, KERB), (0.0, ASPHALT)):
            ribbon = across * (2.1 + margin)
            draw.polygon(self.pixels(np.r_[link + ribbon, (link - ribbon)[::-1]]), colour)
            for x0, x1, _ in ZONES.values():
                strip(x0 - margin, x1 + margin, colour)
        strip(-.7, .7, (122, 150, 88))  # the median
        for x in (-8.8, -1.1, 1.1, 20.6):
            strip(x - .09, x + .09, WHITE)
        for x, start, stop in ((8.8, 14, 32), (15.4, 29, 47)):  # open where the link road passes
            strip(x - .09, x + .09, WHITE, 0, start)
            strip(x - .09, x + .09, WHITE, stop)
        for y in np.arange(0, FAR, 9.0):
            for x in (-4.8, 4.8):
                strip(x - .08, x + .08, WHITE, y, y + 3.6)
        grain = rng.normal(240, 10, (height // 2, width // 2)).clip(0, 255).astype(np.uint8)
        grain = Image.fromarray(grain).resize((width, height))
        return ImageChops.multiply(image, Image.merge("RGB", [grain] * 3))

    def _draw_tree(self, draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float,
                   radius: float) -> None:
        top = radius * rng.uniform(1.6, 2.2)
        fallen = np.array([x, y]) - self.sun[:2] / self.sun[2] * top
        for share in (1.0, .8):
            draw.polygon(self.pixels(fallen + share * radius * RING), fill=(10, 20, 10, 50))
        foot, crown = self.camera.project(np.array([[x, y, 0], [x, y, top]])) * OVERSAMPLING
        depth = (np.array([x, y, top]) - self.camera.position) @ self.camera.axes[2]
        r = radius * self.camera.focal / depth * OVERSAMPLING
        draw.line([tuple(foot), tuple(crown)], fill=(92, 70, 50), width=max(2, int(r / 6)))
        green = rng.uniform((44, 96, 40), (96, 128, 66))
        turns, reaches = rng.random((26, 2)).T  # leaves, from dark below to bright to the sun
        share = np.linspace(0, 1, 26)[:, None]
        away = .62 * np.sqrt(reaches) * np.array([np.cos(2 * np.pi * turns),
                                                  np.sin(2 * np.pi * turns)])
        places, leaves = crown + r * (away.T - share * [.2, .3]), r * (.52 - .26 * share)
        boxes = np.hstack([places - leaves, places + leaves]).tolist()
        colours = (green * (.62 + .62 * share)).clip(0, 255).astype(int).tolist()
        for box, colour in zip(boxes, colours, strict=True):
            draw.ellipse(box, fill=tuple(colour))

    def draw_shadow(self, draw: ImageDraw.ImageDraw, model: Model, position: np.ndarray,
                    heading: float) -> None:
        """Draw the shadow that a model throws on the ground; all shadows come before models."""
        _, vertices = stand(model, position, heading)
        fallen = vertices[:, :2] - self.sun[:2] / self.sun[2] * vertices[:, 2:]
        draw.polygon(self.pixels(fallen[ConvexHull(fallen).vertices]), fill=(8, 10, 16, 105))

    def draw_model(self, draw: ImageDraw.ImageDraw, model: Model, position: np.ndarray,
                   heading: float) -> None:
        """Draw a model at a place (x, y), turned by an angle in radians."""
        turn, vertices = stand(model, position, heading)
        corners = [tuple(p) for p in self.camera.project(vertices) * OVERSAMPLING]
        normals = model.normals @ turn
        to_camera = self.camera.position - vertices[model.starts[:-1]]
        is_seen = (normals * to_camera).sum(1) > 0
        shade = .58 + .5 * (normals @ self.sun).clip(0)
        colours = (model.colours * shade[:, None]).clip(0, 255).astype(int)
        distance = np.linalg.norm(
            model.middles @ turn + [*position, 0] - self.camera.position, axis=1)
        order = np.lexsort([-distance[model.parts], model.levels[model.parts]])
        for i in order[is_seen[order]]:
            draw.polygon(corners[model.starts[i]:model.starts[i + 1]], fill=tuple(colours[i]))


def stand(model: Model, position: np.ndarray, heading: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the turning matrix (3, 3) and the vertices (N, 3) of a model put on the ground."""
    c, s = np.cos(heading), np.sin(heading)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return turn, model.vertices @ turn + [*position, 0]


def link_path() -> np.ndarray:
    """Return the way (K, 2) from the motorway's outer lane over the link road to the street."""
    t = np.linspace(0, 1, 40)[:, None]
    a, b, c, d = np.array([[6.6, 14], [7.0, 30], [17.5, 28], [18, 48]], float)
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t ** 2 * c + t ** 3 * d
