"""What can be concluded from what was measured on a set of images, as plain values."""

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2_contingency

from helpers.evaluate.evaluation import Evaluation
from helpers.evaluate.intervals import mean_and_interval


class Classes(NamedTuple):
    """The easiest and the hardest classes (several where they tie), and chance's share in that.

    Rows of `Evaluation.per_class`; `chance` is the probability of accuracies that differ so much
    between classes of equal difficulty (chi-squared test).
    """

    easiest: list[dict]
    hardest: list[dict]
    chance: float


def compare_classes(result: Evaluation) -> Classes:
    """Find the classes with the largest and smallest accuracy, and whether classes differ."""
    rows = [row for row in result.per_class() if row["images"]]
    right = np.array([row["right"] for row in rows])
    wrong = np.array([row["images"] for row in rows]) - right
    differ = len(rows) > 1 and right.sum() > 0 < wrong.sum()
    chance = float(chi2_contingency([right, wrong]).pvalue) if differ else 1.0
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

    Above 0 the network is surer than it is right.
    """
    right = result.predicted == result.labels
    return mean_and_interval(result.probabilities.max(1).astype(float) - right)
