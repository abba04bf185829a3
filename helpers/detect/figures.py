"""What was found, drawn on the frames of a video and as figures."""

import textwrap
from collections import Counter

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path as Polygon
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from helpers.detect.rules import Event, Rules
from helpers.detect.tracking import Track
from helpers.evaluate.figures import dress
from helpers.runs.text import for_figure

RED, WHITE, DARK = (255, 59, 48), (255, 255, 255), (22, 26, 32)
COLOURS = {"car": (96, 205, 255), "bus": (255, 205, 64), "truck": (214, 150, 255)}
OTHER = (150, 230, 150)  # the colour of every other class


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
            draw.line([(x, y) for _, x, y in track.way], fill=(*colour, 150), width=thin)
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
    figure = Figure(figsize=(10, 10 * height / width))
    FigureCanvasAgg(figure)  # measures the names, so that none covers another
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(frame, aspect="auto")
    axes.set_axis_off()
    names = []
    for zone in rules.zones:
        color = "#ff3b30" if zone.forbidden else "#ffffff"
        points = np.array(zone.polygon) * (width, height)
        axes.fill(*points.T, facecolor=color, alpha=.14)
        axes.fill(*points.T, fill=False, edgecolor=color, linewidth=2.5)
        rule = f"\nno {for_figure(', '.join(zone.forbidden))}" if zone.forbidden else ""
        names.append((for_figure(zone.name) + rule, color, _inside(points)))
    for lane in rules.lanes:
        points = np.array(lane.polygon) * (width, height)
        axes.fill(*points.T, fill=False, edgecolor="#34c759", linewidth=1.2, linestyle="--")
        ends = np.array(lane.directions) * (width, height)
        for start, end in ends:
            axes.annotate("", end, start, arrowprops={"color": "#34c759", "width": 2.5,
                                                      "headwidth": 12, "alpha": .9})
        start, end = ends[0]
        shares = np.array([1.12, -.12, .5, .3, .7])[:, None]
        places = [*(start + shares * (end - start)), *_inside(points)]
        names.append((for_figure(lane.name), "#34c759", places))
    axes.set(xlim=(0, width), ylim=(height, 0))
    taken: list[Bbox] = []
    for name, color, places in names:
        taken.append(_write_free(axes, name, color, places, taken))
    return figure


def _inside(points: np.ndarray) -> list[np.ndarray]:
    """Return points in a polygon (N, 2), the middle first, to write a name at."""
    middle, low, high = points.mean(0), points.min(0), points.max(0)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 12).T), -1).reshape(-1, 2)
    inside = grid[Polygon(points).contains_points(grid)]
    return [middle, *inside[np.linalg.norm(inside - middle, axis=1).argsort()]]


def _write_free(axes: Axes, name: str, color: str, places: list[np.ndarray], taken: list[Bbox]
                ) -> Bbox:
    """Write a name at the first place where it lies in the frame and covers no other name."""
    text = axes.text(0, 0, name, color=color, ha="center", va="center", weight="bold",
                     path_effects=[effects.withStroke(linewidth=3, foreground="black")])
    covered = []
    for place in places:
        text.set_position(place)
        box = text.get_window_extent()
        outside = box.width * box.height - _area(Bbox.intersection(box, axes.bbox))
        covered.append(outside + sum(_area(Bbox.intersection(box, other)) for other in taken))
        if covered[-1] == 0:
            break
    text.set_position(places[int(np.argmin(covered))])
    return text.get_window_extent()


def _area(box: Bbox | None) -> float:
    return box.width * box.height if box else 0.0


def draw_summary(frame: np.ndarray, events: list[Event], counts: dict[str, Counter],
                 heat: np.ndarray, heat_classes: list[str], duration: float) -> Figure:
    """Draw when what happened, where vehicles were, and how many used each road.

    Args:
        frame: the background of the heat map.
        events: what `Judge` reported.
        counts: road -> class -> number of vehicles.
        heat: a grid over the frame of how often a vehicle of `heat_classes` stood there.
        heat_classes: the classes, none for all.
        duration: length of the video in seconds.
    """
    labels = sorted({label for roads in counts.values() for label in roads}
                    | {event.label for event in events})
    colors = {label: np.array(COLOURS.get(label, OTHER)) / 255 for label in labels}
    rows = sorted({(event.zone, event.event) for event in events}, reverse=True)
    figure = Figure(figsize=(12, 6.2 + .55 * max(len(rows), 1)), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(.7 + .55 * len(rows), 4.5),
                               width_ratios=(1.6, 1))
    _draw_events(figure.add_subplot(grid[0, :]), events, rows, colors, duration)

    axes = figure.add_subplot(grid[1, 0])
    height, width = frame.shape[:2]
    axes.imshow(frame.mean(2), cmap="gray", vmin=-60, vmax=320)
    warm = gaussian_filter(heat, 1.2)
    warm = warm / max(warm.max(), 1e-9)
    axes.imshow(warm, cmap="inferno", alpha=.85 * warm ** .5, extent=(0, width, height, 0),
                interpolation="bilinear")
    who = " or ".join(heat_classes) or "vehicle"
    axes.set_title(f"where a {for_figure(who)} was", loc="left", weight="bold")
    axes.set_axis_off()

    axes = figure.add_subplot(grid[1, 1])
    roads = list(counts)
    base = np.zeros(len(roads))
    for label in labels:
        values = np.array([counts[road][label] for road in roads])
        bars = axes.bar(range(len(roads)), values, bottom=base, width=.6,
                        label=for_figure(label), color=colors[label], edgecolor="white")
        axes.bar_label(bars, [str(v) if v else "" for v in values], label_type="center")
        base = base + values
    axes.set_title("vehicles on each road", loc="left", weight="bold")
    axes.set(ylim=(0, max(base.max(initial=0) * 1.05, 1)), xlim=(-.6, max(len(roads), 1) - .4))
    axes.set_xticks(range(len(roads)), [textwrap.fill(for_figure(road), 14, break_long_words=False)
                                        for road in roads])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    dress(axes)
    if labels:  # beside the bars, where it covers none
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, reverse=True)
    return figure


def _draw_events(axes: Axes, events: list[Event], rows: list[tuple[str, str]],
                 colors: dict[str, np.ndarray], duration: float) -> None:
    """Draw a dot with the vehicle's number for each event, above the one it would cover."""
    last: dict[tuple, float] = {}  # row and level -> time of the last dot there
    tops = dict.fromkeys(rows, 0)
    for event in sorted(events, key=lambda event: event.time):
        row, level = (event.zone, event.event), 0
        while event.time - last.get((row, level), -np.inf) < duration / 38:  # about a dot's width
            level += 1
        last[row, level] = event.time
        tops[row] = max(tops[row], level)
        place = (event.time, rows.index(row) + .4 * level)
        axes.scatter(*place, s=260, color=colors[event.label], edgecolor="#555555", linewidth=.8,
                     zorder=3)
        axes.annotate(str(event.track), place, ha="center", va="center", fontsize=8, zorder=4)
    top = max([rows.index(row) + .4 * level for row, level in tops.items()], default=0)
    plural = "event" if len(events) == 1 else "events"
    axes.set_title(f"{len(events)} {plural}; a number is a vehicle's", loc="left", weight="bold")
    axes.set(xlabel="time in seconds", xlim=(0, max(duration, 1e-3)), ylim=(-.6, top + .6))
    axes.set_yticks(range(len(rows)), [f"{for_figure(zone)}\n{event}" for zone, event in rows])
    dress(axes, "x")
