"""Read a data set's images at 224 pixels: decoded once here, at every epoch by a DataLoader.

    [DATA_ROOT=...] python -m benchmarks.decoding [--dataset caltech101] [--image-size 224]

Ours: `data.load` without a decoded array (files to one array on disk, complete), the same again
(opening it), and one pass over all training images in random order, in batches of 64, as training
takes them. The usual way: an ImageFolder-like data set with Resize and ToTensor and a DataLoader of
two workers, one pass over the same files. Each in turn, several rounds; the files are in the
system's cache after the first. Writes runs/benchmarks/decoding.json.
"""

import argparse
import shutil
import statistics
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from benchmarks.measured import keep
from helpers import ROOT, data
from helpers.data.batches import batches, shuffle
from helpers.runs.config import Config
from helpers.runs.text import markdown_table

BATCH = 64


class Files(Dataset):
    """Read one file at a time, as torchvision's ImageFolder does."""

    def __init__(self, images: data.ImageSet, size: int):
        self.paths = [str(images.folder / path) for path in images.paths]
        self.transform = transforms.Compose(
            [transforms.Resize((size, size)), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(default_loader(self.paths[index]))


def main() -> None:
    """Measure each way in turn, print the medians and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="caltech101")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config = Config(dataset=options.dataset, image_size=options.image_size, val_fraction=0.0)
    rates: dict[str, list[float]] = {"ours, decoding once": [], "ours, opening again (s)": [],
                                     "ours, an epoch": [], "usual, an epoch": []}  # fmt: skip
    for _ in range(options.rounds + 1):
        decoded = data.load(config).train.decoded
        shutil.rmtree(ROOT / "data" / "decoded" / decoded.filename.parent.name)
        start = time.perf_counter()
        splits = data.load(config)
        total = sum(len(split) for split in (splits.train, splits.val, splits.test))
        rates["ours, decoding once"].append(total / (time.perf_counter() - start))
        start = time.perf_counter()
        train = data.load(config).train
        rates["ours, opening again (s)"].append(time.perf_counter() - start)
        steps = -(-len(train) // BATCH)
        start = time.perf_counter()
        chunks = shuffle(train, steps, BATCH, 0, 1)
        cpu = torch.device("cpu")
        seen = sum(len(labels) for _, labels in batches(train, chunks, cpu, lambda x, _: x.float()))
        rates["ours, an epoch"].append(seen / (time.perf_counter() - start))
        loader = DataLoader(Files(train, options.image_size), BATCH, shuffle=True, num_workers=2)
        start = time.perf_counter()
        seen = sum(len(batch) for batch in loader)
        rates["usual, an epoch"].append(seen / (time.perf_counter() - start))
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    print(f"{options.dataset}, {options.image_size} px, {len(train)} training images")
    rows = []
    for name, median in medians.items():
        low, high = np.min(rates[name][1:]), np.max(rates[name][1:])
        digits = 3 if name.endswith("(s)") else 0
        rows.append((name, *(f"{value:,.{digits}f}" for value in (median, low, high))))
    print(markdown_table(("what", "images/s (median)", "from", "to"), rows))
    keep("decoding", rates=rates, **vars(options))


if __name__ == "__main__":
    main()
