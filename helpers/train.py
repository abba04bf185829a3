"""Training: one way for every network and data set of this project; the loop is in loop.py.

`fit` continues a run that was stopped at any moment to the same result, and loads a finished one.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn

from helpers import ROOT, data, distributed, models
from helpers.config import Config
from helpers.data import Splits
from helpers.epochs import stages
from helpers.evaluate import evaluate
from helpers.hardware import choose_device, keep_memory
from helpers.loop import Training, TrainingDiverged  # noqa: F401  (helpers.train.TrainingDiverged)
from helpers.runs import Run, find_runs, open_run


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
    distributed.wait()
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
    distributed.wait()
    model.load_state_dict(run.read_checkpoint("best.pt")["model"])
    model.eval()
    if not finished and distributed.is_first():
        _finish(model, splits, config, run, training)
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


def _finish(model: nn.Module, splits: Splits, config: Config, run: Run, training: Training) -> None:
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
