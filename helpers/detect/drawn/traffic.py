"""Draw traffic clips whose boxes, identities and rule breaches are known exactly.

They train the default detector, stand in for a video of one's own in the notebook, and measure
the whole pipeline. Training pictures and clips never share a seed.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.path import Path as Polygon
from matplotlib.transforms import Bbox
from PIL import Image, ImageDraw
from scipy.spatial import ConvexHull

from helpers.detect.drawn import scene
from helpers.detect.drawn.scene import FAR, NEAR, SIZE, Camera, Model, Scene
from helpers.detect.rules import FORBIDDEN, WRONG_DIRECTION, Event, Lane, Rules, Zone
from helpers.detect.tracking import box_iou
from helpers.detect.video import Writer
from helpers.runs.progress import tqdm

FPS = 25
BUILDERS = {"car": scene.build_car, "bus": scene.build_bus, "truck": scene.build_truck}  # COCO
TRAINING, CLIP = 0, 1  # keep the random streams of training pictures and clips apart


def road_rules(camera: Camera) -> Rules:
    """Return the rules of the drawn roads as this camera sees them."""

    def arrow(x0: float, x1: float, direction: int) -> list[tuple[float, float]]:
        ends = np.array([[(x0 + x1) / 2, y, 0] for y in (22.0, 48.0)])[::direction]
        return [tuple(p) for p in (camera.project(ends) / SIZE).round(3).tolist()]

    return Rules(
        zones=[Zone(name=name, polygon=camera.strip(x0, x1), forbidden=forbidden)
               for name, (x0, x1, forbidden) in scene.ZONES.items()],
        lanes=[Lane(name=name, polygon=camera.strip(x0, x1), directions=[arrow(x0, x1, way)])
               for name, (x0, x1, way) in scene.LANES.items()])


@dataclass
class Vehicle:
    """A vehicle and where it is in each frame: `places` (frames, 3) of x, y and heading."""

    label: str
    model: Model
    places: np.ndarray  # NaN before it comes and after it has gone


@dataclass
class Frame:
    """A drawn frame (H, W, 3) uint8 and what can be seen on it.

    Boxes are x0, y0, x1, y1 in pixels, cut at the frame's edge; `ids` are the vehicles' numbers
    and `visible` the shares of their outlines neither hidden nor outside of the frame.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: list[str]
    ids: list[int]
    visible: np.ndarray


def drive(rng: np.random.Generator, path: np.ndarray, speed: float, labels: list[str],
          gaps: tuple[float, float], frames: int) -> list[Vehicle]:
    """Send a row of vehicles along a path (K, 2); the whole row may slow down and stop once."""
    time = np.arange(frames) / FPS
    speeds = np.full(frames, speed * rng.uniform(.85, 1.15))
    if rng.random() < .35:
        middle, width = rng.uniform(0, frames / FPS), rng.uniform(.6, 1.4)
        speeds *= 1 - rng.uniform(.5, 1.0) * np.exp(-(((time - middle) / width) ** 2))
    covered = speeds.cumsum() / FPS
    along = np.concatenate([[0], np.hypot(*np.diff(path, axis=0).T).cumsum()])
    vehicles, position = [], along[-1] - rng.uniform(0, gaps[1])
    while position > -covered[-1]:
        label = str(rng.choice(labels))
        model = BUILDERS[label](rng)
        s = position - model.length / 2 + covered
        here, ahead = ([np.interp(s + step, along, axis, np.nan, np.nan) for axis in path.T]
                       for step in (0, .3))
        heading = np.arctan2(ahead[1] - here[1], ahead[0] - here[0])
        vehicles.append(Vehicle(label, model, np.stack([*here, heading], 1)))
        position -= model.length + rng.uniform(*gaps)
    return vehicles


def plan_traffic(rng: np.random.Generator, frames: int) -> list[Vehicle]:
    """Fill every lane with vehicles; some drive where or whither they must not."""
    mixed = ["car"] * 5 + ["truck"] * 3 + ["bus"] * 2
    street = rng.choice(["calm", "truck", "link", "wrong way"])
    wrong = rng.choice([-6.6, -3.0, 3.0]) if rng.random() < .5 else None
    vehicles = []
    for x, direction in {-6.6: -1, -3.0: -1, 3.0: 1, 6.6: 1}.items():
        path = np.array([[x, NEAR], [x, FAR]])[::direction]
        if x == 6.6 and street == "link":
            path = np.concatenate([[[x, NEAR]], scene.link_path(), [[18, FAR]]])
            vehicles += drive(rng, path, 11, ["truck", "truck", "car"], (22, 40), frames)
        elif x == wrong:
            vehicles += drive(rng, path[::-1], 13, mixed, (35, 60), frames)
        else:
            vehicles += drive(rng, path, 16, mixed, (5, 24), frames)
    path = np.array([[18, NEAR], [18, FAR]])
    if street == "wrong way":
        vehicles += drive(rng, path[::-1], 8, mixed, (25, 45), frames)
    elif street != "link":
        labels = ["truck", "car"] if street == "truck" else ["car"] * 5 + ["bus"]
        vehicles += drive(rng, path, 9, labels, (8, 30), frames)
    return vehicles


class Clip:
    """A drawn clip: `rules`, true `events` (their `track` is a vehicle's number), frames.

    A vehicle that breaks a rule for less than a second in good view is left out of the clip, so
    that every event is one that watchers could agree on. `fps` is FPS, `resample` changes it.
    """

    fps = FPS

    def __init__(self, seed: int, frames: int = 200, camera: Camera | None = None,
                 stream: int = CLIP):
        rng = np.random.default_rng([seed, stream])
        self.camera = camera or Camera.near_default(rng)
        self.frame_count = frames
        self.rules = road_rules(self.camera)
        self.scene = Scene(rng, self.camera)
        self.vehicles, self.events = [], []
        for vehicle in plan_traffic(rng, frames):
            breaches = self._breaches(vehicle, len(self.vehicles))
            if all(seconds >= 1 for seconds, _ in breaches):
                self.vehicles.append(vehicle)
                self.events += [event for _, event in breaches]

    def resample(self, fps: float) -> "Clip":
        """Return the same traffic, as long and with the same events, at another frame rate."""
        clip = copy.copy(self)
        times = np.arange(0, (self.frame_count - 1) / self.fps + 1e-9, 1 / fps)
        before = np.arange(self.frame_count) / self.fps
        clip.fps, clip.frame_count, clip.vehicles = fps, len(times), []
        for vehicle in self.vehicles:
            columns = [np.interp(times, before, column) for column in vehicle.places.T]
            clip.vehicles.append(replace(vehicle, places=np.stack(columns, 1)))
        known = {(event.track, event.event, event.zone) for event in self.events}
        clip.events = [event for number, vehicle in enumerate(clip.vehicles)
                       for _, event in clip._breaches(vehicle, number)
                       if (number, event.event, event.zone) in known]
        return clip

    def _breaches(self, vehicle: Vehicle, number: int) -> list[tuple[float, Event]]:
        """Return each rule that a vehicle breaks, with the seconds it does so in good view."""
        x, _, heading = vehicle.places.T
        broken = {(FORBIDDEN, name): (x0 < x) & (x < x1)
                  for name, (x0, x1, forbidden) in scene.ZONES.items()
                  if vehicle.label in forbidden}
        broken |= {(WRONG_DIRECTION, name): (x0 < x) & (x < x1) & (np.sin(heading) * way < -.5)
                   for name, (x0, x1, way) in scene.LANES.items()}
        found = []
        for (kind, zone), moments in broken.items():
            outlines = {i: points for i in map(int, np.flatnonzero(moments))
                        if (points := self.outline(vehicle, i)) is not None}
            if outlines:
                first = min(outlines)
                event = Event(first, first / self.fps, number, vehicle.label, kind, zone,
                              frame_box(outlines[first]))
                in_view = [i for i, points in outlines.items() if share_inside(points) > .6]
                found.append((len(in_view) / self.fps, event))
        return found

    def outline(self, vehicle: Vehicle, frame: int) -> np.ndarray | None:
        """Return the pixels (N, 2) of a vehicle's corners, None where it is not in view."""
        x, y, heading = vehicle.places[frame]
        if np.isnan(heading):
            return None
        points = self.camera.project(scene.stand(vehicle.model, np.array([x, y]), heading)[1])
        return points if share_inside(points) > .01 else None

    def boxes(self, frame: int) -> dict[int, np.ndarray]:
        """Return the exact box of each vehicle in view, by the vehicle's number."""
        outlines = {i: self.outline(v, frame) for i, v in enumerate(self.vehicles)}
        return {i: frame_box(points) for i, points in outlines.items() if points is not None}

    def frame(self, number: int) -> Frame:
        """Draw one frame."""
        image = self.scene.image.copy()
        draw = ImageDraw.Draw(image, "RGBA")
        owners = Image.new("L", SIZE)
        mark = ImageDraw.Draw(owners)
        outlines = {i: self.outline(v, number) for i, v in enumerate(self.vehicles)}
        ids = [i for i, points in outlines.items() if points is not None]
        areas = {}
        stands = {i: (self.vehicles[i].model, place[:2], place[2])
                  for i in ids for place in [self.vehicles[i].places[number]]}
        for i in ids:
            self.scene.draw_shadow(draw, *stands[i])
        for i in sorted(ids, key=lambda i: -np.hypot(*(stands[i][1] - self.camera.position[:2]))):
            self.scene.draw_model(draw, *stands[i])
            hull = ConvexHull(outlines[i])
            areas[i] = hull.volume  # of a polygon: its area
            mark.polygon([tuple(p) for p in outlines[i][hull.vertices]], fill=i + 1)
        pixels = np.bincount(np.asarray(owners).ravel(), minlength=len(self.vehicles) + 1)
        image = image.reduce(scene.OVERSAMPLING).point(self.scene.light)
        boxes = [frame_box(outlines[i]) for i in ids]
        return Frame(np.asarray(image), np.array(boxes, np.float32).reshape(-1, 4),
                     [self.vehicles[i].label for i in ids], ids,
                     np.array([min(1, pixels[i + 1] / areas[i]) for i in ids]))

    def __iter__(self) -> Iterator[Frame]:
        return (self.frame(i) for i in range(self.frame_count))

    def save(self, path: str | Path) -> None:
        """Write the clip as an mp4."""
        with Writer(path, *SIZE, self.fps) as writer:
            for i in tqdm(range(self.frame_count), "drawing the clip", disable=None):
                writer.write(self.frame(i).image, i / self.fps)


def frame_box(points: np.ndarray) -> np.ndarray:
    """Return the box (4,) round the part of an outline (N, 2) that lies in the frame."""
    if (points < 0).any() or (points > SIZE).any():
        hull = points[ConvexHull(points).vertices]
        outline = Polygon(np.r_[hull, hull[:1]], closed=True)
        points = outline.clip_to_bbox(Bbox([(0, 0), SIZE])).vertices
    return np.concatenate([points.min(0), points.max(0)])


def share_inside(points: np.ndarray) -> float:
    """Return how much of the box round points lies in the frame, from 0 to 1."""
    low, high = points.min(0), points.max(0)
    inside = (high.clip(0, SIZE) - low.clip(0, SIZE)).prod()
    return float(inside / (high - low).prod())


def draw_scenes(count: int, seed: int, moments: int = 4) -> tuple[np.ndarray, list[dict]]:
    """Draw training pictures (N, H/2, W/2, 3) uint8 with a dict of boxes and labels each.

    `moments` pictures share one scene; vehicles hidden by more than three quarters are left out.
    """
    images, targets = [], []
    for i in tqdm(range(-(-count // moments)), "drawing scenes", disable=None):
        clip = Clip(seed * 1000 + i, frames=30 * moments, stream=TRAINING)
        for number in range(0, 30 * moments, 30):
            frame = clip.frame(number)
            images.append(np.asarray(Image.fromarray(frame.image).reduce(2)))
            is_seen = frame.visible > .25
            labels = np.array(frame.labels)[is_seen].tolist()
            targets.append({"boxes": frame.boxes[is_seen] / 2, "labels": labels})
    return np.stack(images[:count]), targets[:count]


def score_events(found: list[Event], clip: Clip) -> tuple[int, int, int]:
    """Return how many found events are right, how many are false or doubled, how many are missed.

    An event is right when its kind and zone are true of the vehicle whose exact box in that frame
    overlaps the event's box most, by an IoU of at least .5; a second one for it is doubled.
    """
    open_events = {(e.track, e.event, e.zone) for e in clip.events}
    right = 0
    for event in found:
        boxes = clip.boxes(event.frame)
        ids = list(boxes)
        overlaps = box_iou(np.array([event.box]), np.array([boxes[i] for i in ids]).reshape(-1, 4))
        if ids and overlaps.max() >= .5:
            key = (ids[int(overlaps.argmax())], event.event, event.zone)
            if key in open_events:
                open_events.remove(key)
                right += 1
    return right, len(found) - right, len(open_events)
