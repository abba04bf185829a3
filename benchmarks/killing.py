"""Kill every kind of work at random moments and compare what it ends with, undisturbed and not.

    python -m benchmarks.killing [--kills 50]

SIGKILL, which no program can catch, at a random moment of decoding, training, a sweep, a batch of
counts and a report; the same work is then started again, until it ends. Prints where the kills hit,
whether the results are the same, and what was left over.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ["NUMBA_THREADING_LAYER"] = "workqueue"  # the only one that bears a fork

import numpy as np
import torch

from helpers import data
from helpers.data import images as decoding
from helpers.report import batch, page
from helpers.runs.config import Config
from helpers.runs.folder import Run
from helpers.runs.search import find_runs
from helpers.sweep import queue, runner
from helpers.sweep.file import read_sweep
from helpers.train import train

SWEEP = """
method: random
run_cap: 6
metric: {name: val_accuracy, goal: maximize}
parameters: {lr: {distribution: log_uniform_values, min: 0.001, max: 0.03}}
"""
TIMES = ("seconds", "time", "speed", "share", "_per_", "first", "last", "opened")


def config_in(home: Path, **more) -> Config:
    """Return a small training with all of its results in a folder of its own."""
    parameters = {"image_size": 32, "epochs": 6, "filters": 8, "dense": 16, "dropout": 0.3}
    return Config(**{**parameters, "runs_root": str(home / "runs"), **more})


def digest(*values) -> str:
    """Return a short checksum of bytes, arrays and plain values."""
    found = hashlib.sha256()
    for value in values:
        plain = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
        found.update(plain)
    return found.hexdigest()[:12]


def without_times(values: dict) -> dict:
    """Leave out what a clock decides."""
    return {k: v for k, v in values.items() if not any(word in k for word in TIMES)}


def result_of(run: Run) -> str:
    """Return a checksum of a run's weights, history and figures."""
    weights = run.read_checkpoint("best.pt")["model"]
    tensors = b"".join(tensor.numpy().tobytes() for tensor in weights.values())
    return digest(tensors, [without_times(row) for row in run.history], without_times(run.metrics))


def decode(home: Path) -> Callable[[], str]:
    """Decode the drawn images at a larger size."""
    splits = data.load(config_in(home, image_size=128))
    return lambda: digest(splits.train.decoded.tobytes(), splits.train.paths, splits.fingerprint)


def train_one(home: Path) -> Callable[[], str]:
    """Train one network."""
    run = train(config_in(home, name="run"))
    return lambda: result_of(run)


def sweep(home: Path) -> Callable[[], str]:
    """Run a sweep of six points in one process."""
    file = home / "six.yaml"
    file.write_text(SWEEP, encoding="utf-8")
    config = config_in(home, epochs=2)
    found = runner.run(file, config)
    study = queue.open_study(
        read_sweep(file, config), config, str(home / "runs/sweeps/six/journal.log")
    )
    done = [sum(t.state in queue.DONE for t in tries) for tries in queue.slots(study).values()]
    return lambda: digest(done, [[run.name, result_of(run)] for run in found.runs])


def count_rows(home: Path) -> Callable[[], str]:
    """Run all rows that only count."""
    root = str(home / "runs")
    files = [f"experiments/r{number}.yaml" for number in range(1, 6)]
    if batch.main([*files, "--rows", "count*", "--runs-root", root]):
        raise RuntimeError("a row failed")
    files = sorted((home / "runs").rglob("counts.json"))
    return lambda: digest([[path.parent.name, path.read_text()] for path in files])


def report(home: Path) -> Callable[[], str]:
    """Write the report of what the works before left."""
    path = page.write_report(str(home / "runs"))
    return lambda: digest(path.read_bytes())


WORKS = {"decode": decode, "train": train_one, "sweep": sweep, "batch": count_rows,
         "report": report}  # fmt: skip
LEAVES = {"decode": "decoded", "train": "runs/run", "sweep": "runs/sweeps", "batch": "runs/[Rb]*",
          "report": "runs/report"}  # fmt: skip


def start(work: Callable, home: Path) -> int:
    """Start some work in a child process; returns the child's number."""
    if child := os.fork():
        return child
    decoding.DECODED = home / "decoded"
    log = os.open(home / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        (home / f"{work.__name__}.result").write_text(work(home)())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0 if (home / f"{work.__name__}.result").exists() else 1)


def finish(work: Callable, home: Path) -> tuple[str, float]:
    """Let some work come to its end; returns its result and the seconds it took."""
    begun = time.perf_counter()
    _, code = os.waitpid(start(work, home), 0)
    path = home / f"{work.__name__}.result"
    return (path.read_text() if code == 0 else "FAILED"), time.perf_counter() - begun


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a child inherits no pool of threads
    base = Path(tempfile.mkdtemp())
    data.load(config_in(base))  # draws the images, once
    rng = np.random.default_rng(0)
    kills, same = 0, True
    homes = [base / "whole", base / "killed"]
    for home in homes:
        home.mkdir()
    for name, work in WORKS.items():
        # A report shows when its runs ended, so it is compared with one of the same runs.
        expected, seconds = finish(work, homes[work is report])
        if expected == "FAILED":
            print((homes[work is report] / "log.txt").read_text())
            raise RuntimeError(f"{name} failed, undisturbed")
        hits = 0
        while hits < options.kills // len(WORKS):
            child = start(work, homes[1])
            time.sleep(rng.uniform(0.02, 0.95) * seconds / (1 + hits % 3))
            os.kill(child, signal.SIGKILL)
            _, code = os.waitpid(child, 0)
            if code == signal.SIGKILL:
                hits += 1
            else:  # it was quicker: once more from the start
                for folder in homes[1].glob(LEAVES[name]):
                    shutil.rmtree(folder)
        kills += hits
        found, _ = finish(work, homes[1])
        same &= found == expected
        print(f"{name}: {seconds:.1f} s undisturbed, {hits} kills, "
              f"{'the same result' if found == expected else f'{found}, not {expected}'}",
              flush=True)  # fmt: skip
    left = [p for p in homes[1].rglob(".*") if not p.name.endswith(".lock")]
    print(f"{kills} kills, {'all the same' if same else 'DIFFERENT'}; "
          f"{len(find_runs(homes[1] / 'runs'))} runs; left over: {left or 'nothing'}")  # fmt: skip
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
