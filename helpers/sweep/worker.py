"""One worker of a sweep: a process that trains one trial after another and stays warm.

Started by `helpers.sweep`, which tells it on its standard input what to do.
"""

import gc
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from helpers.runs.config import Config
from helpers.runs.folder import open_run
from helpers.sweep import queue
from helpers.sweep.file import Definition, best_of, read_sweep
from helpers.train.loop import TrainingDiverged, train

TOO_LARGE = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def work(
    study: optuna.Study,
    definition: Definition,
    config: Config,
    until: float = math.inf,
    number: int = 0,
    on_trial: Callable[[], None] = lambda: None,
    parent: int | None = None,
) -> None:
    """Run trials until the queue is empty, the target is reached or the clock says `until`.

    `number` tells this worker from others on the same machine; `on_trial` is called before each.
    `parent` is the process without which it ends, by default this one's parent.
    """
    parent = parent or os.getppid()
    while time.time() < until and not queue.is_target_reached(study, definition):
        on_trial()
        try:
            trial = queue.claim(study, definition, config, number)
        except UpdateFinishedTrialError:  # given back in the moment that it was taken
            continue
        if trial is None:
            return
        try:
            _run_trial(study, trial, definition, config, parent)
        except UpdateFinishedTrialError:  # it was silent for long, and was given to another worker
            continue
        except KeyboardInterrupt:
            with suppress(UpdateFinishedTrialError, ValueError):
                trial.set_user_attr("interrupted", True)
                study.tell(trial, state=TrialState.FAIL)
            raise


def _run_trial(
    study: optuna.Study, trial: optuna.Trial, definition: Definition, config: Config, parent: int
) -> None:
    """Train one point; what is not searched or fixed by the sweep's file comes from `config`."""
    rule, sign = definition.hyperband, definition.sign
    values: list[float] = []

    def report(row: dict) -> None:
        values.append(row[definition.metric])
        trial.report(values[-1], int(row["epoch"]))

    def on_epoch(row: dict) -> bool:
        report(row)
        trial.set_user_attr("seen", time.time())
        if os.getppid() != parent:
            raise KeyboardInterrupt  # the sweep was killed
        return rule is not None and rule.stops(
            [sign * value for value in values], _histories(study, sign)
        )

    try:
        parameters = {p.name: p.suggest(trial) for p in definition.parameters}
        config = definition.configure(config, parameters, f"{trial.user_attrs['slot']:04d}")
        trial.set_user_attr("run", config.name)
        for row in open_run(config).history:  # of a worker that died
            report(row)
        run = train(config, on_epoch)
        best = best_of(values, definition.metric)
        if math.isnan(best):
            raise ValueError(f"{definition.metric} was never a finite number")
    except (RuntimeError, ValueError, MemoryError) as error:
        if not is_its_own_fault(error):
            raise
        trial.set_user_attr("reason", (str(error) or type(error).__name__).splitlines()[0])
        study.tell(trial, state=TrialState.FAIL)
        run = None
    if run is None:  # the error is gone, and with it what its traceback held
        gc.collect()
        torch.cuda.empty_cache()
        return
    with suppress(ValueError):  # given to another worker
        if "stopped_at" in run.status:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, best)


def is_its_own_fault(error: Exception) -> bool:
    """Say whether a trial's parameters are to blame: impossible, diverged or too large."""
    return (
        not isinstance(error, RuntimeError)
        or isinstance(error, TrainingDiverged | torch.OutOfMemoryError)
        or any(words in str(error) for words in TOO_LARGE)
    )


def _histories(study: optuna.Study, sign: int) -> list[list[float]]:
    """Return the metric of all runs by epoch, smaller is better; of a run, its longest try."""
    longest = [max((trial.intermediate_values for trial in tries), key=len)
               for tries in queue.slots(study).values()]  # fmt: skip
    return [[sign * values[epoch] for epoch in sorted(values)] for values in longest if values]


def main() -> None:
    """Work as one of several processes, as told on standard input."""
    # The sweep ends its workers, by Ctrl-C too; they then say that it was no death.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    order = json.load(sys.stdin)
    os.chdir(order["folder"])
    config = Config(**order["config"])
    definition = read_sweep(order["file"], config)
    study = queue.open_study(definition, config, order["storage"])
    work(study, definition, config, order["until"], order["number"], parent=order["parent"])


if __name__ == "__main__":
    main()
