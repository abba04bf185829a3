"""Which box belongs to which vehicle: follow vehicles from frame to frame.

A vehicle is followed by the overlap of its boxes (SORT, arXiv:1602.00763, with ByteTrack's second
chance for weak detections, arXiv:2110.06864). All times are seconds of the film, so that the same
road gives the same tracks at any frame rate, and at a varying one.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import linear_sum_assignment

SPEED_SECONDS = 0.14  # a speed is averaged over about so long
SMOOTHING_SECONDS = 0.1  # a place is the mean over so long: the jitter of boxes cancels out
ROUNDING = 1e-6  # seconds; times of frames are rounded
MIN_SECONDS = 0.2  # a shorter way has no direction


class Settings(BaseModel):
    """When a vehicle counts and when a rule is broken; times in seconds of the film."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    confirm_seconds: float = Field(0.15, ge=0)  # a vehicle counts once it was seen for so long
    patience_seconds: float = Field(1.0, ge=0)  # and is given up so long after it was last seen
    breach_seconds: float = Field(0.3, ge=0)  # a breach counts once it was seen for so long
    direction_seconds: float = Field(1.0, ge=MIN_SECONDS)  # a direction is measured over so long
    min_move: float = Field(0.3, ge=0)  # least move that has a direction, in sizes of the vehicle
    min_overlap: float = Field(0.2, gt=0, le=1)  # least IoU of a vehicle's boxes in two frames

    @classmethod
    def from_parameters(cls, values: dict) -> "Settings":
        """Pick the settings from a notebook's parameters; raises ValueError for a wrong one."""
        try:
            return cls(**{name: values[name] for name in cls.model_fields if name in values})
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{first['loc'][0]} is {first['input']!r}: "
                             f"{first['msg'].removeprefix('Input ')}.") from None


DEFAULT = Settings()


@dataclass
class Detections:
    """What was found on one image: boxes (N, 4) x0, y0, x1, y1 in pixels, classes, scores (N,)."""

    boxes: np.ndarray
    labels: list[str]
    scores: np.ndarray


@dataclass
class Track:
    """One vehicle: where it is, where it came from, what it was called and what it has done."""

    number: int
    box: np.ndarray  # x0, y0, x1, y1 in pixels
    time: float  # when it was last seen
    seen_seconds: float = 0.0
    hits: int = 0  # frames in which it was seen
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(4))  # of the box, pixels/second
    votes: Counter = field(default_factory=Counter)
    way: deque = field(default_factory=deque)  # of (time, x, y) of its foot
    zones: set[str] = field(default_factory=set)  # where it has been
    broken: dict = field(default_factory=dict)  # rule -> seconds for which it is being broken
    reported: set[tuple[str, str]] = field(default_factory=set)

    @property
    def label(self) -> str:
        """Return the class with most votes, weighted by the scores."""
        return max(self.votes, key=self.votes.get)

    @property
    def foot(self) -> np.ndarray:
        """Return the bottom centre (x, y) of the box: where the vehicle stands."""
        return np.array([(self.box[0] + self.box[2]) / 2, self.box[3]])

    def direction(self) -> tuple[np.ndarray, float]:
        """Return how far its foot moved (x, y) in pixels, and over how many seconds."""
        way = np.array(self.way)
        times, feet = way[:, 0], way[:, 1:]
        first = feet[times <= times[0] + SMOOTHING_SECONDS + ROUNDING].mean(0)
        last = feet[times >= times[-1] - SMOOTHING_SECONDS - ROUNDING].mean(0)
        return last - first, times[-1] - times[0]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union (N, M) of boxes (N, 4) and (M, 4) of x0, y0, x1, y1."""
    both, areas = _intersections(a, b), [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return both / (areas[0][:, None] + areas[1][None] - both).clip(1e-9)


def _intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clip(0).prod(2)


def share_inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how much of the smaller box lies in the larger one (N, M), from 0 to 1."""
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return _intersections(a, b) / np.minimum(areas[0][:, None], areas[1][None]).clip(1e-9)


class Tracker:
    """Join the detections of successive frames to vehicles.

    A track begins with a detection of one of `classes` with at least `start_score`, unless most of
    it lies in the box of a vehicle that is already seen, or the other way round: such a box is a
    part of that vehicle. Weaker detections, and those that the detector calls something else, only
    continue a track that would else be lost. A vehicle's class is the vote of its detections as
    one of `classes`.
    """

    MAX_INSIDE = 0.6  # from this share on, a box within a box is the same vehicle

    def __init__(self, classes: list[str], start_score: float = 0.5,
                 settings: Settings = DEFAULT):
        self.classes, self.start_score, self.settings = classes, start_score, settings
        self.tracks: list[Track] = []
        self.count = 0
        self.time: float | None = None

    def update(self, found: Detections, time: float) -> list[Track]:
        """Take the detections of the frame at `time`; return the vehicles seen in it."""
        step = 0.0 if self.time is None else time - self.time
        self.time = time
        for track in self.tracks:
            track.box = track.box + track.velocity * step
            track.box[2:] = np.maximum(track.box[:2], track.box[2:])  # what leaves may shrink away
        is_vehicle = np.array([label in self.classes for label in found.labels], bool)
        is_strong = is_vehicle & (found.scores >= self.start_score)
        rest = np.flatnonzero(is_strong)
        free = self._match(rest, found, step)
        self._match(np.flatnonzero(is_vehicle & ~is_strong), found, step)
        self._match(np.flatnonzero(~is_vehicle), found, step)
        for i in sorted(free, key=lambda i: -found.scores[i]):
            others = [track.box for track in self.tracks if track.time == time]
            box = found.boxes[i]
            if not others or share_inside(box[None], np.array(others)).max() <= self.MAX_INSIDE:
                self.count += 1
                self.tracks.append(Track(self.count, box, time))
                self._see(self.tracks[-1], found, i, step)
        short, patience = self.settings.confirm_seconds / 1.5, self.settings.patience_seconds
        self.tracks = [track for track in self.tracks if time - track.time <= ROUNDING + (
            patience if self._counts(track) else min(short, patience))]
        return [track for track in self.tracks if track.time == time and self._counts(track)]

    def _counts(self, track: Track) -> bool:
        return track.seen_seconds >= self.settings.confirm_seconds - ROUNDING

    def _match(self, indices: np.ndarray, found: Detections, step: float) -> list[int]:
        """Give each track not yet seen its best of some detections; return what is left over."""
        tracks = [track for track in self.tracks if track.time < self.time]
        if not tracks or not len(indices):
            return list(indices)
        overlaps = box_iou(np.array([track.box for track in tracks]), found.boxes[indices])
        taken = set()
        for row, column in zip(*linear_sum_assignment(-overlaps), strict=True):
            if overlaps[row, column] >= self.settings.min_overlap:
                self._see(tracks[row], found, indices[column], step)
                taken.add(indices[column])
        return [i for i in indices if i not in taken]

    def _see(self, track: Track, found: Detections, i: int, step: float) -> None:
        """Move a track to the detection `i`; `step` is the time since the frame before."""
        box, label = found.boxes[i], found.labels[i]
        if track.hits:
            if box_iou(track.box[None], box[None])[0, 0] < 0.55:
                track.way.clear()  # a jump, perhaps to the next vehicle, is no movement
            # at first the mean of all speeds, then one over a short time; the box stays as measured
            gain = max(1 - math.exp(-step / SPEED_SECONDS), 1 / (track.hits + 1))
            elapsed = max(self.time - track.time, ROUNDING)
            track.velocity = track.velocity + gain * (box - track.box) / elapsed
        track.box, track.time = box, self.time
        track.hits += 1
        if label in self.classes:
            track.votes[label] += float(found.scores[i])
            # a single frame never suffices, however long it is shown
            track.seen_seconds += min(step, self.settings.confirm_seconds / 2)
        track.way.append((self.time, *track.foot))
        while self.time - track.way[0][0] > self.settings.direction_seconds + ROUNDING:
            track.way.popleft()
