"""Run reports' rows again, each a papermill run of its own that may be killed and continued.

    python -m helpers.report.batch experiments/r5.yaml [--rows PATTERN] [--jobs N] [--set epochs=1]
        [--dataset tiny_nature] [--dry-run]

Rows that only count are counted at once, without a notebook, a fraction of a second each. Rows that
ran on drawn images in place of the report's keep their figures, not their weights.

Each execution has a folder runs/batch/REPORT/ROW: status.json, the executed notebook, log.txt and
parameters.yaml, with which papermill runs it by hand. Finished rows are skipped, all others start
or continue.
"""

import argparse
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from fnmatch import fnmatch
from pathlib import Path

import psutil
import yaml
from tqdm import tqdm

from helpers import ROOT
from helpers.report import rows
from helpers.report.executions import Execution, plan
from helpers.report.rows import ExperimentError
from helpers.runs.config import ConfigError
from helpers.runs.files import CannotWrite, naming_the_disk, readable_json
from helpers.runs.text import for_terminal

MARK = "FIVE_BLOCKS_BATCH"  # in the environment of all that an execution starts: its folder
ATTEMPTS = 2  # where a notebook ends without an error of its own: its kernel was lost


def run(executions: list[Execution], jobs: int = 1) -> list[Execution]:
    """Run all executions that have not finished, `jobs` at a time; returns those that failed.

    However it ends, by an error, Ctrl-C or SIGTERM, nothing that it started is left running.
    What an earlier batch left running because it was killed is stopped first.
    """
    failed: list[Execution] = []
    running: list[Execution] = []
    with ExitStack() as locks:
        for folder in sorted({execution.folder.parent for execution in executions}):
            _lock(folder, locks)
            stop(folder)
        waiting = [execution for execution in executions if not execution.finished]
        table = _Table(executions, len(waiting))
        try:
            for execution in [one for one in waiting if one.row.counts]:
                waiting.remove(execution)
                state, reason = _count(execution)
                failed += [execution] if state == "failed" else []
                table.say(execution, state, reason)
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(waiting.pop(0))
                    running[-1].write_parameters()
                    _start(running[-1], jobs)
                    table.say(running[-1], "started", running[-1].changes)
                for execution in list(running):
                    state, reason = _look(execution, jobs)
                    if state != "running":
                        running.remove(execution)
                        execution.set_status(state, **({"reason": reason} if reason else {}))
                        failed += [execution] if state == "failed" else []
                        table.say(execution, state, reason)
                table.show(running, len(waiting))
                time.sleep(0.2)
        finally:
            for execution in running:
                stop(execution.folder)
            for execution in running:
                with suppress(CannotWrite):  # a full disk has said so already
                    execution.set_status("interrupted")
                table.say(execution, "interrupted")
    return failed


def stop(folder: Path) -> None:
    """End every process that executions in `folder` started: papermill, kernels, their workers.

    Kernels are in sessions of their own; what they all share is the mark in their environment.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK)
            if mark and folder in (Path(mark), *Path(mark).parents):
                process.terminate()
                found.append(process)
    for process in psutil.wait_procs(found, timeout=3)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=10)


def _lock(folder: Path, locks: ExitStack) -> None:
    """Hold a report's folder while this batch lives; at its death the system lets go of it."""
    with naming_the_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = locks.enter_context((folder / ".lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExperimentError(
            f"another batch works on {folder.name}: wait for it, or stop it"
        ) from None


def _start(execution: Execution, jobs: int) -> None:
    """Start the execution's present step, in a process group of its own."""
    execution.started = execution.started or time.monotonic()
    execution.set_status("running")
    environment = {**os.environ, MARK: str(execution.folder)}
    if jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    with (execution.folder / "log.txt").open("ab") as log:
        execution.process = subprocess.Popen(
            [sys.executable, *execution.command(execution.step)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )


def _count(execution: Execution) -> tuple[str, str]:
    """Count here and now; returns the execution's state and a reason."""
    begun = time.monotonic()
    execution.write_parameters()
    try:
        execution.count()
        state, reason = "finished", ""
    except Exception as error:  # this row's mistake is not the other rows'
        state, reason = "failed", f"{type(error).__name__}: {error}"
    execution.seconds = time.monotonic() - begun
    execution.set_status(state, **({"reason": reason} if reason else {}))
    return state, reason


def _look(execution: Execution, jobs: int) -> tuple[str, str]:
    """Return an execution's state and a reason; starts its next step where one has ended."""
    execution.seconds = time.monotonic() - execution.started
    code = execution.process.poll()
    if code is None:
        if execution.seconds < 60 * execution.row.limit_minutes:
            return "running", ""
        stop(execution.folder)
        return "failed", f"not done within its limit of {execution.row.limit_minutes:g} minutes"
    if code == 0 and execution.step + 1 == len(execution.steps):
        execution.forget_weights()
        return "finished", ""
    if code == 0:
        execution.step += 1
    else:
        stop(execution.folder)  # a kernel may outlive its papermill
        reason = _error(execution.paths(execution.step)[1])
        if reason or execution.attempt == ATTEMPTS:
            return (
                "failed",
                reason or f"papermill ended with {code}: see {execution.folder}/log.txt",
            )
        execution.attempt += 1
    _start(execution, jobs)
    return "running", ""


def _error(notebook: Path) -> str:
    """Return the error of an executed notebook's last cell that has one; "" for none."""
    if not notebook.exists():
        return ""
    content = readable_json(notebook, dict) or {}  # papermill may be killed while it writes
    outputs = [
        output
        for cell in content.get("cells", [])
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    return " ".join(f"{outputs[-1]['ename']}: {outputs[-1]['evalue']}".split()) if outputs else ""


class _Table:
    """Tell how far a batch is: a live table on a terminal, elsewhere a line an event."""

    def __init__(self, executions: list[Execution], todo: int):
        self.total, self.todo = len(executions), todo
        self.width = max(len(execution.label) for execution in executions)
        self.live = sys.stdout.isatty()
        self.begun = time.monotonic()
        self.lines = 0
        print(f"{todo} of {self.total} executions to run, {self.total - todo} finished before")

    def say(self, execution: Execution, state: str, remark: str = "") -> None:
        """Print an event that stays."""
        if self.live and state == "started":
            return
        self._clear()
        seconds = f"{execution.seconds:.0f} s" if state != "started" else ""
        line = f"{execution.label:{self.width}}  {state:11} {seconds:>7}  {remark}"
        print(line.rstrip(), flush=True)

    def show(self, running: list[Execution], waiting: int) -> None:
        """Redraw what runs now, what is done and the time left."""
        if not self.live:
            return
        done = self.todo - len(running) - waiting
        passed = time.monotonic() - self.begun
        left = tqdm.format_interval(passed / done * (self.todo - done)) if done else "?"
        lines = [f"{execution.label:{self.width}}  {_progress(execution)}" for execution in running]
        lines.append(
            f"{self.total - self.todo + done} of {self.total} done in "
            f"{tqdm.format_interval(passed)}, {left} left"
        )
        self._clear()
        columns = shutil.get_terminal_size().columns
        print("\n".join(line[: columns - 1] for line in lines), flush=True)
        self.lines = len(lines)

    def _clear(self) -> None:
        if self.lines:
            print(f"\x1b[{self.lines}F\x1b[J", end="")
        self.lines = 0


def _progress(execution: Execution) -> str:
    notebook, parameters = execution.steps[execution.step]
    epochs = sum(stage["epochs"] for stage in parameters.get("stages", []))
    epochs = epochs or parameters.get("epochs", "?")
    trained = len(execution.run.history)
    where = f"{trained} of {epochs} epochs" if trained else "starting"
    if execution.step:
        where = "test set"
    return f"{notebook}, {where}, {execution.seconds:.0f} s"


def _summary(executions: list[Execution], failed: list[Execution]) -> str:
    lines = [f"{len(executions) - len(failed)} of {len(executions)} executions have finished"]
    reasons = {execution.label: execution.status.get("reason", "") for execution in failed}
    lines += [f"failed: {label}: {for_terminal(reason)}" for label, reason in reasons.items()]
    changed = sum(bool(execution.changes) for execution in executions)
    if changed:
        lines.append(
            f"{changed} of them ran with changes, so that their figures are no measurement of the "
            f"report; each status.json says which"
        )
    return "\n".join(lines)


def _dry_run(executions: list[Execution]) -> str:
    """Write each execution's parameters, run nothing, and list what would run."""
    lines = []
    for execution in executions:
        execution.write_parameters()
        state = execution.status.get("state", "new")
        limit = f"at most {execution.row.limit_minutes:g} min"
        lines.append(f"{execution.label}  {state}, {limit}  {execution.changes}".rstrip())
        commands = [shlex.join(execution.command(step)) for step in range(len(execution.steps))]
        lines += [f"    python {command}" for command in commands]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 if a row failed, 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.report.batch", description="Run the rows of reports again."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="such as experiments/r5.yaml")
    parser.add_argument("--rows", default="*", metavar="PATTERN", help="names, such as 'scratch_*'")
    parser.add_argument("--jobs", type=int, default=1, help="executions at a time (1)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                        help="another value for all rows; may be given several times")  # fmt: skip
    parser.add_argument(
        "--dataset", default="", help="other data for all rows, such as tiny_nature"
    )
    parser.add_argument("--runs-root", default="runs", help="where all results go (runs)")
    parser.add_argument("--dry-run", action="store_true", help="list what would run")
    options = parser.parse_args(arguments)
    try:
        executions = _read(options)
        if options.dry_run:
            print(_dry_run(executions))
            return 0
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            failed = run(executions, options.jobs)
        finally:
            signal.signal(signal.SIGTERM, before)
    except (ExperimentError, ConfigError, FileNotFoundError, CannotWrite) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    print(_summary(executions, failed))
    return 1 if failed else 0


def _read(options: argparse.Namespace) -> list[Execution]:
    """Read the files and options; raises ExperimentError in one sentence."""
    if options.jobs < 1:
        raise ExperimentError(f"--jobs {options.jobs} should be at least 1")
    changes = {}
    for pair in options.changes:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ExperimentError(f"--set {pair} should be NAME=VALUE, such as epochs=1")
        changes[name] = yaml.safe_load(value)
    known = [row for path in options.files for row in rows.load(path)]

    def fits(row: rows.Row, name: str) -> bool:
        return fnmatch(row.name, options.rows) or fnmatch(name, options.rows)

    wanted = [row for row in known if any(fits(row, name) for name in row.points)]
    if not wanted:
        names = ", ".join(row.name for row in known)
        raise ExperimentError(f"--rows {options.rows} fits none of {names}")
    executions = [
        execution
        for execution in plan(wanted, options.dataset, changes, options.runs_root)
        if fits(execution.row, execution.name)
    ]
    unique = {execution.folder: execution for execution in executions}
    return list(unique.values())


if __name__ == "__main__":
    sys.exit(main())
