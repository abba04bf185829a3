"""The executions of reports' rows: which notebooks with which parameters, and how far they got.

Start with `plan`. A row runs as its report states it or, with changes, on other data or with other
parameters; its status then says which.
"""

import itertools
import json
import os
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from helpers import ROOT, models
from helpers.count.algebra import cs6910_operations
from helpers.count.layers import count, without_weights
from helpers.count.record import write_counts
from helpers.report import rows
from helpers.report.rows import COUNTING, SWEEPING, TRAINING, ExperimentError, Row
from helpers.runs.config import DATASETS, Config, ConfigError, did_you_mean
from helpers.runs.files import readable_json, write_atomically, write_json
from helpers.runs.folder import Run, now

EMBEDDED = ("tiny_nature", "tiny_species")
TESTING = "04_test_grid"
DETECTING = "07_detect_in_video"
NETWORK = ("model", "head", "pooling", "padding", "kernel_size")  # decide the smallest image


def read_status(folder: Path) -> dict:
    """Return what an execution's folder says of it; {} where nothing can be read."""
    status = readable_json(folder / "status.json", dict) or {}
    return status if isinstance(status.get("reason", ""), str) else {}


@dataclass
class Execution:
    """One papermill run of a row, or two where the test set is opened afterwards."""

    row: Row
    name: str
    folder: Path  # below runs/batch
    run: Run  # where the row's results go
    steps: list[tuple[str, dict]]  # notebook, parameters
    changes: str  # what differs from the report; "": nothing
    sweep: dict | None = None  # the changed sweep file
    drawn: bool = False  # trained on drawn images in place of the report's
    step: int = 0
    attempt: int = 1
    started: float = 0.0  # of the execution, monotonic
    seconds: float = 0.0
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        return f"{self.folder.parent.name} {self.name}"

    @property
    def status(self) -> dict:
        return read_status(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the same steps have ended well, and what they made is still there."""
        status = self.status
        if status.get("state") != "finished" or status.get("steps") != self._described:
            return False
        if self.row.counts:
            return rows.counts_of(self.row, self.folder.parents[2]) is not None
        if self.row.notebook == SWEEPING:
            return self.run.folder.exists()
        return self.row.notebook not in TRAINING or self.run.usable

    @property
    def _described(self) -> list:
        return json.loads(json.dumps([*self.steps, *([self.sweep] if self.sweep else [])]))

    def paths(self, step: int) -> tuple[Path, Path]:
        """Return a step's file of parameters and its executed notebook."""
        names = (("parameters.yaml", "notebook.ipynb"), ("test.yaml", "test.ipynb"))[step]
        return self.folder / names[0], self.folder / names[1]

    def command(self, step: int) -> list[str]:
        """Return papermill's command without the interpreter, for the repository's folder."""
        parameters, output = self.paths(step)
        source = rows.NOTEBOOKS / f"{self.steps[step][0]}.ipynb"
        paths = (source, output, parameters, source.parent)
        files = [os.path.relpath(path, ROOT) for path in paths]
        return ["-m", "papermill", *files[:2], "-f", files[2], "--cwd", files[3],
                "--kernel", "python3", "--no-progress-bar"]  # fmt: skip

    def count(self) -> None:
        """Count a count row's network, which its notebook does with more words."""
        parameters = self.steps[0][1]
        config, classes = rows.config_of(self.row, parameters), parameters["num_classes"]
        with without_weights():
            network = models.build(config.replace(weights="none"), classes)
        models.freeze(network, config.freeze)
        operations = cs6910_operations(config, classes) if config.model == "five_blocks" else ()
        write_counts(self.run.folder, network, count(network, config.image_size), operations)

    def forget_weights(self) -> None:
        """Delete the weights of what was trained on drawn images in place of the report's.

        Such a row shows that it runs; all rows together would leave 25 GB of weights.
        """
        if self.drawn:
            for path in self.run.folder.rglob("best.pt"):
                path.unlink()

    def write_parameters(self) -> None:
        """Write the files that `command` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {self.paths(step)[0]: given for step, (_, given) in enumerate(self.steps)}
        if self.sweep:
            files[ROOT / self.steps[0][1]["sweep"]] = self.sweep
        for path, content in files.items():
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            write_atomically(path, text.encode())

    def set_status(self, state: str, reason: str = "") -> None:
        """Write status.json; `state` is running, finished, failed or interrupted."""
        status = {"state": state, "time": now(), "seconds": round(self.seconds, 1)}
        if self.changes:
            status["changes"] = self.changes
        if reason:
            status["reason"] = reason
        write_json(self.folder / "status.json", {**status, "steps": self._described})


def plan(
    rows: list[Row], dataset: str = "", changes: dict | None = None, runs_root: str = "runs"
) -> list[Execution]:
    """List the executions of rows; raises ExperimentError before anything is written.

    `dataset` and `changes` replace what rows that train or sweep have themselves; the others stay
    as they are. With an embedded data set, images are as small as the network
    takes and no weights are downloaded.
    """
    changes = changes or {}
    known = {*Config.model_fields, *(n for row in rows for n in _parameters(row))}
    for name in changes:
        if name not in known:
            raise ExperimentError(f"--set: unknown parameter '{name}'{did_you_mean(name, known)}")
    if dataset and dataset not in DATASETS and not dataset.startswith("folder:"):
        hint = did_you_mean(dataset, DATASETS)
        raise ExperimentError(f"--dataset: '{dataset}' is not known{hint}")
    executions = []
    for row in rows:
        for name, parameters in row.points.items():
            try:
                executions.append(_plan_one(row, name, parameters, dataset, changes, runs_root))
            except ConfigError as error:
                raise ExperimentError(f"{row.report} {name}: {error}") from None
    return executions


def _parameters(row: Row) -> dict[str, str]:
    return rows.notebook_parameters(row.notebook)


def _plan_one(
    row: Row, name: str, parameters: dict, dataset: str, changes: dict, runs_root: str
) -> Execution:
    stays = row.notebook not in (SWEEPING, *TRAINING)
    if dataset == parameters.get("dataset"):
        dataset = ""
    known = _parameters(row)
    report = rows.folder_of(row.report, "" if stays else Path(dataset.removeprefix("folder:")).name)
    run = Run(ROOT / runs_root / report / name)
    folder = ROOT / runs_root / "batch" / report / name
    sweep, remarks = None, ""
    if not stays:
        parameters, sweep, remarks = _change(row, parameters, dataset, changes)
    if sweep:
        parameters["sweep"] = os.path.relpath(folder / Path(parameters["sweep"]).name, ROOT)
    if row.notebook == SWEEPING:
        run = Run(run.folder.parent / "sweeps" / Path(parameters["sweep"]).stem)  # holds its runs
        parameters = {**parameters, "runs_root": f"{runs_root}/{report}"}
    elif "name" in known:
        parameters = {**parameters, "name": name, "runs_root": f"{runs_root}/{report}"}
    elif row.notebook == DETECTING:
        parameters = {**parameters, "folder": f"{runs_root}/{report}/{name}"}
    if row.notebook in (COUNTING, *TRAINING):
        config = rows.config_of(row, parameters)
        _check_run(run, config)
        # A row is Config's defaults and what it says, whatever defaults the notebook has.
        parameters = {**{n: v for n, v in config.model_dump().items() if n in known}, **parameters}
    steps = [(row.notebook, parameters)]
    if row.test:
        steps.append((TESTING, {"run": os.path.relpath(run.folder, ROOT / "runs")}))
    drawn = dataset in EMBEDDED and not stays
    return Execution(row, name, folder, run, steps, remarks, sweep, drawn)


def _change(
    row: Row, parameters: dict, dataset: str, changes: dict
) -> tuple[dict, dict | None, str]:
    """Return changed parameters, a sweep's changed file, and what was changed in words."""
    sweep = None
    if row.notebook == SWEEPING:
        content = yaml.safe_load((ROOT / parameters["sweep"]).read_text(encoding="utf-8"))
        given = content["parameters"]
        old = {name: entry["value"] for name, entry in given.items() if "value" in entry}
        varied = {n: e["values"] for n, e in given.items() if n in NETWORK and "values" in e}
        new = _adapt(old, dataset, changes, varied)
        if new != old:
            fixed = {name: {"value": value} for name, value in new.items()}
            sweep = {**content, "parameters": {**given, **fixed}}
        parameters = dict(parameters)
    else:
        old, new = parameters, _adapt(parameters, dataset, changes, {})
        parameters = new
    words = [f"{dataset}, not the report's data"] if dataset else []
    words += [f"{name} {new.get(name)}" for name in {**old, **new}
              if old.get(name) != new.get(name) and name != "dataset"]  # fmt: skip
    return parameters, sweep, "; ".join(words)


def _adapt(parameters: dict, dataset: str, changes: dict, varied: dict[str, list]) -> dict:
    """Put another data set and other values into a training's parameters.

    Images are large enough for every combination of the `varied` values of `NETWORK`.
    """
    new = {**parameters, **({"dataset": dataset} if dataset else {})}
    if dataset in EMBEDDED:
        if new.get("weights") == "imagenet":
            new["weights"] = "none"
        new.pop("start_image_size", None)
        if "image_size" not in changes:
            choices = {**{name: [new[name]] for name in NETWORK if name in new}, **varied}
            new["image_size"] = max(
                _smallest_image_size(json.dumps(dict(zip(choices, values, strict=True))))
                for values in itertools.product(*choices.values())
            )
    new |= changes
    if "epochs" in changes and new.get("stages"):
        new["stages"] = [{**stage, "epochs": changes["epochs"]} for stage in new["stages"]]
    return new


@cache
def _smallest_image_size(network: str) -> int:
    """Return 32 pixels, or the smallest multiple of 32 that a network (JSON of fields) takes."""
    for size in range(32, 512, 32):
        try:
            with without_weights():
                models.build(Config(**json.loads(network), image_size=size), 10)
            return size
        except ConfigError as error:
            problem = error
    raise problem


def _check_run(run: Run, config: Config) -> None:
    """Stop where a run's folder holds one with other parameters: it may have taken hours."""
    if (run.folder / "config.json").exists() and run.config.id != config.id:
        old, new = run.config.model_dump(), config.model_dump()
        changed = [f"{n} {v!r} -> {new[n]!r}" for n, v in old.items() if v != new[n]]
        raise ConfigError(
            f"{run.folder} holds a run with other parameters ({', '.join(changed[:3])}): "
            f"delete it, or give another --runs-root"
        )
