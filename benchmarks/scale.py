"""Train on 1,000 to 200,000 images: memory and time per image must not grow with the number.

    python -m benchmarks.scale [--counts 1000 10000 200000] [--image-size 64]

Makes a `folder:` data set of drawn images (each drawn file under many names: what is measured here
does not depend on the content), then, in a process of its own for each count: decoding, opening the
decoded pixels again, and one epoch of the default network. Memory is the largest sum of the
process's own pages (RssAnon), read 20 times a second; pages of the memory-mapped pixels belong to
the system's cache and are given back whenever something else needs them. Needs Linux and about
3 GB of disk for the largest count. Writes runs/benchmarks/scale.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.measured import keep
from helpers import ROOT, data, models, train
from helpers.data import sources
from helpers.runs.config import Config
from helpers.runs.text import markdown_table


def copy_images(count: int, folder: Path) -> None:
    """Copy `count` drawn training images below folder/train, and 100 below folder/val."""
    source = sources.find("tiny_nature")
    for number in tqdm(range(count + 100), f"{count} files", disable=None):
        path, label = source.train[number * 7 % len(source.train)]  # every class soon
        split = folder / ("train" if number < count else "val")
        target = split / source.classes[label] / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.folder / path, target)


def own_memory() -> int:
    """Return the bytes of this process's own pages."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's own pages")


def measure(folder: Path, image_size: int) -> dict:
    """Decode, open again and train one epoch; returns seconds and the largest memory."""
    peak, done = [own_memory()], threading.Event()

    def watch():
        while not done.wait(0.05):
            peak[0] = max(peak[0], own_memory())

    threading.Thread(target=watch, daemon=True).start()
    config = Config(dataset=f"folder:{folder}", image_size=image_size, epochs=1,
                    runs_root=str(folder / "runs"))  # fmt: skip
    start = time.perf_counter()
    splits = data.load(config)
    decoded = time.perf_counter() - start
    start = time.perf_counter()
    splits = data.load(config)
    opened = time.perf_counter() - start
    run = train.fit(models.build(config, len(splits.classes)), splits, config)
    done.set()
    (epoch,) = run.history
    return {
        "images": len(splits.train),
        "files": sum(map(len, (splits.train, splits.val, splits.test))),
        "decode_seconds": decoded, "open_seconds": opened,
        "train_seconds": epoch["seconds"], "waiting": epoch["wait_seconds"] / epoch["seconds"],
        "peak_bytes": peak[0],
    }  # fmt: skip


def main() -> None:
    """Measure each count in a process of its own, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 200_000])
    parser.add_argument("--image-size", type=int, default=64)
    options = parser.parse_args()
    results = []
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=ROOT / "data") as temporary:
            copy_images(count, Path(temporary))
            command = [sys.executable, "-m", "benchmarks.scale", temporary, str(options.image_size)]
            environ = {**os.environ, "PYTHONWARNINGS": "ignore"}
            text = subprocess.check_output(command, cwd=ROOT, text=True, env=environ)
            results.append(json.loads(text.splitlines()[-1]))
    rows = []
    for row in results:
        count, decoded = row["images"], row["files"] / row["decode_seconds"]
        rows.append((count, f"{decoded:,.0f}", f"{row['open_seconds']:.2f}",
                     f"{count / row['train_seconds']:,.0f}", f"{row['waiting']:.1%}",
                     f"{row['peak_bytes'] / 2**20:,.0f}"))  # fmt: skip
    header = ("images", "decode, images/s", "open again, s", "training, images/s", "waiting")
    print(markdown_table((*header, "peak memory, MiB"), rows))
    keep("scale", results=results, **vars(options))


if __name__ == "__main__":
    if len(sys.argv) > 1 and Path(sys.argv[1]).is_dir():
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
