"""What can be concluded from what was measured on a set of images, as plain values."""

from typing import NamedTuple

import numpy as np

from helpers.evaluate.evaluation import Evaluation
from helpers.evaluate.intervals import (
    difference_of_intervals,
    mean_and_interval,
    wilson_interval,
)


class Classes(NamedTuple):
    """The easiest and the hardest classes (several where they tie), and chance's share in that.

    Rows of `Evaluation.per_class`; `chance` is the probability of accuracies that differ so much
    between classes of equal difficulty: chi-squared by 10,000 permutations of the mistakes, because
    its usual approximation errs where a class has few of them.
    """

    easiest: list[dict]
    hardest: list[dict]
    chance: float


def compare_classes(result: Evaluation) -> Classes:
    """Find the classes with the largest and smallest accuracy, and whether classes differ."""
    rows = [row for row in result.per_class() if row["images"]]
    images = np.array([row["images"] for row in rows])
    wrong = images - [row["right"] for row in rows]
    expected = images * wrong.sum() / images.sum()

    def statistic(wrong: np.ndarray) -> np.ndarray:
        return ((wrong - expected) ** 2 * images / (expected * (images - expected))).sum(-1)

    chance = 1.0
    if len(rows) > 1 and 0 < wrong.sum() < images.sum():
        rng = np.random.default_rng(0)
        drawn = statistic(rng.multivariate_hypergeometric(images, wrong.sum(), 10_000))
        chance = float(((drawn >= statistic(wrong) - 1e-9).sum() + 1) / 10_001)
    most, least = (f(row["recall"] for row in rows) for f in (max, min))
    return Classes(
        [row for row in rows if row["recall"] == most],
        [row for row in rows if row["recall"] == least],
        chance,
    )


def commonest_mistakes(result: Evaluation) -> tuple[int, list[tuple[str, str]]]:
    """Return how often the commonest mistake is made, and as which (true, predicted) pairs."""
    counts = result.confusion - np.diag(result.confusion.diagonal())
    most = int(counts.max())
    pairs = np.argwhere(counts == most) if most else []
    return most, [(result.classes[true], result.classes[taken]) for true, taken in pairs]


def overconfidence(result: Evaluation) -> tuple[float, float, float]:
    """Return the mean confidence minus the accuracy, and the ends of its 95 % interval.

    Above 0 the network is surer than it is right. Wilson's interval of the accuracy, which knows
    that a network without a mistake may still make some, and Student's of the confidence.
    """
    sure, right = result.probabilities.max(1).astype(float), result.predicted == result.labels
    accuracy = right.mean(), *wilson_interval(int(right.sum()), len(right))
    varies = sure.std() > 0 and right.std() > 0
    correlation = float(np.corrcoef(sure, right)[0, 1]) if varies else 0.0
    found = difference_of_intervals(mean_and_interval(sure), accuracy, correlation)
    return found.mean, found.low, found.high
