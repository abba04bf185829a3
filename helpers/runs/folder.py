"""Run folders: one folder a run, plain files, written atomically, readable without this project.

config.json, data.json (which images), history.csv (a row an epoch), metrics.json, predictions.csv,
best.pt, last.pt (until the run has finished), environment.json, status.json. What is read is
checked; a file that is damaged is named in one sentence, and set aside when the run goes on.
"""

import csv
import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from helpers import ROOT
from helpers.runs.config import NO_EFFECT, Config, ConfigError
from helpers.runs.contents import Best, Data, Environment, Last, Metrics, Status
from helpers.runs.files import (
    DamagedFile,
    checked,
    damaged,
    naming_the_disk,
    read_json,
    remove_leftovers,
    whole,
    write_atomically,
    write_json,
)
from helpers.runs.text import abridge, reason

START_AGAIN = "delete it and start the run again, which continues from what is whole"
TRAIN_AGAIN = "start the same training again, which goes on from what is whole"


@dataclass(frozen=True)
class Run:
    """One run's folder: its files, read and written."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> Config:
        content = read_json(self.folder / "config.json", dict[str, Any], START_AGAIN)
        try:
            return Config(**content)
        except ConfigError as error:
            raise damaged(self.folder / "config.json", str(error), START_AGAIN) from None

    @property
    def history(self) -> list[dict[str, float]]:
        """The epochs as dicts of numbers, oldest first; empty before the first one ends."""
        rows = self._read_csv("history.csv")
        try:
            rows = [{name: int(value) if value.isdigit() else float(value)
                     for name, value in row.items()} for row in rows]  # fmt: skip
            if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
                raise ValueError("its epochs are not 1, 2, 3 ...")
        except (KeyError, AttributeError, ValueError) as error:
            raise damaged(self.folder / "history.csv", reason(error), START_AGAIN) from None
        return rows

    @property
    def metrics(self) -> dict:
        return self._read_json("metrics.json", Metrics)

    @property
    def data(self) -> dict:
        return self._read_json("data.json", Data)

    @property
    def environment(self) -> dict:
        return self._read_json("environment.json", Environment)

    @property
    def status(self) -> dict:
        """`state` is running, finished, interrupted or failed (with `reason`)."""
        return self._read_json("status.json", Status)

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    @property
    def usable(self) -> bool:
        """Whether it has finished, and all of its files but the checkpoints can be read."""
        try:
            self.check()
            return self.finished
        except (DamagedFile, FileNotFoundError):
            return False

    def set_status(self, state: str, **more) -> None:
        if state == "finished":
            more["history"] = self._digest_history()
        self.write_json("status.json", {"state": state, "time": now(), **more})

    @property
    def trained(self) -> bool:
        """Whether only what was measured after the last epoch may be lost."""
        is_whole = self._has_best() and self._history_is_whole()
        return self.finished and is_whole and bool(self.history)

    def _has_best(self) -> bool:
        return (self.folder / "best.pt").exists()

    def _history_is_whole(self) -> bool:
        return self.status.get("history", self._digest_history()) == self._digest_history()

    def _digest_history(self) -> str:
        path = self.folder / "history.csv"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""

    def write_json(self, name: str, content: dict) -> None:
        """Write a file of the run."""
        write_json(self.folder / name, content)

    def _read_json(self, name: str, kind: Any) -> dict:
        try:
            return read_json(self.folder / name, kind, START_AGAIN)
        except FileNotFoundError:
            return {}

    def _read_csv(self, name: str) -> list[dict[str, str]]:
        path = self.folder / name
        try:
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file, strict=True))
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise damaged(path, reason(error), START_AGAIN) from None

    def write_csv(self, name: str, rows: list[dict]) -> None:
        """Write rows as CSV; the columns are those of the first row."""
        write_atomically(self.folder / name, csv_of(rows, rows[0].keys()).encode())

    def write_predictions(self, split: str, rows: list[dict]) -> None:
        """Replace one split's rows in `predictions.csv`."""
        others = [row for row in self.predictions if row["split"] != split]
        self.write_csv("predictions.csv", others + rows)

    @property
    def predictions(self) -> list[dict[str, str]]:
        """The rows of `predictions.csv`; `Evaluation.rows` says what they hold."""
        rows = self._read_csv("predictions.csv")
        for row in rows:
            if not {"split", "path", "label", "predicted"} <= row.keys() or None in row.values():
                raise damaged(self.folder / "predictions.csv", "a value is missing", START_AGAIN)
        return rows

    def write_checkpoint(self, name: str, content: dict) -> None:
        with whole(self.folder / name) as temporary, temporary.open("wb") as file:
            torch.save(content, file)

    def read_checkpoint(self, name: str) -> dict:
        """Load `best.pt` or `last.pt` to the CPU; nothing in it is executed.

        Raises FileNotFoundError, and DamagedFile where it is cut, changed or another run's.
        """
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(f"{abridge(str(path), 150)} is missing: {TRAIN_AGAIN}")
        content = read_checkpoint(path, Best if name == "best.pt" else Last)
        if "config" in content:
            try:
                config = Config(**content["config"])
            except ConfigError as error:
                raise damaged(path, str(error), TRAIN_AGAIN) from None
            if (self.folder / "config.json").exists() and config.id != self.config.id:
                raise damaged(path, "it is another run's", TRAIN_AGAIN)
        return content

    def whole_checkpoint(self, name: str) -> dict | None:
        """Load a checkpoint, or None where it is absent or damaged; that one is set aside."""
        try:
            return self.read_checkpoint(name)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            self._set_aside(name, error)
            return None

    def last_whole(self) -> dict | None:
        """Load what a training continues from: last.pt, or best.pt where that was damaged.

        None where there is neither, or no best.pt: then a training starts at its beginning.
        """
        last, best = self.whole_checkpoint("last.pt"), self.whole_checkpoint("best.pt")
        if last is not None and best is None:
            print(f"{self.name} starts again: the weights of its best epoch are lost")
            (self.folder / "last.pt").unlink(missing_ok=True)
            return None
        lost = (self.folder / "last.pt.damaged").exists()
        if last is None and lost and not self.trained and best is not None and "history" in best:
            print(f"{self.name} continues after its best epoch, {best['epoch']}")
            return best
        return last

    def tie(self, fingerprint: str, classes: list[str]) -> None:
        """Remember the images that the run is trained on, or compare them; see `Splits`.

        Raises ConfigError where they are others than before.
        """
        known = self.data
        if known and fingerprint and known["fingerprint"] != fingerprint:
            gone = [name for name in known["classes"] if name not in classes]
            new = [name for name in classes if name not in known["classes"]]
            names = [f"without {name}" for name in gone[:2]] + [f"with {name}" for name in new[:2]]
            changed = f"now {', '.join(names)}" if names else "with other files in its classes"
            raise ConfigError(
                f"{abridge(self.name, 60)} was trained on other images than its data set holds "
                f"({abridge(changed, 60)}): put those back, give the new run another name, or "
                f"delete the folder of that run"
            )
        if not known and fingerprint:
            self.write_json("data.json", {"fingerprint": fingerprint, "classes": classes})

    def mend(self) -> None:
        """Set aside what cannot be read, so that a training continues from what is whole."""
        for name in ("status.json", "metrics.json", "environment.json", "data.json",
                     "history.csv", "predictions.csv"):  # fmt: skip
            try:
                getattr(self, name.partition(".")[0])
            except DamagedFile as error:
                self._set_aside(name, error)
        remove_leftovers(self.folder)

    def _set_aside(self, name: str, error: DamagedFile) -> None:
        aside = self.folder / f"{name}.damaged"
        trouble = str(error).rpartition(": ")[0]
        with naming_the_disk(aside), suppress(FileNotFoundError):
            (self.folder / name).replace(aside)
        print(f"{trouble}: it is now called {aside.name}, and the run continues from what is whole")

    def check(self) -> None:
        """Read everything but the checkpoints; raises DamagedFile in one sentence."""
        history, metrics, predictions = self.history, self.metrics, self.predictions
        _ = self.config, self.environment, self.data
        if self._has_best() and self.finished:
            if not history:
                raise damaged(self.folder / "history.csv", "no epoch", START_AGAIN)
            for name in ("train_seconds", "epochs", "params", "trainable", "best_epoch"):
                if name not in metrics:
                    raise damaged(self.folder / "metrics.json", f"no {name}", START_AGAIN)
            if "val_accuracy" in history[-1] and "val" not in metrics:
                raise damaged(self.folder / "metrics.json", "no val", START_AGAIN)
            if "val" in metrics and all(row["split"] != "val" for row in predictions):
                raise damaged(self.folder / "predictions.csv", "no val", START_AGAIN)
        if not self._history_is_whole():
            raise damaged(self.folder / "history.csv", "changed since it was written", START_AGAIN)


def csv_of(rows: list[dict], columns: Collection[str]) -> str:
    """Return rows as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_checkpoint(path: Path, kind: Any = Best) -> dict:
    """Read a checkpoint to the CPU and check its shape and checksums; nothing in it is executed.

    Raises FileNotFoundError, and DamagedFile in one sentence.
    """
    try:
        with zipfile.ZipFile(path) as pack:  # torch does not compare its checksums
            if broken := pack.testzip():
                raise ValueError(f"{broken} was changed")
        content = torch.load(path, map_location="cpu", weights_only=True)
        return checked(content, kind)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        trouble = "it is no file of weights"
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            trouble = "it holds more than tensors and plain values, which could be code"
    except Exception as error:  # whatever damaged bytes lead to
        trouble = reason(error)
    raise damaged(path, trouble, TRAIN_AGAIN)


def open_run(config: Config) -> Run:
    """Return the run of a configuration, making its folder when it is new.

    The folder is `runs_root/name`, where an empty name becomes DATASET-MODEL-ID. Raises
    ConfigError when that name already holds a run with other parameters. What is damaged in it is
    set aside.
    """
    dataset = re.sub(r"[^\w.-]+", "-", Path(config.dataset.removeprefix("folder:")).name)[-80:]
    model = re.sub(r"[^\w.-]+", "-", config.model)
    name = config.name or f"{dataset}-{model}-{config.id}"
    run = Run(ROOT / config.runs_root / name)
    if run.folder.exists() and not run.folder.is_dir():
        raise ConfigError(f"{run.folder} is a file where the run's folder should be: move it away")
    if not (run.folder / "config.json").exists():
        with naming_the_disk(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        kept = run.whole_checkpoint("best.pt") or {"config": config.model_dump()}
        run.write_json("config.json", kept["config"])
    else:
        run.mend()
    if run.config.id != config.id:
        old, new = (each.model_dump(exclude=NO_EFFECT) for each in (run.config, config))
        changed = [f"{key} {old[key]!r} -> {new[key]!r}" for key in old if old[key] != new[key]]
        more = f"; to train it further, give a new run weights = '{name}'"
        raise ConfigError(
            f"name '{name}' already holds a run with other parameters "
            f"({abridge(', '.join(changed[:3]), 120)}): choose another name, or delete {run.folder}"
            f"{more if changed[0].startswith('epochs') else ''}"
        )
    return run


def now() -> str:
    """Return the time in UTC, to the millisecond, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
