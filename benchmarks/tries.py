"""Try what the notebooks suggest under "Try", and print what comes out of it.

    python -m benchmarks.tries [01 02 03 04 05 06 09]

notebooks/ANSWERS.md words these figures. Where a suggestion changes a training it is compared with
the notebook's own parameters, seed by seed, on the same images.
"""

import argparse
import ast
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import papermill
import yaml

from helpers import ROOT, models, sweep
from helpers.count import count
from helpers.evaluate import compare_runs
from helpers.report.rows import NOTEBOOKS
from helpers.runs.config import Config, did_you_mean
from helpers.runs.folder import Run
from helpers.train import fine_tune, train
from helpers.train.loop import TrainingDiverged

SEEDS = (0, 1, 2)
FOLDER = "runs/tries"


def defaults(number: str, **changes) -> Config:
    """Return the configuration of a notebook's own parameters, with changes."""
    found = papermill.inspect_notebook(str(path_of(number)))
    given = {name: ast.literal_eval(entry["default"]) for name, entry in found.items()
             if name in Config.model_fields}  # fmt: skip
    return Config(**given | {"runs_root": FOLDER, "name": ""} | changes)


def path_of(number: str) -> Path:
    """Return a notebook by its number."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return path


def execute(number: str, *cells: int, **parameters) -> str:
    """Execute a notebook and return the text of its last code cell, or of those counted back."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.ipynb"
        papermill.execute_notebook(str(path_of(number)), str(output), parameters,
                                   cwd=str(NOTEBOOKS), progress_bar=False)  # fmt: skip
        code = [c for c in nbformat.read(output, 4).cells if c.cell_type == "code"]
    texts = []
    for cell in cells or (1,):
        for out in code[-cell].outputs:
            texts.append(out.get("text") or out.get("data", {}).get("text/markdown", ""))
    return "\n".join(texts)


def seeds_of(config: Config) -> list[Run]:
    """Train a configuration with each seed."""
    return [train(config.replace(seed=seed)) for seed in SEEDS]


def show(name: str, runs: list[Run], others: list[Run] | None = None) -> None:
    """Print validation accuracies by seed, and how they compare with others of the same seeds."""
    values = np.array([run.metrics["val"]["accuracy"] for run in runs])
    line = f"{name}: {values.mean():.1%} ({', '.join(f'{value:.1%}' for value in values)})"
    if others:
        gain = compare_runs(runs, others)
        line += f"; against the notebook's own {gain}, {gain.verdict}"
    print(line, flush=True)


def try_01() -> None:
    """Count the suggested networks."""
    base = defaults("01", name="")
    changes = [{}, {"kernel_size": 5}, {"filter_organization": "double"},
               {"filter_organization": "half"}, {"image_size": 128}, {"dense": []}]  # fmt: skip
    for change in changes:
        config = base.replace(**change)
        counts = count(models.build(config, 10), config.image_size)
        layers = ", ".join(f"{layer.name} {layer.params:,}" for layer in counts.layers
                           if layer.params)  # fmt: skip
        sums = f"{counts.params:,} parameters, {counts.macs:,} MACs"
        print(f"{change or 'as it is'}: {sums} ({layers})")


def try_02() -> None:
    """Leave out batch norm, or augmentation; take a rate that is too large."""
    base = defaults("02")
    own = seeds_of(base)
    for change in ({}, {"batch_norm": False}, {"augment": []}):
        runs = seeds_of(base.replace(**change))
        show(str(change or "as it is"), runs, own if change else None)
        for level in (0.6, 0.8):
            reached = [next((row["epoch"] for row in run.history if row["val_accuracy"] >= level),
                            None) for run in runs]  # fmt: skip
            print(f"  first epoch with {level:.0%}: {reached}")
        gaps = [run.history[-1]["train_accuracy"] - run.history[-1]["val_accuracy"] for run in runs]
        print(f"  training minus validation accuracy at the end: {np.mean(gaps):+.1%}")
    for change in (
        {"lr": 1.0, "name": "lr1"},
        {"lr": 10.0, "optimizer": "sgd", "batch_norm": False, "name": "lr10"},
    ):
        try:
            print(f"{change}: {train(base.replace(**change)).metrics['val']['accuracy']:.1%}")
        except TrainingDiverged as error:
            print(f"{change}: {error}")
        left = (ROOT / FOLDER / change["name"]).iterdir()
        print("  left:", sorted(path.name for path in left))


def try_03() -> None:
    """Run the sweep as it is and with Hyperband."""
    content = yaml.safe_load((ROOT / "sweeps" / "tiny.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for name, more in ("as_it_is", {}), ("hyperband", {"early_terminate": {
                "type": "hyperband", "min_iter": 2, "eta": 2}}):  # fmt: skip
            path = Path(folder) / f"{name}.yaml"
            path.write_text(yaml.safe_dump(content | more))
            for seed in SEEDS:
                result = sweep.run(path, Config(seed=seed, runs_root=f"{FOLDER}/{seed}"))
                epochs = sum(len(run.history) for run in result.runs)
                print(f"{name}, seed {seed}: best {result.value(result.best):.3f}, {epochs} epochs",
                      flush=True)  # fmt: skip


def try_04() -> None:
    """Take other images, a network without batch norm, and three networks that vote."""
    for change in ({}, {"batch_norm": False}):
        run = train(defaults("02", **change))
        for seed in (0, 1) if not change else (0,):
            text = execute("04", run=f"tries/{run.name}", seed=seed)
            print(f"{change or 'as it is'}, seed {seed}:\n{text}", flush=True)
    voters = ", ".join(f"tries/{run.name}" for run in seeds_of(defaults("02")))
    print(f"three seeds:\n{execute('04', run=voters)}", flush=True)


def try_05() -> None:
    """Look at an early layer, another activation, dead channels, another seed."""
    runs = {"as it is": defaults("02"), "gelu": defaults("02", activation="gelu"),
            "no batch norm, lr .01": defaults("02", batch_norm=False, lr=0.01)}  # fmt: skip
    for name, config in runs.items():
        run = f"tries/{train(config).name}"
        ways = [{}, {"layer": "blocks.1"}, {"seed": 1}] if name == "as it is" else [{}]
        for way in ways:
            print(f"{name}, {way}:\n{execute('05', run=run, large_kernels=0, **way)}", flush=True)


def try_06() -> None:
    """Take more images, unfreezing by stages, quarters, smaller rates, random features, birds."""
    base = defaults("06")
    ways = ["scratch", "all_but_head", "nothing"]
    own = fine_tune.compare(base, ways, len(SEEDS))
    more = fine_tune.compare(base.replace(val_fraction=0.2), ways, len(SEEDS))
    for name, runs in ("as it is", own), ("val_fraction .2", more):
        for way in ways:
            show(f"{name}, {way}", runs[way])
            if way != "scratch":
                gain = compare_runs(runs[way], runs["scratch"])
                print(f"  against scratch {gain}, {gain.verdict}")
    stages = [{"epochs": 10}, {"epochs": 10, "lr": 1e-3, "freeze": "nothing"}]
    gradual = seeds_of(base.replace(stages=stages))
    show("gradual unfreezing, against everything trained", gradual, own["nothing"])
    seams = [[round(row["val_accuracy"], 3) for row in run.history[8:13]] for run in gradual]
    print("  epochs 9 to 13:", seams)
    quarters = seeds_of(base.replace(head="dense", pooling="quarters", dense=[]))
    show("quarters, against the average of whole maps", quarters, own["all_but_head"])
    slower = seeds_of(base.replace(layer_decay=0.5, freeze="nothing"))
    show("layer_decay .5, against everything trained", slower, own["nothing"])
    show("head on random features", seeds_of(base.replace(weights="none", freeze="all_but_head")))
    drawings = yaml.safe_load((ROOT / "experiments" / "drawings_to_birds.yaml").read_text())
    print(execute("06", **drawings, runs_root=FOLDER), flush=True)


def try_09() -> None:
    """Take dropout, and a large batch."""
    for change in ({}, {"dropout": 0.5}, {"batch_size": 512}):
        print(f"{change or 'as it is'}:\n{execute('09', 1, **change)}", flush=True)


TRIES = {name.removeprefix("try_"): value for name, value in dict(globals()).items()
         if name.startswith("try_")}  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help=f"by number: {', '.join(TRIES)} (all)")
    options = parser.parse_args()
    for number in options.notebooks or TRIES:
        if number not in TRIES:
            parser.error(f"there is no {number}{did_you_mean(number, TRIES)}")
        print(f"\n## {number}", flush=True)
        TRIES[number]()


if __name__ == "__main__":
    main()
