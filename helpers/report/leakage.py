"""Show what test images in the training list do: the same training, once with and once without.

In a report, test accuracy far above validation accuracy is their trace: validation images were held
out, test images were not.
"""

import shutil
from pathlib import Path

from helpers import ROOT, data
from helpers.data import sources
from helpers.evaluate.evaluation import open_test_set
from helpers.runs.config import Config
from helpers.runs.files import lock
from helpers.runs.folder import Run
from helpers.train.loop import train

KINDS = ("clean", "leaking")


def demonstrate(runs_root: str = "runs/leakage") -> dict[str, Run]:
    """Train on drawn images without and with the test images in the training list.

    Returns a finished run for "clean" and "leaking", each with its test set opened. Both hold out a
    fifth of their training list for validation. Takes about half a minute; later calls load.
    """
    runs = {}
    for kind in KINDS:
        folder = _copy_images(kind)
        config = Config(
            dataset=f"folder:{folder}", name=kind, runs_root=runs_root, augment=[], dropout=0.0
        )
        runs[kind] = train(config)
        if "test" not in runs[kind].metrics:
            open_test_set(runs[kind], data.load(config))
    return runs


def _copy_images(kind: str) -> Path:
    """Copy the drawn images to data/leakage/KIND, where it leaks the test images to train, too."""
    source = sources.find("tiny_nature")
    folder = ROOT / "data" / "leakage" / kind
    with lock(folder, f"copying images for {kind}"):
        if folder.exists():
            return folder
        temporary = folder.with_name(f".{kind}")
        shutil.rmtree(temporary, ignore_errors=True)
        for split, entries in ("train", source.train), ("test", source.test):
            for path, label in entries:
                targets = ["train", "test"] if kind == "leaking" and split == "test" else [split]
                for target in targets:
                    copy = temporary / target / source.classes[label] / f"{split}-{Path(path).name}"
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source.folder / path, copy)
        temporary.rename(folder)
    return folder
