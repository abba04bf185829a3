"""Time training from scratch: `helpers.train.fit` against the loop that everybody writes.

    python -m benchmarks.training [--dataset caltech101] [--images 384] [--rounds 3]

The usual loop: ImageFolder, DataLoader with two workers, Pillow transforms (resize, flip, tensor,
normalise), float32, Adam, `.item()` for loss and accuracy at every step. Both train the network of
32 to 512 filters at 224 px with batches of 64 on the same images, in processes of their own, in
turn. Prints the medians and their ratio, and the share of our time spent waiting for data; writes
runs/benchmarks/training.json. The first epoch of each process is a warm-up and not counted.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm.auto import tqdm

from helpers import ROOT, data, models, sources, train
from helpers.config import Config
from helpers.hardware import environment

NETWORK = {
    "image_size": 224, "filters": [32, 64, 128, 256, 512], "dense": 128, "dropout": 0.0,
    "augment": ["horizontal_flip"], "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0,
    "schedule": "none", "batch_size": 64, "val_fraction": 0.0,
}  # fmt: skip


def train_as_usual(folder: Path, epochs: int) -> list[float]:
    """Train the way tutorials do; returns the seconds of each epoch."""
    usual = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = ImageFolder(folder / "train", usual)
    loader = DataLoader(images, batch_size=64, shuffle=True, num_workers=2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = models.build(Config(**NETWORK), len(images.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        total_loss, right = 0.0, 0
        for pixels, labels in loader:
            pixels, labels = pixels.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(pixels)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            right += (logits.argmax(1) == labels).sum().item()
        seconds.append(time.perf_counter() - start)
    return seconds


def train_ours(folder: Path, epochs: int) -> tuple[list[float], float]:
    """Train through `fit`; returns the seconds of each epoch and the share spent waiting."""
    config = Config(**NETWORK, dataset=f"folder:{folder}", epochs=epochs, runs_root=str(folder))
    splits = data.load(config)
    run = train.fit(models.build(config, len(splits.classes)), splits, config)
    counted = run.history[1:]
    waited = sum(row["wait_seconds"] for row in counted)
    return [row["seconds"] for row in run.history], waited / sum(r["seconds"] for r in counted)


def run_alone(contender: str, folder: Path, epochs: int) -> dict:
    """Run one contender in a process of its own, so that neither changes the other's memory."""
    command = [sys.executable, "-m", "benchmarks.training", contender, str(folder), str(epochs)]
    return json.loads(subprocess.check_output(command, cwd=ROOT, text=True).splitlines()[-1])


def main() -> None:
    """Run all rounds, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="tiny_nature")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    source = sources.find(options.dataset)
    chosen = source.train[:: max(1, len(source.train) // options.images)][: options.images]
    rates: dict[str, list[float]] = {"usual": [], "ours": []}
    waits = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path, label in chosen:
            target = folder / "train" / source.classes[label] / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.folder / path, target)
        for _ in tqdm(range(options.rounds), "rounds", disable=None):
            usual = run_alone("usual", folder, 2)["seconds"]
            ours = run_alone("ours", folder, 4)
            for run in folder.glob("*five_blocks*"):  # else the next round loads it
                shutil.rmtree(run)
            rates["usual"] += [len(chosen) / second for second in usual[1:]]
            rates["ours"] += [len(chosen) / second for second in ours["seconds"][1:]]
            waits.append(ours["waiting"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("| loop | images/s (median) | from | to |\n| --- | --- | --- | --- |")
    for name, values in rates.items():
        print(f"| {name} | {medians[name]:.1f} | {min(values):.1f} | {max(values):.1f} |")
    print(f"ratio {medians['ours'] / medians['usual']:.1f}")
    print(f"waiting for data: {statistics.median(waits):.2%} of our time")
    output = ROOT / "runs" / "benchmarks" / "training.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"rates": rates, "waits": waits, "environment": environment(), **vars(options)}
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["usual"]:
        print(json.dumps({"seconds": train_as_usual(Path(sys.argv[2]), int(sys.argv[3]))}))
    elif sys.argv[1:2] == ["ours"]:
        epochs, waiting = train_ours(Path(sys.argv[2]), int(sys.argv[3]))
        print(json.dumps({"seconds": epochs, "waiting": waiting}))
    else:
        main()
