"""The one rule for conclusions: what differs, by how much, how sure, and in one of three words.

Two things are compared only where both were measured alike. The interval of their difference has
95 %; where it leaves out 0 the first is `BETTER` or `WORSE`, otherwise there is `NO_EVIDENCE`.
`python -m benchmarks.verdicts` counts how often the rule errs where nothing differs.

    two sets of images, one network           difference_of_shares      Newcombe 1998, method 10
    one set of images, two networks           difference_of_networks    Newcombe 1998, method 10
    the same two recipes with several seeds   difference_of_recipes     Student, see there
    numbers, such as differences of pairs     mean_and_interval         Student

The first two speak of these very networks. Only several seeds tell about a recipe, because another
seed would have given another network.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from helpers.runs.folder import Run

BETTER, WORSE, NO_EVIDENCE = "better", "worse", "no evidence"


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies, each from 0 to 1, with the ends of its 95 % interval.

    `seeds` is the number of runs of each that were compared, 0 where it is one network alone.
    """

    mean: float
    low: float
    high: float
    seeds: int = 0

    @property
    def verdict(self) -> str:
        """Say in one of three words whether the first is more accurate."""
        return verdict(self.low, self.high)

    def __str__(self) -> str:
        mean, low, high = (100 * number for number in (self.mean, self.low, self.high))
        return f"{mean:+.1f} points [{low:.1f}, {high:.1f}]"


def verdict(low: float, high: float, more: str = BETTER, less: str = WORSE) -> str:
    """Say what the interval of a difference shows, where more is better; nan shows nothing."""
    return more if low > 0 else less if high < 0 else NO_EVIDENCE


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a share, for `right` of `total` (Wilson 1927)."""
    share = right / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * (share * (1 - share) / total + (z / total / 2) ** 2) ** 0.5
    return max(0.0, center - spread), min(1.0, center + spread)


def mean_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of some numbers and the ends of its 95 % interval (Student 1908).

    Nothing is known of the spread of fewer than two numbers: the ends are nan.
    """
    count = len(values)
    if count < 2:
        return (float(np.mean(values)) if count else np.nan), np.nan, np.nan
    mean = float(np.mean(values))
    reach = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return mean, mean - reach, mean + reach


def difference_of_shares(right: int, total: int, other_right: int, other_total: int) -> Difference:
    """Compare `right` of `total` with `other_right` of `other_total` *other* images.

    For one network on two sets of images, such as training and validation. Newcombe 1998, Interval
    estimation for the difference between independent proportions, method 10.
    """
    return _newcombe(right, total, other_right, other_total, correlation=0.0)


def difference_of_networks(right: np.ndarray, other: np.ndarray) -> Difference:
    """Compare two networks on the *same* images, in the same order: bool (N,), right or not.

    It speaks of these two networks, not of others that the same recipes would give. Newcombe 1998,
    Improved confidence intervals for the difference between binomial proportions based on paired
    data, method 10.
    """
    right, other = np.asarray(right, bool), np.asarray(other, bool)
    if right.shape != other.shape or not len(right):
        raise ValueError("two networks are compared on the same images, and on at least one")
    both, neither = int((right & other).sum()), int((~right & ~other).sum())
    first, second = int((right & ~other).sum()), int((other & ~right).sum())
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    product = both * neither - first * second
    if product > 0:
        product = max(product - len(right) / 2, 0)
    correlation = product / margins**0.5 if margins else 0.0
    return _newcombe(right.sum(), len(right), other.sum(), len(other), correlation)


def _newcombe(
    right: int, total: int, other_right: int, other_total: int, correlation: float
) -> Difference:
    return difference_of_intervals(
        (right / total, *wilson_interval(right, total)),
        (other_right / other_total, *wilson_interval(other_right, other_total)),
        correlation,
    )


def difference_of_intervals(
    first: tuple[float, float, float], second: tuple[float, float, float], correlation: float
) -> Difference:
    """Subtract two correlated estimates, each a value with the ends of its interval.

    Newcombe's method 10, for estimates of any kind: Zou and Donner 2008.
    """
    value, low, high = map(float, first)
    other, other_low, other_high = map(float, second)

    def reach(a: float, b: float) -> float:
        return max(a * a - 2 * correlation * a * b + b * b, 0.0) ** 0.5

    below, above = reach(value - low, other_high - other), reach(high - value, other - other_low)
    return Difference(value - other, value - other - below, value - other + above)


def difference_of_recipes(first: list[dict], second: list[dict]) -> Difference:
    """Compare two recipes by pairs of runs: of each run, which images (by path) it gets right.

    The runs of a pair, such as those of one seed, have seen the same images; pairs may share
    images or not. The interval is that of a new seed *and* new images: the variance of the mean
    over pairs of their differences, s²/S, and the covariance that images shared by pairs give them
    (a hard one is hard for every seed), with Student's t for the degrees of freedom of that sum
    (Satterthwaite 1946). Where S differences agree by luck, s² is no smaller than the spread that
    their images alone give them (Agresti and Min 2005). Raises ValueError for a single pair, and
    where a pair was not measured on the same images.
    """
    if len(first) < 2 or len(first) != len(second):
        raise ValueError("recipes are compared by two or more pairs of runs")
    if any(one.keys() != other.keys() or not one for one, other in zip(first, second, strict=True)):
        raise ValueError("a pair of runs was not measured on the same images")
    pairs = [
        {path: float(right) - float(other[path]) for path, right in one.items()}
        for one, other in zip(first, second, strict=True)
    ]
    paths = {path: index for index, path in enumerate(sorted(set().union(*pairs)))}
    values = np.full((len(pairs), len(paths)), np.nan)  # pairs x images; nan: not of this pair
    for row, pair in zip(values, pairs, strict=True):
        row[[paths[path] for path in pair]] = list(pair.values())
    counts = (~np.isnan(values)).sum(1)
    means = np.nanmean(values, 1)
    shared = np.nan_to_num((values - means[:, None]) / counts[:, None])
    products = shared @ shared.T
    seeds = len(pairs)
    covariance = max((products.sum() - products.trace()) / (seeds * (seeds - 1)), 0.0)
    by_images = np.mean([_variance(row[~np.isnan(row)]) for row in values]) - covariance
    by_seeds = max(means.var(ddof=1), by_images) / seeds
    variance = by_seeds + covariance
    freedom = variance**2 / (by_seeds**2 / (seeds - 1) + covariance**2 / max(len(paths) - 1, 1))
    mean, reach = float(means.mean()), float(stats.t.ppf(0.975, freedom) * variance**0.5)
    return Difference(mean, max(mean - reach, -1.0), min(mean + reach, 1.0), seeds)


def _variance(differences: np.ndarray) -> float:
    """Return the variance of the mean of -1, 0 and 1, one more of each counted by halves."""
    more, less = (differences > 0).sum() + 0.5, (differences < 0).sum() + 0.5
    total = len(differences) + 2
    return (more + less - (more - less) ** 2 / total) / total**2


def compare_runs(runs: list[Run], others: list[Run], split: str = "val") -> Difference:
    """Compare runs in pairs on the images of a split that both have predicted.

    One pair is two networks, several are two recipes. Raises ValueError, with their names, where
    the runs of a pair were not measured on the same images.
    """
    first, second = ([_right(run, split) for run in group] for group in (runs, others))
    for run, other, right, other_right in zip(runs, others, first, second, strict=True):
        if right.keys() != other_right.keys() or not right:
            raise ValueError(f"{run.name} and {other.name} were not measured on the same images")
    if len(runs) > 1:
        return difference_of_recipes(first, second)
    (right,), (other,) = first, second
    paths = list(right)
    return difference_of_networks([right[p] for p in paths], [other[p] for p in paths])


def _right(run: Run, split: str) -> dict[str, bool]:
    return {row["path"]: row["predicted"] == row["label"] for row in run.predictions
            if row["split"] == split}  # fmt: skip
