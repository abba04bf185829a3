"""Time training from scratch: `helpers.train.fit` against what a user would take instead.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.training [--dataset caltech101] [--images 384] [--rounds 3]
                                  [--contenders ours usual fastai lightning ...]

The same network (32 to 512 filters, batch norm, 224 px), the same images, batches of 64, validation
after each epoch; each contender in a process of its own, in turn. The peers train the plain layers.

- usual: ImageFolder, DataLoader with two workers, Pillow transforms, float32, Adam, `.item()` for
  loss and accuracy at every step: the loop that everybody writes
- timm: timm's dataset, transforms and loader, its channels_last and bfloat16 autocast
- fastai, lightning (32-true), lightning_bf16 (bf16-mixed): as their tutorials show
- pure: no competitor but the limit: forward and backward of our network, in our number format, on
  one batch that stays on the device; no data, no optimizer, no validation

An epoch's time runs from end to end of it, with validation and whatever the contender saves; the
first epoch of each process is a warm-up and not counted; on a GPU the clock waits until all work is
done. Prints medians, ratios, the most GPU memory taken and the share of our time spent waiting for
data; writes runs/benchmarks/training.json. One command for a T4, an A100 or no GPU at all.
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
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from benchmarks.measured import keep
from helpers import ROOT, data, models, train
from helpers.data import sources
from helpers.models.device import choose_device, choose_dtype, keep_memory
from helpers.runs.config import Config
from helpers.runs.text import markdown_table

NETWORK = {
    "image_size": 224, "filters": [32, 64, 128, 256, 512], "dense": 128, "dropout": 0.0,
    "augment": ["horizontal_flip"], "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0,
    "schedule": "none", "batch_size": 64,
}  # fmt: skip


CONTENDERS = ["ours", "pure", "usual", "timm", "fastai", "lightning", "lightning_bf16"]


class Clock:
    """Collect the seconds of each epoch, from the end of the one before."""

    def __init__(self):
        self.seconds: list[float] = []
        self.last = time.perf_counter()

    def tick(self, *_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def plain_network(classes: int) -> nn.Module:
    """Build the same network from PyTorch's own layers alone."""
    model = models.build(Config(**NETWORK), classes)
    for block in model.blocks:
        block.fuse = False
    return model


def usual_loaders(folder: Path) -> tuple[DataLoader, DataLoader, int]:
    """Make the loaders of the tutorials for training and validation."""
    last = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    size, flip = transforms.Resize((224, 224)), transforms.RandomHorizontalFlip()
    training = ImageFolder(folder / "train", transforms.Compose([size, flip, *last]))
    validation = ImageFolder(folder / "val", transforms.Compose([size, *last]))
    options = {"batch_size": 64, "num_workers": 2, "persistent_workers": True}
    loaders = DataLoader(training, shuffle=True, **options), DataLoader(validation, **options)
    return *loaders, len(training.classes)


def train_loop(loaders, model: nn.Module, epochs: int, bfloat16: bool = False) -> dict:
    """Train and validate as tutorials do; returns the seconds of each epoch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if bfloat16 else torch.contiguous_format
    model.to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    clock = Clock()
    for _ in range(epochs):
        for loader, training in zip(loaders, (True, False), strict=True):
            model.train(training)
            total_loss, right = 0.0, 0
            for images, labels in loader:
                images = images.to(device, memory_format=layout)
                labels = labels.to(device)
                precision = torch.autocast(device, torch.bfloat16, enabled=bfloat16)
                with torch.set_grad_enabled(training), precision:
                    logits = model(images)
                    loss = F.cross_entropy(logits, labels)
                if training:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                total_loss += loss.item()
                right += (logits.argmax(1) == labels).sum().item()
        clock.tick()
    return {"seconds": clock.seconds}


def run_usual(folder: Path, epochs: int) -> dict:
    """Time the loop that everybody writes."""
    *loaders, classes = usual_loaders(folder)
    return train_loop(loaders, plain_network(classes), epochs)


def run_timm(folder: Path, epochs: int) -> dict:
    """Time timm's loader and number format."""
    from timm.data import create_dataset, create_loader

    loaders = [
        create_loader(
            create_dataset("", folder, split=split), 224, 64, is_training=split == "train",
            scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0, crop_pct=1.0,
            mean=(0.5,) * 3, std=(0.5,) * 3, num_workers=2, use_prefetcher=False,
            device=torch.device("cpu"),
        )
        for split in ("train", "val")
    ]  # fmt: skip
    classes = len(list((folder / "train").iterdir()))
    return train_loop(loaders, plain_network(classes), epochs, bfloat16=True)


def run_fastai(folder: Path, epochs: int) -> dict:
    """Time fastai's Learner."""
    from fastai.vision import all as fastai

    loaders = fastai.ImageDataLoaders.from_folder(
        folder, train="train", valid="val", bs=64, num_workers=2,
        item_tfms=fastai.Resize(224, method="squish"),
        batch_tfms=[fastai.Flip(), fastai.Normalize.from_stats([0.5] * 3, [0.5] * 3)],
    )  # fmt: skip
    clock = Clock()
    timer = type("Timer", (fastai.Callback,), {"order": 90, "after_epoch": clock.tick})()
    learner = fastai.Learner(
        loaders, plain_network(loaders.c), fastai.CrossEntropyLossFlat(), fastai.Adam,
        metrics=fastai.accuracy, cbs=timer,
    )  # fmt: skip
    clock.tick()
    clock.seconds.clear()
    learner.fit(epochs, 1e-3)
    return {"seconds": clock.seconds}


def run_lightning(folder: Path, epochs: int, precision: str = "32-true") -> dict:
    """Time Lightning's Trainer."""
    import lightning

    *loaders, classes = usual_loaders(folder)

    class Network(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = plain_network(classes)

        def _step(self, batch, name):
            images, labels = batch
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            self.log(f"{name}_loss", loss, prog_bar=True, batch_size=len(labels))
            self.log(f"{name}_accuracy", (logits.argmax(1) == labels).float().mean())
            return loss

        def training_step(self, batch, _):
            return self._step(batch, "train")

        def validation_step(self, batch, _):
            return self._step(batch, "val")

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    clock = Clock()
    # Called after the validation that ends an epoch.
    timer = type("Timer", (lightning.Callback,), {"on_train_epoch_end": clock.tick})()
    trainer = lightning.Trainer(
        max_epochs=epochs, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[timer],
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Network(), *loaders)
    return {"seconds": clock.seconds}


def run_lightning_bf16(folder: Path, epochs: int) -> dict:
    """Time Lightning's Trainer in bfloat16."""
    return run_lightning(folder, epochs, "bf16-mixed")


def run_ours(folder: Path, epochs: int) -> dict:
    """Train through `fit`; returns the seconds of each epoch and the share spent waiting."""
    root = tempfile.mkdtemp(dir=folder)
    config = Config(**NETWORK, dataset=f"folder:{folder}", epochs=epochs, runs_root=root)
    splits = data.load(config)
    model, clock = models.build(config, len(splits.classes)), Clock()
    run = train.fit(model, splits, config, clock.tick)
    counted = run.history[1:]
    waited = sum(row["wait_seconds"] for row in counted)
    return {"seconds": clock.seconds, "waiting": waited / sum(row["seconds"] for row in counted)}


def run_pure(folder: Path, epochs: int) -> dict:
    """Time forward and backward alone, as many steps an epoch as the images make."""
    images = sum(1 for _ in (folder / "train").glob("*/*"))
    keep_memory()
    torch.backends.cudnn.benchmark = True  # as `fit` does
    config, device = Config(**NETWORK), choose_device()
    model, dtype = models.build(config, 10).train(), choose_dtype(config, device)
    model.to(device, memory_format=torch.channels_last)
    batch = torch.randn(64, 3, 224, 224, device=device, dtype=dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)
    labels, clock = torch.arange(64, device=device) % 10, Clock()
    for _ in range(epochs):
        for _ in range(-(-images // 64)):
            model.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype, dtype != torch.float32):
                loss = F.cross_entropy(model(batch), labels)
            loss.backward()
        clock.tick()
    return {"seconds": clock.seconds, "images": 64 * -(-images // 64)}


def run_alone(contender: str, folder: Path, epochs: int) -> dict:
    """Run one contender in a process of its own, so that none changes another's memory."""
    command = [sys.executable, "-m", "benchmarks.training", contender, str(folder), str(epochs)]
    return json.loads(subprocess.check_output(command, cwd=ROOT, text=True).splitlines()[-1])


def copy_images(dataset: str, count: int, folder: Path) -> None:
    """Copy up to `count` training images to train/ and a quarter as many to val/, class by class.

    They are whole batches of 64, of which timm and fastai would leave a last part out.
    """
    source = sources.find(dataset)
    by_class: dict[int, list[str]] = {}
    for path, label in source.train:
        by_class.setdefault(label, []).append(path)
    each = -(-count // max(1, min(len(by_class), count // 24)))
    large = [label for label, paths in by_class.items() if len(paths) >= each * 5 // 4]
    chosen = [(label, path) for label in large for path in by_class[label][:each]]
    chosen = chosen[: max(64, min(count, len(chosen)) // 64 * 64)]
    used = dict.fromkeys(label for label, _ in chosen)
    held = [(label, path) for label in used for path in by_class[label][each : each * 5 // 4]]
    for split, images in ("train", chosen), ("val", held):
        for label, path in images:
            target = folder / split / source.classes[label] / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.folder / path, target)


def main() -> None:
    """Run all rounds, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="tiny_nature")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in options.contenders}
    waits, memory = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_images(options.dataset, options.images, folder)
        images = sum(1 for _ in (folder / "train").glob("*/*"))
        for _ in tqdm(range(options.rounds), "rounds", disable=None):
            for name in options.contenders:
                result = run_alone(name, folder, 4 if name == "ours" else 2)
                seen = result.get("images", images)
                rates[name] += [seen / second for second in result["seconds"][1:]]
                waits += [result["waiting"]] if "waiting" in result else []
                memory[name] = result["memory"]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for name, values in rates.items():
        ratio = medians["ours"] / medians[name] if "ours" in medians else float("nan")
        speeds = (f"{value:.1f}" for value in (medians[name], min(values), max(values)))
        rows.append((name, *speeds, f"{ratio:.2g}", f"{memory[name] / 2**30:.2f}"))
    header = ("loop", "images/s (median)", "from", "to", "ours is times as fast", "GPU memory, GiB")
    print(markdown_table(header, rows))
    if waits:
        print(f"getting the next batch: {statistics.median(waits):.2%} of our training time")
    keep("training", rates=rates, memory=memory, waits=waits, **vars(options))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CONTENDERS:
        run = globals()[f"run_{sys.argv[1]}"]
        result = run(Path(sys.argv[2]), int(sys.argv[3]))
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        print(json.dumps({**result, "memory": memory}))
    else:
        main()
