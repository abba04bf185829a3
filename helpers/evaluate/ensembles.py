"""Ensembles of runs that exist: voting, bagging, stacking.

Boosting is not among them: it trains each network on what those before it got wrong, and so is
another training, not another use of runs.
"""

from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from helpers import data, models
from helpers.data.images import ImageSet
from helpers.evaluate.evaluation import Evaluation, measure, predict
from helpers.evaluate.intervals import Difference, difference_of_networks
from helpers.models.device import choose_device
from helpers.runs.folder import Run


def vote(runs: list[Run], images: ImageSet) -> Evaluation:
    """Measure an ensemble by soft voting: the mean of the runs' probabilities decides.

    To be fair on validation images, all runs must have left out the same ones: same data, same
    seed. Raises ValueError where their classes differ.
    """
    return measure(torch.stack([_probabilities(run, images) for run in runs]).mean(0).log(), images)


def stack(runs: list[Run], images: ImageSet) -> Evaluation:
    """Measure an ensemble by stacking: a logistic regression on their log-probabilities decides.

    What it says of an image it has learned from others (in five folds), so that validation images
    tell what it is worth; as for `vote`, all runs must have left them out. Raises ValueError where
    a class has a single image.
    """
    there, counts = np.unique(images.labels, return_counts=True)
    folds = min(5, int(counts.min()))
    if folds < 2:
        raise ValueError("stacking needs at least two images of each class")
    inputs = [_probabilities(run, images).clamp_min(1e-6).log() for run in runs]
    votes = np.full((len(images), len(images.classes)), 1e-12)
    votes[:, there] = cross_val_predict(
        LogisticRegression(C=0.1, max_iter=1000), torch.cat(inputs, 1).numpy(), images.labels,
        cv=StratifiedKFold(folds, shuffle=True, random_state=0), method="predict_proba",
    )  # fmt: skip
    return measure(torch.from_numpy(votes).float().log(), images)


def compare_joined(
    runs: list[Run], images: ImageSet, most: int = 3
) -> tuple[float, dict[str, tuple[float, Difference]]]:
    """Compare the `most` best runs on validation, joined, with the best of them alone.

    On the validation images, which all of them must have left out. Returns the accuracy of the
    best alone, and by the way of joining that of the ensemble, with what it gains. It speaks of
    these very networks.
    """
    best = sorted(runs, key=lambda run: -run.metrics["val"]["accuracy"])[:most]
    alone = {
        row["path"]: row["predicted"] == row["label"]
        for row in best[0].predictions
        if row["split"] == "val"
    }
    joined = {}
    for way, result in ("soft voting", vote(best, images)), ("stacking", stack(best, images)):
        right = [alone[path] for path in result.paths]
        gain = difference_of_networks(result.predicted == result.labels, right)
        joined[way] = result.accuracy, gain
    return float(np.mean(list(alone.values()))), joined


def bag(runs: list[Run]) -> tuple[Evaluation, float]:
    """Measure runs that differ in the seed as a bag: each has learned from other images.

    An image is decided by the runs that have left it out for validation, where those are two or
    more (out of the bag, Breiman 1996, Bagging Predictors; here samples without repetition).
    Returns the result of the bag and the mean accuracy of one run alone on the same images.
    """
    votes: dict[int, list[torch.Tensor]] = {}
    labels: dict[int, tuple[int, str]] = {}
    for run in runs:
        images = data.load(run.config).val
        for index, probabilities in enumerate(_probabilities(run, images)):
            row = int(images.rows[index])
            votes.setdefault(row, []).append(probabilities)
            labels[row] = int(images.labels[index]), images.paths[index]
    rows = [row for row, given in votes.items() if len(given) > 1]
    if not rows:
        raise ValueError("no image was left out by two runs: take more seeds, or a larger part")
    left_out = replace(
        images, rows=np.array(rows), labels=np.array([labels[row][0] for row in rows]),
        paths=[labels[row][1] for row in rows], on_gpu=None,
    )  # fmt: skip
    alone = np.mean([float(v.argmax() == labels[row][0]) for row in rows for v in votes[row]])
    together = torch.stack([torch.stack(votes[row]).mean(0) for row in rows])
    return measure(together.log(), left_out), float(alone)


def _probabilities(run: Run, images: ImageSet) -> torch.Tensor:
    """Return what a run says of images, float32 (N, C); raises ValueError for other classes."""
    if run.read_checkpoint("best.pt")["classes"] != images.classes:
        raise ValueError(f"{run.name} knows other classes than these images have")
    model = models.rebuild(run).to(choose_device())
    return predict(model, images, run.config).softmax(1)
