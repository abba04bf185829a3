"""Show what test images in the training list do: the same training, once with them, once without.

In a report, test accuracy far above validation accuracy is their trace: validation images were held
out, test images were not.
"""

import shutil
from pathlib import Path

from helpers import ROOT, data
from helpers.data import sources
from helpers.evaluate.evaluation import open_test_set
from helpers.evaluate.intervals import Difference, difference_of_shares
from helpers.runs.config import Config
from helpers.runs.files import lock, making
from helpers.runs.folder import Run
from helpers.train.loop import train

FOLDER = "leak"  # below runs/ and data/
# The training list
KINDS = {"clean": "as it should be", "leaking": "a third of it are test images"}
LEAKED = "leaked"  # begins the file names of the test images that the leaking list holds
TRAINED = 60  # images of a class in each training list


def demonstrate(runs_root: str = "runs") -> dict[str, Run]:
    """Train on drawn images, once with half of the test images in the training list.

    Returns a finished run for each of `KINDS`, with its test set opened. Both lists are of the same
    length, and both hold out a fifth of theirs for validation. Takes about 20 s; later calls load.
    """
    runs = {}
    for kind in KINDS:
        folder = _copy_images(kind).relative_to(ROOT)  # the same run wherever the project is
        config = Config(
            dataset=f"folder:{folder.as_posix()}", name=kind, runs_root=f"{runs_root}/{FOLDER}",
            augment=[], dropout=0.0,
        )  # fmt: skip
        runs[kind] = train(config)
        if "test" not in runs[kind].metrics:
            open_test_set(runs[kind], data.load(config))
    return runs


def demonstrated(runs_root: str = "runs") -> dict[str, Run]:
    """Return those runs of `demonstrate` that are finished, without training any."""
    runs = {kind: Run(ROOT / runs_root / FOLDER / kind) for kind in KINDS}
    return {kind: run for kind, run in runs.items() if run.usable and "test" in run.metrics}


def accuracies(run: Run) -> dict[str, float]:
    """Return accuracies, 0 to 1: on the validation images, and on both halves of the test set."""
    leaked, others = _right(run, leaked=True), _right(run, leaked=False)
    return {
        "validation": run.metrics["val"]["accuracy"],
        "test, leaked half": sum(leaked) / len(leaked),
        "test, other half": sum(others) / len(others),
    }


def trace(run: Run) -> Difference:
    """Compare the half of the test images that leaks with the other half, for one network.

    Where nothing leaked they are two samples of the same images.
    """
    leaked, others = _right(run, leaked=True), _right(run, leaked=False)
    return difference_of_shares(sum(leaked), len(leaked), sum(others), len(others))


def _right(run: Run, leaked: bool) -> list[bool]:
    return [
        row["predicted"] == row["label"]
        for row in run.predictions
        if row["split"] == "test" and Path(row["path"]).name.startswith(LEAKED) == leaked
    ]


def _copy_images(kind: str) -> Path:
    """Copy drawn images to data/leak/KIND: `TRAINED` of each class for training, all for the test.

    In the leaking list, the first half of a class's test images stands for as many others.
    """
    source = sources.find("tiny_nature")
    folder = ROOT / "data" / FOLDER / kind
    with lock(folder, f"copying images for {kind}"):
        if folder.exists():
            return folder
        with making(folder) as temporary:
            for label, name in enumerate(source.classes):
                trained, tested = ([path for path, of in entries if of == label]
                                   for entries in (source.train, source.test))  # fmt: skip
                half = len(tested) // 2
                replaced = half if kind == "leaking" else 0
                copies = [(path, "train", "") for path in trained[: TRAINED - replaced]]
                copies += [(path, "train", LEAKED) for path in tested[:replaced]]
                copies += [(path, "test", LEAKED) for path in tested[:half]]
                copies += [(path, "test", "") for path in tested[half:]]
                for path, split, mark in copies:
                    copy = temporary / split / name / f"{mark}{Path(path).name}"
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source.folder / path, copy)
    return folder
