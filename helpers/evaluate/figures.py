"""Draw what training and testing measured: curves, test grid, confusion matrix, extremes.

Each function takes data and returns a matplotlib `Figure`; it shows and writes nothing.
"""

from collections import Counter

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.data.augment import augment
from helpers.data.images import ImageSet
from helpers.evaluate.evaluation import Evaluation
from helpers.evaluate.intervals import wilson_interval
from helpers.runs.config import Config
from helpers.runs.folder import Run
from helpers.runs.text import for_figure

TEAL, ORANGE, GREEN, RED, GRAY = "#0f7b8a", "#d9772b", "#2c8a3d", "#c43a31", "#777777"
COLORS = (ORANGE, TEAL, GREEN, RED, "#6b5bab", "#b0913a", "#3d6fb4", "#5f6b70")
LINES = "-", "--", ":"
WHITE_TO_TEAL = LinearSegmentedColormap.from_list("white to teal", ["#ffffff", "#8cc4cb", TEAL])


def dress(axes: Axes, grid: str | None = "y") -> None:
    """Leave out the frame's upper and right side; draw a pale grid along an axis, behind all."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis=grid, color="#eeeeee")
        axes.set_axisbelow(True)


def curves(run: Run) -> Figure:
    """Draw loss and accuracy of training and validation, and the learning rate, by epoch.

    A dot marks the best epoch, a dashed line the seam of two stages, a dotted one what always
    naming the commonest class would reach. Training's figures are those of the network while it
    learns: augmented images, neurons switched off by dropout.
    """
    history = run.history
    epochs = [int(row["epoch"]) for row in history]
    best = run.metrics.get("best_epoch", epochs[-1])
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(5, 5, 3))
    for axes, field in (loss, "loss"), (accuracy, "accuracy"):
        for split, color in ("train", TEAL), ("val", ORANGE):
            values = [row.get(f"{split}_{field}") for row in history]
            if None in values:
                continue
            axes.plot(epochs, values, color=color, marker="o" if len(epochs) == 1 else None, lw=2)
            offset = 0 if field == "loss" else -1
            axes.annotate(
                {"train": "training", "val": "validation"}[split],
                (epochs[-1], values[-1]), (6, -3 + offset), textcoords="offset points",
                color=color, annotation_clip=False,
            )  # fmt: skip
            if split == "val":
                axes.plot(best, values[best - 1], "o", color=color, ms=8, mec="white", mew=1.5)
    rate.plot(epochs, [row["lr"] for row in history], "o" if len(epochs) == 1 else "-", color=GRAY)
    for axes, title in (loss, "loss"), (accuracy, "accuracy"), (rate, "learning rate"):
        for before, after in zip(history, history[1:], strict=False):
            if before.get("stage") != after.get("stage"):
                axes.axvline(after["epoch"] - 0.5, color=GRAY, lw=1, ls="--")
        _dress_curves(axes, title)
    truths = Counter(row["label"] for row in run.predictions if row["split"] == "val")
    if truths:
        chance = max(truths.values()) / truths.total()
        accuracy.axhline(chance, color=GRAY, lw=1, ls=":")
        accuracy.annotate("chance", (epochs[-1], chance), (0, 3), textcoords="offset points",
                          ha="right", color=GRAY, fontsize=8)  # fmt: skip
    _avoid_overlap(loss)
    _avoid_overlap(accuracy)
    return figure


def curves_of_several(groups: dict[str, list[Run]]) -> Figure:
    """Draw validation loss and accuracy by epoch of several settings, a colour each, a line a run.

    Runs without validation images are drawn by their training figures.
    """
    figure = Figure(figsize=(10, 3.9 + 0.2 * ((len(groups) + 1) // 2)), layout="constrained")
    shown = set()
    for axes, field in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for place, (name, runs) in enumerate(groups.items()):
            style = {"color": COLORS[place % len(COLORS)], "ls": LINES[place // len(COLORS) % 3]}
            for number, run in enumerate(runs):
                split = "val" if f"val_{field}" in run.history[0] else "train"
                shown.add("validation" if split == "val" else "training")
                values = [row[f"{split}_{field}"] for row in run.history]
                axes.plot(
                    [int(row["epoch"]) for row in run.history], values, lw=1.6, alpha=0.85, **style,
                    marker="o" if len(values) == 1 else None,
                    label=None if number else for_figure(name, 90),
                )  # fmt: skip
        _dress_curves(axes, f"{' or '.join(sorted(shown, reverse=True))} {field}")
        if field == "loss":  # one that diverges hides no other
            ends = [run.history[0]["train_loss"] for runs in groups.values() for run in runs]
            axes.set_ylim(0, min(1.05 * axes.get_ylim()[1], 2 * max(ends)))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _dress_curves(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", weight="bold")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    dress(axes)
    axes.set_ylim(bottom=0)
    if title.endswith("accuracy"):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _avoid_overlap(axes: Axes) -> None:
    """Move the two names at the right end of the curves apart where they would touch."""
    names = [text for text in axes.texts if text.get_text() != "chance"]
    if len(names) == 2:
        low, high = sorted(names, key=lambda text: text.xy[1])
        bottom, top = axes.get_ylim()
        gap = (high.xy[1] - low.xy[1]) / (top - bottom) * 200  # points between the ends
        if gap < 12:
            for text, sign in (low, -1), (high, 1):
                x, y = text.xyann
                text.xyann = (x, y + sign * (12 - gap) / 2)


def choose_stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` indices at random, as evenly over the classes as possible, in class order."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(labels))
    queues = {label: list(rng.permutation(np.flatnonzero(labels == label))) for label in classes}
    chosen: list[int] = []
    while len(chosen) < min(count, len(labels)):
        for label in classes:
            if queues[label] and len(chosen) < count:
                chosen.append(queues[label].pop())
    return np.array(sorted(chosen, key=lambda index: labels[index]))


def test_grid(
    images: ImageSet, result: Evaluation, rows: int = 10, columns: int = 3, seed: int = 0
) -> Figure:
    """Draw a grid of images, the prediction with its confidence and the truth under each.

    Right ones are framed and written green, wrong ones red, with the truth's probability. The
    choice is seeded and stratified: 10 x 3 shows three images of each of ten classes.
    """
    chosen = choose_stratified(result.labels, rows * columns, seed)
    figure = Figure(figsize=(columns * 1.9, 0.4 + rows * 1.78), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, chosen, strict=False):
        _draw_prediction(axes, images, result, index)
    right = (result.predicted[chosen] == result.labels[chosen]).sum()
    figure.suptitle(f"{right} of these {len(chosen)} images are right", weight="bold")
    return figure


def extremes(images: ImageSet, result: Evaluation, most: int = 10, seed: int = 0) -> Figure:
    """Draw each class's surest hit, nearest miss and worst error, one row a class.

    Surest hit: right with the largest confidence. Nearest miss: wrong, the truth's probability
    closest to the prediction's. Worst error: wrong with the largest confidence. Of more than
    `most` classes a seeded choice is shown.
    """
    classes = np.unique(result.labels)
    if len(classes) > most:
        classes = np.sort(np.random.default_rng(seed).choice(classes, most, replace=False))
    everyone = np.arange(len(result.labels))
    confidence = result.probabilities[everyone, result.predicted]
    truth = result.probabilities[everyone, result.labels]
    right = result.predicted == result.labels
    columns = (
        ("surest hit", right, confidence),
        ("nearest miss", ~right, truth - confidence),
        ("worst error", ~right, confidence),
    )
    figure = Figure(figsize=(5.7, 0.4 + 1.78 * len(classes)), layout="constrained")
    grid = figure.subplots(len(classes), 3, squeeze=False)
    for row, label in zip(grid, classes, strict=True):
        for axes, (title, candidates, score) in zip(row, columns, strict=True):
            axes.axis("off")
            if label == classes[0]:
                axes.set_title(title, weight="bold", pad=10)
            indices = np.flatnonzero(candidates & (result.labels == label))
            if len(indices):
                _draw_prediction(axes, images, result, indices[score[indices].argmax()])
            else:
                nothing = f"no {title.split()[1]} for\n{_readable(result.classes[label])}"
                axes.text(0.5, 0.5, nothing, color=GRAY, ha="center", transform=axes.transAxes)
    return figure


def _draw_prediction(axes, images: ImageSet, result: Evaluation, index: int) -> None:
    predicted, label = result.predicted[index], result.labels[index]
    confidence = result.probabilities[index, predicted]
    color = GREEN if predicted == label else RED
    axes.imshow(images.take([index])[0].permute(1, 2, 0).cpu().numpy())
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=color, linewidth=2)
    text = f"{_readable(result.classes[predicted])} {confidence:.0%}"
    text += f"\ntruth: {_readable(result.classes[label])}"
    if predicted != label:
        text += f" {result.probabilities[index, label]:.0%}"
    axes.set_xlabel(text, color=color, fontsize=8.5)


def confusion(result: Evaluation, most: int = 20) -> Figure:
    """Draw the confusion matrix: counts of images, coloured by the share of their true class.

    With more than `most` classes, only those with the most errors are drawn, and the title says so.
    """
    counts = result.confusion
    wrong = counts.sum(1) - counts.diagonal()
    shown = np.arange(len(counts))
    title = "images"
    if len(counts) > most:
        shown = np.sort(np.argsort(-wrong, kind="stable")[:most])
        title = f"images of the {most} of {len(counts)} classes with the most errors"
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [_readable(result.classes[index]) for index in shown]
    side = 2 + 0.48 * len(names)
    figure = Figure(figsize=(side, side * 0.92), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares[np.ix_(shown, shown)], cmap=WHITE_TO_TEAL, vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts[np.ix_(shown, shown)]):
        if count:
            color = "white" if shares[shown[row], shown[column]] > 0.6 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(places, names, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{title}; colour: share of the true class", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def class_recall(result: Evaluation, most: int = 30) -> Figure:
    """Draw each class's accuracy (recall) as a bar with its 95 % interval (Wilson), worst on top.

    At most the worst `most`. Beside it stands what is most often wrongly seen in its images.
    """
    rows = sorted(result.per_class(), key=lambda row: row["recall"])
    rows = [row for row in rows if row["images"]][:most]
    figure = Figure(figsize=(9, 0.9 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.barh(place, 1, color="#f1f1ee", height=0.7)
        axes.barh(place, row["recall"], color=TEAL, height=0.7)
        axes.plot(wilson_interval(row["right"], row["images"]), [place] * 2, color="#333", lw=1)
        note = f"{row['right']} of {row['images']}{_taken_for(row)}"
        axes.text(1.02, place, note, va="center", fontsize=8.5, color=GRAY)
    axes.axvline(result.accuracy, color=ORANGE, lw=1.5)
    axes.set_yticks(range(len(rows)), [_readable(row["class"]) for row in rows], fontsize=9)
    axes.set(xlim=(0, 1.9), ylim=(len(rows) - 0.4, -0.6), xticks=[])
    axes.set_title(
        f"accuracy of each class with its 95 % interval; orange: all images, {result.accuracy:.1%}",
        loc="left", fontsize=10,
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _taken_for(row: dict) -> str:
    """Say what is most often seen instead of a class; single images tell nothing."""
    names, times = row["taken for"], row["times"]
    if times < 2:
        return ""
    if len(names) > 2:
        return f"; {len(names)} others {times} times each"
    each = " each" if len(names) > 1 else ""
    return f"; taken for {' and '.join(map(_readable, names))} {times} times{each}"


def augmented(images: ImageSet, config: Config, count: int = 4, views: int = 7) -> Figure:
    """Draw training images as they are (left) and `views` times as augmentation changes them."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = choose_stratified(images.labels, count, config.seed)
    pixels = images.take(chosen).cpu()
    columns = [pixels, *(augment(pixels, config.augmentations, generator) for _ in range(views))]
    figure = Figure(figsize=(1.2 * len(columns), 1.2 * len(chosen) + 0.3), layout="constrained")
    grid = figure.subplots(len(chosen), len(columns), squeeze=False)
    for place, (axes, images_of_column) in enumerate(zip(grid.T, columns, strict=True)):
        axes[0].set_title("original" if place == 0 else f"view {place}", fontsize=9)
        for cell, image in zip(axes, images_of_column, strict=True):
            cell.imshow(image.permute(1, 2, 0).numpy())
            cell.axis("off")
    return figure


def _readable(name: str) -> str:
    return for_figure(name.replace("_", " "), 24)
