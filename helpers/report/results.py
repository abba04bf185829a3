"""Recorded measurements: a line a run in results/runs.csv, and every count in results/counts.csv.

    python -m helpers.report.results record [RUN ...] [--command TEXT] [--remark TEXT]
    python -m helpers.report.results compare [RUN ...]

A RUN is a folder below runs/, such as R5/lite0_lr.01-seed0; without one, `record` takes the counts
of all reports and `compare` everything that has a record. `record` replaces the line of a run that
was recorded before. The report shows recorded figures beside those measured on this machine.
"""

import argparse
import csv
import json

from helpers import ROOT
from helpers.report.rows import EXPERIMENTS, Row, config_of, counts_of, load_all
from helpers.runs.config import NO_EFFECT, Config, ConfigError
from helpers.runs.files import CannotWrite, DamagedFile, write_atomically
from helpers.runs.folder import Run, csv_of
from helpers.runs.text import markdown_table

RESULTS = ROOT / "results"
FIGURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
COLUMNS = (
    "run", *FIGURES, "epochs", "params", "trainable", "seconds", "seed", "device", "processor",
    "threads", "python", "packages", "commit", "date", "remark", "command", "config",
)  # fmt: skip
COUNTS = ("report", "row", "measure", "count")


def line_of(run: Run, name: str, command: str = "", remark: str = "") -> dict[str, str]:
    """Return the line of a finished run: accuracies and losses in full, `config` as JSON.

    `config` holds what differs from the defaults. `command` may be left out for a report's row.
    Raises ConfigError where the run has not finished, or where the command is needed.
    """
    if not run.finished:
        raise ConfigError(f"{name} is no finished run: only those are recorded")
    report = name.partition("/")[0]
    if not command:
        file = EXPERIMENTS / f"{report.lower()}.yaml"
        if not file.exists():
            raise ConfigError(f"{name} is no row of a report: say by --command how it was made")
        command = f"python -m helpers.report.batch experiments/{file.name} --rows {run.name}"
    metrics, environment, defaults = run.metrics, run.environment, Config().model_dump()
    chosen = run.config.model_dump(exclude=NO_EFFECT)
    line = {f"{split}_{figure}": metrics.get(split, {}).get(figure, "")
            for split in ("train", "val", "test") for figure in ("loss", "accuracy")}  # fmt: skip
    line |= {key: metrics[key] for key in ("epochs", "params", "trainable")}
    line |= {"run": name, "seconds": metrics["train_seconds"], "seed": run.config.seed}
    line |= {key: environment[key] for key in ("device", "processor", "threads", "python")}
    line["packages"] = " ".join(f"{n}=={v}" for n, v in environment["packages"].items())
    line |= {"commit": environment["commit"], "date": run.status["time"][:10]}
    line |= {"remark": remark, "command": command}
    line["config"] = json.dumps({n: v for n, v in chosen.items() if v != defaults[n]})
    return {column: str(line[column]) for column in COLUMNS}


def load(file: str = "runs.csv") -> list[dict[str, str]]:
    """Read the recorded lines; none where nothing was recorded."""
    path = RESULTS / file
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def recorded(row: Row) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Return a row's recorded runs by (commit, processor or GPU): other code is never mixed in.

    A line counts only while its parameters are the row's.
    """
    expected = {f"{row.report}/{name}": config_of(row, parameters).id
                for name, parameters in row.points.items()}  # fmt: skip
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line in load():
        if line["run"] in expected and Config(**json.loads(line["config"])).id == expected[
            line["run"]
        ]:
            machine = line["processor"] if line["device"] == "CPU" else line["device"]
            found.setdefault((line["commit"], machine), []).append(line)
    return found


def record(run: Run, name: str, command: str = "", remark: str = "") -> None:
    """Add a run to results/runs.csv, in the place of its older line."""
    line = line_of(run, name, command, remark)
    kept = [old for old in load() if old["run"] != name]
    _write("runs.csv", COLUMNS, sorted([*kept, line], key=lambda one: one["run"]))


def record_counts(runs_root: str = "runs") -> None:
    """Write results/counts.csv: each figure of the reports' count rows that were counted here.

    The others' records stay.
    """
    counts = _known_counts() | _counts(runs_root)
    keys = [(row.report, row.name, figure[1]) for row in load_all() for figure in row.figures()]
    lines = [dict(zip(COUNTS, (*key, counts[key]), strict=True)) for key in keys if key in counts]
    _write("counts.csv", COUNTS, lines)


def _known_counts() -> dict[tuple[str, ...], str]:
    """Return the recorded counts by report, row and measure."""
    return {tuple(line[key] for key in COUNTS[:3]): line["count"] for line in load("counts.csv")}


def _counts(runs_root: str) -> dict[tuple[str, ...], str]:
    """Return what was counted here, likewise."""
    found = {}
    for row in load_all():
        counts = counts_of(row, runs_root)
        for _, measure, _ in row.figures() if counts else ():
            found[row.report, row.name, measure] = str(counts[measure])
    return found


def _write(file: str, columns: tuple[str, ...], lines: list[dict[str, str]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / file, csv_of(lines, columns).encode())


def compare(runs_root: str = "runs", names: list[str] | None = None) -> str:
    """Set fresh runs and counts beside their records, as a Markdown table.

    Without names, all that have both. What was made by other parameters, other code or on another
    machine is said in the last column.
    """
    rows: list[tuple[str, ...]] = []
    lines = {line["run"]: line for line in load()}
    for name in names or lines:
        run = Run(ROOT / runs_root / name)
        if name not in lines:
            raise ConfigError(f"{name} has no record; recorded are {', '.join(lines) or 'none'}")
        if not run.finished:
            if names:
                raise ConfigError(f"{name} has not finished here: there is nothing to compare")
            continue
        old, new = lines[name], line_of(run, name, "-")
        other = [key for key in ("config", "commit", "processor", "packages", "device")
                 if old[key] != new[key]]  # fmt: skip
        for figure in (*FIGURES, "seconds"):
            if old[figure] and new[figure]:
                before, now = float(old[figure]), float(new[figure])
                remark = f"other {', '.join(other)}" if other else "same code and machine"
                rows.append((name, figure.replace("_", " "), f"{before:.4f}", f"{now:.4f}",
                             f"{now - before:+.4f}", remark))  # fmt: skip
    ending = ""
    if not names:
        known, counted = _known_counts(), _counts(runs_root)
        for (report, row, measure), old in known.items():
            now = counted.get((report, row, measure), old)
            if now != old:
                rows.append((f"{report}/{row}", measure, old, now, f"{int(now) - int(old):+}",
                             "differs"))  # fmt: skip
        same = len(known.items() & counted.items())
        ending = f"\n\n{same} of {len(known)} recorded counts are the same here."
    return markdown_table(("run", "figure", "recorded", "here", "difference", ""), rows) + ending


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.report.results", description="Recorded measurements."
    )
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("runs", nargs="*", metavar="RUN", help="such as R5/lite0_lr.01-seed0")
    parser.add_argument("--command", default="", help="how it was made; known of reports' rows")
    parser.add_argument("--remark", default="", help="such as 'loaded machine'")
    parser.add_argument("--runs-root", default="runs")
    options = parser.parse_args(arguments)
    try:
        if options.what == "compare":
            print(compare(options.runs_root, options.runs))
            return
        for name in options.runs:
            run = Run(ROOT / options.runs_root / name)
            record(run, name, options.command, options.remark)
        if not options.runs:
            record_counts(options.runs_root)
    except (ConfigError, CannotWrite, DamagedFile) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
