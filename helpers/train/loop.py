"""Training: one loop for every network and data set, continued to the same result when stopped.

Start with `train`: a run is a configuration.
"""

import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helpers import ROOT, data, models
from helpers.data.augment import augment, normalize, resize
from helpers.data.batches import batches, limit_validation, mix_seeds, shuffle
from helpers.data.images import Splits
from helpers.evaluate.evaluation import evaluate, predict
from helpers.models.device import (
    choose_device,
    choose_dtype,
    environment,
    keep_memory,
    mixed_precision,
)
from helpers.models.freezing import freeze, train_mode
from helpers.runs.config import Config, ConfigError
from helpers.runs.files import CannotWrite, lock
from helpers.runs.folder import Run, open_run
from helpers.runs.progress import tqdm
from helpers.runs.search import best_run, find_runs
from helpers.runs.text import reason
from helpers.train import features, processes
from helpers.train.optimizers import make_optimizer, make_scheduler
from helpers.train.tracking import tracked

OnEpoch = Callable[[dict], bool]  # gets an epoch's row of the history; True ends the run there


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message names the epoch and the step."""


def train(config: Config, on_epoch: OnEpoch | None = None) -> Run:
    """Load the images of a configuration, build its network, train it and return its run.

    A finished run is returned as it is, one that has begun continues; what it was fine-tuned from
    may be gone. The test images are not handed on. `on_epoch` and errors as in `fit`.
    """
    run = open_run(config)
    if run.usable and run.whole_checkpoint("best.pt"):
        with suppress(FileNotFoundError):  # the images need not be here any more
            splits = data.load(config, fetch=False)
            run.tie(splits.fingerprint, splits.classes)
        return run
    splits = data.load(config).without_test()
    begun = run.last_whole() is not None  # it holds all weights
    initial = config.replace(weights="none") if begun else config
    return fit(models.build(initial, len(splits.classes)), splits, config, on_epoch)


def fit(model: nn.Module, splits: Splits, config: Config, on_epoch: OnEpoch | None = None) -> Run:
    """Train a model on `splits.train`, choose the best epoch on `splits.val`, return the run.

    With `config.stages` one stage follows the other on the same weights, each with a new optimizer
    and schedule; early stopping ends a stage, and the best epoch is the best of all stages. What a
    frozen beginning makes of the images is computed once for a stage where that is exact, or in
    `config.feature_views` augmented views.

    The model ends on the CPU or GPU with the weights of its best epoch, in eval mode. Stopped at
    any moment, the next call continues after the last complete epoch; the result is the same as
    without the stop (bit for bit on the same CPU). A finished run is loaded, not trained again.
    `on_epoch` is called with each epoch's row of the history, as soon as it is saved; where it
    returns True, the run ends there, finished, with `stopped_at` (the epoch) in its status.
    Raises TrainingDiverged when the loss is not finite, and keeps the last good checkpoint.
    """
    keep_memory()
    torch.backends.cudnn.benchmark = True  # sizes repeat: finding the fastest kernels pays
    run = open_run(config)
    model.to(choose_device(), memory_format=torch.channels_last)
    with ExitStack() as stack:
        if processes.is_first():
            stack.enter_context(lock(run.folder / "training", f"training {run.name}"))
            run.tie(splits.fingerprint, splits.train.classes)
        processes.wait()
        finished = run.usable and bool(run.whole_checkpoint("best.pt"))
        processes.wait()
        if not finished:
            training = Training(model, splits, config, run)
            try:
                training.run_stages(on_epoch)
            except (KeyboardInterrupt, Exception) as error:
                with suppress(CannotWrite):  # a full disk has said so already
                    if isinstance(error, KeyboardInterrupt):
                        run.set_status("interrupted")
                    else:
                        run.set_status("failed", reason=reason(error))
                # A notebook keeps the traceback, which would keep the GPU's memory.
                traceback.clear_frames(error.__traceback__)
                del model, training
                raise
        processes.wait()
        best = run.read_checkpoint("best.pt")
        models.load_weights(model, best["model"], run.folder / "best.pt")
        model.eval()
        if processes.is_first():
            if not finished:
                training.finish(best["epoch"])
            (run.folder / "last.pt").unlink(missing_ok=True)  # nothing continues a finished run
        processes.wait()
    return run


def choose_run(name: str, dataset: str, data_root: str = "") -> Run:
    """Return the run `runs/name`, or with an empty name the best on validation of a data set.

    Where `runs` itself holds no finished run of that data set, the default network is trained on
    it first, with the images that `data_root` may hold. Raises FileNotFoundError when the named
    run does not exist or has not finished.
    """
    if name:
        # `runs` may not exist yet, or be a link: `..` leads out of it all the same.
        run = Run(Path(os.path.normpath(ROOT / "runs" / name)))
        if not run.finished:
            known = ", ".join(run.name for run in find_runs()) or "none"
            raise FileNotFoundError(f"runs/{name} is no finished run; finished are: {known}")
        return run
    run = best_run(dataset=dataset)
    if run is None:
        print(f"runs/ itself holds no finished run of {dataset} with validation images (name "
              "another by run=...): training the default network first")  # fmt: skip
        run = train(Config(dataset=dataset, data_root=data_root))
    return run


def stages_of(config: Config) -> list[Config]:
    """Return a configuration for each stage, with its own epochs, lr and freezing."""
    return [
        config.replace(
            stages=[],
            epochs=stage.epochs,
            lr=stage.lr or config.lr,
            freeze=stage.freeze or config.freeze,
        )
        for stage in config.stages
    ] or [config]


def image_size_of_epoch(config: Config, epoch: int) -> int:
    """Return the side of the training images of an epoch, counted from 1, in pixels.

    With `start_image_size` it grows in multiples of 16, linearly over the first 70 % of the
    epochs: small images are quick to look at while the network still learns the coarse things
    (Howard 2018, fast.ai's DAWNBench entry). Validation and test images are always full size.
    """
    start, final = config.start_image_size or config.image_size, config.image_size
    progress = min(1.0, (epoch - 1) / (0.7 * config.all_epochs))
    return min(final, max(start, round((start + (final - start) * progress) / 16) * 16))


class Training:
    """A training on its way: what changes from epoch to epoch can be saved and continued."""

    def __init__(self, model: nn.Module, splits: Splits, config: Config, run: Run):
        self.model, self.config, self.run = model, config, run
        self.train, self.val = splits.train, limit_validation(splits.val, config)
        smallest = len(self.train) // math.ceil(len(self.train) / config.batch_size)
        if smallest < processes.world_size():
            raise ConfigError(f"{processes.world_size()} processes cannot share a batch of "
                              f"{smallest} images: use fewer, or a larger batch_size")  # fmt: skip
        self.own_val = self.val  # this process's part
        if processes.world_size() > 1:
            self.own_val = self.val.subset(processes.share(np.arange(len(self.val))))
        self.device = next(model.parameters()).device
        self.dtype = choose_dtype(config, self.device)
        self.steps = config.steps_per_epoch or math.ceil(len(self.train) / config.batch_size)
        self.stages = stages_of(config)
        self.history: list[dict] = []
        self.best = -math.inf
        self.stopped = False
        self.saved: dict = {}  # the last checkpoint, until the stage it was written in continues
        self.features: features.Features | None = None
        self.feature_summaries: dict[int, dict] = {}  # by stage
        self.writes = processes.is_first()
        if last := run.last_whole():
            self._restore(last)
        elif run.trained and (best := run.whole_checkpoint("best.pt")):
            self._restore({**best, "history": run.history})
            self.stopped = "stopped_at" in run.status
        elif self.writes:
            run.write_json("environment.json", environment())

    def run_stages(self, on_epoch: OnEpoch | None) -> None:
        """Train stage after stage, epoch after epoch, from where the run was left."""
        epochs = self.config.all_epochs
        done = len(self.history) * self.steps
        quiet = None if self.writes else True  # None: quiet where nobody watches
        bar = tqdm(total=epochs * self.steps, initial=done, unit="step", leave=False, disable=quiet)
        with tracked(self.run, self.config) as log, bar:
            for number in range(1, len(self.stages) + 1):
                if self.stopped or self._is_over(number):
                    continue
                self._begin_stage(number)
                while not (self.stopped or self._is_over(number)):
                    epoch = len(self.history) + 1
                    bar.set_description(f"Epoch {epoch}/{epochs}")
                    if self.writes:
                        self.run.set_status("running", epoch=epoch)
                    row = {"epoch": epoch, "stage": number}
                    row |= {"lr": self.optimizer.param_groups[0]["lr"]}
                    row |= self._train_epoch(epoch, bar)
                    row |= self._validate()
                    self._end_epoch(row)
                    log(row)
                    self.stopped = on_epoch is not None and on_epoch(row)

    def _begin_stage(self, number: int) -> None:
        """Freeze, compute the features of the frozen beginning, make a new optimizer."""
        self.stage, model = self.stages[number - 1], self.model
        freeze(model, self.stage.freeze)
        if processes.world_size() == 1:
            self.features = features.compute(
                model, self.train, self.val, self.stage, self.dtype, self.run.folder
            )
        learner = self.features.rest if self.features else model
        self.learner = processes.parallel(learner, self.device)
        self.optimizer = make_optimizer(model, self.stage)
        self.scheduler = make_scheduler(self.optimizer, self.stage, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if self.saved and self.history[-1]["stage"] == number:
            self._continue_stage(self.saved)
        self.saved = {}

    def _continue_stage(self, checkpoint: dict) -> None:
        """Restore the optimizer; after a damaged last.pt, begin it anew where the schedule was."""
        if "optimizer" in checkpoint:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            if self.scheduler:
                self.scheduler.load_state_dict(checkpoint["scheduler"])
            if self.scaler.is_enabled() and checkpoint["scaler"]:  # {} on another kind of device
                self.scaler.load_state_dict(checkpoint["scaler"])
            return
        for row in (row for row in self.history if row["stage"] == self.history[-1]["stage"]):
            if self.stage.schedule == "plateau":
                self.scheduler.step(self._score(row))
            elif self.scheduler:
                for _ in range(1 if self.stage.schedule == "step" else self.steps):
                    self.optimizer.step()  # without gradients it changes nothing
                    self.scheduler.step()

    def _train_epoch(self, epoch: int, bar: tqdm) -> dict:
        """Run one epoch; nothing in the loop waits for a GPU except the bar, twice a second."""
        torch.manual_seed(mix_seeds(self.config.seed, epoch, processes.rank()))  # dropout
        train_mode(self.model)
        batch_size, smoothing = self.config.batch_size, self.config.label_smoothing
        chunks = shuffle(self.train, self.steps, batch_size, self.config.seed, epoch)
        meter = _Meter(bar, epoch, len(chunks), self.stage.lr)
        loaded = meter.watch(self._batches(epoch, chunks))
        for (images, labels), chunk in zip(loaded, chunks, strict=True):
            with mixed_precision(self.device, self.dtype):
                logits = self.learner(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            # The gradients are averaged over processes, whose parts may differ by an image.
            part = len(labels) * processes.world_size() / len(chunk)
            self.scaler.scale(loss * part).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.config.schedule in ("one_cycle", "cosine"):
                self.scheduler.step()
            meter.add(loss.detach(), logits.detach(), labels)
        return meter.summary()

    def _batches(self, epoch: int, chunks: list[np.ndarray]) -> Iterator[tuple]:
        """Yield this process's part of each batch: augmented images, or frozen features."""
        config, rank = self.config, processes.rank()
        own = [processes.share(chunk) for chunk in chunks]
        if self.features:
            views = self.features.train
            images, prepare = views[(epoch - 1) % len(views)], features.prepare
            return batches(images, own, self.device, prepare)
        size = image_size_of_epoch(config, epoch)

        def prepare(pixels: torch.Tensor, step: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(mix_seeds(config.seed, epoch, step, rank))
            pixels = augment(pixels, config.augmentations, generator)
            return normalize(resize(pixels, size), self.model.mean, self.model.std, self.dtype)

        return batches(self.train, own, self.device, prepare)

    def _validate(self) -> dict:
        if not len(self.val):
            return {}
        if self.features:
            logits = self.features.predict(self.config, self.dtype, self.device)
        else:
            logits = processes.join_rows(predict(self.model, self.own_val, self.config))
        labels = torch.from_numpy(self.val.labels)
        return {
            "val_loss": F.cross_entropy(logits, labels).item(),
            "val_accuracy": (logits.argmax(1) == labels).float().mean().item(),
        }

    def _end_epoch(self, row: dict) -> None:
        """Step the schedule, keep the best weights, save everything that the next epoch needs."""
        if self.config.schedule == "step":
            self.scheduler.step()
        elif self.config.schedule == "plateau":
            self.scheduler.step(self._score(row))
        self.history.append(row)
        if self.features:
            rows = [r for r in self.history if r["stage"] == row["stage"]]
            self.feature_summaries[row["stage"]] = self.features.summary(
                sum(r["images"] for r in rows), len(rows)
            )
        score = self._score(row) if len(self.val) else -math.inf
        is_best = not len(self.val) or row["epoch"] == 1 or score > self.best
        self.best = max(self.best, score)
        if self.writes:
            self._write_checkpoints(is_best)
            self.run.write_csv("history.csv", self.history)

    def _write_checkpoints(self, is_best: bool) -> None:
        """Write best.pt, which needs no other file or run to be used, and last.pt, to continue."""
        shared = {
            "model": self.model.state_dict(),
            "mean": self.model.mean,
            "std": self.model.std,
            "history": self.history,
            "config": self.config.model_dump(),
        }
        if is_best:
            own = {"epoch": self.history[-1]["epoch"], "classes": self.train.classes}
            self.run.write_checkpoint("best.pt", shared | own)
        own = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "features": self.feature_summaries,
        }
        self.run.write_checkpoint("last.pt", shared | own)

    def _restore(self, checkpoint: dict) -> None:
        models.load_weights(self.model, checkpoint["model"], self.run.folder / "last.pt")
        if "mean" in checkpoint:  # not in files of older versions
            self.model.mean, self.model.std = checkpoint["mean"], checkpoint["std"]
        self.history = checkpoint["history"]
        scores = [self._score(row) for row in self.history] if len(self.val) else []
        self.best = checkpoint.get("best", max(scores, default=-math.inf))
        self.feature_summaries = checkpoint.get("features", {})
        self.saved = checkpoint
        if self.writes:
            self.run.write_csv("history.csv", self.history)

    def finish(self, best_epoch: int) -> None:
        """Measure the network, which has the weights of its best epoch, and close the run."""
        seconds = sum(row["seconds"] for row in self.history)
        computed = list(self.feature_summaries.values())  # by the stages that had any
        layers = freeze(self.model, self.stages[-1].freeze)
        metrics = {
            "best_epoch": best_epoch,
            "epochs": len(self.history),
            "train_seconds": round(seconds + sum(part["seconds"] for part in computed), 2),
            "data_wait_share": sum(row["wait_seconds"] for row in self.history) / seconds,
            "images_per_second": sum(row["images"] for row in self.history) / seconds,
            "dtype": str(self.dtype).removeprefix("torch."),
            "params": sum(layer.params for layer in layers),
            "trainable": sum(layer.trained for layer in layers),  # in the last stage
            "features": computed,
            "train": {"loss": self.history[best_epoch - 1]["train_loss"],
                      "accuracy": self.history[best_epoch - 1]["train_accuracy"]},
        }  # fmt: skip
        if len(self.val):
            result = evaluate(self.model, self.val, self.config)
            metrics["val"] = result.summary()
            self.run.write_predictions("val", result.rows("val"))
        kept = {name: x for name, x in self.run.metrics.items() if name == "test_opened"}
        self.run.write_json("metrics.json", metrics | kept)
        stopped = {"stopped_at": len(self.history)} if self.stopped else {}
        self.run.set_status("finished", **stopped)

    def _score(self, row: dict) -> float:
        """Return the monitored figure, larger is better; a loss that is no number is the worst."""
        if self.config.monitor == "val_accuracy":
            return row["val_accuracy"]
        return -math.inf if math.isnan(row["val_loss"]) else -row["val_loss"]

    def _is_over(self, number: int) -> bool:
        """Say whether a stage has had its epochs, or used up early stopping's patience."""
        if self.history and self.history[-1]["stage"] > number:
            return True
        rows = [row for row in self.history if row["stage"] == number]
        if len(rows) < self.stages[number - 1].epochs and rows and self.config.early_stopping:
            best = max(rows, key=self._score)["epoch"]
            return rows[-1]["epoch"] - best >= self.config.early_stopping
        return len(rows) >= self.stages[number - 1].epochs


class _Meter:
    """Loss, accuracy, speed and waiting of one epoch, shown while it runs."""

    def __init__(self, bar: tqdm, epoch: int, steps: int, lr: float):
        self.bar, self.epoch, self.steps, self.lr = bar, epoch, steps, lr
        self.losses: list[torch.Tensor] = []
        self.sizes: list[int] = []
        self.right: torch.Tensor | int = 0
        self.waited = 0.0
        self.started = self.shown = time.perf_counter()

    def watch(self, loaded: Iterable[tuple]) -> Iterator[tuple]:
        """Pass batches on and measure how long they let the loop wait."""
        asked = time.perf_counter()
        for batch in loaded:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in a step; only every half a second the device is asked for figures to show."""
        self.losses.append(loss)
        self.sizes.append(len(labels))
        self.right = self.right + (logits.argmax(1) == labels).sum()
        self.bar.update()
        if time.perf_counter() - self.shown > 0.5:
            self.shown = time.perf_counter()
            seen, loss = sum(self.sizes), self._finite_losses().mean().item()
            self.bar.set_postfix_str(
                f"loss {loss:.3f}, accuracy {self.right.item() / seen:.1%}, "
                f"{seen / (self.shown - self.started):.0f} images/s"
            )

    def summary(self) -> dict:
        """Return the epoch's part of a row of the history, over the images of all processes."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        total_loss = (self._finite_losses().double() * sizes).sum()
        sums = processes.add_up(torch.stack([total_loss, self.right.cpu(), sizes.sum()]))
        images = int(sums[2])
        return {
            "train_loss": sums[0].item() / images,
            "train_accuracy": sums[1].item() / images,
            "images": images,
            "seconds": time.perf_counter() - self.started,
            "wait_seconds": self.waited,
        }

    def _finite_losses(self) -> torch.Tensor:
        values = torch.stack(self.losses).float().cpu()
        if not values.isfinite().all():
            step = int((~values.isfinite()).nonzero()[0, 0]) + 1
            raise TrainingDiverged(
                f"the loss became {values[step - 1].item()} in epoch {self.epoch}, step {step} of "
                f"{self.steps}: use a smaller lr than {self.lr:g}, or batch_norm"
            )
        return values
