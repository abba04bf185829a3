"""Time training from scratch on Caltech-101 to a test accuracy, against the usual loop.

    DATA_ROOT=... python -m benchmarks.time_to_accuracy [--seeds 0 1 2] [--recipes NAME=epochs ...]

Each recipe is a file of experiments/, trained on R5's whole training list; the test list is opened
once, after the last epoch. Seconds run from the first step to the saved last epoch; decoding, done
once for all runs, is not in them. The usual loop (files read by DataLoader workers at every epoch,
PyTorch's own layers, float32) trains the same network on the same images at the full image size for
as many epochs; one epoch of it, after one to warm up, is timed in a process of its own and
multiplied. For a computer without a GPU. Writes runs/benchmarks/time_to_accuracy.json.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from benchmarks.measured import keep
from helpers import ROOT, data, models, train
from helpers.data import sources
from helpers.evaluate.evaluation import open_test_set
from helpers.runs.config import Config
from helpers.runs.text import markdown_table

RUNS = ROOT / "runs" / "benchmarks" / "time_to_accuracy"


class Files(Dataset):
    """Read listed files as tutorials do."""

    def __init__(self, source: sources.Source, size: int):
        self.source = source
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(size, padding=8, padding_mode="reflect"),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self):
        return len(self.source.train)

    def __getitem__(self, index: int):
        path, label = self.source.train[index]
        return self.transform(default_loader(str(self.source.folder / path))), label


def usual_epoch(config: Config) -> float:
    """Return the seconds of one epoch of the usual loop, the second of two."""
    source = sources.find(config.dataset, config.data_root)
    readable = set(data.load(config).train.paths)
    source.train[:] = [entry for entry in source.train if entry[0] in readable]
    loader = DataLoader(Files(source, config.image_size), config.batch_size, True, num_workers=2,
                        persistent_workers=True)  # fmt: skip
    model = models.build(config, len(source.classes))
    for block in model.blocks:
        block.fuse = False
    optimizer = torch.optim.AdamW(model.parameters(), config.lr / 10, weight_decay=0.05)
    for _ in range(2):
        start = time.perf_counter()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
            loss.backward()
            optimizer.step()
            loss.item()
    return time.perf_counter() - start


def usual_seconds(config: Config) -> float:
    """Return the seconds of the usual loop, in a process whose memory `fit` has not touched."""
    command = [sys.executable, "-m", "benchmarks.time_to_accuracy", "usual"]
    text = subprocess.check_output([*command, config.model_dump_json()], cwd=ROOT, text=True)
    return float(text.splitlines()[-1]) * config.epochs


def main() -> None:
    """Train every recipe with every seed, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--recipes", nargs="+", default=["caltech101_quick", "caltech101_five_blocks"]
    )
    parser.add_argument("--without-usual", action="store_true", help="leave the usual loop out")
    options = parser.parse_args()
    shutil.rmtree(RUNS, ignore_errors=True)  # one that was killed would continue
    results = []
    for recipe in options.recipes:
        name, _, epochs = recipe.partition("=")
        parameters = yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text())
        config = Config(**parameters, runs_root=str(RUNS))
        config = config.replace(epochs=int(epochs)) if epochs else config
        splits = data.load(config)
        rows = []
        for seed in options.seeds:
            one = config.replace(seed=seed)
            model = models.build(one, len(splits.classes))
            start = time.perf_counter()
            run = train.fit(model, splits.without_test(), one)
            seconds = time.perf_counter() - start
            rows.append({"seconds": seconds, "test": open_test_set(run, splits, model).accuracy})
            shutil.rmtree(Path(run.folder))  # the next call shall train again
            print(f"{recipe}, seed {seed}: {rows[-1]['test']:.2%} in {seconds:.0f} s", flush=True)
        usual = None if options.without_usual else usual_seconds(config)
        results.append({"recipe": recipe, "runs": rows, "usual_seconds": usual})
    rows = []
    for row in results:
        accuracies = [100 * run["test"] for run in row["runs"]]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        seconds = statistics.median(run["seconds"] for run in row["runs"])
        usual = row["usual_seconds"]
        against = (f"{usual:.0f}", f"{usual / seconds:.1f}") if usual else ("not run", "")
        accuracy = f"{statistics.mean(accuracies):.2f}{spread} %"
        rows.append((row["recipe"], accuracy, f"{seconds:.0f}", *against))
    print(markdown_table(("recipe", "test top-1", "seconds", "usual loop", "ratio"), rows))
    keep("time_to_accuracy", results=results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["usual"]:
        print(usual_epoch(Config(**json.loads(sys.argv[2]))))
    else:
        main()
