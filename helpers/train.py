"""The training loop: one for every network and data set of this project.

`fit` continues a run that was stopped at any moment to the same result, and loads a finished one.
"""

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from helpers import ROOT, data, distributed, models
from helpers.augment import augment, normalization, normalize, resize
from helpers.config import Config
from helpers.data import Splits, batches
from helpers.epochs import image_size_of_epoch, limit_validation, mix_seeds, shuffle
from helpers.evaluate import evaluate, predict
from helpers.hardware import choose_device, choose_dtype, environment, keep_memory
from helpers.optimizers import make_optimizer, make_scheduler
from helpers.runs import Run, find_runs, open_run
from helpers.wandb_log import start_tracking


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message names the epoch and the step."""


def fit(
    model: nn.Module,
    splits: Splits,
    config: Config,
    on_epoch: Callable[[dict], bool] | None = None,
) -> Run:
    """Train a model on `splits.train`, choose the best epoch on `splits.val`, return the run.

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
    distributed.wait()
    if not finished:
        training = _Training(model, splits, config, run, device)
        try:
            training.run_epochs(on_epoch)
        except KeyboardInterrupt:
            run.set_status("interrupted")
            raise
        except Exception as error:
            run.set_status("failed", reason=str(error).splitlines()[0] if str(error) else "")
            raise
    distributed.wait()
    model.load_state_dict(run.read_checkpoint("best.pt")["model"])
    model.eval()
    if not finished and distributed.is_first():
        _finish(model, splits, config, run, training.stopped)
    distributed.wait()
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


def _finish(model: nn.Module, splits: Splits, config: Config, run: Run, stopped: bool) -> None:
    history = run.history
    best = run.read_checkpoint("best.pt")["epoch"]
    seconds = sum(row["seconds"] for row in history)
    metrics = {
        "best_epoch": best,
        "epochs": len(history),
        "train_seconds": round(seconds, 2),
        "data_wait_share": sum(row["wait_seconds"] for row in history) / seconds,
        "images_per_second": sum(row["images"] for row in history) / seconds,
        "params": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train": {"loss": history[best - 1]["train_loss"],
                  "accuracy": history[best - 1]["train_accuracy"]},
    }  # fmt: skip
    if len(splits.val):
        result = evaluate(model, splits.val, config)
        metrics["val"] = result.summary()
        run.write_predictions("val", result.rows("val"))
    run.write_json("metrics.json", metrics)
    run.set_status("finished", **({"stopped_at": len(history)} if stopped else {}))


class _Training:
    """Hold what changes from epoch to epoch, so that it can be saved and continued."""

    def __init__(
        self, model: nn.Module, splits: Splits, config: Config, run: Run, device: torch.device
    ):
        self.model, self.config, self.run, self.device = model, config, run, device
        self.parallel = distributed.parallel(model, device)
        self.train, self.val = splits.train, limit_validation(splits.val, config)
        self.dtype = choose_dtype(config, device)
        self.steps = config.steps_per_epoch or math.ceil(len(self.train) / config.batch_size)
        self.optimizer = make_optimizer(model, config)
        self.scheduler = make_scheduler(self.optimizer, config, self.steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.history: list[dict] = []
        self.best = -math.inf
        self.stopped = False
        if (run.folder / "last.pt").exists():
            self._restore(run.read_checkpoint("last.pt"))
        else:
            run.write_json("environment.json", environment())

    def run_epochs(self, on_epoch: Callable[[dict], bool] | None) -> None:
        config = self.config
        total = config.epochs * self.steps
        done = len(self.history) * self.steps
        log, stop_tracking = start_tracking(self.run, config)
        quiet = None if distributed.is_first() else True  # None: quiet where nobody watches
        bar = tqdm(total=total, initial=done, unit="step", leave=False, disable=quiet)
        with bar:
            while len(self.history) < config.epochs and not (self.stopped or self._is_stale()):
                epoch = len(self.history) + 1
                bar.set_description(f"Epoch {epoch}/{config.epochs}")
                self.run.set_status("running", epoch=epoch)
                row = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
                row |= self._train_epoch(epoch, bar)
                row |= self._validate()
                self._end_epoch(row)
                log(row)
                self.stopped = on_epoch is not None and on_epoch(row)
        stop_tracking()

    def _train_epoch(self, epoch: int, bar) -> dict:
        """Run one epoch; nothing in the loop waits for a GPU except the bar, twice a second."""
        config, model = self.config, self.model
        rank = distributed.rank()
        torch.manual_seed(mix_seeds(config.seed, epoch, rank))  # dropout
        chunks = shuffle(len(self.train), self.steps, config.batch_size, config.seed, epoch)
        own = [distributed.share(chunk) for chunk in chunks]
        mean, std = normalization(config)
        size = image_size_of_epoch(config, epoch)

        def prepare(pixels: torch.Tensor, step: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(mix_seeds(config.seed, epoch, step, rank))
            pixels = augment(pixels, config.augmentations, generator)
            return normalize(resize(pixels, size), mean, std, self.dtype)

        model.train()
        losses, right = [], torch.zeros((), dtype=torch.int64, device=self.device)
        seen, waited, shown = 0, 0.0, time.perf_counter()
        started = ready = time.perf_counter()
        loaded = batches(self.train, own, self.device, prepare)
        for (pixels, labels), chunk in zip(loaded, chunks, strict=True):
            waited += time.perf_counter() - ready
            with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
                logits = self.parallel(pixels)
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            # The gradients are averaged over processes, whose parts may differ by an image.
            part = len(labels) * distributed.world_size() / len(chunk)
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
        sums = distributed.add_up(torch.stack([total_loss, right.cpu(), sizes.sum()]))
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
                f"{self.steps}: use a smaller lr than {self.config.lr:g}, or batch_norm"
            )
        return values.mean().item()

    def _validate(self) -> dict:
        if not len(self.val):
            return {}
        own = self.val.subset(distributed.share(np.arange(len(self.val))))
        logits = distributed.join_rows(predict(self.model, own, self.config))
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
        if not len(self.val) or self._score(row) > self.best:
            self.best = self._score(row) if len(self.val) else self.best
            self.run.write_checkpoint(
                "best.pt",
                {
                    "model": self.model.state_dict(),
                    "epoch": row["epoch"],
                    "classes": self.train.classes,
                    "config": self.config.model_dump(),
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
            },
        )
        self.run.write_csv("history.csv", self.history)

    def _restore(self, checkpoint: dict) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.history = checkpoint["history"]
        self.best = checkpoint["best"]
        self.run.write_csv("history.csv", self.history)

    def _score(self, row: dict) -> float:
        """Return the monitored figure, larger is better."""
        monitor = self.config.monitor
        return -row[monitor] if monitor == "val_loss" else row[monitor]

    def _is_stale(self) -> bool:
        """Say whether early stopping's patience is used up."""
        patience = self.config.early_stopping
        if not patience or not self.history:
            return False
        best = max(self.history, key=self._score)["epoch"]
        return len(self.history) - best >= patience


def main() -> None:
    """Train the configuration in a JSON file; `torchrun` starts this on several processes."""
    distributed.join()
    config = Config.load(sys.argv[1])
    if distributed.is_first():
        data.load(config)  # decodes once, before the others look
    distributed.wait()
    splits = data.load(config)
    fit(models.build(config, len(splits.classes)), splits, config)


if __name__ == "__main__":
    main()
