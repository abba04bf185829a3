"""Time head-only fine-tuning for ten epochs: here against the usual loop.

    python -m benchmarks.fine_tuning [--images 1000] [--rounds 3] [--models resnet50 ...]

1,000 images of 224 px, ten classes, a new last layer on a frozen ResNet50 and on a frozen
EfficientNet-Lite0 (random weights: the time is the same). The usual loop runs the backbone at every
epoch, in train mode, in float32, with a DataLoader of two workers and gradients for the last layer;
one of its epochs is timed, after a tenth of one to warm up, and multiplied by ten. Ours is a whole
`fit` in a process of its own: features once, ten epochs on them, validation at every epoch and all
files written. Images are decoded beforehand for us, at every epoch for the usual loop. For a
computer without a GPU. Writes runs/benchmarks/fine_tuning.json.
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

import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.measured import keep
from helpers import ROOT, data, models, train
from helpers.data import sources
from helpers.runs.config import Config
from helpers.runs.text import markdown_table

EPOCHS = 10
MODELS = {"resnet50": "resnet50", "efficientnet_lite0": "tf_efficientnet_lite0"}  # ours: timm's


def run_usual(name: str, folder: Path) -> dict:
    """Time one epoch of the usual loop, training images only."""
    chain = [transforms.Resize((224, 224)), transforms.ToTensor(),
             transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]  # fmt: skip
    images = ImageFolder(folder / "train", transforms.Compose(chain))
    loader = DataLoader(images, 64, shuffle=True, num_workers=2, persistent_workers=True)
    model = timm.create_model(MODELS[name], num_classes=len(images.classes))
    for parameter in model.parameters():
        parameter.requires_grad = False
    head = model.get_classifier().requires_grad_()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    model.train()

    def step(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    for number, batch in enumerate(loader):
        step(*batch)
        if number == len(loader) // 10:
            break
    start = time.perf_counter()
    for batch in loader:
        step(*batch)
    return {"seconds": EPOCHS * (time.perf_counter() - start)}


def run_ours(name: str, folder: Path) -> dict:
    """Time a whole `fit`; the images are decoded before."""
    config = Config(
        dataset=f"folder:{folder}", model=name, image_size=224, normalization="imagenet",
        augment=[], freeze="all_but_head", optimizer="adam", lr=1e-3, weight_decay=0.0,
        schedule="none", dropout=0.0, batch_size=64, epochs=EPOCHS, runs_root=str(folder / "runs"),
    )  # fmt: skip
    splits = data.load(config)
    model = models.build(config, len(splits.classes))
    start = time.perf_counter()
    run = train.fit(model, splits, config)
    return {"seconds": time.perf_counter() - start, "features": run.metrics["features"]}


def main() -> None:
    """Run all rounds, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    results: dict[str, dict[str, list[dict]]] = {
        model: {"usual": [], "ours": []} for model in options.models
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder, source = Path(temporary), sources.find("tiny_nature")
        for number in range(options.images * 11 // 10):  # a tenth more for validation
            path, label = source.train[number * 7 % len(source.train)]  # every class alike
            split = "train" if number < options.images else "val"
            target = folder / split / source.classes[label] / f"{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.folder / path, target)
        for _ in range(options.rounds):
            for model, loops in results.items():
                for name, rows in loops.items():
                    command = [sys.executable, "-m", "benchmarks.fine_tuning", name, model]
                    text = subprocess.check_output([*command, temporary], cwd=ROOT, text=True)
                    rows.append(json.loads(text.splitlines()[-1]))
                    shutil.rmtree(folder / "runs", ignore_errors=True)
    table = []
    for model, loops in results.items():
        seconds = {name: sorted(row["seconds"] for row in rows) for name, rows in loops.items()}
        usual, ours = (statistics.median(values) for values in seconds.values())
        ranges = (f"{values[0]:.1f} to {values[-1]:.1f}" for values in seconds.values())
        table.append((model, f"{usual:.0f}", f"{ours:.1f}", f"{usual / ours:.0f}", *ranges))
    header = ("network", "usual (one epoch, times ten), s", "ours (all of fit), s", "ratio",
              "usual from, to", "ours from, to")  # fmt: skip
    print(markdown_table(header, table))
    keep("fine_tuning", results=results, **vars(options))


if __name__ == "__main__":
    if sys.argv[1:2] in (["usual"], ["ours"]):
        loop = {"usual": run_usual, "ours": run_ours}[sys.argv[1]]
        print(json.dumps(loop(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
