"""Follow vehicles through a video and say which of them break the rules of the road.

A vehicle is followed by the overlap of its boxes from frame to frame (SORT, arXiv:1602.00763, with
ByteTrack's second chance for weak detections, arXiv:2110.06864), its class is a vote over all its
detections, and it stands where the bottom centre of its box is. Rules are polygons in fractions
of the frame, read from a small YAML file.
"""

import difflib
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from matplotlib.path import Path as Polygon
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from scipy.optimize import linear_sum_assignment

FORBIDDEN, WRONG_DIRECTION = "forbidden zone", "wrong direction"
Point = tuple[float, float]


class Area(BaseModel):
    """Name a polygon of at least three (x, y) in fractions of the frame, y downwards."""

    model_config = ConfigDict(extra="forbid")
    name: str
    polygon: list[Point] = Field(min_length=3)

    @field_validator("polygon")
    @classmethod
    def _inside(cls, points: list[Point]) -> list[Point]:
        for x, y in points:
            if not (0 <= x <= 1 and 0 <= y <= 1):
                raise ValueError(f"point ({x:g}, {y:g}) is outside of the frame; "
                                 "give fractions of its width and height, from 0 to 1")
        return points


class Zone(Area):
    """Name a road and the classes that must not be on it."""

    forbidden: list[str] = []


class Lane(Area):
    """Name a lane and its allowed directions, each an arrow from one point to another."""

    directions: list[tuple[Point, Point]] = Field(min_length=1)

    @field_validator("directions")
    @classmethod
    def _have_length(cls, arrows: list[tuple[Point, Point]]) -> list[tuple[Point, Point]]:
        if any(start == end for start, end in arrows):
            raise ValueError("an arrow starts where it ends; give two different points")
        return arrows


class Rules(BaseModel):
    """Hold the zones and lanes of one camera."""

    model_config = ConfigDict(extra="forbid")
    zones: list[Zone] = []
    lanes: list[Lane] = []

    @field_validator("zones", "lanes")
    @classmethod
    def _have_names_of_their_own(cls, areas: list[Area]) -> list[Area]:
        names = Counter(area.name for area in areas)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"the name {twice[0]!r} is used twice; name each area once")
        return areas


def read_rules(path: str | Path) -> Rules:
    """Read and check a rules file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML, a field is wrong, a polygon leaves the frame, or two
            zones or two lanes have the same name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no rules file {path}.")
    try:
        rules = Rules.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ValueError(f"{path.name} is not valid YAML{line}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(str(step + 1) if isinstance(step, int) else step for step in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path.name}, {place or 'as a whole'}: {reason}.") from None
    return rules


def check_classes(wanted: list[str], names: list[str], place: str) -> None:
    """Raise ValueError where a wanted class is not among the detector's names."""
    for name in wanted:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(names)}."
            raise ValueError(f"{place}: the detector knows no class {name!r}; {hint}")


@dataclass
class Event:
    """Record that a vehicle broke a rule: when, which, how, where, and its box in pixels."""

    frame: int
    time: float  # seconds
    track: int
    label: str
    event: str
    zone: str
    box: np.ndarray


@dataclass
class Track:
    """Follow one vehicle: its box (x0, y0, x1, y1), its votes and the way of its foot point."""

    number: int
    box: np.ndarray
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(4))
    votes: Counter = field(default_factory=Counter)
    way: deque = field(default_factory=lambda: deque(maxlen=24))
    hits: int = 0
    missed: int = 0
    zones: set[str] = field(default_factory=set)  # where it has been
    broken: Counter = field(default_factory=Counter)  # consecutive frames that a rule was broken
    reported: set[tuple[str, str]] = field(default_factory=set)

    @property
    def label(self) -> str:
        """Return the class with most votes, weighted by the scores."""
        return max(self.votes, key=self.votes.get)

    @property
    def foot(self) -> np.ndarray:
        """Return the bottom centre (x, y) of the box: where the vehicle stands."""
        return np.array([(self.box[0] + self.box[2]) / 2, self.box[3]])


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union (N, M) of boxes (N, 4) and (M, 4) of x0, y0, x1, y1."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return both / (areas[0][:, None] + areas[1][None] - both).clip(1e-9)


def _is_part(box: np.ndarray, other: np.ndarray) -> bool:
    """Say whether more than 60 % of a box lies in another, larger one."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    area, larger = ((b[2:] - b[:2]).prod() for b in (box, other))
    return larger > area and sides.clip(0).prod() > .6 * area


class Tracker:
    """Join detections of successive frames to tracks.

    A track begins with a detection of at least `start_score`, counts once it was seen in
    `min_hits` frames, and is given up after `patience` frames without a detection.
    """

    def __init__(self, start_score: float = .5, min_hits: int = 4, patience: int = 25,
                 min_overlap: float = .2):
        self.start_score, self.min_hits = start_score, min_hits
        self.patience, self.min_overlap = patience, min_overlap
        self.tracks: list[Track] = []
        self.count = 0

    def update(self, boxes: np.ndarray, labels: list[str], scores: np.ndarray) -> list[Track]:
        """Take the detections of one frame; return the tracks that count and were seen in it."""
        for track in self.tracks:
            track.box = track.box + track.velocity
            track.missed += 1
        is_strong = scores >= self.start_score
        free = self._match(self.tracks, np.flatnonzero(is_strong), boxes, labels, scores)
        unseen = [track for track in self.tracks if track.missed]
        self._match(unseen, np.flatnonzero(~is_strong), boxes, labels, scores)
        for i in free:
            self.count += 1
            track = Track(self.count, boxes[i])
            self.tracks.append(track)
            self._see(track, boxes[i], labels[i], scores[i])
        self.tracks = [track for track in self.tracks if track.missed <= (
            self.patience if track.hits >= self.min_hits else 2)]
        return [t for t in self.tracks if not t.missed and t.hits >= self.min_hits]

    def _match(self, tracks: list[Track], indices: np.ndarray, boxes: np.ndarray,
               labels: list[str], scores: np.ndarray) -> list[int]:
        """Give each track its best detection; return the detections that no track wants."""
        if not tracks or not len(indices):
            return list(indices)
        overlaps = box_iou(np.array([track.box for track in tracks]), boxes[indices])
        rows, columns = linear_sum_assignment(-overlaps)
        taken = set()
        for row, column in zip(rows, columns, strict=True):
            if overlaps[row, column] >= self.min_overlap:
                i = indices[column]
                self._see(tracks[row], boxes[i], labels[i], scores[i])
                taken.add(i)
        return [i for i in indices if i not in taken]

    def _see(self, track: Track, box: np.ndarray, label: str, score: float) -> None:
        steps = max(track.missed, 1)
        if track.hits and box_iou(track.box[None], box[None])[0, 0] < .55:
            track.way.clear()  # a jump, perhaps to the next vehicle, is no movement
        if track.hits:  # the predicted box plus the miss: smooth the speed, keep the measured box
            gain = max(.25, 1 / (track.hits + 1))
            track.velocity = track.velocity + gain * (box - track.box) / steps
        track.box, track.missed = box, 0
        track.hits += 1
        track.votes[label] += float(score)
        track.way.append(track.foot)


class Judge:
    """Apply rules to tracks and report each breach once for each vehicle.

    A breach counts when it lasts `persistence` frames in a row. A vehicle drives against its lane
    when it moved, over the last frames, by more than `min_move` of its box's size, more than
    120 degrees away from every arrow of the lane.
    """

    def __init__(self, rules: Rules, width: int, height: int, persistence: int = 8,
                 min_move: float = .3):
        self.persistence, self.min_move = persistence, min_move
        self.size = np.array([width, height], float)
        self.zones = [(zone.name, Polygon(np.array(zone.polygon) * self.size), zone.forbidden)
                      for zone in rules.zones]
        self.lanes = []
        for lane in rules.lanes:
            ends = np.array(lane.directions) * self.size
            arrows = ends[:, 1] - ends[:, 0]
            arrows /= np.linalg.norm(arrows, axis=1, keepdims=True)
            self.lanes.append((lane.name, Polygon(np.array(lane.polygon) * self.size), arrows))

    def update(self, tracks: list[Track], frame: int, time: float) -> list[Event]:
        """Return the events of one frame; `tracks` are those seen in it."""
        events = []
        if not tracks:
            return events
        feet = np.array([track.foot for track in tracks]).clip(0, self.size - 1)
        for name, polygon, forbidden in self.zones:
            for track, inside in zip(tracks, polygon.contains_points(feet), strict=True):
                if inside:
                    track.zones.add(name)
                broken = inside and track.label in forbidden
                events += self._count(track, broken, FORBIDDEN, name, frame, time, tracks)
        for name, polygon, arrows in self.lanes:
            for track, inside in zip(tracks, polygon.contains_points(feet), strict=True):
                broken = inside and self._is_against(track, arrows)
                events += self._count(track, broken, WRONG_DIRECTION, name, frame, time, tracks)
        return events

    def _count(self, track: Track, broken: bool, event: str, zone: str, frame: int,
               time: float, tracks: list[Track]) -> list[Event]:
        key = (event, zone)
        if not broken:
            track.broken.pop(key, None)
            return []
        track.broken[key] += 1
        if track.broken[key] < self.persistence or key in track.reported:
            return []
        if any(other.broken[key] and _is_part(track.box, other.box) for other in tracks):
            return []  # a cab or a trailer seen as a vehicle of its own: the whole one is reported
        track.reported.add(key)
        return [Event(frame, time, track.number, track.label, event, zone, track.box.copy())]

    def _is_against(self, track: Track, arrows: np.ndarray) -> bool:
        if len(track.way) < 6:
            return False
        way = np.array(track.way)
        move = way[-3:].mean(0) - way[:3].mean(0)  # means of three: jitter of a box cancels out
        distance = np.linalg.norm(move)
        size = np.sqrt((track.box[2:] - track.box[:2]).prod())
        return distance > self.min_move * size and (arrows @ move < -.5 * distance).all()
