"""Kill a training at random moments and compare its weights with those of an undisturbed one.

    python -m benchmarks.killing [--kills 20]

SIGKILL, which no program can catch, at a random moment of each start: while importing, in an epoch,
while a checkpoint is written. Prints where each kill hit and whether the weights are the same bits.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from helpers import ROOT
from helpers.config import Config
from helpers.runs import Run, open_run

TRAIN = """
import sys
from helpers import data, models, train
from helpers.config import Config
config = Config.load(sys.argv[1])
splits = data.load(config)
print("ready", flush=True)
train.fit(models.build(config, len(splits.classes)), splits, config)
"""


def start(config: Config) -> tuple[subprocess.Popen, Run]:
    """Start a training in a process of its own and return it with its run."""
    run = open_run(config)
    command = [sys.executable, "-c", TRAIN, str(run.folder / "config.json")]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True), run


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    root = tempfile.mkdtemp()
    config = Config(epochs=30, runs_root=root, name="whole")
    process, whole = start(config)
    process.wait()
    epoch_seconds = np.mean([row["seconds"] for row in whole.history])
    rng, kills = np.random.default_rng(0), 0
    config = config.replace(name="killed")
    while not open_run(config).finished:
        process, run = start(config)
        if kills < options.kills:
            if rng.random() < 0.9:
                process.stdout.readline()  # ready to train
            time.sleep(rng.uniform(0.05, 3 * epoch_seconds))
            process.kill()
            kills += 1
            print(f"kill {kills} in epoch {len(run.history) + 1}", flush=True)
        process.wait()
    for name in ("best.pt", "last.pt"):
        first, second = (r.read_checkpoint(name)["model"] for r in (whole, run))
        same = all(torch.equal(first[key], second[key]) for key in first)
        print(f"{name}: {'the same bits' if same else 'DIFFERENT'} after {kills} kills")
    shutil.rmtree(Path(root))


if __name__ == "__main__":
    main()
