"""Draw and tabulate what fine-tuned networks cost and reach, from their run folders alone.

A setting is all parameters of a run but the seed.
"""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from PIL import Image

from helpers.data.images import decode
from helpers.evaluate.figures import COLORS, GRAY, dress
from helpers.runs.config import NO_EFFECT
from helpers.runs.folder import Run
from helpers.runs.search import json_of, shorten, varied
from helpers.runs.text import for_figure, markdown_table

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


def table(groups: dict[str, list[Run]]) -> str:
    """Tabulate named groups of finished runs as Markdown, by validation accuracy, best first.

    Accuracies are means with their standard deviation over the runs; how many images are right is
    said of each run.
    """
    measured = {name: [run.metrics["val"] for run in group] for name, group in groups.items()}
    means = {name: np.mean([one["accuracy"] for one in found]) for name, found in measured.items()}
    rows = []
    for name in sorted(groups, key=means.get, reverse=True):
        accuracies = [one["accuracy"] for one in measured[name]]
        spread = f" ± {np.std(accuracies, ddof=1):.1%}" if len(accuracies) > 1 else ""
        right = ", ".join(f"{one['accuracy'] * one['images']:.0f}" for one in measured[name])
        seconds = np.mean([run.metrics["train_seconds"] for run in groups[name]])
        rows.append((name, f"{means[name]:.1%}{spread}",
                     f"{right} of {measured[name][0]['images']}", f"{seconds:.1f}"))  # fmt: skip
    header = ("way", "validation accuracy", "right, by run", "seconds a run")
    return markdown_table(header, rows)


def settings(runs: list[Run], split: str = "val") -> dict[str, list[Run]]:
    """Group finished runs that were measured on a split by their setting, cheapest first.

    Runs of a setting are equal in all but the seed. Settings of one network with the same parts
    trained are told apart by what else differs; where that reads the same, or only their size
    differs, as after a change of the code, by a run's name and their number of parameters.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        if split in run.metrics:
            same = json_of(run.config.model_dump(exclude=NO_EFFECT | {"seed"}))
            size = (run.metrics["trainable"], run.metrics["params"])
            groups.setdefault((setting_of(run), *size, same), []).append(run)
    ordered = sorted(groups.items(), key=lambda item: item[0][1])
    alike: dict[str, list[Run]] = {}
    for (name, *_), group in ordered:
        alike.setdefault(name, []).append(group[0])
    named: dict[str, list[Run]] = {}
    for (name, trained, params, _), group in ordered:
        name = ", ".join([name, *_differing(group[0], alike[name])])
        if name in named:
            name += f" ({group[0].name}: {trained:,} of {params:,})"
        named[name] = group
    return named


def _differing(run: Run, others: list[Run]) -> list[str]:
    """Name what tells a run from others like it; by its own name where that is too much."""
    found = [name for name in varied(others) if name != "seed"]
    if len(found) > 4:
        return [run.name]
    return [f"{name.replace('_', ' ')} {shorten(getattr(run.config, name))}" for name in found]


def tradeoff_table(runs: list[Run], split: str = "val") -> list[dict]:
    """Return a row a setting: costs and accuracy (0 to 1) as means over its runs, and `best`.

    `best` lists the costs by which the setting is on the Pareto front: nothing else is as accurate
    for less.
    """
    rows = []
    for name, group in settings(runs, split).items():
        values = _accuracies(group, split)
        rows.append({
            "setting": name,
            "runs": len(group),
            **{cost: float(np.mean([run.metrics[cost] for run in group])) for cost in COSTS},
            "accuracy": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(group) > 1 else None,
        })  # fmt: skip
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
        last = points[front[-1]] if front else None
        if last is None or points[index][1] > last[1] or points[index] == last:
            front.append(index)
    return front


def draw_tradeoff(runs: list[Run], split: str = "val") -> Figure:
    """Draw a split's accuracy against each cost: a dot a run, the Pareto front of the means."""
    groups, rows = settings(runs, split), tradeoff_table(runs, split)
    figure = Figure(figsize=(11, 4.4 + 0.2 * ((len(rows) + 1) // 2)), layout="constrained")
    for axes, (cost, title) in zip(figure.subplots(1, 3, sharey=True), COSTS.items(), strict=True):
        front = [row for row in rows if cost in row["best"]]
        front.sort(key=lambda row: row[cost])
        axes.step([row[cost] for row in front], [row["accuracy"] for row in front], where="post",
                  color=GRAY, lw=1.2, ls="--", zorder=1)  # fmt: skip
        for number, (name, group) in enumerate(groups.items()):
            color = COLORS[number % len(COLORS)]
            costs = [run.metrics[cost] for run in group]
            values = _accuracies(group, split)
            axes.scatter(costs, values, s=26, color=color, alpha=0.55, lw=0)
            axes.scatter(np.mean(costs), np.mean(values), s=90, color=color,
                         ec="white", lw=1.2, zorder=3, label=for_figure(name, 90))  # fmt: skip
        _dress_costs(axes, title)
    figure.axes[0].set_ylabel({"val": "validation accuracy", "test": "test accuracy"}[split])
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Large dots: means. Dashed: nothing else is as accurate for less.", fontsize=10,
                    x=0.01, ha="left", color=GRAY)  # fmt: skip
    return figure


def _dress_costs(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 20 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_xlabel(title)
    dress(axes)


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
        axes.set_xlabel(f"{size} × {size}: {title}", fontsize=8)
    height, width = size, round(size * ratio)
    rows, columns = height // stride, width // stride
    wide.imshow(Image.fromarray(image).resize((width, height)))
    for row in range(rows):
        for column in range(columns):
            corner = (column * stride - 0.5, row * stride - 0.5)
            wide.add_patch(Rectangle(corner, stride, stride, fill=False, ec="white", lw=1))
    wide.set_title("fully convolutional", weight="bold")
    wide.set_xlabel(f"{height} × {width}: the mean of {rows} × {columns} places", fontsize=8)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cccccc")
    return figure


def _accuracies(runs: list[Run], split: str) -> list[float]:
    return [run.metrics[split]["accuracy"] for run in runs]
