"""Measure sweeps: what search saves, what a trial costs beyond its training, what kills do.

    python -m benchmarks.sweep efficiency --seeds 0 1 2 3 4
    python -m benchmarks.sweep overhead
    python -m benchmarks.sweep kills

`efficiency`: R3's space without its two largest lists of filters, on the drawn images, 10 epochs.
A random search trains 32 runs to their end; a Bayesian search with early termination then searches
until it has found a run that is as good on validation. Stopped at any moment, it continues.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import psutil
import yaml

from helpers import ROOT, data, models, sweep
from helpers.runs.config import Config
from helpers.runs.folder import Run
from helpers.sweep import queue
from helpers.sweep.file import read_sweep
from helpers.train.loop import fit

R3 = {
    "dataset": {"value": "tiny_nature"},
    "image_size": {"value": 32},
    "normalization": {"value": "imagenet"},
    "optimizer": {"value": "adam"},
    "weight_decay": {"value": 0.0},
    "schedule": {"value": "none"},
    "epochs": {"value": 10},
    "filters": {"value": [32] * 5},
    "batch_size": {"values": [16, 32]},
    "lr": {"values": [0.0001, 0.001, 0.01]},
    "activation": {"values": ["relu", "gelu", "silu", "mish"]},
    "dense": {"values": [32, 64, 128]},
    "dropout": {"values": [0.0, 0.2, 0.3]},
    "batch_norm": {"values": [True, False]},
    "augment": {"values": [[], ["horizontal_flip", "rotation"]]},
}
SMALL = {
    "image_size": {"value": 32},
    "filters": {"value": 8},
    "dense": {"value": 8},
    "epochs": {"value": 2},
}
METRIC = {"name": "val_accuracy", "goal": "maximize"}


def write_sweep(folder: Path, name: str, **content) -> Path:
    """Write a sweep file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"metric": METRIC, **content}, sort_keys=False))
    return path


def measure_efficiency(seed: int, folder: Path, workers: int) -> dict:
    """Search at random, then by TPE with Hyperband until that is reached; count epochs."""
    config = Config(seed=seed, runs_root=str(folder))
    path = write_sweep(folder, f"random-{seed}", method="random", run_cap=32, parameters=R3)
    full = sweep.run(path, config, workers=workers)
    target = float(full.value(full.best))
    path = write_sweep(
        folder, f"bayes-{seed}", method="bayes", run_cap=320, parameters=R3,
        metric=METRIC | {"target": target},
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3},
    )  # fmt: skip
    searched = sweep.run(path, config, workers=workers)
    return {
        "seed": seed,
        "target": target,
        "epochs_random": sum(len(run.history) for run in full.runs),
        "reached": float(searched.value(searched.best)),
        "epochs_bayes": sum(len(run.history) for run in searched.runs),
        "runs_bayes": len(searched.runs),
        "failed": len(full.failed) + len(searched.failed),
    }


def measure_overhead(folder: Path, count: int = 20) -> tuple[float, float]:
    """Return the seconds of a trial beyond its training, and those of the training."""
    parameters = SMALL | {"seed": {"value": 0}, "dropout": {"values": np.linspace(
        0, 0.5, count).tolist()}}  # fmt: skip
    path = write_sweep(folder, "overhead", method="grid", parameters=parameters)
    config = Config(runs_root=str(folder))
    definition = read_sweep(path, config)
    configs = [
        config.replace(**definition.constants | point, name=f"alone-{number}")
        for number, point in enumerate(definition.grid())
    ]
    splits = data.load(configs[0]).without_test()
    fit(models.build(configs[0], 10), splits, configs[0].replace(name="warm"))
    start = time.perf_counter()
    for chosen in configs:
        fit(models.build(chosen, 10), splits, chosen)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    sweep.run(path, config)
    return (time.perf_counter() - start - alone) / count, alone / count


def measure_kills(folder: Path, kills: int = 10, workers: int = 4) -> dict:
    """Kill workers of a sweep of 60 points at random moments and count what was done."""
    parameters = SMALL | {
        "dropout": {"values": [0.0, 0.1, 0.2, 0.3, 0.4]},
        "lr": {"values": [0.001, 0.003, 0.01]},
        "batch_norm": {"values": [True, False]},
        "activation": {"values": ["relu", "gelu"]},
    }
    path = write_sweep(folder, "kills", method="grid", parameters=parameters)
    command = [sys.executable, "-m", "helpers.sweep", str(path), f"runs_root={folder}",
               "--workers", str(workers)]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT)
    rng, killed = random.Random(0), 0
    while process.poll() is None:
        time.sleep(rng.uniform(0.2, 4))
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        if killed < kills and children:
            rng.choice(children).kill()
            killed += 1
    config = Config(runs_root=str(folder))
    definition = read_sweep(path, config)
    journal = str(folder / "sweeps" / "kills" / "journal.log")
    tries = queue.slots(queue.open_study(definition, config, journal))
    done = [[t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
            for trials in tries.values()]  # fmt: skip
    runs = [Run(p.parent) for p in (folder / "sweeps" / "kills").glob("*/status.json")]
    return {
        "kills": killed,
        "exit status": process.returncode,
        "points": len(definition.grid()),
        "points done exactly once": sum(len(trials) == 1 for trials in done),
        "trials given back": sum(len(trials) - 1 for trials in tries.values()),
        "finished run folders": sum(run.finished for run in runs),
        "of them with every epoch once": sum(
            [row["epoch"] for row in run.history] == [1, 2] for run in runs
        ),
        "different configurations": len({run.config.id for run in runs}),
    }


def main() -> None:
    """Run a measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["efficiency", "overhead", "kills"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs-root", default="runs/benchmark_sweep", help="of efficiency")
    options = parser.parse_args()
    if options.what == "efficiency":
        rows = []
        for seed in options.seeds:
            rows.append(measure_efficiency(seed, ROOT / options.runs_root, options.workers))
            print(rows[-1], flush=True)
        shares = [row["epochs_bayes"] / row["epochs_random"] for row in rows]
        print(f"share of the random search's epochs: {np.mean(shares):.3f} "
              f"(each seed: {', '.join(f'{share:.3f}' for share in shares)})")  # fmt: skip
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "overhead":
            beyond, training = measure_overhead(Path(folder))
            print(f"{beyond:.3f} s a trial beyond its training of {training:.3f} s")
        else:
            for name, value in measure_kills(Path(folder)).items():
                print(f"{name}: {value}")


if __name__ == "__main__":
    main()
