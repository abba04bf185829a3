"""Fine-tune on photographs without anything from the internet, against training from scratch.

    DATA_ROOT=... python -m benchmarks.transfer [--seeds 3] [--pretrain-epochs 20]

Caltech-101 is cut in two: the five-block network (5.8 M parameters) learns 81 classes, and its
weights are fine-tuned on the other 20 with ten images each. Ten more images each of the training
list choose the best epoch; the test list's images of these classes are the measure. Which ten
images is drawn by the seed. All ways have the same images, epochs and parameters but for what is
frozen. Writes runs/benchmarks/transfer.json; runs are kept below runs/transfer and are only loaded
the second time.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

from benchmarks.measured import keep
from helpers import ROOT, data
from helpers.data import sources
from helpers.evaluate import compare_runs, tradeoff
from helpers.evaluate.evaluation import open_test_set
from helpers.runs.config import Config
from helpers.runs.folder import Run
from helpers.runs.text import markdown_table
from helpers.train import fine_tune

NEW_CLASSES, IMAGES = 20, 10
WAYS = ["scratch", "all_but_head", "all_but_last_1_blocks", "all_but_last_2_blocks", "nothing"]


def divide(folder: Path, seeds: int) -> tuple[Path, list[Path]]:
    """Link photographs of 81 classes into one folder, and few of the other 20 into one a seed."""
    source = sources.find("caltech101")
    new = np.random.default_rng(0).permutation(len(source.classes))[:NEW_CLASSES]
    new = set(new.tolist())
    lists: dict[tuple[str, int], list] = defaultdict(list)
    for split in "train", "test":
        for path, label in getattr(source, split):
            lists[split, label].append(path)
    for (split, label), paths in lists.items():
        if label not in new:
            _link(source, folder / "many" / split, label, paths)
            continue
        for seed in range(seeds):
            few = folder / f"few-{seed}"
            if split == "test":
                _link(source, few / "test", label, paths)
                continue
            order = np.random.default_rng([seed, label]).permutation(len(paths))[: 2 * IMAGES]
            _link(source, few / "train", label, [paths[i] for i in order[:IMAGES]])
            _link(source, few / "val", label, [paths[i] for i in order[IMAGES:]])
    return folder / "many", [folder / f"few-{seed}" for seed in range(seeds)]


def _link(source, folder: Path, label: int, paths: list) -> None:
    target = folder / source.classes[label]
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        link = target / Path(path).name
        if not link.exists():
            link.symlink_to(source.folder / path)


def main() -> None:
    """Pretrain once, fine-tune in each way with each seed, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    many, few = divide(ROOT / "data" / "transfer", options.seeds)
    recipe = yaml.safe_load((ROOT / "experiments" / "caltech101_five_blocks.yaml").read_text())
    runs_root = "runs/transfer"
    source = fine_tune.train(Config(**recipe | {
        "dataset": f"folder:{many}", "epochs": options.pretrain_epochs, "val_fraction": 0.1,
        "name": f"81-classes-{options.pretrain_epochs}", "runs_root": runs_root,
    }))  # fmt: skip
    print(f"81 classes: {source.metrics['val']['accuracy']:.1%} on validation, "
          f"{source.metrics['train_seconds']:.0f} s", flush=True)  # fmt: skip
    found: dict[str, list[Run]] = {way: [] for way in WAYS}
    for seed, folder in enumerate(few):
        config = Config(**recipe | {
            "dataset": f"folder:{folder}", "epochs": options.epochs, "batch_size": 20,
            "val_fraction": 0.5,  # val/ is there; 0 would add it to the training images
            "start_image_size": None, "weights": str(source.folder), "head": "dense",
            "name": f"few-{options.epochs}", "runs_root": runs_root, "seed": seed,
        })  # fmt: skip
        splits = data.load(config)
        for way, (run,) in fine_tune.compare(config, WAYS).items():
            found[way].append(run)
            if "test" not in run.metrics:
                open_test_set(run, splits)
    rows = []
    for way, runs in found.items():
        values = [100 * run.metrics["test"]["accuracy"] for run in runs]
        gain = compare_runs(runs, found["scratch"], "test")
        seconds = float(np.mean([run.metrics["train_seconds"] for run in runs]))
        rows.append({"way": way, "setting": tradeoff.setting_of(runs[0]), "test": values,
                     "gain": gain, "seconds": seconds,
                     "trainable": runs[0].metrics["trainable"]})  # fmt: skip
    print(f"20 classes: {len(splits.train)} training and {len(splits.test)} test images")
    spreads = [f" ± {np.std(row['test'], ddof=1):.1f}" if options.seeds > 1 else "" for row in rows]
    lines = [(row["way"], row["trainable"], f"{np.mean(row['test']):.1f}{spread} %",
              row["gain"], f"{row['seconds']:.0f}")
             for row, spread in zip(rows, spreads, strict=True)]  # fmt: skip
    header = ("way", "trained", "test accuracy", "against scratch", "seconds")
    print(markdown_table(header, lines))
    rows = [row | {"gain": vars(row["gain"])} for row in rows]
    keep("transfer", rows=rows, **vars(options))


if __name__ == "__main__":
    main()
