"""Which rule of the road is broken: zones and lanes, and the judge who applies them.

Rules are polygons in fractions of the frame, read from a small YAML file. A vehicle stands where
the bottom centre of its box is.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from matplotlib.path import Path as Polygon
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from helpers.detect.tracking import (
    DEFAULT,
    MIN_SECONDS,
    ROUNDING,
    Settings,
    Track,
    Tracker,
    share_inside,
)
from helpers.runs.config import did_you_mean

FORBIDDEN, WRONG_DIRECTION = "forbidden zone", "wrong direction"
Point = tuple[float, float]


class Area(BaseModel):
    """A named polygon of at least three (x, y) in fractions of the frame, y downwards."""

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
    """A road and the classes that must not be on it."""

    forbidden: list[str] = []


class Lane(Area):
    """A lane and its allowed directions, each an arrow from one point to another."""

    directions: list[tuple[Point, Point]] = Field(min_length=1)

    @field_validator("directions")
    @classmethod
    def _have_length(cls, arrows: list[tuple[Point, Point]]) -> list[tuple[Point, Point]]:
        if any(start == end for start, end in arrows):
            raise ValueError("an arrow starts where it ends; give two different points")
        return arrows


class Rules(BaseModel):
    """The zones and lanes of one camera."""

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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
            hint = did_you_mean(name, names) or f"; it knows {', '.join(names)}"
            raise ValueError(f"{place}: the detector knows no class {name!r}{hint}")


@dataclass
class Event:
    """A vehicle broke a rule: when (seconds), which, how, where, and its box in pixels."""

    frame: int
    time: float
    track: int
    label: str
    event: str
    zone: str
    box: np.ndarray


class Judge:
    """Apply rules to vehicles and report each breach once for each vehicle.

    A breach counts when it was seen for `settings.breach_seconds` in successive detections of the
    vehicle. A vehicle drives against its lane when it moved more than `min_move` of its size, more
    than 120 degrees away from every arrow of the lane.
    """

    def __init__(self, rules: Rules, width: int, height: int, settings: Settings = DEFAULT):
        self.settings, self.time = settings, None
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
        """Return the events of one frame; `tracks` are the vehicles seen in it."""
        step = 0.0 if self.time is None else time - self.time
        self.time = time
        return [Event(frame, time, track.number, track.label, *rule, track.box.copy())
                for track, rule, is_broken in self._look(tracks)
                if self._counts(track, rule, is_broken, step, tracks)]

    def _look(self, tracks: list[Track]) -> Iterator[tuple[Track, tuple[str, str], bool]]:
        """Yield each vehicle and rule (kind, zone or lane), and whether it is broken now."""
        feet = np.array([track.foot for track in tracks]).reshape(-1, 2).clip(0, self.size - 1)
        for name, polygon, forbidden in self.zones:
            for track, inside in zip(tracks, polygon.contains_points(feet), strict=True):
                if inside:
                    track.zones.add(name)
                yield track, (FORBIDDEN, name), inside and track.label in forbidden
        for name, polygon, arrows in self.lanes:
            for track, inside in zip(tracks, polygon.contains_points(feet), strict=True):
                yield track, (WRONG_DIRECTION, name), inside and self._is_against(track, arrows)

    def _counts(self, track: Track, rule: tuple[str, str], is_broken: bool, step: float,
                tracks: list[Track]) -> bool:
        """Note whether a vehicle breaks a rule now; say whether that is to be reported."""
        limit = self.settings.breach_seconds
        if not is_broken:
            track.broken.pop(rule, None)
            return False
        track.broken[rule] = track.broken.get(rule, 0.0) + min(step, limit / 2)
        if track.broken[rule] < limit - ROUNDING or rule in track.reported:
            return False
        if any(rule in other.broken and _is_part(track.box, other.box) for other in tracks):
            return False  # a cab or a trailer seen as a vehicle of its own: the whole is reported
        track.reported.add(rule)
        return True

    def _is_against(self, track: Track, arrows: np.ndarray) -> bool:
        move, seconds = track.direction()
        distance = np.linalg.norm(move)
        size = np.sqrt((track.box[2:] - track.box[:2]).prod())
        return (seconds >= MIN_SECONDS - ROUNDING and distance > self.settings.min_move * size
                and bool((arrows @ move < -0.5 * distance).all()))


def _is_part(box: np.ndarray, other: np.ndarray) -> bool:
    """Say whether most of a box lies in another, larger one."""
    area, larger = ((b[2:] - b[:2]).prod() for b in (box, other))
    return larger > area and share_inside(box[None], other[None])[0, 0] > Tracker.MAX_INSIDE
