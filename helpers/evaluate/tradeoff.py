"""Draw and tabulate what fine-tuned networks cost and reach, from their run folders alone.

A setting is a network, its weights and what of it is frozen; its runs differ in the seed.
"""

import io
from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from PIL import Image

from helpers.data.images import decode
from helpers.evaluate.figures import GRAY, GREEN, ORANGE, RED, TEAL
from helpers.runs import Run
from helpers.text import for_figure

COLORS = (ORANGE, TEAL, GREEN, RED, "#6b5bab", "#b0913a", "#3d6fb4", "#5f6b70")
COSTS = {
    "trainable": "trainable parameters",
    "params": "all parameters",
    "train_seconds": "seconds of training",
}


def setting_of(run: Run) -> str:
    """Name a run's network and what of it was trained."""
    config = run.config
    strategies = [stage.freeze or config.freeze for stage in config.stages] or [config.freeze]
    how = ", then ".join(
        "everything trained" if freeze == "nothing" else f"{freeze} frozen"
        for freeze in dict.fromkeys(strategies)
    ).replace("_", " ")
    if config.weights == "none":
        how = "from scratch" if set(strategies) == {"nothing"} else f"random weights, {how}"
    return f"{config.model}, {how}"


def settings(runs: list[Run]) -> dict[str, list[Run]]:
    """Group finished runs that have validation figures by their setting, cheapest first.

    Networks of one name that differ in size are told apart by their number of parameters.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        if "val" in run.metrics:
            key = (setting_of(run), run.metrics["trainable"], run.metrics["params"])
            groups.setdefault(key, []).append(run)
    names = Counter(name for name, _, _ in groups)
    return {
        name if names[name] == 1 else f"{name} ({trained:,} of {params:,})": group
        for (name, trained, params), group in sorted(groups.items(), key=lambda item: item[0][1])
    }


def tradeoff_table(runs: list[Run]) -> list[dict]:
    """Return a row a setting: costs and accuracy (0 to 1) as means over its runs, and `best`.

    `best` lists the costs by which the setting is on the Pareto front: nothing else is as accurate
    for less.
    """
    rows = [
        {
            "setting": name,
            "runs": len(group),
            **{cost: _mean(group, cost) for cost in COSTS},
            "accuracy": float(np.mean(_accuracies(group))),
            "std": float(np.std(_accuracies(group), ddof=1)) if len(group) > 1 else None,
        }
        for name, group in settings(runs).items()
    ]
    fronts = {cost: pareto([(row[cost], row["accuracy"]) for row in rows]) for cost in COSTS}
    return [
        row | {"best": [cost for cost, front in fronts.items() if number in front]}
        for number, row in enumerate(rows)
    ]


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Return which points (cost, value) no other one beats, cheapest first.

    A point is beaten by one that costs no more and is worth no less, and differs in either.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def draw_tradeoff(runs: list[Run]) -> Figure:
    """Draw validation accuracy against each cost: a dot a run, the Pareto front of the means."""
    groups, rows = settings(runs), tradeoff_table(runs)
    figure = Figure(figsize=(11, 4.4 + 0.2 * ((len(rows) + 1) // 2)), layout="constrained")
    for axes, (cost, title) in zip(figure.subplots(1, 3, sharey=True), COSTS.items(), strict=True):
        front = [row for row in rows if cost in row["best"]]
        front.sort(key=lambda row: row[cost])
        axes.step([row[cost] for row in front], [row["accuracy"] for row in front], where="post",
                  color=GRAY, lw=1.2, ls="--", zorder=1)  # fmt: skip
        for number, (name, group) in enumerate(groups.items()):
            color = COLORS[number % len(COLORS)]
            costs = [run.metrics[cost] for run in group]
            axes.scatter(costs, _accuracies(group), s=26, color=color, alpha=0.55, lw=0)
            axes.scatter(np.mean(costs), np.mean(_accuracies(group)), s=90, color=color,
                         ec="white", lw=1.2, zorder=3, label=for_figure(name, 90))  # fmt: skip
        _dress(axes, title)
    figure.axes[0].set_ylabel("validation accuracy")
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Large dots: means. Dashed: nothing else is as accurate for less.", fontsize=10,
                    x=0.01, ha="left", color=GRAY)  # fmt: skip
    return figure


def _dress(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 20 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_xlabel(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)


def _short(value: float, _=None) -> str:
    for size, unit in (1e9, "G"), (1e6, "M"), (1e3, "k"):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def draw_image_sizes(image: np.ndarray, size: int, stride: int) -> Figure:
    """Draw four ways to give an oblong image, uint8 (H, W, 3), to a network of `size` pixels.

    Squash, crop and pad make it square. The fully convolutional way takes it as it is: the last
    map has a place every `stride` pixels (drawn as a grid), and their average goes to the head.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    titles = {"squash": "all of it, out of shape", "crop": "in shape, the ends are lost",
              "pad": "all of it, in shape, smaller"}  # fmt: skip
    ratio = image.shape[1] / image.shape[0]
    *squares, wide = figure.subplots(1, 4, width_ratios=[1, 1, 1, ratio])
    for axes, (resize, title) in zip(squares, titles.items(), strict=True):
        axes.imshow(decode(file, size, resize))
        axes.set_title(resize, weight="bold")
        axes.set_xlabel(f"{size} × {size}: {title}", fontsize=9)
    height, width = size, round(size * ratio)
    rows, columns = height // stride, width // stride
    wide.imshow(Image.fromarray(image).resize((width, height)))
    for row in range(rows):
        for column in range(columns):
            corner = (column * stride - 0.5, row * stride - 0.5)
            wide.add_patch(Rectangle(corner, stride, stride, fill=False, ec="white", lw=1))
    wide.set_title("fully convolutional", weight="bold")
    wide.set_xlabel(f"{height} × {width}: the mean of {rows} × {columns} places", fontsize=9)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cccccc")
    return figure


def _accuracies(runs: list[Run]) -> list[float]:
    return [run.metrics["val"]["accuracy"] for run in runs]


def _mean(runs: list[Run], metric: str) -> float:
    return float(np.mean([run.metrics[metric] for run in runs]))
