"""What can be concluded from filters, neurons and gradients, as plain values."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from helpers.evaluate.intervals import mean_and_interval
from helpers.visualize.neurons import Excitations
from helpers.visualize.saliency import gini

KINDS = "one even colour", "edges of grey", "edges of colour"


def filter_energy(weights: torch.Tensor) -> np.ndarray:
    """Divide each filter's (n, 3, k, k) sum of squares among `KINDS`: shares (n, 3).

    A filter is its mean in each colour, plus what the colours have in common of the rest, plus
    what they have not; the three are orthogonal.
    """
    weights = weights.double()
    even = weights.mean((2, 3), keepdim=True).expand_as(weights)
    grey = (weights - even).mean(1, keepdim=True).expand_as(weights)
    parts = torch.stack([even, grey, weights - even - grey], 1)
    energy = parts.pow(2).sum((2, 3, 4))
    return (energy / energy.sum(1, keepdim=True)).numpy()


def mean_energy(weights: torch.Tensor) -> dict[str, float]:
    """Return the mean over filters of each share of `filter_energy`, by its name in `KINDS`."""
    return dict(zip(KINDS, filter_energy(weights).mean(0).tolist(), strict=True))


def energy_of_chance(size: int) -> np.ndarray:
    """Return the shares of `KINDS` that random filters of k x k have on average."""
    dimensions = np.array([3, size**2 - 1, 2 * (size**2 - 1)])
    return dimensions / dimensions.sum()


def compare_energy(
    weights: torch.Tensor, before: torch.Tensor | None
) -> dict[str, tuple[float, float, float]]:
    """Return by how much each share of `KINDS` has grown, with the ends of its 95 % interval.

    Filter by filter against the same ones `before` training; where those are not known (None),
    against the mean of random filters.
    """
    start = energy_of_chance(weights.shape[2]) if before is None else filter_energy(before)
    changes = (filter_energy(weights) - start).T
    return dict(zip(KINDS, map(mean_and_interval, changes), strict=True))


def concentrations(gradients: torch.Tensor, windows: list[tuple[slice, slice]]) -> np.ndarray:
    """Return how concentrated (Gini) gradients (K, 3, H, W) are, each within its own window.

    Outside of its receptive field a neuron's gradient is 0 for any weights, which says nothing.
    """
    sizes = gradients.abs().sum(1)
    return np.array([gini(size[seen]).item() for size, seen in zip(sizes, windows, strict=True)])


def compare_concentrations(learned: np.ndarray, random: np.ndarray) -> tuple[float, float, float]:
    """Return how much more concentrated K pictures are than those of R random networks (R, K).

    The mean over neurons of each one's difference from its mean over random networks, with the
    ends of its 95 % interval: other neurons, and another random network, whose variances are
    summed (Student's t for the degrees of freedom of that sum, Satterthwaite 1946). Pictures that
    are empty are left out; fewer than two neurons or networks say nothing.
    """
    known = np.isfinite(learned) & np.isfinite(random).any(0)
    if not known.any():
        return np.nan, np.nan, np.nan
    random = random[np.isfinite(random[:, known]).any(1)]
    differences = learned[known] - random[:, known]  # (R, K)
    neurons, networks = np.nanmean(differences, 0), np.nanmean(differences, 1)
    mean, count, others = float(np.mean(neurons)), len(neurons), len(random)
    if min(count, others) < 2:
        return mean, np.nan, np.nan
    parts = [neurons.var(ddof=1) / count, networks.var(ddof=1) * (1 + 1 / others)]
    freedom = sum(parts) ** 2 / max(
        parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (others - 1), 1e-300
    )
    reach = float(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5)
    return mean, mean - reach, mean + reach


class Selectivity(NamedTuple):
    """Which classes the images that excite a channel most are of.

    `share` (0 to 1) is that of the commonest class, or of each of the `classes` that tie.
    """

    channel: int
    share: float
    classes: list[str]


def selectivity(
    excited: Excitations, channels: list[int], names: list[str], most: int = 8
) -> list[Selectivity]:
    """Say of each channel which class, or classes, its `most` favourite images are of."""
    most = min(most, len(names))
    rows = []
    for channel in channels:
        favourites = excited.values[:, channel].topk(most).indices.tolist()
        kinds = [names[index] for index in favourites]
        times = max(map(kinds.count, kinds))
        commonest = sorted({kind for kind in kinds if kinds.count(kind) == times})
        rows.append(Selectivity(channel, times / most, commonest))
    return rows


def selectivity_of_chance(names: list[str], most: int = 8, seed: int = 0) -> float:
    """Return the mean share of the commonest class in `most` images drawn at random."""
    rng = np.random.default_rng(seed)
    _, labels = np.unique(names, return_inverse=True)
    most = min(most, len(labels))
    draws = [np.bincount(rng.choice(labels, most, replace=False)).max() for _ in range(1000)]
    return float(np.mean(draws) / most)
