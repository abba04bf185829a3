"""What ReLU and dropout on the logits do, as R4's appendix has its head.

    python -m benchmarks.logits [--dataset tiny_nature] [--seeds 3] [--image-size 96]

EfficientNet-Lite0 with ImageNet weights, the last layer alone trained, all else as in R4's rows
(Adam 1e-3, times .9 after each epoch, batches of 64, at most 20 epochs, early stopping after 3):
the usual head; ReLU on the logits; dropout of .2 or .5 on them, too; dropout of .5 where it
usually is. Measured on a half of the training images, another one with each seed; the test set
stays closed. Writes runs/benchmarks/logits.json; runs are kept and only loaded the second time.
"""

import argparse

import numpy as np

from benchmarks.measured import keep
from helpers.evaluate import compare_runs
from helpers.runs.config import Config
from helpers.train import fine_tune

WAYS = {
    "usual head": {"dropout": 0.0},
    "ReLU on the logits": {"logits_activation": "relu"},
    "ReLU, dropout .5 on the logits": {"logits_activation": "relu", "logits_dropout": 0.5},
    "dropout .5 before the last layer": {"dropout": 0.5},
    "ReLU, dropout .2 on the logits": {"logits_activation": "relu", "logits_dropout": 0.2},
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="tiny_nature")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=96)
    options = parser.parse_args()
    config = Config(
        dataset=options.dataset, image_size=options.image_size, model="efficientnet_lite0",
        weights="imagenet", head="linear", freeze="all_but_head", val_fraction=0.5, augment=[],
        dropout=0.0, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="step", step_size=1,
        gamma=0.9, batch_size=64, epochs=20, early_stopping=3, runs_root="runs/logits",
    )  # fmt: skip
    runs = fine_tune.compare(config, list(WAYS.values()), options.seeds)
    usual, *_ = runs.values()
    ways: dict[str, dict] = {}
    for name, group in zip(WAYS, runs.values(), strict=True):
        values = [100 * run.metrics["val"]["accuracy"] for run in group]
        each = ", ".join(f"{value:.1f}" for value in values)
        line = f"{name:34}{np.mean(values):5.1f} % ({each})"
        if group is not usual:
            line += f"  {compare_runs(group, usual)} against the usual head"
        print(line, flush=True)
        ways[name] = {"validation accuracy, percent": values}
        if group is not usual:
            ways[name]["against the usual head"] = str(compare_runs(group, usual))
    keep("logits", config=config.model_dump(), ways=ways)


if __name__ == "__main__":
    main()
