"""Ensembles of runs that exist: voting, bagging, stacking.

What several runs say of the same images is joined, whatever networks they are and at whatever
image size each sees them. Boosting is not among them: it trains each network on what those before
it got wrong, and so is another training, not another use of runs.
"""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from helpers import ROOT, data, models
from helpers.data.images import ImageSet
from helpers.evaluate.evaluation import Evaluation, evaluate, measure
from helpers.evaluate.intervals import Difference, difference_of_networks, mean_and_interval
from helpers.models.device import choose_device
from helpers.runs.folder import Run


def vote(results: list[Evaluation]) -> Evaluation:
    """Measure an ensemble by soft voting: the mean of the networks' probabilities decides.

    `results` are those of several networks on the same images. To be fair on validation images,
    all runs must have left out the same ones: same data, same seed. Raises ValueError where
    images or classes differ.
    """
    first = _alike(results)
    mean = np.mean([result.probabilities for result in results], 0)
    return measure(torch.from_numpy(mean).log(), first)


def stack(results: list[Evaluation]) -> Evaluation:
    """Measure an ensemble by stacking: a logistic regression on their log-probabilities decides.

    What it says of an image it has learned from others (in five folds), so that validation images
    tell what it is worth; as for `vote`, all runs must have left them out. Raises ValueError where
    images or classes differ, and where a class has a single image.
    """
    first = _alike(results)
    there, counts = np.unique(first.labels, return_counts=True)
    folds = min(5, int(counts.min()))
    if folds < 2:
        raise ValueError("stacking needs at least two images of each class")
    inputs = [np.log(np.maximum(result.probabilities, 1e-6)) for result in results]
    votes = np.full(first.probabilities.shape, 1e-12)
    votes[:, there] = cross_val_predict(
        LogisticRegression(C=0.1, max_iter=1000), np.concatenate(inputs, 1), first.labels,
        cv=StratifiedKFold(folds, shuffle=True, random_state=0), method="predict_proba",
    )  # fmt: skip
    return measure(torch.from_numpy(votes).float().log(), first)


def compare_joined(
    runs: list[Run], images: ImageSet, most: int = 3
) -> tuple[float, dict[str, tuple[float, Difference]]]:
    """Compare the `most` best runs on validation, joined, with the best of them alone.

    On the validation images, which all of them must have left out. Returns the accuracy of the
    best alone, and by the way of joining that of the ensemble, with what it gains. It speaks of
    these very networks.
    """
    best = sorted(runs, key=lambda run: -run.metrics["val"]["accuracy"])[:most]
    results = [_ask(run, images) for run in best]
    right = results[0].predicted == images.labels
    joined = {}
    for way, result in ("soft voting", vote(results)), ("stacking", stack(results)):
        gain = difference_of_networks(result.predicted == images.labels, right)
        joined[way] = result.accuracy, gain
    return results[0].accuracy, joined


def bag(runs: list[Run]) -> tuple[Evaluation, Difference] | None:
    """Measure runs that differ in the seed as a bag: each has learned from other images.

    An image is decided by the runs that have left it out for validation, where those are two or
    more (out of the bag, Breiman 1996, Bagging Predictors; here samples without repetition).
    Returns the result of the bag, and its gain over one run alone on the same images: the mean over
    images of whether the bag is right minus the share of their runs that are, with Student's
    interval over the images. It speaks of these very networks. None where no two runs have left
    out the same image, or all of them the same ones: those have learned from the same.
    """
    votes: dict[int, list[torch.Tensor]] = {}
    labels: dict[int, tuple[int, str]] = {}
    sets = set()
    for run in runs:
        images = data.load(run.config).val
        sets.add(frozenset(images.rows.tolist()))
        for index, probabilities in enumerate(_ask(run, images).probabilities):
            row = int(images.rows[index])
            votes.setdefault(row, []).append(torch.from_numpy(probabilities))
            labels[row] = int(images.labels[index]), images.paths[index]
    rows = [row for row, given in votes.items() if len(given) > 1]
    if not rows or len(sets) == 1:
        return None
    left_out = replace(
        images, rows=np.array(rows), labels=np.array([labels[row][0] for row in rows]),
        paths=[labels[row][1] for row in rows], on_gpu=None,
    )  # fmt: skip
    alone = [np.mean([int(v.argmax()) == labels[row][0] for v in votes[row]]) for row in rows]
    together = torch.stack([torch.stack(votes[row]).mean(0) for row in rows])
    result = measure(together.log(), left_out)
    gains = (result.predicted == result.labels) - np.array(alone)
    return result, Difference(*mean_and_interval(gains))


def folder_of(runs: list[Run]) -> Path:
    """Return the folder for figures of runs that vote: runs/votes/ and their names."""
    number = zlib.crc32("+".join(str(run.folder) for run in runs).encode())
    return ROOT / "runs" / "votes" / f"{'+'.join(run.name for run in runs)[:200]}-{number:08x}"


def _ask(run: Run, images: ImageSet) -> Evaluation:
    """Measure a run on images; raises ValueError for other classes than it knows."""
    if run.read_checkpoint("best.pt")["classes"] != images.classes:
        raise ValueError(f"{run.name} knows other classes than these images have")
    return evaluate(models.rebuild(run).to(choose_device()), images, run.config)


def _alike(results: list[Evaluation]) -> Evaluation:
    """Return the first of several results of the same images, or raise ValueError."""
    first, *others = results
    if any((other.paths, other.classes) != (first.paths, first.classes) for other in others):
        raise ValueError("an ensemble's networks answer for the same images and classes")
    return first
