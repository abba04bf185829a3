"""The reports' rows: what each stated, the notebook and the parameters that run it again.

A file experiments/rN.yaml is one report: `report`, `title` and a list of `rows`; `Row` says what a
row holds. Start with `load_all`; `runs_of` and `counts_of` give what was measured for a row.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import papermill
import yaml
from torch import nn

from helpers import ROOT
from helpers.config import Config, ConfigError, did_you_mean
from helpers.count.algebra import Operations
from helpers.count.layers import Counts
from helpers.runs import Run, find_runs, write_atomically

EXPERIMENTS = ROOT / "experiments"
NOTEBOOKS = ROOT / "notebooks"
COUNTING = "01_count_flops_and_params"
SWEEPING = "03_sweep"
TRAINING = ("02_train_from_scratch", "06_fine_tune")  # a run folder each
LIMIT_MINUTES = 720

MEASURES = (  # what a report states of a run; accuracies in percent, losses in nats
    "train_loss", "val_loss", "test_loss", "train_accuracy", "val_accuracy", "test_accuracy",
    "parameters", "trainable", "epochs", "images", "runs",
)  # fmt: skip


class ExperimentError(ValueError):
    """A row that cannot be run as written; the message names file and row and the way out."""


@dataclass(frozen=True)
class Row:
    """Hold one row of a report: how to run it, what the report states, what it leaves open."""

    report: str  # R1 ... R5
    name: str  # unique in its file
    notebook: str  # the file's stem
    parameters: dict  # as for `papermill -f`
    grid: dict[str, list]  # parameter: values; every combination is an execution of its own
    stated: dict[str, float]  # MEASURES; of a count, names in counts.json or sums of them
    open: tuple[str, ...]  # what the report leaves open, and what was chosen
    wrong: dict[str, dict]  # stated key: {"right": the true value, "why": a sentence}
    test: bool  # notebook 04 opens the test set afterwards
    limit_minutes: float  # wall-clock time of one execution

    @property
    def counts(self) -> bool:
        """Whether the row counts a network and trains nothing."""
        return self.notebook == COUNTING

    @property
    def points(self) -> dict[str, dict]:
        """Parameters by execution: the row's name, with the grid's values where it has a grid."""
        points = {}
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            words = [self.name, *(f"{name}{value}" for name, value in chosen.items())]
            points[re.sub(r"[^\w.-]+", "_", "-".join(words))] = {**self.parameters, **chosen}
        return points


def load_all() -> list[Row]:
    """Read the rows of all reports, in the reports' order."""
    return [row for path in sorted(EXPERIMENTS.glob("r[0-9]*.yaml")) for row in load(path)]


def load(path: Path | str) -> list[Row]:
    """Read and check one report's file.

    Raises ExperimentError, which names the file, the row and the mistake, and FileNotFoundError.
    """
    path = Path(path)
    if not path.exists():
        known = ", ".join(sorted(p.name for p in EXPERIMENTS.glob("*.yaml")))
        raise FileNotFoundError(f"there is no {path}; experiments/ has {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ExperimentError(
            f"{path.name} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ExperimentError(f"{path.name} is no report: it needs report, title and a list rows")
    where = path.name
    _check_keys(where, content, ("report", "title", "rows"))
    rows: list[Row] = []
    for number, entry in enumerate(content["rows"], start=1):
        where = f"{path.name}, row {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ExperimentError(f"{where}: it needs a name")
        where = f"{path.name}, row '{entry['name']}'"
        try:
            row = _read_row(content["report"], entry, path.parent)
            _check_keys("", entry, ROW_KEYS)
            _check_row(row)
        except (ConfigError, ExperimentError) as error:
            raise ExperimentError(f"{where}: {str(error).removeprefix(': ')}") from None
        if row.name in {other.name for other in rows}:
            raise ExperimentError(f"{where}: the name is used twice; choose another")
        rows.append(row)
    return rows


def folder_of(report: str, dataset: str = "") -> str:
    """Name the folder of a report's runs: R5, or on other data than the report's R5-DATASET."""
    return f"{report}-{dataset}" if dataset else report


def runs_of(row: Row, dataset: str = "", runs_root: str | Path = "runs") -> list[Run]:
    """List the finished runs of a row; `dataset` asks for those on other data than the report's.

    On the report's data a run counts only if its parameters are the row's: one with other epochs
    or another rate is no measurement of the row.
    """
    folder = ROOT / runs_root / folder_of(row.report, dataset)
    if row.notebook == SWEEPING:
        file = ROOT / row.parameters["sweep"]
        fixed = {} if dataset else _fixed_values(file)
        return find_runs(folder / "sweeps" / file.stem, **fixed)
    runs = []
    for name, parameters in row.points.items():
        run = Run(folder / name)
        if run.finished and (dataset or run.config.id == config_of(row, parameters).id):
            runs.append(run)
    return runs


def _fixed_values(file: Path) -> dict:
    """Return the parameters to which a sweep's file gives a single value."""
    parameters = yaml.safe_load(file.read_text(encoding="utf-8"))["parameters"]
    return {name: entry["value"] for name, entry in parameters.items() if "value" in entry}


def counts_of(row: Row, runs_root: str | Path = "runs") -> dict[str, int] | None:
    """Return what a count row's notebook counted, or None where it has not run.

    Beside all names of counts.json it holds each stated key, which may be a sum of them
    ("parameters + moving_statistics"). Raises KeyError for a stated key that was not counted.
    """
    path = ROOT / runs_root / row.report / row.name / "counts.json"
    if not row.counts or not path.exists():
        return None
    counts = json.loads(path.read_text(encoding="utf-8"))
    return counts | {key: sum(counts[name] for name in key.split(" + ")) for key in row.stated}


def write_counts(
    folder: Path, model: nn.Module, counts: Counts, operations: Sequence[Operations] = ()
) -> None:
    """Write counts.json: what `count` found for a network, and for each of its modules by name.

    "body" is all but the new head; "left_out_biases" are those that convolutions without a bias
    would have. `operations` are the five blocks' by R1's (CS6910) convention.
    """
    whole, head = _tally(model), _tally(model.get_submodule(model.head_name))
    parts = {"body": {name: whole[name] - head[name] for name in whole}}
    parts |= {name: _tally(module) for name, module in model.named_modules() if name}
    content = whole | {"trainable": counts.trainable, "macs": counts.macs, "flops": counts.flops}
    content |= {f"{n}.{key}": x for n, tally in parts.items() for key, x in tally.items() if x}
    content |= {f"{name}.outputs": prod(shape) for name, shape in counts.outputs.items() if name}
    if operations:
        content |= {f"cs6910.{entry.layer}": entry.reported for entry in operations}
        content["cs6910"] = sum(entry.reported for entry in operations)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "counts.json", (json.dumps(content, indent=1) + "\n").encode())


def _tally(module: nn.Module) -> dict[str, int]:
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    statistics = ("running_mean", "running_var")
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "moving_statistics": sum(
            b.numel() for name, b in module.named_buffers() if name.endswith(statistics)
        ),
        "left_out_biases": sum(m.out_channels for m in convolutions),
    }


def config_of(row: Row, parameters: dict) -> Config:
    """Return the configuration of one of a row's points; raises ConfigError where it is wrong."""
    own = set(notebook_parameters(row.notebook)) - set(Config.model_fields)
    return Config(**{name: value for name, value in parameters.items() if name not in own})


@cache
def notebook_parameters(notebook: str) -> dict[str, str]:
    """Return the parameters of a notebook and their types (bool, int, float, str, list, None)."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.exists():
        known = [p.stem for p in sorted(NOTEBOOKS.glob("*.ipynb"))]
        raise ExperimentError(f"there is no notebook '{notebook}'{did_you_mean(notebook, known)}")
    found = papermill.inspect_notebook(str(path))
    return {name: entry["inferred_type_name"] for name, entry in found.items()}


ROW_KEYS = (
    "name", "notebook", "parameters", "grid", "stated", "open", "wrong", "test", "limit_minutes",
)  # fmt: skip


def _read_row(report: str, entry: dict, folder: Path) -> Row:
    """Make a row of a YAML entry; what is left out gets its default, types are checked."""
    parameters = entry.get("parameters", {})
    if isinstance(parameters, str):  # a file beside this one
        if not (folder / parameters).exists():
            raise ExperimentError(f"there is no file '{parameters}' beside it")
        parameters = yaml.safe_load((folder / parameters).read_text(encoding="utf-8"))
    row = Row(
        report=report,
        name=entry["name"],
        notebook=entry.get("notebook", ""),
        parameters=parameters,
        grid=entry.get("grid", {}),
        stated=entry.get("stated", {}),
        open=tuple(_flat(entry.get("open", []))),
        wrong=entry.get("wrong", {}),
        test=entry.get("test", False),
        limit_minutes=entry.get("limit_minutes", LIMIT_MINUTES),
    )
    number = int | float
    kinds = {
        "notebook": (str, "the stem of a notebook's file name"),
        "parameters": (dict, "a mapping from parameter to value"),
        "grid": (dict, "a mapping from parameter to a list of values"),
        "stated": (dict, "a mapping from measure to number"),
        "wrong": (dict, "a mapping from a stated measure to right and why"),
        "test": (bool, "true or false"),
        "limit_minutes": (number, "a number of minutes"),
    }
    for key, (kind, wanted) in kinds.items():
        value = getattr(row, key)
        if not isinstance(value, kind) or (kind is number and isinstance(value, bool)):
            raise ExperimentError(f"{key} = {value!r} is not possible: it should be {wanted}")
    if not re.fullmatch(r"[\w.-]+", row.name):
        raise ExperimentError("the name should have letters, digits, '_', '-' and '.' alone")
    return row


def _flat(remarks: str | list) -> list[str]:
    """Join sentences and (by YAML's aliases) lists of sentences to one list."""
    if isinstance(remarks, str):
        return [remarks]
    if not isinstance(remarks, list):
        raise ExperimentError(f"open = {remarks!r} is not possible: it should be sentences")
    return [sentence for remark in remarks for sentence in _flat(remark)]


def _check_row(row: Row) -> None:
    known = notebook_parameters(row.notebook)
    for name, values in row.grid.items():
        if not isinstance(values, list) or not values:
            raise ExperimentError(f"grid: {name} = {values!r} should be a list of values")
    for parameters in row.points.values():
        for name, value in parameters.items():
            if name not in Config.model_fields and name not in known:
                hint = did_you_mean(name, [*Config.model_fields, *known])
                raise ExperimentError(f"unknown parameter '{name}'{hint}")
            if name not in Config.model_fields and type(value).__name__ != known[name]:
                raise ExperimentError(
                    f"{name} = {value!r} is not possible: it should be {known[name]}"
                )
        if row.notebook != SWEEPING:
            config_of(row, parameters)
    for key, value in row.stated.items():
        if not row.counts and key not in MEASURES:
            raise ExperimentError(
                f"stated: unknown measure '{key}'{did_you_mean(key, MEASURES)}; "
                f"choose from {', '.join(MEASURES)}"
            )
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ExperimentError(f"stated: {key} = {value!r} should be a number")
    for key, entry in row.wrong.items():
        if key not in row.stated:
            raise ExperimentError(f"wrong: '{key}' is not stated{did_you_mean(key, row.stated)}")
        if not isinstance(entry, dict) or set(entry) != {"right", "why"}:
            raise ExperimentError(f"wrong: {key} needs right (the true value) and why (a sentence)")
    if row.test and row.notebook != "02_train_from_scratch":
        raise ExperimentError("test is for notebook 02_train_from_scratch; others have a parameter")


def _check_keys(where: str, content: dict, known: Iterable[str]) -> None:
    for key in content:
        if key not in known:
            raise ExperimentError(
                f"{where}: unknown key '{key}'{did_you_mean(str(key), known)}; "
                f"possible are {', '.join(known)}"
            )
