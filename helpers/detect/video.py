"""Read any video frame by frame, draw what was found on its frames, write an mp4 for browsers."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import matplotlib.patheffects as effects
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from helpers.detect.tracking import Event, Rules, Track
from helpers.text import for_figure

RED, WHITE, DARK = (255, 59, 48), (255, 255, 255), (22, 26, 32)
COLOURS = {"car": (96, 205, 255), "bus": (255, 205, 64), "truck": (214, 150, 255)}
OTHER = (150, 230, 150)  # the colour of every other class


class Video:
    """Read a video as (seconds, image (H, W, 3) uint8) pairs, one frame in memory at a time.

    After the reading, `warning` says in one sentence what was wrong with the file, or is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video, has no picture stream, or not one frame of it can be decoded.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.warning = ""
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no video file {path}.")
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ValueError(f"{self.path.name} has no picture stream; give a video.")
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or stream.guessed_rate or 25)
                length = stream.duration and float(stream.duration * stream.time_base)
                if container.format.name == "avi":  # a cut file's header still counts all frames
                    length = stream.frames / self.fps
                self.duration = length or (container.duration or 0) / 1e6  # seconds, 0: unknown
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path.name} is no video that can be read "
                             f"({error.strerror}); give an mp4, avi, webm or mov file.") from None
        _, first = next(iter(self), (0, None))
        if first is None:
            raise ValueError(f"{self.path.name} holds no frame that can be decoded.")
        self.height, self.width = first.shape[:2]
        self.warning = ""

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        start, size, time, count, bad = None, {}, 0.0, 0, 0
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while True:
                try:
                    if (packet := next(packets, None)) is None:
                        break
                    frames = packet.decode()
                except av.error.EOFError:
                    break
                except av.error.FFmpegError:
                    bad += 1
                    if bad > 1000:
                        break
                    continue
                for frame in frames:
                    size = size or {"width": frame.width, "height": frame.height}
                    if start is None:
                        start = frame.time or 0.0
                    time = count / self.fps if frame.time is None else frame.time - start
                    count += 1
                    image = frame.to_ndarray(format="rgb24", **size)
                    yield time, np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
        seen = time + 1 / self.fps if count else 0.0
        if bad or seen < self.duration - max(.5, 2 / self.fps):
            self.warning = (f"{self.path.name} is damaged: {count} frames, {seen:.1f} s of "
                            f"{self.duration:.1f} s, could be read, and these were processed.")


class Writer:
    """Write frames and their times as H.264 in an mp4 that browsers play; use it with `with`."""

    def __init__(self, path: str | Path, width: int, height: int, fps: float):
        self.container = av.open(str(path), "w", options={"movflags": "+faststart"})
        self.stream = self.container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001),
            options={"crf": "22", "preset": "veryfast"})
        self.pad = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 wants even sides
        self.stream.width, self.stream.height = width + width % 2, height + height % 2
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, 90000)
        self.last = -1

    def write(self, image: np.ndarray, time: float) -> None:
        """Add an image (H, W, 3) uint8 shown from `time` (seconds) on."""
        frame = av.VideoFrame.from_ndarray(np.pad(image, self.pad, mode="edge"), format="rgb24")
        self.last = max(self.last + 1, round(time * 90000))
        frame.pts, frame.time_base = self.last, Fraction(1, 90000)
        self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()


class Annotator:
    """Draw tracks, events and the rules' outlines on frames of one size."""

    def __init__(self, rules: Rules, width: int, height: int):
        self.scale = max(1.0, min(width, height) / 400)
        self.font = ImageFont.load_default(size=round(11 * self.scale))
        self.large = ImageFont.load_default(size=round(14 * self.scale))
        size = np.array([width, height])
        self.outlines = [
            ([tuple(p) for p in np.array([*area.polygon, area.polygon[0]]) * size],
             (*(RED if getattr(area, "forbidden", None) else WHITE), 90))
            for area in (*rules.zones, *rules.lanes)]

    def draw(self, image: np.ndarray, tracks: list[Track], news: list[Event]) -> np.ndarray:
        """Return the image with a box for each track; offenders red, `news` in a banner."""
        picture = Image.fromarray(image)
        draw = ImageDraw.Draw(picture, "RGBA")
        thin, thick = round(1.4 * self.scale), round(3 * self.scale)
        for outline, colour in self.outlines:
            draw.line(outline, fill=colour, width=thin)
        for track in sorted(tracks, key=lambda track: bool(track.reported)):
            colour = COLOURS.get(track.label, OTHER)
            text = f"{track.label} {track.number}"
            if track.reported:
                colour, text = RED, f"{text} · {' · '.join(sorted(e for e, _ in track.reported))}"
            draw.line([tuple(p) for p in track.way], fill=(*colour, 150), width=thin)
            x0, y0, x1, y1 = track.box
            draw.rectangle([x0, y0, x1, y1], outline=colour,
                           width=thick if track.reported else thin)
            self._write(draw, x0, y0, text, self.font, colour,
                        WHITE if track.reported else DARK, image.shape[1])
        for row, event in enumerate(news[:-4:-1]):
            text = f"{event.time:.1f} s   {event.label} {event.track}: {event.event}, {event.zone}"
            self._write(draw, 6 * self.scale, image.shape[0] - (6 + 22 * row) * self.scale, text,
                        self.large, (*DARK, 215), WHITE, image.shape[1])
        return np.asarray(picture)

    def _write(self, draw: ImageDraw.ImageDraw, x: float, y: float, text: str,
               font: ImageFont.FreeTypeFont, back: tuple, colour: tuple, width: int) -> None:
        margin = round(2 * self.scale)
        tall, wide = font.size + 2 * margin, font.getlength(text) + 2 * margin
        x, y = max(0, min(x, width - wide)), max(0, y - tall)
        draw.rectangle([x, y, x + wide, y + tall], fill=back)
        draw.text((x + margin, y + margin), text, fill=colour, font=font, anchor="lt")


def draw_rules(frame: np.ndarray, rules: Rules) -> Figure:
    """Draw the zones and lanes over a frame, to check that they lie where they should."""
    height, width = frame.shape[:2]
    figure = Figure(figsize=(10, 10 * height / width), layout="constrained")
    axes = figure.subplots()
    axes.imshow(frame)
    axes.set_axis_off()
    outlined = [effects.withStroke(linewidth=3, foreground="black")]
    for zone in rules.zones:
        colour = "#ff3b30" if zone.forbidden else "#ffffff"
        points = np.array(zone.polygon) * (width, height)
        axes.fill(*points.T, facecolor=colour, alpha=.14)
        axes.fill(*points.T, fill=False, edgecolor=colour, linewidth=2.5)
        rule = f"\nno {', '.join(zone.forbidden)}" if zone.forbidden else ""
        axes.text(*points.mean(0), for_figure(zone.name) + rule, color=colour, ha="center",
                  va="center", weight="bold", path_effects=outlined)
    for lane in rules.lanes:
        points = np.array(lane.polygon) * (width, height)
        axes.fill(*points.T, fill=False, edgecolor="#34c759", linewidth=1.2, linestyle="--")
        for start, end in np.array(lane.directions) * (width, height):
            axes.annotate("", end, start, arrowprops={"color": "#34c759", "width": 2.5,
                                                      "headwidth": 12, "alpha": .9})
        axes.text(*end, for_figure(lane.name), color="#34c759", ha="center", path_effects=outlined)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def draw_summary(frame: np.ndarray, events: list[Event], counts: dict[str, Counter],
                 heat: np.ndarray, duration: float) -> Figure:
    """Draw when what happened, where trucks were, and how many vehicles used each road.

    Args:
        frame: the background of the heat map.
        events: what `Judge` reported.
        counts: road -> class -> number of vehicles.
        heat: a grid over the frame of how often a truck stood there.
        duration: length of the video in seconds.
    """
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.7), width_ratios=(1.6, 1))
    labels = sorted({label for roads in counts.values() for label in roads}
                    | {event.label for event in events})
    colours = {label: np.array(COLOURS.get(label, OTHER)) / 255 for label in labels}

    axes = figure.add_subplot(grid[0, :])
    rows = sorted({(event.zone, event.event) for event in events}, reverse=True)
    for i, event in enumerate(events):
        row = rows.index((event.zone, event.event))
        axes.scatter(event.time, row, s=110, color=colours[event.label], edgecolor="black",
                     zorder=3)
        axes.annotate(f"{event.label} {event.track}", (event.time, row),
                      (0, (9, -17, 20, -28)[i % 4]), textcoords="offset points", ha="center",
                      fontsize=9)
    axes.set(title=f"{len(events)} events", xlabel="time in seconds", xlim=(0, max(duration, 1e-3)),
             ylim=(-.6, max(len(rows), 1) - .4), yticks=range(len(rows)))
    axes.set_yticklabels([f"{for_figure(zone)}\n{event}" for zone, event in rows])
    axes.grid(axis="x", alpha=.3)

    axes = figure.add_subplot(grid[1, 0])
    height, width = frame.shape[:2]
    axes.imshow(frame.mean(2), cmap="gray", vmin=-60, vmax=320)
    warm = gaussian_filter(heat, 1.2)
    warm = warm / max(warm.max(), 1e-9)
    axes.imshow(warm, cmap="inferno", alpha=.85 * warm ** .5, extent=(0, width, height, 0),
                interpolation="bilinear")
    axes.set_title("Where trucks were")
    axes.set_axis_off()

    axes = figure.add_subplot(grid[1, 1])
    roads = [for_figure(road) for road in counts]
    base = np.zeros(len(roads))
    for label in labels:
        values = np.array([count[label] for count in counts.values()])
        bars = axes.bar(roads, values, bottom=base, label=label, color=colours[label],
                        edgecolor="black", linewidth=.6)
        axes.bar_label(bars, [str(v) if v else "" for v in values], label_type="center")
        base = base + values
    axes.set(title="Vehicles on each road", ylim=(0, max(base.max(initial=0) * 1.15, 1)))
    axes.yaxis.get_major_locator().set_params(integer=True)
    if labels:
        axes.legend(loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
