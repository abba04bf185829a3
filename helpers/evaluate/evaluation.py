"""Measure a trained network on a validation or test set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from helpers import ROOT, data
from helpers.data.augment import normalize
from helpers.data.batches import batches
from helpers.data.images import ImageSet, Splits
from helpers.evaluate.intervals import wilson_interval
from helpers.models import rebuild
from helpers.models.device import batch_size_without_gradients, choose_device, choose_dtype
from helpers.runs.config import Config
from helpers.runs.folder import Run, now
from helpers.runs.progress import tqdm


@dataclass(frozen=True)
class Evaluation:
    """What was measured on N images of C classes.

    `probabilities` float32 (N, C); `labels`, `predicted` int64 (N,); `loss` is the mean
    cross-entropy in nats; `accuracy`, `top5` and `interval` (Wilson, 95 %) go from 0 to 1.
    """

    loss: float
    accuracy: float
    interval: tuple[float, float]
    top5: float
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    classes: list[str]
    paths: list[str]

    @property
    def confusion(self) -> np.ndarray:
        """Count (C, C): row = true class, column = predicted class."""
        counts = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts

    @property
    def counts(self) -> tuple[int, int]:
        """Return how many images are right, and how many there are."""
        return int((self.predicted == self.labels).sum()), len(self.labels)

    def per_class(self) -> list[dict]:
        """Return a row a class: images, right, recall (its accuracy), precision, what else it is.

        `taken for` lists the class, or the classes, that most of its images are wrongly taken for,
        and `times` says how many of its images each.
        """
        counts = self.confusion
        rows = []
        for index, name in enumerate(self.classes):
            total, right = counts[index].sum(), counts[index, index]
            wrong = counts[index].copy()
            wrong[index] = 0
            most = int(wrong.max())
            rows.append(
                {
                    "class": name,
                    "images": int(total),
                    "right": int(right),
                    "recall": right / total if total else float("nan"),
                    "precision": right / max(counts[:, index].sum(), 1),
                    "taken for": [self.classes[i] for i in np.flatnonzero(wrong == most) if most],
                    "times": most,
                }
            )
        return rows

    def summary(self) -> dict:
        """Return the figures for a run's metrics.json."""
        return {
            "images": len(self.labels),
            "loss": self.loss,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "top5": self.top5,
        }

    def rows(self, split: str) -> list[dict]:
        """Return one row an image for a run's predictions.csv."""
        return [
            {
                "split": split,
                "path": path,
                "label": self.classes[label],
                "predicted": self.classes[predicted],
                "confidence": round(float(probability[predicted]), 6),
                "label_probability": round(float(probability[label]), 6),
            }
            for path, label, predicted, probability in zip(
                self.paths, self.labels, self.predicted, self.probabilities, strict=True
            )
        ]


def predict(
    model: torch.nn.Module, images: ImageSet, config: Config, quiet: bool = True
) -> torch.Tensor:
    """Return the logits, float32 (N, C) on the CPU, of images that are never augmented.

    The model is used in eval mode; every part of it is left in the mode it was in. Where it is
    not `quiet`, a progress bar shows what takes more than two seconds.
    """
    device = next(model.parameters()).device
    dtype = choose_dtype(config, device)
    steps = -(-len(images) // batch_size_without_gradients(config, device))
    chunks = np.array_split(np.arange(len(images)), steps) if steps else []

    def prepare(pixels: torch.Tensor, _: int) -> torch.Tensor:
        return normalize(pixels, model.mean, model.std, dtype)

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    logits = []
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, dtype != torch.float32):
            work = batches(images, chunks, device, prepare)
            for pixels, _ in tqdm(work, "Measuring", len(chunks), unit="batch", leave=False,
                                  delay=2, disable=quiet or None):  # fmt: skip
                logits.append(model(pixels).float())
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(logits).cpu() if logits else torch.empty(0, len(images.classes))


def evaluate(model: torch.nn.Module, images: ImageSet, config: Config) -> Evaluation:
    """Measure a model on one set of images; every average is over images."""
    if len(images) == 0:
        raise ValueError("there are no images to evaluate on: this split is empty")
    return measure(predict(model, images, config, quiet=False), images)


def measure(logits: torch.Tensor, images: "ImageSet | Evaluation") -> Evaluation:
    """Measure logits, float32 (N, C), against the labels of the images that they are for.

    Those may be given by another network's result.
    """
    labels = torch.from_numpy(images.labels)
    predicted = logits.argmax(1)
    right = (predicted == labels).sum().item()
    top5 = logits.topk(min(5, logits.shape[1]), 1).indices
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=right / len(labels),
        interval=wilson_interval(right, len(labels)),
        top5=(top5 == labels[:, None]).any(1).float().mean().item(),
        labels=images.labels,
        predicted=predicted.numpy(),
        probabilities=logits.softmax(1).numpy(),
        classes=images.classes,
        paths=images.paths,
    )


def load_images(run: Run, data_root: str = "") -> Splits:
    """Load the images that a run was trained on; raises ConfigError where they have changed.

    They are looked for in `data_root`, or else in the run's own, if that folder is still there.
    """
    own = run.config.data_root
    if not data_root and (ROOT / Path(own).expanduser()).is_dir():
        data_root = own
    splits = data.load(run.config.replace(data_root=data_root))
    run.tie(splits.fingerprint, splits.classes)
    return splits


def open_test_set(run: Run, splits: Splits, model: torch.nn.Module | None = None) -> Evaluation:
    """Open the test set for a finished run, and write into its folder that, when and what.

    `metrics.json` gains `test` and `test_opened` (count, first and last time); `predictions.csv`
    gains a row for each test image.
    """
    run.tie(splits.fingerprint, splits.classes)
    model = (model or rebuild(run)).to(choose_device())
    result = evaluate(model, splits.test, run.config)
    metrics = run.metrics
    opened = metrics.get("test_opened", {"count": 0, "first": now()})
    metrics["test"] = result.summary()
    metrics["test_opened"] = {**opened, "count": opened["count"] + 1, "last": now()}
    run.write_predictions("test", result.rows("test"))
    run.write_json("metrics.json", metrics)
    return result
