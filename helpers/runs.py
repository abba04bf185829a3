"""Run folders: one folder a run, plain files, written atomically, readable without this project.

config.json, history.csv (a row an epoch), metrics.json, predictions.csv, best.pt, last.pt,
environment.json, status.json.
"""

import csv
import io
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from helpers import ROOT
from helpers.config import Config, ConfigError

NO_EFFECT = {"name", "runs_root", "tracking", "data_root"}  # parameters that change no result


@dataclass(frozen=True)
class Run:
    """One run's folder: its files, read and written."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> Config:
        return Config.load(self.folder / "config.json")

    @property
    def history(self) -> list[dict[str, float]]:
        """The epochs as dicts of numbers, oldest first; empty before the first one ends."""
        path = self.folder / "history.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {name: float(value) for name, value in row.items() if value != ""}
                for row in csv.DictReader(file)
            ]

    @property
    def metrics(self) -> dict:
        return _read_json(self.folder / "metrics.json")

    @property
    def environment(self) -> dict:
        return _read_json(self.folder / "environment.json")

    @property
    def status(self) -> dict:
        """`state` is running, finished, interrupted or failed (with `reason`)."""
        return _read_json(self.folder / "status.json")

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    def set_status(self, state: str, **more) -> None:
        self.write_json("status.json", {"state": state, "time": now(), **more})

    def write_json(self, name: str, content: dict) -> None:
        """Write a file of the run."""
        text = json.dumps(content, indent=1)
        write_atomically(self.folder / name, (text + "\n").encode())

    def write_csv(self, name: str, rows: list[dict]) -> None:
        """Write rows as CSV; the columns are those of the first row."""
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder / name, text.getvalue().encode())

    def write_predictions(self, split: str, rows: list[dict]) -> None:
        """Replace one split's rows in `predictions.csv`."""
        others = [row for row in self.predictions if row["split"] != split]
        self.write_csv("predictions.csv", others + rows)

    @property
    def predictions(self) -> list[dict[str, str]]:
        """The rows of `predictions.csv`: split, path, label, predicted, confidence."""
        path = self.folder / "predictions.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def write_checkpoint(self, name: str, content: dict) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}"
        torch.save(content, temporary)
        temporary.replace(self.folder / name)

    def read_checkpoint(self, name: str) -> dict:
        """Load `best.pt` or `last.pt` to the CPU; nothing in it is executed."""
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)


def open_run(config: Config) -> Run:
    """Return the run of a configuration, making its folder when it is new.

    The folder is `runs_root/name`, where an empty name becomes DATASET-MODEL-ID. Raises
    ConfigError when that name already holds a run with other parameters.
    """
    dataset = Path(config.dataset.removeprefix("folder:")).name
    name = config.name or f"{dataset}-{config.model}-{config.id}"
    run = Run(ROOT / config.runs_root / name)
    if (run.folder / "config.json").exists():
        old, new = run.config, config
        if old.id != new.id:
            changed = [
                f"{field} {value!r} -> {getattr(new, field)!r}"
                for field, value in old.model_dump().items()
                if value != getattr(new, field)
            ]
            raise ConfigError(
                f"name '{name}' already holds a run with other parameters "
                f"({', '.join(changed[:3])}): choose another name, or delete {run.folder}"
            )
    else:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.write_json("config.json", config.model_dump())
    return run


def find_runs(runs_root: str | Path = "runs", **parameters) -> list[Run]:
    """List the finished runs below `runs_root` whose configuration has these parameters.

    Newest last. Folders of an unreadable or older format are passed over.
    """
    found = []
    for path in Path(ROOT / runs_root).rglob("status.json"):
        run = Run(path.parent)
        with suppress(FileNotFoundError, ConfigError, json.JSONDecodeError):
            config = run.config
            if run.finished and all(getattr(config, k) == v for k, v in parameters.items()):
                found.append(run)
    return sorted(found, key=lambda run: run.status["time"])


def best_run(dataset: str, runs_root: str | Path = "runs") -> Run | None:
    """Return the run of a data set that is best on validation, or None where there is none.

    Candidates are the finished runs that lie in `runs_root` itself, not those of a sweep, of a
    report or of a pretraining, which have folders of their own; of equals, the oldest.
    """
    found = [
        run
        for run in find_runs(runs_root, dataset=dataset)
        if run.folder.parent == Path(ROOT / runs_root) and "val" in run.metrics
    ]
    return max(found, key=lambda run: run.metrics["val"]["accuracy"], default=None)


def varied(runs: list[Run]) -> dict[str, list]:
    """Return the parameters that differ between runs, each with its values, sorted."""
    configs = [run.config.model_dump(exclude=NO_EFFECT) for run in runs]
    values = {name: {json_of(c[name]): c[name] for c in configs} for name in Config.model_fields
              if name not in NO_EFFECT}  # fmt: skip
    return {
        name: sorted(found.values(), key=_order)
        for name, found in values.items()
        if len(found) > 1
    }


def shorten(value: object) -> str:
    """Write a parameter's value briefly: a list of equal numbers as 32 x 5, yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        if len(value) > 2 and len({json_of(v) for v in value}) == 1:
            return f"{shorten(value[0])} x {len(value)}"
        return ", ".join(shorten(v) for v in value) or "none"
    return str(value)


def json_of(value: object) -> str:
    """Write plain values as text by which they can be compared."""
    return json.dumps(value, sort_keys=True)


def _order(value: object) -> tuple:
    number = isinstance(value, bool | int | float)
    return (0, value, "") if number else (1, 0, json_of(value))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, also when killed on the way."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def now() -> str:
    """Return the time in UTC, to the millisecond, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
