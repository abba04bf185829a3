"""Sweeps: many runs from one file in wandb's own YAML, offline by Optuna or online by wandb.

    python -m helpers.sweep sweeps/tiny.yaml [--workers 2] [--dry-run] [--storage PATH]

Each run is an ordinary run folder below runs/sweeps/NAME; all else reads those. A sweep that was
stopped at any moment continues; the test set takes no part in it.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

from helpers import ROOT, data
from helpers.models.weights import find_checkpoint
from helpers.runs.config import Config, ConfigError, read_values
from helpers.runs.files import CannotWrite, readable_json, write_atomically, write_json
from helpers.runs.folder import Run
from helpers.runs.progress import tqdm
from helpers.runs.search import find_runs
from helpers.runs.text import abridge, markdown_table, reason
from helpers.sweep import queue
from helpers.sweep.file import Definition, best_of, read_sweep
from helpers.sweep.worker import is_its_own_fault, work
from helpers.train.loop import train
from helpers.train.tracking import require_key


@dataclass(frozen=True)
class Sweep:
    """A sweep's outcome: its finished runs in the order of its queue, and why others failed.

    Runs that other machines trained are in their folders, not here.
    """

    definition: Definition
    folder: Path
    runs: list[Run]
    failed: dict[str, str]  # parameters: reason

    @property
    def best(self) -> Run:
        """The run with the best value of the sweep's metric in any epoch.

        Raises RuntimeError where none has finished.
        """
        if not self.runs:
            why = abridge("; ".join(f"{k}: {v}" for k, v in self.failed.items()), 200)
            raise RuntimeError(f"no run of sweep {self.definition.name} has finished ({why})")
        return min(self.runs, key=lambda run: self.definition.sign * self.value(run))

    def value(self, run: Run) -> float:
        """Return a run's best value of the sweep's metric."""
        metric = self.definition.metric
        return best_of([row[metric] for row in run.history], metric)


def run(
    sweep_file: Path | str,
    config: Config | None = None,
    storage: str | None = None,
    workers: int = 1,
    budget: float | None = None,
) -> Sweep:
    """Run a sweep to its end, or what is left of it, and return its runs.

    `config` holds all parameters that the file leaves open; its `runs_root` is where the sweep's
    folder sweeps/NAME goes (NAME is the file's). `storage` is the path of a journal file (by
    default in that folder) or the URL of a PostgreSQL database that several machines share
    (postgresql+psycopg://USER@HOST/NAME, with `pip install "psycopg[binary]"`).
    `workers` is the number of processes on this machine; 1 trains in this one. After `budget`
    minutes no new run starts. With `config.tracking` "online" wandb decides on the runs, and
    `storage` may name one of its sweeps to join.
    Raises ConfigError or FileNotFoundError in one sentence before anything is changed.
    """
    config, definition, folder = _read(sweep_file, config, workers)
    if budget is not None and not budget > 0:
        raise ConfigError(f"budget = {budget} should be more than 0 minutes")
    if config.tracking == "online":
        _run_online(definition, config, storage, workers)
        return Sweep(definition, folder, _runs(folder), {})
    if storage is None:
        folder.mkdir(parents=True, exist_ok=True)
        storage = str(folder / "journal.log")
    elif "://" not in storage:
        storage = str(ROOT / storage)
    study = queue.open_study(definition, config, storage)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{definition.name}.yaml"
    write_atomically(copy, (ROOT / sweep_file).read_bytes())
    until = time.time() + 60 * budget if budget else math.inf
    with tqdm(unit="run", desc=definition.name, disable=None) as bar:
        if workers == 1:
            _run_here(study, definition, config, until, bar)
        else:
            order = {
                "file": str(copy),
                "config": config.model_dump(),
                "storage": storage,
                "until": until,
                "parent": os.getpid(),
                "folder": os.getcwd(),  # where a relative folder:PATH starts
            }
            _run_in_processes(study, definition, config, order, workers, bar)
        _show(bar, study, definition)
    tries = queue.slots(study)
    names = {t.user_attrs["run"] for trials in tries.values() for t in trials
             if t.state in queue.DONE}  # fmt: skip
    runs = [run for run in _runs(folder) if run.name in names]
    return Sweep(definition, folder, runs, _failures(tries))


def _read(
    sweep_file: Path | str, config: Config | None, workers: int
) -> tuple[Config, Definition, Path]:
    """Check what a sweep is called with; returns its configuration, definition and folder."""
    config = config or Config()
    definition = read_sweep(sweep_file, config)
    if workers < 1:
        raise ConfigError(f"workers = {workers} should be at least 1")
    return config, definition, ROOT / config.runs_root / "sweeps" / definition.name


def train_points(sweep: Sweep, configs: list[Config]) -> list[Run]:
    """Train more points in a sweep's folder, such as `findings.plan` finds missing.

    Returns the runs; one that diverges or is not possible is left out and named.
    """
    runs = []
    for config in tqdm(configs, unit="run", desc=f"{sweep.definition.name}, more", disable=None):
        try:
            runs.append(train(config))
        except (RuntimeError, ValueError, MemoryError) as error:
            if not is_its_own_fault(error):
                raise
            print(f"{config.name} failed: {reason(error)}")
    return runs


def _runs(folder: Path) -> list[Run]:
    return sorted(find_runs(folder), key=lambda run: run.name)


def _failures(tries: dict[int, list]) -> dict[str, str]:
    failed = {}
    for slot, trials in sorted(tries.items()):
        reason = next((t.user_attrs["reason"] for t in trials if "reason" in t.user_attrs), None)
        if reason is None and queue.is_given_up(trials):
            reason = f"its worker died {len(trials)} times"
        if reason:
            parameters = ", ".join(f"{name} {value}" for name, value in trials[-1].params.items())
            failed[f"{slot}: {parameters}"] = reason
    return failed


def _show(bar: tqdm, study: optuna.Study, definition: Definition) -> None:
    """Bring the progress bar up to date."""
    trials = study.get_trials(deepcopy=False)
    values = [value for trial in trials for value in trial.intermediate_values.values()]
    bar.total = len(queue.slots(study))
    bar.n = sum(trial.state in queue.DONE for trial in trials)
    if values:
        bar.set_postfix_str(f"best {definition.metric} {best_of(values, definition.metric):.3f}")
    bar.refresh()


def _run_here(
    study: optuna.Study, definition: Definition, config: Config, until: float, bar: tqdm
) -> None:
    """Work in this process until the queue is empty."""
    points, unknown = queue.list_points(definition, config), True
    while unknown:
        unknown = queue.give_back(study)
        queue.fill(study, points)
        work(study, definition, config, until, on_trial=lambda: _show(bar, study, definition))
        if unknown:  # somebody may work on that trial
            time.sleep(1)


def _run_in_processes(
    study: optuna.Study,
    definition: Definition,
    config: Config,
    order: dict,
    workers: int,
    bar: tqdm,
) -> None:
    """Keep `workers` processes at work until the queue is empty; replace those that die."""
    points = queue.list_points(definition, config)
    folder = Path(order["file"]).parent
    threads = max(1, (os.cpu_count() or 1) // workers)
    processes: dict[int, subprocess.Popen] = {}
    try:
        while True:
            for number in [n for n, process in processes.items() if process.poll() is not None]:
                if processes.pop(number).returncode > 0:  # not killed: an error
                    raise RuntimeError(_last_line(folder / f"worker-{number}.log"))
            unknown = queue.give_back(study)
            queue.fill(study, points)
            waiting = len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
            if time.time() >= order["until"] or queue.is_target_reached(study, definition):
                waiting = 0
            free = [number for number in range(workers) if number not in processes]
            for number in free[:waiting]:
                log = folder / f"worker-{number}.log"
                processes[number] = _start_worker(order | {"number": number}, log, threads)
            if not processes and not waiting and not unknown:
                return
            _show(bar, study, definition)
            time.sleep(0.2)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait()


def _start_worker(order: dict, log: Path, threads: int) -> subprocess.Popen:
    limits = {"OMP_NUM_THREADS": str(threads)}
    gpus = torch.cuda.device_count()
    if gpus > 1:  # one for each worker
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        limits["CUDA_VISIBLE_DEVICES"] = visible.split(",")[order["number"] % gpus]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.sweep.worker"], cwd=ROOT,
            env=os.environ | limits,
            stdin=subprocess.PIPE, stdout=file, stderr=file, text=True,
        )  # fmt: skip
    process.stdin.write(json.dumps(order))  # not as an argument: it may hold a password
    process.stdin.close()
    return process


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"a worker stopped: {lines[-1] if lines else 'no message'} (all of it: {log})"


def _run_online(definition: Definition, config: Config, storage: str | None, workers: int) -> None:
    """Let wandb's server choose the parameters and train them here, one after another."""
    import wandb  # noqa: PLC0415  (slow to import, and most sweeps are offline)

    if workers != 1:
        raise ConfigError(
            "wandb's agent trains in one process: for more, start more, each with the sweep's "
            "id as storage"
        )
    require_key()
    project = definition.content.get("project", "five-blocks")
    sweep_id = storage or wandb.sweep(definition.content, project=project)

    def train_chosen() -> None:
        with wandb.init() as tracked:
            parameters = _flatten(dict(tracked.config), definition)
            train(definition.configure(config, parameters, tracked.id))

    wandb.agent(sweep_id, train_chosen, project=project, count=definition.run_cap)


def _flatten(chosen: dict, definition: Definition) -> dict:
    """Return the searched parameters from wandb's configuration, out of their groups."""
    names = {parameter.name for parameter in definition.parameters} | definition.constants.keys()
    flat = {}
    for name, value in chosen.items():
        if name in names:
            flat[name] = value
        elif isinstance(value, dict):
            flat |= _flatten(value, definition)
    return flat


def preview(sweep_file: Path | str, config: Config | None = None, workers: int = 1) -> str:
    """Train one epoch of the first point; return what as many like it would take, as Markdown.

    Its seconds are kept in the sweep's folder, so that asking again takes none and says the same.
    """
    config, definition, folder = _read(sweep_file, config, workers)
    kept = folder / "preview.json"
    chosen = config.replace(**definition.example, name="", tracking="none")
    known, trouble = readable_json(kept, dict[str, float]) or {}, ""
    if chosen.id not in known:
        with tempfile.TemporaryDirectory() as temporary:
            one = chosen.replace(runs_root=temporary)
            if chosen.weights not in ("none", "imagenet"):
                one = one.replace(weights=str(find_checkpoint(chosen)))
            data.load(one)  # decodes, which later runs need not
            start = time.perf_counter()
            try:
                train(one, on_epoch=lambda row: True)
            except (RuntimeError, ValueError, MemoryError) as error:
                if not is_its_own_fault(error):
                    raise
                trouble = reason(error)
            else:
                known[chosen.id] = time.perf_counter() - start
                folder.mkdir(parents=True, exist_ok=True)
                write_json(kept, known)
    count = len(definition.grid()) if definition.method == "grid" else definition.run_cap
    searched = [e for p in definition.parameters if p.name == "epochs" for e in p.examples]
    epochs = chosen.all_epochs if chosen.stages else max(searched, default=chosen.epochs)
    took = f"the first cannot be trained ({trouble}), so nothing is known of their time"
    if not trouble:
        seconds = known[chosen.id]
        took = (
            f"one epoch of the first took {seconds:.1f} s: about "
            f"{count * epochs * seconds / 60 / workers:.1f} minutes with {workers} "
            f"worker{'s' * (workers > 1)}, if the others are like it and workers as quick"
        )
    rows = [(p.name, p.text) for p in definition.parameters]
    rows += [(name, f"{value} (fixed)") for name, value in definition.constants.items()]
    return (
        f"**{definition.name}** ({definition.method}): {count} runs of up to {epochs} epochs; "
        f"{took}\n\n" + markdown_table(("parameter", "values"), rows)
    )


def main() -> None:
    """Run a sweep from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="others of Config")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--storage", help="a journal file, or postgresql+psycopg://USER@HOST/NAME")
    parser.add_argument("--budget", type=float, help="minutes after which no new run starts")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take")
    options = parser.parse_intermixed_args()
    try:
        config = Config(**read_values(options.parameters))
        if options.dry_run:
            print(preview(options.file, config, options.workers))
            return
        sweep = run(options.file, config, options.storage, options.workers, options.budget)
    except (ConfigError, FileNotFoundError, CannotWrite) as error:
        sys.exit(str(error))
    for parameters, trouble in sweep.failed.items():
        print(f"failed: {parameters}: {trouble}")
    if sweep.failed:
        print("they are tried again only in a new queue (--storage), which reads finished runs")
    print(f"{len(sweep.runs)} runs in {sweep.folder}")
    if sweep.runs:
        print(f"best: {sweep.best.name}, {sweep.definition.metric} {sweep.value(sweep.best):.4f}")
