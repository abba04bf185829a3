"""Watch a video: detect vehicles, follow them, apply the rules of the road.

`process` yields what happens frame by frame; `record` writes it down as it happens. Other readers
of the same stream need no more than a loop over `process`.
"""

import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.detect.detectors import Detector
from helpers.detect.figures import Annotator, draw_rules, draw_summary
from helpers.detect.rules import Event, Judge, Rules, check_classes
from helpers.detect.tracking import DEFAULT, Settings, Track, Tracker
from helpers.detect.video import Video, Writer
from helpers.runs.files import naming_the_disk
from helpers.runs.progress import tqdm

VEHICLES = ["bicycle", "car", "motorcycle", "motorbike", "bus", "truck"]  # COCO's, Darknet's names
EVENT_SECONDS = 2.0  # how long an event is written on the video
KEY_SECONDS = 0.4  # least time between two key frames
COLUMNS = ["frame", "time", "track", "label", "event", "zone", "x0", "y0", "x1", "y1"]
GRID = (48, 80)  # rows and columns of the heat map
PICTURE = {"dpi": 120, "pil_kwargs": {"compress_level": 1}}  # larger files, written much faster


@dataclass
class Moment:
    """One frame (H, W, 3) uint8 of a video, the vehicles seen in it and the rules just broken."""

    frame: int
    time: float  # seconds of the video
    image: np.ndarray
    tracks: list[Track]
    events: list[Event]


def process(video: Video, detector: Detector, rules: Rules, settings: Settings = DEFAULT,
            classes: list[str] | None = None, batch_size: int = 4) -> Iterator[Moment]:
    """Detect, follow and judge the vehicles of a video; yield each frame with what happens in it.

    `classes` are followed, by default vehicles, or all that a detector knows if it names none of
    them; `batch_size` frames are in memory at a time.

    Raises:
        ValueError: a class that the detector does not know.
    """
    if classes is None:
        classes = [name for name in VEHICLES if name in detector.names] or detector.names
    check_classes(classes, detector.names, "classes")
    for zone in rules.zones:
        check_classes(zone.forbidden, detector.names, f"zone {zone.name!r}")
    return _process(video, detector, rules, settings, classes, batch_size)


def _process(video: Video, detector: Detector, rules: Rules, settings: Settings,
             classes: list[str], batch_size: int) -> Iterator[Moment]:
    tracker = Tracker(classes, detector.score_threshold, settings)
    judge = Judge(rules, video.width, video.height, settings)
    frames = enumerate(video)
    with tqdm(total=round(video.duration * video.fps), unit="frame", disable=None) as bar:
        while batch := list(itertools.islice(frames, batch_size)):
            found = detector.predict(np.stack([image for _, (_, image) in batch]))
            for (number, (time, image)), detections in zip(batch, found, strict=True):
                tracks = tracker.update(detections, time)
                yield Moment(number, time, image, tracks, judge.update(tracks, number, time))
                bar.update()


class Film:
    """Write annotated frames and keep up to three of them."""

    def __init__(self, annotator: Annotator, writer: Writer):
        self.annotator, self.writer = annotator, writer
        self.recent: list[Event] = []
        self.keys: list[tuple[float, np.ndarray]] = []  # of events
        self.first = self.last = None

    def add(self, moment: Moment) -> None:
        """Draw what happens on one frame and write it."""
        self.recent = [event for event in [*self.recent, *moment.events]
                       if moment.time - event.time < EVENT_SECONDS]
        picture = self.annotator.draw(moment.image, moment.tracks, self.recent)
        self.writer.write(picture, moment.time)
        self.last = (moment.time, picture)
        self.first = self.first or self.last
        is_new = not self.keys or moment.time - self.keys[-1][0] >= KEY_SECONDS
        if moment.events and len(self.keys) < 3 and is_new:
            self.keys.append(self.last)

    def key_frames(self) -> list[tuple[float, np.ndarray]]:
        """Return times and pictures of up to three frames: events, else the film's ends."""
        keys = dict([*self.keys, self.last, self.first][:3])
        return sorted(keys.items(), key=lambda key: key[0])


def count_places(tracks: list[Track], classes: list[str], heat: np.ndarray,
                 size: tuple[int, int]) -> None:
    """Add the vehicles of some classes (none: of all) to a grid over a frame of (width, height).

    Those cut by the frame's lower edge stand outside of it.
    """
    for track in tracks:
        x, y = track.foot / size
        is_meant = not classes or track.label in classes
        if is_meant and 0 <= x < 1 and 0 <= y < .99:
            heat[int(y * GRID[0]), int(x * GRID[1])] += 1


@dataclass
class Summary:
    """What a video showed; times in seconds of the video, boxes in pixels."""

    first_frame: np.ndarray  # as in the video
    key_frames: list[tuple[float, np.ndarray]]  # up to three annotated frames and their times
    events: list[Event]
    vehicles: Counter  # class -> number of vehicles
    counts: dict[str, Counter]  # road -> class -> number of vehicles
    heat: np.ndarray  # a grid over the frame: how often a vehicle stood there
    frames: int
    duration: float
    warning: str  # what was wrong with the file, or empty


def record(moments: Iterable[Moment], video: Video, rules: Rules, folder: str | Path) -> Summary:
    """Write down what `process` yields and sum it up.

    Writes into `folder`: annotated.mp4, events.csv, rules.png and summary.png. The heat map shows
    the classes that some zone forbids, or all where none does. Raises CannotWrite where the disk
    is full or read-only.
    """
    folder = Path(folder)
    forbidden = sorted({name for zone in rules.zones for name in zone.forbidden})
    heat, size = np.zeros(GRID), (video.width, video.height)
    tracks: dict[int, Track] = {}
    events, first = [], None
    with naming_the_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (Writer(folder / "annotated.mp4", *size, video.fps) as writer,
              (folder / "events.csv").open("w", 1, "utf-8", newline="") as file):
            film, table = Film(Annotator(rules, *size), writer), csv.writer(file)
            table.writerow(COLUMNS)
            for moment in moments:
                if first is None:
                    first = moment.image
                    draw_rules(first, rules).savefig(folder / "rules.png", **PICTURE)
                film.add(moment)
                count_places(moment.tracks, forbidden, heat, size)
                for event in moment.events:  # in the file at once: it is buffered line by line
                    table.writerow([event.frame, f"{event.time:.3f}", event.track, event.label,
                                    event.event, event.zone, *event.box.round(1).tolist()])
                events += moment.events
                tracks |= {track.number: track for track in moment.tracks}
        counts = {zone.name: Counter(t.label for t in tracks.values() if zone.name in t.zones)
                  for zone in rules.zones}
        figure = draw_summary(first, events, counts, heat, forbidden, moment.time)
        figure.savefig(folder / "summary.png", **PICTURE)
    return Summary(first, film.key_frames(), events, Counter(t.label for t in tracks.values()),
                   counts, heat, moment.frame + 1, moment.time, video.warning)
