"""How often does the rule for conclusions see a difference where there is none?

Run: python -m benchmarks.verdicts

Draws comparisons of two recipes (or two networks, or two sets of images) that are equally good, and
counts the verdicts "better" and "worse": about 5 % are to be expected, and 6 % is the most that is
allowed. Images differ in difficulty, each recipe finds other images hard, and each seed makes
another network: all normal on the scale of logits. A second figure says what the rule sees where
there is a difference of 10 points.
"""

import numpy as np
from scipy.special import expit

from helpers.evaluate.intervals import (
    NO_EVIDENCE,
    difference_of_networks,
    difference_of_recipes,
    difference_of_shares,
)

COMPARISONS = 1000  # ten times as many of the kinds that take no time
IMAGES = 72, 200, 1000
ACCURACIES = 0.35, 0.6, 0.9


def recipes(rng, seeds: int, images: int, logit: float, gain: float, spread: float, split: str):
    """Draw S pairs of networks, measured on the same, on overlapping or on other images."""
    pool = {"same": images, "overlapping": round(images / 0.6), "other": images * seeds}[split]
    difficulty = rng.normal(0, 1.5, pool)
    taste = rng.normal(0, 0.7, (2, pool))  # what each recipe finds hard, whatever the seed
    first, second = [], []
    for seed in range(seeds):
        if split == "other":
            chosen = np.arange(seed * images, (seed + 1) * images)
        else:
            chosen = rng.permutation(pool)[:images]
        common = rng.normal(0, 0.3)  # a seed's images and order are good or bad for both
        for kind, found in enumerate((first, second)):
            own = rng.normal(0, spread) + rng.normal(0, 1.0, images)
            score = logit + common + own + difficulty[chosen] + taste[kind, chosen]
            right = rng.random(images) < expit(score + (gain if kind == 0 else 0))
            found.append(dict(zip(chosen, right, strict=True)))
    return difference_of_recipes(first, second)


def networks(rng, images: int, logit: float, gain: float):
    """Draw two networks and the images that both are measured on."""
    difficulty = rng.normal(0, 1.5, images)
    scores = [logit + difficulty + rng.normal(0, 1.2, images) for _ in range(2)]
    first, second = (
        rng.random(images) < expit(s + g) for s, g in zip(scores, (gain, 0), strict=True)
    )
    return difference_of_networks(first, second)


def sets(rng, images: int, share: float, gain: float):
    """Draw two sets of images for one network, the second of half the size."""
    other = images // 2
    right = rng.binomial(images, min(share + gain, 1))
    return difference_of_shares(right, images, rng.binomial(other, share), other)


def rate(draw, count: int = COMPARISONS) -> float:
    """Return the share of comparisons that are not `NO_EVIDENCE`."""
    return np.mean([draw().verdict != NO_EVIDENCE for _ in range(count)])


def main() -> None:
    """Print the share of verdicts in every case, and the largest among equals."""
    rng = np.random.default_rng(0)
    print("verdicts better or worse: of equals, of 10 points' worth")
    worst = 0.0

    def show(name, draw, count=COMPARISONS):
        nonlocal worst
        null, found = rate(lambda: draw(0.0), count), rate(lambda: draw(0.1))
        worst = max(worst, null)
        print(f"{name:62} {null:6.1%} {found:6.1%}", flush=True)

    for share in ACCURACIES:
        logit = np.log(share / (1 - share)) * 1.5  # the spread of difficulty pulls towards 1/2
        slope = share * (1 - share) / 1.3
        for n in IMAGES:
            show(f"two sets, {n} and {n // 2} images, {share:.0%}",
                 lambda gain, n=n, p=share: sets(rng, n, p, gain), 10 * COMPARISONS)  # fmt: skip
            show(f"two networks, {n} images, {share:.0%}",
                 lambda gain, n=n, a=logit, b=slope: networks(rng, n, a, gain / b),
                 10 * COMPARISONS)  # fmt: skip
    for split in "same", "overlapping", "other":
        for seeds in 2, 3, 5:
            for spread in 0.0, 0.5:
                for n in IMAGES[:2]:
                    show(f"recipes, {seeds} seeds, {n} {split} images, spread of seeds {spread}",
                         lambda gain, *a, s=seeds, n=n, w=spread, p=split: recipes(
                             rng, s, n, 0.6, gain / 0.18, w, p))  # fmt: skip
    print(f"the most: {worst:.1%}")


if __name__ == "__main__":
    main()
