"""Training: one loop for every network and data set, continued at the same result when stopped.

Start with `fit`: it continues a run that was stopped at any moment, and loads a finished one.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from helpers import ROOT, data, models
from helpers.config import Config
from helpers.data.augment import augment, normalize, resize
from helpers.data.batches import batches, limit_validation, mix_seeds, shuffle
from helpers.data.images import Splits
from helpers.evaluate.evaluation import evaluate, predict
from helpers.models.device import choose_device, choose_dtype, environment, keep_memory
from helpers.models.freezing import freeze
from helpers.runs import Run, find_runs, open_run
from helpers.train import features, processes
from helpers.train.optimizers import make_optimizer, make_scheduler
from helpers.train.tracking import start_tracking


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message names the epoch and the step."""


def fit(
    model: nn.Module,
    splits: Splits,
    config: Config,
    on_epoch: Callable[[dict], bool] | None = None,
) -> Run:
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
    run = open_run(config)
    device = choose_device()
    model.to(device, memory_format=torch.channels_last)
    finished = run.finished
    processes.wait()
    if not finished:
        training = Training(model, splits, config, run, device)
        try:
            training.run_stages(on_epoch)
        except KeyboardInterrupt:
            run.set_status("interrupted")
            raise
        except Exception as error:
            run.set_status("failed", reason=str(error).splitlines()[0] if str(error) else "")
            raise
    processes.wait()
    model.load_state_dict(run.read_checkpoint("best.pt")["model"])
    model.eval()
    if not finished and processes.is_first():
        _finish(model, splits, config, run, training)
    processes.wait()
    return run


def choose_run(name: str, dataset: str) -> Run:
    """Return the run `runs/name`, or with an empty name the best on validation of a data set.

    Where no run of that data set has finished, the default network is trained on it first.
    Raises FileNotFoundError when the named run does not exist or has not finished.
    """
    if name:
        run = Run(ROOT / "runs" / name)
        if not run.finished:
            known = ", ".join(run.name for run in find_runs()) or "none"
            raise FileNotFoundError(f"runs/{name} is no finished run; finished are: {known}")
        return run
    runs = [run for run in find_runs(dataset=dataset) if "val" in run.metrics]
    if runs:
        return max(runs, key=lambda run: run.metrics["val"]["accuracy"])
    config = Config(dataset=dataset)
    print(f"No finished run of {dataset} yet: training the default network first")
    splits = data.load(config)
    return fit(models.build(config, len(splits.classes)), splits, config)


def _finish(
    model: nn.Module, splits: Splits, config: Config, run: Run, training: "Training"
) -> None:
    history = run.history
    best = run.read_checkpoint("best.pt")["epoch"]
    seconds = sum(row["seconds"] for row in history)
    features = list(training.feature_summaries.values())  # the stages that had any
    layers = models.freeze(model, stages(config)[-1].freeze)
    metrics = {
        "best_epoch": best,
        "epochs": len(history),
        "train_seconds": round(seconds + sum(part["seconds"] for part in features), 2),
        "data_wait_share": sum(row["wait_seconds"] for row in history) / seconds,
        "images_per_second": sum(row["images"] for row in history) / seconds,
        "params": sum(layer.params for layer in layers),
        "trainable": sum(layer.trained for layer in layers),  # in the last stage
        "features": features,
        "train": {"loss": history[best - 1]["train_loss"],
                  "accuracy": history[best - 1]["train_accuracy"]},
    }  # fmt: skip
    if len(splits.val):
        result = evaluate(model, splits.val, config)
        metrics["val"] = result.summary()
        run.write_predictions("val", result.rows("val"))
    run.write_json("metrics.json", metrics)
    run.set_status("finished", **({"stopped_at": len(history)} if training.stopped else {}))


def stages(config: Config) -> list[Config]:
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
    epochs = sum(stage.epochs for stage in stages(config))
    progress = min(1.0, (epoch - 1) / (0.7 * epochs))
    return min(final, max(start, round((start + (final - start) * progress) / 16) * 16))


class Training:
    """A training on its way: what changes from epoch to epoch can be saved and continued."""

    def __init__(
        self, model: nn.Module, splits: Splits, config: Config, run: Run, device: torch.device
    ):
        self.model, self.config, self.run, self.device = model, config, run, device
        self.train, self.val = splits.train, limit_validation(splits.val, config)
        self.dtype = choose_dtype(config, device)
        self.steps = config.steps_per_epoch or math.ceil(len(self.train) / config.batch_size)
        self.stages = stages(config)
        self.history: list[dict] = []
        self.best = -math.inf
        self.stopped = False
        self.saved: dict = {}  # the last checkpoint, until the stage it was written in continues
        self.features: features.Features | None = None
        self.feature_summaries: dict[int, dict] = {}  # by stage
        if (run.folder / "last.pt").exists():
            self._restore(run.read_checkpoint("last.pt"))
        else:
            run.write_json("environment.json", environment())

    def run_stages(self, on_epoch: Callable[[dict], bool] | None) -> None:
        """Train stage after stage, from where the run was left."""
        epochs = sum(stage.epochs for stage in self.stages)
        done = len(self.history) * self.steps
        log, stop_tracking = start_tracking(self.run, self.config)
        quiet = None if processes.is_first() else True  # None: quiet where nobody watches
        bar = tqdm(total=epochs * self.steps, initial=done, unit="step", leave=False, disable=quiet)
        with bar:
            for number in range(1, len(self.stages) + 1):
                if self._is_over(number):
                    continue
                self._begin_stage(number)
                while not (self.stopped or self._is_over(number)):
                    epoch = len(self.history) + 1
                    bar.set_description(f"Epoch {epoch}/{epochs}")
                    self.run.set_status("running", epoch=epoch)
                    row = {"epoch": epoch, "stage": number}
                    row |= {"lr": self.optimizer.param_groups[0]["lr"]}
                    row |= self._train_epoch(epoch, bar)
                    row |= self._validate()
                    self._end_epoch(row)
                    log(row)
                    self.stopped = on_epoch is not None and on_epoch(row)
        stop_tracking()

    def _begin_stage(self, number: int) -> None:
        """Freeze, compute the features of the frozen beginning, make a new optimizer."""
        self.stage, model = self.stages[number - 1], self.model
        freeze(model, self.stage.freeze)
        if processes.world_size() == 1:
            self.features = features.compute(
                model, self.train, self.val, self.stage, self.dtype, self.run.folder
            )
        learner = self.features.rest if self.features else model
        self.parallel = processes.parallel(learner, self.device)
        if processes.world_size() > 1:
            freeze(model, self.stage.freeze)  # again: batch norms may have been replaced
        self.optimizer = make_optimizer(model, self.stage)
        self.scheduler = make_scheduler(self.optimizer, self.stage, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if self.saved and self.history[-1]["stage"] == number:
            self.optimizer.load_state_dict(self.saved["optimizer"])
            if self.scheduler:
                self.scheduler.load_state_dict(self.saved["scheduler"])
            self.scaler.load_state_dict(self.saved["scaler"])
        self.saved = {}

    def _train_epoch(self, epoch: int, bar) -> dict:
        """Run one epoch; nothing in the loop waits for a GPU except the bar, twice a second."""
        config, model = self.config, self.model
        rank = processes.rank()
        torch.manual_seed(mix_seeds(config.seed, epoch, rank))  # dropout
        chunks = shuffle(self.train, self.steps, config.batch_size, config.seed, epoch)
        own = [processes.share(chunk) for chunk in chunks]
        size = image_size_of_epoch(config, epoch)

        def prepare(pixels: torch.Tensor, step: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(mix_seeds(config.seed, epoch, step, rank))
            pixels = augment(pixels, config.augmentations, generator)
            return normalize(resize(pixels, size), model.mean, model.std, self.dtype)

        model.train()
        losses, right = [], torch.zeros((), dtype=torch.int64, device=self.device)
        seen, waited, shown = 0, 0.0, time.perf_counter()
        started = ready = time.perf_counter()
        images = self.train
        if self.features:
            images, prepare = self.features.train, features.prepare
            images.view = (epoch - 1) % len(images.values)
        loaded = batches(images, own, self.device, prepare)
        for (pixels, labels), chunk in zip(loaded, chunks, strict=True):
            waited += time.perf_counter() - ready
            with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
                logits = self.parallel(pixels)
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            # The gradients are averaged over processes, whose parts may differ by an image.
            part = len(labels) * processes.world_size() / len(chunk)
            self.scaler.scale(loss * part).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if config.schedule in ("one_cycle", "cosine"):
                self.scheduler.step()
            losses.append(loss.detach())
            right += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            bar.update()
            if time.perf_counter() - shown > 0.5:
                shown = time.perf_counter()
                mean_loss = self._mean_loss(losses, epoch)
                bar.set_postfix_str(
                    f"loss {mean_loss:.3f}, accuracy {right.item() / seen:.1%}, "
                    f"{seen / (shown - started):.0f} images/s"
                )
            ready = time.perf_counter()
        self._mean_loss(losses, epoch)
        sizes = torch.tensor([len(chunk) for chunk in own], dtype=torch.float64)
        total_loss = (torch.stack(losses).double().cpu() * sizes).sum()
        sums = processes.add_up(torch.stack([total_loss, right.cpu(), sizes.sum()]))
        images = int(sums[2])
        return {
            "train_loss": sums[0].item() / images,
            "train_accuracy": sums[1].item() / images,
            "images": images,
            "seconds": time.perf_counter() - started,
            "wait_seconds": waited,
        }

    def _mean_loss(self, losses: list[torch.Tensor], epoch: int) -> float:
        values = torch.stack(losses).float().cpu()
        if not values.isfinite().all():
            step = int((~values.isfinite()).nonzero()[0, 0]) + 1
            raise TrainingDiverged(
                f"the loss became {values[step - 1].item()} in epoch {epoch}, step {step} of "
                f"{self.steps}: use a smaller lr than {self.stage.lr:g}, or batch_norm"
            )
        return values.mean().item()

    def _validate(self) -> dict:
        if not len(self.val):
            return {}
        if self.features:
            logits = self.features.predict(self.config, self.dtype, self.device)
        else:
            own = self.val.subset(processes.share(np.arange(len(self.val))))
            logits = processes.join_rows(predict(self.model, own, self.config))
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
        if not len(self.val) or self._score(row) > self.best:
            self.best = self._score(row) if len(self.val) else self.best
            self.run.write_checkpoint(
                "best.pt",
                {
                    "model": self.model.state_dict(),
                    "epoch": row["epoch"],
                    "classes": self.train.classes,
                    "config": self.config.model_dump(),
                    "mean": self.model.mean,
                    "std": self.model.std,
                },
            )
        self.run.write_checkpoint(
            "last.pt",
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict() if self.scheduler else None,
                "scaler": self.scaler.state_dict(),
                "history": self.history,
                "best": self.best,
                "features": self.feature_summaries,
            },
        )
        self.run.write_csv("history.csv", self.history)

    def _restore(self, checkpoint: dict) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.history = checkpoint["history"]
        self.best = checkpoint["best"]
        self.feature_summaries = checkpoint["features"]
        self.saved = checkpoint
        self.run.write_csv("history.csv", self.history)

    def _score(self, row: dict) -> float:
        """Return the monitored figure, larger is better."""
        monitor = self.config.monitor
        return -row[monitor] if monitor == "val_loss" else row[monitor]

    def _is_over(self, number: int) -> bool:
        """Say whether a stage has had its epochs, or used up early stopping's patience."""
        if self.history and self.history[-1]["stage"] > number:
            return True
        rows = [row for row in self.history if row["stage"] == number]
        if len(rows) < self.stages[number - 1].epochs and rows and self.config.early_stopping:
            best = max(rows, key=self._score)["epoch"]
            return rows[-1]["epoch"] - best >= self.config.early_stopping
        return len(rows) >= self.stages[number - 1].epochs
