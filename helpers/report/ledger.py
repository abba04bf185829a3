"""The ledger: what the reports state beside what was measured here, with a verdict by fixed rules.

The rules:

- A count (parameters, trainable, MACs) is *equal*, or *wrong in the report* where the row says why
  and our count is the right value, else *differs*. A rounded one (3.4 M) is equal when it is less
  than one unit of its last digit away, a bound (< 10 M) when it holds.
- An accuracy is *reproduced* when the stated value lies within the mean ± 2 standard deviations of
  at least three runs, or within 2 points of the mean; otherwise it is *better* or *worse*. Where
  that deviation is above 5 points the runs disagree among themselves: shown and not judged.
- Losses, epochs and numbers of runs are shown and not judged: reports average losses differently,
  and the others are chosen, not measured.
- A run on other data than the report's, or with other parameters, is never judged.
- A row without a finished run is *not run*, with the reason if it failed and the command to run it.
- *Recorded* figures are those of results/, measured before with the commit and the processor that
  stand beside them; they are judged alike and never averaged with other code's or this machine's.
- A figure is *stated* where it is in the report's text, *derived* where it follows from that, and
  *others'* where it is of another source; rows of our own have none and are shown.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from helpers import ROOT
from helpers.report.executions import read_status
from helpers.report.results import recorded
from helpers.report.rows import (
    SWEEPING,
    TRAINING,
    Row,
    by_setting,
    counts_of,
    fits,
    number,
    runs_of,
)
from helpers.runs.folder import Run, csv_of
from helpers.runs.text import for_markdown

POINTS = 2.0  # percentage points
DISAGREE = 5.0  # standard deviation in points beyond which runs say nothing together
COUNTS = ("parameters", "trainable")
OWN = ("val_accuracy", "test_accuracy", "epochs", "parameters")  # shown of rows of our own
NOT_JUDGED = "shown"
GOOD, BAD = ("equal", "reproduced", "better"), ("worse", "differs", "wrong in the report")
NUMBERS = ("stated", "measured", "std", "runs", "difference")
COLUMNS = ("report", "row", "measure", "kind", *NUMBERS, "verdict", "remark")


@dataclass(frozen=True)
class Entry:
    """One figure of a row and its measurement; accuracies in percent."""

    report: str
    row: str
    measure: str
    kind: str  # of rows.KINDS; "": a row of our own
    stated: float | str | None  # the figure, rounded ("3.4 M") or not; None: a row of our own
    values: tuple[float, ...]  # one a run; one for a count; empty: not run
    verdict: str
    remark: str = ""
    recorded: str = ""  # the commit that measured what is in results/; "": measured here
    setting: str = ""  # what the row's grid varies beside the seed, in words

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation of two runs or more."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def cells(self) -> dict[str, str]:
        """Return the entry as text by column."""
        digits = 2 if "accuracy" in self.measure else 4 if "loss" in self.measure else 0
        mean, std, stated = self.mean, self.std, self.stated
        source = f" recorded, {self.recorded}" if self.recorded else ""
        difference = None if mean is None or stated is None else mean - number(stated)
        return {
            "report": self.report,
            "row": f"{self.row} ({self.setting})" if self.setting else self.row,
            "measure": self.measure.replace("_", " "),
            "kind": self.kind.replace("others", "others'"),
            "stated": stated if isinstance(stated, str) else _number(stated, digits),
            "measured": _number(mean, digits),
            "std": _number(std, digits) if digits else "",
            "runs": f"{len(self.values)}{source}" if self.values else "",
            "difference": _number(difference, digits, "+"),
            "verdict": self.verdict,
            "remark": self.remark,
        }


def judge(
    measure: str,
    stated: float | str | None,
    values: tuple[float, ...],
    right: float | None = None,
) -> str:
    """Return the verdict on one figure; `right` is the true value where the report is wrong."""
    if not values:
        return "not run"
    if stated is None:
        return NOT_JUDGED
    mean = statistics.mean(values)
    if "accuracy" in measure:
        there = number(stated)
        spread = statistics.stdev(values) if len(values) >= 3 else 0.0
        if spread > DISAGREE:
            return NOT_JUDGED
        if abs(mean - there) <= max(POINTS, 2 * spread) or (there != stated and fits(stated, mean)):
            return "reproduced"
        return "better" if mean > there else "worse"
    if "loss" in measure or measure in ("epochs", "runs"):
        return NOT_JUDGED
    if fits(stated, mean):
        return "equal"
    return "wrong in the report" if right is not None and mean == right else "differs"


def measure_of(run: Run, measure: str) -> float | None:
    """Return what a run measured, in a report's unit, or None where it did not measure it."""
    metrics = run.metrics
    if measure in COUNTS:
        return metrics["params" if measure == "parameters" else "trainable"]
    if measure == "epochs":
        return metrics["epochs"]
    split, _, figure = measure.rpartition("_")
    split = split or "test"  # "accuracy": of images that the report does not name
    value = metrics.get(split, {}).get(figure)
    return 100 * value if value is not None and figure == "accuracy" else value


def ledger(rows: Sequence[Row], runs_root: str = "runs") -> list[Entry]:
    """Return an entry for each figure of reports' rows, and for our own that ran."""
    return [entry for row in rows for entry in entries_of(row, runs_root)]


def entries_of(row: Row, runs_root: str = "runs") -> list[Entry]:
    """Return an entry for each figure of a row; runs on other data are no measurement of it."""
    counts = counts_of(row, runs_root)
    runs = [] if row.counts else runs_of(row, runs_root=runs_root)
    own = [("", measure, None) for measure in OWN] if row.notebook in TRAINING else []
    found = []
    for setting, group in (by_setting(row, runs) or {"": []}).items():
        for kind, measure, stated in list(row.figures()) or own:
            every = [measure_of(run, measure) for run in group if measure != "runs"]
            values = tuple(value for value in every if value is not None)
            if row.counts:
                values = () if counts is None else (counts[measure],)
            elif measure == "runs":
                values = (len(group),) if group else ()
            elif row.notebook == SWEEPING and values:  # the best of its runs
                values = ((min if "loss" in measure else max)(values),)
            if stated is None and not values:
                continue
            wrong = row.wrong.get(measure) if kind == "stated" else None
            verdict = judge(measure, stated, values, wrong.right if wrong else None)
            remark = wrong.why if wrong else ""
            if verdict == "not run":
                file = f"experiments/{row.report.lower()}.yaml"
                remark = f"python -m helpers.report.batch {file} --rows {row.name}"
                reason = reason_of(row, runs_root)
                remark = f"failed: {reason}; {remark}" if reason else remark
            found.append(Entry(row.report, row.name, measure, kind, stated, values, verdict, remark,
                               setting=setting))  # fmt: skip
    return found


def recorded_entries(row: Row) -> list[Entry]:
    """Return an entry for each figure of a row that results/ holds, by code and machine."""
    own = [("", measure, None) for measure in OWN]
    found = []
    for (commit, machine), lines in recorded(row).items():
        dates, remarks = ({line[key]: None for line in lines} for key in ("date", "remark"))
        source = ", ".join([f"recorded {' and '.join(dates)}", f"commit {commit}", machine])
        source = "; ".join([source, *(remark for remark in remarks if remark)])
        for kind, measure, stated in list(row.figures()) or own:
            column = {"parameters": "params", "accuracy": "test_accuracy"}.get(measure, measure)
            scale = 100 if "accuracy" in measure else 1
            values = tuple(scale * float(line[column]) for line in lines if line.get(column))
            if values:
                verdict = judge(measure, stated, values)
                found.append(Entry(row.report, row.name, measure, kind, stated, values, verdict,
                                   source, recorded=commit))  # fmt: skip
    return found


def reason_of(row: Row, runs_root: str = "runs") -> str:
    """Return why the last batch failed to run a row; "" where it did not fail."""
    for name in row.points:
        status = read_status(ROOT / runs_root / "batch" / row.report / name)
        if status.get("state") == "failed":
            return status.get("reason", "")
    return ""


def to_csv(entries: list[Entry]) -> str:
    """Return the ledger as CSV, a line a figure, numbers without thousands separators."""
    lines = [entry.cells() for entry in entries]
    plain = [line | {name: line[name].replace(",", "") for name in NUMBERS} for line in lines]
    return csv_of(plain, COLUMNS)


def to_markdown(entries: list[Entry], columns: Sequence[str] = COLUMNS) -> str:
    """Return the ledger as a Markdown table, numbers to the right."""
    lines = [" | ".join(columns)]
    lines.append(" | ".join("---:" if name in NUMBERS else "---" for name in columns))
    for entry in entries:
        cells = entry.cells()
        lines.append(" | ".join(for_markdown(cells[name]) for name in columns))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign},.{digits}f}"
