"""Figures show what was measured: names, colours, counts."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_train import SMALL, fit, image_set

from helpers.data.images import Splits
from helpers.evaluate import figures
from helpers.evaluate.evaluation import Evaluation
from helpers.runs.config import Config


@pytest.fixture
def images():
    return image_set(30, 0)


@pytest.fixture
def result(images):
    """Make predictions of which every fifth is wrong, with known confidence."""
    predicted = images.labels.copy()
    predicted[::5] = (predicted[::5] + 1) % 3
    probabilities = np.full((30, 3), 0.1, np.float32)
    probabilities[np.arange(30), predicted] = 0.8
    probabilities[0] = [0.45, 0.55, 0]  # image 0 is nearly right
    return Evaluation(
        0.5, 0.8, (0.6, 0.9), 1.0, images.labels, predicted, probabilities, images.classes,
        images.paths,
    )  # fmt: skip


def cells(figure):
    """Return each drawn image's (frame colour, text below)."""
    drawn = [axes for axes in figure.axes if axes.images]
    return [(axes.spines["top"].get_edgecolor()[:3], axes.get_xlabel()) for axes in drawn]


def test_the_grid_writes_right_ones_green_and_wrong_ones_red(images, result):
    drawn = cells(figures.test_grid(images, result, rows=10, columns=3))
    assert len(drawn) == 30
    assert sum(color == to_rgb(figures.GREEN) for color, _ in drawn) == 24
    assert sum(color == to_rgb(figures.RED) for color, _ in drawn) == 6
    for color, text in drawn:
        prediction, truth = text.split("\n")
        right = prediction.rsplit(" ", 1)[0] == truth.removeprefix("truth: ")[:7]
        assert right == (color == to_rgb(figures.GREEN))


def test_extremes_are_the_surest_and_the_nearest(images, result):
    result.probabilities[3] = [0.99, 0, 0]  # the surest hit of class 0
    drawn = cells(figures.extremes(images, result))
    assert drawn[0][1] == "class 0 99%\ntruth: class 0"
    assert drawn[1][1] == "class 1 55%\ntruth: class 0 45%"
    assert drawn[2][1] == "class 1 80%\ntruth: class 0 10%"


def test_the_confusion_matrix_writes_how_many_images_of_each_true_class(result):
    axes = figures.confusion(result).axes[0]
    written = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert sum(written.values()) == 30
    for (column, row), count in written.items():
        assert count == sum((result.labels == row) & (result.predicted == column))


def test_a_class_is_taken_for_what_is_seen_more_than_once_and_ties_are_all_named():
    labels = np.array([0] * 6 + [1] * 3 + [2] * 3)
    predicted = np.array([0, 0, 1, 1, 2, 2, 1, 1, 0, 2, 2, 2])
    result = Evaluation(
        1.0, 7 / 12, (0.3, 0.8), 1.0, labels, predicted, np.eye(3, dtype=np.float32)[predicted],
        ["a", "b", "c"], [""] * 12,
    )  # fmt: skip
    notes = [text.get_text() for text in figures.class_recall(result).axes[0].texts]
    assert notes == ["2 of 6; taken for b and c 2 times each", "2 of 3", "3 of 3"]


def test_many_classes_show_those_with_the_most_errors():
    labels = np.repeat(np.arange(40), 5)
    predicted = labels.copy()
    predicted[: 5 * 3] = 39  # the first three classes are always wrong
    names = [f"kind {label}" for label in range(40)]
    result = Evaluation(
        1.0, 0.9, (0.8, 1.0), 1.0, labels, predicted, np.eye(40, dtype=np.float32)[predicted],
        names, [""] * 200,
    )  # fmt: skip
    shown = [t.get_text() for t in figures.confusion(result, most=4).axes[0].get_yticklabels()]
    assert shown[:3] == ["kind 0", "kind 1", "kind 2"] and len(shown) == 4
    worst = [t.get_text() for t in figures.class_recall(result, most=3).axes[0].get_yticklabels()]
    assert sorted(worst) == ["kind 0", "kind 1", "kind 2"]


def test_curves_are_the_history_and_mark_the_best_epoch(tmp_path):
    config = Config(**SMALL, runs_root=str(tmp_path))
    run = fit(Splits(image_set(48, 0), image_set(24, 1), image_set(9, 2)), config)
    loss, accuracy, rate = figures.curves(run).axes
    lines = {len(line.get_xdata()): line for line in accuracy.lines}
    assert list(lines[3].get_ydata()) == [row["val_accuracy"] for row in run.history]
    assert list(loss.lines[0].get_ydata()) == [row["train_loss"] for row in run.history]
    assert lines[1].get_xdata() == [run.metrics["best_epoch"]]
    assert list(rate.lines[0].get_ydata()) == [row["lr"] for row in run.history]
    commonest = np.bincount(image_set(24, 1).labels).max() / 24
    assert any(list(line.get_ydata()) == [commonest] * 2 for line in accuracy.lines)
