"""Draw a sweep from its run folders: accuracy by time, parallel coordinates, importance.

Each function takes runs and returns a matplotlib `Figure`; it shows and writes nothing.
"""

from datetime import datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.evaluate.figures import GRAY, GREEN, ORANGE, RED, TEAL, dress
from helpers.runs.folder import Run
from helpers.runs.search import shorten, varied
from helpers.runs.text import for_figure
from helpers.sweep.findings import Comparison, importance, value_of

GRAY_TO_ORANGE = LinearSegmentedColormap.from_list("worst to best", ["#d5d9dc", TEAL, ORANGE])


def by_time(runs: list[Run], metric: str = "val_accuracy") -> Figure:
    """Draw each run's best value against the time when it began, and the best so far.

    Open circles are runs that the sweep ended early.
    """
    minutes, values = _began(runs), np.array([value_of(run, metric) for run in runs])
    early = np.array(["stopped_at" in run.status for run in runs])
    order = np.argsort(minutes, kind="stable")
    best = np.maximum if metric.endswith("accuracy") else np.minimum
    running = best.accumulate(values[order])
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.step(minutes[order], running, where="post", color=ORANGE, lw=2, label="best so far")
    axes.scatter(minutes[~early], values[~early], color=TEAL, s=34, zorder=3, label="to the end")
    if early.any():
        axes.scatter(minutes[early], values[early], s=34, zorder=3, facecolor="white",
                     edgecolor=TEAL, label="ended early")  # fmt: skip
    axes.set_xlabel("minutes since the first run began")
    _label_metric(axes, metric)
    dress(axes)
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    return figure


def against_random(values: list[float], random: np.ndarray) -> Figure:
    """Draw a search's best so far (larger is better) beside that of random choices (draws, n).

    The band holds the middle 90 % of the draws.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    numbers = np.arange(1, len(values) + 1)
    low, high = np.quantile(random, (0.05, 0.95), axis=0)
    axes.fill_between(numbers, low, high, color="#e4e7e8", label="random choice, 90 % of cases")
    axes.plot(numbers, random.mean(0), color=GRAY, lw=1.5, label="random choice, mean")
    axes.plot(numbers, np.maximum.accumulate(values), color=ORANGE, lw=2, label="the search")
    axes.plot(numbers, values, "o", color=TEAL, ms=5, label="its runs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="runs", ylabel="best so far")
    dress(axes, grid=None)
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0,
                fontsize=9)  # fmt: skip
    return figure


def interaction(runs: list[Run], first: str, second: str, metric: str = "val_accuracy") -> Figure:
    """Draw what one parameter does at each value of another: dots are runs, lines their means.

    Lines that are not parallel are an interaction.
    """
    values = varied(runs)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    others = values[second]
    for number, (other, color) in enumerate(zip(others, (TEAL, ORANGE, GREEN, RED), strict=False)):
        chosen = [run for run in runs if getattr(run.config, second) == other]
        groups = [
            [value_of(run, metric) for run in chosen if getattr(run.config, first) == value]
            for value in values[first]
        ]
        for place, group in enumerate(groups):
            x = np.full(len(group), place + 0.04 * (number - (len(others) - 1) / 2))
            axes.plot(x, group, "o", color=color, ms=5, alpha=0.5, mew=0)
        means = [np.mean(group) if group else np.nan for group in groups]
        axes.plot(range(len(means)), means, "o-", color=color, lw=2, ms=8, mec="white",
                  label=f"{_readable(second)} {shorten(other)}")  # fmt: skip
    axes.set_xticks(range(len(values[first])), [shorten(value) for value in values[first]])
    axes.set(xlabel=_readable(first), xlim=(-0.4, len(values[first]) - 0.6))
    _label_metric(axes, metric)
    dress(axes, grid=None)
    axes.legend(frameon=False)
    return figure


def parallel_coordinates(runs: list[Run], metric: str = "val_accuracy") -> Figure:
    """Draw each run as a line through its parameters to its metric, coloured by the metric."""
    parameters = varied(runs)
    values = np.array([value_of(run, metric) for run in runs])
    norm = Normalize(values.min(), max(values.max(), values.min() + 1e-9))
    better = 1 if metric.endswith("accuracy") else -1
    places = np.empty((len(runs), len(parameters) + 1))
    figure = Figure(figsize=(max(6, 1.35 * (len(parameters) + 1)), 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    for column, (name, found) in enumerate(parameters.items()):
        place_of, ticks = _axis(found)
        places[:, column] = [place_of(getattr(run.config, name)) for run in runs]
        _draw_axis(axes, column, name, ticks)
    places[:, -1] = (values - norm.vmin) / (norm.vmax - norm.vmin)
    points = metric.endswith("accuracy")
    ticks = [
        (share, f"{v:.0%}" if points else f"{v:.3g}")
        for share, v in zip((0, 0.5, 1), np.linspace(norm.vmin, norm.vmax, 3), strict=True)
    ]
    _draw_axis(axes, len(parameters), metric, ticks)
    for column in range(len(parameters)):
        _fan_out(places[:, column], values)
    for row in np.argsort(better * values, kind="stable"):  # the best on top
        share = places[row, -1] if better == 1 else 1 - places[row, -1]
        color = GRAY_TO_ORANGE(share)
        axes.add_patch(PathPatch(_curve(places[row]), facecolor="none", edgecolor=color, lw=1.8))
    axes.set(xlim=(-0.45, len(parameters) + 0.5), ylim=(-0.24, 1.1))
    return figure


def importance_table(runs: list[Run], metric: str = "val_accuracy", most: int = 14) -> Figure:
    """Draw importance and signed correlation of the parameters with the metric as two bars each."""
    rows = importance(runs, metric)[:most]
    figure = Figure(figsize=(8, 0.8 + 0.3 * max(1, len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        left.barh(place, row["importance"], color=TEAL, height=0.62)
        left.text(row["importance"], place, f" {row['importance']:.2f}", va="center", fontsize=8.5,
                  color=GRAY)  # fmt: skip
        correlation = row["correlation"]
        right.barh(place, correlation, color=GREEN if correlation > 0 else RED, height=0.62)
        right.text(correlation, place, f" {correlation:+.2f} ", va="center", fontsize=8.5,
                   color=GRAY, ha="left" if correlation > 0 else "right")  # fmt: skip
    left.set_yticks(range(len(rows)), [_readable(row["name"]) for row in rows], fontsize=9)
    left.set(ylim=(len(rows) - 0.4, -0.6), xticks=[])
    left.set_title("importance", loc="left", fontsize=10)
    left.margins(x=0.15)
    right.set(xlim=(-1.3, 1.3), xticks=[])
    right.axvline(0, color=GRAY, lw=0.8)
    right.set_title(f"correlation with {_readable(metric)}", loc="left", fontsize=10)
    for axes in (left, right):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure


def comparison_table(comparisons: list[Comparison]) -> Figure:
    """Draw one-factor comparisons: means with their intervals, gray where there is no evidence."""
    shown = [c for c in comparisons if c.pairs > 1]
    figure = Figure(figsize=(8, 0.8 + 0.32 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    for place, found in enumerate(shown):
        scale = 100 if found.metric.endswith("accuracy") else 1
        color = TEAL if found.is_evidence else "#b5b5b5"
        axes.plot([scale * found.low, scale * found.high], [place, place], color=color, lw=3)
        axes.plot(scale * found.mean, place, "o", color=color, ms=8, mec="white")
    axes.axvline(0, color=GRAY, lw=0.8)
    names = [for_figure(str(found).split(":")[0]) + f" ({found.pairs})" for found in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    unit = " in points" if shown and shown[0].metric.endswith("accuracy") else ""
    axes.set_xlabel(f"difference{unit}, all else equal, with 95 % interval (pairs)")
    dress(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _label_metric(axes: Axes, metric: str) -> None:
    axes.set_ylabel(_readable(metric))
    if metric.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _began(runs: list[Run]) -> np.ndarray:
    """Return the minutes from the first run's beginning to each run's.

    A folder says when its run ended and how long it trained; files' dates get lost in copies.
    """
    ends = [datetime.fromisoformat(run.status["time"]).timestamp() for run in runs]
    began = np.array(ends) - [run.metrics["train_seconds"] for run in runs]
    return (began - began.min()) / 60


def _axis(values: list):
    """Return where a value is on an axis from 0 to 1, and the axis' ticks: (place, text)."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = values[0], values[-1]
        scale = np.log if low > 0 and high / low > 20 else float

        def place_of(value):
            return (scale(value) - scale(low)) / (scale(high) - scale(low))

        shown = values if len(values) <= 6 else [low, high]
    else:

        def place_of(value):
            return values.index(value) / (len(values) - 1)

        shown = values
    return place_of, [(place_of(value), for_figure(shorten(value), 30)) for value in shown]


def _draw_axis(axes: Axes, column: int, name: str, ticks: list[tuple[float, str]]) -> None:
    axes.plot([column, column], [0, 1], color="#333333", lw=1)
    axes.text(column, -0.12, _readable(name).replace(" ", "\n", 1), ha="center", va="top",
              fontsize=9, weight="bold")  # fmt: skip
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    for place, text in ticks:
        if place in (0, 1):  # beyond the lines
            axes.text(column, place + 0.035 * (2 * place - 1), text, fontsize=8, color="#333",
                      ha="center", va="bottom" if place else "top")  # fmt: skip
        else:
            axes.text(column + 0.05, place, text, fontsize=8, va="center", color="#333", zorder=4,
                      bbox=box)  # fmt: skip


def _fan_out(places: np.ndarray, values: np.ndarray) -> None:
    """Spread lines that meet at a place, in the order of their values, so that none covers another.

    They take less than a third of the way to the next place.
    """
    known = np.unique(places.round(6))
    width = min(0.2, 0.3 * np.diff(known).min()) if len(known) > 1 else 0.2
    for place in known:
        here = np.flatnonzero(np.isclose(places, place, atol=1e-6))
        order = here[np.argsort(values[here], kind="stable")]
        places[order] += np.linspace(-width / 2, width / 2, len(here)) if len(here) > 1 else 0
    if np.ptp(places) > 1:  # back onto the axis
        places -= places.min()
        places /= places.max()


def _curve(heights: np.ndarray) -> Path:
    """Return a smooth line through points at 0, 1, 2 ..., horizontal at each."""
    points, codes = [(0, heights[0])], [Path.MOVETO]
    for column in range(1, len(heights)):
        before, after = heights[column - 1], heights[column]
        points += [(column - 0.5, before), (column - 0.5, after), (column, after)]
        codes += [Path.CURVE4] * 3
    return Path(points, codes)


def _readable(name: str) -> str:
    return for_figure(name.replace("val_", "validation ").replace("_", " "))
