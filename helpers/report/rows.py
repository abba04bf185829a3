"""The reports' rows: what each stated, the notebook and the parameters that run it again.

A file experiments/rN.yaml is one report: `report`, `title` and a list of `rows`; `Row` says what a
row holds. Start with `load_all`; `runs_of` and `counts_of` give what was measured for a row.
"""

import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import papermill
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)  # fmt: skip

from helpers import ROOT
from helpers.runs.config import Config, ConfigError, did_you_mean
from helpers.runs.files import readable_json
from helpers.runs.folder import Run
from helpers.runs.search import find_runs, shorten
from helpers.runs.text import abridge, for_terminal

EXPERIMENTS = ROOT / "experiments"
NOTEBOOKS = ROOT / "notebooks"
COUNTING = "01_count_flops_and_params"
SWEEPING = "03_sweep"
TRAINING = ("02_train_from_scratch", "06_fine_tune")  # a run folder each

MEASURES = (  # what is stated of a run; accuracies in percent, losses in nats
    "train_loss", "val_loss", "test_loss", "train_accuracy", "val_accuracy", "test_accuracy",
    "accuracy",  # of images that the report does not name: compared with our test images
    "parameters", "trainable", "epochs", "runs",
)  # fmt: skip
KINDS = {  # of a row's figures
    "stated": "in the report's own text",
    "derived": "follows from what the report states",
    "others": "what others state for the same task",
}
NOTES = {  # kinds of remarks
    "claim": "what the report says without a number",
    "derived": "what follows from what the report states",
    "guess": "what the report leaves open, and what was chosen",
    "contradiction": "where the report disagrees with itself or its task, and what was taken",
    "remark": "what else one should know",
    "own": "a row of our own beside the report's, and why",
}
FIGURE = re.compile(r"([<>] )?(\d+(\.\d+)?)( [kM])?")


class ExperimentError(ValueError):
    """A row that cannot be run as written; the message names file and row and the way out."""


def number(figure: float | str) -> float:
    """Return the number in a figure: 3,400,000 for "3.4 M", 80 for "> 80"."""
    return float(figure) if not isinstance(figure, str) else _parse(figure)[1]


def fits(figure: float | str, value: float) -> bool:
    """Say whether a value is what a figure says.

    A number has to be equal; a rounded one ("3.4 M") less than one unit of its last digit away,
    for figures are rounded and cut off; a bound ("< 10 M") has the value on its side.
    """
    if not isinstance(figure, str):
        return figure == value
    bound, there, unit = _parse(figure)
    if bound:
        return value < there if bound == "<" else value > there
    return abs(value - there) < unit


def _parse(figure: str) -> tuple[str, float, float]:
    """Return bound ("", "<" or ">"), value and the worth of the last digit of a figure in text."""
    bound, digits, fraction, letter = FIGURE.fullmatch(figure).groups("")
    scale = {"": 1, " k": 1e3, " M": 1e6}[letter]
    return bound.strip(), float(digits) * scale, scale * 10.0 ** -max(0, len(fraction) - 1)


def _check_figure(value: Any) -> Any:
    if isinstance(value, str) and FIGURE.fullmatch(value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError('should be a number, or text such as "3.4 M", "< 10 M", "> 80"')


def _flat(notes: Any) -> Any:
    """Join notes and (by YAML's aliases) lists of notes to one list."""
    if not isinstance(notes, list):
        return [notes]
    return [note for entry in notes for note in _flat(entry)]


def _check_note(note: Any) -> Any:
    if isinstance(note, dict) and len(note) == 1:
        ((kind, text),) = note.items()
        if kind in NOTES and isinstance(text, str):
            return kind, " ".join(text.split())
        if kind not in NOTES:
            raise ValueError(f"unknown kind '{kind}'{did_you_mean(str(kind), NOTES)}; "
                             f"choose from {', '.join(NOTES)}")  # fmt: skip
    raise ValueError('should be a kind and a sentence, such as "guess: Which VGG: here VGG16."')


Figures = dict[str, Annotated[Any, AfterValidator(_check_figure)]]
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class Wrong(BaseModel):
    """A stated count that is wrong."""

    model_config = STRICT

    right: float  # the true value
    why: str  # a sentence


class Row(BaseModel):
    """One row of a report: how to run it, what the report states, what it leaves open."""

    model_config = STRICT

    report: str  # R1 ... R5
    title: str = ""  # the report's
    name: str = Field(pattern=r"^[\w.-]+$")  # unique in its file
    section: str = ""  # of the report, whose words the row implements; "": a row of our own
    notebook: str  # the file's stem
    parameters: dict[str, Any] = {}  # as for `papermill -f`
    grid: dict[str, list] = {}  # parameter: values; every combination is an execution of its own
    stated: Figures = {}  # MEASURES; of a count, names in counts.json or sums of them
    derived: Figures = {}
    others: Figures = {}
    wrong: dict[str, Wrong] = {}  # by stated measure
    notes: Annotated[
        list[Annotated[Any, AfterValidator(_check_note)]], BeforeValidator(_flat)
    ] = []  # (kind of NOTES, text)
    test: bool = False  # notebook 04 opens the test set afterwards
    limit_minutes: float = 720  # wall-clock time of one execution

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

    def figures(self) -> Iterator[tuple[str, str, float | str]]:
        """Yield each figure of the row as (kind, measure, figure)."""
        for kind in KINDS:
            for measure, figure in getattr(self, kind).items():
                yield kind, measure, figure

    @model_validator(mode="after")
    def _check(self) -> "Row":
        measures = [measure for _, measure, _ in self.figures()]
        for measure in measures:
            if not self.counts and measure not in MEASURES:
                raise ValueError(f"unknown measure '{measure}'{did_you_mean(measure, MEASURES)}; "
                                 f"choose from {', '.join(MEASURES)}")  # fmt: skip
            if measures.count(measure) > 1:
                raise ValueError(f"{measure} is given twice: it is one of {', '.join(KINDS)}")
        for measure in self.wrong:
            if measure not in self.stated:
                hint = did_you_mean(measure, self.stated)
                raise ValueError(f"wrong: '{measure}' is not stated{hint}")
        if self.test and self.notebook != "02_train_from_scratch":
            raise ValueError("test is for notebook 02_train_from_scratch; others have a parameter")
        known = notebook_parameters(self.notebook)
        for name, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {name} = [] should be a list of values")
        for parameters in self.points.values():
            for name, value in parameters.items():
                if name in Config.model_fields:
                    continue
                if name not in known:
                    hint = did_you_mean(name, [*Config.model_fields, *known])
                    raise ValueError(f"unknown parameter '{name}'{hint}")
                if type(value).__name__ != known[name]:
                    wanted = known[name]
                    raise ValueError(f"{name} = {value!r} is not possible: it should be {wanted}")
            if self.notebook != SWEEPING:
                config_of(self, parameters)
        return self


def load_all() -> list[Row]:
    """Read the rows of all reports, in the reports' order."""
    return [row for path in sorted(EXPERIMENTS.glob("r[0-9]*.yaml")) for row in load(path)]


def load(path: Path | str) -> list[Row]:
    """Read and check one report's file.

    Raises ExperimentError, which names the file, the row and the mistake, and FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in EXPERIMENTS.glob("*.yaml")))
        raise FileNotFoundError(f"there is no file {path}; experiments/ has {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = abridge(for_terminal(" ".join(str(error).split())), 200)
        raise ExperimentError(f"{path.name} is not valid YAML: {why}") from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("rows"), list)
        or not {"report", "title"} <= content.keys()
    ):
        raise ExperimentError(f"{path.name} is no report: it needs report, title and a list rows")
    for key in content:
        if key not in ("report", "title", "rows"):
            raise ExperimentError(f"{path.name}: unknown key '{key}' beside report, title, rows")
    shared = {"report": content["report"], "title": content["title"]}
    rows: list[Row] = []
    for place, entry in enumerate(content["rows"], start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ExperimentError(f"{path.name}, row {place}: it needs a name")
        where = f"{path.name}, row '{entry['name']}'"
        try:
            rows.append(Row.model_validate(_with_parameters(entry, path.parent) | shared))
        except ValidationError as error:
            raise ExperimentError(f"{where}: {_sentence(error.errors()[0])}") from None
        except (ConfigError, ExperimentError) as error:
            raise ExperimentError(f"{where}: {error}") from None
        if entry["name"] in {other.name for other in rows[:-1]}:
            raise ExperimentError(f"{where}: the name is used twice; choose another")
    return rows


def _with_parameters(entry: dict, folder: Path) -> dict:
    """Read the file beside the report's that `parameters` may name."""
    file = entry.get("parameters")
    if not isinstance(file, str):
        return entry
    if not (folder / file).exists():
        raise ExperimentError(f"there is no file '{file}' beside it")
    return {**entry, "parameters": yaml.safe_load((folder / file).read_text(encoding="utf-8"))}


def _sentence(error: dict) -> str:
    """Turn pydantic's first error into one sentence."""
    where = ": ".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return (
            f"unknown key '{where}'{did_you_mean(where, Row.model_fields)}; "
            f"possible are {', '.join(Row.model_fields)}"
        )
    if error["type"] == "missing":
        return f"it needs {where}"
    if error["type"] == "string_pattern_mismatch":
        return f"the {where} should have letters, digits, '_', '-' and '.' alone"
    if error["type"] == "value_error":
        text = error["msg"].removeprefix("Value error, ")
        return f"{where} = {error['input']!r} {text}" if where else text
    wanted = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{where} = {error['input']!r} is not possible: it should be {wanted}"


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
        if run.usable and (dataset or run.config.id == config_of(row, parameters).id):
            runs.append(run)
    return runs


def by_setting(row: Row, runs: list[Run]) -> dict[str, list[Run]]:
    """Group a row's runs by what its grid varies beside the seed, in words; "" where nothing."""
    names = [name for name in row.grid if name != "seed"]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        words = (f"{name} {shorten(getattr(run.config, name))}" for name in names)
        groups.setdefault(", ".join(words), []).append(run)
    return groups


def _fixed_values(file: Path) -> dict:
    """Return the parameters to which a sweep's file gives a single value."""
    parameters = yaml.safe_load(file.read_text(encoding="utf-8"))["parameters"]
    return {name: entry["value"] for name, entry in parameters.items() if "value" in entry}


def counts_of(row: Row, runs_root: str | Path = "runs") -> dict[str, int] | None:
    """Return what a count row's notebook counted, or None where it has not run.

    Beside all names of counts.json it holds each of the row's measures, which may be a sum of them
    ("parameters + moving_statistics"). None, too, where the file is damaged or lacks a measure.
    """
    path = ROOT / runs_root / row.report / row.name / "counts.json"
    if not row.counts or not path.exists():
        return None
    counts = readable_json(path, dict[str, int])
    wanted = [measure for _, measure, _ in row.figures()]
    if counts is None or not {name for key in wanted for name in key.split(" + ")} <= counts.keys():
        return None  # damaged, or counted by an older version
    return counts | {key: sum(counts[name] for name in key.split(" + ")) for key in wanted}


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
